"""Generalised advantage estimation, and means and standardisation over the entries that count."""

from __future__ import annotations

import torch
from torch import Tensor

from coterie.functional.own_time import between_own_actions, outcome_known
from coterie.functional.scan import backward_scan
from coterie.functional.signals import check_mask, check_shape, per_agent

__all__ = ["gae", "masked_mean", "multi_agent_gae", "standardise"]


def gae(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    discount: float | Tensor,
    gae_lambda: float | Tensor,
    active: Tensor | None = None,
    active_next: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, arXiv 1506.02438, eq. 16).

    With ``done = terminated | truncated``::

        delta_t = r_t + discount * (1 - terminated_t) * V(s_{t+1}) - V(s_t)
        A_t     = delta_t + discount * lambda * (1 - done_t) * A_{t+1}          A_T = 0
        R_t     = A_t + V(s_t)

    A termination removes the bootstrap, any end cuts the recursion: no advantage crosses an episode's boundary.

    With ``active``, an agent's time stands still while it does not act. Let t be a row at which it acts, e the first row
    from t on that is done, or the rollout's last row, and u the next row at which it acts. What it earns before u, or up
    to and with e, is the reward of t, undiscounted::

        u <= e:     delta_t = sum(r_t .. r_{u-1}) + discount * V(s_u) - V(s_t)
                    A_t     = delta_t + discount * lambda * A_u
        otherwise:  delta_t = sum(r_t .. r_e) + discount * (1 - terminated_e) * V(s_{e+1}) - V(s_t)
                    A_t     = delta_t

    Advantages of the other rows are 0 and their returns the values; whatever they hold besides rewards and ends (and
    ``next_values`` in row e) has no effect. What is earned between an end and the next own action belongs to no action.

    With ``active_next``, the last action of an agent that does not act on the state after the last row is open, unless an
    end follows it (:func:`outcome_known`): more of its reward may be still to come. What it earned so far then has no
    effect, its advantage is 0, and the recursion ends before it. With u the row of an open action::

        delta_t = sum(r_t .. r_{u-1}) + discount * V(s_u) - V(s_t)
        A_t     = delta_t

    What describes the whole team may leave the agent dimension out: with values ``[..., A, 1]`` of at least three
    dimensions, ``rewards``, ``terminated`` and ``truncated`` may be ``[..., A, 1]``, ``[..., 1, 1]`` or ``[..., 1]``
    (one dimension fewer), and count for each agent.

    :param rewards: ``[T, ...]``
    :param values: ``[T, ...]``, V of the state that was acted upon
    :param next_values: ``[T, ...]``, V of the true successor state; where an episode was truncated, of its last
        observation and not of the next episode's first one. With ``active``, only the rows e are read
    :param terminated: bool ``[T, ...]``
    :param truncated: bool ``[T, ...]``
    :param discount: a number, or a tensor that broadcasts to ``[...]`` (one discount per agent, say)
    :param gae_lambda: as ``discount``
    :param active: bool ``[T, ...]``, where agents acted; None where all of them did, in every row
    :param active_next: bool ``[...]``, whether they act on the state after the last row; None where all do

    :return: advantages and returns, each ``[T, ...]``

    :raises ValueError: the tensors differ in shape, or a mask is not bool
    """
    shape = values.shape
    rewards = per_agent("rewards", rewards, shape)
    terminated = per_agent("terminated", terminated, shape)
    truncated = per_agent("truncated", truncated, shape)
    check_shape("next_values", next_values, shape)
    done = terminated | truncated
    weight = (~done).to(values.dtype) * (discount * gae_lambda)
    if active is None and active_next is None:
        deltas = torch.where(terminated, rewards, rewards + discount * next_values) - values
        advantages = backward_scan(deltas, weight)
        return advantages, advantages + values
    active = torch.ones_like(done) if active is None else check_mask("active", active, shape)
    known = active if active_next is None else outcome_known(active, done, active_next)
    leads_to = torch.where(terminated, 0.0, next_values)
    leads_to[:-1] = torch.where(active[1:] & ~done[:-1], values[1:], leads_to[:-1])
    own, following = between_own_actions(rewards, leads_to, done, active)
    deltas = torch.where(known, own + discount * following - values, 0.0)
    # rows between two own actions hand the later one's advantage on as it is
    weight = torch.where(active | done, weight, 1.0)
    advantages = torch.where(known, backward_scan(deltas, weight), 0.0)
    return advantages, advantages + values


def multi_agent_gae(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    discount: float | Tensor,
    gae_lambda: float | Tensor,
    active: Tensor | None = None,
    time_dim: int = -3,
    active_next: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`gae` for tensors ``[..., T, A, 1]`` with time anywhere before the agents; needs nothing else of this library.

    Rewards and ends may be each agent's, ``[..., T, A, 1]``, or the team's, ``[..., T, 1, 1]`` or ``[..., T, 1]``::

        advantages, returns = multi_agent_gae(
            rewards=torch.randn(64, 100, 1),                               # the team's: 64 environments, 100 steps
            values=values, next_values=next_values,                        # 3 agents': [64, 100, 3, 1]
            terminated=terminated, truncated=truncated,                    # bool, the team's or each agent's
            discount=0.99, gae_lambda=0.95,
        )                                                                  # [64, 100, 3, 1] each

    :param rewards: ``[..., T, A, 1]``, ``[..., T, 1, 1]`` or ``[..., T, 1]``
    :param values: ``[..., T, A, 1]``, V of the states that were acted upon
    :param next_values: ``[..., T, A, 1]``, V of the true successor states, see :func:`gae`
    :param terminated: bool, shaped as the rewards may be
    :param truncated: bool, shaped as the rewards may be
    :param discount: a number, or a tensor that broadcasts to the values' shape without T (``[A, 1]`` for one per agent)
    :param gae_lambda: as ``discount``
    :param active: bool ``[..., T, A, 1]``, where agents acted, see :func:`gae`; None where all of them did, in every row
    :param time_dim: the dimension of T in ``values``
    :param active_next: bool, the values' shape without T, whether agents act on the state after the last row; None where
        all do

    :return: advantages and returns, each ``[..., T, A, 1]``

    :raises ValueError: a shape other than these, or a time dimension that is none
    """
    dims = values.dim()
    time = time_dim + dims if time_dim < 0 else time_dim
    if not 0 <= time < dims - 2 or values.shape[-1] != 1:
        raise ValueError(
            f"expected values of shape [..., T, A, 1] with time before the last two dimensions, got {list(values.shape)} "
            f"and time_dim {time_dim}"
        )
    shape = values.shape
    check_shape("next_values", next_values, shape)
    advantages, returns = gae(
        per_agent("rewards", rewards, shape).movedim(time, 0),
        values.movedim(time, 0),
        next_values.movedim(time, 0),
        per_agent("terminated", terminated, shape).movedim(time, 0),
        per_agent("truncated", truncated, shape).movedim(time, 0),
        discount,
        gae_lambda,
        None if active is None else check_mask("active", active, shape).movedim(time, 0),
        active_next,
    )
    return advantages.movedim(0, time), returns.movedim(0, time)


def standardise(x: Tensor, dim: tuple[int, ...], mask: Tensor | None = None, eps: float = 1e-8) -> Tensor:
    """``(x - mean) / (std + eps)`` with the unbiased standard deviation over ``dim``; a single sample becomes 0, not NaN.

    :param mask: bool, broadcasts to ``x``: only these entries count, and the others become 0, whatever they hold
    """
    if mask is not None:
        mask = mask.expand(x.shape)
        counts = mask.sum(dim=dim, keepdim=True)
        total = torch.where(mask, x, 0.0).sum(dim=dim, keepdim=True)
        centred = torch.where(mask, x - total / counts.clamp_min(1), 0.0)
        variance = centred.square().sum(dim=dim, keepdim=True) / (counts - 1).clamp_min(1)
        return centred / (variance.sqrt() + eps)
    count = 1
    for d in dim:
        count *= x.shape[d]
    mean = x.mean(dim=dim, keepdim=True)
    if count == 1:
        return x - mean
    return (x - mean) / (x.std(dim=dim, keepdim=True) + eps)


def masked_mean(x: Tensor, mask: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """Mean over ``dim`` of the entries with a true ``mask`` (bool, broadcasts to ``x``); 0 where there are none.

    What the other entries hold, NaN included, has no effect, neither on the mean nor on gradients.
    """
    mask = mask.expand(x.shape)
    return torch.where(mask, x, 0.0).sum(dim=dim) / mask.sum(dim=dim).clamp_min(1)
