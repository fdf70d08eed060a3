"""Critics of whole teams that treat agents as a set: pooled embeddings, or attention between agents.

Both give every agent a value of its own from all agents' observations, do not depend on the order of agents of a kind, and
have as many parameters for ten agents as for two.

Sources: the mean over the others is the pooling of Deep Sets (Zaheer et al. 2017, arXiv 1703.06114); attention is that of
Vaswani et al. 2017 (arXiv 1706.03762), between agents as in MAAC (Iqbal and Sha 2019, arXiv 1810.02912).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor, nn

from coterie.models.base import Model
from coterie.models.encoders import CNN, make_encoder
from coterie.models.mixins import DeterministicMixin
from coterie.models.perceptrons import VALUE_GAIN, layers, mlp, orthogonal
from coterie.spaces import flat_size

__all__ = ["POOLINGS", "TeamValue"]

POOLINGS = ("mean", "attention")


class TeamValue(DeterministicMixin):
    """Values of all agents of a team ``[B, A]`` from their observations, one after the other, ``[B, sum of sizes]``.

    Agents of equal observation spaces are of one kind. An agent's observation is embedded by the network of its kind; what
    the others embed is pooled; the head of its kind makes a value of the two. Agents that are not present are left out of
    the pool, whatever they observe, and their own values mean nothing.

    A state dict can be loaded into a critic for another number of agents of the same kinds (named in the same order).

    :param observation_spaces: of every agent of the team, in the team's order
    :param pooling: ``"mean"`` over the others, or multi-head ``"attention"`` over all agents
    :param hidden: widths of the layers that embed an observation; heads have one hidden layer of the last of these widths
    :param activation: a key of :data:`coterie.models.perceptrons.ACTIVATIONS`
    :param heads: number of attention heads, a divisor of the last width
    :param cnn: output channels of the convolutions that images go through; empty to flatten images
    :param device: where parameters live; the CPU by default

    :raises ValueError: an unknown pooling, no hidden layer, or a width that is no multiple of the number of heads
    """

    values_per_agent = True
    needs_observations = True
    by_kind: Tensor
    by_team: Tensor
    columns: Tensor

    def __init__(
        self,
        observation_spaces: Mapping[str, gymnasium.Space],
        pooling: str = "mean",
        hidden: Sequence[int] = (64, 64),
        activation: str = "tanh",
        heads: int = 4,
        cnn: Sequence[int] = CNN,
        device: str | torch.device | None = None,
    ) -> None:
        if pooling not in POOLINGS:
            raise ValueError(f"pooling: expected one of {list(POOLINGS)}, got {pooling!r}")
        if not hidden or not observation_spaces:
            raise ValueError(
                f"expected agents and at least one hidden layer, got {len(observation_spaces)} agents and hidden {hidden}"
            )
        width = hidden[-1]
        if pooling == "attention" and (heads < 1 or width % heads):
            raise ValueError(f"heads: expected a divisor of the width {width}, got {heads}")
        agents = list(observation_spaces.values())
        sizes = [flat_size(space) for space in agents]
        Model.__init__(self, spaces.Box(-np.inf, np.inf, (sum(sizes),), np.float32), None, device)
        DeterministicMixin.__init__(self)
        self.pooling = pooling
        self.heads = heads
        kinds = [space for i, space in enumerate(agents) if space not in agents[:i]]
        members = [[i for i, space in enumerate(agents) if space == kind] for kind in kinds]
        self._counts = [len(own) for own in members]
        self._keep_order(members, sizes)
        self.embeddings = nn.ModuleList(self._embedding(kind, hidden, activation, cnn) for kind in kinds)
        if pooling == "attention":
            self.query, self.key, self.value = (orthogonal(nn.Linear(width, width, bias=False), 1.0) for _ in range(3))
        self.value_heads = nn.ModuleList(mlp(2 * width, 1, (width,), activation, VALUE_GAIN) for _ in kinds)
        self.to(self.device)

    @staticmethod
    def _embedding(space: gymnasium.Space, hidden: Sequence[int], activation: str, cnn: Sequence[int]) -> nn.Module:
        encoder = make_encoder(space, cnn, activation)
        if encoder is None:
            return layers(flat_size(space), hidden, activation)
        return nn.Sequential(encoder, *layers(encoder.size, hidden, activation))

    def _keep_order(self, members: Sequence[Sequence[int]], sizes: Sequence[int]) -> None:
        """Where things stand: inside, agents are ordered by kind. None of this is a part of the state dict."""
        by_kind = [agent for own in members for agent in own]
        starts = np.cumsum([0, *sizes])
        columns = [column for agent in by_kind for column in range(starts[agent], starts[agent + 1])]
        orders = {"by_kind": by_kind, "by_team": np.argsort(by_kind).tolist(), "columns": columns}
        for name, order in orders.items():
            self.register_buffer(name, torch.tensor(order), persistent=False)
        self._sizes = [sizes[own[0]] for own in members]
        self._in_order = by_kind == sorted(by_kind)

    def compute(self, inputs: Mapping[str, Any], role: str = "") -> tuple[Any, ...]:
        """Values ``[B, A]`` of ``inputs["states"]`` ``[B, sum of sizes]``.

        :raises ValueError: another number of columns, or ``inputs["present"]`` that is not ``[B, A]``
        """
        states, present = inputs["states"], inputs.get("present")
        agents = sum(self._counts)
        if states.shape[-1] != self.num_observations or (
            present is not None and present.shape != (len(states), agents)
        ):
            raise ValueError(
                f"expected all observations of {agents} agents [B, {self.num_observations}] and present [B, {agents}], got "
                f"{list(states.shape)} and {None if present is None else list(present.shape)}"
            )
        if not self._in_order:
            states = states[:, self.columns]
            present = None if present is None else present[:, self.by_kind]
        own = self._embedded(states, present)
        pooled = self._attended(own, present) if self.pooling == "attention" else _mean_of_others(own, present)
        parts = torch.cat([own, pooled], dim=-1).split(self._counts, dim=1)
        values = torch.cat([head(part) for head, part in zip(self.value_heads, parts, strict=True)], dim=1).squeeze(-1)
        return values if self._in_order else values[:, self.by_team], {}

    def _embedded(self, states: Tensor, present: Tensor | None) -> Tensor:
        """Embeddings ``[B, A, D]``, agents by kind; zeros go in for those that are not present."""
        widths = [count * size for count, size in zip(self._counts, self._sizes, strict=True)]
        masks = [None] * len(widths) if present is None else present.unsqueeze(-1).split(self._counts, dim=1)
        parts = []
        for part, mask, size, embed in zip(
            states.split(widths, dim=-1), masks, self._sizes, self.embeddings, strict=True
        ):
            x = part.unflatten(-1, (-1, size))
            x = x if mask is None else torch.where(mask, x, 0.0)
            parts.append(embed(x.flatten(0, 1)).unflatten(0, x.shape[:2]))
        return torch.cat(parts, dim=1)

    def _attended(self, x: Tensor, present: Tensor | None) -> Tensor:
        """What each agent's attention gathers ``[B, A, D]`` from those who are present and from itself."""
        query, key, value = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        mask = None
        if present is not None:  # an agent always sees itself: a softmax over nobody is not a number
            mask = (present.unsqueeze(1) | torch.eye(x.shape[1], dtype=torch.bool, device=x.device)).unsqueeze(1)
        gathered = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return gathered.transpose(1, 2).flatten(2)

    def output_layers(self) -> list[nn.Linear]:
        return [
            layer for head in self.value_heads for layer in list(head.modules())[-1:] if isinstance(layer, nn.Linear)
        ]


def _mean_of_others(x: Tensor, present: Tensor | None) -> Tensor:
    """For each agent the mean ``[B, A, D]`` of the other present agents' ``x``; zeros where there is none."""
    if present is None:
        return (x.sum(dim=1, keepdim=True) - x) / max(x.shape[1] - 1, 1)
    counted = present.unsqueeze(-1).to(x.dtype)
    x = x * counted
    others = (counted.sum(dim=1, keepdim=True) - counted).clamp_min(1.0)
    return (x.sum(dim=1, keepdim=True) - x) / others
