"""One function a figure of the dissertation: the numbers behind it. :mod:`benchmarks.dissertation.drawing` draws them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from benchmarks.dissertation.bases import long_tailed
from benchmarks.dissertation.networks import build
from benchmarks.dissertation.silent import Silent
from benchmarks.dissertation.tables import Bench
from tweaknn.baselines import Task, run
from tweaknn.baselines.figures import figures
from tweaknn.baselines.retraining import _on_targets, _train, oversampled_base, reinitialised, with_dropout
from tweaknn.baselines.task import seeded, stratified
from tweaknn.baselines.training import fresh_copy, train
from tweaknn.fit.sgd import SGDSettings, fit_sgd
from tweaknn.join.dissertation import read_positions
from tweaknn.measure import per_class_accuracy
from tweaknn.network.outputs import collect_logits
from tweaknn.network.reader import Reader
from tweaknn.theta.observe import Observation, Ranked, observe

MOMENTS = 12
"""Moments of a training at which it is measured."""

LOOKED_AT = 2000
"""Test examples on which curves are measured: many moments, each a pass."""


def figure_1_1(bench: Bench) -> dict[str, Any]:
    """Accuracy of each class: untouched, retrained with penalties of 1.3 and 100, joined."""
    task = _worst(bench)
    rows = {"untouched": _accuracies(task.logits["test"], task)}
    for penalty in (1.3, 100.0):
        trained = _train(task, "retraining-1", _on_targets(task, penalty))
        rows[f"retraining, penalty {penalty:g}"] = _accuracies(task.run(trained.model, "test"), task)
    rows["synaptic join"] = _accuracies(run("theta", task).test, task)
    return _classes(task, rows)


def figure_3_1(bench: Bench) -> dict[str, Any]:
    """Curves of overall and class accuracy: (a) training from the beginning, (b) retraining with penalties 1.3 and 30."""
    task = _worst(bench)
    steps = bench.training.steps(len(task.train))
    whole = _curve(task, "3.1a", None, reinitialised(task.model, task.seed), 5 * steps, bench.training.scratch_lr)
    rows = {f"penalty {p:g}": _curve(task, "3.1b", _on_targets(task, p), None, steps) for p in (1.3, 30.0)}
    return {**_classes(task, {}), "training": whole, "retraining": rows}


def figure_3_3(bench: Bench) -> dict[str, Any]:
    """E_w and E_c of four synapses of rising count."""
    task, reader, seen = _seen(bench)
    ranked = seen.best(400, list(task.targets))[task.targets[0]]
    if not len(ranked.layer):
        return {"synapses": [], "note": "no synapse corrects a mistake"}
    picks = np.unique(np.linspace(len(ranked.layer) - 1, 0, 4).round().astype(int))[::-1]
    some = Ranked(ranked.target, *(a[picks] for a in (ranked.layer, ranked.index, ranked.weight, ranked.count)), False)
    values = read_positions(reader, task.train, 128, [some], Silent)[0]
    logits, labels, target = task.logits["train"], task.labels("train"), task.targets[0]
    predicted, margin = logits.argmax(1), logits.max(1) - logits[:, target]
    out = []
    for k in range(len(picks)):
        v = values[:, k]
        with np.errstate(divide="ignore", invalid="ignore"):
            e = np.where(v != 0, margin / v, np.inf)
        out.append(
            {
                "layer": reader.layers[int(some.layer[k])].name,
                "index": int(some.index[k]),
                "count": int(some.count[k]),
                "threshold": float(some.weight[k]),
                "E_w": _finite(e[(labels == target) & (predicted != target)]),
                "E_c": _finite(e[(labels != target) & (predicted == labels)]),
            }
        )
    return {"target": task.classes[target], "synapses": out}


def figure_3_4(bench: Bench) -> dict[str, Any]:
    """How many synapses have which count, layer by layer; an exponential and a power law fitted to the counts above 0."""
    task, reader, seen = _seen(bench)
    layers = {}
    for layer, counts in _by_layer(seen, reader).items():
        values, times = np.unique(counts, return_counts=True)
        layers[layer] = dict(zip(map(str, values.tolist()), times.tolist()))
    return {"target": task.classes[task.targets[0]], "layers": layers, "tails": _tails(seen, reader)}


def figure_3_5(bench: Bench) -> dict[str, Any]:
    """Target and overall accuracy (validation) for n = 1 ... 150 at scales 1, 20 and 40."""
    task, ranked, values = _ranked(bench, 150)
    rows = [
        {"n": int(n), "scale": scale, **_joined(task, ranked, values, int(n), scale)}
        for scale in (1.0, 20.0, 40.0)
        for n in np.unique(np.geomspace(1, len(ranked.weight), 24).round().astype(int))
    ]
    return {"target": task.classes[task.targets[0]], "base": _joined(task, ranked, values, 1, 0.0), "points": rows}


def figure_3_6(bench: Bench) -> dict[str, Any]:
    """Target and overall accuracy (validation) for scales of 0 to 80 at n = 120."""
    task, ranked, values = _ranked(bench, 120)
    n = len(ranked.weight)
    points = [{"scale": float(s), **_joined(task, ranked, values, n, float(s))} for s in np.linspace(0, 80, 41)]
    return {"target": task.classes[task.targets[0]], "n": n, "points": points}


def figure_3_7(bench: Bench) -> dict[str, Any]:
    """Spread of each class's accuracy over a retraining (1, 3, 5, synaptic 2), calibration over μ, join over scale."""
    task = _worst(bench)
    boxes = {k: v for k, v in _retrainings(bench, task).items() if k in ("retraining-1", "retraining-3", "retraining-5")}
    boxes["synaptic retraining-2"] = _synaptic(task)["moments"]
    mus = []
    for mu in np.linspace(0.02, 0.98, 25):
        z = task.logits["test"].copy()
        z[:, list(task.targets)] += np.float32(np.log(mu / (1 - mu)))
        mus.append({"mu": float(mu), **_accuracies(z, task)})
    found, ranked, values = _ranked(bench, 120, "test")
    scales = []
    for scale in np.linspace(0, 60, 13):
        z = found.logits["test"] + _added(found, ranked, values, len(ranked.weight), float(scale))
        scales.append({"scale": float(scale), **_accuracies(z, found)})
    return {**_classes(task, {}), "boxes": boxes, "calibration": mus, "join": scales}


def figure_3_8(bench: Bench, names: tuple[str, ...] = ("cnn3", "nin", "resnet20", "densenet40")) -> dict[str, Any]:
    """Parameters against active neurons: the given network, and the others as far as they are here (untrained ones are marked)."""
    rows = {}
    few = bench.train.subset(stratified(bench.train.labels, min(len(bench.train), 500), bench.seed))
    c = len(bench.train.classes or [])
    for name in dict.fromkeys((bench.name, *names)):
        trained = name == bench.name
        net = bench.model if trained else build(name, c).eval()
        data = bench.train if trained else few
        reader = Reader(net, data.batch([0])[0], "stages")
        seen = observe(reader, data.loader(64), list(range(c)))
        rows[name] = {
            "trained": trained,
            "parameters": sum(p.numel() for p in net.parameters()),
            "neurons": reader.neurons,
            "active": float(np.mean(seen.active_counts())),
        }
    return {"networks": rows}


def figure_3_9(bench: Bench) -> dict[str, Any]:
    """Where the 120 chosen neurons and all active ones sit."""
    task, reader, seen = _seen(bench)
    best = seen.best(120, list(task.targets))[task.targets[0]]
    largest = int(seen.largest_counts()[0])
    rows = {}
    for position, (layer, counts) in enumerate(_by_layer(seen, reader).items()):
        active = int((2 * counts >= largest).sum()) if largest else 0
        chosen = int((best.layer == position).sum())
        rows[layer] = {"neurons": len(counts), "active": active, "share": active / len(counts), "chosen": chosen}
    return {"target": task.classes[task.targets[0]], "layers": rows}


def figure_3_10(bench: Bench) -> dict[str, Any]:
    """Points each class wins by oversampling and by a join for the tail classes of long-tailed data."""
    part = long_tailed(bench)
    counts = np.bincount(part.train.labels, minlength=len(part.train.classes or []))
    tail = [int(j) for j in np.argsort(counts)[: 50 if len(counts) >= 300 else max(1, len(counts) // 5)]]
    task = part.task(tail)
    before = _accuracies(task.logits["test"], task)["per_class"]
    over = _accuracies(task.run(oversampled_base(task)[0], "test"), task)["per_class"]
    joined = _accuracies(run("theta", task).test, task)["per_class"]
    order = [int(j) for j in np.argsort(-counts)]
    return {
        "tail": [task.classes[j] for j in tail],
        "classes": [task.classes[j] for j in order],
        "examples": counts[order].tolist(),
        "oversampling": [over[j] - before[j] for j in order],
        "synaptic join": [joined[j] - before[j] for j in order],
    }


def figure_3_11(bench: Bench) -> dict[str, Any]:
    """Accuracy against iterations and CPU seconds: retraining-1 and synaptic retraining-2 (SGD, as there)."""
    task = _worst(bench)
    steps = bench.training.steps(len(task.train))
    normal = _curve(task, "retraining-1", _on_targets(task, 2.0), None, steps)
    return {"target": task.classes[task.targets[0]], "retraining-1": normal, "synaptic retraining-2": _synaptic(task)}


def figure_6_1(bench: Bench) -> dict[str, Any]:
    """Spread of each class's accuracy over the second half of retrainings 1 to 5."""
    task = _worst(bench)
    return {**_classes(task, {"untouched": _accuracies(task.logits["test"], task)}), "boxes": _retrainings(bench, task)}


def figure_6_2(bench: Bench) -> dict[str, Any]:
    """Mean accuracy of each class over the second half of retrainings 1 to 5."""
    return means_of(figure_6_1(bench))


def means_of(found: dict[str, Any]) -> dict[str, Any]:
    """Figure 6.2 out of what Figure 6.1 found: the same trainings."""
    means = {
        name: {key: np.mean([m[key] for m in moments], axis=0).tolist() for key in ("per_class", "overall", "target")}
        for name, moments in found.pop("boxes").items()
    }
    return {**found, "rows": {**found["rows"], **means}}


FIGURES: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "fig1.1": figure_1_1,
    "fig3.1": figure_3_1,
    "fig3.3": figure_3_3,
    "fig3.4": figure_3_4,
    "fig3.5": figure_3_5,
    "fig3.6": figure_3_6,
    "fig3.7": figure_3_7,
    "fig3.8": figure_3_8,
    "fig3.9": figure_3_9,
    "fig3.10": figure_3_10,
    "fig3.11": figure_3_11,
    "fig6.1": figure_6_1,
    "fig6.2": figure_6_2,
}


# -- what several figures need --------------------------------------------------------------------------------


def _worst(bench: Bench) -> Task:
    return bench.task([int(bench.order()[0])])


def _classes(task: Task, rows: dict[str, Any]) -> dict[str, Any]:
    return {"classes": task.classes, "target": task.classes[task.targets[0]], "rows": rows}


def _accuracies(logits: np.ndarray, task: Task, labels: np.ndarray | None = None) -> dict[str, Any]:
    labels = task.labels("test") if labels is None else labels
    predicted = logits.argmax(1)
    per_class, _ = per_class_accuracy(predicted, labels, task.n_classes)
    return {
        "per_class": per_class.tolist(),
        "overall": float((predicted == labels).mean()),
        "target": float(np.mean(per_class[list(task.targets)])),
    }


def _looked_at(task: Task) -> np.ndarray:
    return stratified(task.labels("test"), LOOKED_AT, task.seed)


def _curve(
    task: Task, name: str, class_weight: np.ndarray | None, model: nn.Module | None, steps: int, lr: float | None = None
) -> list[dict[str, Any]]:
    """Accuracies at :data:`MOMENTS` moments of a training, with the CPU seconds spent in training alone."""
    model = fresh_copy(task.model) if model is None else model
    rows, labels = _looked_at(task), task.labels("test")
    at = set(np.unique(np.linspace(1, steps, MOMENTS).round().astype(int)).tolist())
    out: list[dict[str, Any]] = []
    aside = 0.0
    start = time.process_time()

    def watch(step: int) -> None:
        nonlocal aside
        if step not in at:
            return
        now = time.process_time()
        was = model.training
        logits, _ = collect_logits(model.eval(), task.test.loader(task.batch_size, rows))
        model.train(was)
        out.append({"iteration": step, "seconds": now - start - aside, **_accuracies(logits, task, labels[rows])})
        aside += time.process_time() - now

    train(
        model, task.train, replace(task.training, checkpoints=1), seeded(task, name),
        class_weight=class_weight, iterations=steps, lr=lr, watch=watch,
    )  # fmt: skip
    return out


def _retrainings(bench: Bench, task: Task) -> dict[str, list[dict[str, Any]]]:
    """The second half of the five retrainings, moment by moment."""
    steps = bench.training.steps(len(task.train))
    two, other = _on_targets(task, 2.0), np.full(task.n_classes, 0.9)
    other[list(task.targets)] = 1.0
    draws = np.where(np.isin(task.train.labels, task.targets), 2.0, 1.0)
    more = task.train.subset(np.repeat(np.arange(len(draws)), draws.astype(int)))
    wanted: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "retraining-1": lambda: _curve(task, "retraining-1", two, None, steps),
        "retraining-2": lambda: _curve(task, "retraining-2", other, None, steps),
        "retraining-3": lambda: _curve(
            task, "retraining-3", two, reinitialised(task.model, task.seed), 3 * steps, task.training.scratch_lr
        ),
        "retraining-4": lambda: _curve(task, "retraining-4", two, with_dropout(task.model, task), steps),
        "retraining-5": lambda: _curve(replace(task, train=more), "retraining-5", None, None, steps),
    }
    made = {name: make() for name, make in wanted.items()}
    return {name: moments[len(moments) // 2 :] for name, moments in made.items()}


def _synaptic(task: Task) -> dict[str, Any]:
    """Synaptic retraining-2 by SGD on table T, the targets' loss doubled: accuracies after so many iterations."""
    reader = task.reader()
    seen = observe(reader, task.train.loader(task.batch_size), list(task.targets))
    ranked = [seen.best(120, list(task.targets))[j] for j in task.targets]
    values = {s: np.concatenate(read_positions(reader, task.examples(s), 128, ranked, Silent), 1) for s in ("train", "test")}
    mask = np.zeros((values["train"].shape[1], task.n_classes), dtype=bool)
    first = np.zeros(mask.shape)
    start = 0
    for j, best in zip(task.targets, ranked):
        mask[start : start + len(best.weight), j] = True
        first[start : start + len(best.weight), j] = best.weight / max(1, len(best.weight))
        start += len(best.weight)
    weight = np.where(np.isin(task.labels("train"), task.targets), 2.0, 1.0)
    moments, labels = [], task.labels("test")
    for iterations in (50, 100, 200, 400, 800):
        begin = time.process_time()
        settings = SGDSettings(iterations=iterations, seed=task.seed)
        found = fit_sgd(values["train"], task.logits["train"], task.labels("train"), first, mask, settings, sample_weight=weight)
        spent = time.process_time() - begin
        z = task.logits["test"] + (values["test"] @ found).astype(np.float32)
        moments.append({"iteration": iterations, "seconds": spent, **_accuracies(z, task, labels)})
    return {"synapses": int(mask.sum()), "moments": moments}


def _seen(bench: Bench) -> tuple[Task, Reader, Observation]:
    task = _worst(bench)
    reader = Reader(bench.model, task.train.batch([0])[0], "stages")
    return task, reader, observe(reader, task.train.loader(128), list(task.targets))


def _by_layer(seen: Observation, reader: Reader) -> dict[str, np.ndarray]:
    parts: dict[str, list[np.ndarray]] = {layer.name: [] for layer in reader.layers}
    for block, part in seen.parts():
        parts[reader.layers[block.layer].name].append(part.count[0])
    return {name: np.concatenate(blocks) for name, blocks in parts.items() if blocks}


def _tails(seen: Observation, reader: Reader) -> dict[str, float]:
    """Mean log likelihood a synapse of counts above 0 under a geometric law and a (truncated) power law, each at its best."""
    counts = np.concatenate(list(_by_layer(seen, reader).values()))
    counts = counts[counts > 0].astype(float)
    if len(counts) < 10:
        return {}
    p = 1 / counts.mean()
    geometric = float(np.mean(np.log(p) + (counts - 1) * np.log(max(1 - p, 1e-12))))
    support = np.arange(1, counts.max() + 1)
    powers = [np.mean(-a * np.log(counts)) - np.log((support**-a).sum()) for a in np.linspace(0.2, 6, 59)]
    return {"n": len(counts), "exponential": geometric, "power law": float(max(powers))}


def _ranked(bench: Bench, most: int, split: str = "validation") -> tuple[Task, Ranked, np.ndarray]:
    task, reader, seen = _seen(bench)
    ranked = seen.best(most, list(task.targets))[task.targets[0]]
    return task, ranked, read_positions(reader, task.examples(split), 128, [ranked], Silent)[0]


def _added(task: Task, ranked: Ranked, values: np.ndarray, n: int, scale: float) -> np.ndarray:
    """What the first ``n`` synapses add at ``scale``: weight = threshold / n * scale."""
    out = np.zeros((len(values), task.n_classes), dtype=np.float32)
    out[:, ranked.target] = values[:, :n] @ (np.asarray(ranked.weight[:n]) / max(n, 1) * scale).astype(np.float32)
    return out


def _joined(task: Task, ranked: Ranked, values: np.ndarray, n: int, scale: float) -> dict[str, float]:
    z = task.logits["validation"] + _added(task, ranked, values, n, scale)
    found = figures(task.logits["validation"], z, task.labels("validation"), task.targets)
    return {k: found[k] for k in ("target", "overall", "E")}


def _finite(values: np.ndarray) -> list[float]:
    return [round(float(v), 5) for v in values[np.isfinite(values)]]
