"""MAPPO: multi-agent PPO with critics that see the shared state (Yu et al. 2022, arXiv 2103.01955)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, ClassVar

import gymnasium
import torch
from torch import Tensor

from coterie.agents.config import Config, Key, callable_or_none, keyword_arguments, one_of
from coterie.agents.groups import CriticGroup, Group, Learner
from coterie.agents.masks import blank
from coterie.agents.moments import Moment
from coterie.agents.normalisation import SetPreprocessor
from coterie.agents.ppo import MultiAgentPPO
from coterie.agents.ppo_config import PPO_DEFAULT_CONFIG, PPO_KEYS
from coterie.agents.rollout import joined_mask
from coterie.models.critic_inputs import CRITIC_INPUTS, critic_space
from coterie.spaces import flat_size

__all__ = ["MAPPO", "MAPPO_DEFAULT_CONFIG"]

_log = logging.getLogger(__name__)

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
    """

    DEFAULT_CONFIG: ClassVar[Config] = MAPPO_DEFAULT_CONFIG
    KEYS: ClassVar[Mapping[str, Key]] = {
        **PPO_KEYS,
        "critic_input": one_of(*CRITIC_INPUTS, per_agent=False),
        "shared_state_preprocessor": callable_or_none("a class of normalisers"),
        "shared_state_preprocessor_kwargs": keyword_arguments(),
    }
    COMMON_KEYS: ClassVar[tuple[str, ...]] = (*MultiAgentPPO.COMMON_KEYS, "shared_state_preprocessor")
    critic_sees: ClassVar[str] = (
        "a MAPPO critic sees the shared state, or what cfg['critic_input'] says (for critics of the own observation use IPPO)"
    )

    #: whether observations stand in for a state that the environment does not have
    _stands_in = False

    @property
    def common_critic_input(self) -> bool:  # type: ignore[override]
        return self.cfg["critic_input"] != "agent"

    @property
    def uses_shared_states(self) -> bool:  # type: ignore[override]
        return self.cfg["critic_input"] != "observations" and not self._stands_in

    def critic_space(self, uid: str) -> gymnasium.Space | None:
        kind = self.cfg["critic_input"]
        if self.shared_observation_spaces is None and kind != "observations":
            value = self.models[uid].get("value")
            return None if value is None else value.observation_space
        shared = None if self.shared_observation_spaces is None else self.shared_observation_spaces[uid]
        return critic_space(kind, uid, self.observation_spaces, shared)

    def shared_space(self) -> gymnasium.Space | int:
        if self.shared_observation_spaces is not None:
            return self.shared_observation_spaces[self.possible_agents[0]]
        return next(iter(self._state_sizes().values()))

    def _state_sizes(self) -> dict[str, int]:
        """Size of the shared state that each critic was built for."""
        beside = {"state": 0, "both": self._joined_size()}
        kind = self.cfg["critic_input"]
        return {
            uid: self.models[uid]["value"].num_observations - beside.get(kind, flat_size(self.observation_spaces[uid]))
            for uid in self.learning_agents
            if "value" in self.models[uid]
        }

    def _joined_size(self) -> int:
        return sum(flat_size(space) for space in self.observation_spaces.values())

    def _check_critics(self) -> None:
        super()._check_critics()
        if self.shared_observation_spaces is not None:
            what = "got spaces"
            sizes = {uid: flat_size(space) for uid, space in self.shared_observation_spaces.items()}
        else:
            what = "critics were built for states"
            sizes = {} if self.cfg["critic_input"] == "observations" else self._state_sizes()
        if len(set(sizes.values())) > 1 or min(sizes.values(), default=1) < 1:
            raise ValueError(f"expected one shared state for the whole team, {what} of sizes {sizes}")

    def critic_states(self, group: Group, moment: Moment) -> Tensor:
        kind = self.cfg["critic_input"]
        state = moment.joined() if kind == "observations" or self._stands_in else moment.shared
        assert state is not None
        if kind == "both":
            state = torch.cat([state, moment.joined()], dim=-1)
        state = state.unsqueeze(-2)
        if kind != "agent":
            return state
        own = moment.of(group)
        seen = torch.cat([own, state.expand(-1, group.size, -1)], dim=-1)
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

    def _record_shared_state(self, infos: Mapping[str, Any]) -> None:
        if self.uses_shared_states and self._shared is None and infos.get("shared_states") is None:
            expected, everyone = flat_size(self.shared_space()), self._joined_size()
            if expected != everyone:
                raise KeyError(
                    "infos['shared_states']: expected the shared state, a tensor [E, F]; got NoneType. Critics were built for "
                    f"a state of {expected} elements; all agents' observations, which stand in where there is no state, have "
                    f"{everyone}"
                )
            self._stands_in = True
            _log.warning("the environment has no state(): critics see all agents' observations together in its place")
        super()._record_shared_state(infos)

    def _learn_states(self, learner: Learner) -> None:
        super()._learn_states(learner)
        moment = self._rollout_moment()
        for critics in learner.critics[:1] if self.common_critic_input else learner.critics:
            if critics.preprocessor is not None:
                groups = learner.groups if self.common_critic_input else critics.groups
                mask = joined_mask([self._storage[group.names] for group in groups], "active")
                states = self.critic_inputs(critics, moment).states
                critics.preprocessor(states, train=True, mask=None if mask is None else mask.flatten(0, 1))
