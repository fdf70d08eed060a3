"""Acting: networks, masks and recurrent states, from observations by name to actions by name."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
import torch
from torch import Tensor

from coterie.agent_tensors import AgentTensors
from coterie.agents.base import MultiAgent
from coterie.agents.group_networks import CriticNetworks, GroupNetworks, Recall
from coterie.agents.groups import CriticGroup, Group, Learner
from coterie.agents.masks import Masks, blank
from coterie.agents.normalisation import SetPreprocessor, check_agreement, make_preprocessor
from coterie.agents.outputs import Outputs
from coterie.agents.precision import mixed_precision_allowed
from coterie.models.distributions import Distribution, check_action_masks
from coterie.spaces import flat_size

__all__ = ["ActingAgent", "Choice"]


@dataclass(frozen=True)
class Choice:
    """What one group chose at a step, until the step is recorded."""

    actions: Tensor  # [E, A, n], as the environment takes them
    latent: Tensor  # [E, A, k], as they were drawn
    log_prob: Tensor  # [E, A, 1]
    state: Tensor | None  # [E, A, W], the recurrent state that they were chosen from


class ActingAgent(MultiAgent):
    """A team whose policies draw actions from distributions. See :class:`MultiAgent` for the parameters."""

    def _build(self) -> None:
        super()._build()
        self._check_critics()
        for learner in self.learners:
            self._make_preprocessors(learner)
        mixed = {learner.names[0]: self._mixed_precision(learner.names[0]) for learner in self.learners}
        self.networks = {
            group.names: GroupNetworks(group, self.device, mixed[learner.names[0]])
            for learner in self.learners
            for group in learner.groups
        }
        self.critic_networks = {
            critics.names: CriticNetworks(
                critics, self.device, mixed[learner.names[0]], self.critic_preprocessor(critics)
            )
            for learner in self.learners
            for critics in learner.critics
        }
        self._pending: dict[tuple[str, ...], Choice] = {}
        self._remembered: dict[tuple[str, ...], Tensor] = {}  # recurrent states [E, A, W] while acting
        self._set_aside: dict[tuple[str, ...], Tensor] = {}  # those of training, during an evaluation

    # ---- construction ----------------------------------------------------------------------------------------------------

    @abstractmethod
    def _check_critics(self) -> None:
        """Check that critics fit what they will see.

        :raises ValueError: one does not
        """

    @abstractmethod
    def critic_preprocessor(self, critics: CriticGroup) -> SetPreprocessor | None:
        """What normalises the critics' inputs."""

    def _make_preprocessors(self, learner: Learner) -> None:
        """Build the configured normalisers: one for each parameter set, since one network has one input scale.

        :raises ValueError: agents that share a model differ in their normalisers' settings
        """
        self._check_agreement(learner, "state_preprocessor")
        for group in learner.groups:
            if group.scripts is None:
                group.state_preprocessor = self._preprocessor(group, "state_preprocessor", group.observation_space)
        if self.learns(learner):
            learner.value_preprocessor = self._preprocessor(learner.groups[0], "value_preprocessor", 1)

    def _check_agreement(self, learner: Learner, key: str) -> None:
        owners = dict(zip(learner.names, learner.sets, strict=True))
        check_agreement(owners, f"{key}_kwargs", self.agent_cfg[f"{key}_kwargs"])

    def _preprocessor(
        self, agents: Group | Learner, key: str, size: gymnasium.Space | int | None
    ) -> SetPreprocessor | None:
        owners = dict(zip(agents.names, agents.sets, strict=True))
        return make_preprocessor(owners, key, self.agent_cfg[key], self.agent_cfg[f"{key}_kwargs"], size, self.device)

    def _mixed_precision(self, uid: str) -> bool:
        return mixed_precision_allowed(bool(self.agent_cfg["mixed_precision"][uid]), self.device)

    def learns(self, learner: Learner) -> bool:
        """Whether a learner's agents learn (all of them do, or none)."""
        return learner.names[0] in self.learning_agents

    def _applies(self, key: str, uid: str) -> bool:
        """Whether a setting of exploration is meant for an agent: one for all is not meant for those that don't learn."""
        return uid in self.learning_agents or isinstance(self.cfg[key], Mapping)

    def _log_prob_width(self, group: Group) -> int:
        """1, or the number of action dimensions for policies that don't reduce over them."""
        if group.policy is None:
            return 1
        zeros = torch.zeros(1, group.size, group.observation_width, device=self.device)
        with torch.no_grad():
            distribution, _ = self.networks[group.names].distribution(zeros)
            return distribution.log_prob(distribution.mode()).shape[-1]

    # ---- hooks ------------------------------------------------------------------------------------------------------------

    def init(self, trainer_cfg: Mapping[str, Any] | None = None) -> None:
        super().init(trainer_cfg)
        self._pending.clear()
        self._remembered, self._set_aside = {}, {}

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
            leader = group.names[0]
            explores = (
                self._applies("random_timesteps", leader) and timestep < self.agent_cfg["random_timesteps"][leader]
            )
            choice, distribution = self._choose(group, observed, masks, self.training and explores)
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
    ) -> tuple[Choice, Distribution | None]:
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
            return Choice(chosen, chosen, chosen.new_zeros((*chosen.shape[:2], 1), dtype=torch.float32), None), None
        assert group.policy is not None
        distribution, state = self._look(group, observed, masks, allowed)
        if explores:
            inputs = {"states": observed, "action_masks": allowed}
            latent = distribution.latent(group.policy.models[0].random_act(inputs, "policy")[0])
        else:
            latent = distribution.sample()
        return Choice(distribution.actions(latent), latent, distribution.log_prob(latent), state), distribution

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

    def _taken(self, group: Group, observed: Tensor, actions: Mapping[str, Tensor], masks: Masks) -> Choice:
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
            return Choice(taken, taken, taken.new_zeros((*taken.shape[:2], 1), dtype=torch.float32), None)
        allowed = masks.actions(group.names, flat_size(group.action_space))
        if pending is not None and pending.state is not None:  # it was worked out from what was remembered before
            self._remembered[group.names] = pending.state
        distribution, state = self._look(group, observed, masks, allowed)
        latent = distribution.latent(taken)
        return Choice(taken, latent, distribution.log_prob(latent), state)
