"""Priorities of a memory's rows, and the tree to draw by them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from coterie.memories.columns import STEP, Columns, Ints
from coterie.memories.sum_tree import SumTree

__all__ = ["Priorities"]


class Priorities:
    """A priority p for each row, and a sum tree of ``p^alpha`` that has just those rows which may be drawn.

    Rows next to the one that is written next may not be drawn, so which may is moving on with every row written. The tree
    follows when something is to be drawn, at a cost that depends on the rows written since the last time.
    """

    def __init__(self, columns: Columns) -> None:
        self.columns = columns
        size = columns.rows * columns.envs
        #: float32 [T * E], and the largest ever set
        self.values = torch.zeros(size, device=columns.device)
        self.largest = torch.ones((), device=columns.device)
        self.tree = SumTree(size, columns.device)
        self.clear()

    def clear(self) -> None:
        """Forget all priorities."""
        self.largest.fill_(1.0)
        self._held: tuple[Ints, Ints] | None = None  # the rows in the tree, from the first number to before the second
        self._alpha = 0.0
        self._refused: Tensor | None = None

    def add(self, place: int | Tensor) -> None:
        """Rows just written have the largest priority so far: one of every column, at ``Columns.place()`` as it was before."""
        envs = self.columns.envs
        if isinstance(place, int):
            self.values[place * envs : (place + 1) * envs].copy_(self.largest)
        else:
            self.values.index_copy_(0, place, self.largest.expand(envs))

    def update(self, index: Tensor, priorities: Tensor, eps: float) -> None:
        """Set priorities ``[B]``, at least 0, plus ``eps``, of rows that were drawn, int64 ``[B]`` into ``T * E``.

        :raises ValueError: priorities that are negative, infinite or no numbers: at once on the CPU, on another device (which
            would have to be waited for) not before the next draw, and taken for 0 until then
        """
        priorities = priorities.to(self.values)
        valid = priorities.isfinite() & (priorities >= 0)
        if priorities.device.type == "cpu":
            self._complain(valid.all())
        else:
            self._refused = valid.all()
        self.values.index_copy_(0, index, priorities.where(valid, 0.0) + eps)
        kept = self.values.index_select(0, index)  # a row that was drawn twice has one of its priorities
        drawable = self.tree.weights.index_select(0, index) > 0
        self.tree.update(index, (kept.double() ** self._alpha).where(drawable, 0.0))
        torch.maximum(self.largest, kept.max(), out=self.largest)

    @staticmethod
    def _complain(valid: Tensor) -> None:
        if not bool(valid):
            raise ValueError("priorities: expected finite numbers of at least 0; are there errors that are no numbers?")

    def draw(self, fractions: Tensor, ahead: int, behind: int, alpha: float) -> tuple[Tensor, Tensor]:
        """Rows where fractions of the sum fall, int64 ``[B]`` into ``T * E``, and their probabilities, float64 ``[B]``.

        :param fractions: float64 ``[B]``, from 0 to below 1
        :param ahead: rows that must be held in front of one drawn
        :param behind: rows that must be held behind it

        :raises ValueError: see :meth:`update`
        """
        if self._refused is not None:
            refused, self._refused = self._refused, None
            self._complain(refused)
        self._follow(ahead, behind, alpha)
        index = self.tree.draw(fractions)
        return index, self.tree.weights.index_select(0, index) / self.tree.total

    def _follow(self, ahead: int, behind: int, alpha: float) -> None:
        """Let the tree have the rows that may be drawn now."""
        first, end = self.columns.between(ahead, behind)
        rows = self.columns.rows
        held, self._held = self._held, (first, end)
        if held is None or alpha != self._alpha:
            self._alpha = alpha
            return self.tree.rebuild(self._weights(np.arange(rows)[:, None]))
        moved = [
            (np.minimum(was, now), int(np.abs(was - now).max())) for was, now in zip(held, (first, end), strict=True)
        ]
        if 2 * sum(count for _, count in moved) > rows:
            return self.tree.rebuild(self._weights(np.arange(rows)[:, None]))
        # rows that have come in or gone, and maybe some more: what a ring row weighs follows from what it holds now
        changed = np.concatenate([low + np.arange(count)[:, None] for low, count in moved]) % rows
        if len(changed):
            index = torch.from_numpy((changed * self.columns.envs + self.columns.every).ravel()).to(self.values.device)
            self.tree.update(index, self._weights(changed, index))
        return None

    def _weights(self, slots: Ints, index: Tensor | None = None) -> Tensor:
        """What ring rows weigh, float64, flat.

        :param slots: ``[N, E]`` or ``[N, 1]``
        :param index: where they stand in ``T * E``; None: all rows, in order
        """
        assert self._held is not None
        newest = self.columns.written - 1
        numbers = newest - (newest - slots) % self.columns.rows  # below 0: never written
        within = (numbers >= self._held[0]) & (numbers < self._held[1])
        drawable = torch.from_numpy(within.ravel()).to(self.values.device)
        values, flags = self.values, self.columns.flags.view(-1)
        if index is not None:
            values, flags = values.index_select(0, index), flags.index_select(0, index)
        return (values.double() ** self._alpha).where(drawable & (flags & STEP).bool(), 0.0)

    # ---- size and files --------------------------------------------------------------------------------------------------

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.values.nbytes + self.largest.nbytes + self.tree.nbytes

    @staticmethod
    def predict_bytes(size: int) -> int:
        """:attr:`nbytes` for so many rows in all environments."""
        return 4 * size + 4 + SumTree.predict_bytes(size)

    def contents(self) -> dict[str, Any]:
        """Everything as tensors, copies; the tree follows from it."""
        return {"values": self.values.clone(), "largest": self.largest.clone()}

    def check_contents(self, contents: dict[str, Any]) -> None:
        """Refuse contents that don't fit.

        :raises ValueError: something is missing, of another shape or dtype, or no priority
        """
        for name, mine in (("values", self.values), ("largest", self.largest)):
            other = contents.get(name)
            if not isinstance(other, Tensor) or (other.shape, other.dtype) != (mine.shape, mine.dtype):
                raise ValueError(f"priorities: expected {name!r} as {mine.dtype} {list(mine.shape)}")
            if not bool((other.isfinite() & (other >= 0)).all()):
                raise ValueError(f"priorities: expected finite numbers of at least 0 in {name!r}; the file is damaged")

    def take_contents(self, contents: dict[str, Any]) -> None:
        """Take over what :meth:`check_contents` has let pass."""
        self.clear()
        self.values.copy_(contents["values"])
        self.largest.copy_(contents["largest"])
