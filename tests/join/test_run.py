"""The main job on a small network that learned real digits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tweaknn import Delta, Promise, SynapticJoin, diagnose, fingerprint
from tweaknn.demo import CLASSES, RARE, digits, train_base
from tweaknn.errors import InputError, ModelError, NothingHelps
from tweaknn.join.run import JoinResult
from tweaknn.join.warnings import size_warnings
from tweaknn.network.outputs import collect_logits


def loader(part, batch=64):
    return DataLoader(TensorDataset(*part), batch_size=batch)


@pytest.fixture(scope="module")
def data():
    return digits(0)


@pytest.fixture(scope="module")
def model(data):
    return train_base(*data.base)


@pytest.fixture(scope="module", params=["fit", "theta"])
def result(request, data, model) -> JoinResult:
    join = SynapticJoin(method=request.param, base_saw="none", cross_fit=False)
    return join.fit(model, loader(data.train), loader(data.validation), targets=[str(RARE)], classes=CLASSES)


def test_the_target_gains_and_the_promise_holds_on_validation(result, data, model):
    assert result.delta is not None
    best = result.best
    assert best.point.target > best.point.base_target
    logits, labels = collect_logits(result.delta.attach(model), loader(data.validation))
    # what the file does is what was promised, through the deployed path
    np.testing.assert_allclose(logits, best.logits, atol=2e-4)
    base, _ = collect_logits(model, loader(data.validation))
    before = [(base.argmax(1)[labels == j] == j).mean() for j in range(10)]
    after = [(logits.argmax(1)[labels == j] == j).mean() for j in range(10)]
    if result.promise.kind == "floors":
        assert all(b >= a - 1e-9 for a, b in zip(before, after, strict=True))
    else:
        assert (logits.argmax(1) == labels).mean() >= (base.argmax(1) == labels).mean()


def test_controls_stand_beside_the_result(result):
    names = {candidate.name for candidate in result.candidates}
    assert {"bias", "random-neurons", "last-layer"} < names
    figures = result.to_dict()
    assert figures["chosen"] in figures["candidates"]
    assert set(figures["candidates"]) == names
    assert result.delta.meta["candidates"].keys() == names, "the file keeps every candidate's figures"
    # the best on validation, or one it cannot be told from (see test_choice) that fits better
    best = max((c for c in result.candidates if c.point.feasible), key=lambda c: c.point.target)
    chosen = result.candidates[0]
    differing = int((best.logits.argmax(1) != chosen.logits.argmax(1)).sum())
    assert best.point.target - chosen.point.target <= differing**0.5 / best.comparison.base.counts[RARE] + 1e-12
    assert best.point.target == chosen.point.target or chosen.notes.get("log_loss", 9) <= best.notes.get("log_loss", 9)


def test_the_base_is_never_touched(data):
    model = train_base(*data.base, epochs=2)
    model.train()
    before, flags = fingerprint(model), [m.training for m in model.modules()]
    join = SynapticJoin(base_saw="none")
    join.fit(model, loader(data.train), loader(data.validation), worst=2, classes=CLASSES)
    assert fingerprint(model) == before
    assert [m.training for m in model.modules()] == flags
    assert not any(module._forward_hooks for module in model.modules())


def test_round_trip_through_a_file(result, data, model, tmp_path):
    path = tmp_path / "x.delta.safetensors"
    result.delta.save(path)
    again = Delta.load(path)
    x = data.test[0]
    with torch.no_grad():
        assert torch.equal(again.attach(model)(x), result.delta.attach(model)(x))
        assert torch.equal(again.attach(model).detach()(x), model(x))
    assert again.classes == tuple(CLASSES)


def test_same_seed_same_delta(data, model):
    def once():
        return SynapticJoin(seed=5).fit(model, loader(data.train), targets=[RARE], classes=CLASSES).require()

    a, b = once(), once()
    assert torch.equal(a.bias, b.bias)
    for s, t in zip(a.terms, b.terms, strict=True):
        assert all(torch.equal(value, t.head.tensors()[name]) for name, value in s.head.tensors().items())


def test_several_targets_and_tolerance(data, model):
    join = SynapticJoin(promise=Promise("floors", tolerance=0.02), base_saw="none")
    result = join.fit(model, loader(data.train), loader(data.validation), targets=["8", "3"], classes=CLASSES)
    drop = min(
        after - before
        for j, (before, after) in enumerate(
            zip(result.best.comparison.base.per_class, result.best.comparison.tweaked.per_class, strict=True)
        )
        if j not in (8, 3)
    )
    assert drop >= -0.02 - 1e-9


def test_groups_are_kept_together(data, model):
    groups = np.arange(len(data.train[1])) // 5
    join = SynapticJoin(seed=1, cross_fit=False)
    ready = join.prepare(model, TensorDataset(*data.train), groups=groups, classes=CLASSES)
    first = {tuple(row) for row in ready.train_table.logits.round(4).tolist()}
    assert len(ready.train_table.labels) + len(ready.validation_table.labels) == len(groups)
    assert len(first) <= len(ready.train_table.labels)


def test_nothing_helps_a_perfect_network(data):
    """Where the base makes no mistake there is nothing to win, and no file."""
    x, y = data.validation

    class Perfect(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden = nn.Linear(64, 64)

        def forward(self, x):
            return torch.relu(self.hidden(x.flatten(1)))[:, :10] * 0 + 10.0 * torch.nn.functional.one_hot(
                x.new_tensor([0]).long().expand(len(x)), 10
            )

    labels = torch.zeros(len(y), dtype=torch.int64)
    part = loader((x, labels))
    result = SynapticJoin().fit(Perfect(), part, part, targets=[0])
    assert result.delta is None
    assert result.chosen is None
    with pytest.raises(NothingHelps, match="Nothing found"):
        result.require()


def test_diagnose(data, model):
    found = diagnose(model, loader(data.test), classes=CLASSES, worst=1)
    assert found.worst == [str(RARE)]
    row = found.rows[RARE]
    assert row.low < row.accuracy < row.high
    assert row.mistakes == round((1 - row.accuracy) * row.n)


class Broken(nn.Module):
    """A network whose activations or logits become NaN for bright images."""

    def __init__(self, where):
        super().__init__()
        self.fc1, self.fc2, self.where = nn.Linear(64, 8), nn.Linear(8, 10), where

    def forward(self, x):
        h = torch.relu(self.fc1(x.flatten(1)))
        bad = torch.where(x.flatten(1).mean(1, keepdim=True) > 2, float("nan"), 0.0)
        return self.fc2(h + bad) if self.where == "hidden" else self.fc2(h) + bad


@pytest.mark.parametrize("where", ["hidden", "logits"])
def test_nan_names_the_example(data, where):
    x, y = data.train[0].clone(), data.train[1]
    x[37] = 9.0
    with pytest.raises(ModelError, match="example 37"):
        SynapticJoin().fit(Broken(where), loader((x, y), 16), loader(data.validation), targets=[1])


@pytest.mark.parametrize(
    ("settings", "arguments", "message"),
    [
        ({}, {"targets": ["melanoma"]}, r"Unknown class 'melanoma'; the classes are 0, 1"),
        ({}, {}, "Name the target classes"),
        ({}, {"worst": 0}, "at least 1"),
        ({"method": "magic"}, {"worst": 1}, "Unknown method 'magic'"),
        ({"base_saw": "maybe"}, {"worst": 1}, "base_saw"),
        ({"promise": "nothing"}, {"worst": 1}, "Unknown promise"),
        ({"layers": "nope"}, {"worst": 1}, "no layer 'nope'"),
    ],
)
def test_bad_arguments(data, model, settings, arguments, message):
    with pytest.raises((InputError, ModelError), match=message):
        SynapticJoin(**settings).fit(model, loader(data.train), loader(data.validation), classes=CLASSES, **arguments)


def test_target_without_examples(data, model):
    x, y = data.validation
    keep = y != 3
    with pytest.raises(InputError, match="Target class 3 has no example in the validation data"):
        SynapticJoin().fit(model, loader(data.train), loader((x[keep], y[keep])), targets=["3"], classes=CLASSES)


def test_labels_outside_the_logits(data, model):
    x, y = data.train
    wrong = y.clone()
    wrong[5] = 12
    with pytest.raises(Exception, match="12"):
        SynapticJoin().fit(model, loader((x, wrong)), loader(data.validation), targets=[1])


def test_warns_when_validation_was_seen(data, model):
    result = SynapticJoin(base_saw="validation").fit(
        model, loader(data.train), loader(data.validation), worst=1, classes=CLASSES
    )
    assert any("the base saw the validation data" in sentence for sentence in result.warnings)
    assert result.settings["n_validation"] == len(data.train[1]), "it chooses on what the base has not seen"
    result = SynapticJoin(method="fit", base_saw="both").fit(
        model, loader(data.train), loader(data.validation), worst=1, classes=CLASSES
    )
    assert any("the base was trained on the examples" in sentence for sentence in result.warnings)
    assert result.settings["caution"] > SynapticJoin(base_saw="none").fit(
        model, loader(data.train), loader(data.validation), worst=1, classes=CLASSES
    ).settings["caution"]
    # the base's own training data as validation: the accuracy gap gives it away
    result = SynapticJoin().fit(model, loader(data.train), loader(data.base), targets=[8], classes=CLASSES)
    assert any("validation was probably part" in s or "makes no mistake" in s for s in result.warnings)


def test_warns_of_thin_classes(result):
    assert any("few validation examples" in sentence for sentence in result.warnings) == (
        result.promise.kind == "floors" or True
    )


def test_theta_with_several_targets_keeps_the_promise(data, model):
    join = SynapticJoin(method="theta", promise="floors", base_saw="none", form="signed")
    result = join.fit(model, loader(data.train), loader(data.validation), targets=["8", "0", "9"], classes=CLASSES)
    for candidate in result.candidates:
        if candidate.name in ("theta", "bias", "random-neurons") and candidate.point.feasible:
            c = candidate.comparison
            assert c.worst_drop >= -1e-9, candidate.name
            assert set(candidate.delta.touched) <= {0, 8, 9}
    theta = next(candidate for candidate in result.candidates if candidate.name == "theta")
    assert theta.point.feasible, "scale 0 always keeps the promise"


def test_a_second_join_does_not_run_the_network_again(data, model, tmp_path, monkeypatch):
    from tweaknn.network.reader import Reader

    def fit(target):
        join = SynapticJoin(method="fit", base_saw="none", table=tmp_path / "t")
        return join.fit(model, loader(data.train), loader(data.validation), targets=[target], classes=CLASSES)

    plain = SynapticJoin(method="fit", base_saw="none").fit(
        model, loader(data.train), loader(data.validation), targets=["8"], classes=CLASSES
    )
    first = fit("8")
    assert torch.equal(first.require().bias, plain.require().bias), "stored or not, the same delta"
    seen = []
    run = Reader.__call__
    monkeypatch.setattr(Reader, "__call__", lambda self, x, sink: seen.append(len(x)) or run(self, x, sink))
    again, other = fit("8"), fit("3")
    assert max(seen, default=0) <= 1, "only the one example that the classes are counted on"
    assert torch.equal(again.require().bias, first.require().bias)
    assert other.targets == ["3"]


def test_a_join_says_that_the_first_of_several_outputs_is_taken():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 3)

        def forward(self, x):
            h = torch.relu(self.a(x))
            return self.b(h), self.c(h)

    torch.manual_seed(0)
    net, x = Two().eval(), torch.randn(120, 4)
    y = net(x)[1].argmax(1)
    result = SynapticJoin(method="fit", base_saw="none").fit(net, (x[:60], y[:60]), (x[60:], y[60:]), worst=1)
    assert any("first is taken" in sentence for sentence in result.warnings)
    result = SynapticJoin(method="fit", base_saw="none", head=0).fit(net, (x[:60], y[:60]), (x[60:], y[60:]), worst=1)
    assert not any("first is taken" in sentence for sentence in result.warnings)


def test_no_more_worst_classes_are_taken_than_there_are(model, data):
    with pytest.raises(InputError, match="There are 10 classes with examples to choose on, so the 40 worst"):
        SynapticJoin(method="fit").fit(model, loader(data.train), loader(data.validation), worst=40, classes=CLASSES)


def test_a_delta_of_more_numbers_than_its_network_says_so(result, model):
    few = nn.Linear(2, 2)
    (sentence,) = size_warnings(result.delta, few)
    assert f"{result.delta.parameters:,} numbers, more than the network it mends (6)" in sentence
    assert not size_warnings(None, few)
    wide = nn.Linear(1, result.delta.parameters, bias=False)
    assert not size_warnings(result.delta, wide)
