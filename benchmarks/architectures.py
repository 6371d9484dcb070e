"""Walk a list of architectures (random weights, small inputs) through the promises and write down what passes.

Batch norms first see a few batches: with the statistics they are made with, the deeper random networks give 1e-12.

    python benchmarks/architectures.py [--only NAME ...] [--like TEXT] [--onnx] [--no-compile] [--no-export] [--fill]
        [--json FILE] [--markdown FILE]

Promises: *observed* (neurons named, read, finite), *joined* (synapses fitted on pooled neurons of all layers by the
convex problem), *attached* (the logits that the delta names change as its definition says, the others bit for bit not),
*detached* (bit-equal logits, same fingerprint), *saved*, *loaded* (same logits from the file), *exported* (``pt2`` with
a batch of any size, checked from the file), *compiled* (one graph, ``fullgraph=True``), *onnx* with ``--onnx`` (a batch
of any size, checked in onnxruntime). With ``--fill`` rows of an earlier run that lack a step asked for, or failed it, are
walked again, for those steps only.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
import warnings
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.architecture_list import CASES

PROMISES = ("observed", "joined", "attached", "detached", "saved", "loaded", "exported", "compiled")
COLUMNS = (*PROMISES, "onnx")


def walk(name: str, *, onnx: bool = False, compiled: bool = True, exported: bool = True) -> dict[str, Any]:
    """One architecture: ``{promise: True | reason}``, how its neurons were named, how many there are."""
    make, example, head = CASES[name]
    torch.manual_seed(0)
    found: dict[str, Any] = {}
    step = "observed"
    start = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            net, x = make(), example()
            for step in _steps(settled(net, x), x, head, found, onnx, compiled, exported):
                found[step] = True
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0][:160]
        asked = {"compiled": compiled, "exported": exported}
        missing = next(p for p in PROMISES if p not in found and asked.get(p, True))
        found[missing] = f"{type(error).__name__}: {reason}"
    found["date"] = date.today().isoformat()
    found["seconds"] = round(time.perf_counter() - start, 1)
    return found


def settled(net: nn.Module, x: Any) -> nn.Module:
    """The network in evaluation, its batch norms with the statistics of ``x``."""
    from tweaknn.network.modes import call

    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if norms:
        net.eval()
        for norm in norms:
            norm.train()
            norm.momentum = 0.5
        with torch.no_grad():
            for _ in range(8):
                call(net, x)
    return net.eval()


def _steps(net: nn.Module, x: Any, head: Any, found: dict[str, Any], onnx: bool, compiled: bool, exported: bool) -> Any:
    from tweaknn.delta import Delta, Read, synapses
    from tweaknn.delta.export import export
    from tweaknn.delta.views import for_network
    from tweaknn.fit.convex import fit_path
    from tweaknn.network import Reader, fingerprint, pool
    from tweaknn.network.modes import call, first, output_of
    from tweaknn.network.views import PixelView, at_pixels

    view, seen, rows = net, x, nn.Identity()
    if output_of(call(net, first(x, 2)), head).ndim == 4:  # a class a pixel: its rows are some pixels of each picture
        view = PixelView(net, head)
        asked = torch.zeros(len(x), 1, *x.shape[2:])
        asked.flatten(1)[:, torch.randperm(asked[0].numel())[:8]] = 1
        seen, rows = torch.cat([x, asked], 1), lambda maps: at_pixels(maps, asked[:, 0], exact=True)
    reader = Reader(view, seen, head=head if view is net else None)
    found["how"], found["neurons"], found["layers"] = reader.how, reader.neurons, len(reader.layers)
    features: list[Tensor] = []
    base = reader(seen, lambda k, v: features.append(pool(v, reader.layers[k].channel_axis, "mean").clone()))
    assert len(features) == len(reader.layers)
    assert all(bool(torch.isfinite(f).all()) for f in features)
    yield "observed"
    labels = np.arange(len(base)) % base.shape[1]
    columns = [1] if base.shape[1] == 2 else [1, 2]
    fit = fit_path(torch.cat(features, 1).numpy(), base.numpy(), labels, (1.0,))[0]
    reads = [
        Read(layer.name, "mean", layer.shape, layer.channel_axis, torch.arange(layer.channels))
        for layer in reader.layers
    ]
    weight = torch.from_numpy(fit.weight[:, columns].astype(np.float32))
    bias = torch.zeros(base.shape[1])
    bias[columns] = torch.from_numpy(fit.bias[columns].astype(np.float32))
    shape = tuple(seen.shape[1:]) if isinstance(seen, Tensor) else ()
    before = fingerprint(net)
    delta = Delta((synapses(reads, weight, columns),), bias, fingerprint(view), shape, how=reader.how, head=head)
    if view is not net:
        delta = for_network(delta, view, base.shape[1], layers=reader.maps)
    yield "joined"
    example = {"example_x": x}
    tweaked = delta.attach(net, **example)
    with torch.inference_mode():
        plain = output_of(call(net, x), head)
        out = output_of(call(tweaked, x), head)
        wanted = rows(plain).clone()
        wanted[:, columns] += torch.cat(features, 1) @ weight + bias[columns]
    torch.testing.assert_close(rows(out), wanted, rtol=1e-3, atol=1e-3)
    assert not torch.equal(out, plain)
    rest = [j for j in range(base.shape[1]) if j not in columns]
    assert torch.equal(out[:, rest], plain[:, rest])
    yield "attached"
    with torch.inference_mode():
        assert torch.equal(output_of(call(tweaked.detach(), x), head), plain)
    assert fingerprint(net) == before
    yield "detached"
    with tempfile.TemporaryDirectory() as folder:
        delta.save(f"{folder}/a.delta")
        yield "saved"
        again = Delta.load(f"{folder}/a.delta").attach(net, **example)
        with torch.inference_mode():
            assert torch.equal(output_of(call(again, x), head), out)
        yield "loaded"
        try:
            if exported:
                export(tweaked, f"{folder}/a.pt2", "pt2", example_x=x)
                yield "exported"
        except Exception as error:  # what follows does not depend on it
            found["exported"] = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:160]}"
        try:
            if onnx:
                export(tweaked, f"{folder}/a.onnx", "onnx", example_x=x)
                found["onnx"] = True
        except Exception as error:
            found["onnx"] = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:160]}"
    if compiled:
        torch._dynamo.reset()
        made = torch.compile(tweaked, fullgraph=True, backend="eager")
        with torch.no_grad():
            torch.testing.assert_close(output_of(call(made, x), head), out, rtol=1e-3, atol=1e-3)
        yield "compiled"


def markdown(rows: dict[str, dict[str, Any]]) -> str:
    """The table of docs/architectures.md."""
    lines = [
        f"| network | named by | neurons | {' | '.join(COLUMNS)} |",
        "|---|---|---:" + "|---" * len(COLUMNS) + "|",
    ]
    reasons = []
    for name, row in rows.items():
        marks = []
        for promise in COLUMNS:
            value = row.get(promise)
            marks.append(
                "yes" if value is True else "no" if value else "not tried" if row.get("loaded") is True else "–"
            )
            if isinstance(value, str):
                reasons.append(f"- `{name}`, {promise}: {value}")
        lines.append(f"| `{name}` | {row.get('how', '–')} | {row.get('neurons', '–')} | {' | '.join(marks)} |")
    totals = []
    for p in COLUMNS:
        tried = [row for row in rows.values() if p in row or row.get("loaded") is not True]
        totals.append(f"{sum(row.get(p) is True for row in tried)} of {len(tried)}")
    lines.append(f"| **all** | | | {' | '.join(totals)} |")
    return "\n".join([*lines, "", "What fails, and why:", "", *(reasons or ["nothing"])]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", action="append")
    parser.add_argument("--onnx", action="store_true")
    parser.add_argument("--no-compile", action="store_true", help="leave *compiled* out: it takes a minute a network")
    parser.add_argument("--no-export", action="store_true", help="leave *exported* out, for the same reason")
    parser.add_argument("--fill", action="store_true", help="walk rows of --json again that lack what is asked for now")
    parser.add_argument("--like", help="only names that contain this")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    stored: dict[str, Any] = {"settings": {}, "rows": {}}
    if options.json and options.json.exists():  # go on where an earlier run stopped
        stored = json.loads(options.json.read_text())
    rows: dict[str, dict[str, Any]] = stored["rows"]
    for name in options.only or [name for name in CASES if (options.like or "") in name]:
        asked = {"onnx": options.onnx, "compiled": not options.no_compile, "exported": not options.no_export}
        asked = {p: wanted and rows.get(name, {}).get(p) is not True for p, wanted in asked.items()}
        if name in rows and not (options.fill and any(asked.values())):
            continue
        # what was found before stands where it is not asked for now
        rows[name] = {**rows.get(name, {}), **walk(name, **asked)}
        bad = {p: rows[name].get(p) for p in PROMISES if rows[name].get(p) is not True}
        print(f"{name}: {bad or 'all'} ({rows[name]['seconds']} s)", flush=True)
        if options.json:
            machine = {"cpus": os.cpu_count(), "python": platform.python_version(), "torch": torch.__version__}
            settings = stored["settings"] | {"seed": 0, "machine": machine, "date": date.today().isoformat()}
            options.json.write_text(json.dumps({"settings": settings, "rows": rows}, indent=2) + "\n")
    if options.markdown:
        rows = {name: rows[name] for name in CASES if name in rows}
        options.markdown.write_text(markdown(rows))


if __name__ == "__main__":
    main()
