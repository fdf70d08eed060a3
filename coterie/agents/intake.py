"""What comes into an agent: tensors by name, looked at once as they are stacked.

Only forms are looked at (names, types, shapes, devices), never values, so that no check waits for an accelerator. A check that
passes costs the same for any number of agents where these come as one stack; only one that fails looks for the culprit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium
import torch
from torch import Tensor

from coterie.agent_tensors import AgentTensors, stack_agents

__all__ = ["FLAGS", "NUMBERS", "Form", "Kind", "actions_of", "as_stacks", "check_form", "take_in", "take_one"]


@dataclass(frozen=True)
class Kind:
    """A kind of numbers.

    :param words: for messages
    :param fits: which dtypes are taken
    :param dtype: what they are turned into
    :param advice: what to do about another one
    """

    words: str
    fits: Callable[[torch.dtype], bool]
    dtype: torch.dtype
    advice: str


#: observations, rewards, actions of a Box: any real numbers
NUMBERS = Kind("real numbers", lambda dtype: not dtype.is_complex, torch.float32, "pass real numbers")
#: ends of episodes, masks
FLAGS = Kind("bool", lambda dtype: dtype == torch.bool, torch.bool, "turn zeros and ones into it with .bool()")
#: actions of other spaces than a Box
CHOICES = Kind(
    "integers",
    lambda dtype: not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool),
    torch.int64,
    "pass actions as act returned them, or turn them into integers with .long()",
)


def actions_of(space: gymnasium.Space) -> Kind:
    """The kind of numbers that actions of a space are."""
    return NUMBERS if isinstance(space, gymnasium.spaces.Box) else CHOICES


class Form(NamedTuple):
    """What the tensors of single agents must be."""

    width: int = 1
    """Number of elements F of ``[E, F]``; ``[E]`` will do where it is 1."""

    kind: Kind | None = None
    """Which numbers are taken, and into which they are turned; None for all, as they are."""

    rows: int | None = None
    """Number of environments E; None for any."""

    device: torch.device | None = None
    """Where they must be; None for anywhere."""

    def __str__(self) -> str:
        return f"[{'E' if self.rows is None else self.rows}, {self.width}]"

    def fits(self, tensor: Tensor) -> bool:
        """Whether agents' tensors fit, stacked to ``[E, A, F]``."""
        shape = tensor.shape
        return (
            len(shape) == 3
            and shape[2] == self.width
            and (self.rows is None or shape[0] == self.rows)
            and self.fits_kind(tensor)
            and self.is_at(tensor)
        )

    def fits_kind(self, tensor: Tensor) -> bool:
        """Whether its numbers are of the kind."""
        kind = self.kind
        return kind is None or tensor.dtype == kind.dtype or kind.fits(tensor.dtype)

    def is_at(self, tensor: Tensor) -> bool:
        """Whether it is on the device."""
        wanted, device = self.device, tensor.device
        return wanted is None or wanted == device or (wanted.type == device.type and wanted.index is None)


def take_in(what: str, values: Mapping[str, Tensor], names: Sequence[str], form: Form) -> Tensor:
    """Stack the named agents' tensors ``[E, F]`` into ``[E, A, F]``.

    :param what: what they are, for messages

    :raises KeyError: an agent is missing
    :raises TypeError: no mapping, no tensor, or another kind of numbers
    :raises ValueError: another shape or device
    """
    tensor = values.stacks.get(tuple(names)) if isinstance(values, AgentTensors) else None
    if tensor is None:
        if not isinstance(values, Mapping):
            raise _fault(what, values, names, form)
        try:
            tensor = stack_agents(values, names)
        except (IndexError, KeyError, RuntimeError, TypeError):
            raise _fault(what, values, names, form) from None
    if tensor.dim() == 2 and form.width == 1:
        tensor = tensor.unsqueeze(-1)
    if not form.fits(tensor):
        raise _fault(what, values, names, form)
    return tensor if form.kind is None or tensor.dtype == form.kind.dtype else tensor.to(form.kind.dtype)


def as_stacks(values: Mapping[str, Tensor], stacks: Mapping[tuple[str, ...], Tensor]) -> AgentTensors:
    """The stacks that ``values`` were taken in as: ``values`` itself where it holds these very ones."""
    if isinstance(values, AgentTensors) and all(values.stacks.get(names) is stack for names, stack in stacks.items()):
        return values
    return AgentTensors(stacks)


def take_one(what: str, tensor: Any, form: Form) -> Tensor:
    """Take in one tensor ``[E, F]`` that is nobody's in particular; errors are those of :func:`take_in`."""
    error = _misfit(what, tensor, form)
    if error is not None:
        raise error
    taken: Tensor = tensor if form.kind is None else tensor.to(form.kind.dtype)
    return taken


def check_form(what: str, values: Mapping[str, Tensor], names: Sequence[str], form: Form) -> None:
    """Refuse what :func:`take_in` would, without stacking anything."""
    if isinstance(values, AgentTensors) and tuple(names) in values.stacks:
        take_in(what, values, names, form)
        return
    for name in names:
        error = _fault_of(what, values, name, names, form)
        if error is not None:
            raise error


def _fault(what: str, values: Any, names: Sequence[str], form: Form) -> Exception:
    """What is wrong with values that could not be taken in."""
    for name in names:
        error = _fault_of(what, values, name, names, form)
        if error is not None:
            return error
    got = {name: f"{list(values[name].shape)} on {values[name].device}" for name in names}
    return ValueError(f"{what}: expected tensors {form}, of the same environments and on one device, got {got}")


def _fault_of(what: str, values: Any, name: str, names: Sequence[str], form: Form) -> Exception | None:
    """What is wrong with one agent's entry, None where nothing is."""
    if not isinstance(values, Mapping):
        return TypeError(f"{what}: expected a mapping from agent to tensor {form}, got {type(values).__name__}")
    if name not in values:
        return KeyError(
            f"{what}: no entry for agent {name!r}; expected one for each of {list(names)}, got {sorted(values)}"
        )
    return _misfit(f"{what}[{name!r}]", values[name], form)


def _misfit(what: str, tensor: Any, form: Form) -> Exception | None:
    """How one tensor misses its form, None where it fits."""
    if not isinstance(tensor, Tensor):
        advice = "" if tensor is None else "; torch.as_tensor makes one of arrays and lists"
        return TypeError(f"{what}: expected a tensor {form}, got {type(tensor).__name__}{advice}")
    wide = tensor.dim() == 2 and tensor.shape[1] == form.width
    flat = tensor.dim() == 1 and form.width == 1
    if not (wide or flat) or form.rows not in (None, tensor.shape[0]):
        return ValueError(f"{what}: expected a tensor of shape {form}, got {list(tensor.shape)}")
    if form.kind is not None and not form.fits_kind(tensor):
        return TypeError(f"{what}: expected {form.kind.words} {form}, got {tensor.dtype}; {form.kind.advice}")
    if not form.is_at(tensor):
        return ValueError(
            f"{what}: expected a tensor on {form.device}, where the agent is, got one on {tensor.device}; move it there, or "
            "build the agent with another device"
        )
    return None
