"""Who acts, who waits and what is allowed: the masks that infos carry beside the states they describe."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from coterie.agent_tensors import AgentTensors

__all__ = ["Masks", "blank"]


def blank(x: Tensor, present: Tensor | None) -> Tensor:
    """``x`` ``[..., A, F]`` with zeros where an agent is absent (bool ``[..., A, 1]``), whatever stood there."""
    return x if present is None else x.masked_fill(~present, 0)


class Masks:
    """The masks of one moment (see the environment's contract).

    An agent is *active* where it is to act, *waiting* where it is in play without being to act (what it earns then belongs
    to its last action), and *absent* otherwise: it has died, or has not arrived. Every method returns None where all agents
    asked for are (everything is allowed), so that teams without masks pay nothing.

    :param infos: what came with the states; None for no masks
    """

    def __init__(self, infos: Mapping[str, Any] | None = None) -> None:
        infos = {} if infos is None else infos
        self._active: Mapping[str, Tensor] | None = infos.get("active_masks") or None
        self._waiting: Mapping[str, Tensor] | None = infos.get("waiting_masks") or None
        self._actions: Mapping[str, Tensor] | None = infos.get("action_masks") or None
        self._known: dict[tuple[str, tuple[str, ...]], Tensor | None] = {}  # a moment is asked about several times

    def active(self, names: Sequence[str]) -> Tensor | None:
        """Who is to act, bool ``[E, A, 1]``.

        :raises ValueError: a mask of another shape
        """
        masks = self._active
        if masks is None:
            return None
        return self._once("active", names, lambda: _some_missing(_stack("active_masks", masks, names, 1)))

    def present(self, names: Sequence[str]) -> Tensor | None:
        """Who is active or waiting, bool ``[E, A, 1]``.

        :raises ValueError: a mask of another shape
        """
        return None if self._active is None else self._once("present", names, lambda: self._present(names))

    def _present(self, names: Sequence[str]) -> Tensor | None:
        assert self._active is not None
        active = _stack("active_masks", self._active, names, 1)
        if self._waiting is not None and active is not None:
            waiting = _stack("waiting_masks", self._waiting, names, 1, missing=False)
            active = active if waiting is None else active | waiting
        return _some_missing(active)

    def actions(self, names: Sequence[str], width: int) -> Tensor | None:
        """What is allowed, bool ``[E, A, width]``; everything is to agents that don't act.

        :raises ValueError: a mask of another shape
        """
        masks = self._actions
        if masks is None:
            return None

        def allowed_to_all() -> Tensor | None:
            allowed = _stack("action_masks", masks, names, width)
            active = self.active(names)
            return allowed if allowed is None or active is None else allowed | ~active

        return self._once("actions", names, allowed_to_all)

    def _once(self, what: str, names: Sequence[str], find: Callable[[], Tensor | None]) -> Tensor | None:
        key = what, tuple(names)
        if key not in self._known:
            self._known[key] = find()
        return self._known[key]


def _some_missing(mask: Tensor | None) -> Tensor | None:
    """None for a mask without a False. On an accelerator the look would wait for the device: it is kept there."""
    return None if mask is None or (mask.device.type == "cpu" and bool(mask.all())) else mask


def _stack(
    what: str, masks: Mapping[str, Tensor], names: Sequence[str], width: int, missing: bool = True
) -> Tensor | None:
    """The named agents' masks as bool ``[E, A, width]``, ``missing`` for those without one; None where nobody has one."""
    given = [uid for uid in names if uid in masks]
    if not given:
        return None
    for uid in given:
        mask = masks[uid]
        if not isinstance(mask, Tensor) or mask.dim() > 2 or (mask.shape[1] if mask.dim() == 2 else 1) != width:
            got = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
            raise ValueError(f"infos[{what!r}][{uid!r}]: expected a bool tensor [E, {width}], got {got}")
    if isinstance(masks, AgentTensors) and len(given) == len(names):
        stacked = masks.stack(names)
    else:
        default = torch.full_like(masks[given[0]], missing, dtype=torch.bool)
        stacked = torch.stack([masks[uid].bool() if uid in masks else default for uid in names], dim=1)
    stacked = stacked if stacked.dtype == torch.bool else stacked.bool()
    return stacked.unsqueeze(-1) if stacked.dim() == 2 else stacked
