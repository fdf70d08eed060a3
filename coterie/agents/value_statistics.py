"""What updates of action values tell about themselves, gathered on the device and read once at each writing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from coterie.agents.groups import Group, Learner

__all__ = ["ValueStatistics"]

#: means over all that was learned from, by the tags they are written under
TAGS = ("Loss / Value loss", "Value / Predicted", "Value / Target")


class ValueStatistics:
    """Sums over the updates of all learners since the last writing: of each agent, or of the team where it learns one value
    (which goes by the name of its first agent that learns).
    """

    def __init__(self) -> None:
        # by its first agent, a learner and its sums [K, tags + 3]: of TAGS, what they are over, the norms, and their number
        self._sums: dict[str, tuple[Learner, Tensor]] = {}

    @torch.no_grad()
    def add(
        self,
        learner: Learner,
        losses: Tensor,
        counts: Tensor,
        outcomes: Sequence[tuple[Tensor, Tensor, Tensor]],
        norms: Tensor,
    ) -> None:
        """Add one optimizer step.

        :param losses: each agent's (or the team's) mean ``[K]``
        :param counts: what it is over ``[K]``
        :param outcomes: what was predicted, its targets, and where it counts (bool), ``[L, B, A or 1, 1]`` each, by group
        :param norms: the gradients' norms ``[S, 1 or 2]``
        """
        sets = len(norms)  # several come with one group, ordered by set
        took_part = counts.view(sets, -1).sum(dim=1) > 0
        of_set = torch.stack([torch.where(took_part, norms.norm(dim=1), 0.0), took_part], dim=1)

        def totals(values: Tensor, known: Tensor) -> Tensor:
            return torch.where(known, values, 0.0).sum(dim=(0, 1, 3))

        predicted = torch.cat([totals(values, known) for values, _, known in outcomes])
        targets = torch.cat([totals(values, known) for _, values, known in outcomes])
        rows = torch.stack([losses * counts, predicted, targets, counts], dim=1)
        rows = torch.cat([rows, of_set.repeat_interleave(len(rows) // sets, dim=0)], dim=1).double()
        leader = learner.names[0]
        if leader in self._sums:
            rows += self._sums[leader][1]
        self._sums[leader] = learner, rows

    def clear(self) -> None:
        """Forget what was not written."""
        self._sums.clear()

    def write(self, track: Callable[[str, Any], None], explores: Callable[[Group], Sequence[float]]) -> None:
        """Hand every mean to ``track(tag, value)`` and begin anew; here the device is waited for.

        :param explores: the present epsilon of a group's agents
        """
        if not self._sums:
            return
        rows = iter(torch.cat([sums for _, sums in self._sums.values()]).tolist())
        for learner, sums in self._sums.values():
            assert learner.optimizers is not None
            rates = learner.optimizers.learning_rates()
            share = len(sums) // len(rates)
            for i, uid in enumerate(learner.names[: len(sums)]):
                *totals, count, norm, updates = next(rows)
                if not count:  # it did not act in anything that was drawn
                    continue
                for tag, total in zip(TAGS, totals, strict=True):
                    track(f"{tag} ({uid})", total / count)
                track(f"Learning / Gradient norm ({uid})", norm / updates)
                track(f"Learning / Learning rate ({uid})", rates[i // share])
            for group in learner.groups:
                for uid, epsilon in zip(group.names, explores(group), strict=True):
                    track(f"Exploration / Epsilon ({uid})", epsilon)
        self.clear()
