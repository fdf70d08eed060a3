"""MAPPO: multi-agent PPO with critics that see the shared state (Yu et al. 2022, arXiv 2103.01955)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar

import gymnasium
import torch
from torch import Tensor

from coterie.agents.config import Config, ConfigError, Key, keyword_arguments, normaliser, one_of
from coterie.agents.groups import CriticGroup, Group, Learner
from coterie.agents.masks import blank, join_masks
from coterie.agents.moments import Moment
from coterie.agents.normalisation import SetPreprocessor
from coterie.agents.ppo import MultiAgentPPO
from coterie.agents.ppo_config import PPO_DEFAULT_CONFIG, PPO_KEYS
from coterie.agents.shared_input import SharedInput
from coterie.models.critic_inputs import CRITIC_INPUTS

__all__ = ["MAPPO", "MAPPO_DEFAULT_CONFIG"]

# fmt: off
MAPPO_DEFAULT_CONFIG = Config({
    **PPO_DEFAULT_CONFIG.copy(),
    "critic_input": "state",                # "state", "observations" of all, own observation and state ("agent"), or "both"
    "shared_state_preprocessor": None,      # class of a normaliser of what critics see, e.g. RunningStandardScaler
    "shared_state_preprocessor_kwargs": {}, # its keyword arguments; size and device are filled in
})
# fmt: on


class MAPPO(MultiAgentPPO):
    """Multi-agent PPO whose critics see the shared state, which is evaluated once for all agents that share a critic.

    ``cfg["critic_input"]`` chooses what stands for it: ``"state"``, what the environment's ``state()`` returns (all agents'
    observations together, where it has none); ``"observations"``, all agents' observations together; ``"agent"``, the own
    observation and the state; ``"both"``, the state and all observations.

    :raises ValueError: a value model whose input is not of that size
    :raises ConfigError: a value model that needs all agents' observations is to see something else
    """

    DEFAULT_CONFIG: ClassVar[Config] = MAPPO_DEFAULT_CONFIG
    KEYS: ClassVar[Mapping[str, Key]] = {
        **PPO_KEYS,
        "critic_input": one_of(*CRITIC_INPUTS, per_agent=False),
        "shared_state_preprocessor": normaliser(),
        "shared_state_preprocessor_kwargs": keyword_arguments(),
    }
    COMMON_KEYS: ClassVar[tuple[str, ...]] = (*MultiAgentPPO.COMMON_KEYS, "shared_state_preprocessor")
    critic_sees: ClassVar[str] = (
        "a MAPPO critic sees the shared state, or what cfg['critic_input'] says (for critics of the own observation use IPPO)"
    )

    @cached_property
    def _input(self) -> SharedInput:
        sizes = {
            uid: self.models[uid]["value"].num_observations
            for uid in self.learning_agents
            if "value" in self.models[uid]
        }
        kind = self.cfg["critic_input"]
        return SharedInput(kind, "critics", sizes, self.observation_spaces, self.shared_observation_spaces)

    @property
    def common_critic_input(self) -> bool:  # type: ignore[override]
        return self.cfg["critic_input"] != "agent"

    @property
    def uses_shared_states(self) -> bool:  # type: ignore[override]
        return self._input.needs_state

    def _check_critics(self) -> None:
        kind = self.cfg["critic_input"]
        for uid in self.learning_agents:
            value = self.models[uid].get("value")
            if value is not None and value.needs_observations and kind != "observations":
                raise ConfigError(
                    f"critic_input: the value model of {uid!r}, a {type(value).__name__}, needs all agents' observations, and "
                    f"{kind!r} is something else: set cfg['critic_input'] to 'observations'"
                )
        super()._check_critics()

    def critic_space(self, uid: str) -> gymnasium.Space | None:
        return self._input.space(uid)

    def shared_space(self) -> gymnasium.Space | int:
        return self._input.state_space()

    def critic_states(self, group: Group, moment: Moment) -> Tensor:
        state = self._input.of(moment).unsqueeze(-2)
        if self.common_critic_input:
            return state
        seen = torch.cat([moment.of(group), state.expand(-1, group.size, -1)], dim=-1)
        return blank(seen, moment.present(group))

    def critic_preprocessor(self, critics: CriticGroup) -> SetPreprocessor | None:
        return critics.preprocessor

    def _make_preprocessors(self, learner: Learner) -> None:
        super()._make_preprocessors(learner)
        key, common = "shared_state_preprocessor", None
        self._check_agreement(learner, key)
        for critics in learner.critics:
            width = critics.batch.models[0].num_observations
            if not critics.common_input:
                critics.preprocessor = self._preprocessor(critics.groups[0], key, width)
                continue
            # a parameter set's agents see the same, of whatever kind they are, and share its scale
            common = self._preprocessor(learner, key, width) if common is None else common
            critics.preprocessor = common

    def _settle_shared(self, infos: Mapping[str, Any]) -> None:
        self._input.settle(infos)

    def _learn_states(self, learner: Learner) -> None:
        super()._learn_states(learner)
        moment = self._rollout_moment()
        for critics in learner.critics[:1] if self.common_critic_input else learner.critics:
            if critics.preprocessor is not None:
                groups = learner.groups if self.common_critic_input else critics.groups
                mask = join_masks({group.names: self._storage[group.names].mask("active") for group in groups})
                states = self.critic_inputs(critics, moment).states
                critics.preprocessor(states, train=True, mask=None if mask is None else mask.flatten(0, 1))
