"""``tweaknn export`` of more than one delta."""

from __future__ import annotations

import json

import torch
from torch import nn

from tweaknn.cli.app import run
from tweaknn.delta import Delta
from tweaknn.network import fingerprint

NET = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))
"""


def test_that_conflicts_were_not_measured_is_said(tmp_path, capsys):
    (tmp_path / "net.py").write_text(NET)
    space: dict = {}
    exec(NET, space)
    net: nn.Module = space["make"]().eval()
    one = Delta((), torch.tensor([1.0, 0.0, 0.0]), fingerprint(net), (5,))
    two = Delta((), torch.tensor([-1.0, 0.0, 0.0]), fingerprint(net), (5,))
    one.save(str(tmp_path / "one.delta"))
    two.save(str(tmp_path / "two.delta"))
    two.on(one).save(str(tmp_path / "top.delta"))

    def export(*names: str) -> tuple[str, dict]:
        deltas = [part for name in names for part in ("--delta", str(tmp_path / f"{name}.delta"))]
        out = tmp_path / "figures.json"
        command = ["export", "--model", f"{tmp_path}/net.py:make", *deltas, "--format", "pt2"]
        assert run([*command, "--out", str(tmp_path / "net.pt2"), "--json", str(out)]) == 0
        return " ".join(capsys.readouterr().out.split()), json.loads(out.read_text())

    text, figures = export("one", "two")
    assert "was not measured" in text
    assert "tweaknn evaluate" in text
    assert "combine" in text
    assert figures["conflicts_measured"] is False
    for alone in (("one",), ("one", "top")):  # nothing is added up
        text, figures = export(*alone)
        assert "not measured" not in text
        assert figures["conflicts_measured"] is None
