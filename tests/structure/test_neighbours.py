"""Pruned, mended and quantised by torchao, one after the other: the delta's gain outlives all three."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import TensorDataset

from benchmarks.pruning.int8 import Int8Conv2d, int8, weight_bytes
from tweaknn.join.run import SynapticJoin

from .test_pruner import start

TARGET = 3


def noisy(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Four classes by the faint colour of two halves."""
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 4
    x = torch.randn(n, 3, 8, 8, generator=g)
    x[:, 0, :4] += ((y % 2).float() - 0.5)[:, None, None]
    x[:, 1, 4:] += ((y // 2).float() - 0.5)[:, None, None]
    return x, y


def recalls(model: torch.nn.Module, data: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        right = (model(data[0]).argmax(1) == data[1]).double()
    return torch.stack([right[data[1] == c].mean() for c in range(4)])


@pytest.fixture(scope="module")
def healed():
    pytest.importorskip("torchao.quantization")
    x, y = noisy(512, 1)
    keep = (y != TARGET) | (torch.arange(len(y)) % 32 == TARGET)  # rare while it trains, so it is what there is to mend
    model, optimizer, pruner = start(steps=60, flops=0.4)
    for step in range(60):
        i = torch.randperm(int(keep.sum()), generator=torch.Generator().manual_seed(step))[:32]
        optimizer.zero_grad()
        F.cross_entropy(model(x[keep][i]), y[keep][i]).backward()
        optimizer.step()
        pruner.step()
    small = pruner.compact().eval()
    joined = SynapticJoin("fit", "overall", seed=0).fit(
        small, TensorDataset(x, y), TensorDataset(*noisy(512, 2)), targets=[TARGET], classes=list("abcd")
    )
    assert joined.delta is not None, joined.sentence
    return small, joined.delta.attach(small)


def test_a_pruned_mended_network_keeps_the_gain_as_int8(healed) -> None:
    small, mended = healed
    test = noisy(1024, 3)
    before, want = copy.deepcopy(small.state_dict()), recalls(mended, test)
    gain = want - recalls(small, test)
    assert float(gain[TARGET]) > 0.1
    small8, mended8 = int8(small), int8(mended)
    held = recalls(mended8, test) - recalls(small8, test)
    assert float(held[TARGET]) > 0.8 * float(gain[TARGET])
    assert float((recalls(mended8, test) - want).abs().max()) < 0.03
    for network in (small8, mended8):
        weights = [m.weight for m in network.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
        assert len(weights) > 3
        assert {type(w).__name__ for w in weights} == {"Int8Tensor"}
    assert weight_bytes(small8) < 0.5 * weight_bytes(small)
    assert weight_bytes(mended) > weight_bytes(small)
    after = small.state_dict()
    assert all(torch.equal(t, after[name]) for name, t in before.items())  # the float network is what it was


def test_int8_of_a_convolution_is_rounding_and_no_more(healed) -> None:
    """Each weight within half a step of its channel's scale, and the convolution is that of those weights."""
    quantised = int8(torch.nn.Sequential(conv := torch.nn.Conv2d(4, 6, 3, 2, 1, groups=2)))[0]
    assert isinstance(quantised, Int8Conv2d)
    weight = quantised.weight.dequantize().view_as(conv.weight)
    step = conv.weight.detach().flatten(1).abs().amax(1) / 127
    assert bool(((weight - conv.weight).flatten(1).abs() <= 0.51 * step[:, None]).all())
    x = torch.randn(2, 4, 8, 8)
    want = F.conv2d(x, weight, conv.bias, 2, 1, groups=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.allclose(quantised(x), want)
    assert not torch.equal(conv(x), want)
