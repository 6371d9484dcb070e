"""Results to make pages of: a real comparison on digits, a join, and a browser when there is one."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.baselines.conftest import digits, trained
from tweaknn.baselines import Plan, Training, compare
from tweaknn.join.run import SynapticJoin
from tweaknn.report import render
from tweaknn.report.read import page_of, read_result
from tweaknn.report.study import study


@pytest.fixture(scope="session")
def compared(tmp_path_factory):
    """Folder of a small comparison."""
    out = tmp_path_factory.mktemp("compared")
    methods = ("calibration", "bias", "retraining-1", "retraining-4", "last-layer", "random-neurons", "fit")
    training = Training(iterations=8, lr=0.02, penalties=(2.0,), checkpoints=2)
    plan = Plan(("digit 8",), methods, training=training, jobs=0)
    compare(trained(), digits("train"), digits("test"), plan, out, source={"model": "<script>alert(1)</script>"})
    return out


@pytest.fixture(scope="session")
def joined():
    """A join's result and its network."""
    net = trained()
    return SynapticJoin().fit(net, digits("train"), targets=["digit 8"], classes=digits("train").classes), net


@pytest.fixture(scope="session")
def pages(compared, joined, tmp_path_factory):
    """Files of a comparison's and a join's page."""
    folder = tmp_path_factory.mktemp("pages")
    result, net = joined
    figures = json.loads(json.dumps(result.to_dict()))
    figures["extra"] = study(net, digits("test"), [8], delta=result.delta)
    found = {"compare": page_of(*read_result(compared)), "join": page_of(figures, "join")}
    plain = {k: v for k, v in figures.items() if k != "extra"}
    best = plain["candidates"][next(iter(plain["candidates"]))]
    accuracies = list(best["per_class"].values())
    point = {"target": best["target"], "overall": best["overall"], "E": best["E"], "per_class": accuracies}
    best["front"] = [{**point, "fronts": f} for f in (["overall"], ["overall", "worst_drop"], ["worst_drop"], ["overall"])]
    found["fronts"] = page_of(plain, "join")
    for name, page in found.items():
        (folder / f"{name}.html").write_text(render(page), encoding="utf-8")
    return folder


FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()


@pytest.fixture(scope="session")
def browser():
    """Debian's chromium through playwright; skips, loudly, where either is missing."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="BROWSER TESTS SKIPPED: playwright is not installed")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("BROWSER TESTS SKIPPED: no chromium found; apt-get install chromium")
    with sync_api.sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=path, args=FLAGS)
        yield launched
        launched.close()


@pytest.fixture
def opened(browser, pages, request):
    """A function that opens a page and fails the test for any console error or request beyond the file."""
    wrong: list[str] = []
    contexts = []

    def open_page(name: str, **options):
        context = browser.new_context(viewport={"width": 1200, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda m: wrong.append(f"console: {m.text}") if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda e: wrong.append(f"error: {e}"))
        allowed = ("file://", "data:")
        page.on("request", lambda r: wrong.append(f"request: {r.url}") if not r.url.startswith(allowed) else None)
        page.goto(f"file://{pages / name}.html")
        if options.get("java_script_enabled", True):
            page.wait_for_selector("html[data-ready]", timeout=10_000)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []
