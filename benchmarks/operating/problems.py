"""What the solver reaches on many problems, beside what an earlier one reached, and the seconds of both:

    python -m benchmarks.operating.problems --json NEW.json --against OLD.json

Made-up logits of many shapes and real ones (a convex fit on half of a pool, chosen on the other half) under promises of every kind.
A row fails when its value is below the earlier one's by more than 1e-9, or a promise that was kept is not; figures are counted here,
on the float32 sums, with the rules' own letter and not with what the solver says of itself.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.common import HERE, machine
from tweaknn.join.counting import rules_of, target_sets
from tweaknn.join.operating import operate
from tweaknn.join.promise import Promise
from tweaknn.writing import json_text, write


class Problem(NamedTuple):
    """Inputs of :func:`~tweaknn.join.operating.operate` under a name."""

    name: str
    base: np.ndarray
    z: np.ndarray
    y: np.ndarray
    targets: Any
    promise: Promise
    caution: float = 0.0


def made_up(n: int, c: int, seed: int, skew: float = 0.0, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits of a network that is right on about 70 %, and better ones; ``skew``: class sizes fall by this power of their rank."""
    rng = np.random.default_rng(seed)
    share = np.arange(1, c + 1, dtype=float) ** -skew
    y = rng.choice(c, n, p=share / share.sum())
    y[:c] = np.arange(c)
    base = rng.normal(size=(n, c)) + rng.normal(size=c) * 0.3
    base[np.arange(n), y] += 1.0 + 0.5 * np.log(c)
    z = base + 0.6 * rng.normal(size=(n, c))
    z[np.arange(n), y] += 0.4
    return (scale * base).astype(np.float32), (scale * z).astype(np.float32), y


def promises(c: int, y: np.ndarray, z: np.ndarray, seed: int) -> Iterator[tuple[str, Any, Promise, float]]:
    """(name, targets, promise, caution) of every kind."""
    rng = np.random.default_rng(seed)
    costs = rng.random((c, c)) * 0.3
    np.fill_diagonal(costs, 0)
    recall = np.bincount(y[z.argmax(1) == y], minlength=c) / np.maximum(np.bincount(y, minlength=c), 1)
    worst = [int(j) for j in np.argsort(recall, kind="stable")]
    few = worst[: max(2, min(4, c - 1))]
    mask = (y == worst[0]) & (np.arange(len(y)) % 3 == 0)
    everybody = Promise(
        "mixed", floors={j: float(max(0.0, recall[j] - 0.02)) for j in range(c)}, weights={j: float((y == j).sum()) for j in range(c)}
    )
    yield "floors, one", worst[:1], Promise("floors"), 0.0
    yield "floors, some", few, Promise("floors"), 0.0
    yield "floors less 2, some, weights", few, Promise("floors", 0.02, weights={few[0]: 3.0}), 0.0
    yield "floors, some, caution", few, Promise("floors", 0.01), 0.5
    yield "overall, one", worst[:1], Promise("overall"), 0.0
    yield "overall less 1, some", few, Promise("overall", 0.01), 0.25
    yield "floors, sub-class", {"part": mask}, Promise("floors", 0.01), 0.0
    yield "mixed", few[:2], Promise("mixed", floors={few[0]: 0.5}, max_drop=0.03, overall_drop=0.01,
                                    specificity={few[1]: 0.9}, weights={few[0]: 2.0}), 0.0  # fmt: skip
    yield "mixed, costs", few, Promise("mixed", max_drop=0.05, overall_drop=0.02, costs=costs), 0.0
    yield "everybody above a floor", list(range(c)), everybody, 0.0


SHAPES = {
    "300x3": (300, 3, 1, 0.0, 1.0), "900x6": (900, 6, 2, 0.0, 1.0), "2000x10": (2000, 10, 3, 0.0, 1.0),
    "2000x10 skewed": (2000, 10, 4, 1.0, 1.0), "5000x10 x8": (5000, 10, 5, 0.0, 8.0), "10000x10": (10000, 10, 6, 0.0, 1.0),
    "6000x30 skewed": (6000, 30, 7, 0.7, 1.0), "20000x60": (20000, 60, 8, 0.0, 1.0),
}  # fmt: skip
REAL = ("resnet20", "usps", "vit", "shuttle")


def real(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits before and after a convex fit on half of a pool, and labels, of its other half."""
    file = HERE / ".cache" / f"operating-{name}.npz"
    if not file.exists():
        from benchmarks.operating.pools import convex, means_only, pool

        _resnet20()
        world = pool(name)
        fit, choose, report = world.split(0)
        table, rest = means_only(world.table), np.sort(np.concatenate([choose, report]))
        _, _, (z,) = convex(world, table.rows(fit), table.rows(choose), [table.rows(rest)])
        np.savez(file, base=table.logits[rest], z=z, y=table.labels[rest])
    with np.load(file) as stored:
        return stored["base"].astype(np.float32), stored["z"].astype(np.float32), stored["y"].astype(np.int64)


def _resnet20() -> None:
    import torch

    from benchmarks.fitting import worlds
    from benchmarks.fitting.tables import base_network, pictures, prepared

    def cifar():
        x, y = pictures("test", HERE / ".cache")
        return base_network(), prepared(x), torch.from_numpy(y.astype(np.int64)), ""

    worlds.WORLDS.setdefault("resnet20", cifar)


def problems(only: str = "") -> Iterator[Problem]:
    """All of them."""
    pools = {**{name: lambda shape=shape: made_up(*shape) for name, shape in SHAPES.items()},
             **{name: lambda name=name: real(name) for name in REAL}}  # fmt: skip
    for seed, (name, make) in enumerate(pools.items()):
        if only and only not in name:
            continue
        base, z, y = make()
        for words, targets, promise, caution in promises(z.shape[1], y, z, seed):
            yield Problem(f"{name} | {words}", base, z, y, targets, promise, caution)


def figures(p: Problem, bias: np.ndarray) -> tuple[float, float, bool]:
    """Value and shortfall, and whether the promise holds to the letter, by counting the float32 sums."""
    c = p.z.shape[1]
    promise = p.promise.resolve(None, c, p.targets if isinstance(p.targets, dict) else ())
    sets = target_sets(p.targets, p.y, c, None, promise)
    r = rules_of(p.base, p.y, sets, promise, c)
    called = (p.z + bias.astype(np.float32)).argmax(1)
    right = called == p.y
    count = np.bincount(p.y[right], minlength=c)
    false = np.bincount(called[~right], minlength=c)
    groups = [right[r.group == g].sum() for g in range(len(r.need_group))]
    short = max(0.0, r.need_all - right.sum()) * r.unit_all + float((np.maximum(0, r.need - count) * r.unit).sum())
    short += float((np.maximum(0, false - r.most_false) * r.unit_false).sum())
    short += float(sum(max(0.0, need - got) * unit for need, got, unit in zip(r.need_group, groups, r.unit_group)))
    return float(r.gain[right].sum() - r.price[p.y, called].sum()), short, short <= 0


def main() -> None:
    """Run, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--against", type=Path, help="what an earlier solver wrote")
    parser.add_argument("--only", default="", help="problems whose pool's name holds this")
    options = parser.parse_args()
    before = json.loads(options.against.read_text())["rows"] if options.against else {}
    warm = made_up(60, 3, 0)
    for targets in ([0], [0, 1]):
        for promise in (Promise("floors"), Promise("overall")):
            operate(*warm, targets, promise)  # compiles
    rows: dict[str, Any] = {}
    for p in problems(options.only):
        began = time.process_time()
        point = operate(p.base, p.z, p.y, p.targets, p.promise, caution=p.caution)
        seconds = time.process_time() - began
        value, short, kept = figures(p, point.bias)
        row: dict[str, Any] = {"value": value, "shortfall": short, "kept": kept, "said": point.feasible, "seconds": seconds}
        old = before.get(p.name)
        if old:
            row["before"] = {k: old[k] for k in ("value", "shortfall", "kept", "seconds")}
            # with caution the rules are stricter than their letter by what was estimated on the way: values cannot be compared
            row["worse"] = short > old["shortfall"] + 1e-9 or (kept and old["kept"] and value < old["value"] - 1e-9)
        rows[p.name] = row
        print(f"{p.name:45s} {value:.6f} {'kept' if kept else f'misses {short:.4f}'} {seconds:.3f} s"
              + (f" | {old['value']:.6f} {old['seconds']:.3f} s{' WORSE' if row['worse'] else ''}" if old else ""), flush=True)  # fmt: skip
    found: dict[str, Any] = {"machine": machine(), "problems": len(rows), "seconds": sum(r["seconds"] for r in rows.values())}
    if before:
        pairs = [r for r in rows.values() if "before" in r]
        found |= {
            "worse": sum(r["worse"] for r in pairs),
            "better": sum(r["value"] > r["before"]["value"] + 1e-9 for r in pairs),
            "seconds_before": sum(r["before"]["seconds"] for r in pairs),
        }
    print({k: v for k, v in found.items() if k != "machine"})
    write(options.json, json_text({**found, "rows": rows}, digits=12), "--json")


if __name__ == "__main__":
    main()
