"""``tweaknn export``: a tweaked network for other runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tweaknn.cli.answers import attach_all
from tweaknn.cli.options import Device, Json, Model, Weights, check_writable, numbers, open_model, write_json
from tweaknn.errors import InputError


def command(
    model: Model,
    delta: Annotated[list[Path], typer.Option(help="Δnn file; several are added up, or lie on one another where their files say so.")],
    out: Annotated[Path, typer.Option(help="File to write.")],
    format: Annotated[str, typer.Option(help="onnx or pt2.")] = "onnx",
    input_shape: Annotated[
        list[str] | None, typer.Option(help="Shape of one example, such as 3,224,224; the delta knows its own.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Data to take an example from, for networks whose input is a dictionary (hf:...).")
    ] = None,
    weights: Weights = None,
    device: Device = "cpu",
    json: Json = None,
) -> None:
    """Write base and delta as one ONNX or pt2 file, with a batch of any size, and check what was written."""
    from tweaknn.cli.console import out as console
    from tweaknn.delta import Delta
    from tweaknn.delta.export import FORMATS, export

    if format not in FORMATS:
        raise InputError(f"--format {format!r} is none of {', '.join(FORMATS)}.")
    sides = numbers(input_shape, "input-shape")
    if sides is not None and any(side != int(side) or side < 1 for side in sides):
        raise InputError("--input-shape takes positive whole numbers, such as 3,224,224.")
    check_writable(out, "--out")
    check_writable(json, "--json")
    deltas = [Delta.load(str(path)) for path in delta]
    change = deltas[0]
    opened = open_model(model, weights, device=device)
    example = None
    if data is not None:
        from tweaknn.inputs import load_data
        from tweaknn.network.modes import first, placement, to_model

        examples = load_data(data, preprocess=opened.preprocess)
        example = to_model(first(examples.batch([0])[0], 2), *placement(opened.raw))
    elif not change.input_shape and sides is None:
        raise InputError("The delta's network takes a dictionary; give --data, of which one example is taken.")
    shape = [int(side) for side in sides] if sides is not None else None
    difference = export(attach_all(deltas, opened.raw, example), out, format, input_shape=shape, example_x=example)
    taken = f"(batch, {', '.join(map(str, shape or change.input_shape))})"
    if isinstance(example, dict):
        taken = ", ".join(example)
    console.print(
        f"Wrote {out} ({out.stat().st_size / 1e6:.1f} MB, {format}): inputs {taken}, {change.n_classes} logits; "
        f"run again from the file they differ by at most {difference:.1g}."
    )
    summed = sum(not each.below for each in deltas) > 1
    if summed:
        console.print(
            "The deltas were added up; whether one undoes what another promises was not measured: tweaknn evaluate with the same "
            "--delta options (in Python tweaknn.delta.combine.combine) does, on validation data."
        )
    write_json(
        json,
        {
            "conflicts_measured": False if summed else None,
            "out": str(out),
            "format": format,
            "bytes": out.stat().st_size,
            "input_shape": shape or list(change.input_shape),
            "classes": list(change.classes) if change.classes else None,
            "difference": difference,
        },
    )
