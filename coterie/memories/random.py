"""A memory sampled uniformly."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from coterie.memories.base import Memory

__all__ = ["RandomMemory"]


class RandomMemory(Memory):
    """Memory whose :meth:`sample` draws transitions uniformly.

    :param memory_size: number of rows T
    :param num_envs: number of environments E
    :param device: where tensors live; the CPU by default
    :param replacement: whether one batch may hold a transition twice
    """

    def __init__(
        self,
        memory_size: int,
        num_envs: int = 1,
        device: str | torch.device | None = None,
        replacement: bool = True,
    ) -> None:
        super().__init__(memory_size, num_envs, device)
        self._replacement = replacement

    def sample(
        self, names: Sequence[str], batch_size: int, mini_batches: int = 1, sequence_length: int = 1
    ) -> list[list[Tensor]]:
        """Draw ``batch_size`` transitions uniformly, in ``mini_batches`` parts.

        With a ``sequence_length`` of L, that many sequences of L rows of one environment, one after the other:
        ``[batch_size * L, ...]``. None runs over the place that is written next; they may run across the ends of episodes.

        :raises ValueError: the memory is empty, holds fewer rows than a sequence, or too few to repeat none
        """
        rows = len(self) // self.num_envs
        if sequence_length < 1:
            raise ValueError(f"sequence_length: expected an integer of at least 1, got {sequence_length}")
        count = max(0, rows - sequence_length + 1) * self.num_envs
        if count == 0 or (not self._replacement and batch_size > count):
            what = "transitions" if sequence_length == 1 else f"sequences of {sequence_length} rows"
            raise ValueError(f"cannot draw {batch_size} {what} from a memory that holds {count}")
        if self._replacement:
            indexes = torch.randint(count, (batch_size,), device=self.device)
        else:
            indexes = torch.randperm(count, device=self.device)[:batch_size]
        if sequence_length > 1:
            return self._sequences(names, indexes, sequence_length, 1, mini_batches)
        return self.sample_by_index(names, indexes, mini_batches)
