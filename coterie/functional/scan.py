"""Linear recurrences along time, backwards."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["backward_scan"]

#: rollouts of at least so many rows, no wider than this, are scanned in pairs (measured: benchmarks/gae.py)
_PAIRS_FROM_ROWS = 64
_PAIRS_TO_WIDTH = 1024

#: rows that are left to the loop: one more level of pairs would take longer
_LOOP_ROWS = 16


def backward_scan(x: Tensor, weight: Tensor) -> Tensor:
    """``y_t = x_t + weight_t * y_{t+1}`` with ``y_T = 0``.

    Row by row, which takes T steps, or by pairs of rows, which takes about ``2 log2 T`` but reads everything three times
    over: whichever is faster for the size. They agree to rounding.

    :param x: ``[T, ...]``
    :param weight: as ``x`` in shape and dtype; or bool, and then ``y_{t+1}`` is dropped where it is False, even if it
        is not a number (0 times NaN is NaN)
    """
    y = torch.empty_like(x)
    rows, width = x.shape[0], x[0].numel()
    if rows >= _PAIRS_FROM_ROWS and width <= _PAIRS_TO_WIDTH:
        _scan_pairs(x, weight, y)
    else:
        _scan_rows(x, weight, y)
    return y


def _step(x: Tensor, weight: Tensor, following: Tensor, out: Tensor) -> Tensor:
    if weight.dtype == torch.bool:
        return torch.where(weight, following, x.new_zeros(()), out=out).add_(x)
    return torch.addcmul(x, weight, following, out=out)


def _scan_rows(x: Tensor, weight: Tensor, y: Tensor) -> None:
    last = torch.zeros_like(x[0])
    rows = reversed(x.unbind(0)), reversed(weight.unbind(0)), reversed(y.unbind(0))
    # unbound once: indexing inside the loop would cost as much as the arithmetic
    if weight.dtype == torch.bool:
        zero = x.new_zeros(())
        for row, keep, out in zip(*rows, strict=True):
            last = torch.where(keep, last, zero, out=out).add_(row)
    else:
        for row, factor, out in zip(*rows, strict=True):
            last = torch.addcmul(row, factor, last, out=out)


def _scan_pairs(x: Tensor, weight: Tensor, y: Tensor) -> None:
    """Solve for the even rows, on half as many, then fill in the odd ones.

    ``y_t = (x_t + w_t x_{t+1}) + (w_t w_{t+1}) y_{t+2}`` is the same recurrence with a stride of two.
    """
    rows = x.shape[0]
    if rows <= _LOOP_ROWS:
        _scan_rows(x, weight, y)
        return
    odd = rows // 2
    even = rows - odd
    paired_x, paired_weight = x.new_empty(even, *x.shape[1:]), weight.new_empty(even, *x.shape[1:])
    _step(x[0::2][:odd], weight[0::2][:odd], x[1::2], out=paired_x[:odd])
    torch.mul(weight[0::2][:odd], weight[1::2], out=paired_weight[:odd])
    if even > odd:  # the last row has no partner, and nothing behind it
        paired_x[-1] = x[-1]
        paired_weight[-1] = 0  # of y_T, but what new_empty holds may be NaN
    _scan_pairs(paired_x, paired_weight, y[0::2])
    _step(x[1::2][: even - 1], weight[1::2][: even - 1], y[2::2], out=y[1::2][: even - 1])
    if even == odd:
        y[-1] = x[-1]
