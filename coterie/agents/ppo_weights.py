"""The configuration values that enter the formulas of multi-agent PPO."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["LossWeights", "loss_weights"]


@dataclass(frozen=True)
class LossWeights:
    """A group's values at one update: one for all of its agents, or a tensor ``[A, 1]`` (``[A]`` for scales of losses)."""

    ratio_clip: tuple[float | Tensor, float | Tensor]  # below 1 and above 1
    value_clip: float | Tensor  # infinite where predictions are not clipped
    huber_delta: float | Tensor  # infinite for the squared error
    entropy_scale: float | Tensor
    value_scale: float | Tensor
    explores: bool  # whether any entropy counts
    discount: float | Tensor
    gae_lambda: float | Tensor
    bootstraps: float | Tensor  # 1 where what lies beyond a truncation is valued, else 0


def loss_weights(value: Callable[[str, int], float | Tensor]) -> LossWeights:
    """Read a group's values with ``value(key, part)``: the whole of a number, part 0 or 1 of a pair."""
    clip, clips = value("value_clip", 0), value("clip_predicted_values", 0)
    if isinstance(clips, Tensor):
        clip = torch.where(clips.bool(), clip, math.inf)
    elif not clips:
        clip = math.inf
    delta = value("huber_delta", 0)
    if isinstance(delta, Tensor):
        delta = torch.where(delta > 0, delta, math.inf)
    elif delta == 0:
        delta = math.inf
    entropy_scale = value("entropy_loss_scale", 0)
    value_scale = value("value_loss_scale", 0)
    return LossWeights(
        ratio_clip=(value("ratio_clip", 0), value("ratio_clip", 1)),
        value_clip=clip,
        huber_delta=delta,
        entropy_scale=entropy_scale.squeeze(-1) if isinstance(entropy_scale, Tensor) else entropy_scale,
        value_scale=value_scale.squeeze(-1) if isinstance(value_scale, Tensor) else value_scale,
        explores=isinstance(entropy_scale, Tensor) or entropy_scale > 0,
        discount=value("discount_factor", 0),
        gae_lambda=value("lambda", 0),
        bootstraps=value("time_limit_bootstrap", 0),
    )
