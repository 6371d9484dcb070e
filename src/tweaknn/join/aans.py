"""Candidates of augmentation with active neurons (chapter 4): sizes, forms and strengths tried, validation decides."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from tweaknn.delta import MLP, Read, Term
from tweaknn.errors import InputError
from tweaknn.fit.aan import PRESETS, AANFit, AANSettings, fit_aan
from tweaknn.join.candidates import Made, damped, may_damp, pick, strength
from tweaknn.join.setting import Setting
from tweaknn.join.table import PooledTable
from tweaknn.measure import tempered_log_loss

FORMS = ("dense", "grouped")

LEAST = 200
"""Training examples below which ``best`` does not try an MLP."""

LARGEST = 250_000
"""Parameters an AAN takes at most unless it is asked for more: beyond, the limit of a delta holds."""

SMALL = 32
"""Hidden neurons of the small nets that are tried first."""


@dataclass(frozen=True)
class AANChoice:
    """What a user wants of an AAN; what is None is chosen.

    Attributes:
        hidden: hidden neurons, or a preset of Table 4.1 by name (``resnet20-cifar10``), which also says how many active neurons
            feed them; None: validation chooses.
        form: ``dense`` or ``grouped`` (one hidden group a stage); None: the method's own, which is ``grouped`` for a preset.

    Raises:
        InputError: an unknown preset or form, or less than one hidden neuron.
    """

    hidden: int | str | None = None
    form: str | None = None

    def __post_init__(self) -> None:
        if self.form is not None and self.form not in FORMS:
            raise InputError(f"The form of an AAN is one of {', '.join(FORMS)}, not {self.form!r}.")
        if isinstance(self.hidden, str) and self.hidden not in PRESETS:
            raise InputError(
                f"{self.hidden!r} is neither a number of hidden neurons nor one of {', '.join(PRESETS)} (Table 4.1)."
            )
        if isinstance(self.hidden, int) and self.hidden < 1:
            raise InputError(f"An AAN needs at least one hidden neuron, not {self.hidden}.")

    @property
    def preset(self) -> tuple[int, int] | None:
        """(active neurons, hidden neurons) of Table 4.1, or None."""
        return PRESETS[self.hidden] if isinstance(self.hidden, str) else None


def aan(setting: Setting, name: str = "aan", choice: AANChoice | None = None, room: int | None = None) -> Made:
    """An AAN on the columns of the table, before its operating point.

    The epoch is chosen by the log loss on validation, and so are the damping of the base's logits and, unless it is asked for, the
    size: :data:`SMALL` hidden neurons or as many as there is room for.

    Args:
        room: parameters it may have; None: what the setting's limit allows, at most :data:`LARGEST`.

    Raises:
        InputError: the size asked for does not fit the limit.
    """
    choice = choice or AANChoice()
    train, held = setting.train, setting.validation
    grouped = choice.form == "grouped" or (choice.form is None and (name == "aan-grouped" or choice.preset is not None))
    room = room if room is not None else (setting.limit if choice.hidden is not None else min(setting.limit, LARGEST))
    damps = may_damp(setting)
    room -= train.logits.shape[1] ** 2 if damps and choice.hidden is None else 0
    columns = _columns(train, choice, room)
    inputs = replace(
        train,
        features=train.features[:, columns],
        reads=tuple(pick(train.reads, columns)),
        views=tuple((x[:, columns], z) for x, z in train.views),
    )
    groups = stages(inputs) if grouped else None
    hidden = choice.preset[1] if choice.preset else choice.hidden
    _check_room(setting, len(columns), hidden, groups, room)
    validation = (held.features[:, columns], held.logits, held.labels)
    asked = hidden if isinstance(hidden, int) else None
    small = replace(_settings(setting, asked or SMALL, room), damping=1.0)
    tried: list[tuple[float, AANSettings, AANFit]] = []

    def attempt(settings: AANSettings) -> None:
        found = fit_aan(
            inputs.features, inputs.logits, inputs.labels, settings,
            groups=groups, validation=validation, views=inputs.views,
        )  # fmt: skip
        tried.append((tempered_log_loss(found.logits(validation[0], held.logits), held.labels), settings, found))

    attempt(small)
    if damps:
        attempt(replace(small, damping=AANSettings().damping))
    if asked is None:  # the damping that suits a small net suits a large one, at a fraction of the price
        attempt(replace(min(tried, key=lambda t: t[0])[1], hidden=None))
    loss, _, found = min(tried, key=lambda t: t[0])
    logits = found.logits(validation[0], held.logits)
    delta = replace(setting.frame, terms=terms_of(found, inputs), bias=torch.from_numpy(found.bias), kind=name)
    notes = {
        "hidden": int(found.b1.size), "epochs": len(found.history), "damping": found.damping, "log_loss": loss,
        "form": "grouped" if grouped else "dense", "neurons_read": len(columns),
    }  # fmt: skip
    return Made(delta, logits, notes)


def _settings(setting: Setting, hidden: int | None, room: int) -> AANSettings:
    """Small data: small batches and more epochs, which validation ends (measured on clothing10: ten are as good as twenty)."""
    rows = len(setting.train.labels) * (1 + len(setting.train.views))
    batch = int(np.clip(rows // 40, 64, 1024))
    epochs = int(np.clip(200_000 // max(rows, 1), 5, 10))
    rate = 3e-3 * (batch / 1024) ** 0.5
    return AANSettings(seed=setting.seed, batch=batch, rate=rate, hidden=hidden, parameters=room, epochs=epochs)


def fits(setting: Setting, room: int) -> bool:
    """Whether ``room`` parameters are enough for an AAN worth the name: :data:`SMALL` hidden neurons on as many inputs."""
    return room >= SMALL * (SMALL + 1 + setting.train.logits.shape[1]) + 3 * setting.train.logits.shape[1]


def _columns(train: PooledTable, choice: AANChoice, room: int) -> np.ndarray:
    """What it reads: a preset's number of active neurons, else all that leave room for some hidden neurons."""
    every = np.arange(train.features.shape[1])
    c = train.logits.shape[1]
    wanted = choice.preset[0] if choice.preset else len(every)
    asked = choice.preset[1] if choice.preset else (choice.hidden if isinstance(choice.hidden, int) else SMALL)
    most = max((room - 3 * c) // asked - c - 1, 1)
    if choice.hidden is None:
        wanted = min(wanted, most)
    if wanted >= len(every):
        return every
    return np.sort(every[np.argsort(-strength(train, every), kind="stable")[:wanted]])


def _check_room(setting: Setting, f: int, hidden: int | str | None, groups: list[np.ndarray] | None, room: int) -> None:
    if not isinstance(hidden, int):
        return
    c = setting.train.logits.shape[1]
    per = (np.mean([len(g) for g in groups]) if groups else f) + 1 + c
    if hidden * per + 3 * c > room:
        raise InputError(
            f"An AAN of {hidden} hidden neurons on {f} neurons would have {int(hidden * per + 3 * c)} parameters; a delta for this base "
            f"may have {room}. Take at most {int((room - 3 * c) // per)} hidden neurons, or fewer --layers."
        )


def terms_of(found: AANFit, table: PooledTable) -> tuple[Term, ...]:
    """An AAN as terms of a delta: the MLP, and the synapses from the logits to themselves that damp them."""
    c = len(found.bias)
    reads: list[Read] = []
    for columns in found.columns:
        reads += pick(table.reads, columns)
    w1 = tuple(torch.from_numpy(w) for w in found.w1)
    head = MLP(w1, torch.from_numpy(found.b1), torch.from_numpy(found.w2), torch.arange(c), "relu")
    return (Term(tuple(reads), head), *damped(found.damping, c))


def stages(table: PooledTable) -> list[np.ndarray]:
    """Columns of each stage: layers of one resolution (or, without maps, of one width) together (Fig. 4.1a)."""
    found: dict[Any, list[np.ndarray]] = {}
    for read, span in zip(table.reads, table.spans(), strict=True):
        spatial = tuple(n for axis, n in enumerate(read.shape) if axis != read.channel_axis)
        key = spatial if spatial else ("flat", read.shape)
        found.setdefault(key, []).append(np.arange(span.start, span.stop))
    return [np.concatenate(parts) for parts in found.values()]


def blended(setting: Setting, first: Made, second: Made) -> Made:
    """The mean of two deltas: half of each. Their mistakes differ, so the mean makes fewer (a second MLP in the method's notes
    was worth a point)."""
    delta = first.delta * 0.5 + second.delta * 0.5
    logits = (0.5 * (first.logits + second.logits)).astype(np.float32)
    loss = tempered_log_loss(logits, setting.validation.labels)
    notes = {"log_loss": loss, "of": [first.notes, second.notes]}
    return Made(replace(delta, meta={}), logits, notes)
