"""Algorithm θ as a mergeable statistic: ``update(state, batch)``, ``merge(a, b)``, ``finish(state)``.

A state is a running maximum over D_c of |V|/m for every (target, neuron), i.e. 1/threshold, and a list of the mistakes
that may still be counted. A mistake's own |V|/m counts only if it reaches the final maximum, so it can be forgotten as
soon as the running maximum has passed it: one pass gives thresholds and counts, and the list stays short. Maxima and
sets of mistakes do not depend on the order in which they come, so any sharding gives the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tweaknn.errors import InputError, ModelError
from tweaknn.theta import kernels
from tweaknn.theta.finishing import EPS2, Finisher
from tweaknn.theta.relations import FLOAT_MAX, Relations, relate
from tweaknn.theta.state import Kept, State, start
from tweaknn.theta.synapses import Synapses


def update(state: State, values: np.ndarray, logits: np.ndarray, labels: np.ndarray, *, eps1: float = 0.0) -> State:
    """The state after one more batch; the given state is left as it was.

    values: ``(n, v)``; logits: ``(n, classes)``; labels: ``(n,)``.

    Raises:
        InputError: shapes do not fit. DataError: labels out of range. ModelError: NaN or infinite logits or values.
    """
    values = as_values(values, state.neurons)
    if eps1:
        values = values + np.float32(eps1)
    if len(values) != len(logits):
        raise InputError(f"{len(values)} examples of values and {len(logits)} of logits do not fit.")
    relations = relate(logits, labels, check_targets(state.targets, np.shape(logits)[1]), state.form)
    peaks = tuple(p.copy() for p in state.peaks)
    own = None if state.own is None else state.own.copy()
    fold(peaks, values, 0, relations, state.form)
    if own is not None:
        own.fold(values, 0, relations)
    after = replace(
        state,
        peaks=peaks,
        own=own,
        tied=state.tied | relations.tied,
        mistakes=state.mistakes + np.bincount(relations.wrong_target, minlength=len(state.targets)),
        examples=state.examples + len(values),
    )
    if state.kept is not None:
        found = _mistakes(after, values, relations)
        after = replace(after, kept=_join(_pruned(state.kept, after), found))
    check_finite(after, values)
    return after


def check_targets(targets: np.ndarray, classes: int) -> np.ndarray:
    """Targets as they are; InputError when one is no class of the network."""
    if targets.max() >= classes:
        raise InputError(f"Target class {int(targets.max())} does not exist: the network has {classes} classes.")
    return targets


def as_values(values: np.ndarray, neurons: int) -> np.ndarray:
    """Neuron values as contiguous float32 ``(n, v)``; half precision is widened."""
    values = np.asarray(values)
    if values.ndim != 2 or values.shape[1] != neurons:
        raise InputError(f"Neuron values have shape {values.shape}; (n, {neurons}) is needed.")
    if values.dtype == bool or not np.issubdtype(values.dtype, np.number):
        raise InputError(f"Neuron values have type {values.dtype}; floating point is needed.")
    return np.ascontiguousarray(values, dtype=np.float32)


def fold(peaks: tuple[np.ndarray, ...], values: np.ndarray, offset: int, r: Relations, form: str) -> None:
    """Fold a batch into the running maxima of a block of neurons, in place."""
    plain = form == "plain"
    if peaks[0].shape[0] > 1:
        for side, levels in zip((1.0, -1.0), peaks):
            kernels.fold_levels(values, offset, r.used, r.inverse, np.float32(side), plain, levels)
    elif plain:
        kernels.fold_plain(values, offset, r.used, r.inverse, peaks[0][0])
    else:
        kernels.fold_signed(values, offset, r.used, r.inverse, peaks[0][0], peaks[1][0])
    no_room(peaks, values, offset, r, form)


def no_room(peaks: tuple[np.ndarray, ...], values: np.ndarray, offset: int, r: Relations, form: str) -> None:
    """Examples of D_t without any slack: a push the wrong way loses them, so the threshold there is 0."""
    if form != "plain" and r.own_tied.any():
        for k, row in zip(r.own[r.own_tied], r.own_target[r.own_tied]):
            x = values[k, offset : offset + peaks[0].shape[2]]
            _insert(peaks[0][:, row], x < 0)
            _insert(peaks[1][:, row], x > 0)


def _insert(levels: np.ndarray, where: np.ndarray) -> None:
    levels[1:, where] = levels[:-1, where]
    levels[0, where] = FLOAT_MAX


def keep(state: State, values: np.ndarray, offset: int, r: Relations, out: Kept, filled: int, first: int = 0):  # type: ignore[no-untyped-def]
    """Write the batch's mistakes that reach the running maximum into ``out``: (next mistake, filled)."""
    plus, minus = state.lowest
    return kernels.keep_wrong(
        values, offset, r.wrong, r.wrong_target, r.wrong_inverse, plus, minus, state.form == "plain", first,
        len(out), out.row, out.neuron, out.ratio, filled,
    )  # fmt: skip


def _mistakes(state: State, values: np.ndarray, r: Relations) -> Kept:
    out, filled, first = Kept.empty(4096), 0, 0
    while True:
        first, filled = keep(state, values, 0, r, out, filled, first)
        if first == len(r.wrong):
            return out.part(filled)
        out = out.grown(max(4 * len(out), filled + state.neurons))


def _pruned(kept: Kept, state: State) -> Kept:
    plus, minus = state.lowest
    copy = kept.part(len(kept))
    return copy.part(kernels.prune(copy.row, copy.neuron, copy.ratio, len(copy), plus, minus))


def _join(a: Kept, b: Kept) -> Kept:
    pairs = zip((a.row, a.neuron, a.ratio), (b.row, b.neuron, b.ratio))
    return Kept(*(np.concatenate(pair) for pair in pairs))


def merge(a: State, b: State) -> State:
    """The state of both streams together; associative and commutative up to the order of the kept list.

    Raises:
        InputError: the states are of different targets, forms, budgets or numbers of neurons.
    """
    if a.form != b.form or a.peaks[0].shape != b.peaks[0].shape or not np.array_equal(a.targets, b.targets):
        raise InputError("Only statistics of the same targets, form, budget and neurons can be merged.")
    if a.levels == 1:
        peaks = tuple(np.maximum(p, q) for p, q in zip(a.peaks, b.peaks))
    else:
        q = a.levels
        both = (np.concatenate([x, y]) for x, y in zip(a.peaks, b.peaks))
        peaks = tuple(np.ascontiguousarray(-np.sort(-x, axis=0)[:q]) for x in both)
    own = None
    if a.own is not None and b.own is not None:
        own = a.own.merged(b.own)
    merged = replace(
        a,
        peaks=peaks,
        own=own,
        kept=None,
        tied=a.tied | b.tied,
        mistakes=a.mistakes + b.mistakes,
        examples=a.examples + b.examples,
    )
    if a.kept is not None and b.kept is not None:
        merged = replace(merged, kept=_join(_pruned(a.kept, merged), _pruned(b.kept, merged)))
    return merged


def check_finite(state: State, values: np.ndarray | None = None, layer: str = "") -> None:
    """ModelError when a NaN or an infinity has reached the statistics: it cannot be outgrown by a maximum."""
    if all(np.isfinite(p[0].max()) for p in state.peaks):
        return
    where = f" of layer {layer}" if layer else ""
    if values is not None and not np.isfinite(values).all():
        k = int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
        raise ModelError(f"Neuron values{where} are NaN or infinite for example {k} of the batch.")
    raise ModelError(f"Neuron values{where} are NaN, infinite or too large for float32.")


def theta_all(
    V: np.ndarray,
    C: np.ndarray,
    labels: np.ndarray,
    targets: Sequence[int] | np.ndarray | None = None,
    *,
    form: str = "plain",
    budget: int = 1,
    eps1: float = 0.0,
    eps2: float = EPS2,
    relative: bool = True,
    batch_size: int = 4096,
) -> Synapses:
    """Algorithm 1 on tables in memory: ``V`` ``(n, v)``, ``C`` ``(n, classes)``, ``labels`` ``(n,)``.

    targets: class indices, by default all. budget: the q-th smallest bound instead of the minimum. form, eps1, eps2,
    relative: as for :func:`tweaknn.theta.reference.algorithm_1`. batch_size: examples folded at a time.

    Raises:
        InputError: shapes, form or targets do not fit. DataError: labels out of range. ModelError: NaN or infinite numbers.
    """
    C, labels = np.asarray(C), np.asarray(labels)
    if C.ndim != 2 or np.ndim(V) != 2:
        raise InputError(f"V {np.shape(V)} and C {C.shape} have to be tables (examples, neurons), (examples, classes).")
    wanted = np.arange(C.shape[1]) if targets is None else np.asarray(targets)
    state = start(wanted, np.shape(V)[1], form=form, levels=budget, own=True)
    check_targets(state.targets, C.shape[1])
    if len(V) != len(C) or labels.shape != (len(C),):
        raise InputError(f"V {np.shape(V)}, C {C.shape} and labels {labels.shape} differ in the number of examples.")
    for a in range(0, len(C), batch_size):
        part = slice(a, a + batch_size)
        state = update(state, np.asarray(V[part]), C[part], labels[part], eps1=eps1)
    return finish(state, eps2=eps2, relative=relative)


def finish(state: State, *, eps2: float = EPS2, relative: bool = True) -> Synapses:
    """Thresholds, counts and signs (Algorithm 1, lines 13-19).

    eps2: what is taken off the bound, as a fraction of it, or (``relative=False``, the dissertation's) as a number.
    """
    return Finisher([state], eps2=eps2, relative=relative).part(0)
