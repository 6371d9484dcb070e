"""What observing costs beside the plain forward pass: ratios taken in one run, interleaved, medians.

    python benchmarks/observe.py [--quick] [--threads 1] [--json FILE]      the ratios
    python benchmarks/observe.py --wide [--json FILE]                       1,000 classes, with and without --memory
    python benchmarks/observe.py --memory [--json FILE]                     peak memory against the number of examples
    python benchmarks/observe.py --scaling [--plot FILE.png] [--json FILE]  time against |V|, |C|, |D|
    python benchmarks/observe.py --kernel [--json FILE]                     the kernel against this machine's limits

Images are CIFAR-sized noise, the network an untrained ResNet-20 whose output bias is centred so that it predicts
every class, labels such that it is right on 86 % of the images. Every timed call is a whole join: thresholds, counts and
the 100 best synapses of every class. The plain forward pass is timed at its own best batch size, right before and
right behind every call, and a ratio is to the mean of the two. Building the reader (two forward passes of two images)
and loading compiled code are outside of the medians; ``with_first_call`` has the latter. ``processor_time`` holds the
same ratios in processor seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent))
from networks import ResNet

from tweaknn.network.reader import Reader
from tweaknn.theta.observe import observe

BATCH = 256


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    import numba

    return {
        "processors": torch.get_num_threads(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numba": numba.__version__,
        "load_average": round(os.getloadavg()[0], 1),
        "date": date.today().isoformat(),
    }


def case(n: int, classes: int = 10, right: float = 0.86, seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    """A network, images ``(n, 3, 32, 32)`` and labels it is ``right`` on."""
    torch.manual_seed(seed)
    model = ResNet(3, classes).eval()
    x = torch.randn(n, 3, 32, 32)
    return model, x, label(model, x, right, seed)


def label(model: nn.Module, x: Tensor, right: float, seed: int) -> Tensor:
    """Centre the output so that every class is predicted, and make labels."""
    head = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    with torch.inference_mode():
        out = torch.cat([model(part) for part in x.split(BATCH)])
        spread = out.std(0)
        head.weight /= spread[:, None]
        head.bias.copy_((head.bias - out.mean(0)) / spread)
        predicted = torch.cat([model(part) for part in x.split(BATCH)]).argmax(1)
    g = torch.Generator().manual_seed(seed + 1)
    classes = out.shape[1]
    shift = torch.randint(1, classes, (len(x),), generator=g)
    return torch.where(torch.rand(len(x), generator=g) < right, predicted, (predicted + shift) % classes)


def forward(model: nn.Module, x: Tensor, batch: int) -> None:
    with torch.inference_mode():
        for part in x.split(batch):
            model(part)


def join(reader: Reader, x: Tensor, y: Tensor, targets: Any, **options: Any) -> None:
    """One whole join."""
    found = observe(reader, list(zip(x.split(BATCH), y.split(BATCH))), targets, **options)
    found.best(100)


def naive(reader: Reader, x: Tensor, y: Tensor, targets: Any) -> None:
    """Thresholds as straightforward torch operations: copy, then abs, multiply, amax for each class."""
    peaks = [torch.zeros(len(targets), layer.size) for layer in reader.layers]
    for part, its in zip(x.split(32), y.split(32)):
        held: list[Tensor] = []
        logits = reader(part, lambda k, a, held=held: held.append(a.reshape(len(a), -1).clone()))
        top, predicted = logits.max(1)
        with torch.inference_mode():
            for j, t in enumerate(targets):
                rows = (predicted == its) & (its != t)
                inverse = 1 / (top - logits[:, t])[rows, None]
                for values, peak in zip(held, peaks):
                    if len(inverse):
                        torch.maximum(peak[j], (values[rows].abs() * inverse).amax(0), out=peak[j])


def interleaved(
    calls: dict[str, Callable[[], None]], rounds: int, seconds: float
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Time every call once a round, in turn, for ``rounds`` rounds or until the time is up (never fewer than 5).

    Returns seconds by the clock on the wall, and seconds of processor time of all threads.
    """
    wall: dict[str, list[float]] = {name: [] for name in calls}
    cpu: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()  # compiles, allocates
    begin = time.perf_counter()
    names = list(calls)
    for r in range(rounds):
        if r >= 5 and time.perf_counter() - begin > seconds:
            break
        for name in names[r % len(names) :] + names[: r % len(names)]:
            taken = timed(calls[name])
            wall[name].append(taken[0])
            cpu[name].append(taken[1])
    return wall, cpu


def timed(call: Callable[[], None]) -> tuple[float, float]:
    """Seconds by the clock, and of processor time."""
    start, used = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - start, time.process_time() - used


def beside(
    calls: dict[str, Callable[[], None]], plain: Callable[[], None], rounds: int, seconds: float
) -> tuple[dict[str, list[tuple[float, float]]], dict[str, float], list[float]]:
    """Ratios of every call to the mean of the plain passes right before and right behind it.

    A machine that others use changes its speed within seconds; its neighbours in time are what a call is fairly measured
    against. Every call runs once before, to compile and to allocate; how long that took is returned too.

    Returns ratios (wall clock, processor time) of each round, seconds of first calls, seconds of plain passes.
    """
    plain()
    first = {name: timed(call)[0] for name, call in calls.items()}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    names, plains = list(calls), []
    begin = time.perf_counter()
    for r in range(rounds):
        if r >= 5 and time.perf_counter() - begin > seconds:
            break
        before = timed(plain)
        for name in names[r % len(names) :] + names[: r % len(names)]:
            taken, after = timed(calls[name]), timed(plain)
            found[name].append((2 * taken[0] / (before[0] + after[0]), 2 * taken[1] / (before[1] + after[1])))
            plains.append(after[0])
            before = after
    return found, first, plains


def best_batch(model: nn.Module, x: Tensor) -> int:
    """The batch size at which the plain forward pass is fastest here."""
    sizes = (8, 16, 32, 64, 128, 256)
    calls = {str(b): lambda b=b: forward(model, x[:256], b) for b in sizes}
    _, cpu = interleaved(calls, 5, 1e9)  # type: ignore[arg-type]
    return int(min(cpu, key=lambda b: float(np.median(cpu[b]))))


def ratios(n: int, rounds: int, seconds: float, with_naive: bool = True, only: str | None = None) -> dict[str, Any]:
    """Ratios to the plain forward pass at its best batch size, medians over rounds.

    ``with_first_call``: the same ratio of the very first call in this process, in which compiled code is loaded (or, where
    it is not cached on disk yet, compiled) and memory is allocated. It is outside of the medians.
    """
    model, x, y = case(n)
    hundred, _, _ = case(8, 100)
    y100 = label(hundred, x, 0.86, 0) if only in (None, "hundred_classes") else y
    reader, reader100 = Reader(model, x[:2]), Reader(hundred, x[:2])
    batch = 32 if only else best_batch(model, x)
    every = range(10)
    calls: dict[str, Callable[[], None]] = {
        "one_target": lambda: join(reader, x, y, [3]),
        "ten_classes": lambda: join(reader, x, y, every),
        "hundred_classes": lambda: join(reader100, x, y100, range(100)),
        "pooled": lambda: join(reader, x, y, every, reduction="mean"),
    }
    if only:
        calls = {only: calls[only]}
    found, first, plains = beside(calls, lambda: forward(model, x, batch), rounds, seconds)
    few = max(256, n // 8)
    if with_naive:
        naively, _, _ = beside(
            {"naive_ten_classes": lambda: naive(reader, x[:few], y[:few], every)},
            lambda: forward(model, x[:few], batch),
            5,
            seconds,
        )
        found.update(naively)
    result: dict[str, Any] = {
        "threads": torch.get_num_threads(),
        "plain_batch": batch,
        "rounds": len(plains) // len(calls),
    }
    result.update({"spread": {}, "processor_time": {}, "with_first_call": {}})
    for name, pairs in found.items():
        wall, cpu = np.array(pairs).T
        result[name] = round(float(np.median(wall)), 4)
        result["spread"][name] = [round(float(q), 4) for q in np.quantile(wall, [0.25, 0.75])]
        result["processor_time"][name] = round(float(np.median(cpu)), 4)
    plain = float(np.median(plains))
    for name, took in first.items():
        result["with_first_call"][name] = round(took / plain, 4)
    result["plain_ms_an_image"] = round(1e3 * plain / n, 4)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="within 10 minutes on two cores")
    parser.add_argument("--threads", type=int, help="torch's and ours; default: one, then as many as there are")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--only", choices=["one_target", "ten_classes", "hundred_classes", "pooled"])
    parser.add_argument("--images", type=int, help="by default as many as the time allows; 1024 with --only")
    for name in ("wide", "memory", "scaling", "kernel"):
        parser.add_argument(f"--{name}", action="store_true")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    elif not any((options.wide, options.memory, options.scaling, options.kernel)):
        torch.set_num_threads(1)
    chosen = [name for name in ("wide", "memory", "scaling", "kernel") if getattr(options, name)]
    if chosen:
        import observe_more

        result = getattr(observe_more, chosen[0])(options)
        save(options, result)
        print(json.dumps(result, indent=2))
        return
    began = time.perf_counter()
    if options.only:
        n, rounds, seconds = options.images or 1024, 5, 60.0
    elif options.quick:
        n, rounds, seconds = options.images or images_for(2.5, 3072), 5, 60.0
    else:
        n, rounds, seconds = options.images or 8192, 9, 400.0
    if options.only:
        # In pieces, on a machine that has no quiet quarter of an hour: each key keeps its own images and plain time.
        before = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
        found = ratios(n, rounds, seconds, with_naive=False, only=options.only)
        pieces = {**before.get("pieces", {}), options.only: {**found, "images": n}}
        save(options, {options.only: found[options.only], "pieces": pieces, **_kept(before, options.only)})
        return
    result = {**ratios(n, rounds, seconds), "images": n}
    save(options, result)
    import observe_more

    result["peak_extra_mb"] = observe_more.peak_extra(n)["extra_mb"]
    save(options, result)
    if options.threads is None:
        from tweaknn.theta.stream import cores

        result["other_threads"] = []
        for threads in {1, cores()} - {torch.get_num_threads()}:
            torch.set_num_threads(threads)
            late = (
                options.quick and time.perf_counter() - began > 300
            )  # a slow or busy machine: still within 10 minutes
            some = max(2 * BATCH, n // 2) if late else n
            result["other_threads"].append({**ratios(some, rounds, seconds, with_naive=False), "images": some})
    save(options, result)
    print(json.dumps(result, indent=2))


def _kept(before: dict[str, Any], only: str) -> dict[str, Any]:
    return {name: value for name, value in before.items() if name not in (only, "pieces", "settings")}


def images_for(seconds: float, most: int) -> int:
    """As many images as a plain forward pass does in ``seconds`` here, whole batches, at least two, at most
    ``most``."""
    model, x, _ = case(256)
    forward(model, x, 32)
    begin = time.perf_counter()
    forward(model, x, 32)
    rate = 256 / (time.perf_counter() - begin)
    return max(2, min(most // BATCH, int(seconds * rate) // BATCH)) * BATCH


def save(options: argparse.Namespace, result: dict[str, Any]) -> None:
    """Write what is known so far."""
    result["settings"] = {"batch": BATCH, "seed": 0, "right": 0.86, **machine()}
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
