"""Log-probabilities, entropies, divergences and samples of the action distributions, for any leading shape."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

__all__ = [
    "bernoulli_entropy",
    "bernoulli_log_prob",
    "categorical_entropy",
    "categorical_kl",
    "categorical_log_prob",
    "categorical_sample",
    "normal_entropy",
    "normal_kl",
    "normal_log_prob",
    "tanh_log_derivative",
    "tanh_normal_entropy",
]

_HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)
_LOG_TWO = math.log(2.0)


def normal_log_prob(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Log-density of ``N(mean, exp(log_std)^2)`` at ``x``, element by element."""
    z = (x - mean) * torch.exp(-log_std)
    return -0.5 * z * z - log_std - _HALF_LOG_TWO_PI


def normal_entropy(log_std: Tensor) -> Tensor:
    """Entropy ``log_std + log(2 pi e) / 2`` of a normal distribution, element by element."""
    return log_std + (0.5 + _HALF_LOG_TWO_PI)


def normal_kl(mean_p: Tensor, log_std_p: Tensor, mean_q: Tensor, log_std_q: Tensor) -> Tensor:
    """KL(p || q) of two normals, element by element; also of both squashed by tanh, which changes no divergence.

    ``log(s_q / s_p) + (s_p^2 + (m_p - m_q)^2) / (2 s_q^2) - 1/2``, arranged so that it is exactly 0 for p = q.
    """
    gap = 2.0 * (log_std_p - log_std_q)
    z = (mean_p - mean_q) * torch.exp(-log_std_q)
    return 0.5 * (gap.expm1() - gap + z * z)


def tanh_log_derivative(x: Tensor) -> Tensor:
    """``log(1 - tanh(x)^2)`` without cancellation: ``2 (log 2 - x - softplus(-2x))``."""
    return 2.0 * (_LOG_TWO - x - softplus(-2.0 * x))


@lru_cache(maxsize=8)
def _hermite_on(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Gauss-Hermite quadrature under a normal: ``[-2, -2 z]`` for each node z, and the nodes' weights."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(16)
    lines = torch.tensor(np.stack([np.full_like(nodes, -2.0), -2.0 * nodes], axis=1), dtype=dtype, device=device)
    return lines, torch.tensor(weights / weights.sum(), dtype=dtype, device=device)


def tanh_normal_entropy(mean: Tensor, log_std: Tensor) -> Tensor:
    """Entropy of ``tanh(u)``, ``u ~ N(mean, exp(log_std)^2)``, element by element.

    ``H[tanh(u)] = H[u] + E[log(1 - tanh(u)^2)]``. The expectation has no closed form; it is taken by Gauss-Hermite
    quadrature with 16 nodes, so that the result is deterministic and differentiable.
    """
    lines, weights = _hermite_on(mean.dtype, mean.device)
    # log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2u)), and the mean of u is known
    doubled = lines @ torch.stack([mean.flatten(), log_std.exp().expand_as(mean).flatten()])  # -2u at each node
    softened = (weights @ softplus(doubled)).view_as(mean)
    return normal_entropy(log_std) - 2.0 * (mean + softened - _LOG_TWO)


def categorical_log_prob(log_probs: Tensor, actions: Tensor) -> Tensor:
    """Pick the log-probability ``[..., 1]`` of ``actions`` (int64 ``[..., 1]``) from normalised ``log_probs`` ``[..., n]``."""
    return log_probs.gather(-1, actions)


def categorical_entropy(log_probs: Tensor) -> Tensor:
    """Entropy ``[..., 1]`` for normalised ``log_probs`` ``[..., n]``; a forbidden action's ``-inf`` counts as 0 log 0 = 0."""
    finite = log_probs.clamp_min(torch.finfo(log_probs.dtype).min)
    return -(log_probs.exp() * finite).sum(dim=-1, keepdim=True)


def categorical_kl(log_probs_p: Tensor, log_probs_q: Tensor) -> Tensor:
    """KL(p || q) ``[..., 1]`` for normalised log-probabilities ``[..., n]``.

    What p forbids (``-inf``) adds 0, with gradients of 0, whatever q says of it; what only q forbids makes it infinite.
    """
    p = log_probs_p.exp()
    return (p * torch.where(p > 0, log_probs_p - log_probs_q, 0.0)).sum(dim=-1, keepdim=True)


def categorical_sample(logits: Tensor) -> Tensor:
    """Draw int64 ``[..., 1]`` from ``logits`` ``[..., n]``, normalised or not, by exponential races (no host-device sync)."""
    race = torch.empty_like(logits).exponential_()
    return (logits - race.log()).argmax(dim=-1, keepdim=True)


def bernoulli_log_prob(logits: Tensor, actions: Tensor) -> Tensor:
    """Log-probability of ``actions`` (0 or 1, of any dtype) for the log-odds ``logits`` of a 1, element by element."""
    return logsigmoid(torch.where(actions > 0, logits, -logits))


def bernoulli_entropy(logits: Tensor) -> Tensor:
    """Entropy ``-p log p - (1 - p) log(1 - p)`` for log-odds ``logits``, element by element."""
    return -(logits.sigmoid() * logsigmoid(logits) + (-logits).sigmoid() * logsigmoid(-logits))
