"""Cooperative matrix games, in torch: any number of copies, on any device.

The whole team is paid one number, and *each* agent's reward is that number, undivided. Published returns of these games are
one agent's return. The trainer's evaluation reports the sum over agents as the team's return, which here is twice that:
compare its ``"agents"`` instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from coterie.agent_tensors import AgentTensors
from coterie.envs.action_reader import ActionReader
from coterie.envs.base import EnvError, MultiAgentEnv

__all__ = ["GAMES", "Climbing", "MatrixGame", "Penalty", "TwoStep"]


class MatrixGame(MultiAgentEnv):
    """E copies of a game of S states that is written down as tables, with the agents ``agent_0``, ``agent_1``, ...

    - Every episode begins in state 0. Observation of each agent, and shared state: the state, one-hot (S numbers; zeros
      once the game is over).
    - Actions of agent i: ``Discrete(n_i)``.
    - Reward of each agent: the payoff of the joint action in the present state.
    - ``terminated`` where the tables say that the game is over, ``truncated`` where ``max_cycles`` cuts it short.

    Nothing is random. Values of actions are checked as in :class:`~coterie.envs.action_reader.ActionReader`.

    :param payoffs: what each joint action earns in each state, [S, n_0, n_1, ...]
    :param successors: index of the state that it leads to, S for the end of the game, in the same shape; None if the game
        has one state and never leaves it
    :param num_envs: number of copies E
    :param device: where everything lives
    :param seed: accepted as everywhere; there is nothing to seed
    :param max_cycles: steps in an episode, at most; None for no limit

    :raises ValueError: a parameter is out of range, or the tables do not fit each other
    """

    def __init__(
        self,
        payoffs: Sequence[Any] | Tensor,
        successors: Sequence[Any] | Tensor | None = None,
        num_envs: int = 1,
        device: torch.device | str = "cpu",
        seed: int | None = None,
        max_cycles: int | None = None,
    ) -> None:
        for key, value in (("num_envs", num_envs), ("max_cycles", 1 if max_cycles is None else max_cycles)):
            if value < 1:
                raise ValueError(f"{key} is {value}; expected at least 1")
        self.num_envs = num_envs
        self.max_cycles = max_cycles
        self.device = torch.empty(0, device=device).device  # with its index
        # ---- the tables, flat: the row of a joint action is its number in base (n_0, n_1, ...), after those of its state
        table, follow = _read_tables(payoffs, successors)
        self._num_states, *choices = table.shape
        self._payoffs = table.flatten().to(self.device)
        self._successors = follow.flatten().to(self.device)
        self._joint_actions = prod(choices)
        strides = [prod(choices[i + 1 :]) for i in range(len(choices))]
        self._strides = torch.tensor(strides, device=self.device)
        self._one_hot = torch.eye(self._num_states + 1, self._num_states, device=self.device)
        # ---- agents and spaces
        self.possible_agents = [f"agent_{i}" for i in range(len(choices))]
        box = spaces.Box(0.0, 1.0, (self._num_states,), np.float32)
        self.observation_spaces = dict.fromkeys(self.possible_agents, box)
        self.shared_observation_spaces = dict.fromkeys(self.possible_agents, box)
        self.action_spaces: dict[str, gymnasium.Space] = {
            name: spaces.Discrete(n) for name, n in zip(self.possible_agents, choices, strict=True)
        }
        deferred = self.device.type != "cpu"
        self._reader = ActionReader(self.possible_agents, self.action_spaces, num_envs, self.device, deferred)
        # ---- where each copy is: its state and the steps since its episode began, int64 [E]
        self._now: tuple[Tensor, Tensor] | None = None

    def reset(self) -> tuple[AgentTensors, dict[str, Any]]:
        """Start a new episode in every copy and return ``(states, infos)``."""
        self._reader.flush()
        zeros = torch.zeros(self.num_envs, dtype=torch.int64, device=self.device)
        self._now = zeros, zeros
        return self._observe(zeros), {}

    @torch.no_grad()
    def step(
        self, actions: Mapping[str, Tensor]
    ) -> tuple[AgentTensors, AgentTensors, AgentTensors, AgentTensors, dict[str, Any]]:
        """Advance every copy by one step and return ``(next_states, rewards, terminated, truncated, infos)``.

        :raises EnvError: an action is missing or wrong, or no episode has been started
        """
        places, ages = self._present()
        rows = places * self._joint_actions + (self._reader.read(actions) * self._strides).sum(1)
        places, ages = self._successors[rows], ages + 1
        terminated = places == self._num_states
        truncated = torch.zeros_like(terminated)
        if self.max_cycles is not None:
            truncated = (ages >= self.max_cycles) & ~terminated
        infos: dict[str, Any] = {}
        ended = terminated | truncated
        if bool(ended.any()):
            infos = {"final_states": self._observe(places), "final_shared_states": self._one_hot[places]}
            places, ages = places.masked_fill(ended, 0), ages.masked_fill(ended, 0)
        self._now = places, ages
        rewards = self._payoffs[rows]
        return self._observe(places), self._each(rewards), self._each(terminated), self._each(truncated), infos

    def state(self) -> Tensor:
        """Return the state of each copy, one-hot, [E, S]."""
        return self._one_hot[self._present()[0]]

    def close(self) -> None:
        """Make the checks of actions that are still due."""
        self._reader.flush()

    def get_state(self) -> dict[str, Any]:
        """Return what decides the future, as a copy.

        Keys: ``places`` (the index of each copy's state) and ``ages`` (steps since its episode began), int64 [E].
        """
        places, ages = self._present()
        return {"places": places.clone(), "ages": ages.clone()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`get_state` returned.

        :raises EnvError: a key is missing or unknown, or a value does not fit; the environment is then as before
        """
        if set(state) != {"places", "ages"}:
            raise EnvError(f"the state has the keys {sorted(state)}; expected ['ages', 'places']")
        self._now = (
            self._fit("places", state["places"], self._num_states),
            self._fit("ages", state["ages"], self.max_cycles),
        )

    def _present(self) -> tuple[Tensor, Tensor]:
        if self._now is None:
            raise EnvError(f"{type(self).__name__} has no episode yet; call reset() first")
        return self._now

    def _observe(self, places: Tensor) -> AgentTensors:
        agents = self.possible_agents
        return AgentTensors.single(agents, self._one_hot[places][:, None].repeat(1, len(agents), 1))

    def _each(self, values: Tensor) -> AgentTensors:
        """Give every agent the value [E] of its copy."""
        agents = self.possible_agents
        return AgentTensors.single(agents, values[:, None, None].expand(-1, len(agents), 1))

    def _fit(self, name: str, value: Any, end: int | None) -> Tensor:
        """Check one entry of a state, of numbers from 0 to below ``end``, and return a copy of it."""
        span = "numbers from 0 on" if end is None else f"numbers from 0 to {end - 1}"
        whole = isinstance(value, Tensor) and value.dtype == torch.int64 and value.shape == (self.num_envs,)
        if not whole or value.min() < 0 or (end is not None and value.max() >= end):
            got = value.tolist() if isinstance(value, Tensor) else value
            raise EnvError(f"state[{name!r}] is {got}; expected an int64 tensor of {self.num_envs} {span}")
        fitting: Tensor = value.to(self.device, copy=True)
        return fitting


def _read_tables(payoffs: Sequence[Any] | Tensor, successors: Sequence[Any] | Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the checked tables, float32 and int64, both [S, n_0, n_1, ...]."""
    table = torch.as_tensor(payoffs, dtype=torch.float32)
    if table.dim() < 2 or table.numel() == 0:
        raise ValueError(
            f"payoffs has shape {list(table.shape)}; expected [states, choices of agent_0, ...], none empty"
        )
    if not bool(table.isfinite().all()):
        raise ValueError(f"payoffs is {table.tolist()}; expected finite numbers")
    states = table.shape[0]
    if successors is None:
        if states > 1:
            raise ValueError(f"successors is None; expected a table, as payoffs has {states} states")
        return table, torch.zeros(table.shape, dtype=torch.int64)
    follow = torch.as_tensor(successors)
    if follow.is_floating_point() or follow.shape != table.shape or follow.min() < 0 or follow.max() > states:
        raise ValueError(
            f"successors is {follow.tolist()}; expected integers from 0 to {states} (the end) of shape {list(table.shape)}, "
            "that of payoffs"
        )
    return table, follow.long()


class Climbing(MatrixGame):
    """The climbing game (Claus & Boutilier 1998), repeated; agent_0 chooses the row, agent_1 the column::

         11  -30    0
        -30    7    6
          0    0    5

    A return is the sum of one agent's rewards over the 25 repetitions of an episode: 275 = 25 * 11 is the best, both
    playing 0; 175 = 25 * 7 is the safe equilibrium, both playing 1, where most published methods end (EPyMARL's
    ``climbing-nostate``; other packages have the matrix transposed, which only swaps the agents).

    The observation is the constant 1 and shows no clock, so the end of the 25 repetitions is a truncation. Agents whose
    ``time_limit_bootstrap`` is off (the default of MAPPO and IPPO) learn from it as from a termination.

    :param max_cycles: repetitions in an episode
    :param kwargs: ``seed``, as for :class:`MatrixGame`

    :raises ValueError: a parameter is out of range
    """

    def __init__(
        self, num_envs: int = 1, device: torch.device | str = "cpu", *, max_cycles: int = 25, **kwargs: Any
    ) -> None:
        payoffs = [[[11, -30, 0], [-30, 7, 6], [0, 0, 5]]]
        super().__init__(payoffs, None, num_envs, device, max_cycles=max_cycles, **kwargs)


class Penalty(MatrixGame):
    """The penalty game (Claus & Boutilier 1998), repeated; agent_0 chooses the row, agent_1 the column::

        k    0   10
        0    2    0
        10   0    k

    A return is the sum of one agent's rewards over the 25 repetitions of an episode: 250 = 25 * 10 is the best, in either
    of two corners, which the agents must agree on; 50 = 25 * 2 is the safe equilibrium, both playing 1, where most
    published methods end from k = -25 down (EPyMARL's ``penalty-0-nostate`` to ``penalty-100-nostate``).

    Observations and ends are those of :class:`Climbing`.

    :param penalty: k, what missing each other costs: 0 or less
    :param max_cycles: repetitions in an episode
    :param kwargs: ``seed``, as for :class:`MatrixGame`

    :raises ValueError: a parameter is out of range
    """

    def __init__(
        self,
        num_envs: int = 1,
        device: torch.device | str = "cpu",
        *,
        penalty: float = -100.0,
        max_cycles: int = 25,
        **kwargs: Any,
    ) -> None:
        if not penalty <= 0:
            raise ValueError(f"penalty is {penalty}; expected 0 or less: it is added to the reward as it is")
        k = penalty
        payoffs = [[[k, 0, 10], [0, 2, 0], [10, 0, k]]]
        super().__init__(payoffs, None, num_envs, device, max_cycles=max_cycles, **kwargs)


class TwoStep(MatrixGame):
    """The two-step game (Rashid et al. 2018, arXiv 1803.11485): agent_0's first action chooses what is played next.

    The first step pays nothing, and agent_1 has no say in it: 0 leads to state 1 (the paper's 2A), 1 to state 2 (2B)::

        2A:  7  7     2B:  0  1
             7  7          1  8

    The second step ends the game (``terminated``). The best return of an agent is 8, by way of 2B; values that are a sum over
    agents cannot represent 2B, and settle for the 7 of 2A.

    :param kwargs: ``seed``, as for :class:`MatrixGame`

    :raises ValueError: a parameter is out of range
    """

    def __init__(self, num_envs: int = 1, device: torch.device | str = "cpu", **kwargs: Any) -> None:
        payoffs = [[[0, 0], [0, 0]], [[7, 7], [7, 7]], [[0, 1], [1, 8]]]
        end = [[3, 3], [3, 3]]
        super().__init__(payoffs, [[[1, 1], [2, 2]], end, end], num_envs, device, **kwargs)


#: every game, by name
GAMES: dict[str, type[Climbing] | type[Penalty] | type[TwoStep]] = {
    "climbing": Climbing,
    "penalty": Penalty,
    "two_step": TwoStep,
}
