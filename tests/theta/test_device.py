"""Other devices and net gain, against the compiled kernels and brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.theta.networks import batches, network
from tests.theta.test_observe import same, whole
from tests.theta.test_statistics import tables
from tweaknn.errors import ModelError
from tweaknn.network.reader import Reader
from tweaknn.theta import device
from tweaknn.theta.gain import net_gain
from tweaknn.theta.observe import observe
from tweaknn.theta.state import start
from tweaknn.theta.statistics import update


@pytest.mark.parametrize("form", ["plain", "signed"])
@pytest.mark.parametrize("budget", [1, 3])
def test_two_devices_give_the_same_bits(form, budget, monkeypatch):
    """Scheduling on two CPU devices; the kernel is that of devices without a compiler."""
    model, x, y = network("fx")
    reader = Reader(model, x[:2])
    options = {"form": form, "budget": budget}
    used = []
    real = device.DeviceAccumulator.__init__

    def init(self, block, targets, form, budget, device, own=False):
        used.append((device, block.size))
        real(self, block, targets, form, budget, device.split("#")[0], own)

    monkeypatch.setattr(device.DeviceAccumulator, "__init__", init)
    found = observe(reader, batches(x, y, 32), range(4), devices=["cpu", "cpu:0"], **options)
    shares = [sum(size for d, size in used if d == name) for name in ("cpu", "cpu:0")]
    assert min(shares) > 0.25 * reader.neurons
    assert sum(shares) == reader.neurons
    same(whole(found), whole(observe(reader, batches(x, y, 32), range(4), **options)))


def test_the_fused_form_equals_the_one_by_class():
    torch.manual_seed(0)
    values, inverse = torch.randn(9, 40), torch.rand(9, 7)
    for signed in (False, True):
        a = device.largest_ratios(values, inverse, signed)
        assert torch.equal(a, device._by_class(values, inverse, signed))
        expected = np.max(abs(values.numpy())[:, None] * inverse.numpy()[:, :, None], axis=0)
        if not signed:
            np.testing.assert_array_equal(a[0].numpy(), expected)


def test_the_compiled_form_equals_torch():
    torch.manual_seed(0)
    values, inverse = torch.randn(5, 33), torch.rand(5, 3)
    try:
        compiled = torch.compile(device.largest_ratios, dynamic=True)
        out = compiled(values, inverse, True)
    except Exception as error:
        pytest.skip(f"NO COMPILER FOR TORCH: the GPU path is only tested uncompiled ({type(error).__name__})")
    assert torch.equal(out, device.largest_ratios(values, inverse, True))


def test_a_device_that_is_not_there():
    model, x, y = network("fx")
    with pytest.raises(ModelError, match="cannot be used"):
        observe(Reader(model, x[:2]), batches(x, y, 32), [0], devices=["cuda:0", "cuda:7"])


@pytest.mark.parametrize("budget", [1, 4, 40])
def test_net_gain_is_that_of_brute_force(budget):
    rng = np.random.default_rng(budget)
    V, C, labels = tables(rng, n=80, v=9, negative=False)
    state = update(start(range(4), 9, levels=budget), V, C, labels)
    found = net_gain(state)
    right, margin = C.argmax(1) == labels, (C.max(1, keepdims=True) - C).astype(np.float64)
    for j in range(4):
        bounded, wrong = right & (labels != j), ~right & (labels == j)
        caps = [np.sort(margin[bounded & (V[:, i] > 0), j] / V[bounded & (V[:, i] > 0), i]) for i in range(9)]
        for i in range(9):
            bounds = caps[i]
            hits = margin[wrong & (V[:, i] > 0), j] / V[wrong & (V[:, i] > 0), i]
            weights = bounds[:budget] * (1 - 1e-4)
            gains = [(hits <= w).sum() - (bounds <= w).sum() for w in weights]
            best = max([0, *gains])
            if len(bounds) >= budget:
                assert found.gain[j, i] == best
            assert found.corrected[j, i] - found.harmed[j, i] == found.gain[j, i]
            w = float(found.weight[j, i])
            assert (hits <= w).sum() == found.corrected[j, i]
            assert (bounds <= w).sum() == found.harmed[j, i]
            if found.certain[j, i]:
                everything = [0, *((hits <= w).sum() - (bounds < w).sum() for w in hits)]
                assert found.gain[j, i] >= max(everything) - 1e-9 or len(bounds) < budget
