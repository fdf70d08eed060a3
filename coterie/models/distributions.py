"""Action distributions over batches of any leading shape, as light objects on the pure maths of ``functional``.

Every distribution works on *latent* actions, which are what it samples, what the memory keeps and what log-probabilities
are taken of. :meth:`Distribution.actions` turns them into what the environment receives: the same values, clipped
ones, or squashed ones. A log-probability is therefore always that of the value that was drawn, never of a clipped one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import gymnasium
import torch
from torch import Tensor

from coterie.functional import (
    bernoulli_entropy,
    bernoulli_log_prob,
    categorical_entropy,
    categorical_log_prob,
    categorical_sample,
    normal_entropy,
    normal_log_prob,
    tanh_log_derivative,
    tanh_normal_entropy,
)

__all__ = [
    "REDUCTIONS",
    "Bernoulli",
    "Categorical",
    "Distribution",
    "EpsilonGreedy",
    "Interval",
    "MultiCategorical",
    "Normal",
    "TanhNormal",
    "check_action_masks",
    "mask_logits",
]

REDUCTIONS = ("sum", "mean", "prod", "none")


def _reduce(x: Tensor, reduction: str) -> Tensor:
    """Combine action dimensions ``[..., n]`` into ``[..., 1]`` (or leave them, for ``"none"``)."""
    if reduction == "sum":
        return x.sum(dim=-1, keepdim=True)
    if reduction == "mean":
        return x.mean(dim=-1, keepdim=True)
    if reduction == "prod":
        return x.prod(dim=-1, keepdim=True)
    return x


def mask_logits(logits: Tensor, action_masks: Tensor | None) -> Tensor:
    """Forbid actions: ``-inf`` where ``action_masks`` (bool ``[..., n]``, as ``logits``) is False; None allows all.

    A row in which nothing is allowed has no distribution: its probabilities are NaN (see :func:`check_action_masks`).

    :raises ValueError: the masks are not bool, or of another width
    """
    if action_masks is None:
        return logits
    _check_form(action_masks, logits.shape[-1])
    return torch.where(action_masks, logits, -torch.inf)


def check_action_masks(
    action_masks: Tensor, choices: int | Sequence[int] | gymnasium.Space, names: Sequence[str] | None = None
) -> None:
    """Check that every row of bool ``[..., n]`` allows something, in each dimension of a MultiDiscrete space.

    It reads the masks, which waits for the device.

    :param choices: n of a Discrete space, nvec of a MultiDiscrete one (then the masks' n is its sum), or such a space
    :param names: names of the agents, for masks ``[E, A, n]``

    :raises ValueError: the masks are not bool or of another width, the space has no masks, or a row allows nothing: the
        message names it
    """
    nvec = _numbers_of_choices(choices)
    _check_form(action_masks, sum(nvec))
    allowed = torch.stack([part.any(dim=-1) for part in action_masks.split(nvec, dim=-1)], dim=-1)
    if bool(allowed.all()):
        return
    *row, dimension = (~allowed).nonzero()[0].tolist()
    where = [f"row {row}" if names is None else f"environment {row[0]} of agent {names[row[-1]]!r}"]
    if len(nvec) > 1:
        where.append(f"dimension {dimension} of {len(nvec)}")
    raise ValueError(
        f"action_masks: nothing is allowed in {', '.join(where)}: an agent that is to act needs at least one action; one that "
        "is not to act is reported in infos['active_masks']"
    )


def _numbers_of_choices(choices: int | Sequence[int] | gymnasium.Space) -> list[int]:
    if isinstance(choices, gymnasium.spaces.MultiDiscrete):
        return [int(n) for n in choices.nvec.ravel()]
    if isinstance(choices, gymnasium.spaces.Discrete):
        return [int(choices.n)]
    if isinstance(choices, gymnasium.Space):
        raise ValueError(f"action_masks: expected a Discrete or MultiDiscrete action space, got {choices}")
    return [choices] if isinstance(choices, int) else [int(n) for n in choices]


def _check_form(action_masks: Tensor, width: int) -> None:
    if action_masks.dtype != torch.bool or action_masks.shape[-1:] != (width,):
        raise ValueError(
            f"action_masks: expected bool [..., {width}], True where an action is allowed, got {action_masks.dtype} "
            f"{list(action_masks.shape)}"
        )


class Distribution(ABC):
    """A batch of action distributions; latent actions are ``[..., k]``."""

    @abstractmethod
    def sample(self) -> Tensor:
        """Draw latent actions from torch's global generator."""

    @abstractmethod
    def mode(self) -> Tensor:
        """Most probable latent actions."""

    @abstractmethod
    def log_prob(self, latent: Tensor) -> Tensor:
        """Log-probability ``[..., 1]`` of latent actions."""

    @abstractmethod
    def entropy(self) -> Tensor:
        """Entropy ``[..., 1]``."""

    def actions(self, latent: Tensor) -> Tensor:
        """What the environment receives for a latent action."""
        return latent

    def latent(self, actions: Tensor) -> Tensor:
        """A latent action for what the environment receives: the inverse of :meth:`actions` within the bounds."""
        return actions

    @property
    def mean(self) -> Tensor:
        """Location of the distribution before clipping and squashing: means of a normal, logits of a discrete one."""
        raise NotImplementedError

    @property
    def std(self) -> Tensor | None:
        """Standard deviation of a normal's latent actions; None for discrete distributions."""
        return None


class Normal(Distribution):
    """Independent normals over ``n`` action dimensions.

    :param mean: ``[..., n]``
    :param log_std: broadcasts to ``mean``
    :param bounds: lower and upper bounds ``[n]`` that actions are clipped to on their way to the environment
    :param reduction: how action dimensions combine in log-probability and entropy
    """

    def __init__(
        self, mean: Tensor, log_std: Tensor, bounds: tuple[Tensor, Tensor] | None = None, reduction: str = "sum"
    ) -> None:
        self._mean = mean
        self._log_std = log_std
        self._bounds = bounds
        self._reduction = reduction

    def sample(self) -> Tensor:
        return self._mean + self._log_std.exp() * torch.randn_like(self._mean)

    def mode(self) -> Tensor:
        return self._mean

    def log_prob(self, latent: Tensor) -> Tensor:
        return _reduce(normal_log_prob(latent, self._mean, self._log_std), self._reduction)

    def entropy(self) -> Tensor:
        return _reduce(normal_entropy(self._log_std).expand_as(self._mean), self._reduction)

    def actions(self, latent: Tensor) -> Tensor:
        return latent if self._bounds is None else torch.clamp(latent, *self._bounds)

    @property
    def mean(self) -> Tensor:
        return self._mean

    @property
    def std(self) -> Tensor:
        return self._log_std.exp()


class Interval:
    """Bounds ``[n]`` of squashed actions, and what follows from them; made once, for all distributions within them."""

    def __init__(self, low: Tensor, high: Tensor) -> None:
        self.center = (high + low) / 2.0
        self.half_range = (high - low) / 2.0
        self.log_half_range = self.half_range.log()


class TanhNormal(Normal):
    """Normals squashed by tanh into an interval; latent actions are those before the squashing.

    With ``a = low + (high - low) (tanh(u) + 1) / 2`` the density of ``a`` is that of ``u`` over ``da/du``.
    """

    def __init__(self, mean: Tensor, log_std: Tensor, interval: Interval, reduction: str = "sum") -> None:
        super().__init__(mean, log_std, None, reduction)
        self._interval = interval

    def log_prob(self, latent: Tensor) -> Tensor:
        density = normal_log_prob(latent, self._mean, self._log_std)
        return _reduce(density - tanh_log_derivative(latent) - self._interval.log_half_range, self._reduction)

    def entropy(self) -> Tensor:
        squashed = tanh_normal_entropy(self._mean, self._log_std.expand_as(self._mean))
        return _reduce(squashed + self._interval.log_half_range, self._reduction)

    def actions(self, latent: Tensor) -> Tensor:
        return self._interval.center + self._interval.half_range * torch.tanh(latent)

    def latent(self, actions: Tensor) -> Tensor:
        unit = (actions - self._interval.center) / self._interval.half_range
        edge = 1.0 - torch.finfo(unit.dtype).eps  # atanh(1) is infinite
        return torch.atanh(unit.clamp(-edge, edge))


class Categorical(Distribution):
    """One choice out of ``n`` from logits ``[..., n]``; actions are int64 ``[..., 1]``.

    :param action_masks: bool ``[..., n]``: actions with False have probability 0
    """

    def __init__(self, logits: Tensor, action_masks: Tensor | None = None) -> None:
        self._logits = logits = mask_logits(logits, action_masks)
        # equal to log_softmax, which takes almost three times as long for the few columns that actions have
        self._log_probs = logits - logits.logsumexp(dim=-1, keepdim=True)

    def sample(self) -> Tensor:
        return categorical_sample(self._log_probs)

    def mode(self) -> Tensor:
        return self._logits.argmax(dim=-1, keepdim=True)

    def log_prob(self, latent: Tensor) -> Tensor:
        return categorical_log_prob(self._log_probs, latent)

    def entropy(self) -> Tensor:
        return categorical_entropy(self._log_probs)

    @property
    def mean(self) -> Tensor:
        return self._logits


class EpsilonGreedy(Distribution):
    """The choice of largest value out of ``n``, and with probability epsilon any allowed one, all alike; actions are int64
    ``[..., 1]``.

    With m allowed actions the greedy one has probability ``1 - epsilon + epsilon / m``, every other one ``epsilon / m``, and a
    forbidden one 0. Of equal values the first is the greedy one. Values that are not a number count as the largest, as
    ``argmax`` has it; what is forbidden is not chosen for them either. A row in which nothing is allowed has no
    distribution: its probabilities are NaN (see :func:`check_action_masks`). There are no gradients: a choice is no smooth
    function of the values.

    :param q: action values ``[..., n]``
    :param epsilon: a number from 0 to 1, or such numbers in a tensor that broadcasts to ``[..., 1]`` (``[A, 1]``: one for each
        of A agents), whose values are not checked, since that would wait for the device
    :param action_masks: bool ``[..., n]``: actions with False are forbidden

    :raises ValueError: a number outside of 0 to 1, a tensor of another shape, or masks of another form
    """

    def __init__(self, q: Tensor, epsilon: float | Tensor = 0.0, action_masks: Tensor | None = None) -> None:
        if action_masks is not None:
            _check_form(action_masks, q.shape[-1])
            if action_masks.shape != q.shape:
                q = q.expand(torch.broadcast_shapes(q.shape, action_masks.shape))
        self._q = q
        self._masks = action_masks
        self._epsilon = _checked_epsilon(epsilon, q)

    def _best(self, scores: Tensor) -> Tensor:
        """The first allowed action of largest score, ``[..., 1]``."""
        if self._masks is not None:  # an allowed -inf (a value that overflowed) is still more than a forbidden action
            lowest = torch.finfo(scores.dtype).min
            scores = torch.where(self._masks, scores.clamp_min(lowest), -torch.inf)
        return scores.argmax(dim=-1, keepdim=True)

    def sample(self) -> Tensor:
        """Draw actions, without waiting for the device; where epsilon is the number 0 no random number is spent."""
        if not isinstance(self._epsilon, Tensor) and self._epsilon == 0.0:
            return self.mode()
        q = self._q.detach()
        explores = torch.rand((*q.shape[:-1], 1), device=q.device) < self._epsilon
        # the largest of independent uniform numbers stands at every place alike
        return self._best(torch.where(explores, torch.rand(q.shape, device=q.device), q))

    def mode(self) -> Tensor:
        return self._best(self._q.detach())

    @property
    def probabilities(self) -> Tensor:
        """Probability of each action ``[..., n]``."""
        greedy = self._q.new_zeros(self._q.shape).scatter_(-1, self.mode(), 1.0)
        return self._probability(greedy, self._masks)

    def log_prob(self, latent: Tensor) -> Tensor:
        allowed = None if self._masks is None else self._masks.gather(-1, latent)
        return self._probability((latent == self.mode()).to(self._q.dtype), allowed).log()

    def _probability(self, greedy: Tensor, allowed: Tensor | None) -> Tensor:
        """Of actions, from whether they are the greedy one, and allowed."""
        if self._masks is None or allowed is None:
            each: float | Tensor = self._epsilon / self._q.shape[-1]
        else:
            each = allowed * (self._epsilon / self._masks.sum(dim=-1, keepdim=True).to(self._q.dtype))
        return (1.0 - self._epsilon) * greedy + each

    def entropy(self) -> Tensor:
        return torch.special.entr(self.probabilities).sum(dim=-1, keepdim=True)

    @property
    def mean(self) -> Tensor:
        """The action values ``[..., n]``."""
        return self._q


def _checked_epsilon(epsilon: float | Tensor, q: Tensor) -> float | Tensor:
    """Epsilon as :class:`EpsilonGreedy` computes with it."""
    if not isinstance(epsilon, Tensor):
        if not 0.0 <= epsilon <= 1.0:
            raise ValueError(f"epsilon: expected a probability, a number from 0 to 1, got {epsilon}")
        return float(epsilon)
    expected = [*q.shape[:-1], 1]
    sizes = zip(reversed(epsilon.shape), reversed(expected), strict=False)
    if epsilon.dim() > len(expected) or any(size not in (1, wanted) for size, wanted in sizes):
        raise ValueError(
            f"epsilon: expected a number or a tensor that broadcasts to {expected} for values {list(q.shape)}, got "
            f"{list(epsilon.shape)}; one for each agent of [..., agents, actions] is [agents, 1]"
        )
    return epsilon.to(q.dtype)


class MultiCategorical(Distribution):
    """Independent choices: logits ``[..., sum(nvec)]``, actions int64 ``[..., len(nvec)]``.

    :param action_masks: bool ``[..., sum(nvec)]``: choices with False have probability 0
    """

    def __init__(
        self, logits: Tensor, nvec: tuple[int, ...], reduction: str = "sum", action_masks: Tensor | None = None
    ) -> None:
        self._logits = mask_logits(logits, action_masks)
        self._parts = [Categorical(part) for part in self._logits.split(nvec, dim=-1)]
        self._reduction = reduction

    def sample(self) -> Tensor:
        return torch.cat([part.sample() for part in self._parts], dim=-1)

    def mode(self) -> Tensor:
        return torch.cat([part.mode() for part in self._parts], dim=-1)

    def log_prob(self, latent: Tensor) -> Tensor:
        parts = [part.log_prob(choice) for part, choice in zip(self._parts, latent.split(1, dim=-1), strict=True)]
        return _reduce(torch.cat(parts, dim=-1), self._reduction)

    def entropy(self) -> Tensor:
        return _reduce(torch.cat([part.entropy() for part in self._parts], dim=-1), self._reduction)

    @property
    def mean(self) -> Tensor:
        return self._logits


class Bernoulli(Distribution):
    """Independent yes-or-no choices: logits ``[..., n]`` (log-odds of a 1), actions int64 ``[..., n]`` of 0 and 1."""

    def __init__(self, logits: Tensor, reduction: str = "sum") -> None:
        self._logits = logits
        self._reduction = reduction

    def sample(self) -> Tensor:
        return (torch.rand_like(self._logits) < self._logits.sigmoid()).long()

    def mode(self) -> Tensor:
        return (self._logits > 0).long()

    def log_prob(self, latent: Tensor) -> Tensor:
        return _reduce(bernoulli_log_prob(self._logits, latent), self._reduction)

    def entropy(self) -> Tensor:
        return _reduce(bernoulli_entropy(self._logits), self._reduction)

    @property
    def mean(self) -> Tensor:
        return self._logits
