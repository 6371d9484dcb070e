"""The commands as a user types them: exit codes, JSON, what is written and what is not."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from tweaknn.cli.app import run
from tweaknn.demo import CLASSES, digits, train_base


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A user's folder: a network in a file of their own, its weights, data as .npz."""
    here = tmp_path_factory.mktemp("user")
    data = digits(0)
    model = train_base(*data.base)
    torch.save(model.state_dict(), here / "base.pt")
    (here / "net.py").write_text(
        textwrap.dedent(
            """
            from tweaknn.demo import DigitsCNN


            def make():
                return DigitsCNN()


            def small():
                import torch
                return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
            """
        )
    )
    for name in ("train", "validation", "test"):
        x, y = getattr(data, name)
        pixels = (x[:, 0] * 255).round().to(torch.uint8).numpy()
        patient = np.arange(len(y)) // 3
        np.savez(here / f"{name}.npz", x=pixels, y=y.numpy(), classes=np.array(CLASSES), patient=patient)
    return here


def join(folder: Path, *more: str) -> list[str]:
    return [
        "join",
        *("--model", f"{folder}/net.py:make", "--weights", f"{folder}/base.pt"),
        *("--train", f"{folder}/train.npz", "--validation", f"{folder}/validation.npz"),
        *more,
    ]


@pytest.fixture(scope="module")
def joined(folder) -> Path:
    out = folder / "eight.delta.safetensors"
    assert run(join(folder, "--target", "8", "--out", str(out), "--json", str(folder / "join.json"))) == 0
    return out


def test_join_writes_a_file_and_figures(folder, joined):
    figures = json.loads((folder / "join.json").read_text())
    assert joined.stat().st_size > 500
    assert figures["chosen"] in figures["candidates"]
    assert {"bias", "random-neurons", "last-layer", "fit"} <= set(figures["candidates"])
    assert figures["candidates"][figures["chosen"]]["target_gain"] > 0.1
    assert figures["candidates"][figures["chosen"]]["worst_drop"] >= 0


def test_evaluate_measures_latency_on_request(folder, joined, capsys):
    common = ["--model", f"{folder}/net.py:make", "--weights", f"{folder}/base.pt", "--data", f"{folder}/test.npz"]
    out = folder / "latency.json"
    assert run(["evaluate", *common, "--delta", str(joined), "--latency", "--json", str(out)]) == 0
    found = json.loads(out.read_text())["latency"]
    assert list(found) == ["1", "128"]
    assert all(f["low"] <= f["ratio"] <= f["high"] and f["slow"] == (f["low"] > 1.1) for f in found.values())
    assert "time with the delta by time without" in "".join(capsys.readouterr())
    assert run(["evaluate", *common, "--latency"]) == 2, "nothing to compare with"


def test_evaluate_base_and_tweaked(folder, joined, capsys):
    base = folder / "base.json"
    common = ["--model", f"{folder}/net.py:make", "--weights", f"{folder}/base.pt", "--data", f"{folder}/test.npz"]
    assert run(["evaluate", *common, "--json", str(base)]) == 0
    alone = json.loads(base.read_text())
    assert "tweaked" not in alone
    out = folder / "both.json"
    assert run(["evaluate", *common, "--delta", str(joined), "--json", str(out)]) == 0
    both = json.loads(out.read_text())
    assert both["base"] == alone["base"]
    assert both["classes"] == CLASSES
    assert both["tweaked"]["per_class"]["8"] > both["base"]["per_class"]["8"]
    drops = [both["tweaked"]["per_class"][c] - both["base"]["per_class"][c] for c in CLASSES]
    assert both["worst_drop"] == pytest.approx(min(drops))
    assert both["worst_class"] == CLASSES[int(np.argmin(drops))]
    expected = np.sqrt(np.mean(np.minimum(drops, 0) ** 2))
    assert both["E"] == pytest.approx(expected)
    assert 0 <= both["p_value"] <= 1
    assert both["n"] == 497
    assert "overall" in capsys.readouterr().out


def test_deltas_that_harm_a_class_only_together_are_named(folder, joined, capsys):
    from dataclasses import replace

    from tweaknn.delta import Delta

    whole = Delta.load(str(joined))
    paths = []
    for name, column, by in (("a", 4, -4.0), ("b", 4, -4.5), ("none", 4, 0.0)):
        bias = torch.zeros(whole.n_classes)
        bias[column] = by
        paths.append(str(folder / f"{name}.delta.safetensors"))
        replace(whole, terms=(), bias=bias, meta={}).save(paths[-1])
    out = folder / "conflicts.json"
    common = ["evaluate", "--model", f"{folder}/net.py:make", "--weights", f"{folder}/base.pt"]
    common += ["--data", f"{folder}/test.npz", "--json", str(out)]

    def with_deltas(*chosen):
        assert run([*common, *(word for path in chosen for word in ("--delta", path))]) == 0
        return json.loads(out.read_text()), capsys.readouterr().err

    singles = [with_deltas(path) for path in paths[:2]]
    assert all("conflicts" not in figures and "conflict" not in said for figures, said in singles)
    both, said = with_deltas(*paths[:2])
    assert [each["class"] for each in both["conflicts"]] == ["4"]
    conflict = both["conflicts"][0]
    assert conflict["alone"] == [figures["tweaked"]["per_class"]["4"] for figures, _ in singles]
    assert conflict["together"] == both["tweaked"]["per_class"]["4"] < min(conflict["alone"])
    assert conflict["base"] == both["base"]["per_class"]["4"]
    assert "The deltas conflict: with all of them 4 is at" in " ".join(said.split())
    harmless, said = with_deltas(paths[0], paths[2])  # what one costs by itself is no conflict
    assert harmless["conflicts"] == []
    assert "conflict" not in said


def test_a_class_without_examples_is_null(folder, joined):
    data = np.load(folder / "test.npz")
    keep = data["y"] != 4
    np.savez(folder / "without4.npz", x=data["x"][keep], y=data["y"][keep], classes=data["classes"])
    out = folder / "without4.json"
    common = ["--model", f"{folder}/net.py:make", "--weights", f"{folder}/base.pt", "--delta", str(joined)]
    assert run(["evaluate", *common, "--data", f"{folder}/without4.npz", "--json", str(out)]) == 0
    figures = json.loads(out.read_text())
    assert figures["base"]["per_class"]["4"] is None
    assert figures["tweaked"]["auroc"]["4"] is None


def test_diagnose(folder, capsys):
    out = folder / "diagnosis.json"
    command = ["diagnose", "--model", f"{folder}/net.py:make", "--weights", f"{folder}/base.pt"]
    assert run([*command, "--data", f"{folder}/test.npz", "--json", str(out)]) == 0
    figures = json.loads(out.read_text())
    assert figures["worst"][0] == "8"
    low, high = figures["intervals"]["8"]
    assert low < figures["per_class"]["8"] < high
    assert figures["confusions"][0]["count"] >= figures["confusions"][-1]["count"]
    printed = capsys.readouterr().out
    assert "95 % interval" in printed


def test_groups_and_held_out_validation(folder):
    out = folder / "group.delta.safetensors"
    command = ["join", "--model", f"{folder}/net.py:make", "--weights", f"{folder}/base.pt"]
    more = ["--train", f"{folder}/train.npz", "--worst", "1", "--group", "patient", "--base-saw", "none"]
    assert run([*command, *more, "--out", str(out)]) == 0
    assert out.is_file()


def test_theta_on_the_command_line(folder):
    out, figures = folder / "theta.delta.safetensors", folder / "theta.json"
    more = ("--target", "8", "--method", "theta", "--out", str(out), "--json", str(figures), "--layers", "stages")
    assert run(join(folder, *more)) == 0
    found = json.loads(figures.read_text())
    assert found["promise"]["kind"] == "overall", "the method's own promise is its default"
    assert found["candidates"]["theta"]["per_target"]["8"]["n"] >= 1


def test_a_promise_of_ones_own(folder):
    out, figures = folder / "mixed.delta.safetensors", folder / "mixed.json"
    rules = ("--promise", "mixed", "--floor", "3=0.95", "--max-drop", "0.05", "--specificity", "8=0.98")
    assert run(join(folder, "--target", "8", "--method", "fit", *rules, "--out", str(out), "--json", str(figures))) == 0
    found = json.loads(figures.read_text())
    assert found["promise"] == {
        "kind": "mixed",
        "tolerance": 0.0,
        "max_drop": 0.05,
        "floors": {"3": 0.95},
        "specificity": {"8": 0.98},
    }
    chosen = found["candidates"][found["chosen"]]
    assert chosen["per_class"]["3"] >= 0.95
    assert chosen["worst_drop"] >= -0.05 - 1e-9


def test_demo(tmp_path):
    assert run(["demo", "--out", str(tmp_path / "demo")]) == 0
    assert (tmp_path / "demo" / "before-after.png").stat().st_size > 5000
    figures = json.loads((tmp_path / "demo" / "figures.json").read_text())
    target = figures["join"]["targets"][0]
    assert figures["test"]["tweaked"]["per_class"][target] > figures["test"]["base"]["per_class"][target]


BAD = {
    "unknown class": (["--target", "melanoma"], "the classes are 0, 1, 2"),
    "no target": ([], "--target"),
    "both": (["--target", "8", "--worst", "2"], "--target"),
    "no such model function": (["--target", "8", "--model", "{}/net.py:nothing"], "nothing"),
    "no such model file": (["--target", "8", "--model", "{}/other.py:make"], "other.py"),
    "classes disagree": (["--target", "8", "--model", "{}/net.py:small", "--weights", "{}/small.pt"], "classes"),
    "foreign weights": (["--target", "8", "--weights", "{}/foreign.pt"], "foreign.pt"),
    "truncated weights": (["--target", "8", "--weights", "{}/short.pt"], "short.pt"),
    "no data": (["--target", "8", "--train", "{}/missing.npz"], "missing.npz"),
    "empty folder": (["--target", "8", "--train", "{}/empty"], "empty"),
    "bad layer": (["--target", "8", "--layers", "conv9"], "conv9"),
    "no number": (["--target", "8", "--floor", "3"], "NAME=NUMBER"),
    "no such device": (["--target", "8", "--device", "cuda:7"], "cuda:7"),
    "no group": (["--target", "8", "--group", "lesion"], "lesion"),
    "labels out of range": (["--target", "8", "--train", "{}/labels.npz"], "label"),
    "not writable": (["--target", "8", "--out", "{}/no/such/folder/x"], "cannot be written"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_and_nothing_written(folder, case, capsys):
    torch.save({"other": torch.zeros(3)}, folder / "foreign.pt")
    small = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    torch.save(small.state_dict(), folder / "small.pt")
    (folder / "short.pt").write_bytes((folder / "base.pt").read_bytes()[:2000])
    (folder / "empty").mkdir(exist_ok=True)
    x = np.zeros((4, 8, 8), np.uint8)
    np.savez(folder / "labels.npz", x=x, y=np.array([0, 1, 2, 17]))
    more, says = BAD[case]
    before = sorted(path.name for path in folder.iterdir())
    arguments = join(folder, "--out", str(folder / "never"))
    for option, value in zip(more[::2], more[1::2], strict=True):
        value = value.format(folder)
        if option in arguments:
            arguments[arguments.index(option) + 1] = value
        else:
            arguments += [option, value]
    assert run(arguments) == 2
    shown = capsys.readouterr()
    message = " ".join(shown.err.split())
    assert says in message.replace(" /", "/") or says in "".join(shown.err.split())
    assert "Traceback" not in shown.err
    assert sorted(path.name for path in folder.iterdir()) == before


def test_wrong_base_is_refused_with_both_fingerprints(folder, joined, capsys):
    model = train_base(*digits(1).base, epochs=1)
    torch.save(model.state_dict(), folder / "other.pt")
    command = ["evaluate", "--model", f"{folder}/net.py:make", "--weights", f"{folder}/other.pt"]
    assert run([*command, "--data", f"{folder}/test.npz", "--delta", str(joined)]) == 2
    assert capsys.readouterr().err.count("...") >= 2


def test_nothing_helps_ends_with_3_and_no_file(folder, capsys):
    # one bright pixel decides the class and the network knows it: there is nothing to win
    (folder / "sure.py").write_text(
        "import torch\n\n\nclass Sure(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.a = torch.nn.Linear(64, 64)\n        self.b = torch.nn.Linear(64, 2)\n"
        "        with torch.no_grad():\n            self.a.weight.copy_(torch.eye(64)); self.a.bias.zero_()\n"
        "            self.b.weight.zero_(); self.b.bias.zero_()\n"
        "            self.b.weight[0, 0] = 9.0; self.b.weight[1, 1] = 9.0\n\n"
        "    def forward(self, x):\n        return self.b(torch.relu(self.a(x.flatten(1))))\n\n\n"
        "def make():\n    return Sure()\n"
    )
    y = np.arange(400) % 2
    x = np.zeros((400, 8, 8), np.uint8)
    x[np.arange(400), 0, y] = 255
    np.savez(folder / "sure.npz", x=x, y=y)
    out = folder / "sure.delta.safetensors"
    figures = folder / "sure.json"
    command = ["join", "--model", f"{folder}/sure.py:make", "--train", f"{folder}/sure.npz", "--target", "1"]
    assert run([*command, "--out", str(out), "--json", str(figures)]) == 3
    assert not out.exists()
    assert json.loads(figures.read_text())["chosen"] is None
    assert "Nothing found" in " ".join(capsys.readouterr().err.split())


def test_usage_errors_and_version(capsys):
    assert run(["diagnose"]) == 2
    assert run(["nonsense"]) == 2
    assert run(["--version"]) == 0
    assert "tweaknn" in capsys.readouterr().out
