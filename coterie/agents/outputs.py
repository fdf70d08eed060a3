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
    """

    def __init__(self, distributions: Mapping[tuple[str, ...], Distribution]) -> None:
        self._distributions = distributions
        self._modes: AgentTensors | None = None

    @property
    def mean_actions(self) -> AgentTensors:
        """The modes of all agents."""
        if self._modes is None:
            self._modes = AgentTensors({n: d.actions(d.mode()) for n, d in self._distributions.items()})
        return self._modes

    def __getitem__(self, name: str) -> dict[str, Tensor]:
        return {"mean_actions": self.mean_actions[name]}

    def __iter__(self) -> Iterator[str]:
        return (name for names in self._distributions for name in names)

    def __len__(self) -> int:
        return sum(len(names) for names in self._distributions)
