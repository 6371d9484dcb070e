"""Few examples, and examples the base saw: `python -m benchmarks.operating.scarce --json benchmarks/results/scarce.json`.

``cross``: 300 to 1,200 examples of a pool are all a user has; half set aside for the choice against cross-fitting, measured on the
rest of the pool. ``seen``: a base's own training data is all there is to fit and to choose on; the caution taken once, twice, four
times, measured on examples it never saw. Means over seeds and the three worst classes (as counted on what is chosen on), points.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import HERE, machine, write
from benchmarks.fitting import worlds
from benchmarks.operating.caution import judged
from benchmarks.operating.pools import means_only, pool
from tweaknn import SynapticJoin
from tweaknn.errors import InputError
from tweaknn.join.apply import tweaked_logits
from tweaknn.join.prepared import Prepared
from tweaknn.join.setting import CAUTION
from tweaknn.join.table import PooledTable

FIGURES = ("gain", "E", "chance", "worst_drop", "overall", "broken")


class Stored:
    """Examples of a table, where a join asks for examples; nothing runs the network again."""

    def __init__(self, table: PooledTable):
        self.labels = table.labels

    def __len__(self) -> int:
        return len(self.labels)


def ready(frame: Any, classes: list[str], train: PooledTable, validation: PooledTable | None, limit: int) -> Prepared:
    """What :meth:`SynapticJoin.prepare` gives, from tables at hand."""

    class Reading:
        neurons, how = train.features.shape[1], "stored"
        model = torch.nn.Linear(1, limit)

    first = Stored(train)
    second = first if validation is None else Stored(validation)
    reader: Any = Reading()
    table = train if validation is None else validation
    return Prepared(reader, first, second, train, table, classes, frame, [], cross=validation is None)


def row(join: SynapticJoin, prepared: Prepared, report: PooledTable, targets: list[int]) -> dict[str, float]:
    """Mean figures over targets."""
    found = []
    for target in targets:
        try:
            result = join.choose(prepared, [target])
        except InputError:
            continue
        moved = report.logits if result.delta is None else tweaked_logits(result.delta, report)
        found.append(judged(report.logits, moved, report.labels, [target], 0.0))
    return {k: float(np.mean([f[k] for f in found])) * (1 if k == "broken" else 100) for k in FIGURES}


def worst(table: PooledTable, most: int = 3) -> list[int]:
    """Least accurate classes with at least eight examples."""
    counts = np.bincount(table.labels)
    right = np.bincount(table.labels[table.logits.argmax(1) == table.labels], minlength=len(counts))
    return np.argsort(np.where(counts >= 8, right / np.maximum(counts, 1), 2.0), kind="stable")[:most].tolist()


def cross(name: str, n: int, seeds: int) -> list[dict[str, Any]]:
    """Half aside against cross-fitting."""
    world = pool(name)
    table = means_only(world.table)
    rows = []
    common = {"method": "fit", "base_saw": "none"}
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(len(table.labels))
        own, report = table.rows(order[:n]), table.rows(order[n:])
        targets = worst(own)
        half = np.arange(n) < n // 2
        ways = {
            "half aside": (False, own.rows(np.flatnonzero(half)), own.rows(np.flatnonzero(~half))),
            "cross-fitted": (True, own, None),
        }
        for way, (folds, train, validation) in ways.items():
            join = SynapticJoin(**common, cross_fit=folds)  # type: ignore[arg-type]
            prepared = ready(world.frame, world.classes, train, validation, world.base_parameters)
            rows.append({"what": "cross", "pool": name, "n": n, "seed": seed, "way": way, **row(join, prepared, report, targets)})
    return rows


def both(name: str, cache: Path = HERE / ".cache") -> tuple[Any, list[str], PooledTable, PooledTable]:
    """Frame, classes, table of the base's own training data, table of what it never saw."""
    file = cache / f"seen-{name}.pt"
    if not file.exists():
        if name == "usps":
            model, _, _, _ = worlds.usps()
            (x, y), (px, py) = worlds.digits("train"), worlds.digits("test")
        else:
            model, px, py, _ = worlds.clothing()
            x, y, _, _ = worlds.clothes()
        classes = [str(j) for j in range(10)]
        ready_ = SynapticJoin(method="fit", views=0).prepare(model, (x, y), (px, py), classes=classes)
        torch.save((ready_.frame, classes, ready_.train_table, ready_.validation_table), file)
    return torch.load(file, weights_only=False)


def seen(name: str, seeds: int) -> list[dict[str, Any]]:
    """Nothing but what the base saw, for several cautions."""
    frame, classes, own, report = both(name)
    rows = []
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(len(own.labels))
        first, second = own.rows(order[: len(order) // 2]), own.rows(order[len(order) // 2 :])
        targets = worst(second)
        prepared = ready(frame, classes, first, second, 100_000)
        for times in (0, 1, 2, 4):
            join = SynapticJoin(method="fit", base_saw="both", cross_fit=False, caution=times * CAUTION)
            rows.append({"what": "seen", "pool": name, "n": len(second.labels), "seed": seed, "way": f"caution x {times}",
                         **row(join, prepared, report, targets)})  # fmt: skip
    return rows


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", choices=("seen", "cross"))
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    jobs: list[Any] = [(cross, (name, n)) for name, n in (("text", 600), ("usps", 300), ("clothing", 600), ("vit", 600), ("usps", 1000))]
    jobs = [(seen, ("usps",)), *jobs, (seen, ("clothing",))]
    jobs = [job for job in jobs if options.only in (None, job[0].__name__)]
    points = []
    for job, arguments in jobs:
        rows += job(*arguments, options.seeds)
        keys = ("what", "pool", "n", "way")
        points = []
        for key in dict.fromkeys(tuple(r[k] for k in keys) for r in rows):
            mine = [r for r in rows if tuple(r[k] for k in keys) == key]
            points.append(dict(zip(keys, key, strict=True)) | {k: float(np.mean([r[k] for r in mine])) for k in FIGURES})
        for p in [p for p in points if (p["what"], p["pool"]) == (job.__name__, arguments[0])]:
            print(" ".join(f"{k} {v:.2f}" if isinstance(v, float) else str(v) for k, v in p.items()), flush=True)
        write(options.json, {"machine": machine(), "seeds": options.seeds, "points": points, "rows": rows})


if __name__ == "__main__":
    main()
