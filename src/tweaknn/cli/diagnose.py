"""``tweaknn diagnose``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tweaknn.cli import options as o
from tweaknn.cli.console import bar, note, out, percent, table
from tweaknn.inputs import Examples
from tweaknn.join.diagnosis import diagnose


def command(
    model: o.Model,
    data: Annotated[str, typer.Option(help=o.DATA_HELP)],
    weights: o.Weights = None,
    preprocess: o.Preprocess = None,
    mean: o.Mean = None,
    std: o.Std = None,
    size: o.Size = None,
    worst: Annotated[int, typer.Option(min=1, help="How many of the worst classes to name.")] = 3,
    confusions: Annotated[int, typer.Option(min=0, help="How many confusions to list.")] = 8,
    head: o.Head = None,
    pixels: o.Pixels = None,
    seed: o.Seed = 0,
    device: o.Device = "cpu",
    batch_size: o.BatchSize = 128,
    skip_unreadable: o.Skip = False,
    json: o.Json = None,
) -> None:
    """Accuracy of each class with a 95 % interval, the worst classes, what they are taken for."""
    o.check_writable(json, "--json")
    opened = o.open_model(
        model, weights, preprocess=preprocess, mean=mean, std=std, size=size, device=device, seed=seed, head=head
    )
    examples = o.open_data(data, opened, skip_unreadable=skip_unreadable, pixels=pixels, seed=seed)
    if opened.several:
        return several(model, data, opened, examples, batch_size, worst, json)
    with bar("Looking", len(examples)) as progress:
        found = diagnose(
            opened.model,
            examples.loader(batch_size),
            classes=examples.classes,
            worst=worst,
            confusions=confusions,
            progress=progress,
        )
    m = found.measures
    rows = [
        [
            row.name + (" ◂" if row.name in found.worst else ""),
            str(row.n),
            percent(row.accuracy),
            f"{percent(row.low)}–{percent(row.high)}",
            percent(row.auroc),
            str(row.mistakes),
        ]
        for row in found.rows
    ]
    out.print(table(["class", "examples", "accuracy %", "95 % interval", "AUROC %", "mistakes"], rows, title=model))
    out.print(
        f"\noverall {percent(m.overall)} %, balanced {percent(m.balanced)} %, "
        f"calibration error {percent(m.ece)} %, log loss {m.nll:.3f} nats, {m.n} examples"
    )
    if found.worst:
        out.print(f"worst classes: {', '.join(found.worst)}")
    if found.confusions:
        pairs = [[f"{c.label} taken for {c.predicted}", str(c.count), percent(c.share)] for c in found.confusions]
        out.print()
        out.print(table(["confusion", "examples", "% of the class"], pairs))
    if examples.skipped:
        note(f"{examples.skipped} unreadable images were not counted")
    o.write_json(json, {**found.to_dict(), "model": model, "data": data, "skipped": examples.skipped})


def several(
    model: str, data: str, opened: o.Opened, examples: Examples, batch_size: int, worst: int, json: Path | None
) -> None:
    """The same of a network with several labels an example."""
    from tweaknn.cli import labels

    found = labels.figures(opened.model, examples, batch_size, opened.head, "Looking")
    labels.show(found)
    low = labels.worst(found, worst)
    out.print(f"\nlowest recall: {', '.join(low)}")
    o.write_json(
        json, {"labels": found, "classes": examples.classes, "worst": low, "n": len(examples), "model": model, "data": data}
    )
