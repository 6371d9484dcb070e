"""The default of ``tweaknn join`` beside its controls on eight kinds of networks and data (issue: fit and operate).

    python -m benchmarks.fitting.default --seeds 5 --out benchmarks/results/fit-default.json

For each split of a world's pool: fit on half, choose on a quarter, report on the last quarter, once. The target is the
worst class of validation (five examples at least), then the three worst together; promise ``floors``. The mean and the
spread are over splits. ``difference`` is what was handed over less the best control *on the report split itself*: a
control that nobody could have picked beforehand, so the difference leans against the default; its standard error is
over splits. ``picked`` is the same against the control that promised most on validation: what a user would have taken.

    python -m benchmarks.fitting.default --join A.json B.json --out FILE    # worlds measured apart, and the table
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import HERE, machine, write
from benchmarks.fitting.evaluate import judged, setting_of
from benchmarks.fitting.worlds import WORLDS, world
from tweaknn.join.candidates import CONTROLS
from tweaknn.join.methods import table_candidates
from tweaknn.join.run import conclude


def run(name: str, seeds: int, counts: list[int], method: str = "best", rows: int = 20_000, first: int = 0) -> dict[str, Any]:
    """All splits of one world."""
    w = world(name)
    if len(w.table.labels) > rows:  # Shuttle: enough for what is to be shown, all of the rare classes
        rare = np.isin(w.table.labels, np.flatnonzero(np.bincount(w.table.labels) < 500))
        some = np.random.default_rng(0).permutation(len(rare))[:rows]
        w.table = w.table.rows(np.union1d(np.flatnonzero(rare), some))
    out: dict[str, Any] = {"base_parameters": w.base_parameters, "pass_seconds": w.pass_seconds, "rows": {}}
    for count in counts:
        found: list[dict[str, Any]] = []
        for seed in range(first, first + seeds):
            began = time.process_time()
            setting, test = setting_of(w, seed, count, limit=max(250_000, w.base_parameters // 2))
            candidates = table_candidates(method, setting)
            result = conclude(candidates, setting, [], {})
            row = {c.name: judged(c, setting, test) for c in candidates}
            chosen = row[result.chosen] if result.chosen else {"gain": 0.0, "overall": 0.0, "E": 0.0, "worst_drop": 0.0}
            best = max(row[name]["gain"] if row[name]["feasible"] else 0.0 for name in CONTROLS)
            found.append({
                "seed": seed, "targets": setting.targets, "chosen": result.chosen, "handed over": chosen,
                "best control": best, "difference": chosen["gain"] - best, "candidates": row,
                "seconds": time.process_time() - began, "n": len(setting.train.labels),
                "validation_targets": int(np.isin(setting.validation.labels, setting.targets).sum()),
            })  # fmt: skip
        out["rows"][str(count)] = found
        d = np.array([f["difference"] for f in found])
        error = d.std(ddof=1) / np.sqrt(len(d)) if len(d) > 1 else float("nan")
        print(f"{name}, {count} worst: handed over {[f['chosen'] for f in found]}; gain less the best control's "
              f"{100 * d.mean():+.2f} ± {100 * error:.2f}; {np.mean([f['seconds'] for f in found]):.0f} s each", flush=True)  # fmt: skip
        for c in found[0]["candidates"]:
            mean = {k: 100 * np.mean([f["candidates"][c][k] for f in found if c in f["candidates"]])
                    for k in ("validation", "gain", "overall", "E", "worst_drop", "auroc")}  # fmt: skip
            print("   " + f"{c:15s} " + "  ".join(f"{k} {v:+6.2f}" for k, v in mean.items()), flush=True)
    return out


def joined(files: list[Path]) -> dict[str, Any]:
    """Worlds measured apart as one file, each with the machine and settings of its own run."""
    figures: dict[str, Any] = {"worlds": {}}
    for file in files:
        part = json.loads(file.read_text())
        figures = {**part, **figures}
        for name, found in part["worlds"].items():
            figures["worlds"][name] = {**found, "machine": part["machine"], "settings": part["settings"]}
    return figures


def picked(split: dict[str, Any]) -> float:
    """The gain of the control with the highest gain on validation, 0 if none keeps its promise there."""
    rows = [split["candidates"][name] for name in CONTROLS if name in split["candidates"]]
    best = max(rows, key=lambda r: r["validation"] if r["feasible"] else -1.0)
    return float(best["gain"]) if best["feasible"] else 0.0


def table(figures: dict[str, Any]) -> str:
    """Rows of docs/results/fitting.md: points, mean ± spread over splits; differences ± standard error."""
    lines = [
        "| world | worst | handed over | overall | E | bias | random neurons | last layer | less the best control | less the one picked |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, found in figures["worlds"].items():
        for count, splits in found["rows"].items():
            cells = [name, count]
            for key in ("gain", "overall", "E"):
                v = 100 * np.array([s["handed over"][key] for s in splits])
                cells.append(f"{v.mean():+.1f} ± {v.std(ddof=1):.1f}" if key == "gain" else f"{v.mean():+.1f}")
            cells += [f"{100 * np.mean([s['candidates'].get(c, {}).get('gain', 0) for s in splits]):+.1f}" for c in CONTROLS]
            for d in ([s["difference"] for s in splits], [s["handed over"]["gain"] - picked(s) for s in splits]):
                v = 100 * np.array(d)
                cells.append(f"{v.mean():+.1f} ± {v.std(ddof=1) / np.sqrt(len(v)):.1f}")
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", nargs="*", default=list(WORLDS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--worst", type=int, nargs="*", default=[1, 3])
    parser.add_argument("--method", default="best")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "fit-default.json")
    parser.add_argument("--join", type=Path, nargs="+", help="files of this script to put together instead of running")
    options = parser.parse_args()
    if options.join:
        write(options.out, joined(options.join))
        print(table(joined(options.join)))
        return
    torch.set_num_threads(1)
    figures: dict[str, Any] = {"machine": machine(), "settings": {**vars(options), "out": None}, "worlds": {}}
    for name in options.worlds:
        figures["worlds"][name] = run(name, options.seeds, options.worst, options.method, first=options.first)
        write(options.out, figures)


if __name__ == "__main__":
    main()
