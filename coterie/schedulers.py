"""Learning-rate schedulers beyond those of ``torch.optim.lr_scheduler``."""

from __future__ import annotations

from torch import Tensor
from torch.optim import Optimizer

__all__ = ["KLAdaptiveLR"]

_SETTINGS = ("kl_threshold", "min_lr", "max_lr", "kl_factor", "lr_factor")


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
