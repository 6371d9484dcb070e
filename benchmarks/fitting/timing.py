"""What the default costs beside fine-tuning, on ResNet-20 in one run (issue: fit and operate).

    python -m benchmarks.fitting.timing --examples 10000 --out benchmarks/results/fit-timing.json

Seconds of: one pass that pools all neurons and one plain forward pass; the convex fit and its operating point; the
whole default (passes over training data, its views and validation, all fits, operating points of all
candidates); an epoch of fine-tuning the whole network (SGD, batches of 128, flips and shifts) on the same examples;
120 synapses on 45,000 examples by the convex solver and by the dissertation's SGD. Only their ratios are reported:
they were taken in one run, one after the other. ``cpu`` seconds are the process's own, beside the wall clock's.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.common import HERE, machine, write
from benchmarks.fitting.cifar import head2toe
from benchmarks.fitting.tables import augmented, base_network, pictures, prepared
from benchmarks.networks import resnet20
from tweaknn import SynapticJoin
from tweaknn.fit.convex import LogisticProblem
from tweaknn.fit.sgd import fit_sgd
from tweaknn.join.aans import aan
from tweaknn.join.candidates import best_linear, bias_alone, by_lot, last_layer, linear
from tweaknn.join.methods import of_means
from tweaknn.join.setting import Setting
from tweaknn.join.size import limit_of


def timed(what: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """The result, wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = what()
    return result, {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def epoch(model: torch.nn.Module, x: np.ndarray, y: np.ndarray) -> None:
    """One epoch of fine-tuning the whole network."""
    optimiser = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=5e-4, nesterov=True)
    generator = torch.Generator().manual_seed(0)
    model.train()
    for rows in torch.randperm(len(y), generator=generator).split(128):
        optimiser.zero_grad()
        F.cross_entropy(model(augmented(prepared(x[rows.numpy()]), generator)), torch.from_numpy(y[rows.numpy()])).backward()
        optimiser.step()


def forward(model: torch.nn.Module, x: torch.Tensor) -> None:
    """A plain pass."""
    with torch.inference_mode():
        for s in range(0, len(x), 128):
            model(x[s : s + 128])


def each(setting: Setting, small: Setting) -> dict[str, Callable[[], Any]]:
    """What makes one candidate, operating point included, on tables of its own: nothing of them has been fitted yet."""
    rows = np.arange(len(setting.train.labels))

    def fresh(of: Setting) -> Setting:
        return replace(of, train=replace(of.train.rows(rows), views=of.train.views))

    return {
        "bias": lambda: bias_alone(fresh(small)),
        "random-neurons": lambda: linear(fresh(small), "random-neurons", by_lot(small)),
        "last-layer": lambda: linear(fresh(small), "last-layer", last_layer(small.train)),
        "head2toe": lambda: head2toe(fresh(small)),
        "fit": lambda: best_linear(fresh(small)).settle(small, "fit"),
        "aan": lambda: aan(fresh(setting)).settle(setting, "aan"),
    }


def synapses_120(cache: Path) -> dict[str, Any]:
    """n = 120 synapses on 45,000 examples (section 3.2.4), by both solvers."""
    rng = np.random.default_rng(0)
    n, c = 45_000, 10
    z = rng.normal(size=(n, c)).astype(np.float32) * 2
    x = np.maximum(rng.normal(size=(n, 120)), 0).astype(np.float32)
    y = (z + x @ rng.normal(size=(120, c)).astype(np.float32) * 0.1 + rng.gumbel(size=(n, c))).argmax(1)
    mask = np.zeros((120, c), dtype=bool)
    mask[:, 3] = True
    convex, seconds = timed(lambda: LogisticProblem(x, z, y, mask=mask, bias=False).solve(1e-4))
    _, sgd = timed(lambda: fit_sgd(x, z, y, np.zeros(mask.shape), mask))
    return {"convex": seconds, "sgd": sgd, "gradient": convex.gradient, "steps": convex.iterations}


def main() -> None:
    """Run and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=10_000)
    parser.add_argument("--validation", type=int, default=2_500)
    parser.add_argument("--cache", type=Path, default=HERE / ".cache")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "fit-timing.json")
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    n, m = options.examples, options.validation
    x, y = pictures("train", options.cache)
    x, y = x[:: len(x) // (n + m)][: n + m], y[:: len(y) // (n + m)][: n + m]
    order = np.random.default_rng(0).permutation(n + m)
    x, y = x[order], y[order].astype(np.int64)
    inputs = prepared(x)
    model = base_network()
    seconds: dict[str, Any] = {}
    warm = SynapticJoin(views=0, base_saw="both")
    ready = warm.prepare(model, (inputs[:512], torch.from_numpy(y[:512])), (inputs[:512], torch.from_numpy(y[:512])))
    warm.choose(ready, [2])  # compiles what is compiled once
    forward(model, inputs[:512])
    _, seconds["forward"] = timed(lambda: forward(model, inputs[:n]))
    train, held = (inputs[:n], torch.from_numpy(y[:n])), (inputs[n:], torch.from_numpy(y[n:]))
    ready, seconds["pass without views"] = timed(lambda: SynapticJoin(views=0, base_saw="both").prepare(model, train, held))
    join = SynapticJoin(base_saw="both")
    ready, seconds["passes"] = timed(lambda: join.prepare(model, train, held))
    names = [str(j) for j in range(10)]
    setting = Setting(ready.train_table, ready.validation_table, (2,), names, join._promise(), ready.frame, 0, limit_of(model))
    small = of_means(setting)
    alone = replace(small, train=small.train.rows(np.arange(n)))  # a table of its own: nothing of it has been fitted yet
    _, seconds["convex fit + operating point"] = timed(lambda: best_linear(alone).settle(alone, "fit"))
    _, seconds["choosing"] = timed(lambda: join.choose(ready, [2]))
    _, seconds["choosing for another target"] = timed(lambda: join.choose(ready, [3]))
    alike = {name: timed(make)[1] for name, make in each(setting, small).items()}
    tuned = resnet20()
    tuned.load_state_dict(model.state_dict())
    _, seconds["fine-tuning epoch"] = timed(lambda: epoch(tuned, x[:n], y[:n]))
    seconds["120 synapses"] = synapses_120(options.cache)
    ratios = {}
    for clock in ("wall", "cpu"):
        s = {k: v[clock] for k, v in seconds.items() if clock in v}
        one = s["pass without views"] * n / (n + m)
        ratios[clock] = {
            "a pass / a plain forward pass": one / s["forward"],
            "convex fit + operating point / a pass": s["convex fit + operating point"] / one,
            "whole default / a fine-tuning epoch": (s["passes"] + s["choosing"]) / s["fine-tuning epoch"],
            "another target / a pass": s["choosing for another target"] / one,
            "a fine-tuning epoch / a forward pass": s["fine-tuning epoch"] / s["forward"],
            # what each reads beside its own fit: validation, all images, all images and their view
            "each method / a fine-tuning epoch": {
                name: (spent[clock] + {"bias": one * m / n, "aan": s["passes"], "fit": s["passes"]}.get(name, s["pass without views"]))
                / s["fine-tuning epoch"]
                for name, spent in alike.items()
            },
        }
    write(options.out, {"machine": machine(), "settings": {**vars(options), "out": None, "cache": None},
                        "ratios": ratios, "seconds": seconds})  # fmt: skip
    print({k: {a: b if isinstance(b, dict) else round(b, 2) for a, b in v.items()} for k, v in ratios.items()})
    print({k: {a: round(b, 1) if isinstance(b, float) else b for a, b in v.items()} for k, v in seconds.items()})


if __name__ == "__main__":
    main()
