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
import gc
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

sys.path.insert(0, str(Path(__file__).resolve().parent))
from networks import resnet20

from tweaknn.delta import MLP, Delta, Linear, Read, Term, synapses
from tweaknn.delta.bank import DeltaBank
from tweaknn.delta.file import from_bytes, to_bytes
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


def own(delta: Delta, seed: int) -> Delta:
    """The same reads with weights, and memory, of its own."""
    generator = torch.Generator().manual_seed(seed)
    terms = []
    for term in delta.terms:
        parts = {
            name: t + 0.001 * torch.randn(t.shape, generator=generator)
            for name, t in term.head.tensors().items()
            if name != "columns"
        }
        if isinstance(term.head, MLP):
            head: Any = MLP((parts["w1.0"],), parts["b1"], parts["w2"], term.head.columns, term.head.activation)
        else:  # damped logits stay a diagonal
            head = Linear(torch.where(term.head.weight == 0, 0.0, parts["weight"]), term.head.columns)
        terms.append(Term(term.reads, head))
    return replace(delta, terms=tuple(terms))


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def filled(bank: DeltaBank, deltas: Iterable[tuple[str, Delta]]) -> dict[str, Any]:
    """Add deltas that nobody else keeps, and say what that took."""
    before, start, sizes, names = resident(), time.perf_counter(), [], []
    for name, delta in deltas:
        bank.add(name, from_bytes(to_bytes(delta)))
        names.append(name)
        sizes.append(len(to_bytes(delta)))
    gc.collect()
    return {
        "deltas": len(names),
        "seconds_to_make_and_fill": round(time.perf_counter() - start, 2),
        "file_bytes": round(float(np.mean(sizes))),
        "numbers_bytes": round(float(np.mean([bank.bytes_of(name) for name in names]))),
        "resident_bytes": round((resident() - before) / len(names)),
    }


def swaps(bank: DeltaBank, names: Sequence[str]) -> dict[str, float]:
    """Milliseconds in which each delta takes the next one's place."""
    deltas = [bank[name] for name in names]
    times = []
    for i, name in enumerate(names):
        start = time.perf_counter()
        bank.swap(name, deltas[(i + 1) % len(names)])
        times.append(time.perf_counter() - start)
    return {"median": round(1e3 * float(np.median(times)), 3), "p95": round(1e3 * float(np.quantile(times, 0.95)), 3)}


def products(deltas: Sequence[Delta], rounds: int) -> dict[str, float]:
    """One row for each of many MLPs: one after the other over stacked first, time ratio."""
    heads = [next(term.head for term in delta.terms if isinstance(term.head, MLP)) for delta in deltas]
    x = torch.randn(len(heads), heads[0].inputs)

    def loop() -> Tensor:
        return torch.cat([head(x[i : i + 1]) for i, head in enumerate(heads)])

    def stacked() -> Tensor:
        w1, b1, w2 = (
            torch.stack(each) for each in zip(*((head.w1[0], head.b1, head.w2) for head in heads), strict=True)
        )
        return torch.bmm(torch.baddbmm(b1[:, None], x[:, None], w1).relu(), w2).squeeze(1)

    torch.testing.assert_close(loop(), stacked(), rtol=1e-3, atol=1e-3)
    return ratio(loop, stacked, rounds, 1)


def bank(rounds: int) -> dict[str, Any]:
    """1,000 deltas of 40 synapses; 200 of the default's, a megabyte each, which is what fits beside everything else in memory;
    then a bank that holds both and a pooled one."""
    net = resnet20().eval()
    reader, base = Reader(net, torch.randn(2, 3, 32, 32)), fingerprint(net)
    few, many, count = DeltaBank(net), DeltaBank(net), max(8, rounds // 3)
    first = usual(reader, base)
    for each, delta in ((few, positional(net, reader, base, 0)), (many, first)):
        each.add("first", delta)  # makes the network that is read, which is no delta's memory
        each.remove("first")
    found: dict[str, Any] = {
        "40 synapses": filled(few, ((f"d{i}", positional(net, reader, base, i)) for i in range(1000)))
    }
    found["the default's"] = filled(many, ((f"u{i}", own(first, i)) for i in range(200)))
    x = torch.randn(128, 3, 32, 32)
    mine = {
        "40 synapses": (few, [f"d{(i * 7) % 1000}" for i in range(128)]),
        "the default's": (many, [f"u{(i * 7) % 200}" for i in range(128)]),
        "the default's, one for all": (many, ["u0"] * 128),
    }
    mixed = DeltaBank(net, {name: few[name] for name in few.names})
    for name in many.names:
        mixed.add(name, many[name])
    mixed.add("pooled", pooled(reader, base, ("mean",)))
    turns = ["d{}", "u{}", "pooled", None, "d{}", "d{}", "u{}", None]
    mine["mixed"] = mixed, [t and t.format(i) for i, t in ((i, turns[i % 8]) for i in range(128))]
    for name, (each, names) in mine.items():
        found[f"{name}, batch 128"] = ratio(partial(net, x), partial(each, x, names), count, 1)
        print(name, found[f"{name}, batch 128"])
    found["swap_ms"] = {
        "40 synapses": swaps(few, few.names[:200]),
        "the default's": swaps(many, many.names),
        "mixed": swaps(mixed, [f"{'du'[i % 2]}{i}" for i in range(200)]),
    }
    found["mixed, numbers_bytes of 40 synapses"] = mixed.bytes_of("d1")
    found["stacked over one by one, 128 MLPs"] = products([many[f"u{i}"] for i in range(128)], count)
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
