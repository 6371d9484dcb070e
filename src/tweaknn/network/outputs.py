"""The logits of a network, with or without deltas, over a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import nn

from tweaknn.errors import InputError, ModelError
from tweaknn.network.modes import call, eval_mode, logits_of, output_of, placement, to_model


def collect_logits(
    model: nn.Module,
    batches: Iterable[tuple[Any, Any]],
    *,
    head: int | str | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Run ``model`` in eval mode over ``batches`` of ``(x, y)``.

    Returns:
        Logits ``(n, c)`` float32 and labels ``(n,)`` int64.

    Raises:
        ModelError: a logit is NaN or infinite; the message names the example.
        InputError: there is no example, or a label outside the logits' range.
    """
    device, dtype = placement(model)
    logits: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    done = 0
    with eval_mode(model), torch.inference_mode():
        for x, y in batches:
            out = logits_of(call(model, to_model(x, device, dtype)), head).float().cpu().numpy()
            if not np.isfinite(out).all():
                row = int(np.argwhere(~np.isfinite(out))[0, 0])
                raise ModelError(
                    f"The network's logits of example {done + row} are NaN or infinite; check that example."
                )
            logits.append(out)
            labels.append(np.asarray(y, dtype=np.int64))
            done += len(out)
            if progress is not None:
                progress(done)
    if not logits:
        raise InputError("There are no examples to look at.")
    all_logits, all_labels = np.concatenate(logits), np.concatenate(labels)
    if all_labels.min() < 0 or all_labels.max() >= all_logits.shape[1]:
        raise InputError(
            f"Labels run from {all_labels.min()} to {all_labels.max()}, the network has {all_logits.shape[1]} logits "
            f"(0..{all_logits.shape[1] - 1})."
        )
    return all_logits, all_labels


def collect_scores(
    model: nn.Module,
    batches: Iterable[tuple[Any, Any]],
    *,
    head: int | str | None = None,
    progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """A logit a label over ``batches`` of ``(x, y)``, of a network with several labels an example: ``(n, l)`` float32.

    Raises:
        ModelError: a logit is NaN or infinite; the message names the example.
    """
    device, dtype = placement(model)
    scores: list[np.ndarray] = []
    done = 0
    with eval_mode(model), torch.inference_mode():
        for x, _ in batches:
            out = output_of(call(model, to_model(x, device, dtype)), head).float().cpu().numpy()
            if not np.isfinite(out).all():
                row = int(np.argwhere(~np.isfinite(out))[0, 0])
                raise ModelError(f"The network's logits of example {done + row} are NaN or infinite; check that example.")
            scores.append(out)
            done += len(out)
            if progress is not None:
                progress(done)
    return np.concatenate(scores)
