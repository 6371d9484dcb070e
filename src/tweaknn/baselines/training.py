"""Fine-tuning as every training baseline uses it: seeded, with checkpoints, on batches from memory."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from tweaknn.errors import InputError, ModelError
from tweaknn.network.modes import call, logits_of, placement, to_model

if TYPE_CHECKING:
    from tweaknn.inputs import Examples

Optimiser = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
Schedule = Callable[[torch.optim.Optimizer, int], Any]
Augment = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


@dataclass(frozen=True)
class Training:
    """How fine-tuning baselines train.

    ``epochs`` over the train split, or exactly ``iterations`` when given. ``optimiser``: ``sgd`` (momentum 0.9, weight
    decay ``weight_decay``), ``adamw``, or any function from parameters to an optimiser. ``schedule``: ``cosine``,
    ``constant``, or any function ``(optimiser, iterations) -> scheduler`` stepped once an iteration. ``augment``:
    ``none``, ``shift``, ``flip-shift`` or any function ``(x, generator) -> x``. ``checkpoints``: how many moments of
    the last half (the end included) are kept to measure fluctuation; the result is always the last. ``penalties``:
    candidates of the loss penalty on the targets (section 3.1), tried in rising order. ``scratch_epochs``,
    ``scratch_lr``: for training from the beginning (Retraining-3); None takes ten times the fine-tuning's.

    Raises:
        InputError: nothing to train for, or a size that is not positive.
    """

    epochs: float = 1.0
    iterations: int | None = None
    batch_size: int = 128
    lr: float = 0.01
    weight_decay: float = 1e-4
    optimiser: str | Optimiser = "sgd"
    schedule: str | Schedule = "cosine"
    augment: str | Augment = "none"
    checkpoints: int = 3
    penalties: tuple[float, ...] = (1.3, 1.6, 2.0, 5.0, 10.0, 20.0, 30.0)
    scratch_epochs: float | None = None
    scratch_lr: float = 0.05

    def __post_init__(self) -> None:
        if self.epochs <= 0 or (self.iterations is not None and self.iterations < 1):
            raise InputError("Training needs a positive number of epochs or iterations.")
        if self.batch_size < 2 or self.lr <= 0 or self.checkpoints < 1 or not self.penalties:
            raise InputError(
                "Training needs batches of 2 or more, a positive learning rate, a checkpoint and a penalty."
            )
        if isinstance(self.optimiser, str) and self.optimiser not in ("sgd", "adamw"):
            raise InputError(f"Unknown optimiser {self.optimiser!r}; choose sgd or adamw.")
        if isinstance(self.schedule, str) and self.schedule not in ("cosine", "constant"):
            raise InputError(f"Unknown schedule {self.schedule!r}; choose cosine or constant.")
        if isinstance(self.augment, str) and self.augment not in ("none", "shift", "flip-shift"):
            raise InputError(f"Unknown augmentation {self.augment!r}; choose none, shift or flip-shift.")

    def steps(self, n: int, factor: float = 1.0) -> int:
        """Iterations for ``n`` examples; ``factor`` times as many for training from the beginning."""
        if self.iterations is not None:
            return max(1, round(self.iterations * factor))
        return max(1, round(self.epochs * factor * n / self.batch_size))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready settings; functions by their names."""

        def plain(value: Any) -> Any:
            return getattr(value, "__qualname__", repr(value)) if callable(value) else value

        return {name: plain(getattr(self, name)) for name in self.__dataclass_fields__}


@dataclass(eq=False)
class Trained:
    """The network after training and its state at the earlier checkpoints (the last one left out)."""

    model: nn.Module
    earlier: list[dict[str, torch.Tensor]]
    iterations: int

    def replay(self) -> Iterator[nn.Module]:
        """The network as it was at each earlier checkpoint (one module, reloaded)."""
        now = {k: v.clone() for k, v in self.model.state_dict().items()}
        try:
            for state in self.earlier:
                self.model.load_state_dict(state)
                yield self.model
        finally:
            self.model.load_state_dict(now)


def train(
    model: nn.Module,
    examples: Examples,
    training: Training,
    generator: torch.Generator,
    *,
    class_weight: np.ndarray | None = None,
    sampling: np.ndarray | None = None,
    parameters: Iterable[nn.Parameter] | None = None,
    iterations: int | None = None,
    lr: float | None = None,
    told: Callable[[int, dict[str, Any]], None] | None = None,
    watch: Callable[[int], None] | None = None,
) -> Trained:
    """Minimise the mean of ``class_weight[y] * cross entropy`` over random batches; changes ``model`` in place.

    ``class_weight (c,)``: the loss penalty of section 3.1 (not normalised: a penalty of 2 doubles the target's
    gradient).
    ``sampling (n,)``: probabilities of drawing each example (with replacement); None goes through random
    permutations.
    ``parameters``: what is trained (default: all that require a gradient). ``told(iteration, figures)``: the mean loss of every
    epoch, and ten times in all where there are fewer. ``watch(iteration)``: called after every step.

    Raises :class:`~tweaknn.errors.ModelError` when the loss is no longer finite.
    """
    device, dtype = placement(model)
    steps = iterations or training.steps(len(examples))
    wanted = [p for p in (parameters if parameters is not None else model.parameters()) if p.requires_grad]
    optimiser = _optimiser(training, wanted, lr or training.lr)
    scheduler = _schedule(training, optimiser, steps)
    weight = None if class_weight is None else torch.as_tensor(class_weight, dtype=dtype, device=device)
    augment = _augment(training.augment)
    kept_at = checkpoint_steps(steps, training.checkpoints)
    earlier: list[dict[str, torch.Tensor]] = []
    losses: list[torch.Tensor] = []
    epoch = len(examples) / training.batch_size
    every = max(1, min(round(epoch), steps // 10))
    was_training = model.training
    model.train()
    try:
        batches = _batches(examples.labels, training.batch_size, sampling, generator)
        for step in range(1, steps + 1):
            x, y = examples.batch(next(batches))
            x = to_model(augment(x, generator), device, dtype)
            y = y.to(device)
            loss = F.cross_entropy(logits_of(call(model, x)), y, reduction="none")
            loss = (loss if weight is None else loss * weight[y]).mean()
            if not torch.isfinite(loss):
                raise ModelError(
                    f"Training diverged: the loss is {float(loss.detach())} at iteration {step}; lower --lr."
                )
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            if scheduler is not None:
                scheduler.step()
            if step in kept_at and step < steps:
                earlier.append({k: v.detach().clone() for k, v in model.state_dict().items()})
            if watch is not None:
                watch(step)
            if told is not None:
                losses.append(loss.detach())
                if step % every == 0 or step == steps:
                    told(step, {"loss": float(torch.stack(losses).mean()), "epoch": step / epoch})
                    losses.clear()
    finally:
        model.train(was_training)
    return Trained(model.eval(), earlier, steps)


def checkpoint_steps(steps: int, checkpoints: int) -> set[int]:
    """``checkpoints`` moments evenly spread over the last half of ``steps`` iterations, the last included."""
    return {int(k) for k in np.linspace(max(1, steps // 2), steps, checkpoints).round()} if checkpoints > 1 else {steps}


def fresh_copy(model: nn.Module) -> nn.Module:
    """A deep copy whose parameters can be trained."""
    twin = copy.deepcopy(model)
    for parameter in twin.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(True)
    return twin


def _batches(
    labels: np.ndarray, size: int, sampling: np.ndarray | None, generator: torch.Generator
) -> Iterator[np.ndarray]:
    n = len(labels)
    size = min(size, max(2, n))
    if sampling is not None:
        p = torch.as_tensor(np.asarray(sampling, dtype=np.float64))
        while True:
            yield torch.multinomial(p, size, replacement=True, generator=generator).numpy()
    left = np.empty(0, dtype=np.int64)
    while True:
        while len(left) < size:
            left = np.concatenate([left, torch.randperm(n, generator=generator).numpy()])
        yield left[:size]
        left = left[size:]


def _optimiser(training: Training, parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    if callable(training.optimiser):
        return training.optimiser(parameters)
    if training.optimiser == "adamw":
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=training.weight_decay)
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=training.weight_decay)


def _schedule(training: Training, optimiser: torch.optim.Optimizer, steps: int) -> Any:
    if callable(training.schedule):
        return training.schedule(optimiser, steps)
    if training.schedule == "constant":
        return None
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)


def _augment(kind: str | Augment) -> Augment:
    if callable(kind):
        return kind
    if kind == "none":
        return lambda x, generator: x
    flip = kind == "flip-shift"
    return lambda x, generator: shifted(x, generator, flip)


def shifted(x: torch.Tensor, generator: torch.Generator, flip: bool) -> torch.Tensor:
    """Images ``(n, ch, h, w)`` moved by up to an eighth of their height and width, half of them mirrored if
    ``flip``."""
    if x.ndim != 4:
        raise InputError("Augmentation by shift or flip needs images; use --augment none.")
    n, _, h, w = x.shape
    if flip:
        mirror = torch.rand(n, generator=generator) < 0.5
        x = torch.where(mirror[:, None, None, None], x.flip(3), x)
    pad_h, pad_w = max(1, h // 8), max(1, w // 8)
    padded = F.pad(x, (pad_w, pad_w, pad_h, pad_h), mode="reflect" if min(h, w) > max(pad_h, pad_w) else "constant")
    top = torch.randint(0, 2 * pad_h + 1, (n,), generator=generator)
    left = torch.randint(0, 2 * pad_w + 1, (n,), generator=generator)
    rows = (top[:, None] + torch.arange(h))[:, None, :, None]
    columns = (left[:, None] + torch.arange(w))[:, None, None, :]
    return padded[torch.arange(n)[:, None, None, None], torch.arange(x.shape[1])[None, :, None, None], rows, columns]
