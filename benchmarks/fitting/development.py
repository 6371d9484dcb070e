"""A network made for choosing settings on, so that no test split is looked at: ResNet-20 trained here on half of CIFAR-10's
train split, shown harder JPEGs of it, as the third-party network is (docs/results/fitting.md).

    python -m benchmarks.fitting.development

Fitted on images the base has seen (their originals), chosen on and judged on images of the other half.
"""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.common import HERE
from benchmarks.fitting.tables import augmented, pictures, prepared
from benchmarks.networks import CIFAR10, resnet20
from tweaknn import SynapticJoin
from tweaknn.delta import Delta
from tweaknn.inputs.augment import augmentation
from tweaknn.join.table import PooledTable

SEEN = 20_000
"""Images the base is trained on."""

QUALITY = 25
"""Of the JPEGs it is shown afterwards."""


def compressed(x: np.ndarray, quality: int = QUALITY) -> np.ndarray:
    """Images ``(n, 32, 32, 3)`` uint8 as JPEGs of low quality."""
    from PIL import Image

    out = np.empty_like(x)
    for k, image in enumerate(x):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        out[k] = np.asarray(Image.open(file))
    return out


def base(cache: Path, epochs: int = 14) -> nn.Module:
    """ResNet-20 trained on the first :data:`SEEN` images of a fixed order, AdamW, one cycle, flips and shifts."""
    torch.manual_seed(0)
    model = resnet20()
    file = cache / "development-base.pt"
    if file.exists():
        model.load_state_dict(torch.load(file, weights_only=True))
        return model.eval()
    x, y = pictures("train", cache)
    rows = np.random.default_rng(7).permutation(len(y))[:SEEN]
    x, y = x[rows], torch.from_numpy(y[rows].astype(np.int64))
    optimiser = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    steps = SEEN // 128
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.2, total_steps=steps * epochs)
    generator = torch.Generator().manual_seed(0)
    for epoch in range(epochs):
        model.train()
        order = torch.randperm(SEEN, generator=generator)
        began, right = time.time(), 0
        for s in range(steps):
            pick = order[s * 128 : s * 128 + 128]
            z = model(augmented(prepared(x[pick.numpy()]), generator))
            loss = F.cross_entropy(z, y[pick])
            right += int((z.argmax(1) == y[pick]).sum())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        print(f"epoch {epoch}: {right / steps / 128:.3f}, {time.time() - began:.0f} s", flush=True)
    torch.save(model.state_dict(), file)
    return model.eval()


def development(cache: Path = HERE / ".cache", views: int = 3) -> tuple[PooledTable, PooledTable, Delta]:
    """Tables of the seen images (12,500, with views) and of the others (15,000), and an empty delta."""
    file = cache / "development.pt"
    if not file.exists():
        model = base(cache)
        x, y = pictures("train", cache)
        order = np.random.default_rng(7).permutation(len(y))
        seen, new = order[:SEEN], order[SEEN : SEEN + 15_000]
        join = SynapticJoin(views=views, augment=augmentation("flip,shift"), cross_fit=False)
        ready: Any = join.prepare(
            model,
            (prepared(compressed(x[seen])), torch.from_numpy(y[seen].astype(np.int64))),
            (prepared(compressed(x[new])), torch.from_numpy(y[new].astype(np.int64))),
            classes=CIFAR10,
        )
        torch.save((vars(ready.train_table), vars(ready.validation_table), ready.frame), file)
    a, b, frame = torch.load(file, weights_only=False)
    return PooledTable(**a), PooledTable(**b), frame


if __name__ == "__main__":
    for table in development()[:2]:
        right = table.logits.argmax(1) == table.labels
        print(len(right), table.features.shape, [round(float(right[table.labels == j].mean()), 3) for j in range(10)])
