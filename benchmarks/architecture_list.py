"""The architectures that ``benchmarks/architectures.py`` walks: how each is made, an input, and which of its outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

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


SMALL: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
"""A transformer of Hugging Face's as small as they come."""

SOUND: dict[str, Any] = SMALL | {
    "conv_dim": (8, 8),
    "conv_stride": (5, 4),
    "conv_kernel": (10, 4),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 8,
}
"""The same for sounds."""

_TEXT = SMALL | {"vocab_size": 100, "max_position_embeddings": 32}

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
        f"torchvision:{name}": _torchvision(name, 64, weights_backbone=None)  # a class a pixel
        for name in (
            "fcn_resnet50",
            "deeplabv3_resnet50",
            "deeplabv3_mobilenet_v3_large",
            "lraspp_mobilenet_v3_large",
        )
    },
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
    "hf:ViT": _hf("ViT:ImageClassification", **SMALL, image_size=32, patch_size=8),
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
    "hf:Deit": _hf("DeiT:ImageClassification", **SMALL, image_size=32, patch_size=8),
    "hf:Wav2Vec2": _hf("Wav2Vec2:SequenceClassification", **SOUND),
}
