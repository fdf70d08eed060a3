"""Observations as differences of rows: one gather, whatever the task."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from coterie.envs.particle.world import World

__all__ = ["Observer", "Rows"]


class Rows:
    """Numbers of the rows of a table that holds everything in a world, one scalar a row.

    Each method returns the rows of one thing; :attr:`zero` is a row of zeros. The table is built by :class:`Observer`.

    :param bodies: M
    :param landmarks: L
    :param speakers: S
    :param channels: C
    :param marks: number of colours, of :data:`COLOURS` components each
    """

    #: components of a colour
    COLOURS = 3

    def __init__(self, bodies: int, landmarks: int, speakers: int, channels: int, marks: int) -> None:
        self._counts = (bodies, bodies, landmarks, speakers, marks)
        depths = (2, 2, 2, channels, self.COLOURS)
        self._depths = depths
        self._starts = [0]
        for count, depth in zip(self._counts, depths, strict=True):
            self._starts.append(self._starts[-1] + count * depth)
        self.zero = self._starts[-1]

    def _of(self, kind: int, i: int) -> list[int]:
        return [self._starts[kind] + k * self._counts[kind] + i for k in range(self._depths[kind])]

    def velocity(self, i: int) -> list[int]:
        """Rows of the velocity of body ``i``."""
        return self._of(0, i)

    def position(self, i: int) -> list[int]:
        """Rows of the position of body ``i``."""
        return self._of(1, i)

    def landmark(self, i: int) -> list[int]:
        """Rows of the position of landmark ``i``."""
        return self._of(2, i)

    def words(self, i: int) -> list[int]:
        """Rows of what the speaking agent ``i`` last said."""
        return self._of(3, i)

    def mark(self, i: int) -> list[int]:
        """Rows of the colour ``i``."""
        return self._of(4, i)


class Observer:
    """Build observations from a list of (row, row to subtract) for each of their entries.

    :param pairs: one pair for each entry of all agents' observations, side by side
    :param device: where the worlds are
    """

    def __init__(self, pairs: Sequence[tuple[int, int]], device: torch.device) -> None:
        self._plus = torch.tensor([plus for plus, _ in pairs], device=device)
        self._minus = torch.tensor([minus for _, minus in pairs], device=device)

    def rows(self, world: World, marks: Tensor | None = None) -> Tensor:
        """Return the entries in the precision of the physics, one a row, [state, E].

        :param marks: the colours [3, marks, E], if the task shows any
        """
        positions = world.positions
        parts = [world.velocities, positions, world.landmarks, world.words]
        parts = parts if marks is None else [*parts, marks]
        table = torch.cat([part.flatten(0, 1) for part in parts] + [positions.new_zeros(1, positions.shape[-1])])
        return table.index_select(0, self._plus) - table.index_select(0, self._minus)

    @staticmethod
    def show(rows: Tensor) -> Tensor:
        """Return the rows [state, E] as observations, float32 [E, state]."""
        return rows.float().t().contiguous()
