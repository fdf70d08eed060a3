"""From the mapping of actions that a caller hands in to one checked tensor."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence

import gymnasium
import torch
from gymnasium import spaces
from torch import Tensor

from coterie.agent_tensors import AgentTensors
from coterie.envs.base import EnvError
from coterie.spaces import action_width

__all__ = ["ActionReader"]


class ActionReader:
    """Check actions and lay them side by side, ``[E, W]`` with W entries over all agents.

    Names, shapes, devices and dtypes are checked at every step. Values (a choice out of range, a NaN: error; a number
    outside the Box: clipped, with one warning in the reader's life) are checked at every step too, or, with ``deferred``,
    from their extremes, which stay on the device and are read every :attr:`PERIOD` steps and by :meth:`flush`: no step
    waits for the device then, choices out of range are clamped until the error comes, and the message cannot name the copy.

    :param names: the agents, in the order of the columns
    :param action_spaces: their spaces, all Discrete or all Box with scalar bounds 0 and 1
    :param num_envs: E
    :param device: where actions must be
    :param deferred: whether to put the checks of values off
    """

    #: steps between two deferred checks
    PERIOD = 256

    def __init__(
        self,
        names: Sequence[str],
        action_spaces: Mapping[str, gymnasium.Space],
        num_envs: int,
        device: torch.device,
        deferred: bool,
    ) -> None:
        self._names = tuple(names)
        self._spaces = action_spaces
        self._widths = [action_width(action_spaces[name]) for name in names]
        self._uniform = len(set(self._widths)) == 1
        self._discrete = isinstance(action_spaces[names[0]], spaces.Discrete)
        self._shapes = {name: (num_envs, width) for name, width in zip(names, self._widths, strict=True)}
        self._device = device
        self._deferred = deferred
        self._warned = False
        # one entry a column: the agent, and the largest value that it may take (the smallest is 0 for both kinds)
        self._owners = [name for name, width in zip(self._names, self._widths, strict=True) for _ in range(width)]
        owned = [action_spaces[name] for name in self._owners]
        self._highest = [int(space.n) - 1 if isinstance(space, spaces.Discrete) else 1 for space in owned]
        self._limits = torch.tensor(self._highest, device=device)
        self._extremes: tuple[Tensor, Tensor] | None = None
        self._unread = 0

    def read(self, actions: Mapping[str, Tensor]) -> Tensor:
        """Return the checked actions ``[E, W]``: int for Discrete spaces, float within the bounds for Boxes.

        :raises EnvError: an agent is missing or unknown, or an action has the wrong type, shape, device or value
        """
        flat = self._join(actions)
        lowest, highest = torch.aminmax(flat, dim=0)
        if not self._deferred:
            fine = self._judge(lowest.tolist(), highest.tolist(), flat)
            return flat if fine else flat.clamp(0, 1)
        if self._extremes is not None:
            lowest = torch.minimum(self._extremes[0], lowest)
            highest = torch.maximum(self._extremes[1], highest)
        self._extremes = (lowest, highest)
        self._unread += 1
        if self._unread >= self.PERIOD:
            self.flush()
        return torch.minimum(flat.clamp_min(0), self._limits) if self._discrete else flat.clamp(0, 1)

    def flush(self) -> None:
        """Judge the extremes that deferred checks have gathered (this waits for the device).

        :raises EnvError: a choice was out of range, or a number NaN
        """
        if self._extremes is not None:
            lowest, highest = (extreme.tolist() for extreme in self._extremes)
            self._extremes, self._unread = None, 0
            self._judge(lowest, highest, None)

    def _join(self, actions: Mapping[str, Tensor]) -> Tensor:
        """Check the form of the actions, and put them side by side; free for an already stacked tensor."""
        stacked = actions.stacks.get(self._names) if isinstance(actions, AgentTensors) and self._uniform else None
        if stacked is not None and len(actions) == len(self._names):
            self._check_form(self._names[0], stacked[:, 0])
            flat = stacked.flatten(1)
        else:
            if not isinstance(actions, Mapping):
                raise EnvError(f"expected a mapping from agent to action, got {type(actions).__name__}")
            for name in self._names:
                if name not in actions:
                    raise EnvError(f"agent {name!r} is missing from the actions, which are for {list(actions)}")
                self._check_form(name, actions[name])
            if len(actions) != len(self._names):
                unknown = [name for name in actions if name not in self._names]
                raise EnvError(f"actions[{unknown[0]!r}] is for an unknown agent; expected {list(self._names)}")
            flat = torch.cat([actions[name] for name in self._names], dim=1)
        if self._discrete and flat.dtype not in (torch.int64, torch.int32):
            flat = flat.long()
        return flat.detach()

    def _check_form(self, name: str, action: Tensor) -> None:
        if not isinstance(action, Tensor):
            raise EnvError(f"actions[{name!r}] is {action!r}; expected a tensor, got {type(action).__name__}")
        if action.shape != self._shapes[name]:
            expected = f"{list(self._shapes[name])} for {self._spaces[name]}"
            raise EnvError(f"actions[{name!r}] has shape {list(action.shape)}; expected {expected}")
        if action.device != self._device:
            raise EnvError(
                f"actions[{name!r}] is on {action.device}; expected {self._device}, where the environment is"
            )
        kind = action.dtype
        whole = not (kind.is_floating_point or kind.is_complex or kind == torch.bool)
        if not (whole if self._discrete else kind.is_floating_point):
            expected = "an integer dtype" if self._discrete else "a floating dtype"
            raise EnvError(f"actions[{name!r}] has dtype {kind}; expected {expected} for {self._spaces[name]}")

    def _judge(self, lowest: list[float], highest: list[float], flat: Tensor | None) -> bool:
        """Raise for values that cannot be used, warn once of values to clip, and return whether all are in bounds."""
        columns = zip(lowest, highest, self._highest, strict=True)
        bad = [i for i, (low, high, limit) in enumerate(columns) if not (low >= 0 and high <= limit)]  # NaN is bad
        if not bad:
            return True
        fatal = bad if self._discrete else [i for i in bad if math.isnan(lowest[i])]
        column = (fatal or bad)[0]
        value, where = highest[column] if lowest[column] >= 0 else lowest[column], f"in the last {self.PERIOD} steps"
        if flat is not None:
            values = flat[:, column].double()
            wrong = values.isnan() if fatal and not self._discrete else (values < 0) | (values > self._highest[column])
            row = int(wrong.nonzero()[0])
            value, where = flat[row, column].item(), f"in sub-environment {row}"
        name = self._owners[column]
        key = f"actions[{name!r}] of agent {name!r}, entry {column - self._owners.index(name)},"
        if fatal:
            span = f"an integer from 0 to {self._highest[column]}" if self._discrete else "a number from 0 to 1"
            raise EnvError(f"{key} is {value} {where}; expected {span} for {self._spaces[name]}")
        if not self._warned:
            self._warned = True
            text = f"{key} is {value} {where}: clipped to {self._spaces[name]}, and so are all later ones, without a warning"
            warnings.warn(text, stacklevel=4)  # the caller of the environment's step
        return False
