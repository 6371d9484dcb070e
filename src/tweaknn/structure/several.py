"""Several values of ``beta``, one network each, the best on validation kept.

Whether whole branches or units should go depends on the data: the shallow network won on CIFAR-10, the deep one on a few
thousand photographs (``docs/prune.md``). No sign of it was found before the end of training, so the honest way to choose
is to train both.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from .settings import Settings
from .training import CHECKPOINT, Trained, Trainer


def folder_of(out: Path, beta: float) -> Path:
    """Where the run of one value lives until the best is known."""
    return out / f"beta-{beta:g}"


def unfinished(out: Path) -> bool:
    """Whether ``out`` holds an interrupted run, of one value or of several."""
    return (out / CHECKPOINT).is_file() or any(out.glob(f"beta-*/{CHECKPOINT}"))


def best_of(
    betas: Sequence[float], make: Callable[[float, Path], Trainer], out: Path,
    run: Callable[[Trainer, bool], Trained], *, resume: bool = False,
) -> Trained:  # fmt: skip
    """Train a network for every value and keep the one with the highest validation accuracy (fewer FLOPs if level) in ``out``.

    ``make(beta, folder)`` gives a trainer of a fresh network, ``run(trainer, resume)`` trains it. ``facts["betas"]`` of the
    result has a row for every value. Interrupted, every value goes on where it was. Training takes the sum of the times.

    Raises:
        InputError: no value, one twice or outside [0, 1]; ``resume`` where nothing was begun.
    """
    if not betas or len(set(betas)) < len(betas):
        raise InputError("beta takes different values, for example 0,0.5")
    for beta in betas:  # before hours of training for the others
        Settings(steps=1, beta=beta)
    if resume and not unfinished(out):
        raise InputError(f"{out} holds no interrupted run to resume; leave --resume out")
    rows: list[dict[str, Any]] = []
    best: tuple[tuple[float, float], Trainer] | None = None
    for beta in betas:
        folder = folder_of(out, beta)
        folder.mkdir(parents=True, exist_ok=True)
        trainer = make(beta, folder)
        result = run(trainer, (folder / CHECKPOINT).is_file())
        facts = result.facts
        rows.append({"beta": beta, **{k: facts[k] for k in ("validation", "flops", "params", "seconds")}})
        merit = (result.accuracy, -float(facts["flops"]))
        if best is None or merit > best[0]:
            best = (merit, trainer)
    assert best is not None
    kept = best[1].deliver(out, {"betas": rows, "seconds": sum(r["seconds"] for r in rows)})
    for folder in out.glob("beta-*"):  # the last step: until here a repeated --resume finds everything
        if (folder / CHECKPOINT).is_file():
            shutil.rmtree(folder, ignore_errors=True)
    return kept
