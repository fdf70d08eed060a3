"""Multi-agent proximal policy optimisation: all that its centralised and decentralised forms have in common.

The update, for each set of parameters, after T steps of E environments (Yu et al. 2022, arXiv 2103.01955, algorithm 1)::

    V_t = V(x_t);  A_t, R_t = GAE(r, V, true successors' V)         x: what the critic sees
    A <- (A - mean) / std, per agent
    for each epoch, for each shuffled minibatch:
        L = mean over agents of  L_policy - c_e * entropy + c_V * L_value
        step down the gradient of L, clipped
    learn the observations' statistics, for the next rollout

Departures from the paper: agents are batched rather than looped over, the Huber loss is replaced by the squared error, and
a KL bound may end the epochs early.
"""

from __future__ import annotations

import contextlib
import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import gymnasium
import torch
from torch import Tensor

from coterie import functional
from coterie.agent_tensors import AgentTensors
from coterie.agents.base import MultiAgent
from coterie.agents.checks import check_finite, check_memories, refuse_absence
from coterie.agents.config import Config, Key
from coterie.agents.groups import Group, Learner
from coterie.agents.normalisation import SetPreprocessor, make_preprocessor
from coterie.agents.optimizers import OptimizerSettings, SetOptimizers
from coterie.agents.outputs import Outputs
from coterie.agents.ppo_config import PPO_DEFAULT_CONFIG, PPO_KEYS
from coterie.agents.ppo_statistics import UpdateStatistics
from coterie.agents.ppo_weights import loss_weights
from coterie.agents.rollout import Batch, Rollout
from coterie.memories.base import Memory
from coterie.models.base import Model
from coterie.models.distributions import Distribution
from coterie.spaces import flat_size

__all__ = ["MultiAgentPPO"]

_log = logging.getLogger(__name__)


class MultiAgentPPO(MultiAgent):
    """Base of the two forms of multi-agent PPO, which differ in what their critics see.

    See :class:`MultiAgent` for the parameters. With memories, every agent needs a value model, and the memories' size must
    be ``cfg["rollouts"]``.
    """

    DEFAULT_CONFIG: ClassVar[Config] = PPO_DEFAULT_CONFIG
    KEYS: ClassVar[Mapping[str, Key]] = PPO_KEYS
    OWN_KEYS: ClassVar[tuple[str, ...]] = (
        "learning_rate", "learning_rate_scheduler", "learning_rate_scheduler_kwargs", "grad_norm_clip", "kl_threshold",
        "value_preprocessor_kwargs",
    )  # fmt: skip
    COMMON_KEYS: ClassVar[tuple[str, ...]] = (
        "learning_epochs", "mini_batches", "random_timesteps", "learning_starts", "mixed_precision",
        "state_preprocessor", "value_preprocessor",
    )  # fmt: skip

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
        self._pending: dict[tuple[str, ...], tuple[Tensor, Tensor, Tensor]] = {}
        self._storage: dict[tuple[str, ...], Rollout] = {}
        self._shared: Memory | None = None
        self._weights = {group.names: loss_weights(self.config_values, group) for group in self.groups}
        self._recorded = 0
        self._warned = False
        self._bootstraps = any(self.agent_cfg["time_limit_bootstrap"].values())
        if self.memories is not None:
            check_memories(self.memories, self.models, self.rollouts, self.agent_cfg["mini_batches"])
            for learner in self.learners:
                settings = [self._optimizer_settings(names[0]) for names in learner.set_names()]
                learner.optimizers = SetOptimizers(learner.storage, learner.policy_width, settings)

    # ---- what the critic sees: the whole difference between the two forms ------------------------------------------------

    #: what the critic sees, for messages
    critic_input: ClassVar[str]

    @abstractmethod
    def critic_space(self, uid: str) -> gymnasium.Space | None:
        """Space of the critic's input; None where it is whatever the critic was built for."""

    @abstractmethod
    def critic_states(self, states: Tensor, shared_states: Tensor | None) -> Tensor:
        """The critics' inputs ``[..., A or 1, F]`` (1 where all agents' are equal) at one moment.

        :param states: observations ``[..., A, F]``
        :param shared_states: ``[..., F]``, None unless :attr:`uses_shared_states`
        """

    @abstractmethod
    def critic_preprocessor(self, group: Group) -> SetPreprocessor | None:
        """What normalises the critics' inputs."""

    # ---- construction ----------------------------------------------------------------------------------------------------

    def _check_critics(self) -> None:
        for uid, roles in self.models.items():
            space = self.critic_space(uid)
            if "value" not in roles or space is None:
                continue
            built, needed = roles["value"].num_observations, flat_size(space)
            if built != needed:
                raise ValueError(
                    f"the value model of {uid!r} was built for inputs of size {built}, {type(self).__name__} feeds it "
                    f"{needed}: {self.critic_input}"
                )

    def _optimizer_settings(self, uid: str) -> OptimizerSettings:
        value = {key: self.agent_cfg[key][uid] for key in self.OWN_KEYS}
        return OptimizerSettings(
            learning_rate=value["learning_rate"],
            grad_norm_clip=value["grad_norm_clip"],
            kl_threshold=value["kl_threshold"],
            scheduler=value["learning_rate_scheduler"],
            scheduler_kwargs=value["learning_rate_scheduler_kwargs"],
        )

    def _make_preprocessors(self, learner: Learner) -> None:
        """Build the configured normalisers: one for each parameter set, since one network has one input scale."""
        for group in learner.groups:
            group.state_preprocessor = self._preprocessor(group, "state_preprocessor", group.observation_space)
        learner.value_preprocessor = self._preprocessor(learner.groups[0], "value_preprocessor", 1)

    def _preprocessor(self, group: Group, key: str, size: gymnasium.Space | int | None) -> SetPreprocessor | None:
        owners = dict(zip(group.names, group.sets, strict=True))
        return make_preprocessor(owners, key, self.agent_cfg[key], self.agent_cfg[f"{key}_kwargs"], size, self.device)

    # ---- hooks ------------------------------------------------------------------------------------------------------------

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
            rollout.clear()
            rollout.memory.reset()

    def _create_storage(self, memories: Mapping[str, Memory]) -> None:
        num_envs = memories[self.possible_agents[0]].num_envs
        shared: dict[str, Tensor] = {}
        if self.uses_shared_states:
            space = self.critic_space(self.possible_agents[0])
            self._shared = Memory(self.rollouts, num_envs, self.device)
            self._shared.create_tensor("shared_states", flat_size(space))
            shared["shared_states"] = self._shared.get_tensor_by_name("shared_states")
        for group in self.groups:
            rollout = Rollout(group, self.rollouts, num_envs, self._log_prob_width(group), self.device)
            rollout.show_in(memories, shared)
            self._storage[group.names] = rollout

    def _log_prob_width(self, group: Group) -> int:
        """1, or the number of action dimensions for policies that don't reduce over them."""
        zeros = torch.zeros(1, group.size, group.observation_width, device=self.device)
        with torch.no_grad():
            distribution = self._distribution(group, zeros)
            return distribution.log_prob(distribution.mode()).shape[-1]

    @torch.no_grad()
    def act(
        self, states: Mapping[str, Tensor], timestep: int, timesteps: int, infos: Mapping[str, Any] | None = None
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor], Mapping[str, Mapping[str, Tensor]]]:
        actions, log_prob, distributions = {}, {}, {}
        for group in self.groups:
            observed = self._stack("states", states, group.names, group.observation_width)
            self._check_finite("states", observed, group.names)
            distribution = self._distribution(group, self._normalise(group, observed))
            if self.training and timestep < self.agent_cfg["random_timesteps"][group.names[0]]:
                chosen = group.policy.models[0].random_act({"states": observed}, "policy")[0]
                latent = distribution.latent(chosen)
            else:
                latent = distribution.sample()
            actions[group.names] = distribution.actions(latent)
            log_prob[group.names] = distribution.log_prob(latent)
            distributions[group.names] = distribution
            self._pending[group.names] = actions[group.names], latent, log_prob[group.names]
        return AgentTensors(actions), AgentTensors(log_prob), Outputs(distributions)

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
        super().record_transition(
            states, actions, rewards, next_states, terminated, truncated, infos, timestep, timesteps
        )
        if not self._storage:
            return
        refuse_absence(infos)
        shared = self._shared_state(infos, "shared_states")
        if self._shared is not None and shared is not None:
            self._check_finite("infos['shared_states']", shared.unsqueeze(1), ["team"])
            self._shared.add_samples(shared_states=shared)
        for group in self.groups:
            observed = self._stack("states", states, group.names, group.observation_width)
            latent, log_prob = self._latent(group, observed, actions)
            earned = self._stack("rewards", rewards, group.names)
            done = self._stack("terminated", terminated, group.names)
            cut = self._stack("truncated", truncated, group.names)
            self._storage[group.names].memory.add_samples(
                states=observed,
                actions=latent,
                log_prob=log_prob,
                rewards=self._shaped(group, earned, timestep, timesteps),
                terminated=done,
                truncated=cut,
            )
            self._record_successors(group, next_states, cut & ~done, infos)
        self._recorded += 1

    def _record_successors(
        self, group: Group, next_states: Mapping[str, Tensor], cut: Tensor, infos: Mapping[str, Any]
    ) -> None:
        """Keep the critics' inputs that the rollout itself does not show: after its last row, and where a time limit struck.

        :param cut: bool ``[E, A, 1]``, truncated and not terminated
        """
        row = self._recorded % self.rollouts
        width = group.observation_width
        if row + 1 == self.rollouts:
            following = self._stack("next_states", next_states, group.names, width)
            shared = self._shared_state(infos, "shared_next_states")
            critic = self.critic_states(following, shared)
            self._check_finite("the critic's next states", critic, group.names)
            self._storage[group.names].keep_last(critic)
        if not self._bootstraps:
            return
        envs = cut.any(dim=1).squeeze(-1).nonzero().squeeze(-1)
        if len(envs):
            resets = "final_states" in infos
            if not resets and not self._warned:
                self._warned = True
                _log.warning(
                    "an episode was truncated and infos has no 'final_states': next_states are taken for its last "
                    "observations, which is right only for an environment that does not reset itself"
                )
            final = self._stack("final_states", infos["final_states"] if resets else next_states, group.names, width)
            shared = self._shared_state(infos, "final_shared_states" if resets else "shared_next_states")
            final = final[envs]  # only the rows of environments that ended mean anything
            critic = self.critic_states(final, None if shared is None else shared[envs])
            self._check_finite("the critic's final states", critic, group.names)
            self._storage[group.names].keep_cut(row, envs, critic)

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

    @property
    def rollouts(self) -> int:
        """Number of steps T between updates."""
        return int(self.cfg["rollouts"])

    def _latent(self, group: Group, observed: Tensor, actions: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Latent actions and their log-probability: as drawn by ``act``, or worked out for actions from elsewhere."""
        taken = self._stack("actions", actions, group.names, group.action_width)
        pending = self._pending.pop(group.names, None)
        if pending is not None and (taken is pending[0] or torch.equal(taken, pending[0])):
            return pending[1], pending[2]
        distribution = self._distribution(group, self._normalise(group, observed))
        latent = distribution.latent(taken)
        return latent, distribution.log_prob(latent)

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
            self._update(timestep, timesteps)
            for rollout in self._storage.values():
                rollout.clear()
        super().post_interaction(timestep, timesteps)

    def set_running_mode(self, mode: str) -> None:
        super().set_running_mode(mode)
        self._pending.clear()

    # ---- networks --------------------------------------------------------------------------------------------------------

    def _precision(self, group: Group) -> contextlib.AbstractContextManager[Any]:
        if self.agent_cfg["mixed_precision"][group.names[0]]:
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def _distribution(self, group: Group, states: Tensor) -> Distribution:
        """The policies' distributions for normalised observations ``[B, A, F]``, in float32."""
        with self._precision(group):
            tensors = group.policy(states)
        template = group.policy.models[0]
        return template.make_distribution([tensor.float() for tensor in tensors])  # type: ignore[operator]

    def _predict(self, group: Group, critic_states: Tensor) -> Tensor:
        """The critics' predictions ``[B, A or 1, 1]`` for normalised inputs, in float32."""
        assert group.value is not None
        with self._precision(group):
            (values, *_) = group.value(critic_states)
        return values.float()

    def _normalise(self, group: Group, states: Tensor) -> Tensor:
        return states if group.state_preprocessor is None else group.state_preprocessor(states)

    def _normalise_critic(self, group: Group, states: Tensor) -> Tensor:
        preprocessor = self.critic_preprocessor(group)
        return states if preprocessor is None else preprocessor(states)

    # ---- the update ------------------------------------------------------------------------------------------------------

    def _update(self, timestep: int, timesteps: int) -> None:
        due = [e for e in self.learners if timestep >= self.agent_cfg["learning_starts"][e.names[0]]]
        for group in (group for learner in due for group in learner.groups):
            for name in ("states", "rewards"):
                rollout = self._storage[group.names]
                check_finite(f"the rollout's {name}", rollout.rows(name), group.names, rollout.memory.num_envs)
        for learner in due:
            try:
                self._learn(learner)
            finally:
                self.set_mode("eval")

    def _learn(self, learner: Learner) -> None:
        """One update of the learner's parameter sets: targets, epochs of minibatches, normalisers."""
        assert learner.optimizers is not None
        leader = learner.names[0]
        epochs, parts = self.agent_cfg["learning_epochs"][leader], self.agent_cfg["mini_batches"][leader]
        batches = self._batches(learner)
        self.set_mode("train")  # only now: targets are those of the critics as they act
        statistics = UpdateStatistics(learner)
        learner.optimizers.begin_update()
        for _ in range(epochs):
            order = torch.randperm(len(batches[0].states), device=self.device)
            for rows in order.tensor_split(parts):
                losses = [
                    self._losses(group, batch.take(rows), statistics)
                    for group, batch in zip(learner.groups, batches, strict=True)
                ]
                # the sum over sets of the mean over a set's agents: sets have no parameters in common
                loss = torch.cat(losses).sum() / learner.agents_per_set
                statistics.add_norm(learner.optimizers.step(loss))
            if not learner.optimizers.end_epoch(statistics.end_epoch()):
                break
        self._learn_states(learner)
        self._track(learner, statistics)

    def _losses(self, group: Group, batch: Batch, statistics: UpdateStatistics) -> Tensor:
        """Each agent's loss ``[A]`` on one minibatch."""
        weights = self._weights[group.names]
        distribution = self._distribution(group, batch.states)
        log_ratio = distribution.log_prob(batch.actions) - batch.log_prob
        with torch.set_grad_enabled(weights.explores):
            entropy = distribution.entropy().mean(dim=(0, 2))
        values = self._predict(group, batch.critic)
        policy_loss = functional.clipped_surrogate_loss(log_ratio, batch.advantages, weights.ratio_clip)
        value_loss = functional.clipped_value_loss(values, batch.values, batch.returns, weights.value_clip)
        policy_loss, value_loss = policy_loss.mean(dim=(0, 2)), value_loss.mean(dim=(0, 2))
        statistics.add(group, policy_loss, value_loss, entropy, log_ratio, weights.ratio_clip, distribution.std)
        loss = policy_loss + weights.value_scale * value_loss
        return loss - weights.entropy_scale * entropy if weights.explores else loss

    @torch.no_grad()
    def _batches(self, learner: Learner) -> list[Batch]:
        """Advantages and returns of the learner's groups, and what else its epochs read."""
        prepared = [(group, *self._targets(learner, group)) for group in learner.groups]
        if learner.value_preprocessor is not None:  # learns from returns only, and before they are normalised
            all_returns = [self._storage[group.names].rows("returns") for group in learner.groups]
            learner.value_preprocessor(torch.cat(all_returns, dim=1), train=True)
        batches = []
        for group, critic, predicted in prepared:
            rollout = self._storage[group.names]
            returns = rollout.rows("returns")
            batches.append(
                Batch(
                    states=self._normalise(group, rollout.rows("states")),
                    critic=critic,
                    actions=rollout.rows("actions"),
                    log_prob=rollout.rows("log_prob"),
                    advantages=rollout.rows("advantages"),
                    values=predicted,
                    returns=returns if learner.value_preprocessor is None else learner.value_preprocessor(returns),
                )
            )
        return batches

    def _targets(self, learner: Learner, group: Group) -> tuple[Tensor, Tensor]:
        """Work out a rollout's values, advantages and returns.

        :return: the critics' normalised inputs ``[N, A or 1, F]`` and predictions ``[N, A, 1]`` of all rows
        """
        rollout = self._storage[group.names]
        shared = None if self._shared is None else self._shared.get_tensor_by_name("shared_states", keepdim=False)
        critic = self._normalise_critic(group, self.critic_states(rollout.rows("states"), shared))
        predicted = self._predict(group, critic).expand(-1, group.size, -1)
        if predicted.shape[-1] != 1:
            raise ValueError(
                f"the value model of {group.names[0]!r}: expected one value [B, 1], got {predicted.shape[-1]}"
            )
        values = self._denormalise(learner, predicted).view_as(rollout["rewards"])
        terminated, truncated = rollout["terminated"], rollout["truncated"]
        weights = self._weights[group.names]
        bootstraps = torch.as_tensor(weights.bootstraps, device=self.device).bool()
        advantages, returns = functional.gae(
            rollout["rewards"],
            values,
            rollout.successor_values(values, lambda inputs: self._value(learner, group, inputs)),
            terminated | (truncated & ~bootstraps),
            truncated,
            weights.discount,
            weights.gae_lambda,
        )
        rollout["values"].copy_(values)
        rollout["returns"].copy_(returns)
        rollout["advantages"].copy_(functional.standardise(advantages, dim=(0, 1)))
        return critic, predicted

    def _value(self, learner: Learner, group: Group, critic_states: Tensor) -> Tensor:
        """Denormalised values ``[B, A, 1]`` of raw critic inputs ``[B, A or 1, F]``."""
        values = self._predict(group, self._normalise_critic(group, critic_states))
        return self._denormalise(learner, values.expand(-1, group.size, -1))

    def _denormalise(self, learner: Learner, values: Tensor) -> Tensor:
        return values if learner.value_preprocessor is None else learner.value_preprocessor(values, inverse=True)

    def _learn_states(self, learner: Learner) -> None:
        """Let observations' normalisers learn once the last epoch is over: until then they stay as they were when acting."""
        for group in learner.groups:
            if group.state_preprocessor is not None:
                group.state_preprocessor(self._storage[group.names].rows("states"), train=True)

    def _track(self, learner: Learner, statistics: UpdateStatistics) -> None:
        if not self._tracker.enabled:
            return
        explained = {}
        for group in learner.groups:
            rollout = self._storage[group.names]
            returns, values = rollout["returns"], rollout["values"]
            spread = returns.var(dim=(0, 1), correction=0).squeeze(-1).clamp_min(1e-8)
            explained[group.names] = 1.0 - (returns - values).var(dim=(0, 1), correction=0).squeeze(-1) / spread
        statistics.write(self.track_data, explained)
