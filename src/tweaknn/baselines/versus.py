"""Paired tests of every method against the untouched network, and of the default against every method."""

from __future__ import annotations

from typing import Any

import numpy as np

from tweaknn.baselines.figures import unpacked
from tweaknn.measure import combined, holm, mcnemar

DEFAULT = "join"
MODES = ("own", "floors", "overall")


def tests(runs: list[dict[str, Any]], base: np.ndarray, labels: np.ndarray, targets: tuple[int, ...]) -> dict[str, Any]:
    """``{method: {"base"|"join": {mode: {"target"|"overall": {p, p_seeds, p_holm, difference, tests}}}}}``.

    ``base``: logits ``(n, c)`` of the untouched network on the test data. McNemar's exact test on the examples on which two
    networks differ (those of the targets, or all), one a seed; ``p`` combines the seeds, ``p_holm`` corrects for the ``tests``
    other methods that were tested on the same question. ``difference``: the method less the base, or the default less the
    method, a fraction, mean over seeds. Runs of an earlier form, without ``right``, are left out.
    """
    rows = {"target": np.isin(labels, list(targets)), "overall": np.ones(len(labels), dtype=bool)}
    right = {(run["name"], run["seed"]): run for run in runs if run["applicable"] and not run["reason"] and run.get("right")}
    untouched = base.argmax(1) == labels
    found: dict[str, Any] = {}
    for mode in MODES:
        at = {key: unpacked(_of(run, mode)["right"], len(labels)) for key, run in right.items()}
        names = list(dict.fromkeys(name for name, _ in at))
        for other in ("base", DEFAULT):
            pairs = {}
            for name in names:
                if name == other:
                    continue
                seeds = [seed for whose, seed in at if whose == name and (other == "base" or (DEFAULT, seed) in at)]
                if other == "base":
                    pairs[name] = [(untouched, at[name, seed]) for seed in seeds]
                else:
                    pairs[name] = [(at[name, seed], at[DEFAULT, seed]) for seed in seeds]
            pairs = {name: both for name, both in pairs.items() if both}
            for figure, where in rows.items():
                tested = {name: _one(both, where, labels, targets, figure) for name, both in pairs.items()}
                for (name, entry), p in zip(tested.items(), holm([e["p"] for e in tested.values()])):
                    place = found.setdefault(name, {}).setdefault(other, {}).setdefault(mode, {})
                    place[figure] = {**entry, "p_holm": p, "tests": len(tested)}
    return found


def _of(run: dict[str, Any], mode: str) -> dict[str, Any]:
    return run if mode == "own" else run["under"][mode]


def _one(
    pairs: list[tuple[np.ndarray, np.ndarray]], where: np.ndarray, labels: np.ndarray, targets: tuple[int, ...], figure: str
) -> dict[str, Any]:
    p = [mcnemar(a[where], b[where]) for a, b in pairs]
    if figure == "target":  # the mean of the targets' accuracies, as everywhere: each target counts the same
        gains = [float(np.mean([b[labels == j].mean() - a[labels == j].mean() for j in targets])) for a, b in pairs]
    else:
        gains = [float(b.mean() - a.mean()) for a, b in pairs]
    return {"difference": float(np.mean(gains)), "p": combined(p), "p_seeds": p}


def without_examples(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs without what only the tests need of them: a bit an example would make a result large."""
    out = []
    for run in runs:
        kept = {key: value for key, value in run.items() if key != "right"}
        if isinstance(kept.get("under"), dict):
            kept["under"] = {k: {i: v for i, v in row.items() if i != "right"} for k, row in kept["under"].items()}
        out.append(kept)
    return out
