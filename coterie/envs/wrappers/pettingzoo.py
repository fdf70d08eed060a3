"""Copies of a PettingZoo parallel environment, stepped one after the other in this process."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from pettingzoo.utils.env import AECEnv, ParallelEnv
from torch import Tensor

from coterie.agent_tensors import AgentTensors
from coterie.envs.base import EnvError, MultiAgentEnv
from coterie.envs.guards import ActionGuard, check_finite, check_state_finite
from coterie.envs.wrappers.action_masks import ActionMasks
from coterie.envs.wrappers.parallel_copy import Buffers, ParallelCopy, Team
from coterie.envs.wrappers.turn_based import TurnBasedTeam

__all__ = ["PettingZooEnv"]

logger = logging.getLogger(__name__)


class PettingZooEnv(MultiAgentEnv):
    """E copies of a PettingZoo ``ParallelEnv``, or of anything that steps like one.

    - Observations are flattened to float32 (:mod:`coterie.spaces`): Box of any rank, Discrete, MultiDiscrete,
      MultiBinary, and Dict and Tuple of these.
    - Actions outside a Box are clipped (:class:`~coterie.envs.guards.ActionGuard`); a Discrete or MultiDiscrete action
      counts from 0 whatever the space's ``start``.
    - Action masks are read from ``observation["action_mask"]`` of a Dict observation, which then leaves the observation
      space, and from ``info["action_mask"]``, into ``infos["action_masks"]``; see
      :class:`~coterie.envs.wrappers.action_masks.ActionMasks`. Masks that come in infos show when they first come:
      until then ``infos`` has none for that agent.
    - :meth:`state` is the environment's own, flattened, or all agents' observations one after the other where it has
      none (:attr:`has_own_state`).
    - ``seed`` goes to the first :meth:`reset` of copy 0 as it is; the other copies get seeds derived from it.
    - An agent that is absent, before it arrives or after it has left its team, has zero observations and rewards
      whatever the environment reports, and is ``terminated``. While any agent is absent, ``infos["active_masks"]`` says
      who acts next. An episode is over when nobody is left in the game.
    - With environments that are played in turn (:class:`~coterie.envs.wrappers.turn_based.TurnBasedTeam`), one agent of
      a copy is active, and ``infos["waiting_masks"]`` names the others that are in the game.
    - Where a time limit struck, ``infos["final_active_masks"]`` is there if somebody is not to act on the last states, and
      ``infos["final_action_masks"]`` if there are masks. A mask that allows nothing to an agent whose episode is over is taken
      for none.
    - ``infos["env_infos"]`` lists what the copies reported with these states, and ``infos["final_env_infos"]`` what
      they reported at the end of an episode (None for the others); each is there only if a copy reported something.
      They are the environments' own objects.

    :param envs: the copies, not shared with anyone else
    :param device: where returned tensors live
    :param seed: what the copies' seeds derive from; None leaves the seeding to the environments

    :raises TypeError: a space is not supported, or actions that are neither Discrete nor MultiDiscrete have a mask
    :raises EnvError: the copies differ in agents or spaces
    """

    def __init__(self, envs: Sequence[Any], *, device: torch.device | str = "cpu", seed: int | None = None) -> None:
        self.envs = list(envs)
        self.num_envs = len(self.envs)
        self.device = torch.device(device)
        self.possible_agents = _possible_agents(self.envs[0])
        observation_spaces, self.action_spaces = _common_spaces(self.envs, self.possible_agents)
        self._team = Team(observation_spaces)
        self.observation_spaces = self._team.spaces
        self._masks = ActionMasks(self.action_spaces, self._team.masked, self.num_envs)
        self._in_turn = isinstance(self.envs[0], TurnBasedTeam)
        self._names = tuple(self.possible_agents)
        self._on_cpu = self.device.type == "cpu"
        seeds = _derive_seeds(seed, self.num_envs)
        self._copies = [ParallelCopy(self.envs[i], i, self._team, seeds[i]) for i in range(self.num_envs)]
        self._guard = ActionGuard(self.action_spaces, self.num_envs, torch.device("cpu"))
        self._age = 0  # steps since reset(), for messages
        self._states: AgentTensors | None = None
        self._shared: Tensor | None = None
        self._closed = False
        self.has_own_state = _may_have_state(self.envs[0])
        self._state_width = 0
        space = self._find_state_space()
        self.shared_observation_spaces = dict.fromkeys(self.possible_agents, space)

    def reset(self) -> tuple[AgentTensors, dict[str, Any]]:
        self._age = 0
        buffers = self._team.new_buffers(self.num_envs)
        for copy in self._copies:
            copy.reset(buffers)
        infos: dict[str, Any] = {}
        return self._publish(buffers, infos), infos

    def step(
        self, actions: Mapping[str, Tensor]
    ) -> tuple[AgentTensors, AgentTensors, AgentTensors, AgentTensors, dict[str, Any]]:
        if self._states is None:
            raise EnvError("step() was called before reset()")
        self._age += 1
        choices = self._env_actions(actions)
        buffers = self._team.new_buffers(self.num_envs)
        rows = [copy.step(choice, buffers) for copy, choice in zip(self._copies, choices, strict=True)]
        earned, terminated, truncated, over = zip(*rows, strict=True)

        infos: dict[str, Any] = {}
        # [..., None] before they become tensors: NumPy's views cost a fraction of torch's
        rewards = self._stack(np.array(earned, dtype=np.float32)[..., None])
        if True in over:
            ended = [copy for copy, ends in zip(self._copies, over, strict=True) if ends]
            self._begin_again(ended, np.array(terminated), buffers, infos)
        states = self._publish(buffers, infos)
        terms = self._stack(np.array(terminated, dtype=np.bool_)[..., None])
        truncs = self._stack(np.array(truncated, dtype=np.bool_)[..., None])
        return states, rewards, terms, truncs, infos

    def state(self) -> Tensor:
        if self._states is None:
            raise EnvError("state() was called before reset()")
        if self._shared is None:
            self._shared = self._own_states(self._copies) if self.has_own_state else self._joined_states(self._states)
        return self._shared

    def render(self) -> Any:
        """Return what copy 0 renders."""
        return self.envs[0].render()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            for env in self.envs:
                env.close()

    def _env_actions(self, actions: Mapping[str, Tensor]) -> list[dict[str, Any]]:
        """Return each copy's actions by agent, in the types that their spaces sample."""
        choices: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for names, stack in self._guard(actions, f"step {self._age}"):
            space = self.action_spaces[names[0]]
            values = stack.numpy()
            if isinstance(space, spaces.Discrete):
                values = values[..., 0] if space.start == 0 else values[..., 0] + space.start
            elif isinstance(space, spaces.MultiDiscrete):
                values = (
                    values.reshape(values.shape[:2] + space.shape) + space.start
                )  # a copy: the environment may write
                values = values.astype(space.dtype, copy=False)
            else:
                values = values.reshape(values.shape[:2] + (space.shape or ())).astype(space.dtype, copy=False)
            for choice, row in zip(choices, values, strict=True):
                choice.update(zip(names, row, strict=True))
        return choices

    def _begin_again(
        self, over: list[ParallelCopy], terminated: NDArray[np.bool_], buffers: Buffers, infos: dict[str, Any]
    ) -> None:
        """Reset the copies whose episode is over; what they showed last goes into ``infos``.

        :param terminated: who has died, ``[E, A]``
        """
        final = self._by_group({group: buffer.copy() for group, buffer in buffers.items()})
        check_finite(final, "observation", f"step {self._age}")
        infos["final_states"] = final
        if self.has_own_state:
            infos["final_shared_states"] = self._own_states(over)
        else:  # who dies as the time of others runs out is not there with them at the end
            dead = terminated & ~terminated.all(axis=1, keepdims=True)
            infos["final_shared_states"] = self._joined(final, dead)
        reported = [copy.infos if copy in over else None for copy in self._copies]
        if any(map(_says_something, reported)):
            infos["final_env_infos"] = reported
            for copy in over:
                copy.read_info_masks()
            self._masks.admit(over)
        self._describe_last(over, infos)
        for copy in over:
            for buffer in buffers.values():
                buffer[copy.index] = 0.0
            copy.reset(buffers)

    def _describe_last(self, over: list[ParallelCopy], infos: dict[str, Any]) -> None:
        """Say what the last states would have allowed to whom, where a time limit struck."""
        struck = [copy for copy in over if True in copy.cut_off]
        if not struck:
            return
        if not all(all(copy.last_alive) for copy in struck):
            active = np.zeros((self.num_envs, len(self._names), 1), dtype=np.bool_)
            for copy in struck:
                active[copy.index, :, 0] = copy.last_alive
            infos["final_active_masks"] = self._stack(active)
        if self._masks.names:
            infos["final_action_masks"] = self._by_group(self._masks.collect_last(struck))

    def _publish(self, buffers: Buffers, infos: dict[str, Any]) -> AgentTensors:
        """Return the observations that the next actions answer to, and add to ``infos`` what describes them."""
        self._states = self._by_group(buffers)
        self._shared = None
        check_finite(self._states, "observation", f"step {self._age}")
        if self._in_turn or not all(copy.complete for copy in self._copies):
            infos["active_masks"] = self._stack(np.array([copy.alive for copy in self._copies])[..., None])
        if self._in_turn:
            infos["waiting_masks"] = self._stack(np.array([copy.waiting for copy in self._copies])[..., None])
        reported = [copy.infos for copy in self._copies]
        if any(map(_says_something, reported)):
            infos["env_infos"] = reported
            for copy in self._copies:
                copy.read_info_masks()
            self._masks.admit(self._copies)
        if self._masks.names:
            infos["action_masks"] = self._by_group(self._masks.collect(self._copies))
        return self._states

    def _by_group(self, arrays: Mapping[tuple[str, ...], NDArray[Any]]) -> AgentTensors:
        return AgentTensors({group: self._tensor(array) for group, array in arrays.items()})

    def _stack(self, values: NDArray[Any]) -> AgentTensors:
        """Wrap one number ``[E, A, 1]`` for each agent."""
        return AgentTensors({self._names: self._tensor(values)})

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(array)
        return tensor if self._on_cpu else tensor.to(self.device)

    def _joined_states(self, states: AgentTensors) -> Tensor:
        """Return the present observations side by side; zeros for absent agents, also for what they saw as they left."""
        if all(copy.complete for copy in self._copies):
            return states.join(self.possible_agents)
        return self._joined(states, ~np.array([copy.present for copy in self._copies]))

    def _joined(self, states: AgentTensors, absent: NDArray[np.bool_]) -> Tensor:
        """Return observations side by side, with zeros where an agent is absent (``[E, A]``)."""
        names = self.possible_agents
        if not absent.any():
            return states.join(names)
        mask = self._tensor(absent)
        return torch.cat([states[n].masked_fill(mask[:, i : i + 1], 0.0) for i, n in enumerate(names)], dim=1)

    def _own_states(self, copies: list[ParallelCopy]) -> Tensor:
        """Return the environments' states ``[E, state]``; zeros for those that are not among ``copies``."""
        rows = np.zeros((self.num_envs, self._state_width), dtype=np.float32)
        for copy in copies:
            rows[copy.index] = copy.state(self._state_width)
        states = self._tensor(rows)
        check_state_finite(states, f"step {self._age}")
        return states

    def _find_state_space(self) -> spaces.Box:
        """Settle whose state counts and how wide it is, and return its space."""
        declared = getattr(self.envs[0], "state_space", None)
        if self.has_own_state and isinstance(declared, spaces.Box):
            self._state_width = int(np.prod(declared.shape))
            low, high = (bound.astype(np.float32).reshape(-1) for bound in (declared.low, declared.high))
            return spaces.Box(low, high, dtype=np.float32)
        if self.has_own_state:  # its width shows only in an episode; the first reset() gets the same seed again
            copy = self._copies[0]
            seed = copy.seed
            copy.reset(self._team.new_buffers(self.num_envs))
            copy.seed = seed
            try:
                self._state_width = copy.state(None).size
            except EnvError as error:
                if not isinstance(error.__cause__, NotImplementedError):
                    raise
                self.has_own_state = False
        if not self.has_own_state:
            self._state_width = sum(self._team.widths.values())
            logger.info("%s has no state of its own: the agents' observations together stand in for it", self.envs[0])
        return spaces.Box(-np.inf, np.inf, (self._state_width,), np.float32)


def _possible_agents(env: Any) -> list[str]:
    names = getattr(env, "possible_agents", None)
    if not names or not all(isinstance(name, str) for name in names):
        raise TypeError(f"expected an environment with a list of names in possible_agents, got {names!r} in {env}")
    return list(names)


def _may_have_state(env: Any) -> bool:
    """Return whether ``state`` is more than the method of PettingZoo's base classes, which only raises."""
    method = getattr(type(getattr(env, "unwrapped", env)), "state", None)
    return callable(getattr(env, "state", None)) and method not in {None, ParallelEnv.state, AECEnv.state}


def _common_spaces(
    envs: Sequence[Any], names: list[str]
) -> tuple[dict[str, gymnasium.Space], dict[str, gymnasium.Space]]:
    """Return the observation and action spaces of copy 0, having checked that the other copies have the same."""
    observation_spaces = {name: envs[0].observation_space(name) for name in names}
    action_spaces = {name: envs[0].action_space(name) for name in names}
    for copy, env in enumerate(envs[1:], start=1):
        others = _possible_agents(env)
        if others != names:
            raise EnvError(f"copy {copy} has the agents {others}; expected those of copy 0, {names}")
        for name in names:
            pairs = (
                ("observation", observation_spaces[name], env.observation_space(name)),
                ("action", action_spaces[name], env.action_space(name)),
            )
            for what, expected, got in pairs:
                if got != expected:
                    raise EnvError(
                        f"copy {copy}: the {what} space of agent {name!r} is {got}; expected that of copy 0, {expected}"
                    )
    return observation_spaces, action_spaces


def _derive_seeds(seed: int | None, num_envs: int) -> list[int | None]:
    """Return ``seed`` for copy 0, so that it can be compared with the bare environment, and unrelated ones after it."""
    if seed is None:
        return [None] * num_envs
    # not seed + copy, which a run with the next seed would share
    derived = np.random.SeedSequence(seed).generate_state(num_envs)
    return [seed, *(int(value) for value in derived[1:])]


def _says_something(infos: Any) -> bool:
    return isinstance(infos, Mapping) and any(infos.values())
