"""Temporal differences of action values: what is chosen, what it is worth, and the loss."""

from __future__ import annotations

import torch
from torch import Tensor

from coterie.functional.advantages import masked_mean
from coterie.functional.huber import error_loss
from coterie.functional.own_time import between_own_actions, outcome_known
from coterie.functional.scan import backward_scan
from coterie.functional.signals import check_mask, per_agent

__all__ = ["chosen_values", "double_q_values", "greedy_actions", "td_loss", "td_returns"]


def greedy_actions(q_values: Tensor, action_masks: Tensor | None = None) -> Tensor:
    """The allowed action of the largest value, int64 ``[..., 1]``; of several the first, of none 0.

    :param q_values: ``[..., n]``
    :param action_masks: bool, broadcasts to ``q_values``: what is allowed; None where everything is

    :raises ValueError: the masks are not bool, or of a shape that does not fit
    """
    if action_masks is not None:
        q_values = q_values.masked_fill(~_allowed(action_masks, q_values), -torch.inf)
    return q_values.argmax(dim=-1, keepdim=True)


def chosen_values(q_values: Tensor, actions: Tensor) -> Tensor:
    """The values ``[..., 1]`` of ``actions`` (integers ``[..., 1]``) among ``q_values`` ``[..., n]``."""
    return q_values.gather(-1, actions.long())


def double_q_values(online: Tensor, target: Tensor, action_masks: Tensor | None = None) -> Tensor:
    """``target[argmax_a online[a]]`` over the allowed actions (van Hasselt et al. 2016, arXiv 1509.06461, eq. 4).

    Where nothing is allowed, as is the case for an agent that is not there, the value is 0, whatever the inputs hold.

    :param online: ``[..., n]``, the values that choose
    :param target: ``[..., n]``, the values that the choice is given; ``online`` itself for the plain maximum
    :param action_masks: bool, broadcasts to the values: what is allowed; None where everything is

    :return: ``[..., 1]``

    :raises ValueError: the masks are not bool, or of a shape that does not fit
    """
    values = target.gather(-1, greedy_actions(online, action_masks))
    if action_masks is None:
        return values
    return torch.where(_allowed(action_masks, online).any(dim=-1, keepdim=True), values, 0.0)


@torch.no_grad()
def td_returns(
    rewards: Tensor,
    next_values: Tensor,
    terminated: Tensor,
    ended: Tensor,
    discount: float | Tensor,
    td_lambda: float | Tensor = 0.0,
    n_step: int = 1,
    active: Tensor | None = None,
    active_next: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Targets of the values of what was done in the rows of a window, by several steps (Sutton and Barto 2018, sections 7.1
    and 12.1).

    With ``V_{t+1}`` the value of the state after row t, the target is::

        TD(lambda)   G_t = r_t + discount * (1 - terminated_t) * ((1 - lambda) * V_{t+1} + lambda * G_{t+1})
        n steps      G_t = r_t + discount * r_{t+1} + .. + discount^n * V_{t+n}

    An end cuts both: with row t ended, or the window's last one, ``V_{t+1}`` stands in for ``G_{t+1}``, and of n steps as
    many are taken as there are up to there; a termination removes the value. ``lambda = 0`` is one step, ``lambda = 1`` all
    that there are. No gradient flows through the targets.

    With ``active``, an agent's time stands still while it does not act, as in :func:`~coterie.functional.gae`: what it
    earns up to its next own action, or up to an end, is the reward of the action, undiscounted; n and the discount count
    own actions, and ``V`` is that of the state that it acts on next. Rows in which it did not act have no target, and
    whatever they hold besides rewards and ends has no effect. Rows in which no step was taken (a last observation, what is
    filled up behind an episode) are such rows, for everyone; they come after an end, so that nothing they hold has any.

    With ``active_next``, the last action of an agent that does not act on the state after the window is open, unless an end
    follows it: more of its reward may be still to come. It has no target, and its ``V`` ends the recursion before it.

    What describes the whole team may leave the agent dimension out, as for :func:`~coterie.functional.gae`.

    :param rewards: ``[T, ...]``
    :param next_values: ``[T, ...]``, V of the true successor state: where an episode was truncated, of its last observation
        and not of the next episode's first one
    :param terminated: bool ``[T, ...]``
    :param ended: bool ``[T, ...]``, terminated or truncated
    :param discount: a number, or a tensor that broadcasts to ``[...]`` (one discount per agent, say)
    :param td_lambda: as ``discount``
    :param n_step: steps after which the value is taken, for ``td_lambda = 0``
    :param active: bool ``[T, ...]``, where agents acted; None where all of them did, in every row
    :param active_next: bool ``[...]``, whether they act on the state after the last row; None where all do

    :return: targets ``[T, ...]``, 0 where there is none, and where there is one, bool ``[T, ...]``

    :raises ValueError: the tensors differ in shape, a mask is not bool, ``n_step`` is below 1, or both it and ``td_lambda``
        ask for several steps
    """
    one_step = isinstance(td_lambda, (int, float)) and td_lambda == 0
    if n_step < 1:
        raise ValueError(f"n_step: expected at least 1, got {n_step}")
    if n_step > 1 and not one_step:
        raise ValueError(
            f"n_step {n_step} and td_lambda {td_lambda}: expected one of them to ask for several steps; leave n_step at 1 or "
            "td_lambda at 0"
        )
    shape = next_values.shape
    rewards = per_agent("rewards", rewards, shape)
    terminated = per_agent("terminated", terminated, shape)
    done = per_agent("ended", ended, shape) | terminated
    following = torch.where(terminated, 0.0, next_values)
    if active is None and active_next is None:
        own, goes_on = rewards, ~done
        goes_on[-1] = False
        return _several_steps(own, following, goes_on, None, discount, td_lambda, n_step), torch.ones_like(done)
    acted = torch.ones_like(done) if active is None else per_agent("active", active, shape)
    check_mask("active", acted, shape)
    known = acted if active_next is None else outcome_known(acted, done, active_next)
    own, following = between_own_actions(rewards, following, done, acted)
    goes_on = _goes_on(known, done)
    targets = _several_steps(own, following, goes_on, acted, discount, td_lambda, n_step)
    return torch.where(known, targets, 0.0), known


def td_loss(
    predicted: Tensor,
    targets: Tensor,
    mask: Tensor,
    huber_delta: float | Tensor = 0.0,
    weights: Tensor | None = None,
    dim: tuple[int, ...] | None = None,
) -> Tensor:
    """Mean of ``l(target - predicted)`` over the entries that count; 0 where there are none.

    ``l(e) = e^2``, or with ``huber_delta`` linear for large errors (:func:`~coterie.functional.huber.error_loss`). What the
    other entries hold, NaN included, has no effect, neither on the loss nor on gradients.

    :param predicted: ``[T, B, ...]``
    :param targets: the same shape, without a gradient
    :param mask: bool, broadcasts to it: what counts
    :param huber_delta: delta, a number or one per agent ``[A, 1]``; 0 for the squared error, as is infinity
    :param weights: ``[B]``, factors of the samples' losses (importance sampling: Schaul et al. 2016, arXiv 1511.05952, section
        3.4), which the mean is not divided by
    :param dim: what the mean is taken over, and dropped; None for everything

    :raises ValueError: tensors of shapes that don't fit, or a mask that is not bool
    """
    if targets.shape != predicted.shape:
        raise ValueError(f"targets: expected the predictions' shape {list(predicted.shape)}, got {list(targets.shape)}")
    if mask.dtype != torch.bool:
        raise ValueError(f"mask: expected bool, got {mask.dtype}")
    # before anything is squared: 0 times infinity is no number, in the gradients too
    errors = torch.where(mask, targets.detach() - predicted, 0.0)
    if errors.shape != predicted.shape:
        raise ValueError(f"mask: expected what broadcasts to {list(predicted.shape)}, got {list(mask.shape)}")
    if isinstance(huber_delta, Tensor):
        losses = error_loss(errors, huber_delta.masked_fill(huber_delta == 0, torch.inf))
    else:
        losses = error_loss(errors, huber_delta or None)
    if weights is not None:
        if predicted.dim() < 2 or weights.shape != predicted.shape[1:2]:
            raise ValueError(
                f"weights: expected one for each sample, [B] for predictions [T, B, ...] of shape {list(predicted.shape)}, got "
                f"{list(weights.shape)}"
            )
        losses = losses * weights.view(-1, *[1] * (predicted.dim() - 2))
    return masked_mean(losses, mask, tuple(range(predicted.dim())) if dim is None else dim)


# ---- inside ----------------------------------------------------------------------------------------------------------


def _allowed(action_masks: Tensor, q_values: Tensor) -> Tensor:
    """The masks, expanded to the values' shape."""
    if action_masks.dtype != torch.bool:
        raise ValueError(f"action_masks: expected bool, got {action_masks.dtype}")
    try:
        return action_masks.expand(q_values.shape)
    except RuntimeError as error:
        raise ValueError(
            f"action_masks: expected what broadcasts to {list(q_values.shape)}, got {list(action_masks.shape)}"
        ) from error


def _goes_on(known: Tensor, done: Tensor) -> Tensor:
    """Where another own action of known outcome follows before an end, bool ``[T, ...]``.

    It is the next one: an action of unknown outcome is the last one of a window.
    """
    follows = torch.cat([known[1:], torch.zeros_like(done[:1])]) & ~done
    return backward_scan(follows.float(), ~done) > 0


def _next_own_rows(active: Tensor) -> Tensor:
    """The row of the next own action behind each row, int64 ``[T, ...]``; where there is none, any row."""
    last = active.shape[0] - 1
    rows = torch.arange(last + 1, device=active.device).view(-1, *[1] * (active.dim() - 1))
    here = torch.where(active, rows, last).flip(0).cummin(0).values.flip(0)
    return torch.cat([here[1:], here[-1:]])


def _several_steps(
    own: Tensor,
    following: Tensor,
    goes_on: Tensor,
    active: Tensor | None,
    discount: float | Tensor,
    td_lambda: float | Tensor,
    n_step: int,
) -> Tensor:
    """The targets, from what each own action earns, the value of what it leads to, and where another one follows.

    A target that is not to be had is replaced, not multiplied by 0: whatever stands behind an end cannot reach across.
    """
    rows = len(own)
    if isinstance(td_lambda, Tensor) or td_lambda != 0:
        targets = torch.empty_like(following)
        later = torch.zeros_like(following[0])
        for t in reversed(range(rows)):
            blend = (1.0 - td_lambda) * following[t] + td_lambda * later
            targets[t] = own[t] + discount * torch.where(goes_on[t], blend, following[t])
            later = targets[t] if active is None else torch.where(active[t], targets[t], later)
        return targets
    targets = own + discount * following
    steps = range(min(n_step, rows) - 1)
    behind = None if active is None or not steps else _next_own_rows(active)
    for _ in steps:
        later = targets.roll(-1, 0) if behind is None else targets.gather(0, behind)
        targets = own + discount * torch.where(goes_on, later, following)
    return targets
