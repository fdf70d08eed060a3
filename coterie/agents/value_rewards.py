"""The rewards that action values are learned from: an agent's own or the team's, and the scale that they are learned on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from coterie.agents.config import ConfigError
from coterie.agents.groups import Group, Learner
from coterie.agents.masks import join_masks
from coterie.agents.normalisation import SetPreprocessor
from coterie.agents.replay_storage import Drawn

__all__ = ["LearnedRewards", "check_reward_scale"]

#: by the first agent of a group
ByGroup = Mapping[str, Tensor]
MasksByGroup = Mapping[str, Tensor | None]


def check_reward_scale(stage: SetPreprocessor | None) -> None:
    """Check that normalisers of rewards leave the mean where it is.

    :raises ConfigError: one does not
    """
    for member in [] if stage is None else stage.members:
        if not getattr(member, "keeps_mean", False):
            raise ConfigError(
                "reward_preprocessor: expected a normaliser that leaves the mean of rewards where it is, got "
                f"{type(member).__name__}: moving it would pay for every further step of an episode, or charge for it. Use "
                "coterie.preprocessors.RunningScale; a class of your own that only scales says so by keeps_mean = True"
            )


class LearnedRewards:
    """What becomes of the agents' rewards ``[..., A, 1]``.

    :param kind: ``"individual"``, or the ``"mean"`` or ``"sum"`` of the learning agents that are there
    :param groups: those of all agents that learn
    """

    def __init__(self, kind: str, groups: Sequence[Group]) -> None:
        self._kind = kind
        self._groups = list(groups)

    def credited(self, groups: Sequence[Group], rewards: ByGroup, present: MasksByGroup) -> Tensor:
        """What agents learn from, ``[..., K, 1]``: each agent's own, or one for the team.

        :param groups: whose agents learn from it
        :param rewards: of every group ``[..., A, 1]``, 0 for those who are not there
        :param present: who is there, bool likewise; None for everyone
        """
        if self._kind == "individual":
            return torch.cat([rewards[group.names[0]] for group in groups], dim=-2)
        total = torch.cat([rewards[group.names[0]] for group in self._groups], dim=-2).sum(dim=-2, keepdim=True)
        if self._kind == "sum":
            return total
        there = join_masks({group.names: present[group.names[0]] for group in self._groups})
        if there is None:
            return total / sum(group.size for group in self._groups)
        return total / there.sum(dim=-2, keepdim=True).clamp_min(1)

    def learn_scale(self, learner: Learner, rewards: ByGroup, present: MasksByGroup) -> None:
        """Let a learner's normaliser learn from one step of all environments."""
        stage = learner.reward_preprocessor
        if stage is None:
            return
        counting = None  # the team's reward counts, whoever is there
        if self._kind == "individual":
            counting = join_masks({group.names: present[group.names[0]] for group in learner.groups})
        stage(self.credited(learner.groups, rewards, present), train=True, mask=counting)

    def of(self, learner: Learner, drawn: Drawn) -> Tensor:
        """What a learner's agents learn from, of all rows to learn from but the last, ``[L, B, K, 1]``, on its scale."""
        rows = slice(drawn.window.learn_from, -1)
        masks = {group.names[0]: drawn.mask("present", group) for group in self._groups}
        rewards = self.credited(
            learner.groups,
            {group.names[0]: drawn.of("rewards", group)[rows] for group in self._groups},
            {leader: None if mask is None else mask[rows] for leader, mask in masks.items()},
        )
        stage = learner.reward_preprocessor
        return rewards if stage is None else stage(rewards.flatten(0, 1)).unflatten(0, rewards.shape[:2])
