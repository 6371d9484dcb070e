"""The dissertation's join, exactly (sections 3.2.2-3.2.3): Algorithm 1, the top n, threshold / n * scale.

``n`` and ``scale`` come from validation by the exact step-function search of :mod:`tweaknn.join.stepsearch`; with several
targets each has its own pair, by coordinate ascent. No bias is added. The controls obey the same rule: a constant on the
target's logit, random neurons of the same layers with equal weights, the last layer refitted plus such a constant.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tweaknn.delta import Delta, Read, synapses
from tweaknn.errors import InputError, ModelError
from tweaknn.join.candidates import fields_of, fitted, last_layer
from tweaknn.join.comparison import compare_logits
from tweaknn.join.operating import OperatingPoint
from tweaknn.join.promise import Promise
from tweaknn.join.setting import Candidate, Setting
from tweaknn.join.stepsearch import Limits, best_scale, correct_by_class
from tweaknn.network.layers import Layer
from tweaknn.network.reader import Reader
from tweaknn.theta.observe import Ranked, observe

if TYPE_CHECKING:
    from tweaknn.join.run import SynapticJoin

N_GRID = (1, 2, 3, 5, 8, 12, 20, 30, 40, 60, 80, 120, 150)
"""Numbers of synapses a target that are tried (Fig. 3.5 goes to 150)."""


@dataclass(frozen=True, eq=False)
class Chosen:
    """Synapses of one target at its operating point: ``weight`` holds threshold / n * scale."""

    target: int
    layer: np.ndarray
    index: np.ndarray
    weight: np.ndarray
    n: int
    scale: float


def theta_candidates(
    settings: SynapticJoin, setting: Setting, reader: Reader, train: Any, validation: Any
) -> list[Candidate]:
    """The join and its controls.

    Raises:
        InputError: the promise holds rules that a scale alone cannot be searched for (costs, specificity).
        ModelError: NaN or infinite activations.
    """
    limits = limits_of(setting)
    with settings.bar("Counting", len(train)) as progress:
        found = observe(
            reader, train.loader(settings.batch_size), setting.targets, form=settings.form, progress=progress
        )
    ranked = [found.best(N_GRID[-1], [t])[t] for t in setting.targets]
    drawn = [draw(one, reader.layers, setting.seed + k) for k, one in enumerate(ranked)]
    values = read_positions(reader, validation, settings.batch_size, [*ranked, *drawn], settings.bar)
    half = len(ranked)
    chosen = ascend(setting, limits, ranked, values[:half])
    lots = ascend(setting, limits, drawn, values[half:])
    fell_back = [setting.classes[one.target] for one in ranked if one.fell_back]
    harmless = "scale <= 1 (all neurons >= 0)" if settings.form == "plain" else "scale <= 1/2"
    notes = {
        "form": settings.form,
        "harmless_on_train": harmless if len(chosen) > 1 else "scale <= 1",
        "ranked_by_threshold": fell_back,
    }
    return [
        candidate(setting, "theta", limits, reader.layers, chosen, values[:half], ranked, **notes),
        candidate(setting, "random-neurons", limits, reader.layers, lots, values[half:], drawn),
        constant(setting, limits, "bias", setting.frame, setting.validation.logits),
        constant(setting, limits, "last-layer", *_last_layer(setting)),
    ]


def limits_of(setting: Setting) -> Limits:
    """The promise as numbers of correct validation examples."""
    promise: Promise = setting.promise.resolve(setting.classes, len(setting.classes))
    if promise.costs is not None or promise.specificity:
        raise InputError("Algorithm 1's synapses are placed by n and scale only; use --method fit with costs or a specificity.")
    labels = setting.validation.labels
    counts = np.bincount(labels, minlength=len(setting.classes))
    base = correct_by_class(setting.validation.logits, labels)
    least = np.zeros(len(counts), dtype=np.int64)
    least_overall = 0
    if promise.kind == "floors":
        least = np.maximum(0, np.ceil(base - promise.tolerance * counts - 1e-9)).astype(np.int64)
    if promise.kind == "overall":
        least_overall = int(np.ceil(base.sum() - promise.tolerance * counts.sum() - 1e-9))
    if promise.overall_drop is not None:
        least_overall = max(least_overall, int(np.ceil(base.sum() - promise.overall_drop * counts.sum() - 1e-9)))
    if promise.max_drop is not None:
        least = np.maximum(least, np.ceil(base - promise.max_drop * counts - 1e-9).astype(np.int64))
    weight = np.zeros(len(counts))
    for t in setting.targets:
        if promise.kind != "mixed":
            least[t] = base[t]
        weight[t] = promise.weights.get(t, 1.0) / counts[t]
    for j, floor in promise.floors.items():
        least[j] = max(least[j], int(np.ceil(floor * counts[j] - 1e-9)))
    share = sum(promise.weights.get(t, 1.0) for t in setting.targets)
    return Limits(least, least_overall, weight / share)


def draw(ranked: Ranked, layers: Sequence[Layer], seed: int) -> Ranked:
    """As many random neurons of the same layers, with equal weights: the control for the choice."""
    rng = np.random.default_rng(seed)
    index = np.array([rng.integers(layers[k].size) for k in ranked.layer], dtype=np.int64)
    return Ranked(ranked.target, ranked.layer, index, np.ones(len(index)), np.zeros(len(index), int), False)


def read_positions(
    reader: Reader, examples: Any, batch_size: int, ranked: Sequence[Ranked], bar: Callable[[str, int], Any]
) -> list[np.ndarray]:
    """Values ``(n, len(ranked))`` of the ranked neurons, position by position, in one pass."""
    n = len(examples)
    values = [np.zeros((n, len(one.layer)), dtype=np.float32) for one in ranked]
    wanted = {
        k: [(r, np.flatnonzero(one.layer == k)) for r, one in enumerate(ranked)] for k in range(len(reader.layers))
    }
    row = 0
    with bar("Reading chosen neurons", n) as progress:
        for x, y in examples.loader(batch_size):
            size = len(y)

            def sink(k: int, activation: torch.Tensor, row: int = row, size: int = size) -> None:
                flat = activation.reshape(size, -1)
                for r, columns in wanted[k]:
                    if len(columns):
                        index = torch.from_numpy(ranked[r].index[columns].astype(np.int64)).to(flat.device)
                        values[r][row : row + size, columns] = flat.index_select(1, index).float().cpu().numpy()

            reader(x, sink)
            row += size
            progress(row)
    for one in values:
        if not np.isfinite(one).all():
            raise ModelError(
                f"A chosen neuron is NaN or infinite for validation example {np.argwhere(~np.isfinite(one))[0, 0]}."
            )
    return values


def ascend(
    setting: Setting, limits: Limits, ranked: Sequence[Ranked], values: Sequence[np.ndarray], cycles: int = 3
) -> list[Chosen]:
    """Coordinate ascent over one ``(n, scale)`` a target, each step exact."""
    labels = setting.validation.labels
    averages = []
    for one, v in zip(ranked, values, strict=True):
        sums = np.cumsum(v * one.weight.astype(np.float32), axis=1, dtype=np.float64)
        averages.append({n: (sums[:, n - 1] / n).astype(np.float32) for n in N_GRID if n <= len(one.weight)})
    pairs: list[tuple[int, float]] = [(0, 0.0)] * len(ranked)
    if len(ranked) > 1:
        pairs = _shared_start(setting, limits, ranked, averages)
    reached = -1.0
    for _ in range(cycles if len(ranked) > 1 else 1):
        now = reached  # stays so where no target has a step that is allowed
        for k, one in enumerate(ranked):
            logits = setting.validation.logits.copy()
            for other, (n, scale) in enumerate(pairs):
                if other != k and n:
                    logits[:, ranked[other].target] += np.float32(scale) * averages[other][n]
            best: tuple[tuple[float, int, int], int, float] | None = None
            for n, average in averages[k].items():
                step = best_scale(logits, average, one.target, labels, limits)
                if step is None:
                    continue
                key = (round(step.value, 12), step.overall, -n)
                if best is None or key > best[0]:
                    best = (key, n, step.scale)
            if best is not None:
                pairs[k] = (best[1] if best[2] > 0 else 0, best[2])
                now = best[0][0]
        if now <= reached + 1e-12:
            break
        reached = now
    out = []
    for one, (n, scale) in zip(ranked, pairs, strict=True):
        weight = one.weight[:n] / max(n, 1) * scale
        out.append(Chosen(one.target, one.layer[:n], one.index[:n], weight, n, scale))
    return out


def _shared_start(
    setting: Setting, limits: Limits, ranked: Sequence[Ranked], averages: Sequence[dict[int, np.ndarray]]
) -> list[tuple[int, float]]:
    """One ``n`` and ``scale`` for all targets, as the dissertation has it (Table 3.8): a grid to start the ascent from."""
    labels = setting.validation.labels
    best_key, best = None, [(0, 0.0)] * len(ranked)
    for n in N_GRID:
        if any(n not in one for one in averages):
            continue
        scales = []
        for one, line in zip(ranked, (a[n] for a in averages), strict=True):
            rows = labels == one.target
            gap = setting.validation.logits[rows].max(1) - setting.validation.logits[rows, one.target]
            with np.errstate(divide="ignore", invalid="ignore"):
                critical = gap / line[rows]
            usable = critical[np.isfinite(critical) & (critical > 0)]
            scales.append(np.quantile(usable, np.linspace(0.05, 0.95, 16)) if len(usable) else np.zeros(16))
        for level in range(16):
            pairs = [(n, float(s[level])) for s in scales]
            logits = setting.validation.logits.copy()
            for one, average, (_, scale) in zip(ranked, averages, pairs, strict=True):
                logits[:, one.target] += np.float32(scale) * average[n]
            correct = correct_by_class(logits, labels)
            key = (limits.value(correct), int(correct.sum()))
            if limits.allows(correct) and (best_key is None or key > best_key):
                best_key, best = key, pairs
    return best


def candidate(
    setting: Setting,
    name: str,
    limits: Limits,
    layers: Sequence[Layer],
    chosen: Sequence[Chosen],
    values: Sequence[np.ndarray],
    ranked: Sequence[Ranked],
    **notes: Any,
) -> Candidate:
    """A candidate from chosen positional synapses; its operating point is ``n`` and ``scale``, no bias."""
    terms = []
    logits = setting.validation.logits.copy()
    for one, v in zip(chosen, values, strict=True):
        if not one.n:
            continue
        order = np.lexsort((one.index, one.layer))
        reads = [
            Read(
                layers[k].name,
                "position",
                layers[k].shape,
                layers[k].channel_axis,
                torch.from_numpy(one.index[order][one.layer[order] == k].astype(np.int64)),
            )
            for k in np.unique(one.layer)
        ]
        weight = one.weight[order].astype(np.float32)
        terms.append(synapses(reads, torch.from_numpy(weight)[:, None], [one.target]))
        logits[:, one.target] += v[:, : one.n][:, order] @ weight
    delta = Delta(**{**fields_of(setting.frame), "terms": tuple(terms), "kind": name})
    said = {setting.classes[one.target]: {"n": one.n, "scale": one.scale} for one in chosen}
    return _placed(setting, limits, name, delta, logits, {"per_target": said, **notes})


def constant(setting: Setting, limits: Limits, name: str, delta: Delta, logits: np.ndarray) -> Candidate:
    """Controls by the very same rule: one constant on each target's logit, on top of ``delta`` (or of nothing)."""
    labels, moved = setting.validation.labels, logits.copy()
    bias = np.zeros(logits.shape[1], dtype=np.float32)
    for _ in range(3 if len(setting.targets) > 1 else 1):
        for t in setting.targets:
            moved[:, t] = logits[:, t]
            step = best_scale(moved, np.ones(len(labels), np.float32), t, labels, limits)
            bias[t] = step.scale if step is not None else bias[t]
            moved[:, t] = logits[:, t] + bias[t]
    final = Delta(**{**fields_of(delta.with_bias(torch.from_numpy(bias))), "kind": name})
    return _placed(setting, limits, name, final, logits + bias, {})


def _last_layer(setting: Setting) -> tuple[Delta, np.ndarray]:
    """The last hidden layer refitted to all logits, before any operating point, and its validation logits."""
    made = fitted(setting, "last-layer", last_layer(setting.train))
    return made.delta, made.logits


def _placed(
    setting: Setting, limits: Limits, name: str, delta: Delta, logits: np.ndarray, notes: dict[str, Any]
) -> Candidate:
    labels = setting.validation.labels
    comparison = compare_logits(setting.validation.logits, logits, labels, setting.classes)
    correct = correct_by_class(logits, labels)
    base = correct_by_class(setting.validation.logits, labels)
    counts = np.bincount(labels, minlength=len(correct))
    feasible = limits.allows(correct)
    targets = list(setting.targets)
    point = OperatingPoint(
        bias=np.zeros(len(correct), dtype=np.float32),
        feasible=feasible,
        reason="" if feasible else "no scale keeps the promise",
        target=float((correct[targets] / counts[targets]).mean()),
        base_target=float((base[targets] / counts[targets]).mean()),
        value=limits.value(correct),
        base_value=limits.value(base),
        overall=comparison.tweaked.overall,
        base_overall=comparison.base.overall,
        per_class=comparison.tweaked.per_class,
        base_per_class=comparison.base.per_class,
        thin=(),
    )
    return Candidate(name, delta, logits, comparison, point, notes)
