"""Simple spread: agents cover landmarks without bumping into each other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from coterie.envs.particle.base import ParticleEnv
from coterie.envs.particle.rows import Observer, Rows
from coterie.envs.particle.world import (
    MOVES,
    World,
    contact_force,
    continuous_drive,
    discrete_drive,
    integrate,
)

__all__ = ["SimpleSpread"]

#: two agents closer than this (the sum of their radii) collide
REACH = 0.15 + 0.15


class SimpleSpread(ParticleEnv):
    """N agents and N landmarks; the agents must share the landmarks out without talking.

    - Observation, 6 N: own velocity, own position, all landmarks and all others relative to it, 2 (N - 1) zeros (what the
      others say: nothing).
    - Actions: nothing, left, right, down, up, as Discrete(5) or as five strengths.
    - Reward of agent i: ``(1 - local_ratio) shared + local_ratio own``, with ``shared`` minus the sum over landmarks of the
      distance to the nearest agent, and ``own`` minus the number of agents that i collides with.

    :param N: number of agents, and of landmarks
    :param local_ratio: weight of the agent's own part of the reward
    :param kwargs: as for :class:`~coterie.envs.particle.base.ParticleEnv`, from ``seed`` on

    :raises ValueError: a parameter is out of range
    """

    def __init__(
        self,
        num_envs: int = 1,
        device: torch.device | str = "cpu",
        *,
        N: int = 3,
        local_ratio: float = 0.5,
        **kwargs: Any,
    ) -> None:
        if N < 1:
            raise ValueError(f"N is {N}; expected at least 1")
        if not 0.0 <= local_ratio <= 1.0:
            raise ValueError(f"local_ratio is {local_ratio}; expected 0 to 1")
        agents = [f"agent_{i}" for i in range(N)]
        super().__init__(agents, [6 * N] * N, [5] * N, [5] * N, (N, N, 0, 0, 0), num_envs, device, **kwargs)
        self.local_ratio = local_ratio
        rows = Rows(N, N, 0, 0, 0)
        pairs: list[tuple[int, int]] = []
        for i in range(N):
            here = rows.position(i)
            pairs += [(row, rows.zero) for row in rows.velocity(i) + here]
            for j in range(N):
                pairs += zip(rows.landmark(j), here, strict=True)
            for j in range(N):
                pairs += zip(rows.position(j), here, strict=True) if j != i else []
            pairs += [(rows.zero, rows.zero)] * (2 * (N - 1))
        self._observer = Observer(pairs, self.device)
        self._moves = MOVES.to(self.device, self.dtype)

    def advance(self, world: World, actions: Tensor) -> tuple[World, Tensor, Tensor]:
        """Pure: one step of physics, then observations and rewards of where it led."""
        if self.continuous_actions:
            drive = continuous_drive(actions.view(self.num_envs, -1, 5), self.dtype)
        else:
            drive = discrete_drive(actions, self._moves)
        force = contact_force(world.positions, REACH) + drive
        positions, velocities = integrate(world.positions, world.velocities, force)
        world = world._replace(positions=positions, velocities=velocities)
        rows = self._observer.rows(world)
        return world, self._observer.show(rows), self._rewards(rows)

    def observe(self, world: World) -> Tensor:
        """Pure: observations float32 [E, 6 N N]."""
        return self._observer.show(self._observer.rows(world))

    def _rewards(self, rows: Tensor) -> Tensor:
        """Rewards float32 [E, N, 1], of the offsets that the observations hold: N landmarks and N - 1 others."""
        n = len(self.possible_agents)
        offsets = rows.view(n, 3 * n, 2, -1)[:, 2 : 2 * n + 1]  # of [N, entry / 2, x or y, E], those with a length
        length = (offsets * offsets).sum(2).sqrt()  # [N, 2 N - 1, E]
        shared = length[:, :n].amin(0).sum(0)
        bumps = (length[:, n:] < REACH).sum(1)
        rewards: Tensor = shared * (self.local_ratio - 1.0) - bumps * self.local_ratio
        return rewards.float().t().unsqueeze(-1).contiguous()
