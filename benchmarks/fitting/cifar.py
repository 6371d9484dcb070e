"""ResNet-20 on CIFAR-10 stored as JPEG: what each method gains under a promise (issue: fit and operate).

    python -m benchmarks.fitting.tables --views 0 1 2 --finetune 1
    python -m benchmarks.fitting.cifar --seeds 5 --out benchmarks/results/fit-cifar10.json

Clean validation: everything is fitted on the train split; the operating point, and every choice between fits, is
made on one half of the
test split and measured on the other, both ways, for each seed of the halves. Each measured half is looked at once
a seed.
``--validation train``: fitted on one half of the train split, chosen on the other (images the base was trained on,
as most users have
them), measured on the whole test split.

E is reported for each measured half (250 images a class: chance alone gives a promise that exactly holds an E near
1 point there) and
over the whole test split, each image under the point that was chosen on the other half.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import HERE, machine, write
from benchmarks.fitting.tables import finetuned, table
from benchmarks.networks import CIFAR10
from tweaknn.fit.aan import AANSettings, fit_aan
from tweaknn.fit.convex import LogisticProblem
from tweaknn.fit.selection import group_sparse
from tweaknn.join.candidates import L2_GRID
from tweaknn.join.operating import operate
from tweaknn.join.promise import Promise
from tweaknn.join.settle import STRENGTHS
from tweaknn.measure import measure, negative_log_likelihood

TARGETS = ("bird", "cat", "dog", "airplane")
LAST, LAST_GRID = 64, 2 * 64 * 4
"""Channels of the last layer; columns of the 2 x 2 grid of the last two."""
AAN = AANSettings(epochs=5, parameters=250_000)
PROMISES = {"floors": Promise("floors"), "floors less 1": Promise("floors", 0.01)}
JOINT = False
"""Whether the four targets are also taken together."""

Fits = dict[str, list[tuple[str, np.ndarray]]]
"""method -> fits to choose among: (setting, logits on the test split or on the validation rows)."""


def reading(t: dict[str, np.ndarray], kind: str) -> np.ndarray:
    """Columns a method reads: ``mean`` of all layers, ``last`` layer, or what the AAN reads."""
    if kind == "mean":
        return t["mean"]
    if kind == "last":
        return t["mean"][:, -LAST:]
    return np.concatenate([t["mean"], t["max"], t["grid2"][:, -LAST_GRID:]], axis=1)


def linear_fits(train: dict, columns: np.ndarray, others: list[np.ndarray], bases: list[np.ndarray], rows: np.ndarray):
    """Convex fits over the L2 grid: [(l2, logits on each of ``others``)], seconds."""
    began = time.perf_counter()
    problem = LogisticProblem(columns[rows].astype(np.float32), train["logits"][rows], train["y"][rows])
    found = []
    for l2 in sorted(L2_GRID, reverse=True):
        fit = problem.solve(l2, warm=True)
        found.append((f"l2={l2:g}", [fit.logits(x.astype(np.float32), z) for x, z in zip(others, bases)]))
    return found, time.perf_counter() - began


def fits_of(
    cache: Path, rows: np.ndarray, others: list[tuple[str, np.ndarray]], seed: int, tag: str, methods: list[str]
):
    """Logits of every fit on the examples ``others`` (split, rows), stored: a rerun costs nothing."""
    out: dict[str, Any] = {}
    for method in methods:
        file = cache / f"fits-{tag}-{method}-{seed}.npz"
        if not file.exists():
            _fit(method, cache, rows, others, seed, file)
        with np.load(file) as stored:
            names = [str(n) for n in stored["names"]]
            out[method] = {
                "fits": [(n, [stored[f"{i}.{k}"] for k in range(len(others))]) for i, n in enumerate(names)],
                "seconds": float(stored["seconds"]),
                "parameters": int(stored["parameters"]),
            }
    return out


def _fit(method: str, cache: Path, rows: np.ndarray, others, seed: int, file: Path) -> None:
    train = table("train", 0, cache)
    parts = [(table(split, 0, cache), index) for split, index in others]
    bases = [t["logits"][index] for t, index in parts]
    rng = np.random.default_rng(seed)
    parameters = 0
    if method == "bias":
        found, seconds = [("", bases)], 0.0
        parameters = 10
    elif method == "aan":
        views = [table("train", v, cache) for v in (1, 2)]
        inputs = [reading(t, "aan")[rows] for t in (train, *views)]
        began = time.perf_counter()
        fit = fit_aan(
            inputs[0], train["logits"][rows], train["y"][rows], AANSettings(**{**vars(AAN), "seed": seed}),
            views=[(x, v["logits"][rows]) for x, v in zip(inputs[1:], views)],
        )  # fmt: skip
        seconds = time.perf_counter() - began
        found = [
            ("", [fit.logits(reading(t, "aan")[index].astype(np.float32), z) for (t, index), z in zip(parts, bases)])
        ]
        parameters = fit.parameters
    else:
        kind = {"last-layer": "last"}.get(method, "mean")
        columns = reading(train, kind)
        began = time.perf_counter()
        chosen = np.arange(columns.shape[1])
        if method == "random-neurons":
            chosen = np.sort(rng.choice(len(chosen), len(chosen) // 4, replace=False))
        if (
            method == "head2toe"
        ):  # the same number, by group lasso over all layers' pooled features (on a fifth of the rows)
            few = rows[rng.permutation(len(rows))[: len(rows) // 5]]
            picked = group_sparse(columns[few], train["logits"][few], train["y"][few], len(chosen) // 4)
            chosen = np.sort(picked.order[: len(chosen) // 4])
        others_x = [reading(t, kind)[index][:, chosen] for t, index in parts]
        found, _ = linear_fits(train, columns[:, chosen], others_x, bases, rows)
        seconds = time.perf_counter() - began
        parameters = 10 * len(chosen) + 10
    arrays = {f"{i}.{k}": z for i, (_, each) in enumerate(found) for k, z in enumerate(each)}
    np.savez(file, names=[n for n, _ in found], seconds=seconds, parameters=parameters, **arrays)
    print(f"{file.name}: {seconds:.0f} s", flush=True)


def pointed(base: np.ndarray, fits: list[tuple[str, list[np.ndarray]]], y: np.ndarray, here, there, targets, promise):
    """Choose fit (log loss), strength and biases on ``here``; logits on ``there``. here/there: (index into others,
    rows)."""
    k, rows = here
    name, each = min(fits, key=lambda f: negative_log_likelihood(f[1][k][rows], y))
    best, key = None, None
    for strength in STRENGTHS if name or len(fits) or True else (1.0,):
        z = base[0] + np.float32(strength) * (each[k][rows] - base[0])
        point = operate(base[0], z, y, targets, promise)
        this = (point.feasible, round(point.value, 12), point.overall)
        if key is None or this > key:
            best, key = (strength, point), this
        if len(fits) == 1 and np.array_equal(each[k][rows], base[0]):
            break
    strength, point = best
    j, other = there
    return base[1] + np.float32(strength) * (each[j][other] - base[1]) + point.bias, point


def recalls(z: np.ndarray, y: np.ndarray) -> np.ndarray:
    p = z.argmax(1)
    return np.array([(p[y == j] == j).mean() for j in range(10)])


def error(d: np.ndarray) -> float:
    """E, Eq. 3.3, of accuracy differences by class."""
    return float(np.sqrt(np.mean(np.minimum(d, 0) ** 2)))


def row(
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]], targets: list[int], gains: list[float]
) -> dict[str, float]:
    """Figures of one target (set) and seed over measured parts (base logits, logits, labels)."""
    d = [recalls(z, y) - recalls(b, y) for b, z, y in parts]
    base, moved, y = (np.concatenate([p[i] for p in parts]) for i in range(3))
    whole = recalls(moved, y) - recalls(base, y)
    before, after = measure(base, y), measure(moved, y)
    return {
        "gain": float(np.mean([x[targets].mean() for x in d])),
        "gain_validation": float(np.mean(gains)),
        "E_half": float(np.mean([error(x) for x in d])),
        "E": error(whole),
        "worst_drop": float(whole.min()),
        "overall": after.overall,
        "overall_gain": after.overall - before.overall,
        "auroc_gain": float(np.mean([after.auroc[t] - before.auroc[t] for t in targets])),
    }


def run(cache: Path, seeds: int, validation: str, methods: list[str]) -> dict[str, Any]:
    """The whole table."""
    test = table("test", 0, cache)
    y, base = test["y"], test["logits"]
    train_y = table("train", 0, cache)["y"]
    aims = {**{t: [CIFAR10.index(t)] for t in TARGETS}, "worst four": [CIFAR10.index(t) for t in TARGETS]}
    rows: dict[str, dict[str, list[dict[str, float]]]] = {}
    costs: dict[str, Any] = {}
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        if validation == "test":
            order = rng.permutation(len(y))
            halves = [np.sort(order[: len(y) // 2]), np.sort(order[len(y) // 2 :])]
            every = np.arange(len(train_y))
            fits = fits_of(cache, every, [("test", np.arange(len(y)))], seed, "clean", methods)
            ways = [((0, a), (0, b)) for a, b in (halves, halves[::-1])]
            base_of = [(base[a], base[b]) for a, b in (halves, halves[::-1])]
            labels = [(y[a], y[b]) for a, b in (halves, halves[::-1])]
        else:
            order = rng.permutation(len(train_y))
            fitted, held = np.sort(order[: len(order) // 2]), np.sort(order[len(order) // 2 :])
            others = [("train", held), ("test", np.arange(len(y)))]
            fits = fits_of(cache, fitted, others, seed, "seen", methods)
            ways = [((0, np.arange(len(held))), (1, np.arange(len(y))))]
            base_of = [(table("train", 0, cache)["logits"][held], base)]
            labels = [(train_y[held], y)]
        for epochs in (1, 5):
            tuned = cache / f"cifar-finetuned-{epochs}.npz"
            if validation == "test" and tuned.exists():
                found = finetuned(epochs, cache)
                fits[f"fine-tuned {epochs}"] = {
                    "fits": [("", [found["logits"]])], "seconds": float(found["seconds"]), "parameters": 272_474,
                }  # fmt: skip
        for aim, targets in aims.items():
            for said, promise in PROMISES.items():
                if aim == "worst four" and not JOINT:
                    continue  # several targets: a costlier search
                merits: dict[str, tuple] = {}
                for method, found in fits.items():
                    parts, gains, values = [], [], []
                    for way, b, label in zip(ways, base_of, labels):
                        z, point = pointed(b, found["fits"], label[0], *way, targets, promise)
                        parts.append((b[1], z, label[1]))
                        gains.append(point.gain)
                        values.append((point.feasible, round(point.value, 12), point.overall))
                    kind = "single" if aim != "worst four" else aim
                    rows.setdefault(f"{kind} | {said}", {}).setdefault(method, []).append(
                        {"seed": seed, "target": aim, **row(parts, targets, gains)}
                    )
                    costs[method] = {"seconds": found["seconds"], "parameters": found["parameters"]}
                    merits[method] = (parts, gains, values)
                ours = [m for m in merits if not m.startswith("fine-tuned")]
                parts, gains = [], []
                for k in range(
                    len(ways)
                ):  # what ``tweaknn join`` hands over: the best on validation, each way by itself
                    best = max((m for m in ours if m != "head2toe"), key=lambda m: merits[m][2][k])
                    parts.append(merits[best][0][k])
                    gains.append(merits[best][1][k])
                rows[f"{kind} | {said}"].setdefault("join (default)", []).append(
                    {"seed": seed, "target": aim, **row(parts, targets, gains)}
                )
        print(f"seed {seed} done", flush=True)
    passes = {v: float(table("train", v, cache)["seconds"]) for v in (0, 1, 2)}
    return {"validation": validation, "seeds": seeds, "rows": rows, "costs": costs, "seconds_of_a_pass": passes}


def summary(rows: dict[str, dict[str, list[dict[str, float]]]]) -> dict[str, Any]:
    """Mean over targets and seeds, spread over seeds (of the mean over targets), in points."""
    out: dict[str, Any] = {}
    for table_name, methods in rows.items():
        for method, found in methods.items():
            seeds = sorted({r["seed"] for r in found})
            keys = [k for k in found[0] if k not in ("seed", "target")]
            by_seed = {k: [np.mean([r[k] for r in found if r["seed"] == s]) for s in seeds] for k in keys}
            out.setdefault(table_name, {})[method] = {
                k: {"mean": 100 * np.mean(v), "sd": 100 * np.std(v, ddof=1) if len(v) > 1 else None}
                for k, v in by_seed.items()
            }
    return out


def main() -> None:
    """Run and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=HERE / ".cache")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--validation", choices=("test", "train"), default="test")
    parser.add_argument(
        "--methods", nargs="*", default=["bias", "random-neurons", "last-layer", "head2toe", "fit", "aan"]
    )
    parser.add_argument("--out", type=Path, default=HERE / "results" / "fit-cifar10.json")
    options = parser.parse_args()
    found = run(options.cache, options.seeds, options.validation, options.methods)
    short = summary(found["rows"])
    for name, methods in short.items():
        print(name)
        for method, f in methods.items():
            sd = f["gain"]["sd"]
            spread = f" ± {sd:.1f}" if sd is not None else ""
            print(f"  {method:16s} gain {f['gain']['mean']:5.1f}{spread}  E {f['E']['mean']:.2f} (halves {f['E_half']['mean']:.2f})"
                  f"  overall {f['overall_gain']['mean']:+.1f}  auroc {f['auroc_gain']['mean']:+.2f}")  # fmt: skip
    settings = {
        "aan": vars(AAN),
        "l2": L2_GRID,
        "strengths": STRENGTHS,
        "targets": TARGETS,
        "validation": options.validation,
    }
    write(options.out, {"settings": settings, "machine": machine(), "points": short, **found})


if __name__ == "__main__":
    main()
