"""Every table and figure of the dissertation at toy scale: random pictures in the data sets' own shape, every network it names."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from benchmarks.dissertation import __main__ as command
from benchmarks.dissertation import data as datasets
from benchmarks.dissertation import drawing, markdown
from benchmarks.dissertation.figures import FIGURES
from benchmarks.dissertation.networks import build
from benchmarks.dissertation.tables import SAME, TABLES
from tweaknn.inputs import Examples, Preprocess
from tweaknn.inputs.sources import ArraySource

NETWORKS = ("cnn3", "cnn3-bn", "nin", "resnet18", "resnet20", "resnet56", "densenet40", "densenet121", "googlenet")


def fake(n, seed, c=5):
    """Like torchvision's FakeData, but with something to learn: a class's own shade."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % c
    images = rng.integers(0, 120, (n, 32, 32, 3)) + 25 * labels[:, None, None, None]
    pre = Preprocess(mean=datasets.MEAN, std=datasets.STD, channels=3)
    return Examples(ArraySource(images.astype(np.uint8), "fake"), labels, classes=[f"k{j}" for j in range(c)], preprocess=pre)


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """Runs the command on fake data with a 3-layer CNN; returns what it wrote."""
    monkeypatch.setattr(datasets, "load", lambda name, root: (fake(120, 0), fake(40, 1)))
    torch.manual_seed(0)
    save_file(build("cnn3", 5).state_dict(), tmp_path / "cnn3.safetensors")

    def run(name, *more):
        out = tmp_path / f"dissertation-{name}.json"
        arguments = [name, "--network", "cnn3", "--weights", str(tmp_path / "cnn3.safetensors"), "--iterations", "2"]
        monkeypatch.setattr(sys, "argv", ["x", *arguments, "--out", str(tmp_path / "out"), "--json", str(out), *more])
        command.main()
        return json.loads(out.read_text())

    return run


@pytest.mark.parametrize("name", [t for t in TABLES if t not in ("4.2", "3.10")])
def test_tables(name, toy, tmp_path, capsys, monkeypatch):
    found = toy(name)
    assert name == "classes" or found["dissertation"]
    assert found["ours"] if name != "3.11" else found["seconds"]
    if name in markdown.FORMS:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["x", str(tmp_path)])
        markdown.main()
        said = capsys.readouterr().out
        assert said.startswith("## Every class" if name == "classes" else "## Table")
        assert "|" in said or name == "3.2"


@pytest.mark.slow
def test_table_3_10_with_oversampling_underneath(toy):
    found = toy("3.10")
    for size, row in found["ours"].items():
        assert set(row) == set(found["dissertation"]), size
        assert all(0 <= v <= 1 for v in row.values() if v is not None)


@pytest.mark.parametrize("name", FIGURES)
def test_figures(name, toy, tmp_path, monkeypatch):
    found = toy(name)
    assert found["table"] == name
    monkeypatch.setattr(sys, "argv", ["x", str(tmp_path), str(tmp_path / "pictures")])
    drawing.main()
    with Image.open(tmp_path / "pictures" / f"dissertation-{name}.png") as picture:
        assert min(picture.size) > 100


def test_every_table_and_figure_of_the_issue_has_a_command():
    tables = {f"3.{k}" for k in range(1, 12)} | {f"4.{k}" for k in range(1, 7)}
    assert tables == set(TABLES) - {"classes"} | set(SAME)
    figures = {"fig1.1", "fig3.1", *(f"fig3.{k}" for k in range(3, 12)), "fig6.1", "fig6.2"}
    assert figures == set(FIGURES) == set(drawing.DRAWINGS)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name):
    net = build(name, 7).eval()
    side = 64 if name in ("densenet121", "googlenet", "resnet18") else 32
    with torch.inference_mode():
        assert net(torch.zeros(1, 3, side, side)).shape == (1, 7)


def test_loaders(tmp_path, monkeypatch):
    """torchvision's loaders give what it gives: arrays, labels, names; here stand-ins in their own form."""
    from torchvision import datasets as vision

    class SVHN:
        def __init__(self, root, split):
            self.data, self.labels = np.zeros((12, 3, 32, 32), np.uint8), np.arange(12) % 10

    class CIFAR10:
        classes = tuple(f"k{j}" for j in range(10))

        def __init__(self, root, train):
            self.data, self.targets = np.zeros((20, 32, 32, 3), np.uint8), list(np.arange(20) % 10)

    class SUN397:
        classes = ("place 0", "place 1", "place 2")

        def __init__(self, root):
            self._labels = [j for j in range(3) for _ in range(60)]
            self._image_files = [tmp_path / "one.jpg"] * 180

    Image.new("RGB", (300, 280)).save(tmp_path / "one.jpg")
    for part in ("train", "val"):
        for name in ("n01", "n02"):
            (tmp_path / part / name).mkdir(parents=True)
            Image.new("RGB", (300, 260)).save(tmp_path / part / name / "a.jpg")
    for stand_in in (SVHN, CIFAR10, SUN397):
        monkeypatch.setattr(vision, stand_in.__name__, stand_in)
    monkeypatch.setattr(vision, "CIFAR100", CIFAR10)
    for name in ("svhn", "cifar10", "cifar100"):
        train, _ = datasets.load(name, tmp_path)
        assert train.batch([0])[0].shape == (1, 3, 32, 32)
        assert len(train.classes) == 10
    train, test = datasets.load("sun397", tmp_path)
    assert (len(train), len(test), test.batch([0])[0].shape) == (30, 150, (1, 3, 224, 224))
    assert datasets.load("imagenet", tmp_path)[1].batch([0, 1])[0].shape == (2, 3, 224, 224)
    with pytest.raises(KeyError, match="choose one of"):
        datasets.load("mnist", tmp_path)


def test_a_long_tail_may_be_what_a_network_was_trained_on(toy):
    found = toy("fig3.10", "--tail", "3")
    assert len(found["examples"]) == 5
    assert found["examples"] == sorted(found["examples"], reverse=True)
    assert found["settings"]["tail"] == 3


def test_means_are_made_of_boxes_without_training_again(toy, tmp_path, monkeypatch):
    boxes = toy("fig6.1")
    found = toy("fig6.2", "--boxes", str(tmp_path / "dissertation-fig6.1.json"))
    assert found["table"] == "fig6.2"
    for name, moments in boxes["boxes"].items():
        assert found["rows"][name]["overall"] == pytest.approx(np.mean([m["overall"] for m in moments]))
