"""What the centralised networks of a team (critics, mixers) see: the shared state, or what stands for it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import gymnasium
import torch
from torch import Tensor

from coterie.agents.moments import Moment
from coterie.models.critic_inputs import critic_space
from coterie.spaces import flat_size

__all__ = ["SharedInput"]

_log = logging.getLogger(__name__)


class SharedInput:
    """Chooses what a team's centralised networks see; where the environment has no state, observations stand in for it.

    :param kind: one of :data:`coterie.models.critic_inputs.CRITIC_INPUTS`
    :param who: what the networks are, for messages, such as ``"critics"``
    :param sizes: number of inputs that each agent's network was built for, of agents that have one
    :param observation_spaces: of every agent
    :param shared_spaces: of the environment's state, by agent; None where it follows from the networks

    :raises ValueError: agents differ in the state
    """

    def __init__(
        self,
        kind: str,
        who: str,
        sizes: Mapping[str, int],
        observation_spaces: Mapping[str, gymnasium.Space],
        shared_spaces: Mapping[str, gymnasium.Space] | None,
    ) -> None:
        self.kind = kind
        self._who = who
        self._observation_spaces = observation_spaces
        self._shared_spaces = shared_spaces
        self._joined_size = sum(flat_size(space) for space in observation_spaces.values())
        self._settled = False
        #: whether observations stand in for a state that the environment does not have
        self._stands_in = False
        beside = {"state": 0, "both": self._joined_size}
        #: size of the state that each agent's network was built for
        self._state_sizes = {
            uid: size - beside.get(kind, flat_size(observation_spaces[uid])) for uid, size in sizes.items()
        }
        self._check()

    def _check(self) -> None:
        if self._shared_spaces is not None:
            what, sizes = "got spaces", {uid: flat_size(space) for uid, space in self._shared_spaces.items()}
        else:
            what, sizes = f"{self._who} were built for states", {} if self.kind == "observations" else self._state_sizes
        if len(set(sizes.values())) > 1 or min(sizes.values(), default=1) < 1:
            raise ValueError(f"expected one shared state for the whole team, {what} of sizes {sizes}")

    @property
    def needs_state(self) -> bool:
        """Whether the environment's state is looked at."""
        return self.kind != "observations" and not self._stands_in

    def space(self, uid: str) -> gymnasium.Space | None:
        """Space of what the network of an agent sees; None where it is whatever the network was built for."""
        if self._shared_spaces is None and self.kind != "observations":
            return None
        shared = None if self._shared_spaces is None else self._shared_spaces[uid]
        return critic_space(self.kind, uid, self._observation_spaces, shared)

    def size(self) -> int | None:
        """Size of what networks see that all see alike; None where it is whatever they were built for."""
        if self.kind == "observations":
            return self._joined_size
        if self._shared_spaces is None:
            return None
        return flat_size(self.state_space()) + (self._joined_size if self.kind == "both" else 0)

    def state_space(self) -> gymnasium.Space | int:
        """Space or size of the environment's state."""
        if self._shared_spaces is not None:
            return next(iter(self._shared_spaces.values()))
        return next(iter(self._state_sizes.values()))

    def settle(self, infos: Mapping[str, Any]) -> None:
        """Decide, by the first step that is recorded, whether observations stand in for the state.

        :raises KeyError: there is no state, and the networks were built for another number of inputs than all observations have
        """
        if self._settled or not self.needs_state:
            return
        if infos.get("shared_states") is None:
            expected = flat_size(self.state_space())
            if expected != self._joined_size:
                raise KeyError(
                    "infos['shared_states']: expected the shared state, a tensor [E, F]; got NoneType. "
                    f"{self._who.capitalize()} were built for a state of {expected} elements; all agents' observations, which "
                    f"stand in where there is no state, have {self._joined_size}"
                )
            self._stands_in = True
            _log.warning(
                "the environment has no state(): %s see all agents' observations together in its place", self._who
            )
        self._settled = True

    def of(self, moment: Moment) -> Tensor:
        """What all see alike at a moment, ``[B, F]``: for ``"agent"``, the part that comes after the own observation."""
        state = moment.shared if self.needs_state else moment.joined()
        assert state is not None
        return torch.cat([state, moment.joined()], dim=-1) if self.kind == "both" else state
