"""Target networks: copies that follow the learned networks behind."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch
from torch import Tensor

from coterie.agents.group_networks import GroupNetworks
from coterie.agents.groups import Learner
from coterie.models.base import Model

__all__ = ["TargetNetworks"]


class TargetNetworks:
    """The target networks of a learner.

    :param learner: whose they are
    :param twin: the learner of the copies
    :param models: the copies, by agent and role
    :param originals: what they were copied from
    :param device: where they live
    :param mixed_precision: whether they run in bfloat16
    """

    def __init__(
        self,
        learner: Learner,
        twin: Learner,
        models: Mapping[str, Mapping[str, Model]],
        originals: Mapping[str, Mapping[str, Model]],
        device: torch.device,
        mixed_precision: bool,
    ) -> None:
        self._storage, self._online = twin.storage, learner.storage
        self.models = {uid: models[uid] for uid in twin.names}
        for model in self.modules().values():
            model.set_mode(
                "eval"
            )  # targets have no noise of dropout, and normalise as the learned networks do in acting
        self.networks = {group.names: GroupNetworks(group, device, mixed_precision) for group in twin.groups}
        pairs = {
            id(copied): (copied, original)
            for uid, roles in self.models.items()
            for role, model in roles.items()
            for copied, original in zip(model.buffers(), originals[uid][role].buffers(), strict=True)
        }
        self._buffers: list[tuple[Tensor, Tensor]] = list(pairs.values())

    @torch.no_grad()
    def follow(self, rate: float) -> None:
        """Go ``rate`` of the way towards the learned networks; 1 copies them. Buffers are copied."""
        if rate == 1.0:
            self._storage.data.copy_(self._online.data)
        else:
            self._storage.data.lerp_(self._online.data, rate)
        for copied, original in self._buffers:
            copied.copy_(original)

    def modules(self) -> dict[str, Model]:
        """The copies by a name of their own; shared objects come once."""
        found: dict[str, Model] = {}
        named = itertools.chain.from_iterable(
            ((f"{uid}/{role}", model) for role, model in roles.items()) for uid, roles in self.models.items()
        )
        for name, model in named:
            if not any(model is other for other in found.values()):
                found[name] = model
        return found
