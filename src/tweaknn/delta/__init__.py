"""Δnn as a value and as a file: what it reads, what it adds, for which base."""

from tweaknn.delta.attach import Tweaked
from tweaknn.delta.heads import MLP, Linear
from tweaknn.delta.value import LOGITS, Delta, Read, Term, synapses

__all__ = ["LOGITS", "MLP", "Delta", "Linear", "Read", "Term", "Tweaked", "synapses"]
