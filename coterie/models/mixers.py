"""Mixers: the value of a team's joint action from its agents' values, rising with each of them.

Where no agent's value can rise without the team's rising, what is best for each agent is best for the team (Rashid et al.
2018, arXiv 1803.11485). Hypernetworks make a mixer's weights of the state, so that this holds in every state while the mixture
itself may be any function of it. What they compute may be in reduced precision; the agents' values are mixed in their own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import gymnasium
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coterie.models.base import Model
from coterie.models.encoders import make_encoder
from coterie.models.mixins import computed_tensors

__all__ = ["AttentionMixer", "Mixer", "QMIXMixer"]


class Mixer(Model):
    """Base of mixers: write :meth:`compute`, which returns ``q_tot [B, 1], {}``::

        class WeightedSum(Mixer):
            def __init__(self, state_space, agents, device=None):
                Mixer.__init__(self, state_space, agents, device)
                self.weights = nn.Linear(self.num_observations, agents)

            def compute(self, inputs, role):
                weights = self.weights(inputs["states"]).exp()
                return (weights * inputs["q_values"]).sum(dim=-1, keepdim=True), {}

    It finds in ``inputs``: ``"q_values"`` ``[B, N]``, of the action of each agent, in the order of the team, 0 for agents that
    are not active; ``"states"`` ``[B, num_observations]``, flat; ``"active"``, bool ``[B, N]`` or None for everyone. Nothing
    makes sure that it is monotone: where it is not, agents that act greedily do not maximise it.

    Call :meth:`act`, or the mixer itself, which checks what goes in and what comes out.

    :param state_space: space of the state (or its flat size)
    :param agents: number N of agents of the team
    :param device: where parameters live; the CPU by default

    :raises ValueError: less than one agent, or an empty state
    """

    def __init__(
        self,
        state_space: gymnasium.Space | int | tuple[int, ...],
        agents: int,
        device: str | torch.device | None = None,
    ) -> None:
        Model.__init__(self, state_space, None, device)
        if agents < 1 or self.num_observations < 1:
            raise ValueError(
                f"{type(self).__name__}: expected at least one agent and a state of at least one number, got {agents} agents "
                f"and a state of size {self.num_observations}; without a state, the sum of the agents' values (VDN) needs no "
                "mixer"
            )
        self.agents = agents

    def act(self, inputs: Mapping[str, Any], role: str = "") -> tuple[Tensor, None, dict[str, Any]]:
        """Mix.

        :param inputs: ``"q_values"`` floating ``[B, N]``, ``"states"`` ``[B, num_observations]`` and optionally ``"active"``,
            bool ``[B, N]``: the values of agents with False count as 0, also where they are not a number, and get no gradient

        :return: the team's value ``[B, 1]``, of the dtype of the agents' values or a wider one; None; and the dict that
            ``compute`` returned

        :raises ValueError: inputs or an output of another shape, or masks that are not bool
        """
        q_values, states, active = inputs["q_values"], inputs["states"], inputs.get("active")
        self._check(q_values, states, active)
        if active is not None:
            q_values = torch.where(active, q_values, 0.0)
        output = self.compute({**inputs, "q_values": q_values, "active": active}, role)
        q_tot = computed_tensors(output, self)[0]
        if q_tot.shape != (len(q_values), 1):
            raise ValueError(
                f"{type(self).__name__}.compute returned a tensor of shape {list(q_tot.shape)}: expected the team's value "
                f"for each row, [{len(q_values)}, 1]"
            )
        if q_tot.dtype != q_values.dtype:
            q_tot = q_tot.to(torch.promote_types(q_tot.dtype, q_values.dtype))
        return q_tot, None, dict(output[-1]) if isinstance(output[-1], Mapping) else {}

    def _check(self, q_values: Tensor, states: Tensor, active: Tensor | None) -> None:
        name, wanted = type(self).__name__, (states.shape[0], self.agents)
        if states.dim() != 2 or states.shape[1] != self.num_observations:
            raise ValueError(f"{name}: expected states [B, {self.num_observations}], got {list(states.shape)}")
        if q_values.shape != wanted or not q_values.is_floating_point():
            raise ValueError(
                f"{name}: expected the values of {self.agents} agents for {states.shape[0]} states, floating {list(wanted)}, "
                f"got {q_values.dtype} {list(q_values.shape)}"
            )
        if active is not None and (active.dtype != torch.bool or active.shape != wanted):
            raise ValueError(
                f"{name}: expected 'active' to be None or bool {list(wanted)}, True for an agent whose value counts, got "
                f"{active.dtype} {list(active.shape)}"
            )

    def _zero_inputs(self) -> dict[str, Any]:
        q_values = torch.zeros(1, self.agents, device=self.device)
        return super()._zero_inputs() | {"q_values": q_values, "active": None}


class _Hypernetwork(Mixer):
    """What the ready-made mixers have in common: several small networks of the state whose first layers are one product.

    Weights start as PyTorch's linear layers do, as in the authors' code of QMIX: of one size, whatever is put side by side.
    Images in the state go through convolutions.
    """

    def _make_first(self, *widths: int) -> None:
        if min(widths) < 1:
            raise ValueError(f"{type(self).__name__}: expected layers of at least one unit, got widths {list(widths)}")
        self.encoder = make_encoder(self.observation_space, activation="relu")
        self.widths = widths
        self.first = nn.Linear(self.num_observations if self.encoder is None else self.encoder.size, sum(widths))

    def _first(self, states: Tensor) -> tuple[Tensor, ...]:
        """First layers ``[B, width]`` each, before any activation."""
        return self.first(states if self.encoder is None else self.encoder(states)).split(self.widths, dim=-1)


class QMIXMixer(_Hypernetwork):
    """The monotone network of QMIX (Rashid et al. 2018, arXiv 1803.11485, section 4)::

        q_tot = ELU(q |W1(s)| + b1(s)) |W2(s)| + V(s)

    W1 ``[N, embed]`` and W2 ``[embed, 1]`` come from hypernetworks of one layer, as in the paper, or of two with a ReLU between
    them, as in later versions of its code; b1 from one layer, and V from two with a ReLU.

    :param state_space: space of the state (or its flat size)
    :param agents: number N of agents of the team
    :param device: where parameters live; the CPU by default
    :param embed: width of the mixing network's hidden layer
    :param hypernet_layers: 1 or 2
    :param hypernet_hidden: width of the hidden layer of the hypernetworks of two layers

    :raises ValueError: another number of layers, a layer without units, less than one agent, or an empty state
    """

    def __init__(
        self,
        state_space: gymnasium.Space | int | tuple[int, ...],
        agents: int,
        device: str | torch.device | None = None,
        embed: int = 32,
        hypernet_layers: int = 2,
        hypernet_hidden: int = 64,
    ) -> None:
        Mixer.__init__(self, state_space, agents, device)
        if hypernet_layers not in (1, 2):
            raise ValueError(f"hypernet_layers: expected 1 or 2, got {hypernet_layers}")
        self.embed = embed
        two = hypernet_layers == 2
        widths = (hypernet_hidden, hypernet_hidden) if two else (agents * embed, embed)
        self._make_first(*widths, embed, embed)  # of W1, W2, V and b1
        self.w1 = nn.Linear(hypernet_hidden, agents * embed) if two else None
        self.w2 = nn.Linear(hypernet_hidden, embed) if two else None
        self.v = nn.Linear(embed, 1)
        self.to(self.device)

    def compute(self, inputs: Mapping[str, Any], role: str = "") -> tuple[Any, ...]:
        w1, w2, v, b1 = self._first(inputs["states"])
        if self.w1 is not None and self.w2 is not None:
            w1, w2 = self.w1(F.relu(w1)), self.w2(F.relu(w2))
        q_values = inputs["q_values"].unsqueeze(-1)
        # element by element: products this small take several times as long as batched matrices, and more so backwards
        hidden = (q_values * w1.abs().unflatten(-1, (self.agents, self.embed))).sum(dim=1) + b1
        return (F.elu(hidden) * w2.abs()).sum(dim=-1, keepdim=True) + self.v(F.relu(v)), {}


class AttentionMixer(_Hypernetwork):
    """A sum of the agents' values, weighted by attention from the state to the agents, after Qatten with weighted heads (Yang
    et al. 2020, arXiv 2002.03939)::

        q_tot = c(s) + sum over heads h of w_h(s) sum over agents i of lambda_ih(s) q_i
        lambda_ih = softmax over i of e_i . W_h e(s) / sqrt(embed),   w_h >= 0

    c, w (made positive by its absolute value) and the query ``W_h e(s)`` come from networks of two layers with a ReLU.

    Departures from the paper: its e_i are features of each agent's unit, which are parts of the state of that game. Here
    they are a learned linear map of the whole state for each agent, which can pick such parts out, whatever the state is.
    Where the paper has two matrices, of queries and of keys, there is the one that is their product. Heads have one hidden
    layer of the queries in common. Agents that are not active get no attention.

    :param state_space: space of the state (or its flat size)
    :param agents: number N of agents of the team
    :param device: where parameters live; the CPU by default
    :param embed: width of e_i, and of the hidden layer of c
    :param heads: number of heads
    :param hidden: width of the hidden layers of query and w

    :raises ValueError: a layer without units, less than one agent, or an empty state
    """

    def __init__(
        self,
        state_space: gymnasium.Space | int | tuple[int, ...],
        agents: int,
        device: str | torch.device | None = None,
        embed: int = 32,
        heads: int = 4,
        hidden: int = 64,
    ) -> None:
        Mixer.__init__(self, state_space, agents, device)
        if heads < 1:
            raise ValueError(f"heads: expected at least 1, got {heads}")
        self.embed = embed
        self.heads = heads
        self._make_first(agents * embed, hidden, hidden, embed)  # of e_i, query, w and c
        self.query = nn.Linear(hidden, heads * embed)
        self.w = nn.Linear(hidden, heads)
        self.c = nn.Linear(embed, 1)
        self.to(self.device)

    def compute(self, inputs: Mapping[str, Any], role: str = "") -> tuple[Any, ...]:
        q_values, active = inputs["q_values"], inputs.get("active")
        keys, query, w, c = self._first(inputs["states"])
        query = self.query(F.relu(query)).unflatten(-1, (self.heads, self.embed))
        scores = torch.bmm(keys.unflatten(-1, (self.agents, self.embed)), query.mT).to(q_values.dtype)  # [B, N, heads]
        if active is not None:  # with nobody there all weights are alike, and all values 0
            scores = torch.where(active.unsqueeze(-1), scores, torch.finfo(scores.dtype).min)
        attention = torch.softmax(scores / math.sqrt(self.embed), dim=1)
        weights = (attention * self.w(F.relu(w)).abs().unsqueeze(1)).sum(dim=-1)
        return (q_values * weights).sum(dim=-1, keepdim=True) + self.c(F.relu(c)), {}
