"""Methods that read a few neurons only, chosen before their synapses are fitted.

| method | what chooses |
|---|---|
| ``selected`` | group-sparse fit: a neuron serves all logits or none, in the order in which neurons enter the path |
| ``stable`` | stability selection: how often a group-sparse fit keeps the neuron over random halves of the data |
| ``net-gain`` | Algorithm 1 without its minimum: the weight of largest net gain of each (neuron, target) |
| ``mixed`` | group-sparse over pooled neurons and the positional neurons that Algorithm 1 ranks first |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tweaknn.delta import Read
from tweaknn.fit.selection import group_sparse, net_gains, stability
from tweaknn.join.candidates import WIDEST, fitted, strength
from tweaknn.join.setting import Candidate, Setting
from tweaknn.join.table import PooledTable
from tweaknn.network.reader import Reader

if TYPE_CHECKING:
    from tweaknn.join.run import SynapticJoin

SELECTIONS = ("selected", "stable", "net-gain", "mixed")

MOST = 40
"""Neurons that are kept: on CIFAR-10 as many gave most of what all of them give."""

ROWS = 10_000
"""Examples that choosing looks at; the fit itself looks at all."""

POSITIONS = 60
"""Positional neurons of each target that ``mixed`` chooses among."""


def chosen(setting: Setting, method: str, most: int = MOST) -> np.ndarray:
    """Columns (sorted) of the training table that ``method`` keeps, at most ``most``."""
    table = setting.train
    rows = np.arange(len(table.labels))
    if len(rows) > ROWS:
        rows = np.sort(np.random.default_rng(setting.seed).permutation(len(rows))[:ROWS])
    every = np.arange(table.features.shape[1])
    if len(every) > WIDEST:  # a first sieve, by the slope of the loss
        every = np.sort(np.argsort(-strength(table, every), kind="stable")[:WIDEST])
    x, z, y = table.features[np.ix_(rows, every)], table.logits[rows], table.labels[rows]
    most = min(most, len(every))
    if method == "stable":
        order = np.argsort(-stability(x, z, y, most, seed=setting.seed), kind="stable")
    elif method == "net-gain":
        order = np.argsort(-net_gains(x, z, y, setting.targets).sum(0), kind="stable")
    else:
        order = group_sparse(x, z, y, most).order
    return np.sort(every[order[:most]])


def selected(setting: Setting, method: str, most: int = MOST) -> Candidate:
    """The neurons that ``method`` keeps, refitted without the penalty that chose them."""
    made = fitted(setting, method, chosen(setting, method, most))
    return made.settle(setting, method)


def mixed(join: SynapticJoin, setting: Setting, reader: Reader, train: Any, validation: Any) -> Candidate:
    """Pooled neurons and the positional ones that Algorithm 1 ranks first, a group-sparse fit choosing among them."""
    from tweaknn.join.dissertation import read_positions
    from tweaknn.theta.observe import observe

    with join.bar("Counting", len(train)) as progress:
        found = observe(reader, train.loader(join.batch_size), setting.targets, form=join.form, progress=progress)
    ranked = [found.best(POSITIONS, [t])[t] for t in setting.targets]
    address = np.unique(np.concatenate([np.stack([one.layer, one.index], 1) for one in ranked]), axis=0)
    wide = []
    for examples, table in ((train, setting.train), (validation, setting.validation)):
        values = read_positions(reader, examples, join.batch_size, ranked, join.bar)
        by_address = {
            (int(k), int(i)): column
            for one, v in zip(ranked, values, strict=True)
            for k, i, column in zip(one.layer, one.index, v.T, strict=True)
        }
        columns = np.stack([by_address[int(k), int(i)] for k, i in address], axis=1)
        wide.append(widened(table, columns, positions(reader, address)))
    both = replace(setting, train=wide[0], validation=wide[1])
    return selected(both, "mixed")


def positions(reader: Reader, address: np.ndarray) -> list[Read]:
    """Reads of positional neurons, ``address`` (k, 2) of layer and index, sorted."""
    reads = []
    for k in np.unique(address[:, 0]):
        layer = reader.layers[k]
        index = torch.from_numpy(address[address[:, 0] == k, 1].astype(np.int64))
        reads.append(Read(layer.name, "position", layer.shape, layer.channel_axis, index))
    return reads


def widened(table: PooledTable, columns: np.ndarray, reads: Sequence[Read]) -> PooledTable:
    """A table with further columns in front; its views, which lack them, are left out."""
    features = np.concatenate([columns.astype(np.float32), table.features], axis=1)
    return PooledTable(features, table.logits, table.labels, (*reads, *table.reads))
