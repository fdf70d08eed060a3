"""Simple tag: slow adversaries hunt fast good agents among obstacles."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from coterie.envs.particle.base import ParticleEnv
from coterie.envs.particle.rows import Observer, Rows
from coterie.envs.particle.world import (
    MOVES,
    SENSITIVITY,
    World,
    contact_force,
    continuous_drive,
    discrete_drive,
    distances,
    integrate,
    limit_speed,
)

__all__ = ["SimpleTag"]


class Build(NamedTuple):
    """What a kind of agent is like."""

    radius: float
    #: force of a full push
    strength: float
    max_speed: float


ADVERSARY = Build(radius=0.075, strength=3.0, max_speed=1.0)
GOOD = Build(radius=0.05, strength=4.0, max_speed=1.3)
OBSTACLE_RADIUS = 0.2
#: obstacles are placed in [-0.9, 0.9), agents in the whole arena
OBSTACLE_RANGE = 0.9
#: what a collision of an adversary with a good agent is worth
PRIZE = 10.0


class SimpleTag(ParticleEnv):
    """Agents ``adversary_0``, ... that hunt ``agent_0``, ..., all of which bump into each other and into obstacles.

    - Observation: own velocity, own position, the obstacles and all others relative to it, the velocities of the other good
      agents; ``2 (1 + num_obstacles + num_adversaries + 2 num_good)`` numbers for an adversary, two fewer for a good agent.
    - Actions: nothing, left, right, down, up, as Discrete(5) or as five strengths. Good agents push harder and may move
      faster.
    - Reward of every adversary: 10 for each pair of an adversary and a good agent that collide, whoever they are.
    - Reward of a good agent: -10 for each adversary that collides with it, less a penalty for leaving the arena, the sum over
      both coordinates of (with ``x`` its distance from the middle) 0 below 0.9, ``10 (x - 0.9)`` from there and
      ``min(exp(2 x - 2), 10)`` from 1 on.

    mpe2's options for a curriculum, partial observability and an end on success are not here; the defaults are its.

    :param num_good: number of good agents
    :param num_adversaries: number of adversaries
    :param num_obstacles: number of obstacles, the landmarks of this task
    :param kwargs: as for :class:`~coterie.envs.particle.base.ParticleEnv`, from ``seed`` on

    :raises ValueError: a parameter is out of range
    """

    def __init__(
        self,
        num_envs: int = 1,
        device: torch.device | str = "cpu",
        *,
        num_good: int = 1,
        num_adversaries: int = 3,
        num_obstacles: int = 2,
        **kwargs: Any,
    ) -> None:
        for key, value, least in (
            ("num_good", num_good, 1),
            ("num_adversaries", num_adversaries, 1),
            ("num_obstacles", num_obstacles, 0),
        ):
            if value < least:
                raise ValueError(f"{key} is {value}; expected at least {least}")
        agents = [f"adversary_{i}" for i in range(num_adversaries)] + [f"agent_{i}" for i in range(num_good)]
        bodies = len(agents)
        seen = 4 + 2 * num_obstacles + 2 * (bodies - 1)
        widths = [seen + 2 * num_good] * num_adversaries + [seen + 2 * (num_good - 1)] * num_good
        sizes = (bodies, num_obstacles, 0, 0, 0)
        super().__init__(agents, widths, [5] * bodies, [5] * bodies, sizes, num_envs, device, **kwargs)
        self.num_good, self.num_adversaries = num_good, num_adversaries
        rows = Rows(*sizes)
        pairs: list[tuple[int, int]] = []
        for i in range(bodies):
            here = rows.position(i)
            others = [j for j in range(bodies) if j != i]
            pairs += [(row, rows.zero) for row in rows.velocity(i) + here]
            for thing in [rows.landmark(j) for j in range(num_obstacles)] + [rows.position(j) for j in others]:
                pairs += zip(thing, here, strict=True)
            pairs += [(row, rows.zero) for j in others if j >= num_adversaries for row in rows.velocity(j)]
        self._observer = Observer(pairs, self.device)
        # what each body is like, [M, 1], and how close two of them collide, [M, M + L, 1]
        builds = [ADVERSARY] * num_adversaries + [GOOD] * num_good
        radius, strength, max_speed = torch.tensor(builds, dtype=torch.float64).T
        radii = torch.cat([radius, torch.full((num_obstacles,), OBSTACLE_RADIUS, dtype=torch.float64)])
        self._strength = strength[:, None].to(self.device, self.dtype)
        self._max_speed = max_speed[:, None].to(self.device, self.dtype)
        self._reach = (radius[:, None] + radii)[..., None].to(self.device, self.dtype)
        self._moves = (MOVES / SENSITIVITY).to(self.device, self.dtype)

    def sample(self) -> World:
        """Draw the first moment of a new episode for every copy: agents in the arena, obstacles away from its edge."""
        world = super().sample()
        return world._replace(landmarks=world.landmarks * OBSTACLE_RANGE)

    def advance(self, world: World, actions: Tensor) -> tuple[World, Tensor, Tensor]:
        """Pure: one step of physics, then observations and rewards of where it led."""
        if self.continuous_actions:
            drive = continuous_drive(actions.view(self.num_envs, -1, 5), self.dtype, self._strength)
        else:
            drive = discrete_drive(actions, self._moves) * self._strength
        force = contact_force(world.positions, self._reach, world.landmarks) + drive
        positions, velocities = integrate(world.positions, world.velocities, force)
        world = world._replace(positions=positions, velocities=limit_speed(velocities, self._max_speed))
        return world, self.observe(world), self._rewards(positions)

    def observe(self, world: World) -> Tensor:
        """Pure: observations float32 [E, state]."""
        return self._observer.show(self._observer.rows(world))

    def _rewards(self, positions: Tensor) -> Tensor:
        """Rewards float32 [E, A, 1], of where the bodies are, [2, M, E]."""
        n = self.num_adversaries
        _, length = distances(positions[:, n:], positions[:, :n])  # [good, adversary, E]
        hits = (length < self._reach[n:, :n]).sum(1)
        away = positions[:, n:].abs()
        beyond = torch.where(away < 1.0, (away - 0.9) * 10.0, (away * 2.0 - 2.0).exp().clamp_max(10.0))
        penalty = torch.where(away < 0.9, 0.0, beyond).sum(0)
        hunters = (hits.sum(0) * PRIZE).expand(n, -1)
        rewards = torch.cat([hunters, hits * -PRIZE - penalty])
        return rewards.float().t().unsqueeze(-1).contiguous()
