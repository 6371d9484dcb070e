"""Which neurons are observed in which pass, so that the statistics fit the memory they are given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tweaknn.errors import InputError
from tweaknn.network.pooling import width
from tweaknn.network.reader import Reader

BLOCK = 1 << 16
"""Most neurons of a block: small enough to share the work among threads and devices."""
SMALL, SHARES = 1 << 12, 8
"""A pass has at least so many blocks unless they would be smaller than ``SMALL``; never a matter of the machine, whose number of threads
may change between a run and its resuming."""


@dataclass(frozen=True)
class Block:
    """``size`` neighbouring neurons of layer ``layer`` (position in ``Reader.layers``), from column ``offset`` on."""

    layer: int
    offset: int
    size: int


@dataclass(frozen=True)
class Plan:
    """Passes over the data, each a list of blocks in execution order; ``bytes_pair`` a (target, neuron) pair.

    The first pass takes the deepest layers, since it has to run the whole network for the logits; later passes know
    them and stop at the last layer they need.
    """

    passes: tuple[tuple[Block, ...], ...]
    targets: int
    bytes_pair: int

    @property
    def neurons(self) -> int:
        return sum(block.size for part in self.passes for block in part)

    @property
    def largest(self) -> int:
        """Bytes of statistics of the largest pass."""
        return max(sum(b.size for b in part) for part in self.passes) * self.targets * self.bytes_pair


def widths(reader: Reader, reduction: str) -> list[int]:
    """Number of neurons of each layer after the reduction."""
    return [width(reduction, layer.shape, layer.channel_axis) for layer in reader.layers]


def plan(
    sizes: Sequence[int],
    targets: int,
    *,
    form: str = "plain",
    budget: int = 1,
    memory: int | None = None,
    block: int = BLOCK,
) -> Plan:
    """The fewest passes whose statistics fit ``memory`` bytes (None: one pass).

    sizes: neurons of each layer in execution order. A layer may be cut between passes.

    Raises:
        InputError: not even one neuron fits.
    """
    pair = 4 * budget + 1 if form == "plain" else 8 * budget  # maxima, and who has spoken on D_t
    total = sum(sizes)
    room = total if memory is None else memory // (pair * targets)
    if room < 1:
        raise InputError(
            f"--memory of {memory} bytes is too small: one neuron needs {pair * targets} bytes for {targets} targets."
        )
    count = -(-total // room)
    # Equal passes: the same number of them, but smaller statistics, and earlier passes stop earlier.
    quota = -(-total // count)
    block = max(min(block, SMALL), min(block, -(-quota // SHARES)))  # enough of them for threads to share evenly
    passes: list[list[Block]] = [[]]
    left = quota
    for layer in reversed(range(len(sizes))):
        end = sizes[layer]
        while end:
            if left == 0:
                passes.append([])
                left = quota
            size = min(end, left, block)
            passes[-1].append(Block(layer, end - size, size))
            end -= size
            left -= size
    return Plan(tuple(tuple(reversed(part)) for part in passes), targets, pair)
