"""What a layer is, and which of a network's outputs count as layers of neurons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tweaknn.errors import ModelError

ACTIVATION_FUNCTIONS = frozenset(
    (
        "relu relu_ relu6 gelu silu silu_ swish mish hardswish hardswish_ hardsigmoid sigmoid sigmoid_ tanh tanh_ "
        "elu elu_ selu selu_ celu celu_ leaky_relu leaky_relu_ prelu rrelu rrelu_ softplus softsign hardtanh "
        "hardtanh_ threshold threshold_ logsigmoid tanhshrink softshrink hardshrink glu"
    ).split()
)
"""Names of activation functions as torch spells them, in ``torch``, ``torch.nn.functional`` and as methods."""

ACTIVATION_MODULES = frozenset(
    (
        "ReLU ReLU6 GELU SiLU Mish Hardswish Hardsigmoid Sigmoid Tanh ELU SELU CELU LeakyReLU PReLU RReLU Softplus "
        "Softsign Hardtanh Threshold LogSigmoid Tanhshrink Softshrink Hardshrink GLU GELUActivation "
        "NewGELUActivation QuickGELUActivation FastGELUActivation PytorchGELUTanh GELUTanh QuickGELU "
        "SiLUActivation Swish HardSwish"
    ).split()
)
"""Class names of activation modules: torch's own, Transformers' and timm's."""


@dataclass(frozen=True)
class Layer:
    """One hidden output of a network.

    Attributes:
        name: torch.fx's qualified node name (``layer1.0.relu_1``), or a module's path when hooks are used.
        shape: of one example's output, without the batch.
        channel_axis: which axis of ``shape`` counts the channels.
    """

    name: str
    shape: tuple[int, ...]
    channel_axis: int

    @property
    def size(self) -> int:
        """Number of neurons."""
        n = 1
        for extent in self.shape:
            n *= extent
        return n

    @property
    def channels(self) -> int:
        """Number of channels, i.e. of pooled neurons."""
        return self.shape[self.channel_axis]

    @property
    def spatial(self) -> tuple[int, ...]:
        """The other axes."""
        return tuple(n for axis, n in enumerate(self.shape) if axis != self.channel_axis)


def stages(layers: Sequence[Layer]) -> list[Layer]:
    """The last of the widest layers at each resolution; among layers without one, the last at each width.

    For ResNet-20 these are the outputs of its three stages, 28,672 neurons (dissertation, section 3.3.4). The widest,
    since a bottleneck's inner layer may keep the resolution of the stage before. Squeezed 1 x 1 maps (gates of
    squeeze-and-excitation blocks) are no stage of their own beside larger maps.
    """
    mapped = any(max(layer.spatial, default=1) > 1 for layer in layers)
    last: dict[tuple[object, ...], Layer] = {}
    for layer in layers:
        if layer.spatial and max(layer.spatial) == 1 and mapped:
            continue
        key = _resolution(layer)
        if key not in last or layer.channels >= last[key].channels:
            last[key] = layer
    return [layer for layer in layers if last.get(_resolution(layer)) is layer]


def _resolution(layer: Layer) -> tuple[object, ...]:
    return ("map", *layer.spatial) if layer.spatial else ("flat", layer.shape[0])


def choose(layers: str | Sequence[str], known: Sequence[Layer], every: Sequence[Layer]) -> list[Layer]:
    """Turn ``all``, ``stages`` or names into layers.

    Args:
        layers: ``"all"``, ``"stages"``, a comma-separated list or a sequence of names; a module's path stands for its
            last output.
        known: the layers of ``all``, in execution order.
        every: all outputs that can be named, in execution order.

    Raises:
        ModelError: a name is unknown, or no hidden neuron is left.
    """
    if isinstance(layers, str) and layers not in ("all", "stages"):
        layers = [name.strip() for name in layers.split(",") if name.strip()]
    if layers == "all":
        chosen = list(known)
    elif layers == "stages":
        chosen = stages(known)
    else:
        by_name = {layer.name: position for position, layer in enumerate(every)}
        wanted: set[int] = set()
        for name in layers:
            if name in by_name:
                wanted.add(by_name[name])
                continue
            inside = [i for i, layer in enumerate(every) if layer.name.startswith(name + ".")]
            if not inside:
                some = ", ".join(layer.name for layer in known[:8]) + (", ..." if len(known) > 8 else "")
                raise ModelError(f"The network has no layer {name!r}; its layers are {some}.")
            wanted.add(inside[-1])
        chosen = [every[i] for i in sorted(wanted)]
    if not chosen:
        raise ModelError("No hidden neurons are left: the network has no hidden layer, or --layers names none.")
    return chosen
