"""Checks of what users hand to agents: each error says what was expected, what came, and what to do."""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from coterie.agents.config import ConfigError
from coterie.memories.base import Memory
from coterie.memories.prioritized import PrioritizedMemory
from coterie.memories.replay import ReplayMemory
from coterie.models.base import Model
from coterie.models.mixins import QMixin, StochasticMixin
from coterie.models.scripted import ScriptedPolicy
from coterie.spaces import flat_size

__all__ = [
    "acting_role",
    "check_finite",
    "check_gradients",
    "check_memories",
    "check_models",
    "check_policies",
    "check_q_models",
    "check_replay_memories",
    "check_std_from_outside",
    "team_device",
    "with_scripts",
]


def acting_role(roles: Collection[str]) -> str:
    """The role of the model that an agent acts by: ``"policy"`` where it has one, else ``"q"``."""
    return "policy" if "policy" in roles or "q" not in roles else "q"


def with_scripts(
    models: Mapping[str, Mapping[str, Any]],
    observation_spaces: Mapping[str, gymnasium.Space] | None,
    action_spaces: Mapping[str, gymnasium.Space] | None,
    device: torch.device,
) -> dict[str, dict[str, Any]]:
    """A team's models, with a :class:`ScriptedPolicy` in place of each plain function.

    :raises ValueError: a function's spaces are not known
    """
    team = {uid: dict(roles) for uid, roles in models.items()}
    observed, chosen = observation_spaces or {}, action_spaces or {}
    for uid, roles in team.items():
        policy = roles.get("policy")
        if callable(policy) and not isinstance(policy, nn.Module):
            if uid not in observed or uid not in chosen:
                raise ValueError(
                    f"models[{uid!r}]['policy'] is a function: pass observation_spaces and action_spaces, or wrap it in a "
                    "ScriptedPolicy, which has them"
                )
            roles["policy"] = ScriptedPolicy(observed[uid], chosen[uid], policy, device)
    return team


def team_device(models: Mapping[str, Mapping[str, Any]], device: str | torch.device | None) -> torch.device:
    """Where a team is computed: where the user says, or where its first network is."""
    if device is not None:
        return torch.device(device)
    policies = [roles.get(acting_role(roles)) for roles in models.values()]
    networks = [policy for policy in policies if isinstance(policy, Model) and not isinstance(policy, ScriptedPolicy)]
    return networks[0].device if networks else torch.device("cpu")


def check_models(
    models: Mapping[str, Mapping[str, Model]], learning: Sequence[str], learned_roles: Sequence[str]
) -> None:
    """Check the roles and kinds of a team's models, and create the parameters of lazy ones.

    :param learning: the agents that learn
    :param learned_roles: the roles of what they learn, first that of the models they act by

    :raises TypeError: something that is no model, or a policy without a distribution
    :raises ValueError: an agent without a model to act by, or with one that would never be trained; critics for some only
    """
    first, *others = learned_roles
    for uid, roles in models.items():
        acting = acting_role(roles)
        if acting not in roles or (uid in learning and acting != first):
            others_too = "" if acting not in roles else f" ({acting!r} is for agents with cfg['trainable'] False)"
            raise ValueError(f"models[{uid!r}]: expected a {first!r}, got {sorted(roles)}{others_too}")
        unknown = sorted(set(roles) - set(learned_roles)) if uid in learning else []
        if unknown:
            raise ValueError(
                f"models[{uid!r}]: got {unknown}, which this algorithm would never train; expected the roles "
                f"{list(learned_roles)} alone"
            )
        for role, model in roles.items():
            if not isinstance(model, Model):
                scripted = callable(model) and not isinstance(model, (nn.Module, type))
                instead = "; a plain function that acts goes under 'policy'" if scripted else ""
                raise TypeError(
                    f"models[{uid!r}][{role!r}]: expected a coterie Model, got {type(model).__name__}{instead}"
                )
            model.to(model.device)  # hand-written models need not place their layers themselves
            model.init_state_dict(role)
        policy = roles[acting]
        if not isinstance(policy, (StochasticMixin, ScriptedPolicy)):
            raise TypeError(
                f"models[{uid!r}][{acting!r}]: expected a model with a distribution, such as a GaussianMixin or a "
                f"CategoricalMixin, got {type(policy).__name__}"
            )
    for role in others:
        having = [uid for uid in learning if role in models[uid]]
        if having and len(having) != len(learning):
            raise ValueError(f"expected a {role} model for every agent that learns or for none, only {having} have one")
    _check_sharing(models, learning)


def _check_sharing(models: Mapping[str, Mapping[str, Model]], learning: Sequence[str]) -> None:
    """Refuse policies of agents that don't learn which change as others do."""
    taught: dict[int, list[str]] = {}
    for uid in learning:
        for parameter in dict.fromkeys(p for model in models[uid].values() for p in model.parameters()):
            taught.setdefault(id(parameter), []).append(uid)
    for uid in (name for name in models if name not in learning):
        acting = models[uid][acting_role(models[uid])]
        sharing = next((taught[id(p)] for p in acting.parameters() if id(p) in taught), None)
        if sharing is not None:
            raise ValueError(
                f"{uid!r} does not learn (cfg['trainable']) but shares its policy with agents that do, {sharing}: give it a "
                f"policy of its own, such as that of build_models(..., shared=False)[{uid!r}]"
            )


def check_policies(
    policies: Mapping[str, Model],
    observation_spaces: Mapping[str, gymnasium.Space],
    action_spaces: Mapping[str, gymnasium.Space],
) -> None:
    """Check that policies were built for their agents' spaces; one that was built for sizes is taken at its word.

    :raises ValueError: one was built for another size, other choices, or other bounds of actions
    """
    for uid, policy in policies.items():
        theirs = action_spaces[uid]
        for what, mine, space in (
            ("observations", policy.num_observations, observation_spaces[uid]),
            ("actions", policy.num_actions, theirs),
        ):
            if mine != flat_size(space):
                raise ValueError(
                    f"the policy of {uid!r} was built for {mine} {what}, its agent has {flat_size(space)}: {space}"
                )
        built = policy.action_space
        if isinstance(built, gymnasium.Space) and not _same_actions(built, theirs):
            raise ValueError(
                f"the policy of {uid!r} was built for the actions {built}, its agent has {theirs}: build it for the agent's "
                "action space"
            )


def _same_actions(built: gymnasium.Space, theirs: gymnasium.Space) -> bool:
    """Whether actions of two spaces of one size mean the same. Infinite bounds of a Box leave those to the other."""
    if isinstance(built, spaces.Box) and isinstance(theirs, spaces.Box):
        pairs = ((built.low, theirs.low), (built.high, theirs.high))
        return all(
            np.all((mine.ravel() == other.ravel()) | np.isinf(mine.ravel()) | np.isinf(other.ravel()))
            for mine, other in pairs
        )
    if isinstance(built, spaces.MultiDiscrete) and isinstance(theirs, spaces.MultiDiscrete):
        return built.nvec.ravel().tolist() == theirs.nvec.ravel().tolist()
    kinds = spaces.Discrete, spaces.MultiBinary
    return any(isinstance(built, kind) and isinstance(theirs, kind) for kind in kinds)


def check_q_models(models: Mapping[str, Model], action_spaces: Mapping[str, gymnasium.Space]) -> None:
    """Check that networks of action values are some, and that there is a value for each action.

    :raises TypeError: a model of another kind, or actions that are not Discrete
    """
    for uid, model in models.items():
        if not isinstance(model, QMixin):
            raise TypeError(
                f"models[{uid!r}]['q']: expected a model of action values, with QMixin, got {type(model).__name__}"
            )
        if not isinstance(action_spaces[uid], spaces.Discrete):
            raise TypeError(
                f"{uid!r} has the actions {action_spaces[uid]}: action values need a Discrete space; wrap the environment in "
                "coterie.envs.DiscreteActions"
            )


def check_std_from_outside(names: Sequence[str], policies: Sequence[Model]) -> None:
    """Check that policies take their standard deviations from outside.

    :raises ConfigError: one does not
    """
    for policy in policies:
        make = getattr(policy, "make_distribution")  # noqa: B009 (policies have it, models in general don't)
        if "std" not in inspect.signature(make).parameters:
            raise ConfigError(
                f"exploration_std: expected Gaussian policies, {list(names)} have a {type(policy).__name__}; a dict by agent "
                "has None for agents without one"
            )


def check_memories(
    memories: Mapping[str, Memory],
    models: Mapping[str, Mapping[str, Model]],
    learning: Sequence[str],
    rollouts: int,
) -> None:
    """Check that memories fit the rollouts of an on-policy algorithm.

    :param learning: the agents that learn
    :param rollouts: number of steps between updates

    :raises TypeError: something that is no memory
    :raises ValueError: a memory of the wrong size, or an agent without a critic
    """
    for uid, memory in memories.items():
        if not isinstance(memory, Memory):
            raise TypeError(f"memories[{uid!r}]: expected a coterie Memory, got {type(memory).__name__}")
        if memory.memory_size != rollouts:
            raise ValueError(
                f"memories[{uid!r}]: expected memory_size {rollouts} as cfg['rollouts'], got {memory.memory_size}: an update "
                "reads the whole memory"
            )
        if uid in learning and "value" not in models[uid]:
            raise ValueError(f"models[{uid!r}] has no 'value': training needs a critic; pass memories=None to act only")
    if not memories:
        raise ValueError("memories: no agent learns; pass memories=None to act only")
    sizes = {uid: memory.num_envs for uid, memory in memories.items()}
    if len(set(sizes.values())) != 1:
        raise ValueError(f"memories: expected one num_envs for all agents, got {sizes}")


def check_replay_memories(memories: Mapping[str, Memory]) -> None:
    """Check that memories are of one kind that keeps what is long ago.

    :raises TypeError: a memory of another kind
    :raises ValueError: memories that differ
    """
    for uid, memory in memories.items():
        if not isinstance(memory, ReplayMemory):
            raise TypeError(
                f"memories[{uid!r}]: expected a ReplayMemory, PrioritizedMemory or EpisodeMemory, got {type(memory).__name__}; "
                "this algorithm learns from what was done long ago"
            )
    if not memories:
        raise ValueError("memories: no agent learns; pass memories=None to act only")

    def settings(memory: Memory) -> dict[str, Any]:
        private = {"seed", "device", "memory_index", "filled"}
        shown = {name: value for name, value in vars(memory).items() if name[0] != "_" and name not in private}
        beta = {"beta": memory.beta} if isinstance(memory, PrioritizedMemory) else {}
        return {"class": type(memory).__name__, **shown, **beta}

    owners: dict[int, str] = {}
    (first, memory), *others = memories.items()
    for uid, other in memories.items():
        if owners.setdefault(id(other), uid) != uid:
            raise ValueError(
                f"memories: {owners[id(other)]!r} and {uid!r} have one object in common; expected one for each agent, since it "
                "shows that agent's part"
            )
    for uid, other in others:
        if settings(other) != settings(memory):
            raise ValueError(
                f"memories: expected one kind and size for all agents, since they are drawn from together; {first!r} has "
                f"{settings(memory)}, {uid!r} {settings(other)}"
            )


def check_gradients(norms: Sequence[Tensor], sets: Sequence[Sequence[str]]) -> None:
    """Refuse an update in which a gradient was NaN or infinite (one look at the device).

    :param norms: the gradients' norms ``[S, 1 or 2]`` of each of the update's steps
    :param sets: the agents of each of the S parameter sets

    :raises FloatingPointError: naming the agents
    """
    steps = torch.stack(tuple(norms)).sum(dim=2)  # [steps, S]
    if math.isfinite(float(steps.sum())):
        return
    faults = (~steps.isfinite()).sum(dim=0).tolist()
    agents = [uid for names, count in zip(sets, faults, strict=True) if count for uid in names]
    if not agents:
        return  # finite norms whose sum is not
    raise FloatingPointError(
        f"the update of {agents}: expected finite gradients, got NaN or infinity in {max(faults)} of {len(steps)} steps, and "
        "their parameters are spoilt. A model returned it, or the loss overflowed: look at compute, or lower learning_rate or "
        "grad_norm_clip, and go on from the last checkpoint"
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
