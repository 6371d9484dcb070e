"""LoRA (Hu et al. 2022) through the PEFT library, which takes any network of linear and 2-d convolution layers."""

from __future__ import annotations

import warnings

import torch
from torch import nn

from tweaknn.baselines.outcome import NotApplicable, Outcome
from tweaknn.baselines.registry import method
from tweaknn.baselines.retraining import changed, outcome
from tweaknn.baselines.task import Task, seeded
from tweaknn.baselines.training import fresh_copy, train


@method("lora", "low-rank updates of every layer, through PEFT", depends_on_targets=False, trains=True)
def lora(task: Task, rank: int = 8) -> Outcome:
    """Rank-``rank`` updates beside every linear and convolution layer, the base's weights frozen.

    Raises :class:`NotApplicable` where PEFT is missing or cannot wrap one of the network's layers.
    """
    model = adapted(task.model, rank, seeded(task, "lora"))
    p = task.weights()
    with task.follow("lora") as told:
        trained = train(
            model,
            task.train,
            task.training,
            seeded(task, "lora"),
            sampling=None if p is None else p / p.sum(),
            told=told,
        )
    return outcome(task, trained, {"rank": rank, "iterations": trained.iterations, "parameters": changed(model)})


def adapted(model: nn.Module, rank: int, generator: torch.Generator) -> nn.Module:
    """A copy of ``model`` with LoRA layers, only those trainable."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import peft
    except ImportError as problem:
        raise NotApplicable(f"it needs the PEFT library ({problem}); pip install 'tweaknn[lora]'") from None
    twin = fresh_copy(model)
    layers = [
        (name, module)
        for name, module in twin.named_modules()
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
    ]
    if not layers:
        raise NotApplicable("it has no linear or ungrouped 2-d convolution layer")
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=[name for name, _ in layers])
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
            return peft.get_peft_model(twin, config)  # type: ignore[arg-type]
    except Exception as problem:
        first = (str(problem).splitlines() or [type(problem).__name__])[0][:160]
        raise NotApplicable(f"PEFT cannot wrap this network: {first}") from problem
