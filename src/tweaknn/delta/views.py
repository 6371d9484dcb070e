"""A delta that was found for a view of a network, said for the network itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tweaknn.delta.heads import MLP, Head, Linear
from tweaknn.delta.value import LOGITS, Delta, Read, Term
from tweaknn.network.fingerprint import fingerprint
from tweaknn.network.layers import Layer
from tweaknn.network.views import LabelView, PixelView, View


def for_network(
    delta: Delta, view: View, n_logits: int, *, classes: Sequence[str] | None = None, layers: Sequence[Layer] = ()
) -> Delta:
    """The delta of ``view.model`` that does to its logits what ``delta`` does to the view's.

    Args:
        delta: made for ``view``.
        n_logits: how many the network's head has.
        classes: their names.
        layers: the view's layers before a pixel saw them; needed for a :class:`~tweaknn.network.views.PixelView`.

    Of a label's two logits only the difference counts, so the change to its one logit is the change to *given* less the
    change to *not given*. What a pixel reads becomes ``pixel`` neurons: the layer's channels at that place.
    """
    shapes = {layer.name: layer for layer in layers}
    label = view.label if isinstance(view, LabelView) else None
    terms = []
    for term in delta.terms:
        reads: list[Read] = []
        rows: list[Tensor] = []
        start = 0
        for read in term.reads:
            k = int(read.index.numel())
            mine = torch.arange(start, start + k)
            start += k
            changed, kept = _read(
                read, label, n_logits, delta.input_shape, shapes if isinstance(view, PixelView) else None
            )
            reads.append(changed)
            rows.append(mine[kept])
        used = torch.cat(rows)
        if used.numel():
            kept_reads = tuple(read for read in reads if read.index.numel())
            terms.append(Term(kept_reads, _head(term.head, used, label)))
    bias = delta.bias
    if label is not None:
        bias = torch.zeros(n_logits)
        bias[label] = delta.bias[1] - delta.bias[0]
    shape = delta.input_shape
    if isinstance(view, PixelView):
        shape = (shape[0] - 1, *shape[1:])
    return replace(
        delta,
        terms=tuple(terms),
        bias=bias,
        base=fingerprint(view.model),
        input_shape=shape,
        classes=tuple(classes) if classes is not None else None,
        head=view.head,
    )


def _read(
    read: Read, label: int | None, n_logits: int, input_shape: tuple[int, ...], maps: dict[str, Layer] | None
) -> tuple[Read, Tensor]:
    """The read said for the network, and which of its neurons there are."""
    every = torch.ones(read.index.numel(), dtype=torch.bool)
    if read.layer == LOGITS:
        if maps is not None:
            return replace(read, reduction="pixel", shape=(n_logits, *input_shape[1:])), every
        if label is not None:  # the view's logit 0 is always 0: nothing is lost with it
            kept = read.index == 1
            index = torch.full((int(kept.sum()),), label, dtype=torch.int64)
            return replace(read, shape=(n_logits,), index=index), kept
        return read, every
    name = read.layer.removeprefix("model.")
    if maps is not None:
        layer = maps[read.layer]
        return replace(read, layer=name, reduction="pixel", shape=layer.shape, channel_axis=layer.channel_axis), every
    return replace(read, layer=name), every


def _head(head: Head, rows: Tensor, label: int | None) -> Head:
    """The head on the inputs ``rows``, its ends turned to the network's logits."""
    if isinstance(head, Linear):
        weight = head.weight[rows]
        return Linear(*_ends(weight, head.columns, label))
    w1, start = [], 0
    for block in head.w1:
        mine = rows[(rows >= start) & (rows < start + block.shape[0])] - start
        start += int(block.shape[0])
        w1.append(block[mine])
    w2, columns = _ends(head.w2, head.columns, label)
    return MLP(tuple(w1), head.b1, w2, columns, head.activation)


def _ends(weight: Tensor, columns: Tensor, label: int | None) -> tuple[Tensor, Tensor]:
    if label is None:
        return weight, columns
    sign = torch.tensor([1.0 if int(j) == 1 else -1.0 for j in columns], dtype=weight.dtype)
    return (weight * sign).sum(1, keepdim=True), torch.tensor([label], dtype=torch.int64)
