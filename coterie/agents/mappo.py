"""MAPPO: multi-agent PPO with critics that see the shared state (Yu et al. 2022, arXiv 2103.01955)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import gymnasium
from torch import Tensor

from coterie.agents.config import Config, Key, callable_or_none, keyword_arguments
from coterie.agents.groups import Group, Learner
from coterie.agents.normalisation import SetPreprocessor
from coterie.agents.ppo import MultiAgentPPO
from coterie.agents.ppo_config import PPO_DEFAULT_CONFIG, PPO_KEYS
from coterie.spaces import flat_size

__all__ = ["MAPPO", "MAPPO_DEFAULT_CONFIG"]

MAPPO_DEFAULT_CONFIG = Config(
    {
        **PPO_DEFAULT_CONFIG.copy(),
        "shared_state_preprocessor": None,  # class of a normaliser of shared states, e.g. RunningStandardScaler
        "shared_state_preprocessor_kwargs": {},  # its keyword arguments; size and device are filled in
    }
)


class MAPPO(MultiAgentPPO):
    """Multi-agent PPO whose critics see the shared state, which is evaluated once for all agents that share a critic.

    :raises ValueError: a value model whose input is not the shared state's size
    """

    DEFAULT_CONFIG: ClassVar[Config] = MAPPO_DEFAULT_CONFIG
    KEYS: ClassVar[Mapping[str, Key]] = {
        **PPO_KEYS,
        "shared_state_preprocessor": callable_or_none("a class of normalisers"),
        "shared_state_preprocessor_kwargs": keyword_arguments(),
    }
    COMMON_KEYS: ClassVar[tuple[str, ...]] = (*MultiAgentPPO.COMMON_KEYS, "shared_state_preprocessor")
    uses_shared_states: ClassVar[bool] = True
    critic_input: ClassVar[str] = "a MAPPO critic sees the shared state (for critics of the own observation use IPPO)"

    def critic_space(self, uid: str) -> gymnasium.Space | None:
        if self.shared_observation_spaces is not None:
            return self.shared_observation_spaces[uid]
        value = self.models[uid].get("value")
        return None if value is None else value.observation_space

    def _check_critics(self) -> None:
        super()._check_critics()
        sizes = {uid: flat_size(space) for uid in self.possible_agents if (space := self.critic_space(uid)) is not None}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"expected one shared state for the whole team, got spaces of sizes {sizes}")

    def critic_states(self, states: Tensor, shared_states: Tensor | None) -> Tensor:
        assert shared_states is not None
        return shared_states.unsqueeze(-2)

    def critic_preprocessor(self, group: Group) -> SetPreprocessor | None:
        return group.shared_state_preprocessor

    def _make_preprocessors(self, learner: Learner) -> None:
        super()._make_preprocessors(learner)
        for group in learner.groups:
            space = self.critic_space(group.names[0])
            group.shared_state_preprocessor = self._preprocessor(group, "shared_state_preprocessor", space)

    def _learn_states(self, learner: Learner) -> None:
        super()._learn_states(learner)
        for group in learner.groups:
            if group.shared_state_preprocessor is not None and self._shared is not None:
                states = self._shared.get_tensor_by_name("shared_states", keepdim=False)
                group.shared_state_preprocessor(states.unsqueeze(1), train=True)
