"""Small charts as inline SVG, drawn by themselves: no library, no request, styled by the page's own colours."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import log10

import numpy as np


def _svg(width: int, height: int, label: str, body: list[str]) -> str:
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">{"".join(body)}</svg>'


def _text(x: float, y: float, text: str, anchor: str = "middle", kind: str = "quiet") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{escape(text)}</text>'


def _rect(x: float, y: float, w: float, h: float, kind: str, title: str = "") -> str:
    inside = f"<title>{escape(title)}</title>" if title else ""
    return f'<rect x="{x:.2f}" y="{y:.2f}" width="{max(w, 0):.2f}" height="{max(h, 0):.2f}" rx="1.5" class="{kind}">{inside}</rect>'


def bars(names: Sequence[str], values: Sequence[float], notes: Sequence[str], label: str) -> str:
    """Horizontal bars, one a name, ``notes`` written behind them."""
    width, row, left, right = 460, 21, 140, 160
    most = max([float(v) for v in values] + [1e-12])
    body = []
    for k, (name, value, note) in enumerate(zip(names, values, notes)):
        y = 6 + k * row
        short = name if len(name) <= 22 else "…" + name[-21:]
        body.append(_text(left - 8, y + 13, short, "end", ""))
        length = (width - left - right) * float(value) / most
        body.append(_rect(left, y + 3, length, row - 8, "bar", f"{name}: {note}"))
        body.append(_text(left + length + 6, y + 13, note, "start"))
    return _svg(width, 12 + row * len(names), label, body)


def histogram(
    series: Sequence[tuple[str, Sequence[float], str]],
    label: str,
    axis: str,
    mark: float | None = None,
    bins: int = 40,
    clip: float = 0.98,
) -> str:
    """Histograms over one axis: ``(name, values, class)`` each, a dashed line at ``mark``.

    The axis ends at the ``clip`` quantile of all values (ratios with a tiny divisor run away); what lies beyond is
    said.
    """
    width, height, left, bottom, top = 460, 250, 40, 46, 30
    everything = np.concatenate([np.asarray(v, dtype=float) for _, v, _ in series])
    everything = everything[np.isfinite(everything)]
    if not len(everything):
        return _svg(width, 40, label, [_text(width / 2, 24, "nothing to draw")])
    low = min(0.0, float(np.quantile(everything, 1 - clip)))
    high = float(np.quantile(everything, clip))
    if mark:
        high = max(min(high, 15 * mark), 1.15 * mark)  # what happens around the mark is what the picture is for
    high = max(high, low + 1e-9)
    edges = np.linspace(low, high, bins + 1)
    counts = [np.histogram(np.asarray(v, dtype=float), edges)[0] for _, v, _ in series]
    most = max(int(c.max(initial=0)) for c in counts) or 1

    def x(value: float) -> float:
        return left + (value - low) / (high - low) * (width - left - 12)

    def y(value: float) -> float:
        return height - bottom - value / most * (height - bottom - top)

    body = []
    for (name, _, kind), c in zip(series, counts):
        for k, count in enumerate(c):
            if count:
                title = f"{name}: {count} from {edges[k]:.3g} to {edges[k + 1]:.3g}"
                body.append(
                    _rect(
                        x(edges[k]) + 0.5,
                        y(count),
                        x(edges[k + 1]) - x(edges[k]) - 1,
                        height - bottom - y(count),
                        kind,
                        title,
                    )
                )
    base = height - bottom
    body.append(f'<line x1="{left}" x2="{width - 12}" y1="{base}" y2="{base}" class="axis"/>')
    for value in np.linspace(low, high, 5):
        body.append(_text(x(value), base + 16, f"{value:.3g}"))
    body += [_text(left - 6, y(most) + 4, str(most), "end"), _text((left + width) / 2, height - 8, axis, kind="")]
    if mark is not None and np.isfinite(mark):
        body.append(f'<line x1="{x(mark):.1f}" x2="{x(mark):.1f}" y1="{top - 8}" y2="{base}" class="mark"/>')
        body.append(_text(x(mark) + 5, top, f"threshold {mark:.3g}", "start"))
    at = float(left)
    for name, values, kind in series:
        beyond = int((np.asarray(values, dtype=float) > high).sum())
        words = f"{name} ({len(values)}{f', {beyond} beyond' if beyond else ''})"
        body += [_rect(at, 4, 10, 10, kind), _text(at + 14, 13, words, "start")]
        at += 24 + 6.6 * len(words)
    return _svg(width, height, label, body)


def loglog(points: Sequence[tuple[float, float]], label: str, x_name: str, y_name: str) -> str:
    """Points with both axes logarithmic, decades marked."""
    width, height, left, bottom, top = 460, 250, 56, 46, 14
    good = [(a, b) for a, b in points if a > 0 and b > 0]
    if not good:
        return _svg(width, 40, label, [_text(width / 2, 24, "all counts are 0")])
    ax = [log10(a) for a, _ in good]
    ay = [log10(b) for _, b in good]
    x_end, y_end = max(max(ax), 0.3), max(max(ay), 0.3)

    def x(v: float) -> float:
        return left + v / x_end * (width - left - 16)

    def y(v: float) -> float:
        return height - bottom - v / y_end * (height - bottom - top)

    body = []
    for k in range(int(x_end) + 1):
        body.append(f'<line x1="{x(k):.1f}" x2="{x(k):.1f}" y1="{top}" y2="{height - bottom}" class="axis"/>')
        body.append(_text(x(k), height - bottom + 16, f"{10**k:,}"))
    for k in range(int(y_end) + 1):
        body.append(f'<line x1="{left}" x2="{width - 16}" y1="{y(k):.1f}" y2="{y(k):.1f}" class="axis"/>')
        body.append(_text(left - 6, y(k) + 4, f"{10**k:,}", "end"))
    for (a, b), u, v in zip(good, ax, ay):
        title = f"<title>{x_name} {a:g}: {b:g}</title>"
        body.append(f'<circle cx="{x(u):.1f}" cy="{y(v):.1f}" r="3.4" class="bar">{title}</circle>')
    body += [_text((left + width) / 2, height - 8, x_name, kind=""), _text(left, 10, y_name, "start")]
    return _svg(width, height, label, body)
