"""A comparison's folder: one small file a run, logits beside it, tables of neurons, the result."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import nn

from tweaknn.baselines.figures import ROW
from tweaknn.baselines.outcome import Outcome
from tweaknn.errors import InputError
from tweaknn.inputs import Examples
from tweaknn.join.table import PooledTable, _reads
from tweaknn.network.reader import Reader
from tweaknn.writing import json_text, plain, write


class Store:
    """``runs/`` figures of each (method, seed, targets), ``logits/`` by content key, ``tables/`` of the base,
    ``result.*``.

    Raises :class:`~tweaknn.errors.InputError` when the folder cannot be written, or holds another version's results.
    """

    def __init__(self, folder: Path, version: int) -> None:
        self.folder, self.version = Path(folder), version
        self.keys: dict[tuple[str, int], str] = {}
        try:
            for name in ("runs", "logits", "tables"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--out {folder}: {error.strerror or error}.") from None
        mark = self.folder / "version"
        if mark.is_file() and mark.read_text().strip() != str(version):
            raise InputError(
                f"{folder} holds a comparison of format {mark.read_text().strip()}, this version writes {version}; "
                f"choose another folder."
            )
        write(mark, f"{version}\n".encode())

    def expect(self, name: str, seed: int, key: str) -> None:
        """Say which content a run must have been made from to count."""
        self.keys[name, seed] = key

    def _run(self, name: str, seed: int, targets: tuple[int, ...]) -> Path:
        key = self.keys[name, seed]
        at = "-".join(map(str, targets))
        return self.folder / "runs" / f"{name.replace('+', '_')}.seed{seed}.{at}.{key[:12]}.json"

    def done(self, name: str, seed: int, targets: tuple[int, ...]) -> bool:
        """Whether the run is there, and ended well (failures are tried again)."""
        found = self.load(name, seed, targets)
        if found is None:
            return False
        return not found["applicable"] or (not found["reason"] and found.get("row") == ROW)

    def load(self, name: str, seed: int, targets: tuple[int, ...]) -> dict[str, Any] | None:
        """A run's figures, or None; a damaged file counts as missing."""
        try:
            return json.loads(self._run(name, seed, targets).read_text())
        except (OSError, ValueError):
            return None

    def save(self, name: str, seed: int, targets: tuple[int, ...], figures: dict[str, Any]) -> None:
        """Keep a run's figures."""
        write(self._run(name, seed, targets), json_text(figures))

    def logits(self, key: str) -> Outcome | None:
        """The outcome stored under a content key, or None."""
        path = self.folder / "logits" / f"{key}.npz"
        try:
            with np.load(path, allow_pickle=False) as found:
                about = json.loads(str(found["about"]))
                checkpoints = list(found["checkpoints"])
                return Outcome(
                    found["evaluation"],
                    found["test"],
                    about["parameters"],
                    about["settings"],
                    checkpoints,
                    seconds=about["seconds"],
                    cpu_seconds=about.get("cpu_seconds"),
                )
        except Exception:  # missing, or cut off by an interrupted machine: made again
            return None

    def save_logits(self, key: str, outcome: Outcome) -> None:
        """Keep an outcome's logits."""
        about = {
            "parameters": outcome.parameters,
            "settings": outcome.settings,
            "seconds": outcome.seconds,
            "cpu_seconds": outcome.cpu_seconds,
        }
        _savez(
            self.folder / "logits" / f"{key}.npz",
            evaluation=outcome.evaluation.astype(np.float32),
            test=outcome.test.astype(np.float32),
            checkpoints=np.array([z.astype(np.float32) for z in outcome.checkpoints]),
            about=np.array(json.dumps(plain(about))),
        )

    def table(self, key: str, model: nn.Module, examples: Examples, layers: str) -> PooledTable | None:
        """A stored table of neurons, or None."""
        path = self.folder / "tables" / f"{key}.npz"
        try:
            with np.load(path, allow_pickle=False) as found:
                if found["features"].shape == (len(examples), 0):  # a network without hidden neurons
                    return PooledTable(found["features"], found["logits"], examples.labels.copy(), ())
                reads = tuple(_reads(Reader(model, examples.batch([0])[0], layers), ("mean",)))
                table = PooledTable(found["features"], found["logits"], examples.labels.copy(), reads)
                width = sum(int(read.index.numel()) for read in reads)
                return table if table.features.shape == (len(examples), width) else None
        except Exception:
            return None

    def save_table(self, key: str, table: PooledTable) -> None:
        """Keep a table of neurons."""
        _savez(self.folder / "tables" / f"{key}.npz", features=table.features, logits=table.logits)

    def write_result(self, result: dict[str, Any]) -> None:
        """``result.json`` and ``result.parquet`` (one row a method and seed)."""
        write(self.folder / "result.json", json_text(result))
        flat = [
            {k: v for k, v in run.items() if not isinstance(v, (dict, list)) or v is None}
            | {
                f"floors_{k}": v
                for k, v in (run.get("under") or {}).get("floors", {}).items()
                if not isinstance(v, (dict, list))
            }
            for run in plain(result["runs"])
        ]
        columns = list(dict.fromkeys(k for run in flat for k in run))
        table = pa.table({c: [run.get(c) for run in flat] for c in columns})
        path = self.folder / "result.parquet"
        pq.write_table(table, path.with_suffix(".parquet.part"))
        os.replace(path.with_suffix(".parquet.part"), path)


def _savez(path: Path, **arrays: np.ndarray) -> None:
    part = path.with_suffix(f".{os.getpid()}.part")
    with part.open("wb") as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]
    os.replace(part, path)
