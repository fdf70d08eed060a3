"""Recording: one step of all environments, from what is passed by name to what is stored of each group."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, NamedTuple

import gymnasium
import torch
from torch import Tensor

from coterie.agent_tensors import AgentTensors
from coterie.agents.acting import ActingAgent
from coterie.agents.acting_state import Choice
from coterie.agents.groups import Group, Learner
from coterie.agents.intake import FLAGS, NUMBERS, Form, actions_of, as_stacks, check_form, take_one
from coterie.agents.masks import Masks, blank
from coterie.agents.moments import Moment
from coterie.agents.optimizers import OptimizerSettings, SetOptimizers
from coterie.spaces import flat_size

__all__ = ["LastMoment", "RecordingAgent", "Transition"]

_log = logging.getLogger(__name__)


class Transition(NamedTuple):
    """One step of all environments, checked; mappings are by agent. ``masks`` are those of ``states``."""

    states: Mapping[str, Tensor]
    actions: Mapping[str, Tensor]
    rewards: Mapping[str, Tensor]
    next_states: Mapping[str, Tensor]
    terminated: Mapping[str, Tensor]
    truncated: Mapping[str, Tensor]
    infos: Mapping[str, Any]
    masks: Masks
    timestep: int
    timesteps: int


class LastMoment(NamedTuple):
    """What could be seen in last states: ``struck``, bool ``[E, 1]`` by agent, says whose; ``over``, bool ``[E, 1]``, where
    the whole episode is over.
    """

    moment: Moment
    struck: Mapping[str, Tensor]
    over: Tensor


class RecordingAgent(ActingAgent):
    """A team that stores what it is given to record. Subclasses say how: :meth:`_store`."""

    #: whether the lack of last observations was warned about
    _warned = False

    def _build(self) -> None:
        super()._build()
        #: whether anyone values what lies beyond a time limit
        self._bootstraps = any(self.agent_cfg["time_limit_bootstrap"].values())

    def _make_optimizers(self, learner: Learner, has_kl: bool) -> None:
        """Give each of a learner's parameter sets its optimizer: see :class:`SetOptimizers`."""
        settings = [OptimizerSettings.of(self.agent_cfg, names[0]) for names in learner.set_names()]
        learner.optimizers = SetOptimizers(learner.storage, learner.policy_width, settings, has_kl)

    # ---- what subclasses write -------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def _stores(self) -> bool:
        """Whether there is storage to write to."""

    @abstractmethod
    def _store(self, step: Transition) -> None:
        """Store one step."""

    def _check_room(self) -> None:
        """Refuse a step that cannot be stored, before anything of it is taken in.

        :raises RuntimeError: there is no room for it
        """

    def _settle_shared(self, infos: Mapping[str, Any]) -> None:
        """Decide by the first step, before it is stored, what is used of the shared state."""

    def shared_space(self) -> gymnasium.Space | int:
        """Space or size of the shared state, for those that use it."""
        return 0

    # ---- one step --------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def record_transition(
        self,
        states: Mapping[str, Tensor],
        actions: Mapping[str, Tensor],
        rewards: Mapping[str, Tensor],
        next_states: Mapping[str, Tensor],
        terminated: Mapping[str, Tensor],
        truncated: Mapping[str, Tensor],
        infos: Mapping[str, Any],
        timestep: int,
        timesteps: int,
    ) -> None:
        taken_in = self._take_in(states, actions, rewards, next_states, terminated, truncated, infos)
        self._check_room()
        masks = self._masks  # the base takes in those of next_states
        super().record_transition(*taken_in, infos, timestep, timesteps)
        if self._stores:
            states, actions, rewards, next_states, terminated, truncated = taken_in
            terminated, truncated = self._own_ends(terminated, truncated, masks)
            self._settle_shared(infos)
            self._store(
                Transition(
                    states, actions, rewards, next_states, terminated, truncated, infos, masks, timestep, timesteps
                )
            )
            return
        if self.memories is not None:
            raise RuntimeError("record_transition before init: call agent.init() once before the first step")
        team = self.possible_agents
        over = self._stack("terminated", taken_in[4], team) | self._stack("truncated", taken_in[5], team)
        self._forget(AgentTensors.single(team, over), over.shape[0])

    def _take_in(
        self,
        states: Mapping[str, Tensor],
        actions: Mapping[str, Tensor],
        rewards: Mapping[str, Tensor],
        next_states: Mapping[str, Tensor],
        terminated: Mapping[str, Tensor],
        truncated: Mapping[str, Tensor],
        infos: Mapping[str, Any],
    ) -> tuple[AgentTensors, AgentTensors, AgentTensors, Mapping[str, Tensor], AgentTensors, AgentTensors]:
        """Check one step, before anything of it is taken in, and stack what is used at once: all but ``next_states``.

        :raises KeyError, TypeError, ValueError: see :func:`take_in`
        :raises RuntimeError: during an evaluation
        """
        if self._evaluating and self.memories is not None:
            raise RuntimeError(
                "record_transition during an evaluation, which is not learned from: leave the call out, or go back to training "
                "with agent.set_running_mode('train')"
            )
        if not isinstance(infos, Mapping):
            raise TypeError(f"infos: expected a dict, {{}} where there is nothing to say, got {type(infos).__name__}")
        team = tuple(self.possible_agents)
        try:
            earned = self._stack("rewards", rewards, team, 1, NUMBERS, self._num_envs)
        except ValueError:
            self._check_memories_fit(rewards, states)
            raise
        rows = earned.shape[0]
        ends = self._stack("terminated", terminated, team, 1, FLAGS, rows)
        cuts = self._stack("truncated", truncated, team, 1, FLAGS, rows)
        observed, taken = {}, {}
        for group in self.groups:
            names, width, kind = group.names, group.observation_width, actions_of(group.action_space)
            observed[names] = self._stack("states", states, names, width, NUMBERS, rows)
            taken[names] = self._stack("actions", actions, names, group.action_width, kind, rows)
            check_form("next_states", next_states, names, Form(width, NUMBERS, rows, self.device))
        return (
            as_stacks(states, observed), as_stacks(actions, taken), as_stacks(rewards, {team: earned}), next_states,
            as_stacks(terminated, {team: ends}), as_stacks(truncated, {team: cuts}),
        )  # fmt: skip

    def _check_memories_fit(self, *parts: Any) -> None:
        """Say so where it is the memories that are not of the environments that a whole step is of.

        :raises ValueError: they are of another number
        """
        tensors = [value for part in parts if isinstance(part, Mapping) for value in part.values()]
        rows = {tuple(value.shape[:1]) if isinstance(value, Tensor) else () for value in tensors}
        expected = self._num_envs
        if self.memories and len(rows) == 1 and rows not in ({()}, {(expected,)}):
            ((got,),) = rows
            raise ValueError(
                f"expected steps of {expected} environments, for which the memories were made (num_envs), got steps of {got}: "
                f"make the memories with num_envs={got}, the environment's"
            )

    def _taken(self, group: Group, observed: Tensor, actions: Mapping[str, Tensor], masks: Masks) -> Choice:
        """The choice that ``act`` made, or one worked out for actions that came from elsewhere."""
        taken = self._stack("actions", actions, group.names, group.action_width)
        active = masks.active(group.names)
        pending = self._acting.choices.pop(group.names, None)
        if pending is not None:
            if taken is pending.actions:
                return pending
            if active is not None:  # what is passed for an agent that does not act means nothing
                taken = torch.where(active, taken, pending.actions)
            if group.scripts is not None or torch.equal(taken, pending.actions):
                return pending
        taken = blank(taken, active)
        if group.scripts is not None:
            return Choice(taken, taken, taken.new_zeros((*taken.shape[:2], 1), dtype=torch.float32))
        allowed = masks.actions(group.names, flat_size(group.action_space))
        before = None if pending is None else pending.before
        distribution, before, after = self._look(group, observed, masks, allowed, before)
        latent = distribution.latent(taken)
        return Choice(taken, latent, distribution.log_prob(latent), before, after)

    def _own_ends(
        self, terminated: Mapping[str, Tensor], truncated: Mapping[str, Tensor], masks: Masks
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        """The ends that count: what was done for an absent agent means nothing until the whole episode is over.

        For an agent that is absent then, that is a termination, whatever ended the episode: it has left the game, and there is
        no last observation of it whose value could stand for what it might have earned.
        """
        names = self.possible_agents
        present = masks.present(names)
        if present is None:
            return terminated, truncated
        ends, cuts = self._stack("terminated", terminated, names), self._stack("truncated", truncated, names)
        over = (ends | cuts).all(dim=1, keepdim=True)
        return (
            AgentTensors({tuple(names): torch.where(present, ends, over)}),
            AgentTensors({tuple(names): cuts & present}),
        )

    def _group_row(self, group: Group, step: Transition) -> tuple[dict[str, Tensor], dict[str, Tensor | None], Choice]:
        """What is stored of a group: tensors ``[E, A, ...]`` by name, and masks by name, None where all is True. What its
        policies remember moves on.
        """
        names, masks = group.names, step.masks
        present = masks.present(names)
        observed = self._observed("states", step.states, group, present)
        choice = self._taken(group, observed, step.actions, masks)
        earned = blank(self._stack("rewards", step.rewards, names), present)
        done, timed_out = (
            self._stack("terminated", step.terminated, names),
            self._stack("truncated", step.truncated, names),
        )
        if choice.after is not None:
            self._acting.memory[names] = choice.after.masked_fill(done | timed_out, 0.0)
        row = {
            "states": observed,
            "actions": choice.latent,
            "rewards": blank(self._shaped(group, earned, step.timestep, step.timesteps), present),
            "terminated": done,
            "truncated": timed_out,
        }
        shown = {
            "active": masks.active(names),
            "present": present,
            "action_masks": masks.actions(names, flat_size(group.action_space)),
        }
        return row, shown, choice

    def _shaped(self, group: Group, rewards: Tensor, timestep: int, timesteps: int) -> Tensor:
        shapers = [self.agent_cfg["rewards_shaper"][uid] for uid in group.names]
        if all(shaper is None for shaper in shapers):
            return rewards
        columns = [
            column if shaper is None else shaper(column.clone(), timestep, timesteps)
            for shaper, column in zip(shapers, rewards.unbind(1), strict=True)
        ]
        return torch.stack(columns, dim=1)

    # ---- what is seen besides -----------------------------------------------------------------------------------------------

    def _last_moment(self, step: Transition) -> LastMoment | None:
        """What could be seen in the last states of agents that a time limit struck; None where it struck none."""
        team = self.possible_agents
        ended = self._stack("terminated", step.terminated, team)
        struck = self._stack("truncated", step.truncated, team) & ~ended
        if not bool(struck.any()):
            return None
        infos, next_states = step.infos, step.next_states
        over = (ended | struck).all(dim=1)  # bool [E, 1]; elsewhere other agents go on, and nothing was reset
        resets = "final_states" in infos
        if not resets and not self._warned and bool(over.any()):
            self._warned = True
            _log.warning(
                "an episode was truncated and infos has no 'final_states': next_states are taken for its last "
                "observations, which is right only for an environment that does not reset itself"
            )
        final = infos["final_states"] if resets else next_states
        shared = self._shared_state(infos, "final_shared_states" if resets else "shared_next_states")
        if resets and bool((struck.any(dim=1) & ~over).any()):
            for group in self.groups:
                form = Form(group.observation_width, NUMBERS, over.shape[0], self.device)
                check_form("final_states", final, group.names, form)
            final = {uid: torch.where(over, final[uid], next_states[uid]) for uid in team}
            going_on = self._shared_state(infos, "shared_next_states")
            shared = None if shared is None or going_on is None else torch.where(over, shared, going_on)
        moment = self._moment("final_states", final, shared, self._there_at_last(ended, struck))
        return LastMoment(moment, AgentTensors.single(team, struck), over)

    def _there_at_last(self, ended: Tensor, struck: Tensor) -> Callable[[Group], Tensor | None]:
        """Who is there, bool ``[E, A, 1]`` of a group, in the last states of agents that a time limit struck.

        Where the whole episode is over, those who were there when the step began and did not die in it, which is whom it
        struck (see :meth:`_own_ends`). Where others go on, also those who are there in the next states.

        :param ended: who was terminated, bool ``[E, agents of the team, 1]``
        :param struck: whom the time limit struck
        """
        names = self.possible_agents
        after = self._masks.present(names)
        over = (ended | struck).all(dim=1, keepdim=True)
        there = struck | ~over if after is None else struck | (after & ~over)
        there = there | ~struck.any(dim=1, keepdim=True)  # of other copies nothing is kept
        if bool(there.all()):
            return lambda group: None
        by_name = AgentTensors({tuple(names): there})
        return lambda group: self._stack("present", by_name, group.names)

    def _moment(
        self,
        what: str,
        states: Mapping[str, Tensor],
        shared: Tensor | None,
        present: Callable[[Group], Tensor | None],
    ) -> Moment:
        """What can be seen at one moment of all environments."""
        return Moment(
            self.groups,
            self.possible_agents,
            lambda group: self._observed(what, states, group, present(group)),
            shared,
            present,
        )

    def _masks_at_last(self, step: Transition, rows: int) -> Masks:
        """Who was to act on last states, and what was allowed to whom, where the environment says so.

        An environment that does not reset itself says the latter of the next states, which are the last ones.
        """
        infos = step.infos
        allowed = infos.get("final_action_masks" if "final_states" in infos else "action_masks")
        return Masks({"active_masks": infos.get("final_active_masks"), "action_masks": allowed}, rows, self.device)

    def _shared_state(self, infos: Mapping[str, Any], key: str) -> Tensor | None:
        """The shared state ``[E, F]`` of a moment, None where critics don't see it.

        :raises KeyError: it is not in ``infos``
        :raises ValueError: it has another shape, or is elsewhere
        """
        if not self.uses_shared_states:
            return None
        if not isinstance(infos.get(key), Tensor):
            raise KeyError(
                f"infos[{key!r}]: expected the shared state, a tensor [E, F]; got {type(infos.get(key)).__name__}"
            )
        return take_one(f"infos[{key!r}]", infos[key], Form(self._shared_width, NUMBERS, self._num_envs, self.device))

    def _shared_row(self, infos: Mapping[str, Any], key: str) -> dict[str, Tensor]:
        """The shared state ``[E, F]`` as it is stored, by the name ``key``; nothing where it is not seen.

        :raises KeyError, ValueError: see :meth:`_shared_state`; it is not finite
        """
        shared = self._shared_state(infos, key)
        if shared is None:
            return {}
        self._check_finite(f"infos[{key!r}]", shared.unsqueeze(1), ["team"])
        return {key: shared}

    @cached_property
    def _shared_width(self) -> int:
        return flat_size(self.shared_space())
