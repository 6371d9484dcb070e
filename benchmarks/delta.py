"""What an attached delta and a bank of deltas cost on ResNet-20: ratios taken in one run, interleaved.

    python benchmarks/delta.py [--parts latency,compiled,bank] [--rounds 40] [--json FILE]

Each figure is the median, over rounds, of (time with delta / time of the base), both timed in the same round by the
thread's own CPU clock on one thread, with quartiles. Random weights: time does not depend on them. The pooled deltas
read all 688 channels of all 19 layers (means; means and maxima) and change all ten logits; the positional one reads
40 of the 188,416 neurons; the default's is built as ``tweaknn join`` builds its own (a quarter of a million
parameters). Everything is measured twice: with the C library's allocator as it is, and told not to hand memory back
after every layer (``MALLOC_TRIM_THRESHOLD_``, ``MALLOC_MMAP_THRESHOLD_``), as PyTorch's tuning guide does with
jemalloc or tcmalloc: with the former, page faults cost as much as the network, and whether a small tensor lies behind
a large one decides how many there are, which has nothing to do with the delta. *traced* is the base itself as
torch.fx traces it, without any delta.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import fx, nn

sys.path.insert(0, str(Path(__file__).resolve().parent))
from networks import resnet20

from tweaknn.delta import MLP, Delta, Read, Term, synapses
from tweaknn.delta.bank import DeltaBank
from tweaknn.delta.file import to_bytes
from tweaknn.join.candidates import damped
from tweaknn.join.reading import reading
from tweaknn.network import Reader, fingerprint
from tweaknn.network.clone import share
from tweaknn.network.pooling import width
from tweaknn.network.tracing import trace

ALLOCATOR = {"MALLOC_TRIM_THRESHOLD_": "1000000000", "MALLOC_MMAP_THRESHOLD_": "1000000000"}


def positional(net: nn.Module, reader: Reader, base: str, seed: int, n: int = 40) -> Delta:
    """``n`` single neurons of any layer, to one class."""
    rng = np.random.default_rng(seed)
    ends = np.cumsum([0, *(layer.size for layer in reader.layers)])
    places = np.sort(rng.choice(ends[-1], n, replace=False))
    reads = []
    for k, layer in enumerate(reader.layers):
        mine = places[(places >= ends[k]) & (places < ends[k + 1])] - ends[k]
        if len(mine):
            reads.append(Read(layer.name, "position", layer.shape, layer.channel_axis, torch.from_numpy(mine)))
    weight = torch.from_numpy(rng.normal(size=(n, 1)).astype(np.float32) * 0.01)
    return Delta((synapses(reads, weight, [int(rng.integers(10))]),), torch.zeros(10), base, (3, 32, 32))


def pooled(reader: Reader, base: str, reductions: tuple[str, ...]) -> Delta:
    """Every channel of every layer, to every class."""
    reads = [
        Read(r.name, how, r.shape, r.channel_axis, torch.arange(width(how, r.shape, r.channel_axis)))
        for r in reader.layers
        for how in reductions
    ]
    inputs = sum(int(read.index.numel()) for read in reads)
    weight = torch.randn(inputs, 10, generator=torch.Generator().manual_seed(0)) * 0.01
    return Delta((synapses(reads, weight, range(10)),), torch.zeros(10), base, (3, 32, 32))


def usual(reader: Reader, base: str, hidden: int = 126) -> Delta:
    """What ``tweaknn join`` hands over: synapses from all means, and an MLP on means, maxima and quarters of the last maps, the
    logits damped."""
    reads = reading("best", reader, 1)
    inputs = sum(int(read.index.numel()) for read in reads)
    generator = torch.Generator().manual_seed(0)
    w1, w2 = (torch.randn(shape, generator=generator) * 0.01 for shape in ((inputs, hidden), (hidden, 10)))
    net = MLP((w1,), torch.zeros(hidden), w2, torch.arange(10), "relu")
    terms = (*pooled(reader, base, ("mean",)).terms, Term(reads, net), *damped(0.2, 10))
    return Delta(terms, torch.zeros(10), base, (3, 32, 32))


def ratio(base: Callable[[], Any], other: Callable[[], Any], rounds: int, inner: int) -> dict[str, float]:
    """Median and quartiles of ``other / base`` over rounds."""
    times = np.empty((rounds, 2))
    with torch.no_grad():
        for _ in range(3):
            base()
            other()
        for r in range(rounds):
            for k, call in ((0, base), (1, other)) if r % 2 else ((1, other), (0, base)):
                start = time.thread_time()
                for _ in range(inner):
                    call()
                times[r, k] = (time.thread_time() - start) / inner
    found = times[:, 1] / times[:, 0]
    low, middle, high = np.quantile(found, [0.25, 0.5, 0.75])
    return {"ratio": round(middle, 3), "low": round(low, 3), "high": round(high, 3)}


def latency(rounds: int, compiled: bool) -> dict[str, Any]:
    net = resnet20().eval()
    reader, base = Reader(net, torch.randn(2, 3, 32, 32)), fingerprint(net)
    deltas = {"positional-40": positional(net, reader, base, 0), "mean": pooled(reader, base, ("mean",))}
    if not compiled:
        deltas["mean+max"] = pooled(reader, base, ("mean", "max"))
    deltas["the default's"] = usual(reader, base)
    traced = trace(share(net), torch.randn(2, 3, 32, 32))
    forms: dict[str, nn.Module] = {} if compiled else {"traced": fx.GraphModule(traced.root, traced.graph)}
    forms |= {name: delta.attach(net) for name, delta in deltas.items()}
    found: dict[str, Any] = {}
    for batch, inner in ((1, 20), (128, 1)):
        x = torch.randn(batch, 3, 32, 32)
        plain: Any = torch.compile(net) if compiled else net
        for name, form in forms.items():
            torch._dynamo.reset()
            made: Any = torch.compile(form) if compiled else form
            count = rounds if batch == 1 else max(8, rounds // 3)
            found[f"{name}, batch {batch}"] = ratio(partial(plain, x), partial(made, x), count, inner)
            print(f"{'compiled' if compiled else 'eager'} {name}, batch {batch}:", found[f"{name}, batch {batch}"])
    return found


def bank(rounds: int) -> dict[str, Any]:
    net = resnet20().eval()
    reader, base = Reader(net, torch.randn(2, 3, 32, 32)), fingerprint(net)
    deltas = {f"d{i}": positional(net, reader, base, i) for i in range(1000)}
    made = DeltaBank(net)
    start = time.perf_counter()
    for name, delta in deltas.items():
        made.add(name, delta)
    filled = time.perf_counter() - start
    names = [f"d{(i * 7) % 1000}" for i in range(128)]
    x = torch.randn(128, 3, 32, 32)
    found: dict[str, Any] = {"deltas": len(made), "seconds_to_fill": round(filled, 2)}
    found["each example its own, batch 128"] = ratio(lambda: net(x), lambda: made(x, names), max(8, rounds // 3), 1)
    swaps = []
    for i in range(200):
        start = time.perf_counter()
        made.swap(f"d{i}", deltas[f"d{(i + 1) % 1000}"])
        swaps.append(time.perf_counter() - start)
    found["swap_ms"] = {
        "median": round(1e3 * float(np.median(swaps)), 3),
        "p95": round(1e3 * np.quantile(swaps, 0.95), 3),
    }
    found["row_bytes"] = made.bytes_per_delta
    found["file_bytes"] = len(to_bytes(deltas["d0"]))
    print(found)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--parts", default="latency,compiled,bank")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if options.child:
        jobs = {
            "latency": lambda: latency(options.rounds, False),
            "compiled": lambda: latency(options.rounds, True),
            "bank": lambda: bank(options.rounds),
        }
        options.json.write_text(json.dumps(jobs[options.child]()))
        return
    found: dict[str, Any] = {
        "settings": {"rounds": options.rounds, "threads": 1, "network": "ResNet-20, random weights", "seed": 0},
        "machine": {"cpus": os.cpu_count(), "python": platform.python_version(), "torch": torch.__version__},
        "date": date.today().isoformat(),
        "load_average": os.getloadavg(),
    }
    part = Path(f"{options.json or 'delta.json'}.part")
    for name in options.parts.split(","):
        for allocator, extra in (("kept", ALLOCATOR), ("default", {})):
            command = [sys.executable, __file__, "--child", name, "--rounds", str(options.rounds), "--json", str(part)]
            environment = {key: value for key, value in os.environ.items() if key not in ALLOCATOR}
            print(f"-- {name}, allocator {allocator}", flush=True)
            subprocess.run(command, env={**environment, **extra}, check=True)
            found.setdefault(name, {})[allocator] = json.loads(part.read_text())
            part.unlink()
            if options.json:
                options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
