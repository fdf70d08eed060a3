"""Teammates that do not learn: a function in place of a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import torch
from gymnasium import spaces
from torch import Tensor

from coterie.models.base import Model
from coterie.spaces import action_width

__all__ = ["ScriptedPolicy"]

#: how far actions may leave a Box by rounding; they are clipped to it
TOLERANCE = 1e-5


class ScriptedPolicy(Model):
    """A policy without parameters, for agents that act by a rule and do not learn.

    :param observation_space: space of the agent's observations
    :param action_space: space of the agent's actions
    :param function: called with observations ``[E, F]`` and action masks bool ``[E, n]`` (None where the environment has
        none); returns actions as the environment takes them: integers ``[E, 1]`` for Discrete, ``[E, k]`` for MultiDiscrete,
        ``[E, n]`` for MultiBinary, floats ``[E, n]`` for a Box
    :param device: where actions are wanted; the CPU by default
    """

    def __init__(
        self,
        observation_space: gymnasium.Space,
        action_space: gymnasium.Space,
        function: Callable[[Tensor, Tensor | None], Tensor],
        device: str | torch.device | None = None,
    ) -> None:
        super().__init__(observation_space, action_space, device)
        if not callable(function):
            raise TypeError(f"expected a function (states, action_masks) -> actions, got {type(function).__name__}")
        self.function = function
        self._width = action_width(action_space)
        self._name = getattr(function, "__name__", type(function).__name__)

    def act(self, inputs: Mapping[str, Any], role: str = "") -> tuple[Tensor, None, dict[str, Any]]:
        """The function's actions ``[E, n]``, without a log-probability."""
        actions = self.choose(inputs["states"], inputs.get("action_masks"))
        return actions, None, {"mean_actions": actions}

    @torch.no_grad()
    def choose(self, states: Tensor, action_masks: Tensor | None = None) -> Tensor:
        """Call the function, and check what it returns.

        :param states: observations ``[E, F]``
        :param action_masks: bool ``[E, n]``, True where allowed

        :return: actions ``[E, n]``, int64 or float32

        :raises TypeError: no tensor, or one of the wrong kind of numbers
        :raises ValueError: another shape, or actions outside of the action space
        """
        actions = self.function(states, action_masks)
        expected = [states.shape[0], self._width]
        if not isinstance(actions, Tensor):
            raise TypeError(f"{self._name} returned {type(actions).__name__}: expected a tensor of actions {expected}")
        if list(actions.shape) != expected:
            raise ValueError(
                f"{self._name} returned actions of shape {list(actions.shape)}: expected {expected} for {self.action_space}"
            )
        continuous = isinstance(self.action_space, spaces.Box)
        if continuous != actions.dtype.is_floating_point or actions.dtype.is_complex:
            raise TypeError(
                f"{self._name} returned actions of {actions.dtype}: expected {'floats' if continuous else 'integers'} for "
                f"{self.action_space}"
            )
        actions = actions.to(self.device, torch.float32 if continuous else torch.int64)
        low, high = self._range()
        slack = TOLERANCE if continuous else 0
        outside = ~((actions >= low - slack) & (actions <= high + slack))  # also where they are not numbers
        if bool(outside.any()):
            row, column = (int(i) for i in outside.nonzero()[0])
            raise ValueError(
                f"{self._name} returned {actions[row].tolist()} for environment {row}: expected entry {column} in "
                f"[{low[column].item()}, {high[column].item()}] for {self.action_space}"
            )
        return torch.clamp(actions, low, high)

    def _range(self) -> tuple[Tensor, Tensor]:
        """Smallest and largest action ``[n]``."""
        bounds = self.box_bounds()
        if bounds is not None:
            return bounds
        space = self.action_space
        if isinstance(space, spaces.MultiDiscrete):
            high = torch.as_tensor(space.nvec.ravel() - 1, device=self.device)
        else:
            choices = int(space.n) if isinstance(space, spaces.Discrete) else 2
            high = torch.full((self._width,), choices - 1, device=self.device)
        return torch.zeros_like(high), high
