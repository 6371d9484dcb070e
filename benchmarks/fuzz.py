"""Throw damaged, forged and random files at the Δnn loader: only ``DeltaError`` may come out.

    python benchmarks/fuzz.py [--inputs 100000] [--seed 0] [--json FILE]         structured mutations, seeded
    python benchmarks/fuzz.py --atheris [--inputs 100000]                        coverage-guided (pip install atheris)

Mutations: random bytes; flipped, inserted, deleted and overwritten stretches of whole files; files put together from
two; headers with a field replaced by anything, and tensors replaced by others, *with the content hash made right
again*,
so that what lies behind the hash is reached. Counted are inputs, refusals, files that load, exceptions of any other
kind, and the largest memory that Python's allocator handed out while loading, as a multiple of the file's size. A
file
that loads is saved again and must give the same bytes back.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import struct
import sys
import tracemalloc
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from tweaknn.delta import MLP, Delta, Read, Term, synapses
from tweaknn.delta.file import content_hash, from_bytes, to_bytes
from tweaknn.errors import DeltaError


def seeds() -> list[bytes]:
    """Whole files of every kind there is."""
    g = torch.Generator().manual_seed(0)
    read = Read("layer1.relu", "mean", (6, 8, 8), 0, torch.tensor([0, 3]))
    position = Read("layer2.relu", "position", (6, 4, 4), 0, torch.tensor([5, 90]))
    linear = synapses([read, position], torch.randn(4, 2, generator=g), [1, 3])
    head = MLP(
        (torch.randn(2, 3, generator=g), torch.randn(2, 3, generator=g)),
        torch.zeros(6),
        torch.randn(6, 1, generator=g),
        torch.tensor([0]),
    )
    frame: dict[str, Any] = {"bias": torch.zeros(4), "base": "ab" * 32, "input_shape": (3, 8, 8)}
    pixel = Read("backbone.relu", "pixel", (6, 4, 4), 0, torch.tensor([1, 4]))  # read at each pixel: segmentation
    one = {**frame, "bias": torch.tensor([0.5])}  # a network with a single logit
    deltas = [
        Delta(terms=(), **{**frame, "bias": torch.tensor([0.0, 1, 0, 0])}),
        Delta(terms=(), **one),
        Delta(terms=(synapses([read], torch.randn(2, 1, generator=g), [0]),), **one),
        Delta(terms=(synapses([pixel], torch.randn(2, 2, generator=g), [0, 2]),), **frame),
        Delta(terms=(linear,), classes=("a", "b", "c", "d"), meta={"note": {"x": [1, None]}}, **frame),
        Delta(terms=(linear, Term((read, position), head)), how="hooks", head="other", below=("cd" * 32,), **frame),
    ]
    return [to_bytes(delta) for delta in deltas]


def damaged(rng: random.Random, whole: list[bytes]) -> bytes:
    """Bytes that are most likely no Δnn file."""
    kind = rng.randrange(6)
    if kind == 0:
        return rng.randbytes(rng.randrange(300))
    payload = bytearray(rng.choice(whole))
    if kind == 1:
        for _ in range(rng.randrange(1, 5)):
            payload[rng.randrange(len(payload))] ^= 1 << rng.randrange(8)
    elif kind == 2:
        return bytes(payload[: rng.randrange(len(payload))])
    elif kind == 3:
        at = rng.randrange(len(payload))
        payload[at : at + rng.randrange(20)] = rng.randbytes(rng.randrange(20))
    elif kind == 4:
        payload[:8] = struct.pack(
            "<Q", rng.choice([0, 1, 8, len(payload), 1 << 31, (1 << 64) - 1, rng.randrange(2000)])
        )
    else:
        other, at = rng.choice(whole), rng.randrange(len(payload))
        return bytes(payload[:at]) + other[rng.randrange(len(other)) :]
    return bytes(payload)


def forged(rng: random.Random, whole: list[bytes]) -> bytes:
    """A file with a right hash and a wrong content."""
    payload = rng.choice(whole)
    tensors = safetensors.torch.load(payload)
    length = struct.unpack("<Q", payload[:8])[0]
    header = json.loads(json.loads(payload[8 : 8 + length])["__metadata__"]["tweaknn"])
    header.pop("sha256")
    for _ in range(rng.randrange(1, 4)):
        if rng.random() < 0.6:
            _replace(rng, header)
        else:
            name = rng.choice(sorted(tensors) or ["bias"])
            if rng.random() < 0.2:
                tensors.pop(name, None)
            else:
                tensors[name if rng.random() < 0.8 else "more"] = _tensor(rng)
    header["sha256"] = content_hash(header, tensors)
    return safetensors.torch.save(tensors, {"tweaknn": json.dumps(header)})


def _replace(rng: random.Random, header: Any) -> None:
    place = header
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return
        key = rng.choice(keys)
        if isinstance(place[key], (dict, list)) and place[key] and rng.random() < 0.7:
            place = place[key]
            continue
        if rng.random() < 0.15:
            del place[key]
        else:
            place[key] = _value(rng)
        return


def _value(rng: random.Random, depth: int = 0) -> Any:
    plain = [
        None,
        True,
        -1,
        0,
        1,
        1 << 40,
        1 << 70,
        1.5,
        1e308,
        "",
        "linear",
        "mlp",
        "position",
        "mean",
        "é\0",
        "x" * 999,
    ]
    if depth < 3 and rng.random() < 0.3:
        return [_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    if depth < 3 and rng.random() < 0.2:
        return {str(rng.choice(plain)): _value(rng, depth + 1) for _ in range(rng.randrange(4))}
    return rng.choice(plain)


def _tensor(rng: random.Random) -> torch.Tensor:
    shape = [rng.choice([0, 1, 2, 3, 4, 6]) for _ in range(rng.randrange(4))]
    dtype = rng.choice(
        [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.bool]
    )
    made = torch.randint(-3, 6, shape).to(dtype)
    if made.is_floating_point() and made.numel() and rng.random() < 0.3:
        made.view(-1)[0] = rng.choice([float("nan"), float("inf"), -float("inf")])
    return made


def try_one(payload: bytes) -> str:
    """``refused``, ``loaded``, or what else happened."""
    try:
        delta = from_bytes(payload)
    except DeltaError:
        return "refused"
    except BaseException as error:
        return f"escaped {type(error).__name__}: {error}"[:200]
    again = from_bytes(to_bytes(delta))
    return "loaded" if to_bytes(again) == to_bytes(delta) else "changed"


def run(inputs: int, seed: int) -> dict[str, Any]:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    whole = seeds()
    outcome: Counter[str] = Counter()
    worst = 0.0
    for k in range(inputs):
        payload = (damaged if rng.random() < 0.5 else forged)(rng, whole)
        if k % 10 == 0:  # tracing allocations is slow: every tenth
            tracemalloc.start()
            outcome[try_one(payload)] += 1
            worst = max(worst, (tracemalloc.get_traced_memory()[1]) / max(len(payload), 4096))
            tracemalloc.stop()
        else:
            outcome[try_one(payload)] += 1
        if k % 5000 == 4999:
            print(f"{k + 1} inputs: {dict(outcome)}", file=sys.stderr, flush=True)
    escaped = {name: count for name, count in outcome.items() if name not in ("refused", "loaded")}
    return {
        "inputs": inputs,
        "seed": seed,
        "refused": outcome["refused"],
        "loaded": outcome["loaded"],
        "escaped": sum(escaped.values()),
        "escaped_kinds": escaped,
        "largest_python_memory_over_file_size": round(worst, 2),
    }


def coverage_guided(inputs: int) -> None:
    """The same loader under atheris (libFuzzer); ends with an error report when anything escapes."""
    import inspect

    import atheris

    import tweaknn.delta.file as loader
    import tweaknn.delta.header as header
    import tweaknn.delta.heads as heads

    for module in (loader, header, heads):  # imported long since: instrumented where they are
        for name, function in list(vars(module).items()):
            if inspect.isfunction(function) and function.__module__ == module.__name__:
                setattr(module, name, atheris.instrument_func(function))
    folder = Path(os.environ.get("TMPDIR", "/tmp")) / "tweaknn-corpus"
    folder.mkdir(exist_ok=True)
    for k, payload in enumerate(seeds()):
        (folder / f"seed{k}").write_bytes(payload)

    def one(data: bytes) -> None:
        try:
            loader.from_bytes(bytes(data))
        except DeltaError:
            return

    atheris.instrument_func(one)
    atheris.Setup([sys.argv[0], f"-runs={inputs}", "-max_len=4096", "-print_final_stats=1", str(folder)], one)
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--atheris", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.atheris:
        coverage_guided(options.inputs)
        return
    found = run(options.inputs, options.seed)
    found |= {
        "machine": {"cpus": os.cpu_count(), "python": platform.python_version(), "torch": torch.__version__},
        "date": date.today().isoformat(),
    }
    print(json.dumps(found, indent=2))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    sys.exit(found["escaped"] > 0)


if __name__ == "__main__":
    main()
