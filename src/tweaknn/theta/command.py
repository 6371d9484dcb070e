"""What ``tweaknn synapses`` does, without the command line."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from tweaknn.errors import InputError
from tweaknn.network.reader import Reader
from tweaknn.theta.blocks import plan, widths
from tweaknn.theta.observe import observe, seconds_an_example
from tweaknn.theta.stream import Settings, micro_batch

Bar = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


@dataclass(frozen=True)
class Request:
    """Settings of ``tweaknn synapses``; see its options."""

    layers: str | Sequence[str] = "all"
    targets: Sequence[str | int] | None = None
    form: str = "plain"
    budget: int = 1
    reduction: str = "position"
    memory: int | None = None
    resume: Path | None = None
    engine: str = "local"
    ray_address: str | None = None
    devices: Sequence[str] = ()
    batch_size: int = 256
    top: int = 5


@dataclass
class Listing:
    """What was found: rows written, neurons, and by class the mistakes, active neurons and the best synapses."""

    rows: int
    neurons: int
    examples: int
    passes: int
    how: str
    layers: list[str]
    seconds: float
    mistakes: dict[str, int] = field(default_factory=dict)
    active: dict[str, int] = field(default_factory=dict)
    best: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def parse_bytes(text: str) -> int:
    """``4GB``, ``500MiB``, ``1.5e9``: a number of bytes. Raises InputError for anything else."""
    match = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([kmgt]?)(i?)b?\s*", text.lower())
    try:
        assert match is not None
        size = int(float(match[1]) * (1024 if match[3] else 1000) ** " kmgt".index(match[2] or " "))
        assert size > 0
    except (AssertionError, ValueError, OverflowError):
        raise InputError(f"--memory {text!r} is no amount of memory; write for example 4GB or 512MiB.") from None
    return size


def positions(names: Sequence[str | int] | None, classes: Sequence[str] | None, c: int) -> list[int]:
    """Class indices of names or numbers; all when none are given. Raises InputError listing the classes."""
    if not names:
        return list(range(c))
    known = [str(k) for k in range(c)] if classes is None else list(classes)
    found = []
    for name in names:
        text = str(name)
        if text in known:
            found.append(known.index(text))
        elif text.isdigit() and int(text) < c:
            found.append(int(text))
        else:
            listed = ", ".join(known[:30]) + (", ..." if len(known) > 30 else "")
            raise InputError(f"There is no class {text!r}; the classes are {listed}.")
    return list(dict.fromkeys(found))


def run(
    model: nn.Module,
    examples: Any,
    request: Request,
    out: Path,
    *,
    bar: Bar,
    note: Callable[[str], None] = lambda sentence: None,
) -> Listing:
    """Observe all neurons of ``model`` over ``examples`` and write the synapses to ``out``.

    Raises:
        InputError, DataError, ModelError: see :func:`tweaknn.theta.observe.observe`; nothing is written then.
    """
    n = len(examples)
    x, y = examples.batch(np.arange(min(2, n)))
    reader = Reader(model, x, layers=request.layers)
    if reader.how == "hooks":
        note(f"Neurons are read by module hooks: torch.fx cannot follow this network ({reader.why})")
    if reader.skipped:
        note(f"Outputs that hold no floating point are left out: {', '.join(reader.skipped[:5])}")
    c = int(reader(x, lambda k, activation: None).shape[1])
    targets = positions(request.targets, examples.classes, c)
    _check_targets(examples, targets, request.targets)
    loader = examples.loader(request.batch_size)
    wanted = plan(widths(reader, request.reduction), len(targets), form=request.form, budget=request.budget,
                  memory=request.memory)  # fmt: skip
    micro = micro_batch(reader.neurons, min(request.batch_size, n))
    settings = Settings(tuple(targets), request.form, request.budget, request.reduction, micro)
    if request.memory is not None or n * reader.neurons > 2_000_000_000:
        some, its = examples.batch(np.arange(min(micro, n)))
        took = seconds_an_example(reader, some, its, settings, wanted.passes[0]) * n * len(wanted.passes)
        note(
            f"{len(wanted.passes)} pass{'es' if len(wanted.passes) > 1 else ''} over {n} examples, "
            f"{wanted.largest / 1e6:.{0 if wanted.largest > 1e7 else 2}f} MB of statistics, at most about {duration(took)}"
        )
    engine = None
    if request.engine == "ray":
        from tweaknn.engines.ray import RayEngine

        engine = RayEngine(request.ray_address, note=note)
    begin = time.perf_counter()
    with bar("Observing", n * len(wanted.passes)) as progress:
        found = observe(
            reader,
            loader,
            targets,
            form=request.form,
            budget=request.budget,
            reduction=request.reduction,
            memory=request.memory,
            devices=request.devices,
            progress=progress,
            resume=request.resume,
            key={"data": examples.content_hash()} if request.resume is not None else None,
            engine=engine,
        )
    names = [str(k) for k in range(c)] if examples.classes is None else list(examples.classes)
    rows = found.write(out, names)
    listing = Listing(
        rows, wanted.neurons, found.examples, len(wanted.passes), found.how, found.layers, time.perf_counter() - begin
    )
    best = found.best(max(request.top, 1))
    active = found.active_counts()
    for row, t in enumerate(targets):
        listing.mistakes[names[t]] = int(found.mistakes[row])
        listing.active[names[t]] = int(active[row])
        ranked = best[t]
        listing.best[names[t]] = [
            {"layer": found.layers[ranked.layer[i]], "index": int(ranked.index[i]), "weight": float(ranked.weight[i]),
             "count": int(ranked.count[i])}
            for i in range(min(request.top, len(ranked.index)))
        ]  # fmt: skip
        if ranked.fell_back:
            note(f"{names[t]}: no synapse corrects a mistake, so they are ranked by threshold (100 % fall-back)")
    return listing


def _check_targets(examples: Any, targets: list[int], asked: Sequence[str | int] | None) -> None:
    if not asked:
        return
    present = np.unique(examples.labels)
    for t in targets:
        if t not in present:
            name = t if examples.classes is None else examples.classes[t]
            raise InputError(f"Class {name!r} has no examples in this data.")


def duration(seconds: float) -> str:
    """``75 -> 1 min 15 s``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
