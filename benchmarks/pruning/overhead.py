"""What gates add to a training step: ResNet-20 (stride-2 stem), batches of 128, one thread.

    python -m benchmarks.pruning.overhead --json out.json

A plain network and one with all its units' gates in play, nothing cut yet (the dearest state), train in turn on the same
random batch; the median of the pairs' ratios of thread CPU time, so that what else runs here counts for little.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from .methods import BATCH
from .nets import resnet20


def gate_overhead(seed: int = 0, rounds: int = 15, batch: int = BATCH) -> dict[str, Any]:
    """``overhead`` of a step with gates (0.1: a tenth more), its quartiles over pairs, and ``deciding``, the part of it that
    is :meth:`ComplexityAware.step`; the rest is gating the weights and their gradients."""
    from tweaknn.measure.latency import in_turn
    from tweaknn.structure import ComplexityAware

    g = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, 3, 32, 32, generator=g).to(memory_format=torch.channels_last)
    y = torch.randint(0, 10, (batch,), generator=g)
    nets, optimizers = [], []
    for _ in range(2):
        torch.manual_seed(seed)
        nets.append(resnet20().to(memory_format=torch.channels_last).train())
        optimizers.append(torch.optim.SGD(nets[-1].parameters(), 0.01, momentum=0.9, weight_decay=5e-4, nesterov=True))
    # in the middle of the units' window of a run so long that none of them is cut while it is watched
    pruner = ComplexityAware(nets[1], x[:2], optimizers[1], steps=10**6, seed=seed, flops=0.27, beta=0.0, units=0.0, every=0)
    pruner.state.step = pruner.windows[0].end // 2
    deciding: list[float] = []

    def step(k: int) -> float:
        begin = time.thread_time()
        optimizers[k].zero_grad()
        F.cross_entropy(nets[k](x), y).backward()
        optimizers[k].step()
        if k:
            mid = time.thread_time()
            pruner.step()
            deciding.append(time.thread_time() - mid)
        return time.thread_time() - begin

    for k in (0, 1, 0, 1):
        step(k)
    deciding.clear()
    pairs = in_turn(lambda: step(1), lambda: step(0), rounds)
    if not pruner.possible.all() or not pruner._open:
        raise RuntimeError("gates were to be in play, and nothing cut")
    low, middle, high = np.quantile(pairs[:, 0] / pairs[:, 1] - 1, [0.25, 0.5, 0.75]).tolist()
    return {"overhead": middle, "low": low, "high": high, "deciding": float(np.median(np.array(deciding) / pairs[:, 1])),
            "plain_seconds": float(np.median(pairs[:, 1])), "rounds": rounds}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=60)
    args = parser.parse_args()
    torch.set_num_threads(1)
    from benchmarks.common import machine, write

    runs = [gate_overhead(seed, args.rounds) for seed in args.seeds]
    write(args.json, {"gate_overhead": float(np.median([r["overhead"] for r in runs])), "seeds": args.seeds, "runs": runs,
                      "settings": {"network": "ResNet-20, stride-2 stem", "batch_size": BATCH}, "machine": machine()})  # fmt: skip
    for r in runs:
        print({k: round(v, 4) for k, v in r.items()})


if __name__ == "__main__":
    main()
