"""A join on rows of a table, judged on other rows of it: no forward pass."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from tweaknn import Promise, compare_logits
from tweaknn.delta import Delta
from tweaknn.delta.value import LOGITS
from tweaknn.join.setting import Candidate, Setting
from tweaknn.join.table import PooledTable


def applied(delta: Delta, table: PooledTable) -> np.ndarray:
    """Logits ``(n, c)`` of base + delta, from a table that holds all neurons it reads."""
    spans = {(r.layer, r.reduction): span for r, span in zip(table.reads, table.spans(), strict=True)}
    logits = torch.from_numpy(table.logits) + delta.bias
    for term in delta.terms:
        blocks = [
            (table.logits if read.layer == LOGITS else table.features[:, spans[read.layer, read.reduction]])[
                :, read.index.numpy()
            ]
            for read in term.reads
        ]
        part = term.head(torch.from_numpy(np.concatenate(blocks, axis=1)))
        logits[:, term.head.columns] += part
    return logits.numpy()


def worst(logits: np.ndarray, labels: np.ndarray, count: int, least: int = 5) -> list[int]:
    """The least accurate classes with at least ``least`` examples."""
    n = np.bincount(labels, minlength=logits.shape[1])
    right = np.bincount(labels[logits.argmax(1) == labels], minlength=logits.shape[1])
    order = np.argsort(np.where(n >= least, right / np.maximum(n, 1), 2.0), kind="stable")
    return [int(j) for j in order[:count]]


def setting_of(
    world: Any, seed: int, targets: list[int] | int, promise: Promise | None = None, limit: int | None = None
) -> tuple[Setting, PooledTable]:
    """Split ``seed`` of a world; ``targets``: classes, or how many of the worst on validation."""
    a, b, c = world.split(seed)
    train, held, test = (world.table.rows(rows) for rows in (a, b, c))
    held, test = replace(held, views=()), replace(test, views=())
    if isinstance(targets, int):
        targets = worst(held.logits, held.labels, targets)
    more = {} if limit is None else {"limit": limit}
    setting = Setting(train, held, tuple(targets), world.classes, promise or Promise("floors"), world.frame, seed, **more)
    return setting, test


def judged(candidate: Candidate, setting: Setting, test: PooledTable) -> dict[str, Any]:
    """Figures of a candidate on rows that nothing was chosen on."""
    logits = applied(candidate.delta, test)
    c = compare_logits(test.logits, logits, test.labels, setting.classes)
    targets = list(setting.targets)
    return {
        "feasible": candidate.point.feasible,
        "validation": candidate.point.value - candidate.point.base_value,
        "validation_overall": candidate.point.overall - candidate.point.base_overall,
        "validation_nll": c_nll(candidate, setting),
        "log_loss": candidate.notes.get("log_loss"),
        "gain": float(np.nanmean(c.tweaked.per_class[targets] - c.base.per_class[targets])),
        "overall": c.tweaked.overall - c.base.overall,
        "E": c.E,
        "worst_drop": c.worst_drop,
        "auroc": float(np.nanmean(c.tweaked.auroc[targets] - c.base.auroc[targets])),
        "parameters": candidate.delta.parameters,
        "target_examples": int(np.isin(test.labels, targets).sum()),
    }


def c_nll(candidate: Candidate, setting: Setting) -> float:
    """Log loss on validation at the operating point."""
    return compare_logits(setting.validation.logits, candidate.logits, setting.validation.labels).tweaked.nll
