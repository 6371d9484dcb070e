"""This package's own methods behind the rivals' interface.

``theta``, ``retrain-1`` and ``retrain-2`` are the dissertation's, exactly; ``fit``, ``aan`` and ``join`` go through
:class:`~tweaknn.join.run.SynapticJoin`, so that what is compared is what the command hands over.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from tweaknn.baselines.outcome import Outcome
from tweaknn.baselines.registry import method
from tweaknn.baselines.task import Task
from tweaknn.delta import Delta
from tweaknn.errors import DeltaError
from tweaknn.fit.convex import fit_path
from tweaknn.join.dissertation import theta_candidates
from tweaknn.join.promise import Promise
from tweaknn.join.run import SynapticJoin
from tweaknn.join.setting import Candidate, Setting
from tweaknn.join.table import PooledTable, read_values
from tweaknn.measure import negative_log_likelihood
from tweaknn.network.fingerprint import fingerprint
from tweaknn.network.reader import Reader
from tweaknn.writing import plain

_NO_PENALTY = 1e-6  # synaptic retraining has no L2 in the dissertation; this much makes the optimum unique


@method("theta", "the dissertation's join: Algorithm 1, n and scale on validation", ours=True)
def theta(task: Task) -> Outcome:
    """The dissertation's join exactly, under its own promise (overall not below the base's)."""
    delta, notes = _theta(task)
    return _delta_outcome(task, delta, notes)


@method("retrain-1", "synaptic retraining: the join's synapses at their convex optimum", ours=True)
def retrain_1(task: Task) -> Outcome:
    """Synaptic retraining-1 (section 3.2.4)."""
    return _retrained(task, 1.0)


@method("retrain-2", "synaptic retraining with the targets' loss doubled", ours=True)
def retrain_2(task: Task) -> Outcome:
    """Synaptic retraining-2 (section 3.2.4)."""
    return _retrained(task, 2.0)


@method("aan", "a small network on active neurons, added to the logits (chapter 4), under floors", ours=True)
def aan(task: Task) -> Outcome:
    """``tweaknn join --method aan``: the same table, fit, strength and operating point, whatever the controls do."""
    return _joined(task, "aan")


@method("fit", "pooled neurons of all layers, convex fit, under floors", ours=True)
def fit(task: Task) -> Outcome:
    """``tweaknn join --method fit``, whatever the controls do."""
    return _joined(task, "fit")


@method("join", "what `tweaknn join` hands over: validation chooses, controls included", ours=True)
def join(task: Task) -> Outcome:
    """``tweaknn join`` with its defaults. Where it finds nothing that helps it hands over nothing: the base."""
    return _joined(task, None)


def _joined(task: Task, name: str | None) -> Outcome:
    """A join as the command makes it; ``name``: the candidate that is taken, None for the one it hands over."""
    task.reader()  # says so where the method does not apply
    found = SynapticJoin(
        method=name or "best",
        promise=Promise("floors", tolerance=task.tolerance),
        layers=task.layers,
        seed=task.seed,
        batch_size=task.batch_size,
        table=None if task.cache is None else task.cache / "T",
    ).fit(
        task.model,
        task.train.subset(_resampled(task)) if task.oversample else task.train,
        task.validation,
        targets=list(task.targets),
        classes=task.classes,
    )
    if name is None and found.delta is None:
        return Outcome(task.judged()[0], task.logits["test"], 0, {"chosen": "nothing", "why": found.sentence})
    candidate = found.best if name is None else next(c for c in found.candidates if c.name == name)
    settings = {**candidate.notes, **({"chosen": candidate.name} if name is None else {})}
    return _delta_outcome(task, candidate.delta, settings, candidate.logits[task.evaluation])


def setting_of(task: Task, promise: Promise) -> Setting:
    """What the join's candidates need, from the task's tables."""
    if task.oversample:
        rows = _resampled(task)
        train = task.table("train").rows(rows)
    else:
        train = task.table("train")
    return Setting(train, task.table("validation"), task.targets, task.classes, promise, frame_of(task), task.seed)


def frame_of(task: Task) -> Delta:
    """A delta without terms for the task's base."""
    x = task.train.batch([0])[0]
    reader = task.reader()
    return Delta(
        terms=(),
        bias=torch.zeros(task.n_classes),
        base=fingerprint(task.model),
        input_shape=tuple(x.shape[1:]),
        input_dtype=str(x.dtype).removeprefix("torch."),
        classes=tuple(task.classes),
        how=reader.how,
    )


def _resampled(task: Task) -> np.ndarray:
    """Rows of the train split drawn so that every class comes equally often (Table 3.10)."""
    rng = np.random.default_rng([task.seed, 13])
    weight = task.weights()
    assert weight is not None
    return np.sort(rng.choice(len(weight), len(weight), p=weight / weight.sum()))


def _theta(task: Task) -> tuple[Delta, dict[str, Any]]:
    """The join's delta, from the task's cache when another method has asked for it before."""
    path = None
    if task.cache is not None:
        parts = (
            fingerprint(task.model),
            task.train.content_hash(),
            task.validation.content_hash(),
            f"{task.targets} {task.layers} {task.seed} {task.oversample}",
        )
        path = task.cache / f"theta.{hashlib.sha256(' '.join(parts).encode()).hexdigest()[:24]}.delta"
        if path.is_file():
            try:
                kept = Delta.load(str(path))
                return kept, dict(kept.meta)
            except DeltaError:
                path.unlink()  # cut off by an interruption: made again
    candidate = _run_theta(task)
    notes = plain(candidate.notes)
    if path is not None:
        replace(candidate.delta, meta=notes).save(str(path))
    return candidate.delta, notes


def _run_theta(task: Task) -> Candidate:
    join = SynapticJoin(
        method="theta", promise="overall", layers=task.layers, seed=task.seed, batch_size=task.batch_size
    )
    setting = setting_of(task, Promise("overall"))
    reader = task.reader()
    train = task.train.subset(_resampled(task)) if task.oversample else task.train
    found = theta_candidates(join, setting, reader, train, task.validation)
    return next(c for c in found if c.name == "theta")


def _retrained(task: Task, target_weight: float) -> Outcome:
    """The join's synapses, their weights solved for on table T instead of set from thresholds.

    The problem is convex with the base's logits as offsets; only the chosen synapses (and no bias) take part. Penalties
    are tried on validation log loss, beginning at practically none.
    """
    chosen, _ = _theta(task)
    if not chosen.terms:
        return _delta_outcome(task, chosen, {"note": "the join added no synapse"})
    reader = task.reader()
    values = {split: neurons_of(task, reader, chosen, split) for split in ("train", "validation", "test")}
    heads = [term.head for term in chosen.terms]
    mask = np.zeros((values["train"].shape[1], task.n_classes), dtype=bool)
    start = 0
    for term, head in zip(chosen.terms, heads, strict=True):
        weight = getattr(head, "weight", None)
        assert weight is not None, "the dissertation's join is linear"
        rows, columns = np.nonzero(weight.numpy())
        mask[start + rows, head.columns.numpy()[columns]] = True
        start += term.neurons
    y = task.labels("train")
    weights = np.where(np.isin(y, task.targets), target_weight, 1.0)
    own = task.weights()
    weights = weights if own is None else weights * own
    fits = fit_path(
        values["train"], task.logits["train"], y, (1e-2, 1e-3, 1e-4, _NO_PENALTY), mask=mask, sample_weight=weights, bias=False
    )  # fmt: skip
    labels = task.labels("validation")
    losses = [negative_log_likelihood(f.logits(values["validation"], task.logits["validation"]), labels) for f in fits]
    best = fits[int(np.argmin(losses))]
    evaluation = best.logits(values["validation"][task.evaluation], task.judged()[0])
    test = best.logits(values["test"], task.logits["test"])
    settings = {"synapses": int(mask.sum()), "l2": best.l2, "target_weight": target_weight}
    return Outcome(evaluation, test, int(mask.sum()), settings)


def neurons_of(task: Task, reader: Reader, delta: Delta, split: str) -> np.ndarray:
    """Values ``(n, f)`` of all neurons a delta reads, in its order, in one pass over a split."""
    reads = [read for term in delta.terms for read in term.reads]
    return read_values(reader, task.examples(split).loader(task.batch_size), reads)


def apply(delta: Delta, table: PooledTable) -> np.ndarray | None:
    """Logits ``(n, c)`` of base + delta from a pooled table, or None when the delta reads neurons it does not
    hold."""
    logits = torch.from_numpy(table.logits.copy()) + delta.bias
    spans = dict(zip([(r.layer, r.reduction) for r in table.reads], table.spans(), strict=True))
    for term in delta.terms:
        blocks = []
        for read in term.reads:
            span = spans.get((read.layer, read.reduction))
            if span is None:
                return None
            blocks.append(table.features[:, span][:, read.index.numpy()])
        part = term.head(torch.from_numpy(np.concatenate(blocks, axis=1)))
        logits[:, term.head.columns] += part
    return logits.numpy()


def _delta_outcome(
    task: Task, delta: Delta, settings: dict[str, Any], evaluation: np.ndarray | None = None
) -> Outcome:
    """A delta's outcome; ``evaluation (m, c)``: its logits on the evaluation part where they are known already."""
    test = apply(delta, task.table("test"))
    if evaluation is None:
        evaluation = apply(delta, task.table("validation").rows(task.evaluation))
    if evaluation is None or test is None:
        model = delta.attach(task.model, check=False)
        test = task.run(model, "test") if test is None else test
        evaluation = task.run(model, "validation", task.evaluation) if evaluation is None else evaluation
    return Outcome(evaluation, test, delta.parameters, settings, delta=replace(delta, meta={}))
