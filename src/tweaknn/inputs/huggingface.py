"""``hf:NAME``: classifiers of the Hugging Face Hub, or of a local folder, with their own preprocessing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from tweaknn.errors import DataError, ModelError

_TASKS = {
    "ForImageClassification": ("AutoModelForImageClassification", "AutoImageProcessor"),
    "ForSequenceClassification": ("AutoModelForSequenceClassification", "AutoTokenizer"),
    "ForAudioClassification": ("AutoModelForAudioClassification", "AutoFeatureExtractor"),
}
_AUDIO = ("Wav2Vec2", "Hubert", "WavLM", "UniSpeech", "Data2VecAudio", "SEW", "Whisper")
"""Families of audio networks, whose classifiers are called ``...ForSequenceClassification`` too."""

MOST_TOKENS = 128
"""Longest text, in tokens: all are cut or padded to one length, so that they can be batched in any order."""


def load(text: str, weights: Any = None) -> tuple[nn.Module, list[str] | None, Any]:
    """The network, the names of its outputs, and a function from a PIL image, a text or a waveform to its input.

    Images become a tensor, texts (padded to one length) and waveforms (1-D, at the rate the network was trained with) what
    their tokenizer or feature extractor gives: a dictionary where the network takes several tensors. Weights are read from
    safetensors files only and no code of the repository is run.

    Raises:
        ModelError: Transformers is missing, there is no such model, it classifies nothing of these, or needs code of its own.
    """
    if weights is not None:
        raise ModelError(f"'{text}' brings its own weights; leave --weights out.")
    try:
        import transformers
    except ImportError as problem:
        raise ModelError(f"'{text}' needs Transformers: pip install 'tweaknn[huggingface]'.") from problem
    name = text.partition(":")[2]
    try:
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
        task = _task(text, list(getattr(config, "architectures", None) or []))
        kind, reader = _TASKS[task]
        module = getattr(transformers, kind).from_pretrained(name, use_safetensors=True, trust_remote_code=False)
        processor = getattr(transformers, reader).from_pretrained(name, trust_remote_code=False)
    except ModelError:
        raise
    except Exception as problem:  # Transformers raises whatever its parts raise
        reason = (str(problem).strip().splitlines() or [type(problem).__name__])[0][:160]
        raise ModelError(f"'{text}' cannot be loaded: {reason}") from None
    labels = getattr(config, "id2label", None) or {}
    named = [str(labels[key]) for key in sorted(labels)]
    # Transformers invents LABEL_0, LABEL_1, ... where nobody named the classes
    classes = None if all(label.startswith("LABEL_") for label in named) else named
    makers: dict[str, Callable[..., Any]] = {
        "ForImageClassification": _images,
        "ForSequenceClassification": _texts,
        "ForAudioClassification": _sounds,
    }
    return module, classes, makers[task](processor, config)


def _task(text: str, architectures: list[str]) -> str:
    if not architectures:
        return "ForImageClassification"
    found = next((task for task in _TASKS if architectures[0].endswith(task)), None)
    if found is None:
        raise ModelError(
            f"'{text}' is a {architectures[0]}, no classifier of images, texts or sounds; load it with Transformers and use "
            "tweaknn from Python."
        )
    sounds = found == "ForSequenceClassification" and architectures[0].startswith(_AUDIO)
    return "ForAudioClassification" if sounds else found


def _images(processor: Any, config: Any) -> Callable[[Any], torch.Tensor]:
    def preprocess(image: Any) -> torch.Tensor:
        if hasattr(image, "convert"):
            image = image.convert("RGB")
        return processor(image, return_tensors="pt")["pixel_values"][0]

    return preprocess


def _texts(tokenizer: Any, config: Any) -> Callable[[Any], dict[str, torch.Tensor]]:
    most = min(MOST_TOKENS, int(getattr(tokenizer, "model_max_length", MOST_TOKENS)))
    most = min(most, int(getattr(config, "max_position_embeddings", None) or most))

    def preprocess(text: Any) -> dict[str, torch.Tensor]:
        if not isinstance(text, str):
            raise DataError(f"the network classifies texts, and this is a {type(text).__name__}.")
        found = tokenizer(text, padding="max_length", truncation=True, max_length=most, return_tensors="pt")
        return {key: value[0] for key, value in found.items()}

    return preprocess


def _sounds(extractor: Any, config: Any) -> Callable[[Any], Any]:
    def preprocess(wave: Any) -> Any:
        values = np.asarray(wave, dtype=np.float32)
        if values.ndim != 1:
            raise DataError(f"the network classifies sounds, waveforms of one axis, and this has shape {values.shape}.")
        found = extractor(values, sampling_rate=extractor.sampling_rate, return_tensors="pt")
        return {key: value[0] for key, value in found.items()}

    return preprocess
