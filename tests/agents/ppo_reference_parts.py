"""Parts of the slow reference of PPO: normalisers, the adaptive learning rate, and distributions in terms of torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor
from torch.distributions import Categorical, Distribution, Independent, Normal, TransformedDistribution
from torch.distributions.transforms import AffineTransform, TanhTransform

from coterie.models.base import Model
from coterie.models.mixins import (
    BernoulliMixin,
    CategoricalMixin,
    GaussianMixin,
    MultiCategoricalMixin,
    TanhGaussianMixin,
)

# ---- normalisers -------------------------------------------------------------------------------------------------------


class Scaler:
    """Normaliser by the mean and the population variance of everything it was ever given, all of which it keeps."""

    def __init__(self, epsilon: float = 1e-8, clip_threshold: float = 5.0) -> None:
        self.epsilon, self.clip = epsilon, clip_threshold
        self.seen: list[Tensor] = []

    def learn(self, x: Tensor) -> None:
        if len(x):
            self.seen.append(x.double())

    def moments(self) -> tuple[Tensor, Tensor]:
        if not self.seen:
            return torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
        everything = torch.cat(self.seen)
        return everything.mean(0), ((everything - everything.mean(0)) ** 2).mean(0).sqrt()

    def normalise(self, x: Tensor) -> Tensor:
        mean, std = self.moments()
        return ((x - mean) / (std + self.epsilon)).clamp(-self.clip, self.clip)

    def denormalise(self, x: Tensor) -> Tensor:
        mean, std = self.moments()
        return x.clamp(-self.clip, self.clip) * (std + self.epsilon) + mean


class DebiasedMoments:
    """Normaliser by exponential moments ``m <- beta m + (1 - beta) E[x]``, likewise of ``x^2``, divided by their weight."""

    def __init__(self, beta: float = 0.99999, min_variance: float = 1e-2) -> None:
        self.beta, self.min_variance = beta, min_variance
        self.first, self.second, self.weight = torch.zeros(1).double(), torch.zeros(1).double(), 0.0

    def learn(self, x: Tensor) -> None:
        if not len(x):
            return
        x = x.double()
        self.first = self.beta * self.first + (1 - self.beta) * x.mean(0)
        self.second = self.beta * self.second + (1 - self.beta) * (x**2).mean(0)
        self.weight = self.beta * self.weight + (1 - self.beta)

    def moments(self) -> tuple[Tensor, Tensor]:
        if self.weight == 0.0:
            return torch.zeros(1).double(), torch.ones(1).double()
        mean = self.first / self.weight
        variance = self.second / self.weight - mean**2
        return mean, variance.clamp(min=self.min_variance).sqrt()

    def normalise(self, x: Tensor) -> Tensor:
        mean, std = self.moments()
        return (x - mean) / std

    def denormalise(self, x: Tensor) -> Tensor:
        mean, std = self.moments()
        return x * std + mean


class RescalingMoments(DebiasedMoments):
    """The same, where critics' last layers are rescaled when it has learned (van Hasselt et al. 2016, arXiv 1602.07714).

    Before it has learned there is no scale: what critics predict is worth 0.
    """

    def __init__(self, beta: float = 0.99999, min_variance: float = 1e-8) -> None:
        super().__init__(beta, min_variance)

    def denormalise(self, x: Tensor) -> Tensor:
        return super().denormalise(x) if self.weight else torch.zeros_like(x)


class Identity:
    """A normaliser that does nothing."""

    def learn(self, x: Tensor) -> None: ...

    def normalise(self, x: Tensor) -> Tensor:
        return x

    def denormalise(self, x: Tensor) -> Tensor:
        return x


Normaliser = Scaler | DebiasedMoments | Identity
NORMALISERS = {"RunningStandardScaler": Scaler, "ValueNorm": DebiasedMoments, "PopArt": RescalingMoments}


def normaliser(kind: type | None, kwargs: Mapping[str, Any]) -> Normaliser:
    """The counterpart of one of the library's normalisers."""
    return Identity() if kind is None else NORMALISERS[kind.__name__](**kwargs)


class AdaptiveRate:
    """Divide the learning rate by 1.5 above twice the target KL, multiply it by 1.5 below half of it, within bounds."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, kl_threshold: float = 0.008, min_lr: float = 1e-6, max_lr: float = 1e-2
    ) -> None:
        self.optimizer, self.target, self.low, self.high = optimizer, kl_threshold, min_lr, max_lr

    def step(self, kl: float) -> None:
        for group in self.optimizer.param_groups:
            if kl > 2 * self.target:
                group["lr"] = max(group["lr"] / 1.5, self.low)
            elif kl < self.target / 2:
                group["lr"] = min(group["lr"] * 1.5, self.high)


# ---- distributions -----------------------------------------------------------------------------------------------------


class Product(Distribution):
    """Independent categoricals side by side."""

    def __init__(self, parts: list[Categorical]) -> None:
        super().__init__(validate_args=False)
        self.parts = parts

    def log_prob(self, value: Tensor) -> Tensor:
        return sum((part.log_prob(value[..., i]) for i, part in enumerate(self.parts)), torch.zeros(()))

    def entropy(self) -> Tensor:
        return sum((part.entropy() for part in self.parts), torch.zeros(()))


class Allowed(Distribution):
    """A categorical for each row, of the allowed choices alone: the others are not so much as mentioned.

    :param logits: ``[B, n]``
    :param allowed: bool ``[B, n]``, None where all are
    """

    def __init__(self, logits: Tensor, allowed: Tensor | None) -> None:
        super().__init__(validate_args=False)
        allowed = torch.ones_like(logits, dtype=torch.bool) if allowed is None else allowed
        self.choices = [row.nonzero()[:, 0].tolist() for row in allowed]
        self.rows = [
            Categorical(logits=row[choices], validate_args=False)
            for row, choices in zip(logits, self.choices, strict=True)
        ]

    def log_prob(self, value: Tensor) -> Tensor:
        """Of choices ``[B]``, which must be allowed."""
        rows = zip(self.rows, self.choices, value.tolist(), strict=True)
        return torch.stack([row.log_prob(torch.tensor(choices.index(int(v)))) for row, choices, v in rows])

    def entropy(self) -> Tensor:
        return torch.stack([row.entropy() for row in self.rows])


def categorical(logits: Tensor, allowed: Tensor | None) -> Distribution:
    """A categorical of choices ``[B]``."""
    return Categorical(logits=logits, validate_args=False) if allowed is None else Allowed(logits, allowed)


def distribution(
    policy: Model, output: Sequence[Any], allowed: Tensor | None = None, std: float | None = None
) -> Distribution:
    """What a policy's ``compute`` describes, in terms of torch: its ``log_prob`` takes ``[B, n]`` and gives ``[B]``.

    :param allowed: bool ``[B, .]``, choices of each row
    :param std: the standard deviation that takes the place of a Gaussian's own
    """
    if isinstance(policy, CategoricalMixin):
        space = policy.action_space
        sizes = [int(n) for n in space.nvec] if isinstance(policy, MultiCategoricalMixin) else [output[0].shape[-1]]
        masks = [None] * len(sizes) if allowed is None else allowed.split(sizes, dim=-1)
        logits = output[0].split(sizes, dim=-1)
        return Product([categorical(*pair) for pair in zip(logits, masks, strict=True)])
    if isinstance(policy, BernoulliMixin):
        pairs = [torch.stack([torch.zeros_like(x), x], dim=-1) for x in output[0].unbind(-1)]  # odds of 1 against 0
        return Product([categorical(pair, None) for pair in pairs])
    assert isinstance(policy, GaussianMixin)
    assert allowed is None
    mean, log_std = output[0], output[1].clamp(-20.0, 2.0)
    deviation = log_std.exp().expand_as(mean) if std is None else torch.full_like(mean, std)
    normal = Independent(Normal(mean, deviation, validate_args=False), 1, validate_args=False)
    if not isinstance(policy, TanhGaussianMixin):
        return normal
    assert isinstance(policy.action_space, spaces.Box)
    low, high = torch.as_tensor(policy.action_space.low).double(), torch.as_tensor(policy.action_space.high).double()
    squash = [TanhTransform(), AffineTransform((low + high) / 2, (high - low) / 2, event_dim=1)]
    return TransformedDistribution(normal, squash, validate_args=False)


def drawn(policy: Model, before: Distribution, action: Tensor, log_prob: Tensor) -> Tensor:
    """What was drawn, in float64, given what went to the environment.

    They differ where a Gaussian was clipped to a Box: in one dimension the draw follows from its log-probability, and its
    side of the mean from the bound that it was clipped to.
    """
    action = action.double() if action.is_floating_point() else action
    if not (isinstance(before, Independent) and isinstance(policy.action_space, spaces.Box)):
        return action
    if not policy.action_space.is_bounded():
        return action
    assert policy.action_space.shape == (1,)
    low, high = float(policy.action_space.low[0]), float(policy.action_space.high[0])
    mean, std = before.mean, before.stddev
    certain = torch.where(action >= high, mean < high, mean > low) | ((action > low) & (action < high))
    assert bool(certain.all()), "the side of the draw is unknown"
    squares = -2 * (log_prob.double() + std.log() + 0.5 * math.log(2 * math.pi))
    distance = std * squares.clamp(min=0.0).sqrt()
    unclipped = (action > low) & (action < high)
    return torch.where(unclipped, action, torch.where(action >= high, mean + distance, mean - distance))
