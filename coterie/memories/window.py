"""What a replay memory draws: stretches of rows, and what is known of each row."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Window"]


@dataclass(frozen=True)
class Window:
    """B stretches of R rows that follow each other in time, each from one environment's column of a memory.

    Steps are learned from in rows ``learn_from`` to ``R - 2``, where :attr:`steps` holds; the last row only shows what came of
    the one before it. A window names rows, and holds no data: it is good until further rows are added.
    """

    rows: Tensor
    """int64 ``[R, B]``: rows of the memory."""

    envs: Tensor
    """int64 ``[B]``: the environment of each stretch."""

    real: Tensor
    """bool ``[R, B]``: the row belongs to what was drawn. Others stand behind an episode's end and repeat its last row."""

    steps: Tensor
    """bool ``[R, B]``: the row is real, and a step was taken in it (it is no last observation)."""

    starts: Tensor
    """bool ``[R, B]``: the row is real, and the first one of an episode. Row 0 may as well stand amid one."""

    weights: Tensor | None = None
    """float32 ``[B]``: importance-sampling weights of prioritised drawing, else None."""

    learn_from: int = 0
    """Rows before this one only warm a recurrent state up."""

    @property
    def ends(self) -> Tensor:
        """Bool ``[R, B]``: a step with which the episode ended, whichever way; False in the last row, where it isn't known.

        Known from the rows' structure alone: the next row starts an episode, or no step was taken in it.
        """
        ends = torch.zeros_like(self.steps)
        ends[:-1] = self.steps[:-1] & (self.starts[1:] | ~self.steps[1:])
        return ends
