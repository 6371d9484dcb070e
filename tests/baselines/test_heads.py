"""A network with several outputs on the command line: ``compare --head``."""

from __future__ import annotations

import json

import numpy as np

from tweaknn.cli.app import run as command

from .conftest import digits

TWO = """
import torch, torch.nn.functional as F
from torch import nn
class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.coarse, self.fine = nn.Linear(8, 3), nn.Linear(8, 10)
    def forward(self, x):
        x = F.relu(self.bn(self.conv(x))).mean((2, 3))
        return {"coarse": self.coarse(x), "fine": self.fine(x)}
def make():
    torch.manual_seed(0)
    return Two()
"""


def test_one_head_of_several(tmp_path, capsys):
    (tmp_path / "net.py").write_text(TWO)
    for part in ("train", "test"):
        data = digits(part)
        np.savez(tmp_path / f"{part}.npz", x=data.source.images, y=data.labels, classes=np.array(data.classes))
    wanted = [
        *("compare", "--model", f"{tmp_path}/net.py:make", "--train", f"{tmp_path}/train.npz", "--test", f"{tmp_path}/test.npz"),
        *("--out", f"{tmp_path}/out", "--jobs", "0", "--iterations", "3", "--penalty", "2", "--target", "digit 8"),
        *("--methods", "bias,last-layer,retraining-1,wa,theta,fit", "--tolerance", "0.05", "--json", f"{tmp_path}/r.json"),
    ]
    assert command([*wanted, "--head", "fine"]) == 0
    result = json.loads((tmp_path / "r.json").read_text())
    assert [(m["name"], m["reason"]) for m in result["methods"] if m["reason"]] == []
    assert result["settings"]["head"] == "fine"
    assert result["settings"]["tolerance"] == 0.05
    assert len(result["base"]["per_class"]) == 10
    assert "by more than 5 points" in " ".join(capsys.readouterr().out.split())
    assert command([*wanted, "--head", "none"]) == 2
