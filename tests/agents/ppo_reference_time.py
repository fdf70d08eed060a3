"""Parts of the slow reference of PPO: who was there when, what an action led to, advantages, and memories step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from coterie.models.base import Model

ACTIVE, WAITING, ABSENT = "active", "waiting", "absent"


@dataclass
class Masks:
    """What infos say about the states that they come with: bool ``[E, .]`` by agent; None where they say nothing."""

    active: Mapping[str, Tensor] | None = None
    waiting: Mapping[str, Tensor] | None = None
    allowed: Mapping[str, Tensor] | None = None

    def status(self, uid: str, e: int) -> str:
        """Whether an agent is to act in an environment, waits there, or is absent."""
        if self.active is None or bool(self.active[uid][e]):
            return ACTIVE
        return WAITING if self.waiting is not None and bool(self.waiting[uid][e]) else ABSENT

    def cleaned(self, states: Tensor, uid: str) -> Tensor:
        """An agent's observations ``[E, F]`` in float64, zeros where it is absent."""
        rows = [
            torch.zeros_like(row) if self.status(uid, e) == ABSENT else row for e, row in enumerate(states.double())
        ]
        return torch.stack(rows)

    def choices(self, uid: str) -> Tensor | None:
        """What an agent may do, bool ``[E, n]``; None where it may do everything."""
        return None if self.allowed is None else self.allowed.get(uid)


@dataclass
class Step:
    """What one step of all environments was: tensors ``[E, .]`` by agent, as they crossed the library's border."""

    timestep: int
    timesteps: int
    states: dict[str, Tensor]
    actions: dict[str, Tensor]
    log_prob: dict[str, Tensor]
    rewards: dict[str, Tensor]
    next_states: dict[str, Tensor]
    terminated: dict[str, Tensor]
    truncated: dict[str, Tensor]
    shared_states: Tensor
    shared_next_states: Tensor
    final_states: dict[str, Tensor] | None = None
    final_shared_states: Tensor | None = None
    masks: Masks = field(default_factory=Masks)
    next_masks: Masks = field(default_factory=Masks)

    def over(self, e: int) -> bool:
        """Whether an environment's episode ended in this step: all agents are done."""
        return all(bool(self.terminated[uid][e] | self.truncated[uid][e]) for uid in self.terminated)

    def struck(self, uid: str, e: int) -> bool:
        """Whether the time limit ended the game of an agent that was in it."""
        here = self.masks.status(uid, e) != ABSENT
        return here and bool(self.truncated[uid][e]) and not bool(self.terminated[uid][e])

    def last_masks(self) -> Masks:
        """Who is there in the last states of those whom the time limit struck: all of these count as active.

        When an episode is over, everybody who was in it and did not die in this very step. When others go on, everybody who
        is in the game next, and those who were struck.
        """
        there: dict[str, Tensor] = {}
        for uid in self.terminated:
            seen = []
            for e in range(len(self.terminated[uid])):
                if self.over(e):
                    dies = bool(self.terminated[uid][e])
                    seen.append([self.masks.status(uid, e) != ABSENT and not dies])
                else:
                    seen.append([self.next_masks.status(uid, e) != ABSENT or self.struck(uid, e)])
            there[uid] = torch.tensor(seen)
        return Masks(active=there)


# ---- what actions led to -----------------------------------------------------------------------------------------------


@dataclass
class Life:
    """What happened to an agent in one environment, row by row; nothing happens to it where it is absent."""

    status: list[str]
    status_after: str  # on the state after the last row
    rewards: list[float]
    terminated: list[bool]
    truncated: list[bool]
    missed: list[bool] = field(default_factory=list)  # rows in which the team's episode ended without it

    def done(self, t: int) -> bool:
        return self.terminated[t] or self.truncated[t] or self.missed_end(t)

    def missed_end(self, t: int) -> bool:
        return bool(self.missed) and self.missed[t]


@dataclass
class Outcome:
    """What an action led to."""

    row: int  # of the action
    end: int  # the last row that belongs to it
    kind: str  # "next": an own action in a later row, "beyond": one after the last row, "unknown": neither, or how it ended
    reward: float  # all that was earned from the action's row to the end's

    @property
    def counts(self) -> bool:
        """Whether the rollout shows all that the action led to."""
        return self.kind != "unknown"


def outcomes(life: Life) -> list[Outcome]:
    """What the actions led to, in the order of time."""
    known: list[Outcome] = []
    acted: int | None = None
    earned = 0.0
    for t, status in enumerate(life.status):
        if status == ACTIVE:
            if acted is not None:
                known.append(Outcome(acted, t - 1, "next", earned))
            acted, earned = t, 0.0
        earned += life.rewards[t]
        if acted is not None and life.done(t):
            final = life.terminated[t] or life.missed_end(t)  # who had left has nothing more to come
            known.append(Outcome(acted, t, "terminated" if final else "truncated", earned))
            acted = None
    if acted is not None:
        kind = "beyond" if life.status_after == ACTIVE else "unknown"
        known.append(Outcome(acted, len(life.status) - 1, kind, earned))
    return known


def advantages_of(
    known: Sequence[Outcome],
    values: Sequence[float],
    final_value: Callable[[int], float],
    value_beyond: float,
    discount: float,
    decay: float,
    bootstrap: bool,
) -> dict[int, float]:
    """Advantages by row, one action after the other, from the last to the first.

    ``delta = r + gamma V(successor) - V(s)``, ``A = delta + gamma lambda A(next own action)``: without the value of the
    successor where there is none to count on, without the next action's advantage where there is none in the episode or
    where too little is known of what it led to: such an action has no advantage of its own either.

    :param values: of the agent's states, row by row
    :param final_value: value of the last state of the episode that was truncated in a row
    :param value_beyond: value of the state after the last row
    """
    advantages: dict[int, float] = {}
    following = 0.0
    for outcome in reversed(known):
        if not outcome.counts:
            following = 0.0
            continue
        if outcome.kind == "next":
            successor = values[outcome.end + 1]
        elif outcome.kind == "beyond":
            successor = value_beyond
        elif outcome.kind == "truncated" and bootstrap:
            successor = final_value(outcome.end)
        else:
            successor = 0.0
        delta = outcome.reward + discount * successor - values[outcome.row]
        following = delta + (discount * decay * following if outcome.kind == "next" else 0.0)
        advantages[outcome.row] = following
    return advantages


# ---- memories ----------------------------------------------------------------------------------------------------------

#: one sequence's states, ``[layers, 1, hidden]`` each
Memory = list[Tensor]


def memory_sizes(model: Model) -> list[tuple[int, int]]:
    """``(layers, hidden)`` of each of a model's state tensors; none of a feed-forward one."""
    sizes = model.get_specification().get("rnn", {}).get("sizes", [])
    return [(size[0], size[-1]) for size in sizes]


def sequence_length(model: Model) -> int | None:
    """The length of the sequences that a recurrent model learns from."""
    return model.get_specification().get("rnn", {}).get("sequence_length")


def blank_memory(model: Model) -> Memory:
    """What a model remembers at the start of an episode."""
    return [torch.zeros(layers, 1, hidden, dtype=torch.float64) for layers, hidden in memory_sizes(model)]


@dataclass
class Walk:
    """A model run along one sequence."""

    outputs: list[tuple[Tensor, ...]]  # of each row, ``[1, n]`` each
    before: list[Memory]  # of each row
    after: list[Memory]  # of each row, whether or not something ended in it
    last: Memory  # what the next row would start from


def walk(
    call: Callable[[Tensor, Memory], tuple[tuple[Tensor, ...], Memory]],
    rows: Sequence[Tensor],
    memory: Memory,
    frozen: Sequence[bool],
    ended: Sequence[bool],
) -> Walk:
    """Run a model row by row.

    :param call: ``(x [1, F], memory) -> (outputs, memory)``
    :param frozen: rows that leave the memory as it was
    :param ended: rows after which it is zero
    """
    result = Walk([], [], [], memory)
    for x, stays, ends in zip(rows, frozen, ended, strict=True):
        result.before.append(result.last)
        output, new = call(x.unsqueeze(0), result.last)
        new = result.last if stays else new
        result.outputs.append(output)
        result.after.append(new)
        result.last = [torch.zeros_like(state) for state in new] if ends else new
    return result


class Cells(nn.Module):
    """Layers of torch's GRU or LSTM cells, one step at a time, with the parameters of one of the library's layers.

    It takes that layer's place in a copy of a ready-made model, whose other layers are plain.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        for name, parameter in layer.named_parameters():
            self.register_parameter(name, parameter)
        self.sizes = getattr(layer, "sizes", None)  # what the model's specification says of it
        self.layers = sum(name.startswith("weight_hh") for name, _ in layer.named_parameters())
        gates = self.get_parameter("weight_hh_l0").shape[0] // self.get_parameter("weight_hh_l0").shape[1]
        self.lstm = gates == 4

    def forward(self, x: Tensor, inputs: Mapping[str, Any]) -> tuple[Tensor, list[Tensor]]:
        assert inputs.get("length", 1) == 1
        memory: list[Tensor] = inputs["rnn"]
        new: list[list[Tensor]] = [[] for _ in memory]
        for layer in range(self.layers):
            names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            weights = [self.get_parameter(f"{name}_l{layer}") for name in names]
            if self.lstm:
                states = torch.lstm_cell(x, [memory[0][layer], memory[1][layer]], *weights)
            else:
                states = (torch.gru_cell(x, memory[0][layer], *weights),)
            for kept, state in zip(new, states, strict=True):
                kept.append(state)
            x = states[0]
        return x, [torch.stack(states) for states in new]


def with_plain_cells(model: nn.Module) -> None:
    """Put :class:`Cells` in the place of the library's recurrent layers."""
    for name, child in model.named_children():
        if type(child).__module__.startswith("coterie") and hasattr(child, "weight_hh_l0"):
            setattr(model, name, Cells(child))
        else:
            with_plain_cells(child)
