"""A memory that draws whole episodes."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coterie.memories.base import Memory, Size
from coterie.memories.episode_index import EpisodeIndex
from coterie.memories.replay import ReplayMemory
from coterie.memories.window import Window

__all__ = ["EpisodeMemory"]


class EpisodeMemory(ReplayMemory):
    """Whole episodes, drawn uniformly: those that are complete, and of which no row was written over.

    An episode takes a row for each step and, where a time limit struck, one for its last observation; one that takes more
    than ``memory_size`` rows is never whole, which a warning says once. :meth:`sample` and :meth:`sample_all` draw
    steps, as those of :class:`ReplayMemory`, which describes the parameters.
    """

    _own_index: EpisodeIndex | None = None
    _warned = False

    # ---- tensors ---------------------------------------------------------------------------------------------------------

    @property
    def _index(self) -> EpisodeIndex:
        """Made when first needed, as the columns are."""
        if self._parent is not None:
            return self._holder._index
        if self._own_index is None:
            self._own_index = EpisodeIndex(self._columns)
        return self._own_index

    def create_tensor(
        self, name: str, size: Size, dtype: torch.dtype = torch.float32, stored: torch.dtype | None = None
    ) -> bool:
        created = super().create_tensor(name, size, dtype, stored)
        assert self._index is not None  # made now, so that `nbytes` is what it will be
        return created

    @property
    def nbytes(self) -> int:
        return super().nbytes + (0 if self._own_index is None else self._own_index.nbytes)

    def predict_bytes(self, specs: Mapping[str, tuple[Size, torch.dtype]]) -> int:
        return super().predict_bytes(specs) + EpisodeIndex.predict_bytes(self.memory_size, self.num_envs)

    def reset(self) -> None:
        super().reset()
        self._warned = False
        if self._own_columns is None:
            self._own_index = None
        elif self._own_index is not None:
            self._own_index.clear()

    def expose(
        self, parent: Memory, tensors: dict[str, Tensor], dtypes: Mapping[str, torch.dtype] | None = None
    ) -> None:
        super().expose(parent, tensors, dtypes)
        self._own_index = None

    # ---- drawing ---------------------------------------------------------------------------------------------------------

    @property
    def episodes(self) -> int:
        """Number of episodes that can be drawn."""
        return int(self._whole()[1].sum())

    def _whole(self) -> tuple[np.ndarray, np.ndarray]:
        first, counts = self._index.whole()
        if self._index.too_long and not self._warned:
            self._warned = True
            warnings.warn(
                f"an episode takes more than the {self.memory_size} rows of an {type(self).__name__}: it will never be drawn. "
                "Expected memory_size to exceed the steps of the longest episode",
                stacklevel=3,
            )
        return first, counts

    def ready(self, batch_size: int, length: int = 1, burn_in: int = 0) -> bool:
        """Whether ``batch_size`` different episodes can be drawn; the other arguments make no difference."""
        return int(self._whole()[1].sum()) >= batch_size

    def windows(self, batch_size: int, length: int = 1, burn_in: int = 0) -> Window:
        """Draw B different episodes, any B with one probability; R is one more than the steps of the longest drawn.

        Row 0 is the first of each. Behind its steps an episode has its last observation, if one was added, and then padding.

        :param length: makes no difference, nor does ``burn_in``: episodes have a length of their own

        :raises ValueError: there are fewer episodes, or numbers out of range
        """
        self._check_counts(batch_size=batch_size, length=length, burn_in=burn_in)
        columns = self._columns
        first, counts = self._whole()
        ends = counts.cumsum()
        if ends[-1] < batch_size:
            raise self._too_few(batch_size, int(ends[-1]))
        drawn = self._random.choice(ends[-1], batch_size, replace=False)
        envs = np.searchsorted(ends, drawn, side="right")
        start, end = self._index.rows(first[envs] + drawn - (ends - counts)[envs], envs)
        steps = columns.steps_before(end, envs) - columns.steps_before(start, envs)
        offsets = np.arange(steps.max() + 1)[:, None]
        rows = (start + np.minimum(offsets, end - start - 1)) % self.memory_size
        # only an episode's last row may be no step
        flags = np.stack((offsets < end - start, offsets < steps, (offsets == 0) & (steps > 0)))
        real, taken, starts = self._on_device(flags).unbind()
        return Window(self._on_device(rows), self._on_device(envs), real, taken, starts)

    def _on_device(self, numbers: np.ndarray) -> Tensor:
        return torch.from_numpy(numbers).to(self.device, non_blocking=True)

    def _too_few(self, batch_size: int, episodes: int) -> ValueError:
        why = "add more first, and ask ready()"
        if self._index.too_long:
            why = (
                f"episodes of more than {self.memory_size} rows are never whole: expected memory_size to exceed the steps of "
                "the longest one"
            )
        return ValueError(
            f"cannot draw {batch_size} episodes: {episodes} are complete and whole in this memory of {self.memory_size} rows "
            f"for each of {self.num_envs} environments; {why}"
        )

    # ---- files -----------------------------------------------------------------------------------------------------------

    def _take_contents(self, contents: dict[str, Any]) -> None:
        super()._take_contents(contents)
        self._index.clear()
