"""Layers that PyTorch cannot express at a cut width."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class HeadAttention(nn.Module):
    """:class:`torch.nn.MultiheadAttention` with fewer heads than ``embed_dim / head_dim``.

    Same parameter names and call. ``in_proj_weight`` is ``(3 * heads * head_dim, embed_dim)``,
    ``out_proj.weight`` is ``(embed_dim, heads * head_dim)``.
    """

    def __init__(
        self, embed_dim: int, num_heads: int, head_dim: int, bias: bool = True, dropout: float = 0.0,
        batch_first: bool = False,
    ):  # fmt: skip
        super().__init__()
        self.embed_dim, self.num_heads, self.head_dim = embed_dim, num_heads, head_dim
        self.dropout, self.batch_first = dropout, batch_first
        width = num_heads * head_dim
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, embed_dim))
        if bias:
            self.in_proj_bias: nn.Parameter | None = nn.Parameter(torch.zeros(3 * width))
        else:
            self.register_parameter("in_proj_bias", None)
        self.out_proj = nn.Linear(width, embed_dim, bias=bias)
        nn.init.xavier_uniform_(self.in_proj_weight)

    @classmethod
    def like(cls, old: nn.MultiheadAttention) -> HeadAttention:
        """An attention of the same shape that shares the parameters of ``old``."""
        with torch.device("meta"):
            new = cls(old.embed_dim, old.num_heads, old.head_dim, old.in_proj_bias is not None, old.dropout,
                      old.batch_first)  # fmt: skip
        new.in_proj_weight = old.in_proj_weight
        new.in_proj_bias = old.in_proj_bias
        new.out_proj.weight, new.out_proj.bias = old.out_proj.weight, old.out_proj.bias
        new.train(old.training)
        return new

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None,
        need_weights: bool = True, attn_mask: Tensor | None = None, average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """As :meth:`torch.nn.MultiheadAttention.forward`; shapes ``(n, length, embed_dim)`` if ``batch_first``."""
        if not self.batch_first:
            query, key, value = (t.transpose(0, 1) for t in (query, key, value))
        weights = self.in_proj_weight.chunk(3)
        biases = self.in_proj_bias.chunk(3) if self.in_proj_bias is not None else (None, None, None)
        q, k, v = (
            F.linear(t, w, b).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
            for t, w, b in zip((query, key, value), weights, biases)
        )
        mask = _additive(attn_mask, q)
        if mask is not None and mask.dim() == 3:
            mask = mask.unflatten(0, (q.shape[0], -1))[:, : self.num_heads]
        if key_padding_mask is not None:
            pad = _additive(key_padding_mask, q)
            assert pad is not None
            mask = pad[:, None, None, :] + (mask if mask is not None else 0.0)
        drop = self.dropout if self.training else 0.0
        scores = None
        if need_weights:
            logits = q @ k.transpose(-2, -1) * self.head_dim**-0.5
            scores = (logits if mask is None else logits + mask).softmax(-1)
            x = F.dropout(scores, drop) @ v
            scores = scores.mean(1) if average_attn_weights else scores
        else:
            x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=drop,
                                               is_causal=is_causal and mask is None)  # fmt: skip
        x = self.out_proj(x.transpose(1, 2).flatten(2))
        return (x if self.batch_first else x.transpose(0, 1)), scores


def _additive(mask: Tensor | None, like: Tensor) -> Tensor | None:
    if mask is None:
        return None
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=like.dtype).masked_fill_(mask, float("-inf"))
    return mask.to(like.dtype)
