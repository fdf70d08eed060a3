"""Action masks of several copies: collected, checked, and stacked."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from coterie.envs.base import EnvError
from coterie.envs.guards import group_agents
from coterie.spaces import flat_size

__all__ = ["ActionMasks", "MaskedCopy"]


class MaskedCopy(Protocol):
    """What is asked of a copy: its masks, who acts on the states that they describe, and a name for messages."""

    index: int

    @property
    def alive(self) -> Sequence[bool]:
        """Who acts on the present states, in the order of the team."""

    @property
    def last_alive(self) -> Sequence[bool]:
        """Who would act on the last states of an episode, in the order of the team."""

    @property
    def masks(self) -> Mapping[str, Any]:
        """Masks by agent."""


class ActionMasks:
    """Turns the masks that copies report into bool ``[E, A, n]``, all True for agents that are not to act.

    A mask is an array of zeros and ones or of booleans, ``[n]`` with n the choices of a Discrete space; for a
    MultiDiscrete, those of all dimensions one after the other, or a tuple of one array for each dimension.

    An agent that has shown a mask once is reported from then on, with all allowed where it shows none.

    :param action_spaces: of all agents, in the order of the team
    :param declared: agents whose observations hold a mask
    :param num_envs: number of copies E

    :raises TypeError: an agent with a mask has actions that can't be masked
    """

    def __init__(self, action_spaces: Mapping[str, gymnasium.Space], declared: Collection[str], num_envs: int) -> None:
        self._action_spaces = action_spaces
        self._order = list(action_spaces)
        self._num_envs = num_envs
        self._layouts: dict[str, _Layout] = {}
        self._groups: list[tuple[str, ...]] = []
        self._places: dict[str, tuple[tuple[str, ...], int]] = {}
        if declared:
            self._admit(declared)

    @property
    def names(self) -> Collection[str]:
        """Agents that are reported."""
        return self._layouts.keys()

    def admit(self, copies: Sequence[MaskedCopy]) -> None:
        """Report from now on also agents that show their first mask.

        :raises EnvError: the actions of such an agent can't be masked
        """
        strangers = {name for copy in copies for name in copy.masks if name not in self._layouts}
        if strangers:
            try:
                self._admit(strangers)
            except TypeError as error:
                raise EnvError(f'info["action_mask"]: {error}') from error

    def collect(self, copies: Sequence[MaskedCopy]) -> dict[tuple[str, ...], NDArray[np.bool_]]:
        """Return the masks of the present states by group of agents.

        :raises EnvError: a mask has the wrong length or holds other numbers, or an agent that is to act has no choice
        """
        masks = self._read((copy, copy.alive) for copy in copies)
        for group, mask in masks.items():
            allowed = self._layouts[group[0]].any_in_each_dimension(mask)
            if not allowed.all():
                index, column, dimension = np.argwhere(~allowed)[0].tolist()
                where = "" if allowed.shape[-1] == 1 else f" in dimension {dimension}"
                raise EnvError(
                    f"{copies[index]}: the action mask of agent {group[column]!r} allows nothing{where}; an agent that is "
                    "to act needs at least one allowed choice: end its part in the episode, or allow an action that does "
                    "nothing"
                )
        return masks

    def collect_last(self, copies: Sequence[MaskedCopy]) -> dict[tuple[str, ...], NDArray[np.bool_]]:
        """Return the masks of the last states of episodes that ended in ``copies`` by group of agents.

        All is allowed to an agent whose mask allows nothing: as the game is over, the environment may not have bothered.

        :raises EnvError: a mask has the wrong length or holds other numbers
        """
        masks = self._read((copy, copy.last_alive) for copy in copies)
        for group, mask in masks.items():
            mask |= ~self._layouts[group[0]].any_in_each_dimension(mask).all(axis=-1, keepdims=True)
        return masks

    def _read(self, copies: Iterable[tuple[MaskedCopy, Sequence[bool]]]) -> dict[tuple[str, ...], NDArray[np.bool_]]:
        """Return the masks of those who act, by copy and agent; True elsewhere."""
        masks = {g: np.ones((self._num_envs, len(g), self._layouts[g[0]].width), np.bool_) for g in self._groups}
        for copy, alive in copies:
            acting = dict(zip(self._order, alive, strict=True))
            for name, mask in copy.masks.items():
                if acting[name]:
                    group, column = self._places[name]
                    masks[group][copy.index, column] = self._layouts[name].read(mask, f"{copy}", name)
        return masks

    def _admit(self, names: Collection[str]) -> None:
        layouts = {name: _Layout(name, self._action_spaces[name]) for name in self._order if name in names}
        layouts.update(self._layouts)
        self._layouts = {name: layouts[name] for name in self._order if name in layouts}
        self._groups = group_agents({name: self._action_spaces[name] for name in self._layouts})
        self._places = {name: (group, i) for group in self._groups for i, name in enumerate(group)}


class _Layout:
    """How the mask of one action space is laid out."""

    def __init__(self, agent: str, space: gymnasium.Space) -> None:
        if not isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
            raise TypeError(
                f"agent {agent!r} has an action mask for {space}; masks are for Discrete and MultiDiscrete actions, remove "
                "it from the others"
            )
        self.space = space
        self.width = flat_size(space)
        self.sizes = [self.width]
        if isinstance(space, spaces.MultiDiscrete):
            self.sizes = [int(n) for n in space.nvec.reshape(-1)]
        self.starts = np.cumsum([0, *self.sizes[:-1]])

    def read(self, mask: Any, where: str, agent: str) -> NDArray[np.bool_]:
        """Return a mask as an array ``[width]``."""
        try:
            array = mask if isinstance(mask, np.ndarray) and mask.ndim == 1 else self._join(mask)
        except (TypeError, ValueError):
            array = np.empty(0)
        if array.shape != (self.width,):
            what = "" if len(self.sizes) == 1 else f", or arrays of {self.sizes}"
            raise EnvError(
                f"{where}: the action mask of agent {agent!r} has {_describe(mask)}; expected {self.width} entries{what}, "
                f"one for each choice of {self.space}"
            )
        if array.dtype == np.bool_:
            return array
        if array.dtype.kind not in "iuf" or not ((array == 0) | (array == 1)).all():
            raise EnvError(
                f"{where}: the action mask of agent {agent!r} is {array.tolist()}; expected 1 or True for what is allowed, "
                "0 or False for the rest"
            )
        return array.astype(np.bool_)

    def any_in_each_dimension(self, masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return whether each dimension has an allowed choice, ``[E, A, dimensions]``."""
        if len(self.sizes) == 1:
            return np.asarray(masks.any(axis=-1, keepdims=True))
        return np.asarray(np.logical_or.reduceat(masks, self.starts, axis=-1))

    def _join(self, mask: Any) -> NDArray[Any]:
        """Put the dimensions' masks one after the other; an empty array where one has the wrong length."""
        rows = list(_rows(mask))
        if len(rows) > 1 and [len(row) for row in rows] != self.sizes:
            return np.empty(0)
        return np.concatenate(rows)


def _rows(mask: Any) -> Iterator[NDArray[Any]]:
    """Yield the one-dimensional arrays that a nested mask is made of."""
    if isinstance(mask, (tuple, list)) and not all(np.ndim(part) == 0 for part in mask):
        for part in mask:
            yield from _rows(part)
    else:
        array = np.asarray(mask)
        yield from array.reshape(-1, array.shape[-1]) if array.ndim > 1 else [array]


def _describe(mask: Any) -> str:
    if isinstance(mask, np.ndarray):
        return f"shape {mask.shape}"
    if isinstance(mask, (tuple, list)):
        return f"{len(mask)} parts"
    return f"the value {mask!r}"
