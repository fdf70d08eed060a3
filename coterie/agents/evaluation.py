"""Values of a whole rollout: of every row, and of every row's true successor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from coterie.agents.group_networks import CriticInput, GroupNetworks, Recall
from coterie.agents.rollout import Rollout

__all__ = ["Evaluation", "evaluate"]


@dataclass
class Evaluation:
    """What critics make of a rollout, as they predict it (normalised where there is a value normaliser)."""

    values: Tensor  # [T, E, A, 1]
    successors: Tensor  # [T, E, A, 1], V of the state that followed
    chunk_states: Tensor | None = None  # [C * E, A or 1, W], recurrent states at the chunks' starts
    state: Tensor | None = None  # [E, A or 1, W], after the last row: the next rollout goes on from it


def evaluate(
    networks: GroupNetworks, rollout: Rollout, critic: CriticInput, state: Tensor | None, over: Tensor
) -> Evaluation:
    """Run a group's critics over a rollout.

    :param critic: normalised inputs of all rows ``[T * E, A or 1, F]``
    :param state: of recurrent critics before the first row ``[E, A or 1, W]``; None for zeros
    :param over: where the whole team's episode ended, bool ``[T, E, 1, 1]``
    """
    if networks.critic_remembers:
        return _in_turn(networks, rollout, critic, state, over)
    shape = rollout["rewards"].shape
    predicted, _ = networks.values(critic)
    values = predicted.expand(-1, shape[2], -1).view(shape)
    return Evaluation(values, _successors(networks, rollout, values, lambda row, envs: None))


def _in_turn(
    networks: GroupNetworks, rollout: Rollout, critic: CriticInput, state: Tensor | None, over: Tensor
) -> Evaluation:
    """Step by step, since what a recurrent critic makes of a successor depends on what it remembers then."""
    steps, environments, agents, _ = rollout["rewards"].shape
    batch = networks.group.value
    assert batch is not None
    if state is None:
        state = batch.initial_state(environments, critic.states.shape[1])
    own = state.shape[1] > 1 or agents == 1  # a state for each agent, in place of one for the team
    ended = rollout.ended() if own else over
    active = rollout.mask("active") if own else None
    values: list[Tensor] = []
    chunk_states: list[Tensor] = []
    after: list[Tensor] = []
    for t in range(steps):
        if t % rollout.length == 0:
            chunk_states.append(state)
        inputs = critic.at(slice(t * environments, (t + 1) * environments))
        predicted, state = networks.values(inputs, Recall(state, active=None if active is None else active[t]))
        assert state is not None
        values.append(predicted.expand(-1, agents, -1))
        after.append(state)
        state = state.masked_fill(ended[t], 0.0)
    stacked = torch.stack(values)
    successors = _successors(networks, rollout, stacked, lambda row, envs: after[row][envs])
    return Evaluation(stacked, successors, torch.cat(chunk_states), state)


def _successors(
    networks: GroupNetworks, rollout: Rollout, values: Tensor, remembered: Callable[[int, Tensor], Tensor | None]
) -> Tensor:
    """V of every row's true successor ``[T, E, A, 1]``.

    :param remembered: the critics' recurrent state ``[N, A or 1, W]`` after a row, in some environments
    """
    assert rollout.last is not None
    everywhere = torch.arange(values.shape[1], device=values.device)
    places = [(len(values) - 1, everywhere), *((cut.row, cut.envs) for cut in rollout.cuts)]
    critic = CriticInput.join([rollout.last, *(cut.critic for cut in rollout.cuts)])
    states = [remembered(row, envs) for row, envs in places]
    recall = None if states[0] is None else Recall(torch.cat([state for state in states if state is not None]))
    predicted, _ = networks.values(critic._replace(states=networks.critic_normalised(critic.states)), recall)
    parts = predicted.expand(-1, values.shape[2], -1).split([len(envs) for _, envs in places])
    successors = torch.cat([values[1:], parts[0].unsqueeze(0)])
    for cut, part in zip(rollout.cuts, parts[1:], strict=True):
        successors[cut.row, cut.envs] = torch.where(cut.agents, part, successors[cut.row, cut.envs])
    return successors
