"""Words and numbers every page has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tweaknn.measure import wilson

SPREAD = "the standard deviation over seeds, which differ in"
STILL = "a figure without ± is of a single seed, or the same in all"


def plus_minus(sd: float | None, digits: int = 1) -> str:
    """`` ± 0.3``, or nothing: a spread of exactly 0 is none, since nothing that could move the figure differed."""
    return "" if sd is None or sd < 1e-12 else f" ± {100 * sd:.{digits}f}"


def interval(accuracy: float | None, n: int) -> str:
    """Wilson's 95 % interval of an accuracy over ``n`` examples, in per cent."""
    if accuracy is None or not n or not np.isfinite(accuracy):
        return ""
    low, high = wilson(round(accuracy * n), n)
    return f"{100 * low:.1f} to {100 * high:.1f}"


def percent(value: float | None, digits: int = 1) -> str:
    """``0.8125 -> 81.2``."""
    return "–" if value is None else f"{100 * value:.{digits}f}"


def points(value: float | None) -> str:
    """A difference in points, with its sign."""
    return "–" if value is None else f"{100 * value:+.1f}".replace("-", "−").replace("+0.0", "±0.0")


def join_names(names: Sequence[str]) -> str:
    """``a, b and c``."""
    names = list(names)
    if not names:
        return ""
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + f" and {names[-1]}"


def changes(before: Sequence[float | None], after: Sequence[float | None]) -> np.ndarray:
    """``after - before`` with NaN where either is missing."""
    b = np.array([np.nan if v is None else v for v in before], dtype=float)
    a = np.array([np.nan if v is None else v for v in after], dtype=float)
    return a - b


def cost_words(classes: Sequence[str], before: Sequence[float | None], after: Sequence[float | None]) -> str:
    """Who pays, as part of a sentence."""
    d = changes(before, after)
    losing = np.flatnonzero(d < -5e-5)
    if not len(losing):
        return "and no class pays for it"
    worst = int(np.nanargmin(d))
    more = f" ({len(losing)} of {int(np.isfinite(d).sum())} classes lose something)" if len(losing) > 1 else ""
    return f"and {classes[worst]} pays most: {abs(100 * d[worst]):.1f} points{more}"


def headline(where: str, name: str, targets: Sequence[str], before: float, after: float, cost: str) -> str:
    """The page's first sentence: what improved and at whose cost. ``where``: "5,000 test images"."""
    gain = after - before
    several = len(targets) > 1
    if abs(gain) <= 5e-5:
        return f"With {name}, {join_names(targets)} stay{'' if several else 's'} as before on {where}, {cost}."
    verb = ("rise" if several else "rises") if gain > 0 else ("fall" if several else "falls")
    mean = " on average" if several else ""
    return f"With {name}, {join_names(targets)} {verb}{mean} from {percent(before)} to {percent(after)} % on {where}, {cost}."


def tiles(base: dict[str, Any], after: dict[str, Any], several: bool) -> list[dict[str, str]]:
    """The four numbers under the sentence."""

    def tile(name: str, value: float | None, change: float | None) -> dict[str, str]:
        tone = "even" if change is None or abs(change) < 5e-5 else "gain" if change > 0 else "loss"
        return {"name": name, "value": f"{percent(value)} %", "change": points(change), "tone": tone}

    made = [
        tile("mean of the targets" if several else "target", after["target"], after["target"] - base["target"]),
        tile("overall", after["overall"], after["overall"] - base["overall"]),
    ]
    if after.get("balanced") is not None and base.get("balanced") is not None:
        made.append(tile("balanced", after["balanced"], after["balanced"] - base["balanced"]))
    made.append(
        {"name": "E, root mean square of losses", "value": f"{100 * after['E']:.2f}", "change": "", "tone": "even"}
    )
    return made


def class_table(
    classes: Sequence[str], counts: Sequence[int], before: Sequence, after: Sequence, sd: Sequence | None = None
) -> list[dict[str, str]]:
    """Rows of the table behind the picture; ``sd``: of ``after`` over seeds."""
    d = changes(before, after)
    spread: Sequence = sd or [None] * len(classes)
    return [
        {
            "name": name,
            "count": f"{int(n):,}",
            "before": percent(b),
            "before_interval": interval(b, int(n)),
            "after": percent(a) + plus_minus(s),
            "after_interval": interval(a, int(n)),
            "change": "–" if np.isnan(c) else points(float(c)),
        }
        for name, n, b, a, c, s in zip(classes, counts, before, after, d, spread)
    ]


def rounded(values: Sequence[float | None]) -> list[float | None]:
    """Accuracies with as many digits as anybody looks at."""
    return [None if v is None else round(float(v), 5) for v in values]


def listed(by_name: dict[str, Any], classes: Sequence[str]) -> list[Any]:
    """A mapping by class name as a list in class order."""
    return [by_name.get(name) for name in classes]


def flat(settings: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Settings as rows of text, nested ones with dots."""
    rows: list[tuple[str, str]] = []
    for key, value in settings.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, dict):
            rows += flat(value, f"{prefix}{key}.")
        elif value is not None:
            rows.append((name, ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)))
    return rows
