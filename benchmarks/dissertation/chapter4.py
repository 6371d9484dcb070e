"""Augmentation with active neurons as chapter 4 has it: for every class at once, judged by overall accuracy."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.dissertation import published as pub
from benchmarks.dissertation.silent import Silent
from tweaknn.baselines import Task
from tweaknn.fit.aan import AANSettings, fit_aan
from tweaknn.join.dissertation import read_positions
from tweaknn.measure import negative_log_likelihood
from tweaknn.network.reader import Reader
from tweaknn.theta.observe import observe


def aans_for_all(task: Task, network: str) -> list[dict[str, Any]]:
    """Chapter 4's AAN: every class a target. On the most active neurons of all classes, as many and with as many hidden neurons in groups
    as Table 4.1 says, and on the mean of every channel; the damping of the base's logits and the epoch are chosen on validation."""
    pooled = tuple(task.table(split) for split in ("train", "validation", "test"))
    neurons, hidden, _ = pub.TABLE_4_1.get(network, pub.TABLE_4_1["cnn3"])
    c = task.n_classes
    reader = Reader(task.model, task.train.batch([0])[0], "stages")
    seen = observe(reader, task.train.loader(128), list(range(c)))
    ranked = list(seen.best(neurons // c, list(range(c))).values())
    layer = np.concatenate([one.layer for one in ranked])
    active = tuple(
        replace(t, features=np.concatenate(read_positions(reader, part, 128, ranked, Silent), axis=1))
        for t, part in zip(pooled, (task.train, task.validation, task.test))
    )
    groups = [np.flatnonzero(layer == k) for k in np.unique(layer)]
    return [
        _aan("aan", task.seed, active, groups, hidden),
        _aan("aan on channel means", task.seed, pooled, None, None),
    ]


def _aan(
    name: str, seed: int, tables: tuple[Any, Any, Any], groups: list[np.ndarray] | None, hidden: int | None
) -> dict[str, Any]:  # fmt: skip
    """One AAN, the damping by the log loss on validation."""
    train, held, test = tables
    start = time.perf_counter()
    batch = min(512, max(32, len(train.labels) // 20))
    tried = []
    for damping in (1.0, 0.5, 0.2):
        settings = AANSettings(seed=seed, batch=batch, hidden=hidden, damping=damping)
        fit = fit_aan(
            train.features, train.logits, train.labels, settings, groups=groups,
            validation=(held.features, held.logits, held.labels),
        )  # fmt: skip
        tried.append((negative_log_likelihood(fit.logits(held.features, held.logits), held.labels), damping, fit))
    _, damping, fit = min(tried, key=lambda t: t[0])
    overall = float((fit.logits(test.features, test.logits).argmax(1) == test.labels).mean())
    seconds = time.perf_counter() - start
    return {"name": name, "overall": overall, "parameters": fit.parameters, "seconds": seconds, "damping": damping}
