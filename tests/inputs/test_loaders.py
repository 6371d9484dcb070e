"""What a Python user hands over: samplers, dictionaries, labels of every kind, networks without numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset, WeightedRandomSampler

from tweaknn import SynapticJoin, diagnose, fingerprint
from tweaknn.errors import DataError, InputError, ModelError, TweaknnError
from tweaknn.inputs import as_examples
from tweaknn.network.reader import Reader

X = torch.randn(120, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(120) % 3


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = net()

    def forward(self, values, scale):
        return self.body(values * scale[:, None])


def test_a_subset_sampler_names_the_part_that_is_meant():
    whole = TensorDataset(X, Y)
    at = [7, 3, 50, 90]
    found = as_examples(DataLoader(whole, batch_size=2, sampler=SubsetRandomSampler(at)))
    assert sorted(map(tuple, found.batch(range(4))[0].tolist())) == sorted(map(tuple, X[at].tolist()))
    again = as_examples(DataLoader(as_examples((X, Y)), batch_size=2, sampler=SubsetRandomSampler(at)))
    assert again.labels.tolist() == found.labels.tolist()
    drawn = as_examples(DataLoader(whole, batch_size=8, sampler=WeightedRandomSampler(torch.ones(120), 33)))
    assert len(drawn) == 33
    assert len(as_examples(DataLoader(whole, batch_size=7, shuffle=True, drop_last=True))) == 120


def test_batches_of_dictionaries():
    def collate(rows):
        x, y = zip(*rows, strict=True)
        return {"values": torch.stack(x), "scale": torch.ones(len(x))}, torch.stack(y)

    loader = DataLoader(TensorDataset(X, Y), batch_size=16, collate_fn=collate)
    join = SynapticJoin(method="fit", promise="overall", base_saw="none", cross_fit=False)
    assert join.fit(Named().eval(), loader, loader, targets=[1]).candidates
    assert len(diagnose(Named().eval(), loader).worst) == 3
    for data in ([{"values": X, "labels": Y}], [X]):
        with pytest.raises(TweaknnError, match="pairs"):
            as_examples(iter(data))
        with pytest.raises(InputError, match="pairs"):
            diagnose(net(), data)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.array(["ant", "bee", "cat"] * 40), "positions"),
        (Y + 0.5, "whole numbers"),
        (torch.where(Y == 1, torch.nan, Y.float()), "whole numbers"),
    ],
)
def test_labels_that_are_none(labels, said):
    with pytest.raises(DataError, match=said):
        as_examples((X, labels))
    with pytest.raises(InputError, match="whole numbers"):
        diagnose(net(), [(X, labels)])


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.float32, torch.float16, torch.int32])
def test_labels_of_any_kind_of_number(kind):
    assert as_examples((X, Y.to(kind))).labels.tolist() == Y.tolist()
    worst = diagnose(net().eval(), (X, Y)).worst
    assert diagnose(net().eval(), [(X, Y.to(kind)[:, None])]).worst == worst
    assert diagnose(net().eval(), TensorDataset(X, Y)).worst == worst


@pytest.mark.parametrize("answers", [nn.functional.one_hot(Y), torch.zeros(120, 5, 5, dtype=torch.long)])
def test_several_answers_are_not_taken_for_class_0(answers):
    with pytest.raises(InputError, match="where one class is needed"):
        SynapticJoin(method="fit").fit(net(), (X, answers), (X, answers), targets=[0])


def test_numpy_arrays_turned_round():
    found = as_examples((X.numpy()[:, ::-1], Y.numpy()[::-1]))
    assert torch.equal(found.batch([0])[0], X[:1].flip(1))


def test_a_network_on_meta_is_one_sentence():
    empty = net().to("meta")
    for use in (lambda: diagnose(empty, [(X, Y)]), lambda: fingerprint(empty), lambda: Reader(empty, X[:2])):
        with pytest.raises(ModelError, match="holds no numbers"):
            use()


def test_a_later_batch_of_another_shape_is_one_sentence():
    with pytest.raises(ModelError, match=r"batch of shape \(120, 3\).*\(1, 4\)"):
        SynapticJoin(method="fit", cross_fit=False).fit(net(), (X, Y), (X[:, :3], Y), targets=[0])
    with pytest.raises(ModelError, match=r"batch of shape \(120, 3\)"):
        diagnose(net(), [(X[:, :3], Y)])
