"""The Δnn file: safetensors, with one JSON text in its metadata and no code (format: docs/format.md)."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from tweaknn.delta.heads import MLP, Head, Linear
from tweaknn.delta.value import Delta, Read, Term
from tweaknn.errors import DeltaError

FORMAT = 1
LARGEST = 1 << 30
"""Largest file that is opened, in bytes."""


def save(delta: Delta, path: str | os.PathLike[str]) -> None:
    """Write ``delta`` to ``path`` whole or not at all.

    Raises:
        DeltaError: the folder does not exist or cannot be written to.
    """
    target = Path(path)
    payload = to_bytes(delta)
    try:
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
    except OSError as error:
        raise DeltaError(
            f"Cannot write {target}: {error.strerror or error}; choose a folder you can write to."
        ) from None
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(payload)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise DeltaError(f"Cannot write {target}: {error.strerror or error}.") from None
        raise


def load(path: str | os.PathLike[str]) -> Delta:
    """Read a Δnn file.

    Raises:
        DeltaError: it does not exist, is truncated, altered, foreign, too large, of a newer format, or holds NaN.
    """
    try:
        size = os.stat(path).st_size
        if size > LARGEST:
            raise DeltaError(f"{path} is {size} bytes long; a Δnn file is never larger than {LARGEST}.")
        payload = Path(path).read_bytes()
    except OSError as error:
        raise DeltaError(f"Cannot read {path}: {error.strerror or error}.") from None
    try:
        return from_bytes(payload)
    except DeltaError as error:
        raise DeltaError(f"{path}: {error}") from None


def to_bytes(delta: Delta) -> bytes:
    """The file's content."""
    tensors: dict[str, Tensor] = {"bias": delta.bias.detach().cpu().float().contiguous()}
    terms = []
    for t, term in enumerate(delta.terms):
        for r, read in enumerate(term.reads):
            tensors[f"term.{t}.read.{r}"] = read.index.detach().cpu().contiguous()
        for name, tensor in term.head.tensors().items():
            tensors[f"term.{t}.head.{name}"] = tensor.detach().cpu().contiguous()
        terms.append(
            {
                "reads": [
                    {"layer": r.layer, "reduction": r.reduction, "shape": list(r.shape), "channel_axis": r.channel_axis}
                    for r in term.reads
                ],
                "head": "mlp" if isinstance(term.head, MLP) else "linear",
                **({"activation": term.head.activation} if isinstance(term.head, MLP) else {}),
            }
        )
    header: dict[str, Any] = {
        "format": FORMAT,
        "kind": delta.kind,
        "base": delta.base,
        "below": list(delta.below),
        "classes": list(delta.classes) if delta.classes else None,
        "input_shape": list(delta.input_shape),
        "input_dtype": delta.input_dtype,
        "how": delta.how,
        "head": delta.head,
        "terms": terms,
        "meta": delta.meta,
    }
    try:
        header = json.loads(json.dumps(header, allow_nan=False, sort_keys=True))
    except (TypeError, ValueError) as error:
        raise DeltaError(f"The delta's metadata does not fit JSON: {error}.") from None
    header["sha256"] = content_hash(header, tensors)
    return safetensors.torch.save(tensors, {"tweaknn": json.dumps(header, sort_keys=True)})


def from_bytes(payload: bytes) -> Delta:
    """Build a delta from a file's content; nothing in it is executed. Raises DeltaError."""
    try:
        tensors = safetensors.torch.load(payload)
        raw = _metadata(payload)
    except Exception as error:  # the safetensors reader raises its own class for anything malformed
        raise DeltaError(f"not a whole Δnn file ({type(error).__name__}); it may be truncated.") from None
    if raw is None:
        raise DeltaError("a safetensors file, but not one of tweaknn's: its metadata lacks the entry 'tweaknn'.")
    try:
        header = json.loads(raw)
        version = header["format"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise DeltaError("the metadata entry 'tweaknn' is not what this format says.") from None
    if not isinstance(version, int) or version < 1:
        raise DeltaError(f"format {version!r} is none this version knows.")
    if version > FORMAT:
        raise DeltaError(f"format {version} is newer than this tweaknn reads (up to {FORMAT}); upgrade tweaknn.")
    try:
        stored = header.pop("sha256")
        actual = content_hash(header, tensors)
        if stored != actual:
            raise DeltaError(
                f"the content was altered: its SHA-256 is {actual[:16]}..., the file says {stored[:16]}..."
            )
        return _build(header, tensors)
    except DeltaError:
        raise
    except Exception as error:
        raise DeltaError(f"the header does not describe a delta ({type(error).__name__}: {error}).") from None


def content_hash(header: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """SHA-256 of everything in a file but the hash itself."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"|{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()


def delta_hash(delta: Delta) -> str:
    """The content hash that ``delta``'s file carries: its name, as it were."""
    raw = _metadata(to_bytes(delta))
    assert raw is not None
    return str(json.loads(raw)["sha256"])


def _metadata(payload: bytes) -> str | None:
    """The 'tweaknn' entry; safetensors has checked the header's bounds before."""
    length = int.from_bytes(payload[:8], "little")
    return json.loads(payload[8 : 8 + length]).get("__metadata__", {}).get("tweaknn")


def _build(header: dict[str, Any], tensors: dict[str, Tensor]) -> Delta:
    terms = []
    for t, spec in enumerate(header["terms"]):
        reads = tuple(
            Read(
                str(r["layer"]),
                str(r["reduction"]),
                tuple(int(n) for n in r["shape"]),
                int(r["channel_axis"]),
                tensors[f"term.{t}.read.{i}"],
            )
            for i, r in enumerate(spec["reads"])
        )
        prefix = f"term.{t}.head."
        parts = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        head: Head
        if spec["head"] == "linear":
            head = Linear(parts["weight"], parts["columns"])
        elif spec["head"] == "mlp":
            groups = tuple(parts[f"w1.{g}"] for g in range(sum(name.startswith("w1.") for name in parts)))
            head = MLP(groups, parts["b1"], parts["w2"], parts["columns"], str(spec["activation"]))
        else:
            raise DeltaError(f"a term of kind {spec['head']!r} is none this version knows.")
        terms.append(Term(reads, head))
    return Delta(
        terms=tuple(terms),
        bias=tensors["bias"],
        base=str(header["base"]),
        input_shape=tuple(int(n) for n in header["input_shape"]),
        input_dtype=str(header["input_dtype"]),
        classes=tuple(str(name) for name in header["classes"]) if header["classes"] else None,
        how=str(header["how"]),
        head=header["head"],
        kind=str(header["kind"]),
        meta=dict(header["meta"]),
        below=tuple(str(name) for name in header["below"]),
    )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
