"""Expected complexity in closed form, and its gradient (section 2).

    K(Θ) = Σ_o [α flops_o / F + (1-α) params_o / P] · θ_blocks(o) · E[pairs of live in- and out-units of o]

With ``a_og`` (``b_og``) the number of out- (in-) indices of operation ``o`` that gate ``g`` owns,

    E[pairs] = S_in S_out + Σ_g a_og b_og θ_g (1 - θ_g),    S_in = Σ_g b_og θ_g + constants,

which covers independent, coupled and self-reading (recurrent) groups alike; without in-units it is ``S_out``. ``K`` is
multilinear, so each gate's price is ``∂K/∂θ_g``: what its unit or layer would save given what is still alive.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .plan import Plan


@dataclass(frozen=True)
class Complexity:
    """Fractions of the full network's, and its totals (FLOPs an example, two a multiply-add; parameters)."""

    flops: float
    params: float
    full_flops: float
    full_params: float


class CostModel:
    """``K_β`` of a plan and its gradient, as torch float64 functions of ``theta``, shape ``(n_gates,)``.

    ``alpha``: 1 counts FLOPs only, 0 parameters only. ``beta``: 0 prunes units only, 1/2 both, 1 layers only.
    ``extra_params`` are parameters no operation of the plan holds (embeddings, positions): always paid.
    """

    def __init__(
        self, plan: Plan, alpha: float = 0.5, beta: float = 0.5, *, extra_params: float = 0.0,
        device: torch.device | str = "cpu",
    ):  # fmt: skip
        self.alpha, self.beta = float(alpha), float(beta)
        self.n_units, self.n_gates = plan.n_units, plan.n_gates
        n = len(plan.ops)
        dev = torch.device(device)

        def entries(maps: list[np.ndarray | None]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            """Operation, gate, count of every (operation, gate) pair, and each operation's constant count."""
            rows, gates, counts, fixed = [], [], [], np.zeros(n)
            for o, m in enumerate(maps):
                if m is None:
                    fixed[o] = 1.0
                    continue
                g, c = np.unique(m[m >= 0], return_counts=True)
                rows.append(np.full(len(g), o))
                gates.append(g)
                counts.append(c)
                fixed[o] = float((m < 0).sum())
            join = lambda parts, kind: torch.from_numpy(  # noqa: E731
                np.concatenate([*parts, np.zeros(0)]).astype(kind)
            ).to(dev)
            return join(rows, np.int64), join(gates, np.int64), join(counts, np.float64), torch.from_numpy(fixed).to(dev)

        self.out = entries([o.out_map for o in plan.ops])
        self.inn = entries([o.in_map for o in plan.ops])
        both: list[tuple[int, int, float]] = []
        for o, op in enumerate(plan.ops):
            if op.in_map is not None:
                a = dict(zip(*np.unique(op.out_map[op.out_map >= 0], return_counts=True)))
                b = dict(zip(*np.unique(op.in_map[op.in_map >= 0], return_counts=True)))
                both += [(o, int(g), float(a[g] * b[g])) for g in a.keys() & b.keys()]
        self.both = (
            torch.tensor([x[0] for x in both], dtype=torch.int64, device=dev),
            torch.tensor([x[1] for x in both], dtype=torch.int64, device=dev),
            torch.tensor([x[2] for x in both], dtype=torch.float64, device=dev),
        )
        depth = max([len(o.blocks) for o in plan.ops], default=0)
        nest = np.full((n, depth), self.n_gates, dtype=np.int64)  # the extra gate is one
        for o, op in enumerate(plan.ops):
            nest[o, : len(op.blocks)] = op.blocks
        self.nest = torch.from_numpy(nest).to(dev)
        self.flops = torch.tensor([o.flops for o in plan.ops], dtype=torch.float64, device=dev)
        self.params = torch.tensor([o.params for o in plan.ops], dtype=torch.float64, device=dev)
        one = torch.ones(self.n_gates, dtype=torch.float64, device=dev)
        pairs = self._pairs(one)[0]
        self.full_flops = float((self.flops * pairs).sum()) or 1.0
        self.extra_params = float(extra_params)
        self.full_params = (float((self.params * pairs).sum()) + self.extra_params) or 1.0
        self.price = alpha * self.flops / self.full_flops + (1 - alpha) * self.params / self.full_params

    def _pairs(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Expected live pairs of every operation without its blocks, ``S_out`` and ``S_in``, each ``(n_ops,)``."""
        s_out = self.out[3].index_add(0, self.out[0], self.out[2] * theta[self.out[1]])
        s_in = self.inn[3].index_add(0, self.inn[0], self.inn[2] * theta[self.inn[1]])
        t = theta[self.both[1]]
        return (s_out * s_in).index_add(0, self.both[0], self.both[2] * t * (1 - t)), s_out, s_in

    def _blocks(self, theta: Tensor) -> Tensor:
        return torch.cat([theta, theta.new_ones(1)])[self.nest]

    def weighted(self, theta: Tensor, weight: Tensor) -> Tensor:
        """``Σ_o weight_o θ_blocks(o) E[pairs_o]``, a scalar."""
        return (weight * self._blocks(theta).prod(1) * self._pairs(theta)[0]).sum()

    def _gradient(self, theta: Tensor, weight: Tensor) -> Tensor:
        pairs, s_out, s_in = self._pairs(theta)
        blocks = self._blocks(theta)
        w = weight * blocks.prod(1)
        grad = torch.zeros(self.n_gates + 1, dtype=torch.float64, device=theta.device)
        grad.index_add_(0, self.out[1], self.out[2] * (w * s_in)[self.out[0]])
        grad.index_add_(0, self.inn[1], self.inn[2] * (w * s_out)[self.inn[0]])
        grad.index_add_(0, self.both[1], self.both[2] * w[self.both[0]] * (1 - 2 * theta[self.both[1]]))
        for d in range(self.nest.shape[1]):
            others = torch.cat([blocks[:, :d], blocks[:, d + 1 :]], 1).prod(1)
            grad.index_add_(0, self.nest[:, d], weight * others * pairs)
        return grad[:-1]

    def _mixture(self, theta: Tensor) -> list[tuple[float, Tensor, slice]]:
        """The three terms of ``K_β``: weight, point, and the gates that move in it."""
        b = self.beta
        units, layers = theta.clone(), theta.clone()
        units[self.n_units :] = 1.0
        layers[: self.n_units] = 1.0
        terms = [
            (2 * min(b, 1 - b), theta, slice(0, self.n_gates)),
            (max(0.0, 1 - 2 * b), units, slice(0, self.n_units)),
            (max(0.0, 2 * b - 1), layers, slice(self.n_units, self.n_gates)),
        ]
        return [t for t in terms if t[0] > 0]

    def value(self, theta: Tensor) -> Tensor:
        """``K_β(Θ)``, a scalar in ``[0, 1]``."""
        paid = (1 - self.alpha) * self.extra_params / self.full_params
        return sum(w * (self.weighted(t, self.price) + paid) for w, t, _ in self._mixture(theta))  # type: ignore[return-value]

    def gradient(self, theta: Tensor) -> Tensor:
        """``∂K_β/∂Θ``, shape ``(n_gates,)``."""
        grad = torch.zeros_like(theta)
        for w, t, moving in self._mixture(theta):
            grad[moving] += w * self._gradient(t, self.price)[moving]
        return grad

    def flops_gradient(self, theta: Tensor) -> Tensor:
        """Gradient of the FLOPs fraction, shape ``(n_gates,)``."""
        return self._gradient(theta, self.flops / self.full_flops)

    def params_gradient(self, theta: Tensor) -> Tensor:
        """Gradient of the parameter fraction, shape ``(n_gates,)``."""
        return self._gradient(theta, self.params / self.full_params)

    def fractions(self, theta: Tensor) -> tuple[float, float]:
        """Expected FLOPs and parameters as fractions of the full network's (exact for gates of 0 and 1)."""
        flops = float(self.weighted(theta, self.flops)) / self.full_flops
        params = (float(self.weighted(theta, self.params)) + self.extra_params) / self.full_params
        return flops, params

    def complexity(self, theta: Tensor) -> Complexity:
        """FLOPs and parameters expected at ``theta`` ``(n_gates,)``, as fractions and of the full network."""
        flops, params = self.fractions(theta)
        return Complexity(flops, params, self.full_flops, self.full_params)
