"""Simple reference: two agents move and talk, and each knows only where the other one should go."""

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

__all__ = ["SimpleReference"]

#: a goal's colour has the second value in one component, and the first in the two others
DIM, BRIGHT = 0.25, 0.75
CHANNELS = 10


class SimpleReference(ParticleEnv):
    """The agents ``agent_0`` and ``agent_1``, and three landmarks; ``goals[:, i]`` is what i sees and the other must reach.

    - Observation, 21: own velocity, the landmarks relative to oneself, the colour of the other's goal, what the other
      said in this step.
    - Actions: Discrete(50), ``5 word + move``, or fifteen strengths, five to move and ten to speak.
    - Reward of agent i: ``(1 - local_ratio) shared + local_ratio own``, with ``own`` minus the distance from the *other* agent
      to the goal that i sees, and ``shared`` the mean of both.

    :param local_ratio: weight of the agent's own part of the reward
    :param kwargs: as for :class:`~coterie.envs.particle.base.ParticleEnv`, from ``seed`` on

    :raises ValueError: a parameter is out of range
    """

    def __init__(
        self, num_envs: int = 1, device: torch.device | str = "cpu", *, local_ratio: float = 0.5, **kwargs: Any
    ) -> None:
        if not 0.0 <= local_ratio <= 1.0:
            raise ValueError(f"local_ratio is {local_ratio}; expected 0 to 1")
        agents, sizes = ["agent_0", "agent_1"], (2, 3, 2, CHANNELS, 2)
        super().__init__(agents, [21, 21], [5 * CHANNELS] * 2, [5 + CHANNELS] * 2, sizes, num_envs, device, **kwargs)
        self.local_ratio = local_ratio
        rows = Rows(bodies=2, landmarks=3, speakers=2, channels=CHANNELS, marks=2)
        pairs: list[tuple[int, int]] = []
        for i in range(2):
            pairs += [(row, rows.zero) for row in rows.velocity(i)]
            for j in range(3):
                pairs += zip(rows.landmark(j), rows.position(i), strict=True)
            pairs += [(row, rows.zero) for row in rows.mark(i) + rows.words(1 - i)]
        self._observer = Observer(pairs, self.device)
        # what each of the 50 choices does: it moves by its remainder, and says its quotient
        self._colours = colour_table(DIM, BRIGHT, self.dtype, self.device)
        self._moves = MOVES.repeat(CHANNELS, 1).to(self.device, self.dtype)
        self._messages = torch.eye(CHANNELS, dtype=self.dtype, device=self.device).repeat_interleave(5, dim=0)

    def advance(self, world: World, actions: Tensor) -> tuple[World, Tensor, Tensor]:
        """Pure: one step of physics and speech, then observations and rewards of where it led."""
        if self.continuous_actions:
            strengths = actions.view(self.num_envs, 2, -1)
            words = strengths[..., 5:].permute(2, 1, 0).to(self.dtype)
            drive = continuous_drive(strengths[..., :5], self.dtype)
        else:
            words = discrete_drive(actions, self._messages)
            drive = discrete_drive(actions, self._moves)
        positions, velocities = integrate(world.positions, world.velocities, drive)
        world = world._replace(positions=positions, velocities=velocities, words=words)
        offset = positions.flip(1) - goal_positions(world)  # of the other agent from the goal that this one sees
        own = (offset * offset).sum(0).sqrt().neg()
        rewards = own.mean(0) * (1.0 - self.local_ratio) + own * self.local_ratio
        return world, self.observe(world), rewards.float().t().unsqueeze(-1).contiguous()

    def observe(self, world: World) -> Tensor:
        """Pure: observations float32 [E, 42]."""
        return self._observer.show(self._observer.rows(world, goal_colours(world, self._colours)))
