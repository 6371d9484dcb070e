"""What every method is given: a network, three splits, targets, and the outputs of the untouched network on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tweaknn.baselines.outcome import NotApplicable
from tweaknn.baselines.training import Training
from tweaknn.errors import InputError, ModelError
from tweaknn.inputs import Examples
from tweaknn.join.splits import holdout
from tweaknn.join.table import PooledTable, read_pooled
from tweaknn.network.outputs import collect_logits
from tweaknn.network.reader import Reader
from tweaknn.tracking import Told, follow

SPLITS = ("train", "validation", "test")
NO_NEURONS = "the network has no hidden neurons that could be read"


@dataclass(eq=False)
class Task:
    """One comparison: improve ``targets`` of ``model``.

    ``train`` is fitted on, ``validation`` chooses settings, ``test`` is looked at once, by the caller, after everything
    is chosen. ``evaluation``: positions in ``validation`` on which changed networks are judged (all of it, unless it is
    larger than a limit: running a fine-tuned copy costs a forward pass an example, and each method has to be judged on
    the same).

    ``targets``: positions of the target classes. ``training``: how fine-tuning methods train. ``oversample``: every fit
    sees each class equally often (Table 3.10). ``logits[split]``: ``(n, c)`` of the untouched network. ``layers``:
    which hidden layers the methods that read neurons may use. ``cache``: a folder where costly intermediate results of
    several methods (the join's synapses) are kept under their content's key; None keeps nothing. ``tolerance``: what the
    promises may give up, a fraction. ``live``: where trainings tell how they go on, as :func:`tweaknn.tracking.follow` takes it.

    Raises:
        InputError: no target is named.
    """

    model: nn.Module
    train: Examples
    validation: Examples
    test: Examples
    targets: tuple[int, ...]
    logits: dict[str, np.ndarray]
    evaluation: np.ndarray
    training: Training = field(default_factory=Training)
    seed: int = 0
    batch_size: int = 128
    oversample: bool = False
    layers: str | Sequence[str] = "all"
    cache: Path | None = None
    tolerance: float = 0.0
    live: str | None = None
    _tables: dict[str, PooledTable] = field(default_factory=dict)
    _followed: dict[str, int] = field(default_factory=dict)
    _read_table: Callable[[str], PooledTable] | None = None

    def __post_init__(self) -> None:
        if not self.targets:
            raise InputError("Name at least one target class.")

    @property
    def classes(self) -> list[str]:
        """A name a class."""
        return self.test.classes or [str(j) for j in range(self.n_classes)]

    @property
    def n_classes(self) -> int:
        """Number of logits ``c``."""
        return int(self.logits["test"].shape[1])

    def examples(self, split: str) -> Examples:
        """The examples of a split."""
        return getattr(self, split)

    def labels(self, split: str) -> np.ndarray:
        """Labels ``(n,)`` of a split."""
        return self.examples(split).labels

    def table(self, split: str) -> PooledTable:
        """Pooled neurons of all layers on a split; read once, kept.

        Raises :class:`NotApplicable` for a network without hidden neurons.
        """
        if split not in self._tables:
            if self._read_table is not None:
                self._tables[split] = self._read_table(split)
            else:
                self._tables[split] = pooled(self.model, self.examples(split), self.batch_size, self.layers)
        if not self._tables[split].reads:
            raise NotApplicable(NO_NEURONS)
        return self._tables[split]

    def reader(self) -> Reader:
        """What names and reads the hidden neurons. Raises :class:`NotApplicable` where there are none to read."""
        try:
            return Reader(self.model, self.train.batch([0])[0], self.layers)
        except ModelError as problem:
            raise NotApplicable(str(problem).rstrip(".")) from problem

    def run(self, model: nn.Module, split: str, indices: np.ndarray | None = None) -> np.ndarray:
        """Logits ``(n, c)`` of the changed network ``model`` on a split (or its examples at ``indices``)."""
        return collect_logits(model, self.examples(split).loader(self.batch_size, indices))[0]

    def follow(self, name: str) -> AbstractContextManager[Told | None]:
        """What a training of method ``name`` tells its progress to (None: nobody); several of one method are numbered."""
        self._followed[name] = nth = self._followed.get(name, 0) + 1
        return follow(self.live, f"{name} seed {self.seed}" + (f" training {nth}" if nth > 1 else ""))

    def judged(self) -> tuple[np.ndarray, np.ndarray]:
        """The untouched network's logits on the evaluation part of validation, and the labels there."""
        return self.logits["validation"][self.evaluation], self.validation.labels[self.evaluation]

    def weights(self) -> np.ndarray | None:
        """Example weights ``(n,)`` of the train split that make classes count equally, when ``oversample``."""
        if not self.oversample:
            return None
        counts = np.bincount(self.train.labels, minlength=self.n_classes)
        return len(self.train) / np.maximum(counts, 1)[self.train.labels] / max(1, int((counts > 0).sum()))


def pooled(
    model: nn.Module, examples: Examples, batch_size: int, layers: str | Sequence[str] = "all", progress: Any = None
) -> PooledTable:
    """Channel means of all layers of ``model`` over ``examples``; of a network without hidden neurons the logits alone."""
    try:
        reader = Reader(model, examples.batch([0])[0], layers)
    except ModelError:
        if layers not in ("all", "stages"):
            raise  # the names are wrong, not the network
        logits, labels = collect_logits(model, examples.loader(batch_size))  # says what is wrong if that fails too
        return PooledTable(np.zeros((len(labels), 0), dtype=np.float32), logits, labels, ())
    return read_pooled(reader, examples.loader(batch_size), len(examples), progress=progress)


def stratified(labels: np.ndarray, limit: int | None, seed: int) -> np.ndarray:
    """At most about ``limit`` positions with each class in its share (each class at least once), sorted."""
    n = len(labels)
    if limit is None or n <= limit:
        return np.arange(n)
    rng = np.random.default_rng(seed)
    order = rng.permutation(n)
    by_class = [order[labels[order] == j] for j in np.unique(labels)]
    return np.sort(np.concatenate([rows[: max(1, round(limit * len(rows) / n))] for rows in by_class]))


def make_task(
    model: nn.Module,
    train: Examples,
    test: Examples,
    targets: Sequence[int | str],
    *,
    validation: Examples | None = None,
    validation_share: float = 0.5,
    groups: np.ndarray | None = None,
    training: Training | None = None,
    seed: int = 0,
    batch_size: int = 128,
    limit: int | None = 5000,
) -> Task:
    """A :class:`Task` from data: splits off validation where none is given and runs the untouched network once.

    Raises :class:`~tweaknn.errors.InputError` for unknown targets and targets without examples in a split.
    """
    if validation is None:
        first, second = holdout(train.labels, share=validation_share, groups=groups, seed=seed)
        train, validation = train.subset(first), train.subset(second)
    parts = {"train": train, "validation": validation, "test": test}
    logits = {name: collect_logits(model, part.loader(batch_size))[0] for name, part in parts.items()}
    positions = positions_of(targets, test.classes, logits["test"].shape[1])
    check_targets(positions, {name: part.labels for name, part in parts.items()}, test.classes)
    return Task(
        model,
        train,
        validation,
        test,
        positions,
        logits,
        stratified(validation.labels, limit, seed),
        training or Training(),
        seed,
        batch_size,
    )


def positions_of(targets: Sequence[int | str], classes: Sequence[str] | None, c: int) -> tuple[int, ...]:
    """Targets by name or position as positions, each once. Raises InputError listing the classes."""
    from tweaknn.join.promise import class_position

    return tuple(dict.fromkeys(class_position(name, classes, c) for name in targets))


def check_targets(targets: Sequence[int], labels: dict[str, np.ndarray], classes: Sequence[str] | None) -> None:
    """Raises InputError when a target has no example in a split."""
    for split, values in labels.items():
        for j in targets:
            if not (values == j).any():
                name = classes[j] if classes else j
                raise InputError(f"Target class {name} has no example in the {split} data.")


def seeded(task: Task, salt: str) -> torch.Generator:
    """A generator that depends on the task's seed and the method, and on nothing that ran before."""
    import zlib

    return torch.Generator().manual_seed((task.seed * 1_000_003 + zlib.crc32(salt.encode())) % 2**63)
