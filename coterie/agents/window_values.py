"""Action values of a batch of windows: of what was done, and of what it led to."""

from __future__ import annotations

import torch
from torch import Tensor

from coterie import functional
from coterie.agents.group_networks import GroupNetworks, Recall
from coterie.agents.groups import Group
from coterie.agents.replay_storage import Drawn

__all__ = ["values_over_time", "window_values"]


def window_values(
    group: Group, online: GroupNetworks, target: GroupNetworks, drawn: Drawn, double_q: bool, whole: bool
) -> tuple[Tensor, Tensor]:
    """Values ``[L, B, A, 1]`` of what a group's agents did, and of the states that all L steps led to.

    :param online: the group's networks
    :param target: its target networks
    :param double_q: whether the online network chooses the action that the target network values
    :param whole: whether all steps of a window are learned from; else the values of the first step only, ``[1, B, A, 1]``,
        come before those of L states
    """
    first = drawn.window.learn_from
    states = drawn.of("states", group)
    states = online.normalised(states.flatten(0, 1)).unflatten(0, states.shape[:2])
    if whole:
        q = values_over_time(online, group, states, drawn)
        q, choosing = q[:-1], q[1:].detach()
    else:
        q = _row_by_row(online, states[:1])
        with torch.no_grad():
            choosing = _row_by_row(online, states[1:]) if double_q else q
    with torch.no_grad():
        judging = values_over_time(target, group, states, drawn, 1)
        allowed = drawn.mask("action_masks", group)
        following = functional.double_q_values(
            choosing if double_q else judging, judging, None if allowed is None else allowed[first + 1 :]
        )
    return functional.chosen_values(q, drawn.of("actions", group)[first : first + len(q)]), following


def values_over_time(networks: GroupNetworks, group: Group, states: Tensor, drawn: Drawn, skip: int = 0) -> Tensor:
    """Action values of the rows to learn from and of the one behind them, ``[L + 1, B, A, n]``, or without the ``skip``
    first of them.

    :param states: of all rows, normalised, ``[R, B, A, F]``
    """
    window = drawn.window
    if not networks.remembers:
        return _row_by_row(networks, states[window.learn_from + skip :])
    policy, (starts, active) = group.policy, _own_games(drawn, group)
    assert policy is not None

    def run(rows: slice, memory: Tensor) -> tuple[Tensor, Tensor]:
        part = states[rows]
        recall = Recall(
            memory,
            starts[rows].flatten(0, 1),
            None if active is None else active[rows].flatten(0, 1),
            len(part),
        )
        (q, *_), after = networks.outputs(part.flatten(0, 1), recall)
        assert after is not None
        return q.unflatten(0, part.shape[:2]), after

    memory = policy.initial_state(*states.shape[1:3])
    if window.learn_from:
        with torch.no_grad():
            memory = run(slice(0, window.learn_from), memory)[1]
    return run(slice(window.learn_from, None), memory)[0][skip:]


def _own_games(drawn: Drawn, group: Group) -> tuple[Tensor, Tensor | None]:
    """The rows before which agents forget, and those that they take in, bool ``[R, B, A, 1]``; None for all.

    As in acting, they forget when their own game ends, whether or not others go on, and remember nothing new while they
    don't act; but what they saw at last, whose value stands for what a time limit cut off, they look at with what they
    remembered then. One that plays on after it begins anew at once.
    """
    window, active = drawn.window, drawn.mask("active", group)
    terminated, truncated = drawn.of("terminated", group), drawn.of("truncated", group)
    steps, starts = (mask.unflatten(-1, (-1, 1, 1)) for mask in (window.steps, window.starts))
    struck = _row_before(truncated & ~terminated & steps) & ~starts
    starts = starts | _row_before(terminated & steps)
    if active is None:
        return starts | (struck & steps), None
    at_last = ~active & (struck | ~steps)
    return starts | (struck & steps & active) | _row_before(at_last & steps), active | at_last


def _row_before(mask: Tensor) -> Tensor:
    """What a mask ``[R, ...]`` says of the row before each row; nothing for the first."""
    return torch.cat([torch.zeros_like(mask[:1]), mask[:-1]])


def _row_by_row(networks: GroupNetworks, states: Tensor) -> Tensor:
    """Action values ``[R, B, A, n]`` of states ``[R, B, A, F]``."""
    return networks.outputs(states.flatten(0, 1))[0][0].unflatten(0, states.shape[:2])
