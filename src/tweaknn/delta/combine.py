"""Sum deltas with open eyes: what each did alone on validation data, and what they do together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from tweaknn.delta.value import Delta
from tweaknn.errors import InputError
from tweaknn.measure import measure
from tweaknn.network.outputs import collect_logits


@dataclass(frozen=True, eq=False)
class Combination:
    """A sum of deltas and what it does.

    Attributes:
        delta: the sum.
        conflicts: sentences, one a class in which the deltas work against each other; empty when none does.
        accuracy: ``base``, each delta's name and ``together`` -> accuracy of each class ``(c,)``, NaN without examples.
    """

    delta: Delta
    conflicts: list[str]
    accuracy: dict[str, np.ndarray]

    def require(self) -> Delta:
        """The delta. Raises InputError, naming the first conflict, when there is one."""
        if self.conflicts:
            raise InputError(f"These deltas conflict: {self.conflicts[0]}")
        return self.delta


def combine(
    deltas: Sequence[Delta],
    model: nn.Module,
    validation: Iterable[tuple[Any, Any]],
    *,
    names: Sequence[str] | None = None,
    tolerance: float = 0.01,
) -> Combination:
    """Add deltas up and find the classes in which they conflict.

    A class is in conflict when, together, it is more than ``tolerance`` (a fraction) below the base or below a delta
    that had raised it, and below what the worst single delta made of it or of the gain another had promised.

    Args:
        deltas: of one base.
        model: the base.
        validation: batches ``(x, y)``, a data set or a pair of arrays; read once for each delta.
        names: of the deltas, for the report.
        tolerance: loss of a class's accuracy that is taken for noise.

    Raises:
        InputError: fewer than two deltas, another number of names, or deltas that cannot be added.
        DeltaError: a delta was made for another base.
    """
    if len(deltas) < 2:
        raise InputError("Combining takes at least two deltas.")
    labels_of = list(names) if names is not None else [f"delta {i + 1}" for i in range(len(deltas))]
    if len(labels_of) != len(deltas):
        raise InputError(f"{len(deltas)} deltas need as many names, not {len(labels_of)}.")
    together = deltas[0]
    for delta in deltas[1:]:
        together = together + delta
    from tweaknn.inputs import batches_of

    batches = batches_of(validation) if not hasattr(validation, "__next__") else list(validation)
    accuracy: dict[str, np.ndarray] = {}
    for name, each in (("base", None), *zip(labels_of, deltas, strict=True), ("together", together)):
        net = model if each is None else each.attach(model)
        logits, labels = collect_logits(net, batches, head=together.head)
        accuracy[name] = np.asarray(measure(logits, labels).per_class, dtype=float)
    found = []
    base, sum_ = accuracy["base"], accuracy["together"]
    for j in np.flatnonzero(~np.isnan(base)):
        alone = {name: accuracy[name][j] for name in labels_of}
        winner = max(alone, key=lambda name: alone[name])
        loser = min(alone, key=lambda name: alone[name])
        who = together.classes[j] if together.classes else f"class {j}"
        if alone[winner] > base[j] and sum_[j] < alone[winner] - tolerance:
            found.append(
                f"{who}: {winner} brings it from {base[j]:.1%} to {alone[winner]:.1%}, together it is {sum_[j]:.1%}."
            )
        elif sum_[j] < min(base[j], alone[loser]) - tolerance:
            found.append(
                f"{who}: the base has {base[j]:.1%}, no delta alone falls below {alone[loser]:.1%}, "
                f"together it is {sum_[j]:.1%}."
            )
    return Combination(together, found, accuracy)
