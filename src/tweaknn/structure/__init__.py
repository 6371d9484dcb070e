"""Complexity-aware training: gates, expected complexity, surgery."""

from .analyse import analyse
from .cost import CostModel
from .plan import Plan
from .pruner import ComplexityAware
from .settings import Settings

__all__ = ["ComplexityAware", "CostModel", "Plan", "Settings", "analyse"]
