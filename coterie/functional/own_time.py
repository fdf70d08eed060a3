"""An agent's own time, which stands still while it does not act: what comes between two of its actions, and after the last."""

from __future__ import annotations

import torch
from torch import Tensor

from coterie.functional.scan import backward_scan
from coterie.functional.signals import check_mask, per_agent

__all__ = ["between_own_actions", "outcome_known"]


def outcome_known(active: Tensor, done: Tensor, active_next: Tensor) -> Tensor:
    """Where the rollout shows what an action led to: the agent's next own action, or an end.

    False for the last row at which an agent acted that waits when the rollout ends: more of that action's reward may be
    still to come.

    :param active: bool ``[T, ...]``, where agents acted
    :param done: bool ``[T, ...]``, or a team's as in :func:`gae`
    :param active_next: bool ``[...]``, whether the agent acts on the state after the last row

    :return: bool ``[T, ...]``, False where agents did not act

    :raises ValueError: the tensors' shapes don't fit, or a mask is not bool
    """
    check_mask("active", active, active.shape)
    check_mask("active_next", active_next, active.shape[1:])
    done = per_agent("done", done, active.shape)
    told = torch.cat([active[1:], active_next.unsqueeze(0)]) | done
    return active & (backward_scan(told.float(), ~told) > 0)


def between_own_actions(rewards: Tensor, leads_to: Tensor, done: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
    """What each own action earns up to the next one, and the value of what it leads to.

    Both are read off at the rows of own actions; what the other rows hold means nothing.

    :param rewards: ``[T, ...]``
    :param leads_to: ``[T, ...]``, the value of the state after each row, 0 after a termination. Read where that state is
        acted on, or the row is done or the last
    :param done: bool ``[T, ...]``
    :param active: bool ``[T, ...]``, where the agents acted

    :return: sums of rewards and values, each ``[T, ...]``
    """
    ends = done.clone()  # the row before an own action, and the last before a cut, have nothing behind them
    ends[:-1] |= active[1:]
    ends[-1] = True
    sums = backward_scan(
        torch.stack([rewards, torch.where(ends, leads_to, 0.0)], dim=1), torch.stack([~ends, ~ends], dim=1)
    )
    own, following = sums.unbind(1)
    return own, following
