"""What one group leaves behind in a rollout, and what an update reads of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import gymnasium
import torch
from torch import Tensor

from coterie.agents.groups import Group
from coterie.memories.base import Memory

__all__ = ["Batch", "Rollout"]


@dataclass
class Batch:
    """Rows of a rollout as an update sees them; ``critic`` has one agent where all agents' critics see the same."""

    states: Tensor  # [N, A, F], normalised
    critic: Tensor  # [N, A or 1, F], normalised
    actions: Tensor  # [N, A, k], latent
    log_prob: Tensor  # [N, A, 1]
    advantages: Tensor  # [N, A, 1], standardised
    values: Tensor  # [N, A, 1], as the critic predicted them
    returns: Tensor  # [N, A, 1], on the scale of the critic's predictions

    def take(self, rows: Tensor) -> Batch:
        """The rows of one minibatch."""
        return Batch(*(tensor.index_select(0, rows) for tensor in vars(self).values()))


class Rollout:
    """Storage ``[T, E, A, ...]`` of one group, and the critics' inputs at successors that are no rows of it.

    The successor of a step is the next row's state, but for two: that of the last row, and those of steps at which a time
    limit cut an episode short, where the next row already shows another episode.

    :param group: whose rollout it is
    :param rows: number of steps T
    :param num_envs: number of environments E
    :param log_prob_width: number of log-probabilities of an action, 1 unless policies don't sum over dimensions
    :param device: where it is stored
    """

    def __init__(self, group: Group, rows: int, num_envs: int, log_prob_width: int, device: torch.device) -> None:
        self.names = group.names
        self.memory = Memory(rows, num_envs, device)
        agents = group.size
        actions = torch.float32 if isinstance(group.action_space, gymnasium.spaces.Box) else torch.int64
        self.memory.create_tensor("states", (agents, group.observation_width))
        self.memory.create_tensor("actions", (agents, group.action_width), actions)
        self.memory.create_tensor("log_prob", (agents, log_prob_width))
        for name in ("terminated", "truncated"):
            self.memory.create_tensor(name, (agents, 1), torch.bool)
        for name in ("rewards", "values", "returns", "advantages"):
            self.memory.create_tensor(name, (agents, 1))
        self._cut: list[tuple[int, Tensor, Tensor]] = []
        self._last: Tensor | None = None

    def __getitem__(self, name: str) -> Tensor:
        """A stored tensor ``[T, E, A, ...]``."""
        return self.memory.get_tensor_by_name(name)

    def rows(self, name: str) -> Tensor:
        """A stored tensor as ``[T * E, A, ...]``."""
        return self.memory.get_tensor_by_name(name, keepdim=False)

    def show_in(self, memories: Mapping[str, Memory], shared: Mapping[str, Tensor]) -> None:
        """Make each agent's memory show its part of the storage, and what all agents share."""
        for i, uid in enumerate(self.names):
            views = {name: self[name][:, :, i] for name in self.memory.get_tensor_names()}
            memories[uid].expose(self.memory, {**views, **shared})

    def keep_last(self, critic: Tensor) -> None:
        """Keep the critics' inputs ``[E, A or 1, F]`` at the successor of the last row."""
        self._last = critic.clone()

    def keep_cut(self, row: int, envs: Tensor, critic: Tensor) -> None:
        """Keep the critics' inputs ``[N, A or 1, F]`` where episodes of the environments ``envs`` ``[N]`` were cut short."""
        self._cut.append((row, envs, critic))

    def successor_values(self, values: Tensor, evaluate: Callable[[Tensor], Tensor]) -> Tensor:
        """V of every step's true successor ``[T, E, A, 1]``.

        :param values: V of every row ``[T, E, A, 1]``
        :param evaluate: V ``[B, A, 1]`` of critics' inputs ``[B, A or 1, F]``
        """
        assert self._last is not None
        successors = torch.cat([values[1:], evaluate(self._last).unsqueeze(0)])
        if self._cut:
            finals = evaluate(torch.cat([critic for _, _, critic in self._cut]))
            parts = finals.split([len(envs) for _, envs, _ in self._cut])
            for (row, envs, _), part in zip(self._cut, parts, strict=True):
                successors[row, envs] = part
        return successors

    def clear(self) -> None:
        """Forget the successors; the storage is written over."""
        self._cut.clear()
