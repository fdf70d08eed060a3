"""One copy of a PettingZoo parallel environment: stepped, and everything that it returns checked."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from coterie.envs.base import EnvError
from coterie.envs.guards import check_agents, group_agents

__all__ = ["Buffers", "ParallelCopy", "Row", "Team"]

#: observations ``[E, A, obs]`` of all copies, by the group of agents
Buffers = dict[tuple[str, ...], NDArray[np.float32]]

_LARGEST = float(np.finfo(np.float32).max)
_NUMBERS = (float, int, np.floating, np.integer)


class Team:
    """The agents of an environment, and where each one's observation goes.

    :param observation_spaces: a Box of any rank for each agent

    :raises TypeError: another observation space
    """

    def __init__(self, observation_spaces: Mapping[str, gymnasium.Space]) -> None:
        for name, space in observation_spaces.items():
            _check_observation_space(name, space)
        self.names = list(observation_spaces)
        self.everyone = frozenset(self.names)
        self.shapes = {name: space.shape or () for name, space in observation_spaces.items()}
        self.widths = {name: int(np.prod(shape)) for name, shape in self.shapes.items()}
        #: agents of equal width, stacked together
        self.groups = group_agents(self.widths)
        #: (group, column, shape) of each agent
        self.places = {n: (group, i, self.shapes[n]) for group in self.groups for i, n in enumerate(group)}

    def new_buffers(self, num_envs: int) -> Buffers:
        """Return zeros ``[E, A, obs]`` for each group."""
        return {g: np.zeros((num_envs, len(g), self.widths[g[0]]), dtype=np.float32) for g in self.groups}


class Row(NamedTuple):
    """What one copy returned from a step, agent by agent in the order of the team; observations are in the buffers."""

    rewards: list[float]
    terminated: list[bool]
    truncated: list[bool]
    over: bool
    """Whether the episode ended for everyone."""


class ParallelCopy:
    """Steps one environment, writes its observations into row ``index`` of shared buffers, and names what is wrong.

    :param env: the environment
    :param index: its row, also its name in messages
    :param team: its agents
    :param seed: seed of its first reset; None for no seed
    """

    def __init__(self, env: Any, index: int, team: Team, seed: int | None) -> None:
        self.env = env
        self.index = index
        self.seed = seed
        #: steps since the reset
        self.age = 0
        #: who acts next, in the order of the team
        self.alive = [True] * len(team.names)
        #: infos that came with the present observations
        self.infos: Any = None
        self._team = team
        self._whole = True  # nobody is absent

    @property
    def whole(self) -> bool:
        """Whether every agent acts next."""
        return self._whole

    def reset(self, buffers: Buffers) -> None:
        """Start an episode.

        :raises EnvError: the environment raised, or broke its contract
        """
        self.age = 0
        try:
            result = self.env.reset() if self.seed is None else self.env.reset(seed=self.seed)
        except Exception as error:
            raise self._raised("reset()", error) from error
        self.seed = None  # later episodes go on with the environment's own generator
        if not isinstance(result, tuple) or len(result) != 2:
            raise EnvError(f"{self}: expected reset() to return (observations, infos), got {_describe(result)}")
        observations, self.infos = result
        agents = self._agents()
        if not agents:
            raise EnvError(
                f"{self}: no agent takes part after reset(); expected some of {self._team.names} in env.agents"
            )
        check_agents(observations, "observations", str(self), self._team.names, agents)
        self._read_observations(observations, buffers)
        self.alive = [name in agents for name in self._team.names]
        self._whole = all(self.alive)

    def step(self, choose: Mapping[str, Any], buffers: Buffers) -> Row:
        """Advance by one step; ``choose`` has an action of everyone, and those of absent agents are left out.

        :raises EnvError: the environment raised, or broke its contract
        """
        self.age += 1
        env, names = self.env, self._team.names
        acting = self._team.everyone
        if env.agents != names:
            acting = frozenset(env.agents)
            choose = {name: choose[name] for name in env.agents}
        try:
            result = env.step(choose)
        except Exception as error:
            raise self._raised("step()", error) from error
        if not isinstance(result, tuple) or len(result) != 5:
            raise EnvError(
                f"{self}: expected step() to return (observations, rewards, terminations, truncations, infos), got "
                f"{_describe(result)}"
            )
        observations, rewards, terminations, truncations, self.infos = result
        for what, values in zip(("observations", "rewards", "terminations", "truncations"), result[:4], strict=True):
            if not isinstance(values, dict) or values.keys() != acting:
                check_agents(values, what, str(self), names, acting)
        self._read_observations(observations, buffers)

        # who is absent earned nothing and is done, unless it reports all the same
        earned = [self._number(rewards[n], n) if n in rewards else 0.0 for n in names]
        if not abs(sum(earned)) < _LARGEST:
            self._name_reward(earned)
        terms = [self._flag(terminations[n], n) if n in terminations else n not in acting for n in names]
        truncs = [self._flag(truncations[n], n) if n in truncations else False for n in names]
        if True in terms or True in truncs or env.agents != names:
            done = [term or trunc for term, trunc in zip(terms, truncs, strict=True)]
            self._note_absent(acting, done)
            return Row(earned, terms, truncs, all(done))
        if not self._whole:  # everyone is back
            self.alive, self._whole = [True] * len(names), True
        return Row(earned, terms, truncs, False)

    def state(self, width: int | None) -> NDArray[np.float32]:
        """Return the environment's own state, flattened.

        :raises EnvError: it raised, or has another size than ``width``
        """
        try:
            value = np.asarray(self.env.state(), dtype=np.float32).reshape(-1)
        except Exception as error:
            raise self._raised("state()", error) from error
        if width not in {None, value.size}:
            raise EnvError(f"{self}: expected a state of {width} numbers, got {value.size}")
        return value

    def __str__(self) -> str:
        return f"copy {self.index}, step {self.age}"

    def _raised(self, what: str, error: Exception) -> EnvError:
        return EnvError(f"{self}: the environment's {what} raised {type(error).__name__}: {error}")

    def _agents(self) -> list[str]:
        agents = getattr(self.env, "agents", None)
        if agents is None:
            raise EnvError(f"{self}: the environment has no list `agents` of those that take part")
        unknown = [name for name in agents if name not in self._team.everyone]
        if unknown:
            raise EnvError(
                f"{self}: unknown agent {unknown[0]!r} in env.agents; possible agents are {self._team.names}"
            )
        return list(agents)

    def _name_reward(self, earned: list[float]) -> None:
        for name, value in zip(self._team.names, earned, strict=True):
            if not abs(value) < _LARGEST:
                raise EnvError(f"{self}: the reward of agent {name!r} is {value}; expected a finite float32")

    def _note_absent(self, acting: Collection[str], done: list[bool]) -> None:
        """Keep who acts next; ``done`` says for whom the episode is over."""
        agents = self._agents()
        for i, name in enumerate(self._team.names):
            ended = done[i] and name in acting
            if name in acting and not ended and name not in agents:
                raise EnvError(
                    f"{self}: agent {name!r} left env.agents though it is neither terminated nor truncated; set one of "
                    "the two in the step in which it leaves"
                )
            self.alive[i] = name in agents and not ended
        self._whole = all(self.alive)

    def _read_observations(self, observations: Mapping[str, Any], buffers: Buffers) -> None:
        for name, value in observations.items():
            group, column, shape = self._team.places[name]
            if type(value) is not np.ndarray or value.dtype.kind not in "fiub":
                value = self._as_array(value, name)
            if value.shape != shape:  # NumPy would broadcast (1,) over (3,)
                raise EnvError(
                    f"{self}: the observation of agent {name!r} has shape {value.shape}; expected {shape} as in "
                    "its observation space"
                )
            buffers[group][self.index, column] = value if len(shape) == 1 else value.reshape(-1)

    def _as_array(self, value: Any, agent: str) -> NDArray[Any]:
        try:
            array = np.asarray(value)
        except (TypeError, ValueError) as error:  # ragged lists and the like
            raise EnvError(f"{self}: the observation of agent {agent!r} is no array: {error}") from error
        if array.dtype.kind not in "fiub":
            raise EnvError(
                f"{self}: the observation of agent {agent!r} is a {type(value).__name__} of {array.dtype}; expected "
                "numbers"
            )
        return array

    def _number(self, value: Any, agent: str) -> float:
        if isinstance(value, _NUMBERS):
            return float(value)
        array = np.asarray(value)
        if array.dtype.kind in "fiub" and array.size == 1:
            return float(array.reshape(()))
        raise EnvError(f"{self}: the reward of agent {agent!r} is {value!r}; expected one number")

    def _flag(self, value: Any, agent: str) -> bool:
        if isinstance(value, (bool, np.bool_)):
            return bool(value)
        array = np.asarray(value)
        if array.dtype.kind in "iub" and array.size == 1 and int(array.reshape(())) in {0, 1}:
            return bool(array.reshape(()))
        raise EnvError(f"{self}: the termination or truncation of agent {agent!r} is {value!r}; expected True or False")


def _check_observation_space(agent: str, space: gymnasium.Space) -> None:
    if isinstance(space, spaces.Box):
        return
    hint = "wrap the environment so that it flattens its observations"
    if isinstance(space, spaces.Dict) and "action_mask" in space.spaces:
        hint = 'action masks inside observations are not read: pass on the "observation" alone'
    raise TypeError(f"expected a Box observation space of agent {agent!r}, got {space}; {hint}")


def _describe(result: Any) -> str:
    return f"{len(result)} values" if isinstance(result, tuple) else f"a {type(result).__name__}"
