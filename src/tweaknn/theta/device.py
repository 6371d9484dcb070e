"""Algorithm θ where the neurons are: statistics on GPUs, V in chunks, one chunk a device (section 3.3.9).

The products and maxima are the same single roundings as in the compiled CPU kernels, so the bits are the same too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tweaknn.errors import ModelError
from tweaknn.theta.blocks import Block
from tweaknn.theta.relations import FLOAT_MAX, Relations
from tweaknn.theta.state import Kept, Own, State, start


def largest_ratios(values: Tensor, inverse: Tensor, signed: bool) -> Tensor:
    """``(u, v)`` and ``(u, c)`` to ``(sides, c, v)``: max of |V| * G, or of V * G and -V * G.

    Written as one broadcast, which a compiler fuses: no ``(u, c, v)`` tensor exists on a GPU.
    """
    v = values if signed else values.abs()
    products = v.unsqueeze(1) * inverse.unsqueeze(2)
    plus = products.amax(0)
    return torch.stack([plus, (-products).amax(0)]) if signed else plus.unsqueeze(0)


def _by_class(values: Tensor, inverse: Tensor, signed: bool) -> Tensor:
    """The same a class at a time, for devices without a compiler."""
    parts = [largest_ratios(values, inverse[:, j : j + 1], signed) for j in range(inverse.shape[1])]
    return torch.cat(parts, dim=1)


@lru_cache(maxsize=4)
def kernel(kind: str) -> Callable[[Tensor, Tensor, bool], Tensor]:
    """The product for a device of this kind: compiled (Triton) on a GPU, plain torch elsewhere."""
    return torch.compile(largest_ratios, dynamic=True) if kind == "cuda" else _by_class


class DeviceAccumulator:
    """An :class:`~tweaknn.theta.accumulate.Accumulator` whose maxima live on ``device``; its state comes to the CPU."""

    def __init__(
        self, block: Block, targets: np.ndarray, form: str, budget: int, device: str, own: bool = False
    ) -> None:
        self.block, self.form, self.device = block, form, torch.device(device)
        self._empty = start(targets, block.size, form=form, levels=budget)
        sides, c = len(self._empty.peaks), len(targets)
        self._peaks = torch.zeros(sides, budget, c, block.size, device=self.device)
        self._tied, self._mistakes, self._examples = self._empty.tied.copy(), self._empty.mistakes.copy(), 0
        self._kept: list[Kept] | None = []
        self._spoke = torch.zeros(c, block.size, dtype=torch.bool, device=self.device) if own else None
        self._kernel = kernel(self.device.type)

    def load(self, state: State) -> None:
        """Go on from a state."""
        self._peaks.copy_(torch.from_numpy(np.stack(state.peaks)))
        self._tied, self._mistakes, self._examples = state.tied.copy(), state.mistakes.copy(), state.examples
        self._kept = None if state.kept is None else [state.kept]
        if self._spoke is not None and state.own is not None:
            self._spoke.copy_(torch.from_numpy(state.own.spoke.astype(bool)))

    def fold(self, values: Any, relations: Relations) -> None:
        """values: ``(n, size of the layer)`` as NumPy array or tensor on any device."""
        r, block = relations, self.block
        given = torch.from_numpy(values) if isinstance(values, np.ndarray) else values
        chunk = given[:, block.offset : block.offset + block.size].to(self.device, torch.float32)
        with torch.inference_mode():
            if len(r.used):
                self._raise_peaks(chunk[self._to(r.used)], self._to(r.inverse))
            if self.form == "signed" and r.own_tied.any():
                self._no_room(chunk[self._to(r.own[r.own_tied])], r.own_target[r.own_tied])
            if len(r.wrong) and self._kept is not None:
                self._keep(chunk[self._to(r.wrong)], r)
            if self._spoke is not None and len(r.own):
                self._spoke.index_put_((self._to(r.own_target),), chunk[self._to(r.own)] != 0, accumulate=True)

    def _to(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        return tensor.to(self.device, torch.long if tensor.dtype == torch.int32 else tensor.dtype)

    def _raise_peaks(self, values: Tensor, inverse: Tensor) -> None:
        signed = self.form == "signed"
        if self._peaks.shape[1] == 1:
            torch.maximum(self._peaks[:, 0], self._kernel(values, inverse, signed), out=self._peaks[:, 0])
            return
        for k in range(len(values)):  # the q largest: one example after the other, as a bounded buffer
            new = self._kernel(values[k : k + 1], inverse[k : k + 1], signed).clamp_min(0)
            both = torch.cat([self._peaks, new.unsqueeze(1)], dim=1)
            self._peaks.copy_(both.sort(dim=1, descending=True).values[:, :-1])

    def _no_room(self, values: Tensor, targets: np.ndarray) -> None:
        for x, row in zip(values, targets):
            for side, where in ((0, x < 0), (1, x > 0)):
                levels = self._peaks[side, :, int(row)]
                levels[1:, where] = levels[:-1, where].clone()
                levels[0, where] = float(FLOAT_MAX)

    def _keep(self, values: Tensor, r: Relations) -> None:
        assert self._kept is not None
        targets, ratio = self._to(r.wrong_target), values.abs() * self._to(r.wrong_inverse)[:, None]
        plus, minus = self._peaks[0, -1][targets], self._peaks[-1, -1][targets]
        positive = values > 0 if self.form == "signed" else torch.ones_like(values, dtype=torch.bool)
        alive = (values != 0) & ~(ratio < torch.where(positive, plus, minus))
        e, i = alive.nonzero(as_tuple=True)
        signed = torch.where(positive, ratio, -ratio)[e, i]
        host = [t.cpu().numpy() for t in (targets[e].to(torch.int32), i.to(torch.int32), signed)]
        self._kept.append(Kept(*host))

    def note(self, relations: Relations, n: int) -> None:
        self._tied |= relations.tied
        self._mistakes += np.bincount(relations.wrong_target, minlength=len(self._tied))
        self._examples += n

    @property
    def kept_bytes(self) -> int:
        return 0 if self._kept is None else sum(12 * len(k) for k in self._kept)

    def shrink(self) -> None:
        """Forget mistakes that the running maximum has passed."""
        if not self._kept:
            return
        row, neuron, ratio = (np.concatenate(a) for a in zip(*((k.row, k.neuron, k.ratio) for k in self._kept)))
        lowest = self._peaks[:, -1].cpu().numpy()
        alive = ~(abs(ratio) < lowest[np.where(ratio > 0, 0, -1), row, neuron])
        self._kept = [Kept(row[alive], neuron[alive], ratio[alive])]

    def give_up(self) -> None:
        self._kept = None

    def state(self) -> State:
        """The state so far, on the CPU."""
        self.shrink()
        kept = None if self._kept is None else self._kept[0] if self._kept else Kept.empty()
        own = None if self._spoke is None else Own(self._spoke.cpu().numpy().astype(np.uint8))
        peaks = tuple(p.cpu().numpy() for p in self._peaks)
        return State(self._empty.targets, self.form, peaks, self._tied, self._mistakes, self._examples, kept, own)


def spread(
    blocks: Sequence[Block], targets: np.ndarray, form: str, budget: int, devices: Sequence[str]
) -> list[DeviceAccumulator]:
    """Deal blocks out so that each device holds about the same number of neurons, neighbours together.

    Raises:
        ModelError: a device cannot be used.
    """
    for device in devices:
        try:
            torch.empty(1, device=device)
        except (RuntimeError, AssertionError) as error:
            raise ModelError(f"Device {device!r} cannot be used: {str(error).splitlines()[0]}") from None
    total, before, found = sum(b.size for b in blocks), 0, []
    for block in blocks:
        d = min(len(devices) - 1, (before + block.size // 2) * len(devices) // max(total, 1))
        found.append(DeviceAccumulator(block, targets, form, budget, devices[d], own=form == "plain"))
        before += block.size
    return found
