"""Small networks of every kind the gates support."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Residual(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.shortcut = nn.Sequential()
        if inside != outside or stride != 1:
            self.shortcut = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class TinyResNet(nn.Module):
    def __init__(self, width: int = 6, classes: int = 4):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.blocks = nn.Sequential(Residual(width, width), Residual(width, 2 * width, 2), Residual(2 * width, 2 * width))
        self.linear = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.bn1(self.conv1(x))))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Dense(nn.Module):
    """Concatenation, pre-activation, flattening with positions."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 5, 3, padding=1)
        self.n1 = nn.BatchNorm2d(5)
        self.b = nn.Conv2d(5, 4, 3, padding=1)
        self.n2 = nn.BatchNorm2d(9)
        self.c = nn.Conv2d(9, 6, 1)
        self.head = nn.Linear(6 * 4 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        both = torch.cat([a, self.b(F.relu(self.n1(a)))], 1)
        return self.head(torch.flatten(F.max_pool2d(F.silu(self.c(F.relu(self.n2(both)))), 2), 1))


class Grouped(nn.Module):
    """Grouped, depthwise, squeeze-and-excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 1)
        self.g = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.d = nn.Conv2d(8, 16, 3, padding=1, groups=8)
        self.down = nn.Linear(16, 4)
        self.up = nn.Linear(4, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.d(F.relu(self.g(torch.tanh(self.a(x))))))
        scale = torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3))))))
        return self.head((x * scale[:, :, None, None]).mean((2, 3)))


class Recurrent(nn.Module):
    def __init__(self, kind: type = nn.LSTM, layers: int = 2, both: bool = True):
        super().__init__()
        self.embed = nn.Linear(3, 7)
        self.rnn = kind(7, 6, layers, batch_first=True, bidirectional=both)
        self.head = nn.Linear(12 if both else 6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(torch.tanh(self.embed(x)))[0][:, -1])


class Attention(nn.Module):
    """Heads written out as timm does, then an MLP."""

    def __init__(self, width: int = 12, heads: int = 3):
        super().__init__()
        self.num_heads, self.head_dim, self.attn_dim = heads, width // heads, width
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        qkv = self.qkv(x).reshape(n, length, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        y = (q @ k.transpose(-2, -1) * self.head_dim**-0.5).softmax(-1) @ v
        return self.proj(y.transpose(1, 2).reshape(n, length, self.attn_dim))


class TransformerBlock(nn.Module):
    def __init__(self, width: int = 12, builtin: bool = False):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.builtin = builtin
        self.attn = nn.MultiheadAttention(width, 3, batch_first=True) if builtin else Attention(width)
        self.drop = nn.Dropout(0.0)
        self.mlp = nn.Sequential(nn.Linear(width, 20), nn.GELU(), nn.Linear(20, width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        y = self.attn(y, y, y, need_weights=False)[0] if self.builtin else self.attn(y)
        x = x + self.drop(y)
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    def __init__(self, builtin: bool = False):
        super().__init__()
        self.embed = nn.Linear(5, 12)
        self.blocks = nn.Sequential(TransformerBlock(12, builtin), TransformerBlock(12, builtin))
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.embed(x)).mean(1))


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 9), nn.PReLU(9), nn.Linear(9, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def images(n: int = 3, size: int = 8) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


def sequences(n: int = 3, length: int = 6, width: int = 5) -> Tensor:
    return torch.randn(n, length, width, generator=torch.Generator().manual_seed(1))


ZOO = {
    "mlp": (Mlp, lambda: sequences()[:, 0]),
    "residual": (TinyResNet, images),
    "dense": (Dense, images),
    "grouped": (Grouped, images),
    "lstm": (Recurrent, lambda: sequences(width=3)),
    "gru": (lambda: Recurrent(nn.GRU, 1, False), lambda: sequences(width=3)),
    "transformer": (Transformer, sequences),
    "multihead": (lambda: Transformer(True), sequences),
}


def settled(model: nn.Module) -> nn.Module:
    """Batch-norm statistics and affine parts away from their trivial start."""
    g = torch.Generator().manual_seed(3)
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            for t in (m.running_mean, m.bias):
                t.data.copy_(0.3 * torch.randn(t.shape, generator=g))
            for t in (m.running_var, m.weight):
                t.data.copy_(0.5 + torch.rand(t.shape, generator=g))
    return model


def make(name: str) -> tuple[nn.Module, Tensor]:
    maker, example = ZOO[name]
    torch.manual_seed(0)
    return settled(maker()), example()


class FixedHeads(nn.Module):
    """Blocks whose attention cannot lose a head, since the number is written into its forward pass, and whose MLPs can."""

    class Attention(nn.Module):
        def __init__(self, width: int):
            super().__init__()
            self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).reshape(x.shape[0], x.shape[1], 3, 3, 4).permute(2, 0, 3, 1, 4).unbind(0)
            return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape))

    class Block(nn.Module):
        def __init__(self, width: int):
            super().__init__()
            self.attn = FixedHeads.Attention(width)
            self.mlp = nn.Sequential(nn.Linear(width, 8), nn.GELU(), nn.Linear(8, width))

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.attn(x)
            return x + self.mlp(x)

    def __init__(self, blocks: int = 4) -> None:
        super().__init__()
        self.stem, self.norm = nn.Linear(5, 12), nn.LayerNorm(12)
        self.blocks = nn.ModuleList([FixedHeads.Block(12) for _ in range(blocks)])
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))
