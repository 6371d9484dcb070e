"""Turn results of ``tweaknn compare`` into the tables of ``docs/results/``: nothing is typed by hand.

python -m benchmarks.compare.markdown RESULT.json [RESULT.json ...] > table.md
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def table(result: dict[str, Any]) -> str:
    """One Markdown table: each method as its authors operate it, then under floors."""
    base = result["base"]
    head = (
        "| method | seeds | target % | overall % | E | worst class | AUROC | under floors: target | E | seconds | numbers changed |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        f"| *untouched* | | {100 * base['target']:.1f} | {100 * base['overall']:.1f} | | | | | | | |",
    )
    rows = [row(m) for m in result["methods"]]
    return "\n".join([*head, *rows])


def row(m: dict[str, Any]) -> str:
    """One line."""
    if m["target"] is None:
        return f"| `{m['name']}` | 0 | {m['reason']} | | | | | | | | |"
    floors = m["under"]["floors"]
    gain = f"{100 * floors['target_gain']:+.1f}{_sd(floors, 'target_gain')}" if floors["feasible"] else "not kept"
    harm = f"{100 * floors['E']:.1f}" if floors["feasible"] else ""
    return (
        f"| `{m['name']}` | {m['seeds']} | {100 * m['target']:.1f}{_sd(m, 'target')} | {100 * m['overall']:.1f}{_sd(m, 'overall')} "
        f"| {100 * m['E']:.1f} | {100 * m['worst_drop']:+.1f} | {100 * m['auroc_gain']:+.1f} | {gain} | {harm} "
        f"| {m['seconds']:.0f} | {m['parameters']:,} |"
    )


def checkpoints(result: dict[str, Any]) -> str:
    """Mean and spread of E over the checkpoints of a training, as Table 3.4 has it."""
    lines = ["| method | mean(E) | SD(E) |", "|---|---|---|"]
    for m in result["methods"]:
        seen = m.get("checkpoints")
        if seen:
            lines.append(f"| `{m['name']}` | {100 * seen['E_mean']:.2f} | {100 * seen['E_sd']:.2f} |")
        elif m["target"] is not None:
            lines.append(f"| `{m['name']}` | {100 * m['E']:.2f} | not trained step by step |")
    return "\n".join(lines)


def _sd(m: dict[str, Any], key: str) -> str:
    sd = (m.get("sd") or {}).get(key)
    return f" ± {100 * sd:.1f}" if sd is not None else ""


def main() -> None:
    """Print the tables of all results given."""
    for name in sys.argv[1:]:
        result = json.loads(Path(name).read_text())
        print(f"### {', '.join(result['targets'])} ({result['n']:,} test images)\n\n{table(result)}\n")
        print(f"Fluctuation over the checkpoints of a training:\n\n{checkpoints(result)}\n")


if __name__ == "__main__":
    main()
