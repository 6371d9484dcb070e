"""Networks and data the methods were not made for: each method runs or says why it does not, and costs no other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tweaknn.baselines import Plan, Training, compare, names
from tweaknn.baselines.outcome import NotApplicable
from tweaknn.baselines.surgery import find_head, last_convolution
from tweaknn.errors import ModelError
from tweaknn.inputs import as_examples
from tweaknn.network.views import LabelView
from tweaknn.report import render
from tweaknn.report.read import page_of, read_result

FAST = Training(iterations=3, batch_size=16, lr=0.02, penalties=(2.0,), checkpoints=2)
NEEDS_NEURONS = {"random-neurons", "head2toe", "theta", "retrain-1", "retrain-2", "aan", "fit", "join"}
NEEDS_HEAD = {"last-layer", "last-layer-weighted", "da", "wa", "retraining-4"}


def rows(n, c=4, seed=0, without=()):
    """A table of numbers whose first ``c`` columns tell the class."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, c, n)
    y = y[~np.isin(y, without)]
    x = rng.normal(size=(len(y), 9)).astype(np.float32)
    x[np.arange(len(y)), y] += 2
    return as_examples((torch.from_numpy(x), torch.from_numpy(y)), name="rows")


def pictures(n, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 4, n)
    x = rng.normal(size=(n, 3, 12, 12)).astype(np.float32)
    x[np.arange(n), y % 3] += y[:, None, None]
    return as_examples((torch.from_numpy(x), torch.from_numpy(y)), name="pictures")


class ConvHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        return self.head(F.relu(self.a(x))).mean((2, 3))


class Bare(nn.Module):
    """Its last weights are a bare parameter: nobody can reset or replace them."""

    def __init__(self):
        super().__init__()
        self.first, self.weight = nn.Linear(9, 12), nn.Parameter(torch.randn(4, 12) / 4)

    def forward(self, x):
        return F.linear(torch.relu(self.first(x)), self.weight)


def mlp(c=4):
    return nn.Sequential(nn.Linear(9, 16), nn.ReLU(), nn.Linear(16, 12), nn.GELU(), nn.Linear(12, c))


def vit():
    timm = pytest.importorskip("timm")
    return timm.create_model("test_vit", num_classes=4, img_size=32, patch_size=8)


def small_pictures(n, seed=0):
    return as_examples(
        (
            F.interpolate(torch.stack([pictures(n, seed)[i][0] for i in range(n)]), 32),
            torch.from_numpy(pictures(n, seed).labels),
        )
    )


CASES = {  # network, data, methods that must say they do not apply
    "table": (mlp, rows, set()),
    "double precision": (lambda: mlp().double(), rows, set()),
    "frozen": (lambda: mlp().requires_grad_(False), rows, set()),
    "softmax regression": (lambda: nn.Linear(9, 4), rows, NEEDS_NEURONS | {"wa"}),
    "head is a convolution": (ConvHead, pictures, NEEDS_HEAD),
    "bare parameter": (Bare, rows, NEEDS_HEAD | {"retraining-3"}),
    "vision transformer": (vit, small_pictures, {"retraining-3"}),
}


@pytest.mark.parametrize("name", CASES)
def test_every_method_runs_or_says_why_not(name, tmp_path):
    make, data, refused = CASES[name]
    torch.manual_seed(0)
    net = make().eval()
    chosen = [m for m in names() if m != "lora"] if name != "table" else names()
    if name == "vision transformer":
        chosen = [m for m in chosen if m not in ("retraining-2", "retraining-5", "retrain-2", "aan", "join")]
    plan = Plan((1,), tuple(chosen), training=FAST, jobs=0)
    result = compare(net, data(120), data(60, seed=1), plan, tmp_path)
    found = {m["name"]: m for m in result["methods"]}
    assert {m for m in found if not found[m]["applicable"]} == refused & set(chosen)
    for entry in found.values():
        if entry["applicable"]:
            assert entry["reason"] == "", (entry["name"], entry["reason"])
            assert 0 <= entry["target"] <= 1
        else:
            assert entry["reason"].startswith("not applicable: ")
            assert entry["target"] is None
    assert "<h1>" in render(page_of(*read_result(tmp_path)))


def test_two_classes_every_class_a_target_and_a_class_missing(tmp_path):
    torch.manual_seed(0)
    methods = ("bias", "calibration", "retraining-1", "oversampling", "last-layer", "theta", "retrain-1", "fit", "aan")
    for k, (net, train, held, test, targets) in enumerate(
        (
            (mlp(2), rows(100, 2), None, rows(60, 2, 1), (1,)),
            (mlp(), rows(120), None, rows(60, seed=1), (0, 1, 2, 3)),
            (mlp(), rows(120), rows(80, seed=2, without=(3,)), rows(60, seed=1), (1,)),
            (mlp(), rows(120, without=(3,)), rows(80, seed=2), rows(60, seed=1), (1,)),
            (mlp(), rows(24), None, rows(16, seed=1), (1,)),
        )
    ):
        plan = Plan(targets, methods, training=FAST, jobs=0)
        result = compare(net.eval(), train, test, plan, tmp_path / str(k), validation=held)
        assert [(m["name"], m["reason"]) for m in result["methods"] if m["reason"]] == []
        json.dumps(result, allow_nan=False)


def test_layers_that_are_not_there_are_an_error_of_the_user(tmp_path):
    with pytest.raises(ModelError, match="no layer 'nothing'"):
        compare(mlp().eval(), rows(60), rows(40, seed=1), Plan((1,), ("bias",), layers="nothing", jobs=0), tmp_path)


SLOW = """
import time, torch
from torch import nn
def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(9, 16), nn.ReLU(), nn.Linear(16, 4))
def augment(x, generator):
    time.sleep(1)
    return x
"""


def test_killed_and_resumed(tmp_path):
    """What was finished before the kill is not done again, and the result is that of an undisturbed run."""
    (tmp_path / "net.py").write_text(SLOW)
    for part, n in (("train", 120), ("test", 60)):
        data = rows(n, seed=n)
        np.savez(tmp_path / f"{part}.npz", x=torch.stack([data[i][0] for i in range(n)]).numpy(), y=data.labels)
    command = [
        *(sys.executable, "-m", "tweaknn", "compare", "--model", f"{tmp_path}/net.py:make"),
        *("--train", f"{tmp_path}/train.npz", "--test", f"{tmp_path}/test.npz", "--target", "1"),
        *("--methods", "bias,last-layer,retraining-1", "--out", f"{tmp_path}/out", "--json", f"{tmp_path}/r.json"),
        *("--augment", f"{tmp_path}/net.py:augment", "--penalty", "2", "--jobs", "1"),
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

    def runs():
        return {f.name: f.stat().st_mtime_ns for f in (tmp_path / "out" / "runs").glob("*.json")}

    first = subprocess.Popen(
        [*command, "--iterations", "500"], env=environment, stderr=subprocess.DEVNULL, start_new_session=True
    )
    end = time.monotonic() + 250
    while len(runs()) < 2:
        assert time.monotonic() < end
        assert first.poll() is None
        time.sleep(0.2)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    before = runs()
    assert len(before) == 2
    assert not (tmp_path / "r.json").exists()
    done = subprocess.run([*command, "--iterations", "2"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    after = runs()
    assert all(after[name] == stamp for name, stamp in before.items())  # bias and last-layer do not follow --iterations
    result = json.loads((tmp_path / "r.json").read_text())
    assert [(m["name"], m["reason"]) for m in result["methods"]] == [
        ("bias", ""),
        ("last-layer", ""),
        ("retraining-1", ""),
    ]


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.lstm, self.out = nn.Embedding(20, 8), nn.LSTM(8, 12, batch_first=True), nn.Linear(12, 4)

    def forward(self, ids):
        return self.out(self.lstm(self.words(ids))[0][:, -1])


def test_why_a_method_does_not_apply_is_true():
    torch.manual_seed(0)
    ids, x = torch.randint(20, (2, 5)), torch.randn(2, 9)
    with pytest.raises(NotApplicable, match=r"its hidden layers \(Embedding, LSTM\) are neither linear nor convolutions"):
        last_convolution(Recurrent(), ids, find_head(Recurrent(), ids)[0])
    with pytest.raises(NotApplicable, match="no hidden layer with weights"):
        last_convolution(nn.Linear(9, 4), x, "")
    for width in (1, 4):
        with pytest.raises(NotApplicable, match="one logit for both classes"):
            find_head(LabelView(nn.Sequential(nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, width))), x)
