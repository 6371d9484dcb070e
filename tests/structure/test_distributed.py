"""Two gloo processes: gates in step on all ranks, whatever each of them sees; accumulation, autocast and resuming."""

from __future__ import annotations

import contextlib
import copy
import os
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from tweaknn.structure import ComplexityAware

from .nets import TinyResNet, images

STEPS, PARTS = 16, 2


def started(steps: int, **options):
    torch.manual_seed(0)
    model = TinyResNet(6)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    return model, optimizer, ComplexityAware(model, images(), optimizer, steps=steps, flops=0.5, every=4, end=0.7, **options)


def batch(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(8, 3, 8, 8, generator=g), torch.randint(0, 4, (8,), generator=g)


def accumulated(network, optimizer, pruner, step: int, ranks: list[int]) -> None:
    """One optimiser step over :data:`PARTS` batches of every rank in ``ranks``, each under bfloat16 autocast."""
    optimizer.zero_grad()
    parts = [(rank, part) for rank in ranks for part in range(PARTS)]
    for k, (rank, part) in enumerate(parts):
        silent = isinstance(network, DistributedDataParallel) and k < len(parts) - 1
        with network.no_sync() if silent else contextlib.nullcontext():
            x, y = batch(1000 * step + 10 * part + rank)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = F.cross_entropy(network(x), y)
            (loss / len(parts)).backward()
    optimizer.step()
    pruner.step()


def plainly(rank: int) -> dict[str, object]:
    model, optimizer, pruner = started(24)
    parallel = DistributedDataParallel(model)
    thetas = []

    def steps(parallel, first: int, count: int) -> None:
        for step in range(first, first + count):
            x, y = batch(2 * step + rank)  # different data on each rank
            optimizer.zero_grad()
            F.cross_entropy(parallel(x), y).backward()
            optimizer.step()
            pruner.step()
            thetas.append(pruner.state.theta.clone())

    steps(parallel, 0, 20)
    assert pruner.finished
    small = pruner.compact()
    steps(DistributedDataParallel(small), 20, 4)  # wrapped anew, it trains on
    return {"theta": torch.stack(thetas), "model": small.state_dict(), "flops": pruner.fractions[0]}


def in_parts(rank: int) -> dict[str, object]:
    """Accumulation under ``no_sync`` and autocast, to the end; then again from checkpoints in mid-pruning and behind it."""
    model, optimizer, pruner = started(STEPS)
    parallel, thetas, saved = DistributedDataParallel(model), [], {}
    for step in range(STEPS):
        if step in (7, STEPS - 1):
            saved[step] = copy.deepcopy([model.state_dict(), optimizer.state_dict(), pruner.state_dict()])
        accumulated(parallel, optimizer, pruner, step, [rank])
        thetas.append(pruner.state.theta.clone())
    open_then = {step: (bool(state[2]["possible"].all()), state[2]["finished"]) for step, state in saved.items()}
    whole = pruner.compact().state_dict()
    again = {}
    for first, (weights, momenta, gates) in saved.items():
        model, optimizer, pruner = started(STEPS)
        pruner.load_state_dict(gates)
        model.load_state_dict(weights)
        optimizer.load_state_dict(momenta)
        parallel = DistributedDataParallel(model)
        for step in range(first, STEPS):
            accumulated(parallel, optimizer, pruner, step, [rank])
        again[first] = pruner.compact().state_dict()
    return {"theta": torch.stack(thetas), "model": whole, "again": again, "open_then": open_then}


def work(rank: int, port: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    torch.save({"plainly": plainly(rank), "in_parts": in_parts(rank)}, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(work, args=(port, str(folder)), nprocs=2)
    return [torch.load(folder / f"{r}.pt", weights_only=True) for r in (0, 1)]


@pytest.mark.parametrize("how", ["plainly", "in_parts"])
def test_two_processes_stay_in_step(ranks, how: str) -> None:
    a, b = (r[how] for r in ranks)
    assert torch.equal(a["theta"], b["theta"])
    assert len(a["theta"].unique(dim=0)) > 5
    for name in a["model"]:
        if "running" not in name:  # each rank keeps its own batch statistics, as without gates
            assert torch.equal(a["model"][name], b["model"][name]), name


def test_the_budget_is_met_on_both(ranks) -> None:
    assert all(abs(r["plainly"]["flops"] / 0.5 - 1) < 0.1 for r in ranks)


def test_accumulation_over_ranks_moves_gates_as_in_one_process(ranks) -> None:
    """Two ranks of two batches each are four batches of one process: gates see the mean over all of them."""
    model, optimizer, pruner = started(STEPS)
    theirs = ranks[0]["in_parts"]["theta"]
    moved = 0
    for step in range(STEPS):
        accumulated(model, optimizer, pruner, step, [0, 1])
        if not pruner.possible.all():  # one process cuts at once and goes its own way
            break
        assert torch.allclose(pruner.state.theta, theirs[step], atol=1e-4), step
        moved += bool((pruner.state.theta != 1).any())
    assert moved >= 1


def test_a_resumed_run_ends_in_the_same_network(ranks) -> None:
    """With several processes closed gates are still in the model when it is saved, so resuming must not cut them out."""
    for r in ranks:
        run = r["in_parts"]
        assert set(run["open_then"].values()) == {(False, False), (False, True)}  # pruning under way, and over
        for first, state in run["again"].items():
            assert state.keys() == run["model"].keys()
            for name, value in run["model"].items():
                assert torch.equal(value, state[name]), (first, name)
