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
from tweaknn.errors import InputError
from tweaknn.join.aans import AANChoice
from tweaknn.join.arrange import CROSSABLE, Arrangement, arrange, wants_cross
from tweaknn.join.checks import check
from tweaknn.join.crossfit import cross_fitted
from tweaknn.join.diagnosis import names_of, worst_classes
from tweaknn.join.methods import retrained, table_candidates
from tweaknn.join.prepared import Parts, Prepared, TargetMasks, masks_of
from tweaknn.join.promise import Promise, class_position
from tweaknn.join.reading import WITH_VIEWS, Views, reading, source_of, views_of
from tweaknn.join.result import JoinResult, conclude
from tweaknn.join.setting import Candidate, Setting
from tweaknn.join.settle import settle
from tweaknn.join.size import base_work, limit_of
from tweaknn.join.splits import holdout
from tweaknn.join.table import PooledTable, read_pooled, stored_pooled
from tweaknn.join.warnings import (
    base_saw_warnings,
    cautious,
    overlap_warnings,
    probability_warnings,
    promise_warnings,
    size_warnings,
    thin_warnings,
)
from tweaknn.measure import per_class_accuracy
from tweaknn.network.fingerprint import fingerprint
from tweaknn.network.reader import Reader

Bar = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""``bar(what, total)`` gives a context manager that yields a function to be called with the number done."""


Groups = np.ndarray | tuple[np.ndarray | None, np.ndarray | None] | None
"""Which examples belong together: of the training data, or of both splits."""

TARGETLESS = ("best", "fit", "aan", "aan-grouped", "mean")
"""Methods whose fits are the same whatever the targets."""


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
        validation_share: of ``train`` that is set aside when no validation data is given; None: half of it.
        base_saw: which split the base was trained on: ``train``, ``validation``, ``both``, ``none`` or None (unknown).
        cross_fit: fit and choose fold by fold; None: where data is scarce, see :func:`tweaknn.join.arrange.wants_cross`.
        caution: standard errors by which every rule is kept on validation beyond its letter; None: :data:`CAUTION`, or more where
            the base saw what is chosen on (:data:`SEEN`).
        confidence: with which the promise shall hold on new data, such as 0.95; None: no such claim.
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
    validation_share: float | None = None
    base_saw: str | None = None
    cross_fit: bool | None = None
    caution: float | None = None
    confidence: float | None = None
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
        masks: TargetMasks | None = None,
        classes: Sequence[str] | None = None,
        groups: Groups = None,
    ) -> JoinResult:
        """Run the join.

        Args:
            model: the base; it is neither copied nor changed.
            train: a ``DataLoader`` of ``(x, y)``, a data set, or :class:`~tweaknn.inputs.Examples`.
            validation: likewise; without it a stratified part of ``train`` is set aside.
            targets: classes to improve, by name or position; or
            worst: the number of least accurate classes (on validation) to take; or
            masks: sub-classes, name -> boolean mask of validation examples, or a pair of masks over ``train`` and ``validation``;
                without validation data a mask over ``train``.
            classes: names of the logits; taken from the data when it has them.
            groups: ``(n,)`` of ``train``, or a pair, of ``train`` and of ``validation`` (either None); a group is never parted.

        Raises:
            InputError: unknown or empty target, labels outside the logits' range, contradictory settings.
            ModelError: NaN or infinite logits or activations, no hidden neurons.
        """
        targets = [targets] if isinstance(targets, (str, int)) else targets
        check(self, targets is not None and len(targets) > 0, worst, masks)
        known = classes if classes is not None else getattr(train, "classes", None)
        if known is not None:
            for target in targets or ():
                class_position(target, known, len(known))  # a slip of the pen is said before the network runs
        ready = self.prepare(model, train, validation, classes=classes, groups=groups)
        return self.choose(ready, targets, worst, masks=masks)

    def prepare(
        self,
        model: nn.Module,
        train: Any,
        validation: Any = None,
        *,
        classes: Sequence[str] | None = None,
        groups: Groups = None,
    ) -> Prepared:
        """The only step that runs the network: read the pooled neurons of both splits. :meth:`choose` may then be called
        for any number of targets. Arguments and errors as for :meth:`fit`.

        Raises:
            AssertionError: the base's weights changed meanwhile, which would be a bug.
        """
        parts = self._split(train, validation, groups)
        train, validation = parts.train, parts.validation
        x = train.batch([0])[0]
        reader = Reader(model, x, self.layers, self.head)
        before = fingerprint(model)
        names = names_of(classes if classes is not None else train.classes, _n_logits(reader, train))
        views, augment = views_of(self.method, self.views, self.augment, x, len(train))
        named = (("train", train), ("validation", validation))[: 1 if validation is train else 2]
        rows = len(train) * (1 + views) + (0 if validation is train else len(validation))
        tables = [self._read(reader, part, f"Reading {name}", rows) for name, part in named]
        copies = [self._read(reader, train, f"Reading view {v}", rows, v, augment) for v in range(1, views + 1)]
        tables[0] = replace(tables[0], views=tuple((copy.features, copy.logits) for copy in copies))
        if fingerprint(model) != before:
            raise AssertionError("the base network changed while it was read; this is a bug in tweaknn")
        frame = Delta(
            terms=(),
            bias=torch.zeros(tables[0].logits.shape[1]),
            base=before,
            input_shape=tuple(x.shape[1:]) if isinstance(x, torch.Tensor) else (),
            input_dtype=str(x.dtype).removeprefix("torch.") if isinstance(x, torch.Tensor) else "float32",
            classes=tuple(names),
            how=reader.how,
            head=self.head,
        )
        # without validation data of the user's own this was decided when the data was parted
        cross = validation is train
        if parts.given is not None:
            cross = wants_cross(self.cross_fit, self.method, train.labels, parts.given, self.base_saw)
        notes = [*parts.notes, *([reader.remark] if reader.remark else [])]
        return Prepared(
            reader, train, validation, tables[0], tables[-1], names, frame, notes, cross, parts.apart, parts.groups,
            base_work(model, x),
        )  # fmt: skip

    def choose(
        self,
        prepared: Prepared,
        targets: Sequence[int | str] | None = None,
        worst: int | None = None,
        *,
        masks: TargetMasks | None = None,
    ) -> JoinResult:
        """Fit, choose on validation and hand over the best candidate, controls beside it. Arguments and errors as for :meth:`fit`."""
        targets = [targets] if isinstance(targets, (str, int)) else targets
        check(self, targets is not None and len(targets) > 0, worst, masks)
        promise, names = self._promise(), prepared.classes
        alone = prepared.validation is prepared.train
        over = masks_of(masks, len(prepared.train), len(prepared.validation), alone, prepared.apart)
        # without masks over the training examples they cannot be chosen on
        cross = prepared.cross and (alone or self.cross_fit is True or self.base_saw != "none" or set(over[1]) <= set(over[0]))
        plan = arrange(
            prepared.train_table,
            None if alone else prepared.validation_table,
            cross=cross,
            confidence=self.confidence,
            base_saw=self.base_saw,
            set_aside=alone or prepared.apart is not None,
            masks=over,
            groups=prepared.groups[0],
            validation_groups=prepared.groups[1],
            seed=self.seed,
        )
        chosen_targets = self._targets(plan, targets, worst, names)
        promise = promise.weighed(chosen_targets, names, plan.choice_masks)
        warnings = [
            *prepared.notes,
            *plan.notes,
            *overlap_warnings(prepared.train_table, prepared.validation_table),
            *base_saw_warnings(self.base_saw, prepared.train_table, prepared.validation_table, plan),
            *thin_warnings(
                plan.choice.labels, names, chosen_targets, promise,
                may_cross=self.base_saw is None and self.cross_fit is None and plan.fold is None and self.method in CROSSABLE,
            ),
            *promise_warnings(promise),
            *probability_warnings(prepared.validation_table),
        ]
        caution = self.caution if self.caution is not None else cautious(self.base_saw, prepared, plan)
        if self.method == "theta":
            caution = 0.0  # it keeps its promise by the letter
        setting = Setting(
            plan.train, plan.choice, tuple(chosen_targets), names, promise, prepared.frame, self.seed,
            limit_of(prepared.reader.model), plan.choice_masks, caution, work=prepared.work,
        )  # fmt: skip
        self._check_train(setting)
        if self.method in TARGETLESS:
            key = (self.method, self.seed, self.confidence is not None, cross, self.base_saw, repr(self.aan))
            if key not in prepared.fits:
                prepared.fits[key] = self._fits(replace(setting, operated=False), prepared, plan)
            fits = [(fit, fit.fitted) for fit in prepared.fits[key]]
            candidates = [settle(setting, fit.name, *made, **fit.notes) for fit, made in fits if made is not None]
        else:
            candidates = self._fits(setting, prepared, plan)
        settings = {
            "method": self.method,
            "layers": self.layers if isinstance(self.layers, str) else list(self.layers),
            "seed": self.seed,
            "neurons": prepared.reader.neurons,
            "named_by": prepared.reader.how,
            "n_train": len(plan.train.labels),
            "n_validation": len(plan.choice.labels),
            "n_certifying": len(plan.held[0].labels) if plan.held else 0,
            "folds": 0 if plan.fold is None else int(plan.fold.max()) + 1,
            "caution": caution,
            "confidence": self.confidence,
            "base_saw": self.base_saw,
        }
        result = conclude(candidates, setting, warnings, settings, plan.held, self.confidence)
        return replace(result, warnings=[*result.warnings, *size_warnings(result.delta, prepared.reader.model)])

    def _fits(self, setting: Setting, prepared: Prepared, plan: Arrangement) -> list[Candidate]:
        """Candidates of the method, fitted on the plan's train split or fold by fold."""
        if plan.fold is None:
            return self._candidates(setting, prepared.reader, prepared.train, prepared.validation)

        def make(part: Setting) -> list[Candidate]:
            return self._candidates(part, prepared.reader, None, None)

        with self.bar("Cross-fitting", int(plan.fold.max()) + 1) as progress:
            return cross_fitted(
                make, setting, plan.train, plan.fold, plan.pool_masks, progress,
                split_limit=self.method in WITH_VIEWS,
            )  # fmt: skip

    # -- steps ---------------------------------------------------------------------------------------------------

    def _promise(self) -> Promise:
        if isinstance(self.promise, Promise):
            return self.promise
        kind = self.promise or ("overall" if self.method == "theta" else "floors")
        return Promise(kind, tolerance=self.tolerance)

    def _split(self, train: Any, validation: Any, groups: Groups) -> Parts:
        from tweaknn.inputs import as_examples, one_class

        train = one_class(as_examples(train, name="train"))
        pair = groups if isinstance(groups, tuple) else (groups, None)
        own, held = (None if each is None else np.asarray(each) for each in pair)
        if own is not None and len(own) != len(train):
            raise InputError(f"There are {len(train)} training examples and {len(own)} groups.")
        if validation is not None:
            if self.validation_share is not None:
                raise InputError("A share to set aside and validation data contradict each other; give one of the two.")
            validation = one_class(as_examples(validation, name="validation"))
            if held is not None and len(held) != len(validation):
                raise InputError(f"There are {len(validation)} validation examples and {len(held)} groups of them.")
            return Parts(train, validation, [], validation.labels, None, (own, held))
        if held is not None:
            raise InputError("There are groups of validation examples, but no validation data.")
        if wants_cross(self.cross_fit, self.method, train.labels, None, self.base_saw):
            if self.validation_share is None:
                return Parts(train, train, [], None, None, (own, None))
            if self.cross_fit:
                raise InputError("A cross-fit sets nothing aside; leave the share to be set aside out, or do not cross-fit.")
            said = "data is scarce, so all of it is cross-fitted and no share is set aside (--no-cross-fit sets it aside)"
            return Parts(train, train, [said], None, None, (own, None))
        share = 0.5 if self.validation_share is None else self.validation_share
        first, second = holdout(train.labels, share=share, groups=own, seed=self.seed)
        said = f"{len(second)} of {len(train)} training examples were set aside for validation"
        parted = (None, None) if own is None else (own[first], own[second])
        return Parts(train.subset(first), train.subset(second), [said], None, (first, second), parted)

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
        self, plan: Arrangement, targets: Sequence[int | str] | None, worst: int | None, names: list[str]
    ) -> list[int]:
        table = plan.choice
        c = table.logits.shape[1]
        for name, mask in plan.choice_masks.items():
            if not mask.any():
                raise InputError(f"Target {name!r} has no example among those that are chosen on.")
        if plan.choice_masks:
            return sorted({int(j) for mask in plan.choice_masks.values() for j in np.unique(table.labels[mask])})
        if worst is not None:
            accuracy, _ = per_class_accuracy(table.logits.argmax(1), table.labels, c)
            found = worst_classes(accuracy, worst)
            if worst > len(found):
                raise InputError(f"There are {len(found)} classes with examples to choose on, so the {worst} worst cannot be named.")
            return found
        found = list(dict.fromkeys(class_position(name, names, c) for name in targets or ()))
        for j in found:
            if not (table.labels == j).any():
                raise InputError(f"Target class {names[j]} has no example in the validation data.")
        return found

    def _check_train(self, setting: Setting) -> None:
        for j in setting.targets:
            if not (setting.train.labels == j).any():
                raise InputError(f"Target class {setting.classes[j]} has no example in the training data.")

    def _candidates(self, setting: Setting, reader: Reader, train: Any, validation: Any) -> list[Candidate]:
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


def _n_logits(reader: Reader, examples: Any) -> int:
    return int(reader(examples.batch([0])[0], lambda k, activation: None).shape[1])
