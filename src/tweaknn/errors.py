"""The errors tweaknn raises: one sentence each, saying what was wrong, where, and what to do.

The command line prints the sentence and exits with :attr:`TweaknnError.exit_code`; no traceback reaches a user
who merely gave bad input.
"""

from __future__ import annotations


class TweaknnError(Exception):
    """Base of every error this package raises on purpose."""

    exit_code = 2


class InputError(TweaknnError, ValueError):
    """An argument, option or array is unusable: unknown class, wrong shape, labels out of range, NaN."""


class DataError(TweaknnError):
    """Examples cannot be read or do not fit the network: unreadable image, empty folder, class mismatch."""


class ModelError(TweaknnError):
    """A network cannot be loaded, traced or read: foreign weights, changing layer sizes, NaN activations."""


class DeltaError(TweaknnError):
    """A Δnn file or value is unusable: truncated, altered, of a newer format, or made for another base."""


class TableError(TweaknnError):
    """A stored table T is unusable: altered, incomplete, or made from other data or another base."""


class NothingHelps(TweaknnError):
    """The search found no change that keeps the promise and improves the targets (exit code 3)."""

    exit_code = 3
