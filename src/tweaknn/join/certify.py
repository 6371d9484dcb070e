"""A promise that holds on new data with a given probability: learn then test.

Everything that was chosen before (the method, its strength, a path of operating points from very cautious to bold) is left as it is,
and examples that took no part in any of it test the points of the path one by one, the most cautious first, until one fails. Such
fixed-sequence testing needs no correction for the number of points (Angelopoulos et al. 2021, "Learn then test", section 3; the path
chosen on other data is their split; Laufer-Goldshtein et al. 2023 call it Pareto testing). At each point the null hypothesis is "some
rule of the promise is broken on new data"; it is rejected when *each* rule's own test rejects, which needs no correction for the
number of rules either (an intersection-union test, Berger 1982). So the probability that what is handed over breaks its promise is
at most ``1 - confidence``, whatever the network, the data and the delta.

The tests are exact: paired drops by :func:`~tweaknn.measure.paired.drop_p_value`, absolute floors and false calls by the binomial.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tweaknn.join.apply import tweaked_logits
from tweaknn.join.counting import groups_of, target_sets
from tweaknn.join.promise import Promise
from tweaknn.join.setting import Candidate, Setting
from tweaknn.join.settle import STRENGTHS, best_strength, placed
from tweaknn.join.table import PooledTable
from tweaknn.measure.paired import above_p_value, below_p_value, drop_p_value, least_examples, lost_p_value

LEVELS = (6.0, 4.5, 3.5, 2.5, 2.0, 1.5, 1.0, 0.5, 0.0)
"""Cautions of the path, in standard errors on the examples it is chosen on."""

WEAK = (*STRENGTHS, 0.125, 0.06)
"""Multiples of a change along the path: where examples are few only a weak change, which moves few of them, can be certified."""


@dataclass(frozen=True)
class Rule:
    """One rule of a promise at one point: its p-value on the examples that certify, and words for it."""

    name: str
    p_value: float
    n: int
    allowed: float | None = None


@dataclass(frozen=True)
class Certificate:
    """What the certifying examples said.

    Attributes:
        confidence: asked for.
        n: examples that certified.
        held: a point was certified.
        p_value: of the point handed over (of the first one tested, where none was).
        binding: the rule with that p-value.
        tested: how many points were tested.
        path: of each point tested: caution, strength, gain on the examples it was chosen on, p-value, rule.
        gain, worst_drop: of the certified point on the certifying examples, fractions (None where there is none).
        sentence: all this in words.
    """

    confidence: float
    n: int
    held: bool
    p_value: float
    binding: str
    tested: int
    path: list[dict[str, Any]] = field(default_factory=list)
    gain: float | None = None
    worst_drop: float | None = None
    sentence: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return dict(vars(self))


def certify(
    setting: Setting, candidate: Candidate, held: PooledTable, masks: Mapping[str, np.ndarray], confidence: float
) -> tuple[Candidate | None, Certificate]:
    """The boldest point of the candidate's path that ``held`` certifies, and the certificate.

    Args:
        setting: what the candidate was chosen in; its validation examples give the path.
        candidate: with its fit (:attr:`~tweaknn.join.setting.Candidate.fitted`).
        held: examples that served for nothing else.
        masks: sub-class targets: name -> ``(n,)`` over ``held``; empty where the targets are classes.
        confidence: such as 0.95.

    Returns:
        The candidate at the certified point, None where no point is; the certificate.
    """
    assert candidate.fitted is not None, "methods without a fit are refused before anything is read"
    delta, logits = candidate.fitted
    there = tweaked_logits(delta, held) if delta.terms or bool(delta.bias.any()) else held.logits
    promise = setting.promise.resolve(setting.classes, len(setting.classes), setting.subclasses)
    aims: Any = dict(masks) if masks else setting.targets
    best: tuple[Candidate, np.ndarray] | None = None
    first: list[Rule] = []
    path: list[dict[str, Any]] = []
    passed: dict[str, Any] = {}
    seen: set[tuple[float, bytes]] = set()
    for level in LEVELS:
        strengths = WEAK if delta.terms else (1.0,)
        point, strength, scaled = best_strength(setting, logits, level, strengths, candidate.point.bias)
        if not point.feasible or point.value <= point.base_value + 1e-12 or (strength, point.bias.tobytes()) in seen:
            continue
        seen.add((strength, point.bias.tobytes()))
        moved = held.logits + np.float32(strength) * (there - held.logits) + point.bias
        here = scaled + point.bias
        rules = tests(setting, promise, aims, held, moved, here, 1 - confidence)
        worst = max(rules, key=lambda rule: rule.p_value)
        first = first or rules
        entry: dict[str, Any] = {"caution": level, "strength": strength, "gain": point.gain, "p_value": worst.p_value, "rule": worst.name}
        path.append(entry)
        if worst.p_value > 1 - confidence:
            break
        best = (placed(setting, candidate.name, delta, logits, strength, point, dict(candidate.notes)), moved)
        passed = entry
    if best is None:
        sentence = refusal(first, confidence, setting.promise)
        p = max((rule.p_value for rule in first), default=1.0)
        name = max(first, key=lambda rule: rule.p_value).name if first else ""
        return None, Certificate(confidence, len(held.labels), False, p, name, len(path), path, sentence=sentence)
    chosen, moved = best
    gain, drop = _figures(setting, held, moved, aims)
    plain = candidate.point.gain - chosen.point.gain
    sentence = (
        f"With confidence {confidence:g} the promise holds on new data like these ({len(held.labels)} examples that served for nothing "
        f"else certify it)" + (f"; that took {100 * plain:.1f} points of the gain." if plain > 0.0005 else ".")
    )
    certificate = Certificate(
        confidence, len(held.labels), True, passed["p_value"], passed["rule"], len(path), path, gain, drop, sentence
    )
    return replace(chosen, notes={**chosen.notes, "caution": passed["caution"]}), certificate


def tests(
    setting: Setting, promise: Promise, aims: Any, held: PooledTable, moved: np.ndarray, here: np.ndarray, level: float
) -> list[Rule]:
    """Each rule of the promise with its p-value on ``held``, whose logits become ``moved``.

    ``here`` are the logits of the setting's own examples at this point: they decide, before ``held`` is looked at, which of two
    exact tests of a drop is the sharper one. Classes with no example anywhere are not spoken of.
    """
    y, c = held.labels, held.logits.shape[1]
    before, p = held.logits.argmax(1) == y, moved.argmax(1)
    after = p == y
    own = setting.validation
    own_before, own_after = own.logits.argmax(1) == own.labels, here.argmax(1) == own.labels
    sets = target_sets(aims, y, c, setting.classes, promise)
    own_sets = target_sets(setting.aims, own.labels, c, setting.classes, promise)
    rules: list[Rule] = []

    def drop(name: str, rows: np.ndarray, own_rows: np.ndarray, allowed: float) -> None:
        n = int(rows.sum())
        if not n:
            rules.append(Rule(name, 1.0, 0, allowed))
            return
        lost, won = int((before & ~after & rows).sum()), int((after & ~before & rows).sum())
        share = n / max(1, int(own_rows.sum()))
        guess_lost = round(share * int((own_before & ~own_after & own_rows).sum()))
        guess_won = round(share * int((own_after & ~own_before & own_rows).sum()))
        alone = lost_p_value(min(guess_lost, n), n, allowed)
        guess_won = min(guess_won, n - min(guess_lost, n))
        if allowed > 0 and alone <= drop_p_value(min(guess_lost, n), guess_won, n, allowed, level):
            value = lost_p_value(lost, n, allowed)
        else:
            value = drop_p_value(lost, won, n, allowed, level)
        rules.append(Rule(name, value, n, allowed))

    split = {j for t in sets if t.position is None for j in t.positions}
    allowed = np.full(c, np.inf)
    if promise.kind == "floors":
        allowed[:] = promise.tolerance
        allowed[list(split)] = np.inf  # the parts of such a class have rules of their own
    if promise.max_drop is not None:
        allowed = np.minimum(allowed, promise.max_drop)
    if promise.kind != "mixed":
        allowed[[t.position for t in sets if t.position is not None]] = 0.0
    for j in np.flatnonzero(np.isfinite(allowed)):
        if (y == j).any() or (own.labels == j).any():
            drop(setting.classes[j], y == j, own.labels == j, float(allowed[j]))
    own_groups = dict(groups_of(own.labels, own_sets, promise))
    targets = {t.name for t in sets}
    for name, rows in groups_of(y, sets, promise):
        most = 0.0 if name in targets else promise.tolerance
        words = name if name in targets else f"the rest of {setting.classes[int(name.rsplit(' ', 1)[1])]}"
        drop(words, rows, own_groups.get(name, np.zeros(len(own.labels), dtype=bool)), most)
    whole, own_whole = np.ones(len(y), dtype=bool), np.ones(len(own.labels), dtype=bool)
    if promise.kind == "overall":
        drop("overall", whole, own_whole, promise.tolerance)
    if promise.overall_drop is not None:
        drop("overall", whole, own_whole, promise.overall_drop)
    for j, floor in promise.floors.items():
        n = int((y == j).sum())
        value = below_p_value(int((after & (y == j)).sum()), n, floor) if n else 1.0
        rules.append(Rule(f"the floor of {setting.classes[j]}", value, n))
    for j, specificity in promise.specificity.items():
        n = int((y != j).sum())
        value = above_p_value(int(((p == j) & (y != j)).sum()), n, 1 - specificity) if n else 1.0
        rules.append(Rule(f"the specificity of {setting.classes[j]}", value, n))
    return rules or [Rule("", 0.0, len(y))]


def refusal(rules: list[Rule], confidence: float, promise: Promise) -> str:
    """Why nothing is certified, and what would help."""
    if not rules:
        return "No point can be certified: not one cautious operating point gains anything on the examples it is chosen on."
    thin = [r for r in rules if r.allowed and r.n < least_examples(r.allowed, confidence)]
    if thin:
        rule = min(thin, key=lambda r: r.n)
        assert rule.allowed is not None
        least = least_examples(rule.allowed, confidence)
        return (
            f"No point can be certified: {rule.name} has only {rule.n} of the examples kept for that; at least {least} are needed "
            f"for a tolerance of {rule.allowed:g} with confidence {confidence:g}, even if none of them is lost."
        )
    rule = max(rules, key=lambda r: r.p_value)
    if rule.allowed == 0 and promise.kind == "floors" and promise.tolerance == 0:
        return (
            f"No point can be certified: with no tolerance {rule.name} would have to gain beyond doubt (p = {rule.p_value:.2g} on "
            f"{rule.n} examples); give a --tolerance, such as 0.02."
        )
    return (
        f"No point can be certified: even the most cautious one leaves doubt about {rule.name} (p = {rule.p_value:.2g} on {rule.n} "
        "examples); more validation examples, or a larger tolerance, would help."
    )


def _figures(setting: Setting, held: PooledTable, moved: np.ndarray, aims: Any) -> tuple[float, float]:
    y, c = held.labels, held.logits.shape[1]
    before, after = held.logits.argmax(1) == y, moved.argmax(1) == y
    sets = target_sets(aims, y, c, setting.classes, Promise())
    gain = float(np.mean([after[t.rows].mean() - before[t.rows].mean() for t in sets]))
    counts = np.bincount(y, minlength=c)
    change = np.bincount(y[after], minlength=c) - np.bincount(y[before], minlength=c)
    return gain, float((change[counts > 0] / counts[counts > 0]).min())
