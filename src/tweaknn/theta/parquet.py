"""Synapses as a Parquet file that people can query: one row a (class, neuron), a row group a block of neurons."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tweaknn.errors import InputError

if TYPE_CHECKING:
    from tweaknn.theta.observe import Observation

SCHEMA = pa.schema(
    [
        ("layer", pa.dictionary(pa.int32(), pa.string())),
        ("index", pa.int64()),
        ("class", pa.dictionary(pa.int32(), pa.string())),
        ("threshold", pa.float32()),
        ("count", pa.int64()),
        ("sign", pa.int8()),
        ("active", pa.bool_()),
        ("unbounded", pa.bool_()),
    ]
)
"""``threshold`` is the absolute weight; the synapse's weight is ``sign * threshold``."""


def write(found: Observation, path: Path, classes: Sequence[str] | None = None) -> int:
    """Write all synapses of an observation; a temporary file is renamed when it is whole.

    classes: names of the network's outputs; by default their numbers. Returns the number of rows.

    Raises:
        InputError: the file cannot be written (folder missing, disk full); nothing is left behind.
    """
    names = [str(t) if classes is None else str(classes[t]) for t in found.targets]
    largest = found.largest_counts()
    temporary, rows = "", 0
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        os.close(handle)
        with pq.ParquetWriter(temporary, SCHEMA, compression="zstd") as writer:
            for block, part in found.parts():
                c, v = part.count.shape
                active = (2 * part.count >= largest[:, None]) & (largest > 0)[:, None]
                columns = [
                    pa.DictionaryArray.from_arrays(pa.array(np.full(c * v, block.layer, np.int32)), found.layers),
                    pa.array(np.tile(np.arange(block.offset, block.offset + v), c)),
                    pa.DictionaryArray.from_arrays(pa.array(np.repeat(np.arange(c, dtype=np.int32), v)), names),
                    pa.array(part.threshold.reshape(-1)),
                    pa.array(part.count.reshape(-1)),
                    pa.array(part.sign.reshape(-1)),
                    pa.array(active.reshape(-1)),
                    pa.array(part.unbounded.reshape(-1)),
                ]
                writer.write_table(pa.Table.from_arrays(columns, schema=SCHEMA))
                rows += c * v
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}.") from None
    finally:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)
    return rows
