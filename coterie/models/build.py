"""The whole models dict of a team in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import gymnasium
import torch
from gymnasium import spaces

from coterie.models.base import Model
from coterie.models.networks import (
    CategoricalPolicy,
    GaussianPolicy,
    MultiCategoricalPolicy,
    TanhGaussianPolicy,
    Value,
)

__all__ = ["build_models"]

#: which input an algorithm's critic sees
CRITIC_INPUTS = {"mappo": "shared_observation_spaces", "ippo": "observation_spaces"}


class TeamSpaces(Protocol):
    """What :func:`build_models` reads of an environment."""

    possible_agents: list[str]
    observation_spaces: Mapping[str, gymnasium.Space]
    action_spaces: Mapping[str, gymnasium.Space]
    shared_observation_spaces: Mapping[str, gymnasium.Space]
    device: torch.device


def build_models(
    env: TeamSpaces,
    algorithm: str = "mappo",
    shared: bool = True,
    hidden: Sequence[int] = (64, 64),
    activation: str = "tanh",
    agent_id: bool | None = None,
    value_hidden: Sequence[int] | None = None,
    squash: bool = True,
    initial_log_std: float = 0.0,
    state_dependent_std: bool = False,
    device: str | torch.device | None = None,
) -> dict[str, dict[str, Model]]:
    """Build a policy and a critic for every agent of ``env``.

    Discrete spaces get a categorical policy, MultiDiscrete ones a product of categoricals, a bounded Box a tanh-squashed
    Gaussian (``squash=False``: a clipped one), an unbounded Box a Gaussian. Weights are orthogonal with gain sqrt 2, 0.01
    for the policy's head and 1 for the critic's.

    :param algorithm: ``"mappo"`` for critics of the shared state, ``"ippo"`` for critics of the own observation
    :param shared: one policy and one critic for all agents of equal spaces, in place of one each
    :param hidden: widths of the hidden layers
    :param activation: ``"tanh"``, ``"relu"``, ``"elu"``, ``"gelu"``, ``"silu"`` or ``"leaky_relu"``
    :param agent_id: append a one-hot of the agent to what policies and critics of observations see. Shared models need
        it to tell agents apart that stand in the same place; by default it is on where models are shared by several agents.
        A critic of the shared state doesn't get it: one value serves the team
    :param value_hidden: widths of the critic's hidden layers, where they differ from ``hidden``
    :param squash: see above
    :param initial_log_std: initial logarithm of the standard deviation of Gaussian policies
    :param state_dependent_std: let the network compute the log-std in place of one learned vector
    :param device: where parameters live; the environment's device by default

    :return: ``{uid: {"policy": ..., "value": ...}}``; shared models are the same object

    :raises ValueError: an unknown algorithm or activation
    :raises TypeError: an action space without a policy
    """
    if algorithm not in CRITIC_INPUTS:
        raise ValueError(f"algorithm: expected one of {sorted(CRITIC_INPUTS)}, got {algorithm!r}")
    device = env.device if device is None else torch.device(device)
    centralised = CRITIC_INPUTS[algorithm] == "shared_observation_spaces"
    critic_spaces: Mapping[str, gymnasium.Space] = getattr(env, CRITIC_INPUTS[algorithm])
    agents = list(env.possible_agents)
    teams = _alike(env, agents) if shared else [[uid] for uid in agents]
    models: dict[str, dict[str, Model]] = {}
    critics: list[tuple[gymnasium.Space, Model]] = []
    for team in teams:
        uid = team[0]
        ids = len(agents) if (agent_id if agent_id is not None else len(team) > 1) else 0
        network: dict[str, Any] = {"hidden": tuple(hidden), "activation": activation}
        policy = _policy(
            env.observation_spaces[uid],
            env.action_spaces[uid],
            device,
            squash,
            {"initial_log_std": initial_log_std, "state_dependent_std": state_dependent_std},
            {**network, "agent_ids": ids},
        )
        value: Model | None = None
        if shared and centralised:  # one critic of the shared state serves agents of every kind
            value = next((critic for space, critic in critics if space == critic_spaces[uid]), None)
        if value is None:
            network["hidden"] = tuple(hidden if value_hidden is None else value_hidden)
            value = Value(
                critic_spaces[uid], env.action_spaces[uid], device, agent_ids=0 if centralised else ids, **network
            )
            critics.append((critic_spaces[uid], value))
        models.update({name: {"policy": policy, "value": value} for name in team})
    return {uid: models[uid] for uid in agents}


def _alike(env: TeamSpaces, agents: Sequence[str]) -> list[list[str]]:
    """Agents of equal observation, action and state spaces together."""
    teams: list[list[str]] = []
    for uid in agents:
        for team in teams:
            tables = (env.observation_spaces, env.action_spaces, env.shared_observation_spaces)
            if all(table[uid] == table[team[0]] for table in tables):
                team.append(uid)
                break
        else:
            teams.append([uid])
    return teams


def _policy(
    observation_space: gymnasium.Space,
    action_space: gymnasium.Space,
    device: torch.device,
    squash: bool,
    gaussian: Mapping[str, Any],
    network: Mapping[str, Any],
) -> Model:
    if isinstance(action_space, spaces.Discrete):
        return CategoricalPolicy(observation_space, action_space, device, **network)
    if isinstance(action_space, spaces.MultiDiscrete):
        return MultiCategoricalPolicy(observation_space, action_space, device, **network)
    if isinstance(action_space, spaces.Box):
        kind = TanhGaussianPolicy if squash and action_space.is_bounded() else GaussianPolicy
        return kind(observation_space, action_space, device, **gaussian, **network)
    raise TypeError(
        f"no ready-made policy for the action space {action_space}: expected Discrete, MultiDiscrete or Box"
    )
