"""A bank's batches beside attached deltas: whatever they are made of, one pass of the base; compiled; dictionaries."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.delta.nets import Branching, Small, delta_for, examples, network
from tweaknn.delta import LOGITS, MLP, Delta, Read, Term, synapses
from tweaknn.delta.bank import DeltaBank
from tweaknn.delta.file import to_bytes
from tweaknn.errors import DeltaError, InputError, ModelError
from tweaknn.network import Reader, fingerprint


class Sized(Small):
    """A decision on the size of the batch: torch.fx cannot follow, a compiler can."""

    def forward(self, x):
        return super().forward(x * 0 if x.shape[0] > 1000 else x)


NET, HOOKED = network(Small), network(Sized)


def usual(net, reader, seed=0, hidden=126):
    """Built as ``tweaknn join`` builds what it hands over by default: synapses from all means, an MLP on means, maxima and
    quarters, damped logits."""
    g = torch.Generator().manual_seed(seed)

    def reads(*reductions):
        found = [
            Read(r.name, how, r.shape, r.channel_axis, torch.empty(0)) for r in reader.layers for how in reductions
        ]
        return tuple(replace(read, index=torch.arange(read.available)) for read in found)

    means, all_three = reads("mean"), reads("mean", "max", "grid2")
    f, h = (sum(read.index.numel() for read in each) for each in (means, all_three))
    mlp = MLP(
        (torch.randn(h, hidden, generator=g),),
        torch.randn(hidden, generator=g),
        torch.randn(hidden, 4, generator=g) / hidden,
        torch.arange(4),
    )
    own = Read(LOGITS, "position", (4,), 0, torch.arange(4))
    terms = (
        synapses(means, torch.randn(f, 4, generator=g), range(4)),
        Term(all_three, mlp),
        synapses([own], -0.2 * torch.eye(4), range(4)),
    )
    return Delta(terms, torch.zeros(4), fingerprint(net), (3, 8, 8), how=reader.how)


def zoo(net):
    """Deltas of every kind that a bank takes."""
    reader = Reader(net, examples(2))
    made = {
        "few": delta_for(net, reader, reductions=("position",)),
        "few with bias": delta_for(net, reader, reductions=("mean", "position"), seed=1, columns=(2, 0), bias=True),
        "many single": delta_for(net, reader, reductions=("position",), seed=2, columns=(0, 1, 2, 3), per_layer=300),
        "pooled": delta_for(net, reader, reductions=("mean", "max", "grid2"), columns=(0, 1, 2, 3), per_layer=24),
        "aan": delta_for(net, reader, mlp=True, seed=3, columns=(3, 1), reductions=("max", "position")),
        "grouped": delta_for(net, reader, mlp=True, grouped=True, seed=4, bias=True),
        "bias": delta_for(net, reader).only([]).with_bias(torch.tensor([0.0, 1.0, -1.0, 0.0])),
        "default 1": usual(net, reader, 1),
        "default 2": usual(net, reader, 2),
    }
    return {**made, "sum": made["few"] + made["aan"]}


def expected(net, deltas, x, names):
    with torch.inference_mode():
        return torch.cat(
            [net(x[i : i + 1]) if n is None else deltas[n].attach(net)(x[i : i + 1]) for i, n in enumerate(names)]
        )


def counted(net):
    calls = []
    net.a.register_forward_hook(lambda *_: calls.append(1))
    return calls


def one_pass(net, deltas, x, names, wanted):
    """A bank that answers a batch in one pass of the base, as attached deltas would."""
    calls = counted(net)
    bank = DeltaBank(net, deltas)
    del calls[:]
    with torch.inference_mode():
        out = bank(x, names)
    assert len(calls) == 1
    torch.testing.assert_close(out, wanted, rtol=1e-4, atol=1e-4)
    return bank


@pytest.mark.parametrize("kind", [Small, Branching])
def test_a_mixed_batch_is_one_pass_of_the_base_and_gives_what_attached_deltas_give(kind):
    net = network(kind)
    deltas = zoo(net)
    names = [*deltas, None, "default 1", "few", "default 1", "aan", None, *reversed(deltas)]
    x = examples(len(names))
    wanted = expected(net, deltas, x, names)
    bank = one_pass(net, deltas, x, names, wanted)
    with torch.inference_mode():
        for name in deltas:  # each alone, in any memory format
            like = x.to(memory_format=torch.channels_last)
            torch.testing.assert_close(bank(like, [name] * len(x)), deltas[name].attach(net)(x), rtol=1e-4, atol=1e-4)
        assert torch.equal(bank(x, ["few"] * len(x))[:, [0, 2, 3]], net(x)[:, [0, 2, 3]])


def test_what_is_added_comes_back_as_it_was():
    deltas = zoo(NET)
    bank = DeltaBank(NET, deltas)
    for name, delta in deltas.items():
        assert to_bytes(bank[name]) == to_bytes(delta), name


def test_one_wide_delta_makes_no_other_wider_and_swaps_stay_quick():
    import time

    reader = Reader(NET, examples(2))
    small = [delta_for(NET, reader, seed=i, reductions=("position",), per_layer=10) for i in range(200)]
    bank = DeltaBank(NET, {f"d{i}": delta for i, delta in enumerate(small)})
    before = [bank.bytes_of(f"d{i}") for i in range(200)]
    bank.add("wide", usual(NET, reader))
    bank.add(
        "wide too", delta_for(NET, reader, reductions=("mean", "max", "grid2"), columns=(0, 1, 2, 3), per_layer=24)
    )
    assert [bank.bytes_of(f"d{i}") for i in range(200)] == before
    for name in bank.names:
        assert bank.bytes_of(name) < 2 * len(to_bytes(bank[name])), name
    times = []
    for i in range(200):
        name, delta = (f"d{i}", small[(i + 1) % 200]) if i % 10 else ("wide", bank["wide"])
        start = time.thread_time()
        bank.swap(name, delta)
        times.append(time.thread_time() - start)
    assert sorted(times)[100] < 1e-3, f"{1e3 * sorted(times)[100]:.2f} ms"


@pytest.mark.parametrize("kind", [Small, Sized])
def test_compiled_once_for_all_swaps(kind):
    net = network(kind)
    deltas = zoo(net)
    counts = []

    def backend(graph, inputs):
        counts.append(1)
        return graph.forward

    torch._dynamo.reset()
    bank = DeltaBank(net, deltas)
    bank.compile(backend=backend, fullgraph=True)
    x = examples(6)
    batches = [
        ["few", None, "default 1", "aan", "pooled", "many single"],
        ["few"] * 6,
        [None] * 6,
        ["default 2", "default 1", None, None, "grouped", "bias"],
    ]
    with torch.inference_mode():
        bank(x, batches[0])
        for names in batches:
            torch.testing.assert_close(bank(x, names), expected(net, deltas, x, names), rtol=1e-4, atol=1e-4)
        bank.swap("few", deltas["pooled"])
        bank.swap("aan", deltas["default 2"])
        bank.remove("grouped")
        bank.add("new", deltas["many single"])
        names = ["few", "aan", "new", None, "few", "bias"]
        was = ["pooled", "default 2", "many single", None, "pooled", "bias"]
        torch.testing.assert_close(bank(x, names), expected(net, deltas, x, was), rtol=1e-4, atol=1e-4)
    assert len(counts) == 1


def test_what_cannot_be_one_graph_is_said():
    net = network(Branching)
    bank = DeltaBank(net, {"a": delta_for(net, Reader(net, examples(2)))})
    bank.compile(backend="eager")
    with pytest.raises(ModelError, match="cannot be compiled as one graph"):
        bank(examples(2), ["a", None])
    # asked from outside, it is left as it is
    torch.testing.assert_close(
        torch.compile(DeltaBank(net, {"a": bank["a"]}), backend="eager")(examples(2), ["a", None])[1:],
        net(examples(2))[1:],
    )


def test_a_compiled_bank_takes_deltas_that_read_what_none_has_read():
    shape = (6, 8, 8)
    base = fingerprint(HOOKED)
    deltas = {}
    for name in ("a", "b", "bn"):
        term = synapses([Read(name, "mean", shape, 0, torch.tensor([0]))], torch.ones(1, 1), [1])
        deltas[name] = Delta((term,), torch.zeros(4), base, (3, 8, 8), how="hooks")
    torch._dynamo.reset()
    bank = DeltaBank(HOOKED)
    bank.compile(backend="eager")
    x = examples(2)
    with torch.inference_mode():
        for name, delta in deltas.items():
            bank.add(name, delta)
            torch.testing.assert_close(bank(x, [name, None]), expected(HOOKED, deltas, x, [name, None]))


def test_torch_compile_of_the_bank_itself():
    deltas = zoo(NET)
    torch._dynamo.reset()
    counts = []

    def backend(graph, inputs):
        counts.append(1)
        return graph.forward

    compiled = torch.compile(DeltaBank(NET, deltas), backend=backend)
    x, names = examples(3), ["few", None, "default 1"]
    with torch.inference_mode():
        torch.testing.assert_close(compiled(x, names), expected(NET, deltas, x, names), rtol=1e-4, atol=1e-4)
    assert counts


class Words(nn.Module):
    """As a text network of Hugging Face: tensors by name in, an object with logits out."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(50, 16)
        self.mix = nn.Sequential(nn.Linear(16, 16), nn.GELU())
        self.out = nn.Linear(16, 4)

    def forward(self, input_ids, attention_mask=None):
        found = self.words(input_ids)
        if attention_mask is not None:
            found = found * attention_mask[:, :, None]
        return {"logits": self.out(self.mix(found).mean(1))}


def test_dictionaries_as_input():
    torch.manual_seed(0)
    net = Words().eval()
    x = {"input_ids": torch.randint(50, (5, 7)), "attention_mask": torch.ones(5, 7)}
    reader = Reader(net, x)
    deltas = {
        name: replace(delta_for(net, reader, seed=i, mlp=i == 1, reductions=("mean", "max")), input_shape=())
        for i, name in enumerate("ab")
    }
    names = ["a", None, "b", "b", "a"]
    bank = DeltaBank(net, deltas)
    with torch.inference_mode():
        out = bank(x, names)
        for i, name in enumerate(names):
            tweaked = net if name is None else deltas[name].attach(net)
            one = tweaked(**{key: value[i : i + 1] for key, value in x.items()})["logits"]
            torch.testing.assert_close(out[i : i + 1], one, rtol=1e-4, atol=1e-4)
        assert torch.equal(DeltaBank(net)(x, [None] * 5), net(**x)["logits"])
    with pytest.raises(InputError, match="5 examples need as many names, not 2"):
        bank(x, ["a", "b"])


class Maps(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3, padding=1, stride=2)
        self.out = nn.Conv2d(6, 4, 1)

    def forward(self, x):
        return nn.functional.interpolate(self.out(torch.relu(self.a(x))), scale_factor=2)


def test_a_class_a_pixel():
    torch.manual_seed(0)
    net = Maps().eval()
    x = examples(5)
    read = Read("relu", "pixel", (6, 4, 4), 0, torch.tensor([1, 4]))
    g = torch.Generator().manual_seed(0)
    mlp = MLP(
        (torch.randn(2, 3, generator=g),),
        torch.randn(3, generator=g),
        torch.randn(3, 2, generator=g),
        torch.tensor([0, 3]),
    )
    base = fingerprint(net)
    deltas = {
        "line": Delta((synapses([read], torch.randn(2, 1, generator=g), [1]),), torch.zeros(4), base, (3, 8, 8)),
        "mlp": Delta((Term((read,), mlp),), torch.tensor([0.0, 0.0, 1.0, 0.0]), base, (3, 8, 8)),
        "bias": Delta((), torch.tensor([0.0, 0.0, 1.0, 0.0]), base, (3, 8, 8)),
    }
    names = ["line", None, "mlp", "bias", "mlp"]
    one_pass(net, deltas, x, names, expected(net, deltas, x, names))


def test_one_logit_an_example():
    class One(Small):
        def forward(self, x):
            return super().forward(x)[:, 0]

    net = network(One)
    own = Read(LOGITS, "position", (1,), 0, torch.tensor([0]))
    mean = Read("relu", "mean", (6, 8, 8), 0, torch.tensor([1]))
    deltas = {
        "d": Delta(
            (synapses([own, mean], torch.tensor([[0.5], [2.0]]), [0]),), torch.ones(1), fingerprint(net), (3, 8, 8)
        )
    }
    x, names = examples(3), ["d", None, "d"]
    out = DeltaBank(net, deltas)(x, names)
    assert out.shape == (3,)
    torch.testing.assert_close(out.detach(), expected(net, deltas, x, names), rtol=1e-4, atol=1e-4)


def test_names_of_layers_by_hooks_and_by_graph_in_one_batch():
    traced = Reader(NET, examples(2))
    one = delta_for(NET, traced)
    layer = Read("b", "mean", (6, 8, 8), 0, torch.tensor([2]))
    other = Delta((synapses([layer], torch.ones(1, 1), [2]),), torch.zeros(4), fingerprint(NET), (3, 8, 8), how="hooks")
    deltas, names, x = {"fx": one, "hooks": other}, ["hooks", "fx", None, "hooks"], examples(4)
    with torch.inference_mode():
        out = DeltaBank(NET, deltas)(x, names)
    torch.testing.assert_close(out, expected(NET, deltas, x, names), rtol=1e-4, atol=1e-4)


def test_refusals_and_half_precision():
    deltas = zoo(NET)
    bank = DeltaBank(NET, {"few": deltas["few"]})
    with pytest.raises(DeltaError, match="sits on other deltas"):
        bank.add("top", deltas["aan"].on(deltas["few"]))
    with pytest.raises(InputError, match="another output"):
        bank.add("head", replace(deltas["aan"], head="logits"))
    with pytest.raises(DeltaError, match="are for 4 logits, this one for 5"):
        bank.add("more", Delta((), torch.zeros(5), fingerprint(NET), (3, 8, 8)))
    with pytest.raises(InputError, match="not the text"):
        bank(examples(3), "few")
    assert bank.names == ["few"]
    bank = DeltaBank(NET, deltas).to(torch.bfloat16)
    x, names = examples(4), ["few", "default 1", None, "aan"]
    with torch.inference_mode():
        out = bank(x.bfloat16(), names)
    assert out.dtype == torch.bfloat16
    assert NET.a.weight.dtype == torch.float32
    scale = expected(NET, deltas, x, names)
    torch.testing.assert_close(out.float(), scale, rtol=0.1, atol=0.5)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(DeltaBank(NET, deltas)(x, names).float(), scale, rtol=0.1, atol=0.5)
