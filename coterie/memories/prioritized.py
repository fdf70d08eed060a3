"""A memory that draws more often what there is more to learn from."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coterie.memories.base import Memory, Size
from coterie.memories.columns import Columns
from coterie.memories.priorities import Priorities
from coterie.memories.replay import ReplayMemory
from coterie.memories.window import Window

__all__ = ["PrioritizedMemory"]


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _check_part(name: str, value: float) -> None:
    """Check that a setting lies between none and all.

    :raises ValueError: it is no number from 0 to 1
    """
    if not _is_number(value) or not 0 <= value <= 1:
        raise ValueError(f"{name}: expected a number from 0 to 1, got {value!r}")


class PrioritizedMemory(ReplayMemory):
    """Windows drawn in proportion to ``p^alpha``, p the priority of the first step to learn from.

    Proportional prioritisation (Schaul et al. 2016, arXiv 1511.05952, section 3.3), a draw being spread over as many
    equal parts of the sum as it has windows (appendix B.2.1). New rows have the largest priority so far, 1 at first;
    :meth:`update_priorities` sets others, usually absolute errors. :meth:`sample` and :meth:`sample_all` pay no heed
    to priorities.

    A row has one priority. Where several learners draw from one memory (agents of IQL whose models cannot be batched together,
    or whose settings of the loop differ), it is the error of whoever learned from the window last, so what one has much to
    learn from may be hidden by another that has not.

    See :class:`ReplayMemory` for the parameters that are not listed here.

    :param alpha: 0 draws uniformly, 1 in proportion to priorities
    :param beta: how far the weights of a draw make up for its bias, from 0, not at all, to 1, fully. Set the attribute
        to change it in the course of training
    :param eps: is added to priorities, so that none is 0

    :raises ValueError: numbers out of range, or no numbers
    """

    def __init__(
        self,
        memory_size: int,
        num_envs: int = 1,
        device: str | torch.device | None = None,
        *,
        alpha: float = 0.6,
        beta: float = 0.4,
        eps: float = 1e-6,
        seed: int | None = None,
        observation_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(memory_size, num_envs, device, seed=seed, observation_dtype=observation_dtype)
        _check_part("alpha", alpha)
        _check_part("beta", beta)
        if not _is_number(eps) or not 0 < eps < math.inf:
            raise ValueError(f"eps: expected a number above 0, got {eps!r}")
        self.alpha, self._beta, self.eps = alpha, beta, eps
        self._own_priorities: Priorities | None = None

    @property
    def beta(self) -> float:
        """How far weights make up for the bias of draws; that of the memory whose rows are shown, where they are another's.

        :raises ValueError: it is set to something else than a number from 0 to 1
        """
        return self._beta if self._parent is None else self._holder.beta

    @beta.setter
    def beta(self, value: float) -> None:
        _check_part("beta", value)
        if self._parent is None:
            self._beta = value
        else:
            self._holder.beta = value

    # ---- tensors ---------------------------------------------------------------------------------------------------------

    @property
    def _priorities(self) -> Priorities:
        """Made when first needed, as the columns are."""
        if self._parent is not None:
            return self._holder._priorities
        if self._own_priorities is None:
            self._own_priorities = Priorities(self._columns)
        return self._own_priorities

    def create_tensor(
        self, name: str, size: Size, dtype: torch.dtype = torch.float32, stored: torch.dtype | None = None
    ) -> bool:
        created = super().create_tensor(name, size, dtype, stored)
        assert self._priorities is not None  # made now, so that `nbytes` is what it will be
        return created

    @property
    def nbytes(self) -> int:
        return super().nbytes + (0 if self._own_priorities is None else self._own_priorities.nbytes)

    def predict_bytes(self, specs: Mapping[str, tuple[Size, torch.dtype]]) -> int:
        return super().predict_bytes(specs) + Priorities.predict_bytes(self.memory_size * self.num_envs)

    def reset(self) -> None:
        super().reset()
        if self._own_columns is None:
            self._own_priorities = None
        elif self._own_priorities is not None:
            self._own_priorities.clear()

    def expose(
        self, parent: Memory, tensors: dict[str, Tensor], dtypes: Mapping[str, torch.dtype] | None = None
    ) -> None:
        super().expose(parent, tensors, dtypes)
        self._own_priorities = None

    # ---- rows ------------------------------------------------------------------------------------------------------------

    def _write_steps(self, rows: Mapping[str, Tensor], columns: Columns) -> None:
        place = columns.place()
        super()._write_steps(rows, columns)
        self._priorities.add(place)

    def windows(self, batch_size: int, length: int = 1, burn_in: int = 0) -> Window:
        """Draw B windows as :meth:`ReplayMemory.windows` does, but by priority, with importance-sampling weights.

        Of N windows that could be drawn, one of probability P has the weight ``(N P)^-beta``, divided by the largest of
        the batch.

        :raises ValueError: there is no such window, or numbers out of range; priorities that were no numbers (see
            :meth:`update_priorities`)
        """
        self._check_counts(batch_size=batch_size, length=length, burn_in=burn_in)
        columns = self._columns
        if not columns.eligible(burn_in, length)[1].any():
            raise self._nothing_to_draw(length, burn_in)
        fractions = torch.from_numpy((np.arange(batch_size) + self._random.random(batch_size)) / batch_size)
        index, chances = self._priorities.draw(fractions.to(self.device), burn_in, length, self.alpha)
        weights = ((chances.min() / chances) ** self.beta).float()  # N, the same for all, drops out
        return self._window(index // self.num_envs, index % self.num_envs, length, burn_in, weights)

    @torch.no_grad()
    def update_priorities(self, window: Window, priorities: Tensor) -> None:
        """Set the priorities of what was drawn, before further rows are added.

        :param window: as :meth:`windows` returned it
        :param priorities: ``[B]``, of any float dtype, at least 0

        :raises ValueError: another shape; numbers that are negative, infinite or none at all. These are looked at on the CPU at
            once; on another device, which would have to be waited for, they are taken for 0, and the next draw raises
        """
        self._check_writable()
        if priorities.shape != window.envs.shape or not priorities.is_floating_point():
            raise ValueError(
                f"priorities: expected floats {list(window.envs.shape)}, one for each window, got {priorities.dtype} "
                f"{list(priorities.shape)}"
            )
        index = self._flat(window.rows[window.learn_from], window.envs)
        self._priorities.update(index, priorities.to(self.device), self.eps)

    # ---- files -----------------------------------------------------------------------------------------------------------

    def _contents(self) -> dict[str, Any]:
        return super()._contents() | {"priorities": self._priorities.contents()}

    def _check_contents(self, contents: dict[str, Any]) -> None:
        super()._check_contents(contents)
        if "priorities" not in contents:
            raise ValueError("expected the file of a PrioritizedMemory; this one lacks ['priorities']")
        self._priorities.check_contents(contents["priorities"])

    def _take_contents(self, contents: dict[str, Any]) -> None:
        super()._take_contents(contents)
        self._priorities.take_contents(contents["priorities"])
