"""Lightning, Torch-Pruning and quantisation: each only where it is installed."""

from __future__ import annotations

import logging
import warnings

import pytest
import torch
import torch.nn.functional as F

from tweaknn.structure import ComplexityAware, pruning_callback

from .nets import TinyResNet, images, make
from .test_pruner import data, loop, start


def lightning_module():
    L = pytest.importorskip("lightning.pytorch")

    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = TinyResNet(8)

        def training_step(self, batch, index):
            x, y = batch
            return F.cross_entropy(self.network(x), y)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)

    return L, Module()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_lightning(tmp_path, accumulate: int) -> None:
    L, module = lightning_module()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    before = sum(p.numel() for p in module.parameters())
    callback = pruning_callback(images(), "network", flops=0.5, every=4, end=0.7)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data()), batch_size=16)
    trainer = L.Trainer(max_epochs=12, callbacks=[callback], accelerator="cpu", logger=False, default_root_dir=tmp_path,
                        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
                        accumulate_grad_batches=accumulate)  # fmt: skip
    trainer.fit(module, loader)
    assert callback.pruner.settings.steps == 48 // accumulate
    assert callback.pruner.state.step == 48 // accumulate
    assert callback.pruner.fractions[0] == pytest.approx(0.5, rel=0.05)
    assert sum(p.numel() for p in module.parameters()) < before


def test_torch_pruning_finds_the_same_groups() -> None:
    """An independent reference for the coupling: Torch-Pruning's dependency graph of a residual network."""
    tp = pytest.importorskip("torch_pruning")
    model, x = make("residual")
    pruner = ComplexityAware(model, x, None, steps=10)
    graph = tp.DependencyGraph().build_dependency(model, example_inputs=x)
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Conv2d):
            continue
        group = graph.get_pruning_group(module, tp.prune_conv_out_channels, idxs=[1])
        theirs = {(dep.target.name.split(" ")[0], "out" in dep.handler.__name__) for dep, _ in group
                  if isinstance(dep.target.module, torch.nn.Conv2d | torch.nn.Linear)}  # fmt: skip
        slot = next(s for s in pruner.plan.slots if s.module == name and s.dim == 0)
        gate = slot.map[1]
        ours = {(s.module, s.dim == 0) for s in pruner.plan.slots if s.name == "weight" and gate in s.map
                and isinstance(model.get_submodule(s.module), torch.nn.Conv2d | torch.nn.Linear)}  # fmt: skip
        assert ours == theirs, name


def test_quantised_after_pruning() -> None:
    """A pruned network is an ordinary module, so int8 weights (torchao) apply to it."""
    quantization = pytest.importorskip("torchao.quantization")
    model, optimizer, pruner = start(flops=0.5)
    loop(model, pruner, optimizer, 80)
    small = pruner.compact().eval()
    x, y = data()
    before = small(x).argmax(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantization.quantize_(small, quantization.Int8WeightOnlyConfig())
    assert float((small(x).argmax(1) == before).float().mean()) > 0.95
    assert float((before == y).float().mean()) > 0.9
