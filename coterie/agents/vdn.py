"""VDN: value decomposition networks (Sunehag et al. 2017, arXiv 1706.05296)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from coterie.agents.config import Config
from coterie.agents.groups import Learner
from coterie.agents.mixing import MixedValues
from coterie.agents.value_config import VALUE_DEFAULT_CONFIG

__all__ = ["VDN", "VDN_DEFAULT_CONFIG"]

VDN_DEFAULT_CONFIG: Config = VALUE_DEFAULT_CONFIG.copy()


class VDN(MixedValues):
    """Q-learning of the sum of the agents' values, ``Q_tot = sum_i Q_i(o_i, a_i)`` (section 3, equation 1), of which each agent
    maximises its own part.
    """

    DEFAULT_CONFIG: ClassVar[Config] = VDN_DEFAULT_CONFIG

    def _mix(
        self, learner: Learner, q_values: Tensor, active: Tensor | None, states: Tensor | None, target: bool
    ) -> Tensor:
        there = q_values if active is None else torch.where(active, q_values, 0.0)
        return there.sum(dim=-1, keepdim=True)
