"""IQL: independent Q-learning (Tan 1993; with deep networks Tampuu et al. 2017, arXiv 1511.08779)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch

from coterie.agents.config import Config, Key, one_of
from coterie.agents.groups import Learner
from coterie.agents.replay_storage import Drawn
from coterie.agents.value_config import VALUE_DEFAULT_CONFIG, VALUE_KEYS
from coterie.agents.value_learning import Stream, ValueLearner

__all__ = ["IQL", "IQL_DEFAULT_CONFIG"]

# fmt: off
IQL_DEFAULT_CONFIG = Config({
    **VALUE_DEFAULT_CONFIG.copy(),
    "reward": "individual",               # what is learned from: the own one, or the "mean" or "sum" of those who are there
})
# fmt: on


class IQL(ValueLearner):
    """Q-learning in which every agent learns the values of its own actions, the others being part of its environment::

        G = r_i + gamma (1 - term_i) Q'_i(o_i', argmax_a Q_i(o_i', a))

    An agent that waits for its turn has a time of its own: what it earns up to its next action belongs to the last one.
    """

    DEFAULT_CONFIG: ClassVar[Config] = IQL_DEFAULT_CONFIG
    KEYS: ClassVar[Mapping[str, Key]] = {**VALUE_KEYS, "reward": one_of("individual", "mean", "sum", per_agent=False)}

    def _streams(self, learner: Learner, drawn: Drawn) -> list[Stream]:
        window = drawn.window
        rows = slice(window.learn_from, -1)
        steps = window.steps[rows].unflatten(-1, (-1, 1, 1))
        rewards = self._rewards.of(learner, drawn)
        sizes = [group.size for group in learner.groups]
        rewards = rewards.expand(-1, -1, sum(sizes), -1)
        streams = []
        for group, earned in zip(learner.groups, rewards.split(sizes, dim=2), strict=True):
            predicted, following = self._values(learner, group, drawn)
            terminated, truncated = drawn.of("terminated", group)[rows], drawn.of("truncated", group)[rows]
            ended = terminated | truncated | drawn.ends()[rows]
            bootstraps = [bool(self.agent_cfg["time_limit_bootstrap"][uid]) for uid in group.names]
            if not all(bootstraps):
                cuts_off = ~torch.tensor(bootstraps, device=self.device).view(-1, 1)
                terminated = terminated | (truncated & cuts_off)
            active = drawn.mask("active", group)
            streams.append(
                Stream(
                    predicted,
                    following,
                    earned,
                    terminated,
                    ended,
                    steps.expand_as(ended) if active is None else active[rows] & steps,
                    torch.ones_like(ended[0]) if active is None else active[-1],
                    self.config_values(group, "discount_factor"),
                    self.config_values(group, "huber_delta"),
                )
            )
        return streams
