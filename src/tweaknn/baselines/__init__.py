"""What a user would do instead, one small file each, behind the interface our own methods use too.

``run(name, task)`` runs one method on a :class:`Task`; ``compare`` runs many, over seeds, resumable.
"""

from tweaknn.baselines.compare import Plan, compare
from tweaknn.baselines.outcome import NotApplicable, Outcome
from tweaknn.baselines.registry import get, names, parse, run
from tweaknn.baselines.task import Task, make_task
from tweaknn.baselines.training import Training

__all__ = [
    "NotApplicable",
    "Outcome",
    "Plan",
    "Task",
    "Training",
    "compare",
    "get",
    "make_task",
    "names",
    "parse",
    "run",
]
