"""``tweaknn train``."""

from __future__ import annotations

import copy
import dataclasses
import shutil
import warnings
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image

from tweaknn.cli import options as o
from tweaknn.cli.console import bar, err, note, out, percent, table, warn
from tweaknn.errors import InputError, NothingHelps
from tweaknn.inputs.sources import ItemSource


def command(
    model: o.Model,
    train: Annotated[str, typer.Option(help=o.DATA_HELP)],
    validation: Annotated[str, typer.Option(help="Data to watch; nothing is fitted to it.")],
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for the network, its structure, log and checkpoint.")],
    epochs: Annotated[int, typer.Option(min=1, help="Passes over --train.")] = 30,
    flops: Annotated[float | None, typer.Option(help="Budget: fraction of the full network's FLOPs.")] = None,
    params: Annotated[float | None, typer.Option(help="Budget: fraction of its parameters; with --flops, neither is exceeded.")] = None,
    latency: Annotated[float | None, typer.Option(help="Budget: fraction of its time here, one example.")] = None,
    nu: Annotated[
        float | None, typer.Option(help="Loss (nats) worth 100 % of the complexity, in place of a budget.")
    ] = None,
    alpha: Annotated[float, typer.Option(help="1 counts FLOPs only, 0 parameters only.")] = 0.5,
    beta: Annotated[
        str | None, typer.Option(help="0 prunes units only, 0.5 both, 1 layers only; 0,0.5 trains both, validation chooses.")
    ] = None,
    teacher: Annotated[str | None, typer.Option(help="Network (as --model) whose outputs are learned too.")] = None,
    teacher_weights: Annotated[str | None, typer.Option(help="Its weights.")] = None,
    mend: Annotated[str | None, typer.Option(help="CLASS or worst:K: mend these classes afterwards (Δnn).")] = None,
    rate: Annotated[float, typer.Option(help="Highest learning rate.")] = 0.1,
    decay: Annotated[float, typer.Option(help="Weight decay.")] = 5e-4,
    clip: Annotated[float, typer.Option(min=0, help="Longest gradient; 0 leaves gradients alone.")] = 1.0,
    augment: Annotated[bool, typer.Option(help="Random crops of images, and flips of colour ones.")] = True,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run in --out.")] = False,
    track: o.Track = None,
    weights: o.Weights = None,
    preprocess: o.Preprocess = None,
    mean: o.Mean = None,
    std: o.Std = None,
    size: o.Size = None,
    seed: o.Seed = 0,
    device: o.Device = "cpu",
    batch_size: o.BatchSize = 128,
    skip_unreadable: o.Skip = False,
    quiet: o.Quiet = False,
    json: o.Json = None,
) -> None:
    """Train a network; with a budget, units and layers it does not need disappear on the way."""
    from tweaknn.join.promise import class_position
    from tweaknn.structure.several import best_of
    from tweaknn.structure.training import Recipe, Trainer
    from tweaknn.tracking import follow, place_of

    o.check_writable(json, "--json")
    if track is not None:
        place_of(track)
    prune: dict[str, Any] = {
        k: v for k, v in (("flops", flops), ("params", params), ("latency", latency)) if v is not None
    }
    if nu is not None:
        if prune:
            raise InputError("give either --nu or a budget, not both")
        prune["nu"] = nu
    betas = o.numbers(None if beta is None else [beta], "beta") or []
    if prune:
        prune |= {"alpha": alpha} | ({"beta": betas[0]} if len(betas) == 1 else {})
    elif betas:
        raise InputError("--beta needs a budget (--flops, --params, --latency) or --nu")
    recipe = Recipe(
        epochs=epochs, batch_size=batch_size, rate=rate, decay=decay, clip=clip or None, augment=augment, seed=seed,
        prune=prune,
    )
    _check_out(out_dir, resume)
    if mend is not None:
        _wish(mend, None)
    opened, train_set, validation_set, classes = _open(
        model, weights, train, validation, dict(preprocess=preprocess, mean=mean, std=std, size=size),
        device=device, seed=seed, skip=skip_unreadable,
    )  # fmt: skip
    wish = _wish(mend, classes) if mend is not None else None
    if wish is not None and wish[1] is not None and wish[1] > (present := len(np.unique(validation_set.labels))):
        raise InputError(f"--mend {mend}: only {present} classes have examples in --validation; K may be {present} at most")
    for name in (wish and wish[0]) or ():
        if not (validation_set.labels == class_position(name, classes, len(classes))).any():
            raise InputError(f"--mend {name}: that class has no example in --validation")
    tutor = _teacher(teacher, teacher_weights, device, train_set, classes) if teacher is not None else None
    key = {"model": model, "weights": weights, "teacher": teacher, "train": train_set.content_hash(),
           "validation": validation_set.content_hash()}  # fmt: skip

    def trainer_of(network: Any, recipe: Recipe, folder: Path) -> Trainer:
        return Trainer(
            network, train_set, validation_set, recipe, out=folder, spec=model, classes=classes, teacher=tutor,
            preprocess=opened.preprocess, num_classes=len(classes), key=key,
        )  # fmt: skip

    def made(value: float, folder: Path) -> Trainer:
        note(f"beta {value:g}")
        return trainer_of(copy.deepcopy(opened.model), dataclasses.replace(recipe, prune={**prune, "beta": value}), folder)

    def run(trainer: Trainer, again: bool) -> Any:
        with follow(track, trainer.out.name) as trainer.told:
            return _run(trainer, again, quiet, out_dir)

    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: warn(str(message))
        if len(betas) > 1:
            result = best_of(betas, made, out_dir, run, resume=resume)
        else:
            result = run(trainer_of(opened.model, recipe, out_dir), resume)
    figures = _figures(result, classes)
    _show(result, classes)
    (out_dir / "mend.dnn").unlink(missing_ok=True)  # of an earlier network in the same folder
    nothing = None
    if wish is not None:
        nothing = _mend(wish, result, train_set, validation_set, classes, out_dir, seed, batch_size, figures)
    (out_dir / "checkpoint.pt").unlink(missing_ok=True)
    o.write_json(json, {**figures, "model": model, "train": train, "validation": validation, "out": str(out_dir)})
    err.print(f"Network written to {out_dir} (use it as --model {out_dir})", markup=False)
    if nothing is not None:
        raise NothingHelps(nothing)


def _check_out(folder: Path, resume: bool) -> None:
    from tweaknn.structure.several import unfinished

    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out {folder} is a file; give a folder")
    if not folder.absolute().parent.is_dir():
        raise InputError(f"--out {folder}: its parent folder does not exist")
    if not resume and folder.is_dir() and unfinished(folder):
        raise InputError(f"{folder} holds an interrupted run: add --resume to go on, or choose another --out")


def _open(
    model: str, weights: str | None, train: str, validation: str, words: dict[str, Any], *, device: str, seed: int,
    skip: bool,
) -> tuple[o.Opened, Any, Any, list[str]]:  # fmt: skip
    """The network with as many outputs as the data have classes, and both sets with the same classes."""
    from tweaknn.inputs import Preprocess, load_data, load_model, resolve_preprocess
    from tweaknn.inputs.models import _plain_preprocess, usable_device
    from tweaknn.inputs.weights import load_into, read_weights
    from tweaknn.structure import architecture

    o.seed_everything(seed)
    where = usable_device(device)
    if Path(model).is_dir():
        loaded = load_model(model, device=device)
        module, said, names = loaded.module, loaded.preprocess, loaded.classes
    else:
        module, said, names = None, Preprocess(), None
    sides = o.numbers(words["size"], "size")
    transform, sentence = resolve_preprocess(
        said, function=words["preprocess"], mean=o.numbers(words["mean"], "mean"), std=o.numbers(words["std"], "std"),
        size=[int(s) for s in sides] if sides else None,
    )  # fmt: skip
    train_set = load_data(train, preprocess=transform, classes=names, skip_unreadable=skip)
    _one_class(train_set)
    count = int(train_set.labels.max()) + 1
    found = np.unique(train_set.labels)
    if not (names or train_set.classes) and count > 2 * len(found) + 100:  # labels are classes' positions, not names
        raise InputError(
            f"--train has labels up to {count - 1} but only {len(found)} different ones; number its classes 0 to {len(found) - 1}"
        )
    classes = names or train_set.classes or [str(k) for k in range(count)]
    fresh = module is None
    if module is None:
        module = architecture(model, len(classes))
        if weights is not None:
            load_into(module, read_weights(weights), weights)
        module.to(where)
        # As the other commands: pictures are brought to the channels the first layer takes.
        plain = _plain_preprocess(module)[0]
        if isinstance(transform, Preprocess) and transform.channels is None and plain is not None and plain.channels:
            transform = dataclasses.replace(transform, channels=plain.channels)
            train_set = load_data(train, preprocess=transform, classes=names, skip_unreadable=skip)
    if fresh and weights is None and isinstance(transform, Preprocess) and transform.mean is transform.std is None:
        measured = _standardised(transform, train_set)
        if measured is not transform:
            transform, sentence = measured, f"{sentence}, standardised by the training set's mean and spread (--mean, --std)"
            train_set = load_data(train, preprocess=transform, classes=names, skip_unreadable=skip)
    note(sentence)
    held = load_data(
        validation, preprocess=transform, classes=classes if train_set.classes else None, skip_unreadable=skip
    )
    if int(held.labels.max()) >= len(classes):
        raise InputError(f"--validation holds class {int(held.labels.max())}, which --train does not have")
    _one_class(held)
    empty = [c for c, n in zip(classes, np.bincount(train_set.labels, minlength=len(classes))) if not n]
    if empty:
        warn(f"--train has no examples of {', '.join(empty[:5])}")
    return o.Opened(module, classes, transform), train_set, held, list(classes)


def _one_class(data: Any) -> None:
    if data.answers is not None:
        what = "masks" if data.answers.ndim == 3 else "several labels"
        raise InputError(f"{data.name}: y holds {what} an example; train takes one class an example")


def _teacher(spec: str, weights: str | None, device: str, data: Any, classes: list[str]) -> Any:
    from tweaknn.structure.teaching import taught

    opened = o.open_model(spec, weights, device=device)
    if o.count_logits(opened.model, data) != len(classes):
        raise InputError(f"--teacher {spec} has another number of outputs than the data has classes ({len(classes)})")
    # Of a file.py:function nothing is known: it sees what the student sees.
    said = opened.preprocess if Path(spec).is_dir() else None
    return taught(opened.model, said, opened.classes, data.preprocess, classes, f"--teacher {spec}")


def _standardised(transform: Any, data: Any, sample: int = 1_000) -> Any:
    """``transform`` with the mean and spread of each channel (or column) over up to ``sample`` examples of ``data``."""
    if isinstance(getattr(data, "source", None), ItemSource) and not isinstance(data.source.item(0), Image.Image):
        return transform  # a user's Dataset of tensors is taken as it is
    index = np.linspace(0, len(data) - 1, min(sample, len(data))).astype(np.int64)
    moments = []  # sum, sum of squares, count of each part
    for part in np.array_split(index, max(1, len(index) // 100)):
        x = data.batch(part)[0]
        if x.dim() not in (2, 4) or not x.is_floating_point():
            return transform  # sequences and tokens are the user's business
        x = x.double().transpose(0, 1).flatten(1)
        moments.append(torch.stack([x.sum(1), x.square().sum(1), torch.full((len(x),), float(x.shape[1])).double()]))
    total, square, count = torch.stack(moments).sum(0)
    mean = total / count
    std = (square / count - mean.square()).clamp(min=0).sqrt()
    if not bool(torch.isfinite(mean).all() and torch.isfinite(std).all()):
        return transform  # training says where the trouble is
    std[std < 1e-6] = 1.0
    return dataclasses.replace(transform, mean=tuple(mean.tolist()), std=tuple(std.tolist()), note="")


def _run(trainer: Any, resume: bool, quiet: bool, out_dir: Path) -> Any:
    """Train, saying what cannot be gated and, if interrupted, how to go on."""
    if trainer.pruner is not None:
        for name, why in list(trainer.pruner.ungated.items())[:8]:
            note(f"not gated: {name} ({why})")
    try:
        return _watched(trainer, resume, quiet)
    except KeyboardInterrupt:
        from tweaknn.structure.several import unfinished

        again = f"after epoch {trainer.epoch}" if trainer.epoch else "before the first epoch ended"
        again += "; the same command with --resume goes on" if unfinished(out_dir) else ""
        err.print(f"Interrupted {again}.", markup=False)
        raise


def _watched(trainer: Any, resume: bool, quiet: bool) -> Any:
    if quiet:
        return trainer.run(resume=resume)
    with bar("Training", trainer.steps) as progress:
        said = 0

        def tell(step: int, steps: int, sentence: str) -> None:
            nonlocal said
            progress(step)
            if trainer.log and trainer.log[-1]["epoch"] > said:
                row = trainer.log[-1]
                said = row["epoch"]
                cost = f"  FLOPs {percent(row['flops'])} %" if "flops" in row else ""
                err.print(
                    f"epoch {said}: loss {row['loss']:.3f}, validation {percent(row['validation'])} %{cost}",
                    style="dim",
                )

        return trainer.run(resume=resume, progress=tell)


def _figures(result: Any, classes: list[str]) -> dict[str, Any]:
    facts = {k: v for k, v in result.facts.items() if k not in ("before", "after", "layers")}
    return {"accuracy": result.accuracy, "per_class": dict(zip(classes, result.per_class)), **facts}


def _show(result: Any, classes: list[str]) -> None:
    facts = result.facts
    for one in facts.get("betas", []):
        note(f"beta {one['beta']:g}: validation {percent(one['validation'])} %, FLOPs {percent(one['flops'])} %")
    rows = [["validation accuracy %", percent(result.accuracy)]]
    if "flops" in facts:
        rows += [["FLOPs, % of the full network's", percent(facts["flops"])]]
        rows += [["undecided when gates froze, %", percent(facts["undecided"])]]
    rows += [["parameters, % of the full network's", percent(facts["params"])], ["seconds", f"{facts['seconds']:.0f}"]]
    out.print(table(["", ""], rows))
    out.print(table(["class", "validation %"], [[c, percent(a)] for c, a in zip(classes, result.per_class)]))


def _wish(text: str, classes: list[str] | None) -> tuple[list[str] | None, int | None]:
    """``worst:K`` or class names, as (targets, worst). Raises InputError, before training rather than after it."""
    from tweaknn.join.promise import class_position

    if text.startswith("worst:"):
        if not text[6:].isdigit() or int(text[6:]) < 1:
            raise InputError(f"--mend {text}: K must be a whole number of at least 1")
        return None, int(text[6:])
    # A name may hold a comma itself.
    targets = [text] if classes is not None and text in classes else [part for part in text.split(",") if part]
    if not targets:
        raise InputError("--mend takes CLASS, CLASS,CLASS or worst:K")
    if classes is not None:
        for name in targets:
            class_position(name, classes, len(classes))
    return targets, None


def _mend(
    wish: tuple[list[str] | None, int | None], result: Any, train_set: Any, validation_set: Any, classes: list[str],
    folder: Path, seed: int, batch_size: int, figures: dict[str, Any],
) -> str | None:  # fmt: skip
    """Synaptic join on the trained network; the Δnn goes beside it. A sentence if nothing helps."""
    from tweaknn.cli.join import show
    from tweaknn.join.run import SynapticJoin

    targets, worst = wish
    joiner = SynapticJoin(seed=seed, batch_size=batch_size, bar=bar, base_saw="train")
    joined = joiner.fit(result.model, train_set, validation_set, targets=targets, worst=worst, classes=classes)
    show(joined)
    figures["mend"] = joined.to_dict()
    if joined.delta is None:
        return joined.sentence
    file = folder / "mend.dnn"
    joined.delta.save(str(file))
    shutil.copystat(folder / "structure.json", file)
    err.print(f"Δnn written to {file}", markup=False)
    return None
