"""Recurrent models over sequences: what a model declares, how its states are packed, and how ``compute`` is unrolled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from coterie.models.base import Model
from coterie.models.mixins import computed_tensors

__all__ = ["Recurrence", "recurrence_of", "unroll"]

_KEYS = {"sizes", "sequence_length", "whole_sequences"}


@dataclass(frozen=True)
class Recurrence:
    """What a recurrent model declares.

    :param sizes: ``(layers, hidden)`` of each state tensor
    :param sequence_length: number of steps L that gradients flow through
    :param whole_sequences: whether ``compute`` takes whole sequences in place of single steps
    """

    sizes: tuple[tuple[int, int], ...]
    sequence_length: int
    whole_sequences: bool = False

    @property
    def width(self) -> int:
        """Number of elements W of all states of one sequence."""
        return sum(layers * hidden for layers, hidden in self.sizes)

    def pack(self, states: Sequence[Tensor]) -> Tensor:
        """``[..., layers, N, hidden]`` each to ``[..., N, W]``."""
        return torch.cat([state.transpose(-3, -2).flatten(-2) for state in states], dim=-1)

    def unpack(self, packed: Tensor) -> list[Tensor]:
        """The inverse of :meth:`pack`."""
        parts = packed.split([layers * hidden for layers, hidden in self.sizes], dim=-1)
        return [part.unflatten(-1, size).transpose(-3, -2) for part, size in zip(parts, self.sizes, strict=True)]


def recurrence_of(model: Model) -> Recurrence | None:
    """Read ``get_specification()["rnn"]``; None for a feed-forward model.

    :raises ValueError: it is not ``{"sizes": [(layers, hidden), ...], "sequence_length": L}``, with numbers of at least 1
    """
    declared = model.get_specification().get("rnn")
    if not declared:
        return None
    what = f"{type(model).__name__}.get_specification()['rnn']"
    form = "expected {'sizes': [(layers, hidden), ...], 'sequence_length': L}"
    if not isinstance(declared, Mapping) or not {"sizes", "sequence_length"} <= set(declared) <= _KEYS:
        raise ValueError(f"{what}: {form}, and optionally 'whole_sequences': True; got {declared!r}")
    try:
        # (layers, environments, hidden) as others write it: the number of sequences is known when there are some
        sizes = tuple((int(size[0]), int(size[-1])) for size in declared["sizes"] if len(size) in (2, 3))
        length = int(declared["sequence_length"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what}: {form}, got {declared!r}") from error
    if not sizes or len(sizes) != len(declared["sizes"]) or min(min(size) for size in sizes) < 1:
        raise ValueError(f"{what}: expected sizes [(layers, hidden), ...] of at least 1, got {declared['sizes']!r}")
    if length < 1 or length != declared["sequence_length"]:
        raise ValueError(
            f"{what}: expected a sequence_length that is a whole number of at least 1, got {declared['sequence_length']!r}"
        )
    return Recurrence(sizes, length, bool(declared.get("whole_sequences", False)))


def unroll(
    model: Model,
    role: str,
    spec: Recurrence,
    inputs: Mapping[str, Tensor],
    state: Tensor,
    starts: Tensor | None,
    active: Tensor | None,
    length: int,
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Run ``compute`` over L steps of N sequences.

    :param inputs: the tensors ``[L*N, F]`` that a feed-forward model would get, time-major
    :param state: packed states ``[N, W]`` before the first step
    :param starts: bool ``[L*N, 1]``, True: an episode starts with this row, from a state of zeros
    :param active: bool ``[L*N, 1]``, False: this row leaves the state as it is
    :param length: L

    :return: what ``compute`` returned, ``[L*N, n]`` (``[n]`` for a bare parameter), and the packed states ``[N, W]`` after
        the last step

    :raises ValueError: states missing from what ``compute`` returned, or of another shape than declared
    """
    if spec.whole_sequences:
        whole = {"rnn": spec.unpack(state), "length": length, "starts": starts, "active": active}
        return _split(model.compute({**inputs, **whole}, role), model, spec, state)
    steps: list[tuple[Tensor, ...]] = []
    rows = len(state)
    for first in range(0, length * rows, rows):
        own = slice(first, first + rows)
        if starts is not None:
            state = torch.where(starts[own], 0.0, state)
        step: dict[str, Any] = {name: tensor[own] for name, tensor in inputs.items()}
        tensors, after = _split(model.compute({**step, "rnn": spec.unpack(state)}, role), model, spec, state)
        state = after if active is None else torch.where(active[own], after, state)
        steps.append(tensors)
    return tuple(_joined(outputs, rows) for outputs in zip(*steps, strict=True)), state


def _joined(outputs: tuple[Tensor, ...], rows: int) -> Tensor:
    """The steps' outputs one after the other; one of them, where they are a parameter."""
    first = outputs[0]
    is_parameter = first.dim() == 1 or (first.shape[0] == 1 and rows > 1)
    return first if is_parameter else torch.cat(outputs)


def _split(output: Any, model: Model, spec: Recurrence, before: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    """What ``compute`` returned as its tensors and its packed new states."""
    tensors = computed_tensors(output, model)
    last = output[-1]
    states = last.get("rnn") if isinstance(last, Mapping) else None
    name = type(model).__name__
    if not isinstance(states, (tuple, list)):
        raise ValueError(
            f"{name} declares states in get_specification, but compute returned none: expected its last item to be "
            f"{{'rnn': [new states]}}, got {type(last).__name__ if states is None else type(states).__name__}"
        )
    expected = [[layers, len(before), hidden] for layers, hidden in spec.sizes]
    got = [list(state.shape) if isinstance(state, Tensor) else type(state).__name__ for state in states]
    if got != expected:
        raise ValueError(
            f"{name}.compute returned states of shapes {got}: its get_specification declares {expected}, "
            "[layers, sequences, hidden] each"
        )
    return tensors, spec.pack(states).to(before.dtype)  # reduced precision does not outlive a step
