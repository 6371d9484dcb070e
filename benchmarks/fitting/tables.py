"""Stored inputs of the fit benchmarks: table T of ResNet-20 under augmented views, and fine-tuned rivals' logits.

    python -m benchmarks.fitting.tables --views 0 1 2
    python -m benchmarks.fitting.tables --finetune 1
    python -m benchmarks.fitting.tables --finetune 5      (resumes after the last whole epoch)

Everything lands in ``--cache`` (default ``benchmarks/.cache``); a second run costs nothing.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import HERE, SHARED
from benchmarks.networks import MEAN, STD, resnet20
from tweaknn.inputs import load_data, load_model
from tweaknn.network.pooling import pool
from tweaknn.network.reader import Reader

REDUCTIONS = ("mean", "max", "grid2")


def base_network() -> torch.nn.Module:
    """The third-party ResNet-20."""
    source = f"{HERE / 'networks.py'}:resnet20"
    return load_model(source, weights=SHARED / "models" / "cifar10-resnet20.safetensors").module


def pictures(split: str, cache: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 32, 32, 3) uint8 and labels of cifar10-jpeg."""
    file = cache / f"cifar-{split}.npz"
    if not file.exists():
        examples = load_data(SHARED / "data" / "cifar10-jpeg" / f"{split}.parquet", preprocess=np.asarray)
        xs = np.stack([np.asarray(examples[i][0]) for i in range(len(examples))]).astype(np.uint8)
        np.savez(file, x=xs, y=examples.labels)
    stored = np.load(file)
    return stored["x"], stored["y"]


def prepared(x: np.ndarray) -> Tensor:
    """(b, 32, 32, 3) uint8 to the network's input."""
    mean, std = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)
    return (torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255 - mean) / std


def augmented(x: Tensor, generator: torch.Generator) -> Tensor:
    """Random flip, and a shift of up to four pixels with zeros coming in: what the base was trained with."""
    n = len(x)
    padded = F.pad(x, (4, 4, 4, 4))
    shift = torch.randint(0, 9, (n, 2), generator=generator).tolist()
    flip = torch.randint(0, 2, (n,), generator=generator).tolist()
    out = torch.empty_like(x)
    for i, (top, left) in enumerate(shift):
        view = padded[i, :, top : top + 32, left : left + 32]
        out[i] = view.flip(2) if flip[i] else view
    return out


def table(split: str, view: int, cache: Path) -> dict[str, np.ndarray]:
    """Pooled neurons (float16), logits, labels, seconds. View 0: as it is; 1: mirrored; from 2 on: random flip and
    shift."""
    file = cache / f"cifar-{split}-view{view}.npz"
    if not file.exists():
        x, y = pictures(split, cache)
        reader = Reader(base_network(), prepared(x[:2]))
        generator = torch.Generator().manual_seed(1000 + view)
        parts: dict[str, list[np.ndarray]] = {r: [] for r in (*REDUCTIONS, "logits")}
        began = time.perf_counter()
        for s in range(0, len(x), 250):
            batch = prepared(x[s : s + 250])
            batch = batch.flip(3) if view == 1 else augmented(batch, generator) if view > 1 else batch
            rows: dict[str, list[np.ndarray]] = {r: [] for r in REDUCTIONS}

            def sink(k: int, a: Tensor, rows=rows) -> None:
                for r in REDUCTIONS:
                    rows[r].append(pool(a, reader.layers[k].channel_axis, r).numpy().astype(np.float16))

            parts["logits"].append(reader(batch, sink).numpy())
            for r in REDUCTIONS:
                parts[r].append(np.concatenate(rows[r], 1))
        seconds = time.perf_counter() - began
        np.savez(file, y=y, seconds=seconds, **{k: np.concatenate(v) for k, v in parts.items()})
        print(f"{split} view {view}: {seconds:.0f} s", flush=True)
    with np.load(file) as stored:
        return {k: stored[k] for k in stored.files}


def finetuned(epochs: int, cache: Path, seed: int = 0, limit: int | None = None) -> dict[str, np.ndarray] | None:
    """Test logits after fine-tuning the whole network for ``epochs``: SGD, momentum 0.9, rate 0.01 falling as a
    cosine, weight decay
    5e-4, flips and shifts, batches of 128. Resumes after the last whole epoch; None when ``limit`` epochs were
    done without the end."""
    file = cache / f"cifar-finetuned-{epochs}.npz"
    if file.exists():
        with np.load(file) as stored:
            return {k: stored[k] for k in stored.files}
    x, y = pictures("train", cache)
    model = resnet20()
    model.load_state_dict(base_network().state_dict())
    optimiser = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=5e-4, nesterov=True)
    state = cache / f"cifar-finetuned-{epochs}.pt"
    first, seconds = 0, 0.0
    if state.exists():
        saved = torch.load(state, weights_only=True)
        model.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        first, seconds = saved["epoch"], saved["seconds"]
    steps = len(x) // 128
    for epoch in range(first, epochs):
        if limit is not None and epoch - first >= limit:
            return None
        began = time.perf_counter()
        model.train()
        generator = torch.Generator().manual_seed(seed * 1000 + epoch)
        order = torch.randperm(len(x), generator=generator)
        for step in range(steps):
            rows = order[step * 128 : step * 128 + 128].numpy()
            for group in optimiser.param_groups:
                group["lr"] = 0.01 * 0.5 * (1 + np.cos(np.pi * (epoch + step / steps) / epochs))
            loss = F.cross_entropy(model(augmented(prepared(x[rows]), generator)), torch.from_numpy(y[rows]))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        seconds += time.perf_counter() - began
        saved = {
            "model": model.state_dict(),
            "optimiser": optimiser.state_dict(),
            "epoch": epoch + 1,
            "seconds": seconds,
        }
        torch.save(saved, state)
        print(f"fine-tuning {epochs}: epoch {epoch + 1}, {seconds:.0f} s", flush=True)
    model.eval()
    tx, ty = pictures("test", cache)
    with torch.inference_mode():
        logits = np.concatenate([model(prepared(tx[s : s + 250])).numpy() for s in range(0, len(tx), 250)])
    np.savez(file, logits=logits, y=ty, seconds=seconds)
    return {"logits": logits, "y": ty, "seconds": np.array(seconds)}


def main() -> None:
    """Fill the cache."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=HERE / ".cache")
    parser.add_argument("--views", type=int, nargs="*", default=[])
    parser.add_argument("--finetune", type=int, nargs="*", default=[])
    parser.add_argument("--limit", type=int, help="epochs of fine-tuning in this call")
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    if options.views:
        table("test", 0, options.cache)
    for view in options.views:
        table("train", view, options.cache)
    for epochs in options.finetune:
        finetuned(epochs, options.cache, limit=options.limit)


if __name__ == "__main__":
    main()
