"""``tweaknn evaluate``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from tweaknn.cli import options as o
from tweaknn.cli.answers import around, attach_all, example_of
from tweaknn.cli.console import bar, note, out, percent, points, table, warn
from tweaknn.cli.wishes import mask_of
from tweaknn.delta import Delta
from tweaknn.errors import DeltaError, InputError
from tweaknn.join.comparison import Comparison, compare_logits
from tweaknn.measure import Measures, measure
from tweaknn.measure.drift import Drift, compare
from tweaknn.measure.latency import paired_latency
from tweaknn.measure.latency import sentence as slow_or_not
from tweaknn.measure.latency import warning as too_slow
from tweaknn.network.outputs import collect_logits


def command(
    model: o.Model,
    data: Annotated[str, typer.Option(help=o.DATA_HELP)],
    delta: Annotated[
        list[Path] | None, typer.Option(help="Δnn file; several are added up, or lie on one another where their files say so.")
    ] = None,
    weights: o.Weights = None,
    preprocess: o.Preprocess = None,
    mean: o.Mean = None,
    std: o.Std = None,
    size: o.Size = None,
    head: o.Head = None,
    pixels: o.Pixels = None,
    target_column: Annotated[
        list[str] | None, typer.Option(help="COLUMN=VALUE (with & between several): also measure just these examples, as join does.")
    ] = None,
    seed: o.Seed = 0,
    device: o.Device = "cpu",
    batch_size: o.BatchSize = 128,
    skip_unreadable: o.Skip = False,
    latency: Annotated[
        bool, typer.Option("--latency", help="Also measure how much longer an example, and 128 at a time, take with the delta.")
    ] = False,
    json: o.Json = None,
) -> None:
    """Base and tweaked network side by side, class by class."""
    o.check_writable(json, "--json")
    deltas = [Delta.load(str(path)) for path in delta or []]
    opened = o.open_model(
        model, weights, preprocess=preprocess, mean=mean, std=std, size=size, device=device, seed=seed, head=head
    )
    tweaked_model = None
    if deltas and opened.head is None:
        opened.head = deltas[0].head
    examples = o.open_data(data, opened, skip_unreadable=skip_unreadable, pixels=pixels, seed=seed)
    if deltas:
        tweaked_model = around(opened, attach_all(deltas, opened.raw, example_of(opened, examples)))
        if deltas[0].n_classes > 1:
            check_classes(deltas[0], examples.classes)
    parts = {condition: mask_of(condition, examples) for condition in target_column or []}
    if parts and opened.several:
        raise InputError("--target-column needs one class an example; this network has several labels or a class a pixel.")
    timing: dict[str, Any] = {}
    if latency:
        if tweaked_model is None:
            raise InputError("--latency compares the network with and without a delta; give --delta as well.")
        timing = {"latency": timed(tweaked_model, opened.model, examples)}
    if opened.several:
        return several(model, data, delta, opened, examples, tweaked_model, batch_size, json, timing)
    with bar("Base", len(examples)) as progress:
        base, labels = collect_logits(opened.model, examples.loader(batch_size), progress=progress)
    common = {"model": model, "data": data, "deltas": [str(path) for path in delta or []], "skipped": examples.skipped}
    after = None
    if tweaked_model is None:
        m = measure(base, labels)
        show_base(m, examples.classes)
        figures: dict[str, Any] = {"classes": examples.classes, "n": m.n, "base": m.to_dict(examples.classes)}
    else:
        with bar("Tweaked", len(examples)) as progress:
            after, _ = collect_logits(tweaked_model, examples.loader(batch_size), progress=progress)
        comparison = compare_logits(base, after, labels, examples.classes)
        show_comparison(comparison)
        figures = comparison.to_dict()
        figures["targets"] = targets_of(deltas, comparison.classes)
        if len(deltas) > 1 and not any(each.below for each in deltas):
            alone = []
            for path, each in zip(delta or [], deltas):
                single = around(opened, attach_all([each], opened.raw, example_of(opened, examples)))
                with bar(path.name, len(examples)) as progress:
                    logits, _ = collect_logits(single, examples.loader(batch_size), progress=progress)
                alone.append(measure(logits, labels).per_class)
            found = conflicts(comparison, np.stack(alone))
            figures["conflicts"] = found
            if found:
                warn(sentence(found))
        drift = drifted(deltas, base, after)
        if drift is not None:
            figures["drift"] = drift.to_dict()
            if drift.drifted:
                warn(drift.sentence)
    if parts:
        figures["subclasses"] = subclasses_of(parts, base, after, labels)
        show_subclasses(figures["subclasses"])
    if examples.skipped:
        note(f"{examples.skipped} unreadable images were not counted")
    o.write_json(json, {**figures, **timing, **common})


def subclasses_of(
    parts: dict[str, np.ndarray], base: np.ndarray, after: np.ndarray | None, labels: np.ndarray
) -> dict[str, dict[str, Any]]:
    """Accuracy of each part ``(n,)`` of the examples: ``n``, ``base``, and with a delta ``tweaked`` and the paired test's ``p_value``."""
    found: dict[str, dict[str, Any]] = {}
    for name, rows in parts.items():
        found[name] = {"n": int(rows.sum()), "base": float((base.argmax(1) == labels)[rows].mean())}
        if after is not None:
            c = compare_logits(base[rows], after[rows], labels[rows])
            found[name] |= {"tweaked": c.tweaked.overall, "p_value": float(c.p_value)}
    return found


def show_subclasses(found: dict[str, dict[str, Any]]) -> None:
    """Table of :func:`subclasses_of`."""
    rows = []
    for name, f in found.items():
        moved = [percent(f["tweaked"]), points(f["tweaked"] - f["base"]), f"{f['p_value']:.1e}"] if "tweaked" in f else ["–"] * 3
        rows.append([name, str(f["n"]), percent(f["base"]), *moved])
    out.print(table(["examples with", "number", "base %", "tweaked %", "points", "p"], rows))


def targets_of(deltas: list[Delta], classes: Sequence[str]) -> list[str]:
    """What the deltas were made for, as their files say: known before these examples were looked at."""
    said = [name for delta in deltas for name in delta.meta.get("targets") or []]
    return [name for name in dict.fromkeys(said) if name in classes]


def timed(tweaked: Any, base: Any, examples: Any) -> dict[str, Any]:
    """Measured time with the delta by time without, at batch 1 and 128 (or as many examples as there are), said and as figures."""
    most = min(128, len(examples))
    x = examples.batch(list(range(most)))[0]
    found = [paired_latency(tweaked, base, x, n) for n in dict.fromkeys((1, most))]
    note(slow_or_not(found))
    if said := too_slow(found):
        warn(said)
    return {str(t.batch): t.to_dict() for t in found}


def several(
    model: str,
    data: str,
    delta: list[Path] | None,
    opened: o.Opened,
    examples: Any,
    tweaked: Any,
    batch_size: int,
    json: Path | None,
    timing: dict[str, Any],
) -> None:
    """The same of a network with several labels an example."""
    from tweaknn.cli import labels

    figures: dict[str, Any] = {"classes": examples.classes, "n": len(examples), "model": model, "data": data}
    figures["base"] = labels.figures(opened.model, examples, batch_size, opened.head, "Base")
    if tweaked is not None:
        figures["tweaked"] = labels.figures(tweaked, examples, batch_size, opened.head, "Tweaked")
        figures["deltas"] = [str(path) for path in delta or []]
    labels.show(figures["base"], figures.get("tweaked"))
    o.write_json(json, {**figures, **timing})


def conflicts(together: Comparison, alone: np.ndarray) -> list[dict[str, Any]]:
    """Classes that end below what each delta leaves by itself, the furthest below first.

    What one delta costs by itself is no conflict. A delta that kept a class at its base by itself and does not beside
    others is one.

    Args:
        together: base and the sum of all.
        alone: ``(deltas, c)`` accuracies with each by itself, fractions; NaN for a class without examples.

    Returns:
        ``class``, ``base``, ``together``, ``alone`` (one a delta, in their order) for each; fractions.
    """
    base, after = together.base.per_class, together.tweaked.per_class
    below = after - alone.min(axis=0)  # NaN stays NaN, and is below nothing
    return [
        {
            "class": together.classes[j],
            "base": float(base[j]),
            "together": float(after[j]),
            "alone": [float(v) for v in alone[:, j]],
        }
        for j in sorted(np.flatnonzero(below < 0).tolist(), key=lambda j: below[j])
    ]


def sentence(found: list[dict[str, Any]]) -> str:
    """What a user is told of :func:`conflicts`: the furthest below with its figures, the others by name."""
    first = found[0]
    others = ", ".join(each["class"] for each in found[1:6]) + (", ..." if len(found) > 6 else "")
    return (
        f"The deltas conflict: with all of them {first['class']} is at {percent(first['together'])} %, with each alone at "
        f"{' and '.join(percent(v) for v in first['alone'])} %, without at {percent(first['base'])} %"
        + (f"; also below what each leaves alone: {others}." if others else ".")
    )


def drifted(deltas: list[Delta], base: np.ndarray, after: np.ndarray) -> Drift | None:
    """How these examples compare with those the (first) delta's join chose on; None where its file does not say."""
    looked_at = deltas[0].meta.get("drift") if deltas else None
    if not isinstance(looked_at, dict):
        return None
    try:
        return compare(looked_at, base, after if len(deltas) == 1 else None)
    except InputError:
        return None  # made by another version, or by hand: a notice is not worth an error


def check_classes(delta: Delta, classes: list[str] | None) -> None:
    """Raises DeltaError when a delta's class names are others than the data's."""
    if delta.classes and classes and list(delta.classes) != list(classes):
        differs = next(a for a, b in zip(delta.classes, classes, strict=False) if a != b)
        raise DeltaError(f"The delta names its classes otherwise than the data does ({differs!r} first); use the same.")


def show_base(m: Measures, classes: list[str] | None) -> None:
    """Table of one network."""
    names = classes or [str(j) for j in range(len(m.per_class))]
    rows = [[n, str(int(c)), percent(a), percent(u)] for n, c, a, u in zip(names, m.counts, m.per_class, m.auroc)]
    rows.append(["overall", str(m.n), percent(m.overall), ""])
    out.print(table(["class", "examples", "accuracy %", "AUROC %"], rows))


def show_comparison(c: Comparison, mark: list[str] | None = None) -> None:
    """Table of base and tweaked network, classes in ``mark`` pointed at."""
    rows = []
    for j, name in enumerate(c.classes):
        if not c.base.counts[j]:
            rows.append([name, "0", "–", "–", "–", "–"])
            continue
        before, after = c.base.per_class[j], c.tweaked.per_class[j]
        auroc = c.tweaked.auroc[j] - c.base.auroc[j]
        label = name + (" ◂" if mark and name in mark else "")
        rows.append(
            [label, str(int(c.base.counts[j])), percent(before), percent(after), points(after - before), points(auroc)]
        )
    for name, before, after in (
        ("overall", c.base.overall, c.tweaked.overall),
        ("balanced", c.base.balanced, c.tweaked.balanced),
    ):
        rows.append([name, str(c.base.n), percent(before), percent(after), points(after - before), ""])
    out.print(table(["class", "examples", "base %", "tweaked %", "points", "AUROC points"], rows))
    worst = "no class lost" if c.worst_drop >= 0 else f"{c.worst_class} lost {-100 * c.worst_drop:.1f} points"
    out.print(
        f"E {100 * c.E:.2f} points; worst: {worst}; log loss {c.base.nll:.3f} → {c.tweaked.nll:.3f}; "
        f"calibration error {percent(c.base.ece)} → {percent(c.tweaked.ece)} %; p = {c.p_value:.1e}"
    )
