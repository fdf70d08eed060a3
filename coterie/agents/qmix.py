"""QMIX: monotonic value function factorisation (Rashid et al. 2018, arXiv 1803.11485)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar

import gymnasium
from torch import Tensor

from coterie.agents.config import Config, Key, keyword_arguments, normaliser, one_of
from coterie.agents.groups import Learner
from coterie.agents.masks import join_masks
from coterie.agents.mixing import MixedValues
from coterie.agents.moments import Moment
from coterie.agents.replay_storage import Drawn, RowMasks, Rows
from coterie.agents.shared_input import SharedInput
from coterie.agents.value_config import VALUE_DEFAULT_CONFIG, VALUE_KEYS
from coterie.models.mixers import Mixer

__all__ = ["QMIX", "QMIX_DEFAULT_CONFIG"]

# fmt: off
QMIX_DEFAULT_CONFIG = Config({
    **VALUE_DEFAULT_CONFIG.copy(),
    "mixer_input": "state",               # "state", "observations" of all, or "both"
    "shared_state_preprocessor": None,    # class of a normaliser of what the mixer sees, e.g. RunningStandardScaler
    "shared_state_preprocessor_kwargs": {}, # its keyword arguments; size and device are filled in
})
# fmt: on


class QMIX(MixedValues):
    """Q-learning of what a mixer makes of the agents' values and the shared state (section 4).

    All agents that learn have one ``"mixer"`` in common, a :class:`~coterie.models.Mixer` of the whole team, whose value rises
    with each agent's: what is best for each by itself is best for the team. ``cfg["mixer_input"]`` chooses what it sees:
    ``"state"``, what the environment's ``state()`` returns (all agents' observations together, where it has none);
    ``"observations"``, all agents' observations together; ``"both"``.

    :raises TypeError: a mixer of another kind
    :raises ValueError: agents without one mixer in common, or one that was built for another team or another state
    """

    DEFAULT_CONFIG: ClassVar[Config] = QMIX_DEFAULT_CONFIG
    KEYS: ClassVar[Mapping[str, Key]] = {
        **VALUE_KEYS,
        "mixer_input": one_of("state", "observations", "both", per_agent=False),
        "shared_state_preprocessor": normaliser(),
        "shared_state_preprocessor_kwargs": keyword_arguments(),
    }
    COMMON_KEYS: ClassVar[tuple[str, ...]] = (*MixedValues.COMMON_KEYS, "shared_state_preprocessor")
    learned_roles: ClassVar[tuple[str, ...]] = ("q", "mixer")

    def _build(self) -> None:
        self._check_mixer()
        super()._build()

    def _check_mixer(self) -> None:
        mixers = {uid: self.models[uid].get("mixer") for uid in self.learning_agents}
        for uid, mixer in mixers.items():
            if mixer is None:
                raise ValueError(
                    f"models[{uid!r}]: expected a 'mixer', the same for all agents; for a plain sum use VDN"
                )
            if not isinstance(mixer, Mixer):
                raise TypeError(f"models[{uid!r}]['mixer']: expected a coterie Mixer, got {type(mixer).__name__}")
        if not mixers:
            return
        first, *others = mixers.values()
        if any(other is not first for other in others):
            raise ValueError("expected one mixer, the same object for all agents that learn, got several")
        assert first is not None
        if first.agents != len(self.possible_agents):
            raise ValueError(
                f"the mixer was built for {first.agents} agents, the team has {len(self.possible_agents)} (with those that "
                "don't learn)"
            )
        sees = self._input.size()
        if sees is not None and sees != first.num_observations:
            raise ValueError(
                f"the mixer was built for inputs of size {first.num_observations}, cfg['mixer_input'] "
                f"{self.cfg['mixer_input']!r} gives it {sees}"
            )

    @cached_property
    def _input(self) -> SharedInput:
        sizes = {uid: self.models[uid]["mixer"].num_observations for uid in self.learning_agents}
        kind = self.cfg["mixer_input"]
        return SharedInput(kind, "mixers", sizes, self.observation_spaces, self.shared_observation_spaces)

    @property
    def uses_shared_states(self) -> bool:  # type: ignore[override]
        return self._input.needs_state

    def shared_space(self) -> gymnasium.Space | int:
        return self._input.state_space()

    def _make_preprocessors(self, learner: Learner) -> None:
        super()._make_preprocessors(learner)
        if self.learns(learner):
            key, mixer = "shared_state_preprocessor", self.models[learner.names[0]]["mixer"]
            self._check_agreement(learner, key)
            learner.mixer_preprocessor = self._preprocessor(learner, key, mixer.num_observations)

    def _learn_scales(self, rows: Rows, masks: RowMasks, moment: Moment) -> None:
        super()._learn_scales(rows, masks, moment)
        for learner in filter(self.learns, self.learners):
            if learner.mixer_preprocessor is not None:
                acting = join_masks({group.names: masks[group.names[0]]["active"] for group in learner.groups})
                anyone = None if acting is None else acting.any(dim=1, keepdim=True)
                learner.mixer_preprocessor(self._input.of(moment).unsqueeze(1), train=True, mask=anyone)

    def _settle_shared(self, infos: Mapping[str, Any]) -> None:
        self._input.settle(infos)

    def _mixer_states(self, learner: Learner, drawn: Drawn) -> Tensor | None:
        states = self._input.of(drawn.moment())
        if learner.mixer_preprocessor is not None:
            states = learner.mixer_preprocessor(states.unsqueeze(1)).squeeze(1)
        return states.unflatten(0, drawn.window.rows.shape)

    def _mix(
        self, learner: Learner, q_values: Tensor, active: Tensor | None, states: Tensor | None, target: bool
    ) -> Tensor:
        leader = learner.names[0]
        models = self._targets[leader].models if target else self.models
        with self.networks[learner.groups[0].names].precision():
            inputs = {"q_values": q_values, "states": states, "active": active}
            q_tot: Tensor = models[leader]["mixer"](inputs, "mixer")[0]
        return q_tot
