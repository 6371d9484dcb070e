"""From a user's words (``timm:resnet18``, ``photos/``, ``x.parquet``, ``net.py:make``) to a module and
examples."""

from tweaknn.inputs.data import load_data
from tweaknn.inputs.examples import Examples
from tweaknn.inputs.labels import ClassMatch, align, match_classes
from tweaknn.inputs.models import LoadedModel, load_model
from tweaknn.inputs.preprocess import Preprocess, resolve_preprocess
from tweaknn.inputs.wrap import as_examples, batches_of, one_class

__all__ = [
    "ClassMatch",
    "Examples",
    "LoadedModel",
    "Preprocess",
    "align",
    "as_examples",
    "batches_of",
    "load_data",
    "load_model",
    "match_classes",
    "one_class",
    "resolve_preprocess",
]
