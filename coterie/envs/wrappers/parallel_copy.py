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
from coterie.envs.wrappers.turn_based import TurnBasedTeam
from coterie.spaces import flat_size, flatten_into

__all__ = ["Buffers", "ParallelCopy", "Row", "Team"]

#: observations ``[E, A, obs]`` of all copies, by the group of agents
Buffers = dict[tuple[str, ...], NDArray[np.float32]]

_LARGEST = float(np.finfo(np.float32).max)
_NUMBERS = (float, int, np.floating, np.integer)


class _Place(NamedTuple):
    """Where an agent's observation goes, and what it looks like."""

    group: tuple[str, ...]
    column: int
    shape: tuple[int, ...] | None
    """Of an array; None where the observation is of another kind, or comes with an action mask."""


class Team:
    """The agents of an environment, and where each one's observation goes.

    :param observation_spaces: of each agent: what :mod:`coterie.spaces` can flatten, also beside an action mask

    :raises TypeError: another observation space
    """

    def __init__(self, observation_spaces: Mapping[str, gymnasium.Space]) -> None:
        self.names = list(observation_spaces)
        self.everyone = frozenset(self.names)
        #: observation spaces without action masks
        self.spaces: dict[str, gymnasium.Space] = {}
        #: agents whose observations hold an action mask; whether there is nothing but "observation" beside it
        self.masked: dict[str, bool] = {}
        self.widths: dict[str, int] = {}
        for name, whole in observation_spaces.items():
            self.spaces[name] = whole
            if isinstance(whole, spaces.Dict) and "action_mask" in whole.spaces:
                rest = {key: part for key, part in whole.spaces.items() if key != "action_mask"}
                self.masked[name] = rest.keys() == {"observation"}
                self.spaces[name] = rest["observation"] if self.masked[name] else spaces.Dict(rest)
            try:
                self.widths[name] = flat_size(self.spaces[name])
            except TypeError as error:
                raise TypeError(f"the observation space of agent {name!r}: {error}") from error
        #: agents of equal width, stacked together
        self.groups = group_agents(self.widths)
        self.places = {
            name: _Place(group, i, self._plain_shape(name)) for group in self.groups for i, name in enumerate(group)
        }

    def new_buffers(self, num_envs: int) -> Buffers:
        """Return zeros ``[E, A, obs]`` for each group."""
        return {g: np.zeros((num_envs, len(g), self.widths[g[0]]), dtype=np.float32) for g in self.groups}

    def _plain_shape(self, name: str) -> tuple[int, ...] | None:
        space = self.spaces[name]
        return space.shape if isinstance(space, spaces.Box) and name not in self.masked else None


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
        #: who is in the game, in the order of the team
        self.present = [True] * len(team.names)
        #: who acts next, in the order of the team
        self.alive = self.present
        #: at the end of an episode, who is in the game and could have gone on, had its time not run out
        self.cut_off = self.present
        #: of these, who would act on the last observations
        self.last_alive = self.present
        #: whether nobody is absent
        self.complete = True
        #: action masks that came with the present observations, by agent
        self.masks: dict[str, Any] = {}
        #: infos that came with the present observations
        self.infos: Any = None
        self._team = team
        self._turns = env if isinstance(env, TurnBasedTeam) else None

    @property
    def waiting(self) -> list[bool]:
        """Who is in the game without being to act, in the order of the team."""
        return [present and not acts for present, acts in zip(self.present, self.alive, strict=True)]

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
        check_agents(observations, "observations", str(self), self._team.names, agents, defaults=False)
        self.present = [name in agents for name in self._team.names]
        self.complete = all(self.present)
        self._note_turn()
        self._read_observations({name: observations[name] for name in agents}, buffers)

    def step(self, choose: Mapping[str, Any], buffers: Buffers) -> Row:
        """Advance by one step; ``choose`` has an action of everyone, and those of absent agents are left out.

        :raises EnvError: the environment raised, or broke its contract
        """
        self.age += 1
        env, names = self.env, self._team.names
        acting = self._team.everyone
        if not self.complete or env.agents != names:
            acting = frozenset(name for name, present in zip(names, self.present, strict=True) if present)
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
                check_agents(values, what, str(self), names, acting, defaults=what != "observations")

        # who is absent earns nothing and is done, whatever is reported
        earned = [self._number(rewards[n], n) if n in acting else 0.0 for n in names]
        if not abs(sum(earned)) < _LARGEST:
            self._name_reward(earned)
        terms = [self._flag(terminations[n], n) if n in acting else True for n in names]
        truncs = [self._flag(truncations[n], n) if n in acting else False for n in names]
        over = False
        if True in terms or True in truncs or env.agents != names:  # among others where anyone was absent
            self._note_absent(acting, terms, truncs, result)
            over = True not in self.present
            if over:
                self._note_cut_off(terms, truncs)
            kept = [n for n, present in zip(names, self.present, strict=True) if present or n in acting]
            observations = {name: observations[name] for name in kept}
        if self._turns is not None:
            self._note_turn()
        self._read_observations(observations, buffers)
        return Row(earned, terms, truncs, over)

    def read_info_masks(self) -> None:
        """Take the action masks in the present infos; a mask in the observation goes before them."""
        for name, info in self.infos.items() if isinstance(self.infos, Mapping) else ():
            mask = info.get("action_mask") if isinstance(info, Mapping) else None
            if mask is not None and name in self._team.everyone:
                self.masks.setdefault(name, mask)

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

    def _note_absent(
        self, acting: Collection[str], terms: list[bool], truncs: list[bool], result: tuple[Any, ...]
    ) -> None:
        """Keep who is in the game after a step, and correct ``terms`` of those who were absent before.

        :param acting: who was in the game before
        :param terms: terminated, in the order of the team; who was absent counts as terminated
        :param truncs: truncated, in the order of the team
        :param result: what the environment's step returned
        """
        observations, _, *flags, _ = result
        agents = self._agents()
        present = []
        for i, name in enumerate(self._team.names):
            ended = terms[i] or truncs[i]
            if name not in acting:  # a dead agent may stay in the list, and say so
                ended = any(self._flag(values[name], name) for values in flags if name in values)
                terms[i] = ended or name not in agents
                if not terms[i] and name not in observations:
                    raise EnvError(
                        f"{self}: agent {name!r} joins in env.agents, but has no observation; expected one in the step "
                        "after which it is to act"
                    )
            elif not ended and name not in agents:
                raise EnvError(
                    f"{self}: agent {name!r} left env.agents though it is neither terminated nor truncated; set one of "
                    "the two in the step in which it leaves"
                )
            present.append(name in agents and not ended)
        self.present, self.complete = present, all(present)
        self.alive = present

    def _note_turn(self) -> None:
        """Keep who acts on the present observations."""
        turns, names = self._turns, self._team.names
        self.alive = self.present if turns is None else [name == turns.turn for name in names]

    def _note_cut_off(self, terms: list[bool], truncs: list[bool]) -> None:
        """Keep whom the time limit struck, and who of them would act on what they observe last."""
        turns = self._turns
        self.cut_off = [trunc and not term for trunc, term in zip(truncs, terms, strict=True)]
        self.last_alive = self.cut_off
        if turns is not None:
            names = zip(self.cut_off, self._team.names, strict=True)
            self.last_alive = [cut_off and name == turns.last_turn for cut_off, name in names]

    def _read_observations(self, observations: Mapping[str, Any], buffers: Buffers) -> None:
        if self.masks:
            self.masks = {}
        for name, value in observations.items():
            group, column, shape = self._team.places[name]
            if shape is None:
                self._read_structure(name, value, buffers[group][self.index, column])
                continue
            if type(value) is not np.ndarray or value.dtype.kind not in "fiub":
                value = self._as_array(value, name)
            if value.shape != shape:  # NumPy would broadcast (1,) over (3,)
                raise self._wrong_shape(name, value, shape)
            buffers[group][self.index, column] = value if len(shape) == 1 else value.reshape(-1)

    def _read_structure(self, name: str, value: Any, row: NDArray[np.float32]) -> None:
        """Write an observation that is no Box, or that comes with an action mask, into ``row``."""
        space = self._team.spaces[name]
        if name in self._team.masked:
            if not isinstance(value, Mapping) or "action_mask" not in value:
                raise EnvError(
                    f"{self}: the observation of agent {name!r} has no 'action_mask', which its space promises; it is a "
                    f"{type(value).__name__}"
                )
            self.masks[name] = value["action_mask"]
            alone = self._team.masked[name]
            value = {key: part for key, part in value.items() if key != "action_mask"}
            if alone and value.keys() != {"observation"}:
                raise EnvError(
                    f"{self}: the observation of agent {name!r} has, beside its action mask, the keys {list(value)}; "
                    "expected ['observation'] as in its observation space"
                )
            value = value["observation"] if alone else value
        try:
            flatten_into(row, space, value)
        except ValueError as error:
            raise EnvError(f"{self}: the observation of agent {name!r} is not of its space: {error}") from error

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

    def _wrong_shape(self, agent: str, value: NDArray[Any], shape: tuple[int, ...]) -> EnvError:
        return EnvError(
            f"{self}: the observation of agent {agent!r} has shape {value.shape}; expected {shape} as in its observation "
            "space"
        )

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


def _describe(result: Any) -> str:
    return f"{len(result)} values" if isinstance(result, tuple) else f"a {type(result).__name__}"
