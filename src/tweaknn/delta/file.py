"""The Δnn file: safetensors, with one JSON text in its metadata and no code (format: docs/format.md)."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import stat
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from tweaknn.delta.header import check_header, check_parts, strict_json
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
    # beside the target, under a name of its own: two processes that save to one path leave one whole file
    temporary = target.parent / f".{target.name[:100]}.{secrets.token_hex(8)}.part"
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except OSError as error:
        raise DeltaError(
            f"Cannot write {target}: {error.strerror or error}; choose a folder you can write to."
        ) from None
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(payload)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, target)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise DeltaError(f"Cannot write {target}: {error.strerror or error}.") from None
        raise


def load(path: str | os.PathLike[str]) -> Delta:
    """Read a Δnn file.

    Raises:
        DeltaError: it does not exist, is truncated, altered, foreign, too large, of a newer format, or holds NaN.
    """
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise DeltaError(f"{path} is not a file; a Δnn file is needed.")
        if found.st_size > LARGEST:
            raise DeltaError(f"{path} is {found.st_size} bytes long; a Δnn file is never larger than {LARGEST}.")
        with open(path, "rb") as stream:
            payload = stream.read(found.st_size)
    except (OSError, ValueError) as error:
        raise DeltaError(f"Cannot read {path}: {getattr(error, 'strerror', None) or error}.") from None
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
    # terms may share tensors (a sum of a delta with itself does), which safetensors refuses
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    header["sha256"] = content_hash(header, tensors)
    text = json.dumps(header, sort_keys=True)
    check_parts(text)  # what could not be read again is not written
    return safetensors.torch.save(tensors, {"tweaknn": text})


def from_bytes(payload: bytes) -> Delta:
    """Build a delta from a file's content; nothing in it is executed. Raises DeltaError."""
    raw = _metadata(payload)
    header = strict_json(raw)
    if not isinstance(header, dict):
        raise DeltaError("the metadata entry 'tweaknn' is not what this format says.")
    version = header.get("format")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise DeltaError("the metadata entry 'tweaknn' names no format that this version knows.")
    if version > FORMAT:
        raise DeltaError(f"format {version} is newer than this tweaknn reads (up to {FORMAT}); upgrade tweaknn.")
    try:
        tensors = safetensors.torch.load(payload)
    except Exception as error:  # the safetensors reader raises its own class for anything malformed
        raise DeltaError(f"not a whole Δnn file ({type(error).__name__}); it may be truncated.") from None
    try:
        stored = header.pop("sha256", None)
        actual = content_hash(header, tensors)
        if stored != actual:
            raise DeltaError(
                f"the content was altered: its SHA-256 is {actual[:16]}..., the file says {str(stored)[:16]}..."
            )
        check_header(header)
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
    return str(json.loads(_metadata(to_bytes(delta)))["sha256"])


def _metadata(payload: bytes) -> str:
    """The 'tweaknn' entry, before any tensor is looked at."""
    length = int.from_bytes(payload[:8], "little")
    if len(payload) < 10 or length > len(payload) - 8:
        raise DeltaError("not a whole Δnn file; it may be truncated.")
    outer = strict_json(payload[8 : 8 + length])
    metadata = outer.get("__metadata__") if isinstance(outer, dict) else None
    raw = metadata.get("tweaknn") if isinstance(metadata, dict) else None
    if not isinstance(raw, str):
        raise DeltaError("not one of tweaknn's files: its metadata lacks the entry 'tweaknn'.")
    return raw


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
    named = {"bias"} | {f"term.{t}.read.{r}" for t, term in enumerate(terms) for r in range(len(term.reads))}
    named |= {f"term.{t}.head.{name}" for t, term in enumerate(terms) for name in term.head.tensors()}
    if set(tensors) != named:
        raise DeltaError(f"it holds tensors that its header does not name: {sorted(set(tensors) - named)[:3]}.")
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
