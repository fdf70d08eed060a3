"""Simple speaker listener: one agent knows the goal and cannot move, the other moves and must be told."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from coterie.envs.particle.base import ParticleEnv
from coterie.envs.particle.rows import Observer, Rows
from coterie.envs.particle.world import (
    MOVES,
    World,
    colour_table,
    continuous_drive,
    discrete_drive,
    goal_colours,
    goal_positions,
    integrate,
)

__all__ = ["SimpleSpeakerListener"]

#: the goal's colour has the second value in one component, and the first in the two others
DIM, BRIGHT = 0.15, 0.65


class SimpleSpeakerListener(ParticleEnv):
    """The agents ``speaker_0`` and ``listener_0``, and three landmarks, one of which is the listener's goal.

    - Observation of the speaker, 3: the goal's colour; of the listener, 11: its velocity, the landmarks relative to it,
      what the speaker said in this step.
    - Actions of the speaker: Discrete(3) or three strengths, the message; of the listener: nothing, left, right, down, up.
    - Reward of both: minus the squared distance from the listener to its goal.

    :param kwargs: as for :class:`~coterie.envs.particle.base.ParticleEnv`, from ``seed`` on

    :raises ValueError: a parameter is out of range
    """

    def __init__(self, num_envs: int = 1, device: torch.device | str = "cpu", **kwargs: Any) -> None:
        super().__init__(
            ["speaker_0", "listener_0"], [3, 11], [3, 5], [3, 5], (1, 3, 1, 3, 1), num_envs, device, **kwargs
        )
        rows = Rows(bodies=1, landmarks=3, speakers=1, channels=3, marks=1)
        pairs = [(row, rows.zero) for row in rows.mark(0) + rows.velocity(0)]
        for j in range(3):
            pairs += zip(rows.landmark(j), rows.position(0), strict=True)
        pairs += [(row, rows.zero) for row in rows.words(0)]
        self._observer = Observer(pairs, self.device)
        self._colours = colour_table(DIM, BRIGHT, self.dtype, self.device)
        self._moves = MOVES.to(self.device, self.dtype)
        self._messages = torch.eye(3, dtype=self.dtype, device=self.device)

    def advance(self, world: World, actions: Tensor) -> tuple[World, Tensor, Tensor]:
        """Pure: one step of physics and speech, then observations and rewards of where it led."""
        if self.continuous_actions:
            words = actions[:, None, :3].permute(2, 1, 0).to(self.dtype)
            drive = continuous_drive(actions[:, None, 3:], self.dtype)
        else:
            words = discrete_drive(actions[:, :1], self._messages)
            drive = discrete_drive(actions[:, 1:], self._moves)
        positions, velocities = integrate(world.positions, world.velocities, drive)
        world = world._replace(positions=positions, velocities=velocities, words=words)
        offset = positions - goal_positions(world)
        rewards = (offset * offset).sum(0).neg().float()  # [1, E]
        return world, self.observe(world), rewards.t().unsqueeze(1).expand(-1, 2, 1)

    def observe(self, world: World) -> Tensor:
        """Pure: observations float32 [E, 14]."""
        return self._observer.show(self._observer.rows(world, goal_colours(world, self._colours)))
