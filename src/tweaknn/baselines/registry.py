"""All methods by name."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tweaknn.baselines.outcome import NotApplicable, Outcome
from tweaknn.baselines.task import Task
from tweaknn.errors import InputError

Run = Callable[[Task], Outcome]


@dataclass(frozen=True)
class Method:
    """A way to make targets better: ``run(task)`` gives an :class:`Outcome` or raises :class:`NotApplicable`.

    ``depends_on_targets``: whether its training is another one for other targets (else its result is shared between
    target sets). ``trains``: whether it follows the :class:`Training` settings beyond the penalties. ``ours``:
    whether this package stands behind it, rather than shows it for comparison.
    """

    name: str
    run: Run
    summary: str
    ours: bool = False
    depends_on_targets: bool = True
    trains: bool = False


_METHODS: dict[str, Method] = {}


def method(
    name: str, summary: str, *, ours: bool = False, depends_on_targets: bool = True, trains: bool = False
) -> Callable[[Run], Run]:
    """Register a function as the method ``name``."""

    def register(run: Run) -> Run:
        _METHODS[name] = Method(name, run, summary, ours, depends_on_targets, trains)
        return run

    return register


def _load() -> dict[str, Method]:
    # The modules register themselves; imported here so that importing one does not import all of them.
    from tweaknn.baselines import augmentation, biases, heads, lora, ours, retraining  # noqa: F401

    return {name: _METHODS[name] for name in ORDER if name in _METHODS}


ORDER = (
    "retraining-1",
    "retraining-2",
    "retraining-3",
    "retraining-4",
    "retraining-5",
    "calibration",
    "bias",
    "logit-adjustment",
    "last-layer",
    "last-layer-weighted",
    "da",
    "wa",
    "oversampling",
    "random-neurons",
    "head2toe",
    "lora",
    "theta",
    "retrain-1",
    "retrain-2",
    "aan",
    "fit",
    "join",
)
PREFIX = "oversampling+"


def names() -> list[str]:
    """Every method's name, in the order of the tables."""
    return list(_load())


def get(name: str) -> Method:
    """A method by name; ``oversampling+NAME`` is the method on top of an oversampled base (Table 3.10).

    Raises :class:`~tweaknn.errors.InputError` listing the names.
    """
    known = _load()
    if name in known:
        return known[name]
    under = name.removeprefix(PREFIX)
    if name.startswith(PREFIX) and under in known and under != "oversampling":
        inner = known[under]
        return Method(
            name,
            lambda task: _oversampled(task, inner),
            f"{inner.summary}, on an oversampled base",
            inner.ours,
            trains=True,
        )
    raise InputError(f"Unknown method {name!r}; choose all, or some of {', '.join(known)} (or {PREFIX}NAME).")


def parse(text: str | Sequence[str]) -> list[str]:
    """``"all"`` or ``"a,b,c"`` to names, each once. Raises InputError for an unknown one."""
    parts = [p.strip() for p in text.split(",")] if isinstance(text, str) else list(text)
    chosen: list[str] = []
    for part in parts:
        chosen += names() if part == "all" else [get(part).name] if part else []
    if not chosen:
        raise InputError("Name at least one method.")
    return list(dict.fromkeys(chosen))


def run(name: str | Method, task: Task) -> Outcome:
    """Run one method and time it. Raises :class:`NotApplicable` with the reason."""
    chosen = get(name) if isinstance(name, str) else name
    start, worked = time.perf_counter(), time.process_time()
    outcome = chosen.run(task)
    outcome.seconds, outcome.cpu_seconds = time.perf_counter() - start, time.process_time() - worked
    return outcome


def _oversampled(task: Task, inner: Method) -> Outcome:
    """Table 3.10: fine-tune the base on balanced samples first, then the method on that base, fits balanced too."""
    from tweaknn.baselines.retraining import oversampled_base

    model, parameters = oversampled_base(task)
    logits = {split: task.run(model, split) for split in ("train", "validation", "test")}
    twin = replace(task, model=model, logits=logits, oversample=True, _tables={}, _read_table=None)
    outcome = inner.run(twin)
    outcome.parameters += parameters
    outcome.delta = None
    return outcome


__all__ = ["ORDER", "Method", "NotApplicable", "get", "method", "names", "parse", "run"]
