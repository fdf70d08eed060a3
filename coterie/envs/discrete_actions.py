"""One discrete choice in place of several, or of numbers, for algorithms that value every choice."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from coterie.agent_tensors import AgentTensors, stack_agents
from coterie.envs.action_reader import ActionReader
from coterie.envs.base import MultiAgentEnv
from coterie.envs.env_wrapper import EnvWrapper
from coterie.envs.guards import group_agents
from coterie.spaces import action_width

__all__ = ["DiscreteActions"]


class DiscreteActions(EnvWrapper):
    """An environment in which every agent has one Discrete action.

    - A MultiDiscrete or MultiBinary action becomes one choice among all combinations; a bounded Box action one among those
      of ``bins`` evenly spaced values of each entry, both bounds included. :meth:`choices` tells what each stands for: the
      last entry changes fastest. Discrete actions are left as they are.
    - The masks of MultiDiscrete actions become masks of the combinations: allowed is what is in each entry.
    - Actions are checked on the environment's device (:class:`~coterie.envs.action_reader.ActionReader`), off the CPU without
      waiting for it.

    :param env: the environment
    :param bins: values of each entry of a Box, at least 2: a number, or one for each agent that has a Box
    :param max_choices: an agent with more combinations is refused

    :raises TypeError: ``env`` is no :class:`MultiAgentEnv`, or an agent's actions are of another kind
    :raises ValueError: bad or missing ``bins``, an unbounded Box, or too many combinations; the message names the agent
    """

    def __init__(self, env: MultiAgentEnv, bins: int | Mapping[str, int] = 5, max_choices: int = 1024) -> None:
        super().__init__(env)
        if not _is_count(max_choices, 1):
            raise ValueError(f"max_choices: expected an integer of at least 1, got {max_choices!r}")
        bins_by_agent = self._bins_of(bins)
        keys = {name: (env.action_spaces[name], bins_by_agent.get(name)) for name in self.possible_agents}
        device = torch.empty(0, device=env.device).device  # with its index
        self._groups = [_Combinations(names, *keys[names[0]], max_choices, device) for names in group_agents(keys)]
        spaces_by_agent: dict[str, gymnasium.Space] = {n: group.space for group in self._groups for n in group.names}
        self.action_spaces = {name: spaces_by_agent[name] for name in self.possible_agents}
        self._columns = {
            group.names: torch.tensor([self.possible_agents.index(name) for name in group.names], device=device)
            for group in self._groups
        }
        deferred = device.type != "cpu"
        self._reader = ActionReader(self.possible_agents, self.action_spaces, self.num_envs, device, deferred)

    def choices(self, agent: str) -> Tensor:
        """What each choice of ``agent`` stands for in the environment that is changed, ``[choices, entries]``."""
        return next(group.table.clone() for group in self._groups if agent in group.names)

    def reset(self) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
        self._reader.flush()
        states, infos = self.env.reset()
        return states, self._with_joint_masks(infos)

    def step(
        self, actions: Mapping[str, Tensor]
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor], Mapping[str, Tensor], Mapping[str, Tensor], dict[str, Any]]:
        """Advance every copy by one step and return ``(next_states, rewards, terminated, truncated, infos)``.

        :raises EnvError: an agent is missing or unknown, or an action has the wrong type, shape, device or value
        """
        flat = self._reader.read(actions)  # [E, A]
        chosen = {
            group.names: group.table[flat if len(self._groups) == 1 else flat[:, self._columns[group.names]]]
            for group in self._groups
        }
        *results, infos = self.env.step(AgentTensors(chosen))
        return (*results, self._with_joint_masks(infos))  # type: ignore[return-value]

    def close(self) -> None:
        """Make the checks of actions that are still due, and close the environment."""
        self.env.close()
        self._reader.flush()

    def _bins_of(self, bins: int | Mapping[str, int]) -> dict[str, int]:
        """The bins of each agent that has a Box."""
        boxes = [name for name in self.possible_agents if isinstance(self.env.action_spaces[name], spaces.Box)]
        if not isinstance(bins, Mapping):
            if not _is_count(bins, 2):
                raise ValueError(f"bins: expected an integer of at least 2, or a dict of them by agent, got {bins!r}")
            return dict.fromkeys(boxes, bins)
        for name, number in bins.items():
            if name not in self.possible_agents:
                raise ValueError(f"bins: unknown agent {name!r}; expected some of {boxes}")
            if name not in boxes:
                raise ValueError(
                    f"bins: agent {name!r} has {self.env.action_spaces[name]} actions; bins are for Box actions, leave it out"
                )
            if not _is_count(number, 2):
                raise ValueError(
                    f"bins: expected an integer of at least 2 for agent {name!r}, both bounds being among the values, got "
                    f"{number!r}"
                )
        for name in boxes:
            if name not in bins:
                raise ValueError(f"bins: nothing for agent {name!r}, which has {self.env.action_spaces[name]} actions")
        return dict(bins)

    def _with_joint_masks(self, infos: dict[str, Any]) -> dict[str, Any]:
        """``infos`` with masks of combinations; a dict of its own where any is changed."""
        found = [key for key in ("action_masks", "final_action_masks") if infos.get(key) is not None]
        return {**infos, **{key: self._joint(infos[key]) for key in found}} if found else infos

    def _joint(self, masks: Mapping[str, Tensor]) -> AgentTensors:
        stacks = {}
        for group in self._groups:
            names = tuple(name for name in group.names if name in masks)
            if names:
                stacks[names] = group.joint_masks(stack_agents(masks, names))
        return AgentTensors(stacks)


class _Combinations:
    """The combinations among which agents of one action space choose.

    :param names: the agents
    :param space: their action space
    :param bins: values of each entry of a Box
    :param most: how many combinations there may be
    :param device: where the table goes
    """

    def __init__(
        self, names: tuple[str, ...], space: gymnasium.Space, bins: int | None, most: int, device: torch.device
    ) -> None:
        self.names = names
        #: the space of the choice
        self.space: spaces.Discrete
        try:
            entries = action_width(space)
        except TypeError as error:
            raise TypeError(f"agent {names[0]!r}: {error}") from error
        if isinstance(space, spaces.Discrete):
            self.space, self._sizes = space, [int(space.n)]
            self.table = torch.arange(int(space.n), device=device).unsqueeze(-1)
            return
        values: list[Tensor]
        hint = ""
        if isinstance(space, spaces.MultiDiscrete):
            self._sizes = [int(n) for n in space.nvec.reshape(-1)]
        elif isinstance(space, spaces.Box):
            assert bins is not None
            if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
                raise ValueError(
                    f"agent {names[0]!r} has unbounded actions, {space}; evenly spaced values need bounds: wrap the "
                    "environment so that its Box has them"
                )
            self._sizes = [bins] * entries
            hint = f"{bins} bins for each of {entries} entries; take fewer bins, or "
        else:
            self._sizes = [2] * entries
        number = prod(self._sizes)
        if number > most:
            raise ValueError(
                f"agent {names[0]!r} has {number} combinations of {space} actions, more than max_choices {most}: {hint}raise "
                "max_choices, or learn with an algorithm that takes such actions as they are"
            )
        if isinstance(space, spaces.Box):
            # in float64, and then as an environment rounds the bounds
            low, high = (torch.from_numpy(bound.astype(np.float64).reshape(-1)) for bound in (space.low, space.high))
            steps = torch.arange(self._sizes[0], dtype=torch.float64) / (self._sizes[0] - 1)
            values = [torch.lerp(a, b, steps).float() for a, b in zip(low, high, strict=True)]
        else:
            values = [torch.arange(n) for n in self._sizes]
        #: what each choice stands for, ``[choices, entries]``
        self.table = torch.cartesian_prod(*values).reshape(number, entries).to(device)
        self.space = spaces.Discrete(number)

    def joint_masks(self, masks: Tensor) -> Tensor:
        """Turn bool ``[E, A, sum of sizes]`` into ``[E, A, choices]``."""
        joint, *rest = masks.split(self._sizes, dim=-1)
        for part in rest:
            joint = (joint.unsqueeze(-1) & part.unsqueeze(-2)).flatten(-2)
        return joint


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and int(value) >= least
