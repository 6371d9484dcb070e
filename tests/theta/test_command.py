"""``tweaknn synapses`` on files, against the plain loop."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from tests.theta.networks import network, values
from tweaknn.cli.app import run
from tweaknn.errors import InputError
from tweaknn.network.reader import Reader
from tweaknn.theta.command import duration, parse_bytes, positions
from tweaknn.theta.reference import algorithm_1

MODEL = """
import torch
from tests.theta.networks import network
def make():
    return network("fx", n=90)[0]
def data():
    _, x, y = network("fx", n=90)
    return torch.utils.data.TensorDataset(x, y)
"""


@pytest.fixture
def files(tmp_path):
    (tmp_path / "net.py").write_text(MODEL)
    return tmp_path


def call(files, *more):
    base = ["synapses", "--model", f"{files}/net.py:make", "--data", f"{files}/net.py:data"]
    return run([*base, "--out", f"{files}/s.parquet", "--batch-size", "32", *more])


def test_the_file_is_what_the_loop_says(files):
    assert call(files, "--layers", "gelu", "--form", "signed", "--json", f"{files}/s.json", "--memory", "5kB") == 0
    model, x, y = network("fx", n=90)
    reader = Reader(model, x[:2], layers="gelu")
    V, C = values(reader, x, 32)
    loop = algorithm_1(V.numpy(), C.numpy(), y.numpy(), form="signed")
    rows = pq.read_table(files / "s.parquet").to_pylist()
    assert len(rows) == 4 * V.shape[1]
    for j in range(4):
        mine = sorted((r for r in rows if r["class"] == str(j)), key=lambda r: r["index"])
        np.testing.assert_allclose([r["threshold"] for r in mine], loop.threshold[j], rtol=1e-6)
        for column in ("count", "sign", "active", "unbounded"):
            np.testing.assert_array_equal([r[column] for r in mine], getattr(loop, column)[j])
    said = json.loads((files / "s.json").read_text())
    assert said["passes"] > 1
    assert said["mistakes"] == {str(j): int(loop.mistakes[j]) for j in range(4)}
    for j in range(4):
        assert said["best"][str(j)][0]["index"] == int(loop.rank(j, 1)[0])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--target", "zebra"), "no class 'zebra'; the classes are 0, 1, 2, 3"),
        (("--memory", "much"), "no amount of memory"),
        (("--memory", "1B"), "too small"),
        (("--layers", "nowhere"), "nowhere"),
        (("--out", "/nowhere/s.parquet"), "cannot be written"),
        (("--device", "cuda:9,cuda:8"), "cuda:9"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(files, capsys, arguments, sentence):
    assert call(files, *arguments) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert sentence in said
    assert "Traceback" not in said
    assert sorted(p.name for p in files.iterdir() if not p.name.startswith("__")) == ["net.py"]


def test_amounts_and_durations():
    assert [parse_bytes(t) for t in ("4GB", "512MiB", "1.5k", "100")] == [4_000_000_000, 512 << 20, 1500, 100]
    with pytest.raises(InputError):
        parse_bytes("-3GB")
    assert [duration(s) for s in (3, 75, 7300)] == ["3 s", "1 min 15 s", "2 h 1 min"]
    assert positions(["b", "0"], ["a", "b"], 2) == [1, 0]


def test_a_real_network_agrees_with_the_loop(shared):
    """The third-party ResNet-20 on JPEG CIFAR images: a slice of its neurons against the plain loop."""
    from safetensors.torch import load_file

    from benchmarks.networks import MEAN, STD, resnet20
    from tweaknn.inputs import load_data
    from tweaknn.theta.observe import observe

    model = resnet20().eval()
    model.load_state_dict(load_file(shared / "models" / "cifar10-resnet20.safetensors"), strict=False)
    data = load_data(str(shared / "data" / "cifar10-jpeg" / "test.parquet"))
    x, y = data.batch(np.arange(0, 5000, 25))
    x = (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    reader = Reader(model, x[:2])
    assert (len(reader.layers), reader.neurons) == (19, 188_416)
    found = observe(reader, [(x[a : a + 64], y[a : a + 64]) for a in range(0, 200, 64)], [2, 3], form="signed")
    V, C = values(reader, x, found.settings.micro)
    from tweaknn.theta.synapses import stack

    table = stack([part for _, part in found.parts()])
    some = np.arange(0, 188_416, 1501)
    loop = algorithm_1(V.numpy()[:, some], C.numpy(), y.numpy(), [2, 3], form="signed")
    bounded = ~loop.unbounded & ~table.unbounded[:, some]  # the cap of the others needs all neurons
    same_sign = bounded & (table.sign[:, some] == loop.sign)
    assert same_sign.mean() > 0.5
    np.testing.assert_allclose(table.threshold[:, some][same_sign], loop.threshold[same_sign], rtol=1e-6)
    np.testing.assert_array_equal(table.count[:, some][same_sign], loop.count[same_sign])
