"""Architectures of every family through the same promises; the full list is ``benchmarks/architectures.py``."""

from __future__ import annotations

import pytest

from benchmarks.architectures import CASES, PROMISES, walk

LIGHT = ["log-softmax", "binary-one-logit", "functional-two-heads"]
EXPORTED = ["hf:Bert"]
UNTIL_LOADED = [
    "multi-label",
    "recurrent-by-hooks",
    "hf:ViT",
    "hf:ResNet",
    "hf:Wav2Vec2",
    "torchvision:squeezenet1_1",
]


def _needs(name: str) -> None:
    family = name.split(":")[0]
    if family in ("timm", "hf"):
        pytest.importorskip({"timm": "timm", "hf": "transformers"}[family])


@pytest.mark.parametrize("name", LIGHT)
def test_all_promises(name):
    _needs(name)
    found = walk(name)
    assert {p: found.get(p) for p in PROMISES} == dict.fromkeys(PROMISES, True)


@pytest.mark.parametrize("name", EXPORTED)
def test_all_promises_but_compiled(name):
    _needs(name)
    found = walk(name, compiled=False)
    assert {p: found.get(p) for p in PROMISES[:7]} == dict.fromkeys(PROMISES[:7], True)


@pytest.mark.parametrize("name", UNTIL_LOADED)
def test_promises_of_the_delta(name, monkeypatch):
    _needs(name)
    import tweaknn.delta.export

    monkeypatch.setattr(tweaknn.delta.export, "export", lambda *args, **kwargs: 0.0)
    found = walk(name, compiled=False)
    assert {p: found.get(p) for p in PROMISES[:6]} == dict.fromkeys(PROMISES[:6], True)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in CASES if n not in LIGHT])
def test_every_architecture(name):
    _needs(name)
    found = walk(name, compiled=False)
    for promise in PROMISES[:6]:
        assert found.get(promise) is True, found.get(promise)


def test_multi_label_thresholds_against_brute_force():
    import torch

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
