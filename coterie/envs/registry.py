"""Building the embedded environments by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

import torch

from coterie.envs.base import MultiAgentEnv
from coterie.envs.matrix import GAMES
from coterie.envs.particle import TASKS
from coterie.envs.recall import Recall

__all__ = ["ENVIRONMENTS", "make"]

#: constructors by name; each takes ``num_envs``, ``device``, ``seed`` and options of its own
ENVIRONMENTS: dict[str, Callable[..., MultiAgentEnv]] = {
    **{f"matrix/{name}": game for name, game in GAMES.items()},
    "memory/recall": Recall,
    **{f"particle/{name}": task for name, task in TASKS.items()},
}


def make(
    name: str, num_envs: int = 1, device: str | torch.device = "cpu", seed: int | None = None, **kwargs: Any
) -> MultiAgentEnv:
    """Build an embedded environment, such as ``"particle/simple_spread"``.

    :param name: a key of :data:`ENVIRONMENTS`
    :param num_envs: number of copies E
    :param device: where tensors live
    :param seed: seed of the environment's own generator; None draws one
    :param kwargs: options of the environment, e.g. ``continuous_actions=True``

    :raises ValueError: an unknown name
    :raises TypeError: an unknown option
    """
    if name not in ENVIRONMENTS:
        near = difflib.get_close_matches(name, ENVIRONMENTS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {sorted(ENVIRONMENTS)}"
        raise ValueError(f"unknown environment {name!r}: {hint}")
    return ENVIRONMENTS[name](num_envs=num_envs, device=device, seed=seed, **kwargs)
