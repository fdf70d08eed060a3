"""Normalisers of observations, states and values, with statistics kept in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import torch
from torch import Tensor, nn

from coterie.spaces import flat_size

__all__ = ["Preprocessor", "RunningStandardScaler", "ValueNorm", "stack_preprocessors"]


class Preprocessor(nn.Module):
    """A normaliser ``y = (x - mean) / scale`` whose statistics are learned from batches.

    Called as ``preprocessor(x, train=False, inverse=False)`` on ``[N, F]``; ``train`` learns from ``x`` first,
    ``inverse`` turns normalised values back. Several of them may be stacked (see :func:`stack_preprocessors`): they then
    take ``[S, N, F]`` and learn S independent statistics, and each remains a live view of its own.

    :param size: width F, or the space that has it
    :param device: where the statistics live; the CPU by default
    """

    #: names of the buffers that hold statistics
    STATISTICS: tuple[str, ...] = ()

    def __init__(self, size: int | Sequence[int] | gymnasium.Space, device: str | torch.device | None = None) -> None:
        super().__init__()
        width = flat_size(tuple(size) if isinstance(size, Sequence) else size)
        if width < 1:
            raise ValueError(f"expected a size of at least 1, got {size}")
        self.size = width
        self._target = torch.device("cpu") if device is None else torch.device(device)

    def settings(self) -> tuple[Any, ...]:
        """What two preprocessors must have in common to be stacked."""
        return type(self), self.size, self._target

    def learn(self, x: Tensor) -> None:
        """Update the statistics from a batch ``[..., N, F]``; an empty batch changes nothing."""
        raise NotImplementedError

    def normalise(self, x: Tensor) -> Tensor:
        """``x`` in units of the statistics."""
        raise NotImplementedError

    def denormalise(self, x: Tensor) -> Tensor:
        """Inverse of :meth:`normalise`."""
        raise NotImplementedError

    def forward(self, x: Tensor, train: bool = False, inverse: bool = False, no_grad: bool = True) -> Tensor:
        """Normalise (or, with ``inverse``, denormalise) ``x``, after learning from it where ``train`` is set."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not no_grad):
            if train:
                self.learn(x)
            return self.denormalise(x) if inverse else self.normalise(x)


class RunningStandardScaler(Preprocessor):
    """Mean and variance of all that was seen: Welford's method in the batched form of Chan et al. (1979).

    ``y = clip((x - mean) / (std + epsilon), -clip_threshold, clip_threshold)``; mean 0 and variance 1 until something was seen.

    :param size: width F, or the space that has it
    :param epsilon: added to the standard deviation
    :param clip_threshold: bound of the normalised values
    :param device: where the statistics live
    """

    STATISTICS = ("running_mean", "running_variance", "current_count")

    running_mean: Tensor
    running_variance: Tensor
    current_count: Tensor

    def __init__(
        self,
        size: int | Sequence[int] | gymnasium.Space,
        epsilon: float = 1e-8,
        clip_threshold: float = 5.0,
        device: str | torch.device | None = None,
    ) -> None:
        super().__init__(size, device)
        self.epsilon = float(epsilon)
        self.clip_threshold = float(clip_threshold)
        self.register_buffer("running_mean", torch.zeros(1, self.size, dtype=torch.float64, device=self._target))
        self.register_buffer("running_variance", torch.ones(1, self.size, dtype=torch.float64, device=self._target))
        self.register_buffer("current_count", torch.zeros(1, 1, dtype=torch.float64, device=self._target))

    def settings(self) -> tuple[Any, ...]:
        return *super().settings(), self.epsilon, self.clip_threshold

    @torch.no_grad()
    def learn(self, x: Tensor) -> None:
        n = x.shape[-2]
        if n == 0:
            return
        x = x.detach().double()
        mean = x.mean(dim=-2, keepdim=True)
        variance = x.var(dim=-2, keepdim=True, correction=0)
        total = self.current_count + n
        delta = mean - self.running_mean
        # before anything was seen the count is 0 and with it the weight of the initial mean and variance
        old = self.current_count / total
        self.running_variance.copy_(
            old * self.running_variance + (1 - old) * variance + old * (1 - old) * delta * delta
        )
        self.running_mean.add_((1 - old) * delta)
        self.current_count.copy_(total)

    def normalise(self, x: Tensor) -> Tensor:
        scale = self.running_variance.sqrt() + self.epsilon
        y = (x - self.running_mean.to(x.dtype)) / scale.to(x.dtype)
        return y.clamp(-self.clip_threshold, self.clip_threshold)

    def denormalise(self, x: Tensor) -> Tensor:
        x = x.clamp(-self.clip_threshold, self.clip_threshold)
        return x * (self.running_variance.sqrt() + self.epsilon).to(x.dtype) + self.running_mean.to(x.dtype)


class ValueNorm(Preprocessor):
    """Debiased exponential moments of the returns (Yu et al. 2022, arXiv 2103.01955, appendix A).

    Batches count with weight ``1 - beta``, discounted by ``beta`` for each later one; dividing by the sum of weights removes
    the bias of the start. The moments are merged around the mean rather than as ``E[x^2] - E[x]^2``, so that a large mean
    costs no precision. ``y = (x - mean) / sqrt(max(variance, min_variance))``.

    :param size: width F, or the space that has it
    :param beta: decay of the moments
    :param min_variance: floor of the variance
    :param device: where the statistics live
    """

    STATISTICS = ("running_mean", "running_variance", "weight")

    running_mean: Tensor
    running_variance: Tensor
    weight: Tensor

    def __init__(
        self,
        size: int | Sequence[int] | gymnasium.Space,
        beta: float = 0.99999,
        min_variance: float = 1e-2,
        device: str | torch.device | None = None,
    ) -> None:
        super().__init__(size, device)
        if not 0.0 <= beta < 1.0:
            raise ValueError(f"beta: expected a number in [0, 1), got {beta}")
        self.beta = float(beta)
        self.min_variance = float(min_variance)
        self.register_buffer("running_mean", torch.zeros(1, self.size, dtype=torch.float64, device=self._target))
        self.register_buffer("running_variance", torch.ones(1, self.size, dtype=torch.float64, device=self._target))
        self.register_buffer("weight", torch.zeros(1, 1, dtype=torch.float64, device=self._target))

    def settings(self) -> tuple[Any, ...]:
        return *super().settings(), self.beta, self.min_variance

    @torch.no_grad()
    def learn(self, x: Tensor) -> None:
        if x.shape[-2] == 0:
            return
        x = x.detach().double()
        mean = x.mean(dim=-2, keepdim=True)
        variance = x.var(dim=-2, keepdim=True, correction=0)
        weight = self.beta * self.weight + (1 - self.beta)
        new = (1 - self.beta) / weight
        delta = mean - self.running_mean
        self.running_variance.copy_((1 - new) * (self.running_variance + new * delta * delta) + new * variance)
        self.running_mean.add_(new * delta)
        self.weight.copy_(weight)

    def _scale(self) -> Tensor:
        return self.running_variance.clamp_min(self.min_variance).sqrt()

    def normalise(self, x: Tensor) -> Tensor:
        return (x - self.running_mean.to(x.dtype)) / self._scale().to(x.dtype)

    def denormalise(self, x: Tensor) -> Tensor:
        return x * self._scale().to(x.dtype) + self.running_mean.to(x.dtype)


class _Loop(nn.Module):
    """Preprocessors of any kind side by side on ``[S, N, F]``."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor, train: bool = False, inverse: bool = False) -> Tensor:
        return torch.stack([m(part, train=train, inverse=inverse) for m, part in zip(self.members, x, strict=True)])


def stack_preprocessors(members: Sequence[nn.Module]) -> nn.Module:
    """One preprocessor for ``[S, N, F]`` out of S for ``[N, F]``.

    Where all are :class:`Preprocessor` objects of equal settings they work as one computation, and each member's statistics
    become views of the whole's; others (any module called with ``train=`` and ``inverse=``) are called one after another.
    """
    first = members[0]
    if not all(isinstance(m, Preprocessor) and m.settings() == first.settings() for m in members):  # type: ignore[operator]
        return _Loop(members)
    assert isinstance(first, Preprocessor)
    whole: Preprocessor = type(first).__new__(type(first))
    nn.Module.__init__(whole)
    own = {name: value for name, value in vars(first).items() if name not in vars(whole)}  # the others are PyTorch's
    whole.__dict__.update(own)
    for name in first.STATISTICS:
        stacked = torch.stack([m.get_buffer(name) for m in members])
        whole.register_buffer(name, stacked)
        for m, view in zip(members, stacked, strict=True):
            setattr(m, name, view)
    return whole
