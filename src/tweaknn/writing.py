"""Results on disk: values as JSON knows them, files written whole or not at all."""

from __future__ import annotations

import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

from tweaknn.errors import InputError


def plain(value: Any, digits: int | None = None) -> Any:
    """``value`` as JSON can hold it: arrays as lists, numbers as Python's (floats to ``digits`` decimals if given), keys as
    words, NaN and infinities as null."""
    if isinstance(value, dict):
        return {str(key): plain(item, digits) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, digits) for item in value]
    if hasattr(value, "tolist"):  # arrays, tensors, and the scalars of both
        return plain(value.tolist(), digits)
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return value if digits is None else round(value, digits)
    return value


def json_text(value: Any, indent: int | None = 1, digits: int | None = None) -> str:
    """``value`` as strict JSON with a line end."""
    return json.dumps(plain(value, digits), indent=indent, allow_nan=False) + "\n"


def write(path: Path, content: bytes | str, option: str = "") -> None:
    """Write a file whole or not at all.

    Raises:
        InputError: it cannot be written; the message names the ``option`` that asked for it.
    """
    path = Path(path)
    data = content.encode("utf-8") if isinstance(content, str) else content
    temporary = ""
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        said = f"{option} {path}".strip()
        raise InputError(f"{said}: cannot be written ({error.strerror or error}).") from None
