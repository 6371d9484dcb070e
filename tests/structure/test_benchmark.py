"""What the benchmark of pruning compares with what: the narrow network in ours's time, and names that kept runs rest on."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.prune import jobs_for, key_of, summary, table, with_chosen, with_equal_time

METHODS = ("full", "narrow", "tp-uniform", "ours", "narrow-time")


def run(seconds: float, test: float = 0.6) -> dict:
    return {"test": test, "validation": test, "flops": 0.27, "params": 0.2, "seconds": seconds, "per_class": [test]}


def results_of(jobs: list, ours: float, narrow: float) -> dict:
    seconds = {"full": 120.0, "narrow": narrow, "tp-uniform": 90.0, "ours": ours}
    found = {key_of(job): run(seconds[job["method"]]) for job in jobs}
    for job in jobs:
        if job["method"] == "ours":
            found[key_of(job)]["gate_overhead"] = 0.09
    return found


@pytest.mark.parametrize(("task", "epochs"), [("cifar10", 15), ("clothing10", 30)])
@pytest.mark.parametrize(("ours", "narrow", "factor"), [(50.0, 75.0, 2 / 3), (90.0, 75.0, 1.2)])
def test_the_narrow_network_is_trained_for_the_same_time(task: str, epochs: float, ours: float, narrow: float, factor: float) -> None:
    jobs = jobs_for(task, Path("x.pkl"), METHODS, [0.27], [0, 1], epochs)
    results = results_of(jobs, ours, narrow)
    more = with_equal_time(jobs, results, METHODS)
    assert [job["seed"] for job in more] == [0, 1]
    for job in more:
        assert job["epochs"] == pytest.approx(factor * epochs)
        assert job["method"] == "narrow-time"
        assert key_of(job) not in results  # it is a run of its own
        results[key_of(job)] = run(ours, 0.5)
    top = summary(table([*jobs, *more], results), task, 0.27)
    assert top["narrow_equal_time_accuracy"] == 0.5
    assert top["narrow_equal_time_epochs"] == pytest.approx(factor * epochs)
    assert top["narrow_equal_time_seconds"] == top["seconds"] == ours
    assert top["gate_overhead"] == pytest.approx(0.09)


def test_where_times_are_alike_it_is_the_run_that_is_there() -> None:
    jobs = jobs_for("cifar10", Path("x.pkl"), METHODS, [0.27], [0], 15)
    results = results_of(jobs, 75.1, 75.0)
    (job,) = with_equal_time(jobs, results, METHODS)
    assert results[key_of(job)] is results[key_of({**jobs[1], "method": "narrow"})]


@pytest.mark.parametrize(("task", "epochs"), [("cifar10", 15), ("clothing10", 30)])
def test_ours_is_trained_for_the_time_of_its_rival(task: str, epochs: float) -> None:
    methods = ("full", "narrow", "tp-uniform", "ours", "ours-time")
    jobs = jobs_for(task, Path("x.pkl"), methods, [0.27, 0.5], [0], epochs)
    results = results_of(jobs, 50.0, 75.0)
    more = with_equal_time(jobs, results, methods)
    assert [(job["method"], job["target"], job["epochs"]) for job in more] == [
        ("ours-time", target, pytest.approx(epochs * 90 / 50)) for target in (0.27, 0.5)
    ]
    assert not any("mend" in job for job in more)


@pytest.mark.parametrize("task", ["cifar10", "clothing10"])
def test_of_two_values_of_beta_validation_chooses_and_both_times_count(task: str) -> None:
    jobs = jobs_for(task, Path("x.pkl"), ("full", "ours", "ours-mild"), [0.27], [0, 1], 15)
    accuracies = {("ours", 0): 0.60, ("ours-mild", 0): 0.61, ("ours", 1): 0.62, ("ours-mild", 1): 0.61}
    results = {key_of(j): run(50.0, accuracies.get((j["method"], j["seed"]), 0.64)) for j in jobs}
    more = with_chosen(jobs, results)  # units only were not run
    assert [(j["method"], j["seed"]) for j in more] == [("ours-chosen-mild", 0), ("ours-chosen-mild", 1)]
    assert [results[key_of(j)]["test"] for j in more] == [0.61, 0.62]
    assert [results[key_of(j)]["seconds"] for j in more] == [100.0, 100.0]


def test_names_of_runs_stay() -> None:
    """Files of finished runs (--keep) are found by these."""
    jobs = jobs_for("clothing10", Path("x.pkl"), ("full", "tp-uniform", "ours"), [0.5], [2], 30)
    assert [key_of(job) for job in jobs] == [
        '{"epochs": 30, "mend": true, "method": "full", "seed": 2, "task": "clothing10"}',
        '{"epochs": 30, "method": "tp-uniform", "seed": 2, "target": 0.5, "task": "clothing10"}',
        '{"epochs": 30, "mend": true, "method": "ours", "seed": 2, "target": 0.5, "task": "clothing10"}',
    ]
