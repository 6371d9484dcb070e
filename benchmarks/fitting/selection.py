"""Which few neurons: is the set the same on other data, and does it beat neurons drawn by lot? (issue: fit and operate)

    python -m benchmarks.fitting.selection --seeds 5 --out benchmarks/results/fit-selection.json

Every method keeps 40 pooled neurons on one half of the fit rows, and again on the other half. ``agreement``: the share
that both halves have in common; ``by chance``: what two draws of 40 would share. The neurons of the first half are
fitted on all fit rows to their convex optimum and brought to the operating point (floors, worst class); ``gain`` and
the log loss are of report rows. The random control draws as many neurons *of the same layers* as the method took of
each. ``interactions`` adds the products of the ten strongest neurons (45 columns; no delta can hold them: it is here
for the question whether they pay). Mixed sets of pooled and positional neurons need the network and are studied on
scikit-learn's digits (``mixed``).
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import HERE, machine, write
from benchmarks.fitting.evaluate import judged, setting_of
from benchmarks.fitting.worlds import world
from tweaknn.delta import Read
from tweaknn.fit.selection import agreement
from tweaknn.join.candidates import fitted
from tweaknn.join.methods import columns_of, means
from tweaknn.join.selected import chosen
from tweaknn.join.setting import Setting
from tweaknn.join.table import PooledTable
from tweaknn.measure import negative_log_likelihood

METHODS = ("selected", "stable", "net-gain")


def same_layers(table: PooledTable, columns: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """As many columns of each layer, drawn by lot."""
    parts = []
    for span in table.spans():
        count = int(((columns >= span.start) & (columns < span.stop)).sum())
        parts.append(rng.choice(np.arange(span.start, span.stop), count, replace=False))
    return np.sort(np.concatenate(parts))


def figures(setting: Setting, test: PooledTable, columns: np.ndarray) -> dict[str, float]:
    """A fit of these columns on the report rows."""
    made = fitted(setting, "x", columns)
    row = judged(made.settle(setting, "x"), setting, test)
    return {"gain": row["gain"], "overall": row["overall"], "E": row["E"], "log_loss": made.notes["log_loss"],
            "test_log_loss": loss_of(made.delta, test)}  # fmt: skip


def loss_of(delta: Any, table: PooledTable) -> float:
    from benchmarks.fitting.evaluate import applied

    return negative_log_likelihood(applied(delta, table), table.labels)


def interactions(setting: Setting, test: PooledTable, columns: np.ndarray, most: int = 10) -> dict[str, float]:
    """Products of the first ``most`` columns beside all of them."""
    spread = setting.train.features[:, columns].std(0) + 1e-9
    centre = setting.train.features[:, columns].mean(0)
    a, b = np.triu_indices(most, 1)

    def more(table: PooledTable) -> PooledTable:
        x = (table.features[:, columns] - centre) / spread
        new = Read("@products", "position", (len(a),), 0, torch.arange(len(a)))
        return PooledTable(np.concatenate([table.features, x[:, a] * x[:, b]], 1), table.logits, table.labels,
                           (*table.reads, new))  # fmt: skip

    wide = replace(setting, train=more(setting.train), validation=more(setting.validation))
    f = setting.train.features.shape[1]
    return figures(wide, more(test), np.concatenate([columns, np.arange(f, f + len(a))]))


def run(name: str, seeds: int, most: int = 40) -> dict[str, Any]:
    """One world."""
    w = world(name)
    rows: dict[str, list[dict[str, float]]] = {}
    for seed in range(seeds):
        setting, test = setting_of(w, seed, 1)
        columns = means(setting.train)
        plain = replace(setting.train, views=())
        setting = replace(setting, train=columns_of(plain, columns), validation=columns_of(setting.validation, columns))
        test = columns_of(test, columns)
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(setting.train.labels))
        halves = [replace(setting, train=setting.train.rows(np.sort(part))) for part in np.array_split(order, 2)]
        f = len(columns)
        for method in METHODS:
            first, second = (chosen(half, method, most) for half in halves)
            lot = [figures(setting, test, same_layers(setting.train, first, rng)) for _ in range(3)]
            own = figures(setting, test, first)
            rows.setdefault(method, []).append({
                "agreement": agreement(first, second), "by chance": most / f, **own,
                **{f"random {k}": float(np.mean([one[k] for one in lot])) for k in lot[0]},
            })  # fmt: skip
            if method == "selected":
                pays = interactions(setting, test, first)
                rows.setdefault("selected + interactions", []).append({"agreement": np.nan, "by chance": np.nan, **pays})
        rows.setdefault("all", []).append({"agreement": 1.0, "by chance": 1.0, **figures(setting, test, np.arange(f))})
    print(name, f"({f} neurons)")
    for method, found in rows.items():
        print("   " + f"{method:24s} " + "  ".join(f"{k} {np.mean([r[k] for r in found]):.3f}" for k in found[0]), flush=True)
    return rows


def mixed(seeds: int) -> list[dict[str, Any]]:
    """Pooled and positional neurons together, on the demonstration's digits: how many of each are kept, and what it gains."""
    from tweaknn import SynapticJoin, compare_logits
    from tweaknn.demo import CLASSES, RARE, digits, train_base
    from tweaknn.network.outputs import collect_logits

    out = []
    for seed in range(seeds):
        data = digits(seed)
        model = train_base(*data.base, seed=seed)
        loader = [(data.test[0], data.test[1])]
        base, labels = collect_logits(model, loader)
        row: dict[str, Any] = {"seed": seed}
        for method in ("mixed", "selected"):
            join = SynapticJoin(method=method, base_saw="none", seed=seed)
            result = join.fit(model, data.train, data.validation, targets=[str(RARE)], classes=CLASSES)
            own = next(c for c in result.candidates if c.name == method)
            tweaked, _ = collect_logits(own.delta.attach(model), loader)
            c = compare_logits(base, tweaked, labels)
            kept = {r.reduction: 0 for t in own.delta.terms for r in t.reads}
            for r in (r for t in own.delta.terms for r in t.reads):
                kept[r.reduction] += int(r.index.numel())
            row[method] = {
                "gain": c.tweaked.per_class[RARE] - c.base.per_class[RARE], "overall": c.tweaked.overall - c.base.overall,
                "nll": c.tweaked.nll, "kept": kept,
            }  # fmt: skip
        out.append(row)
        print(row, flush=True)
    return out


def main() -> None:
    """Run and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", nargs="*", default=["usps", "clothing", "vit", "text"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "fit-selection.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    out: dict[str, Any] = {"machine": machine(), "settings": {**vars(options), "out": None}, "worlds": {}}
    for name in options.worlds:
        out["worlds"][name] = run(name, options.seeds)
        write(options.out, out)
    out["mixed"] = mixed(options.seeds)
    write(options.out, out)


if __name__ == "__main__":
    main()
