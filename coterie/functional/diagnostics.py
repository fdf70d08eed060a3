"""What tells how an update went, without entering it."""

from __future__ import annotations

from torch import Tensor

from coterie.functional.advantages import masked_mean

__all__ = ["explained_variance", "is_clipped"]


def is_clipped(log_ratio: Tensor, ratio_clip: tuple[float | Tensor, float | Tensor]) -> Tensor:
    """Where ``w = exp(log_ratio)`` lies outside ``[1 - low, 1 + high]``, bool of its shape.

    :param ratio_clip: low and high, numbers or one per agent ``[A, 1]``
    """
    change = log_ratio.expm1()
    low, high = ratio_clip
    return (change > high) | (change < -low)


def explained_variance(values: Tensor, returns: Tensor, dim: tuple[int, ...], mask: Tensor | None = None) -> Tensor:
    """``1 - var(returns - values) / var(returns)`` over ``dim``: 1 for perfect values, 0 for those no better than a constant.

    :param mask: bool of the shape of ``values``, what counts; None for everything
    """

    def variance(x: Tensor) -> Tensor:
        if mask is None:
            return x.var(dim=dim, correction=0)
        # masked_mean drops what it averages over: it comes back as dimensions of size 1
        centre = masked_mean(x, mask, dim)
        for d in sorted(d % x.dim() for d in dim):
            centre = centre.unsqueeze(d)
        return masked_mean((x - centre).square(), mask, dim)

    return 1.0 - variance(returns - values) / variance(returns).clamp_min(1e-8)
