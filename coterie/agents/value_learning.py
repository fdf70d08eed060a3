"""Learning of action values: what independent and mixed learners have in common.

An update draws windows of rows from the replay memory and takes one step down the gradient of::

    L   = mean over what counts of  l(G_t - Q_t)
    G_t = n-step or TD(lambda) targets of rewards r and values V_{t+1}
    V_t = Q'(o_t, argmax_a Q(o_t, a))        over allowed actions, Q' the target network      (double Q-learning)

``Q_t`` is each agent's value of what it did, or the value that a mixer makes of all agents' (:meth:`ValueLearner._streams`).
Double Q-learning: van Hasselt et al. 2016, arXiv 1509.06461.
"""

from __future__ import annotations

import copy
import logging
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from coterie import functional
from coterie.agents.checks import check_gradients, check_q_models
from coterie.agents.config import Config, ConfigError, Key, scheduled_value
from coterie.agents.groups import Group, Learner
from coterie.agents.moments import Moment
from coterie.agents.off_policy import OffPolicyAgent
from coterie.agents.replay_storage import Drawn, RowMasks, Rows
from coterie.agents.targets import TargetNetworks
from coterie.agents.value_config import VALUE_DEFAULT_CONFIG, VALUE_KEYS
from coterie.agents.value_rewards import LearnedRewards, check_reward_scale
from coterie.agents.value_statistics import ValueStatistics
from coterie.agents.window_values import window_values
from coterie.memories import EpisodeMemory, PrioritizedMemory
from coterie.models.base import Model

__all__ = ["Stream", "ValueLearner"]

_log = logging.getLogger(__name__)

#: number of actions from which it shows whether enough of them are learned from
ENOUGH = 100


@dataclass(frozen=True)
class Stream:
    """Values that are learned: of K agents, or the one of a team. L steps of B windows, ``[L, B, K, 1]`` each.

    ``predicted`` may have the first of the L steps only, where nothing else is learned from.
    """

    predicted: Tensor
    following: Tensor  # values of the states that the steps led to
    rewards: Tensor
    terminated: Tensor
    ended: Tensor
    active: Tensor  # bool, where a value was chosen: a step was taken, and an agent acted in it
    active_next: Tensor  # bool [B, K, 1]: whether one acts behind the last step
    discount: float | Tensor
    huber_delta: float | Tensor


class ValueLearner(OffPolicyAgent):
    """Base of those that learn action values, which differ in what becomes of them: see :class:`OffPolicyAgent`.

    Agents that learn have a ``"q"`` (a :class:`~coterie.models.QMixin`), and Discrete actions. With recurrent models, or an
    :class:`~coterie.memories.EpisodeMemory`, all steps of a window are learned from; else a window is as long as its first
    step's target needs.

    :raises ConfigError: settings that have no effect on what is drawn, or that exclude each other
    """

    DEFAULT_CONFIG: ClassVar[Config] = VALUE_DEFAULT_CONFIG
    KEYS: ClassVar[Mapping[str, Key]] = VALUE_KEYS
    learned_roles: ClassVar[tuple[str, ...]] = ("q",)
    uses_shared_states: ClassVar[bool] = False
    OWN_KEYS: ClassVar[tuple[str, ...]] = (
        "learning_rate", "learning_rate_scheduler", "learning_rate_scheduler_kwargs", "grad_norm_clip",
        "reward_preprocessor_kwargs",
    )  # fmt: skip
    COMMON_KEYS: ClassVar[tuple[str, ...]] = (
        "batch_size", "update_interval", "gradient_steps", "n_step", "td_lambda", "double_q", "burn_in",
        "target_update_interval", "polyak", "random_timesteps", "learning_starts", "mixed_precision", "state_preprocessor",
        "reward_preprocessor", "trainable",
    )  # fmt: skip

    def _build(self) -> None:
        super()._build()
        check_q_models({uid: self.models[uid]["q"] for uid in self.learning_agents}, self.action_spaces)
        #: number of optimizer steps of each learner, by its first agent
        self._steps_taken: dict[str, int] = {}
        #: of how many actions what they led to was known, and how many there were, in the first draws of each learner
        self._known: dict[str, tuple[int, int]] = {}
        self._targets: dict[str, TargetNetworks] = {}
        self._rewards = LearnedRewards(self.cfg["reward"], self._learning_groups())
        self._statistics = ValueStatistics()
        originals = {uid: {role: self.models[uid][role] for role in self._trained(uid)} for uid in self.learning_agents}
        copies: dict[str, dict[str, Model]] = copy.deepcopy(originals)
        twins = self._partition(copies)
        for learner, twin in zip(filter(self.learns, self.learners), twins, strict=True):
            leader = learner.names[0]
            self._check_settings(learner)
            mixed = self._mixed_precision(leader)
            self._targets[leader] = TargetNetworks(learner, twin, copies, originals, self.device, mixed)
            self._steps_taken[leader], self._known[leader] = 0, (0, 0)
            if self.memories is not None:
                self._make_optimizers(learner, has_kl=False)
                self._warn_of_late_targets(learner)

    def init(self, trainer_cfg: Mapping[str, Any] | None = None) -> None:
        super().init(trainer_cfg)
        self._statistics.clear()
        for leader, targets in self._targets.items():
            if not self._steps_taken[leader]:
                targets.follow(1.0)  # parameters may have been loaded into the models since they were copied

    def _warn_of_late_targets(self, learner: Learner) -> None:
        """Warn where target networks go a small part of the way at the interval that is meant for copying them."""
        cfg, usual = self._settings_of(learner), self.DEFAULT_CONFIG["target_update_interval"]
        if cfg["polyak"] < 1 and usual > 1 and cfg["target_update_interval"] == usual:
            _log.warning(
                "cfg['polyak'] is %g and cfg['target_update_interval'] %d, its default: the target networks of %s go a part of "
                "the way in one of %d optimizer steps, and hardly move. Set target_update_interval to 1 for a part of the way "
                "in every step, or polyak to 1 for a copy",
                cfg["polyak"], usual, learner.names, usual,
            )  # fmt: skip

    def _check_settings(self, learner: Learner) -> None:
        cfg = self._settings_of(learner)
        if cfg["n_step"] > 1 and cfg["td_lambda"] > 0:
            raise ConfigError(
                f"n_step {cfg['n_step']} and td_lambda {cfg['td_lambda']}: expected one of them to ask for several steps; "
                "leave n_step at 1 or td_lambda at 0"
            )
        if cfg["burn_in"] and not _remembers(learner):
            raise ConfigError(f"burn_in {cfg['burn_in']}: only recurrent models can be warmed up; leave it at 0")
        if self.memories is None:
            return
        if cfg["td_lambda"] > 0 and learner.sequence_length == 1 and not self._draws_episodes:
            raise ConfigError(
                f"td_lambda {cfg['td_lambda']}: its targets need more than single steps; use an EpisodeMemory or recurrent "
                "models with a sequence_length above 1, or n_step"
            )
        if cfg["n_step"] > learner.sequence_length > 1 and not self._draws_episodes:
            raise ConfigError(
                f"n_step {cfg['n_step']}: sequences of {learner.sequence_length} steps show no more than these; expected a "
                "smaller n_step, or models with a longer sequence_length"
            )
        if cfg["burn_in"] and self._draws_episodes:
            raise ConfigError(f"burn_in {cfg['burn_in']}: episodes are drawn from their first step on; leave it at 0")
        self._check_room_for(cfg["batch_size"], *self._window_size(learner))

    def _check_room_for(self, batch_size: int, length: int, burn_in: int) -> None:
        """Refuse a batch that the memory could never give: nothing would ever be learned.

        :raises ConfigError: see above
        """
        memory = next(iter((self.memories or {}).values()))
        rows = 1 if self._draws_episodes else burn_in + length + 1
        most = max(memory.memory_size - rows + 1, 0) * memory.num_envs
        if not most:
            raise ConfigError(
                f"a memory of {memory.memory_size} rows for each environment never holds a window of {rows} rows, as n_step or "
                "sequence_length and burn_in have it; expected a larger memory_size, or less of these"
            )
        if batch_size > most:
            what = "episodes" if self._draws_episodes else f"windows of {rows} rows"
            raise ConfigError(
                f"batch_size {batch_size}: a memory of {memory.memory_size} rows for each of {memory.num_envs} environments "
                f"holds at most {most} {what}, so that nothing would ever be learned; expected a larger memory_size, or a "
                "smaller batch_size"
            )

    def _settings_of(self, learner: Learner) -> dict[str, Any]:
        """The values of keys that a learner's agents agree on."""
        return {key: self.agent_cfg[key][learner.names[0]] for key in self.COMMON_KEYS}

    @property
    def _draws_episodes(self) -> bool:
        return any(isinstance(memory, EpisodeMemory) for memory in (self.memories or {}).values())

    def _learns_whole_windows(self, learner: Learner) -> bool:
        return _remembers(learner) or self._draws_episodes

    def _make_preprocessors(self, learner: Learner) -> None:
        super()._make_preprocessors(learner)
        if self.learns(learner):
            self._check_agreement(learner, "reward_preprocessor")
            learner.reward_preprocessor = self._preprocessor(learner, "reward_preprocessor", 1)
            check_reward_scale(learner.reward_preprocessor)

    # ---- checkpoints -----------------------------------------------------------------------------------------------------

    def checkpoint_modules(self) -> dict[str, torch.nn.Module]:
        targets = {
            f"targets/{name}": model for target in self._targets.values() for name, model in target.modules().items()
        }
        return {**super().checkpoint_modules(), **targets}

    def checkpoint_state(self) -> dict[str, Any]:
        return {**super().checkpoint_state(), "steps_taken": dict(self._steps_taken)}

    def load_checkpoint_state(self, state: Mapping[str, Any]) -> None:
        super().load_checkpoint_state(state)
        self._steps_taken |= {uid: int(n) for uid, n in state["steps_taken"].items() if uid in self._steps_taken}

    # ---- acting ----------------------------------------------------------------------------------------------------------

    def act(
        self, states: Mapping[str, Tensor], timestep: int, timesteps: int, infos: Mapping[str, Any] | None = None
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor], Mapping[str, Mapping[str, Tensor]]]:
        """See :meth:`MultiAgent.act`. In training actions are epsilon-greedy, else greedy."""
        for group in self.groups:
            if self._applies("exploration_epsilon", group.names[0]) and "q" in self.models[group.names[0]]:
                epsilon = self.epsilon(group, timestep, timesteps) if self.training else 0.0
                self.networks[group.names].exploration["epsilon"] = epsilon
        return super().act(states, timestep, timesteps, infos)

    def epsilon(self, group: Group, timestep: int, timesteps: int) -> float | Tensor:
        """Probability of an action at random: a number, or one for each agent ``[A, 1]``."""
        each = self._epsilons(group, timestep, timesteps)
        if len(set(each)) == 1:
            return each[0]
        return torch.tensor(each, device=self.device).unsqueeze(1)

    def _epsilons(self, group: Group, timestep: int, timesteps: int) -> list[float]:
        key = "exploration_epsilon"
        given = self.cfg[key]
        each = [
            scheduled_value(key, value, timestep, timesteps, high=1.0) if callable(value) else float(value)
            for value in ([given[uid] for uid in group.names] if isinstance(given, Mapping) else [given])
        ]
        return each * (group.size // len(each))

    # ---- scales ----------------------------------------------------------------------------------------------------------

    def _learning_groups(self) -> list[Group]:
        return [group for learner in self.learners if self.learns(learner) for group in learner.groups]

    def _learn_scales(self, rows: Rows, masks: RowMasks, moment: Moment) -> None:
        for group in self._learning_groups():
            if group.state_preprocessor is not None:
                leader = group.names[0]
                group.state_preprocessor(rows[leader]["states"], train=True, mask=masks[leader]["active"])
        rewards = {leader: row["rewards"] for leader, row in rows.items()}
        present = {leader: mask["present"] for leader, mask in masks.items()}
        for learner in self.learners:
            self._rewards.learn_scale(learner, rewards, present)

    # ---- the update ------------------------------------------------------------------------------------------------------

    def _window_size(self, learner: Learner) -> tuple[int, int]:
        leader, length = learner.names[0], learner.sequence_length
        return (length if length > 1 else self.agent_cfg["n_step"][leader]), self.agent_cfg["burn_in"][leader]

    def _learn(self, learner: Learner, timestep: int, timesteps: int) -> None:
        assert learner.optimizers is not None
        assert self._storage is not None
        cfg, leader, memory = self._settings_of(learner), learner.names[0], self._storage.memory
        drawn = self._storage.draw(cfg["batch_size"], *self._window_size(learner))
        streams = self._streams(learner, drawn)
        outcomes = [self._outcome(stream, cfg) for stream in streams]
        if self._known[leader][1] < ENOUGH:
            self._count_known(learner, streams, outcomes)
        each, counts = self._losses(streams, outcomes, drawn.window.weights)
        losses, of_set = _by_set(learner, each, counts)
        amounts, numbers = torch.stack(
            [of_set, losses.detach()]
        ).tolist()  # a wait for the device, as is the look at gradients
        taking_part = [amount > 0 for amount in amounts]
        if not any(taking_part):
            return
        if not all(map(math.isfinite, numbers)):
            raise self._no_number(learner, drawn, numbers)
        learner.optimizers.begin_update(timestep, timesteps, taking_part)
        norms = learner.optimizers.step(losses.sum())
        check_gradients([norms], learner.set_names())
        learner.optimizers.step_schedulers()
        if isinstance(memory, PrioritizedMemory):
            memory.update_priorities(drawn.window, _window_errors(streams, outcomes))
        self._steps_taken[leader] += 1
        if self._steps_taken[leader] % cfg["target_update_interval"] == 0:
            self._targets[leader].follow(cfg["polyak"])
        if self.records.tracker.enabled:
            learned = [(stream.predicted, *outcome) for stream, outcome in zip(streams, outcomes, strict=True)]
            self._statistics.add(learner, each, counts, learned, norms)

    def _count_known(
        self, learner: Learner, streams: Sequence[Stream], outcomes: Sequence[tuple[Tensor, Tensor]]
    ) -> None:
        """Warn, once there were enough choices, where what most of them led to lies outside of what is drawn."""
        known, chosen = self._known[learner.names[0]]
        known += sum(int(counts.sum()) for _, counts in outcomes)
        chosen += sum(int(stream.active[: len(stream.predicted)].sum()) for stream in streams)
        self._known[learner.names[0]] = known, chosen
        if chosen >= ENOUGH and known < 0.75 * chosen:
            _log.warning(
                "%s learn from %.0f %% of their actions only: what the others led to, seen when the agent acts again, lies "
                "outside of the steps that are drawn. Where agents act in turn, set cfg['n_step'] to the number of players, or "
                "use an EpisodeMemory",
                learner.names,
                100 * known / chosen,
            )

    def _no_number(self, learner: Learner, drawn: Drawn, losses: Sequence[float]) -> Exception:
        """What is wrong where a loss of a parameter set is no finite number."""
        seen = {f"{what} of {list(g.names)}": drawn.of(what, g) for g in self.groups for what in ("states", "rewards")}
        if drawn.shared is not None:
            seen["shared states"] = drawn.shared
        for what, numbers in seen.items():
            if not bool(numbers.isfinite().all()):
                return ValueError(
                    f"{what} in the replay memory: expected finite numbers, got others; nothing was learned from them"
                )
        parts = zip(learner.set_names(), losses, strict=True)
        agents, loss = next((names, loss) for names, loss in parts if not math.isfinite(loss))
        return FloatingPointError(
            f"the loss of {agents} is {loss}: expected a finite number; nothing was learned from it. A model returned it, or "
            "values have grown without bound: look at compute, or try a lower learning_rate, a bound of grad_norm_clip, or "
            "smaller rewards"
        )

    @abstractmethod
    def _streams(self, learner: Learner, drawn: Drawn) -> list[Stream]:
        """The values that a learner's update is about."""

    def _values(self, learner: Learner, group: Group, drawn: Drawn) -> tuple[Tensor, Tensor]:
        """See :func:`~coterie.agents.window_values.window_values`."""
        networks = self.networks[group.names], self._targets[learner.names[0]].networks[group.names]
        double = self._settings_of(learner)["double_q"]
        return window_values(group, *networks, drawn, double, self._learns_whole_windows(learner))

    def _outcome(self, stream: Stream, cfg: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Targets of what was predicted, and where there are any: ``[L, B, K, 1]`` each."""
        active: Tensor | None = stream.active
        active_next: Tensor | None = stream.active_next
        if stream.active.device.type == "cpu" and bool(stream.active.all()) and bool(stream.active_next.all()):
            active = active_next = None  # the usual case, in which there is less to do
        targets, known = functional.td_returns(
            stream.rewards, stream.following, stream.terminated, stream.ended, stream.discount,
            cfg["td_lambda"], cfg["n_step"], active, active_next,
        )  # fmt: skip
        rows = len(stream.predicted)
        return targets[:rows], known[:rows]

    def _losses(
        self, streams: Sequence[Stream], outcomes: Sequence[tuple[Tensor, Tensor]], weights: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The mean of what counts of each agent, or of the team, and how much that is: ``[K]`` of all streams each."""
        losses = [
            functional.td_loss(stream.predicted, targets, known, stream.huber_delta, weights, (0, 1, 3))
            for stream, (targets, known) in zip(streams, outcomes, strict=True)
        ]
        return torch.cat(losses), torch.cat([known.sum(dim=(0, 1, 3)) for _, known in outcomes])

    # ---- records ---------------------------------------------------------------------------------------------------------

    def write_tracking_data(self, timestep: int, timesteps: int) -> None:
        last = max(timestep - 1, 0)  # the time step of the last actions
        self._statistics.write(self.track_data, lambda group: self._epsilons(group, last, timesteps))
        super().write_tracking_data(timestep, timesteps)


def _by_set(learner: Learner, losses: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of each parameter set and what it is over, ``[S]`` each, of those of agents ``[K]``."""
    sets = learner.num_sets  # a learner of several sets has one group, ordered by set
    count = counts.view(sets, -1).sum(dim=1)
    return (losses * counts).view(sets, -1).sum(dim=1) / count.clamp_min(1), count


def _remembers(learner: Learner) -> bool:
    """Whether any of a learner's models is recurrent."""
    return any(group.policy is not None and group.policy.recurrent for group in learner.groups)


def _window_errors(streams: Sequence[Stream], outcomes: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Mean absolute error ``[B]`` of what counts in each window."""
    pairs = [
        (
            torch.where(known, targets - stream.predicted.detach(), 0.0).abs().sum(dim=(0, 2, 3)),
            known.sum(dim=(0, 2, 3)),
        )
        for stream, (targets, known) in zip(streams, outcomes, strict=True)
    ]
    errors, counts = (torch.stack(parts).sum(dim=0) for parts in zip(*pairs, strict=True))
    return errors / counts.clamp_min(1)
