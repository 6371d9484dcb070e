"""Parquet files of the Hugging Face image convention."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tweaknn.errors import DataError
from tweaknn.inputs.raw import Raw, labels_and_classes
from tweaknn.inputs.sources import BytesSource

_LABEL_NAMES = ("label", "labels", "y", "fine_label", "target", "class")


def is_parquet(path: Path) -> bool:
    """By its name."""
    return path.is_file() and path.suffix.lower() in (".parquet", ".pq")


def load_parquet(files: Sequence[Path], name: str) -> Raw:
    """Images ``struct<bytes, path>`` (or plain binary) and labels; class names from the schema's metadata.

    Several files are shards of one table, in order of their names. All other columns are kept for
    ``--group``.

    Raises :class:`~tweaknn.errors.DataError` for truncated or foreign files, missing columns, null labels.
    """
    _refuse_mixed_splits(files, name)
    try:
        tables = [pq.read_table(file) for file in files]
        table = pa.concat_tables(tables) if len(tables) > 1 else tables[0]
    except Exception as problem:  # pyarrow raises ArrowInvalid, OSError and others
        raise DataError(f"'{name}' is not a readable Parquet file (truncated?): {problem}") from problem
    if table.num_rows == 0:
        raise DataError(f"'{name}' holds no examples.")
    features = _features(tables[0].schema)
    image_column = _image_column(table, features, name)
    label_column = _label_column(table, features, name)
    described = features.get(label_column, {})
    classes = described.get("names") if isinstance(described, dict) else None
    column = table.column(label_column)
    if column.null_count:
        first = column.is_null().to_pylist().index(True)
        raise DataError(f"{name}: row {first} has no label.")
    if not (pa.types.is_integer(column.type) or _is_text(column.type) or pa.types.is_floating(column.type)):
        raise DataError(f"{name}: column '{label_column}' must hold whole numbers or text, not {column.type}.")
    labels, classes = labels_and_classes(
        np.asarray(column.to_numpy()), None if classes is None else list(map(str, classes)), name
    )
    others = [c for c in table.column_names if c not in (image_column, label_column)]
    columns = {
        c: np.asarray(table.column(c).to_numpy()) for c in others if not pa.types.is_nested(table.column(c).type)
    }
    return Raw(_image_source(table.column(image_column), files, name), labels, classes, columns)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _refuse_mixed_splits(files: Sequence[Path], name: str) -> None:
    splits = {m.group(1) for f in files if (m := re.match(r"(train|test|val(?:id(?:ation)?)?)(?=[-_.])", f.name))}
    if len(splits) > 1:
        raise DataError(f"'{name}' holds several splits ({', '.join(sorted(splits))}); give one file or a pattern.")


def _features(schema: pa.Schema) -> dict[str, Any]:
    try:
        return dict(json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"])
    except (KeyError, ValueError, TypeError):
        return {}


def _image_column(table: pa.Table, features: dict[str, Any], name: str) -> str:
    fits = []
    for column in table.column_names:
        kind = table.column(column).type
        struct = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
        if struct or _is_binary(kind):
            fits.append(column)
    told = [c for c in fits if isinstance(features.get(c), dict) and features[c].get("_type") == "Image"]
    for wanted in (*told, "image", "img", *fits):
        if wanted in fits:
            return wanted
    raise DataError(
        f"'{name}' has no image column (struct<bytes, path>); its columns are: {', '.join(table.column_names)}."
    )


def _label_column(table: pa.Table, features: dict[str, Any], name: str) -> str:
    told = [c for c, f in features.items() if isinstance(f, dict) and f.get("_type") == "ClassLabel"]
    for wanted in (*_LABEL_NAMES[:2], *told, *_LABEL_NAMES[2:]):
        if wanted in table.column_names:
            return wanted
    raise DataError(f"'{name}' has no column 'label'; its columns are: {', '.join(table.column_names)}.")


def _image_source(column: pa.ChunkedArray, files: Sequence[Path], name: str) -> BytesSource:
    if not pa.types.is_struct(column.type):
        return BytesSource(column, name)
    encoded = pc.struct_field(column, "bytes")
    named = column.type.get_field_index("path") >= 0
    paths = pc.struct_field(column, "path").to_pylist() if named else None
    if encoded.null_count and paths is not None:
        # The convention allows a path instead of bytes, relative to the Parquet file.
        values = encoded.to_pylist()
        for i, value in enumerate(values):
            if value is None and paths[i] is not None:
                file = files[0].parent / paths[i]
                if file.is_file():
                    values[i] = file.read_bytes()
        return BytesSource(values, name, paths)
    return BytesSource(encoded, name, paths)
