"""What can be seen at a moment, from which critics take their inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from coterie.agent_tensors import AgentTensors
from coterie.agents.groups import Group
from coterie.agents.masks import join_masks

__all__ = ["Moment"]


class Moment:
    """Observations of all agents and the shared state, of B environments or of as many rows of a rollout.

    Observations are looked up when they are asked for: most critics see only a part.

    :param groups: the team's groups
    :param order: the agents' names in the team's order
    :param observe: a group's observations ``[B, A, F]``, zeros where an agent is absent
    :param shared: the shared state ``[B, F]``, where there is one
    :param present: which of a group's agents are there, bool ``[B, A, 1]``, None for all
    """

    def __init__(
        self,
        groups: Sequence[Group],
        order: Sequence[str],
        observe: Callable[[Group], Tensor],
        shared: Tensor | None,
        present: Callable[[Group], Tensor | None],
    ) -> None:
        self._groups = groups
        self._order = tuple(order)
        self._observe = observe
        self._present = present
        self._joined: Tensor | None = None
        self.shared = shared

    def of(self, group: Group) -> Tensor:
        """A group's observations ``[B, A, F]``."""
        return self._observe(group)

    def present(self, group: Group) -> Tensor | None:
        """Which of a group's agents are there, bool ``[B, A, 1]``; None for all of them."""
        return self._present(group)

    def joined(self) -> Tensor:
        """All agents' observations side by side in the team's order, ``[B, sum of sizes]``."""
        if self._joined is None:
            everyone = AgentTensors({group.names: self._observe(group) for group in self._groups})
            self._joined = everyone.join(self._order)
        return self._joined

    def attendance(self) -> Tensor | None:
        """Who is there, bool ``[B, agents of the team]`` in the team's order; None where all are."""
        mask = join_masks({group.names: self._present(group) for group in self._groups})
        if mask is None:
            return None
        return AgentTensors.single([name for group in self._groups for name in group.names], mask).join(self._order)
