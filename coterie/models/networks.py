"""Ready-made policies and critics: multilayer perceptrons with the initialisation that policy gradients like."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium
import torch
from torch import Tensor, nn

from coterie.models.base import Model
from coterie.models.layers import Tanh
from coterie.models.mixins import (
    CategoricalMixin,
    DeterministicMixin,
    GaussianMixin,
    MultiCategoricalMixin,
    TanhGaussianMixin,
)

__all__ = [
    "ACTIVATIONS",
    "CategoricalPolicy",
    "GaussianPolicy",
    "MultiCategoricalPolicy",
    "TanhGaussianPolicy",
    "Value",
    "mlp",
]

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "tanh": lambda: Tanh(inplace=True),  # it follows a linear layer, which does not need its output
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "leaky_relu": nn.LeakyReLU,
}

HIDDEN_GAIN = math.sqrt(2.0)
POLICY_GAIN = 0.01  # near-uniform first policies (Andrychowicz et al. 2021, arXiv 2006.05990, section 3.2)
VALUE_GAIN = 1.0


def mlp(
    inputs: int, outputs: int, hidden: Sequence[int] = (64, 64), activation: str = "tanh", head_gain: float = 1.0
) -> nn.Sequential:
    """Multilayer perceptron with orthogonal weights (gain sqrt 2, ``head_gain`` for the last layer) and zero biases.

    :raises ValueError: an unknown activation, or a layer without units
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation: expected one of {sorted(ACTIVATIONS)}, got {activation!r}")
    if any(width < 1 for width in (inputs, outputs, *hidden)):
        raise ValueError(
            f"expected layers of at least one unit, got inputs {inputs}, hidden {hidden}, outputs {outputs}"
        )
    layers: list[nn.Module] = []
    widths = [inputs, *hidden]
    for before, after in itertools.pairwise(widths):
        layers += [_orthogonal(nn.Linear(before, after), HIDDEN_GAIN), ACTIVATIONS[activation]()]
    layers.append(_orthogonal(nn.Linear(widths[-1], outputs), head_gain))
    return nn.Sequential(*layers)


def _orthogonal(layer: nn.Linear, gain: float) -> nn.Linear:
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


class _Perceptron(Model):
    """A perceptron on the model's input, with the agent's one-hot appended where asked for.

    :param hidden: widths of the hidden layers
    :param activation: a key of :data:`ACTIVATIONS`
    :param agent_ids: number of agents of the team, to append a one-hot agent id to the input; 0 to leave it out
    """

    def __init__(
        self,
        observation_space: gymnasium.Space | int | tuple[int, ...] | None,
        action_space: gymnasium.Space | int | tuple[int, ...] | None,
        device: str | torch.device | None,
        outputs: int,
        hidden: Sequence[int],
        activation: str,
        head_gain: float,
        agent_ids: int,
    ) -> None:
        Model.__init__(self, observation_space, action_space, device)
        self.uses_agent_id = agent_ids > 0
        self.net = mlp(self.num_observations + agent_ids, outputs, hidden, activation, head_gain).to(self.device)

    def _network(self, inputs: Mapping[str, Any]) -> Tensor:
        if not self.uses_agent_id:
            return self.net(inputs["states"])
        if inputs.get("agent_id") is None:
            raise KeyError(
                f"{type(self).__name__} was built with agent ids: pass inputs['agent_id'], a one-hot [B, agents]"
            )
        return self.net(torch.cat([inputs["states"], inputs["agent_id"]], dim=-1))


class _LogitsPolicy(_Perceptron):
    def __init__(
        self,
        observation_space: gymnasium.Space,
        action_space: gymnasium.Space,
        device: str | torch.device | None = None,
        *,
        hidden: Sequence[int] = (64, 64),
        activation: str = "tanh",
        agent_ids: int = 0,
    ) -> None:
        outputs = Model(None, action_space).num_actions
        _Perceptron.__init__(
            self, observation_space, action_space, device, outputs, hidden, activation, POLICY_GAIN, agent_ids
        )

    def compute(self, inputs: Mapping[str, Any], role: str = "") -> tuple[Any, ...]:
        return self._network(inputs), {}


class CategoricalPolicy(CategoricalMixin, _LogitsPolicy):
    """Perceptron policy for a Discrete action space."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        _LogitsPolicy.__init__(self, *args, **kwargs)
        CategoricalMixin.__init__(self)


class MultiCategoricalPolicy(MultiCategoricalMixin, _LogitsPolicy):
    """Perceptron policy for a MultiDiscrete action space."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        _LogitsPolicy.__init__(self, *args, **kwargs)
        MultiCategoricalMixin.__init__(self)


class _MeanPolicy(_Perceptron):
    def __init__(
        self,
        observation_space: gymnasium.Space,
        action_space: gymnasium.Space,
        device: str | torch.device | None = None,
        *,
        hidden: Sequence[int] = (64, 64),
        activation: str = "tanh",
        agent_ids: int = 0,
        initial_log_std: float = 0.0,
        state_dependent_std: bool = False,
    ) -> None:
        width = Model(None, action_space).num_actions
        outputs = 2 * width if state_dependent_std else width
        _Perceptron.__init__(
            self, observation_space, action_space, device, outputs, hidden, activation, POLICY_GAIN, agent_ids
        )
        self.state_dependent_std = state_dependent_std
        if state_dependent_std:
            head = self.net[-1]
            assert isinstance(head, nn.Linear)
            nn.init.constant_(head.bias[width:], initial_log_std)
        else:
            self.log_std_parameter = nn.Parameter(torch.full((width,), float(initial_log_std), device=self.device))

    def compute(self, inputs: Mapping[str, Any], role: str = "") -> tuple[Any, ...]:
        output = self._network(inputs)
        if self.state_dependent_std:
            mean, log_std = output.chunk(2, dim=-1)
            return mean, log_std, {}
        return output, self.log_std_parameter, {}


class GaussianPolicy(GaussianMixin, _MeanPolicy):
    """Perceptron policy for a Box: normals around the network's output, clipped to finite bounds for the environment."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        _MeanPolicy.__init__(self, *args, **kwargs)
        GaussianMixin.__init__(self, clip_actions=True)


class TanhGaussianPolicy(TanhGaussianMixin, _MeanPolicy):
    """Perceptron policy for a bounded Box: normals squashed into its bounds."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        _MeanPolicy.__init__(self, *args, **kwargs)
        TanhGaussianMixin.__init__(self)


class Value(DeterministicMixin, _Perceptron):
    """Perceptron critic: one value ``[B, 1]``."""

    def __init__(
        self,
        observation_space: gymnasium.Space,
        action_space: gymnasium.Space,
        device: str | torch.device | None = None,
        *,
        hidden: Sequence[int] = (64, 64),
        activation: str = "tanh",
        agent_ids: int = 0,
    ) -> None:
        _Perceptron.__init__(
            self, observation_space, action_space, device, 1, hidden, activation, VALUE_GAIN, agent_ids
        )
        DeterministicMixin.__init__(self)

    def compute(self, inputs: Mapping[str, Any], role: str = "") -> tuple[Any, ...]:
        return self._network(inputs), {}
