"""The losses of proximal policy optimisation, element by element."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from coterie.functional.huber import error_loss

__all__ = ["KL_ESTIMATORS", "clipped_surrogate_loss", "clipped_value_loss", "kl_estimate"]

KL_ESTIMATORS = ("k1", "k2", "k3")


def clipped_surrogate_loss(
    log_ratio: Tensor,
    advantages: Tensor,
    ratio_clip: float | Tensor | tuple[float | Tensor, float | Tensor],
) -> Tensor:
    """``-min(w A, clip(w, 1 - c, 1 + c) A)`` with ``w = exp(log_ratio)`` (Schulman et al. 2017, arXiv 1707.06347, eq. 7).

    :param log_ratio: ``log pi(a|o) - log pi_old(a|o)``, ``[..., A, 1]``
    :param advantages: ``[..., A, 1]``
    :param ratio_clip: c, a number or one per agent ``[A, 1]``; or a pair of them, for ``clip(w, 1 - c_low, 1 + c_high)``
    """
    low, high = ratio_clip if isinstance(ratio_clip, tuple) else (ratio_clip, ratio_clip)
    ratio = log_ratio.exp()
    gain = ratio * advantages
    # where the bounded gain is smaller, the ratio is at a bound, and has no gradient
    bounded = _clamp(ratio.detach(), 1.0 - low, 1.0 + high) * advantages
    return -torch.where(gain <= bounded, gain, bounded)


def clipped_value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    value_clip: float | Tensor,
    huber_delta: float | Tensor | None = None,
) -> Tensor:
    """``max(l(R - V), l(R - V_old - clip(V - V_old, -c, c)))`` (Yu et al. 2022, arXiv 2103.01955, appendix A).

    The maximum keeps a gradient towards the return for predictions outside the clipping range. ``c = inf`` leaves
    the plain ``l(R - V)``. The loss l of an error is its square, or with ``huber_delta`` linear for large ones
    (:func:`~coterie.functional.huber.error_loss`).

    :param values: predictions, ``[..., A, 1]``
    :param old_values: predictions before the update, ``[..., A, 1]``
    :param returns: targets on the predictions' scale, ``[..., A, 1]``
    :param value_clip: c, a number or one per agent ``[A, 1]``
    :param huber_delta: delta > 0, a number or one per agent ``[A, 1]``; None for the squared error, as is infinity
    """
    if isinstance(value_clip, float) and math.isinf(value_clip):
        return error_loss(returns - values, huber_delta)
    # values within the bounds stay what they are to the last bit, so that where the bounded loss is larger the value is at a
    # bound, and has no gradient
    near = torch.clamp(values.detach(), old_values - value_clip, old_values + value_clip)
    error, bounded = error_loss(returns - values, huber_delta), error_loss(returns - near, huber_delta)
    return torch.where(error >= bounded, error, bounded)


def _clamp(x: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    """``torch.clamp`` with bounds of either kind, which it wants to be alike."""
    if isinstance(low, Tensor) != isinstance(high, Tensor):
        low, high = (torch.as_tensor(bound, dtype=x.dtype, device=x.device) for bound in (low, high))
    return torch.clamp(x, low, high)  # type: ignore[arg-type]


def kl_estimate(log_ratio: Tensor, estimator: str = "k3") -> Tensor:
    """Estimate KL(old || new) from samples of the old policy (Schulman 2020, "Approximating KL divergence").

    With ``w = exp(log_ratio)``, new over old::

        k1 = -log w              unbiased, but negative for many samples
        k2 = (log w)^2 / 2       biased, low variance, non-negative
        k3 = (w - 1) - log w     unbiased, low variance, non-negative

    :raises ValueError: an unknown estimator
    """
    if estimator == "k3":
        return log_ratio.expm1() - log_ratio
    if estimator == "k2":
        return 0.5 * log_ratio.square()
    if estimator == "k1":
        return -log_ratio
    raise ValueError(f"estimator: expected one of {KL_ESTIMATORS}, got {estimator!r}")
