"""Table T: chosen neurons' values and base logits of a data set, on disk, so that the network runs once (section 4.1).

A folder of shards (``.npy``, float32, one row an example: values, then logits, then the label) and a manifest that is
written last. A shard is written under another name and renamed, so what has its name is whole; a run that was killed
goes on behind its last shard. The manifest holds what the table was made from: the base's fingerprint, the data's
content hash, the neurons' names, and every shard's SHA-256.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from tweaknn.errors import DataError, InputError, ModelError, TableError
from tweaknn.network.fingerprint import fingerprint
from tweaknn.network.reader import Reader
from tweaknn.theta.batches import Batches
from tweaknn.theta.checkpoint import remove_unfinished, write_whole
from tweaknn.theta.stream import as_labels, as_logits

FORMAT = 1


class Columns(Protocol):
    """Neurons of one layer, e.g. :class:`tweaknn.delta.value.Read`: ``pick`` gives ``(n, k)`` of an activation."""

    @property
    def layer(self) -> str: ...

    @property
    def reduction(self) -> str: ...

    @property
    def index(self) -> Tensor: ...

    def pick(self, activation: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Table:
    """A finished table T. Values and logits are read from memory-mapped shards.

    values: ``(n, f)`` float32; logits: ``(n, c)`` float32; labels: ``(n,)`` int64.
    """

    folder: Path
    manifest: dict[str, Any]

    def __len__(self) -> int:
        return int(self.manifest["examples"])

    def _columns(self, begin: int, end: int) -> np.ndarray:
        shards = [np.load(self.folder / s["file"], mmap_mode="r") for s in self.manifest["shards"]]
        return np.concatenate([shard[:, begin:end] for shard in shards])

    @property
    def values(self) -> np.ndarray:
        """``(n, f)`` float32."""
        return self._columns(0, self.manifest["neurons"])

    @property
    def logits(self) -> np.ndarray:
        """``(n, c)`` float32."""
        return self._columns(self.manifest["neurons"], self.manifest["neurons"] + self.manifest["classes"])

    @property
    def labels(self) -> np.ndarray:
        """``(n,)`` int64."""
        return self._columns(self.manifest["neurons"] + self.manifest["classes"], self.manifest["width"])[:, 0].astype(
            np.int64
        )

    def batches(self) -> Any:
        """Shard by shard: ``(values, logits, labels)``, without holding the whole."""
        f, c = self.manifest["neurons"], self.manifest["classes"]
        for s in self.manifest["shards"]:
            shard = np.load(self.folder / s["file"], mmap_mode="r")
            yield shard[:, :f], shard[:, f : f + c], shard[:, f + c].astype(np.int64)


def key_of(reader: Reader, columns: Sequence[Columns], data: str, batch: int) -> dict[str, Any]:
    """What a table is made from; two tables of one key hold the same numbers."""
    names = [
        {
            "layer": c.layer,
            "reduction": c.reduction,
            "index": hashlib.sha256(c.index.to(torch.int64).cpu().numpy().astype("<i8").tobytes()).hexdigest(),
            "neurons": int(c.index.numel()),
        }
        for c in columns
    ]
    return {"format": FORMAT, "base": fingerprint(reader.model), "data": data, "columns": names, "batch": batch}


def table(
    folder: str | Path,
    reader: Reader,
    batches: Any,
    columns: Sequence[Columns],
    *,
    data: str,
    shard: int = 4096,
    progress: Callable[[int], None] | None = None,
) -> Table:
    """Table T of ``columns`` over ``batches``: opened when it is there, completed when it was begun, else made.

    Args:
        folder: parent of tables; each lies in a folder named by its key.
        reader: reads at least the columns' layers. data: content hash of the data set.
        shard: examples a shard, rounded to whole batches.

    Raises:
        TableError: the stored table is damaged. ModelError: NaN or infinite values, naming layer and example.
        InputError: it cannot be written (disk full), or a column's layer is not read. DataError: bad labels.
    """
    batches = Batches(batches)
    if batches.count == 0:
        raise DataError("The data set has no examples.")
    missing = {c.layer for c in columns} - {layer.name for layer in reader.layers}
    if missing:
        raise InputError(f"Layer {sorted(missing)[0]} is not read; give it to the reader's layers.")
    batch = len(next(batches.read(0, 1))[1])
    key = key_of(reader, columns, data, batch)
    key["threads"] = torch.get_num_threads()  # sums inside a convolution may be cut by it
    where = Path(folder) / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    if (where / "manifest.json").exists():
        found = open_table(where)
        if progress is not None:
            progress(len(found))
        return found
    try:
        where.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{where} cannot be made: {error.strerror}.") from None
    remove_unfinished(where)
    return _make(where, reader, batches, columns, key, max(1, shard // batch), progress)


def _make(
    where: Path,
    reader: Reader,
    batches: Batches,
    columns: Sequence[Columns],
    key: dict[str, Any],
    step: int,
    progress: Callable[[int], None] | None,
) -> Table:
    shards: list[dict[str, Any]] = []
    examples, width = 0, 0

    def finish(path: Path) -> None:
        nonlocal examples, width
        stored = _load(path)
        examples, width = examples + len(stored), stored.shape[1]
        shards.append({"file": path.name, "examples": len(stored), "sha256": _sha256(path)})
        if progress is not None:
            progress(examples)

    while (path := where / f"shard-{len(shards):05d}.npy").exists():
        finish(path)
    begin = min(len(shards) * step, batches.count if batches.count is not None else len(shards) * step)
    rows: list[np.ndarray] = []
    first = examples
    for x, y in batches.read(begin):
        rows.append(_rows(reader, x, y, columns, first))
        first += len(y)
        if len(rows) == step:
            _save(where / f"shard-{len(shards):05d}.npy", rows)
            finish(where / f"shard-{len(shards):05d}.npy")
            rows = []
    if rows:
        _save(where / f"shard-{len(shards):05d}.npy", rows)
        finish(where / f"shard-{len(shards):05d}.npy")
    neurons = sum(int(c.index.numel()) for c in columns)
    sizes = {"examples": examples, "neurons": neurons, "classes": width - neurons - 1, "width": width}
    manifest = {**key, **sizes, "shards": shards}
    manifest["sha256"] = _own_hash(manifest)
    write_whole(where / "manifest.json", lambda f: _write(f, json.dumps(manifest, indent=2)))
    return Table(where, manifest)


def _save(path: Path, rows: list[np.ndarray]) -> None:
    whole = np.concatenate(rows)
    write_whole(path, lambda f: np.save(f, whole))


def _rows(reader: Reader, x: Any, y: Any, columns: Sequence[Columns], first: int) -> np.ndarray:
    """One batch's rows: values, logits, label."""
    names = [layer.name for layer in reader.layers]
    by_layer: dict[int, list[int]] = {}
    for c, column in enumerate(columns):
        by_layer.setdefault(names.index(column.layer), []).append(c)
    found: dict[int, np.ndarray] = {}

    def sink(k: int, activation: Tensor) -> None:
        for c in by_layer.get(k, ()):
            found[c] = columns[c].pick(activation).detach().to("cpu", torch.float32).numpy()

    logits = as_logits(reader(x, sink))
    labels = as_labels(y, first)
    parts = [found[c] for c in range(len(columns))]
    for c, values in enumerate([*parts, logits]):
        if not np.isfinite(values).all():
            k = first + int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
            what = f"Layer {columns[c].layer}" if c < len(columns) else "The output"
            raise ModelError(f"{what} holds NaN or infinite values for example {k}.")
    if len(labels) != len(logits) or (len(labels) and not 0 <= labels.min() <= labels.max() < logits.shape[1]):
        raise DataError(
            f"Labels from example {first} on do not fit: {logits.shape[1]} classes, {len(logits)} examples."
        )
    return np.concatenate([*parts, logits, labels[:, None].astype(np.float32)], axis=1, dtype=np.float32)


def open_table(folder: str | Path, *, base: str | None = None, data: str | None = None) -> Table:
    """Open a finished table and check that it is whole and made from this base (fingerprint) and data (hash).

    Raises:
        TableError: the manifest or a shard is missing, altered or of a newer format, or base or data changed.
    """
    where = Path(folder)
    try:
        manifest = json.loads((where / "manifest.json").read_text())
        said = manifest.pop("sha256")
    except FileNotFoundError:
        raise TableError(f"{where} holds no finished table T: its manifest is missing.") from None
    except (OSError, ValueError, KeyError, AttributeError):
        raise TableError(f"{where / 'manifest.json'} is damaged; delete the folder and run again.") from None
    if manifest.get("format", 0) != FORMAT:
        raise TableError(f"{where} is of format {manifest.get('format')}; this version reads format {FORMAT}.")
    if _own_hash(manifest) != said:
        raise TableError(f"{where / 'manifest.json'} was altered; delete the folder and run again.")
    for name, wanted in (("base", base), ("data", data)):
        if wanted is not None and manifest[name] != wanted:
            raise TableError(f"{where} was made from another {name}: {manifest[name][:12]} instead of {wanted[:12]}.")
    for shard in manifest["shards"]:
        path = where / shard["file"]
        if not path.exists() or _sha256(path) != shard["sha256"]:
            raise TableError(f"{path} is missing or altered; delete the folder {where} and run again.")
    return Table(where, {**manifest, "sha256": said})


def _load(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r")
    except Exception:
        raise TableError(f"{path} is damaged; delete it and run again.") from None


def _own_hash(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write(stream: Any, text: str) -> None:
    stream.write(text.encode())
