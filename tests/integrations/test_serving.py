"""The serving example, by its own application and an in-process client."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from tweaknn.delta import Delta, Read, synapses
from tweaknn.delta.file import to_bytes
from tweaknn.network import fingerprint

HERE = Path(__file__).resolve().parents[2] / "examples" / "serving"


@pytest.fixture
def served(monkeypatch):
    try:
        from fastapi.testclient import TestClient
    except (ImportError, RuntimeError) as reason:
        pytest.skip(f"SERVING EXAMPLE NOT TESTED: {reason}; pip install 'tweaknn[serve]' httpx")
    if not HERE.is_dir():
        pytest.skip("SERVING EXAMPLE NOT TESTED: this installation has no examples/serving")
    monkeypatch.syspath_prepend(str(HERE))
    sys.modules.pop("server", None)
    from server import serve

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()
    with TestClient(serve(net)) as client:
        yield net, client
    sys.modules.pop("server", None)


def delta(net, seed):
    g = torch.Generator().manual_seed(seed)
    read = Read("1", "mean", (8, 6, 6), 0, torch.randperm(8, generator=g)[:4])
    return Delta(
        (synapses([read], torch.randn(4, 1, generator=g), [seed % 4]),), torch.zeros(4), fingerprint(net), (3, 8, 8)
    )


def put(client, name, payload):
    return client.put(f"/deltas/{name}", content=payload, headers={"Content-Type": "application/octet-stream"})


def test_deltas_are_loaded_swapped_and_removed_while_requests_run(served):
    net, client = served
    pair = [delta(net, 1), delta(net, 2)]
    files = [to_bytes(each) for each in pair]
    assert put(client, "a", files[0]).json() == {"name": "a", "parameters": 4}
    x = torch.randn(3, 3, 8, 8)
    with torch.inference_mode():
        plain, allowed = net(x), [each.attach(net)(x) for each in pair]
    asked, wrong, done, stop = ["a", None, "a"], [], [], threading.Event()

    def request():
        while not stop.is_set():
            answer = client.post("/predict", json={"inputs": x.tolist(), "deltas": asked})
            if answer.status_code != 200:
                wrong.append(answer.text)
                return
            logits = torch.tensor(answer.json()["logits"])
            for i, name in enumerate(asked):
                if not any(
                    torch.allclose(logits[i], each[i], atol=1e-4) for each in ([plain] if name is None else allowed)
                ):
                    wrong.append(f"row {i} belongs to no delta")
            done.append(1)

    threads = [threading.Thread(target=request) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        k = 0
        while k < 10 or (len(done) < 10 and not wrong and k < 500):
            assert put(client, "a", files[k % 2]).status_code == 200
            assert put(client, f"passing{k}", files[0]).status_code == 200
            assert client.delete(f"/deltas/passing{k}").status_code == 200
            k += 1
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not wrong, wrong[:3]
    assert len(done) >= 10
    assert client.get("/deltas").json() == ["a"]


def test_refusals_have_their_codes(served):
    net, client = served
    torch.manual_seed(1)
    other = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()
    assert put(client, "b", to_bytes(delta(other, 1))).status_code == 409
    assert put(client, "b", to_bytes(delta(net, 1))[:-3]).status_code == 422
    assert client.delete("/deltas/b").status_code == 404
    inputs = torch.zeros(1, 3, 8, 8).tolist()
    assert client.post("/predict", json={"inputs": inputs, "deltas": ["b"]}).status_code == 404
    assert client.get("/deltas").json() == []
