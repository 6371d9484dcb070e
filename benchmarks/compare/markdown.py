"""Turn results of ``tweaknn compare`` into the tables of ``docs/results/``: nothing is typed by hand.

python -m benchmarks.compare.markdown RESULT.json [RESULT.json ...] > table.md
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tweaknn.report.common import plus_minus, points
from tweaknn.report.of_methods import against_base, against_default, note

HEAD = (
    "method",
    "seeds",
    "target %",
    "overall %",
    "E",
    "worst class",
    "AUROC",
    "p",
    "floors: target",
    "overall",
    "E",
    "worst class",
    "`join` beyond it",
    "CPU s",
    "numbers changed",
)


def table(result: dict[str, Any]) -> str:
    """One Markdown table: each method as its authors operate it, then under floors."""
    base = result["base"]
    first = ["*untouched*", "", f"{100 * base['target']:.1f}", f"{100 * base['overall']:.1f}"]
    rows = [line(HEAD), line(["---"] * len(HEAD)), line([*first, *[""] * (len(HEAD) - len(first))])]
    return "\n".join([*rows, *(row(m) for m in result["methods"])])


def line(cells: Any) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def row(m: dict[str, Any]) -> str:
    """One method."""
    if m["target"] is None:
        return line([f"`{m['name']}`", "0", m["reason"], *[""] * (len(HEAD) - 3)])
    floors = m["under"]["floors"]
    kept = ["not kept", "", "", "", ""]
    if floors["feasible"]:
        kept = [
            f"{100 * floors['target_gain']:+.1f}{_sd(floors, 'target_gain')}",
            f"{100 * floors['overall']:.1f}",
            f"{100 * floors['E']:.1f}{_sd(floors, 'E')}",
            f"{100 * floors['worst_drop']:+.1f}",
            against_default(m),
        ]
    seconds = m.get("cpu_seconds")
    return line(
        [
            f"`{m['name']}`",
            str(m["seeds"]),
            f"{100 * m['target']:.1f}{_sd(m, 'target')}",
            f"{100 * m['overall']:.1f}{_sd(m, 'overall')}",
            f"{100 * m['E']:.1f}{_sd(m, 'E')}",
            f"{100 * m['worst_drop']:+.1f}",
            f"{100 * m['auroc_gain']:+.1f}",
            against_base(m),
            *kept,
            "" if seconds is None else f"{seconds:.0f}",
            f"{m['parameters']:,}",
        ]
    )


def checkpoints(result: dict[str, Any]) -> str:
    """Mean and spread of E over the checkpoints of a training, as Table 3.4 has it."""
    lines = ["| method | mean(E) | SD(E) |", "|---|---|---|"]
    for m in result["methods"]:
        seen = m.get("checkpoints")
        if seen:
            lines.append(f"| `{m['name']}` | {100 * seen['E_mean']:.2f} | {100 * seen['E_sd']:.2f} |")
    return "\n".join(lines)


def _sd(m: dict[str, Any], key: str) -> str:
    return plus_minus((m.get("sd") or {}).get(key))


def by_class(result: dict[str, Any]) -> str:
    """Every class's change under floors, in points, with its spread over seeds."""
    before = [result["base"]["per_class"][name] for name in result["classes"]]
    rows = [line(["method", *result["classes"]]), line(["---"] * (1 + len(before)))]
    rows.append(line(["*untouched*, %", *(f"{100 * b:.1f}" for b in before)]))
    for m in result["methods"]:
        floors = (m.get("under") or {}).get("floors") or {}
        if floors.get("per_class"):
            spread = floors["per_class_sd"] or [None] * len(before)
            cells = [points(a - b) + plus_minus(s) for a, b, s in zip(floors["per_class"], before, spread)]
            rows.append(line([f"`{m['name']}`", *cells]))
    return "\n".join(rows)


def main() -> None:
    """Print the tables of all results given."""
    for name in sys.argv[1:]:
        result = json.loads(Path(name).read_text())
        print(f"### {', '.join(result['targets'])} ({result['n']:,} test images)\n\n{table(result)}\n\n{note(result)}\n")
        if any((m.get("under") or {}).get("floors", {}).get("per_class") for m in result["methods"]):
            print(f"Each class under floors, points:\n\n{by_class(result)}\n")
        print(f"Fluctuation over two checkpoints of each training:\n\n{checkpoints(result)}\n")


if __name__ == "__main__":
    main()
