"""The main job: read once, fit, choose on validation, hand over the best candidate, controls beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tweaknn.delta import Delta
from tweaknn.errors import InputError, NothingHelps
from tweaknn.join.aans import AANChoice
from tweaknn.join.candidates import CONTROLS
from tweaknn.join.choice import ordered
from tweaknn.join.diagnosis import names_of, worst_classes
from tweaknn.join.methods import METHODS, check_method, retrained, table_candidates
from tweaknn.join.promise import Promise, class_position
from tweaknn.join.reading import Views, reading, source_of, views_of
from tweaknn.join.setting import Candidate, Setting
from tweaknn.join.size import limit_of
from tweaknn.join.splits import holdout
from tweaknn.join.table import PooledTable, read_pooled, stored_pooled
from tweaknn.join.warnings import base_saw_warnings, thin_warnings
from tweaknn.measure import mcnemar, per_class_accuracy
from tweaknn.network.fingerprint import fingerprint
from tweaknn.network.reader import Reader
from tweaknn.writing import plain

Bar = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""``bar(what, total)`` gives a context manager that yields a function to be called with the number done."""


@dataclass(frozen=True, eq=False)
class JoinResult:
    """What a join found.

    Attributes:
        delta: the chosen candidate's, metadata filled in; None when nothing helps.
        chosen: its name, or None.
        candidates: the method and the controls, best first.
        targets, classes: names.
        warnings: sentences a user should read before trusting the result.
        sentence: what improved and at whose cost, in one sentence.
    """

    delta: Delta | None
    chosen: str | None
    candidates: list[Candidate]
    targets: list[str]
    classes: list[str]
    promise: Promise
    warnings: list[str]
    sentence: str
    settings: dict[str, Any]

    @property
    def best(self) -> Candidate:
        """The candidate that was handed over, or would have been."""
        return self.candidates[0]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: ``chosen``, ``candidates`` (name -> validation figures), base figures, warnings, settings."""
        base = self.best.comparison.base
        return {
            "chosen": self.chosen,
            "sentence": self.sentence,
            "targets": self.targets,
            "classes": self.classes,
            "promise": self.promise.to_dict(),
            "n_validation": base.n,
            "base": {**base.to_dict(self.classes), "target": self.best.point.base_target},
            "candidates": {candidate.name: candidate.figures() for candidate in self.candidates},
            "controls": list(CONTROLS),
            "warnings": self.warnings,
            "settings": self.settings,
        }

    def require(self) -> Delta:
        """The delta. Raises NothingHelps when there is none."""
        if self.delta is None:
            raise NothingHelps(self.sentence)
        return self.delta


@dataclass(frozen=True, eq=False)
class Prepared:
    """A network and two splits after the one pass over the data: all that choosing needs."""

    reader: Reader
    train: Any
    validation: Any
    train_table: PooledTable
    validation_table: PooledTable
    classes: list[str]
    frame: Delta
    notes: list[str]


@dataclass
class SynapticJoin:
    """Finds synapses that make target classes better; scikit-learn's habits: settings here, work in :meth:`fit`.

    Attributes:
        method: ``best`` (validation chooses between ``fit``, ``aan`` and their mean), ``fit`` (pooled neurons, convex fit, operating
            point), ``aan`` or ``aan-grouped`` (a small network on pooled neurons), ``selected``, ``stable``, ``net-gain`` or ``mixed``
            (40 neurons, see :mod:`tweaknn.join.selected`), ``theta`` (the dissertation's join), ``retrain-1`` or ``retrain-2`` (its
            synapses, weights solved for), ``schedule`` (joins and retrainings in turn).
        promise: ``floors``, ``overall``, or a :class:`~tweaknn.join.promise.Promise`; None takes the method's own.
        tolerance: what the promise may give up, a fraction.
        layers: ``all``, ``stages`` or names.
        validation_share: of ``train`` that is set aside when no validation data is given.
        base_saw: which split the base was trained on: ``train``, ``validation``, ``both``, ``none`` or None (unknown).
        seed: of splits and of the random control.
        batch_size: examples a batch, for plain arrays.
        views: how many augmented copies of each training example are read as well, for the fits; None: :data:`VIEWS` of pictures where
            the method is one that gains by them, else 0.
        table: folder that keeps what was read (table T): another join on the same base and data does not run the network
            again, and a reading that was killed goes on where it was.
        augment: what makes a view: ``flip``, ``shift``, ``noise`` (several with commas between), ``file.py:function``, or a function
            ``augment(x, generator)`` that gives an augmented batch; None: ``shift`` for pictures.
        schedule: ``J100+R100+J10`` (method ``schedule``), see :mod:`tweaknn.join.schedule`.
        solver: of synaptic retraining: ``convex`` (its optimum) or ``sgd`` (the dissertation's).
        aan: how an AAN is made, see :class:`~tweaknn.join.aans.AANChoice`.
    """

    method: str = "best"
    promise: str | Promise | None = None
    tolerance: float = 0.0
    layers: str | Sequence[str] = "all"
    validation_share: float = 0.5
    base_saw: str | None = None
    seed: int = 0
    batch_size: int = 128
    head: int | str | None = None
    form: str = "plain"
    views: int | None = None
    table: str | Path | None = None
    augment: str | Callable[[torch.Tensor, torch.Generator], torch.Tensor] | None = field(default=None, repr=False)
    schedule: str | None = None
    solver: str = "convex"
    aan: AANChoice = field(default_factory=AANChoice)
    bar: Bar = field(default=lambda what, total: nullcontext(lambda done: None), repr=False)

    def fit(
        self,
        model: nn.Module,
        train: Any,
        validation: Any = None,
        *,
        targets: Sequence[int | str] | None = None,
        worst: int | None = None,
        classes: Sequence[str] | None = None,
        groups: np.ndarray | None = None,
    ) -> JoinResult:
        """Run the join.

        Args:
            model: the base; it is neither copied nor changed.
            train: a ``DataLoader`` of ``(x, y)``, a data set, or :class:`~tweaknn.inputs.Examples`.
            validation: likewise; without it a stratified part of ``train`` is set aside.
            targets: classes to improve, by name or position; or
            worst: the number of least accurate classes (on validation) to take.
            classes: names of the logits; taken from the data when it has them.
            groups: ``(n,)`` of ``train``; whole groups are set aside.

        Raises:
            InputError: unknown or empty target, labels outside the logits' range, contradictory settings.
            ModelError: NaN or infinite logits or activations, no hidden neurons.
        """
        self._check(targets, worst)
        return self.choose(self.prepare(model, train, validation, classes=classes, groups=groups), targets, worst)

    def prepare(
        self,
        model: nn.Module,
        train: Any,
        validation: Any = None,
        *,
        classes: Sequence[str] | None = None,
        groups: np.ndarray | None = None,
    ) -> Prepared:
        """The only step that runs the network: read the pooled neurons of both splits. :meth:`choose` may then be called
        for any number of targets. Arguments and errors as for :meth:`fit`."""
        train, validation, notes = self._split(train, validation, groups)
        x = train.batch([0])[0]
        reader = Reader(model, x, self.layers, self.head)
        before = fingerprint(model)
        names = names_of(classes if classes is not None else train.classes, _n_logits(reader, train))
        views, augment = views_of(self.method, self.views, self.augment, x)
        rows = len(train) * (1 + views) + len(validation)
        tables = [
            self._read(reader, part, f"Reading {name}", rows)
            for name, part in (("train", train), ("validation", validation))
        ]
        copies = [self._read(reader, train, f"Reading view {v}", rows, v, augment) for v in range(1, views + 1)]
        tables[0] = replace(tables[0], views=tuple((copy.features, copy.logits) for copy in copies))
        if fingerprint(model) != before:
            raise AssertionError("the base network changed while it was read; this is a bug in tweaknn")
        frame = Delta(
            terms=(),
            bias=torch.zeros(tables[0].logits.shape[1]),
            base=before,
            input_shape=tuple(x.shape[1:]),
            input_dtype=str(x.dtype).removeprefix("torch."),
            classes=tuple(names),
            how=reader.how,
            head=self.head,
        )
        return Prepared(reader, train, validation, tables[0], tables[1], names, frame, notes)

    def choose(
        self, prepared: Prepared, targets: Sequence[int | str] | None = None, worst: int | None = None
    ) -> JoinResult:
        """Fit, choose on validation and hand over the best candidate, controls beside it. Errors as for :meth:`fit`."""
        self._check(targets, worst)
        promise, names = self._promise(), prepared.classes
        train, validation = prepared.train_table, prepared.validation_table
        chosen_targets = self._targets(validation, targets, worst, names)
        warnings = [
            *prepared.notes,
            *base_saw_warnings(self.base_saw, train, validation, set_aside=bool(prepared.notes)),
            *thin_warnings(validation.labels, names, chosen_targets, promise),
        ]
        limit = limit_of(prepared.reader.model)
        setting = Setting(train, validation, tuple(chosen_targets), names, promise, prepared.frame, self.seed, limit)
        candidates = self._candidates(setting, prepared.reader, prepared.train, prepared.validation)
        settings = {
            "method": self.method,
            "layers": self.layers if isinstance(self.layers, str) else list(self.layers),
            "seed": self.seed,
            "neurons": prepared.reader.neurons,
            "named_by": prepared.reader.how,
            "n_train": len(train.labels),
            "n_validation": len(validation.labels),
            "base_saw": self.base_saw,
        }
        return conclude(candidates, setting, warnings, settings)

    # -- steps ---------------------------------------------------------------------------------------------------

    def _check(self, targets: Sequence[int | str] | None, worst: int | None) -> None:
        if self.method not in METHODS:
            raise InputError(f"Unknown method {self.method!r}; choose one of {', '.join(METHODS)}.")
        if (targets is None or not len(targets)) == (worst is None):
            raise InputError("Name the target classes, or how many of the worst to take; one of the two.")
        if worst is not None and worst < 1:
            raise InputError(f"The number of worst classes must be at least 1, not {worst}.")
        check_method(self.method, self.schedule, self.solver, self.views)
        if self.base_saw not in (None, "train", "validation", "both", "none"):
            raise InputError(f"base_saw is {self.base_saw!r}; it takes train, validation, both or none.")

    def _promise(self) -> Promise:
        if isinstance(self.promise, Promise):
            return self.promise
        kind = self.promise or ("overall" if self.method == "theta" else "floors")
        return Promise(kind, tolerance=self.tolerance)

    def _split(self, train: Any, validation: Any, groups: np.ndarray | None) -> tuple[Any, Any, list[str]]:
        from tweaknn.inputs import as_examples

        train = as_examples(train, name="train")
        if validation is not None:
            return train, as_examples(validation, name="validation"), []
        first, second = holdout(train.labels, share=self.validation_share, groups=groups, seed=self.seed)
        said = f"{len(second)} of {len(train)} training examples were set aside for validation"
        return train.subset(first), train.subset(second), [said]

    def _read(self, reader: Reader, examples: Any, what: str, rows: int, view: int = 0, augment: Any = None) -> PooledTable:
        with self.bar(what, len(examples)) as progress:
            batches: Iterable[Any] = examples.loader(self.batch_size)
            content = ""
            if view:
                seed = self.seed * 1009 + view
                batches = Views(examples.loader(self.batch_size), augment, seed)
                content = f"view {seed} {getattr(augment, 'source', None) or source_of(augment)}"
            reads = reading(self.method, reader, rows)
            if self.table is not None:
                return stored_pooled(
                    self.table, reader, examples, self.batch_size, reads,
                    batches=batches if view else None, more=content, progress=progress,
                )  # fmt: skip
            return read_pooled(reader, batches, len(examples), reads, progress=progress)

    def _targets(
        self, table: PooledTable, targets: Sequence[int | str] | None, worst: int | None, names: list[str]
    ) -> list[int]:
        c = table.logits.shape[1]
        if worst is not None:
            accuracy, _ = per_class_accuracy(table.logits.argmax(1), table.labels, c)
            return worst_classes(accuracy, worst)
        found = list(dict.fromkeys(class_position(name, names, c) for name in targets or ()))
        for j in found:
            if not (table.labels == j).any():
                raise InputError(f"Target class {names[j]} has no example in the validation data.")
        return found

    def _candidates(self, setting: Setting, reader: Reader, train: Any, validation: Any) -> list[Candidate]:
        for j in setting.targets:
            if not (setting.train.labels == j).any():
                raise InputError(f"Target class {setting.classes[j]} has no example in the training data.")
        if self.method == "theta":
            from tweaknn.join.dissertation import theta_candidates

            return theta_candidates(self, setting, reader, train, validation)
        if self.method in ("retrain-1", "retrain-2"):
            return retrained(self, setting, reader, train, validation)
        if self.method == "schedule":
            from tweaknn.join.schedule import scheduled

            return [*scheduled(self, setting, reader, train, validation), *table_candidates("controls", setting)]
        if self.method == "mixed":
            from tweaknn.join.selected import mixed

            return [mixed(self, setting, reader, train, validation), *table_candidates("controls", setting)]
        return table_candidates(self.method, setting, self.aan)


def conclude(
    candidates: Sequence[Candidate], setting: Setting, warnings: list[str], settings: dict[str, Any]
) -> JoinResult:
    """Order candidates by what they do for the targets on validation and hand over the best, if it helps."""
    ranked = ordered(candidates, setting)
    best = ranked[0]
    targets = [setting.classes[j] for j in setting.targets]
    helps = best.point.feasible and best.point.value > best.point.base_value + 1e-12
    rows = np.isin(setting.validation.labels, setting.targets)
    labels = setting.validation.labels[rows]
    p = mcnemar(setting.validation.logits[rows].argmax(1) == labels, best.logits[rows].argmax(1) == labels)
    if helps and p > 0.05:
        warnings = [
            *warnings,
            f"the gain on the targets may be chance (p = {p:.2f} on {len(labels)} validation examples)",
        ]
    said = sentence(best, targets, helps)
    result = JoinResult(
        delta=None,
        chosen=best.name if helps else None,
        candidates=ranked,
        targets=targets,
        classes=setting.classes,
        promise=setting.promise,
        warnings=warnings,
        sentence=said,
        settings={**settings, "p_value_targets": p},
    )
    if not helps:
        return result
    return replace(result, delta=replace(best.delta, meta=plain(result.to_dict())))


def sentence(best: Candidate, targets: list[str], helps: bool) -> str:
    """What improved and at whose cost."""
    who = ", ".join(targets)
    point, c = best.point, best.comparison
    if not helps:
        why = f": {point.reason}" if point.reason else ""
        return f"Nothing found improves {who} on validation while keeping the promise{why}; no file was written."
    gain = 100 * (point.target - point.base_target)
    cost = "no class loses" if c.worst_drop >= 0 else f"{c.worst_class} loses {-100 * c.worst_drop:.1f} points"
    overall = 100 * (c.tweaked.overall - c.base.overall)
    said = (
        f"On validation {who} gain{'s' if len(targets) == 1 else ''} {gain:.1f} points "
        f"({100 * point.base_target:.1f} → {100 * point.target:.1f} %), overall {overall:+.1f}, {cost}."
    )
    if best.name == "bias":
        said += " This is a mere constant on the logits: no synapse did better."
    elif best.name in CONTROLS:
        said += f" This is a control ({best.name}): the method itself did not do better."
    return said


def _n_logits(reader: Reader, examples: Any) -> int:
    return int(reader(examples.batch([0])[0], lambda k, activation: None).shape[1])
