"""The other measurements of benchmarks/observe.py: wide networks, memory, scaling, the kernel against the machine."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tweaknn.network.reader import Reader
from tweaknn.theta import kernels
from tweaknn.theta.blocks import plan
from tweaknn.theta.observe import observe
from tweaknn.theta.relations import relate
from tweaknn.theta.sieve import Sieve
from tweaknn.theta.stream import micro_batch


def _median(call: Callable[[], Any], rounds: int = 5) -> float:
    call()
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return float(np.median(times))


def peak_pairs() -> float:
    """Pair operations (a product and a maximum) a second of one thread with everything in registers and L1."""
    values = np.random.default_rng(0).random((32, 512), dtype=np.float32)
    inverse = np.random.default_rng(1).random((32, 10), dtype=np.float32)
    peak, used = np.zeros((10, 512), np.float32), np.arange(32, dtype=np.int32)

    def many() -> None:
        for _ in range(2000):
            kernels.fold_plain(values, 0, used, inverse, peak)

    return 2000 * 32 * 512 * 10 / _median(many)


def copy_bandwidth(size: int = 256 << 20) -> float:
    """Bytes a second that one thread reads and writes when it copies a large array."""
    a, b = np.ones(size // 4, np.float32), np.empty(size // 4, np.float32)
    return 2 * size / _median(lambda: np.copyto(b, a))


def kernel(options: Any) -> dict[str, Any]:
    """The fold on layers of 16,384 neurons that come from memory, one thread.

    One class: bytes over copy bandwidth, and over what the largest value of an array costs, which reads and does no more.
    Many classes: pair operations over their measured peak. ``sieve``: the same on the last of 64 micro-batches, counting
    the pairs it leaves out as done.
    """
    rng = np.random.default_rng(0)
    bandwidth, peak = copy_bandwidth(), peak_pairs()
    n, v = 32, 16384
    long = rng.random(64 << 20, dtype=np.float32)
    reads = long.nbytes / _median(long.max)
    result: dict[str, Any] = {
        "copy_gb_s": round(bandwidth / 1e9, 2),
        "read_gb_s": round(reads / 1e9, 2),
        "peak_gpairs_s": round(peak / 1e9, 2),
    }
    for c, count in ((1, 64), (10, 32), (100, 8), (1000, 1)):
        layers = long[: count * n * v].reshape(count, n, v)
        inverse, used = (1 / rng.random((n, c))).astype(np.float32), np.arange(n, dtype=np.int32)
        peaks = np.zeros((count, c, v), np.float32)

        def whole() -> None:
            for k in range(count):  # noqa: B023
                kernels.fold_plain(layers[k], 0, used, inverse, peaks[k])  # noqa: B023

        took = _median(whole)
        moved, pairs = layers.nbytes + 2 * peaks.nbytes, layers.size * c
        result[f"{c}_classes"] = {
            "gpairs_s": round(pairs / took / 1e9, 2),
            "of_peak": round(pairs / took / peak, 3),
            "gb_s": round(moved / took / 1e9, 2),
            "of_copy_bandwidth": round(moved / took / bandwidth, 3),
        }
        if c > 1:
            result[f"{c}_classes"]["sieve_gpairs_s"] = round(_sifted(layers, c) / 1e9, 2)
    return result


def _sifted(layers: np.ndarray, c: int) -> float:
    """Pairs a second of the sieve after 64 micro-batches with margins of their own."""
    rng = np.random.default_rng(1)
    sieves = [Sieve(c, layers.shape[2], 1) for _ in layers]
    peaks = np.zeros((len(layers), c, layers.shape[2]), np.float32)
    times = []
    for _ in range(64):
        logits = rng.standard_normal((layers.shape[1], c)).astype(np.float32)
        r = relate(logits, logits.argmax(1), np.arange(c))
        begin = time.perf_counter()
        for k, sieve in enumerate(sieves):
            sieve.fold((peaks[k],), layers[k], 0, r)
        times.append(time.perf_counter() - begin)
    return layers.size * c / float(np.median(times[-9:]))


_PEAK = """
import resource, sys
sys.path.insert(0, {here!r})
import observe as b
import torch
torch.set_num_threads(1)
what, n = sys.argv[1], int(sys.argv[2])
b.BATCH = 64  # labels are made with the micro-batches of the reader, or their making would be the peak
model, x, _ = b.case(2048)
y = b.label(model, x, 0.86, 0)
from tweaknn.network.reader import Reader
class Again:  # the same images over and over: the data itself must not grow
    def __len__(self): return n // 256
    def __iter__(self):
        for k in range(n // 256):
            rows = slice(256 * k % 2048, 256 * k % 2048 + 256)
            yield x[rows], y[rows]
if what == "plain":
    with torch.inference_mode():
        for whole, _ in Again():
            for part in whole.split(32): model(part)
else:
    found = b.observe(Reader(model, x[:2]), Again(), range(10)); found.best(100)
# VmHWM is this program's own; ru_maxrss begins at what the process that started it held.
marks = [line for line in open("/proc/self/status") if line.startswith("VmHWM")] if sys.platform == "linux" else []
print(int(marks[0].split()[1]) * 1024 if marks else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def peak_extra(n: int) -> dict[str, Any]:
    """Peak memory of a ten-class join over that of plain evaluation, each in a process of its own."""
    code = _PEAK.format(here=str(Path(__file__).resolve().parent))
    peaks = {}
    for what in ("plain", "observed"):
        done = subprocess.run([sys.executable, "-c", code, what, str(n)], capture_output=True, text=True, check=True)
        peaks[what] = int(done.stdout.split()[-1])
    return {"examples": n, **peaks, "extra_mb": round((peaks["observed"] - peaks["plain"]) / 1e6, 1)}


def memory(options: Any) -> dict[str, Any]:
    """Peak memory at 1,024 to 50,000 examples, beside what issue and plan allow."""
    sizes = (1024, 4096) if options.quick else (1024, 8192, 49920)
    neurons = 188_416
    micro = micro_batch(neurons, 256)
    allowed = 8 * neurons * 10 + 4 * neurons * micro + 100e6
    return {"rows": [peak_extra(n) for n in sizes], "allowed_mb": round(allowed / 1e6, 1)}


def wide(options: Any) -> dict[str, Any]:
    """1,000 classes on a torchvision network, all classes at once and within --memory 4GB, in forward passes."""
    import torchvision
    from observe import forward, label

    torch.manual_seed(0)
    side, n = (64, 512) if options.quick else (176, 256)
    n = options.images or n
    model = torchvision.models.resnet18(weights=None).eval()
    x = torch.randn(n, 3, side, side)
    y = label(model, x, 0.86, 0)
    reader = Reader(model, x[:2])
    batches = list(zip(x.split(64), y.split(64)))
    limit = int(4e9) if not options.quick else int(0.4e9)
    wanted = plan([layer.size for layer in reader.layers], 1000, memory=limit)
    plain = _median(lambda: forward(model, x, 16), 5)
    result: dict[str, Any] = {
        "network": "resnet18",
        "side": side,
        "images": n,
        "neurons": reader.neurons,
        "statistics_gb": round(5e-9 * reader.neurons * 1000, 2),
        "memory_gb": limit / 1e9,
        "passes": len(wanted.passes),
        "plain_s": round(plain, 3),
    }
    pairs = 0.86 * n * reader.neurons * 1000
    peak = peak_pairs() * torch.get_num_threads()
    result["peak_gpairs_s"] = round(peak / 1e9, 2)
    result["floor_in_forward_passes"] = round((plain + pairs / peak) / plain, 2)
    for name, room in (("no_limit", None), ("memory", limit)):
        took = _median(lambda: observe(reader, batches, range(1000), memory=room), 3)  # noqa: B023
        beside = max(took - plain, 1e-9)  # everything that is not the one forward pass: folding, further passes, the disk
        result[name] = {
            "seconds": round(took, 2),
            "forward_passes": round(took / plain, 2),
            "gpairs_s": round(pairs / beside / 1e9, 2),
            "of_peak": round(pairs / beside / peak, 3),
        }
    return result


def scaling(options: Any) -> dict[str, Any]:
    """Time of Algorithm θ against |V|, |C| and |D|, one thread: fitted exponents, and three plots.

    Neurons come in layers of at most 12,000 (rows that lie a power of two apart share few places of a cache, which is no
    property of the algorithm), examples in micro-batches of 32 with margins of their own. ``whole``: every product, by
    :func:`~tweaknn.theta.kernels.fold_plain`; ``sieve``: what is run in truth, which skips more the more it has seen.
    """
    base = {"V": 48_000, "C": 10, "D": 1024}
    sweeps = {
        "V": [12_000 * k for k in (1, 2, 4, 8, 16, 32)],
        "C": [1, 2, 5, 10, 20, 50, 100, 200],
        "D": [128, 256, 512, 1024, 2048, 4096, 8192],
    }
    result: dict[str, Any] = {"base": base}
    for name, sizes in sweeps.items():
        result[name] = {"sizes": sizes}
        times = [_folding(**{**base, name: size}) for size in sizes]
        half = len(sizes) // 2  # the exponent of the upper half: where fixed costs no longer count
        for way in ("whole", "sieve"):
            took = [t[way] for t in times]
            slope = np.polyfit(np.log(sizes[half:]), np.log(took[half:]), 1)[0]
            result[name][way] = {"seconds": [round(t, 6) for t in took], "exponent": round(float(slope), 3)}
    if options.plot:
        draw(result, options.plot)
    return result


def _folding(V: int, C: int, D: int, layer: int = 12_000) -> dict[str, float]:
    """Seconds of folding ``D`` examples of ``V`` neurons for ``C`` classes, with every product and with the sieve."""
    rng = np.random.default_rng(0)
    layers = rng.random((V // layer, 32, layer), dtype=np.float32)
    margins = []
    for _ in range(D // 32):
        logits = rng.standard_normal((32, max(C, 2))).astype(np.float32)
        margins.append(relate(logits, logits.argmax(1), np.arange(C)))
    inverse, used = rng.random((32, C), dtype=np.float32), np.arange(32, dtype=np.int32)
    peaks = np.zeros((len(layers), C, layer), np.float32)

    def whole() -> None:
        for _ in margins:
            for values, peak in zip(layers, peaks):
                kernels.fold_plain(values, 0, used, inverse, peak)

    def sieve() -> None:
        peaks[:] = 0
        sieves = [Sieve(C, layer, 1) for _ in layers]
        for r in margins:
            for one, values, peak in zip(sieves, layers, peaks):
                one.fold((peak,), values, 0, r)

    return {"whole": _median(whole), "sieve": _median(sieve)}


def draw(result: dict[str, Any], path: Path) -> None:
    """Three plots of :func:`scaling`."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter

    names = {"V": "neurons", "C": "classes", "D": "examples"}
    figure, axes = plt.subplots(1, 3, figsize=(10, 3), sharey=True, constrained_layout=True)
    for axis, name in zip(axes, names):
        for way, mark in (("whole", "o-"), ("sieve", "s--")):
            found = result[name][way]
            axis.loglog(result[name]["sizes"], found["seconds"], mark, label=f"{way}: exponent {found['exponent']:.2f}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xlabel(names[name])
        axis.legend()
    axes[0].set_ylabel("seconds, one thread")
    figure.savefig(path, dpi=120)
