"""Results of compare, join and evaluate as one description of a page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tweaknn.errors import InputError
from tweaknn.report.of_compare import compare_page
from tweaknn.report.of_join import evaluate_page, join_page
from tweaknn.report.of_labels import is_of_labels, label_of, one_label

FORMATS = {"compare": (1,)}


def read_result(path: str | Path, target: str | None = None) -> tuple[dict[str, Any], str]:
    """A result's JSON and its kind: ``compare`` (a folder or its ``result.json``), ``join`` or ``evaluate``
    (``--json``).

    A Δnn file counts as its join: the result is in its metadata. Of a network with several labels an example, the label
    ``target`` (by default the first of a join, the one that gains most in an evaluation).

    Raises:
        InputError: nothing there, not JSON, not one of ours, or of a version this one cannot read.
    """
    file = Path(path)
    if file.is_dir():
        file = file / "result.json"
    if not file.is_file():
        raise InputError(f"There is no result at '{path}'; give a folder of `tweaknn compare` or a --json file.")
    if file.suffix != ".json":
        return _of_delta(file), "join"
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise InputError(f"'{file}' is not readable JSON ({problem}).") from None
    kind = kind_of(result)
    if kind is None:
        raise InputError(f"'{file}' is not a result of tweaknn compare, join or evaluate.")
    version = result.get("version", 1)
    if version not in FORMATS.get(kind, (1,)):
        raise InputError(f"'{file}' has format {version}, this version reads {FORMATS[kind]}; make it again or update.")
    if is_of_labels(result):
        return one_label(result, label_of(result, target), named=target is not None), kind
    return result, kind


def kind_of(result: Any) -> str | None:
    """Which command wrote a result."""
    if not isinstance(result, dict):
        return None
    if "methods" in result and "runs" in result:
        return "compare"
    if "candidates" in result and "base" in result:
        return "join"
    if is_of_labels(result):
        return is_of_labels(result)
    return "evaluate" if "tweaked" in result and "base" in result else None


def _of_delta(file: Path) -> dict[str, Any]:
    from tweaknn.delta import Delta
    from tweaknn.errors import DeltaError

    try:
        delta = Delta.load(str(file))
    except DeltaError as problem:
        raise InputError(f"'{file}' is neither a result (.json) nor a readable Δnn: {problem}") from None
    if "candidates" not in delta.meta:
        raise InputError(f"'{file}' holds no figures of a join; give the join's --json file.")
    return {**delta.meta, "fingerprint": delta.base}


def page_of(result: dict[str, Any], kind: str) -> dict[str, Any]:
    """Description of the page, as :func:`tweaknn.report.render` takes it.

    Raises:
        InputError: figures are missing, or are none.
    """
    try:
        return {"compare": compare_page, "join": join_page, "evaluate": evaluate_page}[kind](result)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as problem:  # a file of another hand
        raise InputError(
            f"The result is not whole ({type(problem).__name__}: {problem}); let `tweaknn {kind}` write it again."
        ) from problem
