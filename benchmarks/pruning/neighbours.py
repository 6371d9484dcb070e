"""What pruning's neighbours give alone and together: a teacher, int8 weights, low rank, mending, a lightweight start."""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .int8 import int8, weight_bytes
from .nets import flops
from .small import Residual, Separable, spread, train

Data = dict[str, tuple[Tensor, Tensor]]
ENERGIES = (0.95, 0.8)
WORST = 2


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


@torch.no_grad()
def recalls(model: nn.Module, data: tuple[Tensor, Tensor]) -> tuple[float, Tensor]:
    """Share of right answers, overall and of each class."""
    right = (model(data[0]).argmax(1) == data[1]).double()
    return float(right.mean()), torch.stack([right[data[1] == c].mean() for c in range(int(data[1].max()) + 1)])


def mended(small: nn.Module, data: Data, row: Callable[..., dict[str, float]]) -> dict[str, dict[str, float]]:
    """Rows of ``small`` with and without its worst classes (on validation) mended, in float and int8, by what is added to its name.

    ``targets`` is those classes' mean accuracy; ``targets_gain`` and ``overall_gain`` what the delta adds at the same precision.
    """
    from torch.utils.data import TensorDataset

    from tweaknn.join.run import SynapticJoin

    sets = {k: TensorDataset(*data[k]) for k in ("train", "validation")}
    joined = SynapticJoin(seed=0).fit(small, sets["train"], sets["validation"], worst=WORST, classes=[str(k) for k in range(10)])
    targets = [int(t) for t in joined.targets]
    after = joined.delta.attach(small).eval() if joined.delta is not None else small  # nothing kept the promise: nothing is handed over
    out = {}
    for word, quantise in (("", copy.copy), (" + int8", int8)):
        plain, better = quantise(small), quantise(after)
        (before, each), (overall, now) = recalls(plain, data["test"]), recalls(better, data["test"])
        at = float(each[targets].mean())
        out[word] = row(plain, small) | {"targets": at}
        out[" + mended" + word] = row(better, small) | {
            "targets": float(now[targets].mean()), "targets_gain": float((now - each)[targets].mean()), "overall_gain": overall - before,
        }  # fmt: skip
    return out


def neighbours(data: Data, seeds: list[int], kept: Path | None = None) -> dict[str, Any]:
    """Alone and together: accuracy, FLOPs and bytes of the parameters, as fractions of the full network's; the worst classes.

    A finished seed is appended to ``kept`` and not run again.
    """
    x = data["test"][0][:2]
    done: dict[int, Any] = {}
    if kept is not None and kept.is_file():
        done = {line["seed"]: line["rows"] for line in map(json.loads, kept.read_text().splitlines())}
    for seed in seeds:
        if seed in done:
            continue
        begin = time.perf_counter()
        full, _, _ = train(Residual, data["train"], seed)
        whole = flops(full, x), weight_bytes(full)

        def row(model: nn.Module, counted: nn.Module, whole: tuple[int, int] = whole) -> dict[str, float]:
            """``counted``: the network of floats whose FLOPs are told, without a delta's own; ``bytes`` are with the delta's."""
            return {"test": recalls(model, data["test"])[0], "flops": flops(counted, x) / whole[0],
                    "bytes": weight_bytes(model) / whole[1]}  # fmt: skip

        def factored(name: str, model: nn.Module, row: Callable[..., dict[str, float]] = row) -> dict[str, dict[str, float]]:
            thin = {e: low_rank(model, e) for e in ENERGIES}
            return {f"{name} + low rank ({e:.0%})": row(m, m) for e, m in thin.items()}

        rows: dict[str, dict[str, float]] = {}
        for name, make, options, teacher in (
            ("full", Residual, None, None), ("full + teacher", Residual, None, full),
            ("pruned", Residual, {"flops": 0.2}, None), ("pruned + teacher", Residual, {"flops": 0.2}, full),
            ("lightweight", Separable, None, None), ("lightweight + pruned", Separable, {"flops": 0.5}, None),
        ):  # fmt: skip
            model = full if name == "full" else train(make, data["train"], seed, options, teacher=teacher)[0]
            if name in ("full", "pruned"):
                rows |= {name + word: r for word, r in mended(model, data, row).items()} | factored(name, model)
            else:
                rows |= {name: row(model, model), f"{name} + int8": row(int8(model), model)}
        done[seed] = rows
        if kept is not None:
            with open(kept, "a") as stream:
                stream.write(json.dumps({"seed": seed, "rows": rows}) + "\n")
        print(f"neighbours, seed {seed}: {time.perf_counter() - begin:.0f} s", file=sys.stderr)
    per_seed = [done[seed] for seed in seeds]
    return {name: {k: spread([p[name][k] for p in per_seed]) for k in per_seed[0][name]} for name in per_seed[0]}


def markdown(study: dict[str, Any]) -> str:
    """The table of the documentation."""

    def shown(row: dict[str, Any], key: str, digits: int = 1, sign: str = "") -> str:
        if key not in row:
            return ""
        at = f"{100 * row[key]['mean']:{sign}.{digits}f}"
        return at if key in ("flops", "bytes") else f"{at} ± {100 * row[key]['sd']:.1f}"

    lines = ["| | test % | its two worst classes, % | gain by mending: those two | overall | FLOPs, % | bytes, % |", "|---" * 7 + "|"]
    for name, row in study.items():
        cells = [shown(row, "test"), shown(row, "targets"), shown(row, "targets_gain", sign="+"), shown(row, "overall_gain", sign="+"),
                 shown(row, "flops"), shown(row, "bytes")]  # fmt: skip
        lines.append(f"| {name.replace('%', ' %')} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
