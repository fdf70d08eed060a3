"""What a team keeps of its steps in one replay memory, and what an update reads of it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import torch
from torch import Tensor

from coterie.agents.groups import Group
from coterie.agents.masks import blank
from coterie.agents.moments import Moment
from coterie.memories.base import Memory, Size
from coterie.memories.replay import ReplayMemory
from coterie.memories.window import Window
from coterie.spaces import flat_size

__all__ = ["SHARED", "Drawn", "ReplayStorage"]

#: what is stored of each group, ``[T, E, A, n]``
COLUMNS = ("states", "actions", "rewards", "terminated", "truncated")

#: masks ``[T, E, A, n]`` that are stored from the first step on that has them, and what they are before it
MASKS = ("active", "present", "action_masks")

#: of the whole team, bool ``[T, E, 1, 1]``: the episode is over and what comes behind it is worth nothing
TERMINATED = "team_terminated"

#: of the whole team ``[T, E, F]``, where its networks see it
SHARED = "shared_states"

#: size of a row, the dtype that it is used as, and the one that it is kept as, where that is another
Spec = tuple[Size, torch.dtype, torch.dtype | None]

#: by the first agent of a group and the name within it
Rows = Mapping[str, Mapping[str, Tensor]]
RowMasks = Mapping[str, Mapping[str, Tensor | None]]


def name_of(what: str, group: Group) -> str:
    """The name of a group's tensor."""
    return f"{what}/{group.names[0]}"


def _specs(groups: Sequence[Group], narrow: torch.dtype | None, shared: int) -> dict[str, Spec]:
    """All tensors but masks.

    :param narrow: what observations are kept as; None: as they are
    :param shared: size of the shared state, 0 where it is not stored
    """
    specs: dict[str, Spec] = {}
    for group in groups:
        agents = group.size
        box = isinstance(group.action_space, gymnasium.spaces.Box)
        columns: dict[str, tuple[int, torch.dtype, torch.dtype | None]] = {
            "states": (group.observation_width, torch.float32, narrow),
            "actions": (group.action_width, torch.float32 if box else torch.int64, None),
            "rewards": (1, torch.float32, None),
            "terminated": (1, torch.bool, None),
            "truncated": (1, torch.bool, None),
        }
        for what, (width, dtype, stored) in columns.items():
            specs[name_of(what, group)] = (agents, width), dtype, stored
    specs[TERMINATED] = (1, 1), torch.bool, None
    if shared:
        specs[SHARED] = (shared,), torch.float32, narrow
    return specs


def _note(group: Group) -> dict[str, list[Any]]:
    """What a file says of a group beside its tensors: whose rows they are, and how many choices each entry of an action has."""
    space, choices = group.action_space, []
    if isinstance(space, gymnasium.spaces.Discrete):
        choices = [int(space.n)]
    elif isinstance(space, gymnasium.spaces.MultiDiscrete):
        choices = space.nvec.flatten().tolist()
    return {"agents": list(group.names), "choices": choices}


def _mask_widths(group: Group) -> dict[str, int]:
    """How many flags of an agent each of :data:`MASKS` has."""
    return {"active": 1, "present": 1, "action_masks": flat_size(group.action_space)}


class ReplayStorage:
    """One memory for the steps of all groups.

    :param like: a memory of the kind and size that is wanted
    :param groups: the team's groups
    :param order: the agents' names in the team's order
    :param device: where it is stored
    """

    def __init__(self, like: ReplayMemory, groups: Sequence[Group], order: Sequence[str], device: torch.device) -> None:
        self.memory = like.empty_copy(device)
        self._groups, self._order = list(groups), list(order)
        self.memory.notes = {group.names[0]: _note(group) for group in groups}
        for name, (size, dtype, stored) in _specs(groups, like.observation_dtype, 0).items():
            self.memory.create_tensor(name, size, dtype, stored)

    @staticmethod
    def predict_bytes(like: ReplayMemory, groups: Sequence[Group], shared: int) -> int:
        """Bytes of a team's memory of the kind and size of ``like``, without masks.

        :param shared: size of the shared state, 0 where it is not stored
        """
        specs = _specs(groups, like.observation_dtype, shared)
        return like.predict_bytes({name: (size, stored or dtype) for name, (size, dtype, stored) in specs.items()})

    def read(self, path: str | os.PathLike[str]) -> ReplayMemory:
        """A memory of the same kind and size with what ``memory.save`` wrote; whether a state was shared is left open.

        :raises ValueError: the file is that of another kind or size of memory, or of another team: of other agents, or of
            such as see, or choose from, something of another size
        """
        memory = self.memory.empty_copy()
        memory.load(path)
        specs = _specs(self._groups, memory.observation_dtype, 0)
        masks = {name_of(what, group) for group in self._groups for what in MASKS}
        held = set(memory.get_tensor_names())
        missing, unknown = sorted(set(specs) - held), sorted(held - set(specs) - masks - {SHARED})
        if missing or unknown:
            raise ValueError(
                f"{os.fspath(path)!r} holds the steps of another team: missing {missing}, unknown here {unknown}"
            )
        for group in self._groups:
            theirs, mine = memory.notes.get(group.names[0]), _note(group)
            if theirs != mine:
                raise ValueError(
                    f"{os.fspath(path)!r} holds the steps of another team: for the group of {group.names[0]!r} expected "
                    f"{mine}, the file has {theirs} (choices: those of each entry of an action); load what this team has saved"
                )
            widths = _mask_widths(group)
            specs |= {
                name: ((group.size, widths[what]), torch.bool, None)
                for what in MASKS
                if (name := name_of(what, group)) in held
            }
        for name, (size, dtype, stored) in specs.items():
            memory.create_tensor(name, size, dtype, stored)  # refuses another size or dtype than that of the file
        return memory

    # ---- writing ---------------------------------------------------------------------------------------------------------

    def add(self, rows: Rows, masks: RowMasks, team: Mapping[str, Tensor]) -> bool:
        """Store one step of all environments.

        :param rows: tensors ``[E, A, ...]`` of each group, by its first agent
        :param masks: those of :data:`MASKS`, likewise; None where everything is True
        :param team: the team's tensors ``[E, ...]``

        :return: whether there is a tensor more than before
        """
        named, grown = self._named(rows, masks, team)
        self.memory.add_samples(**named)
        return grown

    def add_last(self, envs: Tensor, rows: Rows, masks: RowMasks, team: Mapping[str, Tensor]) -> bool:
        """Store last observations of some environments (int64 ``[K]``), picked from tensors of all: see :meth:`add`."""
        named, grown = self._named(rows, masks, team)
        self.memory.add_last(envs, **{name: row[envs] for name, row in named.items()})
        return grown

    def _named(self, rows: Rows, masks: RowMasks, team: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], bool]:
        """All tensors of a moment by their names in the memory, and whether one is new."""
        named, grown = dict(team), False
        if SHARED in team:
            size = (team[SHARED].shape[1],)
            grown = self.memory.create_tensor(SHARED, size, torch.float32, self.memory.observation_dtype)
        for group in self._groups:
            leader = group.names[0]
            named |= {name_of(what, group): row for what, row in rows[leader].items()}
            for what, mask in masks[leader].items():
                grown |= self._grow(what, group, mask)
                filled = self._filled(what, group, mask)
                if filled is not None:
                    named[name_of(what, group)] = filled
        return named, grown

    def _grow(self, what: str, group: Group, mask: Tensor | None) -> bool:
        """Make room for a mask that comes for the first time; everything was True before."""
        name = name_of(what, group)
        if mask is None or name in self.memory.get_tensor_names():
            return False
        self.memory.create_tensor(name, tuple(mask.shape[1:]), torch.bool)
        self.memory.get_tensor_by_name(name).fill_(True)
        return True

    def _filled(self, what: str, group: Group, mask: Tensor | None) -> Tensor | None:
        """A mask as it is stored, None where none is."""
        name = name_of(what, group)
        if mask is not None or name not in self.memory.get_tensor_names():
            return mask
        stored = self.memory.get_tensor_by_name(name)
        return torch.ones_like(stored[0])

    def show_in(self, memories: Mapping[str, Memory]) -> None:
        """Make each agent's memory show its part of the storage, and what all agents share."""
        common = (name for name in (TERMINATED, SHARED) if name in self.memory.get_tensor_names())
        shared = {name: self.memory.get_tensor_by_name(name) for name in common}
        dtypes = {name: self.memory.dtype_of(name) for name in shared}
        for group in self._groups:
            names = {what: name_of(what, group) for what in (*COLUMNS, *MASKS)}
            held = {what: name for what, name in names.items() if name in self.memory.get_tensor_names()}
            for i, uid in enumerate(group.names):
                if uid in memories:
                    views = {what: self.memory.get_tensor_by_name(name)[:, :, i] for what, name in held.items()}
                    own = {what: self.memory.dtype_of(name) for what, name in held.items()}
                    memories[uid].expose(self.memory, {**views, **shared}, {**own, **dtypes})

    # ---- reading ---------------------------------------------------------------------------------------------------------

    def draw(self, batch_size: int, length: int, burn_in: int) -> Drawn:
        """Draw a batch of windows."""
        return Drawn(self.memory, self.memory.windows(batch_size, length, burn_in), self._groups, self._order)


class Drawn:
    """A batch of B windows of R rows: what is asked for is gathered once.

    :param memory: where it was drawn from
    :param window: what was drawn
    :param groups: the team's groups
    :param order: the agents' names in the team's order
    """

    def __init__(self, memory: ReplayMemory, window: Window, groups: Sequence[Group], order: Sequence[str]) -> None:
        self.window = window
        self._memory = memory
        self._groups, self._order = groups, order
        self._gathered: dict[str, Tensor] = {}

    def _gather(self, name: str) -> Tensor:
        if name not in self._gathered:
            self._gathered[name] = self._memory.gather(name, self.window)
        return self._gathered[name]

    def of(self, what: str, group: Group) -> Tensor:
        """A group's tensor ``[R, B, A, n]``."""
        return self._gather(name_of(what, group))

    def mask(self, what: str, group: Group) -> Tensor | None:
        """A group's mask, bool ``[R, B, A, n]``; None where no step had one."""
        name = name_of(what, group)
        return self._gather(name) if name in self._memory.get_tensor_names() else None

    def team(self, what: str) -> Tensor:
        """A tensor of the team ``[R, B, ...]``."""
        return self._gather(what)

    @property
    def shared(self) -> Tensor | None:
        """The shared state ``[R, B, F]``; None where none is stored."""
        return self._gather(SHARED) if SHARED in self._memory.get_tensor_names() else None

    def ends(self) -> Tensor:
        """Where the episode ended, whichever way, or training was interrupted, bool ``[R, B, 1, 1]``."""
        return self.window.ends.unflatten(-1, (-1, 1, 1))

    def moment(self) -> Moment:
        """What could be seen at all rows, ``[R * B, ...]``."""

        def present(group: Group) -> Tensor | None:
            mask = self.mask("present", group)
            return None if mask is None else mask.flatten(0, 1)

        shared = None if self.shared is None else self.shared.flatten(0, 1)
        return Moment(
            self._groups,
            self._order,
            lambda group: blank(self.of("states", group).flatten(0, 1), present(group)),
            shared,
            present,
        )
