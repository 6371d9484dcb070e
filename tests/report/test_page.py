"""The page as a file: what it says, and that it keeps to itself."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from tweaknn.errors import InputError
from tweaknn.report import read_result, render
from tweaknn.report.charts import bars, histogram, loglog
from tweaknn.report.common import cost_words, headline
from tweaknn.report.of_compare import begin
from tweaknn.report.read import page_of


def test_nothing_is_fetched(pages):
    for file in pages.glob("*.html"):
        html = file.read_text()
        assert not re.search(r'(?:src|href)="(?!#|data:)', html)
        assert "url(" not in html
        assert "@import" not in html


def test_what_users_write_cannot_run(pages):
    html = (pages / "compare.html").read_text()
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert" in html


def test_class_names_cannot_end_the_script(compared):
    text = (compared / "result.json").read_text().replace("digit 3", "</script><b>3")
    html = render(page_of(json.loads(text), "compare"))
    assert html.count("</script>") == 2
    assert "</script><b>" not in html


def test_it_opens_with_the_sentence(pages):
    html = (pages / "compare.html").read_text()
    h1 = re.search(r"<h1>(.*?)</h1>", html, re.S).group(1)
    assert h1.startswith("With fit, digit 8 rises from")
    assert "test images" in h1
    assert "pay" in h1


def test_all_methods_are_rows_and_failures_say_why(compared):
    page = page_of(*read_result(compared))
    assert page["methods"][0]["name"] == "the untouched network"
    assert len(page["methods"]) == 8
    result = json.loads((compared / "result.json").read_text())
    result["methods"][0].update(target=None, reason="not applicable: its head is a convolution", under=None, sd=None)
    html = render(page_of(result, "compare"))
    assert "its head is a convolution" in html


def views_of(*names):
    return [{"name": name} for name in names]


def method_of(name, ours, test, validation=None):
    floors = {"target": test, "E": 0.0, "feasible": True}
    if validation is not None:
        floors["validation"] = {"target": validation, "E": 0.0}
    return {"name": name, "ours": ours, "under": {"floors": floors}}


def test_the_first_sentence_is_not_the_luckiest():
    """Validation chooses what the page opens with, whatever wins on test."""
    methods = [method_of("fit", True, 0.9, 0.6), method_of("aan", True, 0.7, 0.8), method_of("wa", False, 0.95, 0.95)]
    at, why = begin(views_of("fit", "aan", "wa"), methods)
    assert at == 1
    assert "Validation images chose it" in why
    old = [method_of("fit", True, 0.9), method_of("join", True, 0.5), method_of("wa", False, 0.95)]
    assert begin(views_of("fit", "join", "wa"), old) == (1, "")
    assert begin(views_of("wa"), [method_of("wa", False, 0.9, 0.9)]) == (0, "")


def several_seeds(compared):
    """The comparison as if it had a second seed, in which every class of ``fit`` is a point better."""
    result = json.loads((compared / "result.json").read_text())
    again = json.loads(json.dumps(result["runs"]))
    for run in again:
        run["seed"] = 1
        if run["name"] == "fit":
            floors = run["under"]["floors"]
            floors["per_class"] = [a - 0.01 for a in floors["per_class"]]
            floors["target"] -= 0.01
            floors["worst_drop"] = -0.07
    result["runs"] += again
    result["settings"]["seeds"] = [0, 1]
    return result


def test_several_seeds_are_shown_as_means_with_spread(compared):
    result = several_seeds(compared)
    page = page_of(result, "compare")
    one = page_of(json.loads((compared / "result.json").read_text()), "compare")
    fit = next(v for v in page["views"] if v["name"] == "fit")["modes"]["floors"]
    alone = next(v for v in one["views"] if v["name"] == "fit")["modes"]["floors"]
    assert fit["target"] == pytest.approx(alone["target"] - 0.005)
    assert fit["per_class_sd"] == pytest.approx([0.01 / np.sqrt(2)] * 10, abs=1e-4)
    assert alone["per_class_sd"] is None
    assert "(mean of 2 seeds)" in page["sentence"]
    assert "± 0.7" in page["table"][0]["after"]
    calibration = next(v for v in page["views"] if v["name"] == "calibration")
    assert len(calibration["seeds"]) == 2
    assert len(calibration["seeds"][0]) == len(calibration["front"])
    assert "the split" in page["methods_note"] or "validates" in page["methods_note"]
    assert "mean of the seeds" in render(page)
    losses = [run["under"]["floors"]["worst_drop"] for run in result["runs"] if run["name"] == "fit"]
    assert f"loses {-100 * np.mean(losses):.1f} points on average, {-100 * min(losses):.1f} at most" in page["beside"]


def test_methods_are_tested_against_the_base_and_the_default(compared):
    result = json.loads((compared / "result.json").read_text())
    page = page_of(result, "compare")
    assert "Holm" in page["methods_note"]
    assert "join beyond it, floors" not in page["methods_head"]  # it was not among the methods
    tested = {"difference": 0.031, "p": 0.01, "p_holm": 0.0402, "tests": 6}
    for m in result["methods"][:-1]:
        m["versus"]["join"] = {"floors": {"target": tested}}
    page = page_of(result, "compare")
    at = page["methods_head"].index("join beyond it, floors") - 1
    assert page["methods"][1]["cells"][at] == "+3.1 (p 0.040)"
    assert page["methods"][-1]["cells"][at] == "–"
    for m in result["methods"]:
        del m["versus"]
    assert "not corrected" in page_of(result, "compare")["methods_note"]


def test_an_evaluation_is_about_what_the_delta_was_made_for():
    figures = {"per_class": {"a": 0.5, "b": 0.5}, "counts": {"a": 10, "b": 10}, "overall": 0.5, "balanced": 0.5}
    after = {**figures, "per_class": {"a": 0.6, "b": 0.9}}
    result = {"classes": ["a", "b"], "n": 20, "base": figures, "tweaked": after, "E": 0.0, "targets": ["a"]}
    assert page_of(result, "evaluate")["targets"] == ["a"]
    del result["targets"]
    page = page_of(result, "evaluate")
    assert page["targets"] == ["b"]
    assert "because it gains most" in page["beside"]


def test_intervals_are_of_before_and_after(compared):
    row = page_of(*read_result(compared))["table"][0]
    for key in ("before", "after"):
        low, high = map(float, row[f"{key}_interval"].split(" to "))
        assert low < float(row[key].split(" ")[0]) < high


def test_a_comparison_without_controls_is_a_page(compared):
    result = json.loads((compared / "result.json").read_text())
    result["methods"] = [m for m in result["methods"] if m["name"] == "retraining-1"]
    html = render(page_of(result, "compare"))
    assert "<h1>With retraining-1" in html
    assert "Under the same promise" not in html


def test_no_method_at_all_is_still_a_page(compared):
    result = json.loads((compared / "result.json").read_text())
    for m in result["methods"]:
        m.update(target=None, reason="crashed: no luck", under=None, sd=None)
    result["runs"] = [{"name": m["name"], "applicable": True, "reason": "crashed: no luck"} for m in result["methods"]]
    assert "No method gave a result: crashed: no luck." in render(page_of(result, "compare"))


def test_a_join_page_without_images_and_one_where_nothing_helped(joined):
    figures = joined[0].to_dict()
    html = render(page_of(json.loads(json.dumps(figures)), "join"))
    assert "validation images" in html
    figures["chosen"] = None
    figures["sentence"] = "Nothing found improves digit 8."
    assert "Nothing found improves digit 8." in render(page_of(figures, "join"))


def test_a_delta_file_is_a_result(joined, tmp_path):
    joined[0].delta.save(str(tmp_path / "d.safetensors"))
    result, kind = read_result(tmp_path / "d.safetensors")
    assert kind == "join"
    assert result["fingerprint"] == joined[0].delta.base
    assert joined[0].delta.base in render(page_of(result, kind))


def test_bad_results(tmp_path, compared):
    (tmp_path / "a.json").write_text("{")
    (tmp_path / "b.json").write_text('{"x": 1}')
    (tmp_path / "c.safetensors").write_bytes(b"no")
    other = json.loads((compared / "result.json").read_text())
    other["version"] = 99
    (tmp_path / "d.json").write_text(json.dumps(other))
    for name, message in (
        ("none.json", "no result"),
        ("a.json", "not readable JSON"),
        ("b.json", "not a result"),
        ("c.safetensors", "neither a result"),
        ("d.json", "format 99"),
        (".", "no result"),
    ):
        with pytest.raises(InputError, match=message):
            read_result(tmp_path / name)


def test_sentences():
    assert cost_words(["a", "b"], [0.5, 0.5], [0.6, 0.5]) == "and no class pays for it"
    assert cost_words(["a", "b"], [0.5, 0.5], [0.6, 0.4]) == "and b pays most: 10.0 points"
    assert "2 of 3 classes lose" in cost_words(["a", "b", "c"], [0.5, 0.5, 0.5], [0.6, 0.4, 0.45])
    assert cost_words(["a", "b"], [0.5, None], [0.4, None]).startswith("and a pays")
    said = headline("9 images", "fit", ["a", "b"], 0.5, 0.6, "and no class pays for it")
    assert said == "With fit, a and b rise on average from 50.0 to 60.0 % on 9 images, and no class pays for it."
    assert "a stays as before" in headline("9 images", "fit", ["a"], 0.5, 0.5, "")


def test_charts_draw_what_they_are_given():
    svg = histogram([("x", [0.1, 0.1, 0.9], "bar")], "label", "axis", mark=0.5, bins=2, clip=1.0)
    assert "2 from" in svg
    assert "threshold 0.5" in svg
    assert 'role="img"' in svg
    assert "nothing to draw" in histogram([("x", [np.nan], "bar")], "l", "a")
    assert bars(["<b>"], [1.0], ["1"], "l").count("&lt;b&gt;") == 2
    assert loglog([(1, 100), (10, 1)], "l", "x", "y").count("<circle") == 2
    assert "all counts are 0" in loglog([], "l", "x", "y")


def test_neurons_of_the_join_are_shown(pages):
    html = (pages / "join.html").read_text()
    assert html.count("data:image/png;base64,") >= 8
    assert html.count("E_w and E_c of ") == html.count("data-choice=") > 1  # the reader chooses the synapse
    for words in ("Fig. 3.3", "Fig. 3.4", "Fig. 3.9", "of the Δnn"):
        assert words in html
