"""``tweaknn join``: the main job."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from tweaknn.cli import options as o
from tweaknn.cli.console import bar, err, note, out, percent, points, table, warn
from tweaknn.cli.wishes import promised, subclasses
from tweaknn.delta.views import for_network
from tweaknn.errors import InputError, NothingHelps
from tweaknn.inputs import Examples
from tweaknn.inputs.answers import PixelExamples
from tweaknn.join.aans import AANChoice
from tweaknn.join.checks import COUNTING
from tweaknn.join.front import check_front_file, write_front
from tweaknn.join.result import JoinResult
from tweaknn.join.run import Groups, SynapticJoin
from tweaknn.network.reader import Reader
from tweaknn.network.views import PixelView


class Method(StrEnum):
    best = "best"
    fit = "fit"
    aan = "aan"
    aan_grouped = "aan-grouped"
    mean = "mean"
    selected = "selected"
    stable = "stable"
    net_gain = "net-gain"
    mixed = "mixed"
    retrain_1 = "retrain-1"
    retrain_2 = "retrain-2"
    schedule = "schedule"
    theta = "theta"


class Solver(StrEnum):
    convex = "convex"
    sgd = "sgd"


class Form(StrEnum):
    dense = "dense"
    grouped = "grouped"


class ThetaForm(StrEnum):
    plain = "plain"
    signed = "signed"


class Kind(StrEnum):
    floors = "floors"
    overall = "overall"
    mixed = "mixed"


class Saw(StrEnum):
    train = "train"
    validation = "validation"
    both = "both"
    none = "none"


def command(
    model: o.Model,
    train: Annotated[str, typer.Option(help=o.DATA_HELP)],
    out_file: Annotated[Path, typer.Option("--out", help="The Δnn file to write.")],
    validation: Annotated[
        str | None, typer.Option(help="Data to choose on; without it a part of --train is set aside.")
    ] = None,
    target: Annotated[list[str] | None, typer.Option(help="Class to improve; give several times for several.")] = None,
    worst: Annotated[int | None, typer.Option(min=1, help="Take the K least accurate classes.")] = None,
    method: Annotated[
        Method,
        typer.Option(
            help="best: validation chooses between fit (convex fit), aan (a small network) and their mean; selected, stable, "
            "net-gain, mixed: 40 neurons, chosen in four ways; theta: the dissertation's join; retrain-1, retrain-2: its synapses, "
            "weights solved for; schedule: see --schedule."
        ),
    ] = Method.best,
    promise: Annotated[
        Kind | None,
        typer.Option(
            help="floors: no other class may lose; overall: overall accuracy may not; mixed: only what --floor, "
            "--max-drop, --overall-drop and --specificity say. Default: the method's own."
        ),
    ] = None,
    tolerance: Annotated[float, typer.Option(min=0.0, max=1.0, help="What the promise may give up, a fraction.")] = 0.0,
    floor: Annotated[
        list[str] | None, typer.Option(help="NAME=0.80: that class shall have at least this accuracy; several times.")
    ] = None,
    max_drop: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="No class may lose more accuracy than this, a fraction.")
    ] = None,
    overall_drop: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Overall accuracy may lose at most this, a fraction.")
    ] = None,
    weight: Annotated[list[str] | None, typer.Option(help="NAME=2: what a target counts among several.")] = None,
    specificity: Annotated[
        list[str] | None, typer.Option(help="NAME=0.95: share of the others' examples not called NAME, at least.")
    ] = None,
    costs: Annotated[
        Path | None, typer.Option(help="Cost of each confusion (.csv or .json; row: true class), counted against the gain.")
    ] = None,
    target_column: Annotated[
        list[str] | None,
        typer.Option(help="COLUMN=VALUE, also COLUMN=VALUE&label=CLASS: improve these examples only (a sub-class); several times."),
    ] = None,
    confidence: Annotated[
        float | None, typer.Option(help="0.95: the promise shall hold on new data with that probability; mind --tolerance.")
    ] = None,
    caution: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="Standard errors every rule is kept by beyond its letter. Default: 0.25, twice that for data the base saw.",
        ),
    ] = None,
    cross_fit: Annotated[
        bool | None,
        typer.Option("--cross-fit/--no-cross-fit", help="Fit and choose fold by fold. Default: where data is scarce."),
    ] = None,
    front: Annotated[
        Path | None, typer.Option(help="Write the front of operating points: .json (data), .png, .svg or .pdf (picture).")
    ] = None,
    layers: Annotated[str, typer.Option(help="all, stages, or NAME,NAME.")] = "all",
    form: Annotated[
        ThetaForm, typer.Option(help="theta: plain (as published) or signed (right for negative neurons).")
    ] = ThetaForm.plain,
    schedule: Annotated[
        str | None,
        typer.Option(help="Joins and retrainings in turn over ever fewer classes, such as J100+R100+J50+R50+J10+R10+J10."),
    ] = None,
    solver: Annotated[
        Solver, typer.Option(help="How synapses are retrained: convex (to the optimum) or sgd (as the dissertation).")
    ] = Solver.convex,
    views: Annotated[
        int | None,
        typer.Option(min=0, help="Augmented copies of each training example that are read as well. Default: 1 of pictures."),
    ] = None,
    augment: Annotated[
        str | None,
        typer.Option(help="What a view is: flip, shift, noise (with commas between) or file.py:function. Default: shift."),
    ] = None,
    hidden: Annotated[
        str | None,
        typer.Option(help="Hidden neurons of an AAN, or a size of Table 4.1 such as resnet20-cifar10. Default: by validation."),
    ] = None,
    aan_form: Annotated[
        Form | None, typer.Option(help="dense, or grouped: a hidden group a stage, as the dissertation has it.")
    ] = None,
    group: Annotated[str | None, typer.Option(help="Column whose groups (patients, lesions) are never parted.")] = None,
    validation_share: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="Share set aside when --validation is not given and nothing is cross-fitted; 0.5."),
    ] = None,
    keep: Annotated[
        Path | None,
        typer.Option("--table", help="Folder that keeps what was read, so that another join does not read it again."),
    ] = None,
    base_saw: Annotated[Saw | None, typer.Option(help="Which data the base itself was trained on.")] = None,
    weights: o.Weights = None,
    preprocess: o.Preprocess = None,
    mean: o.Mean = None,
    std: o.Std = None,
    size: o.Size = None,
    head: o.Head = None,
    pixels: o.Pixels = None,
    seed: o.Seed = 0,
    device: o.Device = "cpu",
    batch_size: o.BatchSize = 128,
    skip_unreadable: o.Skip = False,
    json: o.Json = None,
) -> None:
    """Find synapses that mend the target classes, prove it on data not used for it, write a Δnn file."""
    o.check_writable(out_file, "--out")
    o.check_writable(json, "--json")
    o.check_writable(front, "--front")
    check_front_file(front)
    if bool(target) + (worst is not None) + bool(target_column) != 1:
        raise InputError("Give either --target (as often as needed), --worst K or --target-column.")
    opened = o.open_model(
        model, weights, preprocess=preprocess, mean=mean, std=std, size=size, device=device, seed=seed, head=head
    )
    examples = o.open_data(train, opened, group=group, skip_unreadable=skip_unreadable, pixels=pixels, seed=seed)
    held = o.open_data(validation, opened, skip_unreadable=skip_unreadable, pixels=pixels, seed=seed) if validation else None
    if held is not None:
        o.same_classes(examples, held)
    if isinstance(opened.view, PixelView):
        check_pixels(method, views, augment)
    joiner = SynapticJoin(
        method="schedule" if schedule and method is Method.best else method.value,
        schedule=schedule,
        solver=solver.value,
        views=0 if isinstance(opened.view, PixelView) else views,  # a picture and its pixels would have to move together
        augment=augment,
        aan=AANChoice(int(hidden) if hidden and hidden.isdigit() else hidden, aan_form.value if aan_form else None),
        promise=promised(
            method.value, promise, tolerance, floor, max_drop, overall_drop, weight, specificity, costs, examples.classes
        ),
        confidence=confidence,
        caution=caution,
        cross_fit=cross_fit,
        tolerance=tolerance,
        layers=layers,
        validation_share=validation_share,
        base_saw=base_saw.value if base_saw else None,
        seed=seed,
        batch_size=batch_size,
        form=form.value,
        table=keep,
        bar=bar,
    )
    groups = (groups_of(examples, group), groups_of(held, group))
    if opened.several:
        if front is not None:
            raise InputError("--front is of one operating point, and each label has its own; leave it out for several labels.")
        return several(joiner, opened, examples, held, target, groups, out_file, json)
    result = joiner.fit(
        opened.model, examples, held, targets=target, worst=worst, classes=examples.classes, groups=groups,
        masks=subclasses(target_column, examples, held),
    )
    show(result)
    figures = result.to_dict()
    figures.update(model=model, train=train, validation=validation, out=str(out_file) if result.delta else None)
    if front is not None:
        write_front(front, figures)
    if result.delta is None:
        o.write_json(json, figures)
        raise NothingHelps(result.sentence)
    delta = result.delta
    if opened.view is not None:
        maps = Reader(opened.view, examples.batch([0])[0]).maps if isinstance(opened.view, PixelView) else ()
        delta = for_network(delta, opened.view, opened.n_logits, classes=names_for(opened, examples), layers=maps)
    delta.save(str(out_file))
    o.write_json(json, figures)
    err.print(f"Δnn written to {out_file} ({out_file.stat().st_size / 1024:.0f} KB)", markup=False)
    if examples.skipped:
        note(f"{examples.skipped} unreadable images were left out")


def groups_of(examples: Examples | None, column: str | None) -> np.ndarray | None:
    """Which examples are never parted ``(n,)``: those of one value of ``column``, pixels of one picture."""
    if examples is not None and column:
        if column in examples.columns:
            return examples.column(column)
        note(f"{examples.name} has no column {column!r}, so its examples are taken one by one")
    return examples.groups if isinstance(examples, PixelExamples) else None


def check_pixels(method: Method, views: int | None, augment: str | None) -> None:
    """Raises InputError for what a network with a class a pixel has not."""
    if views or augment is not None:
        raise InputError("Views are not used for segmentation, where a picture and its pixels would have to move together.")
    if method.value in (*COUNTING, "mixed"):
        raise InputError(f"The method {method.value} reads single neurons, which no pixel has; take best, fit, aan or a selection.")


def names_for(opened: o.Opened, examples: Examples) -> list[str] | None:
    """Names of the network's own logits: a single logit has none."""
    return examples.classes if opened.n_logits > 1 else None


def several(
    joiner: SynapticJoin,
    opened: o.Opened,
    examples: Examples,
    held: Examples | None,
    target: list[str] | None,
    groups: Groups,
    out_file: Path,
    json: Path | None,
) -> None:
    """A join for each target label of a network with several labels an example."""
    from tweaknn.cli import labels

    if not target:
        raise InputError("A network with several labels an example needs --target LABEL; `tweaknn diagnose` names the worst.")
    delta, found = labels.join(joiner, opened, examples, held, target, groups)
    for result in found.values():
        show(result)
    figures: dict[str, Any] = {name: result.to_dict() for name, result in found.items()}
    figures = {"labels": figures, "classes": examples.classes}
    figures["out"] = str(out_file) if delta is not None else None
    o.write_json(json, figures)
    if delta is None:
        raise NothingHelps("; ".join(result.sentence for result in found.values()))
    delta.save(str(out_file))
    err.print(f"Δnn written to {out_file} ({out_file.stat().st_size / 1024:.0f} KB)", markup=False)


def show(result: JoinResult) -> None:
    """Candidates beside each other, then the chosen one class by class."""
    from tweaknn.cli.evaluate import show_comparison

    for sentence in result.warnings:
        warn(sentence)
    rows = []
    for candidate in result.candidates:
        c, point = candidate.comparison, candidate.point
        mark = " ◂" if candidate.name == result.chosen else ""
        rows.append(
            [
                candidate.name + mark,
                percent(point.target) if point.feasible else "–",
                points(point.target - point.base_target) if point.feasible else "–",
                points(c.tweaked.overall - c.base.overall),
                f"{100 * c.E:.2f}",
                points(c.worst_drop),
                str(candidate.delta.parameters),
            ]
        )
    columns = ["candidate", "target %", "gain", "overall", "E", "worst drop", "parameters"]
    title = f"{', '.join(result.targets)} · promise: {result.promise.kind} · on {result.best.comparison.base.n} validation examples"
    out.print(table(columns, rows, title=title))
    out.print()
    show_comparison(result.best.comparison, mark=result.targets)
    out.print()
    out.print(result.sentence, markup=False)
