"""A folder of class folders."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from tweaknn.errors import DataError
from tweaknn.inputs.raw import Raw
from tweaknn.inputs.sources import FileSource

EXTENSIONS = frozenset(".jpg .jpeg .jpe .jfif .png .bmp .gif .tif .tiff .webp .ppm .pgm .pbm .pnm .jp2 .avif".split())
_SPLITS = frozenset(("train", "training", "val", "valid", "validation", "dev", "test", "testing"))


def load_folder(root: Path) -> Raw:
    """Classes are the sub-folders, sorted by name; images lie in them at any depth.

    A ``metadata.csv`` with a column ``file_name`` (Hugging Face's convention) supplies further columns.

    Raises :class:`~tweaknn.errors.DataError` for a folder without class folders or images, and for one whose
    sub-folders are splits (``train``, ``test``).
    """
    # Hidden folders, and what macOS puts into archives beside the files, are no classes.
    folders = sorted(
        (entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith((".", "__MACOSX"))),
        key=lambda entry: entry.name,
    )
    if not folders:
        loose = any(entry.suffix.lower() in EXTENSIONS for entry in root.iterdir())
        what = "has images but no class folders" if loose else "is empty: it has no class folders and no Parquet files"
        raise DataError(f"folder '{root}' {what}; expected {root}/CLASS/IMAGE.")
    if all(folder.name.lower() in _SPLITS for folder in folders):
        raise DataError(
            f"folder '{root}' holds splits ({', '.join(f.name for f in folders)}), not classes; give one of them."
        )
    paths: list[Path] = []
    labels: list[int] = []
    empty: list[str] = []
    for label, folder in enumerate(folders):
        found = sorted(
            file
            for file in folder.rglob("*")
            if file.suffix.lower() in EXTENSIONS and not file.name.startswith(".") and file.is_file()
        )
        if not found:
            empty.append(folder.name)
        paths += found
        labels += [label] * len(found)
    if not paths:
        raise DataError(f"folder '{root}' has {len(folders)} class folders but not one image.")
    notes = []
    if empty:
        notes.append(f"{len(empty)} class folders hold no images: {', '.join(empty[:5])}")
    return Raw(
        FileSource(paths, root),
        np.array(labels, dtype=np.int64),
        [folder.name for folder in folders],
        _metadata(root, paths),
        notes,
    )


def _metadata(root: Path, paths: list[Path]) -> dict[str, np.ndarray]:
    file = root / "metadata.csv"
    if not file.is_file():
        return {}
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as problem:
        raise DataError(f"'{file}' cannot be read: {problem}") from problem
    if not rows or "file_name" not in rows[0]:
        raise DataError(f"'{file}' has no column 'file_name'.")
    by_name = {row["file_name"]: row for row in rows}
    keys = [path.relative_to(root).as_posix() for path in paths]
    lacking = [key for key in keys if key not in by_name]
    if lacking:
        raise DataError(f"'{file}' has no row for {len(lacking)} images; the first is {lacking[0]}.")
    names = [name for name in rows[0] if name and name != "file_name"]
    return {name: np.array([by_name[key][name] for key in keys], dtype=object) for name in names}
