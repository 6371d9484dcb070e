"""DA and WA (section 2.2; Wang et al. 2017, "Growing a brain"): a new layer after, or beside, the last
representation layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tweaknn.baselines.outcome import Outcome
from tweaknn.baselines.registry import method
from tweaknn.baselines.retraining import outcome
from tweaknn.baselines.surgery import find_head, last_convolution, replace_module
from tweaknn.baselines.task import Task, seeded
from tweaknn.baselines.training import fresh_copy, train


@method("da", "a new layer after the last representation layer, fine-tuned", depends_on_targets=False, trains=True)
def da(task: Task, hidden: int = 512) -> Outcome:
    """Depth augmentation: ``hidden`` new units between features and classifier, both random, everything
    fine-tuned."""
    x = task.train.batch([0, 0])[0]
    model = deepened(task.model, x, hidden, seeded(task, "da"))
    return _tune(task, model, "da", hidden)


@method("wa", "a new layer beside the last representation layer, fine-tuned", depends_on_targets=False, trains=True)
def wa(task: Task, hidden: int = 512) -> Outcome:
    """Width augmentation: ``hidden`` new units that read what the last representation layer reads, everything
    fine-tuned."""
    x = task.train.batch([0, 0])[0]
    model = widened(task.model, x, hidden, seeded(task, "wa"))
    return _tune(task, model, "wa", hidden)


def _tune(task: Task, model: nn.Module, name: str, hidden: int) -> Outcome:
    p = task.weights()
    with task.follow(name) as told:
        trained = train(
            model,
            task.train,
            task.training,
            seeded(task, name),
            sampling=None if p is None else p / p.sum(),
            told=told,
        )
    added = sum(q.numel() for q in model.parameters()) - sum(q.numel() for q in task.model.parameters())
    settings = {"hidden": hidden, "added_parameters": added, "iterations": trained.iterations}
    return outcome(task, trained, settings)


def deepened(model: nn.Module, x: torch.Tensor, hidden: int, generator: torch.Generator) -> nn.Module:
    """A copy whose last linear layer ``f -> c`` has become ``f -> hidden -> c`` (ReLU between), random.

    Sizes are Table 4.2's: a 3-layer CNN for SVHN with 512 units has 608 K parameters, a ResNet-20 309 K. Raises
    :class:`~tweaknn.baselines.outcome.NotApplicable` without a last linear layer.
    """
    twin = fresh_copy(model)
    name, head = find_head(twin, x)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
        first = nn.Linear(head.in_features, hidden)
        second = nn.Linear(hidden, head.out_features)
    new = nn.Sequential(first, nn.ReLU(), second).to(head.weight)
    return replace_module(twin, name, new)


def widened(model: nn.Module, x: torch.Tensor, hidden: int, generator: torch.Generator) -> nn.Module:
    """A copy with ``hidden`` ReLU units beside its last representation layer, feeding the logits too.

    They read the whole input of the last wide layer with weights (a 3-layer CNN for SVHN: 2,048 values, 1.14 M
    parameters
    with 512 units, as in Table 4.2). Their output weights start at zero, so the network starts as it was. Raises
    :class:`~tweaknn.baselines.outcome.NotApplicable` without a last linear layer or a layer before it.
    """
    twin = fresh_copy(model)
    name, head = find_head(twin, x)
    source, module = last_convolution(twin, x, name)
    seen: list[int] = []
    handle = module.register_forward_pre_hook(lambda m, args: seen.append(args[0][0].numel()))
    try:
        with torch.inference_mode():
            was = twin.training
            twin.eval()
            twin(x.to(head.weight))
            twin.train(was)
    finally:
        handle.remove()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
        beside = _Beside(head, seen[-1], hidden).to(head.weight)
    replace_module(twin, name, beside)
    replace_module(twin, source, _Watched(module, beside))
    return twin


class _Beside(nn.Module):
    """The old last layer plus new units; :class:`_Watched` hands it what they read."""

    def __init__(self, head: nn.Linear, inputs: int, hidden: int) -> None:
        super().__init__()
        self.head = head
        self.new = nn.Linear(inputs, hidden)
        self.out = nn.Linear(hidden, head.out_features, bias=False)
        nn.init.zeros_(self.out.weight)
        self.seen: torch.Tensor | None = None

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        assert self.seen is not None, "the watched layer runs before the last one"
        grown = torch.relu(self.new(self.seen.flatten(1)))
        self.seen = None
        return self.head(features) + self.out(grown)


class _Watched(nn.Module):
    def __init__(self, module: nn.Module, beside: _Beside) -> None:
        super().__init__()
        self.module = module
        # Not a submodule: it sits in the head's place and must not be counted twice.
        object.__setattr__(self, "beside", beside)

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        self.beside.seen = x  # type: ignore[union-attr]
        return self.module(x, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        # Networks look at their layers' attributes (stride, weight): answer for the wrapped one.
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)
