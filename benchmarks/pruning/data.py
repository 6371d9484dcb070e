"""Images in memory as uint8, and the augmentation every method shares."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor


@dataclass
class Split:
    """``images`` uint8 ``(n, 3, h, w)``, ``labels`` int64 ``(n,)``."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: np.ndarray) -> Split:
        i = torch.from_numpy(np.ascontiguousarray(index))
        return Split(self.images[i], self.labels[i])


@dataclass
class Task:
    name: str
    train: Split
    validation: Split
    test: Split
    classes: int
    mean: Tensor
    std: Tensor
    pad: int

    def normal(self, images: Tensor) -> Tensor:
        x = images.float().div_(255).sub_(self.mean).div_(self.std)
        return x.contiguous(memory_format=torch.channels_last)

    def augmented(self, images: Tensor, rng: torch.Generator) -> Tensor:
        """Random crops after padding by ``pad``, and left-right flips, one draw an image."""
        n, _, h, w = images.shape
        p = self.pad
        padded = torch.nn.functional.pad(images, (p, p, p, p))
        top = torch.randint(0, 2 * p + 1, (n,), generator=rng)
        left = torch.randint(0, 2 * p + 1, (n,), generator=rng)
        flip = torch.rand(n, generator=rng) < 0.5
        rows = top[:, None] + torch.arange(h)
        columns = left[:, None] + torch.arange(w)
        columns = torch.where(flip[:, None], columns.flip(1), columns)
        i = torch.arange(n)[:, None, None]
        return padded[i, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _decode(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def _parquet(path: Path, limit: int | None, seed: int) -> Split:
    table = pq.read_table(path)
    labels = table.column("label").to_numpy()
    index = np.random.default_rng(seed).permutation(len(labels))[:limit]
    rows = table.column("image").take(index).to_pylist()
    images = np.stack([_decode(row["bytes"]) for row in rows])
    return Split(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels[index].astype(np.int64)))


def cifar(shared: Path, train: int = 10_000, validation: int = 5_000) -> Task:
    """The first ``train + validation`` of a fixed permutation of the training images, and the whole test split."""
    folder = shared / "data" / "cifar10-jpeg"
    both = pick(folder, "train")
    split = _parquet(both, train + validation, seed=2024)
    test = _parquet(pick(folder, "test"), None, seed=0)
    mean = torch.tensor([0.4914, 0.4822, 0.4465]).view(1, 3, 1, 1)
    std = torch.tensor([0.2470, 0.2435, 0.2616]).view(1, 3, 1, 1)
    order = np.arange(len(split))
    return Task("cifar10-jpeg", split.take(order[:train]), split.take(order[train:]), test, 10, mean, std, 4)


def pick(folder: Path, word: str) -> Path:
    found = sorted(p for p in folder.rglob("*.parquet") if word in p.name)
    if not found:
        raise FileNotFoundError(f"no {word} parquet file under {folder}")
    return found[0]


def clothing(shared: Path, side: int = 32) -> Task:
    """The three folders' images, resized to ``side`` x ``side``."""
    folder = shared / "data" / "clothing10"

    def load(word: str) -> Split:
        root = folder / word
        classes = sorted(p.name for p in root.iterdir() if p.is_dir())
        images, labels = [], []
        for k, name in enumerate(classes):
            for path in sorted((root / name).iterdir()):
                with Image.open(path) as image:
                    images.append(np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR)))
                labels.append(k)
        x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
        return Split(x, torch.tensor(labels))

    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    return Task("clothing10", load("train"), load("validation"), load("test"), 10, mean, std, 4)


def digits() -> Task:
    """scikit-learn's handwritten digits, 8 x 8 doubled to 16 x 16: 1,000 to train, 297 to choose, 500 to test."""
    from sklearn.datasets import load_digits

    found = load_digits()
    order = np.random.default_rng(2024).permutation(len(found.target))
    grey = (found.images[order] * (255 / 16)).astype(np.uint8).repeat(2, 1).repeat(2, 2)
    images = torch.from_numpy(grey)[:, None].repeat(1, 3, 1, 1).contiguous()
    split = Split(images, torch.from_numpy(found.target[order].astype(np.int64)))
    mean, std = torch.full((3, 1, 1), 0.305)[None], torch.full((3, 1, 1), 0.376)[None]
    at = np.arange(len(split))
    return Task("digits", split.take(at[:1000]), split.take(at[1000:1297]), split.take(at[1297:]), 10, mean, std, 2)
