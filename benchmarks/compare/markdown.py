"""Turn results of ``tweaknn compare`` into the tables of ``docs/results/``: nothing is typed by hand.

python -m benchmarks.compare.markdown RESULT.json [RESULT.json ...] > table.md
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

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
    kept = ["not kept", "", "", ""]
    if floors["feasible"]:
        kept = [
            f"{100 * floors['target_gain']:+.1f}{_sd(floors, 'target_gain')}",
            f"{100 * floors['overall']:.1f}",
            f"{100 * floors['E']:.1f}{_sd(floors, 'E')}",
            f"{100 * floors['worst_drop']:+.1f}",
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
            f"{median(m['p_target']):.0e}",
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
    sd = (m.get("sd") or {}).get(key)
    return f" ± {100 * sd:.1f}" if sd is not None else ""


def main() -> None:
    """Print the tables of all results given."""
    for name in sys.argv[1:]:
        result = json.loads(Path(name).read_text())
        print(f"### {', '.join(result['targets'])} ({result['n']:,} test images)\n\n{table(result)}\n")
        print(f"Fluctuation over two checkpoints of each training:\n\n{checkpoints(result)}\n")


if __name__ == "__main__":
    main()
