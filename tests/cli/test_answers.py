"""Networks with one logit, several labels, a class a pixel, several heads: diagnose, join, evaluate, export."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from tweaknn.cli.app import run
from tweaknn.cli.labels import promises
from tweaknn.delta import Delta
from tweaknn.join.promise import Promise
from tweaknn.network import fingerprint

NETS = """
import torch
from torch import nn


class Table(nn.Module):
    def __init__(self, outputs, flat=False, log=False, heads=0):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU())
        self.out = nn.Linear(16, outputs)
        self.more = nn.Linear(16, heads) if heads else None
        self.flat, self.log = flat, log

    def forward(self, x):
        h = self.body(x)
        z = self.out(h)
        if self.flat:
            return z.flatten()
        if self.log:
            return z.log_softmax(1)
        return {"first": self.more(h), "second": z} if self.more is not None else z


class Segmenter(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.out = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1), nn.Conv2d(12, 3, 1)

    def forward(self, x):
        h = torch.relu(self.a(x))
        small = torch.relu(self.b(nn.functional.max_pool2d(h, 2)))
        return {"out": nn.functional.interpolate(self.out(small), size=x.shape[2:], mode="bilinear")}["out"]


def one(): return Table(1)
def flat(): return Table(1, flat=True)
def several(): return Table(3)
def log(): return Table(3, log=True)
def heads(): return Table(3, heads=5)
def segmenter(): return Segmenter()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    here = tmp_path_factory.mktemp("answers")
    (here / "net.py").write_text(textwrap.dedent(NETS))
    rng = np.random.default_rng(0)
    for name, n in (("train", 600), ("validation", 500), ("test", 500)):
        x = rng.normal(size=(n, 6)).astype(np.float32)
        score = x @ np.arange(18).reshape(6, 3) % 5 - 2.0 + x[:, :3] * 3
        np.savez(here / f"binary-{name}.npz", x=x, y=(score[:, 0] > 0).astype(int), classes=np.array(["well", "ill"]))
        np.savez(here / f"labels-{name}.npz", x=x, y=(score > 0).astype(int), classes=np.array(["sun", "sea", "sky"]))
        np.savez(here / f"three-{name}.npz", x=x, y=score.argmax(1), classes=np.array(["a", "b", "c"]))
        n = n // 20
        pictures = rng.integers(0, 255, size=(n, 16, 16, 3)).astype(np.uint8)
        pictures = np.repeat(np.repeat(pictures[:, ::4, ::4], 4, 1), 4, 2)
        masks = pictures.argmax(-1)
        masks[:, 0] = 255
        np.savez(here / f"pictures-{name}.npz", x=pictures, y=np.arange(n) % 3)
        np.savez(here / f"masks-{name}.npz", x=pictures, y=masks, classes=np.array(["red", "green", "blue"]))
    return here


def go(folder: Path, command: str, net: str, data: str, *more: str, method: str = "fit") -> dict:
    out = folder / "figures.json"
    out.unlink(missing_ok=True)
    args = [command, "--model", f"{folder}/net.py:{net}", *more]
    if command == "join":
        args += ["--method", method, "--layers", "all"]
        args += ["--train", f"{folder}/{data}-train.npz", "--validation", f"{folder}/{data}-validation.npz"]
    elif command != "export":
        args += ["--data", f"{folder}/{data}-test.npz"]
    assert run([*args, "--json", str(out)]) == 0
    return json.loads(out.read_text())


def made(folder: Path, net: str):
    space: dict = {}
    exec(NETS, space)
    return space[net]().eval()


@pytest.mark.parametrize("net", ["one", "flat"])
def test_one_logit(folder, net):
    figures = go(folder, "diagnose", net, "binary")
    assert list(figures["per_class"]) == ["well", "ill"]
    target = figures["worst"][0]
    delta = folder / f"{net}.delta"
    chosen = go(folder, "join", net, "binary", "--target", target, "--out", str(delta))
    both = go(folder, "evaluate", net, "binary", "--delta", str(delta))
    assert both["tweaked"]["per_class"][target] > both["base"]["per_class"][target]
    loaded, base = Delta.load(str(delta)), made(folder, net)
    assert loaded.n_classes == 1
    assert loaded.base == fingerprint(base)
    # what the command says is what the user's own code gets
    data = np.load(folder / "binary-test.npz")
    with torch.inference_mode():
        logit = loaded.attach(base)(torch.from_numpy(data["x"])).flatten()
    said = (logit > 0).numpy()
    for j, name in enumerate(("well", "ill")):
        assert (said == j)[data["y"] == j].mean() == pytest.approx(both["tweaked"]["per_class"][name], abs=1e-6)
    assert chosen["chosen"]
    go(folder, "export", net, "binary", "--delta", str(delta), "--format", "pt2", "--out", str(folder / "a.pt2"))


def test_several_labels(folder):
    figures = go(folder, "diagnose", "several", "labels")
    assert set(figures["labels"]) == {"sun", "sea", "sky"}
    low = figures["worst"][0]
    delta = folder / "labels.delta"
    go(folder, "join", "several", "labels", "--target", low, "--out", str(delta))
    both = go(folder, "evaluate", "several", "labels", "--delta", str(delta))
    assert both["tweaked"][low]["balanced"] > both["base"][low]["balanced"]
    for other in {"sun", "sea", "sky"} - {low}:
        assert both["tweaked"][other] == both["base"][other]
    loaded = Delta.load(str(delta))
    assert loaded.touched == [["sun", "sea", "sky"].index(low)]
    x = torch.from_numpy(np.load(folder / "labels-test.npz")["x"])
    given = np.load(folder / "labels-test.npz")["y"][:, loaded.touched[0]]
    with torch.inference_mode():
        said = (loaded.attach(made(folder, "several"))(x)[:, loaded.touched[0]] > 0).numpy()
    assert said[given == 1].mean() == pytest.approx(both["tweaked"][low]["recall"], abs=1e-6)
    go(folder, "export", "several", "labels", "--delta", str(delta), "--format", "pt2", "--out", str(folder / "b.pt2"))


def test_a_class_a_pixel(folder):
    figures = go(folder, "diagnose", "segmenter", "masks", "--pixels", "100")
    assert figures["n"] == 25 * 100
    target = figures["worst"][0]
    delta = folder / "masks.delta"
    go(folder, "join", "segmenter", "masks", "--target", target, "--out", str(delta), "--pixels", "64")
    loaded, base = Delta.load(str(delta)), made(folder, "segmenter")
    assert loaded.input_shape == (3, 16, 16)
    assert {read.reduction for term in loaded.terms for read in term.reads} == {"pixel"}
    both = go(folder, "evaluate", "segmenter", "masks", "--delta", str(delta), "--pixels", "1000")
    assert both["n"] == 25 * 15 * 16  # every pixel but the void ones
    assert both["tweaked"]["per_class"][target] > both["base"]["per_class"][target] + 0.05
    data = np.load(folder / "masks-test.npz")
    x = torch.from_numpy(data["x"]).float().permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        tweaked = loaded.attach(base)
        out = tweaked(x)
        assert out.shape == (25, 3, 16, 16)
        assert tweaked(torch.rand(2, 3, 24, 20)).shape == (2, 3, 24, 20)
    said = out.argmax(1).numpy()
    for j, name in enumerate(("red", "green", "blue")):
        assert (said == j)[data["y"] == j].mean() == pytest.approx(both["tweaked"]["per_class"][name], abs=1e-3)
    go(folder, "export", "segmenter", "masks", "--delta", str(delta), "--format", "pt2", "--out", str(folder / "c.pt2"))


@pytest.mark.parametrize(("net", "more"), [("log", ()), ("heads", ("--head", "second"))])
def test_log_softmax_and_a_named_head(folder, net, more):
    target = go(folder, "diagnose", net, "three", *more)["worst"][0]
    delta = folder / f"{net}.delta"
    go(folder, "join", net, "three", *more, "--target", target, "--out", str(delta))
    both = go(folder, "evaluate", net, "three", "--delta", str(delta))  # the file knows its head
    assert both["tweaked"]["per_class"][target] > both["base"]["per_class"][target]
    assert Delta.load(str(delta)).head == (more[1] if more else None)
    go(folder, "export", net, "three", "--delta", str(delta), "--format", "pt2", "--out", str(folder / "d.pt2"))


@pytest.mark.parametrize(
    ("net", "data", "more"),
    [
        ("one", "binary", ()),
        ("several", "labels", ()),
        ("segmenter", "masks", ("--pixels", "32")),
        ("heads", "three", ("--head", "second")),
    ],
)
def test_the_default_method_from_diagnose_to_the_page(folder, net, data, more):
    onnxruntime = pytest.importorskip("onnxruntime")
    target = go(folder, "diagnose", net, data, *more)["worst"][0]
    delta = folder / f"{net}-best.delta"
    go(folder, "join", net, data, "--target", target, "--out", str(delta), *more, method="best")
    (folder / "join.json").write_bytes((folder / "figures.json").read_bytes())
    pixels = more if net == "segmenter" else ()
    go(folder, "evaluate", net, data, "--delta", str(delta), *pixels)
    (folder / "evaluate.json").write_bytes((folder / "figures.json").read_bytes())
    exported = folder / f"{net}.onnx"
    go(folder, "export", net, data, "--delta", str(delta), "--out", str(exported))
    x = np.load(folder / f"{data}-test.npz")["x"][:7]
    x = torch.from_numpy(x if x.ndim == 2 else x.transpose(0, 3, 1, 2) / np.float32(255))
    with torch.inference_mode():
        wanted = Delta.load(str(delta)).attach(made(folder, net))(x)
    wanted = wanted["second"] if isinstance(wanted, dict) else wanted
    session = onnxruntime.InferenceSession(str(exported))
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-3, atol=1e-3)
    page = folder / "page.html"
    look = ["--model", f"{folder}/net.py:{net}", "--data", f"{folder}/{data}-test.npz", "--delta", str(delta), *pixels]
    for result in (folder / "join.json", folder / "evaluate.json", delta):
        for shown in ([], look):
            page.unlink(missing_ok=True)
            assert run(["report", str(result), "--out", str(page), *shown]) == 0
            assert target in page.read_text(encoding="utf-8")


def test_a_page_about_one_of_several_labels(folder, capsys):
    from tweaknn.report.of_labels import one_label

    given, said = 40, np.array([True] * 30 + [False] * 10)
    rows = {"given": given, "recall": 0.75, "specificity": 0.5, "balanced": 0.625}
    result = {"n": 100, "classes": ["sun", "sea"], "base": {"sun": rows, "sea": rows}, "tweaked": {"sun": rows, "sea": rows}}
    found = one_label(result, "sea")
    assert found["base"]["counts"] == {"not sea": 60, "sea": 40}
    assert found["base"]["overall"] == pytest.approx((said.sum() + 30) / 100)
    (folder / "two.json").write_text(json.dumps(result))
    assert run(["report", str(folder / "two.json"), "--out", str(folder / "p.html"), "--target", "rain"]) == 2
    assert "no label 'rain'; it has sun, sea" in " ".join(capsys.readouterr().err.split())
    assert not (folder / "p.html").exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--head", "3"], "single tensor"),
        (["--device", "meta"], "cannot be used"),
        (["--device", "tpu"], "cannot be used"),
        (["--seed", "-1"], "--seed"),
        (["--form", "curved"], "--form"),
        (["--validation-share", "7"], "--validation-share"),
        (["--validation", "OTHER"], "name their classes otherwise: class 0 is 'a' and 'x'"),
    ],
)
def test_a_slip_is_one_sentence_and_nothing_is_written(folder, more, said, capsys):
    data = np.load(folder / "three-validation.npz")
    np.savez(folder / "other.npz", x=data["x"], y=data["y"], classes=np.array(["x", "y", "z"]))
    more = [str(folder / "other.npz") if word == "OTHER" else word for word in more]
    out = folder / "slip.delta"
    args = ["join", "--model", f"{folder}/net.py:log", "--train", f"{folder}/three-train.npz", "--target", "a"]
    assert run([*args, "--out", str(out), *more]) == 2
    message = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert said in message
    assert "Traceback" not in message
    assert not out.exists()


@pytest.mark.parametrize("text", ['{"candidates": {}, "base": {}}', '{"base": {}, "tweaked": {}}', '{"methods": [], "runs": []}'])
def test_a_page_of_a_file_that_is_not_whole(tmp_path, text, capsys):
    (tmp_path / "r.json").write_text(text)
    assert run(["report", str(tmp_path / "r.json"), "--out", str(tmp_path / "r.html")]) == 2
    assert "not whole" in capsys.readouterr().err
    assert not (tmp_path / "r.html").exists()


@pytest.mark.parametrize(
    ("net", "data", "said"),
    [
        ("segmenter", "pictures", "masks are needed"),
        ("one", "labels", "3 labels an example"),
        ("heads", "labels", "it has first, second"),
        ("segmenter", "labels", "does not run"),
    ],
)
def test_answers_of_another_kind_are_one_sentence(folder, net, data, said, capsys):
    code = run(["diagnose", "--model", f"{folder}/net.py:{net}", "--data", f"{folder}/{data}-test.npz"])
    assert code == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    assert said in " ".join(message.split())


@pytest.mark.parametrize(
    ("net", "data", "more", "said"),
    [
        ("segmenter", "masks", ["--views", "1", "--augment", "flip"], "not used for segmentation"),
        ("segmenter", "masks", ["--method", "theta"], "which no pixel has"),
        ("several", "labels", ["--target", "sky", "--floor", "rain=0.8"], "'rain', which is no target"),
        ("several", "labels", ["--target", "sky", "--weight", "sea=2"], "one by one"),
    ],
)
def test_what_other_shapes_have_not_is_one_sentence(folder, net, data, more, said, capsys):
    target = "sea" if data == "labels" else "1"
    args = ["join", "--model", f"{folder}/net.py:{net}", "--train", f"{folder}/{data}-train.npz", "--target", target]
    assert run([*args, "--out", str(folder / "n.delta"), *more]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_a_floor_of_one_label_of_two_targets():
    found = promises(Promise("mixed", floors={"sea": 0.5, "not sky": 0.9}), ["sea", "sky"])
    assert found["sea"].floors == {"sea": 0.5}
    assert found["sky"].floors == {"not sky": 0.9}


def test_numbers_are_not_said_to_be_pictures(folder, capsys):
    go(folder, "diagnose", "log", "three")
    assert "x/255" not in capsys.readouterr().err
    go(folder, "diagnose", "segmenter", "masks")
    assert "x/255" in capsys.readouterr().err
