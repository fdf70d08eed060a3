"""Acting: networks, masks and recurrent states, from observations by name to actions by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import torch
from torch import Tensor

from coterie.agent_tensors import AgentTensors
from coterie.agents.acting_state import Choice
from coterie.agents.base import MultiAgent
from coterie.agents.group_networks import GroupNetworks, Recall
from coterie.agents.groups import Group, Learner
from coterie.agents.intake import FLAGS, NUMBERS
from coterie.agents.masks import Masks, blank
from coterie.agents.normalisation import SetPreprocessor, check_agreement, make_preprocessor
from coterie.agents.outputs import Outputs
from coterie.agents.precision import mixed_precision_allowed
from coterie.models.distributions import Distribution, check_action_masks
from coterie.spaces import flat_size

__all__ = ["ActingAgent"]


class ActingAgent(MultiAgent):
    """A team whose policies draw actions from distributions. See :class:`MultiAgent` for the parameters."""

    def _build(self) -> None:
        super()._build()
        for learner in self.learners:
            self._make_preprocessors(learner)
        mixed = {learner.names[0]: self._mixed_precision(learner.names[0]) for learner in self.learners}
        self.networks = {
            group.names: GroupNetworks(group, self.device, mixed[learner.names[0]])
            for learner in self.learners
            for group in learner.groups
        }

    # ---- construction ----------------------------------------------------------------------------------------------------

    def _make_preprocessors(self, learner: Learner) -> None:
        """Build the configured normalisers: one for each parameter set, since one network has one input scale.

        :raises ValueError: agents that share a model differ in their normalisers' settings
        """
        self._check_agreement(learner, "state_preprocessor")
        for group in learner.groups:
            if group.scripts is None:
                group.state_preprocessor = self._preprocessor(group, "state_preprocessor", group.observation_space)

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

    @property
    def _records(self) -> bool:
        """Whether each step is to be recorded: what policies remember moves on with the recording then, else with acting."""
        return self.training and self.memories is not None

    @torch.no_grad()
    def act(
        self, states: Mapping[str, Tensor], timestep: int, timesteps: int, infos: Mapping[str, Any] | None = None
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor], Mapping[str, Mapping[str, Tensor]]]:
        moment = self._acting
        observed, masks = self._look_around(states, infos)  # all of it, before anything changes
        choices, distributions = {}, {}
        for group in self.groups:
            leader = group.names[0]
            explores = (
                self._applies("random_timesteps", leader) and timestep < self.agent_cfg["random_timesteps"][leader]
            )
            choice, distribution = self._choose(group, observed[group.names], masks, self.training and explores)
            choices[group.names] = choice
            if distribution is not None:
                distributions[group.names] = distribution
        moment.masks, moment.seen, moment.choices = masks, observed, choices
        if not self._records:
            moment.move_on()
        actions = {names: choice.actions for names, choice in choices.items()}
        log_prob = {names: choice.log_prob for names, choice in choices.items()}
        return AgentTensors(actions), AgentTensors(log_prob), Outputs(distributions, actions)

    def _look_around(
        self, states: Mapping[str, Tensor], infos: Mapping[str, Any] | None
    ) -> tuple[dict[tuple[str, ...], Tensor], Masks]:
        """Take in what there is to act on: each group's observations ``[E, A, F]``, and the masks."""
        stacks: dict[tuple[str, ...], Tensor] = {}
        rows = None
        for group in self.groups:
            stacks[group.names] = self._stack("states", states, group.names, group.observation_width, NUMBERS, rows)
            rows = stacks[group.names].shape[0]
        assert rows is not None
        # without infos those of the last step hold
        masks = self._masks if infos is None else self._masks_of(infos, rows, states)
        if masks and masks.rows != rows:
            raise ValueError(
                f"states: expected {masks.rows} environments, as the masks of the last step have, got {rows}; pass infos, with "
                "the masks that came with the states"
            )
        for group in self.groups:
            observed = blank(stacks[group.names], masks.present(group.names))
            self._check_finite("states", observed, group.names)
            stacks[group.names] = observed
        if self._records:
            self._check_recorded(stacks)
        self._acting.keep(rows)
        if infos is not None and "episode_starts" in infos:
            self._forget(infos["episode_starts"], rows)
        return stacks, masks

    def _check_recorded(self, stacks: Mapping[tuple[str, ...], Tensor]) -> None:
        """Refuse to let policies with a memory act on other observations before the step that they acted in was recorded.

        Acting on the same ones again is fine: the later choice counts.
        """
        for names, choice in self._acting.choices.items():
            if choice.after is not None and not _equal(stacks[names], self._acting.seen[names]):
                raise RuntimeError(
                    "act: the last step was not recorded, so what recurrent policies are to remember of it is not known; call "
                    "agent.record_transition after each act, agent.set_running_mode('eval') to act without, or agent.init() to "
                    "begin anew"
                )

    def _observed(self, what: str, states: Mapping[str, Tensor], group: Group, present: Tensor | None) -> Tensor:
        """A group's observations ``[E, A, F]``, zeros where an agent is not ``present``, bool ``[E, A, 1]``."""
        return blank(self._stack(what, states, group.names, group.observation_width, NUMBERS, self._num_envs), present)

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
            return Choice(chosen, chosen, chosen.new_zeros((*chosen.shape[:2], 1), dtype=torch.float32)), None
        assert group.policy is not None
        distribution, before, after = self._look(group, observed, masks, allowed, None)
        if explores:
            inputs = {"states": observed, "action_masks": allowed}
            latent = distribution.latent(group.policy.models[0].random_act(inputs, group.policy.role)[0])
        else:
            latent = distribution.sample()
        choice = Choice(distribution.actions(latent), latent, distribution.log_prob(latent), before, after)
        return choice, distribution

    def _look(
        self, group: Group, observed: Tensor, masks: Masks, allowed: Tensor | None, before: Tensor | None
    ) -> tuple[Distribution, Tensor | None, Tensor | None]:
        """The policies' distributions, and the recurrent state before and after they took the observations in.

        :param before: None for the present one
        """
        networks = self.networks[group.names]
        states = networks.normalised(observed)
        if not networks.remembers:
            return networks.distribution(states, allowed)[0], None, None
        assert group.policy is not None
        if before is None:
            before = self._acting.memory.get(group.names)
        if before is None:
            before = group.policy.initial_state(*observed.shape[:2])
        distribution, after = networks.distribution(states, allowed, Recall(before, active=masks.active(group.names)))
        return distribution, before, after

    def _forget(self, ended: Mapping[str, Tensor], rows: int) -> None:
        """Clear the policies' recurrent states where an agent's episode ended, bool ``[E, 1]`` by agent."""
        memory = self._acting.memory
        for names, state in memory.items():
            memory[names] = state.masked_fill(self._stack("episode_starts", ended, names, 1, FLAGS, rows), 0.0)


def _equal(x: Tensor, y: Tensor) -> bool:
    return x is y or (x.shape == y.shape and torch.equal(x, y))
