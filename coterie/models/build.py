"""The whole models dict of a team in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import gymnasium
import torch
from gymnasium import spaces

from coterie.models.base import Model
from coterie.models.critic_inputs import CRITIC_INPUTS, critic_space
from coterie.models.encoders import CNN
from coterie.models.networks import (
    BernoulliPolicy,
    CategoricalPolicy,
    GaussianPolicy,
    MultiCategoricalPolicy,
    TanhGaussianPolicy,
    Value,
)
from coterie.models.team_critics import TeamValue

__all__ = ["build_models"]

#: algorithms whose critics see more than their agent does
CENTRALISED = {"mappo": True, "ippo": False}

#: critics of the whole team, by how they gather what its agents see
TEAM_CRITICS = {"pooled": "mean", "attention": "attention"}


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
    rnn: str | None = None,
    rnn_size: int = 64,
    rnn_layers: int = 1,
    sequence_length: int = 10,
    cnn: Sequence[int] = CNN,
    critic: str = "mlp",
    critic_input: str | None = None,
) -> dict[str, dict[str, Model]]:
    """Build a policy and a critic for every agent of ``env``.

    Discrete spaces get a categorical policy, MultiDiscrete ones a product of categoricals, MultiBinary ones a product of
    Bernoullis, a bounded Box a tanh-squashed Gaussian (``squash=False``: a clipped one), an unbounded Box a Gaussian. Weights
    are orthogonal with gain sqrt 2, 0.01 for the policy's head and 1 for the critic's. Images, also those inside of a Dict
    or Tuple, go through convolutions.

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
    :param rnn: ``"gru"`` or ``"lstm"`` for policies and critics with a memory, None for none
    :param rnn_size: width of the recurrent layers
    :param rnn_layers: number of recurrent layers
    :param sequence_length: number of steps that the recurrent layers' gradients flow through
    :param cnn: output channels of the convolutions that images go through; empty to flatten images
    :param critic: ``"mlp"`` gives the team one value (``"agent"`` inputs aside), which suits rewards that all agents share; one
        critic for everybody with a value for each agent is ``"heads"``, a perceptron with an output for each agent,
        ``"pooled"``, which averages over what the other agents observe, or ``"attention"``, which attends to it. These three
        have no memory; the last two see all agents' observations (``critic_input`` is ``"observations"``)
    :param critic_input: what centralised critics see, as the configuration of the agent says it: ``"state"`` (the default),
        ``"observations"`` of all agents, the own observation and the state (``"agent"``), or ``"both"`` of the first two

    :return: ``{uid: {"policy": ..., "value": ...}}``; shared models are the same object

    :raises ValueError: an unknown algorithm, activation, recurrent layer or critic, or an input that a critic does not take
    :raises TypeError: an action space without a policy
    """
    if algorithm not in CENTRALISED:
        raise ValueError(f"algorithm: expected one of {sorted(CENTRALISED)}, got {algorithm!r}")
    sees = _critic_input(algorithm, critic, critic_input)
    device = env.device if device is None else torch.device(device)
    agents = list(env.possible_agents)
    network: dict[str, Any] = {
        "activation": activation, "cnn": cnn,
        "rnn": rnn, "rnn_size": rnn_size, "rnn_layers": rnn_layers, "sequence_length": sequence_length,
    }  # fmt: skip
    gaussian = {"initial_log_std": initial_log_std, "state_dependent_std": state_dependent_std}
    value_hidden = tuple(hidden if value_hidden is None else value_hidden)
    everybody: Model | None = None
    if critic == "heads":
        space = _seen(env, agents, agents[0], sees)
        action_space = env.action_spaces[agents[0]]
        everybody = Value(
            space, action_space, device, values=len(agents), hidden=value_hidden, activation=activation, cnn=cnn
        )
    elif critic in TEAM_CRITICS:
        observed = {uid: env.observation_spaces[uid] for uid in agents}
        everybody = TeamValue(observed, TEAM_CRITICS[critic], value_hidden, activation, cnn=cnn, device=device)
    models: dict[str, dict[str, Model]] = {}
    critics: list[tuple[gymnasium.Space, Model]] = []
    for team in _alike(env, agents) if shared else [[uid] for uid in agents]:
        uid = team[0]
        action_space = env.action_spaces[uid]
        ids = len(agents) if (agent_id if agent_id is not None else len(team) > 1) else 0
        policy = _policy(
            env.observation_spaces[uid], action_space, device, squash, gaussian,
            {**network, "hidden": tuple(hidden), "agent_ids": ids},
        )  # fmt: skip
        value = everybody
        if value is None:
            space = _seen(env, agents, uid, sees)
            if sees in ("own", "agent"):
                value = Value(space, action_space, device, hidden=value_hidden, agent_ids=ids, **network)
            else:  # one critic of what all see alike serves agents of every kind
                value = next((other for known, other in critics if shared and known == space), None)
                value = value or Value(space, action_space, device, hidden=value_hidden, **network)
                critics.append((space, value))
        models.update({name: {"policy": policy, "value": value} for name in team})
    return {uid: models[uid] for uid in agents}


def _critic_input(algorithm: str, critic: str, critic_input: str | None) -> str:
    """What critics see: one of ``CRITIC_INPUTS``, or ``"own"``, the own observation."""
    if critic not in ("mlp", "heads", *TEAM_CRITICS):
        raise ValueError(f"critic: expected one of {['mlp', 'heads', *TEAM_CRITICS]}, got {critic!r}")
    if critic_input is not None and critic_input not in CRITIC_INPUTS:
        raise ValueError(f"critic_input: expected one of {list(CRITIC_INPUTS)}, got {critic_input!r}")
    if not CENTRALISED[algorithm]:
        if critic != "mlp" or critic_input is not None:
            raise ValueError(
                f"critics of {algorithm!r} see their agent's observation alone: leave out critic={critic!r} and "
                f"critic_input={critic_input!r}, or use one of {[name for name in CENTRALISED if CENTRALISED[name]]}"
            )
        return "own"
    if critic == "heads" and critic_input == "agent":
        raise ValueError(
            "a critic of the kind 'heads' sees what all agents see alike: expected another critic_input than 'agent'"
        )
    if critic in TEAM_CRITICS and critic_input not in (None, "observations"):
        raise ValueError(
            f"a critic of the kind {critic!r} sees 'observations', not {critic_input!r}: leave critic_input out"
        )
    return "observations" if critic in TEAM_CRITICS else critic_input or "state"


def _seen(env: TeamSpaces, agents: Sequence[str], uid: str, sees: str) -> gymnasium.Space:
    """Space of what the critic of an agent sees."""
    if sees == "own":
        return env.observation_spaces[uid]
    if sees == "state":  # as it is, since it may have a structure
        return env.shared_observation_spaces[uid]
    observed = {name: env.observation_spaces[name] for name in agents}
    shared = None if sees == "observations" else env.shared_observation_spaces[uid]
    return critic_space(sees, uid, observed, shared)


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
    if isinstance(action_space, spaces.MultiBinary):
        return BernoulliPolicy(observation_space, action_space, device, **network)
    if isinstance(action_space, spaces.Box):
        kind = TanhGaussianPolicy if squash and action_space.is_bounded() else GaussianPolicy
        return kind(observation_space, action_space, device, **gaussian, **network)
    raise TypeError(
        f"no ready-made policy for the action space {action_space}: expected Discrete, MultiDiscrete, MultiBinary or Box"
    )
