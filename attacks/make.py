"""Writes evil Δnn files: ``python attacks/make.py FOLDER``. What each tries is said in README.md."""

from __future__ import annotations

import json
import pickle
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from tweaknn.delta import Delta, Read, synapses
from tweaknn.delta.file import content_hash, to_bytes


def _delta() -> Delta:
    read = Read("act", "mean", (6, 8, 8), 0, torch.tensor([0, 3]))
    return Delta((synapses([read], torch.ones(2, 1), [1]),), torch.zeros(4), "ab" * 32, (3, 8, 8))


def _parts() -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    payload = to_bytes(_delta())
    length = struct.unpack("<Q", payload[:8])[0]
    header = json.loads(json.loads(payload[8 : 8 + length])["__metadata__"]["tweaknn"])
    header.pop("sha256")
    return header, safetensors.torch.load(payload)


def honest(path: Path) -> None:
    """Nothing wrong with this one."""
    path.write_bytes(to_bytes(_delta()))


def _forged(change: Callable[[dict[str, Any], dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    """A changed content under a right hash."""

    def write(path: Path) -> None:
        header, tensors = _parts()
        change(header, tensors)
        header["sha256"] = content_hash(header, tensors)
        path.write_bytes(safetensors.torch.save(tensors, {"tweaknn": json.dumps(header)}))

    return write


def _raw(header: bytes, data: bytes = b"", length: int | None = None) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)

    return write


class _Runs:
    """Pickled, it makes a file when it is opened."""

    def __reduce__(self) -> Any:
        return (open, ("tweaknn-was-here", "w"))


def _read(**fields: Any) -> Callable[[Any, Any], None]:
    return lambda header, tensors: header["terms"][0]["reads"][0].update(fields)


def _huge_meta(path: Path) -> None:
    inner = json.dumps({"format": 1, "meta": 0})[:-2] + "[" * 200_000 + "]" * 200_000 + "}"
    outer = json.dumps({"__metadata__": {"tweaknn": inner}}).encode()
    path.write_bytes(struct.pack("<Q", len(outer)) + outer)


def _twice(path: Path) -> None:
    payload = to_bytes(_delta())
    forged = payload.replace(b'{\\"base\\"', b'{\\"how\\": \\"fx\\", \\"base\\"')
    length = struct.unpack("<Q", payload[:8])[0] + len(forged) - len(payload)
    path.write_bytes(struct.pack("<Q", length) + forged[8:])


def _overlap(path: Path) -> None:
    header = {
        "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
        "__metadata__": {"tweaknn": json.dumps({"format": 1})},
    }
    _raw(json.dumps(header).encode(), b"\0" * 12)(path)


def _beyond(path: Path) -> None:
    header = {
        "bias": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]},
        "__metadata__": {"tweaknn": json.dumps({"format": 1})},
    }
    _raw(json.dumps(header).encode(), b"\0" * 16)(path)


ATTACKS: dict[str, Callable[[Path], None]] = {
    "pickle": lambda path: path.write_bytes(pickle.dumps(_Runs())),
    "torch-pickle": lambda path: torch.save(_Runs(), path),
    "header-length": _raw(b"{}", length=(1 << 64) - 1),
    "header-length-zero": _raw(b"", length=0),
    "deep-json": _raw(b"[" * 500_000),
    "deep-json-inside": _huge_meta,
    "long-number": _raw(b'{"__metadata__": {"tweaknn": "' + b"9" * 100_000 + b'"}}'),
    "not-utf8": _raw(b'{"__metadata__": {"tweaknn": "\xff\xfe"}}'),
    "key-twice": _twice,
    "overlapping-tensors": _overlap,
    "tensor-beyond-the-file": _beyond,
    "empty-tensor-of-terabytes": _forged(
        lambda h, t: t.update({"term.0.head.weight": torch.zeros(0, 1 << 40), "term.0.read.0": torch.zeros(0).long()})
    ),
    "layer-of-terabytes": _forged(_read(shape=[1 << 39, 1 << 39])),
    "negative-shape": _forged(_read(shape=[6, -8, -8])),
    "input-of-terabytes": _forged(lambda h, t: h.update(input_shape=[1 << 20, 1 << 20])),
    "dtype-that-is-a-function": _forged(lambda h, t: h.update(input_dtype="load")),
    "address-outside": _forged(lambda h, t: t["term.0.read.0"].fill_(6)),
    "address-negative": _forged(lambda h, t: t["term.0.read.0"].fill_(-1)),
    "class-outside": _forged(lambda h, t: t["term.0.head.columns"].fill_(4)),
    "class-twice": _forged(
        lambda h, t: t.update({"term.0.head.columns": torch.tensor([1, 1]), "term.0.head.weight": torch.ones(2, 2)})
    ),
    "nan-weight": _forged(lambda h, t: t["term.0.head.weight"].fill_(float("nan"))),
    "infinite-bias": _forged(lambda h, t: t["bias"].fill_(float("inf"))),
    "nan-in-json": _forged(lambda h, t: h.update(meta={"accuracy": float("nan")})),
    "hidden-cargo": _forged(lambda h, t: t.update(cargo=torch.zeros(1000))),
    "newer-format": _forged(lambda h, t: h.update(format=2)),
    "format-true": _forged(lambda h, t: h.update(format=True)),
    "base-that-is-a-path": _forged(lambda h, t: h.update(base="../" * 20 + "etc/passwd")),
    "unknown-head": _forged(lambda h, t: h["terms"][0].update(head="eval", activation="relu")),
    "unknown-activation": _forged(lambda h, t: h["terms"][0].update(head="mlp", activation="__import__('os')")),
    "two-shapes-of-one-layer": _forged(
        lambda h, t: (
            h["terms"].append({"reads": [{**h["terms"][0]["reads"][0], "shape": [64, 6, 1]}], "head": "linear"}),
            t.update({name.replace("term.0", "term.1"): value.clone() for name, value in list(t.items())}),
            t.pop("bias"),
            t.update(bias=torch.zeros(4)),
        )
    ),
}


def main(folder: str) -> None:
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    for name, write in ATTACKS.items():
        write(target / f"{name}.delta")


if __name__ == "__main__":
    main(sys.argv[1])
