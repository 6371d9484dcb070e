"""ResNet-20 on CIFAR-10 stored as JPEG: the default of ``tweaknn join`` and its rivals under a promise (issue: fit and operate).

    python -m benchmarks.fitting.cifar --seeds 5 --rows 12500 --out benchmarks/results/fit-cifar10.json
    python -m benchmarks.fitting.cifar --validation train --seeds 5 --out benchmarks/results/fit-cifar10-train.json

Clean validation: fitted on ``--rows`` images of the train split (other ones for each seed), every choice and the
operating point on one half of the test split, measured on the other half, both ways; each measured half is looked at
once a seed. ``--validation train``: chosen on as many further images of the train split, which the base was trained
on, as most users have them; measured on the whole test split.

Everything is the product's own: the network is read by ``SynapticJoin.prepare`` (one shifted view), the candidates
are those of ``best``. ``head2toe`` is the convex fit of a quarter of the neurons, chosen by group lasso over all
layers. Rows ``fine-tuned E`` come from ``benchmarks.fitting.tables --finetune E`` (the whole train split), brought to
their operating point by the same rule.

E is reported for each measured half (250 images a class: chance alone gives a promise that exactly holds an E near
1 point there) and over the whole test split, each image under the point that was chosen on the other half.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import HERE, machine, write
from benchmarks.fitting.evaluate import applied
from benchmarks.fitting.tables import base_network, pictures, prepared
from benchmarks.networks import CIFAR10
from tweaknn import Promise, SynapticJoin
from tweaknn.join.candidates import CONTROLS, bias_alone, fitted, once
from tweaknn.join.choice import ordered
from tweaknn.join.methods import of_means, table_candidates
from tweaknn.join.selected import chosen
from tweaknn.join.setting import Candidate, Setting
from tweaknn.join.settle import settle
from tweaknn.join.size import limit_of
from tweaknn.join.table import PooledTable
from tweaknn.measure import measure

TARGETS = tuple(CIFAR10.index(t) for t in ("bird", "cat", "dog", "airplane"))
AIMS: list[tuple[str, tuple[int, ...], Promise]] = [
    *(("single | floors", (t,), Promise("floors")) for t in TARGETS),
    *(("single | floors less 1", (t,), Promise("floors", 0.01)) for t in TARGETS),
    ("worst four | floors", TARGETS, Promise("floors")),
    ("worst four | floors less 1", TARGETS, Promise("floors", 0.01)),
    *(("single | overall", (t,), Promise("overall")) for t in TARGETS),
]


def tables(
    seed: int, rows: int, validation: str, cache: Path, views: int | None = None
) -> tuple[Any, list[tuple[PooledTable, PooledTable]]]:
    """The prepared join, and (chosen on, measured on) for each way."""
    x, y = pictures("train", cache)
    tx, ty = pictures("test", cache)
    order = np.random.default_rng(seed).permutation(len(y))
    fit, more = np.sort(order[:rows]), np.sort(order[rows : 2 * rows])
    network = base_network()
    join = SynapticJoin(base_saw="train", seed=seed, table=cache / "table-t", cross_fit=False, views=views)
    held = (prepared(tx), torch.from_numpy(ty.astype(np.int64)))
    if validation == "train":
        held = tuple(torch.cat(pair) for pair in zip((prepared(x[more]), torch.from_numpy(y[more].astype(np.int64))), held))  # type: ignore[assignment]
    ready = join.prepare(network, (prepared(x[fit]), torch.from_numpy(y[fit].astype(np.int64))), held, classes=CIFAR10)
    table = ready.validation_table
    if validation == "train":
        seen, new = np.arange(len(more)), np.arange(len(more), len(table.labels))
        return ready, [(table.rows(seen), table.rows(new))]
    order = np.random.default_rng(seed).permutation(len(ty))
    halves = [table.rows(np.sort(part)) for part in np.array_split(order, 2)]
    return ready, [(halves[0], halves[1]), (halves[1], halves[0])]


def head2toe(setting: Setting) -> Candidate:
    """A quarter of all layers' neurons, chosen by group lasso (Evci et al. 2022), fitted and brought to their point."""
    f = setting.train.features.shape[1]
    made = once(setting, ("head2toe",), lambda: fitted(setting, "head2toe", chosen(setting, "selected", f // 4)))
    return made.settle(setting, "head2toe")


def tuned(epochs: int, cache: Path) -> np.ndarray | None:
    """Test logits of the fine-tuned network, where they were made."""
    file = cache / f"cifar-finetuned-{epochs}.npz"
    if not file.exists():
        return None
    with np.load(file) as stored:
        return stored["logits"]


def row(parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]], targets: tuple[int, ...]) -> dict[str, float]:
    """Figures over measured parts (base logits, logits, labels)."""

    def recalls(z: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.array([(z.argmax(1)[y == j] == j).mean() for j in range(10)])

    def error(d: np.ndarray) -> float:
        return float(np.sqrt(np.mean(np.minimum(d, 0) ** 2)))

    d = [recalls(z, y) - recalls(b, y) for b, z, y in parts]
    base, moved, y = (np.concatenate([p[i] for p in parts]) for i in range(3))
    whole = recalls(moved, y) - recalls(base, y)
    before, after = measure(base, y), measure(moved, y)
    return {
        "gain": float(np.mean([x[list(targets)].mean() for x in d])),
        "E_half": float(np.mean([error(x) for x in d])),
        "E": error(whole),
        "worst_drop": float(whole.min()),
        "overall_gain": after.overall - before.overall,
        "auroc_gain": float(np.mean([after.auroc[t] - before.auroc[t] for t in targets])),
    }


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The whole table."""
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    cpu: list[float] = []
    network = base_network()
    sizes: dict[str, int] = {}
    if options.resume:  # seeds measured before, by the same settings; those asked for now are measured anew
        found = earlier(options)
    for seed in range(options.first, options.first + options.seeds):
        ready, ways = tables(seed, options.rows, options.validation, options.cache, options.views)
        for aim, targets, promise in AIMS:
            if options.aims and not any(a in aim for a in options.aims):
                continue
            began = time.process_time()
            parts: dict[str, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {}
            for held, test in ways:
                setting = Setting(ready.train_table, held, targets, CIFAR10, promise, ready.frame, seed, limit_of(network))
                candidates = table_candidates("best", setting)
                handed = ordered(candidates, setting)[0]
                others = [head2toe(of_means(setting))]
                logits = {c.name: applied(c.delta, test) for c in (*candidates, *others)}
                logits["handed over"] = logits[handed.name]
                sizes.update({c.name: c.delta.parameters for c in (*candidates, *others)})
                if options.validation == "test":
                    logits |= fine_tuned(setting, held, test, ready.validation_table, options.cache)
                for name, z in logits.items():
                    parts.setdefault(name, []).append((test.logits, z, test.labels))
            for name, measured in parts.items():
                kept = found.setdefault(aim, {}).setdefault(name, [])
                kept.append({"seed": seed, "target": targets[0], **row(measured, targets)})
            cpu.append(time.process_time() - began)
            print(f"seed {seed}, {aim}, {targets}: {cpu[-1]:.0f} s", flush=True)
        vars(options)["seeds_measured"] = sorted({r["seed"] for rows in found.values() for m in rows.values() for r in m})
        write(options.out, {"machine": machine(), "points": summary(found), "parameters": sizes, "rows": found,
                            "settings": {**vars(options), "out": None, "cache": None}, "controls": CONTROLS})  # fmt: skip
    return found


def earlier(options: argparse.Namespace) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Rows of ``--out`` whose seeds are not asked for again; refuses those of other settings."""
    stored = json.loads(options.out.read_text())
    for name in ("rows", "validation", "aims", "views"):
        if stored["settings"].get(name) != getattr(options, name):
            raise SystemExit(f"{options.out} was measured with {name}={stored['settings'].get(name)}, not {getattr(options, name)}.")
    again = range(options.first, options.first + options.seeds)
    return {
        aim: {m: [r for r in rows if r["seed"] not in again] for m, rows in methods.items()} for aim, methods in stored["rows"].items()
    }


def fine_tuned(setting: Setting, held: PooledTable, test: PooledTable, table: PooledTable, cache: Path) -> dict[str, np.ndarray]:
    """Fine-tuned networks under the same rule; their logits are found by the base's, which no two images share."""
    place = {z.tobytes(): k for k, z in enumerate(table.logits)}
    out = {}
    for epochs in (1, 5):
        logits = tuned(epochs, cache)
        if logits is None:
            continue
        here, there = ([place[z.tobytes()] for z in part.logits] for part in (held, test))
        # as a delta whose logits are known: the base's bias control, started from other logits
        shifted = replace(setting, validation=replace(held, logits=held.logits))
        point = settle(shifted, "fine-tuned", bias_alone(shifted).delta, logits[here]).point
        out[f"fine-tuned {epochs}"] = logits[there] + point.bias
    return out


def summary(rows: dict[str, dict[str, list[dict[str, float]]]]) -> dict[str, Any]:
    """Mean over targets and seeds, spread over seeds (of the mean over targets), in points."""
    out: dict[str, Any] = {}
    for aim, methods in rows.items():
        for method, found in methods.items():
            seeds = sorted({r["seed"] for r in found})
            by_seed = {
                k: [np.mean([r[k] for r in found if r["seed"] == s]) for s in seeds]
                for k in found[0]
                if k not in ("seed", "target")
            }
            out.setdefault(aim, {})[method] = {
                k: {"mean": 100 * np.mean(v), "sd": 100 * np.std(v, ddof=1) if len(v) > 1 else None}
                for k, v in by_seed.items()
            }
    return out


def main() -> None:
    """Run, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=HERE / ".cache")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--rows", type=int, default=12_500)
    parser.add_argument("--resume", action="store_true", help="keep the seeds that --out has already")
    parser.add_argument("--aims", nargs="*", help="parts of names of aims; all by default")
    parser.add_argument("--views", type=int, help="augmented copies of each training image; the default's own number without it")
    parser.add_argument("--validation", choices=("test", "train"), default="test")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "fit-cifar10.json")
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    for name, methods in summary(run(options)).items():
        print(name)
        for method, f in methods.items():
            spread = f" ± {f['gain']['sd']:.1f}" if f["gain"]["sd"] is not None else ""
            print(f"  {method:16s} gain {f['gain']['mean']:5.1f}{spread}  E {f['E']['mean']:.2f} (halves {f['E_half']['mean']:.2f})"
                  f"  overall {f['overall_gain']['mean']:+.1f}  auroc {f['auroc_gain']['mean']:+.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
