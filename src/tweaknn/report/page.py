"""Fill the template: everything inline, nothing to fetch."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from jinja2 import Environment, select_autoescape
from markupsafe import Markup

from tweaknn import __version__


def render(page: dict[str, Any]) -> str:
    """The HTML of a page as :func:`tweaknn.report.read_result` describes it: one string, self-contained.

    ``page["interactive"]`` is what the script needs (classes, base, views, fronts); the rest is written out as
    text, so that
    the page can be read, searched and printed without running anything.
    """
    environment = Environment(autoescape=select_autoescape(default=True, default_for_string=True))
    folder = files("tweaknn.report")
    template = environment.from_string((folder / "page.html").read_text(encoding="utf-8"))
    # "<" could end the script element early; JSON allows its escape.
    data = json.dumps(page["interactive"], allow_nan=False, separators=(",", ":"))
    data = data.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    if page.get("neurons"):
        for chart in page["neurons"]["charts"]:
            for drawn in chart.get("choices") or [chart]:
                drawn["svg"] = Markup(drawn["svg"])
    return template.render(
        page=page,
        sections=_sections(page),
        data=Markup(data),
        css=Markup((folder / "page.css").read_text(encoding="utf-8")),
        js=Markup((folder / "page.js").read_text(encoding="utf-8")),
        version=__version__,
    )


def _sections(page: dict[str, Any]) -> list[tuple[str, str]]:
    offered = [
        ("classes", "Classes", True),
        ("pays", "Who pays", True),
        ("methods", "Beside others", bool(page.get("methods"))),
        ("confusion", "Confusion", bool(page.get("confusion"))),
        ("neurons", "Neurons", bool(page.get("neurons"))),
        ("settings", "Settings", True),
    ]
    return [(anchor, name) for anchor, name, there in offered if there]
