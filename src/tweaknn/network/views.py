"""Networks whose answer is no ``(examples, classes)``: one logit, a logit a label, a class a pixel, several heads.

A view is a module around such a network that gives ``(rows, classes)``, so that diagnosing, joining and evaluating need
not know. What is found for a view is said again for the network itself by :func:`tweaknn.delta.views.for_network`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from tweaknn.errors import ModelError
from tweaknn.network.layers import Layer
from tweaknn.network.modes import output_of

# whole steps of a traced graph: they look at shapes and types, which torch.fx cannot follow
torch.fx.wrap("output_of")
torch.fx.wrap("two_logits")
torch.fx.wrap("at_pixels")


class View(nn.Module):
    """One head of a network, its logits ``(n, c)`` as they are."""

    def __init__(self, model: nn.Module, head: int | str | None = None) -> None:
        super().__init__()
        self.model = model
        self.head = head
        self.training = model.training

    def of(self, model: nn.Module) -> View:
        """The same view of another network, e.g. of the tweaked one."""
        return type(self)(model, self.head)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Logits ``(rows, classes)``."""
        return output_of(self.model(*args, **kwargs), self.head)


class LabelView(View):
    """One label of a network with a logit each as two classes, *not given* and *given*: ``(0, logit)``.

    The softmax of the two is the sigmoid of the one, so *given* means that the logit is above 0, and moving the label's
    threshold is adding a constant to its logit. A binary network with one logit, ``(n, 1)`` or ``(n,)``, is label 0.
    """

    def __init__(self, model: nn.Module, head: int | str | None = None, label: int = 0) -> None:
        super().__init__(model, head)
        self.label = label

    def of(self, model: nn.Module) -> LabelView:
        return LabelView(model, self.head, self.label)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Logits ``(n, 2)``."""
        output = output_of(self.model(*args, **kwargs), self.head)
        return two_logits(output, self.label)


class PixelView(View):
    """A segmentation network's logits at some pixels of each picture, a row a pixel.

    The input carries the pixels with it, as a further channel that is 1 where a pixel is asked for: the same number in
    every picture, ``(n, channels + 1, h, w) -> (n * pixels, classes)``, pictures in order, pixels row by row.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(n * pixels, classes)``."""
        logits = output_of(self.model(x[:, :-1]), self.head)
        return at_pixels(logits, x[:, -1], exact=True)

    @staticmethod
    def seen(layer: Layer) -> Layer | None:
        """The layer as a pixel sees it: its channels; None for layers that are no maps."""
        if len(layer.shape) != 3:
            return None
        return Layer(layer.name, (layer.channels,), 0)


def two_logits(output: Tensor, label: int) -> Tensor:
    """``(n, l)`` or ``(n,)`` -> ``(n, 2)``: 0 and the label's logit."""
    logit = output.unsqueeze(1) if output.ndim == 1 else output[:, label : label + 1]
    return torch.cat([torch.zeros_like(logit), logit], dim=1)


def at_pixels(maps: Tensor, asked: Tensor, channel_axis: int = 0, *, exact: bool = False) -> Tensor:
    """Values of ``maps`` at the pixels where ``asked`` ``(n, h, w)`` is not 0: ``(n * pixels, channels)``.

    Maps of another resolution are read between their cells, bilinearly, as ``F.interpolate(align_corners=False)`` does.

    Raises:
        ModelError: ``exact``, and the maps have another size than the pictures.
    """
    maps = maps.movedim(channel_axis + 1, 1)
    n, h, w = asked.shape
    where = asked.flatten(1).nonzero()[:, 1].reshape(n, -1)
    if maps.shape[2:] == (h, w):
        return maps.flatten(2).gather(2, where.unsqueeze(1).expand(-1, maps.shape[1], -1)).movedim(1, 2).flatten(0, 1)
    if exact:
        raise ModelError(
            f"The network's maps are {maps.shape[2]}x{maps.shape[3]} for pictures of {h}x{w}; give it a last layer "
            "that brings its logits to the picture's size."
        )
    rows, columns = where // w, where % w
    grid = torch.stack([(2 * columns + 1) / w - 1, (2 * rows + 1) / h - 1], dim=-1).unsqueeze(1).to(maps.dtype)
    read = F.grid_sample(maps, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return read.squeeze(2).movedim(1, 2).flatten(0, 1)
