"""Methods that fit a new linear part on frozen features: the last layer, random neurons, Head2Toe."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import torch

from tweaknn.baselines.biases import target_scales
from tweaknn.baselines.outcome import NotApplicable, Outcome
from tweaknn.baselines.registry import method
from tweaknn.baselines.rule import Score, keeps, pick, score
from tweaknn.baselines.surgery import find_head
from tweaknn.baselines.task import Task
from tweaknn.fit.convex import LinearFit, fit_path
from tweaknn.measure import negative_log_likelihood
from tweaknn.network.modes import call, eval_mode, placement, to_model

L2 = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)


@method("last-layer", "the last linear layer refitted, its optimum", depends_on_targets=False)
def last_layer(task: Task) -> Outcome:
    """The last linear layer at the optimum of its convex loss; L2 (towards the base's weights) by validation log
    loss."""
    x = {split: head_features(task, split) for split in ("train", "validation", "test")}
    fit = _fit(task, x, task.weights())
    return _linear_outcome(task, x, fit, {"l2": fit.l2})


@method("last-layer-weighted", "the last linear layer refitted, the targets' loss times a penalty")
def last_layer_weighted(task: Task) -> Outcome:
    """As ``last-layer`` with the targets' examples weighted; the penalty by section 3.1 on validation."""
    x = {split: head_features(task, split) for split in ("train", "validation", "test")}
    y, labels = task.labels("train"), task.labels("validation")
    base = score(task.logits["validation"], labels, task.targets)
    tried: list[tuple[float, LinearFit, Score]] = []
    own = task.weights()
    for penalty in task.training.penalties:
        weight = np.where(np.isin(y, task.targets), penalty, 1.0) * (1.0 if own is None else own)
        fit = _fit(task, x, weight)
        after = score(fit.logits(x["validation"], task.logits["validation"]), labels, task.targets)
        tried.append((penalty, fit, after))
        if not keeps(after, base, 0.01):
            break
    penalty, fit, _ = tried[pick([s for _, _, s in tried], base)]
    return _linear_outcome(task, x, fit, {"l2": fit.l2, "penalty": penalty})


@method("random-neurons", "synapses from neurons drawn by lot, equal weights")
def random_neurons(task: Task, sizes: tuple[int, ...] = (40, 80, 120)) -> Outcome:
    """The join's control: n neurons drawn by lot in place of the chosen ones; n and scale on validation by the
    same rule.

    Neurons are pooled ones of all layers, each divided by its mean on the train split, so that none of them
    dominates.
    """
    table, val, test = (task.table(split) for split in ("train", "validation", "test"))
    rng = np.random.default_rng([task.seed, 7])
    scale = table.features.mean(0)
    alive = np.flatnonzero(np.abs(scale) > 1e-6)
    labels = task.labels("validation")
    best = None
    for n in dict.fromkeys(min(n, len(alive)) for n in sizes):
        chosen = {j: rng.choice(alive, n, replace=False) for j in task.targets}

        def direction(features: np.ndarray, j: int, chosen: dict = chosen, n: int = n) -> np.ndarray:
            return (features[:, chosen[j]] / scale[chosen[j]]).sum(1) / n

        found = target_scales(val.logits, labels, task.targets, {j: direction(val.features, j) for j in task.targets})

        def moved(logits: np.ndarray, features: np.ndarray, found: dict = found, direction=direction) -> np.ndarray:  # type: ignore[no-untyped-def]
            z = logits.copy()
            for j, s in found.items():
                z[:, j] += np.float32(s) * direction(features, j)
            return z

        after = score(moved(val.logits, val.features), labels, task.targets)
        if best is None or (after.target, after.overall) > best[0]:
            rows = task.evaluation
            made = moved(val.logits[rows], val.features[rows]), moved(test.logits, test.features)
            best = (after.target, after.overall), made, n, found
    assert best is not None
    _, (evaluation, on_test), n, found = best
    settings = {"n": n, "scale": {task.classes[j]: s for j, s in found.items()}}
    return Outcome(evaluation, on_test, n * len(task.targets), settings)


@method("head2toe", "neurons of all layers chosen by group lasso, new linear part on them", depends_on_targets=False)
def head2toe(task: Task, fractions: tuple[float, ...] = (0.05, 0.2, 0.5)) -> Outcome:
    """Head2Toe-style selection (Evci et al. 2022): group lasso over all layers' pooled neurons, then a plain refit.

    A neuron is one group: it serves all logits or none. Relevance is its row's norm in a group-lasso fit (proximal
    gradient, base logits as offsets); the fraction kept and the refit's L2 are chosen by validation log loss.
    """
    x = {split: task.table(split).features for split in ("train", "validation", "test")}
    relevance = group_lasso(x["train"], task.logits["train"], task.labels("train"), task.weights(), seed=task.seed)
    order = np.argsort(-relevance, kind="stable")
    best = None
    for fraction in fractions:
        columns = np.sort(order[: max(1, round(fraction * len(order)))])
        part = {split: values[:, columns] for split, values in x.items()}
        fit = _fit(task, part, task.weights())
        loss = negative_log_likelihood(
            fit.logits(part["validation"], task.logits["validation"]), task.labels("validation")
        )
        if best is None or loss < best[0]:
            best = loss, part, fit, fraction, len(columns)
    assert best is not None
    _, part, fit, fraction, kept = best
    return _linear_outcome(task, part, fit, {"l2": fit.l2, "fraction": fraction, "neurons": kept})


def group_lasso(
    features: np.ndarray,
    offsets: np.ndarray,
    labels: np.ndarray,
    weight: np.ndarray | None = None,
    *,
    strength: float = 0.1,
    rows: int = 10_000,
    steps: int = 150,
    seed: int = 0,
) -> np.ndarray:
    """Relevance ``(f,)`` of neurons: the row norms of a multinomial group-lasso fit (FISTA, standardised features).

    ``strength`` is a fraction of the smallest penalty that would leave every neuron out; at most ``rows`` examples
    are used.
    Neurons the penalty leaves out are ranked by their gradient, below all that it keeps.
    """
    rng = np.random.default_rng([seed, 11])
    at = np.sort(rng.choice(len(labels), min(rows, len(labels)), replace=False))
    x = torch.from_numpy(features[at].astype(np.float32))
    deviation = x.std(0)
    x = torch.where(deviation > 1e-7, (x - x.mean(0)) / deviation.clamp_min(1e-7), 0.0)
    z = torch.from_numpy(offsets[at].astype(np.float32))
    y = torch.from_numpy(labels[at])
    a = (
        torch.full((len(at),), 1.0 / len(at))
        if weight is None
        else torch.from_numpy(weight[at] / weight[at].sum()).float()
    )
    onehot = torch.nn.functional.one_hot(y, z.shape[1]).float()

    def gradient(w: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        residual = (torch.softmax(z + x @ w + b, 1) - onehot) * a[:, None]
        return x.T @ residual, residual.sum(0)

    f, c = x.shape[1], z.shape[1]
    w, b = torch.zeros(f, c), torch.zeros(c)
    start, _ = gradient(w, b)
    penalty = strength * float(start.norm(dim=1).max())
    # Largest eigenvalue of the weighted second moments bounds the curvature (softmax: by a half).
    v = torch.ones(f)
    for _ in range(30):
        v = x.T @ (a * (x @ v))
        v = v / v.norm().clamp_min(1e-12)
    lipschitz = 0.5 * float((v @ (x.T @ (a * (x @ v)))).clamp_min(1e-6)) * 1.05 + 0.5
    u, d, t = w, b, 1.0
    for _ in range(steps):
        gw, gb = gradient(u, d)
        new = u - gw / lipschitz
        norm = new.norm(dim=1, keepdim=True).clamp_min(1e-12)
        new = new * (1 - penalty / lipschitz / norm).clamp_min(0)
        new_b = d - gb / lipschitz
        t_new = (1 + (1 + 4 * t * t) ** 0.5) / 2
        u, d = new + (t - 1) / t_new * (new - w), new_b + (t - 1) / t_new * (new_b - b)
        w, b, t = new, new_b, t_new
    relevance = w.norm(dim=1).numpy().astype(np.float64)
    left_out = relevance == 0
    if left_out.any() and (~left_out).any():
        slope = gradient(w, b)[0].norm(dim=1).numpy()
        relevance[left_out] = slope[left_out] / max(slope.max(), 1e-12) * relevance[~left_out].min() * 0.5
    return relevance


def head_features(task: Task, split: str) -> np.ndarray:
    """Input ``(n, f)`` of the last linear layer on a split; from the pooled table where it holds just that.

    Raises :class:`~tweaknn.baselines.outcome.NotApplicable` when the logits are not the output of a linear layer.
    """
    name, head = find_head(task.model, task.train.batch([0, 0])[0])
    probe = np.arange(min(8, len(task.examples(split))))
    with suppress(NotApplicable):  # no hidden neurons: the head reads the input itself
        table = task.table(split)
        last = table.features[:, table.spans()[-1]]
        if last.shape[1] == head.in_features:
            seen = _inputs(task, name, split, probe)
            if np.allclose(seen, last[probe], rtol=1e-4, atol=1e-5):
                return last
    return _inputs(task, name, split, np.arange(len(task.examples(split))))


def _inputs(task: Task, name: str, split: str, indices: np.ndarray) -> np.ndarray:
    seen: list[np.ndarray] = []
    module = task.model.get_submodule(name)
    handle = module.register_forward_pre_hook(
        lambda m, args: seen.append(args[0].detach().float().cpu().numpy().copy())
    )
    device, dtype = placement(task.model)
    try:
        with eval_mode(task.model), torch.inference_mode():
            for x, _ in task.examples(split).loader(task.batch_size, indices):
                call(task.model, to_model(x, device, dtype))
    finally:
        handle.remove()
    return np.concatenate(seen).reshape(len(indices), -1)


def _fit(task: Task, x: dict[str, np.ndarray], weight: np.ndarray | None) -> LinearFit:
    """The fit whose L2 has the lowest log loss on validation, all classes weighted as in training."""
    fits = fit_path(x["train"], task.logits["train"], task.labels("train"), L2, sample_weight=weight)
    y = task.labels("validation")
    losses = [negative_log_likelihood(fit.logits(x["validation"], task.logits["validation"]), y) for fit in fits]
    return fits[int(np.argmin(losses))]


def _linear_outcome(task: Task, x: dict[str, np.ndarray], fit: LinearFit, settings: dict) -> Outcome:
    evaluation = fit.logits(x["validation"][task.evaluation], task.judged()[0])
    test = fit.logits(x["test"], task.logits["test"])
    return Outcome(evaluation, test, int(fit.weight.size + fit.bias.size), settings)
