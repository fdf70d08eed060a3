"""Building the embedded environments by name."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from typing import Any, cast

import torch

from coterie.envs.base import MultiAgentEnv
from coterie.envs.matrix import GAMES
from coterie.envs.particle import TASKS
from coterie.envs.recall import Recall

__all__ = ["ENVIRONMENTS", "make", "options"]

#: constructors by name; each takes ``num_envs``, ``device``, ``seed`` and options of its own (:func:`options`)
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
    :raises TypeError: an unknown option; the message lists those that there are
    """
    if name not in ENVIRONMENTS:
        near = difflib.get_close_matches(name, ENVIRONMENTS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {sorted(ENVIRONMENTS)}"
        raise ValueError(f"unknown environment {name!r}: {hint}")
    known = options(name)
    for option in kwargs:
        if option not in known:
            near = difflib.get_close_matches(option, known, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            listed = ", ".join(f"{key}={default!r}" for key, default in known.items())
            raise TypeError(f"{name}: unknown option {option!r}{hint}; its options and their defaults are {listed}")
    return ENVIRONMENTS[name](num_envs=num_envs, device=device, seed=seed, **kwargs)


def options(name: str) -> dict[str, Any]:
    """The options of an embedded environment and their defaults, beside ``num_envs``, ``device`` and ``seed``.

    :param name: a key of :data:`ENVIRONMENTS`
    """
    found: dict[str, Any] = {}
    for kind in inspect.getmro(cast(type, ENVIRONMENTS[name])):
        if "__init__" not in vars(kind):
            continue
        parameters = list(inspect.signature(vars(kind)["__init__"]).parameters.values())
        names = [p.name for p in parameters]
        behind_seed = names.index("seed") + 1 if "seed" in names else len(names)
        for i, p in enumerate(parameters):
            if p.kind is inspect.Parameter.KEYWORD_ONLY or (
                i >= behind_seed and p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
            ):
                found.setdefault(p.name, p.default)
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
            break  # else the rest goes to the class behind it
    return found
