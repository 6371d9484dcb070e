"""From a user's words (``timm:resnet18``, ``photos/``, ``x.parquet``, ``net.py:make``) to a module and
examples."""

from tweaknn.inputs.data import load_data
from tweaknn.inputs.examples import Examples, as_examples
from tweaknn.inputs.labels import ClassMatch, align, match_classes
from tweaknn.inputs.models import LoadedModel, load_model
from tweaknn.inputs.preprocess import Preprocess, resolve_preprocess

__all__ = [
    "ClassMatch",
    "Examples",
    "LoadedModel",
    "Preprocess",
    "align",
    "as_examples",
    "load_data",
    "load_model",
    "match_classes",
    "resolve_preprocess",
]
