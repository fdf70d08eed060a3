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

        :raises ValueError: the memory is empty, or too small for a draw without replacement
        """
        if sequence_length != 1:
            raise NotImplementedError("sampling of sequences is not available: expected sequence_length=1")
        count = len(self)
        if count == 0 or (not self._replacement and batch_size > count):
            raise ValueError(f"cannot draw {batch_size} transitions from a memory that holds {count}")
        if self._replacement:
            indexes = torch.randint(count, (batch_size,), device=self.device)
        else:
            indexes = torch.randperm(count, device=self.device)[:batch_size]
        return self.sample_by_index(names, indexes, mini_batches)
