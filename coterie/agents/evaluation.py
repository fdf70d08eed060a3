"""Values of a whole rollout: of every row, and of every row's true successor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from coterie.agents.group_networks import CriticInput, CriticNetworks, Recall
from coterie.agents.masks import join_masks
from coterie.agents.rollout import Rollout, Successors

__all__ = ["Evaluation", "evaluate", "memory_rules"]


@dataclass
class Evaluation:
    """What critics make of a rollout, as they predict it (normalised where there is a value normaliser)."""

    values: Tensor  # [T, E, A, 1]
    successors: Tensor  # [T, E, A, 1], V of the state that followed
    chunk_states: Tensor | None = None  # [C * E, A or 1, W], recurrent states at the chunks' starts
    state: Tensor | None = None  # [E, A or 1, W], after the last row: the next rollout goes on from it


def evaluate(
    networks: CriticNetworks,
    rollouts: Sequence[Rollout],
    critic: CriticInput,
    beyond: Successors,
    state: Tensor | None,
    over: Tensor,
) -> Evaluation:
    """Run a critic group's critics over a rollout.

    :param rollouts: of its groups
    :param critic: normalised inputs of all rows ``[T * E, A or 1, F]``
    :param beyond: inputs at successors that are no rows, as they are
    :param state: of recurrent critics before the first row ``[E, A or 1, W]``; None for zeros
    :param over: where the whole team's episode ended, bool ``[T, E, 1, 1]``
    """
    if networks.remembers:
        return _in_turn(networks, rollouts, critic, beyond, state, over)
    steps, environments = rollouts[0]["rewards"].shape[:2]
    predicted, _ = networks.values(critic)
    values = predicted.expand(-1, len(networks.group.names), -1).unflatten(0, (steps, environments))
    return Evaluation(values, _successors(networks, beyond, values, lambda row, envs: None))


def memory_rules(networks: CriticNetworks, rollouts: Sequence[Rollout], over: Tensor) -> tuple[Tensor, Tensor | None]:
    """After which rows recurrent critics' states are zeroed, bool ``[T, E, A or 1, 1]``, and in which rows they change (None:
    in all): see :attr:`CriticGroup.one_state`.

    :param rollouts: of the critic group's groups
    :param over: where the whole team's episode ended, bool ``[T, E, 1, 1]``
    """
    if networks.group.one_state:
        return over, None
    ended = torch.cat([rollout.ended() for rollout in rollouts], dim=2)
    return ended, join_masks({rollout.names: rollout.mask("active") for rollout in rollouts})


def _in_turn(
    networks: CriticNetworks,
    rollouts: Sequence[Rollout],
    critic: CriticInput,
    beyond: Successors,
    state: Tensor | None,
    over: Tensor,
) -> Evaluation:
    """Step by step, since what a recurrent critic makes of a successor depends on what it remembers then."""
    steps, environments = rollouts[0]["rewards"].shape[:2]
    state = networks.initial_state(environments) if state is None else state
    ended, active = memory_rules(networks, rollouts, over)
    values: list[Tensor] = []
    chunk_states: list[Tensor] = []
    after: list[Tensor] = []
    for t in range(steps):
        if t % rollouts[0].length == 0:
            chunk_states.append(state)
        inputs = critic.at(slice(t * environments, (t + 1) * environments))
        predicted, state = networks.values(inputs, Recall(state, active=None if active is None else active[t]))
        assert state is not None
        values.append(predicted.expand(-1, len(networks.group.names), -1))
        after.append(state)
        state = state.masked_fill(ended[t], 0.0)
    stacked = torch.stack(values)
    successors = _successors(networks, beyond, stacked, lambda row, envs: after[row][envs])
    return Evaluation(stacked, successors, torch.cat(chunk_states), state)


def _successors(
    networks: CriticNetworks, beyond: Successors, values: Tensor, remembered: Callable[[int, Tensor], Tensor | None]
) -> Tensor:
    """V of every row's true successor ``[T, E, A, 1]``.

    :param remembered: the critics' recurrent state ``[N, A or 1, W]`` after a row, in some environments
    """
    assert beyond.last is not None
    everywhere = torch.arange(values.shape[1], device=values.device)
    places = [(len(values) - 1, everywhere), *((struck.row, struck.envs) for struck in beyond.truncations)]
    critic = CriticInput.join([beyond.last, *(struck.critic for struck in beyond.truncations)])
    states = [remembered(row, envs) for row, envs in places]
    recall = None if states[0] is None else Recall(torch.cat([state for state in states if state is not None]))
    predicted, _ = networks.values(networks.normalised(critic), recall)
    parts = predicted.expand(-1, values.shape[2], -1).split([len(envs) for _, envs in places])
    successors = torch.cat([values[1:], parts[0].unsqueeze(0)])
    for struck, part in zip(beyond.truncations, parts[1:], strict=True):
        kept = successors[struck.row, struck.envs]
        successors[struck.row, struck.envs] = torch.where(struck.agents, part, kept)
    return successors
