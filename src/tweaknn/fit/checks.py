"""What a convex fit is given, checked and brought to one form."""

from __future__ import annotations

import numpy as np
import torch

from tweaknn.errors import InputError


def validated(features, offsets, labels, sample_weight, device: str):
    """Neurons ``(n, f)``, offsets ``(n, c)`` in float64, labels ``(n,)`` and weights ``(n,)`` that sum to 1, on ``device``.

    Raises:
        InputError: shapes disagree, labels are out of range or no integers, offsets or weights are not finite.
    """
    x = torch.as_tensor(features).to(device)
    z = torch.as_tensor(offsets).to(device, torch.float64)
    y = torch.as_tensor(labels).to(device)
    if x.ndim != 2 or z.ndim != 2 or y.ndim != 1 or not len(x) == len(z) == len(y):
        raise InputError(
            f"features (n, f), offsets (n, c) and labels (n,) must agree in n, got {tuple(x.shape)}, {tuple(z.shape)}, {tuple(y.shape)}."
        )
    if len(y) == 0:
        raise InputError("A fit needs at least one example; got none.")
    if y.is_floating_point() or y.dtype == torch.bool:
        raise InputError(f"labels must be integers, got {y.dtype}.")
    y = y.long()
    if int(y.min()) < 0 or int(y.max()) >= z.shape[1]:
        raise InputError(f"labels must lie in 0..{z.shape[1] - 1}, found {int(y.min())}..{int(y.max())}.")
    if not bool(torch.isfinite(z).all()):
        bad = int(torch.nonzero(~torch.isfinite(z).all(1)).flatten()[0])
        raise InputError(f"offsets of example {bad} are NaN or infinite; check the base network's logits.")
    if not x.is_floating_point():
        x = x.float()
    share = torch.ones(len(y), dtype=torch.float64, device=x.device)
    if sample_weight is not None:
        share = torch.as_tensor(sample_weight).to(device, torch.float64)
        if share.shape != y.shape or not bool(torch.isfinite(share).all()) or bool((share < 0).any()) or float(share.sum()) <= 0:
            raise InputError("sample_weight must be (n,) finite, non-negative numbers that are not all 0.")
    return x, z, y, share / share.sum()


def masks(mask, f: int, c: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Booleans (c,) of the classes that take part, and (f, c) of single synapses (None: all of those classes')."""
    if mask is None:
        return np.ones(c, dtype=bool), None
    m = np.asarray(mask.cpu() if isinstance(mask, torch.Tensor) else mask, dtype=bool)
    if m.shape == (c,):
        classes, synapses = m, None
    elif m.shape == (f, c):
        classes, synapses = np.asarray(m.any(0)), m
    else:
        raise InputError(f"mask must have shape ({c},) or ({f}, {c}), got {m.shape}.")
    if not classes.any():
        raise InputError("mask leaves no synapse to fit; allow at least one class.")
    return classes, synapses
