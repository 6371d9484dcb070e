"""Surgery proven: the cut network equals the gated one, for every kind of layer and every torchvision family."""

from __future__ import annotations

import copy
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from tests.delta.nets import delta_for
from tweaknn.network import Reader
from tweaknn.structure import analyse
from tweaknn.structure.analyse import keep_working, run
from tweaknn.structure.gating import gated
from tweaknn.structure.surgery import cut

from .nets import ZOO, FixedHeads, TinyResNet, images, make, settled

module = sys.modules[analyse.__module__]  # the package's name for it is the function

EXPECTED = {  # unit gates (a head is one), branches
    "mlp": (12 + 9, 0),
    "residual": (6 + 6 + 12 + 12 + 12, 3),  # two streams, an inner layer a block
    "dense": (5 + 4 + 6, 0),
    "grouped": (4 + 4 + 4, 0),  # offsets shared by two groups; the depthwise and excited channels; the squeeze
    "lstm": (7 + 6, 0),
    "gru": (7 + 6, 0),
    "transformer": (2 * (3 + 20), 4),
    "multihead": (2 * (3 + 20), 4),
}


@pytest.mark.parametrize("name", ZOO)
def test_gates_found(name: str) -> None:
    model, x = make(name)
    plan = analyse(model, x)
    assert (plan.n_units, len(plan.blocks)) == EXPECTED[name], plan.ungated


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_cut_equals_gated(name: str, seed: int) -> None:
    model, x = make(name)
    plan = analyse(model, x)
    _same(model, plan, x, seed)


def _same(model: nn.Module, plan, x: torch.Tensor, seed: int, share: float = 0.6) -> nn.Module:
    alive = keep_working(plan, np.random.default_rng(seed).random(plan.n_gates) < share)
    assert not alive.all()
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        base = copy.deepcopy(model).to(dtype)
        with gated(base, plan, torch.from_numpy(alive).to(dtype)):
            want = run(base, (x.to(dtype),))[0]
        before = {id(p) for p in base.parameters()}
        small, rest = cut(base, plan, alive)
        got = run(small, (x.to(dtype),))[0]
        scale = float(want.abs().max())
        assert float((want - got).abs().max()) <= tolerance * scale
        assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
        assert {id(p) for p in small.parameters()} <= before  # the same Parameter objects: tied weights stay tied
        assert type(small) is type(model)
    return small


def test_gates_do_not_show_when_open_and_leave_no_trace() -> None:
    model, x = make("residual")
    plan = analyse(model, x)
    classes = [type(m) for m in model.modules()]
    names = list(model.state_dict())
    want = run(model, (x,))[0]
    with gated(model, plan, torch.ones(plan.n_gates)):
        assert torch.equal(run(model, (x,))[0], want)
        assert list(model.state_dict()) == names
    assert [type(m) for m in model.modules()] == classes
    assert not any("_tweaknn_gates" in m.__dict__ for m in model.modules())


def test_closed_unit_is_really_not_read() -> None:
    """Whatever a closed unit computes, nothing changes downstream."""
    model, x = make("residual")
    plan = analyse(model, x)
    z = torch.ones(plan.n_gates)
    z[0] = 0
    slot = next(s for s in plan.slots if 0 in s.map and s.dim == 0 and not s.reads and s.name == "weight")
    rows = np.flatnonzero(slot.map == 0)
    with gated(model, plan, z):
        one = run(model, (x,))[0]
        with torch.no_grad():
            model.get_submodule(slot.module)._parameters["weight"][rows] += 5.0
        assert torch.allclose(run(model, (x,))[0], one, atol=1e-6)
    assert not torch.allclose(run(model, (x,))[0], one, atol=1e-3)


@pytest.mark.parametrize("make_optimizer", [
    lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True),
    lambda p: torch.optim.AdamW(p, 0.01, amsgrad=True),
])  # fmt: skip
def test_optimizer_state_is_carried_over(make_optimizer) -> None:
    """The cut network with its cut state takes the very step the gated full network takes, on what is left."""
    model, x = make("mlp")
    model, x = model.double(), x.double()
    plan = analyse(model, x)
    optimizer = make_optimizer(model.parameters())
    y = torch.tensor([0, 1, 2])
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    alive = keep_working(plan, np.random.default_rng(0).random(plan.n_gates) < 0.5)
    before = copy.deepcopy(model)
    held = {n: {k: v.clone() for k, v in optimizer.state[p].items() if torch.is_tensor(v)} for n, p in model.named_parameters()}
    model, rest = cut(model, plan, alive, [optimizer])
    own = {(s.module, s.name, s.dim): s for s in plan.slots}
    for name, p in model.named_parameters():
        module, _, leaf = name.rpartition(".")
        for key, value in held[name].items():
            if value.dim() == 0:
                continue
            for dim in range(value.dim()):
                slot = own.get((module, leaf, dim))
                if slot is not None:
                    keep = np.append(alive[: plan.n_units], True)[slot.map]
                    value = value.index_select(dim, torch.from_numpy(np.flatnonzero(keep)))
            assert torch.equal(optimizer.state[p][key], value)
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    assert before.net[0].weight.shape != model.net[0].weight.shape


def test_factored_optimizer_state_is_cut_along() -> None:
    """Adafactor keeps a mean over rows and one over columns, a 1 in place of the dimension."""
    model, x = make("mlp")
    plan = analyse(model, x)
    optimizer = torch.optim.Adafactor(model.parameters())
    model(x).square().mean().backward()
    optimizer.step()
    alive = keep_working(plan, np.random.default_rng(0).random(plan.n_gates) < 0.5)
    model, _ = cut(model, plan, alive, [optimizer])
    state = optimizer.state[model.net[0].weight]
    assert state["row_var"].shape == (model.net[0].out_features, 1)
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


def test_cut_with_the_last_loss_still_alive_trains_on() -> None:
    """A loss kept from before holds the old gradient accumulators; training must not trip over their shapes."""
    model, x = make("residual")
    plan = analyse(model, x)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    loss = model(x).square().mean()
    loss.backward()
    optimizer.step()
    model, _ = cut(model, plan, keep_working(plan, np.random.default_rng(1).random(plan.n_gates) < 0.5), [optimizer])
    optimizer.zero_grad()
    again = model(x).square().mean()
    again.backward()
    optimizer.step()
    assert loss.item() != again.item()


def test_shared_module_keeps_one_set_of_units() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.mid, self.out = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.a(x))
            return self.out(torch.relu(self.mid(torch.relu(self.mid(x)))))

    torch.manual_seed(0)
    model = Twice()
    x = torch.randn(4, 5)
    plan = analyse(model, x)
    assert plan.n_units == 8  # what mid reads and what it makes are the same units
    _same(model, plan, x, 0)


def test_tied_weights_are_cut_together_or_left_alone() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enc, self.dec, self.out = nn.Linear(6, 8, bias=False), nn.Linear(8, 6, bias=False), nn.Linear(6, 2)
            self.dec.weight = nn.Parameter(self.enc.weight.detach().t().clone())
            self.enc2 = nn.Linear(6, 8, bias=False)
            self.enc2.weight = self.enc.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(torch.tanh(self.dec(torch.relu(self.enc(x)) + torch.relu(self.enc2(x)))))

    torch.manual_seed(0)
    model, x = Tied(), torch.randn(4, 6)
    plan = analyse(model, x)
    small = _same(model, plan, x, 0)
    assert small.enc.weight is small.enc2.weight


def test_frozen_parameters_are_left_and_listed() -> None:
    model, x = make("residual")
    for p in model.blocks[0].parameters():
        p.requires_grad_(False)
    plan = analyse(model, x)
    touched = {s.module for s in plan.slots if (s.map >= 0).any()}
    assert not any(m.startswith("blocks.0.") for m in touched)
    assert any("frozen" in reason for reason in plan.ungated.values())


def test_fixed_shapes_are_left_and_listed_not_broken() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1), nn.Linear(6 * 64, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.c(self.b(torch.relu(self.a(x))).relu().view(-1, 6 * 64))

    torch.manual_seed(0)
    model = Fixed()
    plan = analyse(model, images())
    assert plan.n_units == 4
    assert any("number of channels" in reason for reason in plan.ungated.values())
    _same(model, plan, images(), 0)


def test_layer_norm_stream_is_left_and_listed() -> None:
    model, x = make("transformer")
    plan = analyse(model, x)
    assert any("layer_norm" in reason for reason in plan.ungated.values())


def test_option_a_shortcuts() -> None:
    """He et al.'s parameter-free shortcuts pad with constants: those channels stay, the others go with the stream."""
    import torch.nn.functional as F

    class Pad(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 3, 3))

    model = TinyResNet()
    model.blocks[1].shortcut = Pad()
    settled(model)
    plan = analyse(model, images())
    assert plan.n_units == 6 + 6 + 12 + 12
    assert len(plan.blocks) == 3
    assert any("constant" in reason for reason in plan.ungated.values())
    _same(model, plan, images(), 0)


FAMILIES = {
    "alexnet": 64, "vgg11_bn": 32, "resnet18": 32, "resnet50": 32, "resnext50_32x4d": 32, "densenet121": 32,
    "googlenet": 32, "mobilenet_v2": 32, "mobilenet_v3_small": 32, "efficientnet_b0": 32, "mnasnet0_5": 32,
    "regnet_y_400mf": 32, "shufflenet_v2_x0_5": 32, "squeezenet1_1": 32, "convnext_tiny": 32, "vit_b_16": 32,
    "swin_t": 32,
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_torchvision_family(name: str) -> None:
    torch.manual_seed(0)
    extra = {"init_weights": False} if name == "googlenet" else {}
    extra |= {"image_size": 32, "num_layers": 2} if name == "vit_b_16" else {}
    if name == "vit_b_16":
        model = torchvision.models.VisionTransformer(32, 16, 2, 4, 32, 64, num_classes=10)
    elif name in ("alexnet", "vgg11_bn"):  # the usual heads are 100 million numbers of nothing new
        model = torchvision.models.get_model(name, weights=None, num_classes=10)
        for k, m in enumerate(model.classifier):
            if isinstance(m, nn.Linear):
                model.classifier[k] = nn.Linear(min(m.in_features, 25088 if k < 2 else 64), 64 if k < 6 else 10)
        model.classifier[1 if name == "alexnet" else 0] = nn.Linear(9216 if name == "alexnet" else 25088, 64)
    else:
        model = torchvision.models.get_model(name, weights=None, num_classes=10, **extra)
    x = torch.randn(2, 3, FAMILIES[name], FAMILIES[name])
    model = settled(model.eval())
    plan = analyse(model, x)
    assert plan.n_units > 100 or name == "vit_b_16"
    _same(model, plan, x, 0, 0.7)


class Overwriting(nn.Module):
    """Adds and activates in place, in the ways torchvision and timm do."""

    def __init__(self, way: str):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.act, self.way = nn.ReLU(inplace=True), way

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.bn(self.conv(x))
        out += x
        if self.way == "module":
            return self.act(out)
        if self.way == "function":
            return F.relu(out, inplace=True)
        return out.relu_()


@pytest.mark.parametrize("way", ["module", "function", "method"])
def test_network_without_branches_trains_on_where_its_blocks_work_in_place(way: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), *(Overwriting(way) for _ in range(4)), nn.Flatten(), nn.Linear(4 * 36, 3))
    x = torch.randn(2, 3, 8, 8)
    plan = analyse(model, x)
    assert len(plan.blocks) == 4
    alive = np.ones(plan.n_gates, dtype=bool)
    alive[plan.n_units + 1 : plan.n_units + 4] = False
    small, _ = cut(model, plan, alive)
    small.train()(x).sum().backward()
    assert all(p.grad is not None for p in small.parameters())


@pytest.mark.parametrize("name", ["residual", "transformer"])
def test_network_without_branches_can_be_mended(name: str) -> None:
    model, x = make(name)
    plan = analyse(model, x)
    alive = np.ones(plan.n_gates, dtype=bool)
    alive[plan.n_units :: 2] = False
    small, _ = cut(model, plan, alive)
    small.eval()
    assert any(isinstance(m, torch.fx.GraphModule) for m in small.modules())
    delta = delta_for(small, Reader(small, x), reductions=("mean",), columns=(1,))
    tweaked = delta.attach(small, example_x=x)
    with torch.no_grad():
        before, after, again = small(x), tweaked(x), delta.attach(copy.deepcopy(small), example_x=x)(x)
    assert not torch.equal(before[:, 1], after[:, 1])
    assert torch.equal(before[:, 0], after[:, 0])
    assert torch.equal(after, again)
    assert tweaked.detach() is small


@pytest.mark.parametrize("seed", range(6))
def test_no_gate_passes_its_proof_because_nothing_was_cut(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    tried: list[np.ndarray] = []
    monkeypatch.setattr(module, "cut", lambda *args: (tried.append(args[2]), cut(*args))[1])
    plan = analyse(FixedHeads(blocks=4), torch.randn(2, 6, 5), seed=seed)
    refused = [name for name, reason in plan.ungated.items() if "number of channels" in reason]
    assert refused == [f"blocks.{b}.attn.qkv" for b in range(4)]
    assert (plan.n_units, len(plan.blocks)) == (4 * 8, 8)  # what can be cut stays offered
    assert len(tried) < 4 + 4 + 8  # units and branches of one role are tried together first
    assert not any(alive.all() for alive in tried)
