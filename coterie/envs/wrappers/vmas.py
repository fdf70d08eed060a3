"""VMAS environments, which step all their copies as one batch."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from coterie.agent_tensors import AgentTensors
from coterie.envs.base import EnvError, MultiAgentEnv
from coterie.envs.guards import ActionGuard, check_finite, group_agents
from coterie.envs.wrappers.batch_rows import BatchRows

__all__ = ["VmasEnv"]

logger = logging.getLogger(__name__)


class VmasEnv(MultiAgentEnv):
    """A VMAS ``Environment``, with the copies that end reset within the step.

    - A reset of some copies costs about one reset of all: the copies that go on are put back afterwards, bit for bit.
      What a scenario keeps in Python values (which landmark is the goal, a counter) all copies share: there the reset
      of one reaches all, as it does with VMAS's own ``reset_at``.
    - The environment draws from random generators of its own: it neither disturbs nor follows torch's, NumPy's and
      Python's global ones, nor those that all VMAS environments share.
    - Actions outside their range are clipped (:class:`~coterie.envs.guards.ActionGuard`), where VMAS would stop.
    - :meth:`state` is all agents' observations one after the other. No gradients flow through the simulator.
    - ``infos["env_infos"]`` is what the scenario reports on this step, by agent, also for copies that ended in it.

    :param env: what ``vmas.make_env`` returned; its ``terminated_truncated`` is switched on
    :param device: where returned tensors live; None for the environment's own
    :param seed: decides all episodes; None draws one from VMAS's generators, which ``make_env(seed=...)`` sets

    :raises TypeError: an agent's observation is no single tensor
    :raises EnvError: two agents have the same name
    """

    has_own_state = False

    def __init__(self, env: Any, *, device: torch.device | str | None = None, seed: int | None = None) -> None:
        self.env = env
        self.num_envs = env.num_envs
        self._env_device = torch.device(env.device)
        self.device = torch.device(env.device if device is None else device)
        self.possible_agents = [agent.name for agent in env.agents]
        if len(set(self.possible_agents)) < len(self.possible_agents):
            raise EnvError(f"expected agents of different names, got {self.possible_agents}")
        self.observation_spaces = self._translate(env.observation_space)
        self.action_spaces = self._translate(env.action_space)
        for name, space in self.observation_spaces.items():
            if not isinstance(space, spaces.Box):
                raise TypeError(
                    f"expected agent {name!r} to observe one tensor, got {space}; build the environment so that its "
                    "scenario's observation() returns a tensor"
                )
        widths = {name: int(np.prod(space.shape or ())) for name, space in self.observation_spaces.items()}
        self._groups = group_agents(widths)
        self._widths = {group: widths[group[0]] for group in self._groups}
        space = spaces.Box(-np.inf, np.inf, (sum(widths.values()),), np.float32)
        self.shared_observation_spaces = dict.fromkeys(self.possible_agents, space)
        if not env.terminated_truncated:
            logger.info("terminated_truncated is switched on in %s: a time limit is no termination", env)
            env.terminated_truncated = True
        self._guard = ActionGuard(self.action_spaces, self.num_envs, self._env_device)
        self._random = _OwnRandom(type(env).vmas_random_state, self._env_device, seed)
        self._states: AgentTensors | None = None
        self._age = 0  # steps since the last reset(), for messages

    def reset(self) -> tuple[AgentTensors, dict[str, Any]]:
        self._age = 0
        with self._inside("reset()"):
            observations = self.env.reset()
        self._states = self._observations(observations)
        return self._states, {}

    def step(
        self, actions: Mapping[str, Tensor]
    ) -> tuple[AgentTensors, AgentTensors, AgentTensors, AgentTensors, dict[str, Any]]:
        if self._states is None:
            raise EnvError("step() was called before reset()")
        self._age += 1
        chosen: dict[str, Tensor] = {}
        for names, stack in self._guard(actions, f"step {self._age}"):
            chosen.update(zip(names, stack.unbind(1), strict=True))
        with self._inside("step()"):
            result = self.env.step([chosen[name] for name in self.possible_agents])
        observations, env_rewards, terminated, truncated, reported = result

        states = self._observations(observations)
        earned = torch.stack(self._in_order(env_rewards), dim=1).reshape(self.num_envs, len(self.possible_agents), 1)
        rewards = self._by_agent(earned.float())
        check_finite(rewards, "reward", f"step {self._age}")
        infos: dict[str, Any] = {}
        reported = dict(zip(self.possible_agents, self._in_order(reported), strict=True))
        if any(reported.values()):
            infos["env_infos"] = reported
        over = terminated | truncated
        if over.any():
            infos["final_states"] = states
            infos["final_shared_states"] = states.join(self.possible_agents)
            states = self._begin_again(over, states)
        self._states = states
        every = (self.num_envs, len(self.possible_agents), 1)
        terms, truncs = (self._by_agent(flag.reshape(-1, 1, 1).expand(every)) for flag in (terminated, truncated))
        return states, rewards, terms, truncs, infos

    def state(self) -> Tensor:
        if self._states is None:
            raise EnvError("state() was called before reset()")
        return self._states.join(self.possible_agents)

    def render(self, **kwargs: Any) -> Any:
        """Return VMAS's picture of copy 0; arguments are those of its own ``render``."""
        return self.env.render(**{"mode": "rgb_array", **kwargs})

    def _begin_again(self, over: Tensor, states: AgentTensors) -> AgentTensors:
        """Reset the copies that are over; the rows of the others stay as they are."""
        if over.all():
            with self._inside("reset()"):
                return self._observations(self.env.reset())
        with self._inside("reset()"):
            rows = BatchRows(self.env, self.num_envs, skip=frozenset({"viewer", "text_lines"}))
            observations = self.env.reset()
            rows.restore(~over)
        fresh = self._observations(observations)
        mask = over.to(self.device).reshape(-1, 1, 1)
        old = states.stacks
        return AgentTensors({names: torch.where(mask, new, old[names]) for names, new in fresh.stacks.items()})

    @contextmanager
    def _inside(self, what: str) -> Iterator[None]:
        """Run VMAS on our own random numbers, and say where it was if it raises."""
        try:
            with self._random(), torch.no_grad():
                yield
        except EnvError:
            raise
        except Exception as error:
            raise EnvError(
                f"step {self._age}, all {self.num_envs} copies: the environment's {what} raised "
                f"{type(error).__name__}: {error}"
            ) from error

    def _in_order(self, values: Any) -> list[Any]:
        """Return what VMAS gives by position or by name as a list in the order of the agents."""
        return [values[name] for name in self.possible_agents] if isinstance(values, Mapping) else list(values)

    def _observations(self, observations: Any) -> AgentTensors:
        """Stack observations, which VMAS has cloned, by width."""
        values = dict(zip(self.possible_agents, self._in_order(observations), strict=True))
        for name, value in values.items():
            expected = (self.num_envs, *(self.observation_spaces[name].shape or ()))
            if tuple(value.shape) != expected:
                raise EnvError(
                    f"step {self._age}: the observation of agent {name!r} has shape {tuple(value.shape)}; expected "
                    f"{expected}, the number of copies before the shape of its observation space"
                )
        stacks = {}
        for names in self._groups:
            stack = torch.stack([values[name].reshape(self.num_envs, -1) for name in names], dim=1)
            stacks[names] = stack.float().to(self.device)
        states = AgentTensors(stacks)
        check_finite(states, "observation", f"step {self._age}")
        return states

    def _by_agent(self, tensor: Tensor) -> AgentTensors:
        return AgentTensors.single(self.possible_agents, tensor.to(self.device))

    def _translate(self, team_space: Any) -> dict[str, gymnasium.Space]:
        """Return the agents' spaces, which VMAS keeps in a Tuple or Dict of the older ``gym``, as gymnasium's."""
        parts: Iterable[Any] = (
            (team_space[name] for name in self.possible_agents) if hasattr(team_space, "keys") else iter(team_space)
        )
        return {name: _as_gymnasium(part) for name, part in zip(self.possible_agents, parts, strict=True)}


def _as_gymnasium(space: Any) -> gymnasium.Space:
    kind = type(space).__name__
    if kind == "Box":
        return spaces.Box(space.low, space.high, space.shape, space.dtype.type)
    if kind == "Discrete":
        return spaces.Discrete(int(space.n))
    if kind == "MultiDiscrete":
        return spaces.MultiDiscrete(np.asarray(space.nvec))
    if kind == "Dict":
        return spaces.Dict({key: _as_gymnasium(part) for key, part in space.spaces.items()})
    raise TypeError(f"expected a Box, Discrete, MultiDiscrete or Dict space, got {space}")


class _OwnRandom:
    """Random generators that stand in for VMAS's while it runs.

    VMAS keeps one list of generator states for all environments, and puts them into the global generators during each
    call; on a CUDA device it draws from the device's global generator.
    """

    def __init__(self, shared: list[Any], device: torch.device, seed: int | None) -> None:
        self._shared = shared
        self._device = device
        if seed is None:  # from the shared generator, which moves on: two environments in a row differ
            generator = torch.Generator()
            generator.set_state(shared[0])
            seed = int(torch.randint(2**62, (), generator=generator))
            shared[0] = generator.get_state()
        self._own = [
            torch.Generator().manual_seed(seed).get_state(),
            np.random.RandomState(seed % 2**32).get_state(),
            random.Random(seed).getstate(),
        ]
        self._cuda = torch.Generator(device).manual_seed(seed).get_state() if device.type == "cuda" else None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        outside = list(self._shared)
        # VMAS puts the global generators back itself, but not when it raises
        global_states = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
        self._shared[:] = self._own
        try:
            with self._on_device():
                yield
        except BaseException:
            torch.set_rng_state(global_states[0])
            np.random.set_state(global_states[1])  # noqa: NPY002
            random.setstate(global_states[2])
            raise
        finally:
            self._own = list(self._shared)
            self._shared[:] = outside

    @contextmanager
    def _on_device(self) -> Iterator[None]:
        if self._cuda is None:
            yield
            return
        outside = torch.cuda.get_rng_state(self._device)
        torch.cuda.set_rng_state(self._cuda, self._device)
        try:
            yield
        finally:
            self._cuda = torch.cuda.get_rng_state(self._device)
            torch.cuda.set_rng_state(outside, self._device)
