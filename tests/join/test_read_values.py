"""Values of chosen neurons, in the order in which they were asked for."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tweaknn.delta import Read
from tweaknn.join.table import read_values
from tweaknn.network.reader import Reader


def test_the_order_is_the_callers_across_layers_and_batches():
    torch.manual_seed(0)
    first, second = nn.Linear(3, 5), nn.Linear(5, 4)
    model = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Linear(4, 2)).eval()
    x = torch.randn(11, 3)
    reader = Reader(model, x[:2])
    layers = {layer.name: layer for layer in reader.layers}
    early, late = "1", "3"  # the two ReLUs

    def read(name: str, *index: int) -> Read:
        layer = layers[name]
        return Read(name, "position", layer.shape, layer.channel_axis, torch.tensor(index))

    # the later layer first, and the early one twice, around it
    asked = [read(late, 3, 0), read(early, 1), read(late, 2), read(early, 4, 0)]
    done: list[int] = []
    found = read_values(reader, DataLoader(TensorDataset(x, torch.zeros(11).long()), 4), asked, progress=done.append)
    assert done == [4, 8, 11]
    with torch.no_grad():
        a = first(x).relu()
        b = second(a).relu()
    expected = np.stack([b[:, 3], b[:, 0], a[:, 1], b[:, 2], a[:, 4], a[:, 0]], axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
