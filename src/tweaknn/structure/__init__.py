"""Complexity-aware training: gates, expected complexity, surgery."""

from .analyse import analyse
from .callback import pruning_callback
from .cost import CostModel
from .plan import Plan
from .pruner import ComplexityAware
from .saved import Origin, architecture, load_directory, origin_of, save_directory
from .settings import Settings

__all__ = [
    "ComplexityAware",
    "CostModel",
    "Origin",
    "Plan",
    "Settings",
    "analyse",
    "architecture",
    "load_directory",
    "origin_of",
    "pruning_callback",
    "save_directory",
]
