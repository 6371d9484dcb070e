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
    for words in ("Fig. 3.3", "Fig. 3.4", "Fig. 3.9", "of the Δnn"):
        assert words in html
