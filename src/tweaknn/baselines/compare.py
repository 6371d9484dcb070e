"""Run many methods on the same splits and seeds; resumable, one method's failure costs no other's result."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from tweaknn.baselines.figures import row
from tweaknn.baselines.registry import Method, get, parse, run
from tweaknn.baselines.store import Store
from tweaknn.baselines.summary import summarise
from tweaknn.baselines.task import Task, check_targets, positions_of, stratified
from tweaknn.baselines.training import Training
from tweaknn.baselines.worker import Failed, Pool, TimedOut
from tweaknn.errors import InputError
from tweaknn.inputs import Examples
from tweaknn.join.run import Bar
from tweaknn.join.splits import holdout
from tweaknn.join.table import PooledTable
from tweaknn.network.fingerprint import fingerprint
from tweaknn.writing import plain

VERSION = 1
"""Of the result format; results of another version are refused in one sentence."""

Say = Callable[[str], None]


def no_bar(what: str, total: int) -> Any:
    """A progress bar that shows nothing."""
    return nullcontext(lambda done: None)


@dataclass(frozen=True)
class Plan:
    """What to compare.

    ``targets``: names or positions. ``methods``: names. ``seeds``: number of repetitions (splits and everything
    random). ``validation_share``: of the train data, when no validation data is given. ``limit``: validation examples
    on which changed networks are judged. ``time_limit``: seconds a method may take in one seed (None: no limit).
    ``jobs``: methods run at once in processes of their own; 0 runs them in this process, one after another.
    ``collect``: run nothing, only gather what an earlier, perhaps interrupted, comparison has stored.
    ``tolerance``: what floors and overall may give up, a fraction.

    Raises:
        InputError: no seed, or a method that does not exist.
    """

    targets: tuple[int | str, ...]
    methods: tuple[str, ...]
    seeds: int = 1
    first_seed: int = 0
    training: Training = field(default_factory=Training)
    validation_share: float = 0.5
    limit: int | None = 5000
    batch_size: int = 128
    layers: str = "all"
    time_limit: float | None = None
    jobs: int = 1
    collect: bool = False
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise InputError(f"At least one seed is needed, not {self.seeds}.")
        parse(list(self.methods))


def compare(
    model: nn.Module,
    train: Examples,
    test: Examples,
    plan: Plan,
    out: Path,
    *,
    validation: Examples | None = None,
    groups: np.ndarray | None = None,
    say: Say = lambda text: None,
    track: Callable[[int, str, dict[str, Any]], None] | None = None,
    live: str | None = None,
    source: dict[str, Any] | None = None,
    bar: Bar = no_bar,
) -> dict[str, Any]:
    """Run ``plan`` and return the result (also ``out/result.json`` and ``out/result.parquet``).

    Each (seed, method) is stored as soon as it is done, with its logits; running again continues, reusing what was
    made with
    the same network, data and settings. A method that does not apply, fails, or runs out of time is a row with its
    reason.
    ``track(seed, method, figures)`` is called after each run (live views); ``live``: where trainings tell how they go on
    (:func:`tweaknn.tracking.follow`). ``source``: words for the report (specs).
    ``bar(what, total)``: a progress bar for the passes over the data.

    Raises :class:`~tweaknn.errors.InputError` for unknown targets, and when ``out`` cannot be written.
    """
    store = Store(out, VERSION)
    tables = Tables(model, store, plan, bar)
    base = {"train": tables.logits(train), "test": tables.logits(test)}
    if validation is not None:
        base["validation"] = tables.logits(validation)
    targets = positions_of(plan.targets, test.classes, base["test"].shape[1])
    methods = parse(list(plan.methods))
    identity = {
        "version": VERSION,
        "base": fingerprint(model),
        "train": train.content_hash(),
        "validation": None if validation is None else validation.content_hash(),
        "test": test.content_hash(),
        "training": plan.training.to_dict(),
        "share": plan.validation_share,
        "limit": plan.limit,
        "layers": plan.layers,
    }
    if plan.tolerance:  # only then: what earlier comparisons have stored keeps its key
        identity["tolerance"] = plan.tolerance
    with Pool(plan.jobs, plan.time_limit, scratch=store.folder, say=say) as pool:
        for seed in range(plan.first_seed, plan.first_seed + plan.seeds):
            task = _task(model, train, validation, test, base, targets, plan, seed, groups, tables, live)
            _run_seed(task, methods, identity, plan, store, pool, say, track)
    result = plain(summarise(store, methods, targets, test, base["test"], plan, identity, source or {}))
    store.write_result(result)
    return result


def key_of(identity: dict[str, Any], name: str, seed: int, targets: Sequence[int]) -> str:
    """Which runs may be reused for one another: same network, data, settings, seed, method and, where it matters,
    targets."""
    relevant = {**identity, "method": name, "seed": seed}
    if not get(name).trains:
        relevant["training"] = identity["training"]["penalties"]  # nothing else of it reaches this method
    if get(name).depends_on_targets:
        relevant["targets"] = list(targets)
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()[:24]


def _task(
    model: nn.Module,
    train: Examples,
    validation: Examples | None,
    test: Examples,
    base: dict[str, np.ndarray],
    targets: tuple[int, ...],
    plan: Plan,
    seed: int,
    groups: np.ndarray | None,
    tables: Tables,
    live: str | None,
) -> Task:
    if validation is None:
        first, second = holdout(train.labels, share=plan.validation_share, groups=groups, seed=seed)
        parts = {"train": (train, first), "validation": (train, second)}
        logits = {name: base["train"][at] for name, (_, at) in parts.items()}
    else:
        every = {"train": train, "validation": validation}
        parts = {name: (examples, np.arange(len(examples))) for name, examples in every.items()}
        logits = {name: base[name] for name in parts}
    parts["test"] = (test, np.arange(len(test)))
    logits["test"] = base["test"]
    examples = {name: whole.subset(at) for name, (whole, at) in parts.items()}
    check_targets(targets, {name: part.labels for name, part in examples.items()}, test.classes)
    return Task(
        model,
        examples["train"],
        examples["validation"],
        examples["test"],
        targets,
        logits,
        stratified(examples["validation"].labels, plan.limit, seed),
        plan.training,
        seed,
        plan.batch_size,
        layers=plan.layers,
        cache=tables.store.folder / "tables",
        tolerance=plan.tolerance,
        live=live,
        _read_table=partial(_rows, tables, parts),
    )


def _rows(tables: Tables, parts: dict[str, tuple[Examples, np.ndarray]], split: str) -> PooledTable:
    whole, at = parts[split]
    return tables.table(whole).rows(at)


def _run_seed(
    task: Task,
    methods: Sequence[str],
    identity: dict[str, Any],
    plan: Plan,
    store: Store,
    pool: Pool,
    say: Say,
    track: Callable[[int, str, dict[str, Any]], None] | None,
) -> None:
    waiting = []
    for name in methods:
        key = key_of(identity, name, task.seed, task.targets)
        store.expect(name, task.seed, key)
        if store.done(name, task.seed, task.targets):
            say(f"seed {task.seed} {name}: already done")
        elif plan.collect and store.logits(key) is None:
            say(f"seed {task.seed} {name}: not there")
        else:
            waiting.append((name, key))
    jobs = [(name, partial(_one, store=store, method=get(name), key=key)) for name, key in waiting]
    for name, _, answer in pool.run(task, jobs):
        if isinstance(answer, dict):
            found = answer
        else:
            found = {"name": name, "applicable": answer.applicable, "reason": str(answer)}
        store.save(name, task.seed, task.targets, found)
        say(f"seed {task.seed} {name}: {_said(found)}")
        if track is not None:
            track(task.seed, name, found)


def _one(task: Task, *, store: Store, method: Method, key: str) -> dict[str, Any]:
    """One method's row; its logits are kept before anything else can go wrong."""
    outcome = store.logits(key)
    if outcome is None:
        outcome = run(method, task)
        store.save_logits(key, outcome)
    return {"name": method.name, "applicable": True, "reason": "", **row(task, outcome)}


def _said(found: dict[str, Any]) -> str:
    if found["reason"]:
        return found["reason"]
    return (
        f"target {100 * found['target']:.1f} ({100 * found['target_gain']:+.1f}), overall {100 * found['overall']:.1f}, "
        f"E {100 * found['E']:.2f}, {found['seconds']:.0f} s"
    )


class Tables:
    """Base logits and pooled neurons of whole data sets, read once and kept beside the results."""

    def __init__(self, model: nn.Module, store: Store, plan: Plan, bar: Bar) -> None:
        self.model, self.store, self.plan, self.bar = model, store, plan, bar
        self.print = fingerprint(model)
        self.kept: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        # In another process the tables are read from the store again, and nobody watches a bar there.
        return {**self.__dict__, "kept": {}, "bar": no_bar}

    def logits(self, examples: Examples) -> np.ndarray:
        """``(n, c)``; comes with the table, as both take the same pass."""
        return self.table(examples).logits

    def table(self, examples: Examples) -> Any:
        """The pooled table of a data set."""
        from tweaknn.baselines.task import pooled

        content = f"{self.print}:{examples.content_hash()}:{self.plan.layers}"
        key = hashlib.sha256(content.encode()).hexdigest()[:24]
        if key not in self.kept:
            stored = self.store.table(key, self.model, examples, self.plan.layers)
            if stored is None:
                with self.bar(f"Reading {examples.name}", len(examples)) as progress:
                    stored = pooled(self.model, examples, self.plan.batch_size, self.plan.layers, progress)
                self.store.save_table(key, stored)
            self.kept[key] = stored
        return self.kept[key]


def default_jobs(device: str = "cpu") -> int:
    """Cores this process may use; one on a GPU, whose memory several networks would have to share."""
    if not device.startswith("cpu"):
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


__all__ = ["Failed", "Plan", "TimedOut", "compare", "default_jobs", "key_of"]
