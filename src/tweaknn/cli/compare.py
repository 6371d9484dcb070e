"""``tweaknn compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tweaknn.cli import options as o
from tweaknn.cli.console import bar, err, note, out, percent, points, table
from tweaknn.errors import InputError


def command(
    model: o.Model,
    train: Annotated[str, typer.Option(help=o.DATA_HELP + " Fitted on.")],
    test: Annotated[str, typer.Option(help="Measured on, once, after everything is chosen.")],
    target: Annotated[list[str], typer.Option(help="Class to improve; give several times.")],
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for results; running again continues.")],
    validation: Annotated[
        str | None, typer.Option(help="Chosen on; without it a part of --train is set aside.")
    ] = None,
    methods: Annotated[str, typer.Option(help="all, or names with commas; oversampling+NAME works too.")] = "all",
    epochs: Annotated[float, typer.Option(help="Of fine-tuning methods, over the fitted part.")] = 1.0,
    iterations: Annotated[int | None, typer.Option(help="Of fine-tuning methods, in place of --epochs.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Repetitions: the split (unless --validation is given) and everything random.")] = 1,
    seed: Annotated[int, typer.Option(help="The first seed.")] = 0,
    lr: Annotated[float, typer.Option(help="Learning rate of fine-tuning methods.")] = 0.01,
    optimiser: Annotated[str, typer.Option(help="sgd, adamw, or file.py:function from parameters to one.")] = "sgd",
    schedule: Annotated[
        str, typer.Option(help="cosine, constant, or file.py:function (optimiser, iterations).")
    ] = "cosine",
    augment: Annotated[str, typer.Option(help="none, shift, flip-shift, or file.py:function (x, generator).")] = "none",
    penalty: Annotated[
        list[float] | None, typer.Option(help="Loss penalties to choose from, rising; give several times.")
    ] = None,
    scratch_epochs: Annotated[float | None, typer.Option(help="Of retraining-3, which starts from nothing.")] = None,
    train_batch: Annotated[int, typer.Option(min=2, help="Examples a batch in fine-tuning.")] = 128,
    checkpoints: Annotated[
        int, typer.Option(min=1, help="Moments of the last half of a training at which E is measured (Table 3.4).")
    ] = 3,
    validation_share: Annotated[
        float | None, typer.Option(help="Of --train, set aside when --validation is not given; 0.5.")
    ] = None,
    limit: Annotated[
        int, typer.Option(min=0, help="Validation examples changed networks are judged on; 0 for all.")
    ] = 5000,
    layers: Annotated[str, typer.Option(help="all, stages, or layer names with commas.")] = "all",
    group: Annotated[str | None, typer.Option(help="Column whose groups stay together in splits.")] = None,
    time_limit: Annotated[float | None, typer.Option(help="Seconds a method may take in one seed.")] = None,
    jobs: Annotated[
        int | None, typer.Option(min=0, help="Methods at once; 0: in this process. Default: the cores; 1 on a GPU.")
    ] = None,
    collect: Annotated[bool, typer.Option("--collect", help="Run nothing: gather what is stored in --out.")] = False,
    tolerance: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="What the promises (floors, overall) may give up, a fraction.")
    ] = 0.0,
    track: o.Track = None,
    weights: o.Weights = None,
    preprocess: o.Preprocess = None,
    mean: o.Mean = None,
    std: o.Std = None,
    size: o.Size = None,
    head: o.Head = None,
    device: o.Device = "cpu",
    batch_size: o.BatchSize = 128,
    skip_unreadable: o.Skip = False,
    json: o.Json = None,
) -> None:
    """Our methods beside every rival, on the same splits and seeds, judged by one rule."""
    from tweaknn.baselines import Plan, Training, compare, parse
    from tweaknn.baselines.compare import default_jobs
    from tweaknn.inputs.userfile import load_function
    from tweaknn.tracking import tracker

    def own(text: str) -> Any:
        return load_function(text) if ".py:" in text else text

    o.check_writable(json, "--json")
    if out_dir.exists() and not out_dir.is_dir():
        raise InputError(f"--out {out_dir}: this is a file; give a folder.")
    defaults = Training()
    training = Training(
        epochs=epochs,
        iterations=iterations,
        batch_size=train_batch,
        lr=lr,
        optimiser=own(optimiser),
        schedule=own(schedule),
        augment=own(augment),
        scratch_epochs=scratch_epochs,
        checkpoints=checkpoints,
        penalties=tuple(sorted(penalty)) if penalty else defaults.penalties,
    )
    if validation is not None and validation_share is not None:
        raise InputError("--validation-share is set aside of --train where there is no --validation; give one of the two.")
    plan = Plan(
        targets=tuple(target),
        methods=tuple(parse(methods)),
        seeds=seeds,
        first_seed=seed,
        training=training,
        validation_share=0.5 if validation_share is None else validation_share,
        limit=limit or None,
        batch_size=batch_size,
        layers=layers if layers in ("all", "stages") else layers.split(","),  # type: ignore[arg-type]
        tolerance=tolerance,
        time_limit=time_limit,
        jobs=default_jobs(device) if jobs is None else jobs,
        collect=collect,
    )
    opened = o.open_model(
        model, weights, preprocess=preprocess, mean=mean, std=std, size=size, device=device, seed=seed, head=head
    )
    parts = {
        name: None if spec is None else o.open_data(spec, opened, group=where, skip_unreadable=skip_unreadable)
        for name, spec, where in (("train", train, group), ("validation", validation, None), ("test", test, None))
    }
    if opened.several:
        raise InputError("compare takes one class an example, and this network gives several labels; join takes one of them")
    assert parts["train"] is not None
    assert parts["test"] is not None
    for other in (parts["validation"], parts["test"]):
        if other is not None:
            o.same_classes(parts["train"], other)
    source = {"model": model, "weights": weights, "train": train, "validation": validation, "test": test}
    source |= {} if head is None else {"head": head}
    with tracker(track) as watch:
        result = compare(
            opened.model,
            parts["train"],
            parts["test"],
            plan,
            out_dir,
            validation=parts["validation"],
            groups=parts["train"].column(group) if group else None,
            say=lambda text: err.print(f"· {text}", style="dim", markup=False),
            track=watch,
            live=track,
            source=source,
            bar=bar,
        )
    show(result)
    note(f"results in {out_dir}: result.json, result.parquet; a page of them: tweaknn report {out_dir} --out page.html")
    o.write_json(json, result)


def show(result: dict[str, Any]) -> None:
    """The table in per cent and points; the standard deviation over seeds behind a ±."""
    from tweaknn.report.common import SPREAD, STILL

    base = result["base"]
    rows = [["base", percent(base["target"]), percent(base["overall"]), *["–"] * 6]]
    for m in result["methods"]:
        if m["target"] is None:
            rows.append([m["name"], *["–"] * 8])
            continue
        floors = m["under"]["floors"]
        kept = floors["feasible"]
        rows.append(
            [
                m["name"],
                spread(m, "target"),
                percent(m["overall"]),
                f"{100 * m['E']:.1f}",
                points(m["worst_drop"]),
                points(floors["target_gain"]) if kept else "broken",
                f"{100 * floors['E']:.1f}" if kept else "–",
                f"{m['seconds']:.0f}",
                short(m["parameters"]),
            ]
        )
    head = ["method", "target %", "overall %", "E", "worst", "floors", "E", "s", "numbers"]
    who, several = ", ".join(result["targets"]), len(result["settings"]["seeds"])
    made = table(head, rows, title=f"{who}: {result['n']} test examples, {several} seed{'s' if several > 1 else ''}")
    for column in made.columns:
        column.no_wrap = True
    out.print(made)
    given = result["settings"].get("tolerance") or 0.0
    below = f" by more than {100 * given:g} points" if given else ""
    out.print(f"floors: points the targets win when no class may fall below its base{below} on validation", style="dim")
    if several > 1:
        out.print(f"±: {SPREAD} {result['settings']['spread']}; {STILL}", style="dim")
    for m in result["methods"]:
        if m["reason"]:
            out.print(f"{m['name']}: {m['reason']}", markup=False)


def short(number: int) -> str:
    """``269722 -> 270k``."""
    for size, letter in ((1_000_000, "M"), (10_000, "k")):
        if number >= size:
            scaled = number / (1_000_000 if letter == "M" else 1000)
            return f"{scaled:.3g}{letter}"
    return str(number)


def spread(entry: dict[str, Any], key: str) -> str:
    """``81.2 ±0.3``; without a spread for a single seed, or where every seed gave the same."""
    from tweaknn.report.common import plus_minus

    return percent(entry[key]) + plus_minus((entry.get("sd") or {}).get(key)).replace("± ", "±")
