"""Counting of episodes: returns per agent and lengths."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["EpisodeCounter"]


class EpisodeCounter:
    """Returns ``[E, A]`` and lengths ``[E]`` of the running episodes of E environments.

    :param num_envs: number of environments E
    :param agents: the names of the A agents, in the order of the reward's dimension 1
    :param device: where rewards live
    """

    def __init__(self, num_envs: int, agents: Sequence[str], device: torch.device) -> None:
        self.num_envs = num_envs
        self.agents = list(agents)
        self._returns = torch.zeros(num_envs, len(self.agents), dtype=torch.float64, device=device)
        self._lengths = torch.zeros(num_envs, dtype=torch.int64, device=device)

    def add(self, rewards: Tensor, ended: Tensor) -> tuple[Tensor, Tensor] | None:
        """Count one step.

        :param rewards: ``[E, A]``
        :param ended: bool ``[E]``, whether the step was its episode's last

        :return: returns ``[N, A]`` (float64) and lengths ``[N]`` (int64) of the N episodes that ended in this step, None
            where none did
        """
        self._returns += rewards
        self._lengths += 1
        if not bool(ended.any()):
            return None
        finished = self._returns[ended], self._lengths[ended]
        # filled rather than multiplied by 0, which would keep infinities
        self._returns.masked_fill_(ended.unsqueeze(1), 0.0)
        self._lengths.masked_fill_(ended, 0)
        return finished

    def reset(self) -> None:
        """Forget the running episodes."""
        self._returns.zero_()
        self._lengths.zero_()
