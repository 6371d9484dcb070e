"""The promises of Δnn, each as a property."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.delta.nets import Branching, Small, delta_for, examples, network, reference
from tweaknn.delta import LOGITS, Delta, Read, synapses
from tweaknn.delta.file import from_bytes, to_bytes
from tweaknn.errors import DeltaError, InputError, ModelError
from tweaknn.network import Reader, fingerprint

NETS = {kind.__name__: network(kind) for kind in (Small, Branching)}
READERS = {name: Reader(net, examples(2)) for name, net in NETS.items()}
X = examples()

REDUCTIONS = st.lists(st.sampled_from(["position", "mean", "max", "grid2"]), min_size=1, max_size=4, unique=True)
DELTAS = st.fixed_dictionaries(
    {
        "name": st.sampled_from(sorted(NETS)),
        "seed": st.integers(0, 1000),
        "reductions": REDUCTIONS.map(tuple),
        "columns": st.lists(st.integers(0, 3), min_size=1, max_size=4, unique=True).map(tuple),
        "mlp": st.booleans(),
        "grouped": st.booleans(),
        "bias": st.booleans(),
        "per_layer": st.integers(1, 30),
    }
)


def made(spec: dict) -> tuple[nn.Module, Reader, Delta]:
    spec = dict(spec)
    name = spec.pop("name")
    return NETS[name], READERS[name], delta_for(NETS[name], READERS[name], **spec)


def test_the_two_networks_are_read_in_different_ways():
    assert READERS["Small"].how == "fx"
    assert READERS["Branching"].how == "hooks"


@settings(max_examples=30, deadline=None)
@given(DELTAS)
def test_attached_it_computes_its_definition_and_leaves_the_base_alone(spec):
    net, reader, delta = made(spec)
    before, plain = fingerprint(net), net(X)
    tweaked = delta.attach(net)
    assert fingerprint(net) == before
    with torch.inference_mode():
        out = tweaked(X)
    assert fingerprint(net) == before == delta.base
    # a tenth of a hundred-thousandth of the largest logit: only the order of sums differs
    torch.testing.assert_close(out.double(), reference(delta, reader, X), rtol=1e-4, atol=1e-4)
    untouched = [j for j in range(4) if j not in delta.touched]
    assert torch.equal(out[:, untouched], plain[:, untouched])
    assert tweaked.detach() is net
    assert torch.equal(net(X), plain)
    assert fingerprint(net) == before


@settings(max_examples=12, deadline=None)
@given(DELTAS, st.integers(0, 1000), st.floats(-2, 2))
def test_algebra(spec, seed, factor):
    net, reader, one = made(spec)
    other = delta_for(net, reader, seed=seed, reductions=("max", "position"), columns=(3, 0), bias=True)
    with torch.inference_mode():
        base = net(X)
        first, second = one.attach(net)(X) - base, other.attach(net)(X) - base

        def change(delta):
            return delta.attach(net)(X) - base

        tolerance = {"rtol": 1e-3, "atol": 1e-3}
        torch.testing.assert_close(change(one + other), first + second, **tolerance)
        torch.testing.assert_close(change(one + other), change(other + one), **tolerance)
        torch.testing.assert_close(change(one - other), first - second, **tolerance)
        torch.testing.assert_close(change(factor * one), factor * first, **tolerance)
        torch.testing.assert_close(change(one - one), torch.zeros_like(base), **tolerance)
        kept = change(one.only(["bee", 3]))
        torch.testing.assert_close(kept[:, [1, 3]], first[:, [1, 3]], **tolerance)
        assert torch.equal(kept[:, [0, 2]], torch.zeros(len(X), 2))


@settings(max_examples=25, deadline=None)
@given(DELTAS)
def test_a_file_brings_back_the_same_bits(spec):
    net, _, delta = made(spec)
    payload = to_bytes(delta)
    again = from_bytes(payload)
    assert to_bytes(again) == payload
    assert (again.classes, again.meta, again.how, again.base) == (delta.classes, delta.meta, delta.how, delta.base)
    with torch.inference_mode():
        assert torch.equal(again.attach(net)(X), delta.attach(net)(X))


@pytest.mark.parametrize("name", sorted(NETS))
def test_whatever_is_done_to_the_attached_module_leaves_the_base_alone(name):
    net, reader, delta = made({"name": name, "seed": 3, "columns": (1,)})
    before, plain = fingerprint(net), net(X)
    tweaked = delta.attach(net)
    tweaked.train()
    tweaked(X)  # batch norm in training mode would move the base's statistics
    tweaked.half()
    tweaked.to("meta")
    for parameter in delta.attach(net).parameters():
        parameter.requires_grad_(False)
    assert fingerprint(net) == before
    assert torch.equal(net(X), plain)
    assert all(p.requires_grad and p.dtype == torch.float32 and p.device.type == "cpu" for p in net.parameters())
    assert not any(module._forward_hooks or module.training for module in net.modules())


def test_no_weight_is_copied():
    net, _, delta = made({"name": "Small", "seed": 0})
    mine = {p.data_ptr() for p in net.parameters()}
    assert {p.data_ptr() for p in delta.attach(net).parameters()} == mine


def test_another_base_is_named():
    net, _, delta = made({"name": "Small", "seed": 0})
    other = network(Small, seed=9)
    with pytest.raises(DeltaError) as caught:
        delta.attach(other)
    assert delta.base[:16] in str(caught.value)
    assert fingerprint(other)[:16] in str(caught.value)
    delta.attach(other, check=False)


def test_a_layer_that_is_not_there():
    for net, how in ((NETS["Small"], "fx"), (NETS["Branching"], "hooks")):
        read = Read("no.such", "mean", (6, 8, 8), 0, torch.tensor([0]))
        delta = Delta((synapses([read], torch.ones(1, 1), [0]),), torch.zeros(4), fingerprint(net), (3, 8, 8), how=how)
        with pytest.raises(ModelError, match=r"no\.such"):
            delta.attach(net)


def test_synapses_from_the_logits_themselves():
    for name, net in NETS.items():
        read = Read(LOGITS, "position", (4,), 0, torch.tensor([2]))
        delta = Delta(
            (synapses([read], torch.full((1, 1), 0.5), [0]),),
            torch.zeros(4),
            fingerprint(net),
            (3, 8, 8),
            how=READERS[name].how,
        )
        logits, out = net(X), delta.attach(net)(X)
        torch.testing.assert_close(out[:, 0], logits[:, 0] + 0.5 * logits[:, 2])


@pytest.mark.parametrize("name", sorted(NETS))
def test_a_delta_on_a_delta(name):
    net, reader, lower = made({"name": name, "seed": 1, "columns": (0, 2)})
    read = Read(LOGITS, "position", (4,), 0, torch.tensor([0]))
    top = Delta(
        (synapses([read], torch.ones(1, 1), [1]),), torch.zeros(4), fingerprint(net), (3, 8, 8), how=reader.how
    ).on(lower)
    assert from_bytes(to_bytes(top)).below == top.below
    assert len(top.below) == 1
    one = lower.attach(net)
    two = top.attach(one)
    with torch.inference_mode():
        expected = one(X).clone()
        expected[:, 1] += one(X)[:, 0]  # it reads the logits of nn + Δ1
        torch.testing.assert_close(two(X), expected)
    assert two.detach() is one
    assert one.detach() is net
    with pytest.raises(DeltaError, match="sits on other deltas"):
        top.attach(net)
    with pytest.raises(DeltaError, match="sits on other deltas"):
        top.attach((lower * 2).attach(net))
    with pytest.raises(InputError):
        _ = top + lower


@pytest.mark.parametrize("name", sorted(NETS))
def test_attach_and_detach_while_other_threads_infer(name):
    net, reader, _ = made({"name": name, "seed": 0})
    deltas = [delta_for(net, reader, seed=s, reductions=("mean", "position")) for s in range(4)]
    with torch.inference_mode():
        plain = net(X)
        expected = [delta.attach(net)(X) for delta in deltas]
    shared_tweak = deltas[0].attach(net)
    wrong: list[str] = []

    def work(k: int) -> None:
        try:
            use(k)
        except Exception as error:
            wrong.append(repr(error))

    def use(k: int) -> None:
        with torch.inference_mode():
            for _ in range(8):
                tweaked = deltas[k].attach(net)
                if not torch.equal(tweaked(X), expected[k]):
                    wrong.append(f"tweaked {k}")
                if not torch.equal(shared_tweak(X), expected[0]):
                    wrong.append("shared")
                if not torch.equal(tweaked.detach()(X), plain):
                    wrong.append("base")

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_deltas_of_other_classes_or_bases_are_not_summed():
    _, reader, delta = made({"name": "Small", "seed": 0})
    other = network(Small, seed=5)
    with pytest.raises(InputError, match="cannot be combined"):
        _ = delta + delta_for(other, Reader(other, X), seed=0)
    renamed = copy.copy(delta)
    object.__setattr__(renamed, "classes", ("w", "x", "y", "z"))
    with pytest.raises(InputError, match="different classes"):
        _ = delta + renamed
    with pytest.raises(InputError, match="ant, bee, cow, doe"):
        delta.only(["cat"])


@pytest.mark.parametrize("side", [6, 7, 12])
def test_inputs_of_another_size(side):
    net, reader, delta = made({"name": "Small", "seed": 2, "reductions": ("mean", "max", "grid2"), "per_layer": 24})
    x = torch.randn(3, 3, side, side)
    reader = Reader(net, x)
    resized = delta_for(net, reader, seed=2, reductions=("mean", "max", "grid2"), per_layer=24)
    torch.testing.assert_close(delta.attach(net)(x).double(), reference(resized, reader, x), rtol=1e-4, atol=1e-4)
    _, _, positional = made({"name": "Small", "seed": 2, "reductions": ("position",)})
    with pytest.raises(ModelError, match="single neurons"):
        positional.attach(net)(x)
