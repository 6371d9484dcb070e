"""Schedules: what is accepted, that scopes are nested, and that later joins count on nn + Δnn."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tweaknn import SynapticJoin
from tweaknn.cli.app import run
from tweaknn.demo import CLASSES, RARE, digits, train_base
from tweaknn.errors import InputError
from tweaknn.join.checks import check
from tweaknn.join.schedule import SoFar, parse, scopes
from tweaknn.network.outputs import collect_logits
from tweaknn.network.reader import Reader

TABLE_3_9 = "J100+R100+J50+R50+J10+R10+J10"


@pytest.fixture(scope="module")
def data():
    return digits(0)


@pytest.fixture(scope="module")
def model(data):
    return train_base(*data.base)


def test_the_dissertations_own():
    assert [str(s) for s in parse(TABLE_3_9)] == TABLE_3_9.split("+")
    assert parse("j3 + r3") == parse("J3+R3")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "Step 1"),
        ("J10+", "Step 2 of the schedule 'J10\\+' is ''"),
        ("J10+X5", "is 'X5'; a step is J"),
        ("R10+J10", "nothing to retrain before a join"),
        ("J0", "no class"),
        ("J10+R10+J50", "widens the scope from 10 to 50"),
        ("J10R10", "Step 1"),
        ("J1.5", "Step 1"),
    ],
)
def test_malformed_schedules(text, said):
    with pytest.raises(InputError, match=said):
        parse(text)
    with pytest.raises(InputError, match=said):
        check(SynapticJoin(method="schedule", schedule=text), False, 1, None)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"method": "schedule"}, "go together"),
        ({"method": "fit", "schedule": "J1"}, "go together"),
        ({"method": "fit", "solver": "sgd"}, "solved otherwise"),
        ({"method": "retrain-1", "solver": "adam"}, "Unknown solver"),
    ],
)
def test_contradictions(settings, said):
    with pytest.raises(InputError, match=said):
        check(SynapticJoin(**settings), False, 1, None)


@pytest.mark.parametrize("solver", ["convex", "sgd"])
def test_a_schedule_ends_at_the_targets_and_the_file_does_what_was_promised(data, model, solver):
    join = SynapticJoin(method="schedule", schedule="J4+R4+J2+R2+J1", solver=solver, base_saw="none")
    ready = join.prepare(model, data.train, data.validation, classes=CLASSES)
    result = join.choose(ready, [str(RARE)])
    own = next(c for c in result.candidates if c.name == "schedule")
    assert [step["step"] for step in own.notes["steps"]] == ["J4", "R4", "J2", "R2", "J1"]
    counts = [step["synapses"] for step in own.notes["steps"]]
    assert counts == sorted(counts)
    assert counts[0] == counts[1], "retraining adds no synapse"
    logits, _ = collect_logits(own.delta.attach(model), data_loader(data.validation))
    np.testing.assert_allclose(logits, own.logits, atol=2e-4)
    assert own.point.value > own.point.base_value


def test_scopes_are_nested_and_begin_with_the_targets(data, model):
    join = SynapticJoin(method="fit", base_saw="none")
    ready = join.prepare(model, data.train, data.validation, classes=CLASSES)
    setting = _setting(ready, (3, 5))
    found = scopes(setting, parse("J6+J4+J2"))
    assert found[2] == (3, 5)
    assert found[0][:4] == found[1]
    accuracy = np.array([(setting.validation.logits.argmax(1)[setting.validation.labels == j] == j).mean() for j in range(10)])
    rest = [accuracy[j] for j in found[0][2:]]
    assert rest == sorted(rest)
    assert max(rest) <= min(accuracy[j] for j in range(10) if j not in found[0])
    with pytest.raises(InputError, match="ends with J3, but 2 classes are"):
        scopes(setting, parse("J6+J3"))
    with pytest.raises(InputError, match="only 10 have"):
        scopes(setting, parse("J11+J2"))


def test_a_later_join_counts_on_the_network_so_far(data, model):
    """The proxy's logits are those of nn + Δnn, and the neurons it hands over are the base's own."""
    join = SynapticJoin(method="schedule", schedule="J2+J1", base_saw="none")
    result = join.fit(model, data.train, data.validation, targets=[str(RARE)], classes=CLASSES)
    delta = next(c for c in result.candidates if c.name == "schedule").delta
    x = data.test[0][:50]
    reader = Reader(model, x[:1])
    seen: list[torch.Tensor] = []
    logits = SoFar(reader, delta.terms[0])(x, lambda k, a: seen.append(a.clone()))
    alone: list[torch.Tensor] = []
    base = reader(x, lambda k, a: alone.append(a.clone()))
    with torch.no_grad():
        whole = delta.attach(model)(x) - delta.bias
    torch.testing.assert_close(logits, whole, atol=1e-4, rtol=1e-4)
    assert not torch.equal(logits, base)
    assert all(torch.equal(a, b) for a, b in zip(seen, alone, strict=True))


def test_on_the_command_line(data, model, tmp_path, capsys):
    torch.save(model.state_dict(), tmp_path / "base.pt")
    (tmp_path / "net.py").write_text("from tweaknn.demo import DigitsCNN as make\n")
    for name in ("train", "validation"):
        x, y = getattr(data, name)
        np.savez(tmp_path / f"{name}.npz", x=(x[:, 0] * 255).round().to(torch.uint8).numpy(), y=y.numpy(), classes=np.array(CLASSES))
    command = [
        "join", "--model", f"{tmp_path}/net.py:make", "--weights", f"{tmp_path}/base.pt", "--train", f"{tmp_path}/train.npz",
        "--validation", f"{tmp_path}/validation.npz", "--worst", "1", "--out", str(tmp_path / "x.delta.safetensors"),
    ]  # fmt: skip
    assert run([*command, "--schedule", "J3+R3+J1", "--solver", "sgd"]) in (0, 3)
    assert "schedule" in capsys.readouterr().out
    assert run([*command, "--schedule", "J3+K3"]) == 2
    captured = capsys.readouterr()
    assert "Step 2" in captured.err
    assert "Traceback" not in captured.err


def data_loader(part):
    from torch.utils.data import DataLoader, TensorDataset

    return DataLoader(TensorDataset(*part), batch_size=128)


def _setting(ready, targets):
    from tweaknn import Promise
    from tweaknn.join.setting import Setting

    return Setting(ready.train_table, ready.validation_table, targets, ready.classes, Promise("floors"), ready.frame, 0)
