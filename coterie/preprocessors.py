"""Normalisers of observations, states and values, with statistics kept in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import torch
from torch import Tensor, nn

from coterie.spaces import flat_size

__all__ = [
    "PopArt",
    "Preprocessor",
    "RunningScale",
    "RunningStandardScaler",
    "ValueNorm",
    "rescale_output",
    "stack_preprocessors",
]


class Preprocessor(nn.Module):
    """A normaliser ``y = (x - mean) / scale`` whose statistics are learned from batches.

    Called as ``preprocessor(x, train=False, inverse=False)`` on ``[N, F]``; ``train`` learns from ``x`` first,
    ``inverse`` turns normalised values back. With ``mask``, bool ``[N, 1]``, only the rows where it is True are learned from,
    whatever the others hold. Several of them may be stacked (see :func:`stack_preprocessors`): they then
    take ``[S, N, F]`` and learn S independent statistics, and each remains a live view of its own.

    :param size: width F, or the space that has it
    :param device: where the statistics live; the CPU by default
    """

    #: names of the buffers that hold statistics
    STATISTICS: tuple[str, ...] = ()
    #: whether data are only scaled, as rewards must be
    keeps_mean: bool = False

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

    def learn(self, x: Tensor, mask: Tensor | None = None) -> None:
        """Update the statistics from a batch ``[..., N, F]``, from its rows with a true ``mask`` (bool ``[..., N, 1]``).

        A batch without rows changes nothing; where several learn at once, those without rows stay as they are.
        """
        raise NotImplementedError

    def normalise(self, x: Tensor) -> Tensor:
        """``x`` in units of the statistics."""
        raise NotImplementedError

    def denormalise(self, x: Tensor) -> Tensor:
        """Inverse of :meth:`normalise`."""
        raise NotImplementedError

    def forward(
        self, x: Tensor, train: bool = False, inverse: bool = False, no_grad: bool = True, mask: Tensor | None = None
    ) -> Tensor:
        """Normalise (or, with ``inverse``, denormalise) ``x``, after learning from it where ``train`` is set.

        ``mask`` says which rows are learned from; all of them are transformed.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not no_grad):
            if train:
                self.learn(x) if mask is None else self.learn(x, mask)  # a subclass of one's own need not know of masks
            return self.denormalise(x) if inverse else self.normalise(x)


def _batch_moments(x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | int]:
    """Mean and variance ``[..., 1, F]`` of the rows of ``x``, in float64, and their number (``[..., 1, 1]`` with a mask)."""
    x = x.detach().double()
    if mask is None:
        return x.mean(dim=-2, keepdim=True), x.var(dim=-2, keepdim=True, correction=0), x.shape[-2]
    if mask.dtype != torch.bool or mask.shape != (*x.shape[:-1], 1):
        raise ValueError(
            f"mask: expected bool of shape {[*x.shape[:-1], 1]}, one entry for each row, got {mask.dtype} {list(mask.shape)}"
        )
    count = mask.sum(dim=-2, keepdim=True)
    rows = count.clamp_min(1)
    mean = torch.where(mask, x, 0.0).sum(dim=-2, keepdim=True) / rows
    return mean, torch.where(mask, x - mean, 0.0).square().sum(dim=-2, keepdim=True) / rows, count


def _assign(buffer: Tensor, new: Tensor, count: Tensor | int) -> None:
    """Overwrite statistics, those of rows that were not there excepted."""
    buffer.copy_(torch.where(count > 0, new, buffer) if isinstance(count, Tensor) else new)


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
    def learn(self, x: Tensor, mask: Tensor | None = None) -> None:
        if x.shape[-2] == 0:
            return
        mean, variance, n = _batch_moments(x, mask)
        total = self.current_count + n
        delta = mean - self.running_mean
        # before anything was seen the count is 0 and with it the weight of the initial mean and variance
        old = self.current_count / total
        merged = old * self.running_variance + (1 - old) * variance + old * (1 - old) * delta * delta
        _assign(self.running_variance, merged, n)
        _assign(self.running_mean, self.running_mean + (1 - old) * delta, n)
        self.current_count.copy_(total)

    def normalise(self, x: Tensor) -> Tensor:
        scale = self.running_variance.sqrt() + self.epsilon
        y = (x - self.running_mean.to(x.dtype)) / scale.to(x.dtype)
        return y.clamp(-self.clip_threshold, self.clip_threshold)

    def denormalise(self, x: Tensor) -> Tensor:
        x = x.clamp(-self.clip_threshold, self.clip_threshold)
        return x * (self.running_variance.sqrt() + self.epsilon).to(x.dtype) + self.running_mean.to(x.dtype)


class RunningScale(RunningStandardScaler):
    """Standard deviation of all that was seen, for rewards: ``y = x / std``. The mean stays where it is, since moving it would
    pay for every further step of an episode, or charge for it.

    Until numbers that differ were seen, ``y = x``.

    :param size: width F, or the space that has it
    :param epsilon: standard deviations up to this one count as 0
    :param device: where the statistics live
    """

    keeps_mean = True

    def __init__(
        self,
        size: int | Sequence[int] | gymnasium.Space,
        epsilon: float = 1e-8,
        device: str | torch.device | None = None,
    ) -> None:
        super().__init__(size, epsilon, float("inf"), device)

    def _scale(self, x: Tensor) -> Tensor:
        std = self.running_variance.sqrt()
        return torch.where(std > self.epsilon, std, 1.0).to(x.dtype)

    def normalise(self, x: Tensor) -> Tensor:
        return x / self._scale(x)

    def denormalise(self, x: Tensor) -> Tensor:
        return x * self._scale(x)


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
    def learn(self, x: Tensor, mask: Tensor | None = None) -> None:
        if x.shape[-2] == 0:
            return
        mean, variance, n = _batch_moments(x, mask)
        weight = self.beta * self.weight + (1 - self.beta)
        new = (1 - self.beta) / weight
        delta = mean - self.running_mean
        merged = (1 - new) * (self.running_variance + new * delta * delta) + new * variance
        _assign(self.running_variance, merged, n)
        _assign(self.running_mean, self.running_mean + new * delta, n)
        _assign(self.weight, weight, n)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Copies of the mean and the scale by which values are normalised at present, ``[..., 1, F]`` each."""
        return self.running_mean.clone(), self._scale()

    def _scale(self) -> Tensor:
        return self.running_variance.clamp_min(self.min_variance).sqrt()

    def normalise(self, x: Tensor) -> Tensor:
        return (x - self.running_mean.to(x.dtype)) / self._scale().to(x.dtype)

    def denormalise(self, x: Tensor) -> Tensor:
        return x * self._scale().to(x.dtype) + self.running_mean.to(x.dtype)


class PopArt(ValueNorm):
    """The normalisation of :class:`ValueNorm` for critics whose last layer is rescaled along with it.

    "Preserving outputs precisely, while adaptively rescaling targets" (van Hasselt et al. 2016, arXiv 1602.07714; Hessel
    et al. 2018, arXiv 1809.04474): whenever the statistics have moved, :func:`rescale_output` changes the critic's last
    layer such that its denormalised predictions stay what they were::

        before = popart.moments()
        popart(returns, train=True)
        weight, bias = rescale_output(layer.weight, layer.bias, before, popart.moments())

    Until something was learned there is no scale: it is 0, predictions are denormalised to 0 (so that the first update's
    advantages owe nothing to an untrained critic's idea of it), values are not normalised, and the first rescaling leaves the
    layer as it is.

    Where returns don't vary, the scale is the root of ``min_variance``: unless rewards are that small, learning does not
    depend on their unit.

    :param size: width F, or the space that has it
    :param beta: decay of the moments
    :param min_variance: floor of the variance
    :param device: where the statistics live
    """

    def __init__(
        self,
        size: int | Sequence[int] | gymnasium.Space,
        beta: float = 0.99999,
        min_variance: float = 1e-8,
        device: str | torch.device | None = None,
    ) -> None:
        super().__init__(size, beta, min_variance, device)

    def _scale(self) -> Tensor:
        return torch.where(self.weight > 0, super()._scale(), 0.0)

    def normalise(self, x: Tensor) -> Tensor:
        scale = self._scale()
        return (x - self.running_mean.to(x.dtype)) / torch.where(scale > 0, scale, 1.0).to(x.dtype)


@torch.no_grad()
def rescale_output(
    layer_weight: Tensor, layer_bias: Tensor, before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Make up for a change of the statistics in a linear layer ``y = w x + b`` whose outputs are denormalised by them.

    ``w' = w s / s'`` and ``b' = (s b + m - m') / s'``, so that ``s' (w' x + b') + m' = s (w x + b) + m``. Where there was no
    scale before (0: nothing had been learned), the layer stays as it is.

    :param layer_weight: ``[..., n, inputs]``
    :param layer_bias: ``[..., n]``
    :param before: mean m and scale s, ``[..., 1, n or 1]`` each, as ``moments()`` returns them
    :param after: m' and s'

    :return: the new weight and bias, for the caller to copy into the layer
    """
    (old_mean, old_scale), (mean, scale) = ([m.squeeze(-2) for m in moments] for moments in (before, after))
    known = old_scale > 0
    ratio = torch.where(known, old_scale / scale, 1.0)
    shift = torch.where(known, (old_mean - mean) / scale, 0.0)
    weight = ratio.unsqueeze(-1) * layer_weight.double()
    return weight.to(layer_weight.dtype), (ratio * layer_bias.double() + shift).to(layer_bias.dtype)


class _Loop(nn.Module):
    """Preprocessors of any kind side by side on ``[S, N, F]``."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor, train: bool = False, inverse: bool = False, mask: Tensor | None = None) -> Tensor:
        masks = [None] * len(self.members) if mask is None else mask.unbind(0)
        return torch.stack(
            [self._apply_one(m, part, train, inverse, own) for m, part, own in zip(self.members, x, masks, strict=True)]
        )

    @staticmethod
    def _apply_one(member: nn.Module, x: Tensor, train: bool, inverse: bool, mask: Tensor | None) -> Tensor:
        if mask is None:
            y: Tensor = member(x, train=train, inverse=inverse)
        elif isinstance(member, Preprocessor):
            y = member(x, train=train, inverse=inverse, mask=mask)
        else:  # other modules know of no masks: they are shown the rows that count, then asked for all
            rows = x[mask.squeeze(-1)]
            if train and len(rows):
                member(rows, train=True, inverse=inverse)
            y = member(x, train=False, inverse=inverse)
        return y


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
