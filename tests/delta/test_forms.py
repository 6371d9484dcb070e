"""The attached module in the hands of everything that takes modules."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from tests.delta.nets import Branching, Small, delta_for, examples, network, reference
from tweaknn.delta import Delta
from tweaknn.delta.bank import DeltaBank
from tweaknn.delta.export import export
from tweaknn.errors import InputError, ModelError
from tweaknn.network import Reader, fingerprint

X = examples(4)


class Decided(Small):
    """Untraceable by torch.fx (it looks at the type of its input), but nothing a compiler stumbles over."""

    def forward(self, x):
        if not isinstance(x, torch.Tensor):
            raise TypeError("a tensor is needed")
        return super().forward(x)


def attached(kind, **spec):
    net = network(kind)
    reader = Reader(net, X)
    spec = {"reductions": ("mean", "max", "position", "grid2"), "columns": (1, 3), **spec}
    delta = delta_for(net, reader, **spec)
    return net, delta, delta.attach(net)


KINDS = pytest.mark.parametrize("kind", [Small, Decided])


@pytest.mark.parametrize("name", ["layers", "nodes", "graph", "code", "base", "delta", "model", "change", "index"])
def test_a_part_of_the_network_may_be_called_anything(name):
    """What carries a delta must not have a name that hides one of the network's own (MNASNet's parts are ``layers``)."""

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            setattr(self, name, nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU()))
            self.out = nn.Linear(5, 4)

        def forward(self, x):
            return self.out(getattr(self, name)(x).mean((2, 3)))

    net = Named().eval()
    reader = Reader(net, X)
    delta = delta_for(net, reader)
    with torch.inference_mode():
        out = delta.attach(net)(X)
        torch.testing.assert_close(out.double(), reference(delta, reader, X), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(DeltaBank(net, {"a": delta})(X, ["a"] * 4), out)


@KINDS
def test_compile_in_one_graph(kind):
    _, _, tweaked = attached(kind, mlp=kind is Small)
    with torch.inference_mode():
        expected = tweaked(X)
    torch._dynamo.reset()
    compiled = torch.compile(tweaked, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(X), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(compiled(X[:3]), expected[:3], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("columns", [(1,), (0, 2, 3)])
def test_compiled_for_one_example_few_neurons_are_terms_of_a_sum(columns):
    _, delta, tweaked = attached(Small, reductions=("position",), columns=columns)
    with torch.no_grad():
        expected = [tweaked(X), tweaked(X[:1])]
    kinds: list[set[str]] = []

    def seen(graph, _):
        kinds.append({getattr(node.target, "__name__", str(node.target)) for node in graph.graph.nodes})
        return graph

    torch._dynamo.reset()
    compiled = torch.compile(tweaked, fullgraph=True, backend=seen)
    with torch.no_grad():
        for _ in range(2):  # batch after batch: neither program answers for the other
            torch.testing.assert_close(compiled(X[:1]), expected[1], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(compiled(X), expected[0], rtol=1e-5, atol=1e-5)
    assert delta.touched == list(columns)
    assert len(kinds) == 2
    assert "addmm" not in kinds[0]
    assert "addmm" in kinds[1]
    others = [j for j in range(expected[0].shape[1]) if j not in columns]
    with torch.no_grad():
        assert torch.equal(compiled(X[:1])[:, others], tweaked(X[:1])[:, others])
    dynamic = torch.compile(tweaked, fullgraph=True, backend="aot_eager", dynamic=True)
    with torch.no_grad():
        torch.testing.assert_close(dynamic(X[:3]), expected[0][:3], rtol=1e-5, atol=1e-5)


@KINDS
def test_neither_an_optimiser_nor_a_state_dict_reaches_the_base(kind):
    net, _, tweaked = attached(kind)
    before = fingerprint(net)
    with torch.no_grad():
        expected = tweaked(X)
    optimiser = torch.optim.SGD(tweaked.parameters(), lr=1.0, weight_decay=1.0)
    x = X.clone().requires_grad_()
    tweaked(x).sum().backward()
    assert x.grad is not None
    optimiser.step()
    assert fingerprint(net) == before
    assert all(p.requires_grad for p in net.parameters())
    moved = {k: v + 1 if v.is_floating_point() else v for k, v in tweaked.state_dict().items()}
    tweaked.load_state_dict(moved)
    with torch.no_grad():
        assert not torch.equal(tweaked(X), expected)
    assert fingerprint(net) == before


@KINDS
@pytest.mark.parametrize("format", ["pt2", "onnx"])
def test_export_with_any_batch(kind, format, tmp_path):
    if format == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    net, _, tweaked = attached(kind, mlp=True)
    before = fingerprint(net)
    path = tmp_path / f"a.{format}"
    assert export(tweaked, path, format) < 1e-3
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert fingerprint(net) == before


def test_export_that_cannot_work(tmp_path):
    _, _, tweaked = attached(Branching)
    with pytest.raises(ModelError, match=r"torch\.export"):
        export(tweaked, tmp_path / "a.pt2", "pt2")
    with pytest.raises(InputError, match="none of"):
        export(tweaked, tmp_path / "a.xyz", "xyz")
    with pytest.raises(InputError, match="cannot be written"):
        export(tweaked, tmp_path / "missing" / "a.pt2", "pt2")
    assert not list(tmp_path.iterdir())


@KINDS
def test_state_dict(kind):
    net, delta, tweaked = attached(kind)
    other = (delta * 3).attach(net)
    expected = tweaked(X)
    assert not torch.equal(other(X), expected)
    other.load_state_dict(copy.deepcopy(tweaked.state_dict()))
    assert torch.equal(other(X), expected)


@KINDS
def test_copies_are_whole_and_their_own(kind):
    net, delta, tweaked = attached(kind)
    expected = tweaked(X)
    for made in (copy.deepcopy(tweaked), pickle.loads(pickle.dumps(tweaked))):
        assert torch.equal(made(X), expected)
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.zero_()
        assert torch.equal(tweaked(X), expected)


@KINDS
def test_half_precision_and_autocast(kind):
    net, delta, tweaked = attached(kind)
    expected = tweaked(X)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(tweaked(X).float(), expected, rtol=0.1, atol=0.3)
    torch.testing.assert_close(delta.attach(net).to(torch.bfloat16)(X.bfloat16()).float(), expected, rtol=0.2, atol=0.5)
    double = delta.attach(net).double()(X.double())
    torch.testing.assert_close(double, expected.double(), rtol=1e-4, atol=1e-4)


@KINDS
def test_channels_last(kind):
    net, delta, tweaked = attached(kind)
    moved = copy.deepcopy(tweaked).to(memory_format=torch.channels_last)
    x = X.to(memory_format=torch.channels_last)
    torch.testing.assert_close(moved(x), tweaked(X), rtol=1e-4, atol=1e-4)


@KINDS
def test_data_parallel(kind):
    net, delta, tweaked = attached(kind)
    torch.testing.assert_close(nn.DataParallel(tweaked)(X), tweaked(X))
    assert torch.equal(delta.attach(nn.DataParallel(net))(X), tweaked(X))


def _ranks(rank: int, path: str, expected: torch.Tensor) -> None:
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    net, _, tweaked = attached(Small)
    before = fingerprint(net)
    # nothing in it is trained, so by itself torch takes it for a mistake; what stands on it is trained on all ranks
    with pytest.raises(RuntimeError, match="requires a gradient"):
        DistributedDataParallel(tweaked)
    torch.manual_seed(0)
    head = nn.Linear(expected.shape[1], 2)
    wrapped = DistributedDataParallel(nn.Sequential(tweaked, head))  # kept: without it nothing is averaged
    out = wrapped(X[rank::2])
    torch.testing.assert_close(out, head(expected[rank::2]), rtol=1e-5, atol=1e-5)
    out.square().mean().backward()
    shared = [torch.empty_like(head.weight.grad) for _ in range(2)]
    dist.all_gather(shared, head.weight.grad)
    assert torch.equal(*shared)
    assert float(shared[0].abs().sum()) > 0
    assert fingerprint(net) == before
    dist.destroy_process_group()


def test_distributed(tmp_path):
    expected = attached(Small)[2](X).detach()
    torch.multiprocessing.spawn(_ranks, (str(tmp_path / "meeting"), expected), nprocs=2)


@KINDS
def test_int8(kind):
    quantization = pytest.importorskip("torchao.quantization")
    net, delta, tweaked = attached(kind)
    before, expected = fingerprint(net), tweaked(X).detach()
    quantization.quantize_(tweaked, quantization.Int8WeightOnlyConfig())
    torch.testing.assert_close(tweaked(X), expected, rtol=0.1, atol=0.2)
    assert fingerprint(net) == before
    assert type(net.out.weight.data) is torch.Tensor


def test_gradients_of_the_input_flow():
    _, _, tweaked = attached(Small)
    x = X.clone().requires_grad_()
    tweaked(x).sum().backward()
    assert x.grad is not None
    assert float(x.grad.abs().sum()) > 0


def test_compiled_bases_are_looked_through():
    net, delta, tweaked = attached(Small)
    again = delta.attach(torch.compile(net))
    assert torch.equal(again(X), tweaked(X))
    assert isinstance(delta, Delta)


@pytest.mark.parametrize("name", [None, "Small"])
def test_a_base_that_is_a_graph_module(name):
    """As pruning leaves one behind when it takes blocks out: its code lies in a class of its own."""
    small = network(Small)
    graph = torch.fx.Tracer().trace(small)
    net = torch.fx.GraphModule(small, graph, **({} if name is None else {"class_name": name})).eval()
    delta = delta_for(net, Reader(net, X), reductions=("mean",), columns=(1, 3))
    tweaked = delta.attach(net)
    with torch.no_grad():
        expected, plain = tweaked(X), net(X)
    torch.testing.assert_close(plain, small(X), rtol=0, atol=0)
    assert not torch.equal(expected, plain)
    for other in (copy.deepcopy(tweaked), delta.attach(copy.deepcopy(net)), delta.attach(tweaked.detach())):
        with torch.no_grad():
            assert torch.equal(other(X), expected)
    # changing the copy's code leaves the base's alone
    from tweaknn.network.clone import share

    twin = share(net)
    for node in list(twin.graph.nodes):
        if node.op == "output":
            with twin.graph.inserting_before(node):
                node.args = (twin.graph.call_function(torch.neg, (node.args[0],)),)
    twin.recompile()
    with torch.no_grad():
        assert torch.equal(twin(X), -plain)
        assert torch.equal(net(X), plain)
