"""Augmentation with active neurons (AAN, chapter 4): a small network on table T, added to the base's logits.

The MLP reads neurons of the frozen base and is trained from stored values alone, never through the base::

    logits = damping * base_logits + relu(x W1 + b1) W2 + b2

``grouped`` has one hidden group for each stage (Fig. 4.1a, the parameter counts of Table 4.3), ``dense`` one for all.

Why ``damping``: the base is surer of the images it was trained on than of any others. A network fitted beside its full logits learns to
lean on that sureness, which new images do not have; beside logits shrunk to a fifth it has to find its own evidence (on CIFAR-10 stored
as JPEG: +0.8 points overall, log loss .544 to .458). Validation may say otherwise: the candidates are compared there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from tweaknn.errors import InputError

PRESETS: dict[str, tuple[int, int]] = {
    "cnn3-svhn": (1000, 96),
    "resnet20-cifar10": (300, 192),
    "densenet40-cifar10": (1600, 192),
    "resnet56-cifar100": (4000, 320),
    "resnet110-cifar100": (3000, 192),
    "googlenet-imagenet": (6314, 1024),
    "densenet121-sun397": (11910, 256),
}
"""Table 4.1: (active neurons, hidden neurons) of each network."""

_HELD = 500_000_000
"""Numbers (of 4 bytes) up to which standardised features are kept."""
_CHUNK = 16384

_SPARE = 1 << 16  # places at which a batch's input dropout may begin


@dataclass(frozen=True)
class AANSettings:
    """How an AAN is trained.

    ``hidden``: neurons of the hidden layer (all groups together), or None: as many as ``parameters`` allow, at most 256.
    ``epochs``: passes over all rows of T at most; ``patience``: stop after so many without a better validation log loss; the best epoch's
    weights are returned. ``average``: decay of the running mean of weights, which is what is validated and returned (0: none).

    Raises:
        InputError: ``damping`` outside 0..1, or no epoch, batch or rate to train with.
    """

    hidden: int | None = None
    parameters: int = 250_000
    damping: float = 0.2
    epochs: int = 8
    patience: int = 3
    rate: float = 3e-3
    decay: float = 0.1
    drop_input: float = 0.1
    drop_hidden: float = 0.5
    batch: int = 1024
    average: float = 0.0
    smoothing: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.damping <= 1:
            raise InputError(f"damping must lie in 0..1, got {self.damping}.")
        if self.epochs < 1 or self.batch < 1 or self.rate <= 0:
            raise InputError("An AAN needs at least one epoch, one example a batch and a positive rate.")


@dataclass(frozen=True)
class AANFit:
    """A trained AAN, standardisation folded in: it applies to raw neuron values.

    ``w1``: one (f_g, h_g) a group, ``b1`` (h,), ``w2`` (h, c), ``bias`` (c,), ``damping``; ``history``:
    validation (or training) log loss of
    each epoch; ``columns``: one array of feature positions a group, in the order the groups read them.
    """

    w1: tuple[np.ndarray, ...]
    b1: np.ndarray
    w2: np.ndarray
    bias: np.ndarray
    damping: float
    columns: tuple[np.ndarray, ...]
    history: list[float] = field(default_factory=list)

    @property
    def parameters(self) -> int:
        """Stored numbers, the c x c diagonal that damps the logits counted as c."""
        return sum(w.size for w in self.w1) + self.b1.size + self.w2.size + 2 * self.bias.size

    def added(self, features: np.ndarray) -> np.ndarray:
        """What the MLP adds, (n, c) float32."""
        out = np.empty((len(features), self.bias.size), np.float32)
        for s in range(0, len(features), _CHUNK):
            x = np.asarray(features[s : s + _CHUNK], dtype=np.float32)
            hidden = np.concatenate([x[:, col] @ w for col, w in zip(self.columns, self.w1)], axis=1)
            out[s : s + _CHUNK] = np.maximum(hidden + self.b1, 0) @ self.w2 + self.bias
        return out

    def logits(self, features: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """``damping * offsets + added(features)``."""
        return np.float32(self.damping) * np.asarray(offsets, np.float32) + self.added(features)


def fit_aan(
    features: Any,
    offsets: Any,
    labels: Any,
    settings: AANSettings | None = None,
    *,
    groups: Sequence[np.ndarray] | None = None,
    validation: tuple | None = None,
    views: Sequence[tuple] = (),
    sample_weight: Any = None,
    device: str = "cpu",
    progress: Callable[[int, float], None] | None = None,
) -> AANFit:
    """Train an AAN on table T.

    Args:
        features: (n, f) neuron values; float16 is fine (and halves the memory).
        offsets: (n, c) base logits.
        labels: (n,) integers.
        settings: see :class:`AANSettings`.
        groups: feature positions of each hidden group (``grouped``: one for each stage); None: one dense group.
        validation: (features, offsets, labels) for early stopping and the choice of the epoch; None trains all epochs.
        views: further (features, offsets) of the same examples under augmentation, in the same order.
        sample_weight: (n,) non-negative.
        device: where to train.
        progress: called with (epoch, log loss).

    Returns:
        The fit; the same settings, data and seed on the same machine give the same bits.

    Raises:
        InputError: shapes disagree, labels out of range, features not finite, no room for a hidden neuron.
    """
    settings = settings or AANSettings()
    parts = [(features, offsets), *views]
    xs = [torch.as_tensor(x) for x, _ in parts]
    zs = [torch.as_tensor(z).float() for _, z in parts]
    y = torch.as_tensor(labels).long()
    n, f = xs[0].shape
    c = zs[0].shape[1]
    for x, z in zip(xs, zs):
        if x.shape != (n, f) or z.shape != (n, c) or y.shape != (n,):
            raise InputError(f"features {tuple(x.shape)}, offsets {tuple(z.shape)} and labels {tuple(y.shape)} do not agree.")
        if not bool(torch.isfinite(z).all()):
            raise InputError("The offsets hold NaN or infinite logits; check the base network's output.")
    if n == 0 or int(y.min()) < 0 or int(y.max()) >= c:
        raise InputError(f"labels must be integers in 0..{c - 1}, at least one of them.")
    columns = [np.asarray(g, dtype=np.int64) for g in groups] if groups is not None else [np.arange(f)]
    columns = [g for g in columns if len(g)]
    weight = torch.ones(n) if sample_weight is None else torch.as_tensor(sample_weight).float()
    centre, spread = _standard(xs)
    gather = _gatherer(xs, zs, centre, 1 / spread)  # 1 / spread is 0 for a neuron that does not move
    sizes = _hidden(settings, columns, c)
    net = _Net(columns, sizes, c, settings).to(device)
    generator = torch.Generator().manual_seed(settings.seed)
    net.start(generator)
    shadow = {k: v.detach().clone() for k, v in net.state_dict().items()}
    best, best_loss, history, worse = shadow, float("inf"), [], 0
    optimiser = torch.optim.AdamW(net.parameters(), settings.rate, betas=(0.9, 0.99), weight_decay=settings.decay)
    rows = n * len(xs)
    batch = min(settings.batch, rows)
    steps = max(1, settings.epochs * (rows // batch))
    done = 0
    # dropout draws from the global generator: fork it, so that the fit is reproducible and the caller's stream is left alone
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        for epoch in range(settings.epochs):
            net.train()
            order = torch.randperm(rows, generator=generator)
            for s in range(0, rows - batch + 1, batch):
                pick = order[s : s + batch]
                x, z = gather(pick)
                k = pick % n
                x = net.thin(x.to(device), generator)
                out = settings.damping * z.to(device) + net(x)
                loss = F.cross_entropy(out, y[k].to(device), reduction="none", label_smoothing=settings.smoothing)
                w = weight[k].to(device)
                for group in optimiser.param_groups:
                    warm = min(1.0, (done + 1) / 200)
                    group["lr"] = settings.rate * warm * 0.5 * (1 + np.cos(np.pi * done / steps))
                optimiser.zero_grad(set_to_none=True)
                ((loss * w).sum() / w.sum().clamp_min(1e-12)).backward()
                optimiser.step()
                done += 1
                if settings.average:
                    mix = min(settings.average, done / (done + 10))
                    for name, value in net.state_dict().items():
                        shadow[name].lerp_(value, 1 - mix)
            present = shadow if settings.average else {k: v.detach().clone() for k, v in net.state_dict().items()}
            loss_now = float(loss.detach().mean())
            if validation is not None:
                loss_now = _validation_loss(net, present, validation, centre, spread, settings.damping, device)
            history.append(loss_now)
            if progress is not None:
                progress(epoch, loss_now)
            if validation is None or loss_now < best_loss:
                best_loss, worse = loss_now, 0
                best = {k: v.clone() for k, v in present.items()}
            else:
                worse += 1
                if worse >= settings.patience:
                    break
    return _folded(best, columns, centre, spread, settings.damping, history)


class _Net(torch.nn.Module):
    """Hidden groups, dropout, output: on standardised features."""

    def __init__(self, columns: list[np.ndarray], sizes: list[int], c: int, settings: AANSettings) -> None:
        super().__init__()
        self.columns = [torch.from_numpy(g) for g in columns]
        self.dense = len(columns) == 1 and bool((np.diff(columns[0]) == 1).all())
        self.w1 = torch.nn.ParameterList(torch.nn.Parameter(torch.zeros(len(g), h)) for g, h in zip(columns, sizes))
        self.b1 = torch.nn.Parameter(torch.zeros(sum(sizes)))
        self.w2 = torch.nn.Parameter(torch.zeros(sum(sizes), c))
        self.b2 = torch.nn.Parameter(torch.zeros(c))
        self.settings = settings
        self.stock: torch.Tensor | None = None

    def start(self, generator: torch.Generator) -> None:
        """Random hidden weights, an output of zero: training starts at the (damped) base itself."""
        with torch.no_grad():
            for w in self.w1:
                bound = 1 / np.sqrt(w.shape[0])
                w.copy_((torch.rand(w.shape, generator=generator) * 2 - 1) * bound)

    def thin(self, x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Input dropout, in place. Drawing a number for each of a batch's inputs costs as much as the matrix product, so that a
        stock of them is drawn once and begun at another place for each batch."""
        p = self.settings.drop_input
        if not p:
            return x
        if self.stock is None or self.stock.numel() < x.numel() + _SPARE:
            drawn = torch.rand(x.numel() + _SPARE, generator=generator) >= p
            self.stock = (drawn.float() / (1 - p)).to(x.device)
        start = int(torch.randint(_SPARE, (1,), generator=generator))
        return x.mul_(self.stock[start : start + x.numel()].view_as(x))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.dense and x.shape[1] == self.w1[0].shape[0]:
            hidden = x @ self.w1[0]
        else:
            hidden = torch.cat([x[:, g.to(x.device)] @ w for g, w in zip(self.columns, self.w1)], dim=1)
        hidden = F.dropout(F.relu(hidden + self.b1), self.settings.drop_hidden, self.training)
        return hidden @ self.w2 + self.b2


def _hidden(settings: AANSettings, columns: list[np.ndarray], c: int) -> list[int]:
    """Hidden neurons of each group, within the parameter budget."""
    inputs = sum(len(g) for g in columns) / len(columns)  # what one hidden neuron reads on average
    room = int((settings.parameters - 3 * c) // (inputs + 1 + c))
    total = min(settings.hidden if settings.hidden is not None else 256, max(room, 0))
    if total < len(columns):
        raise InputError(
            f"{settings.parameters} parameters leave no room for a hidden neuron on {sum(map(len, columns))} features; read fewer neurons."
        )
    return [total // len(columns) + (g < total % len(columns)) for g in range(len(columns))]


def _standard(xs: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    total = torch.zeros(xs[0].shape[1], dtype=torch.float64)
    square = torch.zeros_like(total)
    count = 0
    for x in xs:
        for s in range(0, len(x), _CHUNK):
            block = x[s : s + _CHUNK].double()
            total += block.sum(0)
            square += block.square().sum(0)
            count += len(block)
    mean = total / count
    std = (square / count - mean.square()).clamp_min(0).sqrt()
    if not bool(torch.isfinite(mean).all() and torch.isfinite(std).all()):
        bad = int(torch.nonzero(~torch.isfinite(mean + std)).flatten()[0])
        raise InputError(f"Feature {bad} holds NaN or infinite values; check the network's activations on these examples.")
    # a neuron that hardly moves must not be blown up: it would be noise of the sixth digit
    return mean.float(), torch.where(std > 1e-6 * mean.abs() + 1e-12, std, torch.inf).float()


def _gatherer(
    xs: list[torch.Tensor], zs: list[torch.Tensor], centre: torch.Tensor, inverse: torch.Tensor
) -> Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """What gives a batch's standardised features and offsets, by positions among the rows of all views together.

    Standardised once where that fits in memory: a batch is then one look-up, which is most of what a step of a small net costs.
    """
    n = len(xs[0])

    def standardised(x: torch.Tensor) -> torch.Tensor:
        return (x.float() - centre).mul_(inverse).clamp_(-8, 8)

    offsets = torch.cat(zs)
    if n * len(xs) * xs[0].shape[1] <= _HELD:
        ready = torch.empty(n * len(xs), xs[0].shape[1])
        for v, x in enumerate(xs):
            for s in range(0, n, _CHUNK):
                part = standardised(x[s : s + _CHUNK])
                ready[v * n + s : v * n + s + len(part)] = part
        return lambda pick: (ready[pick], offsets[pick])

    def late(pick: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        view, row = pick // n, pick % n
        x = torch.empty(len(pick), xs[0].shape[1])
        for v in range(len(xs)):
            here = torch.nonzero(view == v).flatten()
            x[here] = xs[v][row[here]].float()
        return standardised(x), offsets[pick]

    return late


def _validation_loss(net: _Net, state, validation, centre, spread, damping: float, device: str) -> float:
    current = {k: v.detach().clone() for k, v in net.state_dict().items()}
    net.load_state_dict(state)
    net.eval()
    x, z, y = (torch.as_tensor(part) for part in validation)
    loss = 0.0
    with torch.no_grad():
        for s in range(0, len(y), _CHUNK):
            block = ((x[s : s + _CHUNK].float() - centre) / spread).to(device)
            out = damping * z[s : s + _CHUNK].float().to(device) + net(block)
            loss += float(F.cross_entropy(out, y[s : s + _CHUNK].long().to(device), reduction="sum"))
    net.load_state_dict(current)
    return loss / len(y)


def _folded(state, columns, centre, spread, damping: float, history: list[float]) -> AANFit:
    """Standardisation into the first layer (clamping at 8 standard deviations is a matter of training only)."""
    w1, shift = [], []
    for g, col in enumerate(columns):
        w = state[f"w1.{g}"].cpu().double() / spread[col].double().unsqueeze(1)
        shift.append(-(centre[col].double() @ w))
        w1.append(w.float().numpy())
    b1 = (state["b1"].cpu().double() + torch.cat(shift)).float().numpy()
    w2, b2 = state["w2"].cpu().numpy(), state["b2"].cpu().numpy()
    return AANFit(tuple(w1), b1, w2, b2, float(damping), tuple(columns), history)
