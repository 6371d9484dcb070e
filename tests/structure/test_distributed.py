"""Two gloo processes: gates in step on all ranks, whatever each of them sees."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from tweaknn.structure import ComplexityAware

from .nets import TinyResNet, images


def work(rank: int, port: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = TinyResNet(6)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    pruner = ComplexityAware(model, images(), optimizer, steps=24, flops=0.5, every=4, end=0.7)
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    g = torch.Generator().manual_seed(rank)  # different data on each rank
    thetas = []

    def steps(parallel, count):
        for _ in range(count):
            x = torch.randn(8, 3, 8, 8, generator=g)
            optimizer.zero_grad()
            F.cross_entropy(parallel(x), torch.randint(0, 4, (8,), generator=g)).backward()
            optimizer.step()
            pruner.step()
            thetas.append(pruner.state.theta.clone())

    steps(parallel, 20)
    assert pruner.finished
    small = pruner.compact()
    steps(torch.nn.parallel.DistributedDataParallel(small), 4)  # wrapped anew, it trains on
    torch.save({"theta": torch.stack(thetas), "model": small.state_dict(), "flops": pruner.fractions[0]},
               Path(folder) / f"{rank}.pt")  # fmt: skip
    dist.destroy_process_group()


def test_two_processes(tmp_path) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(work, args=(port, str(tmp_path)), nprocs=2)
    a, b = (torch.load(tmp_path / f"{r}.pt", weights_only=True) for r in (0, 1))
    assert torch.equal(a["theta"], b["theta"])
    assert len(a["theta"].unique(dim=0)) > 5
    for name in a["model"]:
        if "running" not in name:  # each rank keeps its own batch statistics, as without gates
            assert torch.equal(a["model"][name], b["model"][name]), name
    assert abs(a["flops"] / 0.5 - 1) < 0.1
