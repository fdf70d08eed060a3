"""Multilayer perceptrons with the initialisation that policy gradients like."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

from torch import nn

from coterie.models.layers import Tanh
from coterie.models.low_precision import Perceptron

__all__ = ["ACTIVATIONS", "HIDDEN_GAIN", "POLICY_GAIN", "VALUE_GAIN", "activation_named", "layers", "mlp", "orthogonal"]

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

_Layer = TypeVar("_Layer", nn.Linear, nn.Conv2d)


def mlp(
    inputs: int, outputs: int, hidden: Sequence[int] = (64, 64), activation: str = "tanh", head_gain: float = 1.0
) -> nn.Sequential:
    """Multilayer perceptron with orthogonal weights (gain sqrt 2, ``head_gain`` for the last layer) and zero biases.

    :raises ValueError: an unknown activation, or a layer without units
    """
    if any(width < 1 for width in (inputs, outputs, *hidden)):
        raise ValueError(
            f"expected layers of at least one unit, got inputs {inputs}, hidden {hidden}, outputs {outputs}"
        )
    below = layers(inputs, hidden, activation)
    return Perceptron(*below, orthogonal(nn.Linear([inputs, *hidden][-1], outputs), head_gain))


def layers(inputs: int, hidden: Sequence[int], activation: str) -> nn.Sequential:
    """The hidden layers of :func:`mlp`, each with its activation.

    :raises ValueError: an unknown activation, or a layer without units
    """
    make = activation_named(activation)
    if any(width < 1 for width in (inputs, *hidden)):
        raise ValueError(f"expected layers of at least one unit, got inputs {inputs}, hidden {hidden}")
    modules: list[nn.Module] = []
    for before, after in itertools.pairwise([inputs, *hidden]):
        modules += [orthogonal(nn.Linear(before, after), HIDDEN_GAIN), make()]
    return nn.Sequential(*modules)


def activation_named(name: str) -> Callable[[], nn.Module]:
    """What makes the activation of a name.

    :raises ValueError: an unknown name
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"activation: expected one of {sorted(ACTIVATIONS)}, got {name!r}")
    return ACTIVATIONS[name]


def orthogonal(layer: _Layer, gain: float) -> _Layer:
    """Give a layer orthogonal weights and zero biases."""
    nn.init.orthogonal_(layer.weight, gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
