"""What acting yields beside actions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from coterie.agent_tensors import AgentTensors
from coterie.models.distributions import Distribution

__all__ = ["Outputs"]


class Outputs(Mapping[str, dict[str, Tensor]]):
    """What acting yields beside actions, by agent: ``outputs[uid]["mean_actions"]`` ``[E, n]``, the distribution's mode.

    It is worked out when asked for, since training does not ask.

    :param distributions: of each group of agents that have one
    :param actions: what every group has chosen; it stands for the mode of those without a distribution
    """

    def __init__(
        self, distributions: Mapping[tuple[str, ...], Distribution], actions: Mapping[tuple[str, ...], Tensor]
    ) -> None:
        self._distributions = distributions
        self._actions = actions
        self._modes: AgentTensors | None = None

    @property
    def mean_actions(self) -> AgentTensors:
        """The modes of all agents."""
        if self._modes is None:
            modes = {names: d.actions(d.mode()) for names, d in self._distributions.items()}
            self._modes = AgentTensors({**self._actions, **modes})
        return self._modes

    def __getitem__(self, name: str) -> dict[str, Tensor]:
        return {"mean_actions": self.mean_actions[name]}

    def __iter__(self) -> Iterator[str]:
        return (name for names in self._actions for name in names)

    def __len__(self) -> int:
        return sum(len(names) for names in self._actions)
