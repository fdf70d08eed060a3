"""Multi-agent proximal policy optimisation: all that its centralised and decentralised forms have in common.

The update, for each set of parameters, after T steps of E environments (Yu et al. 2022, arXiv 2103.01955, algorithm 1)::

    V_t = V(x_t);  A_t, R_t = GAE(r, V, true successors' V)         x: what the critic sees
    A <- (A - mean) / std
    for each epoch, for each shuffled minibatch:
        L = mean over agents of  L_policy - c_e * entropy + c_V * L_value
        step down the gradient of L, clipped
    learn the observations' statistics, for the next rollout

Means and statistics are over the rows in which an agent acts. Recurrent models learn from chunks of a rollout, shuffled
in place of its rows, and start each from the state that it was recorded with.

Departures from the paper: agents are batched rather than looped over, the squared error is the default in place of the Huber
loss, and a KL bound may end the epochs early.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from coterie import functional
from coterie.agents.checks import check_std_from_outside
from coterie.agents.config import Config, Key, scheduled_value
from coterie.agents.evaluation import Evaluation, evaluate, memory_rules
from coterie.agents.group_networks import CriticInput, Recall
from coterie.agents.groups import CriticGroup, Group, Learner
from coterie.agents.moments import Moment
from coterie.agents.normalisation import OutputKeeper
from coterie.agents.on_policy import OnPolicyAgent
from coterie.agents.ppo_advantages import standardise_advantages
from coterie.agents.ppo_config import PPO_DEFAULT_CONFIG, PPO_KEYS
from coterie.agents.ppo_statistics import UpdateStatistics
from coterie.agents.ppo_weights import LossWeights, loss_weights
from coterie.agents.rollout import Batch, CriticBatch, Rollout, as_sequences, minibatches

__all__ = ["MultiAgentPPO"]


class MultiAgentPPO(OnPolicyAgent):
    """Base of the two forms of multi-agent PPO, which differ in what their critics see.

    See :class:`OnPolicyAgent` for the parameters.
    """

    DEFAULT_CONFIG: ClassVar[Config] = PPO_DEFAULT_CONFIG
    KEYS: ClassVar[Mapping[str, Key]] = PPO_KEYS
    OWN_KEYS: ClassVar[tuple[str, ...]] = (
        "learning_rate", "learning_rate_scheduler", "learning_rate_scheduler_kwargs", "grad_norm_clip", "kl_threshold",
        "value_preprocessor_kwargs",
    )  # fmt: skip
    COMMON_KEYS: ClassVar[tuple[str, ...]] = (
        "learning_epochs", "mini_batches", "random_timesteps", "learning_starts", "mixed_precision",
        "state_preprocessor", "value_preprocessor", "advantage_normalization", "kl_estimator", "exploration_std", "trainable",
    )  # fmt: skip

    def _build(self) -> None:
        super()._build()
        self._weights: dict[tuple[str, ...], LossWeights] = {}
        self._critic_states: dict[tuple[str, ...], Tensor] = {}  # of recurrent critics, at the end of the last rollout
        for group in self.groups:
            self._set_std(group)
        if self.memories is not None:
            for learner in self.learners:
                if self.learns(learner):
                    self._make_optimizers(learner, has_kl=True)
                    if learner.value_preprocessor is not None:
                        OutputKeeper(learner.value_preprocessor, learner.value_models())  # for its checks

    def _explores_at(self, group: Group) -> Any:
        """The standard deviation that is configured for a group: a number, a schedule, or None."""
        uid = group.names[0]
        applies = group.policy is not None and self._applies("exploration_std", uid)
        return self.agent_cfg["exploration_std"][uid] if applies else None

    def _set_std(self, group: Group) -> None:
        std = self._explores_at(group)
        if std is not None:
            assert group.policy is not None
            check_std_from_outside(group.names, group.policy.unique)
            # that of a schedule changes when a rollout begins
            first = scheduled_value("exploration_std", std, 0, 1, above=True) if callable(std) else float(std)
            self.networks[group.names].exploration["std"] = first

    def checkpoint_state(self) -> dict[str, Any]:
        stds = {
            names[0]: networks.exploration["std"]
            for names, networks in self.networks.items()
            if "std" in networks.exploration
        }
        return {**super().checkpoint_state(), "exploration_std": stds}

    def load_checkpoint_state(self, state: Mapping[str, Any]) -> None:
        super().load_checkpoint_state(state)
        for names, networks in self.networks.items():
            std = state.get("exploration_std", {}).get(names[0])
            if std is not None and callable(self._explores_at(networks.group)):
                networks.exploration["std"] = std

    def init(self, trainer_cfg: Mapping[str, Any] | None = None) -> None:
        super().init(trainer_cfg)
        self._critic_states.clear()

    # ---- acting ----------------------------------------------------------------------------------------------------------

    def act(
        self, states: Mapping[str, Tensor], timestep: int, timesteps: int, infos: Mapping[str, Any] | None = None
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor], Mapping[str, Mapping[str, Tensor]]]:
        if self.training and self._recorded % self.rollouts == 0:  # the update must see what acting saw
            for group in self.groups:
                std = self._explores_at(group)
                if callable(std):
                    value = scheduled_value("exploration_std", std, timestep, timesteps, above=True)
                    self.networks[group.names].exploration["std"] = value
        return super().act(states, timestep, timesteps, infos)

    # ---- the update ------------------------------------------------------------------------------------------------------

    def _update(self, timestep: int, timesteps: int) -> None:
        learning = [learner for learner in self.learners if self.learns(learner)]
        due = [e for e in learning if timestep >= self.agent_cfg["learning_starts"][e.names[0]]]
        for learner in learning:
            if learner not in due:
                self._look_on(learner)
        for group in (group for learner in due for group in learner.groups):
            self._weights[group.names] = loss_weights(
                lambda key, part, group=group: self.config_values(group, key, part, timestep, timesteps)  # type: ignore[misc]
            )
        for learner in due:
            try:
                self._learn(learner, timestep, timesteps)
            finally:
                self.set_mode("eval")

    @torch.no_grad()
    def _look_on(self, learner: Learner) -> None:
        """Take in a rollout that is not learned from: what recurrent critics remember belongs to the running episodes."""
        moment = self._rollout_moment()
        for critics in learner.critics:
            if critics.batch.recurrent:
                self._evaluate(critics, self._critic_rows(critics, moment))

    def _learn(self, learner: Learner, timestep: int, timesteps: int) -> None:
        """One update of the learner's parameter sets: targets, epochs of minibatches, normalisers."""
        assert learner.optimizers is not None
        leader = learner.names[0]
        epochs, parts = self.agent_cfg["learning_epochs"][leader], self.agent_cfg["mini_batches"][leader]
        batches, seen = self._batches(learner)
        taking_part = self._taking_part(learner, batches)
        if not any(taking_part):
            return
        self.set_mode("train")  # only now: targets are those of the critics as they act
        statistics = UpdateStatistics(learner)
        learner.optimizers.begin_update(timestep, timesteps, taking_part)
        for _ in range(epochs):
            for minibatch, its_seen in minibatches(batches, seen, parts):
                loss = self._loss(learner, minibatch, self._values(learner, its_seen), statistics)
                statistics.add_norm(learner.optimizers.step(loss))
            if not learner.optimizers.end_epoch(statistics.end_epoch()):
                break
        statistics.check_norms()
        self._learn_states(learner)
        self._track(learner, statistics)

    def _taking_part(self, learner: Learner, batches: Sequence[Batch]) -> list[bool]:
        """Which parameter sets have anything to learn from; the others' optimizers and schedulers rest."""
        masks = [batch.mask for batch in batches if batch.mask is not None]
        if not masks:
            return [True] * learner.num_sets
        agents = torch.cat([mask.flatten(0, -3).any(dim=0).squeeze(-1) for mask in masks])
        # a learner of several sets has one group, ordered by set
        return agents.view(learner.num_sets, -1).any(dim=1).tolist()

    def _values(self, learner: Learner, seen: Sequence[CriticBatch]) -> dict[tuple[str, ...], Tensor]:
        """What critics predict on one minibatch, ``[B, A or 1, 1]`` by group: each critic runs once."""
        values: dict[tuple[str, ...], Tensor] = {}
        for critics, part in zip(learner.critics, seen, strict=True):
            networks = self.critic_networks[critics.names]
            values |= critics.by_group(networks.values(CriticInput(part.states, part.present), part.recall)[0])
        return values

    def _loss(
        self,
        learner: Learner,
        batches: Sequence[Batch],
        values: Mapping[tuple[str, ...], Tensor],
        statistics: UpdateStatistics,
    ) -> Tensor:
        """The sum over parameter sets of the mean of a set's rows on one minibatch: sets have no parameters in common."""
        counts = [None if batch.mask is None else batch.mask.sum(dim=(0, 2)) for batch in batches]
        losses = torch.cat(
            [
                self._losses(group, batch, values[group.names], count, statistics)
                for group, batch, count in zip(learner.groups, batches, counts, strict=True)
            ]
        )
        if counts[0] is None:
            return losses.sum() / learner.agents_per_set
        present = torch.cat([count for count in counts if count is not None])
        # a learner of several sets has one group, ordered by set
        of_set = present.view(learner.num_sets, -1).sum(dim=1, keepdim=True).clamp_min(1)
        return (losses * (present.view(learner.num_sets, -1) / of_set).flatten()).sum()

    def _losses(
        self, group: Group, batch: Batch, values: Tensor, count: Tensor | None, statistics: UpdateStatistics
    ) -> Tensor:
        """Each agent's loss ``[A]`` on one minibatch, the mean over the rows that count."""
        weights, networks, mask = self._weights[group.names], self.networks[group.names], batch.mask
        distribution, _ = networks.distribution(batch.states, batch.action_masks, batch.recall)
        log_ratio = distribution.log_prob(batch.actions) - batch.log_prob
        if mask is not None:  # a ratio that is infinite where it does not count would have a gradient of 0 * infinity
            log_ratio = torch.where(mask, log_ratio, 0.0)
        with torch.set_grad_enabled(weights.explores):
            entropy = distribution.entropy()
        policy_loss = functional.clipped_surrogate_loss(log_ratio, batch.advantages, weights.ratio_clip)
        value_loss = functional.clipped_value_loss(
            values, batch.values, batch.returns, weights.value_clip, weights.huber_delta
        )
        with torch.no_grad():
            kl = functional.kl_estimate(log_ratio, self.agent_cfg["kl_estimator"][group.names[0]])
            clipped = functional.is_clipped(log_ratio, weights.ratio_clip).float()
            std = distribution.std
            if std is not None and mask is not None:
                std = functional.masked_mean(std.expand_as(distribution.mean), mask, (0, 2)).view(1, -1, 1)
        # where log-probabilities are not summed over the actions' dimensions, an action's loss is the mean of theirs
        terms = (policy_loss, value_loss, entropy, kl, clipped)
        rows = torch.cat([x if x.shape[-1] == 1 else x.mean(dim=-1, keepdim=True) for x in terms], dim=-1)
        means = rows.mean(dim=0) if mask is None else functional.masked_mean(rows, mask, 0)
        statistics.add(group, means, count, std)
        of_policy, of_value, of_entropy = means.unbind(dim=-1)[:3]
        loss = of_policy + weights.value_scale * of_value
        return loss - weights.entropy_scale * of_entropy if weights.explores else loss

    # ---- what the epochs read --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _batches(self, learner: Learner) -> tuple[list[Batch], list[CriticBatch]]:
        """Advantages and returns of the learner's groups, what else its epochs read, and what its critics see in them."""
        moment = self._rollout_moment()
        seen: list[CriticBatch] = []
        values: dict[tuple[str, ...], Tensor] = {}
        successors: dict[tuple[str, ...], Tensor] = {}
        for critics in learner.critics:
            rows = self._critic_rows(critics, moment)
            evaluation = self._evaluate(critics, rows)
            values |= critics.by_group(evaluation.values)
            successors |= critics.by_group(evaluation.successors)
            seen.append(self._critic_batch(critics, rows, evaluation.chunk_states))
        for group in learner.groups:
            self._targets(learner, group, values[group.names], successors[group.names])
        masks = self._counting(learner)
        self._standardise(learner, masks)
        predicted = self._learn_returns(learner, [values[group.names] for group in learner.groups], masks)
        batches = [
            self._batch(learner, group, old, mask)
            for group, old, mask in zip(learner.groups, predicted, masks, strict=True)
        ]
        return batches, seen

    def _critic_rows(self, critics: CriticGroup, moment: Moment) -> CriticInput:
        return self.critic_networks[critics.names].normalised(self.critic_inputs(critics, moment))

    def _rollouts(self, critics: CriticGroup) -> list[Rollout]:
        return [self._storage[group.names] for group in critics.groups]

    def _evaluate(self, critics: CriticGroup, rows: CriticInput) -> Evaluation:
        """Run critics over a rollout; recurrent ones go on from where they stood at the end of the last one."""
        names = critics.names
        networks, beyond = self.critic_networks[names], self._successors[names]
        state = self._critic_states.get(names)
        evaluation = evaluate(networks, self._rollouts(critics), rows, beyond, state, self._over())
        if evaluation.state is not None:
            self._critic_states[names] = evaluation.state
        return evaluation

    def _targets(self, learner: Learner, group: Group, predicted: Tensor, successors: Tensor) -> None:
        """Work out a rollout's values, advantages and returns from what critics predict for its rows and their successors."""
        rollout, weights = self._storage[group.names], self._weights[group.names]
        values = self._denormalise(learner, predicted)
        terminated, truncated = rollout["terminated"], rollout["truncated"]
        bootstraps = torch.as_tensor(weights.bootstraps, device=self.device).bool()
        advantages, returns = functional.gae(
            rollout["rewards"],
            values,
            self._denormalise(learner, successors),
            terminated | (truncated & ~bootstraps),
            truncated,
            weights.discount,
            weights.gae_lambda,
            rollout.mask("active"),
            rollout.active_next,
        )
        rollout["values"].copy_(values)
        rollout["returns"].copy_(returns)
        rollout["advantages"].copy_(advantages)

    def _counting(self, learner: Learner) -> list[Tensor | None]:
        """Which rows count, bool ``[T, E, A, 1]`` for each group, all None where all do: those in which an agent acts and
        whose outcome the rollout knows.
        """
        masks: list[Tensor | None] = []
        for group in learner.groups:
            rollout = self._storage[group.names]
            active, following = rollout.mask("active"), rollout.active_next
            # all may have acted in every row, and some wait after the last
            if active is not None or following is not None:
                active = torch.ones_like(rollout["terminated"]) if active is None else active
                following = torch.ones_like(active[0]) if following is None else following
                active = functional.outcome_known(active, rollout.ended(), following)
            masks.append(active)
        if all(mask is None for mask in masks) and self.rollouts % self._length(learner) == 0:
            return masks
        rollouts = [self._storage[group.names] for group in learner.groups]
        return [
            torch.ones_like(rollout["terminated"]) if mask is None else mask
            for rollout, mask in zip(rollouts, masks, strict=True)
        ]

    def _length(self, learner: Learner) -> int:
        return self._storage[learner.groups[0].names].length

    def _standardise(self, learner: Learner, masks: Sequence[Tensor | None]) -> None:
        advantages = [self._storage[group.names]["advantages"] for group in learner.groups]
        scope = self.agent_cfg["advantage_normalization"][learner.names[0]]
        for old, new in zip(
            advantages, standardise_advantages(advantages, masks, scope, learner.num_sets), strict=True
        ):
            old.copy_(new)

    def _learn_returns(
        self, learner: Learner, predicted: Sequence[Tensor], masks: Sequence[Tensor | None]
    ) -> list[Tensor]:
        """Let the value normaliser learn from the returns, and from nothing else.

        :param predicted: the values ``[T, E, A, 1]`` that each group's critics predicted

        :return: the values as they would predict them now
        """
        stage = learner.value_preprocessor
        if stage is None:
            return list(predicted)
        rollouts = [self._storage[group.names] for group in learner.groups]
        returns = torch.cat([rollout.rows("returns") for rollout in rollouts], dim=1)
        counting = [mask.flatten(0, 1) for mask in masks if mask is not None]
        outputs = OutputKeeper(stage, learner.value_models())
        stage(returns, train=True, mask=torch.cat(counting, dim=1) if counting else None)
        if not outputs.rescales:
            return list(predicted)
        outputs.rescale()
        return [outputs.renewed(values) for values in predicted]

    def _batch(self, learner: Learner, group: Group, predicted: Tensor, mask: Tensor | None) -> Batch:
        rollout, networks = self._storage[group.names], self.networks[group.names]
        length, returns = rollout.length, rollout.rows("returns")
        states, recall = rollout.policy_states(), None
        if states is not None:
            recall = self._recall(states, rollout.ended(), rollout.mask("active"), length)

        def in_chunks(rows: Tensor) -> Tensor:
            return self._in_chunks(rows, length)

        return Batch(
            states=in_chunks(networks.normalised(rollout.rows("states"))),
            actions=in_chunks(rollout.rows("actions")),
            log_prob=in_chunks(rollout.rows("log_prob")),
            advantages=in_chunks(rollout.rows("advantages")),
            values=in_chunks(predicted.flatten(0, 1)),
            returns=in_chunks(returns if learner.value_preprocessor is None else learner.value_preprocessor(returns)),
            mask=None if mask is None else as_sequences(mask, length),
            action_masks=self._allowed(rollout, length),
            recall=recall,
            length=length,
        )

    def _critic_batch(self, critics: CriticGroup, rows: CriticInput, chunk_states: Tensor | None) -> CriticBatch:
        rollouts = self._rollouts(critics)
        length, recall = rollouts[0].length, None
        if chunk_states is not None:
            rules = memory_rules(self.critic_networks[critics.names], rollouts, self._over())
            recall = self._recall(chunk_states, *rules, length)
        return CriticBatch(
            self._in_chunks(rows.states, length),
            None if rows.present is None else self._in_chunks(rows.present, length),
            recall,
            length,
        )

    def _in_chunks(self, rows: Tensor, length: int) -> Tensor:
        """``[T * E, ...]`` in sequences of ``length`` steps."""
        return rows if length == 1 else as_sequences(rows.unflatten(0, (self.rollouts, -1)), length)

    def _allowed(self, rollout: Rollout, length: int) -> Tensor | None:
        masks = rollout.mask("action_masks")
        if masks is None:
            return None
        # what fills up the last chunk may do anything
        return ~as_sequences(~masks, length)

    def _over(self) -> Tensor:
        """Where the whole team's episode ended, bool ``[T, E, 1, 1]``."""
        return torch.cat([rollout.ended() for rollout in self._storage.values()], dim=2).all(dim=2, keepdim=True)

    def _recall(self, states: Tensor, ended: Tensor, active: Tensor | None, length: int) -> Recall:
        """What recurrent models are given to learn from the rollout's chunks.

        :param states: at the chunks' starts ``[C * E, A or 1, W]``
        :param ended: after which rows states are zeroed, bool ``[T, E, A or 1, 1]``
        :param active: in which rows they change, None for all
        """
        starts = torch.cat([torch.zeros_like(ended[:1]), ended[:-1]])
        changes = None if active is None else as_sequences(active, length)
        return Recall(states, as_sequences(starts, length), changes, length)

    def _denormalise(self, learner: Learner, values: Tensor) -> Tensor:
        """Values ``[T, E, A, 1]`` on the scale of returns."""
        if learner.value_preprocessor is None:
            return values
        return learner.value_preprocessor(values.flatten(0, 1), inverse=True).view_as(values)

    def _learn_states(self, learner: Learner) -> None:
        """Let observations' normalisers learn once the last epoch is over: until then they stay as they were when acting."""
        for group in learner.groups:
            if group.state_preprocessor is not None:
                rollout = self._storage[group.names]
                group.state_preprocessor(rollout.rows("states"), train=True, mask=rollout.row_mask("active"))

    def _track(self, learner: Learner, statistics: UpdateStatistics) -> None:
        if not self.records.tracker.enabled:
            return
        explained = {}
        for group, mask in zip(learner.groups, self._counting(learner), strict=True):
            rollout = self._storage[group.names]
            explained[group.names] = functional.explained_variance(
                rollout["values"], rollout["returns"], (0, 1), mask
            ).squeeze(-1)
        statistics.write(self.track_data, explained)
