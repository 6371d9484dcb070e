"""Ray: several nodes on this machine, one killed in mid-run; the result is that of one process, bit for bit."""

from __future__ import annotations

import logging
import time

import numpy as np
import pytest
import torch

from tests.theta.networks import network
from tweaknn.errors import DataError, InputError, TweaknnError
from tweaknn.network.reader import Reader
from tweaknn.theta.observe import observe
from tweaknn.theta.synapses import stack

ray = pytest.importorskip("ray", reason="RAY IS MISSING: the cluster engine is not tested; pip install 'tweaknn[ray]'")


class Slow(torch.utils.data.Dataset):
    """Ready-made batches that take a while, like images that have to be decoded; ``fail`` names one that is broken."""

    def __init__(self, x, y, size, seconds=0.0, fail=None):
        self.parts, self.seconds, self.fail = list(zip(x.split(size), y.split(size))), seconds, fail

    def __len__(self):
        return len(self.parts)

    def __getitem__(self, k):
        time.sleep(self.seconds)
        if k == self.fail:
            raise OSError("disk on fire")
        return self.parts[k]


def loader(*arguments, **options):
    return torch.utils.data.DataLoader(Slow(*arguments, **options), batch_size=None)


@pytest.fixture(scope="module")
def cluster():
    from ray.cluster_utils import Cluster

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    made = Cluster(initialize_head=True, head_node_args={
        "num_cpus": 1,
        "include_dashboard": False,
        # notice a dead node within seconds
        "_system_config": {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500,
                           "health_check_timeout_ms": 1000, "health_check_failure_threshold": 2},
    })  # fmt: skip
    extra = [made.add_node(num_cpus=1) for _ in range(2)]
    ray.init(address=made.address, log_to_driver=False, logging_level=logging.ERROR)
    made.wait_for_nodes()
    yield made, extra
    ray.shutdown()
    made.shutdown()
    torch.set_num_threads(threads)


def same(a, b):
    a, b = (stack([part for _, part in found.parts()]) for found in (a, b))
    for field in ("threshold", "count", "sign", "unbounded", "mistakes"):
        np.testing.assert_array_equal(getattr(a, field), getattr(b, field), err_msg=field)


def test_a_node_killed_in_mid_run_loses_nothing(cluster):
    from tweaknn.engines.ray import RayEngine

    made, extra = cluster
    model, x, y = network("fx", n=300)
    reader = Reader(model, x[:2])
    said, killed = [], []

    def progress(done):
        if done >= 60 and not killed:
            killed.append(True)
            made.remove_node(extra[0], allow_graceful=False)

    engine = RayEngine(note=said.append)
    options = {"form": "signed", "memory": 20_000}
    found = observe(reader, loader(x, y, 10, seconds=0.1), range(4), **options, shard=20, engine=engine,
                    progress=progress)  # fmt: skip
    assert killed
    assert any("was lost" in sentence for sentence in said), said
    assert any("no shard missing" in sentence for sentence in said), said
    same(found, observe(reader, loader(x, y, 10), range(4), **options))


def test_a_shard_that_fails_for_good_is_named_and_the_others_are_kept(cluster, tmp_path):
    from tweaknn.engines.ray import RayEngine

    model, x, y = network("fx", n=120)
    reader = Reader(model, x[:2])
    with pytest.raises(TweaknnError, match=r"Shard of batches 8 to 9 failed: disk on fire; \d+ finished shards"):
        observe(reader, loader(x, y, 10, fail=9), range(4), shard=20, engine=RayEngine(), resume=tmp_path / "r")
    kept = list((tmp_path / "r").glob("pass0-*.npz"))
    assert kept
    seen = []
    found = observe(reader, loader(x, y, 10), range(4), shard=20, engine=RayEngine(), resume=tmp_path / "r",
                    progress=seen.append)  # fmt: skip
    same(found, observe(reader, loader(x, y, 10), range(4)))
    y[85] = 7
    with pytest.raises(DataError, match="Example 85 has label 7"):
        observe(reader, loader(x, y, 10), range(4), shard=20, engine=RayEngine())


def test_an_address_where_nobody_answers(cluster):
    from tweaknn.engines import ray as engine

    class Nobody:
        exceptions = ray.exceptions

        @staticmethod
        def is_initialized():
            return False

        @staticmethod
        def init(**_):
            raise ConnectionError("Could not find any running Ray instance")

    import sys
    from unittest import mock

    with mock.patch.dict(sys.modules, {"ray": Nobody}), pytest.raises(InputError, match="No Ray cluster answers"):
        engine.RayEngine("10.0.0.1:6379")


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("127.0.0.1:1", "No Ray cluster answers at '127.0.0.1:1'"),
        ("127.0.0.1:99999", "No Ray cluster answers"),
        ("127.0.0.1:port", "HOST:PORT"),
    ],
)
def test_a_closed_port_is_said_at_once(address, sentence):
    from tweaknn.engines.ray import _check_answers

    with pytest.raises(InputError, match=sentence):
        _check_answers(address)
    _check_answers(None)
    _check_answers("auto")
