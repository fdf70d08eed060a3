"""Checks on what comes into and out of an environment, cheap enough to make at every step.

A check that passes costs one small tensor operation; only a check that fails looks for the culprit.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from coterie.agent_tensors import AgentTensors, stack_agents
from coterie.envs.base import EnvError
from coterie.spaces import action_width

__all__ = ["ActionGuard", "check_agents", "check_finite", "check_state_finite", "group_agents"]

logger = logging.getLogger(__name__)


def group_agents(keys: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Group names whose keys are equal, in the order in which they first appear."""
    groups: list[tuple[Any, list[str]]] = []
    for name, key in keys.items():
        members = next((members for other, members in groups if other == key), None)
        if members is None:
            groups.append((key, [name]))
        else:
            members.append(name)
    return [tuple(members) for _, members in groups]


def check_agents(
    values: Any,
    what: str,
    where: str,
    possible: Sequence[str],
    required: Collection[str] | None = None,
    defaults: bool = True,
) -> None:
    """Check that a mapping has all ``required`` agents (by default all that are possible) and none that is unknown.

    :param what: what the mapping holds, for the message: "observations"
    :param where: where it came from, for the message: "copy 0, step 3"
    :param defaults: whether a ``defaultdict`` holds everyone, though not yet as a key

    :raises EnvError: it is no mapping, an agent is missing, or an agent is unknown
    """
    if not isinstance(values, Mapping):
        raise EnvError(f"{where}: expected a mapping of {what} by agent name, got {type(values).__name__}")
    expected = [name for name in possible if required is None or name in required]
    missing = [name for name in expected if name not in values]
    if missing and not (defaults and getattr(values, "default_factory", None) is not None):
        raise EnvError(
            f"{where}: agent {missing[0]!r} is missing from the {what}, which hold {list(values)}; "
            f"expected an entry for each of {expected}"
        )
    unknown = [name for name in values if name not in possible]
    if unknown:
        raise EnvError(
            f"{where}: unknown agent {unknown[0]!r} in the {what}; possible agents are {list(possible)}. "
            "List every agent that may ever take part in the environment's possible_agents"
        )


def is_finite(tensor: Tensor) -> bool:
    """Return whether every element is finite; on a GPU, False also where the sum overflows."""
    if tensor.device.type == "cpu":  # between steps of a NumPy environment, NumPy costs a fifth of torch
        return bool(np.isfinite(tensor.numpy()).all())
    return math.isfinite(tensor.sum().item())


def check_finite(values: AgentTensors, what: str, where: str) -> None:
    """Check that stacks ``[E, A, F]`` hold finite numbers.

    :param what: what the numbers are, for the message: "observation"
    :param where: the moment, for the message: "step 3"

    :raises EnvError: naming the agent, the copy, the element and its value
    """
    for names, tensor in values.stacks.items():
        if is_finite(tensor):
            continue
        for copy, agent, *element in (~torch.isfinite(tensor)).nonzero().tolist():
            value = tensor[(copy, agent, *element)].item()
            raise EnvError(
                f"{where}: the {what} of agent {names[agent]!r} in copy {copy} is {value} at element {element}; "
                "expected finite numbers: look for a division by zero or an overflow where it is computed"
            )


def check_state_finite(state: Tensor, where: str) -> None:
    """Check that a shared state ``[E, state]`` holds finite numbers.

    :raises EnvError: naming the copy, the element and its value
    """
    if not is_finite(state):
        for copy, element in (~torch.isfinite(state)).nonzero().tolist():
            value = state[copy, element].item()
            raise EnvError(
                f"{where}: the shared state of copy {copy} is {value} at element {element}; expected finite numbers"
            )


def _all_below(choices: Tensor, number: int) -> bool:
    """Return whether all are at least 0 and below ``number``."""
    if choices.device.type == "cpu":
        values = choices.numpy()
        return bool(values.min() >= 0 and values.max() < number)
    lowest, highest = torch.aminmax(choices)
    return bool(lowest >= 0) and bool(highest < number)


class ActionGuard:
    """Checks the actions of a team, clips those of Box spaces to their bounds, and stacks agents of equal spaces.

    The first action outside a Box is reported in the log, once for each guard.

    :param action_spaces: action space of each agent
    :param num_envs: number of copies E
    :param device: where the stacked actions go

    :raises TypeError: a space is no Box, Discrete, MultiDiscrete or MultiBinary
    """

    def __init__(self, action_spaces: Mapping[str, gymnasium.Space], num_envs: int, device: torch.device) -> None:
        self._names = list(action_spaces)
        self._num_envs = num_envs
        self._device = device
        self._groups = [_ActionGroup(n, action_spaces[n[0]], device) for n in group_agents(action_spaces)]
        self._stacked = {group.names for group in self._groups}
        self._warned = False

    def __call__(self, actions: Mapping[str, Tensor], where: str) -> Iterator[tuple[tuple[str, ...], Tensor]]:
        """Yield each group's names and checked actions ``[E, A, n]``: int64 counted from 0, or float32, newly made.

        :param where: the moment, for messages: "step 3"

        :raises EnvError: an agent is missing or unknown; a shape or type is wrong; a number is not finite or no choice
        """
        if not (isinstance(actions, AgentTensors) and actions.stacks.keys() == self._stacked):
            check_agents(actions, "actions", where, self._names)
        for group in self._groups:
            try:
                stack = stack_agents(actions, group.names)
            except (TypeError, RuntimeError):  # no tensors, or of unequal shapes
                self._name_culprit(actions, group, where)
                raise
            shape = (self._num_envs, len(group.names), group.width)
            if stack.shape != shape or stack.is_floating_point() == group.integer or stack.dtype == torch.bool:
                self._name_culprit(actions, group, where)
            if stack.device != self._device:
                stack = stack.to(self._device)
            yield group.names, self._check_values(stack.detach() if stack.requires_grad else stack, group, where)

    def _check_values(self, stack: Tensor, group: _ActionGroup, where: str) -> Tensor:
        if group.integer:
            if not _all_below(stack, group.fewest):
                wrong = (stack < 0) | (stack >= group.high)
                if not wrong.any():  # a MultiDiscrete space has more choices elsewhere
                    return stack.long()
                copy, agent, element = wrong.nonzero()[0].tolist()
                raise EnvError(
                    f"{where}: the action of agent {group.names[agent]!r} in copy {copy} is "
                    f"{stack[copy, agent].tolist()}; {group.space} allows 0 to {int(group.high[element]) - 1} at "
                    f"element {element}{group.note}"
                )
            return stack.long()
        stack = stack.float()
        check_finite(AgentTensors.single(group.names, stack), "action", where)
        clipped = torch.clamp(stack, group.low, group.high)
        if not self._warned and not torch.equal(clipped, stack):
            self._warned = True
            copy, agent, element = (clipped != stack).nonzero()[0].tolist()
            logger.warning(
                "%s: the action of agent %r in copy %d is %g at element %d, outside %s: it was clipped. From now on "
                "actions are clipped without another warning",
                *(where, group.names[agent], copy, stack[copy, agent, element].item(), element, group.space),
            )
        return clipped

    def _name_culprit(self, actions: Mapping[str, Tensor], group: _ActionGroup, where: str) -> None:
        shape = [self._num_envs, group.width]
        kind = "integer" if group.integer else "float"
        for name in group.names:
            value = actions[name]
            expected = f"expected {kind} tensor of shape {shape} for {group.space}"
            if not isinstance(value, Tensor):
                raise EnvError(f"{where}: the action of agent {name!r} is a {type(value).__name__}; {expected}")
            wrong_kind = value.is_floating_point() == group.integer or value.dtype == torch.bool
            if list(value.shape) != shape or wrong_kind:
                got = f"shape {list(value.shape)}, {value.dtype}"
                raise EnvError(f"{where}: the action of agent {name!r} has {got}; {expected}")


class _ActionGroup:
    """Agents with one action space, and that space's bounds as tensors."""

    def __init__(self, names: tuple[str, ...], space: gymnasium.Space, device: torch.device) -> None:
        self.names = names
        self.space = space
        self.width = action_width(space)
        self.integer = not isinstance(space, spaces.Box)
        self.note = ", counted from 0 whatever the space's start" if np.any(getattr(space, "start", 0)) else ""
        self.low = torch.zeros(self.width, device=device)
        if isinstance(space, spaces.Box):
            self.low = torch.as_tensor(space.low, dtype=torch.float32, device=device).reshape(-1)
            self.high = torch.as_tensor(space.high, dtype=torch.float32, device=device).reshape(-1)
        elif isinstance(space, spaces.MultiDiscrete):
            self.high = torch.as_tensor(space.nvec, dtype=torch.int64, device=device).reshape(-1)
        elif isinstance(space, spaces.Discrete):
            self.high = torch.tensor([int(space.n)], device=device)
        else:
            self.high = torch.full((self.width,), 2, device=device)  # of a MultiBinary
        self.fewest = int(self.high.min()) if self.integer else 0  # a number below it is a choice at every element
