"""State dicts of strangers: read without running code, matched to a module strictly."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tweaknn.errors import ModelError

_WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "weights", "params")
# Prefixes that DataParallel, torch.compile, Lightning and EMA wrappers put before every name.
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.")


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """Tensors by name from ``.safetensors``, ``.pt`` or ``.pth``; pickles are read with ``weights_only=True``.

    Raises :class:`~tweaknn.errors.ModelError` when the file is missing, truncated, would run code, or has no tensors.
    """
    file = Path(path)
    if not file.is_file():
        raise ModelError(f"there is no weights file '{file}'.")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            loaded: Any = load_file(file)
        else:
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as problem:
        raise ModelError(
            f"'{file}' is not a plain state dict (it is damaged, or holds objects whose loading could run code); "
            f"save model.state_dict()."
        ) from problem
    except Exception as problem:
        first = (str(problem).splitlines() or [type(problem).__name__])[0][:160]
        raise ModelError(f"'{file}' cannot be read as weights (truncated or another format?): {first}") from problem
    return _unwrap(loaded, file)


def _unwrap(loaded: Any, file: Path) -> dict[str, torch.Tensor]:
    for _ in range(3):
        if not isinstance(loaded, Mapping):
            break
        inner = next((loaded[k] for k in _WRAPPERS if isinstance(loaded.get(k), Mapping)), None)
        if inner is None or any(isinstance(v, torch.Tensor) for v in loaded.values()):
            break
        loaded = inner
    if not isinstance(loaded, Mapping) or not any(isinstance(v, torch.Tensor) for v in loaded.values()):
        raise ModelError(f"'{file}' holds no tensors by name: it is not a state dict.")
    return {str(k): v for k, v in loaded.items() if isinstance(v, torch.Tensor)}


def load_into(module: nn.Module, state: dict[str, torch.Tensor], path: str | Path) -> None:
    """Copy ``state`` into ``module``; every name and shape must agree (batch norm's step counters may be absent).

    Raises :class:`~tweaknn.errors.ModelError` naming the first few that do not; the module is then unchanged.
    """
    own = module.state_dict()
    state = _without_prefix(state, set(own))
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in own]
    unequal = [k for k in own if k in state and own[k].shape != state[k].shape]
    faults = []
    if missing:
        faults.append(f"{len(missing)} tensors are missing ({_first(missing)})")
    if unexpected:
        faults.append(f"{len(unexpected)} are unexpected ({_first(unexpected)})")
    if unequal:
        k = unequal[0]
        faults.append(
            f"{len(unequal)} have another shape ({k}: {tuple(state[k].shape)} instead of {tuple(own[k].shape)})"
        )
    if faults:
        raise ModelError(f"the weights '{path}' do not fit the network: {'; '.join(faults)}.")
    bad = next((k for k, v in state.items() if v.is_floating_point() and not torch.isfinite(v).all()), None)
    if bad is not None:
        raise ModelError(f"the weights '{path}' hold NaN or infinite values in '{bad}'.")
    module.load_state_dict(state, strict=False)


def _without_prefix(state: dict[str, torch.Tensor], own: set[str]) -> dict[str, torch.Tensor]:
    for _ in range(3):
        if own & set(state):
            return state
        prefix = next((p for p in _PREFIXES if all(k.startswith(p) for k in state)), None)
        if prefix is None:
            return state
        state = {k[len(prefix) :]: v for k, v in state.items()}
    return state


def _first(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def infer_classes(state: dict[str, torch.Tensor], usual: Mapping[str, torch.Tensor]) -> int | None:
    """Number of outputs a checkpoint was trained with, when it is not the architecture's usual one.

    ``usual`` is the state dict of the architecture as it comes. A checkpoint with another number of classes differs
    from it in the first dimension of its head, and nowhere else; None when there is no such difference. (The order
    of names says nothing: safetensors sorts them.)
    """
    state = _without_prefix(state, set(usual))
    sizes = [
        int(state[k].shape[0])
        for k, v in usual.items()
        if k in state and v.ndim >= 1 and state[k].shape != v.shape and state[k].shape[1:] == v.shape[1:]
    ]
    return sizes[-1] if sizes else None
