"""Learning from what was done long ago: what all off-policy algorithms have in common."""

from __future__ import annotations

import logging
import os
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from coterie.agent_tensors import AgentTensors
from coterie.agents.checks import check_replay_memories
from coterie.agents.groups import Learner
from coterie.agents.masks import blank
from coterie.agents.moments import Moment
from coterie.agents.recording import LastMoment, RecordingAgent, Transition
from coterie.agents.replay_storage import SHARED, TERMINATED, ReplayStorage, RowMasks, Rows
from coterie.memories.replay import ReplayMemory
from coterie.spaces import flat_size

__all__ = ["OffPolicyAgent"]

_log = logging.getLogger(__name__)


class OffPolicyAgent(RecordingAgent):
    """A team that keeps its steps in a replay memory and learns from draws of it.

    See :class:`MultiAgent` for the parameters. Memories are :class:`~coterie.memories.ReplayMemory` or kinds of it, all of one
    kind and size: the team keeps one memory of that kind, and each agent's shows its own part.
    """

    def _build(self) -> None:
        super()._build()
        self._storage: ReplayStorage | None = None
        self._struck: Tensor | None = None  # see _struck_in: in the last step
        self._left: Tensor | None = None  # see _left_after; None for nobody
        self._told_short: set[str] = set()  # first agents of learners for whom the memory is too small
        if self.memories is not None:
            check_replay_memories(self.memories)

    def init(self, trainer_cfg: Mapping[str, Any] | None = None) -> None:
        super().init(trainer_cfg)
        self._struck = self._left = None
        if self._storage is not None:
            self._storage.memory.interrupt()  # episodes that were running are not taken up again
        elif self.memories is not None:
            self._create_storage()

    def _create_storage(self) -> ReplayStorage:
        self._storage = ReplayStorage(self._like, self.groups, self.possible_agents, self.device)
        self._show_storage()
        return self._storage

    @property
    def _like(self) -> ReplayMemory:
        """One of the users' memories, which are all alike."""
        like = next(iter((self.memories or {}).values()))
        assert isinstance(like, ReplayMemory)
        return like

    @property
    def memory_bytes(self) -> int:
        if self.memories is None:
            return 0
        predicted = ReplayStorage.predict_bytes(self._like, self.groups, self._shared_size)
        return predicted if self._storage is None else max(predicted, self._storage.memory.nbytes)

    @property
    def _shared_size(self) -> int:
        """Size of the shared state that is stored, 0 where none is."""
        return self._shared_width if self.uses_shared_states else 0

    # ---- files -----------------------------------------------------------------------------------------------------------

    def save_memory(self, path: str | os.PathLike[str]) -> None:
        """Write the steps that are remembered to ``path``, whole or not at all; a checkpoint does not have them.

        :raises RuntimeError: nothing is remembered, for lack of memories or of :meth:`init`
        """
        if self._storage is None:
            raise RuntimeError("save_memory: there is nothing to save before init, and without memories")
        self._storage.memory.save(path)

    def load_memory(self, path: str | os.PathLike[str]) -> None:
        """Read what :meth:`save_memory` wrote, all of it or nothing. What was remembered until now is forgotten.

        The next step that is recorded follows on the newest one of the file, unless :meth:`init` comes in between, as
        a trainer calls it: then the episodes that were running are left as they are.

        :raises KeyError, ValueError: the file is that of another kind or size of memory, or of another team
        :raises RuntimeError: this agent has no memories, or the file is damaged
        """
        if self.memories is None:
            raise RuntimeError("load_memory: expected an agent with memories; this one acts only")
        storage = self._storage or self._create_storage()
        memory = storage.read(path)
        names = memory.get_tensor_names()
        if SHARED not in names:
            self._settle_shared({})
        held = memory.get_tensor_by_name(SHARED).shape[2] if SHARED in names else 0
        if held != self._shared_size:
            raise ValueError(
                f"{os.fspath(path)!r}: expected a shared state of size {self._shared_size}, the file has one of size {held}"
            )
        storage.memory, self._struck, self._left = memory, None, None
        self._show_storage()

    @property
    def _stores(self) -> bool:
        return self._storage is not None

    def _show_storage(self) -> None:
        assert self._storage is not None
        assert self.memories is not None
        self._storage.show_in(self.memories)

    # ---- recording -------------------------------------------------------------------------------------------------------

    def _store(self, step: Transition) -> None:
        assert self._storage is not None
        rows, masks = self._rows(step)
        team = self._shared_row(step.infos, "shared_states")
        terminated = self._stack("terminated", step.terminated, self.possible_agents)
        ended = terminated | self._stack("truncated", step.truncated, self.possible_agents)
        over = ended.all(dim=1, keepdim=True)  # [E, 1, 1]
        done = self._stack("terminated", step.terminated, self.learning_agents)
        # those that learn have nothing to come where all of them are terminated, whatever ended it for others
        cut = over & ~done.all(dim=1, keepdim=True)
        if not self._bootstraps:
            cut = torch.zeros_like(cut)
        left = self._left_after(done)
        team[TERMINATED] = over & ~cut if left is None else (over & ~cut) | left.all(dim=1, keepdim=True)
        last = self._last_moment(step) if self._bootstraps else None
        shown_last = None if last is None else self._last_rows(step, last, cut)

        # everything was looked at: what follows takes it in
        grown = self._storage.add(rows, masks, team)
        self._learn_scales(rows, masks, self._moment_of_rows(rows, masks, team.get(SHARED)))
        if shown_last is not None:
            grown |= self._storage.add_last(*shown_last)
        self._struck = None if last is None else self._struck_in(last)
        self._left = None if left is None else left & ~over
        self._storage.memory.end_episodes(over.flatten())
        if grown:
            self._show_storage()

    def _rows(self, step: Transition) -> tuple[Rows, RowMasks]:
        """What is stored of each group, by its first agent."""
        rows, masks = {}, {}
        for group in self.groups:
            row, shown, _ = self._group_row(group, step)
            if self._struck is not None:  # the next row shows to whom it happened what came of the last step
                struck = self._stack("struck", AgentTensors.single(self.possible_agents, self._struck), group.names)
                seen = self._stack("states", step.states, group.names, group.observation_width)
                row["states"] = torch.where(struck, seen, row["states"])
            for what in ("states", "rewards"):
                self._check_finite(what, row[what], group.names)
            rows[group.names[0]], masks[group.names[0]] = row, shown
        return rows, masks

    def _moment_of_rows(self, rows: Rows, masks: RowMasks, shared: Tensor | None) -> Moment:
        return Moment(
            self.groups,
            self.possible_agents,
            lambda group: blank(rows[group.names[0]]["states"], masks[group.names[0]]["present"]),
            shared,
            lambda group: masks[group.names[0]]["present"],
        )

    def _left_after(self, terminated: Tensor) -> Tensor | None:
        """Which of those that learn have left their game for good, bool ``[E, N, 1]``: they were terminated, in this step
        or before, and are not there in the next states. Whoever has not arrived yet has not left. None for nobody.

        :param terminated: of those that learn, bool ``[E, N, 1]``
        """
        present = self._masks.present(self.learning_agents)
        if present is None:
            return None
        return (terminated if self._left is None else terminated | self._left) & ~present

    def _struck_in(self, last: LastMoment) -> Tensor | None:
        """Whom a time limit struck while others went on, bool ``[E, N, 1]``; None for nobody."""
        struck = self._stack("struck", last.struck, self.possible_agents) & ~last.over.unsqueeze(1)
        return struck if bool(struck.any()) else None

    def _last_rows(
        self, step: Transition, last: LastMoment, cut: Tensor
    ) -> tuple[Tensor, Rows, RowMasks, dict[str, Tensor]] | None:
        """What was seen at last where a time limit ended the whole episode: see :meth:`ReplayStorage.add_last`."""
        envs = cut.flatten().nonzero().squeeze(-1)
        if not len(envs):
            return None
        final = self._masks_at_last(step, cut.shape[0])
        rows, masks = {}, {}
        for group in self.groups:
            names, there = group.names, last.moment.present(group)
            observed = last.moment.of(group)
            self._check_finite("final_states", observed[envs], names)
            active = final.active(names)
            if there is not None:
                active = there if active is None else there & active
            allowed = final.actions(names, flat_size(group.action_space))
            if allowed is not None and active is not None:  # what is said of others means nothing
                allowed = allowed | ~active
            rows[names[0]] = {"states": observed}
            masks[names[0]] = {"active": active, "present": there, "action_masks": allowed}
        shared = {}
        if last.moment.shared is not None:
            self._check_finite("the last shared states", last.moment.shared[envs].unsqueeze(1), ["team"])
            shared = {SHARED: last.moment.shared}
        return envs, rows, masks, shared

    @abstractmethod
    def _learn_scales(self, rows: Rows, masks: RowMasks, moment: Moment) -> None:
        """Let normalisers of those that learn do so from a step; each step counts once.

        :param rows: what is stored of each group, by its first agent
        :param masks: likewise
        :param moment: what could be seen
        """

    # ---- learning --------------------------------------------------------------------------------------------------------

    def post_interaction(self, timestep: int, timesteps: int) -> None:
        if self._storage is not None and not self._evaluating:
            self._update(timestep, timesteps)
        super().post_interaction(timestep, timesteps)

    def _update(self, timestep: int, timesteps: int) -> None:
        due = [learner for learner in self.learners if self.learns(learner) and self._is_due(learner, timestep)]
        if not due:
            return
        self.set_mode("train")
        try:
            for learner in due:
                for _ in range(self.agent_cfg["gradient_steps"][learner.names[0]]):
                    self._learn(learner, timestep, timesteps)
        finally:
            self.set_mode("eval")

    def _is_due(self, learner: Learner, timestep: int) -> bool:
        leader = learner.names[0]
        cfg = self.agent_cfg
        if timestep < cfg["learning_starts"][leader] or (timestep + 1) % cfg["update_interval"][leader]:
            return False
        assert self._storage is not None
        memory, batch_size = self._storage.memory, cfg["batch_size"][leader]
        ready = memory.ready(batch_size, *self._window_size(learner))
        if not ready and memory.filled and leader not in self._told_short:
            self._told_short.add(leader)
            _log.warning(
                "the memory of %d rows for each of %d environments is full and does not hold the %d samples of a batch: %s "
                "learn nothing; give it a larger memory_size, or set a smaller cfg['batch_size']",
                memory.memory_size, memory.num_envs, batch_size, learner.names,
            )  # fmt: skip
        return ready

    @abstractmethod
    def _window_size(self, learner: Learner) -> tuple[int, int]:
        """Number of rows that a learner learns from at a time, and of those ahead of them that warm its models up."""

    @abstractmethod
    def _learn(self, learner: Learner, timestep: int, timesteps: int) -> None:
        """One optimizer step of a learner."""
