"""Small studies of complexity-aware training on handwritten digits (USPS), each run a few seconds.

    python benchmarks/prune_studies.py --json out.json [--pictures FOLDER] [--only NAME ...]

sweeps of nu, alpha and beta; what the data's size, diversity, label noise and imbalance do to what is pruned; units of a
recurrent network over time; and the neighbours (distillation, torchao's int8 weights, low rank, a lightweight start,
mending), alone and together. Studies that are not named keep their figures in the JSON. Every figure is a mean over seeds;
accuracy is on the test split, nothing is chosen on it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.pruning.neighbours import markdown, neighbours  # noqa: E402
from benchmarks.pruning.small import BATCH, EPOCHS, Residual, Rows, accuracy, repeat, train, usps  # noqa: E402


def pruned(data: dict, options: dict[str, Any], make: Callable[[], nn.Module] = Residual, part: Any = None) -> Callable:
    def one(seed: int) -> dict[str, float]:
        model, pruner, seconds = train(make, part or data["train"], seed, options)
        n = pruner.original.n_units
        f, p = pruner.fractions
        return {"test": accuracy(model, data["test"]), "flops": f, "params": p, "undecided": pruner.undecided or 0.0,
                "units": float(pruner.possible[:n].mean()), "layers": float(pruner.possible[n:].mean()),
                "seconds": seconds}  # fmt: skip

    return one


def sweeps(data: dict, seeds: list[int]) -> dict[str, Any]:
    """nu, alpha and beta, one at a time."""
    out: dict[str, Any] = {"nu": {}, "alpha": {}, "beta": {}}
    for nu in (0.05, 0.2, 1.0, 3.0, 10.0):
        out["nu"][str(nu)] = repeat(seeds, pruned(data, {"nu": nu}))
    for alpha in (0.0, 0.5, 1.0):
        out["alpha"][str(alpha)] = repeat(seeds, pruned(data, {"nu": 1.0, "alpha": alpha}))
    for beta in (0.0, 0.25, 0.5, 0.75, 1.0):
        out["beta"][str(beta)] = repeat(seeds, pruned(data, {"nu": 1.0, "beta": beta}))
    early = {"warmup": 0.0, "layers": 0.1, "units": 0.1, "end": 0.4}  # branches decide before anything is learnt
    out["schedule at nu 1"] = {"early": repeat(seeds, pruned(data, {"nu": 1.0, **early})), "default": out["nu"]["1.0"]}
    return out


def ablations(data: dict, seeds: list[int]) -> dict[str, Any]:
    """Parts of the step, at a quarter of the FLOPs."""
    variants: dict[str, dict[str, Any]] = {
        "all": {}, "straight-through": {"estimator": "straight-through"}, "weighted trapezoid": {"estimator": "weighted"},
        "no concave term": {"rho": 0.0}, "a warm-up of 5 %": {"warmup": 0.05, "layers": 0.07}, "no shrinkage": {"shrink": False},
        "domain of attraction": {"attraction": True}, "theta0 0.99": {"theta0": 0.99}, "theta0 0.7": {"theta0": 0.7},
        "end 0.7": {"end": 0.7}, "end 0.15": {"end": 0.15, "warmup": 0.03, "layers": 0.04, "units": 0.04, "speed": 0.04},
    }  # fmt: skip
    return {name: repeat(seeds, pruned(data, {"flops": 0.25, **extra})) for name, extra in variants.items()}


def data_study(data: dict, seeds: list[int]) -> dict[str, Any]:
    """What is pruned at one nu when the training data change (same number of steps)."""
    x, y = data["train"]
    rng = np.random.default_rng(0)
    noisy = y.clone()
    flip = torch.from_numpy(rng.random(len(y)) < 0.2)
    noisy[flip] = torch.from_numpy(rng.integers(0, 10, int(flip.sum())))
    keep = torch.from_numpy(rng.random(len(y)) < np.where(np.isin(y.numpy(), [0, 1, 2]), 1.0, 0.15))
    three = y < 3
    parts = {"all": (x, y), "an eighth": (x[::8], y[::8]), "three classes": (x[three], y[three]),
             "20 % wrong labels": (x, noisy), "long tail (seven classes at 15 %)": (x[keep], y[keep])}  # fmt: skip
    out = {}
    for name, part in parts.items():
        test = data["test"] if name != "three classes" else tuple(t[data["test"][1] < 3] for t in data["test"])
        steps_alike = EPOCHS * len(y) / len(part[1])

        def one(seed: int, part=part, test=test, epochs=steps_alike) -> dict[str, float]:
            model, pruner, _ = train(Residual, part, seed, {"nu": 1.0}, epochs=epochs)
            f, p = pruner.fractions
            n = pruner.original.n_units
            return {"test": accuracy(model, test), "flops": f, "params": p, "units": float(pruner.possible[:n].mean()),
                    "layers": float(pruner.possible[n:].mean())}  # fmt: skip

        out[name] = repeat(seeds, one)
    return out


def recurrent(data: dict, seeds: list[int]) -> dict[str, Any]:
    """One gate a unit for the whole sequence; how much each row's hidden state matters, before and after pruning."""

    @torch.no_grad()
    def over_time(model: Rows) -> list[float]:
        """Drop in test accuracy when the LSTM is fed an empty row in place of row t."""
        base = accuracy(model, data["test"])
        drops = []
        for t in range(16):
            x = data["test"][0].clone()
            x[:, :, t] = -1
            drops.append(base - accuracy(model, (x, data["test"][1])))
        return drops

    def one(seed: int) -> dict[str, Any]:
        full, _, _ = train(Rows, data["train"], seed, None, rate=0.3, epochs=10)
        small, pruner, _ = train(Rows, data["train"], seed, {"flops": 0.3}, rate=0.3, epochs=10)
        before, after = over_time(full), over_time(small)
        return {"full": accuracy(full, data["test"]), "pruned": accuracy(small, data["test"]), "flops": pruner.fractions[0],
                "hidden": small.rnn.hidden_size, "time_full": before, "time_pruned": after,
                "time_correlation": float(np.corrcoef(before, after)[0, 1])}  # fmt: skip

    return repeat(seeds, one)


def drawn_over_time(study: dict[str, Any], folder: Path) -> None:
    """How much each row of a digit matters to the LSTM, before and after pruning: the mean over seeds and their spread."""
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(5.4, 3.0), layout="constrained")
    axes = figure.add_subplot()
    for key, label in (("time_full", "unpruned"), ("time_pruned", f"{100 * study['flops']['mean']:.0f} % of the FLOPs")):
        middle, spread = (100 * np.array(study[key][what]) for what in ("mean", "sd"))
        (line,) = axes.plot(range(1, len(middle) + 1), middle, marker="o", markersize=3, label=label)
        axes.fill_between(range(1, len(middle) + 1), middle - spread, middle + spread, alpha=0.2, color=line.get_color())
    axes.axhline(0, color="0.7", linewidth=0.8)
    axes.set_xlabel("row of the digit that is left empty (time)")
    axes.set_ylabel("points of test accuracy lost")
    axes.legend(fontsize=7)
    figure.savefig(folder / "prune-recurrent.png", dpi=110)


def drawn(sweep: dict[str, Any], folder: Path) -> None:
    """One picture a parameter: what is left of FLOPs, parameters, units and layers, and the accuracy, against its values."""
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    for name in ("nu", "alpha", "beta"):
        rows = sweep[name]
        figure = Figure(figsize=(5.4, 3.4), layout="constrained")
        axes = figure.add_subplot()
        for key in ("flops", "params", "units", "layers", "test"):
            middle, spread = ([100 * r[key][what] for r in rows.values()] for what in ("mean", "sd"))
            axes.errorbar(range(len(rows)), middle, spread, marker="o", capsize=2, label="accuracy" if key == "test" else key)
        axes.set_xticks(range(len(rows)), list(rows))
        axes.set_xlabel(name)
        axes.set_ylabel("% (of the unpruned network's; accuracy)")
        axes.legend(fontsize=7)
        figure.savefig(folder / f"prune-{name}.png", dpi=110)


STUDIES = {"sweeps": sweeps, "ablations": ablations, "data": data_study, "recurrent": recurrent, "neighbours": neighbours}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=list(STUDIES), default=list(STUDIES))
    parser.add_argument("--pictures", type=Path, help="draw the sweeps and the recurrent network here")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("TWEAKNN_SHARED", ROOT.parent / "shared")))
    args = parser.parse_args()
    args.json.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    from benchmarks.prune import machine

    data = usps(args.shared)
    found = json.loads(args.json.read_text()) if args.json.is_file() else {}
    for name in args.only:
        begin = time.perf_counter()
        kept = args.json.with_suffix(".neighbours.jsonl")  # minutes a seed: what is finished is not run again
        found[name] = neighbours(data, args.seeds, kept) if name == "neighbours" else STUDIES[name](data, args.seeds)
        found.setdefault("runs", {})[name] = {"seeds": args.seeds, "machine": machine(), "date": datetime.date.today().isoformat(),
                                              "settings": {"data": "USPS", "epochs": EPOCHS, "batch_size": BATCH}}  # fmt: skip
        part = args.json.with_suffix(".part")
        part.write_text(json.dumps(found, indent=1) + "\n")
        os.replace(part, args.json)
        if args.pictures and name == "sweeps":
            drawn(found["sweeps"], args.pictures)
        if args.pictures and name == "recurrent":
            drawn_over_time(found["recurrent"], args.pictures)
        if name == "neighbours":
            print(markdown(found[name]))
        print(f"{name}: {time.perf_counter() - begin:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
