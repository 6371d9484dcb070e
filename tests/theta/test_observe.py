"""Streams over networks against tables and the plain loop; memory, passes, resuming, bad input."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.theta.networks import Residual, batches, labelled, network, values
from tweaknn.errors import DataError, InputError, ModelError, TableError
from tweaknn.network.pooling import pool
from tweaknn.network.reader import Reader
from tweaknn.theta import stream
from tweaknn.theta.blocks import plan
from tweaknn.theta.observe import observe
from tweaknn.theta.reference import algorithm_1
from tweaknn.theta.statistics import theta_all
from tweaknn.theta.synapses import stack

FIELDS = ("threshold", "count", "sign", "unbounded", "mistakes")


def whole(found):
    return stack([part for _, part in found.parts()])


def same(a, b):
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(a, field), getattr(b, field), err_msg=field)


@pytest.mark.parametrize("kind", ["fx", "hooks"])
@pytest.mark.parametrize("form", ["plain", "signed"])
def test_the_stream_equals_the_loop_on_a_real_network(kind, form):
    model, x, y = network(kind)
    reader = Reader(model, x[:2])
    assert reader.how == kind
    found = observe(reader, batches(x, y, 32), range(4), form=form)
    V, C = values(reader, x, found.settings.micro)
    assert V.shape[1] == reader.neurons
    same(whole(found), theta_all(V.numpy(), C.numpy(), y.numpy(), form=form))
    some = slice(None, None, 37)
    loop = algorithm_1(V.numpy()[:, some], C.numpy(), y.numpy(), form=form)
    ours = theta_all(V.numpy()[:, some], C.numpy(), y.numpy(), form=form)
    np.testing.assert_allclose(ours.threshold, loop.threshold, rtol=1e-6)
    np.testing.assert_array_equal(ours.count, loop.count)
    np.testing.assert_array_equal(ours.sign, loop.sign)


@pytest.mark.parametrize("form", ["plain", "signed"])
@pytest.mark.parametrize("memory", [400, 2_000, 5_000])
def test_any_memory_gives_the_same_bits(form, memory):
    model, x, y = network("fx")
    reader = Reader(model, x[:2])
    seen = []
    found = observe(reader, batches(x, y, 32), [2, 0], form=form, memory=memory, progress=seen.append)
    assert len(found.plan.passes) > 1
    assert found.plan.largest <= memory
    assert seen[-1] == 150 * len(found.plan.passes)
    same(whole(found), whole(observe(reader, batches(x, y, 32), [2, 0], form=form)))


@pytest.mark.parametrize("form", ["plain", "signed"])
def test_mistakes_that_do_not_fit_are_counted_in_a_second_pass(form):
    model, x, y = network("fx")
    reader = Reader(model, x[:2])
    whole_run = observe(reader, batches(x, y, 32), range(4), form=form)
    found = observe(reader, batches(x, y, 32), range(4), form=form, kept_memory=100)
    assert found.finisher.counts is not None
    same(whole(found), whole(whole_run))


@pytest.mark.parametrize("reduction", ["mean", "max", "grid2"])
def test_pooled_neurons(reduction):
    model, x, y = network("fx")
    reader = Reader(model, x[:2])
    found = observe(reader, batches(x, y, 50), range(4), reduction=reduction, form="signed")
    rows, logits = [], []
    for part in x.split(50):
        for micro in part.split(found.settings.micro):
            kept = []
            logits.append(
                reader(micro, lambda k, a, kept=kept: kept.append(pool(a, reader.layers[k].channel_axis, reduction)))
            )
            rows.append(torch.cat(kept, 1))
    expected = theta_all(torch.cat(rows).numpy(), torch.cat(logits).numpy(), y.numpy(), form="signed")
    np.testing.assert_allclose(whole(found).threshold, expected.threshold, rtol=1e-4)  # sums are cut differently
    np.testing.assert_array_equal(whole(found).count, expected.count)
    np.testing.assert_array_equal(whole(found).sign, expected.sign)


def test_threads_do_not_change_the_bits():
    model, x, y = network("fx")
    reader = Reader(model, x[:2])
    same(whole(observe(reader, batches(x, y, 32), range(4), threads=3)),
         whole(observe(reader, batches(x, y, 32), range(4), threads=1)))  # fmt: skip


def test_best_is_the_sorted_whole():
    model, x, y = network("fx")
    reader = Reader(model, x[:2])
    found = observe(reader, batches(x, y, 32), range(4), form="signed")
    table = whole(found)
    for t, best in found.best(20).items():
        order = table.rank(t, 20)
        np.testing.assert_array_equal(best.weight, table.weight[t, order])
        np.testing.assert_array_equal(best.count, table.count[t, order])
        starts = np.cumsum([0] + [layer.size for layer in reader.layers])
        np.testing.assert_array_equal(starts[best.layer] + best.index, order)


@pytest.mark.parametrize("form", ["plain", "signed"])
def test_full_accuracy_falls_back_with_a_second_pass(form):
    model, x, _ = network("fx")
    y = labelled(model, x, right=1.0)
    reader = Reader(model, x[:2])
    found = observe(reader, batches(x, y, 32), range(4), form=form)
    V, C = values(reader, x, found.settings.micro)
    expected = theta_all(V.numpy(), C.numpy(), y.numpy(), form=form)
    same(whole(found), expected)
    np.testing.assert_array_equal(whole(found).silent, expected.silent)
    best = found.best(10)
    starts = np.cumsum([0] + [layer.size for layer in reader.layers])
    for t in range(4):
        assert best[t].fell_back
        np.testing.assert_array_equal(starts[best[t].layer] + best[t].index, expected.rank(t, 10))


def test_parquet_holds_every_synapse(tmp_path):
    model, x, y = network("fx")
    reader = Reader(model, x[:2], layers="stages")
    found = observe(reader, batches(x, y, 32), [1, 3], form="signed")
    assert found.write(tmp_path / "s.parquet", ["a", "b", "c", "d"]) == 2 * reader.neurons
    rows = pq.read_table(tmp_path / "s.parquet").to_pylist()
    table = whole(found)
    names = [layer.name for layer in reader.layers]
    for row, name in enumerate("bd"):
        part = sorted((r for r in rows if r["class"] == name), key=lambda r: (names.index(r["layer"]), r["index"]))
        for column in ("threshold", "count", "sign", "active", "unbounded"):
            np.testing.assert_array_equal([r[column] for r in part], getattr(table, column)[row])
    assert [p.name for p in tmp_path.iterdir()] == ["s.parquet"]
    with pytest.raises(InputError, match="cannot be written"):
        found.write(tmp_path / "missing" / "s.parquet")


def test_plan_uses_the_fewest_passes_and_covers_every_neuron_once():
    rng = np.random.default_rng(0)
    for _ in range(50):
        sizes = rng.integers(1, 300, size=rng.integers(1, 8)).tolist()
        c, room = int(rng.integers(1, 5)), int(rng.integers(1, 400))
        made = plan(sizes, c, memory=5 * c * room, block=100)
        assert len(made.passes) == -(-sum(sizes) // room)
        assert made.largest <= 5 * c * room
        cells = [(b.layer, i) for p in made.passes for b in p for i in range(b.offset, b.offset + b.size)]
        assert sorted(cells) == [(k, i) for k, s in enumerate(sizes) for i in range(s)]
    with pytest.raises(InputError, match="too small"):
        plan([10], 1000, memory=100)


@pytest.mark.parametrize("room", [0, 1 << 20])
def test_later_passes_fold_the_same_bits_layer_by_layer_and_together(room, monkeypatch):
    model, x, y = network("fx")
    reader = Reader(model, x[:2])
    once = whole(observe(reader, batches(x, y, 32), range(4)))
    monkeypatch.setattr(stream, "MICRO_BYTES", room)
    monkeypatch.setattr(stream, "HELD_BYTES", room)
    known = []
    run_known = stream.Stream.run_known
    monkeypatch.setattr(stream.Stream, "run_known", lambda self, *a: (known.append(self.together), run_known(self, *a)))
    found = observe(reader, batches(x, y, 32), range(4), memory=8_000)
    assert known
    assert all((k == 1) == (room == 0) for k in known)
    same(whole(found), once)


def test_a_damaged_pass_is_refused_when_a_run_goes_on(tmp_path):
    model, x, y = network("fx")
    reader, options = Reader(model, x[:2]), {"memory": 8_000, "resume": tmp_path / "run"}
    whole_run = whole(observe(reader, batches(x, y, 32), range(4), **options))
    same(whole(observe(reader, batches(x, y, 32), range(4), **options)), whole_run)
    stored = tmp_path / "run" / "pass1.npz"
    good = stored.read_bytes()
    for damage in (good[: len(good) // 2], b"", bytes([*good[: len(good) // 2], good[len(good) // 2] ^ 4, *good[len(good) // 2 + 1 :]])):
        stored.write_bytes(damage)
        with pytest.raises(TableError, match=r"pass1\.npz is damaged"):
            observe(reader, batches(x, y, 32), range(4), **options)


KILLED = """
import os, signal, sys, torch
sys.path[:0] = {path!r}
torch.set_num_threads(1)
from tests.theta.networks import batches, network
from tweaknn.network.reader import Reader
from tweaknn.theta import checkpoint
from tweaknn.theta.observe import observe
model, x, y = network("fx")
saves, at = [0], int(sys.argv[2])
real = checkpoint.os.replace
def replace(a, b):
    real(a, b)
    saves[0] += 1
    if saves[0] == at:
        os.kill(os.getpid(), signal.SIGKILL)
checkpoint.os.replace = replace
memory = int(sys.argv[3]) or None
observe(Reader(model, x[:2]), batches(x, y, 16), range(4), form="signed", memory=memory,
        resume=sys.argv[1], shard=16, every=0)
"""


@pytest.mark.parametrize(("at", "memory"), [(5, 0), (14, 20_000)])
def test_a_killed_run_goes_on_and_ends_with_the_same_bits(tmp_path, at, memory):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        code = KILLED.format(path=[os.getcwd(), *sys.path])
        arguments = [sys.executable, "-c", code, str(tmp_path / "run"), str(at), str(memory)]
        killed = subprocess.run(arguments, capture_output=True)
        assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
        (tmp_path / "run" / ".pass0.npz.abc.part").write_bytes(b"begun")  # as if killed while writing
        model, x, y = network("fx")
        reader = Reader(model, x[:2])
        options = {"form": "signed", "memory": memory or None}
        seen = []
        run = observe(reader, batches(x, y, 16), range(4), **options, resume=tmp_path / "run", progress=seen.append)
        assert seen[0] >= 16  # what was finished is not run again
        assert seen[-1] == 150 * len(run.plan.passes)
        same(whole(run), whole(observe(reader, batches(x, y, 16), range(4), **options)))
        assert not list((tmp_path / "run").glob(".*.part"))
        with pytest.raises(InputError, match="another run"):
            observe(reader, batches(x, y, 16), range(3), resume=tmp_path / "run")
    finally:
        torch.set_num_threads(threads)


class Bad(nn.Module):
    """Makes one layer NaN for large inputs, though the logits stay finite."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.a, self.value = nn.Linear(3, 5), value
        self.act, self.head = nn.ReLU(), nn.Linear(5, 3)

    def forward(self, x):
        h = torch.where(x[:, :1] > 100, torch.full((1,), self.value), self.act(self.a(x)))
        g = torch.sigmoid(h)
        return self.head(torch.nan_to_num(g))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("form", ["plain", "signed"])
def test_bad_activations_name_layer_and_example(value, form):
    torch.manual_seed(0)
    x = torch.randn(60, 3)
    x[37] = 200
    model = Bad(value)
    y = labelled(model, x, right=1.0, classes=3)
    reader = Reader(model, x[:2], layers="where")
    with pytest.raises(ModelError, match=r"Layer where .* example 37"):
        observe(reader, batches(x, y, 16), range(3), form=form)


def test_bad_input():
    model, x, y = network("fx")
    reader = Reader(model, x[:2])
    good = batches(x, y, 32)
    with pytest.raises(DataError, match="Example 40 has label 9"):
        observe(reader, batches(x, torch.where(torch.arange(150) == 40, 9, y), 32), [0])
    with pytest.raises(InputError, match="4 classes"):
        observe(reader, good, [7])
    with pytest.raises(DataError, match="no examples"):
        observe(reader, [], [0])
    with pytest.raises(DataError, match="integers"):
        observe(reader, batches(x, y.float(), 32), [0])
    with pytest.raises(InputError, match="iterator"):
        observe(reader, iter(good), [0])
    with pytest.raises(InputError, match="shuffles"):
        observe(reader, DataLoader(TensorDataset(x, y), 32, shuffle=True), [0])
    with pytest.raises(DataError, match="one size"):
        observe(reader, [good[0], (x[:5], y[:5]), good[1]], [0])
    with pytest.raises(DataError, match="pair"):
        observe(reader, [x[:4]], [0])
    x = x.clone()
    x[77, 0, 0, 0] = float("nan")
    with pytest.raises(ModelError, match="logits of example 77"):
        observe(reader, batches(x, y, 32), [0])


class Lying(TensorDataset):
    def __len__(self):
        return 200

    def __getitem__(self, i):
        if i >= 150:
            raise IndexError(i)
        return super().__getitem__(i)


def test_a_data_set_that_lies_about_its_length():
    model, x, y = network("fx")

    class Loader:
        def __len__(self):
            return 9

        def __iter__(self):
            return iter(batches(x, y, 32))

    with pytest.raises(DataError, match="ends after 5"):
        observe(Reader(model, x[:2]), Loader(), [0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(dtype):
    torch.manual_seed(0)
    model = Residual().to(dtype).eval()
    x = torch.randn(60, 3, 8, 8, dtype=dtype)
    y = labelled(model, x)
    reader = Reader(model, x[:2])
    found = observe(reader, batches(x, y, 20), range(4))
    V, C = values(reader, x, 20 if found.settings.micro >= 20 else found.settings.micro)
    assert len(V) == 60
    same(whole(found), theta_all(V.float().numpy(), C.float().numpy(), y.numpy()))
