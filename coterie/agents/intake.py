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

__all__ = ["FLAGS", "NUMBERS", "Form", "Kind", "actions_of", "check_form", "take_in"]


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
        return (
            tensor.dim() == 3
            and tensor.shape[2] == self.width
            and self.rows in (None, tensor.shape[0])
            and self.fits_kind(tensor)
            and self.is_at(tensor)
        )

    def fits_kind(self, tensor: Tensor) -> bool:
        """Whether its numbers are of the kind."""
        return self.kind is None or self.kind.fits(tensor.dtype)

    def is_at(self, tensor: Tensor) -> bool:
        """Whether it is on the device."""
        wanted, device = self.device, tensor.device
        return wanted is None or (wanted.type == device.type and wanted.index in (None, device.index))


def take_in(what: str, values: Mapping[str, Tensor], names: Sequence[str], form: Form) -> Tensor:
    """Stack the named agents' tensors ``[E, F]`` into ``[E, A, F]``.

    :param what: what they are, for messages

    :raises KeyError: an agent is missing
    :raises TypeError: no mapping, no tensor, or another kind of numbers
    :raises ValueError: another shape or device
    """
    try:
        tensor = stack_agents(values, names)
    except (IndexError, KeyError, RuntimeError, TypeError):
        raise _fault(what, values, names, form) from None
    if tensor.dim() == 2 and form.width == 1:
        tensor = tensor.unsqueeze(-1)
    if not form.fits(tensor):
        raise _fault(what, values, names, form)
    return tensor if form.kind is None or tensor.dtype == form.kind.dtype else tensor.to(form.kind.dtype)


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
    tensor = values[name]
    if not isinstance(tensor, Tensor):
        return TypeError(
            f"{what}[{name!r}]: expected a tensor {form}, got {type(tensor).__name__}; torch.as_tensor makes one of arrays "
            "and lists"
        )
    wide = tensor.dim() == 2 and tensor.shape[1] == form.width
    flat = tensor.dim() == 1 and form.width == 1
    if not (wide or flat) or form.rows not in (None, tensor.shape[0]):
        return ValueError(f"{what}[{name!r}]: expected a tensor of shape {form}, got {list(tensor.shape)}")
    if form.kind is not None and not form.fits_kind(tensor):
        return TypeError(f"{what}[{name!r}]: expected {form.kind.words} {form}, got {tensor.dtype}; {form.kind.advice}")
    if not form.is_at(tensor):
        return ValueError(
            f"{what}[{name!r}]: expected a tensor on {form.device}, where the agent is, got one on {tensor.device}; move it "
            "there, or build the agent with another device"
        )
    return None
