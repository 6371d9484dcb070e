"""The sieve leaves work out and no bit: against the whole product, on streams that are ordinary and on nasty ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tweaknn.theta import kernels
from tweaknn.theta.relations import relate
from tweaknn.theta.sieve import STRIP, Sieve


def stream(seed: int, c: int, v: int, kind: str, batches: int = 6, n: int = 24):
    """Batches of values, and logits with every kind of margin."""
    rng = np.random.default_rng(seed)
    loud = np.exp(rng.normal(0, 3, v)) * (rng.random(v) < 0.9)
    for _ in range(batches):
        V = rng.standard_normal((n, v)) * loud
        if kind == "relu":
            V = np.maximum(V, 0)
        elif kind == "extreme":
            V = np.clip(V * 10.0 ** rng.integers(-44, 37, (n, v)), -3e38, 3e38)
        elif kind == "bursts":
            V *= rng.random((n, v)) < 0.02
        logits = (rng.standard_normal((n, c + 1)) * 10.0 ** rng.integers(-20, 5, (n, 1))).astype(np.float32)
        labels = np.where(rng.random(n) < 0.7, logits.argmax(1), rng.integers(0, c + 1, n))
        yield V.astype(np.float32), logits, labels


@pytest.mark.parametrize("form", ["plain", "signed"])
@pytest.mark.parametrize("kind", ["relu", "normal", "extreme", "bursts"])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), c=st.integers(1, 7), v=st.sampled_from([1, STRIP - 1, STRIP, 3 * STRIP + 5]))
def test_the_same_bits_as_the_whole_product(form, kind, seed, c, v):
    sides = 1 if form == "plain" else 2
    whole = [np.zeros((c, v), np.float32) for _ in range(sides)]
    sifted = [peak.copy() for peak in whole]
    sieve = Sieve(c, v, sides)
    for V, logits, labels in stream(seed, c, v + 3, kind):
        r = relate(logits, labels, np.arange(c), form)
        if not len(r.used):
            continue
        if form == "plain":
            kernels.fold_plain(V, 3, r.used, r.inverse, whole[0])
        else:
            kernels.fold_signed(V, 3, r.used, r.inverse, *whole)
        sieve.fold(tuple(sifted), V, 3, r)
        for a, b in zip(whole, sifted):
            np.testing.assert_array_equal(a, b)


def test_nan_and_infinity_stay():
    """A broken value of a correct example reaches the maximum of every class it bounds, and is never outgrown."""
    c, v = 3, 2 * STRIP
    for bad in (np.nan, -np.nan, np.inf):
        for form, sides in (("plain", 1), ("signed", 2)):
            sieve, peaks = Sieve(c, v, sides), tuple(np.zeros((c, v), np.float32) for _ in range(sides))
            for k, (V, logits, labels) in enumerate(stream(0, c, v, "normal", batches=4)):
                labels = logits.argmax(1)
                if k == 2:
                    V[5, STRIP + 7] = bad
                sieve.fold(peaks, V, 0, relate(logits, labels, np.arange(c), form))
            assert not np.isfinite(np.stack(peaks)[..., STRIP + 7]).all()
            assert np.isfinite(np.delete(np.stack(peaks), STRIP + 7, axis=-1)).all()


def test_most_of_the_work_is_left_out():
    """On a long stream the floors rule out nearly every (strip, class): otherwise the sieve is dead weight."""
    c, v = 10, 16 * STRIP
    rng = np.random.default_rng(0)
    sieve, peaks = Sieve(c, v, 1), (np.zeros((c, v), np.float32),)
    closed = []
    for _ in range(800):
        V = np.maximum(rng.standard_normal((32, v)), 0).astype(np.float32)
        logits = rng.standard_normal((32, c)).astype(np.float32)
        r = relate(logits, logits.argmax(1), np.arange(c))
        reach = (V[r.used].max(0) * sieve.scale).reshape(-1, STRIP).max(1)
        closed.append((reach[:, None] * r.ladders[0].inverse[:, 0] < sieve.floors[0]).mean())
        sieve.fold(peaks, V, 0, r)
    assert np.mean(closed[-40:]) > 0.8


@pytest.mark.parametrize("before", [0.0, 1.0])
def test_a_neuron_that_is_suddenly_loud_is_not_overlooked(before):
    """Floors rest on the scale a neuron has had: they have to sink with it."""
    v = STRIP
    sieve, peaks = Sieve(1, v, 1), (np.zeros((1, v), np.float32),)
    values = np.ones((1, v), np.float32)
    values[0, 9] = before
    margin = np.float32([[10, 0]])  # towards class 1: inverse margin 1/10
    for scale in (1.0, 0.01):  # borderline at first: peaks and floors at 10, later ratios are far below
        sieve.fold(peaks, values, 0, relate(margin * np.float32(scale), np.array([0]), np.array([1])))
    values[0, 9] = 6 * 10
    sieve.fold(peaks, values, 0, relate(margin * np.float32(0.05), np.array([0]), np.array([1])))
    assert peaks[0][0, 9] == np.float32(60 * np.float32(1 / 0.5))
    assert abs(peaks[0][0, 8] - 10) < 1e-4
