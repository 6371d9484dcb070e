"""Options that several commands share, and what they open."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import nn

from tweaknn.cli.console import note
from tweaknn.errors import DataError, InputError, ModelError
from tweaknn.inputs import Examples, load_data, load_model, resolve_preprocess
from tweaknn.inputs.sources import TableSource
from tweaknn.network.views import View
from tweaknn.writing import json_text, write

Model = Annotated[
    str,
    typer.Option(
        "--model",
        help="file.py:function returning an nn.Module, torchvision:NAME, timm:NAME, hf:NAME, or a folder of `tweaknn train`.",
    ),
]
Weights = Annotated[str | None, typer.Option(help="Weights for --model: .safetensors, .pt or .pth.")]
Preprocess = Annotated[
    str | None, typer.Option(help="file.py:function from a PIL image (or array) to the network's input tensor.")
]
Mean = Annotated[list[str] | None, typer.Option(help="Channel means on the 0..1 scale; give several times, or a,b,c.")]
Std = Annotated[list[str] | None, typer.Option(help="Channel standard deviations; give several times, or a,b,c.")]
Size = Annotated[list[str] | None, typer.Option(help="Side in pixels, or height and width.")]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of everything random.")]
Device = Annotated[str, typer.Option(help="Where the network runs: cpu, cuda:0, ...")]
BatchSize = Annotated[int, typer.Option(min=1, help="Examples a batch.")]
Json = Annotated[Path | None, typer.Option("--json", help="Write all figures here (fractions, not per cent).")]
Skip = Annotated[bool, typer.Option("--skip-unreadable", help="Leave damaged images out and count them.")]
Head = Annotated[str | None, typer.Option(help="Which output, by position or name, of a network with several.")]
Pixels = Annotated[int | None, typer.Option(min=1, help="Pixels of each picture to look at, for segmentation (512).")]
Track = Annotated[
    str | None, typer.Option(help="Live view, also of every training: tensorboard:FOLDER or mlflow:EXPERIMENT.")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]
DATA_HELP = (
    "A folder of class folders, a Parquet file of images, an .npz with x and y (several labels: 0 and 1; or masks), or "
    "file.py:function."
)


@dataclass
class Opened:
    """A network, ready to be shown data.

    ``raw`` is the network itself, ``view`` what stands between it and ``(rows, classes)``, see
    :mod:`tweaknn.network.views`; ``several``: it gives several labels an example.
    """

    raw: nn.Module
    classes: list[str] | None
    preprocess: Any
    notes: list[str] = field(default_factory=list)
    head: int | str | None = None
    view: View | None = None
    several: bool = False
    n_logits: int = 0

    @property
    def model(self) -> nn.Module:
        """The network as everything else sees it."""
        return self.raw if self.view is None else self.view


def numbers(values: list[str] | None, name: str) -> list[float] | None:
    """``["1,2", "3"] -> [1, 2, 3]``. Raises InputError for anything that is not a number."""
    if not values:
        return None
    try:
        return [float(part) for value in values for part in value.replace(" ", ",").split(",") if part]
    except ValueError:
        raise InputError(f"--{name} takes numbers, not {' '.join(values)!r}.") from None


def open_model(
    model: str,
    weights: str | None,
    *,
    preprocess: str | None = None,
    mean: list[str] | None = None,
    std: list[str] | None = None,
    size: list[str] | None = None,
    device: str = "cpu",
    seed: int = 0,
    head: str | None = None,
) -> Opened:
    """Load a network and settle its preprocessing.

    Raises:
        ModelError: see :func:`tweaknn.inputs.load_model`; also for a device that is not there.
        InputError: preprocessing options contradict each other.
    """
    seed_everything(seed)
    loaded = load_model(model, weights=weights, device=device)
    sides = numbers(size, "size")
    transform, said = resolve_preprocess(
        loaded.preprocess,
        function=preprocess,
        mean=numbers(mean, "mean"),
        std=numbers(std, "std"),
        size=[int(side) for side in sides] if sides else None,
    )
    return Opened(loaded.module, loaded.classes, transform, [said, *getattr(loaded, "notes", [])], which(head))


def which(head: str | None) -> int | str | None:
    """``--head`` as a position or a key."""
    return int(head) if head is not None and head.lstrip("-").isdigit() else head


def open_data(
    spec: str,
    opened: Opened,
    *,
    group: str | None = None,
    skip_unreadable: bool = False,
    pixels: int | None = None,
    seed: int = 0,
) -> Examples:
    """Load labelled examples and bring their labels to the network's outputs, whatever it answers with.

    Raises:
        DataError: see :func:`tweaknn.inputs.load_data` and :func:`tweaknn.inputs.match_classes`.
        ModelError: see :func:`tweaknn.cli.answers.settle`.
    """
    from tweaknn.cli.answers import PIXELS, settle

    examples = load_data(spec, preprocess=opened.preprocess, group=group, skip_unreadable=skip_unreadable)
    aligned, said = settle(opened, examples, pixels or PIXELS, seed)
    table = isinstance(examples.source, TableSource)  # whose numbers are taken as they are
    for sentence in (*opened.notes, said):
        if sentence and not (table and sentence.startswith("no preprocessing was given")):
            note(sentence)
    if examples.skipped:
        note(f"{examples.skipped} unreadable images were left out of {spec}")
    return aligned


def same_classes(first: Examples, second: Examples) -> None:
    """Raises DataError when two data sets name their classes otherwise: their labels would be taken for each other."""
    ours, theirs = first.classes, second.classes
    if ours is None or theirs is None or list(ours) == list(theirs):
        return
    at = next(k for k in range(max(len(ours), len(theirs))) if k >= min(len(ours), len(theirs)) or ours[k] != theirs[k])
    names = " and ".join(repr(names[at]) if at < len(names) else "nothing" for names in (ours, theirs))
    raise DataError(
        f"{first.name} and {second.name} name their classes otherwise: class {at} is {names}; give both the same classes."
    )


def count_logits(model: nn.Module, examples: Examples) -> int:
    """How many classes the network tells apart, found out by showing it one example. Raises ModelError."""
    from tweaknn.cli.answers import output_shape

    shape = output_shape(model, examples, None)
    if len(shape) != 2 or shape[1] < 2:
        raise ModelError(f"The network's output has shape {shape}; (examples, classes >= 2) is needed.")
    return shape[1]


def seed_everything(seed: int) -> None:
    """Seed numpy and torch."""
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def check_writable(path: Path | None, option: str) -> None:
    """Fail before the work, not after it. Raises InputError when nothing can be written at ``path``."""
    if path is None:
        return
    folder = path.parent if str(path.parent) else Path(".")
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InputError(f"{option} {path}: cannot be written; its folder must exist and be writable.")


def write_json(path: Path | None, figures: dict[str, Any]) -> None:
    """Write ``figures`` whole or not at all; NaN becomes null."""
    if path is None:
        return
    write(path, json_text(figures, indent=2), "--json")
