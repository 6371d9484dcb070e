"""Synaptic retraining at its optimum: multinomial logistic regression with fixed offsets (section 3.2.4).

The base network's logits are constants, the new synapses add ``features @ weight + bias`` to them, and the
cross-entropy of the sum is convex in ``(weight, bias)``. With an L2 term the optimum is unique, so it is *solved* (truncated
Newton, preconditioned so that correlated neurons do not slow it down), not trained: no learning rate, the same answer every time,
and a certificate, the largest entry of the gradient in float64.

Objective, with standardised features ``x`` (each neuron centred and divided by its standard deviation)::

    sum_k a_k * CE(offsets_k + x_k W + b, label_k) / sum_k a_k  +  l2 / 2 * ||W||_F^2

The bias is free of penalty. Standardisation is folded back, so the returned weights apply to raw neuron values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tweaknn.errors import InputError
from tweaknn.fit.checks import masks, validated

_DOUBLE = 2_000_000  # tables up to this many entries are worked on in float64 throughout
_BLOCK = 4096  # rows a float32 matrix product sees at once; sums across blocks are float64
_DECREMENT = 1e-10  # nats: a Newton step that promises less is not worth taking
_EASY = 0.003  # share of the curvature that Hessian products may leave out (rows the model is sure of): cheaper steps


@dataclass(frozen=True)
class LinearFit:
    """Solution of one convex fit.

    ``weight`` (f, c) and ``bias`` (c,) are float64 arrays for raw features; ``loss`` is the penalised objective, ``gradient`` the
    largest absolute entry of its gradient (the certificate), ``iterations`` the number of Newton steps.
    """

    weight: np.ndarray
    bias: np.ndarray
    l2: float
    loss: float
    gradient: float
    iterations: int
    converged: bool

    def logits(self, features: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """``offsets + features @ weight + bias``, (n, c), in the dtype of ``offsets``."""
        added = np.asarray(features, dtype=np.float32) @ self.weight.astype(np.float32)
        return (offsets + added + self.bias.astype(np.float32)).astype(np.asarray(offsets).dtype, copy=False)


def fit_linear(
    features: Any,
    offsets: Any,
    labels: Any,
    *,
    l2: float,
    mask: Any = None,
    sample_weight: Any = None,
    device: str = "cpu",
) -> tuple[np.ndarray, np.ndarray]:
    """Weights and biases of new synapses at the optimum of the convex problem.

    Args:
        features: (n, f) neuron values; arrays or tensors of any float type.
        offsets: (n, c) logits of the base (or of base + delta so far).
        labels: (n,) integers in ``0..c-1``.
        l2: strength of the penalty on standardised weights, at least 0; the loss is a mean, so it does not scale with n.
        mask: (c,) booleans (logits that may receive synapses and a bias) or (f, c) booleans (each synapse by itself; a class without
            any gets no bias either). None allows all.
        sample_weight: (n,) non-negative; ``variant 2`` is 2 on the target's examples.

    Returns:
        ``weight`` (f, c) and ``bias`` (c,), float64.

    Raises:
        InputError: shapes disagree, labels are out of range, values are not finite, or a penalty is negative.
    """
    problem = LogisticProblem(features, offsets, labels, mask=mask, sample_weight=sample_weight, device=device)
    fit = problem.solve(l2)
    return fit.weight, fit.bias


def fit_path(features: Any, offsets: Any, labels: Any, l2s: Iterable[float], **options: Any) -> list[LinearFit]:
    """One :class:`LinearFit` for each strength in ``l2s`` (solved from the strongest down, each from the last: warm starts).

    The results come in the order of ``l2s``; ``options`` are those of :class:`LogisticProblem`.
    """
    strengths = [float(s) for s in l2s]
    problem = LogisticProblem(features, offsets, labels, **options)
    found: dict[float, LinearFit] = {}
    for strength in sorted(set(strengths), reverse=True):
        found[strength] = problem.solve(strength, warm=True)
    return [found[s] for s in strengths]


class LogisticProblem:
    """A convex fit prepared once (standardised, rotated) and solved for as many penalties as wanted.

    Args as for :func:`fit_linear`; ``scale`` (f,) multiplies standardised features and so divides their penalty by its square: one
    strength for each layer, or 0 to leave a neuron out. ``bias`` False fits synapses alone, as the dissertation's retraining does; neurons
    are then not centred.

    Raises:
        InputError: shapes disagree, labels are out of range, or values are not finite.
    """

    def __init__(
        self, features: Any, offsets: Any, labels: Any, *, mask: Any = None, sample_weight: Any = None, scale: Any = None,
        bias: bool = True, device: str = "cpu",
    ):  # fmt: skip
        raw, self.offsets, self.labels, share = validated(features, offsets, labels, sample_weight, device)
        self.share = share  # (n,) sums to 1
        n, self.f = raw.shape
        c = self.c = self.offsets.shape[1]
        classes, synapses = masks(mask, self.f, c)
        self.classes = torch.from_numpy(np.flatnonzero(classes)).to(raw.device)
        p = self.offsets.softmax(1)
        hardness = (1 - p.square().sum(1)).clamp_min(0) + 0.02  # where the curvature of the loss lives
        self.share_h = share * hardness
        mean, std, self.centre = _moments(raw, share, self.share_h)
        self.bias = bias
        if not bias:
            self.centre = torch.zeros_like(self.centre)
        alive = std > 1e-7 * mean.abs() + 1e-30
        factor = torch.where(alive, 1 / torch.where(alive, std, 1.0), 0.0)
        if scale is not None:
            factor = factor * torch.as_tensor(np.asarray(scale), dtype=torch.float64, device=raw.device)
        self.factor = factor
        kept = (factor != 0) & (torch.from_numpy(synapses.any(1)).to(raw.device) if synapses is not None else True)
        self.kept = torch.nonzero(kept).flatten()
        self.store = store = torch.float64 if n * len(self.kept) <= _DOUBLE else torch.float32
        x = torch.empty(n, len(self.kept), dtype=store, device=raw.device)
        for s in _blocks(n):
            x[s] = ((raw[s][:, self.kept].double() - self.centre[self.kept]) * factor[self.kept]).to(store)
        self.x = x
        self.synapses = None
        self.rotation = None
        if synapses is None or synapses[:, classes].all():
            self.spectrum, self.rotation = self._thin() if n < len(self.kept) else self._full()
            rotation = self.rotation.to(store)
            width = rotation.shape[1]
            for s in _blocks(n):
                x[s, :width] = x[s] @ rotation
            self.x = x if width == x.shape[1] else x[:, :width].contiguous()
        else:
            chosen = torch.from_numpy(synapses).to(raw.device)
            self.synapses = chosen[self.kept][:, self.classes].double()
        self.last: torch.Tensor | None = None

    def restart(self, offsets) -> None:
        """Other offsets ``(n, c)`` for the same neurons and labels, from no synapses again."""
        self.offsets = torch.as_tensor(offsets).to(self.x.device, torch.float64)
        self.last = None

    def solve(self, l2: float, *, warm: bool = False, tolerance: float | None = None, max_iterations: int = 60) -> LinearFit:
        """The optimum at strength ``l2``; ``warm`` starts from this problem's last solution (same optimum, fewer steps).

        Raises:
            InputError: ``l2`` is negative or not finite.
        """
        if not np.isfinite(l2) or l2 < 0:
            raise InputError(f"l2 must be a finite number of at least 0, got {l2}.")
        if tolerance is None:
            tolerance = 1e-9 if self.store == torch.float64 else 3e-6
        rows = self.x.shape[1] + 1  # the last row is the bias
        theta = torch.zeros(rows, len(self.classes), dtype=torch.float64, device=self.x.device)
        if warm and self.last is not None:
            theta = self.last.clone()
        free = self._free()
        loss, grad, p = self._evaluate(theta, l2)
        grad = grad * free
        precondition = self._preconditioner(p, l2, free)
        steps, settled = 0, False
        start = float(grad.abs().max()) if grad.numel() else 0.0
        size = start
        while size > tolerance and steps < max_iterations:
            step = _conjugate_gradients(self._hessian(p, l2, free), -grad, precondition, 0.1)
            slope = float((grad * step).sum())
            if not slope < 0:
                step, slope = -precondition(grad), -float((grad * precondition(grad)).sum())
            if -slope < _DECREMENT:  # what is left to gain; a separable class would let its bias grow for ever
                settled = True
                break
            length, moved = 1.0, False
            for _ in range(30):
                trial = theta + length * step
                new_loss, new_grad, new_p = self._evaluate(trial, l2)
                if new_loss <= loss + 1e-4 * length * slope or (new_grad * free).abs().max() < 0.5 * size:
                    moved = True
                    break
                length /= 2
            steps += 1
            if not moved:
                break  # float64 has no better point along a descent direction: this is the optimum to rounding
            theta, loss, grad, p = trial, new_loss, new_grad * free, new_p
            size = float(grad.abs().max())
        self.last = theta
        if self.store != torch.float64:
            size = float((self._evaluate(theta, l2, exact=True)[1] * free).abs().max())
        weight, bias = self._fold(theta)
        return LinearFit(weight, bias, float(l2), float(loss), size, steps, settled or size <= 2 * tolerance)

    # -- pieces -----------------------------------------------------------------------------------

    def _free(self) -> torch.Tensor:
        ones = torch.ones(1, len(self.classes), dtype=torch.float64, device=self.x.device)
        last = ones * self.bias
        if self.synapses is None:
            return torch.cat([ones.expand(self.x.shape[1], -1), last])
        return torch.cat([self.synapses, last])

    def _evaluate(self, theta: torch.Tensor, l2: float, exact: bool = False) -> tuple[float, torch.Tensor, torch.Tensor]:
        """Objective, gradient (rows, classes) and probabilities (n, c) at ``theta``."""
        weight, bias = theta[:-1], theta[-1]
        p = torch.empty_like(self.offsets)
        grad = torch.zeros_like(theta)
        loss = 0.0
        for s in _blocks(len(self.labels)):
            x = self.x[s].double() if exact else self.x[s]
            z = self.offsets[s].clone()
            z[:, self.classes] += (x @ weight.to(x.dtype)).double() + bias
            logp = z.log_softmax(1)
            label = self.labels[s].unsqueeze(1)
            loss -= float((self.share[s] * logp.gather(1, label).squeeze(1)).sum())
            p[s] = logp.exp()
            r = p[s].clone()
            r.scatter_add_(1, label, torch.full_like(label, -1, dtype=r.dtype))
            r = r[:, self.classes] * self.share[s].unsqueeze(1)
            # Scaled to about 1 for float32, then back.
            grad[:-1] += ((r * len(self.share)).T.to(x.dtype) @ x).T.double() / len(self.share)
            grad[-1] += r.sum(0)
        grad[:-1] += l2 * weight
        return loss + 0.5 * l2 * float(weight.square().sum()), grad, p

    def _hessian(self, p: torch.Tensor, l2: float, free: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """Product with the Hessian at ``p``, over the rows that carry all but a few per cent of the curvature."""
        hardness = self.share * (1 - p.square().sum(1))
        order = hardness.sort().values
        easy = order.cumsum(0) <= _EASY * order.sum()
        rows = torch.nonzero(hardness > (order[easy][-1] if bool(easy.any()) else -1.0)).flatten()
        x = self.x[rows]
        xt = x.T.contiguous()  # both layouts: each thin product is then two to five times faster
        q = p[rows][:, self.classes].T.to(self.store).contiguous()
        share = self.share[rows].to(self.store) * len(self.share)

        def product(d: torch.Tensor) -> torch.Tensor:
            t = d[:-1].T.to(self.store) @ xt + d[-1].to(self.store).unsqueeze(1)
            t = q * (t - (q * t).sum(0)) * share
            out = torch.cat([(t @ x).T, t.sum(1).unsqueeze(0)]).double() / len(self.share)
            out[:-1] += l2 * d[:-1]
            return out * free

        return product

    def _full(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Eigenvalues (k,) of the neurons' second moments, not negative, and their basis (k, k)."""
        values, basis = torch.linalg.eigh(self._weighted_gram(self.share_h))
        return values.clamp_min(0), basis

    def _thin(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The same where there are fewer examples than neurons: (n,) and (k, n).

        The penalised optimum is a combination of the examples, so their span is all that is needed: a few hundred examples of
        twenty thousand neurons cost the square of the former, not of the latter.
        """
        span, r = torch.linalg.qr((self.x.double() * (self.share_h * len(self.share_h)).sqrt().unsqueeze(1)).T)
        values, basis = torch.linalg.eigh(r @ r.T / len(self.share_h))
        return values.clamp_min(0), span @ basis

    def _weighted_gram(self, weights: torch.Tensor) -> torch.Tensor:
        gram = torch.zeros(self.x.shape[1], self.x.shape[1], dtype=torch.float64, device=self.x.device)
        for s in _blocks(len(self.labels)):
            x = self.x[s]
            gram += (x.T @ (x * (weights[s] * len(weights)).to(self.store).unsqueeze(1))).double() / len(weights)
        return gram

    def _preconditioner(self, p: torch.Tensor, l2: float, free: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        inverse = self._kronecker(p, l2) if self.rotation is not None else self._by_class(p, l2)
        return inverse if self.bias else lambda g: inverse(g) * free

    def _kronecker(self, p: torch.Tensor, l2: float) -> Callable[[torch.Tensor], torch.Tensor]:
        """Inverse of (curvature between classes) x (second moments of the neurons) + l2, diagonal in both eigenbases."""
        q = p[:, self.classes]
        between = torch.diag((self.share.unsqueeze(1) * q).sum(0)) - q.T @ (self.share.unsqueeze(1) * q)
        values, basis = torch.linalg.eigh(between / self.share_h.sum())
        values = values.clamp_min(0)
        scale = torch.cat([self.spectrum, self.share_h.sum().reshape(1)]).unsqueeze(1) * values.unsqueeze(0)
        scale[:-1] += l2
        # A common shift of all logits changes nothing: curvature 0, so CG must not step along it.
        inverse = torch.where(scale > 1e-12 * scale.max(), 1 / scale.clamp_min(1e-300), 0.0)
        return lambda g: ((g @ basis) * inverse) @ basis.T

    def _by_class(self, p: torch.Tensor, l2: float) -> Callable[[torch.Tensor], torch.Tensor]:
        """Inverse of each class's own block of the Hessian (bias apart), over the synapses it has."""
        assert self.synapses is not None
        factors = []
        for j, cls in enumerate(self.classes.tolist()):
            own = torch.nonzero(self.synapses[:, j]).flatten()
            curvature = self.share * p[:, cls] * (1 - p[:, cls])
            block = torch.zeros(len(own), len(own), dtype=torch.float64, device=self.x.device)
            for s in _blocks(len(self.labels)):
                x = self.x[s][:, own].double()
                block += x.T @ (x * curvature[s].unsqueeze(1))
            floor = max(l2, 1e-9 * float(block.diagonal().mean()) if len(own) else 1.0) + 1e-12
            block.diagonal().add_(floor)
            factors.append((own, torch.linalg.cholesky(block), 1 / curvature.sum().clamp_min(1e-9)))

        def apply(g: torch.Tensor) -> torch.Tensor:
            out = torch.zeros_like(g)
            for j, (own, factor, bias) in enumerate(factors):
                if len(own):
                    out[own, j] = torch.cholesky_solve(g[own, j].unsqueeze(1), factor).squeeze(1)
                out[-1, j] = bias * g[-1, j]
            return out

        return apply

    def _fold(self, theta: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Weights and bias for raw features."""
        w = theta[:-1] if self.rotation is None else self.rotation @ theta[:-1]
        w = w * self.factor[self.kept].unsqueeze(1)
        weight = torch.zeros(self.f, self.c, dtype=torch.float64, device=w.device)
        weight[self.kept.unsqueeze(1), self.classes.unsqueeze(0)] = w
        bias = torch.zeros(self.c, dtype=torch.float64, device=w.device)
        bias[self.classes] = theta[-1] - self.centre[self.kept] @ w
        if len(self.classes) == self.c and self.bias:
            bias -= bias.mean()  # a common shift changes no prediction: keep the smallest of the equal biases
        return weight.cpu().numpy(), bias.cpu().numpy()


def _conjugate_gradients(product, target, precondition, relative: float, most: int = 150) -> torch.Tensor:
    """Solve ``product(d) = target`` to ``relative`` of the preconditioned residual (products are positive semi-definite)."""
    d = torch.zeros_like(target)
    r = target.clone()
    z = precondition(r)
    direction = z
    rz = first = float((r * z).sum())
    for _ in range(most):
        if not rz > relative**2 * first or not np.isfinite(rz):
            break
        h = product(direction)
        bend = float((direction * h).sum())
        if not bend > 1e-12 * rz:  # as good as flat (or NaN): what lies this way is worth nothing
            break
        d = d + (rz / bend) * direction
        r = r - (rz / bend) * h
        z = precondition(r)
        previous, rz = rz, float((r * z).sum())
        direction = z + (rz / previous) * direction
    return d


def _blocks(n: int) -> Iterable[slice]:
    return (slice(s, min(s + _BLOCK, n)) for s in range(0, n, _BLOCK))


def _moments(raw: torch.Tensor, share: torch.Tensor, share_h: torch.Tensor):
    """Mean and standard deviation (f,) under ``share``, and the mean under ``share_h`` (which decouples the bias)."""
    f = raw.shape[1]
    mean, centre, square = (torch.zeros(f, dtype=torch.float64, device=raw.device) for _ in range(3))
    for s in _blocks(len(raw)):
        x = raw[s].double()
        mean += share[s] @ x
        centre += share_h[s] @ x
    centre /= share_h.sum()
    for s in _blocks(len(raw)):
        square += share[s] @ (raw[s].double() - mean).square()
    if not bool(torch.isfinite(mean).all() and torch.isfinite(square).all()):
        bad = int(torch.nonzero(~torch.isfinite(mean + square)).flatten()[0])
        raise InputError(f"Feature {bad} holds NaN or infinite values; check the network's activations on these examples.")
    return mean, square.sqrt(), centre
