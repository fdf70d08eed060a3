"""The recording of rollouts that an update then reads whole: what all on-policy algorithms have in common."""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import gymnasium
import torch
from torch import Tensor

from coterie.agents.checks import check_finite, check_memories
from coterie.agents.group_networks import CriticInput, CriticNetworks
from coterie.agents.groups import CriticGroup, Group, Learner
from coterie.agents.moments import Moment
from coterie.agents.normalisation import SetPreprocessor
from coterie.agents.recording import RecordingAgent, Transition
from coterie.agents.rollout import Rollout, Successors, Truncation, rollout_tensors
from coterie.memories.base import Memory
from coterie.spaces import flat_size

__all__ = ["OnPolicyAgent"]

_log = logging.getLogger(__name__)


class OnPolicyAgent(RecordingAgent):
    """A team that learns from rollouts of ``cfg["rollouts"]`` steps, each of which is used for one update.

    See :class:`MultiAgent` for the parameters. With memories, every agent that learns needs a value model, and its memory's
    size must be ``cfg["rollouts"]``.
    """

    def _build(self) -> None:
        self._check_critics()
        super()._build()
        self.critic_networks = {
            critics.names: CriticNetworks(
                critics, self.device, self._mixed_precision(learner.names[0]), self.critic_preprocessor(critics)
            )
            for learner in self.learners
            for critics in learner.critics
        }
        self._storage: dict[tuple[str, ...], Rollout] = {}
        self._successors: dict[tuple[str, ...], Successors] = {}  # by critic group
        self._shared: Memory | None = None
        self._recorded = 0
        if self.memories is not None:
            check_memories(self.memories, self.models, self.learning_agents, self.rollouts)
            self._check_minibatches(next(iter(self.memories.values())).num_envs)

    # ---- what the critic sees --------------------------------------------------------------------------------------------

    #: what the critic sees, for messages
    critic_sees: ClassVar[str]

    @abstractmethod
    def critic_space(self, uid: str) -> gymnasium.Space | None:
        """Space of the critic's input; None where it is whatever the critic was built for."""

    @abstractmethod
    def critic_states(self, group: Group, moment: Moment) -> Tensor:
        """The critics' inputs ``[B, A, F]`` at one moment, zeros in place of what an absent agent would see by itself (a model
        that asks for its id still has it); ``[B, 1, F]``, equal for all groups, where ``common_critic_input`` is set.
        """

    def critic_inputs(self, critics: CriticGroup, moment: Moment) -> CriticInput:
        """What a critic group's critics see at one moment.

        :raises ValueError: inputs of another number of agents than :meth:`critic_states` is to give
        """
        states = self.critic_states(critics.groups[0], moment)
        agents = 1 if critics.common_input else len(critics.names)
        if states.dim() != 3 or states.shape[1] != agents:
            raise ValueError(
                f"{type(self).__name__}.critic_states returned inputs of shape {list(states.shape)} for {list(critics.names)}: "
                f"expected [B, {agents}, F], since common_critic_input is {critics.common_input}"
            )
        whole_team = critics.batch.unique[0].values_per_agent
        return CriticInput(states, moment.attendance() if whole_team else None)

    @abstractmethod
    def critic_preprocessor(self, critics: CriticGroup) -> SetPreprocessor | None:
        """What normalises the critics' inputs."""

    # ---- construction ----------------------------------------------------------------------------------------------------

    def _check_critics(self) -> None:
        """Check that critics fit what they will see.

        :raises ValueError: one does not
        """
        for uid in self.learning_agents:
            space, value = self.critic_space(uid), self.models[uid].get("value")
            if value is None or space is None:
                continue
            built, needed = value.num_observations, flat_size(space)
            if built != needed:
                raise ValueError(
                    f"the value model of {uid!r} was built for inputs of size {built}, {type(self).__name__} feeds it "
                    f"{needed}: {self.critic_sees}"
                )

    def _make_preprocessors(self, learner: Learner) -> None:
        super()._make_preprocessors(learner)
        if self.learns(learner):
            learner.value_preprocessor = self._preprocessor(learner.groups[0], "value_preprocessor", 1)

    def _check_minibatches(self, num_envs: int) -> None:
        for learner in filter(self.learns, self.learners):
            length = min(learner.sequence_length, self.rollouts)
            sequences = math.ceil(self.rollouts / length) * num_envs
            parts = self.agent_cfg["mini_batches"][learner.names[0]]
            if parts > sequences:
                what = "samples" if length == 1 else f"sequences of {length} steps"
                raise ValueError(
                    f"mini_batches: {parts} for {learner.names[0]!r}, but a rollout has {sequences} {what}"
                )

    # ---- storage ---------------------------------------------------------------------------------------------------------

    def init(self, trainer_cfg: Mapping[str, Any] | None = None) -> None:
        super().init(trainer_cfg)
        if self._storage:
            self._discard_rollout()
        elif self.memories is not None:
            self._create_storage(self.memories)

    def _discard_rollout(self) -> None:
        """Forget a rollout that was not completed: what is recorded from now on does not follow on it."""
        self._recorded = 0
        if self._shared is not None:
            self._shared.reset()
        for rollout in self._storage.values():
            rollout.memory.reset()
        self._forget_rollout()

    def _forget_rollout(self) -> None:
        """Forget what is kept beside the storage, which is written over."""
        for rollout in self._storage.values():
            rollout.clear()
        for beyond in self._successors.values():
            beyond.truncations.clear()

    def _create_storage(self, memories: Mapping[str, Memory]) -> None:
        num_envs = next(iter(memories.values())).num_envs
        for learner in self.learners:
            for group in learner.groups:
                width = self._log_prob_width(group)
                self._storage[group.names] = Rollout(
                    group, self.rollouts, num_envs, width, learner.sequence_length, self.device
                )
        self._successors = {critics.names: Successors() for critics in self._learning_critics()}
        self._show_storage()

    def _show_storage(self) -> None:
        """Let the agents' memories show what is stored."""
        assert self.memories is not None
        shared: dict[str, Tensor] = {}
        if self._shared is not None:
            shared["shared_states"] = self._shared.get_tensor_by_name("shared_states")
        for rollout in self._storage.values():
            rollout.show_in(self.memories, shared)

    @property
    def memory_bytes(self) -> int:
        if not self.memories:
            return 0
        like = Memory(self.rollouts, next(iter(self.memories.values())).num_envs)
        held = sum(rollout.memory.nbytes for rollout in self._storage.values())
        if not self._storage:
            held = sum(like.predict_bytes(rollout_tensors(group, self._log_prob_width(group))) for group in self.groups)
        if self._shared is not None:
            return held + self._shared.nbytes
        shared = flat_size(self.shared_space()) if self.uses_shared_states else 0
        return held + like.predict_bytes({"shared_states": ((shared,), torch.float32)})

    @property
    def rollouts(self) -> int:
        """Number of steps T between updates."""
        return int(self.cfg["rollouts"])

    # ---- recording -------------------------------------------------------------------------------------------------------

    @property
    def _stores(self) -> bool:
        return bool(self._storage)

    def _check_room(self) -> None:
        if self._recorded == self.rollouts:
            raise RuntimeError(
                f"record_transition: a rollout of {self.rollouts} steps is full and was not learned from; call "
                "agent.post_interaction after each record_transition"
            )

    def _store(self, step: Transition) -> None:
        shared = self._shared_row(step.infos, "shared_states")
        rows = [(group, *self._group_row(group, step)) for group in self.groups]
        last, truncations = self._seen_behind(step)

        # everything was looked at: what follows takes it in
        self._store_shared_state(shared)
        grown = False
        for group, row, masks, choice in rows:
            grown |= self._storage[group.names].add({**row, "log_prob": choice.log_prob}, masks, choice.before)
        if grown:
            self._show_storage()
        for critics in self._learning_critics() if last else ():
            self._successors[critics.names].last = last[critics.names]
            for group in critics.groups:
                self._storage[group.names].active_next = self._masks.active(group.names)
        for names, truncation in truncations.items():
            self._successors[names].truncations.append(truncation)
        self._recorded += 1

    def _store_shared_state(self, row: Mapping[str, Tensor]) -> None:
        if not row:
            return
        if self._shared is None:
            self._shared = Memory(self.rollouts, next(iter(self._storage.values())).memory.num_envs, self.device)
            self._shared.create_tensor("shared_states", flat_size(self.shared_space()))
            self._show_storage()
        self._shared.add_samples(**row)

    def _seen_behind(
        self, step: Transition
    ) -> tuple[dict[tuple[str, ...], CriticInput], dict[tuple[str, ...], Truncation]]:
        """The critics' inputs that the rollout itself does not show, by the names of each critic group: after its last row,
        and where a time limit struck.
        """
        row = self._recorded % self.rollouts
        behind: dict[tuple[str, ...], CriticInput] = {}
        truncations: dict[tuple[str, ...], Truncation] = {}
        if row + 1 == self.rollouts:
            shared = self._shared_state(step.infos, "shared_next_states")
            moment = self._moment(
                "next_states", step.next_states, shared, lambda group: self._masks.present(group.names)
            )
            for critics in self._learning_critics():
                behind[critics.names] = self._seen_by_critics(critics, moment, "the critic's next states")
        last = self._last_moment(step) if self._bootstraps else None
        if last is None:
            return behind, truncations
        for critics in self._learning_critics():
            agents = self._stack("truncated", last.struck, critics.names)
            envs = agents.any(dim=1).squeeze(-1).nonzero().squeeze(-1)
            if len(envs):
                critic = self._seen_by_critics(critics, last.moment, "the critic's final states", envs)
                truncations[critics.names] = Truncation(row, envs, critic, agents[envs])
        return behind, truncations

    def _rollout_moment(self) -> Moment:
        """What could be seen at all rows of the rollout."""
        return Moment(
            self.groups,
            self.possible_agents,
            lambda group: self._storage[group.names].rows("states"),
            None if self._shared is None else self._shared.get_tensor_by_name("shared_states", keepdim=False),
            lambda group: self._storage[group.names].row_mask("present"),
        )

    def _learning_critics(self) -> list[CriticGroup]:
        return [critics for learner in self.learners if self.learns(learner) for critics in learner.critics]

    def _seen_by_critics(
        self, critics: CriticGroup, moment: Moment, what: str, envs: Tensor | None = None
    ) -> CriticInput:
        """The critics' inputs at a moment, those of some environments where asked for, in storage of their own."""
        critic = self.critic_inputs(critics, moment)
        critic = critic._replace(states=critic.states.clone()) if envs is None else critic.at(envs)
        self._check_finite(what, critic.states, critics.names)
        return critic

    def post_interaction(self, timestep: int, timesteps: int) -> None:
        if self._recorded == self.rollouts and not self._evaluating:
            self._check_rollout()
            self._update(timestep, timesteps)
            self._recorded = 0
            self._forget_rollout()
        super().post_interaction(timestep, timesteps)

    def _check_rollout(self) -> None:
        """Refuse NaN and infinity in what is about to be learned from (on a CPU each step has been looked at already)."""
        for group in self.groups:
            for name in ("states", "rewards"):
                rollout = self._storage[group.names]
                check_finite(f"the rollout's {name}", rollout.rows(name), group.names, rollout.memory.num_envs)
