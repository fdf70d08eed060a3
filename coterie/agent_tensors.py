"""The mapping that carries per-agent tensors across the border between names and stacked storage.

Shape letters used in the whole project: T time, E environment, A agent, F feature, B batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

__all__ = ["AgentTensors", "stack_agents"]


class AgentTensors(Mapping[str, Tensor]):
    """Read-only mapping from agent name to tensor ``[E, ...]``, backed by tensors stacked over agents ``[E, A, ...]``.

    Looking a name up returns a view, so nothing is copied; asking for the stack that an environment or an agent
    already holds returns that very tensor. Agents whose tensors differ in shape live in different stacks.

    :param stacks: the agents' names, in the order of dimension 1, mapped to their stacked tensor ``[E, A, ...]``

    :raises ValueError: a tensor's dimension 1 does not match its number of names, or a name stands in two stacks
    """

    __slots__ = ("_places", "_stacks")

    def __init__(self, stacks: Mapping[tuple[str, ...], Tensor]) -> None:
        self._stacks = dict(stacks)
        self._places: dict[str, tuple[tuple[str, ...], int]] | None = None
        for names, tensor in self._stacks.items():
            if tensor.dim() < 2 or tensor.shape[1] != len(names):
                raise ValueError(
                    f"expected a tensor [E, {len(names)}, ...] for the agents {list(names)}, got shape {list(tensor.shape)}"
                )
        everyone = list(itertools.chain.from_iterable(self._stacks))
        if len(set(everyone)) != len(everyone):
            twice = next(name for name in everyone if everyone.count(name) > 1)
            raise ValueError(f"agent {twice!r} stands in more than one stack")

    @property
    def _index(self) -> dict[str, tuple[tuple[str, ...], int]]:
        """Where each agent stands; worked out once somebody asks, since stacks are mostly passed on whole."""
        if self._places is None:
            self._places = {name: (names, i) for names in self._stacks for i, name in enumerate(names)}
        return self._places

    @classmethod
    def single(cls, names: Sequence[str], tensor: Tensor) -> AgentTensors:
        """Wrap one tensor ``[E, A, ...]`` whose dimension 1 follows ``names``."""
        return cls({tuple(names): tensor})

    def __getitem__(self, name: str) -> Tensor:
        names, i = self._index[name]
        return self._stacks[names].select(1, i)

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __len__(self) -> int:
        return sum(len(names) for names in self._stacks)

    def __contains__(self, name: object) -> bool:
        return name in self._index

    def __repr__(self) -> str:
        shapes = {names: list(tensor.shape) for names, tensor in self._stacks.items()}
        return f"AgentTensors({shapes})"

    @property
    def stacks(self) -> Mapping[tuple[str, ...], Tensor]:
        """The stacked tensors ``[E, A, ...]`` by the names along their dimension 1."""
        return self._stacks

    def stack(self, names: Sequence[str]) -> Tensor:
        """Return ``[E, len(names), ...]``: the backing tensor itself where the names match, a new stack elsewhere."""
        tensor = self._stacks.get(tuple(names))
        return tensor if tensor is not None else torch.stack([self[name] for name in names], dim=1)

    def join(self, names: Sequence[str]) -> Tensor:
        """Put the named agents' tensors side by side, ``[E, sum of sizes]``; a view where they are stacked in that order."""
        tensor = self._stacks.get(tuple(names))
        return tensor.flatten(1) if tensor is not None else torch.cat([self[name].flatten(1) for name in names], dim=1)

    def map(self, function: Callable[[Tensor], Tensor]) -> AgentTensors:
        """Apply ``function`` to every stacked tensor; it must keep dimensions 0 and 1."""
        return AgentTensors({names: function(tensor) for names, tensor in self._stacks.items()})


def stack_agents(values: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    """Stack the named agents' tensors ``[E, ...]`` into ``[E, A, ...]``; free where ``values`` already holds that stack.

    :raises KeyError: ``values`` lacks one of the names
    """
    if isinstance(values, AgentTensors):
        return values.stack(names)
    return torch.stack([values[name] for name in names], dim=1)
