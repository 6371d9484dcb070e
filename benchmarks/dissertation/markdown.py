"""The dissertation's numbers beside ours, as Markdown, from the JSON of ``python -m benchmarks.dissertation``.

python -m benchmarks.dissertation.markdown benchmarks/results > tables.md
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def pct(value: float | None, digits: int = 1) -> str:
    """A fraction in per cent."""
    return "–" if value is None else f"{100 * value:.{digits}f}"


def table_3_3(d: dict[str, Any]) -> str:
    """Tables 3.3 and 3.4 side by side with ours."""
    lines = [
        f"Target: {d['target']}; base {pct(d['base']['target'])} / {pct(d['base']['overall'])} (dissertation: 76.3 / 89.0).",
        "",
        "| method | ours: target | overall | E | mean(E), SD(E) over checkpoints | dissertation: target | overall | mean(E), SD(E) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in d["ours"].items():
        theirs, e = d["dissertation"].get(name, {}), d["dissertation_E"].get(name, {})
        seen = row.get("checkpoints")
        spread = f"{100 * seen['E_mean']:.2f}, {100 * seen['E_sd']:.2f}" if seen else "–"
        sd = f", {e['sd']}" if e.get("sd") else ""
        lines.append(
            f"| `{name}` | {pct(row['target'])} | {pct(row['overall'])} | {pct(row['E'], 2)} | {spread} "
            f"| {theirs.get('target')} | {theirs.get('overall')} | {e.get('mean')}{sd} |"
        )
    return "\n".join(lines)


def table_3_2(d: dict[str, Any]) -> str:
    """Active neurons."""
    shares = [row["share"] for row in d["ours"].values()]
    return (
        f"{d['neurons']:,} neurons (the dissertation's 3-layer CNN: 45,056); active ones of a class make "
        f"{pct(min(shares), 2)} to {pct(max(shares), 2)} % (dissertation, six networks: 0.46 to 6.19 %); largest counts "
        f"{min(d['largest_count'])} to {max(d['largest_count'])}."
    )


def gains(d: dict[str, Any]) -> str:
    """Tables 3.7 and 3.8: points the join wins."""
    lines = ["| targets | ours: target | overall | E | dissertation: target |", "|---|---|---|---|---|"]
    for name, row in d["ours"].items():
        theirs = d["dissertation"].get(name)
        theirs = theirs["target_gain"] if isinstance(theirs, dict) else theirs
        who = f"{name} ({row['class']})" if "class" in row else name
        lines.append(
            f"| {who} | {100 * row['target_gain']:+.1f} | {pct(row['overall'])} | {pct(row['E'], 2)} | {100 * theirs:+.1f} |"
        )
    return "\n".join(lines)


def table_3_11(d: dict[str, Any]) -> str:
    """Ratios of times."""
    ratio = d["ratio_to_training"]
    lines = ["| per 1,000 iterations | ours: ratio to training | dissertation (Tables 3.11, 4.6) |", "|---|---|---|"]
    training, da, wa, aan = d["dissertation"]["4.6"]["resnet20/svhn" if d["settings"]["network"] == "resnet20" else "cnn3-bn/svhn"]
    theirs = {"original / 1k": 1.0, "da / 1k": da / training, "wa / 1k": wa / training, "aan / 1k": aan / training}
    once = d["dissertation"]["3.11"]
    theirs["synaptic retraining / 1k"] = once["synaptic retraining / 1k"] / once["training / 1k"]
    lines += [
        f"| {name.removesuffix(' / 1k')} | {value:.3g} | {f'{theirs[name]:.2f}' if name in theirs else '–'} |"
        for name, value in ratio.items()
    ]
    seconds = d["seconds"]
    lines.append("")
    lines.append(
        f"The join (all neurons, one target, validation included) took {d['join_in_forward_passes']:.1f} forward passes over its data, "
        f"synaptic retraining of 120 synapses to its optimum "
        f"{seconds['synaptic retraining (convex optimum)'] / seconds['forward pass over the data']:.1f} forward passes."
    )
    return "\n".join(lines)


def table_4_2(d: dict[str, Any]) -> str:
    """Parameters, counted."""
    lines = [
        "| network | original | DA | WA | AAN grouped | AAN dense | dissertation: original, DA, WA, AAN |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in d["ours"].items():
        t = row["dissertation"]
        lines.append(
            f"| {name} | {row['original']:,} | {row['da']:,} | {row['wa']:,} | {row['aan_grouped']:,} | {row['aan_dense']:,} "
            f"| {t['original']:,.0f}, {t['da']:,.0f}, {t['wa']:,.0f}, {t['aan']:,.0f} |"
        )
    return "\n".join(lines)


def table_4_4(d: dict[str, Any]) -> str:
    """Overall accuracy of DA, WA, AAN, join, synaptic retraining."""
    theirs = d["dissertation"]["cnn3-bn/svhn"]
    lines = ["| method | ours: overall | against base | parameters | dissertation (SVHN) |", "|---|---|---|---|---|"]
    for name, row in d["ours"].items():
        change = f"{100 * (row['overall'] - d['base']):+.1f}"
        lines.append(
            f"| `{name}` | {pct(row['overall'])} | {change} | {row['parameters']:,} | {theirs.get(name, '–')} |"
        )
    return "\n".join(lines)


def table_3_1(d: dict[str, Any]) -> str:
    """Target and overall for growing penalties."""
    lines = ["| penalty | ours: target, overall | dissertation: target, overall |", "|---|---|---|"]
    for name, row in d["ours"].items():
        t = d["dissertation"].get(name, ("–", "–"))
        lines.append(f"| {name} | {pct(row['target'])}, {pct(row['overall'])} | {t[0]}, {t[1]} |")
    return "\n".join(lines)


def table_3_6(d: dict[str, Any]) -> str:
    """Count against threshold."""
    lines = ["| class | by count: points won | by threshold |", "|---|---|---|"]
    for name, row in d["ours"].items():
        lines.append(
            f"| {name} | {100 * row['count']['target_gain']:+.1f} | {100 * row['threshold']['target_gain']:+.1f} |"
        )
    return "\n".join(lines)


def classes(d: dict[str, Any]) -> str:
    """Every class by itself: points won, E in brackets."""
    methods = ("calibration", "theta", "retrain-1", "retrain-2")
    lines = ["| class | base | " + " | ".join(f"`{m}`" for m in methods) + " |", "|---|---|" + "---|" * len(methods)]

    def mean(method: str, key: str) -> float:
        return sum(row[method][key] for row in d["ours"].values()) / len(d["ours"])

    for name, row in d["ours"].items():
        cells = [f"{100 * row[m]['target_gain']:+.1f} ({pct(row[m]['E'], 2)})" for m in methods]
        lines.append(f"| {name} | {pct(row['base'])} | " + " | ".join(cells) + " |")
    cells = [f"{100 * mean(m, 'target_gain'):+.1f} ({pct(mean(m, 'E'), 2)}), overall {100 * mean(m, 'overall_gain'):+.1f}" for m in methods]
    return "\n".join([*lines, "| *mean* | | " + " | ".join(cells) + " |"])


def table_3_5(d: dict[str, Any]) -> str:
    """Another network."""
    lines = ["| method | ours: target | overall | E | dissertation (SVHN): target / overall |", "|---|---|---|---|---|"]
    known = d["dissertation"].get(d["settings"]["network"], {})
    for name, row in d["ours"].items():
        theirs = " / ".join(map(str, known[name])) if name in known else "–"
        lines.append(f"| `{name}` | {pct(row['target'])} | {pct(row['overall'])} | {pct(row['E'], 2)} | {theirs} |")
    return "\n".join([f"Base {pct(d['base']['target'])} / {pct(d['base']['overall'])}.", "", *lines])


def table_3_10(d: dict[str, Any]) -> str:
    """Tail classes: accuracy by method, for each number of them."""
    sizes = list(d["ours"])
    names = list(dict.fromkeys(name for size in sizes for name in d["ours"][size]))
    head = " | ".join(f"{size} tail classes" for size in sizes)
    lines = [f"| method | {head} | dissertation (50, 100, 150) |", "|---|" + "---|" * (len(sizes) + 1)]
    for name in names:
        theirs = ", ".join(f"{100 * v:.1f}" for v in d["dissertation"].get(name, [])) or "–"
        lines.append(f"| `{name}` | " + " | ".join(pct(d["ours"][size].get(name)) for size in sizes) + f" | {theirs} |")
    return "\n".join(lines)


FORMS = {
    "classes": ("Every class by itself", classes),
    "3.1": ("Table 3.1, loss penalties", table_3_1),
    "3.2": ("Table 3.2, active neurons", table_3_2),
    "3.3": ("Tables 3.3 and 3.4, methods compared", table_3_3),
    "3.5": ("Table 3.5, another network", table_3_5),
    "3.6": ("Table 3.6, count or threshold", table_3_6),
    "3.7": ("Table 3.7, lowest, median and highest class", gains),
    "3.8": ("Table 3.8, several targets", gains),
    "3.10": ("Table 3.10, tail classes", table_3_10),
    "3.11": ("Tables 3.11 and 4.6, times", table_3_11),
    "4.2": ("Tables 4.1 to 4.3, parameters", table_4_2),
    "4.4": ("Tables 4.4 and 4.5, overall accuracy", table_4_4),
}


def main() -> None:
    """Print every table whose result is there."""
    folder = Path(sys.argv[1])
    for name, (title, form) in FORMS.items():
        file = folder / f"dissertation-{name}.json"
        if file.is_file():
            d = json.loads(file.read_text())
            iterations = d["settings"].get("iterations")
            after = f" Each training: {iterations} iterations of 128." if iterations else ""
            print(
                f"## {title}\n\n{form(d)}\n\n*`python -m benchmarks.dissertation {name}`, {d['machine']['date']}.{after}*\n"
            )


if __name__ == "__main__":
    main()
