"""``tweaknn report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from tweaknn.cli import options as o
from tweaknn.cli.console import err, note
from tweaknn.delta import Delta
from tweaknn.errors import InputError


def command(
    result: Annotated[
        Path, typer.Argument(help="Folder of `tweaknn compare`, a --json of compare, join or evaluate, or a Δnn.")
    ],
    out_file: Annotated[Path, typer.Option("--out", help="The page, one HTML file.")],
    model: Annotated[
        str | None, typer.Option(help="With --data: show the neurons too. As in the other commands.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="Images for confusion, neurons and what they respond to.")] = None,
    delta: Annotated[Path | None, typer.Option(help="The Δnn whose neurons are shown.")] = None,
    target: Annotated[str | None, typer.Option(help="Whose neurons; default: the result's first target.")] = None,
    head: o.Head = None,
    pixels: o.Pixels = None,
    examples: Annotated[int, typer.Option(min=10, help="Images looked at, at most.")] = 2000,
    weights: o.Weights = None,
    preprocess: o.Preprocess = None,
    mean: o.Mean = None,
    std: o.Std = None,
    size: o.Size = None,
    seed: o.Seed = 0,
    device: o.Device = "cpu",
    batch_size: o.BatchSize = 128,
    skip_unreadable: o.Skip = False,
    json: o.Json = None,
) -> None:
    """One self-contained page about a result: who gains, who pays, what else there was, which neurons do it."""
    from tweaknn.report import render
    from tweaknn.report.read import page_of, read_result
    from tweaknn.report.write import write_page

    o.check_writable(out_file, "--out")
    o.check_writable(json, "--json")
    if (model is None) != (data is None):
        raise InputError("--model and --data belong together: both, or neither.")
    found, kind = read_result(result, target)
    if delta is None and result.suffix not in (".json", "") and result.is_file():
        delta = result
    extra: dict[str, Any] | None = None
    if model is not None and data is not None:
        change = None if delta is None else Delta.load(str(delta))
        opened = o.open_model(
            model, weights, preprocess=preprocess, mean=mean, std=std, size=size, device=device, seed=seed, head=head
        )
        if opened.head is None and change is not None:
            opened.head = change.head
        images = o.open_data(data, opened, skip_unreadable=skip_unreadable, pixels=pixels, seed=seed)
        extra = look(opened, images, found, change, target, examples, batch_size, seed)
        if kind != "compare":
            found["extra"] = extra
    page = page_of(found, kind)
    if extra is not None:
        page["neurons"] = extra.get("neurons")
    write_page(out_file, render(page))
    o.write_json(json, {"out": str(out_file), "kind": kind, "sentence": page["sentence"], "targets": page["targets"]})
    err.print(f"Page written to {out_file} ({out_file.stat().st_size / 1024:.0f} KB)", markup=False)
    if model is None:
        note("with --model and --data the page shows the neurons and the images they respond to")


def look(
    opened: o.Opened,
    images: Any,
    found: dict[str, Any],
    delta: Delta | None,
    target: str | None,
    most: int,
    batch: int,
    seed: int,
) -> dict[str, Any]:
    """Run the network on some of the images for the neurons' part of the page."""
    from tweaknn.join.promise import class_position
    from tweaknn.measure import per_class_accuracy
    from tweaknn.network.outputs import collect_logits
    from tweaknn.report.study import study, subset

    wanted = [target] if target is not None else list(found.get("targets") or [])
    model: Any = opened.model
    if opened.several:  # the page is of one label, its network a binary one
        from tweaknn.cli.answers import label_view

        wanted = wanted or [found["classes"][1]]
        model, images = label_view(opened, images, class_position(wanted[0], images.classes, len(images.classes)))
    names = images.classes
    few = subset(images, most, seed)
    if not wanted:  # an evaluation names none: the class that is worst
        logits, labels = collect_logits(model, few.loader(batch))
        accuracy, _ = per_class_accuracy(logits.argmax(1), labels, logits.shape[1])
        wanted = [np.nan_to_num(accuracy, nan=np.inf).argmin()]
    positions = [class_position(w, names, len(names)) for w in wanted]
    return study(model, few, positions, delta=delta, batch_size=batch)
