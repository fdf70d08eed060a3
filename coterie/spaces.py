"""Sizes of Gymnasium spaces as the networks see them."""

from __future__ import annotations

import gymnasium
import numpy as np
from gymnasium import spaces

__all__ = ["action_width", "flat_size"]


def flat_size(space: gymnasium.Space | int | tuple[int, ...] | list[int] | None) -> int:
    """Width of a space as the input or output of a network.

    A Box counts its elements, a Discrete its choices, a MultiDiscrete the sum of its choices; an int or a shape stands
    for a Box, None for nothing.

    :raises TypeError: any other space
    """
    if space is None:
        return 0
    if isinstance(space, (int, np.integer)):
        return int(space)
    if isinstance(space, (tuple, list)):
        return int(np.prod(space))
    if isinstance(space, spaces.Box):
        return int(np.prod(space.shape))
    if isinstance(space, spaces.Discrete):
        return int(space.n)
    if isinstance(space, spaces.MultiDiscrete):
        return int(space.nvec.sum())
    raise TypeError(f"expected a Box, Discrete or MultiDiscrete space, got {space}; wrap the environment to flatten it")


def action_width(space: gymnasium.Space) -> int:
    """Number of entries of one action as it is stored: 1 for Discrete, one each for MultiDiscrete, all of a Box.

    :raises TypeError: any other space
    """
    if isinstance(space, spaces.Discrete):
        return 1
    if isinstance(space, spaces.MultiDiscrete):
        return len(space.nvec)
    if isinstance(space, spaces.Box):
        return int(np.prod(space.shape))
    raise TypeError(f"expected a Box, Discrete or MultiDiscrete action space, got {space}")
