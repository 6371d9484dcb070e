"""Small studies of complexity-aware training on handwritten digits (USPS), each run a few seconds.

    python benchmarks/prune_studies.py --json out.json [--pictures FOLDER] [--only NAME ...]

sweeps of nu, alpha and beta; what the data's size, diversity, label noise and imbalance do to what is pruned; units of a
recurrent network over time; and the neighbours (distillation, int8 weights, low rank, a lightweight start, mending),
alone and together. Every figure is a mean over seeds; accuracy is on the test split, nothing is chosen on it.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.pruning.data import _decode, pick  # noqa: E402
from benchmarks.pruning.nets import Block, flops, parameters  # noqa: E402

EPOCHS, BATCH = 4, 128


def usps(shared: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """``x`` float ``(n, 1, 16, 16)`` and labels, for train (all but 1,500), validation and test."""
    import pyarrow.parquet as pq

    def load(word: str) -> tuple[Tensor, Tensor]:
        table = pq.read_table(pick(shared / "data" / "usps", word))
        x = np.stack([_decode(row["bytes"])[..., 0] for row in table.column("image").to_pylist()])
        return torch.from_numpy(x).float()[:, None] / 127.5 - 1, torch.from_numpy(table.column("label").to_numpy().copy())

    x, y = load("train")
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(7))
    return {"train": (x[order[1500:]], y[order[1500:]]), "validation": (x[order[:1500]], y[order[:1500]]), "test": load("test")}


class Residual(nn.Module):
    """Three stages of two residual blocks, 16-24-32 channels."""

    def __init__(self, widths: tuple[int, ...] = (16, 24, 32), classes: int = 10):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0])
        rows, inside = [], widths[0]
        for k, w in enumerate(widths):
            for b in range(2):
                rows.append(Block(inside, w, 2 if b == 0 and k else 1))
                inside = w
        self.blocks = nn.Sequential(*rows)
        self.linear = nn.Linear(inside, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 2)
        return self.linear(F.adaptive_avg_pool2d(self.blocks(x), 1).flatten(1))


class Separable(nn.Module):
    """MobileNet-style: depthwise and pointwise convolutions."""

    def __init__(self, classes: int = 10):
        super().__init__()

        def pair(a: int, b: int, stride: int) -> list[nn.Module]:
            return [nn.Conv2d(a, a, 3, stride, 1, groups=a, bias=False), nn.BatchNorm2d(a), nn.ReLU(),
                    nn.Conv2d(a, b, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]  # fmt: skip

        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), *pair(16, 32, 1), *pair(32, 64, 2), *pair(64, 64, 1)
        )
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.features(x).mean((2, 3)))


class Rows(nn.Module):
    """An LSTM that reads a digit row by row."""

    def __init__(self, hidden: int = 48, classes: int = 10):
        super().__init__()
        self.rnn = nn.LSTM(16, hidden, batch_first=True)
        self.linear = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.rnn(x[:, 0])[0][:, -1])


def train(
    make: Callable[[], nn.Module], data: tuple[Tensor, Tensor], seed: int, options: dict[str, Any] | None = None, *,
    rate: float = 0.05, teacher: nn.Module | None = None, epochs: float = EPOCHS,
) -> tuple[nn.Module, Any, float]:  # fmt: skip
    """SGD with a cosine; ``options`` are :class:`ComplexityAware`'s, None trains plainly."""
    from tweaknn.structure import ComplexityAware

    torch.manual_seed(seed)
    model = make()
    x, y = data
    per = max(1, len(y) // BATCH)
    steps = max(120, round(epochs * per))
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1, cycle_momentum=False)
    begin = time.process_time()
    pruner = ComplexityAware(model, x[:2], optimizer, steps=steps, seed=seed, **options) if options is not None else None
    rng = torch.Generator().manual_seed(seed)
    model.train()
    for step in range(steps):
        if step % per == 0:
            order = torch.randperm(len(y), generator=rng)
        i = order[(step % per) * BATCH : (step % per + 1) * BATCH]
        logits = model(x[i])
        loss = F.cross_entropy(logits, y[i])
        if teacher is not None:
            with torch.no_grad():
                soft = F.log_softmax(teacher(x[i]) / 4, 1)
            loss = 0.3 * loss + 0.7 * 16 * F.kl_div(F.log_softmax(logits / 4, 1), soft, reduction="batchmean", log_target=True)
        optimizer.zero_grad()
        loss.backward()
        if isinstance(model, Rows):
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if pruner is not None:
            pruner.step()
    if pruner is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = pruner.compact()
    return model.eval(), pruner, time.process_time() - begin


@torch.no_grad()
def accuracy(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    return float((model(data[0]).argmax(1) == data[1]).float().mean())


def repeat(seeds: list[int], one: Callable[[int], dict[str, float]]) -> dict[str, Any]:
    """Mean and spread of every figure over seeds."""
    runs = [one(seed) for seed in seeds]
    return {k: {"mean": mean(r[k] for r in runs), "sd": stdev([r[k] for r in runs]) if len(runs) > 1 else 0.0} for k in runs[0]}


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

    rows = []
    for seed in seeds:
        full, _, _ = train(Rows, data["train"], seed, None, rate=0.3, epochs=10)
        small, pruner, _ = train(Rows, data["train"], seed, {"flops": 0.3}, rate=0.3, epochs=10)
        rows.append({"full": accuracy(full, data["test"]), "pruned": accuracy(small, data["test"]), "flops": pruner.fractions[0],
                     "hidden": small.rnn.hidden_size, "time_full": over_time(full), "time_pruned": over_time(small)})  # fmt: skip
    return {k: (np.mean([r[k] for r in rows], 0).tolist()) for k in rows[0]}


def low_rank(model: nn.Module, energy: float = 0.95) -> nn.Module:
    """Every 3x3 convolution as a thin one and a 1x1, by singular values, where that is cheaper."""
    model = copy.deepcopy(model)
    for path, m in list(model.named_modules()):
        if not isinstance(m, nn.Conv2d) or m.kernel_size == (1, 1) or m.groups > 1:
            continue
        w = m.weight.detach().flatten(1)
        u, s, v = torch.linalg.svd(w, full_matrices=False)
        rank = int((s.square().cumsum(0) / s.square().sum() < energy).sum()) + 1
        if rank * (w.shape[0] + w.shape[1]) >= w.numel():
            continue
        first = nn.Conv2d(m.in_channels, rank, m.kernel_size, m.stride, m.padding, bias=False)
        second = nn.Conv2d(rank, m.out_channels, 1, bias=m.bias is not None)
        first.weight.data = (v[:rank] * s[:rank, None]).reshape(rank, *m.weight.shape[1:])
        second.weight.data = u[:, :rank, None, None].clone()
        if m.bias is not None:
            second.bias.data = m.bias.detach().clone()
        model.set_submodule(path, nn.Sequential(first, second))
    return model


def int8(model: nn.Module) -> nn.Module:
    """Weights as int8 and back, one scale an output channel: what int8 storage gives (any layer)."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, (nn.Conv2d, nn.Linear)):
                scale = m.weight.abs().flatten(1).amax(1).clamp(min=1e-12) / 127
                shape = [-1] + [1] * (m.weight.dim() - 1)
                m.weight.copy_((m.weight / scale.view(shape)).round() * scale.view(shape))
    return model


def neighbours(data: dict, seeds: list[int]) -> dict[str, Any]:
    """Alone and together: accuracy, FLOPs and bytes of the weights, as fractions of the full network's."""
    x = data["test"][0][:2]

    def row(model: nn.Module, full: nn.Module, bits: int = 32) -> dict[str, float]:
        return {"test": accuracy(model, data["test"]), "flops": flops(model, x) / flops(full, x),
                "bytes": parameters(model) * bits / (parameters(full) * 32)}  # fmt: skip

    per_seed = []
    for seed in seeds:
        full, _, _ = train(Residual, data["train"], seed)
        small, _, _ = train(Residual, data["train"], seed, {"flops": 0.2})
        taught, _, _ = train(Residual, data["train"], seed, {"flops": 0.2}, teacher=full)
        light, _, _ = train(Separable, data["train"], seed)
        light_small, _, _ = train(Separable, data["train"], seed, {"flops": 0.5})
        rows = {
            "full": row(full, full), "int8": row(int8(full), full, 8), "low rank": row(low_rank(full), full),
            "pruned": row(small, full), "pruned + int8": row(int8(small), full, 8), "pruned + low rank": row(low_rank(small), full),
            "pruned + teacher": row(taught, full), "pruned + teacher + int8": row(int8(taught), full, 8),
            "lightweight": row(light, full), "lightweight + pruned": row(light_small, full),
            "lightweight + pruned + int8": row(int8(light_small), full, 8),
        }  # fmt: skip
        per_seed.append(rows | mended(small, data, full, row))
    return {name: {k: {"mean": mean(p[name][k] for p in per_seed), "sd": stdev([p[name][k] for p in per_seed]) if len(seeds) > 1 else 0.0}
                   for k in per_seed[0][name]} for name in per_seed[0]}  # fmt: skip


def mended(small: nn.Module, data: dict, full: nn.Module, row: Callable) -> dict[str, dict[str, float]]:
    """The pruned network with its two worst classes mended; the same delta on the network with int8 weights."""
    from torch.utils.data import TensorDataset

    from tweaknn.join.run import SynapticJoin

    sets = {k: TensorDataset(*data[k]) for k in ("train", "validation")}
    joined = SynapticJoin(seed=0).fit(small, sets["train"], sets["validation"], worst=2, classes=[str(k) for k in range(10)])
    names = ("pruned + mended", "pruned + mended + int8")
    if joined.delta is None:
        return {names[0]: row(small, full), names[1]: row(int8(small), full, 8)}
    quantised = int8(small)
    after = joined.delta.attach(small)
    after8 = joined.delta.attach(quantised, check=False)
    out = {}
    for name, model, base, bits in ((names[0], after, small, 32), (names[1], after8, quantised, 8)):
        out[name] = row(base, full, bits) | {"test": accuracy(model.eval(), data["test"])}
    return out


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
    parser.add_argument("--pictures", type=Path, help="draw the sweeps here")
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
        found[name] = STUDIES[name](data, args.seeds)
        found |= {"seeds": args.seeds, "machine": machine(), "date": datetime.date.today().isoformat(),
                  "settings": {"data": "USPS", "epochs": EPOCHS, "batch_size": BATCH}}  # fmt: skip
        part = args.json.with_suffix(".part")
        part.write_text(json.dumps(found, indent=1) + "\n")
        os.replace(part, args.json)
        if args.pictures and "sweeps" in found:
            drawn(found["sweeps"], args.pictures)
        print(f"{name}: {time.perf_counter() - begin:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
