"""Architectures of every family through the same promises; the full list is ``benchmarks/architectures.py``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import architectures
from benchmarks.architecture_list import CASES, CLASSES
from benchmarks.architectures import PROMISES, walk

ROOT = Path(__file__).resolve().parents[2]
MIXER = "timm:MlpMixer of two blocks"
SPREAD = [
    "mlp", "log-softmax", "binary-one-logit", "functional-two-heads", "multi-label", "recurrent-by-hooks", "hf:ResNet", "hf:ConvNext",
    "hf:ViT", MIXER, "hf:Bert", "hf:Wav2Vec2", "torchvision:squeezenet1_1",
]  # fmt: skip
"""Of every kind a small one: tables, one logit, two heads, several labels, recurrent, CNNs, a transformer, a mixer, a text, a sound."""
WITH_ONNX = ["functional-two-heads"]
KNOWN = {("recurrent-by-hooks", "compiled"): "RNN, GRU, or LSTM"}
"""What is known to fail, and a word of the reason."""


def _needs(name: str) -> None:
    family = name.split(":")[0]
    if family in ("timm", "hf"):
        pytest.importorskip({"timm": "timm", "hf": "transformers"}[family])


def mixer() -> torch.nn.Module:
    from timm.models.mlp_mixer import MlpMixer

    return MlpMixer(CLASSES, img_size=64, num_blocks=2, embed_dim=64)


def _keeps_all(name: str, onnx: bool) -> None:
    found = walk(name, onnx=onnx)
    for promise in (*PROMISES, *(["onnx"] if onnx else [])):
        if (name, promise) in KNOWN:
            assert KNOWN[name, promise] in str(found[promise])
        else:
            assert found.get(promise) is True, f"{promise}: {found.get(promise)}"


@pytest.mark.parametrize("name", SPREAD)
def test_all_promises(name, monkeypatch):
    _needs(name)
    if name == MIXER:
        monkeypatch.setitem(CASES, MIXER, (mixer, lambda: torch.randn(6, 3, 64, 64), None))
    if name in WITH_ONNX:
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    _keeps_all(name, name in WITH_ONNX)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in CASES if n not in SPREAD])
def test_every_architecture(name):
    _needs(name)
    _keeps_all(name, False)


def test_the_table_in_the_documentation_is_the_one_in_the_results():
    rows = json.loads((ROOT / "benchmarks/results/architectures.json").read_text())["rows"]
    page = (ROOT / "docs/architectures.md").read_text()
    ours = architectures.markdown({name: rows[name] for name in CASES if name in rows}).splitlines()
    assert "\n".join(line for line in ours if line.startswith("|")) in page
    assert [line for line in ours if line.startswith("- ") and line not in page] == []
    assert [name for name in rows if name not in CASES] == []


def test_multi_label_thresholds_against_brute_force():
    from tweaknn.network.adapt import thresholds

    g = torch.Generator().manual_seed(0)
    scores = torch.randint(-4, 5, (40, 5), generator=g).float()
    labels = (scores + torch.randn(40, 5, generator=g) * 3 > 1).long()
    labels[:, 4] = 1
    found = thresholds(scores, labels)

    def balanced(j, cut):
        hit, given = scores[:, j] > cut, labels[:, j] == 1
        return 0.5 * ((hit & given).sum() / given.sum() + (~hit & ~given).sum() / (~given).sum())

    for j in range(4):
        cuts = [c / 4 for c in range(-24, 25)]
        assert balanced(j, found[j]) == pytest.approx(float(max(balanced(j, c) for c in cuts)))
    assert found[4] == 0
