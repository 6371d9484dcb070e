"""Second passes, for what one pass cannot know: counts that did not fit, the 100 % fall-back, where a NaN came from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from tweaknn.errors import ModelError
from tweaknn.theta import kernels
from tweaknn.theta.blocks import Block
from tweaknn.theta.job import Job, follow
from tweaknn.theta.relations import Relations
from tweaknn.theta.state import Own


class Counter:
    """Counts the mistakes of a block that reach ``need``, when the first pass had no room to keep them."""

    def __init__(self, block: Block, need: tuple[np.ndarray, ...], form: str) -> None:
        self.block, self.need, self.plain = block, need, form == "plain"
        self.counts = tuple(np.zeros(n.shape, np.int32) for n in need)

    def fold(self, values: Any, r: Relations) -> None:
        kernels.count_wrong(
            on_host(values), self.block.offset, r.wrong, r.wrong_target, r.wrong_inverse,
            self.need[0], self.need[-1], self.plain, self.counts[0], self.counts[-1],
        )  # fmt: skip

    def note(self, relations: Relations, n: int) -> None:
        pass


class Correct:
    """What a block's neurons do on D_t of the targets that fall back."""

    def __init__(self, block: Block, targets: int) -> None:
        self.block = block
        self.own = Own.empty(targets, block.size, True)

    def fold(self, values: Any, r: Relations) -> None:
        self.own.fold(on_host(values), self.block.offset, r)

    def note(self, relations: Relations, n: int) -> None:
        pass


class Inspector:
    """Looks for the first example with a NaN or an infinity in a layer."""

    def __init__(self, block: Block, layer: str) -> None:
        self.block, self.layer, self.seen = block, layer, 0

    def fold(self, values: Any, r: Relations) -> None:
        good = np.isfinite(on_host(values)).all(axis=1)
        if not good.all():
            k = self.seen + int(np.flatnonzero(~good)[0])
            raise ModelError(f"Layer {self.layer} holds NaN or infinite values for example {k}.")

    def note(self, relations: Relations, n: int) -> None:
        self.seen += n


def on_host(values: Any) -> np.ndarray:
    """Neuron values as NumPy array, from whatever device."""
    return values if isinstance(values, np.ndarray) else values.cpu().numpy()


def complete(found: Any, run: Any) -> None:
    """Run what an observation still lacks, and give it to the observation's finisher."""
    finisher, blocks = found.finisher, found.blocks
    states = finisher.states
    given_up = [b for b in range(len(blocks)) if states[b].kept is None]
    if given_up:
        counters = {b: Counter(blocks[b], finisher.needed(b), run.settings.form) for b in given_up}
        _pass(run.job([blocks[b] for b in given_up]), list(counters.values()), run)
        counts = []
        for b in range(len(blocks)):
            part = counters[b].counts if b in counters else ()
            for counted, need in zip(part, counters[b].need if b in counters else ()):
                counted[np.isinf(need)] = 0
            counts.append(part)
        finisher.counts = counts
    nothing = np.flatnonzero(finisher.nothing)
    own = states[0].own
    enough = own is not None and (run.settings.form == "plain" or own.total is not None)
    if len(nothing) and not enough:
        targets = tuple(run.settings.targets[j] for j in nothing)
        correct = [Correct(block, len(targets)) for block in blocks]
        _pass(run.job(blocks, replace(run.settings, targets=targets)), correct, run)
        c = len(run.settings.targets)
        finisher.own = [_widened(part.own, nothing, c) for part in correct]


def _pass(job: Job, folders: list[Any], run: Any) -> None:
    for _, _, y in follow(job, folders, 0, None, False):
        run.tell(len(y))


def _widened(own: Own, rows: np.ndarray, c: int) -> Own:
    spoke = np.ones((c, own.spoke.shape[1]), np.uint8)  # other targets: not looked at, not silent
    total = np.zeros(spoke.shape, np.int64)
    assert own.total is not None
    spoke[rows], total[rows] = own.spoke, own.total
    return Own(spoke, total)


def find_bad(job: Job, layer: str) -> None:
    """ModelError naming the example whose values in ``layer`` are not finite, if there is one."""
    for _ in follow(job, [Inspector(block, layer) for block in job.blocks], 0, None, False):
        pass
