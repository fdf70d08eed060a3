"""Who acts, who waits and what is allowed: the masks that infos carry beside the states they describe."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from coterie.agent_tensors import AgentTensors
from coterie.agents.intake import FLAGS, Form, take_in

__all__ = ["Masks", "blank", "join_masks"]

#: what infos may have
WHAT = ("active_masks", "waiting_masks", "action_masks")


def blank(x: Tensor, present: Tensor | None) -> Tensor:
    """``x`` ``[..., A, F]`` with zeros where an agent is absent (bool ``[..., A, 1]``), whatever stood there."""
    return x if present is None else x.masked_fill(~present, 0)


def join_masks(masks: Mapping[tuple[str, ...], Tensor | None]) -> Tensor | None:
    """Masks of several groups side by side, bool ``[..., agents of all groups, n]``; None where no group has one.

    :param masks: bool ``[..., A, n]`` by the names of a group's agents; None where all of it is True
    """
    known = next((mask for mask in masks.values() if mask is not None), None)
    if known is None or len(masks) == 1:
        return known
    *rows, _, width = known.shape
    return torch.cat(
        [known.new_ones(*rows, len(names), width) if mask is None else mask for names, mask in masks.items()], dim=-2
    )


class Masks:
    """The masks of one moment (see the environment's contract).

    An agent is *active* where it is to act, *waiting* where it is in play without being to act (what it earns then belongs
    to its last action), and *absent* otherwise: it has died, or has not arrived. Every method returns None where all agents
    asked for are (everything is allowed), so that teams without masks pay nothing.

    :param infos: what came with the states; None for no masks
    :param rows: number of environments E; None for any
    :param device: where masks must be; None for anywhere

    :raises TypeError: no mapping, or one in which masks are none
    """

    def __init__(
        self, infos: Mapping[str, Any] | None = None, rows: int | None = None, device: torch.device | None = None
    ) -> None:
        if not isinstance(infos, Mapping):
            if infos is not None:
                raise TypeError(f"infos: expected a dict, got {type(infos).__name__}")
            infos = {}
        self.rows, self._device = rows, device
        self._given = {what: _by_agent(what, infos[what]) for what in WHAT if infos.get(what) is not None}
        self._active, self._waiting, self._actions = (self._given.get(what) or None for what in WHAT)
        self._known: dict[tuple[str, tuple[str, ...]], Tensor | None] = {}  # a moment is asked about several times

    def check_names(self, team: Sequence[str], others: Container[str]) -> None:
        """Refuse masks of agents that nobody knows where one of the team has none: a name misspelt would allow it everything.

        :param others: names that are known beside the team's

        :raises ValueError: naming both
        """
        for what, given in self._given.items():
            if isinstance(given, AgentTensors) and tuple(team) in given.stacks:
                continue
            lacking = [uid for uid in team if uid not in given]
            unknown = [uid for uid in given if uid not in team and uid not in others] if lacking else []
            if unknown:
                raise ValueError(
                    f"infos[{what!r}]: unknown agent {unknown[0]!r}, while there is no mask for {lacking}; expected some of "
                    f"{list(team)}"
                )

    def __bool__(self) -> bool:
        """Whether there are any."""
        return any(self._given.values())

    def active(self, names: Sequence[str]) -> Tensor | None:
        """Who is to act, bool ``[E, A, 1]``.

        :raises TypeError: no tensor, or one that is not bool
        :raises ValueError: a mask of another shape or device
        """
        masks = self._active
        if masks is None:
            return None
        return self._once("active", names, lambda: _some_missing(self._stack("active_masks", masks, names, 1)))

    def present(self, names: Sequence[str]) -> Tensor | None:
        """Who is active or waiting, bool ``[E, A, 1]``.

        :raises TypeError: no tensor, or one that is not bool
        :raises ValueError: a mask of another shape or device
        """
        return None if self._active is None else self._once("present", names, lambda: self._present(names))

    def _present(self, names: Sequence[str]) -> Tensor | None:
        assert self._active is not None
        active = self._stack("active_masks", self._active, names, 1)
        if self._waiting is not None and active is not None:
            waiting = self._stack("waiting_masks", self._waiting, names, 1, missing=False)
            active = active if waiting is None else active | waiting
        return _some_missing(active)

    def actions(self, names: Sequence[str], width: int) -> Tensor | None:
        """What is allowed, bool ``[E, A, width]``; everything is to agents that don't act.

        :raises TypeError: no tensor, or one that is not bool
        :raises ValueError: a mask of another shape or device
        """
        masks = self._actions
        if masks is None:
            return None

        def allowed_to_all() -> Tensor | None:
            allowed = self._stack("action_masks", masks, names, width)
            active = self.active(names)
            return allowed if allowed is None or active is None else allowed | ~active

        return self._once("actions", names, allowed_to_all)

    def _once(self, what: str, names: Sequence[str], find: Callable[[], Tensor | None]) -> Tensor | None:
        key = what, tuple(names)
        if key not in self._known:
            self._known[key] = find()
        return self._known[key]

    def _stack(
        self, what: str, masks: Mapping[str, Tensor], names: Sequence[str], width: int, missing: bool = True
    ) -> Tensor | None:
        """The named agents' masks as bool ``[E, A, width]``, ``missing`` for those without one; None where nobody has one."""
        stacked = isinstance(masks, AgentTensors) and tuple(names) in masks.stacks
        given = names if stacked else [uid for uid in names if uid in masks]
        if not given:
            return None
        mask = take_in(f"infos[{what!r}]", masks, given, Form(width, FLAGS, self.rows, self._device))
        if len(given) == len(names):
            return mask
        columns, default = iter(mask.unbind(1)), torch.full_like(mask[:, 0], missing)
        return torch.stack([next(columns) if uid in masks else default for uid in names], dim=1)


def _by_agent(what: str, masks: Any) -> Mapping[str, Tensor]:
    if isinstance(masks, Mapping):
        return masks
    raise TypeError(f"infos[{what!r}]: expected a mapping from agent to bool tensor, got {type(masks).__name__}")


def _some_missing(mask: Tensor | None) -> Tensor | None:
    """None for a mask without a False. On an accelerator the look would wait for the device: it is kept there."""
    return None if mask is None or (mask.device.type == "cpu" and bool(mask.all())) else mask
