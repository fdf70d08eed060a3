"""A small environment whose masks and episode ends follow from each copy's age, for tests of what agents do with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from coterie.envs import MultiAgentEnv

OFF: Any = {"write_interval": 0, "checkpoint_interval": 0}


def box(size: int) -> spaces.Box:
    return spaces.Box(-np.inf, np.inf, (size,), np.float32)


class Toy(MultiAgentEnv):
    """Copy e's episodes last ``lengths[e]`` steps; observations and rewards are random and owe nothing to the actions.

    Observations are reward-like numbers with the copy's age in front. ``masks(age [E])`` gives what infos carry beside the
    states of these ages. Even copies terminate, odd ones are truncated.

    :param earn: ``(age [E], actions) -> rewards by agent``; random ones by default
    """

    def __init__(
        self,
        names: Sequence[str] = ("a", "b"),
        lengths: Sequence[int] = (5, 7, 4),
        observations: int | Mapping[str, int] = 3,
        actions: gymnasium.Space | Mapping[str, gymnasium.Space] | None = None,
        masks: Callable[[Tensor], dict[str, Any]] | None = None,
        earn: Callable[[Tensor, Mapping[str, Tensor]], dict[str, Tensor]] | None = None,
        state: int = 4,
        own_state: bool = True,
        seed: int = 0,
    ) -> None:
        self.possible_agents = list(names)
        self.num_envs = len(lengths)
        self.device = torch.device("cpu")
        sizes = observations if isinstance(observations, Mapping) else dict.fromkeys(names, observations)
        self.observation_spaces: dict[str, gymnasium.Space] = {uid: box(sizes[uid]) for uid in names}
        chosen = actions if isinstance(actions, Mapping) else dict.fromkeys(names, actions or spaces.Discrete(4))
        self.action_spaces: dict[str, gymnasium.Space] = dict(chosen)
        self.shared_observation_spaces: dict[str, gymnasium.Space] = {uid: box(state) for uid in names}
        self.lengths = torch.tensor(lengths)
        self.masks = masks or (lambda age: {})
        self.earn = earn
        self.state_size, self.own_state = state, own_state
        self.generator = torch.Generator().manual_seed(seed)
        self.taken: list[dict[str, Tensor]] = []

    def draw(self, width: int) -> Tensor:
        return torch.randn(self.num_envs, width, generator=self.generator)

    def observe(self) -> dict[str, Tensor]:
        states = {uid: self.draw(int(np.prod(s.shape or (1,)))) for uid, s in self.observation_spaces.items()}
        for state in states.values():
            state[:, 0] = self.age
        self.shared = self.draw(self.state_size)
        return states

    def reset(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        self.age = torch.zeros(self.num_envs, dtype=torch.int64)
        self.taken = []
        return self.observe(), self.masks(self.age)

    def state(self) -> Tensor:
        if not self.own_state:
            raise NotImplementedError("no state")
        return self.shared

    def step(self, actions: Mapping[str, Tensor]) -> Any:
        self.taken.append({uid: action.clone() for uid, action in actions.items()})
        rewards = {uid: self.draw(1) for uid in self.possible_agents}
        if self.earn is not None:
            rewards = self.earn(self.age, actions)
        self.age = self.age + 1
        over = self.age == self.lengths
        infos: dict[str, Any] = {}
        if over.any():
            infos = {"final_states": self.observe(), "final_shared_states": self.draw(self.state_size)}
        self.age = torch.where(over, 0, self.age)
        even = torch.arange(self.num_envs) % 2 == 0
        terminated = {uid: (over & even).unsqueeze(1) for uid in self.possible_agents}
        truncated = {uid: (over & ~even).unsqueeze(1) for uid in self.possible_agents}
        return self.observe(), rewards, terminated, truncated, {**infos, **self.masks(self.age)}
