"""What an update tells about itself, gathered on the device and read once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from coterie.agents.groups import Group, Learner
from coterie.functional import kl_estimate

__all__ = ["UpdateStatistics"]

#: rows of the accumulated statistics and the tags they are written under
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
        self._sums = {g.names: torch.zeros(len(TAGS), g.size, device=device) for g in learner.groups}
        self._kl_before = torch.zeros(len(learner.names), device=device)
        self._stds: dict[tuple[str, ...], Tensor] = {}
        self._norms: list[Tensor] = []
        self._steps = self._steps_before = 0

    @torch.no_grad()
    def add(
        self,
        group: Group,
        policy_loss: Tensor,
        value_loss: Tensor,
        entropy: Tensor,
        log_ratio: Tensor,
        ratio_clip: float | Tensor,
        std: Tensor | None,
    ) -> None:
        """Add a minibatch: losses and entropy ``[A]``, log-ratios ``[B, A, 1]``, clipping ranges ``[A, 1]`` or one for all."""
        kl = kl_estimate(log_ratio).mean(dim=(0, 2))
        clipped = (log_ratio.expm1().abs() > ratio_clip).float().mean(dim=(0, 2))
        self._sums[group.names] += torch.stack([policy_loss, value_loss, entropy, kl, clipped])
        if std is not None:
            self._stds[group.names] = std.detach()

    def add_norm(self, norms: Tensor) -> None:
        """Add the gradients' norms ``[S, 1 or 2]`` of the step that follows a minibatch."""
        self._norms.append(norms)
        self._steps += 1

    def end_epoch(self) -> Tensor:
        """Mean KL divergence of the epoch, for each parameter set ``[S]``."""
        total = torch.cat([self._sums[group.names][KL] for group in self._learner.groups])
        kl = (total - self._kl_before) / (self._steps - self._steps_before)
        self._kl_before, self._steps_before = total, self._steps
        # a learner of several sets has one group, ordered by set
        return kl.view(self._learner.num_sets, -1).mean(dim=1)

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
            rows = (self._sums[group.names] / self._steps).tolist()
            fits = explained[group.names].tolist()
            std = self._stds.get(group.names)
            spreads = None if std is None else std.mean(dim=(0, 2)).expand(group.size).tolist()
            for i, (uid, s) in enumerate(zip(group.names, group.sets, strict=True)):
                for tag, row in zip(TAGS, rows, strict=True):
                    track(f"{tag} ({uid})", row[i])
                track(f"Value / Explained variance ({uid})", fits[i])
                track(f"Learning / Gradient norm ({uid})", norms[s])
                track(f"Learning / Learning rate ({uid})", rates[s])
                if spreads is not None:
                    track(f"Policy / Standard deviation ({uid})", spreads[i])
