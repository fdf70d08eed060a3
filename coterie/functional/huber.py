"""The loss of an error of a predicted value."""

from __future__ import annotations

import math

from torch import Tensor

__all__ = ["error_loss"]


def error_loss(error: Tensor, huber_delta: float | Tensor | None = None) -> Tensor:
    """The square of an error, or with ``huber_delta`` what grows linearly from there on (Huber 1964), element by element::

        l(e) = e^2                      |e| <= delta
               delta (2 |e| - delta)    otherwise

    which is twice the Huber loss as PyTorch has it, so that both agree for small errors and one scale of the loss serves
    either.

    :param error: any shape
    :param huber_delta: delta > 0, a number or what broadcasts to ``error`` (one per agent ``[A, 1]``); None for the squared
        error, as is infinity
    """
    if huber_delta is None or (isinstance(huber_delta, float) and math.isinf(huber_delta)):
        return error.square()
    size = error.abs()
    within = size.clamp_max(huber_delta)
    return within * (2.0 * size - within)
