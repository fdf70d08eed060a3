"""Observations that tell an agent what it did last."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from coterie.agent_tensors import AgentTensors, stack_agents
from coterie.envs.base import EnvError, MultiAgentEnv
from coterie.envs.env_wrapper import EnvWrapper
from coterie.envs.guards import group_agents
from coterie.spaces import flat_size

__all__ = ["LastAction"]


class LastAction(EnvWrapper):
    """An environment whose agents see, after what they observe, the one-hot of their last action.

    - Of a MultiDiscrete action it is the one-hots of its entries, one after the other. For Box and MultiBinary actions,
      wrap the environment in :class:`~coterie.envs.discrete_actions.DiscreteActions` first.
    - It is zeros at an episode's start, and until an agent that arrives later has acted; also for an agent that is absent, once
      it has been shown what it observed last. The last observations of an episode have the last action, as others have.
    - What is given as the action of an agent that is not to act has no effect: one that waits goes on seeing its own last one.
    - An observation that is a flat Box remains one. Others become a Tuple of the observation and the one-hot, so that models
      which look at the parts (images) still find them.
    - A shared state of the environment's own is left alone. One that is the observations side by side remains just that: each
      agent's observation with its one-hot, and zeros for both where it is absent.

    :param env: the environment, with Discrete or MultiDiscrete actions

    :raises TypeError: ``env`` is no :class:`MultiAgentEnv`, or an agent has other actions
    :raises EnvError: the shared state is said to be the observations side by side, and is not as wide as these
    """

    def __init__(self, env: MultiAgentEnv) -> None:
        super().__init__(env)
        one_hots = {name: _OneHot(name, env.action_spaces[name], self.device) for name in self.possible_agents}
        self.observation_spaces = {
            name: _with_numbers(env.observation_spaces[name], one_hot.size) for name, one_hot in one_hots.items()
        }
        self._widths = [flat_size(env.observation_spaces[name]) for name in self.possible_agents]  # of one agent each
        keys = {n: (width, one_hots[n].sizes) for n, width in zip(self.possible_agents, self._widths, strict=True)}
        self._one_hots = {names: one_hots[names[0]] for names in group_agents(keys)}
        if not self.has_own_state:
            shared = flat_size(env.shared_observation_spaces[self.possible_agents[0]])
            if shared != sum(self._widths):
                raise EnvError(
                    f"{env!r} has a shared state of {shared} numbers, and observations of {sum(self._widths)} together; "
                    "expected as many, since has_own_state is False"
                )
            width = shared + sum(one_hot.size for one_hot in one_hots.values())
            space = spaces.Box(-np.inf, np.inf, (width,), np.float32)
            self.shared_observation_spaces = dict.fromkeys(self.possible_agents, space)
        #: what the present states show of the last actions, ``[E, A, n]`` by group
        self._shown = self._nothing()
        #: who acts on the present states, and who waits
        self._active: Mapping[str, Tensor] | None = None
        self._waiting: Mapping[str, Tensor] | None = None
        self._shared: Tensor | None = None

    def reset(self) -> tuple[AgentTensors, dict[str, Any]]:
        states, infos = self.env.reset()
        self._shown = self._nothing()
        self._note_present(infos)
        return self._observed(states, self._shown), infos

    def step(
        self, actions: Mapping[str, Tensor]
    ) -> tuple[AgentTensors, Mapping[str, Tensor], Mapping[str, Tensor], Mapping[str, Tensor], dict[str, Any]]:
        next_states, rewards, terminated, truncated, infos = self.env.step(actions)  # which checks the actions
        shown = {names: self._last_seen(names, actions) for names in self._one_hots}
        if infos.get("final_states") is not None:
            ended, cut = (stack_agents(flags, self.possible_agents) for flags in (terminated, truncated))
            over = (ended | cut).all(dim=1, keepdim=True)  # [E, 1, 1]
            infos = {**infos, "final_states": self._observed(infos["final_states"], shown)}
            if not self.has_own_state:  # who died as the time of others ran out is absent
                dead = AgentTensors.single(self.possible_agents, ended & ~ended.all(dim=1, keepdim=True))
                infos["final_shared_states"] = self._join(infos["final_shared_states"], shown, dead)
            shown = {names: one_hot.masked_fill(over, 0.0) for names, one_hot in shown.items()}
        self._shown = shown
        self._note_present(infos)
        return self._observed(next_states, shown), rewards, terminated, truncated, infos

    def state(self) -> Tensor:
        shared = self.env.state()
        if self.has_own_state:
            return shared
        if self._shared is None:
            absent = None
            if self._active is not None:
                names = self.possible_agents
                absent = AgentTensors.single(names, ~(self._flags(self._active, names, True) | self._waits(names)))
            self._shared = self._join(shared, self._shown, absent)
        return self._shared

    def get_state(self) -> dict[str, Any]:
        """Return what decides the future, as a copy.

        Keys: ``env``, what the environment itself returns; ``last_actions``, the one-hots by agent, float32 ``[E, n]``;
        ``active`` and ``waiting``, the masks of the present moment by agent, bool ``[E, 1]``, or None.
        """
        inner = self.env.get_state()
        shown = AgentTensors(self._shown)
        masks = {"active": self._active, "waiting": self._waiting}
        return {
            "env": inner,
            "last_actions": {name: shown[name].clone() for name in self.possible_agents},
            **{key: mask and {name: mask[name].clone() for name in mask} for key, mask in masks.items()},
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`get_state` returned.

        :raises EnvError: a key is missing or unknown, or a value does not fit; the environment is then as before
        """
        if set(state) != {"env", "last_actions", "active", "waiting"}:
            raise EnvError(
                f"the state has the keys {sorted(state)}; expected ['active', 'env', 'last_actions', 'waiting']"
            )
        sizes = {name: one_hot.size for names, one_hot in self._one_hots.items() for name in names}
        last = self._fitting("last_actions", state["last_actions"], sizes)
        flags = dict.fromkeys(self.possible_agents, 1)
        masks = [state[key] and self._fitting(key, state[key], flags) for key in ("active", "waiting")]
        self.env.set_state(state["env"])
        self._active, self._waiting = masks
        self._shown = {names: torch.stack([last[name] for name in names], dim=1) for names in self._one_hots}
        self._shared = None

    # ---- inside ------------------------------------------------------------------------------------------------------

    def _nothing(self) -> dict[tuple[str, ...], Tensor]:
        return {
            names: torch.zeros(self.num_envs, len(names), one_hot.size, device=self.device)
            for names, one_hot in self._one_hots.items()
        }

    def _note_present(self, infos: Mapping[str, Any]) -> None:
        """Keep who acts on the present states."""
        self._active, self._waiting = infos.get("active_masks"), infos.get("waiting_masks")
        self._shared = None

    def _last_seen(self, names: tuple[str, ...], actions: Mapping[str, Tensor]) -> Tensor:
        """The last actions ``[E, A, n]`` after a step: those just taken, of those that waited the ones before."""
        taken = self._one_hots[names](stack_agents(actions, names).to(self.device))
        if self._active is None:
            return taken
        before = self._shown[names].masked_fill(~self._waits(names), 0.0)
        return torch.where(self._flags(self._active, names, True), taken, before)

    def _waits(self, names: tuple[str, ...] | list[str]) -> Tensor:
        return self._flags({} if self._waiting is None else self._waiting, names, False)

    def _flags(self, masks: Mapping[str, Tensor], names: tuple[str, ...] | list[str], missing: bool) -> Tensor:
        """Masks bool ``[E, A, 1]``, ``missing`` for agents that have none."""
        if all(name in masks for name in names):
            return stack_agents(masks, names)
        default = torch.full((self.num_envs, 1), missing, device=self.device)
        return torch.stack([masks.get(name, default) for name in names], dim=1)

    def _observed(self, states: Mapping[str, Tensor], shown: Mapping[tuple[str, ...], Tensor]) -> AgentTensors:
        return AgentTensors(
            {names: torch.cat([stack_agents(states, names), one_hot], dim=-1) for names, one_hot in shown.items()}
        )

    def _join(
        self, shared: Tensor, shown: dict[tuple[str, ...], Tensor], absent: Mapping[str, Tensor] | None
    ) -> Tensor:
        """Observations side by side with each agent's one-hot after its own."""
        by_name, parts = AgentTensors(shown), []
        for name, observed in zip(self.possible_agents, shared.split(self._widths, dim=1), strict=True):
            parts += [observed, by_name[name] if absent is None else by_name[name].masked_fill(absent[name], 0.0)]
        return torch.cat(parts, dim=1)

    def _fitting(self, key: str, values: Any, widths: Mapping[str, int]) -> dict[str, Tensor]:
        """Check what a state holds by agent, and return a copy of it."""
        dtype = torch.float32 if key == "last_actions" else torch.bool
        known = values.keys() if isinstance(values, Mapping) else set()
        if not known <= widths.keys() or (key == "last_actions" and known != widths.keys()):
            raise EnvError(f"state[{key!r}]: expected tensors of {list(widths)}, got {list(known) or values!r}")
        for name, value in values.items():
            form = (self.num_envs, widths[name])
            if not isinstance(value, Tensor) or value.dtype != dtype or value.shape != form:
                got = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                raise EnvError(f"state[{key!r}][{name!r}]: expected {dtype} {list(form)}, got {got}")
        return {name: value.to(self.device, copy=True) for name, value in values.items()}


class _OneHot:
    """Turns actions of one space into one-hots.

    :param agent: whose, for messages
    :param space: Discrete or MultiDiscrete
    :param device: where actions are
    """

    def __init__(self, agent: str, space: gymnasium.Space, device: torch.device) -> None:
        if isinstance(space, spaces.Discrete):
            self.sizes = [int(space.n)]
        elif isinstance(space, spaces.MultiDiscrete):
            self.sizes = [int(n) for n in space.nvec.reshape(-1)]
        else:
            raise TypeError(
                f"agent {agent!r} has {space} actions; expected Discrete or MultiDiscrete ones: wrap the environment in "
                "DiscreteActions first"
            )
        #: entries n of the one-hots together
        self.size = sum(self.sizes)
        # each one's entry of the action, and the value that it stands for
        self._entries = torch.cat([torch.full((n,), i) for i, n in enumerate(self.sizes)]).to(device)
        self._values = torch.cat([torch.arange(n) for n in self.sizes]).to(device)

    def __call__(self, actions: Tensor) -> Tensor:
        """Turn integers ``[E, A, entries]`` into float32 ``[E, A, n]``."""
        return (actions[..., self._entries] == self._values).float()


def _with_numbers(space: gymnasium.Space, number: int) -> gymnasium.Space:
    """The space of a flat value of ``space`` and ``number`` numbers from 0 to 1 after it."""
    if not (isinstance(space, spaces.Box) and len(space.shape) == 1):
        return spaces.Tuple((space, spaces.Box(0.0, 1.0, (number,), np.float32)))
    with np.errstate(over="ignore"):  # a bound that is too large for float32 is none
        low, high = (bound.astype(np.float32) for bound in (space.low, space.high))
    ends = np.zeros(number, np.float32)
    return spaces.Box(np.concatenate([low, ends]), np.concatenate([high, ends + 1]), dtype=np.float32)
