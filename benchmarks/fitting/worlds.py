"""Networks and data of many kinds on which the default of ``tweaknn join`` has to hold its own, each read once.

A world is a trained base and a pool of examples that it has not been trained on; the pool is read into table T once
and kept in ``benchmarks/.cache``, so that five splits of it into fit, choice and report cost no forward pass.

    python -m benchmarks.fitting.worlds usps tiny clothing backbone shuttle pairs text vit
"""

from __future__ import annotations

import argparse
import ast
import sys
import sysconfig
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import networks
from benchmarks.common import HERE, SHARED
from tweaknn import SynapticJoin
from tweaknn.delta import Delta
from tweaknn.inputs import Preprocess, load_data, load_model
from tweaknn.inputs.augment import augmentation
from tweaknn.join.table import PooledTable


@dataclass
class World:
    """A pool of examples as tables: ``table`` (with its views), and what a delta for this base looks like."""

    name: str
    table: PooledTable
    frame: Delta
    classes: list[str]
    base_parameters: int
    pass_seconds: float

    def split(self, seed: int, shares: tuple[float, float] = (0.5, 0.25)) -> list[np.ndarray]:
        """Rows to fit on, to choose on and to report on, class by class."""
        rng = np.random.default_rng(seed)
        parts: list[list[np.ndarray]] = [[], [], []]
        for j in np.unique(self.table.labels):
            rows = rng.permutation(np.flatnonzero(self.table.labels == j))
            ends = np.round(np.cumsum(shares) * len(rows)).astype(int)
            for part, piece in zip(parts, np.split(rows, ends), strict=True):
                part.append(piece)
        return [np.sort(np.concatenate(part)) for part in parts]


def train_base(
    model: nn.Module, x: Tensor, y: Tensor, epochs: int, rate: float, batch: int = 64, augment: Any = None, seed: int = 0
) -> nn.Module:
    """AdamW with one cycle of the rate."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-2)
    steps = epochs * ((len(y) + batch - 1) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps)
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(y), generator=generator).split(batch):
            one = x[rows] if augment is None else augment(x[rows], generator)
            optimiser.zero_grad()
            F.cross_entropy(model(one), y[rows]).backward()
            optimiser.step()
            schedule.step()
    return model.eval()


# -- usps and what is made of it -------------------------------------------------------------------------------------


def digits(split: str) -> tuple[Tensor, Tensor]:
    """USPS as the third-party network takes it, (n, 1, 16, 16)."""
    file = next((SHARED / "data/usps").glob(f"{split}*.parquet"))
    examples = load_data(file, preprocess=Preprocess(mean=(0.2471,), std=(0.2994,), channels=1))
    return examples.batch(np.arange(len(examples)))


def blurred(x: Tensor, noise: float = 0.4) -> Tensor:
    """A 3 x 3 mean, then noise: what the base has not seen."""
    c = x.shape[1]
    soft = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), torch.full((c, 1, 3, 3), 1 / 9), groups=c)
    return soft + noise * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))


def usps() -> tuple[nn.Module, Tensor, Tensor, str]:
    """A third-party CNN on its own task: its 2,007 test digits and 2,000 blurred ones of its training split."""
    weights = SHARED / "models/usps-cnn.safetensors"
    model = load_model(f"{HERE / 'networks.py'}:usps_cnn", weights=weights).module
    (x, y), (tx, ty) = digits("test"), digits("train")
    return model, torch.cat([x, blurred(tx[:2000])]), torch.cat([y, ty[:2000]]), "shift"


def tiny() -> tuple[nn.Module, Tensor, Tensor, str]:
    """The same network and 600 blurred digits: 300 to fit on, 150 to choose on."""
    model, _, _, _ = usps()
    x, y = digits("test")
    return model, blurred(x)[:600], y[:600], "shift"


def vit() -> tuple[nn.Module, Tensor, Tensor, str]:
    """A small vision transformer trained here on half of USPS, shown blurred digits."""
    from torchvision.models import VisionTransformer

    torch.manual_seed(0)
    model = VisionTransformer(16, 4, num_layers=4, num_heads=4, hidden_dim=64, mlp_dim=128, num_classes=10)
    model.conv_proj = nn.Conv2d(1, 64, 4, 4)
    nn.init.normal_(model.heads.head.weight, std=0.02)  # torchvision starts it at zero
    x, y = digits("train")
    train_base(model, x[:3600], y[:3600], 12, 2e-3)
    tx, ty = digits("test")
    x, y = torch.cat([x[3600:], tx]), torch.cat([y[3600:], ty])
    return model, blurred(x, 0.3), y, "shift"


def pairs() -> tuple[nn.Module, Tensor, Tensor, str]:
    """100 classes, 50 examples each to fit on: two digits side by side; the base learnt clean pairs and sees blurred ones."""
    x, y = digits("train")
    tx, ty = digits("test")

    def make(x: Tensor, y: Tensor, each: int, seed: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng(seed)
        rows = [[rng.choice(np.flatnonzero(y.numpy() == d), each * 10) for _ in range(2)] for d in range(10)]
        images, labels = [], []
        for a in range(10):
            for b in range(10):
                left, right = rows[a][0][b * each : (b + 1) * each], rows[b][1][a * each : (a + 1) * each]
                images.append(torch.cat([x[left], x[right]], 3))
                labels += [10 * a + b] * each
        return torch.cat(images), torch.tensor(labels)

    base_x, base_y = make(x[:4000], y[:4000], 80, 0)
    torch.manual_seed(0)
    model = nn.Sequential()
    for k, (a, b) in enumerate([(1, 24), (24, 48), (48, 96)]):
        model.add_module(f"conv{k}", nn.Conv2d(a, b, 3, padding=1, bias=False))
        model.add_module(f"bn{k}", nn.BatchNorm2d(b))
        model.add_module(f"relu{k}", nn.ReLU())
        model.add_module(f"pool{k}", nn.MaxPool2d(2))
    model.add_module("flat", nn.Flatten())
    model.add_module("hidden", nn.Linear(96 * 2 * 4, 128))
    model.add_module("relu", nn.ReLU())
    model.add_module("linear", nn.Linear(128, 100))
    train_base(model, base_x, base_y, 6, 4e-3)
    px, py = make(torch.cat([x[4000:], tx]), torch.cat([y[4000:], ty]), 100, 1)
    return model, blurred(px, 0.3), py, "shift"


# -- photographs -----------------------------------------------------------------------------------------------------


def clothes() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """clothing10 at 64 x 64: 60 % of its train folder for a base, everything else for the pool."""
    preprocess = Preprocess(resize=(64, 64), mean=networks.MEAN, std=networks.STD)
    parts = [load_data(SHARED / "data/clothing10" / n, preprocess=preprocess) for n in ("train", "validation", "test")]
    xs, ys = zip(*(part.batch(np.arange(len(part))) for part in parts), strict=True)
    order = np.random.default_rng(0).permutation(len(ys[0]))
    own, rest = order[: int(0.6 * len(order))], order[int(0.6 * len(order)) :]
    return xs[0][own], ys[0][own], torch.cat([xs[0][rest], *xs[1:]]), torch.cat([ys[0][rest], *ys[1:]])


def clothing() -> tuple[nn.Module, Tensor, Tensor, str]:
    """Long-tailed photographs, a network of five convolutions trained here."""
    x, y, px, py = clothes()
    torch.manual_seed(0)
    widths = [3, 24, 48, 96, 96, 128]
    blocks: list[nn.Module] = []
    for a, b in pairwise(widths):
        blocks += [nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2)]
    model = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))
    return train_base(model, x, y, 14, 4e-3, augment=augmentation("flip,shift")), px, py, "flip,shift"


def backbone() -> tuple[nn.Module, Tensor, Tensor, str]:
    """The same photographs, an ImageNet ResNet-18 from random weights, trained here."""
    from torchvision.models import resnet18

    x, y, px, py = clothes()
    torch.manual_seed(0)
    model = resnet18(num_classes=10)
    return train_base(model, x, y, 8, 2e-3, augment=augmentation("flip,shift")), px, py, "flip,shift"


# -- a table and text ------------------------------------------------------------------------------------------------


def shuttle_rows() -> tuple[Tensor, Tensor, list[str]]:
    """Statlog shuttle, standardised and in a fixed random order: (n, 9) numbers, (n,) classes and their names."""
    import gzip

    rows = gzip.decompress((SHARED / "data/Shuttle.csv.gz").read_bytes()).decode().splitlines()
    cells = [line.replace('"', "").split(",")[-10:] for line in rows[1:]]
    names = sorted({c[-1] for c in cells})
    x = torch.tensor([[float(v) for v in c[:-1]] for c in cells])
    y = torch.tensor([names.index(c[-1]) for c in cells])
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(y)))
    x, y = ((x - x.mean(0)) / x.std(0))[order], y[order]
    return x, y, names


def shuttle() -> tuple[nn.Module, Tensor, Tensor, str]:
    """Statlog shuttle, an MLP trained here on 10,000 rows for a few epochs; classes of 10 to 45,000 rows."""
    x, y, names = shuttle_rows()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(9, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, len(names)))
    return train_base(model, x[:10000], y[:10000], 3, 2e-3), x[10000:], y[10000:], "noise"


class TextNet(nn.Module):
    """Character embeddings, two convolutions, their maxima and means, a linear layer."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(128, 24)
        self.conv1, self.conv2 = nn.Conv1d(24, 64, 5, padding=2), nn.Conv1d(64, 96, 5, padding=2)
        self.linear = nn.Linear(96, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        h = F.relu(self.conv1(self.embed(tokens).transpose(1, 2)))
        h = F.relu(self.conv2(F.max_pool1d(h, 2)))
        return self.linear(h.amax(2))


def text() -> tuple[nn.Module, Tensor, Tensor, str]:
    """Which package of Python's own library a function's source comes from: 160 characters, 12 packages."""
    names = ["asyncio", "email", "json", "unittest", "http", "xml", "logging", "multiprocessing", "tkinter", "importlib",
             "concurrent", "ctypes"]  # fmt: skip
    root = Path(sysconfig.get_paths()["stdlib"])
    found: list[list[str]] = []
    for name in names:
        pieces = []
        for file in sorted((root / name).rglob("*.py")):
            source = file.read_text(errors="replace")
            for node in ast.walk(ast.parse(source)):
                if isinstance(node, ast.FunctionDef):
                    segment = ast.get_source_segment(source, node) or ""
                    if len(segment) >= 120:
                        pieces.append(segment[:160].ljust(160))
        found.append(pieces)
    rng = np.random.default_rng(0)
    tokens, labels = [], []
    for j, pieces in enumerate(found):
        for k in rng.permutation(len(pieces))[:600]:
            tokens.append([min(ord(ch), 127) for ch in pieces[k]])
            labels.append(j)
    order = rng.permutation(len(labels))
    x, y = torch.tensor(tokens)[order], torch.tensor(labels)[order]
    n = int(0.4 * len(y))
    torch.manual_seed(0)
    return train_base(TextNet(len(names)), x[:n], y[:n], 8, 4e-3), x[n:], y[n:], ""


WORLDS: dict[str, Callable[[], tuple[nn.Module, Tensor, Tensor, str]]] = {
    f.__name__: f for f in (usps, tiny, clothing, backbone, shuttle, pairs, text, vit)
}


def world(name: str, cache: Path = HERE / ".cache", views: int = 2) -> World:
    """Open a world, making and reading it once."""
    file = cache / f"world-{name}.pt"
    if not file.exists():
        cache.mkdir(parents=True, exist_ok=True)
        model, x, y, augment = WORLDS[name]()
        classes = [str(j) for j in range(int(y.max()) + 1)]
        join = SynapticJoin(views=views if augment else 0, augment=augmentation(augment) if augment else None)
        began = time.process_time()
        ready = join.prepare(model, (x, y), (x[:64], y[:64]), classes=classes)
        seconds = (time.process_time() - began) / (1 + (views if augment else 0))
        count = sum(p.numel() for p in model.parameters())
        torch.save(vars(World(name, ready.train_table, ready.frame, classes, count, seconds)), file)
        accuracy = (ready.train_table.logits.argmax(1) == ready.train_table.labels).mean()
        print(f"{name}: {len(y)} examples, {ready.train_table.features.shape[1]} features, base {accuracy:.3f}, "
              f"{seconds:.0f} s a pass", flush=True)  # fmt: skip
    return World(**torch.load(file, weights_only=False))


def main() -> None:
    """Make worlds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("worlds", nargs="*", default=list(WORLDS))
    for name in parser.parse_args().worlds:
        made = world(name)
        z, y = made.table.logits, made.table.labels
        count = np.bincount(y)
        recall = np.bincount(y[z.argmax(1) == y], minlength=len(count)) / np.maximum(count, 1)
        print(name, "worst classes", np.argsort(recall)[:4].tolist(), np.sort(recall)[:4].round(3), "counts", count.min(), count.max())
        sys.stdout.flush()


if __name__ == "__main__":
    main()
