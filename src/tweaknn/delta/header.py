"""The JSON header of a Δnn file, read as a stranger's words: every field checked before anything is built from it."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from tweaknn.errors import DeltaError

MOST_INPUT = 1 << 28
"""Largest number of values one example may have: a header must not make ``attach`` allocate what no file held."""

MOST_PARTS = 200_000
"""Most lists and objects a header may hold: parsed, each takes some 200 bytes where the file needs three."""

DTYPES = frozenset("float32 float64 float16 bfloat16 uint8 int8 int16 int32 int64 bool".split())
_HASH = re.compile(r"[0-9a-f]{64}")


def strict_json(text: str | bytes) -> Any:
    """JSON without what only Python accepts: no NaN, no key twice.

    Raises:
        DeltaError: it is none, or has more lists and objects than :data:`MOST_PARTS`.
    """
    check_parts(text)
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except DeltaError:
        raise
    except (ValueError, RecursionError, UnicodeDecodeError, MemoryError):
        raise DeltaError("the header is not JSON; the file is damaged or not a Δnn file.") from None


def check_parts(text: str | bytes) -> None:
    """Raises DeltaError for a header that would take far more memory than its file: before it is parsed, or written."""
    found = text.count(b"[") + text.count(b"{") if isinstance(text, bytes) else text.count("[") + text.count("{")
    if found > MOST_PARTS:
        raise DeltaError(f"the header holds more than {MOST_PARTS} lists and objects; no delta needs as many.")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise DeltaError("the header names something twice; such a file reads differently to different readers.")
    return found


def _no_constant(name: str) -> Any:
    raise DeltaError(f"the header holds {name}, which JSON does not know.")


def check_header(header: dict[str, Any]) -> None:
    """Types and ranges of all fields of format 1. Raises DeltaError naming the field."""
    _need(isinstance(header.get("kind"), str), "kind")
    _need(_is_hash(header.get("base")), "base")
    _need(isinstance(header.get("below"), list) and all(_is_hash(name) for name in header["below"]), "below")
    classes = header.get("classes")
    _need(classes is None or (isinstance(classes, list) and all(isinstance(c, str) for c in classes)), "classes")
    _need(_is_shape(header.get("input_shape"), 0), "input_shape")
    _need(math.prod(header["input_shape"]) <= MOST_INPUT, "input_shape")
    _need(header.get("input_dtype") in DTYPES, "input_dtype")
    _need(header.get("how") in ("fx", "hooks"), "how")
    _need(header.get("head") is None or _is_int(header["head"]) or isinstance(header["head"], str), "head")
    _need(isinstance(header.get("meta"), dict), "meta")
    _need(isinstance(header.get("terms"), list), "terms")
    for term in header["terms"]:
        _need(isinstance(term, dict) and isinstance(term.get("reads"), list), "terms")
        _need(term.get("head") == "linear" or isinstance(term.get("activation"), str), "terms.activation")
        for read in term["reads"]:
            _need(isinstance(read, dict), "reads")
            _need(isinstance(read.get("layer"), str) and isinstance(read.get("reduction"), str), "reads.layer")
            _need(_is_shape(read.get("shape"), 1) and math.prod(read["shape"]) < 1 << 40, "reads.shape")
            _need(_is_int(read.get("channel_axis")), "reads.channel_axis")


def _need(holds: bool, field: str) -> None:
    if not holds:
        raise DeltaError(f"the header's field '{field}' is missing or impossible.")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and _HASH.fullmatch(value) is not None


def _is_shape(value: Any, least: int) -> bool:
    return isinstance(value, list) and least <= len(value) <= 16 and all(_is_int(n) and 0 < n < 1 << 40 for n in value)
