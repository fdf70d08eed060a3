"""What one group leaves behind in a rollout, and what an update reads of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TypeVar

import gymnasium
import torch
from torch import Tensor

from coterie.agents.group_networks import CriticInput, Recall, select_rows
from coterie.agents.groups import Group
from coterie.memories.base import Memory, Size

__all__ = [
    "Batch",
    "CriticBatch",
    "Rollout",
    "Successors",
    "Truncation",
    "as_sequences",
    "minibatches",
    "rollout_tensors",
]

SomeSequences = TypeVar("SomeSequences", bound="_Sequences")

#: masks ``[T, E, A, n]`` that are stored from the first step on that has them, and what they are before it
MASKS = ("active", "present", "action_masks")


#: bytes of states up to which an epoch is shuffled as a whole: minibatches are then slices, for one copy of the rollout
SHUFFLED_AT_ONCE = 2**26


def as_sequences(x: Tensor, length: int) -> Tensor:
    """Cut ``[T, E, ...]`` into C chunks of ``length`` steps: ``[L, C * E, ...]``, or ``[T * E, ...]`` where it is 1.

    The last chunk is filled up with zeros (False) where ``length`` does not divide T.
    """
    if length == 1:
        return x.flatten(0, 1)
    missing = -x.shape[0] % length
    if missing:
        x = torch.cat([x, x.new_zeros(missing, *x.shape[1:])])
    return x.unflatten(0, (-1, length)).transpose(0, 1).flatten(1, 2)


class _Sequences:
    """Sequences of a rollout as an update sees them, rows ``[N, ...]`` or, of L > 1 steps each, ``[L, N, ...]``."""

    states: Tensor
    length: int

    @property
    def sequences(self) -> int:
        """Number of sequences N."""
        return self.states.shape[0 if self.length == 1 else 1]

    def take(self: SomeSequences, index: Tensor | slice) -> SomeSequences:
        """The sequences of one minibatch, as rows ``[L * M, ...]`` in order of time; views, for a slice of single rows."""
        return self._each(lambda x: select_rows(x, index, self.length), lambda recall: recall.take(index))

    def shuffled(self: SomeSequences, order: Tensor) -> SomeSequences:
        """All sequences in another order."""
        dim = 0 if self.length == 1 else 1
        return self._each(lambda x: x.index_select(dim, order), lambda recall: recall.shuffled(order))

    def _each(
        self: SomeSequences, of_tensor: Callable[[Tensor], Tensor], of_recall: Callable[[Recall], Recall]
    ) -> SomeSequences:
        changed = {}
        for entry in fields(self):  # type: ignore[arg-type]
            value = getattr(self, entry.name)
            if isinstance(value, Tensor):
                value = of_tensor(value)
            elif isinstance(value, Recall):
                value = of_recall(value)
            changed[entry.name] = value
        return type(self)(**changed)


@dataclass
class Batch(_Sequences):
    """What a group's agents did and what came of it, see :class:`_Sequences`."""

    states: Tensor  # [N, A, F], normalised
    actions: Tensor  # [N, A, k], latent
    log_prob: Tensor  # [N, A, 1]
    advantages: Tensor  # [N, A, 1], standardised
    values: Tensor  # [N, A, 1], as the critic predicted them
    returns: Tensor  # [N, A, 1], on the scale of the critic's predictions
    mask: Tensor | None = None  # bool [N, A, 1], what counts; None for everything
    action_masks: Tensor | None = None  # bool [N, A, n]
    recall: Recall | None = None  # of recurrent policies
    length: int = 1


@dataclass
class CriticBatch(_Sequences):
    """What the critics of a critic group see, see :class:`_Sequences`; one agent where it is the same for all."""

    states: Tensor  # [N, A or 1, F], normalised
    present: Tensor | None = None  # bool [N, agents of the team]
    recall: Recall | None = None  # of recurrent critics
    length: int = 1


def minibatches(
    batches: Sequence[Batch], seen: Sequence[CriticBatch], parts: int
) -> Iterator[tuple[list[Batch], list[CriticBatch]]]:
    """The minibatches of one epoch, shuffled anew.

    :param batches: those of a learner's groups
    :param seen: those of its critics
    :param parts: number of minibatches, which differ by one sequence at most
    """
    order = torch.randperm(batches[0].sequences, device=batches[0].states.device)
    pieces: Sequence[Tensor | slice] = order.tensor_split(parts)
    if sum(part.states.nbytes for part in (*batches, *seen)) <= SHUFFLED_AT_ONCE:
        batches, seen = [batch.shuffled(order) for batch in batches], [part.shuffled(order) for part in seen]
        ends = list(itertools.accumulate(map(len, order.tensor_split(parts)), initial=0))
        pieces = [slice(start, end) for start, end in itertools.pairwise(ends)]
    for piece in pieces:
        yield [batch.take(piece) for batch in batches], [part.take(piece) for part in seen]


@dataclass(frozen=True)
class Truncation:
    """Where a time limit struck: at ``row``, in the environments ``envs`` ``[N]``, the ``agents`` (bool ``[N, A, 1]``) of a
    critic group; ``critic`` is what its critics saw last.
    """

    row: int
    envs: Tensor
    critic: CriticInput
    agents: Tensor


@dataclass
class Successors:
    """What critics of a critic group see at successors that are no rows of the rollout.

    The successor of a step is the next row's state, but for two: that of the last row, and those of steps at which a time
    limit cut an episode short, where the next row already shows another episode.
    """

    last: CriticInput | None = None
    truncations: list[Truncation] = field(default_factory=list)


def rollout_tensors(group: Group, log_prob_width: int) -> dict[str, tuple[Size, torch.dtype]]:
    """Size of a row and dtype of all tensors of a group but masks.

    :param log_prob_width: number of log-probabilities of an action
    """
    actions = torch.float32 if isinstance(group.action_space, gymnasium.spaces.Box) else torch.int64
    columns = {
        "states": (group.observation_width, torch.float32),
        "actions": (group.action_width, actions),
        "log_prob": (log_prob_width, torch.float32),
        **dict.fromkeys(("terminated", "truncated"), (1, torch.bool)),
        **dict.fromkeys(("rewards", "values", "returns", "advantages"), (1, torch.float32)),
    }
    return {name: ((group.size, width), dtype) for name, (width, dtype) in columns.items()}


class Rollout:
    """Storage ``[T, E, A, ...]`` of one group.

    :param group: whose rollout it is
    :param rows: number of steps T
    :param num_envs: number of environments E
    :param log_prob_width: number of log-probabilities of an action, 1 unless policies don't sum over dimensions
    :param length: number of steps of the chunks that recurrent models learn from, 1 without any
    :param device: where it is stored
    """

    def __init__(
        self, group: Group, rows: int, num_envs: int, log_prob_width: int, length: int, device: torch.device
    ) -> None:
        self.names = group.names
        self.length = min(length, rows)
        self.memory = Memory(rows, num_envs, device)
        for name, (size, dtype) in rollout_tensors(group, log_prob_width).items():
            self.memory.create_tensor(name, size, dtype)
        self._policy_states: list[Tensor] = []  # [E, A, W] at the start of each chunk
        #: who acts on the states after the last row, bool [E, A, 1]; None for everyone
        self.active_next: Tensor | None = None

    def __getitem__(self, name: str) -> Tensor:
        """A stored tensor ``[T, E, A, ...]``."""
        return self.memory.get_tensor_by_name(name)

    def rows(self, name: str) -> Tensor:
        """A stored tensor as ``[T * E, A, ...]``."""
        return self.memory.get_tensor_by_name(name, keepdim=False)

    def mask(self, name: str) -> Tensor | None:
        """A stored mask ``[T, E, A, n]``, None where no step had one."""
        return self[name] if name in self.memory.get_tensor_names() else None

    def row_mask(self, name: str) -> Tensor | None:
        """A stored mask as ``[T * E, A, n]``."""
        mask = self.mask(name)
        return None if mask is None else mask.flatten(0, 1)

    def add(self, row: Mapping[str, Tensor], masks: Mapping[str, Tensor | None], policy_state: Tensor | None) -> bool:
        """Store one step.

        :param row: tensors ``[E, A, ...]``
        :param masks: those of :data:`MASKS`, None where everything is True
        :param policy_state: the recurrent state ``[E, A, W]`` that the policies acted from

        :return: whether the memory has a tensor more than before
        """
        if policy_state is not None and self.memory.memory_index % self.length == 0:
            self._policy_states.append(policy_state)
        whole = dict(row)
        grown = False
        for name, mask in masks.items():
            if mask is not None and self.mask(name) is None:
                self.memory.create_tensor(name, tuple(mask.shape[1:]), torch.bool)
                self[name].fill_(True)
                grown = True
            stored = self.mask(name)
            if stored is not None:
                whole[name] = torch.ones_like(stored[0]) if mask is None else mask
        self.memory.add_samples(**whole)
        return grown

    def policy_states(self) -> Tensor | None:
        """The policies' recurrent states ``[C * E, A, W]`` at the chunks' starts; None without any."""
        return torch.cat(self._policy_states) if self._policy_states else None

    def ended(self) -> Tensor:
        """Where an agent's episode ended, bool ``[T, E, A, 1]``."""
        return self["terminated"] | self["truncated"]

    def show_in(self, memories: Mapping[str, Memory], shared: Mapping[str, Tensor]) -> None:
        """Make each agent's memory show its part of the storage, and what all agents share."""
        for i, uid in enumerate(self.names):
            if uid in memories:
                views = {name: self[name][:, :, i] for name in self.memory.get_tensor_names()}
                memories[uid].expose(self.memory, {**views, **shared})

    def clear(self) -> None:
        """Forget what is kept beside the storage, which is written over."""
        self._policy_states.clear()
