"""Put a page where the user wants it, whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from tweaknn.errors import InputError


def write_page(path: Path, html: str) -> None:
    """Write by a temporary file and a rename. Raises InputError when the place is not writable."""
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(html)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"--out {path}: {error.strerror or error}.") from None
