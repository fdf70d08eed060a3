"""The whole models dict of a team in one call."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import gymnasium
import torch
from gymnasium import spaces

from coterie.models.base import Model
from coterie.models.critic_inputs import CRITIC_INPUTS, critic_space
from coterie.models.encoders import CNN
from coterie.models.mixers import AttentionMixer, Mixer, QMIXMixer
from coterie.models.networks import (
    BernoulliPolicy,
    CategoricalPolicy,
    GaussianPolicy,
    MultiCategoricalPolicy,
    QNetwork,
    TanhGaussianPolicy,
    Value,
)
from coterie.models.team_critics import TeamValue

__all__ = ["build_models"]

#: algorithms of policies and critics, and whether the critics see more than their agent does
CENTRALISED = {"mappo": True, "ippo": False}

#: algorithms of action values, and whether a mixer makes the team's value of them
MIXED = {"qmix": True, "vdn": False, "iql": False}

#: critics of the whole team, by how they gather what its agents see
TEAM_CRITICS = {"pooled": "mean", "attention": "attention"}

MIXERS: dict[str, Callable[..., Mixer]] = {"qmix": QMIXMixer, "attention": AttentionMixer}

#: what a mixer may see: what is the same for all agents
MIXER_INPUTS = ("state", "observations", "both")

#: arguments that only some algorithms' models have a use for
USED_BY = {
    **dict.fromkeys(
        ("value_hidden", "squash", "initial_log_std", "state_dependent_std", "critic", "critic_input"),
        tuple(CENTRALISED),
    ),
    **dict.fromkeys(("mixer", "mixer_input", "mixer_embed"), tuple(name for name in MIXED if MIXED[name])),
    "dueling": tuple(MIXED),
}


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
    activation: str | None = None,
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
    mixer: str | None = None,
    mixer_input: str | None = None,
    mixer_embed: int = 32,
    dueling: bool = False,
) -> dict[str, dict[str, Model]]:
    """Build the models of every agent of ``env``: a policy and a critic, or a network of action values (and a mixer).

    Policies: Discrete spaces get a categorical one, MultiDiscrete ones a product of categoricals, MultiBinary ones a product
    of Bernoullis, a bounded Box a tanh-squashed Gaussian (``squash=False``: a clipped one), an unbounded Box a Gaussian. Action
    values are for Discrete spaces. Weights are orthogonal with gain sqrt 2, 0.01 for the policy's head and 1 for that of
    critics and action values. Images, also those inside of a Dict or Tuple, go through convolutions.

    :param algorithm: ``"mappo"`` for critics of the shared state, ``"ippo"`` for critics of the own observation; ``"qmix"`` for
        action values and a mixer, ``"vdn"`` and ``"iql"`` for action values
    :param shared: one policy and one critic (or one network of action values) for all agents of equal spaces, in place of one
        each
    :param hidden: widths of the hidden layers
    :param activation: ``"tanh"``, ``"relu"``, ``"elu"``, ``"gelu"``, ``"silu"`` or ``"leaky_relu"``; by default ``"tanh"`` for
        policies and critics, and ``"relu"`` for action values, as published results of either have it
    :param agent_id: append a one-hot of the agent to what networks of observations see. Shared models need it to tell agents
        apart that stand in the same place; by default it is on where models are shared by several agents. A critic of the
        shared state doesn't get it: one value serves the team
    :param value_hidden: widths of the critic's hidden layers, where they differ from ``hidden``
    :param squash: see above
    :param initial_log_std: initial logarithm of the standard deviation of Gaussian policies
    :param state_dependent_std: let the network compute the log-std in place of one learned vector
    :param device: where parameters live; the environment's device by default
    :param rnn: ``"gru"`` or ``"lstm"`` for policies, critics and action values with a memory, None for none
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
    :param mixer: ``"qmix"`` (the default) for the monotone network of :class:`QMIXMixer`, ``"attention"`` for the weighted sum
        of :class:`AttentionMixer`
    :param mixer_input: what the mixer sees, as the configuration of the agent says it: ``"state"`` (the default),
        ``"observations"`` of all agents, or ``"both"``
    :param mixer_embed: width of the mixing network's hidden layer, or of what attention compares
    :param dueling: work action values out as a state's value and the actions' advantages: see :class:`QNetwork`

    :return: ``{uid: {"policy": ..., "value": ...}}``, or ``{uid: {"q": ...}}``, with the team's ``"mixer"`` for ``"qmix"``;
        shared models are the same object

    :raises ValueError: an unknown algorithm, activation, recurrent layer, critic or mixer, an input that a critic or mixer does
        not take, or an argument that the algorithm's models have no use for
    :raises TypeError: an action space without a policy, or without action values; an environment that was not wrapped
    """
    if algorithm not in {**CENTRALISED, **MIXED}:
        raise ValueError(f"algorithm: expected one of {sorted({**CENTRALISED, **MIXED})}, got {algorithm!r}")
    _refuse_useless(algorithm, locals())
    _check_environment(env, device)
    device = env.device if device is None else torch.device(device)
    if activation is None:
        activation = "relu" if algorithm in MIXED else "tanh"
    network: dict[str, Any] = {
        "hidden": tuple(hidden), "activation": activation, "cnn": cnn,
        "rnn": rnn, "rnn_size": rnn_size, "rnn_layers": rnn_layers, "sequence_length": sequence_length,
    }  # fmt: skip
    kinds = _kinds(env, shared, agent_id)
    if algorithm in MIXED:
        models = _q_networks(env, kinds, device, {**network, "dueling": dueling})
        if MIXED[algorithm]:
            of_team = _mixer(env, device, mixer, mixer_input, mixer_embed)
            models = {uid: {**own, "mixer": of_team} for uid, own in models.items()}
    else:
        gaussian = {"initial_log_std": initial_log_std, "state_dependent_std": state_dependent_std}
        of_policy = {**network, "squash": squash, "gaussian": gaussian}
        of_critic = {**network, "hidden": tuple(hidden if value_hidden is None else value_hidden)}
        sees = _critic_input(algorithm, critic, critic_input)
        models = _policies_and_critics(env, kinds, shared, device, critic, sees, of_policy, of_critic)
    return {uid: models[uid] for uid in env.possible_agents}


def _check_environment(env: Any, device: str | torch.device | None) -> None:
    """Refuse what is no environment of this library, such as one that was not wrapped."""
    needed = [name for name in TeamSpaces.__annotations__ if name != "device" or device is None]
    missing = [name for name in needed if not hasattr(env, name)]
    if missing:
        raise TypeError(
            f"env: expected an environment that has {needed}, got {type(env).__name__} without {missing}; "
            "coterie.wrap_env makes one of other libraries' environments"
        )


def _refuse_useless(algorithm: str, arguments: Mapping[str, Any]) -> None:
    """Refuse arguments other than their defaults that the models of an algorithm have no use for."""
    parameters = inspect.signature(build_models).parameters
    for name, algorithms in USED_BY.items():
        value = arguments[name]
        if algorithm not in algorithms and value != parameters[name].default:
            raise ValueError(
                f"{name}: models of {algorithm!r} have no use for it: leave out {name}={value!r}, or use one of "
                f"{list(algorithms)}"
            )


def _kinds(env: TeamSpaces, shared: bool, agent_id: bool | None) -> list[tuple[list[str], int]]:
    """The agents that have models in common, and the width of the one-hot of the agent that these models see."""
    agents = list(env.possible_agents)
    together = _alike(env, agents) if shared else [[uid] for uid in agents]
    return [(kind, len(agents) if (agent_id if agent_id is not None else len(kind) > 1) else 0) for kind in together]


# ---- policies and critics --------------------------------------------------------------------------------------------


def _policies_and_critics(
    env: TeamSpaces,
    kinds: Sequence[tuple[list[str], int]],
    shared: bool,
    device: torch.device,
    critic: str,
    sees: str,
    of_policy: Mapping[str, Any],
    of_critic: Mapping[str, Any],
) -> dict[str, dict[str, Model]]:
    agents = list(env.possible_agents)
    everybody = _team_critic(env, device, critic, sees, of_critic)
    models: dict[str, dict[str, Model]] = {}
    critics: list[tuple[gymnasium.Space, Model]] = []
    for kind, ids in kinds:
        uid = kind[0]
        action_space = env.action_spaces[uid]
        policy = _policy(env.observation_spaces[uid], action_space, device, agent_ids=ids, **of_policy)
        value = everybody
        if value is None:
            space = _seen(env, agents, uid, sees)
            if sees in ("own", "agent"):
                value = Value(space, action_space, device, agent_ids=ids, **of_critic)
            else:  # one critic of what all see alike serves agents of every kind
                value = next((other for known, other in critics if shared and known == space), None)
                value = value or Value(space, action_space, device, **of_critic)
                critics.append((space, value))
        models.update({name: {"policy": policy, "value": value} for name in kind})
    return models


def _team_critic(
    env: TeamSpaces, device: torch.device, critic: str, sees: str, of_critic: Mapping[str, Any]
) -> Model | None:
    """One critic with a value for each agent, where such a kind is asked for."""
    agents = list(env.possible_agents)
    hidden, activation, cnn = (of_critic[name] for name in ("hidden", "activation", "cnn"))
    if critic == "heads":
        space, action_space = _seen(env, agents, agents[0], sees), env.action_spaces[agents[0]]
        return Value(space, action_space, device, values=len(agents), hidden=hidden, activation=activation, cnn=cnn)
    if critic in TEAM_CRITICS:
        observed = {uid: env.observation_spaces[uid] for uid in agents}
        return TeamValue(observed, TEAM_CRITICS[critic], hidden, activation, cnn=cnn, device=device)
    return None


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


def _policy(
    observation_space: gymnasium.Space,
    action_space: gymnasium.Space,
    device: torch.device,
    *,
    squash: bool,
    gaussian: Mapping[str, Any],
    **network: Any,
) -> Model:
    """The ready-made policy for a space."""
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


# ---- action values and mixers ----------------------------------------------------------------------------------------


def _q_networks(
    env: TeamSpaces, kinds: Sequence[tuple[list[str], int]], device: torch.device, network: Mapping[str, Any]
) -> dict[str, dict[str, Model]]:
    models: dict[str, dict[str, Model]] = {}
    for kind, ids in kinds:
        spaces_of = env.observation_spaces[kind[0]], env.action_spaces[kind[0]]
        q_network = QNetwork(*spaces_of, device, agent_ids=ids, **network)
        models.update({uid: {"q": q_network} for uid in kind})
    return models


def _mixer(env: TeamSpaces, device: torch.device, kind: str | None, sees: str | None, embed: int) -> Mixer:
    """The mixer of the team, which sees what is the same for all agents."""
    kind = "qmix" if kind is None else kind
    sees = "state" if sees is None else sees
    if kind not in MIXERS:
        raise ValueError(f"mixer: expected one of {list(MIXERS)}, got {kind!r}")
    if sees not in MIXER_INPUTS:
        raise ValueError(f"mixer_input: expected one of {list(MIXER_INPUTS)}, got {sees!r}")
    first, *others = agents = list(env.possible_agents)
    states = env.shared_observation_spaces
    other = next((uid for uid in others if states[uid] != states[first]), None)
    if other is not None and sees != "observations":
        raise ValueError(
            f"mixer_input {sees!r}: a mixer sees one state of the team, and those of {first!r} and {other!r} differ in their "
            f"spaces, {states[first]} and {states[other]}; use mixer_input='observations'"
        )
    return MIXERS[kind](_seen(env, agents, first, sees), len(agents), device, embed)


# ---- spaces ----------------------------------------------------------------------------------------------------------


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
