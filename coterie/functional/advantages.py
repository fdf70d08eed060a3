"""Generalised advantage estimation and the standardisation of advantages."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["gae", "standardise"]


def gae(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    discount: float | Tensor,
    gae_lambda: float | Tensor,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, arXiv 1506.02438, eq. 16).

    With ``done = terminated | truncated``::

        delta_t = r_t + discount * (1 - terminated_t) * V(s_{t+1}) - V(s_t)
        A_t     = delta_t + discount * lambda * (1 - done_t) * A_{t+1}          A_T = 0
        R_t     = A_t + V(s_t)

    A termination removes the bootstrap, any end cuts the recursion: no advantage crosses an episode's boundary.

    :param rewards: ``[T, ...]``
    :param values: ``[T, ...]``, V of the state that was acted upon
    :param next_values: ``[T, ...]``, V of the true successor state; where an episode was truncated, of its last
        observation and not of the next episode's first one
    :param terminated: bool ``[T, ...]``
    :param truncated: bool ``[T, ...]``
    :param discount: a number, or a tensor that broadcasts to ``[...]`` (one discount per agent, say)
    :param gae_lambda: as ``discount``

    :return: advantages and returns, each ``[T, ...]``

    :raises ValueError: the tensors differ in shape
    """
    shape = rewards.shape
    for name, tensor in (
        ("values", values),
        ("next_values", next_values),
        ("terminated", terminated),
        ("truncated", truncated),
    ):
        if tensor.shape != shape:
            raise ValueError(f"expected {name} of shape {list(shape)} as the rewards, got {list(tensor.shape)}")
    going_on = ~(terminated | truncated)
    deltas = torch.where(terminated, rewards, rewards + discount * next_values) - values
    carry = going_on * (discount * gae_lambda)
    advantages = torch.empty_like(deltas)
    last = torch.zeros_like(deltas[0])
    # unbound once: indexing inside the loop would cost as much as the arithmetic
    for delta, weight, advantage in zip(
        reversed(deltas.unbind(0)), reversed(carry.unbind(0)), reversed(advantages.unbind(0)), strict=True
    ):
        last = torch.addcmul(delta, weight, last, out=advantage)
    return advantages, advantages + values


def standardise(x: Tensor, dim: tuple[int, ...], eps: float = 1e-8) -> Tensor:
    """``(x - mean) / (std + eps)`` with the unbiased standard deviation over ``dim``; a single sample becomes 0, not NaN."""
    count = 1
    for d in dim:
        count *= x.shape[d]
    mean = x.mean(dim=dim, keepdim=True)
    if count == 1:
        return x - mean
    return (x - mean) / (x.std(dim=dim, keepdim=True) + eps)
