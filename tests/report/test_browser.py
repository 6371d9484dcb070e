"""The page in a real browser: it renders, the drag moves every class, keyboard works, accessibility holds."""

from __future__ import annotations

import pytest


def test_drag_along_the_front_moves_the_classes(opened):
    page = opened("compare")
    page.select_option("#view", label="calibration")  # its front is long whatever the fit does
    box = page.locator("#pareto").bounding_box()
    before = page.locator("#said").inner_text()
    marks = page.locator("#dumbbells path").evaluate_all("all => all.map(e => e.getAttribute('d'))")
    handle = page.locator("#grab").bounding_box()
    page.mouse.move(handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.45 * box["width"], box["y"] + 0.1 * box["height"], steps=8)
    page.mouse.up()
    after = page.locator("#said").inner_text()
    moved = page.locator("#dumbbells path").evaluate_all("all => all.map(e => e.getAttribute('d'))")
    assert before.startswith("Chosen point")
    assert after.startswith("This point")
    assert sum(a != b for a, b in zip(marks, moved)) >= 2
    page.locator("#back").click()
    assert page.locator("#said").inner_text() == before


def test_keyboard_alone_reaches_everything(opened):
    page = opened("compare")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.select_option("#view", label="calibration")
    page.locator("#along").focus()
    before = page.locator("#said").inner_text()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert page.locator("#said").inner_text() != before
    assert page.locator("#along").get_attribute("aria-valuetext").startswith("This point")
    page.locator("#view").focus()
    page.keyboard.press("Home")
    page.wait_for_function("document.getElementById('view').value === '0'")


def test_choosing_a_method_changes_all(opened):
    page = opened("compare")
    told = page.locator("#said").inner_text()
    page.select_option("#view", label="calibration")
    page.select_option("#mode", "own")
    assert page.locator("#said").inner_text() != told
    assert "After: calibration" in page.locator("#matrices").inner_text()
    rows = page.locator("#numbers tbody tr")
    assert rows.count() == 10


def test_intervals_before_and_after_are_drawn(opened):
    page = opened("compare")
    spans = [
        page.locator(f"#dumbbells {which}").evaluate_all("all => all.map(e => e.getAttribute('x2') - e.getAttribute('x1'))")
        for which in (".whisker.untouched", ".whisker:not(.untouched)")
    ]
    assert [len(s) for s in spans] == [10, 10]
    assert all(width > 0 for s in spans for width in s)
    cells = page.locator("#numbers tbody tr").first.locator("td").all_text_contents()
    assert len(cells) == 6
    assert all(" to " in cells[k] for k in (2, 4))


def test_another_synapse_can_be_chosen_by_keyboard(opened):
    page = opened("join")
    shown = page.locator("[data-choice]:visible")
    assert shown.count() == 1
    before = shown.inner_text()
    page.locator("select[data-choices]").focus()
    page.keyboard.press("ArrowDown")
    page.wait_for_function("document.querySelector('select[data-choices]').value === '1'")
    assert shown.count() == 1
    assert shown.locator("svg").get_attribute("aria-label") != before
    assert shown.get_attribute("data-choice") == "1"


def test_light_and_dark(opened):
    page = opened("compare", color_scheme="dark")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.locator("#theme").click()
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert dark != light
    assert page.locator("#theme").inner_text() == "Dark"


@pytest.mark.parametrize("name", ["compare", "join"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessible(opened, name, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="ACCESSIBILITY TEST SKIPPED: no axe")
    page = opened(name, color_scheme=scheme)
    page.locator("details summary").first.click()
    found = axe.Axe().run(page).response["violations"]
    assert [(v["id"], [n["html"][:90] for n in v["nodes"][:3]]) for v in found] == []


def test_narrow_screens_do_not_scroll_sideways(opened):
    page = opened("compare")
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_prints(opened):
    page = opened("join")
    pdf = page.pdf(format="A4", print_background=True)
    assert pdf.startswith(b"%PDF")
    page.emulate_media(media="print")
    assert page.locator("nav").is_hidden()
    assert page.locator("h1").is_visible()


def test_readable_without_scripts(opened):
    page = opened("join", java_script_enabled=False)
    assert page.locator("h1").inner_text().startswith("With ")
    assert page.locator("#numbers tbody tr").count() == 10


def test_the_front_against_the_worst_loss(opened):
    page = opened("compare")
    page.select_option("#view", label="calibration")
    page.select_option("#axis", "worst_drop")
    assert "worst class" in page.locator("#pareto").text_content()
    page.locator("#along").focus()
    page.keyboard.press("End")
    assert page.locator("#said").inner_text().startswith("This point")
    assert page.locator("#pareto circle").evaluate_all("all => all.every(e => Number.isFinite(+e.getAttribute('cy')))")


def test_a_joins_fronts_are_drawn_one_at_a_time(opened, pages):
    """A join's result may hold two fronts in one list; each point says to which it belongs."""
    page = opened("fronts")
    steps = []
    for axis in ("overall", "worst_drop"):
        page.select_option("#axis", axis)
        steps.append(page.locator("#pareto circle.step").count())
    assert steps == [3, 2]
