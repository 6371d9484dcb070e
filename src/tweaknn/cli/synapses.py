"""``tweaknn synapses``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tweaknn.cli import options as o
from tweaknn.cli.console import bar, note, out, table


class Form(StrEnum):
    plain = "plain"
    signed = "signed"


class Engine(StrEnum):
    local = "local"
    ray = "ray"


class Reduction(StrEnum):
    position = "position"
    mean = "mean"
    max = "max"
    grid2 = "grid2"


def command(
    model: o.Model,
    data: Annotated[str, typer.Option(help=o.DATA_HELP)],
    out_file: Annotated[Path, typer.Option("--out", help="The Parquet file to write.")],
    target: Annotated[
        list[str] | None, typer.Option(help="Class to look at; give several times for several. Default: all.")
    ] = None,
    layers: Annotated[str, typer.Option(help="all, stages, or NAME,NAME.")] = "all",
    form: Annotated[Form, typer.Option(help="plain (as published) or signed (right for negative neurons).")] = (
        Form.plain
    ),
    budget: Annotated[int, typer.Option(min=1, help="Bound by the q-th smallest margin ratio, not the smallest.")] = 1,
    pool: Annotated[Reduction, typer.Option(help="Neurons by position, or one a channel.")] = Reduction.position,
    memory: Annotated[
        str | None, typer.Option(help="Room for statistics, e.g. 4GB; more passes over the data if need be.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Folder for finished work: a run that was killed goes on from it.")
    ] = None,
    engine: Annotated[Engine, typer.Option(help="This machine, or a Ray cluster.")] = Engine.local,
    ray_address: Annotated[str | None, typer.Option(help="A running cluster; without it a local one is made.")] = None,
    top: Annotated[int, typer.Option(min=0, help="How many of each class to print.")] = 5,
    weights: o.Weights = None,
    preprocess: o.Preprocess = None,
    mean: o.Mean = None,
    std: o.Std = None,
    size: o.Size = None,
    seed: o.Seed = 0,
    device: Annotated[
        str, typer.Option(help="Where the network runs; cuda:0,cuda:1 deals the statistics out among several.")
    ] = "cpu",
    batch_size: o.BatchSize = 256,
    skip_unreadable: o.Skip = False,
    json: o.Json = None,
) -> None:
    """Algorithm 1 for every neuron: threshold and count of every candidate synapse, as a Parquet table."""
    from tweaknn.theta.command import Request, parse_bytes, run

    o.check_writable(out_file, "--out")
    o.check_writable(json, "--json")
    room = parse_bytes(memory) if memory is not None else None
    devices = [d.strip() for d in device.split(",") if d.strip()]
    opened = o.open_model(
        model, weights, preprocess=preprocess, mean=mean, std=std, size=size, device=devices[0], seed=seed
    )
    examples = o.open_data(data, opened, skip_unreadable=skip_unreadable)
    request = Request(
        layers=layers,
        targets=target,
        form=form.value,
        budget=budget,
        reduction=pool.value,
        memory=room,
        resume=resume,
        engine=engine.value,
        ray_address=ray_address,
        devices=devices if len(devices) > 1 else [],
        batch_size=batch_size,
        top=top,
    )
    result = run(opened.model, examples, request, out_file, bar=bar, note=note)
    for name, rows in result.best.items():
        columns = ["layer", "index", "weight", "mistakes it corrects"]
        cells = [[r["layer"], str(r["index"]), f"{r['weight']:.4g}", str(r["count"])] for r in rows]
        if top:
            said = f"{name}: {result.mistakes[name]} mistakes, {result.active[name]} active neurons"
            out.print(table(columns, cells, title=said))
            out.print()
    out.print(f"{result.rows} synapses of {result.neurons} neurons in {out_file}", markup=False)
    o.write_json(json, {**result.to_dict(), "model": model, "data": data, "out": str(out_file)})
