"""IPPO: multi-agent PPO with critics of the own observation (de Witt et al. 2020, arXiv 2011.09533)."""

from __future__ import annotations

from typing import ClassVar

import gymnasium
from torch import Tensor

from coterie.agents.config import Config
from coterie.agents.groups import CriticGroup, Group
from coterie.agents.moments import Moment
from coterie.agents.normalisation import SetPreprocessor
from coterie.agents.ppo import MultiAgentPPO
from coterie.agents.ppo_config import PPO_DEFAULT_CONFIG

__all__ = ["IPPO", "IPPO_DEFAULT_CONFIG"]

IPPO_DEFAULT_CONFIG: Config = PPO_DEFAULT_CONFIG.copy()


class IPPO(MultiAgentPPO):
    """Multi-agent PPO whose critics see what their agent sees.

    :raises ValueError: a value model whose input is not the observation's size
    """

    DEFAULT_CONFIG: ClassVar[Config] = IPPO_DEFAULT_CONFIG
    uses_shared_states: ClassVar[bool] = False
    critic_sees: ClassVar[str] = "an IPPO critic sees the own observation (for critics of the shared state use MAPPO)"

    def critic_space(self, uid: str) -> gymnasium.Space | None:
        return self.observation_spaces[uid]

    def critic_states(self, group: Group, moment: Moment) -> Tensor:
        return moment.of(group)

    def critic_preprocessor(self, critics: CriticGroup) -> SetPreprocessor | None:
        return critics.groups[0].state_preprocessor
