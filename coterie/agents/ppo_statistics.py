"""What an update tells about itself, gathered on the device and read once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from coterie.agents.checks import check_gradients
from coterie.agents.groups import Group, Learner

__all__ = ["UpdateStatistics"]

#: columns of the accumulated statistics and the tags they are written under
TAGS = (
    "Loss / Policy loss",
    "Loss / Value loss",
    "Policy / Entropy",
    "Policy / KL divergence",
    "Policy / Clip fraction",
)
KL = TAGS.index("Policy / KL divergence")


class UpdateStatistics:
    """Sums over the minibatches of one update, per agent of a learner.

    :param learner: whose update it is
    """

    def __init__(self, learner: Learner) -> None:
        device = learner.storage.data.device
        self._learner = learner
        self._sums = {g.names: torch.zeros(g.size, len(TAGS), device=device) for g in learner.groups}
        self._counts = {g.names: torch.zeros(g.size, device=device) for g in learner.groups}
        self._before = torch.zeros(2, len(learner.names), device=device)
        self._stds: dict[tuple[str, ...], Tensor] = {}
        self._norms: list[Tensor] = []

    @torch.no_grad()
    def add(self, group: Group, means: Tensor, count: Tensor | None, std: Tensor | None) -> None:
        """Add a minibatch.

        :param means: each agent's mean of what :data:`TAGS` names, ``[A, tags]``
        :param count: number of rows that each mean is over ``[A]``; None where all agents have the same
        """
        self._sums[group.names] += means if count is None else means * count.unsqueeze(1)
        self._counts[group.names] += 1.0 if count is None else count
        if std is not None:
            self._stds[group.names] = std.detach()

    def add_norm(self, norms: Tensor) -> None:
        """Add the gradients' norms ``[S, 1 or 2]`` of the step that follows a minibatch."""
        self._norms.append(norms)

    def check_norms(self) -> None:
        """Refuse an update that spoilt parameters: see :func:`check_gradients`."""
        check_gradients(self._norms, self._learner.set_names())

    def end_epoch(self) -> Tensor:
        """Mean KL divergence of the epoch, for each parameter set ``[S]``."""
        groups = self._learner.groups
        kl = torch.cat([self._sums[group.names][:, KL] for group in groups])
        count = torch.cat([self._counts[group.names] for group in groups])
        total = torch.stack([kl, count])
        # a learner of several sets has one group, ordered by set
        kl, count = (total - self._before).view(2, self._learner.num_sets, -1).sum(dim=2)
        self._before = total
        return kl / count.clamp_min(1.0)

    def write(self, track: Callable[[str, Any], None], explained: dict[tuple[str, ...], Tensor]) -> None:
        """Hand every statistic to ``track(tag, value)``; here the device is waited for.

        :param explained: explained variance of the values ``[A]`` by group
        """
        learner = self._learner
        norms = torch.stack(self._norms).mean(dim=0).norm(dim=1).tolist()
        rates = (
            [optimizer.param_groups[0]["lr"] for optimizer in learner.optimizers.optimizers]
            if learner.optimizers
            else []
        )
        for group in learner.groups:
            means = (self._sums[group.names] / self._counts[group.names].clamp_min(1.0).unsqueeze(1)).tolist()
            counted = (self._counts[group.names] > 0).tolist()
            fits = explained[group.names].tolist()
            std = self._stds.get(group.names)
            spreads = None if std is None else std.mean(dim=(0, 2)).expand(group.size).tolist()
            for i, (uid, s) in enumerate(zip(group.names, group.sets, strict=True)):
                if not counted[i]:  # it was absent throughout
                    continue
                for tag, mean in zip(TAGS, means[i], strict=True):
                    track(f"{tag} ({uid})", mean)
                track(f"Value / Explained variance ({uid})", fits[i])
                track(f"Learning / Gradient norm ({uid})", norms[s])
                track(f"Learning / Learning rate ({uid})", rates[s])
                if spreads is not None:
                    track(f"Policy / Standard deviation ({uid})", spreads[i])
