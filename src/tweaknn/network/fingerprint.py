"""A base network's identity: the SHA-256 of everything it has learned."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from tweaknn.network.modes import has_numbers

_WRAPPERS = ("_orig_mod.", "module.")


def fingerprint(model: nn.Module) -> str:
    """SHA-256 (64 hex digits) over names, dtypes, shapes and bytes of all parameters and buffers of ``model``.

    The wrappers of ``torch.compile`` and ``DataParallel`` are looked through, and neither device nor memory format
    matters: the same weights give the same fingerprint. A buffer that a network keeps out of its state dict counts
    too, since it shapes the output as much as any other. Raises ModelError for weights on ``meta``.
    """
    digest = hashlib.sha256()
    tensors = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    for name in sorted(tensors, key=_plain):
        tensor = tensors[name].detach()
        has_numbers(tensor)
        digest.update(f"{_plain(name)}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        flat = tensor.cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    return digest.hexdigest()


def _plain(name: str) -> str:
    while name.startswith(_WRAPPERS):
        for wrapper in _WRAPPERS:
            name = name.removeprefix(wrapper)
    return name
