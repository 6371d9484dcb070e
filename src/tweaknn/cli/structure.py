"""``tweaknn structure``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tweaknn.cli import options as o
from tweaknn.cli.console import err, out, percent, table
from tweaknn.structure.saved import read_structure


def command(
    result: Annotated[Path, typer.Argument(help="Folder of `tweaknn train`.")],
    picture: Annotated[Path | None, typer.Option(help="Write the picture here (.png, .svg or .pdf).")] = None,
    json: o.Json = None,
) -> None:
    """Layers by width before and after, where FLOPs and parameters went, and theta over time."""
    o.check_writable(json, "--json")
    o.check_writable(picture, "--picture")
    record = read_structure(result)
    facts = record.get("facts") or {}
    out.print(f"{record['spec']}: {sum(_size(s) for s in record['shapes'].values()):,} numbers", markup=False)
    layers = facts.get("layers") or []
    if layers:
        _layers(layers, facts)
    else:
        rows = [[name, f"{o_} x {i}"] for name, (o_, i) in (facts.get("after") or {}).items()]
        out.print(table(["layer", "width"], rows, title="Trained plainly: nothing was pruned"))
    if record["branches"]:
        out.print("Branches taken out: " + ", ".join(f"{a}.{b}" for a, b in record["branches"]), markup=False)
    for name, why in (facts.get("ungated") or {}).items():
        out.print(f"Not gated: {name} ({why})", style="dim", markup=False)
    if picture is not None:
        from tweaknn.structure.picture import draw

        draw(facts, picture)
        err.print(f"Picture written to {picture}", markup=False)
    o.write_json(json, {"spec": record["spec"], "branches": record["branches"], **facts})


def _layers(layers: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    rows = []
    for row in layers:
        if "width" not in row:
            continue
        before, after = row["width"]
        gone = after == 0
        rows.append([
            row["layer"], str(before), "gone" if gone else str(after),
            _bar(after / before if before else 0), _thousands(row["flops"]), _thousands(row["params"]),
        ])  # fmt: skip
    title = (f"FLOPs {percent(facts.get('flops'))} %, parameters {percent(facts.get('params'))} % of the full network's; "
             f"{percent(facts.get('undecided'))} % of the gates undecided when they froze")  # fmt: skip
    out.print(table(["layer", "before", "after", "kept", "kFLOPs", "k params"], rows, title=title))


def _bar(share: float, width: int = 12) -> str:
    full = round(share * width)
    return "█" * full + "·" * (width - full)


def _thousands(pair: list[float]) -> str:
    return f"{pair[0] / 1e3:,.1f} → {pair[1] / 1e3:,.1f}"


def _size(shape: list[int]) -> int:
    total = 1
    for s in shape:
        total *= s
    return total
