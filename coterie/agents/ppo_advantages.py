"""The standardisation of advantages over a rollout."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from coterie.functional import standardise

__all__ = ["standardise_advantages"]


def standardise_advantages(
    advantages: Sequence[Tensor], masks: Sequence[Tensor | None], scope: str, num_sets: int
) -> list[Tensor]:
    """Advantages of a learner's groups, each ``[T, E, A, 1]``, with mean 0 and standard deviation 1.

    :param masks: which rows count, bool ``[T, E, A, 1]`` for each group; all None where all do
    :param scope: ``"agent"`` for each agent by itself, ``"group"`` for the agents that share parameters, ``"off"``
    :param num_sets: number of parameter sets S; where there are several there is one group, ordered by set
    """
    if scope == "off":
        return list(advantages)
    if scope == "agent":
        return [standardise(a, (0, 1), mask) for a, mask in zip(advantages, masks, strict=True)]
    agents = [a.shape[2] for a in advantages]
    whole = torch.cat(list(advantages), dim=2).unflatten(2, (num_sets, -1))
    given = [mask for mask in masks if mask is not None]
    mask = torch.cat(given, dim=2).unflatten(2, (num_sets, -1)) if given else None
    return list(standardise(whole, (0, 1, 3), mask).flatten(2, 3).split(agents, dim=2))
