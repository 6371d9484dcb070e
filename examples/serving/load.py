"""Load test on loopback: clients predict while deltas are loaded, swapped and removed; nothing may be lost.

    python examples/serving/load.py [--seconds 10] [--clients 4] [--json FILE]

Every answer is compared with what the base and the delta of that name give: a delta is only ever replaced by one of
two known ones, so an answer that fits neither counts as wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import threading
import time
import urllib.request
from datetime import date
from pathlib import Path
from typing import Any

import torch
import uvicorn
from server import serve
from torch import nn

from tweaknn.delta import Delta, Read, synapses
from tweaknn.delta.file import to_bytes
from tweaknn.network import fingerprint


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    ).eval()


def delta(net: nn.Module, seed: int) -> Delta:
    g = torch.Generator().manual_seed(seed)
    read = Read("1", "mean", (8, 14, 14), 0, torch.randperm(8, generator=g)[:4])
    weight = torch.randn(4, 1, generator=g)
    return Delta((synapses([read], weight, [seed % 4]),), torch.zeros(4), fingerprint(net), (3, 16, 16))


def request(url: str, method: str, body: bytes | None = None, kind: str = "application/json") -> Any:
    asked = urllib.request.Request(url, data=body, method=method, headers={"Content-Type": kind})
    with urllib.request.urlopen(asked, timeout=60) as answer:
        return json.loads(answer.read())


def run(seconds: float, clients: int) -> dict[str, Any]:
    net = network()
    config = uvicorn.Config(serve(net), host="127.0.0.1", port=0, log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    address = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    pairs = {f"d{i}": (delta(net, i), delta(net, i + 50)) for i in range(6)}
    for name, (first, _) in pairs.items():
        request(f"{address}/deltas/{name}", "PUT", to_bytes(first), "application/octet-stream")
    x = torch.randn(4, 3, 16, 16)
    names = [["d0", None, "d1", "d2"], ["d3", "d4", "d5", None]]
    with torch.inference_mode():
        allowed = {name: [each.attach(net)(x) for each in pair] for name, pair in pairs.items()}
        plain = net(x)
    counts = {"requests": 0, "wrong": 0, "lost": 0, "swaps": 0}
    lock, stop = threading.Lock(), threading.Event()

    def count(what: str) -> None:
        with lock:
            counts[what] += 1

    def client(k: int) -> None:
        asked = names[k % 2]
        body = json.dumps({"inputs": x.tolist(), "deltas": asked}).encode()
        while not stop.is_set():
            try:
                logits = torch.tensor(request(f"{address}/predict", "POST", body)["logits"])
            except Exception:
                count("lost")
                continue
            count("requests")
            for i, name in enumerate(asked):
                fits = [plain[i]] if name is None else [each[i] for each in allowed[name]]
                if not any(torch.allclose(logits[i], each, atol=1e-4) for each in fits):
                    count("wrong")

    threads = [threading.Thread(target=client, args=(k,)) for k in range(clients)]
    for each in threads:
        each.start()
    end, k = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        name = f"d{k % 6}"
        payload = to_bytes(pairs[name][(k // 6) % 2])
        request(f"{address}/deltas/{name}", "PUT", payload, "application/octet-stream")
        request(f"{address}/deltas/passing{k}", "PUT", payload, "application/octet-stream")
        request(f"{address}/deltas/passing{k}", "DELETE")
        counts["swaps"] += 1
        k += 1
    stop.set()
    for each in threads:
        each.join()
    server.should_exit = True
    thread.join(10)
    return {"seconds": seconds, "clients": clients, **counts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = run(options.seconds, options.clients)
    print(json.dumps(found, indent=2))
    if options.json:
        machine = {"cpus": os.cpu_count(), "python": platform.python_version(), "torch": torch.__version__}
        command = f"python examples/serving/load.py --seconds {options.seconds:g} --clients {options.clients}"
        found["settings"] = {"command": command, "seed": 0, "machine": machine, "date": date.today().isoformat()}
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
