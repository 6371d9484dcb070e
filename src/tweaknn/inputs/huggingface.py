"""``hf:NAME``: image classifiers of the Hugging Face Hub, or of a local folder, with their own preprocessing."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tweaknn.errors import ModelError


def load(text: str, weights: Any = None) -> tuple[nn.Module, list[str] | None, Any]:
    """The network, the names of its outputs, and a function from a PIL image to its input.

    Weights are read from safetensors files only and no code of the repository is run. Text and audio classifiers take
    dictionaries of tensors, which image data cannot give: load them with Transformers and use tweaknn from Python.

    Raises:
        ModelError: Transformers is missing, there is no such model, it classifies no images, or needs code of its own.
    """
    if weights is not None:
        raise ModelError(f"'{text}' brings its own weights; leave --weights out.")
    try:
        from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification
    except ImportError as problem:
        raise ModelError(f"'{text}' needs Transformers: pip install transformers.") from problem
    name = text.partition(":")[2]
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        kinds = list(getattr(config, "architectures", None) or [])
        if kinds and not any(kind.endswith("ForImageClassification") for kind in kinds):
            raise ModelError(
                f"'{text}' is a {kinds[0]}, not an image classifier; load it with Transformers and use tweaknn from Python."
            )
        module = AutoModelForImageClassification.from_pretrained(name, use_safetensors=True, trust_remote_code=False)
        processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
    except ModelError:
        raise
    except Exception as problem:  # Transformers raises whatever its parts raise
        reason = (str(problem).strip().splitlines() or [type(problem).__name__])[0][:160]
        raise ModelError(f"'{text}' cannot be loaded: {reason}") from None
    labels = getattr(config, "id2label", None) or {}
    named = [str(labels[key]) for key in sorted(labels)]
    # Transformers invents LABEL_0, LABEL_1, ... where nobody named the classes
    classes = None if all(label.startswith("LABEL_") for label in named) else named

    def preprocess(image: Any) -> torch.Tensor:
        if hasattr(image, "convert"):
            image = image.convert("RGB")
        return processor(image, return_tensors="pt")["pixel_values"][0]

    return module, classes, preprocess
