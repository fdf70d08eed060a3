"""The losses of proximal policy optimisation, element by element."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["clipped_surrogate_loss", "clipped_value_loss", "kl_estimate"]


def clipped_surrogate_loss(log_ratio: Tensor, advantages: Tensor, ratio_clip: float | Tensor) -> Tensor:
    """``-min(w A, clip(w, 1 - c, 1 + c) A)`` with ``w = exp(log_ratio)`` (Schulman et al. 2017, arXiv 1707.06347, eq. 7).

    :param log_ratio: ``log pi(a|o) - log pi_old(a|o)``, ``[..., A, 1]``
    :param advantages: ``[..., A, 1]``
    :param ratio_clip: c, a number or one per agent ``[A, 1]``
    """
    ratio = log_ratio.exp()
    clipped = torch.clamp(ratio, 1.0 - ratio_clip, 1.0 + ratio_clip)  # type: ignore[arg-type]
    gain, bounded = ratio * advantages, clipped * advantages
    # a minimum as a choice: its gradient costs a third of that of torch.minimum, which shares it out at ties
    return -torch.where(gain <= bounded, gain, bounded)


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, value_clip: float | Tensor) -> Tensor:
    """``max((R - V)^2, (R - V_old - clip(V - V_old, -c, c))^2)`` (Yu et al. 2022, arXiv 2103.01955, appendix A).

    The maximum keeps a gradient towards the return for predictions outside the clipping range. ``c = inf`` leaves
    the plain squared error.

    :param values: predictions, ``[..., A, 1]``
    :param old_values: predictions before the update, ``[..., A, 1]``
    :param returns: targets on the predictions' scale, ``[..., A, 1]``
    :param value_clip: c, a number or one per agent ``[A, 1]``
    """
    if isinstance(value_clip, float) and math.isinf(value_clip):
        return (returns - values).square()
    near = old_values + torch.clamp(values - old_values, -value_clip, value_clip)  # type: ignore[arg-type]
    error, bounded = (returns - values).square(), (returns - near).square()
    return torch.where(error >= bounded, error, bounded)


def kl_estimate(log_ratio: Tensor) -> Tensor:
    """Low-variance, non-negative estimate ``(w - 1) - log w`` of KL(old || new) from samples of the old policy."""
    return log_ratio.expm1() - log_ratio
