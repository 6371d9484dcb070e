"""What is left of every kind of network, exported: torch.export and ONNX, with units, branches and heads cut out."""

from __future__ import annotations

import functools
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from tweaknn.structure import analyse
from tweaknn.structure.analyse import keep_working, run
from tweaknn.structure.surgery import cut

from .nets import ZOO, make


@functools.cache
def pruned(name: str) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A network with about a third of its gates closed, an example, and what it answers."""
    model, x = make(name)
    plan = analyse(model, x)
    full = sum(p.numel() for p in model.parameters())
    alive = np.ones(plan.n_gates, dtype=bool)
    alive[: plan.n_units : 3] = False
    alive[plan.n_units + 1 :: 2] = False  # branches
    small, _ = cut(model, plan, keep_working(plan, alive))
    assert sum(p.numel() for p in small.parameters()) < 0.9 * full
    return small.eval(), x, run(small.eval(), (x,))[0].detach()


def test_heads_are_among_what_is_cut() -> None:
    block = pruned("transformer")[0].blocks[0]
    assert block.attn.num_heads == 2
    assert pruned("multihead")[0].blocks[0].attn.num_heads == 2


@pytest.mark.parametrize("name", ZOO)
def test_torch_export(name: str) -> None:
    small, x, want = pruned(name)
    exported = torch.export.export(small, (x,)).module()
    assert torch.allclose(exported(x), want, atol=1e-5)


@pytest.mark.parametrize("name", ZOO)
def test_onnx(tmp_path, name: str) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    small, x, want = pruned(name)
    file = tmp_path / "net.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(small, (x,), str(file), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(str(file))
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert torch.allclose(torch.from_numpy(got), want, atol=1e-4)
