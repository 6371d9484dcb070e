"""Finished work on disk, so that a killed run goes on where it was: whole files only, renamed into place."""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tweaknn.errors import InputError, TableError
from tweaknn.theta.state import Kept, Own, State


def write_whole(path: Path, write: Callable[[BinaryIO], None], sync: bool = True) -> None:
    """Write a file under another name, flush it to the disk (``sync``), rename it.

    Raises:
        InputError: it cannot be written (no permission, disk full); nothing is left behind.
    """
    temporary = ""
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        with os.fdopen(handle, "wb") as stream:
            write(stream)
            stream.flush()
            if sync:
                os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}.") from None
    finally:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)


def remove_unfinished(folder: Path) -> None:
    """Delete what a killed run had begun to write: it never got its name."""
    for path in folder.glob(".*.part"):
        path.unlink(missing_ok=True)


class Checkpoint:
    """A folder with the last finished state of a run, and what the run was.

    Args:
        folder: made if missing. key: everything that decides the result; a folder of another run is refused.
        durable: whether what is saved has to outlive the machine; not where it only makes room for other passes.

    Raises:
        InputError: the folder cannot be made, or belongs to another run.
    """

    def __init__(self, folder: Path, key: dict[str, Any], durable: bool = True) -> None:
        self.folder, self.durable = Path(folder), durable
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--resume {folder}: cannot be made: {error.strerror}.") from None
        remove_unfinished(self.folder)
        said = self.folder / "run.json"
        text = json.dumps(key, indent=2, sort_keys=True)
        if said.exists():
            try:
                before = json.loads(said.read_text())
            except (OSError, ValueError):
                before = None
            if before != json.loads(text):
                different = [k for k in key if not isinstance(before, dict) or before.get(k) != json.loads(text)[k]]
                raise InputError(
                    f"--resume {folder} holds another run ({', '.join(different) or 'unreadable'} differ); "
                    "give an empty folder, or delete this one."
                )
        else:
            write_whole(said, lambda f: _write_text(f, text))

    def save(self, name: str, arrays: dict[str, Any], done: int) -> None:
        """Replace the state called ``name``: ``done`` batches are in it."""
        arrays = {**arrays, "done": np.int64(done)}
        write_whole(self.folder / f"{name}.npz", lambda f: np.savez(f, **arrays), self.durable)

    def blocks(self, name: str, targets: np.ndarray, form: str, check: bool = True) -> Spooled:
        """The blocks of a finished state, each read when it is asked for; ``check``: its checksums first."""
        return Spooled(self.folder / f"{name}.npz", targets, form, check)

    def load(self, name: str) -> tuple[dict[str, np.ndarray], int] | None:
        """The state called ``name``, or None. Raises TableError when the file is damaged."""
        path = self.folder / f"{name}.npz"
        if not path.exists():
            return None
        try:
            with np.load(path, allow_pickle=False) as stored:  # a zip file: every member carries a checksum
                arrays = {key: stored[key] for key in stored.files}
            return arrays, int(arrays.pop("done"))
        except Exception as error:
            raise TableError(f"{path} is damaged ({type(error).__name__}); delete it to start again.") from None

    def names(self) -> list[str]:
        """States that are there."""
        return sorted(p.stem for p in self.folder.glob("*.npz"))

    def forget(self, name: str) -> None:
        (self.folder / f"{name}.npz").unlink(missing_ok=True)


def _write_text(stream: BinaryIO, text: str) -> None:
    stream.write(text.encode())


def pack(states: Sequence[State]) -> dict[str, Any]:
    """States of blocks as named arrays."""
    arrays: dict[str, Any] = {"blocks": np.int64(len(states))}
    for b, s in enumerate(states):
        for side, peak in enumerate(s.peaks):
            arrays[f"{b}.peak{side}"] = peak
        arrays[f"{b}.tied"], arrays[f"{b}.mistakes"] = s.tied, s.mistakes
        arrays[f"{b}.examples"] = np.int64(s.examples)
        if s.own is not None:
            arrays[f"{b}.spoke"] = s.own.spoke
            if s.own.total is not None:
                arrays[f"{b}.total"] = s.own.total
        if s.kept is not None:
            arrays[f"{b}.row"], arrays[f"{b}.neuron"], arrays[f"{b}.ratio"] = s.kept.row, s.kept.neuron, s.kept.ratio
    return arrays


def unpack(arrays: Mapping[str, np.ndarray], targets: np.ndarray, form: str) -> list[State]:
    """The reverse of :func:`pack`."""
    return [_block(arrays, b, targets, form) for b in range(int(arrays["blocks"]))]


def _block(arrays: Mapping[str, np.ndarray], b: int, targets: np.ndarray, form: str) -> State:
    kept = None
    if f"{b}.row" in arrays:
        kept = Kept(arrays[f"{b}.row"], arrays[f"{b}.neuron"], arrays[f"{b}.ratio"])
    own = None
    if f"{b}.spoke" in arrays:
        spoke = arrays[f"{b}.spoke"]
        fresh = Own.empty(spoke.shape[0], spoke.shape[1], False)
        own = Own(spoke, arrays.get(f"{b}.total"), fresh.finished)
    peaks = tuple(arrays[f"{b}.peak{side}"] for side in range(1 if form == "plain" else 2))
    return State(
        targets, form, peaks, arrays[f"{b}.tied"], arrays[f"{b}.mistakes"], int(arrays[f"{b}.examples"]), kept, own
    )


class Spooled(Sequence[State]):
    """States of a finished pass on disk: mapped, not read, so that a block costs what is looked at of it.

    Raises:
        TableError: the file is damaged; every checksum is looked at once where ``check``.
    """

    def __init__(self, path: Path, targets: np.ndarray, form: str, check: bool = True) -> None:
        self.path, self.targets, self.form = path, targets, form
        try:
            with zipfile.ZipFile(path) as stored:
                if check and stored.testzip() is not None:
                    raise zipfile.BadZipFile
                self.members = {m.filename.removesuffix(".npy"): m for m in stored.infolist()}
            self.size = int(_mapped(path, self.members["blocks"]))
        except Exception as error:
            raise TableError(f"{path} is damaged ({type(error).__name__}); delete it to start again.") from None

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, b: Any) -> Any:
        wanted = [name for name in self.members if name.startswith(f"{int(b)}.")]
        return _block({n: _mapped(self.path, self.members[n]) for n in wanted}, int(b), self.targets, self.form)


def _mapped(path: Path, member: zipfile.ZipInfo) -> np.ndarray:
    """An array that :func:`numpy.savez` stored, mapped from its file; what is written to it stays in memory."""
    with path.open("rb") as stream:
        stream.seek(member.header_offset + 26)
        name, extra = np.frombuffer(stream.read(4), "<u2")
        stream.seek(member.header_offset + 30 + int(name) + int(extra))
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream)
        if dtype.hasobject:
            raise TableError(f"{path} holds objects.")
        if 0 in shape:
            return np.empty(shape, dtype)
        mapped = np.memmap(path, dtype, "c", stream.tell(), shape or (1,), "F" if fortran else "C")
        return np.asarray(mapped).reshape(shape)


class Chained(Sequence[State]):
    """Several sequences of states one behind the other."""

    def __init__(self, parts: Sequence[Sequence[State]]) -> None:
        self.where = [(part, b) for part in parts for b in range(len(part))]

    def __len__(self) -> int:
        return len(self.where)

    def __getitem__(self, b: Any) -> Any:
        part, inside = self.where[b]
        return part[inside]
