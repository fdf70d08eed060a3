"""A test of memory, in torch: what is asked for at the end was shown only at the beginning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from coterie.agent_tensors import AgentTensors
from coterie.envs.action_reader import ActionReader
from coterie.envs.base import EnvError, MultiAgentEnv

__all__ = ["Recall"]


class Recall(MultiAgentEnv):
    """E copies of a game in which each of the agents ``agent_0``, ``agent_1``, ... must remember a cue.

    At the first of ``delay + 1`` steps every agent sees its own cue, one-hot; afterwards it sees zeros, and a 1 in the last
    element at the last step. There it earns 1 if its action is its cue, and nothing otherwise; actions before have no
    effect. The best return is 1 for each agent; without memory none is better than ``1 / cues`` on average.

    - Observations: ``cues + 1`` numbers. Shared state: all agents' cues, one-hot, and the fraction of the episode played.
    - Actions: ``Discrete(cues)``. Episodes terminate.

    :param num_envs: number of copies E
    :param device: where everything lives
    :param seed: seed of the cues; None draws one
    :param agents: number of agents
    :param cues: number of cues
    :param delay: steps between the cue and the answer

    :raises ValueError: a parameter is out of range
    """

    def __init__(
        self,
        num_envs: int = 1,
        device: torch.device | str = "cpu",
        seed: int | None = None,
        *,
        agents: int = 2,
        cues: int = 2,
        delay: int = 6,
    ) -> None:
        for key, value, least in (
            ("num_envs", num_envs, 1),
            ("agents", agents, 1),
            ("cues", cues, 2),
            ("delay", delay, 1),
        ):
            if value < least:
                raise ValueError(f"{key} is {value}; expected at least {least}")
        self.num_envs = num_envs
        self.cues = cues
        self.delay = delay
        self.device = torch.empty(0, device=device).device  # with its index
        self._generator = torch.Generator(self.device)
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)
        self.possible_agents = [f"agent_{i}" for i in range(agents)]
        self.observation_spaces: dict[str, gymnasium.Space] = dict.fromkeys(
            self.possible_agents, spaces.Box(0.0, 1.0, (cues + 1,), np.float32)
        )
        self.action_spaces: dict[str, gymnasium.Space] = dict.fromkeys(self.possible_agents, spaces.Discrete(cues))
        self.shared_observation_spaces: dict[str, gymnasium.Space] = dict.fromkeys(
            self.possible_agents, spaces.Box(0.0, 1.0, (agents * cues + 1,), np.float32)
        )
        deferred = self.device.type != "cpu"
        self._reader = ActionReader(self.possible_agents, self.action_spaces, num_envs, self.device, deferred)
        self._cues: Tensor | None = None  # [E, A]
        self._age = 0  # all copies are at the same step

    def reset(self) -> tuple[AgentTensors, dict[str, Any]]:
        self._reader.flush()
        self._begin()
        return self._observe(), {}

    def _begin(self) -> None:
        shape = (self.num_envs, len(self.possible_agents))
        self._cues = torch.randint(self.cues, shape, generator=self._generator, device=self.device)
        self._age = 0

    @torch.no_grad()
    def step(
        self, actions: Mapping[str, Tensor]
    ) -> tuple[AgentTensors, AgentTensors, AgentTensors, AgentTensors, dict[str, Any]]:
        answers, cues = self._reader.read(actions), self._present()
        over = self._age == self.delay
        rewards = (answers == cues).float() if over else torch.zeros(cues.shape, device=self.device)
        self._age += 1
        infos: dict[str, Any] = {}
        if over:
            infos = {"final_states": self._observe(), "final_shared_states": self.state()}
            self._begin()
        ended = torch.full(cues.shape, over, device=self.device)
        flags = self._each(ended), self._each(torch.zeros_like(ended))
        return self._observe(), self._each(rewards), *flags, infos

    def state(self) -> Tensor:
        """Return the shared state ``[E, agents * cues + 1]``."""
        shown = torch.nn.functional.one_hot(self._present(), self.cues).flatten(1).float()
        played = torch.full((self.num_envs, 1), self._age / (self.delay + 1), device=self.device)
        return torch.cat([shown, played], dim=1)

    def close(self) -> None:
        """Make the checks of actions that are still due."""
        self._reader.flush()

    def get_state(self) -> dict[str, Any]:
        """Return what decides the future, as a copy: cues int64 ``[E, agents]``, the step, and the generator's state."""
        return {"cues": self._present().clone(), "age": self._age, "generator": self._generator.get_state()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        shape = torch.Size((self.num_envs, len(self.possible_agents)))
        if set(state) != {"cues", "age", "generator"} or state["cues"].shape != shape:
            raise EnvError(f"expected what get_state() returned for {list(shape)} cues, got the keys {sorted(state)}")
        self._cues = state["cues"].to(self.device, copy=True)
        self._age = int(state["age"])
        self._generator.set_state(state["generator"])

    def _present(self) -> Tensor:
        if self._cues is None:
            raise EnvError(f"{type(self).__name__} has no episode yet; call reset() first")
        return self._cues

    def _observe(self) -> AgentTensors:
        cues = self._present()
        seen = torch.zeros(*cues.shape, self.cues + 1, device=self.device)
        if self._age == 0:
            seen[..., : self.cues] = torch.nn.functional.one_hot(cues, self.cues)
        if self._age == self.delay:
            seen[..., -1] = 1.0
        return AgentTensors.single(self.possible_agents, seen)

    def _each(self, values: Tensor) -> AgentTensors:
        return AgentTensors.single(self.possible_agents, values.unsqueeze(-1))
