"""Mixers in the slow reference: sums over agents, units and heads, one number at a time; and one written by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from coterie.models.mixers import Mixer


class Crossing(Mixer):
    """Weights that depend on the state and on who is there; with a bonus for each of these."""

    def __init__(self, state_space: Any, agents: int) -> None:
        Mixer.__init__(self, state_space, agents)
        self.weights, self.bonus = nn.Linear(self.num_observations, agents), nn.Parameter(torch.zeros(1))

    def compute(self, inputs: Mapping[str, Any], role: str = "") -> tuple[Any, ...]:
        q_values, active = inputs["q_values"], inputs["active"]
        there = torch.ones_like(q_values) if active is None else active.to(q_values.dtype)
        total = (self.weights(inputs["states"]).exp() * q_values).sum(dim=-1, keepdim=True)
        return total + self.bonus * there.sum(dim=-1, keepdim=True), {}


def _layer(layer: nn.Linear, x: Sequence[Tensor]) -> list[Tensor]:
    return list((layer.weight @ torch.stack(list(x)) + layer.bias).unbind())


def _relu(x: Sequence[Tensor]) -> list[Tensor]:
    return [value if float(value.detach()) > 0 else 0.0 * value for value in x]


def _heads(mixer: Any, state: Tensor) -> list[list[Tensor]]:
    """First layers of the small networks."""
    outputs, parts = mixer.first.weight @ state + mixer.first.bias, []
    for width in mixer.widths:
        parts.append(list(outputs[:width]))
        outputs = outputs[width:]
    return parts


def _qmix(mixer: Any, q: Sequence[Tensor | None], state: Tensor) -> Tensor:
    """``ELU(q |W1(s)| + b1(s)) |W2(s)| + V(s)``."""
    w1, w2, v, b1 = _heads(mixer, state)
    if mixer.w1 is not None:
        w1, w2 = _layer(mixer.w1, _relu(w1)), _layer(mixer.w2, _relu(w2))
    total = _layer(mixer.v, _relu(v))[0]
    for j in range(mixer.embed):
        hidden = b1[j]
        for i, value in enumerate(q):
            if value is not None:
                hidden = hidden + value * w1[i * mixer.embed + j].abs()
        hidden = hidden if float(hidden.detach()) > 0 else hidden.exp() - 1
        total = total + hidden * w2[j].abs()
    return total


def _attention(mixer: Any, q: Sequence[Tensor | None], state: Tensor) -> Tensor:
    """``c(s) + sum_h w_h(s) sum_i softmax_i(e_i . u_h(s) / sqrt(embed)) q_i``, over agents with a part in it."""
    keys, query, w, c = _heads(mixer, state)
    queries, importance = _layer(mixer.query, _relu(query)), _layer(mixer.w, _relu(w))
    total = _layer(mixer.c, _relu(c))[0]
    there = [i for i, value in enumerate(q) if value is not None]
    if not there:
        return total
    size = mixer.embed
    for h in range(mixer.heads):
        exponents = {}
        for i in there:
            score = sum(keys[i * size + d] * queries[h * size + d] for d in range(size)) / math.sqrt(size)
            exponents[i] = score.exp()  # type: ignore[union-attr]
        whole = sum(exponents.values())
        for i in there:
            value = q[i]
            assert value is not None
            total = total + importance[h].abs() * exponents[i] / whole * value
    return total


def _crossing(mixer: Any, q: Sequence[Tensor | None], state: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    weights = _layer(mixer.weights, list(state))
    for weight, value in zip(weights, q, strict=True):
        if value is not None:
            total = total + weight.exp() * value + mixer.bonus[0]
    return total


RULES = {"QMIXMixer": _qmix, "AttentionMixer": _attention, "Crossing": _crossing}


def mix(mixer: nn.Module | None, q: Sequence[Tensor | None], state: Tensor | None) -> Tensor:
    """The team's value, a number.

    :param mixer: None for the sum
    :param q: the value of each agent of the team, in its order; None for one without a part in it
    """
    if mixer is None:
        return sum((value for value in q if value is not None), torch.zeros((), dtype=torch.float64))
    assert state is not None
    return RULES[type(mixer).__name__](mixer, q, state)
