"""Checks of what users hand to agents: each error says what was expected, what came, and what to do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from coterie.memories.base import Memory
from coterie.models.base import Model
from coterie.models.mixins import StochasticMixin

__all__ = ["check_finite", "check_memories", "check_models", "refuse_absence"]


def check_models(models: Mapping[str, Mapping[str, Model]]) -> None:
    """Check the roles and kinds of a team's models, and create the parameters of lazy ones.

    :raises TypeError: something that is no model, or a policy without a distribution
    :raises ValueError: an agent without a policy, or critics for some agents only
    """
    for uid, roles in models.items():
        if "policy" not in roles:
            raise ValueError(f"models[{uid!r}]: expected a 'policy', got {sorted(roles)}")
        for role, model in roles.items():
            if not isinstance(model, Model):
                raise TypeError(f"models[{uid!r}][{role!r}]: expected a coterie Model, got {type(model).__name__}")
            model.to(model.device)  # hand-written models need not place their layers themselves
            model.init_state_dict(role)
        policy = roles["policy"]
        if not isinstance(policy, StochasticMixin):
            raise TypeError(
                f"models[{uid!r}]['policy']: expected a model with a distribution, such as a GaussianMixin or a "
                f"CategoricalMixin, got {type(policy).__name__}"
            )
    with_value = [uid for uid, roles in models.items() if "value" in roles]
    if with_value and len(with_value) != len(models):
        raise ValueError(f"expected a value model for every agent or for none, only {with_value} have one")


def check_memories(
    memories: Mapping[str, Memory], models: Mapping[str, Mapping[str, Model]], rollouts: int, parts: Mapping[str, int]
) -> None:
    """Check that memories fit the rollouts of an on-policy algorithm.

    :param rollouts: number of steps between updates
    :param parts: number of minibatches by agent

    :raises TypeError: something that is no memory
    :raises ValueError: a memory of the wrong size, an agent without a critic, or more minibatches than samples
    """
    for uid, memory in memories.items():
        if not isinstance(memory, Memory):
            raise TypeError(f"memories[{uid!r}]: expected a coterie Memory, got {type(memory).__name__}")
        if memory.memory_size != rollouts:
            raise ValueError(
                f"memories[{uid!r}]: expected memory_size {rollouts} as cfg['rollouts'], got {memory.memory_size}: an update "
                "reads the whole memory"
            )
        if "value" not in models[uid]:
            raise ValueError(f"models[{uid!r}] has no 'value': training needs a critic; pass memories=None to act only")
    sizes = {uid: memory.num_envs for uid, memory in memories.items()}
    if len(set(sizes.values())) != 1:
        raise ValueError(f"memories: expected one num_envs for all agents, got {sizes}")
    samples = rollouts * next(iter(sizes.values()))
    for uid, count in parts.items():
        if count > samples:
            raise ValueError(f"mini_batches: {count} for {uid!r}, but a rollout has {samples} samples")


def refuse_absence(infos: Mapping[str, Any]) -> None:
    """Refuse steps in which an agent is absent: this version would learn from what it did not see.

    :raises NotImplementedError: naming the agent
    """
    for uid, alive in (infos.get("active_masks") or {}).items():
        if not bool(alive.all()):
            raise NotImplementedError(
                f"agent {uid!r} left before the others: learning with agents that come and go is not supported in this version"
            )


def check_finite(what: str, tensor: Tensor, names: Sequence[str], num_envs: int | None = None) -> None:
    """Refuse NaN and infinity in ``[E, A, F]``, or in a rollout ``[T * E, A, F]`` of ``num_envs`` environments.

    :raises ValueError: naming agent, element, environment and value
    """
    # a finite sum vouches for all its terms; an infinite one may be an overflow of large finite numbers
    if not tensor.dtype.is_floating_point or math.isfinite(float(tensor.sum())) or bool(tensor.isfinite().all()):
        return
    row, agent, element = (int(i) for i in (~tensor.isfinite()).nonzero()[0])
    place = f"environment {row}" if num_envs is None else f"environment {row % num_envs}, step {row // num_envs}"
    raise ValueError(
        f"{what}[{names[agent]!r}]: expected finite numbers, got {float(tensor[row, agent, element])} in element {element} of "
        f"{place}; nothing was learned from it"
    )
