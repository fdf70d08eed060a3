"""Parameters of many models in one tensor, one row per independently trained set."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

__all__ = ["FlatParameters"]


class FlatParameters:
    """Storage ``data [S, D]`` and ``grad [S, D]`` behind the parameters of S sets of modules.

    A set is what one optimizer trains: the modules of one agent, or of all agents that share any of them. The modules go on
    owning their ``nn.Parameter`` objects, which become views of a row; a state dict is therefore always right, and loading one
    changes the storage. Zeroing, clipping and stepping all sets is a handful of operations on ``[S, D]``.

    :param sets: the modules of each set, in corresponding order; parameters that stand in several modules of a set count once

    :raises ValueError: sets of different layout, or parameters of several dtypes or devices
    """

    def __init__(self, sets: Sequence[Sequence[nn.Module]]) -> None:
        self._rows: list[list[nn.Parameter]] = []
        for modules in sets:
            unique = {id(p): p for module in modules for p in module.parameters() if p.requires_grad}
            self._rows.append(list(unique.values()))
        shapes = [[p.shape for p in row] for row in self._rows]
        if any(row != shapes[0] for row in shapes):
            raise ValueError("expected sets of parameters of the same shapes")
        kinds = {(p.dtype, p.device) for row in self._rows for p in row}
        if len(kinds) > 1:
            raise ValueError(f"expected trainable parameters of one dtype on one device, got {sorted(map(str, kinds))}")
        self._slices: list[slice] = []
        width = 0
        for shape in shapes[0]:
            self._slices.append(slice(width, width + shape.numel()))
            width += shape.numel()
        # nothing to train is fine: frozen models may act
        dtype, device = next(iter(kinds), (torch.float32, torch.device("cpu")))
        self.data = torch.zeros(len(sets), width, dtype=dtype, device=device)
        self.grad = torch.zeros_like(self.data)
        self._offsets: dict[int, int] = {}
        for s, row in enumerate(self._rows):
            for p, part in zip(row, self._slices, strict=True):
                self._offsets[id(p)] = s * width + part.start
        self.link()

    @torch.no_grad()
    def link(self) -> None:
        """Make every parameter a view of the storage again, keeping its present values.

        Needed after something replaced a parameter's memory (``module.to(...)``) or dropped its gradient.
        """
        data, grad, size = self.data.data_ptr(), self.grad.data_ptr(), self.data.element_size()
        for s, row in enumerate(self._rows):
            for p, part in zip(row, self._slices, strict=True):
                behind = self._offsets[id(p)] * size
                if p.data_ptr() != data + behind:
                    view = self.data[s, part]
                    view.copy_(p.flatten())
                    p.data = view.view(p.shape)
                if p.grad is None or p.grad.data_ptr() != grad + behind:
                    p.grad = self.grad[s, part].view(p.shape)

    def width_of(self, modules: Sequence[nn.Module]) -> int:
        """Number of elements at the start of a row that belong to ``modules``, the first modules of a set."""
        return sum(p.numel() for p in {id(p): p for m in modules for p in m.parameters() if p.requires_grad}.values())

    def holds(self, parameter: nn.Parameter) -> bool:
        """Whether ``parameter`` lives in this storage."""
        return id(parameter) in self._offsets

    def stacked(
        self, parameters: Sequence[nn.Parameter], layout: Callable[[Tensor], Tensor] = lambda x: x
    ) -> Tensor | None:
        """A leaf tensor ``[K, ...]`` over corresponding parameters of K models, whose gradient lands in :attr:`grad`.

        :param parameters: one parameter of each model, all of one shape
        :param layout: a view to put both the leaf and its gradient into (a transposition, say)

        :return: None where the parameters do not stand at equal distances, so that no view covers them
        """
        _spend_layout_warning()
        offsets = [self._offsets[id(p)] for p in parameters]
        step = offsets[1] - offsets[0] if len(offsets) > 1 else 0
        if any(b - a != step for a, b in itertools.pairwise(offsets)) or (len(offsets) > 1 and step <= 0):
            return None
        shape = parameters[0].shape
        strides = torch.empty(shape, device="meta").stride()
        size, stride = (len(offsets), *shape), (step, *strides)
        leaf = layout(self.data.as_strided(size, stride, offsets[0])).detach().requires_grad_()
        leaf.grad = layout(self.grad.as_strided(size, stride, offsets[0]))
        return leaf


@lru_cache(maxsize=1)
def _spend_layout_warning() -> None:
    """Let PyTorch give, unheard, its once-a-process warning that a gradient is strided.

    Gradients here are views of one tensor on purpose: what accumulating into them costs is less than what clipping and
    stepping each parameter of each model by itself would.
    """
    rows = torch.zeros(2, 3)
    leaf = rows[:, :2].detach().requires_grad_()
    leaf.grad = rows[:, :2].clone().as_strided((2, 2), (1, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        leaf.sum().backward()
