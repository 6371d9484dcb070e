"""What several seeds say: paired tests, curves, the words about a spread."""

from __future__ import annotations

import numpy as np
import pytest

from tweaknn.baselines import Plan
from tweaknn.baselines.figures import packed, unpacked
from tweaknn.baselines.summary import by_class, mean_curve, spread_of
from tweaknn.baselines.versus import tests as paired
from tweaknn.baselines.versus import without_examples
from tweaknn.measure import mcnemar

LABELS = np.repeat([0, 1], 40)


def run_of(name, seed, right, floors=None):
    kept = {"right": packed(right if floors is None else floors)}
    about = {"name": name, "seed": seed, "applicable": True, "reason": ""}
    return {**about, "right": packed(right), "under": {"floors": kept, "overall": kept}}


def but(right, *wrong):
    changed = right.copy()
    changed[list(wrong)] = False
    return changed


def test_which_examples_are_right_survives_packing():
    right = np.random.default_rng(0).random(13) < 0.5
    assert (unpacked(packed(right), 13) == right).all()


def test_the_default_is_tested_against_each_rival_and_all_against_the_base():
    everything = np.ones(80, dtype=bool)
    base = np.zeros((80, 2))
    base[np.arange(80), LABELS] = 1
    base[:20] = [0, 1]  # the base has half of class 0 wrong
    runs = []
    for seed in (0, 1):
        runs += [run_of("join", seed, everything), run_of("bias", seed, but(everything, *range(8)), but(everything, *range(12)))]
    runs.append({"name": "da", "seed": 0, "applicable": True, "reason": "crashed"})
    found = paired(runs, base, LABELS, (0,))
    assert set(found) == {"join", "bias"}
    assert "join" not in found["join"]  # not against itself
    against = found["bias"]["join"]["floors"]["target"]
    assert against["difference"] == pytest.approx(12 / 40)
    assert found["bias"]["join"]["own"]["target"]["difference"] == pytest.approx(8 / 40)
    assert found["bias"]["join"]["own"]["overall"]["difference"] == pytest.approx(8 / 80)
    one = mcnemar(np.arange(40) >= 12, np.ones(40, dtype=bool))
    assert against["p_seeds"] == pytest.approx([one, one])
    assert against["p"] == pytest.approx(2 * one)  # two tests of the same examples: twice the smaller
    assert against["p_holm"] == against["p"]  # one rival
    base_tests = found["bias"]["base"]["own"]["target"]
    assert base_tests["tests"] == 2
    assert base_tests["p_holm"] >= base_tests["p"]
    assert found["join"]["base"]["own"]["target"]["p_holm"] == pytest.approx(2 * found["join"]["base"]["own"]["target"]["p"])


def test_results_do_not_carry_an_example_each():
    kept = without_examples([run_of("bias", 0, np.ones(80, dtype=bool))])[0]
    assert "right" not in str(kept)
    assert kept["name"] == "bias"


def test_runs_of_an_earlier_form_are_not_tested():
    old = {"name": "bias", "seed": 0, "applicable": True, "reason": "", "under": {"floors": {}, "overall": {}}}
    assert paired([old], np.eye(2)[LABELS], LABELS, (0,)) == {}


def test_the_curve_is_of_all_seeds():
    def curve(n, at):
        return [{"shift": k, "target": at + k / 10, "overall": 0.8, "E": 0.0, "per_class": [at, k]} for k in range(n)]

    mean = mean_curve([curve(3, 0.2), curve(5, 0.4), curve(3, 0.6)])
    assert len(mean) == 3
    assert mean[0]["target"] == pytest.approx(0.4)
    assert mean[0]["sd"]["target"] == pytest.approx(0.2)
    assert mean[2]["per_class"] == pytest.approx([0.4, 8 / 3])  # the ends meet, however many points lie between
    assert mean_curve([[], curve(2, 0.1)]) == curve(2, 0.1)
    assert mean_curve([[]]) == []


def test_every_class_has_a_spread():
    found = by_class([{"per_class": [0.5, None]}, {"per_class": [0.7, None]}])
    assert found["per_class"][0] == pytest.approx(0.6)
    assert found["per_class_sd"][0] == pytest.approx(np.sqrt(0.02))
    assert np.isnan(found["per_class"][1])
    assert by_class([{"per_class": [0.5]}])["per_class_sd"] is None


def test_a_spread_says_what_is_in_it():
    plan = Plan((0,), ("bias",), limit=None)
    assert "which part of the training data" in spread_of(plan, {"validation": None})
    assert "the same in every seed" in spread_of(plan, {"validation": "abc"})
