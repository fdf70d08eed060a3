"""Acting, and the recording of rollouts that an update then reads whole: what all on-policy algorithms have in common."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium
import torch
from torch import Tensor

from coterie.agent_tensors import AgentTensors
from coterie.agents.base import MultiAgent
from coterie.agents.checks import check_finite, check_memories, check_minibatches
from coterie.agents.group_networks import CriticInput, GroupNetworks, Recall
from coterie.agents.groups import Group, Learner
from coterie.agents.masks import Masks, blank, own_ends
from coterie.agents.moments import Moment
from coterie.agents.normalisation import SetPreprocessor, make_preprocessor
from coterie.agents.outputs import Outputs
from coterie.agents.precision import mixed_precision_allowed
from coterie.agents.rollout import Cut, Rollout
from coterie.memories.base import Memory
from coterie.models.base import Model
from coterie.models.distributions import Distribution, check_action_masks
from coterie.spaces import flat_size

__all__ = ["OnPolicyAgent"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Choice:
    """What one group chose at a step, until the step is recorded."""

    actions: Tensor  # [E, A, n], as the environment takes them
    latent: Tensor  # [E, A, k], as they were drawn
    log_prob: Tensor  # [E, A, 1]
    state: Tensor | None  # [E, A, W], the recurrent state that they were chosen from


class OnPolicyAgent(MultiAgent):
    """A team that learns from rollouts of ``cfg["rollouts"]`` steps, each of which is used for one update.

    See :class:`MultiAgent` for the parameters. With memories, every agent that learns needs a value model, and its memory's
    size must be ``cfg["rollouts"]``.
    """

    def __init__(
        self,
        possible_agents: Sequence[str],
        models: Mapping[str, Mapping[str, Model]],
        memories: Mapping[str, Memory] | None = None,
        observation_spaces: Mapping[str, gymnasium.Space] | None = None,
        action_spaces: Mapping[str, gymnasium.Space] | None = None,
        device: str | torch.device | None = None,
        cfg: Mapping[str, Any] | None = None,
        shared_observation_spaces: Mapping[str, gymnasium.Space] | None = None,
    ) -> None:
        super().__init__(
            possible_agents, models, memories, observation_spaces, action_spaces, device, cfg, shared_observation_spaces
        )
        self._check_critics()
        for learner in self.learners:
            self._make_preprocessors(learner)
        self.networks = {group.names: self._make_networks(group) for group in self.groups}
        self._pending: dict[tuple[str, ...], _Choice] = {}
        self._remembered: dict[tuple[str, ...], Tensor] = {}  # recurrent states [E, A, W] while acting
        self._set_aside: dict[tuple[str, ...], Tensor] = {}  # those of training, during an evaluation
        self._storage: dict[tuple[str, ...], Rollout] = {}
        self._shared: Memory | None = None
        self._recorded = 0
        self._warned = False
        self._bootstraps = any(self.agent_cfg["time_limit_bootstrap"].values())
        if self.memories is not None:
            check_memories(self.memories, self.models, self.learning_agents, self.rollouts)
            num_envs = next(iter(self.memories.values())).num_envs
            for learner in filter(self.learns, self.learners):
                parts = self.agent_cfg["mini_batches"][learner.names[0]]
                check_minibatches(learner, parts, self.rollouts, num_envs)

    # ---- what the critic sees --------------------------------------------------------------------------------------------

    #: what the critic sees, for messages
    critic_sees: ClassVar[str]

    @abstractmethod
    def critic_space(self, uid: str) -> gymnasium.Space | None:
        """Space of the critic's input; None where it is whatever the critic was built for."""

    @abstractmethod
    def critic_states(self, group: Group, moment: Moment) -> Tensor:
        """The critics' inputs ``[B, A or 1, F]`` (1 where all agents' are equal) at one moment; zeros in place of what an
        absent agent would see by itself (a model that asks for its id still has it).
        """

    @abstractmethod
    def critic_preprocessor(self, group: Group) -> SetPreprocessor | None:
        """What normalises the critics' inputs."""

    def critic_inputs(self, group: Group, moment: Moment) -> CriticInput:
        """What a group's critics see at one moment."""
        whole_team = group.value is not None and group.value.unique[0].values_per_agent
        return CriticInput(self.critic_states(group, moment), moment.attendance() if whole_team else None)

    # ---- construction ----------------------------------------------------------------------------------------------------

    def _check_critics(self) -> None:
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
        """Build the configured normalisers: one for each parameter set, since one network has one input scale."""
        for group in learner.groups:
            if group.scripts is None:
                group.state_preprocessor = self._preprocessor(group, "state_preprocessor", group.observation_space)
        if self.learns(learner):
            learner.value_preprocessor = self._preprocessor(learner.groups[0], "value_preprocessor", 1)

    def _preprocessor(self, group: Group, key: str, size: gymnasium.Space | int | None) -> SetPreprocessor | None:
        owners = dict(zip(group.names, group.sets, strict=True))
        return make_preprocessor(owners, key, self.agent_cfg[key], self.agent_cfg[f"{key}_kwargs"], size, self.device)

    def _make_networks(self, group: Group) -> GroupNetworks:
        mixed = mixed_precision_allowed(bool(self.agent_cfg["mixed_precision"][group.names[0]]), self.device)
        return GroupNetworks(group, self.device, mixed, self.critic_preprocessor(group))

    def learns(self, learner: Learner) -> bool:
        """Whether a learner's agents learn (all of them do, or none)."""
        return learner.names[0] in self.learning_agents

    # ---- storage ---------------------------------------------------------------------------------------------------------

    def init(self, trainer_cfg: Mapping[str, Any] | None = None) -> None:
        super().init(trainer_cfg)
        self._remembered, self._set_aside = {}, {}
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
            rollout.clear()
            rollout.memory.reset()

    def _create_storage(self, memories: Mapping[str, Memory]) -> None:
        num_envs = next(iter(memories.values())).num_envs
        for learner in self.learners:
            for group in learner.groups:
                width = self._log_prob_width(group)
                self._storage[group.names] = Rollout(
                    group, self.rollouts, num_envs, width, learner.sequence_length, self.device
                )
        self._show_storage()

    def _show_storage(self) -> None:
        """Let the agents' memories show what is stored."""
        assert self.memories is not None
        shared: dict[str, Tensor] = {}
        if self._shared is not None:
            shared["shared_states"] = self._shared.get_tensor_by_name("shared_states")
        for rollout in self._storage.values():
            rollout.show_in(self.memories, shared)

    def _log_prob_width(self, group: Group) -> int:
        """1, or the number of action dimensions for policies that don't reduce over them."""
        if group.policy is None:
            return 1
        zeros = torch.zeros(1, group.size, group.observation_width, device=self.device)
        with torch.no_grad():
            distribution, _ = self.networks[group.names].distribution(zeros)
            return distribution.log_prob(distribution.mode()).shape[-1]

    @property
    def rollouts(self) -> int:
        """Number of steps T between updates."""
        return int(self.cfg["rollouts"])

    # ---- acting ----------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def act(
        self, states: Mapping[str, Tensor], timestep: int, timesteps: int, infos: Mapping[str, Any] | None = None
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor], Mapping[str, Mapping[str, Tensor]]]:
        if infos is not None:
            self._masks = Masks(infos)
            if "episode_starts" in infos:
                self._forget(infos["episode_starts"])
        masks = self._masks  # without infos those of the last step
        actions, log_prob, distributions = {}, {}, {}
        for group in self.groups:
            observed = self._observed("states", states, group, masks)
            self._check_finite("states", observed, group.names)
            explores = self.training and timestep < self.agent_cfg["random_timesteps"][group.names[0]]
            choice, distribution = self._choose(group, observed, masks, explores)
            self._pending[group.names] = choice
            actions[group.names], log_prob[group.names] = choice.actions, choice.log_prob
            if distribution is not None:
                distributions[group.names] = distribution
        return AgentTensors(actions), AgentTensors(log_prob), Outputs(distributions, actions)

    def _observed(self, what: str, states: Mapping[str, Tensor], group: Group, masks: Masks) -> Tensor:
        """A group's observations ``[E, A, F]``, zeros where an agent is absent."""
        return blank(self._stack(what, states, group.names, group.observation_width), masks.present(group.names))

    def _choose(
        self, group: Group, observed: Tensor, masks: Masks, explores: bool
    ) -> tuple[_Choice, Distribution | None]:
        """Draw actions for observations ``[E, A, F]``, uniformly where ``explores``."""
        allowed = masks.actions(group.names, flat_size(group.action_space))
        if allowed is not None and allowed.device.type == "cpu":  # elsewhere the look would wait for the device
            check_action_masks(allowed, group.action_space, group.names)
        if group.scripts is not None:
            scripted = [
                script.choose(observed[:, i], None if allowed is None else allowed[:, i])
                for i, script in enumerate(group.scripts)
            ]
            chosen = torch.stack(scripted, dim=1)
            return _Choice(chosen, chosen, chosen.new_zeros((*chosen.shape[:2], 1), dtype=torch.float32), None), None
        assert group.policy is not None
        distribution, state = self._look(group, observed, masks, allowed)
        if explores:
            inputs = {"states": observed, "action_masks": allowed}
            latent = distribution.latent(group.policy.models[0].random_act(inputs, "policy")[0])
        else:
            latent = distribution.sample()
        return _Choice(distribution.actions(latent), latent, distribution.log_prob(latent), state), distribution

    def _look(
        self, group: Group, observed: Tensor, masks: Masks, allowed: Tensor | None
    ) -> tuple[Distribution, Tensor | None]:
        """The policies' distributions; recurrent ones take the observations in.

        :return: with the distributions, the recurrent state from which they were worked out
        """
        networks = self.networks[group.names]
        states = networks.normalised(observed)
        if not networks.remembers:
            return networks.distribution(states, allowed)[0], None
        assert group.policy is not None
        before = self._remembered.get(group.names)
        if before is None or before.shape[0] != observed.shape[0]:
            before = group.policy.initial_state(*observed.shape[:2])
        recall = Recall(before, active=masks.active(group.names))
        distribution, after = networks.distribution(states, allowed, recall)
        assert after is not None
        self._remembered[group.names] = after
        return distribution, before

    def _forget(self, ended: Mapping[str, Tensor]) -> None:
        """Clear the policies' recurrent states where an agent's episode ended, bool ``[E, 1]`` by agent."""
        for names, state in self._remembered.items():
            self._remembered[names] = state.masked_fill(self._stack("episode_starts", ended, names), 0.0)

    def set_running_mode(self, mode: str) -> None:
        was_training = self.training
        super().set_running_mode(mode)
        self._pending.clear()
        if was_training and not self.training:
            self._set_aside = self._remembered
        if not self.training:  # an evaluation begins with new episodes
            self._remembered = {}
        elif not was_training:
            self._remembered, self._set_aside = self._set_aside, {}

    # ---- recording -------------------------------------------------------------------------------------------------------

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
        masks = self._masks  # the base takes in those of next_states
        super().record_transition(
            states, actions, rewards, next_states, terminated, truncated, infos, timestep, timesteps
        )
        if not self._storage:
            return
        everyone, present = tuple(self.possible_agents), masks.present(self.possible_agents)
        if present is not None:
            flags = (self._stack("terminated", terminated, everyone), self._stack("truncated", truncated, everyone))
            terminated, truncated = (AgentTensors.single(everyone, own) for own in own_ends(*flags, present))
        self._record_shared_state(infos)
        grown = False
        for group in self.groups:
            names, rollout = group.names, self._storage[group.names]
            observed = self._observed("states", states, group, masks)
            choice = self._taken(group, observed, actions, masks)
            earned = blank(self._stack("rewards", rewards, names), masks.present(names))
            done, cut = self._stack("terminated", terminated, names), self._stack("truncated", truncated, names)
            row = {
                "states": observed,
                "actions": choice.latent,
                "log_prob": choice.log_prob,
                "rewards": blank(self._shaped(group, earned, timestep, timesteps), masks.present(names)),
                "terminated": done,
                "truncated": cut,
            }
            shown = {
                "active": masks.active(names),
                "present": masks.present(names),
                "action_masks": masks.actions(names, flat_size(group.action_space)),
            }
            grown |= rollout.add(row, shown, choice.state)
            if names in self._remembered:
                self._remembered[names] = self._remembered[names].masked_fill(done | cut, 0.0)
        if grown:
            self._show_storage()
        self._record_successors(next_states, terminated, truncated, infos, masks)
        self._recorded += 1

    def _record_shared_state(self, infos: Mapping[str, Any]) -> None:
        if not self.uses_shared_states:
            return
        if self._shared is None:
            self._shared = Memory(self.rollouts, next(iter(self._storage.values())).memory.num_envs, self.device)
            self._shared.create_tensor("shared_states", flat_size(self.shared_space()))
            self._show_storage()
        shared = self._shared_state(infos, "shared_states")
        assert shared is not None
        self._check_finite("infos['shared_states']", shared.unsqueeze(1), ["team"])
        self._shared.add_samples(shared_states=shared)

    def shared_space(self) -> gymnasium.Space | int:
        """Space or size of the shared state, for those whose critics see it."""
        return 0

    def _record_successors(
        self,
        next_states: Mapping[str, Tensor],
        terminated: Mapping[str, Tensor],
        truncated: Mapping[str, Tensor],
        infos: Mapping[str, Any],
        masks: Masks,
    ) -> None:
        """Keep the critics' inputs that the rollout itself does not show: after its last row, and where a time limit struck.

        :param masks: those of the states that the step began with
        """
        row = self._recorded % self.rollouts
        if row + 1 == self.rollouts:
            shared = self._shared_state(infos, "shared_next_states")
            moment = self._moment("next_states", next_states, shared, self._masks)
            for group in self._learning_groups():
                rollout = self._storage[group.names]
                rollout.last = self._seen_by_critics(group, moment, "the critic's next states")
                rollout.active_next = self._masks.active(group.names)
        if not self._bootstraps:
            return
        ended = self._stack("terminated", terminated, self.possible_agents)
        struck = self._stack("truncated", truncated, self.possible_agents) & ~ended
        if not bool(struck.any()):
            return
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
            final = {uid: torch.where(over, final[uid], next_states[uid]) for uid in self.possible_agents}
            going_on = self._shared_state(infos, "shared_next_states")
            shared = None if shared is None or going_on is None else torch.where(over, shared, going_on)
        moment = self._moment("final_states", final, shared, masks)
        for group in self._learning_groups():
            cut = self._stack("truncated", truncated, group.names) & ~self._stack("terminated", terminated, group.names)
            envs = cut.any(dim=1).squeeze(-1).nonzero().squeeze(-1)
            if len(envs):
                critic = self._seen_by_critics(group, moment, "the critic's final states", envs)
                self._storage[group.names].cuts.append(Cut(row, envs, critic, cut[envs]))

    def _rollout_moment(self) -> Moment:
        """What could be seen at all rows of the rollout."""
        return Moment(
            self.groups,
            self.possible_agents,
            lambda group: self._storage[group.names].rows("states"),
            None if self._shared is None else self._shared.get_tensor_by_name("shared_states", keepdim=False),
            lambda group: self._storage[group.names].row_mask("present"),
        )

    def _learning_groups(self) -> list[Group]:
        return [group for learner in self.learners if self.learns(learner) for group in learner.groups]

    def _moment(self, what: str, states: Mapping[str, Tensor], shared: Tensor | None, masks: Masks) -> Moment:
        """What can be seen at one moment of all environments."""
        return Moment(
            self.groups,
            self.possible_agents,
            lambda group: self._observed(what, states, group, masks),
            shared,
            lambda group: masks.present(group.names),
        )

    def _seen_by_critics(self, group: Group, moment: Moment, what: str, envs: Tensor | None = None) -> CriticInput:
        """The critics' inputs at a moment, those of some environments where asked for, in storage of their own."""
        critic = self.critic_inputs(group, moment)
        critic = critic._replace(states=critic.states.clone()) if envs is None else critic.at(envs)
        self._check_finite(what, critic.states, group.names)
        return critic

    def _shared_state(self, infos: Mapping[str, Any], key: str) -> Tensor | None:
        """The shared state ``[E, F]`` of a moment, None where critics don't see it.

        :raises KeyError: it is not in ``infos``
        :raises ValueError: it has another shape
        """
        if self._shared is None:
            return None
        if not isinstance(infos.get(key), Tensor):
            raise KeyError(
                f"infos[{key!r}]: expected the shared state, a tensor [E, F]; got {type(infos.get(key)).__name__}"
            )
        state: Tensor = infos[key]
        expected = (self._shared.num_envs, *self._shared.get_tensor_by_name("shared_states").shape[2:])
        if state.shape != expected:
            raise ValueError(f"infos[{key!r}]: expected a tensor of shape {list(expected)}, got {list(state.shape)}")
        return state

    def _taken(self, group: Group, observed: Tensor, actions: Mapping[str, Tensor], masks: Masks) -> _Choice:
        """The choice that ``act`` made, or one worked out for actions that came from elsewhere."""
        taken = self._stack("actions", actions, group.names, group.action_width)
        active = masks.active(group.names)
        pending = self._pending.pop(group.names, None)
        if pending is not None:
            if taken is pending.actions:
                return pending
            if active is not None:  # what is passed for an agent that does not act means nothing
                taken = torch.where(active, taken, pending.actions)
            if group.scripts is not None or torch.equal(taken, pending.actions):
                return pending
        taken = blank(taken, active)
        if group.scripts is not None:
            return _Choice(taken, taken, taken.new_zeros((*taken.shape[:2], 1), dtype=torch.float32), None)
        allowed = masks.actions(group.names, flat_size(group.action_space))
        if pending is not None and pending.state is not None:  # it was worked out from what was remembered before
            self._remembered[group.names] = pending.state
        distribution, state = self._look(group, observed, masks, allowed)
        latent = distribution.latent(taken)
        return _Choice(taken, latent, distribution.log_prob(latent), state)

    def _shaped(self, group: Group, rewards: Tensor, timestep: int, timesteps: int) -> Tensor:
        shapers = [self.agent_cfg["rewards_shaper"][uid] for uid in group.names]
        if all(shaper is None for shaper in shapers):
            return rewards
        columns = [
            column if shaper is None else shaper(column.clone(), timestep, timesteps)
            for shaper, column in zip(shapers, rewards.unbind(1), strict=True)
        ]
        return torch.stack(columns, dim=1)

    def post_interaction(self, timestep: int, timesteps: int) -> None:
        if self._storage and self._recorded and self._recorded % self.rollouts == 0:
            self._check_rollout()
            self._update(timestep, timesteps)
            for rollout in self._storage.values():
                rollout.clear()
        super().post_interaction(timestep, timesteps)

    def _check_rollout(self) -> None:
        """Refuse NaN and infinity in what is about to be learned from (on a CPU each step has been looked at already)."""
        for group in self.groups:
            for name in ("states", "rewards"):
                rollout = self._storage[group.names]
                check_finite(f"the rollout's {name}", rollout.rows(name), group.names, rollout.memory.num_envs)
