"""Schedules of joins and retrainings, ``J100+R100+J50+R50+J10+R10+J10`` (section 3.3.7, Table 3.9).

``J<N>`` adds synapses into the ``N`` worst classes, found by Algorithm 1 on *the network so far*, ``nn + Δnn``: its mistakes and margins
are what the new synapses are measured by. ``R<N>`` retrains the weights of all synapses that end in the ``N`` worst classes
(section 3.2.4). The scopes narrow: each is a part of the one before, and the last is what the user wants mended.

The worst classes are those of the *base* on validation, named targets first, so that the scopes are nested and known beforehand.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tweaknn.delta import Delta, Read, Term, synapses
from tweaknn.errors import InputError
from tweaknn.fit.convex import fit_path
from tweaknn.fit.sgd import SGDSettings, fit_sgd
from tweaknn.join.candidates import L2_GRID
from tweaknn.join.dissertation import N_GRID, ascend, limits_of, read_positions
from tweaknn.join.setting import Candidate, Setting
from tweaknn.join.settle import settle
from tweaknn.measure import negative_log_likelihood, per_class_accuracy
from tweaknn.network.reader import Reader, Sink
from tweaknn.theta.observe import Ranked, observe

if TYPE_CHECKING:
    from tweaknn.join.run import SynapticJoin

PATTERN = re.compile(r"([JR])(\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class Step:
    """One step: ``kind`` is ``J`` (join) or ``R`` (retrain), for the ``classes`` worst classes."""

    kind: str
    classes: int

    def __str__(self) -> str:
        return f"{self.kind}{self.classes}"


def parse(text: str) -> tuple[Step, ...]:
    """The steps of a schedule.

    >>> [str(step) for step in parse("J100+R100+J10")]
    ['J100', 'R100', 'J10']

    Raises:
        InputError: a step is not J or R with a number, the first is not a join, a scope widens, or a step is for no class.
    """
    steps: list[Step] = []
    pieces = text.replace(" ", "").split("+")
    for position, piece in enumerate(pieces, start=1):
        found = PATTERN.fullmatch(piece)
        if found is None:
            raise InputError(
                f"Step {position} of the schedule {text!r} is {piece!r}; a step is J (join) or R (retrain) and a number of classes, "
                "as in J100+R100+J10."
            )
        step = Step(found[1].upper(), int(found[2]))
        if step.classes < 1:
            raise InputError(f"Step {position} of the schedule {text!r} is for no class; the least is {step.kind}1.")
        if not steps and step.kind == "R":
            raise InputError(
                f"The schedule {text!r} begins with {step}, but there is nothing to retrain before a join; begin with J{step.classes}."
            )
        if steps and step.classes > steps[-1].classes:
            raise InputError(
                f"Step {position} of the schedule {text!r} widens the scope from {steps[-1].classes} to {step.classes} classes; "
                "scopes narrow towards the classes to be mended."
            )
        steps.append(step)
    return tuple(steps)


def scopes(setting: Setting, steps: Sequence[Step]) -> list[tuple[int, ...]]:
    """Classes of each step: the targets first, then the base's least accurate ones on validation.

    Raises:
        InputError: a step is for more classes than there are (with validation examples), or the last one is not for the targets.
    """
    labels, c = setting.validation.labels, len(setting.classes)
    accuracy, _ = per_class_accuracy(setting.validation.logits.argmax(1), labels, c)
    known = [j for j in np.argsort(accuracy, kind="stable").tolist() if np.isfinite(accuracy[j])]
    known = [j for j in known if (setting.train.labels == j).any()]
    ordered = [*setting.targets, *(j for j in known if j not in setting.targets)]
    if steps[0].classes > len(ordered):
        raise InputError(
            f"The schedule's {steps[0]} is for {steps[0].classes} classes; only {len(ordered)} have training and validation examples."
        )
    if steps[-1].classes != len(setting.targets):
        raise InputError(
            f"The schedule ends with {steps[-1]}, but {len(setting.targets)} "
            f"class{'es are' if len(setting.targets) > 1 else ' is'} to be mended; "
            f"end it with {steps[-1].kind}{len(setting.targets)}, or give --worst {steps[-1].classes}."
        )
    return [tuple(ordered[: step.classes]) for step in steps]


@dataclass
class Grown:
    """Synapses so far: the neurons they read, ``(f, c)`` weights and which exist, their values and the logits they give."""

    reads: list[Read]
    weight: np.ndarray
    mask: np.ndarray
    values: list[np.ndarray]
    offsets: list[np.ndarray]

    def logits(self, part: int) -> np.ndarray:
        """``(n, c)`` of the network so far on train (0) or validation (1)."""
        added = self.values[part] @ self.weight.astype(np.float32) if self.values[part].shape[1] else 0
        return (self.offsets[part] + added).astype(np.float32)

    def delta(self, frame: Delta, kind: str) -> Delta:
        """The synapses as a delta without a bias."""
        if not self.reads:
            return replace(frame, kind=kind)
        term = synapses(self.reads, torch.from_numpy(self.weight.astype(np.float32)), range(self.weight.shape[1]))
        return replace(frame, terms=(term,), kind=kind)


class SoFar:
    """A reader whose logits are those of ``nn + Δnn``: what a later join counts on. Neurons are the base's own."""

    def __init__(self, reader: Reader, term: Term | None) -> None:
        self._reader, self._term = reader, term

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)

    def __call__(self, x: Any, sink: Sink) -> torch.Tensor:
        """As :class:`~tweaknn.network.reader.Reader`; the synapses' part is added to the logits."""
        if self._term is None:
            return self._reader(x, sink)
        reads = self._term.reads
        found: list[torch.Tensor | None] = [None] * len(reads)
        position = {layer.name: k for k, layer in enumerate(self._reader.layers)}

        def both(k: int, activation: torch.Tensor) -> None:
            for r, read in enumerate(reads):
                if position[read.layer] == k:
                    found[r] = read.pick(activation)
            sink(k, activation)

        logits = self._reader(x, both)
        part = self._term.head(torch.cat([f for f in found if f is not None], dim=1))
        return logits.index_add(1, self._term.head.columns.to(logits.device), part.to(logits))


def scheduled(join: SynapticJoin, setting: Setting, reader: Reader, train: Any, validation: Any) -> list[Candidate]:
    """The schedule's candidate, brought to its operating point.

    Raises:
        InputError: the schedule is malformed, or does not end at the targets.
    """
    steps = parse(join.schedule or "")
    plan = scopes(setting, steps)
    c = len(setting.classes)
    grown = Grown(
        [],
        np.zeros((0, c)),
        np.zeros((0, c), dtype=bool),
        [np.zeros((len(t.labels), 0), np.float32) for t in (setting.train, setting.validation)],
        [setting.train.logits, setting.validation.logits],
    )
    history = []
    for step, classes in zip(steps, plan, strict=True):
        if step.kind == "J":
            _join(join, setting, reader, train, validation, grown, classes)
        else:
            _retrain(join, setting, grown, classes)
        right = grown.logits(1).argmax(1) == setting.validation.labels
        of_targets = [float(right[setting.validation.labels == j].mean()) for j in setting.targets]
        history.append({
            "step": str(step), "synapses": int(grown.mask.sum()), "target": float(np.mean(of_targets)),
            "overall": float(right.mean()),
        })  # fmt: skip
    delta = grown.delta(setting.frame, "schedule")
    return [settle(setting, "schedule", delta, grown.logits(1), schedule="+".join(map(str, steps)), steps=history)]


def _join(
    join: SynapticJoin, setting: Setting, reader: Reader, train: Any, validation: Any, grown: Grown, classes: Sequence[int]
) -> None:
    """J: Algorithm 1 on the network so far; n and scale of each class on validation; the synapses are added to ``grown``."""
    so_far = grown.delta(setting.frame, "schedule")
    counted: Any = SoFar(reader, so_far.terms[0] if so_far.terms else None)
    with join.bar(f"Counting J{len(classes)}", len(train)) as progress:
        found = observe(counted, train.loader(join.batch_size), classes, form=join.form, progress=progress)
    ranked = [found.best(N_GRID[-1], [t])[t] for t in classes]
    here = replace(setting, targets=tuple(classes), validation=replace(setting.validation, logits=grown.logits(1)))
    values = read_positions(reader, validation, join.batch_size, ranked, join.bar)
    chosen = [one for one in ascend(here, limits_of(here), ranked, values) if one.n]
    if not chosen:
        return
    again = [Ranked(o.target, o.layer, o.index, o.weight, np.zeros(o.n, int), False) for o in chosen]
    columns = [read_positions(reader, part, join.batch_size, again, join.bar) for part in (train, validation)]
    reads: list[Read] = []
    order: list[int] = []
    weights = np.zeros((sum(o.n for o in chosen), grown.weight.shape[1]))
    start = 0
    for one in chosen:
        for k in np.unique(one.layer):
            at = np.flatnonzero(one.layer == k)
            layer = reader.layers[k]
            index = torch.from_numpy(one.index[at].astype(np.int64))
            reads.append(Read(layer.name, "position", layer.shape, layer.channel_axis, index))
            weights[len(order) + np.arange(len(at)), one.target] = one.weight[at]
            order += (start + at).tolist()
        start += one.n
    grown.reads = [*grown.reads, *reads]
    grown.weight = np.concatenate([grown.weight, weights])
    grown.mask = np.concatenate([grown.mask, weights != 0])
    for part, new in enumerate(columns):
        grown.values[part] = np.concatenate([grown.values[part], np.concatenate(new, axis=1)[:, order]], axis=1)


def _retrain(join: SynapticJoin, setting: Setting, grown: Grown, classes: Sequence[int]) -> None:
    """R: the weights of the synapses into ``classes``, the others as they are; strength of the penalty on validation."""
    mask = np.zeros_like(grown.mask)
    mask[:, list(classes)] = grown.mask[:, list(classes)]
    rows = mask.any(1)
    if not rows.any():
        return
    fixed = np.where(mask, 0.0, grown.weight)
    offsets = [
        (o + v @ fixed.astype(np.float32)).astype(np.float32)
        for o, v in zip(grown.offsets, grown.values, strict=True)
    ]
    weight = retrain(
        join.solver,
        [v[:, rows] for v in grown.values],
        offsets,
        [setting.train.labels, setting.validation.labels],
        grown.weight[rows],
        mask[rows],
        seed=setting.seed,
    )
    grown.weight = fixed.copy()
    grown.weight[rows] += np.where(mask[rows], weight, 0.0)


def retrain(
    solver: str,
    values: Sequence[np.ndarray],
    offsets: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    start: np.ndarray,
    mask: np.ndarray,
    *,
    targets: Sequence[int] = (),
    heavier: float = 1.0,
    seed: int = 0,
    settings: SGDSettings | None = None,
) -> np.ndarray:
    """Weights (f, c) of existing synapses, without a bias, by either solver; all sequences are (train, validation).

    ``convex`` is solved for several penalties, among which the log loss on validation decides; ``sgd`` starts at ``start``. ``heavier``
    weighs the targets' examples (variant 2 of section 3.2.4: 2).
    """
    weights = np.where(np.isin(labels[0], list(targets)), heavier, 1.0)
    if solver == "sgd":
        used = settings or SGDSettings(seed=seed)
        return fit_sgd(values[0], offsets[0], labels[0], start, mask, used, sample_weight=weights)
    fits = fit_path(values[0], offsets[0], labels[0], L2_GRID, mask=mask, sample_weight=weights, bias=False)
    losses = [
        negative_log_likelihood(offsets[1] + values[1] @ f.weight.astype(np.float32), labels[1]) for f in fits
    ]
    return np.where(mask, fits[int(np.argmin(losses))].weight, 0.0)
