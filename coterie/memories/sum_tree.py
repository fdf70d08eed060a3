"""Drawing in proportion to weights that change one by one."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

__all__ = ["SumTree"]

#: children of a node: fewer levels against more numbers read in each (measured from 8 to 128, for 5,000 to 1,000,000 rows)
WIDTH = 32


class SumTree:
    """Sums over blocks of weights, over blocks of these sums, and so on, until one block is left.

    A sum is worked out anew from what it is the sum of whenever one of that changes, never added to, so nothing drifts.

    :param size: number of weights, all of them 0 at first
    :param device: where they live
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.size = size
        self._levels: list[Tensor] = []  # float64 [blocks, WIDTH], weights first
        for blocks in self._blocks(size):
            self._levels.append(torch.zeros(blocks, WIDTH, dtype=torch.float64, device=device))

    @staticmethod
    def _blocks(size: int) -> list[int]:
        """Blocks of each level."""
        blocks = [-(-size // WIDTH)]
        while blocks[-1] > 1:
            blocks.append(-(-blocks[-1] // WIDTH))
        return blocks

    @classmethod
    def predict_bytes(cls, size: int) -> int:
        """:attr:`nbytes` of a tree of that size."""
        return sum(cls._blocks(size)) * WIDTH * 8

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(level.nbytes for level in self._levels)

    @property
    def weights(self) -> Tensor:
        """float64 ``[size]``, to be read only."""
        return self._levels[0].view(-1)[: self.size]

    @property
    def total(self) -> Tensor:
        """Sum of all weights, float64 without dimensions."""
        return self._levels[-1].sum()

    def update(self, indexes: Tensor, weights: Tensor) -> None:
        """Set some weights.

        :param indexes: int64 ``[N]``; one that comes twice must do so with one weight
        :param weights: ``[N]``, finite and not negative
        """
        self._levels[0].view(-1).index_copy_(0, indexes, weights.double())
        for lower, upper in pairwise(self._levels):
            indexes = indexes.div(WIDTH, rounding_mode="floor")
            upper.view(-1).index_copy_(0, indexes, lower.index_select(0, indexes).sum(-1))

    def rebuild(self, weights: Tensor) -> None:
        """Set all weights, ``[size]``, finite and not negative."""
        self.weights.copy_(weights)
        for lower, upper in pairwise(self._levels):
            upper.view(-1)[: len(lower)] = lower.sum(-1)

    def draw(self, fractions: Tensor) -> Tensor:
        """Where each fraction of the total falls, int64 ``[N]``: never on a weight of 0, as long as the total is above 0.

        :param fractions: float64 ``[N]``, from 0 to below 1
        """
        rest = fractions * self.total
        nodes = torch.zeros_like(fractions, dtype=torch.int64)
        zero = rest.new_zeros(())
        for level in reversed(self._levels):
            weights = level.index_select(0, nodes)
            sums = weights.cumsum(-1)
            # a child without weight is never reached, however the sums were rounded
            reach = sums.masked_fill(weights <= 0, 0)
            rest = torch.minimum(rest, torch.nextafter(reach.amax(-1), zero))
            child = (reach > rest.unsqueeze(-1)).byte().argmax(-1, keepdim=True)  # the first of equals
            rest = (rest - (sums - weights).gather(-1, child).squeeze(-1)).clamp_(min=0)
            nodes = nodes * WIDTH + child.squeeze(-1)
        return nodes
