"""Schedules: numbers that follow the time step, and learning-rate schedulers beyond ``torch.optim.lr_scheduler``."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor
from torch.optim import Optimizer

__all__ = ["ExponentialSchedule", "KLAdaptiveLR", "LinearSchedule"]

_SETTINGS = ("kl_threshold", "min_lr", "max_lr", "kl_factor", "lr_factor")


@dataclass(frozen=True)
class LinearSchedule:
    """A number that goes straight from ``start`` to ``end`` over the first ``fraction`` of all time steps, and stays there.

    Called as ``schedule(timestep, timesteps)``. It depends on the time step alone: a run that is taken up again at
    its time step goes on where it was.

    :param start: value at time step 0
    :param end: value from time step ``fraction * timesteps`` on
    :param fraction: part of the time steps that the way takes, in (0, 1]

    :raises ValueError: a number that is not finite, or a fraction outside (0, 1]
    """

    start: float
    end: float
    fraction: float = 1.0

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name}: expected a finite number, got {getattr(self, name)}")
        if not 0.0 < self.fraction <= 1.0:
            raise ValueError(f"fraction: expected a number in (0, 1], got {self.fraction}")

    def __call__(self, timestep: int, timesteps: int) -> float:
        """Value at ``timestep`` of ``timesteps``, which must be positive."""
        part = self._way(timestep, timesteps)
        return (1.0 - part) * self.start + part * self.end

    def _way(self, timestep: int, timesteps: int) -> float:
        """The part of the way that is behind, from 0 to 1."""
        if timesteps < 1:
            raise ValueError(f"timesteps: expected their total number, at least 1, got {timesteps}")
        return min(max(timestep / (self.fraction * timesteps), 0.0), 1.0)


@dataclass(frozen=True)
class ExponentialSchedule(LinearSchedule):
    """A :class:`LinearSchedule` of the logarithm: equal steps change the number by equal factors.

    :raises ValueError: as :class:`LinearSchedule`, or a start or end that is not positive
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.start > 0.0 and self.end > 0.0):
            raise ValueError(f"expected a positive start and end, got {self.start} and {self.end}")

    def __call__(self, timestep: int, timesteps: int) -> float:
        part = self._way(timestep, timesteps)
        return float(self.start ** (1.0 - part) * self.end**part)


class KLAdaptiveLR:
    """Keep the KL divergence of each epoch near a target by changing the learning rate.

    Above ``kl_threshold * kl_factor`` the rate is divided by ``lr_factor``, below ``kl_threshold / kl_factor`` it is
    multiplied by it, within ``[min_lr, max_lr]`` (Schulman et al. 2017, arXiv 1707.06347, section 4, for the rate rather than
    the penalty; Rudin et al. 2022, arXiv 2109.11978).

    :param optimizer: the optimizer whose ``param_groups`` are changed
    :param kl_threshold: target KL divergence
    :param min_lr: lower bound of the learning rate
    :param max_lr: upper bound of the learning rate
    :param kl_factor: width of the band in which nothing changes
    :param lr_factor: factor of a change
    """

    def __init__(
        self,
        optimizer: Optimizer,
        kl_threshold: float = 0.008,
        min_lr: float = 1e-6,
        max_lr: float = 1e-2,
        kl_factor: float = 2.0,
        lr_factor: float = 1.5,
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"expected a torch Optimizer, got {type(optimizer).__name__}")
        if kl_threshold <= 0 or not 0 < min_lr <= max_lr or kl_factor < 1 or lr_factor <= 1:
            raise ValueError(
                "expected kl_threshold > 0, 0 < min_lr <= max_lr, kl_factor >= 1 and lr_factor > 1, got "
                f"{kl_threshold}, {min_lr}, {max_lr}, {kl_factor} and {lr_factor}"
            )
        self.optimizer = optimizer
        self.kl_threshold = kl_threshold
        self.min_lr = min_lr
        self.max_lr = max_lr
        self.kl_factor = kl_factor
        self.lr_factor = lr_factor

    def step(self, kl: float | Tensor | None = None, epoch: int | None = None) -> None:
        """Adapt the learning rate to the last epoch's KL divergence; None changes nothing."""
        if kl is None:
            return
        kl = float(kl)
        for group in self.optimizer.param_groups:
            if kl > self.kl_threshold * self.kl_factor:
                group["lr"] = max(group["lr"] / self.lr_factor, self.min_lr)
            elif kl < self.kl_threshold / self.kl_factor:
                group["lr"] = min(group["lr"] * self.lr_factor, self.max_lr)

    def get_last_lr(self) -> list[float]:
        """The present learning rates, one per parameter group."""
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, float]:
        """The settings; the learning rate itself belongs to the optimizer's state."""
        return {name: getattr(self, name) for name in _SETTINGS}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """Take settings that :meth:`state_dict` returned."""
        for name in _SETTINGS:
            setattr(self, name, state_dict[name])
