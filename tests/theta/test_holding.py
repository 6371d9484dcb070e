"""What is kept by reference instead of being copied, and work on torch's own threads."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from tests.theta.networks import batches, network
from tests.theta.test_observe import same, whole
from tweaknn.network.reader import Reader
from tweaknn.theta import stream
from tweaknn.theta.holding import keepable
from tweaknn.theta.observe import observe
from tweaknn.theta.team import together


def test_in_place_operations_are_seen_through():
    """What is kept by reference must never be overwritten: exactly the layers an in-place operation follows."""
    model, x, _ = network("fx")
    reader = Reader(model, x[:2], layers=["relu", "act", "shared_1", "act_1", "gelu"])
    kept = dict(zip([layer.name for layer in reader.layers], keepable(reader)))
    assert kept["shared_1"] is False  # y.add_(x) writes to it
    assert kept["gelu"] is True
    held = {}
    reader(x[:8], lambda k, a: held.setdefault(k, (a, a.clone())))
    for k, (reference, copy) in held.items():
        if keepable(reader)[k]:
            assert torch.equal(reference, copy)


def test_what_is_only_added_to_something_else_is_kept_by_reference():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
            self.norm, self.head = nn.BatchNorm1d(6), nn.Linear(6, 3)

        def forward(self, x):
            first = torch.relu(self.a(x))
            return self.head(torch.relu(self.norm(self.b(first)) + first))

    torch.manual_seed(0)
    model, x = Block().eval(), torch.randn(8, 6)
    reader = Reader(model, x)
    assert keepable(reader) == [True, True]  # the sum is written over its first term, which nobody observes
    held = {}
    reader(x, lambda k, a: held.setdefault(k, (a, a.clone())))
    assert all(torch.equal(reference, copy) for reference, copy in held.values())


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "densenet121", "googlenet", "convnext_tiny"])
def test_nothing_kept_by_reference_changes_in_torchvision_networks(name):
    import torchvision

    torch.manual_seed(0)
    options = {"init_weights": False} if name == "googlenet" else {}
    model = torchvision.models.get_model(name, weights=None, **options).eval()
    x = torch.randn(2, 3, 64, 64)
    reader = Reader(model, x)
    flags, held = keepable(reader), {}
    reader(x, lambda k, a: held.setdefault(k, (a, a.clone())) if flags[k] else None)
    for k, (reference, copy) in held.items():
        assert torch.equal(reference, copy), reader.layers[k].name


def test_torchs_own_threads_share_work_and_hand_back_what_went_wrong():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        who = []
        if not together(lambda: who.append(threading.get_ident()), 2):
            pytest.skip("torch runs on another OpenMP runtime here")
        assert len(set(who)) == 2
        assert together(lambda: torch.ones(1000).sum(), 2)
        assert torch.ones(100_000).sum() == 100_000

        def fails():
            raise ValueError("lost")

        with pytest.raises(ValueError, match="lost"):
            together(fails, 2)
        assert not together(lambda: who.append(0), 1)
        assert not together(lambda: who.append(0), 3)
        assert 0 not in who
    finally:
        torch.set_num_threads(threads)


def test_folding_on_torchs_threads_gives_the_same_bits(monkeypatch):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        if not together(lambda: None, 2):
            pytest.skip("torch runs on another OpenMP runtime here")
        shared = []
        monkeypatch.setattr(stream, "together", lambda work, n: shared.append(together(work, n)) or shared[-1])
        model, x, y = network("fx")
        reader = Reader(model, x[:2])
        two = whole(observe(reader, batches(x, y, 32), range(4), threads=2))
        assert shared
        assert all(shared)
        same(two, whole(observe(reader, batches(x, y, 32), range(4), threads=1)))
    finally:
        torch.set_num_threads(threads)
