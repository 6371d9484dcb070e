"""The dissertation's data sets: through torchvision's loaders where the data is given, CIFAR-10 as JPEG where only
that is."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tweaknn.inputs import Examples, Preprocess, load_data
from tweaknn.inputs.sources import ArraySource, FileSource

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NAMES = ("svhn", "cifar10", "cifar100", "sun397", "imagenet", "cifar10-jpeg")


def load(name: str, root: Path) -> tuple[Examples, Examples]:
    """Train and test examples of one data set under ``root``. Raises what torchvision raises when it is not there."""
    from torchvision import datasets

    pre = Preprocess(mean=MEAN, std=STD, channels=3)
    if name == "cifar10-jpeg":
        return tuple(load_data(root / f"{part}.parquet", preprocess=pre) for part in ("train", "test"))  # type: ignore
    if name == "svhn":
        parts = [datasets.SVHN(str(root), split=s) for s in ("train", "test")]
        return tuple(_arrays(p.data.transpose(0, 2, 3, 1), p.labels, None, pre, "svhn") for p in parts)  # type: ignore
    if name in ("cifar10", "cifar100"):
        kind = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
        parts = [kind(str(root), train=t) for t in (True, False)]
        return tuple(_arrays(p.data, np.array(p.targets), p.classes, pre, name) for p in parts)  # type: ignore
    big = Preprocess(resize=256, crop=(224, 224), mean=MEAN, std=STD, channels=3)
    if name == "imagenet":
        return tuple(load_data(root / part, preprocess=big) for part in ("train", "val"))  # type: ignore
    if name == "sun397":
        whole = datasets.SUN397(str(root))
        labels = np.array(whole._labels)
        source = FileSource([Path(f) for f in whole._image_files], root)
        every = Examples(source, labels, classes=whole.classes, preprocess=big, name="sun397")
        rng = np.random.default_rng(0)
        test = np.concatenate([rng.permutation(np.flatnonzero(labels == j))[:50] for j in range(len(whole.classes))])
        return every.subset(np.setdiff1d(np.arange(len(labels)), test)), every.subset(np.sort(test))
    raise KeyError(f"unknown data {name!r}; choose one of {', '.join(NAMES)}")


def _arrays(images: np.ndarray, labels: np.ndarray, classes: list[str] | None, pre: Preprocess, name: str) -> Examples:
    names = classes or [str(k) for k in range(int(labels.max()) + 1)]
    source = ArraySource(np.ascontiguousarray(images), name)
    return Examples(source, np.asarray(labels, dtype=np.int64), classes=names, preprocess=pre, name=name)
