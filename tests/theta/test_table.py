"""Table T: written once, reused, refused, resumed."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from tests.theta.networks import batches, network
from tweaknn.delta.value import Read
from tweaknn.errors import InputError, ModelError, TableError
from tweaknn.network.fingerprint import fingerprint
from tweaknn.network.reader import Reader
from tweaknn.theta import checkpoint
from tweaknn.theta.table import open_table, table


class Counting:
    """Batches that count how many of them were read."""

    def __init__(self, x, y, size):
        self.list, self.reads = batches(x, y, size), 0

    def __len__(self):
        return len(self.list)

    def __iter__(self):
        for batch in self.list:
            self.reads += 1
            yield batch


def columns(reader):
    picked = [(1, "position", [5, 0, 17]), (0, "mean", [2, 3]), (3, "max", [1])]
    return [
        Read(reader.layers[k].name, how, reader.layers[k].shape, reader.layers[k].channel_axis, torch.tensor(i))
        for k, how, i in picked
    ]


@pytest.fixture
def case():
    model, x, y = network("fx")
    reader = Reader(model, x[:2])
    return reader, columns(reader), x, y


def expected(case):
    reader, wanted, x, _ = case
    rows, logits = [], []
    for part in x.split(20):
        found = {}

        def sink(k, a, found=found):
            for c, read in enumerate(wanted):
                if reader.layers[k].name == read.layer:
                    found[c] = read.pick(a).clone()

        logits.append(reader(part, sink))
        rows.append(torch.cat([found[c] for c in range(3)], 1))
    return torch.cat(rows).numpy(), torch.cat(logits).numpy()


def test_values_logits_and_labels_are_those_of_the_network(tmp_path, case):
    reader, wanted, x, y = case
    done = []
    t = table(tmp_path, reader, batches(x, y, 20), wanted, data="d", shard=40, progress=done.append)
    values, logits = expected(case)
    np.testing.assert_array_equal(t.values, values)
    np.testing.assert_array_equal(t.logits, logits)
    np.testing.assert_array_equal(t.labels, y.numpy())
    assert (len(t), len(t.manifest["shards"]), done[-1]) == (150, 4, 150)
    np.testing.assert_array_equal(np.concatenate([v for v, _, _ in t.batches()]), values)


def test_a_second_run_does_not_run_the_network(tmp_path, case):
    reader, wanted, x, y = case
    first = table(tmp_path, reader, batches(x, y, 20), wanted, data="d", shard=40)
    source = Counting(x, y, 20)
    second = table(tmp_path, reader, source, wanted, data="d", shard=40)
    assert source.reads == 1  # only to learn the batch size
    np.testing.assert_array_equal(first.values, second.values)


def test_other_base_data_or_neurons_are_another_table(tmp_path, case):
    reader, wanted, x, y = case
    first = table(tmp_path, reader, batches(x, y, 20), wanted, data="d")
    assert table(tmp_path, reader, batches(x, y, 20), wanted, data="e").folder != first.folder
    assert table(tmp_path, reader, batches(x, y, 20), wanted[:1], data="d").folder != first.folder
    open_table(first.folder, base=fingerprint(reader.model), data="d")
    with pytest.raises(TableError, match="another data"):
        open_table(first.folder, data="e")
    with torch.no_grad():
        reader.model.head.bias += 1
    assert table(tmp_path, reader, batches(x, y, 20), wanted, data="d").folder != first.folder
    with pytest.raises(TableError, match="another base"):
        open_table(first.folder, base=fingerprint(reader.model))


@pytest.mark.parametrize("at", [1, 3, 5])
def test_interrupted_at_any_file_it_goes_on(tmp_path, case, monkeypatch, at):
    reader, wanted, x, y = case
    real, calls = checkpoint.os.replace, [0]

    def replace(a, b):
        calls[0] += 1
        if calls[0] == at:
            raise KeyboardInterrupt
        real(a, b)

    monkeypatch.setattr(checkpoint.os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        table(tmp_path, reader, batches(x, y, 20), wanted, data="d", shard=40)
    monkeypatch.undo()
    assert not list(tmp_path.rglob("*.part"))
    t = table(tmp_path, reader, batches(x, y, 20), wanted, data="d", shard=40)
    np.testing.assert_array_equal(t.values, expected(case)[0])


def test_damage_is_found(tmp_path, case):
    reader, wanted, x, y = case
    t = table(tmp_path, reader, batches(x, y, 20), wanted, data="d", shard=40)
    manifest = t.folder / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text.replace('"examples": 150', '"examples": 151'))
    with pytest.raises(TableError, match="altered"):
        open_table(t.folder)
    manifest.write_text(text[:50])
    with pytest.raises(TableError, match="damaged"):
        open_table(t.folder)
    manifest.write_text(json.dumps({**json.loads(text), "format": 99}))
    with pytest.raises(TableError, match="format 99"):
        open_table(t.folder)
    manifest.write_text(text)
    shard = t.folder / t.manifest["shards"][1]["file"]
    data = bytearray(shard.read_bytes())
    data[-3] ^= 1
    shard.write_bytes(bytes(data))
    with pytest.raises(TableError, match="altered"):
        table(tmp_path, reader, batches(x, y, 20), wanted, data="d", shard=40)
    shard.unlink()
    with pytest.raises(TableError, match="missing"):
        open_table(t.folder)
    with pytest.raises(TableError, match="no finished table"):
        open_table(tmp_path)


def test_bad_input_leaves_no_table(tmp_path, case):
    reader, wanted, x, y = case
    x = x.clone()
    x[45] = float("nan")
    with pytest.raises(ModelError, match="example 45"):
        table(tmp_path, reader, batches(x, y, 20), wanted, data="d")
    assert not list(tmp_path.rglob("manifest.json"))
    with pytest.raises(InputError, match="not read"):
        table(tmp_path, Reader(reader.model, x[:2], layers="stages"), batches(x, y, 20), wanted, data="d")


def test_a_full_disk_is_one_sentence(tmp_path, case, monkeypatch):
    reader, wanted, x, y = case

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(InputError, match="No space left on device"):
        table(tmp_path, reader, batches(x, y, 20), wanted, data="d")
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
