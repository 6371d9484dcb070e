"""Honest splits: cross-fitting, certified promises, what the base saw, sub-classes through the whole join."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tweaknn import Promise, SynapticJoin
from tweaknn.delta import Delta, Read
from tweaknn.errors import InputError
from tweaknn.join.apply import average, tweaked_logits
from tweaknn.join.arrange import arrange, wants_cross
from tweaknn.join.candidates import controls, fitted, linear
from tweaknn.join.certify import certify
from tweaknn.join.checks import check
from tweaknn.join.crossfit import cross_fitted, folds_of
from tweaknn.join.setting import Setting
from tweaknn.join.settle import settle
from tweaknn.join.table import PooledTable

C = 4
CLASSES = ["ant", "bee", "cat", "dog"]


def made(seed: int, n: int, shares=None) -> PooledTable:
    """A base that is weak on class 2, and six neurons that know something of it."""
    rng = np.random.default_rng(seed)
    y = rng.choice(C, n, p=shares)
    x = rng.normal(size=(n, 6))
    x[:, :C] += 1.2 * np.eye(C)[y]
    logits = rng.normal(size=(n, C)) + np.eye(C)[y] * np.array([2.5, 2.5, 1.2, 2.5])
    reads = (Read("hidden", "mean", (6,), 0, torch.arange(6)),)
    return PooledTable(x.astype(np.float32), logits.astype(np.float32), y.astype(np.int64), reads)


def frame() -> Delta:
    return Delta(terms=(), bias=torch.zeros(C), base="f" * 64, input_shape=(3,), classes=tuple(CLASSES))


def setting(train, validation, **more) -> Setting:
    return Setting(train, validation, (2,), CLASSES, more.pop("promise", Promise()), frame(), 0, **more)


def candidates_of(part: Setting):
    return [linear(part, "fit", np.arange(6)), *controls(part)]


def test_table_logits_are_what_the_fit_says():
    train, validation = made(0, 500), made(1, 300)
    made_of = fitted(setting(train, validation), "fit", np.arange(6))
    np.testing.assert_allclose(tweaked_logits(made_of.delta, validation), made_of.logits, atol=1e-5)


def test_the_average_of_synapses_is_as_small_and_is_the_mean():
    parts = [fitted(setting(made(k, 300), made(9, 200)), "fit", np.arange(4 + k)).delta for k in range(3)]
    mean, table = average(parts), made(5, 50)
    assert mean.parameters <= 6 * C + C
    expected = np.mean([tweaked_logits(part, table) for part in parts], axis=0)
    np.testing.assert_allclose(tweaked_logits(mean, table), expected, atol=1e-5)


def test_no_example_is_fitted_and_judged_at_once():
    pool = made(2, 400)
    fold = folds_of(pool.labels, np.ones(400, dtype=bool), None, 0)
    assert np.bincount(fold).tolist() == [80] * 5
    seen = []

    def spy(part: Setting):
        fit = {row.tobytes() for row in part.train.features}
        assert not any(row.tobytes() in fit for row in part.validation.features)
        seen.append(len(part.validation.labels))
        return candidates_of(part)

    found = cross_fitted(spy, setting(pool, pool), pool, fold, {})
    assert sum(seen) == 400
    fit = next(c for c in found if c.name == "fit")
    assert fit.point.feasible
    assert fit.point.gain > 0.05
    assert fit.delta.parameters <= 6 * C + C
    # its figures are of out-of-fold logits: fold 3's come from the delta fitted without fold 3
    held, rest = np.flatnonzero(fold == 3), np.flatnonzero(fold != 3)
    alone = fitted(setting(pool.rows(rest), pool.rows(held)), "fit", np.arange(6)).delta
    expected = tweaked_logits(alone, pool.rows(held))
    assert fit.fitted is not None
    np.testing.assert_allclose(fit.fitted[1][held], expected, atol=1e-5)


def test_groups_stay_in_one_fold():
    y = np.tile(np.arange(C), 50)
    groups = np.repeat(np.arange(40), 5)
    fold = folds_of(y, np.ones(200, dtype=bool), groups, 0)
    assert all(len(set(fold[groups == g])) == 1 for g in range(40))
    with pytest.raises(InputError, match="too few"):
        folds_of(y, np.ones(200, dtype=bool), np.zeros(200, dtype=int), 0)


def test_when_it_cross_fits():
    many, few = np.repeat(np.arange(C), 500), np.repeat(np.arange(C), 50)
    assert not wants_cross(None, "best", many, None, None)
    assert wants_cross(None, "best", few, None, None)
    assert wants_cross(None, "fit", few, few, "validation")
    assert wants_cross(None, "fit", many, few, "none")
    assert not wants_cross(None, "fit", many, few, None), "the base usually saw the training data"
    assert not wants_cross(None, "theta", few, None, None)
    with pytest.raises(InputError, match="theta"):
        wants_cross(True, "theta", few, None, None)


def parted(train, validation, **more):
    defaults = {"cross": True, "confidence": None, "base_saw": None, "set_aside": validation is None, "masks": ({}, {}),
                "groups": None, "validation_groups": None, "seed": 0}  # fmt: skip
    return arrange(train, validation, **{**defaults, **more})


def test_where_the_base_saw_validation_nothing_is_chosen_on_it():
    train, validation = made(3, 200), made(4, 100)
    plan = parted(train, validation, base_saw="validation")
    assert plan.fold is not None
    assert (plan.fold[:200] >= 0).all()
    assert (plan.fold[200:] == -1).all()
    np.testing.assert_array_equal(plan.choice.logits, train.logits)
    assert not plan.seen
    assert parted(train, validation, cross=False, base_saw="both").seen


def test_certifying_examples_serve_for_nothing_else():
    pool = made(6, 600)
    plan = parted(pool, None, confidence=0.95)
    assert plan.held is not None
    kept = {row.tobytes() for row in plan.held[0].features}
    assert not any(row.tobytes() in kept for row in plan.train.features)
    groups = np.arange(600) // 3
    plan = parted(pool, None, confidence=0.95, groups=groups)
    of = {row.tobytes(): g for row, g in zip(pool.features, groups)}
    assert plan.held is not None
    assert not {of[r.tobytes()] for r in plan.held[0].features} & {of[r.tobytes()] for r in plan.train.features}


def test_the_certified_promise_holds_as_often_as_it_says():
    """Draws from a population of 20,000 examples, on which the truth is known."""
    population = made(100, 20_000)
    train = made(101, 300)
    promise = Promise("floors", 0.02)
    broken, plain, certified = 0, 0, 0
    counts = np.bincount(population.labels)

    def breaks(moved):
        before, after = population.logits.argmax(1) == population.labels, moved.argmax(1) == population.labels
        change = np.bincount(population.labels[after], minlength=C) - np.bincount(population.labels[before], minlength=C)
        return bool((change / counts < np.where(np.arange(C) == 2, 0.0, -0.02)).any())

    delta = fitted(setting(train, made(102, 300)), "fit", np.arange(6), [1e-2], dampings=(1.0,)).delta
    everywhere = tweaked_logits(delta, population)
    for draw in range(16):
        rng = np.random.default_rng(draw)
        choose, held = (population.rows(rng.integers(0, 20_000, 2000)) for _ in range(2))
        s = setting(train, choose, promise=promise, caution=0.0)
        candidate = settle(s, "fit", delta, tweaked_logits(delta, choose))
        strength = candidate.notes["strength"]
        plain += breaks(population.logits + strength * (everywhere - population.logits) + candidate.point.bias)
        found, certificate = certify(s, candidate, held, {}, 0.9)
        assert (found is not None) == certificate.held
        if found is not None:
            certified += 1
            broken += breaks(tweaked_logits(found.delta, population))
    assert certified >= 5, "it must not be valid by never certifying"
    assert broken <= 4, "at most a tenth is allowed; 5 of 16 would be three standard errors above"
    assert broken < plain


def test_why_nothing_can_be_certified():
    train = made(101, 400)
    thin = made(7, 400, [0.4, 0.4, 0.19, 0.01])
    s = setting(train, thin, promise=Promise("floors", 0.05))
    candidate = linear(s, "fit", np.arange(6))
    found, certificate = certify(s, candidate, made(8, 400, [0.4, 0.4, 0.19, 0.01]), {}, 0.95)
    assert found is None
    assert "dog has only" in certificate.sentence
    assert "at least 59 are needed" in certificate.sentence
    s = setting(train, thin)
    _, certificate = certify(s, linear(s, "fit", np.arange(6)), thin, {}, 0.95)
    assert "--tolerance" in certificate.sentence


def test_subclass_keeps_everybody_else():
    train, validation = made(20, 800), made(21, 800)
    mask = (validation.labels == 2) & (np.arange(800) % 2 == 0)
    s = replace(setting(train, validation, caution=0.0), subclasses={"even cats": mask})
    found = linear(s, "fit", np.arange(6))
    assert found.point.feasible, found.point.reason
    right, before = found.logits.argmax(1) == validation.labels, validation.logits.argmax(1) == validation.labels
    assert right[mask].mean() > before[mask].mean()
    rest = (validation.labels == 2) & ~mask
    for rows in (rest, *(validation.labels == j for j in (0, 1, 3))):
        assert right[rows].sum() >= before[rows].sum()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"confidence": 1.0}, "between 0.5 and 1"),
        ({"confidence": float("nan")}, "between 0.5 and 1"),
        ({"caution": -1.0}, "at least 0"),
        ({"caution": float("inf")}, "at least 0"),
        ({"method": "theta", "confidence": 0.9}, "confidence need"),
    ],
)
def test_bad_wishes(settings, said):
    with pytest.raises(InputError, match=said):
        check(SynapticJoin(**settings), True, None, None)
