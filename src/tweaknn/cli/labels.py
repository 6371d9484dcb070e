"""Networks with several labels an example on the command line: each label is a binary problem of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from tweaknn.cli import options as o
from tweaknn.cli.answers import label_view
from tweaknn.cli.console import bar, out, percent, points, table
from tweaknn.delta import Delta
from tweaknn.delta.views import for_network
from tweaknn.errors import InputError
from tweaknn.inputs import Examples
from tweaknn.inputs.answers import one_label
from tweaknn.join.promise import Promise, class_position
from tweaknn.join.result import JoinResult
from tweaknn.join.run import Groups, SynapticJoin
from tweaknn.measure import label_measures
from tweaknn.network.outputs import collect_scores


def figures(model: nn.Module, examples: Examples, batch_size: int, head: Any, what: str) -> dict[str, dict[str, Any]]:
    """Per label: examples that have it, recall, specificity, their mean, AUROC; thresholds are 0."""
    assert examples.classes is not None
    assert examples.answers is not None
    with bar(what, len(examples)) as progress:
        scores = collect_scores(model, examples.loader(batch_size), head=head, progress=progress)
    return label_measures(scores, examples.answers, examples.classes)


def show(base: dict[str, dict[str, Any]], tweaked: dict[str, dict[str, Any]] | None = None) -> None:
    """Table of one network, or of two beside each other."""
    rows = []
    for name, b in base.items():
        row = [name, str(b["given"])]
        for field in ("recall", "specificity", "balanced", "auroc"):
            row.append(_percent(b[field]))
            if tweaked is not None:
                both = b[field] is not None and tweaked[name][field] is not None
                row.append(points(tweaked[name][field] - b[field]) if both else "–")
        rows.append(row)
    names = ["recall %", "specificity %", "balanced %", "AUROC %"]
    columns = [part for name in names for part in ((name, "points") if tweaked is not None else (name,))]
    out.print(table(["label", "given", *columns], rows))


def _percent(value: float | None) -> str:
    return "–" if value is None else percent(value)


def worst(found: dict[str, dict[str, Any]], k: int) -> list[str]:
    """The ``k`` labels of the lowest recall."""
    present = [name for name, row in found.items() if row["recall"] is not None]
    return sorted(present, key=lambda name: found[name]["recall"])[:k]


def promises(promise: Any, targets: Sequence[str]) -> dict[str, Any]:
    """What is promised of each target label: the rules that name it.

    Raises:
        InputError: a rule names none of them, or there are weights, which labels that are joined one by one cannot have.
    """
    if not isinstance(promise, Promise):
        return dict.fromkeys(targets, promise)
    if promise.weights:
        raise InputError("Labels are joined one by one, so --weight says nothing here; leave it out.")
    known = [name for target in targets for name in (target, f"not {target}")]
    for name in (*promise.floors, *promise.specificity):
        if name not in known:
            raise InputError(f"A rule names {name!r}, which is no target; with several labels it can be {', '.join(known)}.")

    def of(rules: Mapping[Any, float], target: str) -> dict[Any, float]:
        return {name: value for name, value in rules.items() if name in (target, f"not {target}")}

    return {
        t: replace(promise, floors=of(promise.floors, t), specificity=of(promise.specificity, t)) for t in targets
    }


def join(
    joiner: SynapticJoin,
    opened: o.Opened,
    train: Examples,
    held: Examples | None,
    targets: Sequence[str],
    groups: Groups,
) -> tuple[Delta | None, dict[str, JoinResult]]:
    """A delta for each target label, summed.

    A label's delta changes that label's logit alone, so every other label's answers stay bit for bit what they were. What
    can pay is *not given*: its accuracy, the label's specificity, has the floor.

    Raises:
        InputError: there is no such label.
    """
    assert train.classes is not None
    found: dict[str, JoinResult] = {}
    delta: Delta | None = None
    wishes = promises(joiner.promise, [train.classes[class_position(t, train.classes, len(train.classes))] for t in targets])
    for target in dict.fromkeys(targets):
        label = class_position(target, train.classes, len(train.classes))
        name = train.classes[label]
        view, examples = label_view(opened, train, label)
        validation = one_label(held, label, name) if held is not None else None
        if len(np.unique(examples.labels)) < 2:
            raise InputError(f"Label {name} is given for all or for none of the training examples.")
        one = replace(joiner, promise=wishes[name])
        result = one.fit(view, examples, validation, targets=[name], classes=examples.classes, groups=groups)
        found[name] = result
        if result.delta is not None:
            part = for_network(result.delta, view, opened.n_logits, classes=train.classes)
            delta = part if delta is None else delta + part
    return delta, found
