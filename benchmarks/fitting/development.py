"""A network made for choosing settings on, so that no test split is looked at: ResNet-20 trained here on 20,000 images of
CIFAR-10's train split, shown harder JPEGs of it, as the third-party network is (docs/results/fitting.md).

    python -m benchmarks.fitting.development [--pools 2] [--json benchmarks/results/fit-development.json]
    python -m benchmarks.fitting.development --views 1 2 3 --pools 3 --json benchmarks/results/fit-views.json

Fitted on 12,500 images the base has seen (their originals), chosen on 2,500 others and judged on another 2,500, both ways; promise
``floors`` for each of the four worst classes, at several cautions; with ``--views`` the AAN alone, fitted on all 20,000 images and so
many augmented copies of each, also with a tolerance of a point.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.common import HERE, machine, write
from benchmarks.fitting.cifar import row
from benchmarks.fitting.evaluate import applied, worst
from benchmarks.fitting.tables import augmented, pictures, prepared
from benchmarks.networks import CIFAR10, resnet20
from tweaknn import Promise, SynapticJoin
from tweaknn.delta import Delta
from tweaknn.inputs.augment import augmentation
from tweaknn.join.aans import aan
from tweaknn.join.choice import ordered
from tweaknn.join.methods import best, of_means
from tweaknn.join.setting import Setting
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
    """ResNet-20 trained on the first :data:`SEEN` images of a fixed order, SGD with momentum, one cycle, flips and shifts."""
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
    """Tables of all seen images (with views) and of the others (15,000), and an empty delta."""
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


def ways(new: PooledTable, pools: int) -> Iterator[list[tuple[PooledTable, PooledTable]]]:
    """Disjoint pools of 5,000 unseen images, each as (chosen on, judged on), both ways."""
    order = np.random.default_rng(100).permutation(len(new.labels))
    for k in range(pools):
        one, other = (new.rows(np.sort(half)) for half in np.array_split(order[k * 5000 : (k + 1) * 5000], 2))
        yield [(one, other), (other, one)]


def cautions(pools: int, values: tuple[float, ...] = (0.0, 0.25, 0.5, 1.0), images: int = 12_500) -> list[dict[str, Any]]:
    """What the candidates of ``best`` gain and cost at each caution."""
    seen, new, frame = development()
    rows = np.sort(np.random.default_rng(5).permutation(len(seen.labels))[:images])
    train = replace(seen.rows(rows), views=seen.rows(rows).views[:1])
    targets = worst(new.logits, new.labels, 4)
    found: dict[tuple[float, str], list[dict[str, float]]] = {}
    for way in ways(new, pools):
        parts: dict[tuple[float, str, int], list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {}
        for held, judged in way:
            for caution in values:
                for target in targets:
                    setting = Setting(train, held, (target,), CIFAR10, Promise("floors"), frame, 0, caution=caution)
                    candidates = {c.name: c for c in best(setting, of_means(setting))}
                    candidates["handed over"] = ordered([*candidates.values()], setting)[0]
                    for name, c in candidates.items():
                        parts.setdefault((caution, name, target), []).append((judged.logits, applied(c.delta, judged), judged.labels))
        for (caution, name, target), measured in parts.items():
            found.setdefault((caution, name), []).append(row(measured, (target,)))
    return [
        {"caution": caution, "method": name, **{k: 100 * float(np.mean([r[k] for r in kept])) for k in kept[0]}}
        for (caution, name), kept in found.items()
    ]


def copies(pools: int, counts: list[int]) -> list[dict[str, Any]]:
    """What an AAN gains by further augmented copies of each training image."""
    seen, new, frame = development()
    targets = worst(new.logits, new.labels, 4)
    out = []
    for count in counts:
        train = replace(seen, views=seen.views[:count])
        found: dict[float, list[dict[str, float]]] = {}
        began = time.process_time()
        for way in ways(new, pools):
            parts: dict[tuple[float, int], list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {}
            for held, judged in way:
                setting = Setting(train, held, tuple(targets[:1]), CIFAR10, Promise("floors"), frame, 0)
                made = aan(setting)
                for tolerance in (0.0, 0.01):
                    for target in targets:
                        own = replace(setting, targets=(target,), promise=Promise("floors", tolerance))
                        moved = applied(made.settle(own, "aan").delta, judged)
                        parts.setdefault((tolerance, target), []).append((judged.logits, moved, judged.labels))
            for (tolerance, target), measured in parts.items():
                found.setdefault(tolerance, []).append(row(measured, (target,)))
        spent = time.process_time() - began
        out += [
            {"views": count, "tolerance": t, "cpu_seconds": spent, **{k: 100 * float(np.mean([r[k] for r in kept])) for k in kept[0]}}
            for t, kept in found.items()
        ]
        print(*out[-2:], sep="\n", flush=True)
    return out


def main() -> None:
    """Make the network, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pools", type=int, default=2)
    parser.add_argument("--json", type=Path, default=HERE / "results" / "fit-development.json")
    parser.add_argument("--views", type=int, nargs="*", help="measure numbers of augmented copies instead of cautions (at most 3)")
    options = parser.parse_args()
    settings = {"pools": options.pools, "quality": QUALITY, "seen": SEEN}
    if options.views:
        write(options.json, {"machine": machine(), "settings": settings, "rows": copies(options.pools, options.views)})
        return
    rows = cautions(options.pools)
    write(options.json, {"machine": machine(), "settings": settings, "rows": rows})
    for r in sorted(rows, key=lambda r: (r["method"], r["caution"])):
        print(f"{r['method']:12s} caution {r['caution']:4.2f} gain {r['gain']:5.1f} E {r['E']:.2f} half {r['E_half']:.2f}")


if __name__ == "__main__":
    main()
