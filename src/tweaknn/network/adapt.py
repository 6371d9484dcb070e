"""Networks whose output is no ``(examples, classes)`` yet."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tweaknn.errors import ModelError


class TwoLogits(nn.Module):
    """A binary network with one logit ``(n, 1)`` or ``(n,)`` as one of two classes: ``(0, logit)``.

    The softmax of the two is the sigmoid of the one, so accuracies, calibration and synapses keep their meaning; class
    0 is the negative one. Attach a delta to this module; its single logit is ``out[:, 1] - out[:, 0]``.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = model.training

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Logits ``(n, 2)``."""
        output = self.model(*args, **kwargs)
        logit = getattr(output, "logits", output)
        logit = logit.flatten(1)[:, :1] if logit.ndim > 1 else logit.unsqueeze(1)
        return torch.cat([torch.zeros_like(logit), logit], dim=1)


def thresholds(scores: Tensor, labels: Tensor) -> Tensor:
    """A multi-label network's best threshold for each label.

    Args:
        scores: ``(n, l)`` logits, one a label; a label is given when its logit is above its threshold.
        labels: ``(n, l)`` of 0 and 1.

    Returns:
        ``(l,)``: for each label the threshold of the highest balanced accuracy on these examples, halfway between two
        neighbouring logits and the nearest to 0 among equals; 0 for a label that is always, or never, given. As a
        change to the network a threshold is a bias: ``delta.with_bias(-thresholds(scores, labels))`` puts every
        threshold at 0.

    Raises:
        ModelError: the shapes differ, or a logit is NaN or infinite.
    """
    if scores.ndim != 2 or scores.shape != labels.shape:
        raise ModelError(f"Scores {tuple(scores.shape)} and labels {tuple(labels.shape)} must be (examples, labels).")
    if not bool(torch.isfinite(scores).all()):
        raise ModelError("A multi-label network's logits are NaN or infinite.")
    return torch.stack([_threshold(scores[:, j].double(), labels[:, j].bool()) for j in range(scores.shape[1])])


def _threshold(score: Tensor, given: Tensor) -> Tensor:
    n_given = int(given.sum())
    if n_given in (0, len(given)):
        return torch.zeros((), dtype=torch.float32)
    values, order = score.sort()
    hit = given[order].double()
    # with a threshold above the k lowest: these are rejected, the others accepted
    missed = torch.cat([hit.new_zeros(1), hit.cumsum(0)])
    rejected = torch.cat([hit.new_zeros(1), (1 - hit).cumsum(0)])
    balanced = 0.5 * ((n_given - missed) / n_given + rejected / (len(given) - n_given))
    cuts = torch.cat([values[:1] - 1, (values[:-1] + values[1:]) / 2, values[-1:] + 1])
    possible = torch.ones(len(cuts), dtype=torch.bool)
    possible[1:-1] = values[1:] > values[:-1]
    best = balanced[possible].max()
    among = cuts[possible & (balanced >= best - 1e-12)]
    return among[among.abs().argmin()].float()
