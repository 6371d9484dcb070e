"""Training for people without a loop: SGD, augmentation, progress, log, resume, a budget if wanted."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import DataError, InputError, ModelError
from ..network.modes import output_of
from .analyse import analyse
from .pruner import ComplexityAware
from .saved import Origin, origin_of, save_directory

CHECKPOINT, LOG = "checkpoint.pt", "log.jsonl"


@dataclass(frozen=True)
class Recipe:
    """How to train. ``prune`` holds :class:`Settings` fields; empty trains plainly.

    rate, momentum, decay: SGD with Nesterov momentum; the rate rises over ``warmup`` epochs and falls as a cosine.
    augment: random crops and left-right flips of images. distil: weight of the teacher's soft targets (0 to 1) at
    ``temperature``.
    """

    epochs: int = 30
    batch_size: int = 128
    rate: float = 0.1
    momentum: float = 0.9
    decay: float = 5e-4
    warmup: float = 1.0
    augment: bool = True
    distil: float = 0.7
    temperature: float = 4.0
    clip: float | None = None
    seed: int = 0
    prune: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, low in (("epochs", 1), ("batch_size", 2)):
            if getattr(self, name) < low:
                raise InputError(f"{name} must be at least {low}, got {getattr(self, name)}")
        for name in ("rate", "temperature"):
            if not getattr(self, name) > 0 or not math.isfinite(getattr(self, name)):
                raise InputError(f"{name} must be above 0 and finite, got {getattr(self, name)}")
        if not 0 <= self.momentum < 1 or self.decay < 0 or not 0 <= self.distil <= 1:
            raise InputError("momentum must lie in [0, 1), decay be at least 0 and distil lie in [0, 1]")


@dataclass
class Trained:
    """What training gives: the network, how it did, where its cost went."""

    model: nn.Module
    origin: Origin
    accuracy: float
    per_class: list[float | None]
    log: list[dict[str, Any]]
    facts: dict[str, Any]


def learning_rate(recipe: Recipe, step: int, steps: int, per_epoch: int) -> float:
    """Linear warm-up, then a cosine down to 0."""
    warm = min(recipe.warmup * per_epoch, 0.2 * steps)
    if step < warm:
        return recipe.rate * (step + 1) / max(warm, 1)
    return recipe.rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1.0, steps - warm)))


def augment(x: Tensor, rng: torch.Generator) -> Tensor:
    """Random crops after reflecting an eighth of the side; left-right flips of colour images (grey ones are often
    characters, which a flip makes wrong); ``x`` is ``(n, c, h, w)``."""
    n, _, h, w = x.shape
    p = max(1, min(h, w) // 8)
    padded = F.pad(x, (p, p, p, p), mode="reflect" if min(h, w) > p else "constant")
    top = torch.randint(0, 2 * p + 1, (n,), generator=rng)
    left = torch.randint(0, 2 * p + 1, (n,), generator=rng)
    flip = torch.rand(n, generator=rng) < (0.5 if x.shape[1] == 3 else 0.0)
    columns = left[:, None] + torch.arange(w)
    columns = torch.where(flip[:, None], columns.flip(1), columns)
    rows = top[:, None] + torch.arange(h)
    return padded[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _finite(x: Any, name: str) -> None:
    if isinstance(x, Tensor) and not bool(torch.isfinite(x).all()):
        raise DataError(f"{name}: the inputs hold NaN or infinite values")


@torch.no_grad()
def evaluate(model: nn.Module, data: Any, batch_size: int, classes: int) -> tuple[float, list[float | None], float]:
    """Accuracy, accuracy by class (None where a class has no examples), and mean loss."""
    model.eval()
    device = next(model.parameters()).device
    hits, losses = [], 0.0
    for start in range(0, len(data), batch_size):
        x, y = data.batch(np.arange(start, min(start + batch_size, len(data))))
        logits = output_of(model(x.to(device))).float().cpu()
        if not bool(torch.isfinite(logits).all()):
            _finite(x, getattr(data, "name", "the data"))
        hits.append(logits.argmax(1) == y)
        losses += float(F.cross_entropy(logits, y, reduction="sum"))
    hit = torch.cat(hits).numpy()
    labels = np.asarray(data.labels)
    per = [float(hit[labels == c].mean()) if (labels == c).any() else None for c in range(classes)]
    return float(hit.mean()), per, losses / len(data)


class Trainer:
    """One run in a folder; interrupted runs go on from the last finished epoch with identical results."""

    def __init__(
        self, model: nn.Module, train: Any, validation: Any, recipe: Recipe, *, out: str | Path, spec: str,
        classes: list[str] | None = None, teacher: nn.Module | None = None, preprocess: Any = None,
        num_classes: int | None = None, key: dict[str, Any] | None = None,
    ):  # fmt: skip
        self.model, self.train, self.validation, self.recipe = model, train, validation, recipe
        self.out, self.spec, self.classes, self.preprocess = Path(out), spec, classes, preprocess
        self.teacher = teacher.eval() if teacher is not None else None
        self.key = {"recipe": asdict(recipe), **(key or {})}
        self.log: list[dict[str, Any]] = []
        self.told: Callable[[int, dict[str, Any]], None] | None = None  # of every epoch, for a live view
        if len(train) < 2:
            raise DataError(f"training needs at least 2 examples, got {len(train)}")
        self.batch = min(recipe.batch_size, len(train))
        self.per_epoch = max(1, len(train) // self.batch)
        self.steps = recipe.epochs * self.per_epoch
        x, _ = train.batch(np.arange(min(2, len(train))))
        device = next(model.parameters()).device
        self.example = x.to(device)
        self.n_classes = self._outputs()
        self.num_classes = num_classes
        self.images = x.dim() == 4 and x.shape[1] in (1, 3, 4)
        highest = int(max(np.max(train.labels), np.max(validation.labels)))
        if highest >= self.n_classes:
            raise DataError(f"the data hold class {highest} but the network has {self.n_classes} outputs")
        self.optimizer = torch.optim.SGD(
            [p for p in model.parameters() if p.requires_grad], lr=recipe.rate, momentum=recipe.momentum,
            weight_decay=recipe.decay, nesterov=recipe.momentum > 0,
        )  # fmt: skip
        self.full = sum(p.numel() for p in model.parameters())
        self.pruner: ComplexityAware | None = None
        self.before = _shapes(model)
        if recipe.prune:
            self.pruner = ComplexityAware(
                model, self.example, self.optimizer, steps=self.steps, plan=analyse(model, self.example),
                **{"seed": recipe.seed, **recipe.prune},
            )  # fmt: skip
        self.epoch = 0
        self.seconds = 0.0

    def _outputs(self) -> int:
        mode = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                out = output_of(self.model(self.example))
        except Exception as error:
            shape = tuple(self.example.shape[1:])
            raise ModelError(f"the network does not run on an input of shape {shape}: {str(error).splitlines()[0]}") from None
        finally:
            self.model.train(mode)
        if not isinstance(out, Tensor) or out.dim() != 2:
            raise ModelError("the network must return one row of class scores an example")
        return int(out.shape[1])

    # ---- running -----------------------------------------------------------------------------------------------
    def run(self, *, resume: bool = False, progress: Callable[[int, int, str], None] | None = None) -> Trained:
        """Train to the end. ``progress(step, steps, sentence)`` is called after every step.

        Raises:
            ModelError: the loss became NaN or infinite; the checkpoint of the last good epoch is kept.
            InputError: ``resume`` with other settings than the interrupted run's, or without one.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        if resume:
            self.load()
        while self.epoch < self.recipe.epochs:
            row = self._epoch(progress)
            self.log.append(row)
            self.epoch += 1
            self.save()
            if self.told is not None:
                self.told(row["epoch"], {k: v for k, v in row.items() if k != "epoch"})
        if self.pruner is not None:
            self.model = self.pruner.compact()
        return self._result()

    def _epoch(self, progress: Callable[[int, int, str], None] | None) -> dict[str, Any]:
        rng = torch.Generator().manual_seed(self.recipe.seed * 100_003 + self.epoch)
        torch.manual_seed(self.recipe.seed * 100_003 + self.epoch)  # dropout
        order = torch.randperm(len(self.train), generator=rng).numpy()
        device = self.example.device
        began, total = time.perf_counter(), 0.0
        self.model.train()
        for k in range(self.per_epoch):
            step = self.epoch * self.per_epoch + k
            x, y = self.train.batch(order[k * self.batch : (k + 1) * self.batch])
            if self.recipe.augment and self.images:
                x = augment(x, rng)
            x, y = x.to(device), y.to(device)
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(self.recipe, step, self.steps, self.per_epoch)
            self.optimizer.zero_grad(set_to_none=True)
            try:
                loss = self._loss(x, y)
            except (RuntimeError, ValueError, TypeError) as error:
                # Nothing but the network's own layers runs there, in training mode and on augmented inputs for the first time.
                raise ModelError(
                    f"the network does not train on inputs of shape {tuple(x.shape[1:])}: {str(error).splitlines()[0]}"
                ) from error
            value = float(loss.detach())
            if not math.isfinite(value):
                _finite(x, getattr(self.train, "name", "the training data"))
                kept = f"the checkpoint of epoch {self.epoch} is kept in {self.out}" if self.epoch else "no epoch was finished"
                raise ModelError(f"the loss became {value} at step {step + 1} of {self.steps}; {kept}; lower --rate")
            loss.backward()
            if self.recipe.clip is not None:
                nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
            self.optimizer.step()
            if self.pruner is not None:
                self.pruner.step()
            total += value
            if progress is not None:
                progress(step + 1, self.steps, self._sentence(value))
        self.seconds += time.perf_counter() - began
        accuracy, _, val_loss = evaluate(self.model, self.validation, self.batch, self.n_classes)
        row = {"epoch": self.epoch + 1, "loss": total / self.per_epoch, "validation": accuracy,
               "validation_loss": val_loss, "seconds": self.seconds}  # fmt: skip
        if self.pruner is not None:
            row["flops"], row["params"] = self.pruner.fractions
            row["nu"] = self.pruner.nu
        return row

    def _loss(self, x: Tensor, y: Tensor) -> Tensor:
        logits = output_of(self.model(x)).float()
        hard = F.cross_entropy(logits, y)
        if self.teacher is None:
            return hard
        t = self.recipe.temperature
        with torch.no_grad():
            soft = output_of(self.teacher(x)).float()
        kl = F.kl_div(F.log_softmax(logits / t, 1), F.log_softmax(soft / t, 1), reduction="batchmean", log_target=True)
        return (1 - self.recipe.distil) * hard + self.recipe.distil * t * t * kl

    def _sentence(self, loss: float) -> str:
        text = f"loss {loss:.3f}"
        if self.pruner is not None:
            text += f"  FLOPs {self.pruner.fractions[0]:.2f}"
        return text

    def deliver(self, out: Path, more: dict[str, Any]) -> Trained:
        """The finished network again, in another folder, with ``more`` among its facts."""
        self.out = out
        return self._result(more)

    def _result(self, more: dict[str, Any] | None = None) -> Trained:
        accuracy, per, loss = evaluate(self.model, self.validation, self.batch, self.n_classes)
        facts: dict[str, Any] = {"validation": accuracy, "validation_loss": loss, "seconds": self.seconds,
                                 "epochs": self.recipe.epochs, "log": self.log, "before": self.before,
                                 "after": _shapes(self.model),
                                 "params": sum(p.numel() for p in self.model.parameters()) / self.full}  # fmt: skip
        origin = getattr(self.model, "tweaknn_origin", None) or Origin(self.spec, self.num_classes)
        if self.pruner is not None:
            origin = origin_of(self.pruner, self.spec, self.num_classes)
            c = self.pruner.cost.complexity(self.pruner.state.theta)
            facts |= {"flops": c.flops, "params": c.params, "full_flops": c.full_flops, "full_params": c.full_params,
                      "undecided": self.pruner.undecided, "history": self.pruner.history,
                      "ungated": self.pruner.ungated, "settings": self.pruner.settings.to_dict(),
                      "layers": layer_costs(self.pruner)}  # fmt: skip
        facts |= more or {}
        save_directory(self.out, self.model, origin, classes=self.classes, preprocess=self.preprocess, facts=facts)
        self.model.eval()
        return Trained(self.model, origin, accuracy, per, self.log, facts)

    # ---- resume ------------------------------------------------------------------------------------------------
    def save(self) -> None:
        """Write the checkpoint and the log, whole or not at all."""
        state = {
            "key": json.dumps(self.key, sort_keys=True, default=str),
            "epoch": self.epoch,
            "seconds": self.seconds,
            "log": self.log,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "pruner": self.pruner.state_dict() if self.pruner is not None else None,
        }
        part = self.out / (CHECKPOINT + ".part")
        torch.save(state, part)
        os.replace(part, self.out / CHECKPOINT)
        text = "".join(json.dumps(row) + "\n" for row in self.log)
        part = self.out / (LOG + ".part")
        part.write_text(text, encoding="utf-8")
        os.replace(part, self.out / LOG)

    def load(self) -> None:
        """Take up the interrupted run in the folder."""
        file = self.out / CHECKPOINT
        if not file.is_file():
            raise InputError(f"{self.out} holds no interrupted run to resume; leave --resume out")
        try:
            state = torch.load(file, map_location=self.example.device, weights_only=True)
        except Exception as error:
            raise InputError(f"{file} cannot be read (damaged?): {str(error).splitlines()[0][:120]}") from None
        if state.get("key") != json.dumps(self.key, sort_keys=True, default=str):
            raise InputError(f"{self.out} was started with other settings; repeat them, or choose another --out")
        if self.pruner is not None:
            self.pruner.load_state_dict(state["pruner"])
            self.model = self.pruner.model
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.seconds, self.log = state["epoch"], state["seconds"], state["log"]


def _shapes(model: nn.Module) -> dict[str, list[int]]:
    """Output and input widths of every layer with weights: ``name -> [out, in]``."""
    out = {}
    for path, module in model.named_modules():
        weight = module._parameters.get("weight", module._parameters.get("weight_hh_l0"))
        if weight is not None and weight.dim() >= 2:
            out[path] = [int(weight.shape[0]), int(weight.shape[1])]
    return out


def layer_costs(pruner: ComplexityAware) -> list[dict[str, Any]]:
    """FLOPs and parameters of every layer before and after, in the order of execution."""
    rows: dict[str, dict[str, Any]] = {}
    alive = np.append(pruner.possible, True)
    for op in pruner.original.ops:
        row = rows.setdefault(op.module or "(attention)", {"flops": [0.0, 0.0], "params": [0.0, 0.0]})
        outs = np.array([len(op.out_map), alive[_last(op.out_map, len(alive))].sum()])
        ins = np.array([1, 1]) if op.in_map is None else np.array([len(op.in_map), alive[_last(op.in_map, len(alive))].sum()])
        pairs = (outs * ins).astype(float)
        pairs[1] *= all(alive[b] for b in op.blocks)
        for k in (0, 1):
            row["flops"][k] += op.flops * pairs[k]
            row["params"][k] += op.params * pairs[k]
        if op.kind in ("conv", "linear", "depthwise", "lstm", "gru", "rnn_tanh", "rnn_relu"):
            row["width"] = [int(outs[0]), int(outs[1]) if pairs[1] else 0]
    return [{"layer": name, **row} for name, row in rows.items()]


def _last(units: np.ndarray, n: int) -> np.ndarray:
    return np.where(units < 0, n - 1, units)
