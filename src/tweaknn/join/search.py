"""Exact search over a bias for each class, on the step functions that accuracies are.

Adding ``s`` to the biases of a *set* of classes changes the prediction of an example at most once: where ``s`` passes
``d = best score outside the set - best score inside it``. So along any such line every count is a step function whose
steps, sorted, give the exact best ``s``; the search moves along single classes, pairs and larger sets until none helps.

Only scores that can decide a prediction within reach are looked at (:mod:`tweaknn.join.contest`), and the best and second best of
every example are kept up to date, so a line along one class costs one look at each example that this class contests.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numba as nb
import numpy as np

from tweaknn.join.contest import Contest, predictions

PULL = 0.01
"""What a correct prediction of anybody is worth to a climb, beside 1 for all of the targets' examples."""


@dataclass(frozen=True)
class Rules:
    """Constraints and objective as counts. ``n`` examples, ``c`` classes, ``g`` extra groups (sub-classes).

    ``gain`` (n,): what a correct prediction of the example is worth; ``price`` (c, c): cost of a prediction by true class, per
    example; ``need`` (c,): correct predictions each class must keep; ``need_all``: in all; ``group`` (n,): extra group or -1 with
    ``need_group`` (g,); ``most_false`` (c,): false calls of a class allowed; the ``_unit`` arrays turn counts into accuracy.
    """

    gain: np.ndarray
    price: np.ndarray
    need: np.ndarray
    unit: np.ndarray
    need_all: float
    unit_all: float
    group: np.ndarray
    need_group: np.ndarray
    unit_group: np.ndarray
    most_false: np.ndarray
    unit_false: np.ndarray


@nb.njit(cache=True)
def _walk(at, who, new, old, events, window, mu, y, state, rules):  # pragma: no cover - compiled
    """Pass the first ``events`` flips in order of ``at`` (0..window): best (step, merit, width), and the merit before any."""
    gain, price, need, unit, need_all, unit_all, group, need_group, unit_group, most_false, unit_false = rules
    count, false, in_group, whole = state[0].copy(), state[1].copy(), state[2].copy(), state[3]
    total, value = whole[0], whole[1]
    short = max(0.0, need_all - total) * unit_all
    for j in range(len(need)):
        short += max(0.0, need[j] - count[j]) * unit[j] + max(0.0, false[j] - most_false[j]) * unit_false[j]
    for g in range(len(need_group)):
        short += max(0.0, need_group[g] - in_group[g]) * unit_group[g]
    here = value - mu * short
    best, best_at, best_gap = here, 0.0, 0.0
    order = np.argsort(at[:events])
    previous = 0.0
    for e in range(events + 1):
        now = at[order[e]] if e < events else window
        if now > previous:  # the open interval (previous, now) has the present merit
            merit, gap = value - mu * short, now - previous
            if e > 0 and (merit > best + 1e-12 or (merit > best - 1e-12 and best_at != 0.0 and gap > 2 * best_gap)):
                best, best_gap, best_at = merit, gap, 0.5 * (previous + now)
            previous = now
        if e == events:
            break
        k, a, o = who[order[e]], new[order[e]], old[order[e]]
        value += price[y[k], o] - price[y[k], a]
        if y[k] == a or y[k] == o:
            sign = 1.0 if y[k] == a else -1.0
            j, g = y[k], group[k]
            short -= max(0.0, need[j] - count[j]) * unit[j] + max(0.0, need_all - total) * unit_all
            count[j] += sign
            total += sign
            value += sign * gain[k]
            short += max(0.0, need[j] - count[j]) * unit[j] + max(0.0, need_all - total) * unit_all
            if g >= 0:
                short -= max(0.0, need_group[g] - in_group[g]) * unit_group[g]
                in_group[g] += sign
                short += max(0.0, need_group[g] - in_group[g]) * unit_group[g]
        if y[k] != a:
            short -= max(0.0, false[a] - most_false[a]) * unit_false[a]
            false[a] += 1
            short += max(0.0, false[a] - most_false[a]) * unit_false[a]
        if y[k] != o:
            short -= max(0.0, false[o] - most_false[o]) * unit_false[o]
            false[o] -= 1
            short += max(0.0, false[o] - most_false[o]) * unit_false[o]
    return best_at, best, best_gap, here


@nb.njit(cache=True)
def _move(state, y, gain, group, price, k, old, new):  # pragma: no cover - compiled
    """Bring the counts up to date when the prediction of ``k`` changes from ``old`` to ``new`` (-1: there was none)."""
    count, false, in_group, whole = state
    label = y[k]
    for turn in range(2):
        p, sign = (old, -1.0) if turn == 0 else (new, 1.0)
        if p < 0:
            continue
        whole[1] -= sign * price[label, p]
        if p == label:
            count[p] += sign
            whole[0] += sign
            whole[1] += sign * gain[k]
            if group[k] >= 0:
                in_group[group[k]] += sign
        else:
            false[p] += sign


@nb.njit(cache=True)
def _rank(start, classes, scores, bias, best, second, r):  # pragma: no cover - compiled
    """Entries of the best and second best class of contested example ``r``; ties to the lowest class."""
    first, other = start[r], -1
    high = scores[first] + bias[classes[first]]
    next_high = -np.inf
    for e in range(start[r] + 1, start[r + 1]):
        s = scores[e] + bias[classes[e]]
        if s > high:
            first, other, next_high, high = e, first, high, s
        elif s > next_high:
            other, next_high = e, s
    best[r], second[r] = first, other


@nb.njit(cache=True)
def _begin(start, classes, scores, rows, settled, bias, y, rules, best, second):  # pragma: no cover - compiled
    """Rank every contested example and count everybody: (correct by class, false calls, in groups, [total, value])."""
    gain, price, group, need_group = rules[0], rules[1], rules[6], rules[7]
    c = len(bias)
    state = (np.zeros(c), np.zeros(c), np.zeros(len(need_group)), np.zeros(2))
    for k in range(len(settled)):
        if settled[k] >= 0:
            _move(state, y, gain, group, price, k, np.int32(-1), np.int32(settled[k]))
    for r in range(len(rows)):
        _rank(start, classes, scores, bias, best, second, r)
        _move(state, y, gain, group, price, rows[r], np.int32(-1), classes[best[r]])
    return state


@nb.njit(cache=True)
def _sweep(
    contest, y, bias, best, second, members, begin, window, mu, state, rules, up, dn
):  # pragma: no cover - compiled
    """One pass over the moves from ``begin`` on; ``bias``, ``best``, ``second`` and ``state`` are changed.

    Returns the move that comes next (less than their number where the contest has to be collected anew first) and whether something
    was won.
    """
    centre, width, rows, start, classes, scores, first, entries, row_of = contest
    gain, price, group, most_false = rules[0], rules[1], rules[6], rules[9]
    up_at, up_who, up_new, up_old = up
    dn_at, dn_who, dn_new, dn_old = dn
    c, m, n = len(bias), len(rows), len(y)
    gained = False
    for move in range(begin, len(members)):
        member = members[move]
        low, high = np.inf, -np.inf
        size, single = 0, -1
        for j in range(c):
            low, high = min(low, bias[j] - centre[j]), max(high, bias[j] - centre[j])
            if member[j]:
                size += 1
                single = j
        if high - low + window > width:
            return move, gained
        ups = dns = 0
        begins, ends = (first[single], first[single + 1]) if size == 1 else (0, m)
        for i in range(begins, ends):
            if size == 1:
                inside = entries[i]
                r = row_of[inside]
                outside = second[r] if best[r] == inside else best[r]
            else:
                r = i
                inside = outside = -1
                s_in = s_out = -np.inf
                for e in range(start[r], start[r + 1]):
                    s = scores[e] + bias[classes[e]]
                    if member[classes[e]]:
                        if s > s_in:
                            inside, s_in = e, s
                    elif s > s_out:
                        outside, s_out = e, s
                if inside < 0 or outside < 0:
                    continue
            pi, po, k = classes[inside], classes[outside], rows[r]
            d = (scores[outside] + bias[po]) - (scores[inside] + bias[pi])
            if d > window or d < -window:
                continue
            label = y[k]
            felt = price[label, pi] != price[label, po] or most_false[pi] < n or most_false[po] < n
            if label != pi and label != po and not felt:
                continue  # no rule sees this flip
            if classes[best[r]] == po:
                up_at[ups], up_who[ups], up_new[ups], up_old[ups] = d, k, pi, po
                ups += 1
            else:
                dn_at[dns], dn_who[dns], dn_new[dns], dn_old[dns] = -d, k, po, pi
                dns += 1
        s_up, merit_up, gap_up, here = _walk(up_at, up_who, up_new, up_old, ups, window, mu, y, state, rules)
        s_dn, merit_dn, gap_dn, here = _walk(dn_at, dn_who, dn_new, dn_old, dns, window, mu, y, state, rules)
        step = 0.0
        if merit_up > here + 1e-12 and (merit_up > merit_dn or (merit_up == merit_dn and gap_up >= gap_dn)):
            step = s_up
        elif merit_dn > here + 1e-12:
            step = -s_dn
        if step == 0.0:
            continue
        gained = True
        for j in range(c):
            if member[j]:
                bias[j] += step
        for i in range(begins, ends):
            r = i
            if size == 1:
                e = entries[i]
                r = row_of[e]
                if best[r] == e:
                    if step > 0:
                        continue
                elif second[r] != e and (
                    scores[e] + bias[single] < scores[second[r]] + bias[classes[second[r]]]
                ):
                    continue
            old = classes[best[r]]
            _rank(start, classes, scores, bias, best, second, r)
            if classes[best[r]] != old:
                _move(state, y, gain, group, price, rows[r], old, classes[best[r]])
    return len(members), gained


class Search:
    """Moves over biases for fixed logits ``z`` (n, c) float32, labels ``y`` (n,) and :class:`Rules`."""

    def __init__(self, z: np.ndarray, y: np.ndarray, rules: Rules):
        self.z = np.ascontiguousarray(z, dtype=np.float32)
        self.y = np.ascontiguousarray(y, dtype=np.int64)
        self.rules = rules
        self.n, self.c = self.z.shape
        r, counts = rules, np.maximum(np.bincount(self.y, minlength=self.c), 1)
        gain = r.gain + PULL * (0.5 / self.n + 0.5 / (self.c * counts[self.y]))
        self._rules = (gain, r.price, r.need, r.unit, r.need_all, r.unit_all, r.group, r.need_group, r.unit_group, r.most_false,
                       r.unit_false)  # fmt: skip
        self._contests: dict[float, Contest] = {}

    @cached_property
    def unit(self) -> float:
        """The median lead of the best score over the next, by which steps are measured."""
        top = np.partition(self.z, -2, axis=1)[:, -2:]
        return float(np.median(top[:, 1] - top[:, 0])) or 1.0

    def evaluate(self, bias: np.ndarray) -> tuple[float, float]:
        """(value, shortfall) of ``bias`` by plain counting; shortfall 0 means feasible. Ties as ``torch.argmax``.

        The sums are those of the type of ``bias``: float32 ones are what the delta will compute.
        """
        p = predictions(self.z, bias)
        r = self.rules
        right = p == self.y
        count = np.bincount(self.y[right], minlength=self.c)
        false = np.bincount(p[~right], minlength=self.c)
        groups = len(r.need_group)
        in_group = np.bincount(r.group[right & (r.group >= 0)], minlength=groups)[:groups] if groups else np.zeros(0)
        short = max(0.0, r.need_all - right.sum()) * r.unit_all
        short += float((np.maximum(0, r.need - count) * r.unit).sum())
        short += float((np.maximum(0, false - r.most_false) * r.unit_false).sum())
        short += float((np.maximum(0, r.need_group - in_group) * r.unit_group).sum())
        value = float(r.gain[right].sum())
        return value - float(r.price[self.y, p].sum()) if r.price.any() else value, short

    def settle_here(self) -> None:
        """Forget what was contested elsewhere: the next climbs begin near a new place."""
        self._contests.clear()

    def climb(
        self, bias: np.ndarray, moves: np.ndarray, window: float, mu: float, sweeps: int
    ) -> tuple[np.ndarray, tuple[float, float]]:
        """Sweep over ``moves`` (m, c) booleans, taking the exact best step within ``window`` of each, until none gains.

        Merit is value - ``mu`` * shortfall: a small ``mu`` may pass through infeasible points, a large one ends feasible. Between
        points of equal value more correct predictions of everybody are better (:data:`PULL`): they are room for the next step.

        Returns:
            the biases, and (-shortfall, value and that little more) there.
        """
        bias = np.array(bias, dtype=np.float64)
        rules, left, begin, gained, fresh = self._rules, sweeps, 0, False, True
        while left:
            if fresh:
                known = self._contests.get(window)
                contest = known if known is not None and known.reaches(bias, window) else Contest.around(self.z, bias, 2 * window)
                self._contests.setdefault(window, contest)
                m = len(contest.rows)
                best, second = np.empty(m, np.int64), np.empty(m, np.int64)
                state = _begin(contest.start, contest.classes, contest.scores, contest.rows, contest.settled, bias, self.y, rules,
                               best, second)  # fmt: skip
                up, dn = _room(m), _room(m)
            begin, more = _sweep(contest.parts, self.y, bias, best, second, moves, begin, window, mu, state, rules, up, dn)
            gained |= more
            fresh = begin < len(moves)
            if not fresh:
                left = left - 1 if gained else 0
                begin, gained = 0, False
        return bias, (-round(_shortfall(state, rules), 12), round(float(state[3][1]), 12))


@nb.njit(cache=True)
def _shortfall(state, rules):  # pragma: no cover - compiled
    need, unit, need_all, unit_all, need_group, unit_group, most_false, unit_false = (
        rules[2], rules[3], rules[4], rules[5], rules[7], rules[8], rules[9], rules[10])  # fmt: skip
    short = max(0.0, need_all - state[3][0]) * unit_all
    for j in range(len(need)):
        short += max(0.0, need[j] - state[0][j]) * unit[j] + max(0.0, state[1][j] - most_false[j]) * unit_false[j]
    for g in range(len(need_group)):
        short += max(0.0, need_group[g] - state[2][g]) * unit_group[g]
    return short


def _room(m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    return np.empty(m), np.empty(m, np.int64), np.empty(m, np.int32), np.empty(m, np.int32)


def nearest_flips(contest: Contest, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each class the smallest step up (c,), and down (c,), of its own bias at which some prediction flips; infinite where none
    within half of the contest's width does."""
    up, down = np.full(len(bias), np.inf), np.full(len(bias), -np.inf)
    _flips(contest.start, contest.classes, contest.scores, bias, up, down, contest.width / 2)
    return up, down


@nb.njit(cache=True)
def _flips(start, classes, scores, bias, up, down, reach):  # pragma: no cover - compiled
    for r in range(len(start) - 1):
        best, second, at = -np.inf, -np.inf, -1
        for e in range(start[r], start[r + 1]):
            s = scores[e] + bias[classes[e]]
            if s > best:
                second, best, at = best, s, e
            elif s > second:
                second = s
        for e in range(start[r], start[r + 1]):
            away = (second if e == at else best) - (scores[e] + bias[classes[e]])
            if 0 < away <= reach:
                up[classes[e]] = min(up[classes[e]], away)
            elif -reach <= away < 0:
                down[classes[e]] = max(down[classes[e]], away)
