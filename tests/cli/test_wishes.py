"""What a user may wish of a join on the command line, and what is said to wishes that cannot be."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from tweaknn.cli.app import run
from tweaknn.cli.wishes import mask_of, read_costs
from tweaknn.demo import CLASSES, digits, train_base
from tweaknn.errors import InputError
from tweaknn.inputs import load_data


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    here = tmp_path_factory.mktemp("user")
    data = digits(0)
    torch.save(train_base(*data.base).state_dict(), here / "base.pt")
    source = """
        from tweaknn.demo import DigitsCNN as make
        """
    (here / "net.py").write_text(textwrap.dedent(source))
    for name in ("train", "validation", "test"):
        x, y = getattr(data, name)
        pixels = (x[:, 0] * 255).round().to(torch.uint8).numpy()
        room = np.where(np.arange(len(y)) % 2 == 0, "left", "right")
        np.savez(here / f"{name}.npz", x=pixels, y=y.numpy(), classes=np.array(CLASSES), room=room)
    return here


def join(folder: Path, *more: str) -> int:
    return run([
        "join", "--model", f"{folder}/net.py:make", "--weights", f"{folder}/base.pt", "--train", f"{folder}/train.npz",
        "--validation", f"{folder}/validation.npz", "--method", "fit", "--out", str(folder / "x.delta.safetensors"),
        "--json", str(folder / "x.json"), *more,
    ])  # fmt: skip


def test_a_subclass_by_column_its_front_and_its_drift(folder, capsys):
    front = folder / "front.png"
    assert join(folder, "--target-column", "room=left&label=8", "--base-saw", "none", "--front", str(front)) == 0
    figures = json.loads((folder / "x.json").read_text())
    assert figures["targets"] == ["room=left&label=8"]
    assert figures["settings"]["folds"] == 5
    assert front.read_bytes()[:4] == b"\x89PNG"
    points = figures["candidates"][figures["chosen"]]["front"]
    assert [p["target"] for p in points] == sorted(p["target"] for p in points)
    assert {"overall", "worst_drop", "bias", "strength", "per_class", "E"} <= set(points[0])
    evaluate = ["evaluate", "--model", f"{folder}/net.py:make", "--weights", f"{folder}/base.pt",
                "--delta", str(folder / "x.delta.safetensors"), "--json", str(folder / "e.json")]  # fmt: skip
    assert run([*evaluate, "--data", f"{folder}/test.npz"]) == 0
    assert not json.loads((folder / "e.json").read_text())["drift"]["drifted"]
    assert run([*evaluate, "--data", f"{folder}/test.npz", "--target-column", "room=left&label=8"]) == 0
    found = json.loads((folder / "e.json").read_text())["subclasses"]["room=left&label=8"]
    with np.load(folder / "test.npz") as test:
        names = [str(c) for c in test["classes"]]
        assert found["n"] == int(((test["room"] == "left") & (test["y"] == names.index("8"))).sum())
    assert found["tweaked"] > found["base"]
    assert 0 <= found["p_value"] <= 1
    assert run([*evaluate, "--data", f"{folder}/test.npz", "--target-column", "room=up"]) == 2
    with np.load(folder / "test.npz") as test:
        few = np.flatnonzero(test["y"] < 3)
        np.savez(folder / "other.npz", x=255 - test["x"][few], y=test["y"][few], classes=test["classes"])
    capsys.readouterr()
    assert run([*evaluate, "--data", f"{folder}/other.npz"]) == 0
    assert "differ from those the join chose on" in "".join(capsys.readouterr())
    assert json.loads((folder / "e.json").read_text())["drift"]["drifted"]


def test_a_confidence_that_cannot_be_given_says_how_many_examples_are_needed(folder, capsys):
    assert join(folder, "--target", "8", "--base-saw", "none", "--confidence", "0.95", "--tolerance", "0.05") == 3
    said = " ".join("".join(capsys.readouterr()).split())
    assert "at least 59 are needed" in said
    figures = json.loads((folder / "x.json").read_text())
    assert figures["chosen"] is None
    assert figures["certificate"]["held"] is False


def test_a_confidence_that_can_be_given(folder):
    wishes = ["--promise", "overall", "--confidence", "0.9", "--tolerance", "0.05", "--front", str(folder / "f.json")]
    assert join(folder, "--target", "8", "--base-saw", "none", *wishes) == 0
    figures = json.loads((folder / "x.json").read_text())
    assert figures["certificate"]["held"]
    assert figures["certificate"]["p_value"] <= 0.1
    assert figures["settings"]["n_certifying"] == 400
    assert json.loads((folder / "f.json").read_text())["front"]


def test_costs_from_a_file(folder):
    (folder / "costs.json").write_text(json.dumps({"8": {"3": 5.0}, "3": {"8": 1.0}}))
    assert join(folder, "--target", "8", "--costs", str(folder / "costs.json")) == 0
    costs = np.array(json.loads((folder / "x.json").read_text())["promise"]["costs"])
    assert costs[8, 3] == 5.0
    assert costs.sum() == 6.0


@pytest.mark.parametrize(
    ("wishes", "said"),
    [
        (["--target", "8", "--worst", "1"], "Give either"),
        (["--target-column", "room"], "is not COLUMN=VALUE"),
        (["--target-column", "ward=left"], "has no column 'ward'; it has: room"),
        (["--target-column", "room=up"], "no example of"),
        (["--target-column", "label=17"], "there is no class '17'"),
        (["--target", "8", "--confidence", "2"], "between 0.5 and 1"),
        (["--target", "8", "--front", "front.txt"], "ends in .json"),
        (["--target", "8", "--costs", "missing.csv"], "cannot be read"),
        (["--target", "8", "--cross-fit", "--method", "theta"], "Cross-fitting needs one of the methods"),
        (["--target", "8", "--validation-share", "0.2"], "contradict each other"),
        (["--target", "8", "--hidden", "8"], "fit makes none"),
        (["--target", "8", "--form", "signed"], "which count"),
        (["--target", "8", "--floor", "8=0.9", "--floor", "8=0.2"], "given twice for 8"),
        (["--target", "8", "--promise", "mixed", "--tolerance", "0.1"], "no tolerance of its own"),
    ],
)
def test_wishes_that_cannot_be(folder, capsys, wishes, said):
    assert join(folder, *wishes) == 2
    shown = "".join(capsys.readouterr())
    assert said in " ".join(shown.split())
    assert "Traceback" not in shown


def test_cost_files(tmp_path):
    plain, named, bad, flat = tmp_path / "a.csv", tmp_path / "b.csv", tmp_path / "c.csv", tmp_path / "d.json"
    flat.write_text('{"cat": 3}')
    plain.write_text("0,1\n2,0\n")
    named.write_text(",cat,dog\ndog,2,0\ncat,0,1\n")
    bad.write_text("0,x\n1,0\n")
    expected = np.array([[0.0, 1.0], [2.0, 0.0]])
    np.testing.assert_array_equal(read_costs(plain, None), expected)
    np.testing.assert_array_equal(read_costs(named, ["cat", "dog"]), expected)
    for path, said in ((bad, "not a matrix of numbers"), (named, "no class"), (flat, "not a matrix of numbers")):
        with pytest.raises(InputError, match=said):
            read_costs(path, ["cat", "cow"])


def test_groups_of_the_validation_data_reach_the_join(folder, monkeypatch, capsys):
    given = {}
    monkeypatch.setattr("tweaknn.cli.join.SynapticJoin.fit", lambda self, *a, groups, **k: given.update(groups=groups) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        join(folder, "--target", "8", "--group", "room")
    assert [set(part) for part in given["groups"]] == [{"left", "right"}] * 2


def test_masks_of_numbers(folder):
    examples = load_data(folder / "test.npz")
    examples.columns["age"] = np.arange(len(examples)).astype(float)
    assert mask_of("age=3", examples).sum() == 1
    assert mask_of("room=left&age=4", examples).sum() == 1
