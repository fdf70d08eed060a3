"""What a centralised critic may see, as spaces."""

from __future__ import annotations

from collections.abc import Mapping

import gymnasium
import numpy as np
from gymnasium import spaces

from coterie.spaces import flat_size

__all__ = ["CRITIC_INPUTS", "critic_space"]

#: the environment's state; all agents' observations; the own observation, then the state; the state, then all observations
CRITIC_INPUTS = ("state", "observations", "agent", "both")


def critic_space(
    kind: str,
    uid: str,
    observation_spaces: Mapping[str, gymnasium.Space],
    shared_observation_space: gymnasium.Space | None,
) -> spaces.Box:
    """Space of the input of the critic of ``uid``: flat, float32, without bounds.

    :param kind: one of :data:`CRITIC_INPUTS`; observations of all agents are in the order of ``observation_spaces``
    :param uid: whose critic it is
    :param observation_spaces: of every agent
    :param shared_observation_space: of the environment's state; None where there is none

    :raises ValueError: an unknown kind, or one that needs a state where there is none
    """
    if kind not in CRITIC_INPUTS:
        raise ValueError(f"critic_input: expected one of {list(CRITIC_INPUTS)}, got {kind!r}")
    if shared_observation_space is None and kind != "observations":
        raise ValueError(
            f"critic_input {kind!r} needs the environment's state: pass shared_observation_spaces, or use 'observations'"
        )
    state = flat_size(shared_observation_space)
    everyone = sum(flat_size(space) for space in observation_spaces.values())
    size = {
        "state": state,
        "observations": everyone,
        "agent": flat_size(observation_spaces[uid]) + state,
        "both": state + everyone,
    }[kind]
    return spaces.Box(-np.inf, np.inf, (size,), np.float32)
