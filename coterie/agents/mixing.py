"""Value decomposition: a team's value made of its agents' values, learned from one reward."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable
from typing import ClassVar

import torch
from torch import Tensor

from coterie.agents.groups import Learner
from coterie.agents.masks import join_masks
from coterie.agents.replay_storage import Drawn
from coterie.agents.value_config import MIXED_KEYS
from coterie.agents.value_learning import Stream, ValueLearner

__all__ = ["MixedValues"]


class MixedValues(ValueLearner):
    """Base of those that learn one value for the team, made of the values of its agents that learn: see :meth:`_mix`.

    An agent that does not act (it has died, or waits) has no part in it. Steps in which none of them acts belong to the last
    one in which one did: their rewards are added to its.
    """

    OWN_KEYS: ClassVar[tuple[str, ...]] = (*ValueLearner.OWN_KEYS, *MIXED_KEYS)

    def _tie(self, uid: str) -> Hashable:
        return "team" if uid in self.learning_agents else None

    @abstractmethod
    def _mix(
        self, learner: Learner, q_values: Tensor, active: Tensor | None, states: Tensor | None, target: bool
    ) -> Tensor:
        """The team's values ``[B, 1]``.

        :param q_values: of every agent of the team, ``[B, N]``; 0 for those that don't learn
        :param active: bool ``[B, N]``, False for those without a part in it; None where all have one
        :param states: what a mixer sees ``[B, F]``, where one asks for it
        :param target: whether it is the target network's
        """

    def _mixer_states(self, learner: Learner, drawn: Drawn) -> Tensor | None:
        """What a mixer sees of all rows, ``[R, B, F]``; None for nothing."""
        return None

    def _streams(self, learner: Learner, drawn: Drawn) -> list[Stream]:
        window, leader = drawn.window, learner.names[0]
        first = window.learn_from
        parts = [self._values(learner, group, drawn) for group in learner.groups]
        predicted, following = (torch.cat(values, dim=2) for values in zip(*parts, strict=True))
        acting = self._acting_rows(learner, drawn)
        states = self._mixer_states(learner, drawn)
        done = len(predicted)

        def mixed(values: Tensor, start: int, rows: int, target: bool) -> Tensor:
            part = slice(start, start + rows)
            q_values, active = self._of_team(learner, values, None if acting is None else acting[part])
            seen = None if states is None else states[part].flatten(0, 1)
            active = None if active is None else active.flatten(0, 1)
            q_tot = self._mix(learner, q_values.flatten(0, 1), active, seen, target)
            return q_tot.view(rows, -1, 1, 1)

        predicted = mixed(predicted, first, done, target=False)
        with torch.no_grad():
            following = mixed(following, first + 1, len(following), target=True)
        rows = slice(first, -1)
        steps = window.steps[rows].unflatten(-1, (-1, 1, 1))
        anyone = None if acting is None else acting.any(dim=2, keepdim=True)
        return [
            Stream(
                predicted,
                following,
                self._rewards.of(learner, drawn),
                drawn.team("team_terminated")[rows],
                drawn.ends()[rows],
                steps if anyone is None else anyone[rows] & steps,
                torch.ones_like(steps[0]) if anyone is None else anyone[-1],
                float(self.agent_cfg["discount_factor"][leader]),
                float(self.agent_cfg["huber_delta"][leader]),
            )
        ]

    def _acting_rows(self, learner: Learner, drawn: Drawn) -> Tensor | None:
        """Which of a learner's agents act, of all rows, bool ``[R, B, A, 1]``; None for all."""
        return join_masks({group.names: drawn.mask("active", group) for group in learner.groups})

    def _of_team(self, learner: Learner, values: Tensor, active: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Values and masks of the learner's agents ``[L, B, A, 1]`` as columns of the team's order, ``[L, B, N]``."""
        team, values = self.possible_agents, values.squeeze(-1)
        active = None if active is None else active.squeeze(-1)
        if learner.names == team:
            return values, active
        columns = torch.tensor([team.index(uid) for uid in learner.names], device=values.device)
        shape = (*values.shape[:2], len(team))
        if active is None:
            active = torch.ones_like(values, dtype=torch.bool)
        return (
            values.new_zeros(shape).index_copy(2, columns, values),
            active.new_zeros(shape).index_copy(2, columns, active),
        )
