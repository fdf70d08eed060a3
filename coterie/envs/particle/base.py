"""What the particle tasks share: the environment contract around a pure step."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from coterie.agent_tensors import AgentTensors
from coterie.envs.action_reader import ActionReader
from coterie.envs.base import EnvError, MultiAgentEnv
from coterie.envs.particle.world import World, restart, turn

__all__ = ["ParticleEnv"]


class ParticleEnv(MultiAgentEnv):
    """E copies of a particle task as one tensor program, with the time limit as the only end (always a truncation).

    A task writes :meth:`advance` and :meth:`observe`, which are pure (world in, tensors out, no data-dependent
    shapes), so ``torch.compile(env.advance, fullgraph=True)`` works. Which copies end is known on the
    host, from a mirror of their clocks: steps where none ends do no reset work, and no step waits for the device.

    The physics is float64 by default: contacts are so stiff that rounding errors grow exponentially while they last.
    What the environment returns is float32 either way.

    Values of actions are checked as in :class:`~coterie.envs.action_reader.ActionReader`.

    :param agents: names of the agents
    :param observation_widths: observation size of each agent
    :param choices: number of discrete actions of each agent
    :param buttons: number of continuous action entries of each agent
    :param sizes: number of bodies, landmarks, speaking agents, channels and goals: M, L, S, C, G
    :param num_envs: number of copies E
    :param device: where everything lives
    :param seed: seed of the environment's own generator; None takes one from the operating system
    :param max_cycles: steps in an episode
    :param continuous_actions: Box(0, 1) actions instead of Discrete ones
    :param stagger: give the first episodes after :meth:`reset` lengths spread evenly over 1 .. max_cycles, so that the
        copies do not all end together
    :param physics_dtype: None for float64 (float32 on devices without it)
    :param deferred_checks: see above; None for True on every device but the CPU

    :raises ValueError: a parameter is out of range
    """

    has_own_state = False

    def __init__(
        self,
        agents: Sequence[str],
        observation_widths: Sequence[int],
        choices: Sequence[int],
        buttons: Sequence[int],
        sizes: tuple[int, int, int, int, int],
        num_envs: int = 1,
        device: torch.device | str = "cpu",
        seed: int | None = None,
        max_cycles: int = 25,
        continuous_actions: bool = False,
        stagger: bool = False,
        physics_dtype: torch.dtype | None = None,
        deferred_checks: bool | None = None,
    ) -> None:
        for key, value in (("num_envs", num_envs), ("max_cycles", max_cycles)):
            if value < 1:
                raise ValueError(f"{key} is {value}; expected at least 1")
        self.possible_agents = list(agents)
        self.num_envs = num_envs
        self.device = torch.empty(0, device=device).device  # with its index
        self.max_cycles = max_cycles
        self.continuous_actions = continuous_actions
        self.stagger = stagger
        self.dtype = physics_dtype or (torch.float32 if self.device.type == "mps" else torch.float64)
        # ---- spaces
        box = [spaces.Box(-np.inf, np.inf, (width,), np.float32) for width in observation_widths]
        self.observation_spaces = dict(zip(agents, box, strict=True))
        self.shared_observation_spaces = {
            name: spaces.Box(-np.inf, np.inf, (sum(observation_widths),), np.float32) for name in agents
        }
        self.action_spaces: dict[str, gymnasium.Space] = {}
        for name, n, width in zip(agents, choices, buttons, strict=True):
            self.action_spaces[name] = spaces.Box(0, 1, (width,)) if continuous_actions else spaces.Discrete(n)
        deferred = self.device.type != "cpu" if deferred_checks is None else deferred_checks
        self._reader = ActionReader(agents, self.action_spaces, num_envs, self.device, deferred)
        # ---- agents of one observation width form one stack: (names, width), in the order of the agents
        self._stacks: list[tuple[tuple[str, ...], int]] = []
        for name, width in zip(agents, observation_widths, strict=True):
            if self._stacks and self._stacks[-1][1] == width:
                self._stacks[-1] = ((*self._stacks[-1][0], name), width)
            else:
                self._stacks.append(((name,), width))
        # ---- what a world looks like, in the public layout
        bodies, landmarks, speakers, channels, goals = sizes
        self._shapes = {
            "positions": (num_envs, bodies, 2),
            "velocities": (num_envs, bodies, 2),
            "landmarks": (num_envs, landmarks, 2),
            "words": (num_envs, speakers, channels),
            "goals": (num_envs, goals),
        }
        self._generator = torch.Generator(self.device)
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)
        # ---- the clocks: at which value of `_clock` each copy ends, on the device and on the host
        self._clock = 0
        self._ends = torch.zeros(num_envs, dtype=torch.int64, device=self.device)
        self._host_ends = np.zeros(num_envs, dtype=np.int64)
        self._next_end = 0
        self._world: World | None = None
        self._observation = torch.empty(0)
        self._nobody = self._flags(torch.zeros(num_envs, dtype=torch.bool, device=self.device))
        self._everybody = self._flags(torch.ones(num_envs, dtype=torch.bool, device=self.device))

    # ------------------------------------------------------------------------------------------------ what a task writes
    @abstractmethod
    def advance(self, world: World, actions: Tensor) -> tuple[World, Tensor, Tensor]:
        """Pure: return the world after ``actions`` [E, W], its observations [E, state], and rewards float32 [E, A, 1]."""

    @abstractmethod
    def observe(self, world: World) -> Tensor:
        """Pure: return all agents' observations side by side, float32 [E, state]."""

    def sample(self) -> World:
        """Draw the first moment of a new episode for every copy: uniform in the arena [-1, 1), at rest, silent."""
        (_, bodies, _), (_, landmarks, _), goals = (self._shapes[key] for key in ("positions", "landmarks", "goals"))
        size = (2, bodies + landmarks, self.num_envs)
        points = torch.rand(size, generator=self._generator, dtype=self.dtype, device=self.device) * 2.0 - 1.0
        targets = torch.zeros(goals[::-1], dtype=torch.int64, device=self.device)
        if goals[1]:
            targets = torch.randint(landmarks, goals[::-1], generator=self._generator, device=self.device)
        still = torch.zeros(self._shapes["velocities"][::-1], dtype=self.dtype, device=self.device)
        silence = torch.zeros(self._shapes["words"][::-1], dtype=self.dtype, device=self.device)
        return World(points[:, :bodies].contiguous(), still, points[:, bodies:].contiguous(), silence, targets)

    # ------------------------------------------------------------------------------------------------ the contract
    @torch.no_grad()
    def reset(self) -> tuple[AgentTensors, dict[str, Any]]:
        """Start a new episode in every copy and return ``(states, infos)``."""
        self._reader.flush()
        copies = np.arange(self.num_envs)
        early = copies * self.max_cycles // self.num_envs if self.stagger else np.zeros_like(copies)
        self._start(self.sample(), self.max_cycles - early)
        return self._split(self._observation), {}

    @torch.no_grad()
    def step(
        self, actions: Mapping[str, Tensor]
    ) -> tuple[AgentTensors, AgentTensors, AgentTensors, AgentTensors, dict[str, Any]]:
        """Advance every copy by one step and return ``(next_states, rewards, terminated, truncated, infos)``.

        :raises EnvError: an action is missing or wrong, or no episode has been started
        """
        world, observation, rewards = self.advance(self._present(), self._reader.read(actions))
        self._clock += 1
        truncated, infos = self._nobody, {}
        if self._clock == self._next_end:
            infos = {"final_states": self._split(observation), "final_shared_states": observation}
            world, truncated = self._renew(world)
            observation = self.observe(world)
        self._world, self._observation = world, observation
        reward_mapping = AgentTensors.single(self.possible_agents, rewards)
        return self._split(observation), reward_mapping, self._nobody, truncated, infos

    def state(self) -> Tensor:
        """Return all observations side by side, [E, state], in the order of the agents."""
        self._present()
        return self._observation

    def close(self) -> None:
        """Make the checks of actions that are still due."""
        self._reader.flush()

    # ------------------------------------------------------------------------------------------------ snapshots
    def get_state(self) -> dict[str, Any]:
        """Return what decides the future, as a copy.

        Keys: ``positions``, ``velocities`` [E, M, 2], ``landmarks`` [E, L, 2], ``words`` [E, S, C] and ``goals`` [E, G]
        (see :class:`~coterie.envs.particle.world.World`), ``remaining`` int64 [E] (steps left in each episode, on the
        CPU) and ``generator``.
        """
        world = {name: turn(value) for name, value in self._present()._asdict().items()}
        remaining = torch.from_numpy(self._host_ends - self._clock)
        return {**world, "remaining": remaining, "generator": self._generator.get_state()}

    @torch.no_grad()
    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`get_state` returned; the same actions then give the same bits.

        :raises EnvError: a key is missing or unknown, or a value does not fit; the environment is then as before
        """
        expected = [*self._shapes, "remaining", "generator"]
        if set(state) != set(expected):
            raise EnvError(f"the state has the keys {sorted(state)}; expected {sorted(expected)}")
        world = World(**{name: self._fit(name, state[name], shape) for name, shape in self._shapes.items()})
        landmarks = self._shapes["landmarks"][1]
        if bool(((world.goals < 0) | (world.goals >= landmarks)).any()):
            raise EnvError(f"state['goals'] is {state['goals'].tolist()}; expected indices of {landmarks} landmarks")
        clocks = state["remaining"]
        whole = isinstance(clocks, Tensor) and clocks.dtype == torch.int64 and clocks.shape == (self.num_envs,)
        if not whole or clocks.min() < 1 or clocks.max() > self.max_cycles:
            got = clocks.tolist() if isinstance(clocks, Tensor) else clocks
            limits = f"{self.num_envs} numbers from 1 to {self.max_cycles}"
            raise EnvError(f"state['remaining'] is {got}; expected an int64 tensor of {limits}")
        try:
            self._generator.set_state(state["generator"])
        except (RuntimeError, TypeError) as error:
            raise EnvError(f"state['generator'] is not a state of a generator on {self.device}: {error}") from error
        self._start(world, clocks.cpu().numpy())

    def place(self, **fields: Tensor) -> AgentTensors:
        """Move things by hand: replace some of the tensors of :meth:`get_state` and return the new states.

        Values broadcast over copies, so ``place(positions=torch.zeros(3, 2))`` puts the three bodies of every copy in the
        middle. Clocks and generator stay as they are.

        :raises EnvError: as for :meth:`set_state`
        """
        now = self.get_state()
        for name, value in fields.items():
            shape = self._shapes.get(name)
            now[name] = value.expand(shape) if shape and list(value.shape) == list(shape[1:]) else value
        self.set_state(now)
        return self._split(self._observation)

    # ------------------------------------------------------------------------------------------------ inside
    def _present(self) -> World:
        if self._world is None:
            raise EnvError(f"{type(self).__name__} has no episode yet; call reset() first")
        return self._world

    def _start(self, world: World, remaining: np.ndarray) -> None:
        self._world, self._observation = world, self.observe(world)
        self._clock, self._host_ends = 0, remaining.astype(np.int64)
        self._ends = torch.from_numpy(self._host_ends.copy()).to(self.device)
        self._next_end = int(remaining.min())

    def _renew(self, world: World) -> tuple[World, AgentTensors]:
        """Restart the copies whose time is up; return the world and who was cut short. Nothing here waits for the device."""
        fresh = self.sample()
        next_end = self._clock + self.max_cycles
        ended_on_host = self._host_ends == self._clock
        if ended_on_host.all():
            world, truncated = fresh, self._everybody
            self._ends = torch.full_like(self._ends, next_end)
        else:
            ended = self._ends == self._clock
            world, truncated = restart(ended, fresh, world), self._flags(ended)
            self._ends = torch.where(ended, next_end, self._ends)
        self._host_ends = np.where(ended_on_host, next_end, self._host_ends)
        self._next_end = int(self._host_ends.min())
        return world, truncated

    def _flags(self, flags: Tensor) -> AgentTensors:
        """Give every agent the flag [E] of its copy."""
        agents = self.possible_agents
        return AgentTensors.single(agents, flags[:, None, None].expand(-1, len(agents), 1))

    def _split(self, flat: Tensor) -> AgentTensors:
        """Show observations [E, state] by agent, without a copy."""
        stacks, start = {}, 0
        for names, width in self._stacks:
            size = len(names) * width
            stacks[names] = flat.narrow(1, start, size).view(-1, len(names), width)
            start += size
        return AgentTensors(stacks)

    def _fit(self, name: str, value: Any, shape: tuple[int, ...]) -> Tensor:
        """Check one field of a state, and turn it to the inner layout."""
        dtype = torch.int64 if name == "goals" else self.dtype
        if not isinstance(value, Tensor) or value.shape != shape:
            got = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise EnvError(f"state[{name!r}]: expected a tensor {list(shape)}, got {got}")
        if value.is_floating_point() != dtype.is_floating_point or not bool(value.isfinite().all()):
            raise EnvError(f"state[{name!r}]: expected finite values of {dtype}, got {value.dtype}: {value.tolist()}")
        return turn(value.detach().to(self.device, dtype))
