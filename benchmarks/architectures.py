"""Walk a list of architectures (random weights, small inputs) through the promises and write down what passes.

Batch norms first see a few batches: with the statistics they are made with, the deeper random networks give 1e-12.

    python benchmarks/architectures.py [--only NAME ...] [--like TEXT] [--onnx] [--no-compile] [--no-export] [--json FILE] [--markdown FILE]

Promises: *observed* (neurons named, read, finite), *joined* (synapses fitted on pooled neurons of all layers by the
convex problem), *attached* (the logits that the delta names change as its definition says, the others bit for bit not),
*detached* (bit-equal logits, same fingerprint), *saved*, *loaded* (same logits from the file), *exported* (``pt2`` with
a batch of any size, checked from the file; ONNX too with ``--onnx``), *compiled* (one graph, ``fullgraph=True``).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
import warnings
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

PROMISES = ("observed", "joined", "attached", "detached", "saved", "loaded", "exported", "compiled")
CLASSES = 4


class Mlp(nn.Sequential):
    """A table's network."""

    def __init__(self, outputs: int = CLASSES) -> None:
        super().__init__(
            nn.Linear(9, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, outputs)
        )


class LogSoftmax(Mlp):
    """Gives log-probabilities, which are logits up to a constant an example."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).log_softmax(1)


class Functional(nn.Module):
    """Functional operations, an in-place ReLU, a shared module and two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.act = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(inplace=True)
        self.heads = nn.ModuleList([nn.Linear(8, 3), nn.Linear(8, CLASSES)])

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        h = torch.relu_(self.a(x))
        h = self.act(self.b(h) + h)
        h = self.act(self.b(h) + h).mean((2, 3))
        return tuple(head(h) for head in self.heads)


class Recurrent(nn.Module):
    """An LSTM over a sequence, with a decision that torch.fx cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.act, self.out = nn.LSTM(5, 12, batch_first=True), nn.ReLU(), nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor):
            raise TypeError("a tensor is needed")
        return self.out(self.act(self.lstm(x)[0].mean(1)))


class Binary(nn.Module):
    def __new__(cls) -> Any:
        from tweaknn.network.adapt import TwoLogits

        return TwoLogits(Mlp(1))


Case = tuple[Callable[[], nn.Module], Callable[[], Any], int | str | None]


def _image(side: int = 64) -> Callable[[], Tensor]:
    return lambda: torch.randn(6, 3, side, side)


def _torchvision(name: str, side: int = 64, **settings: Any) -> Case:
    def make() -> nn.Module:
        from torchvision import models

        return models.get_model(name, weights=None, num_classes=CLASSES, **settings)

    return make, _image(side), None


def _timm(name: str, side: int = 64, **settings: Any) -> Case:
    def make() -> nn.Module:
        import timm

        return timm.create_model(name, pretrained=False, num_classes=CLASSES, **settings)

    return make, _image(side), None


def _hf(kind: str, **settings: Any) -> Case:
    """``kind`` names a family of Transformers' configurations and its classifier."""

    def make() -> nn.Module:
        import transformers

        family, task = kind.split(":")
        config = getattr(transformers, f"{family}Config")(num_labels=CLASSES, **settings)
        return getattr(transformers, f"{family}For{task}")(config)

    def example() -> Any:
        if kind.endswith("ImageClassification"):
            return {"pixel_values": torch.randn(6, 3, 32, 32)}
        if kind.startswith("Wav2Vec2"):
            return {"input_values": torch.randn(6, 2000)}
        ids = torch.randint(5, 90, (6, 12))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    return make, example, None


_TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 100,
    "max_position_embeddings": 32,
}

CASES: dict[str, Case] = {
    "mlp": (Mlp, lambda: torch.randn(6, 9), None),
    "log-softmax": (LogSoftmax, lambda: torch.randn(6, 9), None),
    "binary-one-logit": (Binary, lambda: torch.randn(6, 9), None),
    "multi-label": (Mlp, lambda: torch.randn(6, 9), None),
    "functional-two-heads": (Functional, _image(16), 1),
    "recurrent-by-hooks": (Recurrent, lambda: torch.randn(6, 7, 5), None),
    **{
        f"torchvision:{name}": _torchvision(name, side)
        for name, side in (
            ("resnet18", 64),
            ("alexnet", 64),
            ("resnet50", 64),
            ("resnext50_32x4d", 64),
            ("mobilenet_v2", 64),
            ("vgg11_bn", 64),
            ("densenet121", 64),
            ("mobilenet_v3_small", 64),
            ("efficientnet_b0", 64),
            ("shufflenet_v2_x0_5", 64),
            ("squeezenet1_1", 64),
            ("mnasnet0_5", 64),
            ("regnet_y_400mf", 64),
            ("convnext_tiny", 64),
            ("swin_t", 64),
            ("maxvit_t", 224),
        )
    },
    "torchvision:googlenet": _torchvision("googlenet", 64, init_weights=False, aux_logits=False),
    "torchvision:inception_v3": _torchvision("inception_v3", 96, init_weights=False),
    "torchvision:vit_b_16": _torchvision("vit_b_16", 64, image_size=64),
    **{
        f"timm:{name}": _timm(name, 64)
        for name in (
            "resnet10t",
            "mobilenetv4_conv_small",
            "convnext_atto",
            "convnextv2_atto",
            "efficientvit_b0",
            "regnetz_005",
            "ghostnet_100",
            "mobileone_s0",
            "repvgg_a0",
            "poolformer_s12",
            "edgenext_xx_small",
            "lcnet_050",
            "tinynet_e",
            "mobilevit_xxs",
            "resnetv2_18",
        )
    },
    "timm:vit_tiny_patch16_224": _timm("vit_tiny_patch16_224", 64, img_size=64),
    "timm:deit_tiny_patch16_224": _timm("deit_tiny_patch16_224", 64, img_size=64),
    "timm:mixer_s32_224": _timm("mixer_s32_224", 64, img_size=64),
    "timm:swin_tiny_patch4_window7_224": _timm("swin_tiny_patch4_window7_224", 56, img_size=56),
    "timm:coatnet_nano_rw_224": _timm("coatnet_nano_rw_224", 64, img_size=64),
    "timm:caformer_s18": _timm("caformer_s18", 64),
    "hf:ViT": _hf(
        "ViT:ImageClassification",
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
    ),
    "hf:ResNet": _hf(
        "ResNet:ImageClassification",
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[1, 1],
        layer_type="basic",
    ),
    "hf:ConvNext": _hf("ConvNext:ImageClassification", hidden_sizes=[8, 16, 16, 16], depths=[1, 1, 1, 1]),
    "hf:Swin": _hf(
        "Swin:ImageClassification",
        image_size=32,
        patch_size=2,
        embed_dim=8,
        depths=[1, 1],
        num_heads=[2, 2],
        window_size=4,
    ),
    "hf:Bert": _hf("Bert:SequenceClassification", **_TEXT),
    "hf:Roberta": _hf("Roberta:SequenceClassification", **{**_TEXT, "pad_token_id": 1}),
    "hf:DistilBert": _hf(
        "DistilBert:SequenceClassification", dim=16, n_layers=2, n_heads=2, hidden_dim=32, vocab_size=100
    ),
    "hf:Electra": _hf("Electra:SequenceClassification", embedding_size=16, **_TEXT),
    "hf:Albert": _hf("Albert:SequenceClassification", embedding_size=16, **_TEXT),
    "hf:Deit": _hf(
        "DeiT:ImageClassification",
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
    ),
    "hf:Wav2Vec2": _hf(
        "Wav2Vec2:SequenceClassification",
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(8, 8),
        conv_stride=(5, 4),
        conv_kernel=(10, 4),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        classifier_proj_size=8,
    ),
}


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
        missing = next(p for p in PROMISES if p not in found)
        found[missing] = f"{type(error).__name__}: {reason}"
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
    from tweaknn.fit.convex import fit_path
    from tweaknn.network import Reader, fingerprint, pool
    from tweaknn.network.modes import call, logits_of

    reader = Reader(net, x, head=head)
    found["how"], found["neurons"], found["layers"] = reader.how, reader.neurons, len(reader.layers)
    features: list[Tensor] = []
    base = reader(x, lambda k, v: features.append(pool(v, reader.layers[k].channel_axis, "mean").clone()))
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
    shape = tuple(x.shape[1:]) if isinstance(x, Tensor) else ()
    before = fingerprint(net)
    delta = Delta((synapses(reads, weight, columns),), bias, before, shape, how=reader.how, head=head)
    yield "joined"
    example = {"example_x": x}
    tweaked = delta.attach(net, **example)
    with torch.inference_mode():
        plain = logits_of(call(net, x), head)
        out = logits_of(call(tweaked, x), head)
        wanted = plain.clone()
        wanted[:, columns] += torch.cat(features, 1) @ weight + bias[columns]
    torch.testing.assert_close(out, wanted, rtol=1e-3, atol=1e-3)
    assert not torch.equal(out, plain)
    rest = [j for j in range(base.shape[1]) if j not in columns]
    assert torch.equal(out[:, rest], plain[:, rest])
    yield "attached"
    with torch.inference_mode():
        assert torch.equal(logits_of(call(tweaked.detach(), x), head), plain)
    assert fingerprint(net) == before
    yield "detached"
    with tempfile.TemporaryDirectory() as folder:
        delta.save(f"{folder}/a.delta")
        yield "saved"
        again = Delta.load(f"{folder}/a.delta").attach(net, **example)
        with torch.inference_mode():
            assert torch.equal(logits_of(call(again, x), head), out)
        yield "loaded"
        try:
            if exported:
                for form in ("pt2", "onnx") if onnx else ("pt2",):
                    export(tweaked, f"{folder}/a.{form}", form, example_x=x)
                yield "exported"
        except Exception as error:  # compiling does not depend on it
            found["exported"] = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:160]}"
    if compiled:
        torch._dynamo.reset()
        made = torch.compile(tweaked, fullgraph=True, backend="eager")
        with torch.no_grad():
            torch.testing.assert_close(logits_of(call(made, x), head), out, rtol=1e-3, atol=1e-3)
        yield "compiled"


def markdown(rows: dict[str, dict[str, Any]]) -> str:
    """The table of docs/architectures.md."""
    lines = [
        f"| network | named by | neurons | {' | '.join(PROMISES)} |",
        "|---|---|---:" + "|---" * len(PROMISES) + "|",
    ]
    reasons = []
    for name, row in rows.items():
        marks = []
        for promise in PROMISES:
            value = row.get(promise)
            marks.append(
                "yes" if value is True else "no" if value else "not tried" if row.get("loaded") is True else "–"
            )
            if isinstance(value, str):
                reasons.append(f"- `{name}`, {promise}: {value}")
        lines.append(f"| `{name}` | {row.get('how', '–')} | {row.get('neurons', '–')} | {' | '.join(marks)} |")
    totals = []
    for p in PROMISES:
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
    parser.add_argument("--like", help="only names that contain this")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    rows: dict[str, dict[str, Any]] = {}
    if options.json and options.json.exists():  # go on where an earlier run stopped
        rows = json.loads(options.json.read_text())["rows"]
    for name in options.only or [name for name in CASES if (options.like or "") in name]:
        if name in rows:
            continue
        rows[name] = walk(name, onnx=options.onnx, compiled=not options.no_compile, exported=not options.no_export)
        bad = {p: rows[name].get(p) for p in PROMISES if rows[name].get(p) is not True}
        print(f"{name}: {bad or 'all'} ({rows[name]['seconds']} s)", flush=True)
        if options.json:
            machine = {"cpus": os.cpu_count(), "python": platform.python_version(), "torch": torch.__version__}
            settings = {"onnx": options.onnx, "seed": 0, "machine": machine, "date": date.today().isoformat()}
            options.json.write_text(json.dumps({"settings": settings, "rows": rows}, indent=2) + "\n")
    if options.markdown:
        rows = {name: rows[name] for name in CASES if name in rows}
        options.markdown.write_text(markdown(rows))


if __name__ == "__main__":
    main()
