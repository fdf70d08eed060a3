"""The configuration values that enter the formulas of multi-agent PPO."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from coterie.agents.groups import Group

__all__ = ["LossWeights", "loss_weights"]


@dataclass(frozen=True)
class LossWeights:
    """A group's values: one for all of its agents, or a tensor ``[A, 1]`` (``[A]`` for scales of losses)."""

    ratio_clip: float | Tensor
    value_clip: float | Tensor  # infinite where predictions are not clipped
    entropy_scale: float | Tensor
    value_scale: float | Tensor
    explores: bool  # whether any entropy counts
    discount: float | Tensor
    gae_lambda: float | Tensor
    bootstraps: float | Tensor  # 1 where what lies beyond a truncation is valued, else 0


def loss_weights(value: Callable[[Group, str], float | Tensor], group: Group) -> LossWeights:
    """Read a group's values with ``value(group, key)``."""
    clip, clips = value(group, "value_clip"), value(group, "clip_predicted_values")
    if isinstance(clips, Tensor):
        clip = torch.where(clips.bool(), clip, math.inf)
    elif not clips:
        clip = math.inf
    entropy_scale = value(group, "entropy_loss_scale")
    value_scale = value(group, "value_loss_scale")
    return LossWeights(
        ratio_clip=value(group, "ratio_clip"),
        value_clip=clip,
        entropy_scale=entropy_scale.squeeze(-1) if isinstance(entropy_scale, Tensor) else entropy_scale,
        value_scale=value_scale.squeeze(-1) if isinstance(value_scale, Tensor) else value_scale,
        explores=isinstance(entropy_scale, Tensor) or entropy_scale > 0,
        discount=value(group, "discount_factor"),
        gae_lambda=value(group, "lambda"),
        bootstraps=value(group, "time_limit_bootstrap"),
    )
