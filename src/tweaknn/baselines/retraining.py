"""Retraining-1 to -5 (sections 3.1 and 3.3.2) and class-balanced oversampling (section 3.3.8)."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from tweaknn.baselines.outcome import NotApplicable, Outcome
from tweaknn.baselines.registry import method
from tweaknn.baselines.rule import Score, keeps, pick, score
from tweaknn.baselines.surgery import find_head, replace_module
from tweaknn.baselines.task import Task, seeded
from tweaknn.baselines.training import Trained, fresh_copy, train

OVERALL_LOSS = 0.01
"""Section 3.1: overall accuracy may fall by less than this on validation when the loss penalty is chosen."""

SCRATCH = 10.0
"""How much longer training from the beginning is than fine-tuning, unless ``scratch_epochs`` says otherwise."""


@method("retraining-1", "whole network fine-tuned, the targets' loss times a penalty", trains=True)
def retraining_1(task: Task) -> Outcome:
    """Retraining-1: the targets' loss multiplied."""
    return _ladder(task, "retraining-1", lambda penalty: _train(task, "retraining-1", _on_targets(task, penalty)))


@method("retraining-2", "whole network fine-tuned, the other classes' loss times 0.9 or less", trains=True)
def retraining_2(task: Task) -> Outcome:
    """Retraining-2: the off-target classes' loss multiplied by at most 0.9; the penalties' inverses are the
    ladder."""
    factors = [0.9, *(1 / p for p in task.training.penalties if 1 / p < 0.9)]

    def run(penalty: float) -> Trained:
        weight = np.full(task.n_classes, penalty)
        weight[list(task.targets)] = 1.0
        return _train(task, "retraining-2", weight)

    return _ladder(task, "retraining-2", run, factors)


@method("retraining-3", "trained from the beginning, the targets' loss times a penalty", trains=True)
def retraining_3(task: Task) -> Outcome:
    """Retraining-3: from scratch; the penalty is Retraining-1's first candidate of 2 or more, as 10 runs cost too
    much."""
    t = task.training
    penalty = next((p for p in t.penalties if p >= 2.0), t.penalties[-1])
    factor = SCRATCH if t.scratch_epochs is None else t.scratch_epochs / t.epochs
    model = reinitialised(task.model, task.seed)
    trained = _train(
        task, "retraining-3", _on_targets(task, penalty), model, t.steps(len(task.train), factor), t.scratch_lr
    )
    return outcome(task, trained, {"penalty": penalty, "iterations": trained.iterations})


@method("retraining-4", "as retraining-1, with dropout of one half before the last layer", trains=True)
def retraining_4(task: Task) -> Outcome:
    """Retraining-4: with dropout 0.5, in the network's own dropout places or before its last linear layer."""
    with_dropout(task.model, task)  # says at once when there is no place for it
    return _ladder(
        task,
        "retraining-4",
        lambda penalty: _train(task, "retraining-4", _on_targets(task, penalty), with_dropout(task.model, task)),
    )


@method("retraining-5", "whole network fine-tuned, the targets' examples drawn more often", trains=True)
def retraining_5(task: Task) -> Outcome:
    """Retraining-5: the targets' examples are drawn ``penalty`` times as often."""

    def run(factor: float) -> Trained:
        p = _sampling(task)
        p = p * np.where(np.isin(task.train.labels, task.targets), factor, 1.0)
        return _train(task, "retraining-5", None, sampling=p / p.sum())

    return _ladder(task, "retraining-5", run)


@method(
    "oversampling", "whole network fine-tuned, every class drawn equally often", depends_on_targets=False, trains=True
)
def oversampling(task: Task) -> Outcome:
    """Oversampling: each class equally often [90]; on balanced data this is plain fine-tuning."""
    p = _balanced(task)
    trained = _train(task, "oversampling", None, sampling=p)
    return outcome(task, trained, {"iterations": trained.iterations})


def oversampled_base(task: Task) -> tuple[nn.Module, int]:
    """The base fine-tuned on balanced samples, and its number of parameters."""
    model = _train(task, "oversampling", None, sampling=_balanced(task)).model
    return model, changed(model)


def reinitialised(model: nn.Module, seed: int) -> nn.Module:
    """A copy with fresh weights, from each module's own ``reset_parameters``.

    Raises :class:`NotApplicable` for parameters that no module knows how to reset.
    """
    twin = fresh_copy(model)
    reset = set()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in twin.modules():
            again = getattr(module, "reset_parameters", None)
            if callable(again):
                again()
                reset |= {id(p) for p in module.parameters(recurse=False)}
    left = [name for name, p in twin.named_parameters() if id(p) not in reset]
    if left:
        raise NotApplicable(f"the network cannot be trained from the beginning: nobody knows how to reset {left[0]}")
    return twin


def with_dropout(model: nn.Module, task: Task) -> nn.Module:
    """A copy with dropout 0.5: its own places, else one before its last linear layer. Raises NotApplicable."""
    twin = fresh_copy(model)
    places = [m for m in twin.modules() if isinstance(m, (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout))]
    for place in places:
        place.p = 0.5
    if not places:
        try:
            name, head = find_head(twin, task.train.batch([0, 0])[0])
        except NotApplicable as reason:
            raise NotApplicable(
                f"there is no place for dropout: the network has none of its own and {reason}"
            ) from None
        twin = replace_module(twin, name, nn.Sequential(nn.Dropout(0.5), head))
    return twin


def outcome(task: Task, trained: Trained, settings: dict, evaluation: np.ndarray | None = None) -> Outcome:
    """Judge a trained network: validation, test, and test at its earlier checkpoints (for their spread only)."""
    if evaluation is None:
        evaluation = task.run(trained.model, "validation", task.evaluation)
    test = task.run(trained.model, "test")
    earlier = [task.run(model, "test") for model in trained.replay()]
    return Outcome(evaluation, test, changed(trained.model), settings, [*earlier, test])


def changed(model: nn.Module) -> int:
    """Parameters that were free to change."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _on_targets(task: Task, penalty: float) -> np.ndarray:
    weight = np.ones(task.n_classes)
    weight[list(task.targets)] = penalty
    return weight


def _sampling(task: Task) -> np.ndarray:
    return _balanced(task) if task.oversample else np.full(len(task.train), 1.0 / len(task.train))


def _balanced(task: Task) -> np.ndarray:
    counts = np.bincount(task.train.labels, minlength=task.n_classes)
    p = 1.0 / counts[task.train.labels]
    return p / p.sum()


def _train(
    task: Task,
    name: str,
    class_weight: np.ndarray | None,
    model: nn.Module | None = None,
    iterations: int | None = None,
    lr: float | None = None,
    sampling: np.ndarray | None = None,
) -> Trained:
    if sampling is None and task.oversample:
        sampling = _balanced(task)
    model = fresh_copy(task.model) if model is None else model
    generator = seeded(task, name)
    with task.follow(name) as told, torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))  # dropout draws from the global state
        return train(
            model,
            task.train,
            task.training,
            generator,
            class_weight=class_weight,
            sampling=sampling,
            iterations=iterations,
            lr=lr,
            told=told,
        )


def _ladder(task: Task, name: str, run: Callable[[float], Trained], factors: list[float] | None = None) -> Outcome:
    """Section 3.1: the penalty with the best target accuracy whose overall loss stays below 1 % on validation.

    Candidates are tried from the mildest on; the first that breaks the rule ends the search, since overall
    accuracy falls
    as the penalty rises (Table 3.1).
    """
    base = score(*task.judged(), task.targets)
    labels = task.judged()[1]
    tried: list[tuple[float, Score]] = []
    runs: list[tuple[Trained, np.ndarray]] = []
    for factor in factors or task.training.penalties:
        trained = run(factor)
        logits = task.run(trained.model, "validation", task.evaluation)
        tried.append((factor, score(logits, labels, task.targets)))
        runs.append((trained, logits))
        if not keeps(tried[-1][1], base, OVERALL_LOSS):
            break
        best = pick([s for _, s in tried], base, OVERALL_LOSS)
        runs = [r if k == best else (None, None) for k, r in enumerate(runs)]  # type: ignore[misc]  # one network in memory
    chosen = pick([s for _, s in tried], base, OVERALL_LOSS)
    trained, logits = runs[chosen]
    settings = {
        "penalty": tried[chosen][0],
        "iterations": trained.iterations,
        "tried": [{"penalty": f, "target": s.target, "overall": s.overall} for f, s in tried],
    }
    return outcome(task, trained, settings, logits)
