"""Action distributions over batches of any leading shape, as light objects on the pure maths of ``functional``.

Every distribution works on *latent* actions, which are what it samples, what the memory keeps and what log-probabilities
are taken of. :meth:`Distribution.actions` turns them into what the environment receives: the same values, clipped
ones, or squashed ones. A log-probability is therefore always that of the value that was drawn, never of a clipped one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from coterie.functional import (
    categorical_entropy,
    categorical_log_prob,
    categorical_sample,
    normal_entropy,
    normal_log_prob,
    tanh_log_derivative,
    tanh_normal_entropy,
)

__all__ = ["REDUCTIONS", "Categorical", "Distribution", "MultiCategorical", "Normal", "TanhNormal"]

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
        """Location of the distribution before clipping and squashing: means of a normal, logits of a categorical."""
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


class TanhNormal(Normal):
    """Normals squashed by tanh into ``bounds``; latent actions are those before the squashing.

    With ``a = low + (high - low) (tanh(u) + 1) / 2`` the density of ``a`` is that of ``u`` over ``da/du``.
    """

    def __init__(self, mean: Tensor, log_std: Tensor, bounds: tuple[Tensor, Tensor], reduction: str = "sum") -> None:
        super().__init__(mean, log_std, bounds, reduction)
        low, high = bounds
        self._half_range = (high - low) / 2.0
        self._center = (high + low) / 2.0

    def log_prob(self, latent: Tensor) -> Tensor:
        density = normal_log_prob(latent, self._mean, self._log_std)
        return _reduce(density - tanh_log_derivative(latent) - self._half_range.log(), self._reduction)

    def entropy(self) -> Tensor:
        squashed = tanh_normal_entropy(self._mean, self._log_std.expand_as(self._mean))
        return _reduce(squashed + self._half_range.log(), self._reduction)

    def actions(self, latent: Tensor) -> Tensor:
        return self._center + self._half_range * torch.tanh(latent)

    def latent(self, actions: Tensor) -> Tensor:
        unit = (actions - self._center) / self._half_range
        edge = 1.0 - torch.finfo(unit.dtype).eps  # atanh(1) is infinite
        return torch.atanh(unit.clamp(-edge, edge))


class Categorical(Distribution):
    """One choice out of ``n`` from logits ``[..., n]``; actions are int64 ``[..., 1]``."""

    def __init__(self, logits: Tensor) -> None:
        self._logits = logits
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


class MultiCategorical(Distribution):
    """Independent choices: logits ``[..., sum(nvec)]``, actions int64 ``[..., len(nvec)]``."""

    def __init__(self, logits: Tensor, nvec: tuple[int, ...], reduction: str = "sum") -> None:
        self._logits = logits
        self._parts = [Categorical(part) for part in logits.split(nvec, dim=-1)]
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
