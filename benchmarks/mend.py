"""The main job on real data and third-party networks: `python benchmarks/mend.py --json benchmarks/results/mend.json`.

Fit on one split, choose on a second, report on a third, once. Candidates (the method and the controls) are all chosen
on validation; the test figures of every one of them are reported, the handed-over one is named.
"""

from __future__ import annotations

import argparse
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent))
import networks
from common import SHARED, machine, write

from tweaknn import Promise, SynapticJoin, compare_logits
from tweaknn.inputs import Preprocess, align, load_data
from tweaknn.join.prepared import Prepared
from tweaknn.join.result import JoinResult
from tweaknn.network.outputs import collect_logits


def halves(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two halves, class by class."""
    rng = np.random.default_rng(seed)
    first = np.concatenate(
        [rng.permutation(np.flatnonzero(labels == j))[: int((labels == j).sum()) // 2] for j in np.unique(labels)]
    )
    return np.sort(first), np.setdiff1d(np.arange(len(labels)), first)


def on_test(result: JoinResult, model: nn.Module, test: Any, base: np.ndarray) -> dict[str, Any]:
    """Test figures of every candidate, and of what was handed over (the base itself when nothing was)."""
    rows = {}
    columns = [result.classes.index(name) for name in result.targets]
    for candidate in result.candidates:
        logits, labels = collect_logits(candidate.delta.attach(model, check=False), test.loader(256))
        c = compare_logits(base, logits, labels, result.classes)
        gain = c.tweaked.per_class[columns] - c.base.per_class[columns]
        rows[candidate.name] = {
            "target_before": c.base.per_class[columns].mean(),
            "target": c.tweaked.per_class[columns].mean(),
            "target_gain": gain.mean(),
            "target_auroc_before": c.base.auroc[columns].mean(),
            "target_auroc": c.tweaked.auroc[columns].mean(),
            "overall_before": c.base.overall,
            "overall": c.tweaked.overall,
            "balanced_before": c.base.balanced,
            "balanced": c.tweaked.balanced,
            "E": c.E,
            "worst_drop": c.worst_drop,
            "worst_class": c.worst_class,
            "p_value": c.p_value,
            "parameters": candidate.delta.parameters,
            "feasible_on_validation": candidate.point.feasible,
        }
    return {
        "targets": result.targets,
        "chosen": result.chosen,
        "validation": {c.name: c.figures()["target_gain"] for c in result.candidates},
        "test": rows,
        "warnings": result.warnings,
    }


def show(what: str, row: dict[str, Any]) -> None:
    for name, c in row["test"].items():
        mark = "<" if name == row["chosen"] else " "
        print(
            f"{what:28s} {name:15s}{mark} target {100 * c['target_before']:5.1f} {100 * c['target_gain']:+6.2f}  "
            f"overall {100 * c['overall_before']:5.1f} {100 * (c['overall'] - c['overall_before']):+6.2f}  E {100 * c['E']:5.2f}  "
            f"worst {100 * c['worst_drop']:+5.1f}  AUROC {100 * (c['target_auroc'] - c['target_auroc_before']):+5.2f}",
            flush=True,
        )


def cifar(seed: int, part: str, method: str) -> dict[str, Any]:
    """cifar10-jpeg with the third-party ResNet-20: the train split in halves for join and validation.

    ``part`` is ``floors`` (the default method, four single targets) or ``theta`` (the dissertation's join for bird)."""
    model = networks.resnet20()
    model.load_state_dict(load_file(str(SHARED / "models/cifar10-resnet20.safetensors")))
    model.eval()
    preprocess = Preprocess(mean=networks.MEAN, std=networks.STD)
    folder = SHARED / "data/cifar10-jpeg"
    train, _ = align(load_data(folder / "train.parquet", preprocess=preprocess), None, 10)
    test, _ = align(load_data(folder / "test.parquet", preprocess=preprocess), None, 10)
    first, second = halves(train.labels, seed)
    base, labels = collect_logits(model, test.loader(256))
    accuracy = {name: float((base.argmax(1)[labels == j] == j).mean()) for j, name in enumerate(test.classes)}
    out: dict[str, Any] = {"seed": seed, "base": {"overall": float((base.argmax(1) == labels).mean()), **accuracy}}
    print({k: round(v, 4) for k, v in out["base"].items()}, flush=True)
    if part == "theta":
        for layers in ("stages", "all"):
            dissertation = SynapticJoin(
                method="theta", promise=Promise("overall"), layers=layers, seed=seed, base_saw="both"
            )
            result = dissertation.fit(model, train.subset(first), train.subset(second), targets=["bird"])
            out[f"theta {layers} bird"] = on_test(result, model, test, base)
            show(f"theta {layers} bird", out[f"theta {layers} bird"])
        return out
    join = SynapticJoin(method=method, seed=seed, base_saw="both", batch_size=128)
    t = time.perf_counter()
    ready = join.prepare(model, train.subset(first), train.subset(second))
    print(f"read in {time.perf_counter() - t:.0f} s", flush=True)
    for target in ("bird", "cat", "dog", "airplane"):
        out[f"floors {target}"] = on_test(join.choose(ready, [target]), model, test, base)
        show(f"floors {target}", out[f"floors {target}"])
    rows = [out[f"floors {target}"] for target in ("bird", "cat", "dog", "airplane")]
    handed = [row["test"][row["chosen"]] for row in rows if row["chosen"]]
    out["floors mean"] = {
        "handed_over": len(handed),
        "target_gain": sum(h["target_gain"] for h in handed) / len(rows),
        "E": sum(h["E"] for h in handed) / len(rows),
        "overall_gain": sum(h["overall"] - h["overall_before"] for h in handed) / len(rows),
    }
    print("mean of four:", {k: round(float(v), 4) for k, v in out["floors mean"].items()}, flush=True)
    return out


def usps(seed: int, method: str) -> dict[str, Any]:
    """Handwritten digits with a third-party CNN; its worst class on validation."""
    model = networks.usps_cnn()
    model.load_state_dict(load_file(str(SHARED / "models/usps-cnn.safetensors")))
    model.eval()
    preprocess = Preprocess(mean=(0.2471,), std=(0.2994,), channels=1)
    folder = SHARED / "data/usps"
    parts = {path.stem: path for path in folder.glob("*.parquet")}
    train, _ = align(load_data(parts["train"], preprocess=preprocess), None, 10)
    test, _ = align(load_data(parts["test"], preprocess=preprocess), None, 10)
    first, second = halves(train.labels, seed)
    base, _ = collect_logits(model, test.loader(256))
    join = SynapticJoin(method=method, seed=seed, base_saw="both")
    ready = join.prepare(model, train.subset(first), train.subset(second))
    row = on_test(join.choose(ready, worst=1), model, test, base)
    show("usps worst", row)
    return {"seed": seed, **row}


class Clothes(nn.Module):
    """Five convolutions with batch normalisation for 64 x 64 pictures."""

    def __init__(self) -> None:
        super().__init__()
        widths = [3, 24, 48, 96, 96, 128]
        blocks: list[nn.Module] = []
        for before, after in pairwise(widths):
            blocks += [
                nn.Conv2d(before, after, 3, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
        self.features = nn.Sequential(*blocks)
        self.linear = nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.features(x).mean((2, 3)))


def clothing(seed: int, method: str, epochs: int = 14) -> dict[str, Any]:
    """Long-tailed photographs. The base trains on 60 % of the train folder; the join fits on the other 40 %, which the
    base has not seen, and chooses on the validation folder."""
    torch.manual_seed(seed)
    preprocess = Preprocess(resize=(64, 64), mean=networks.MEAN, std=networks.STD)
    folder = SHARED / "data/clothing10"
    train, validation, test = (
        load_data(folder / name, preprocess=preprocess) for name in ("train", "validation", "test")
    )
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(train))
    own, rest = order[: int(0.6 * len(order))], order[int(0.6 * len(order)) :]
    x, y = train.batch(own)
    model = Clothes()
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    steps = epochs * ((len(y) + 63) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps)
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(y)).split(64):
            batch = x[rows]
            batch = torch.where(torch.rand(len(rows), 1, 1, 1) < 0.5, batch.flip(3), batch)
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(batch), y[rows]).backward()
            optimiser.step()
            schedule.step()
    model.eval()
    base, _ = collect_logits(model, test.loader(128))
    join = SynapticJoin(method=method, seed=seed, base_saw="none")
    ready: Prepared = join.prepare(model, train.subset(np.sort(rest)), validation)
    row = on_test(join.choose(ready, worst=1), model, test, base)
    show("clothing10 worst", row)
    return {"seed": seed, **row}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3, help="splits of usps and clothing10")
    parser.add_argument("--cifar-seeds", type=int, default=1)
    parser.add_argument(
        "--method", default="best", help="of the joins under floors; best is the default of tweaknn join"
    )
    parser.add_argument("--only", choices=["cifar", "theta", "usps", "clothing"], action="append")
    arguments = parser.parse_args()
    parts = arguments.only or ["usps", "clothing", "cifar", "theta"]
    out: dict[str, Any] = {"machine": machine(), "settings": vars(arguments) | {"json": None}}
    if "usps" in parts:
        out["usps"] = [usps(seed, arguments.method) for seed in range(arguments.seeds)]
        write(arguments.json, out)
    if "clothing" in parts:
        out["clothing10"] = [clothing(seed, arguments.method) for seed in range(arguments.seeds)]
        write(arguments.json, out)
    for part, name in (("cifar", "floors"), ("theta", "theta")):
        if part in parts:
            out[part] = []
            for seed in range(arguments.cifar_seeds if part == "cifar" else 1):
                out[part].append(cifar(seed, name, arguments.method))
                write(arguments.json, out)


if __name__ == "__main__":
    main()
