"""``load_model``: ``file.py:function``, ``torchvision:NAME``, ``timm:NAME`` or a trained directory to a module."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tweaknn.errors import ModelError, TweaknnError
from tweaknn.inputs.preprocess import Preprocess, of_timm, of_torchvision
from tweaknn.inputs.userfile import call_user, load_function, split_spec
from tweaknn.inputs.weights import infer_classes, load_into, read_weights

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class LoadedModel:
    """A network in eval mode and what is known of it.

    ``classes``: a name an output, or None. ``preprocess``: what its library says, or plain ``x/255`` with the number
    of channels its first convolution takes; None when it takes no images. ``notes``: sentences for the user.
    """

    module: nn.Module
    classes: list[str] | None
    preprocess: Preprocess | Callable[[Any], torch.Tensor] | None
    spec: str
    notes: list[str] = field(default_factory=list)


def load_model(
    spec: str | Path,
    *,
    weights: str | Path | None = None,
    device: str | torch.device = "cpu",
    num_classes: int | None = None,
) -> LoadedModel:
    """The network a user names, in eval mode on ``device``.

    ``spec``: ``file.py:function`` returning an ``nn.Module``; ``torchvision:NAME``; ``timm:NAME``; ``hf:NAME``; or a directory
    made by
    ``tweaknn train``. ``weights``: a ``.safetensors``, ``.pt`` or ``.pth`` state dict (read without running code from
    it; ``module.`` prefixes and wrappers such as ``{"state_dict": ...}`` are seen through); without, the library's
    own
    trained weights. ``num_classes``: outputs of an architecture loaded with ``weights`` (default: as its last layer
    there). A module may name its outputs in ``.classes`` or ``.class_names``.

    Raises :class:`~tweaknn.errors.ModelError` in one sentence.
    """
    text = str(spec)
    where = usable_device(device)
    if split_spec(text) is not None:
        made = _from_file(text, weights)
    elif text.startswith("torchvision:"):
        made = _from_torchvision(text, weights, num_classes)
    elif text.startswith("timm:"):
        made = _from_timm(text, weights, num_classes)
    elif text.startswith("hf:"):
        from tweaknn.inputs.huggingface import load

        module, classes, preprocess = load(text, weights)
        made = LoadedModel(module, classes, preprocess, text)
    elif Path(text).is_dir():
        made = _from_directory(text, weights)
    else:
        raise ModelError(
            f"'{text}' is not a network: give file.py:function, torchvision:NAME, timm:NAME, hf:NAME or a trained directory."
        )
    made.module.to(where).eval()
    return made


def usable_device(device: str | torch.device) -> torch.device:
    """The device, tried out. Raises ModelError when it cannot be computed on here."""
    try:
        where = torch.device(device)
        torch.zeros(1, device=where).cpu()  # what only pretends to hold numbers (meta) is no device to compute on
    except (RuntimeError, AssertionError) as problem:
        first = (str(problem).splitlines() or ["unknown"])[0]
        raise ModelError(f"device '{device}' cannot be used here: {first}") from problem
    return where


def _from_file(text: str, weights: str | Path | None) -> LoadedModel:
    module = call_user(load_function(text, ModelError), text, ModelError)
    if not isinstance(module, nn.Module):
        raise ModelError(f"'{text}' must return an nn.Module, not {type(module).__name__}.")
    if weights is not None:
        load_into(module, read_weights(weights), weights)
    preprocess, notes = _plain_preprocess(module)
    return LoadedModel(module, _names(module, text), preprocess, text, notes)


def _names(module: nn.Module, text: str) -> list[str] | None:
    for attribute in ("classes", "class_names"):
        names = getattr(module, attribute, None)
        if isinstance(names, (list, tuple)) and names:
            if not all(isinstance(name, str) for name in names):
                raise ModelError(f"'{text}': .{attribute} must be a list of names (text).")
            return list(names)
    return None


def _plain_preprocess(module: nn.Module) -> tuple[Preprocess | None, list[str]]:
    first = next((m for m in module.modules() if isinstance(m, (*_CONVOLUTIONS, nn.Linear))), None)
    if not isinstance(first, nn.Conv2d):
        return None, []
    channels = first.in_channels if first.in_channels in (1, 3) else None
    return Preprocess(channels=channels), []


def _from_torchvision(text: str, weights: str | Path | None, num_classes: int | None) -> LoadedModel:
    from torchvision import models

    name = text.partition(":")[2]
    try:
        entry = models.get_model_weights(name)
    except ValueError:
        close = _close(name, models.list_models(module=models))
        raise ModelError(f"torchvision has no classification model '{name}'{close}.") from None
    default = entry.DEFAULT if len(entry) else None  # type: ignore[attr-defined]
    if weights is None:
        if default is None:
            raise ModelError(f"torchvision has no trained weights for '{name}'; give --weights.")
        try:
            module = models.get_model(name, weights=default)
        except Exception as problem:
            raise ModelError(_download(text, problem)) from problem
        classes = list(default.meta.get("categories", [])) or None
    else:
        state = read_weights(weights)
        module = _build(lambda **k: models.get_model(name, weights=None, **k), state, num_classes, text)
        load_into(module, state, weights)
        categories = list(default.meta.get("categories", [])) if default is not None else []
        classes = categories if categories and _outputs(module) == len(categories) else None
    preprocess = of_torchvision(default.transforms()) if default is not None else _plain_preprocess(module)[0]
    return LoadedModel(module, classes, preprocess, text)


def _build(
    make: Callable[..., nn.Module], state: dict[str, torch.Tensor], num_classes: int | None, text: str
) -> nn.Module:
    """The untrained architecture with as many outputs as the checkpoint's last layer has (or ``num_classes``)."""
    try:
        if num_classes is None:
            with torch.device("meta"):
                usual = make()
            num_classes = infer_classes(state, usual.state_dict())
        return make() if num_classes is None else make(num_classes=num_classes)
    except TweaknnError:
        raise
    except Exception as problem:
        raise ModelError(f"'{text}' cannot be built: {type(problem).__name__}: {problem}") from problem


def _outputs(module: nn.Module) -> int | None:
    """Rows of the module's last matrix (or 1x1 convolution): torchvision's classifiers end with it."""
    rows = [v.shape[0] for v in module.state_dict().values() if v.ndim == 2 or (v.ndim == 4 and v.shape[2:] == (1, 1))]
    return rows[-1] if rows else None


def _from_timm(text: str, weights: str | Path | None, num_classes: int | None) -> LoadedModel:
    try:
        import timm
    except ImportError as problem:
        raise ModelError(f"'{text}' needs timm: pip install 'tweaknn[timm]'.") from problem
    name = text.partition(":")[2]
    if not timm.is_model(name):
        close = _close(name, timm.list_models())
        raise ModelError(f"timm has no model '{name}'{close}.")
    if weights is None:
        if not timm.models.is_model_pretrained(name):
            raise ModelError(f"timm has no trained weights for '{name}'; give --weights.")
        try:
            module = timm.create_model(name, pretrained=True)
        except Exception as problem:
            raise ModelError(_download(text, problem)) from problem
    else:
        state = read_weights(weights)
        module = _build(lambda **k: timm.create_model(name, pretrained=False, **k), state, num_classes, text)
        load_into(module, state, weights)
    config = timm.data.resolve_model_data_config(module)
    return LoadedModel(module, _timm_names(module), of_timm(config), text)


def _timm_names(module: nn.Module) -> list[str] | None:
    # Only the trained ImageNet heads keep their names: another number of outputs is another problem.
    config = getattr(module, "pretrained_cfg", None) or {}
    names = config.get("label_names") if isinstance(config, dict) else None
    size = getattr(module, "num_classes", None)
    return list(names) if names and len(names) == size else None


def _from_directory(text: str, weights: str | Path | None) -> LoadedModel:
    try:
        from tweaknn.structure import load_directory  # type: ignore[attr-defined,unused-ignore]
    except ImportError as problem:
        raise ModelError(f"'{text}' is a directory, and this build cannot read trained directories.") from problem
    if weights is not None:
        raise ModelError(f"'{text}' brings its own weights; leave --weights out.")
    loaded = load_directory(text)
    if isinstance(loaded, LoadedModel):
        return loaded
    module = loaded if isinstance(loaded, nn.Module) else loaded.module
    preprocess = getattr(loaded, "preprocess", None)
    if isinstance(preprocess, Preprocess):
        plain = _plain_preprocess(module)[0]
        if preprocess.channels is None and plain is not None:
            preprocess = replace(preprocess, channels=plain.channels)  # pictures of any kind, though it was trained on grey ones
        preprocess = replace(preprocess, note=f"preprocessing is what it was trained with: {preprocess.describe()}")
    preprocess = preprocess if preprocess is not None else _plain_preprocess(module)[0]
    names = getattr(loaded, "classes", None) or _names(module, text)
    return LoadedModel(module, names, preprocess, text)


def _close(name: str, known: list[str]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, known, 3)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _download(text: str, problem: Exception) -> str:
    first = (str(problem).splitlines() or [""])[0][:160]
    return (
        f"the trained weights of '{text}' could not be downloaded ({type(problem).__name__}: {first}); give --weights."
    )
