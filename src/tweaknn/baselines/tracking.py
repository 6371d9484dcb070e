"""Live view of long comparisons: TensorBoard or MLflow, by their own APIs, only when asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tweaknn.errors import InputError

Track = Callable[[int, str, dict[str, Any]], None]
SHOWN = ("target", "overall", "balanced", "E", "worst_drop", "auroc", "seconds")


@contextmanager
def tracker(where: str | None) -> Iterator[Track | None]:
    """``tensorboard:FOLDER`` or ``mlflow:EXPERIMENT`` to a function that logs one finished run; None logs nothing.

    Raises :class:`~tweaknn.errors.InputError` for another word, or when the library is missing.
    """
    if where is None:
        yield None
        return
    kind, _, place = where.partition(":")
    if kind == "tensorboard" and place:
        yield from _tensorboard(place)
    elif kind == "mlflow" and place:
        yield from _mlflow(place)
    else:
        raise InputError(f"--track takes tensorboard:FOLDER or mlflow:EXPERIMENT, not '{where}'.")


def numbers(found: dict[str, Any]) -> dict[str, float]:
    """What of a run's figures is drawn."""
    return {key: float(found[key]) for key in SHOWN if found.get(key) is not None}


def _tensorboard(folder: str) -> Iterator[Track]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as problem:
        raise InputError("--track tensorboard needs it installed: pip install 'tweaknn[log]'.") from problem
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
    try:
        import mlflow
    except ImportError as problem:
        raise InputError("--track mlflow needs it installed: pip install mlflow (or 'tweaknn[mlflow]').") from problem
    mlflow.set_experiment(experiment)

    def log(seed: int, name: str, found: dict[str, Any]) -> None:
        with mlflow.start_run(run_name=f"{name} seed {seed}"):
            mlflow.log_params({"method": name, "seed": seed, "reason": found["reason"] or "none"})
            mlflow.log_metrics(numbers(found))

    yield log
