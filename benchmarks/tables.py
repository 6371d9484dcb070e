"""README's table from the kept results: `python benchmarks/tables.py` rewrites it in place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
README = HERE.parent / "README.md"

NAMES = {
    "handed over": "**tweaknn join** (handed over)",
    "bias": "control: constant biases",
    "random-neurons": "control: random neurons",
    "last-layer": "control: last layer",
    "head2toe": "Head2Toe-style selection",
    "fine-tuned 1": "fine-tuning the whole network, 1 epoch",
    "fine-tuned 5": "the same, 5 epochs",
}


def row(name: str, points: dict[str, Any], numbers: int | None) -> str:
    """One method: means over the seeds, with the spread of the gain."""
    gain, overall, e, worst, auroc = (points[k] for k in ("gain", "overall_gain", "E", "worst_drop", "auroc_gain"))
    changed = "the base is replaced" if numbers is None else f"{numbers:,}"
    return (
        f"| {name} | **{gain['mean']:+.1f}** ± {gain['sd']:.1f} | {overall['mean']:+.1f} | {e['mean']:.2f} "
        f"| {worst['mean']:+.1f} | {auroc['mean']:+.2f} | {changed} |"
    )


def table() -> str:
    """Markdown."""
    found = json.loads((HERE / "results/fit-cifar10.json").read_text())
    points, seeds = found["points"]["single | floors"], len(found["settings"]["seeds_measured"])
    rows, date = found["settings"]["rows"], found["machine"]["date"]
    lines = [
        "A ResNet-20 trained by others on CIFAR-10, shown CIFAR-10 stored as JPEG: bird, cat, dog and airplane mended one at a time,",
        f"mean of the four. Promise: no class below its base accuracy. Fitted on the {rows:,} training images, chosen on one half",
        f"of the test images, measured on the other, both ways, {seeds} seeds of the halves ± their spread. The AAN's settings",
        "and the damping of the base's logits were once explored on halves of one seed, so the first row is slightly flattered.",
        "",
        "| method, each under the same promise | gain, points | overall | E (Eq. 3.3) | worst class | target AUROC | numbers |",
        "|---|---|---|---|---|---|---|",
    ]
    for key, name in NAMES.items():
        numbers = None if key.startswith("fine") else found["parameters"].get("mean" if key == "handed over" else key)
        lines.append(row(name, points[key], numbers))
    lines += [
        "",
        f"(`python -m benchmarks.fitting.cifar --seeds {seeds} --rows {rows}`, {date}; more of it, with a",
        "tolerance and on other data, in [what was measured](docs/results/fitting.md).)",
    ]
    return "\n".join(lines)


def main() -> None:
    text = README.read_text()
    start, end = text.index("-->") + 3, text.index("<!-- /results -->")
    README.write_text(text[:start] + "\n" + table() + "\n" + text[end:])


if __name__ == "__main__":
    main()
