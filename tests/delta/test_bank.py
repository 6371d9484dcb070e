"""Many deltas on one base, each example its own."""

from __future__ import annotations

import random
import threading
from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.delta.nets import Branching, Small, delta_for, examples, network
from tweaknn.delta import Delta, Read, synapses
from tweaknn.delta.bank import DeltaBank
from tweaknn.errors import DeltaError, InputError
from tweaknn.network import Reader, fingerprint

NET = network(Small)
READER = Reader(NET, examples(2))
KINDS = [("position",), ("mean",), ("max", "grid2"), ("mean", "position", "grid2")]


def some(n, **spec):
    return {
        f"d{i}": delta_for(
            NET,
            READER,
            seed=i,
            reductions=KINDS[i % len(KINDS)],
            columns=[(0,), (1, 3), (2,)][i % 3],
            per_layer=1 + i % 7,
            bias=bool(i % 2),
            **spec,
        )
        for i in range(n)
    }


def expected(deltas, x, names):
    with torch.inference_mode():
        parts = [NET(x[i : i + 1]) if n is None else deltas[n].attach(NET)(x[i : i + 1]) for i, n in enumerate(names)]
    return torch.cat(parts)


def test_each_example_gets_its_own():
    deltas = some(12)
    deltas["mlp"] = delta_for(NET, READER, seed=50, mlp=True, columns=(0, 1))
    before = fingerprint(NET)
    bank = DeltaBank(NET, deltas)
    assert len(bank) == 13
    assert "d3" in bank
    rng = random.Random(0)
    x = examples(20)
    for _ in range(3):
        names = [rng.choice([None, *deltas]) for _ in range(20)]
        with torch.inference_mode():
            torch.testing.assert_close(bank(x, names), expected(deltas, x, names), rtol=1e-4, atol=1e-4)
    with torch.inference_mode():
        assert torch.equal(bank(x, [None] * 20), NET(x))
        out = bank(x, ["d0"] * 20)  # d0 names class 0 alone
        assert torch.equal(out[:, 1:], NET(x)[:, 1:])
    assert fingerprint(NET) == before


def test_adding_replacing_and_removing():
    deltas = some(3)
    bank = DeltaBank(NET)
    x = examples(1)
    for name, delta in deltas.items():
        bank.add(name, delta)
    with torch.inference_mode():
        bank.swap("d0", deltas["d1"])
        torch.testing.assert_close(bank(x, ["d0"]), expected(deltas, x, ["d1"]), rtol=1e-4, atol=1e-4)
        bank.remove("d0")
        with pytest.raises(InputError, match="no delta 'd0'"):
            bank(x, ["d0"])
        with pytest.raises(InputError, match="no delta"):
            bank.remove("d0")
        with pytest.raises(InputError, match="as many names"):
            bank(x, [])
        bank.add("new", deltas["d0"])
        torch.testing.assert_close(bank(x, ["new"]), expected(deltas, x, ["d0"]), rtol=1e-4, atol=1e-4)
    other = network(Small, seed=8)
    with pytest.raises(DeltaError, match="fingerprint"):
        bank.add("foreign", delta_for(other, Reader(other, x)))
    assert bank.names == ["d1", "d2", "new"]


def test_a_batch_of_nothing_gives_nothing():
    with torch.no_grad():
        assert DeltaBank(NET, some(2))(examples(3)[:0], []).shape == NET(examples(3)[:0]).shape


def test_networks_that_only_hooks_can_read():
    net = network(Branching)
    reader = Reader(net, examples(2))
    deltas = {f"d{i}": delta_for(net, reader, seed=i) for i in range(2)}
    bank, x = DeltaBank(net, deltas), examples(3)
    out = bank(x, ["d1", None, "d0"])
    torch.testing.assert_close(out[1:2], net(x[1:2]))
    torch.testing.assert_close(out[:1], deltas["d1"].attach(net)(x[:1]))


def test_swaps_while_requests_run():
    deltas = some(8)
    bank = DeltaBank(NET, {"a": deltas["d0"], "b": deltas["d1"]})
    x = examples(4)
    allowed = {n: [expected(deltas, x, [d] * 4) for d in deltas] for n in ("a", "b")}
    wrong, stop = [], threading.Event()

    def request():
        try:
            with torch.inference_mode():
                while not stop.is_set():
                    out = bank(x, ["a", "b", "a", "b"])
                    for i, n in enumerate(("a", "b", "a", "b")):
                        if not any(torch.allclose(out[i], ref[i], rtol=1e-4, atol=1e-4) for ref in allowed[n]):
                            wrong.append(f"{n} row {i} belongs to no delta")
        except Exception as error:
            wrong.append(repr(error))

    threads = [threading.Thread(target=request) for _ in range(3)]
    for thread in threads:
        thread.start()
    for k in range(60):
        bank.swap("ab"[k % 2], deltas[f"d{k % 8}"])
        bank.add(f"extra{k}", deltas[f"d{(k + 3) % 8}"])
        if k > 5:
            bank.remove(f"extra{k - 5}")
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong, wrong[:3]


def test_training_mode_and_optimisers_do_not_reach_the_base():
    torch.manual_seed(0)
    base = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    read = Read("2", "mean", (4, 2, 2), 0, torch.tensor([1]))
    delta = Delta((synapses([read], torch.ones(1, 1), [2]),), torch.zeros(3), fingerprint(base), (1, 4, 4))
    bank, before = DeltaBank(base, {"a": delta}), fingerprint(base)
    bank.train()
    bank(torch.randn(5, 1, 4, 4), ["a", None, "a", None, None])
    assert fingerprint(base) == before
    assert not any(p.requires_grad for p in bank.parameters())
    assert all(p.requires_grad for p in base.parameters())


def test_a_bank_has_one_output():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.body, self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 3)

        def forward(self, x):
            h = self.body(x).relu()
            return self.a(h), self.b(h)

    net, x = Two().eval(), torch.randn(3, 4)
    first, second = (
        Delta((), torch.tensor([1.0, 0, 0]), fingerprint(net), (4,), head=head) for head in (0, 1)
    )
    bank = DeltaBank(net)
    bank.add("b", second)
    with pytest.raises(InputError, match="another output"):
        bank.add("a", first)
    with torch.inference_mode():
        expected = net(x)[1] + torch.tensor([[1.0, 0, 0], [0, 0, 0], [1.0, 0, 0]])
        assert torch.allclose(bank(x, ["b", None, "b"]), expected)


def test_a_bank_of_a_network_that_takes_a_dictionary():
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, **inputs):
            return {"logits": self.b(self.a(inputs["values"]).relu())}

    net, x = Named().eval(), {"values": torch.randn(3, 4)}
    delta = Delta((), torch.tensor([1.0, 0, 0]), fingerprint(net), (), how="hooks")
    bank = DeltaBank(net, {"a": delta})
    with torch.inference_mode():
        plain = net(**x)["logits"]
        assert torch.allclose(bank(x, ["a", None, "a"]), plain + torch.tensor([[1.0, 0, 0], [0, 0, 0], [1.0, 0, 0]]))
        assert torch.equal(bank(x, [None] * 3), plain)


def test_a_network_of_inference_tensors_is_attached_to():
    with torch.inference_mode():
        net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    delta = Delta((), torch.tensor([1.0, 0, 0]), fingerprint(net), (4,))
    with torch.inference_mode():
        assert torch.allclose(delta.attach(net)(torch.ones(2, 4)), net(torch.ones(2, 4)) + delta.bias)


def test_a_bank_made_in_inference_mode_takes_deltas_outside():
    with torch.inference_mode():
        bank = DeltaBank(NET, some(2))
    bank.swap("d0", some(4)["d3"])
    with torch.inference_mode():
        assert torch.allclose(bank(examples(1), ["d0"]), some(4)["d3"].attach(NET)(examples(1)), atol=1e-4)


def test_a_bank_on_an_attached_network_is_refused():
    with pytest.raises(InputError, match="without deltas"):
        DeltaBank(some(1)["d0"].attach(NET))


def test_sums_say_why_not():
    one, two = some(2).values()
    assert torch.equal(sum([one, two]).bias, (one + two).bias)
    for other, said in (
        (replace(two, head=1), "different outputs"),
        (two.on(one), "do not sit on the same"),
        (replace(two, how="hooks"), "name layers otherwise"),
    ):
        with pytest.raises(InputError, match=said):
            one + other
