"""One function a table of the dissertation: our numbers, and the dissertation's beside them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.dissertation import published as pub
from benchmarks.dissertation.bases import long_tailed
from benchmarks.dissertation.chapter4 import aans_for_all
from benchmarks.dissertation.networks import build
from benchmarks.dissertation.silent import Silent
from tweaknn.baselines import Plan, Task, Training, compare, make_task, run
from tweaknn.baselines.augmentation import deepened, widened
from tweaknn.baselines.figures import figures
from tweaknn.baselines.retraining import _on_targets, _train
from tweaknn.baselines.rule import score
from tweaknn.fit.aan import AANSettings, fit_aan
from tweaknn.fit.convex import fit_linear
from tweaknn.fit.sgd import SGDSettings, fit_sgd
from tweaknn.inputs import Examples
from tweaknn.join.dissertation import read_positions
from tweaknn.join.run import SynapticJoin
from tweaknn.measure import per_class_accuracy
from tweaknn.network.reader import Reader
from tweaknn.theta.observe import observe


@dataclass
class Bench:
    """A network, its data, where results go."""

    name: str
    data: str
    model: nn.Module
    train: Examples
    test: Examples
    training: Training
    out: Path
    seed: int = 0
    limit: int = 3000
    tail: int | None = None

    def task(self, targets: Sequence[int]) -> Task:
        """A task for these targets, half of train for validation as the dissertation has it for CIFAR-10."""
        return make_task(
            self.model, self.train, self.test, targets, training=self.training, seed=self.seed, limit=self.limit
        )

    def order(self) -> np.ndarray:
        """Classes from the least accurate on (on train, so that the test data chooses nothing)."""
        logits = make_task(self.model, self.train, self.test, [0], seed=self.seed).logits["validation"]
        labels = make_labels(self)
        return np.argsort(per_class_accuracy(logits.argmax(1), labels, logits.shape[1])[0])


def make_labels(bench: Bench) -> np.ndarray:
    """Labels of the validation part."""
    from tweaknn.join.splits import holdout

    return bench.train.labels[holdout(bench.train.labels, share=0.5, seed=bench.seed)[1]]


def table_3_1(bench: Bench) -> dict[str, Any]:
    """Validation accuracy of target and overall for growing loss penalties (the worst class)."""
    task = bench.task([int(bench.order()[0])])
    logits, labels = task.judged()
    rows = {"base": _pair(score(logits, labels, task.targets))}
    for penalty in (1.3, 1.6, 2.0, 5.0, 10.0, 20.0, 30.0):
        trained = _train(task, "retraining-1", _on_targets(task, penalty))
        after = task.run(trained.model, "validation", task.evaluation)
        rows[str(penalty)] = _pair(score(after, labels, task.targets))
    return {
        "target": task.classes[task.targets[0]],
        "ours": rows,
        "dissertation": {str(k): v for k, v in pub.TABLE_3_1.items()},
    }


def table_3_2(bench: Bench) -> dict[str, Any]:
    """Share and number of active neurons (count at least half of the largest), for each class."""
    reader = Reader(bench.model, bench.train.batch([0])[0], "stages")
    seen = observe(reader, bench.train.loader(128), list(range(len(bench.train.classes or []))))
    active, v = seen.active_counts(), reader.neurons
    return {
        "neurons": v,
        "ours": {n: {"active": int(a), "share": a / v} for n, a in zip(bench.train.classes or [], active)},
        "largest_count": seen.largest_counts().tolist(),
        "dissertation": {k: {"share": s, "active": n} for k, (s, n) in pub.TABLE_3_2.items()},
    }


def table_3_3(bench: Bench) -> dict[str, Any]:
    """Target, overall and E of the retraining methods, calibration, join and synaptic retraining (with Table 3.4)."""
    worst = int(bench.order()[0])
    found = _compare(bench, [worst], tuple(pub.TABLE_3_3), "table-3.3")
    return {
        "target": found["targets"][0],
        "base": {"target": found["base"]["target"], "overall": found["base"]["overall"]},
        "ours": {m["name"]: _row(m) for m in found["methods"]},
        "dissertation": {k: {"target": t, "overall": o} for k, (t, o) in pub.TABLE_3_3.items()},
        "dissertation_E": {k: {"mean": a, "sd": b} for k, (a, b) in pub.TABLE_3_4.items()},
    }


def table_3_5(bench: Bench) -> dict[str, Any]:
    """The same for another network: Retraining-1, -3, -5 against join and synaptic retraining."""
    methods = ("retraining-1", "retraining-3", "retraining-5", "theta", "retrain-1", "retrain-2")
    found = _compare(bench, [int(bench.order()[0])], methods, "table-3.5")
    return {
        "base": {"target": found["base"]["target"], "overall": found["base"]["overall"]},
        "ours": {m["name"]: _row(m) for m in found["methods"]},
        "dissertation": pub.TABLE_3_5,
    }


def table_classes(bench: Bench) -> dict[str, Any]:
    """Every class as a target by itself: calibration, the join, synaptic retraining, each as its authors operate it. No table of the
    dissertation, but what its claim "the class that is asked for becomes better" rests on."""
    rows: dict[str, Any] = {}
    for j, name in enumerate(bench.train.classes or []):
        task = bench.task([j])
        base, labels = task.logits["test"], task.labels("test")
        rows[name] = {"base": float((base.argmax(1) == labels)[labels == j].mean())}
        for method in ("calibration", "theta", "retrain-1", "retrain-2"):
            found = figures(base, run(method, task).test, labels, task.targets)
            overall = found["overall"] - float((base.argmax(1) == labels).mean())
            rows[name][method] = {**_short(found), "overall_gain": overall}
        print(name, rows[name], flush=True)
    return {"ours": rows}


def table_3_6(bench: Bench) -> dict[str, Any]:
    """Top-20 synapses by count against top-20 by threshold, three classes of median accuracy."""
    from tweaknn.baselines.ours import setting_of
    from tweaknn.join.dissertation import ascend, limits_of
    from tweaknn.join.promise import Promise
    from tweaknn.theta.observe import Ranked

    order = bench.order()
    middle = order[len(order) // 2 - 1 : len(order) // 2 + 2]
    out = {}
    for j in map(int, middle):
        task = bench.task([j])
        reader = Reader(bench.model, task.train.batch([0])[0], "stages")
        seen = observe(reader, task.train.loader(128), [j])
        parts = list(seen.parts())
        layer = np.concatenate([np.full(len(p.count[0]), b.layer) for b, p in parts])
        index = np.concatenate([np.arange(len(p.count[0])) + b.offset for b, p in parts])
        count = np.concatenate([p.count[0] for _, p in parts])
        threshold = np.concatenate([np.where(p.unbounded[0], 0, p.threshold[0]) for _, p in parts])
        setting = setting_of(task, Promise("overall"))
        row = {}
        for name, keys in (("count", (-threshold, -count)), ("threshold", (-count, -threshold))):
            top = np.lexsort(keys)[:20]
            ranked = Ranked(j, layer[top], index[top], threshold[top], count[top], False)
            values = read_positions(reader, task.validation, 128, [ranked], Silent)
            chosen = ascend(setting, limits_of(setting), [ranked], values)[0]
            on_test = read_positions(reader, task.test, 128, [ranked], Silent)[0]
            after = task.logits["test"].copy()
            after[:, j] += on_test[:, : chosen.n] @ chosen.weight.astype(np.float32)
            row[name] = _short(figures(task.logits["test"], after, task.labels("test"), [j]))
        out[task.classes[j]] = row
    return {
        "ours": out,
        "dissertation": {k: dict(zip(("original", "count", "threshold"), v)) for k, v in pub.TABLE_3_6.items()},
    }


def table_3_7(bench: Bench) -> dict[str, Any]:
    """The join for the classes of lowest, median and highest accuracy."""
    order = bench.order()
    picks = {"lowest": order[0], "median": order[len(order) // 2], "highest": order[-1]}
    rows = {}
    for name, j in picks.items():
        task = bench.task([int(j)])
        found = figures(task.logits["test"], run("theta", task).test, task.labels("test"), task.targets)
        rows[name] = {"class": task.classes[int(j)], **_short(found)}
    return {"ours": rows, "dissertation": {k: v / 100 for k, v in pub.TABLE_3_7.items()}}


def table_3_8(bench: Bench) -> dict[str, Any]:
    """The join for the c classes of lowest accuracy together."""
    order = bench.order()
    rows = {}
    for c in (2, 4, 6, 8, 10):
        task = bench.task([int(j) for j in order[:c]])
        after = run("theta", task).test
        found = figures(task.logits["test"], after, task.labels("test"), task.targets)
        overall = found["overall"] - float((task.logits["test"].argmax(1) == task.labels("test")).mean())
        rows[str(c)] = {**_short(found), "overall_gain": overall}
    return {
        "ours": rows,
        "dissertation": {
            str(c): {"target_gain": t / 100, "overall_gain": o / 100} for c, (t, o) in pub.TABLE_3_8.items()
        },
    }


def table_3_9(bench: Bench) -> dict[str, Any]:
    """Schedules of joins and retrainings; with fewer than 100 classes the scopes are all, half and a fifth of them."""
    c = len(bench.train.classes or [])
    last, half, every = (10, 50, 100) if c >= 100 else (max(1, c // 5), max(1, c // 2), c)
    steps = {
        "J10": f"J{last}",
        "J100+R100+J10+R10+J10": f"J{every}+R{every}+J{last}+R{last}+J{last}",
        "J100+R100+J50+R50+J10+R10+J10": f"J{every}+R{every}+J{half}+R{half}+J{last}+R{last}+J{last}",
    }
    task = bench.task([int(j) for j in bench.order()[:last]])
    overall = float((task.logits["test"].argmax(1) == task.labels("test")).mean())
    rows = {}
    for theirs, ours in steps.items():
        join = SynapticJoin(method="schedule", schedule=ours, promise="overall", layers="stages", seed=bench.seed)
        found = join.fit(task.model, task.train, task.validation, targets=list(task.targets), classes=task.classes)
        made = next(candidate for candidate in found.candidates if candidate.name == "schedule")
        after = task.run(made.delta.attach(task.model, check=False), "test")
        row = figures(task.logits["test"], after, task.labels("test"), task.targets)
        rows[theirs] = {"steps": ours, **_short(row), "overall_gain": row["overall"] - overall}
    return {"ours": rows, "dissertation": {k: v / 100 for k, v in pub.TABLE_3_9.items()}}


def table_3_10(bench: Bench) -> dict[str, Any]:
    """Tail classes of long-tailed data (:func:`long_tailed`), with and without oversampling underneath."""
    part = long_tailed(bench)
    counts = np.bincount(part.train.labels, minlength=(c := len(bench.train.classes or [])))
    out: dict[str, Any] = {}
    for size in (50, 100, 150) if c >= 300 else (c // 5, 2 * c // 5, 3 * c // 5):
        targets = [int(j) for j in np.argsort(counts)[:size]]
        found = _compare(part, targets, tuple(k for k in pub.TABLE_3_10 if k != "base"), f"table-3.10-{size}")
        out[str(size)] = {"base": found["base"]["target"], **{m["name"]: m["target"] for m in found["methods"]}}
    sizes = {name: int(n) for name, n in zip(bench.train.classes or [], counts)}
    return {"ours": out, "examples": sizes, "dissertation": {k: [v / 100 for v in row] for k, row in pub.TABLE_3_10.items()}}


def table_3_11(bench: Bench, iterations: int = 20) -> dict[str, Any]:
    """Times of one run: training, join, synaptic retraining, AAN, DA and WA per 1,000 iterations (with Table 4.6).

    CPU seconds; only ratios mean anything: all were taken in one process, one after the other.
    """
    task = bench.task([int(bench.order()[0])])
    x = task.train.batch([0, 0])[0]
    generator = torch.Generator().manual_seed(0)
    forms: dict[str, Callable[[], nn.Module]] = {
        "original": lambda: bench.model,
        "retraining": lambda: bench.model,
        "da": lambda: deepened(bench.model, x, 512, generator),
        "wa": lambda: widened(bench.model, x, 512, generator),
    }
    seconds: dict[str, float] = {}
    for name, make in forms.items():
        twin = replace(task, model=make(), training=replace(task.training, iterations=iterations, checkpoints=1))
        weight = _on_targets(task, 2.0) if name == "retraining" else None
        _train(replace(twin, training=replace(twin.training, iterations=3)), "warm", None)
        seconds[f"{name} / 1k"] = _timed(lambda twin=twin, weight=weight: _train(twin, "time", weight)) / iterations * 1000
    start = time.process_time()
    for part, _ in task.train.loader(128):
        with torch.inference_mode():
            task.model(part)
    seconds["forward pass over the data"] = time.process_time() - start
    seconds["join (all neurons, one target)"] = _timed(lambda: run("theta", replace(task, layers="stages")))
    table = task.table("train")
    some = table.features[:, :120]
    y = table.labels
    seconds["synaptic retraining (convex optimum)"] = _timed(lambda: fit_linear(some, table.logits, y, l2=1e-4))
    # The same synapses by the dissertation's SGD: what one of its iterations costs when it reads table T alone.
    mask = np.zeros((120, task.n_classes), dtype=bool)
    mask[: some.shape[1], task.targets[0]] = True
    sgd = SGDSettings(iterations=1000)
    spent = _timed(lambda: fit_sgd(some, table.logits, y, np.zeros((some.shape[1], task.n_classes)), mask[: some.shape[1]], sgd))
    seconds["synaptic retraining / 1k"] = spent
    one = AANSettings(hidden=96, epochs=1, batch=task.training.batch_size)
    steps = max(1, len(y) // task.training.batch_size)
    seconds["aan / 1k"] = _timed(lambda: fit_aan(table.features, table.logits, y, one)) / steps * 1000
    ratios = {k: v / seconds["original / 1k"] for k, v in seconds.items() if k.endswith("1k")}
    return {
        "seconds": seconds,
        "ratio_to_training": ratios,
        "join_in_forward_passes": seconds["join (all neurons, one target)"] / seconds["forward pass over the data"],
        "dissertation": {"3.11": pub.TABLE_3_11, "4.6": pub.TABLE_4_6},
    }


def table_4_2(bench: Bench | None = None) -> dict[str, Any]:
    """Parameters of DA, WA and AAN (Tables 4.1 to 4.3), counted; no data needed."""
    del bench
    out = {}
    x, generator = torch.randn(2, 3, 32, 32), torch.Generator().manual_seed(0)
    for name, (neurons, hidden, stages) in pub.TABLE_4_1.items():
        net = build(name, 10).eval()
        grouped = neurons * hidden // stages + hidden * 10
        out[name] = {
            "original": _count(net),
            "da": _count(deepened(net, x, 512, generator)),
            "wa": _count(widened(net, x, 512, generator)),
            "aan_grouped": grouped,
            "aan_dense": neurons * hidden + hidden * 10,
            "dissertation": {
                **dict(zip(("original", "da", "wa"), (1000 * v for v in pub.TABLE_4_2[name]))),
                "aan": 1000 * pub.TABLE_4_3[name],
            },
        }
    return {"ours": out}


def table_4_4(bench: Bench) -> dict[str, Any]:
    """Overall accuracy of DA, WA, AAN, join and synaptic retraining (with Table 4.5)."""
    worst = [int(bench.order()[0])]
    found = _compare(bench, worst, ("da", "wa", "theta", "retrain-1", "fit"), "table-4.4")
    found["methods"] += aans_for_all(bench.task(worst), bench.name)
    return {
        "base": found["base"]["overall"],
        "ours": {
            m["name"]: {"overall": m["overall"], "parameters": m["parameters"], "seconds": m["seconds"]}
            for m in found["methods"]
        },
        "dissertation": {k: dict(zip(("original", "da", "wa", "aan"), v)) for k, v in pub.TABLE_4_4.items()},
    }


TABLES: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "classes": table_classes,
    "3.1": table_3_1,
    "3.2": table_3_2,
    "3.3": table_3_3,
    "3.5": table_3_5,
    "3.6": table_3_6,
    "3.7": table_3_7,
    "3.8": table_3_8,
    "3.9": table_3_9,
    "3.10": table_3_10,
    "3.11": table_3_11,
    "4.2": table_4_2,
    "4.4": table_4_4,
}
SAME = {"3.4": "3.3", "4.1": "4.2", "4.3": "4.2", "4.5": "4.4", "4.6": "3.11"}
"""Tables that come out of the same run as another."""


def _compare(bench: Bench, targets: Sequence[int], methods: tuple[str, ...], name: str) -> dict[str, Any]:
    plan = Plan(tuple(targets), methods, 1, bench.seed, bench.training, limit=bench.limit, layers="stages", jobs=0)
    return compare(
        bench.model, bench.train, bench.test, plan, bench.out / name, say=lambda text: print(text, flush=True)
    )


def _row(m: dict[str, Any]) -> dict[str, Any]:
    kept = {k: m[k] for k in ("target", "overall", "E", "worst_drop", "seconds", "parameters", "reason")}
    return {**kept, "checkpoints": m.get("checkpoints")}


def _short(found: dict[str, Any]) -> dict[str, float]:
    return {k: found[k] for k in ("target", "target_gain", "overall", "E")}


def _pair(s: Any) -> dict[str, float]:
    return {"target": s.target, "overall": s.overall}


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _timed(function: Callable[[], Any]) -> float:
    """CPU seconds: other work on the machine must not count."""
    start = time.process_time()
    function()
    return time.process_time() - start
