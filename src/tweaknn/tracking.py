"""Live view of long runs: TensorBoard or MLflow, by their own APIs, only when asked for.

``tracker`` tells of finished runs, ``follow`` of one training while it goes on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tweaknn.errors import InputError

Track = Callable[[int, str, dict[str, Any]], None]
Told = Callable[[int, dict[str, Any]], None]
SHOWN = ("target", "overall", "balanced", "E", "worst_drop", "auroc", "seconds")


def place_of(where: str) -> tuple[str, str]:
    """``tensorboard:FOLDER`` or ``mlflow:EXPERIMENT`` in two parts, its library imported.

    Raises :class:`~tweaknn.errors.InputError` for another word, or when the library is missing: before hours of work, not after.
    """
    kind, _, place = where.partition(":")
    if kind not in ("tensorboard", "mlflow") or not place:
        raise InputError(f"--track takes tensorboard:FOLDER or mlflow:EXPERIMENT, not '{where}'.")
    try:
        if kind == "tensorboard":
            import torch.utils.tensorboard  # noqa: F401
        else:
            import mlflow  # noqa: F401
    except ImportError as problem:
        how = "pip install 'tweaknn[log]'" if kind == "tensorboard" else "pip install mlflow (or 'tweaknn[mlflow]')"
        raise InputError(f"--track {kind} needs it installed: {how}.") from problem
    return kind, place


@contextmanager
def tracker(where: str | None) -> Iterator[Track | None]:
    """A function ``(seed, method, figures)`` that logs one finished run; None logs nothing. Raises as :func:`place_of`."""
    if where is None:
        yield None
        return
    kind, place = place_of(where)
    yield from _tensorboard(place) if kind == "tensorboard" else _mlflow(place)


@contextmanager
def follow(where: str | None, name: str) -> Iterator[Told | None]:
    """A function ``(step, figures)`` that logs how the training ``name`` stands; None logs nothing. Raises as :func:`place_of`.

    In TensorBoard every training is a run of its own (a folder under FOLDER), so that they lie over one another; in MLflow a run
    of the experiment, its figures step by step.
    """
    if where is None:
        yield None
        return
    kind, place = place_of(where)
    if kind == "tensorboard":
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(str(Path(place) / name.replace(" ", "-").replace("/", "-"))) as writer:  # type: ignore[no-untyped-call]

            def write(step: int, figures: dict[str, Any]) -> None:
                for key, value in finite(figures).items():
                    writer.add_scalar(key, value, step)  # type: ignore[no-untyped-call]
                writer.flush()  # type: ignore[no-untyped-call]

            yield write
        return
    import mlflow

    mlflow.set_experiment(place)
    with mlflow.start_run(run_name=name):
        yield lambda step, figures: mlflow.log_metrics(finite(figures), step=step)


def finite(figures: dict[str, Any]) -> dict[str, float]:
    """What can be drawn: numbers that are some."""
    numeric = {k: float(v) for k, v in figures.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
    return {k: v for k, v in numeric.items() if math.isfinite(v)}


def numbers(found: dict[str, Any]) -> dict[str, float]:
    """What of a run's figures is drawn."""
    return {key: float(found[key]) for key in SHOWN if found.get(key) is not None}


def _tensorboard(folder: str) -> Iterator[Track]:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(folder)  # type: ignore[no-untyped-call]

    def log(seed: int, name: str, found: dict[str, Any]) -> None:
        for key, value in numbers(found).items():
            writer.add_scalar(f"{name}/{key}", value, seed)  # type: ignore[no-untyped-call]
        writer.flush()  # type: ignore[no-untyped-call]

    try:
        yield log
    finally:
        writer.close()  # type: ignore[no-untyped-call]


def _mlflow(experiment: str) -> Iterator[Track]:
    import mlflow

    mlflow.set_experiment(experiment)

    def log(seed: int, name: str, found: dict[str, Any]) -> None:
        with mlflow.start_run(run_name=f"{name} seed {seed}"):
            mlflow.log_params({"method": name, "seed": seed, "reason": found["reason"] or "none"})
            mlflow.log_metrics(numbers(found))

    yield log
