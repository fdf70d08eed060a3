"""A parallel environment whose numbers say where they come from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces


class Scripted:
    """Observations are [copy, episode, step, agent]; rewards are 100 * episode + step; ends after ``length`` steps."""

    def __init__(
        self,
        copy: int = 0,
        length: int = 3,
        end: str = "terminated",
        names: tuple[str, ...] = ("ada", "bob"),
        widths: tuple[int, ...] | None = None,
        action_space: spaces.Space | None = None,
        spoil: Callable[[int, list[Any]], Any] | None = None,
        leave: dict[str, int] | None = None,
    ) -> None:
        self.copy, self.length, self.end = copy, length, end
        self.possible_agents = list(names)
        self.agents: list[str] = []
        self.widths = dict(zip(names, widths or (4,) * len(names), strict=True))
        self.box = {n: spaces.Box(-np.inf, np.inf, (w,), np.float32) for n, w in self.widths.items()}
        self.choices = spaces.Discrete(3) if action_space is None else action_space
        self.spoil = spoil
        self.leave = leave or {}
        self.episode, self.steps, self.closed = -1, 0, 0
        self.seeds: list[int | None] = []
        self.actions: list[dict[str, Any]] = []
        self.buffers = {n: np.zeros(w, np.float32) for n, w in self.widths.items()}

    def observation_space(self, agent: str) -> spaces.Space:
        return self.box[agent]

    def action_space(self, agent: str) -> spaces.Space:
        return self.choices

    def observations(self, names: list[str]) -> dict[str, np.ndarray]:
        """Return the same arrays each time, rewritten."""
        for name in names:
            numbers = [self.copy, self.episode, self.steps, self.possible_agents.index(name)]
            self.buffers[name][:] = (numbers * 3)[: self.widths[name]]
        return {name: self.buffers[name] for name in names}

    def reset(self, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        self.seeds.append(seed)
        self.episode += 1
        self.steps = 0
        self.agents = self.possible_agents[:]
        return self.observations(self.agents), {name: {} for name in self.agents}

    def step(self, actions: dict[str, Any]) -> Any:
        self.actions.append(dict(actions))
        self.steps += 1
        over = self.steps >= self.length
        acting = self.agents
        ends = {n: over or self.leave.get(n) == self.steps for n in acting}
        result: list[Any] = [
            self.observations(acting),
            dict.fromkeys(acting, 100.0 * self.episode + self.steps),
            {n: ends[n] and (self.end == "terminated" or not over) for n in acting},
            dict.fromkeys(acting, over and self.end == "truncated"),
            {n: {} for n in acting},
        ]
        self.agents = [] if over else [n for n in acting if not ends[n]]
        return tuple(result) if self.spoil is None else self.spoil(self.steps, result)

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def scripted() -> type[Scripted]:
    """Return the class of the scripted environment."""
    return Scripted
