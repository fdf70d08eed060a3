"""One update of MAPPO or IPPO, written slowly: loops over agents, sets, environments and steps, in float64.

It follows the formulas of Schulman et al. 2016 (arXiv 1506.02438), Schulman et al. 2017 (arXiv 1707.06347) and Yu et al. 2022
(arXiv 2103.01955), uses ``torch.distributions`` and ``torch.optim.Adam``, and shares no arithmetic with the library: of the
library it calls only the ``compute`` of the models it is given.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, Normal, TransformedDistribution
from torch.distributions.transforms import AffineTransform, TanhTransform

from coterie.models.base import Model
from coterie.models.mixins import CategoricalMixin, GaussianMixin, MultiCategoricalMixin, TanhGaussianMixin


@dataclass
class Step:
    """What one step of all environments was: tensors ``[E, .]`` by agent, as they crossed the library's border."""

    timestep: int
    timesteps: int
    states: dict[str, Tensor]
    actions: dict[str, Tensor]
    log_prob: dict[str, Tensor]
    rewards: dict[str, Tensor]
    next_states: dict[str, Tensor]
    terminated: dict[str, Tensor]
    truncated: dict[str, Tensor]
    shared_states: Tensor
    shared_next_states: Tensor
    final_states: dict[str, Tensor] | None = None
    final_shared_states: Tensor | None = None


class Scaler:
    """Normaliser by the mean and the population variance of everything it was ever given, all of which it keeps."""

    def __init__(self, epsilon: float = 1e-8, clip_threshold: float = 5.0) -> None:
        self.epsilon, self.clip = epsilon, clip_threshold
        self.seen: list[Tensor] = []

    def learn(self, x: Tensor) -> None:
        self.seen.append(x.double())

    def moments(self) -> tuple[Tensor, Tensor]:
        if not self.seen:
            return torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
        everything = torch.cat(self.seen)
        return everything.mean(0), ((everything - everything.mean(0)) ** 2).mean(0).sqrt()

    def normalise(self, x: Tensor) -> Tensor:
        mean, std = self.moments()
        return ((x - mean) / (std + self.epsilon)).clamp(-self.clip, self.clip)

    def denormalise(self, x: Tensor) -> Tensor:
        mean, std = self.moments()
        return x.clamp(-self.clip, self.clip) * (std + self.epsilon) + mean


class DebiasedMoments:
    """Normaliser by exponential moments ``m <- beta m + (1 - beta) E[x]``, likewise of ``x^2``, divided by their weight."""

    def __init__(self, beta: float = 0.99999, min_variance: float = 1e-2) -> None:
        self.beta, self.min_variance = beta, min_variance
        self.first, self.second, self.weight = torch.zeros(1).double(), torch.zeros(1).double(), 0.0

    def learn(self, x: Tensor) -> None:
        x = x.double()
        self.first = self.beta * self.first + (1 - self.beta) * x.mean(0)
        self.second = self.beta * self.second + (1 - self.beta) * (x**2).mean(0)
        self.weight = self.beta * self.weight + (1 - self.beta)

    def moments(self) -> tuple[Tensor, Tensor]:
        if self.weight == 0.0:
            return torch.zeros(1).double(), torch.ones(1).double()
        mean = self.first / self.weight
        variance = self.second / self.weight - mean**2
        return mean, variance.clamp(min=self.min_variance).sqrt()

    def normalise(self, x: Tensor) -> Tensor:
        mean, std = self.moments()
        return (x - mean) / std

    def denormalise(self, x: Tensor) -> Tensor:
        mean, std = self.moments()
        return x * std + mean


class Identity:
    """A normaliser that does nothing."""

    def learn(self, x: Tensor) -> None: ...

    def normalise(self, x: Tensor) -> Tensor:
        return x

    def denormalise(self, x: Tensor) -> Tensor:
        return x


Normaliser = Scaler | DebiasedMoments | Identity
NORMALISERS = {"RunningStandardScaler": Scaler, "ValueNorm": DebiasedMoments}


def normaliser(kind: type | None, kwargs: Mapping[str, Any]) -> Normaliser:
    """The counterpart of one of the library's normalisers."""
    return Identity() if kind is None else NORMALISERS[kind.__name__](**kwargs)


class AdaptiveRate:
    """Divide the learning rate by 1.5 above twice the target KL, multiply it by 1.5 below half of it, within bounds."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, kl_threshold: float = 0.008, min_lr: float = 1e-6, max_lr: float = 1e-2
    ) -> None:
        self.optimizer, self.target, self.low, self.high = optimizer, kl_threshold, min_lr, max_lr

    def step(self, kl: float) -> None:
        for group in self.optimizer.param_groups:
            if kl > 2 * self.target:
                group["lr"] = max(group["lr"] / 1.5, self.low)
            elif kl < self.target / 2:
                group["lr"] = min(group["lr"] * 1.5, self.high)


class Product(Distribution):
    """Independent categoricals side by side."""

    def __init__(self, parts: list[Categorical]) -> None:
        super().__init__(validate_args=False)
        self.parts = parts

    def log_prob(self, value: Tensor) -> Tensor:
        return sum((part.log_prob(value[..., i]) for i, part in enumerate(self.parts)), torch.zeros(()))

    def entropy(self) -> Tensor:
        return sum((part.entropy() for part in self.parts), torch.zeros(()))


class Column(Categorical):
    """A categorical of actions ``[B, 1]``."""

    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(value[..., 0])


def distribution(policy: Model, output: Sequence[Any]) -> Distribution:
    """What a policy's ``compute`` describes, in terms of torch: its ``log_prob`` takes ``[B, n]`` and gives ``[B]``."""
    if isinstance(policy, MultiCategoricalMixin):
        assert isinstance(policy.action_space, spaces.MultiDiscrete)
        parts = output[0].split([int(n) for n in policy.action_space.nvec], dim=-1)
        return Product([Categorical(logits=part, validate_args=False) for part in parts])
    if isinstance(policy, CategoricalMixin):
        return Column(logits=output[0], validate_args=False)
    assert isinstance(policy, GaussianMixin)
    mean, log_std = output[0], output[1].clamp(-20.0, 2.0)
    normal = Independent(Normal(mean, log_std.exp().expand_as(mean), validate_args=False), 1, validate_args=False)
    if not isinstance(policy, TanhGaussianMixin):
        return normal
    assert isinstance(policy.action_space, spaces.Box)
    low, high = torch.as_tensor(policy.action_space.low).double(), torch.as_tensor(policy.action_space.high).double()
    squash = [TanhTransform(), AffineTransform((low + high) / 2, (high - low) / 2, event_dim=1)]
    return TransformedDistribution(normal, squash, validate_args=False)


def drawn(policy: Model, before: Distribution, action: Tensor, log_prob: Tensor) -> Tensor:
    """What was drawn, in float64, given what went to the environment.

    They differ where a Gaussian was clipped to a Box: in one dimension the draw follows from its log-probability, and its
    side of the mean from the bound that it was clipped to.
    """
    action = action.double() if action.is_floating_point() else action
    if not (isinstance(before, Independent) and isinstance(policy.action_space, spaces.Box)):
        return action
    if not policy.action_space.is_bounded():
        return action
    assert policy.action_space.shape == (1,)
    low, high = float(policy.action_space.low[0]), float(policy.action_space.high[0])
    mean, std = before.mean, before.stddev
    certain = torch.where(action >= high, mean < high, mean > low) | ((action > low) & (action < high))
    assert bool(certain.all()), "the side of the draw is unknown"
    squares = -2 * (log_prob.double() + std.log() + 0.5 * math.log(2 * math.pi))
    distance = std * squares.clamp(min=0.0).sqrt()
    unclipped = (action > low) & (action < high)
    return torch.where(unclipped, action, torch.where(action >= high, mean + distance, mean - distance))


def generalised_advantages(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    discount: float,
    decay: float,
    bootstrap: bool,
) -> Tensor:
    """Advantages ``[T, E]``, one environment and one step after the other.

    ``delta_t = r_t + gamma V(s_{t+1}) - V(s_t)``, ``A_t = delta_t + gamma lambda A_{t+1}``: without the value of the
    successor where there is none to count on, without ``A_{t+1}`` where ``t`` is its episode's last step.
    """
    T, E = rewards.shape
    advantages = torch.zeros(T, E, dtype=torch.float64)
    for e in range(E):
        following = 0.0
        for t in reversed(range(T)):
            is_terminated, is_truncated = bool(terminated[t, e]), bool(truncated[t, e])
            no_successor = is_terminated or (is_truncated and not bootstrap)
            successor = 0.0 if no_successor else float(next_values[t, e])
            delta = float(rewards[t, e]) + discount * successor - float(values[t, e])
            following = delta + (0.0 if is_terminated or is_truncated else discount * decay * following)
            advantages[t, e] = following
    return advantages


@dataclass
class Batch:
    """What one agent learns from: rows ``[N, .]`` of its rollout, row ``t E + e``."""

    states: Tensor
    critic_states: Tensor
    drawn: Tensor
    log_prob: Tensor
    values: Tensor
    returns: Tensor
    advantages: Tensor


@dataclass
class ParameterSet:
    """Agents that share parameters, with what trains them."""

    names: list[str]
    policy_parameters: list[nn.Parameter]
    value_parameters: list[nn.Parameter]
    optimizer: torch.optim.Adam
    split: bool
    scheduler: Any
    value_normaliser: Normaliser
    state_normalisers: dict[Any, Normaliser]
    shared_normalisers: dict[Any, Normaliser]
    epochs: int = 0  # taken in the last update
    divergences: list[float] = field(default_factory=list)  # of each epoch of the last update


class ReferencePPO:
    """A team and its updates.

    :param models: by agent and role; copied at once, so that what is shared stays shared
    :param kinds: by agent, something that is equal for agents of equal spaces
    :param cfg: a complete configuration
    :param centralised: whether critics see the shared state (MAPPO) or the own observation (IPPO)
    """

    def __init__(
        self,
        models: Mapping[str, Mapping[str, Model]],
        kinds: Mapping[str, Any],
        cfg: Mapping[str, Any],
        centralised: bool,
    ) -> None:
        self.names = list(models)
        every = [model for roles in models.values() for model in roles.values()]
        kept = {id(space): space for model in every for space in (model.observation_space, model.action_space)}
        self.models = copy.deepcopy({uid: dict(roles) for uid, roles in models.items()}, kept)
        for roles in self.models.values():
            for model in roles.values():
                model.double()
        self.kinds = dict(kinds)
        self.cfg = dict(cfg)
        self.centralised = centralised
        #: smallest distance of a ratio, a value or ten times a KL divergence from where rounding would decide on a branch
        self.kink = math.inf
        #: largest change of a parameter that an error of 1e-10 in its gradient would have made
        self.doubt = 0.0
        self.sets = [self._make_set(names) for names in self._partition()]

    def setting(self, key: str, uid: str) -> Any:
        """The value that an agent has of a configuration key."""
        value = self.cfg.get(key)
        if isinstance(value, Mapping) and set(value) == set(self.names):
            return value[uid]
        return value

    def parameters(self, uid: str, role: str) -> list[nn.Parameter]:
        """The parameters of one model."""
        return list(self.models[uid][role].parameters())

    # ---- parameter sets ------------------------------------------------------------------------------------------------

    def _partition(self) -> list[list[str]]:
        owned = {uid: {id(p) for role in ("policy", "value") for p in self.parameters(uid, role)} for uid in self.names}
        together = [[uid] for uid in self.names]
        merged = True
        while merged:
            merged = False
            for i in range(len(together)):
                for j in range(i + 1, len(together)):
                    if any(owned[a] & owned[b] for a in together[i] for b in together[j]):
                        together[i] += together.pop(j)
                        merged = True
                        break
                if merged:
                    break
        return together

    def _unique(self, names: list[str], role: str, but: Sequence[nn.Parameter] = ()) -> list[nn.Parameter]:
        seen = {id(p) for p in but}
        unique = []
        for uid in names:
            for p in self.parameters(uid, role):
                if id(p) not in seen:
                    seen.add(id(p))
                    unique.append(p)
        return unique

    def _make_set(self, names: list[str]) -> ParameterSet:
        first = names[0]
        policy_parameters = self._unique(names, "policy")
        value_parameters = self._unique(names, "value", but=policy_parameters)
        rate = self.setting("learning_rate", first)
        split = isinstance(rate, (tuple, list))
        rates = tuple(rate) if split else (rate, rate)
        optimizer = torch.optim.Adam(
            [{"params": policy_parameters, "lr": rates[0]}, {"params": value_parameters, "lr": rates[1]}],
            betas=(0.9, 0.999),
            eps=1e-8,
        )
        kind = self.setting("learning_rate_scheduler", first)
        scheduler = None
        if kind is not None:
            maker = AdaptiveRate if kind.__name__ == "KLAdaptiveLR" else kind
            scheduler = maker(optimizer, **self.setting("learning_rate_scheduler_kwargs", first))

        def make(key: str) -> Normaliser:
            return normaliser(self.setting(key, first), self.setting(f"{key}_kwargs", first) or {})

        return ParameterSet(
            names,
            policy_parameters,
            value_parameters,
            optimizer,
            split,
            scheduler,
            make("value_preprocessor"),
            {self.kinds[uid]: make("state_preprocessor") for uid in names},
            {self.kinds[uid]: make("shared_state_preprocessor") for uid in names},
        )

    def set_of(self, uid: str) -> ParameterSet:
        """The parameter set that an agent belongs to."""
        return next(s for s in self.sets if uid in s.names)

    # ---- networks ------------------------------------------------------------------------------------------------------

    def _agent_id(self, uid: str, rows: int) -> Tensor:
        one_hot = torch.zeros(rows, len(self.names), dtype=torch.float64)
        one_hot[:, self.names.index(uid)] = 1.0
        return one_hot

    def policy(self, uid: str, states: Tensor) -> Distribution:
        """The distribution of an agent's actions in raw states ``[B, F]``."""
        x = self.set_of(uid).state_normalisers[self.kinds[uid]].normalise(states.double())
        model = self.models[uid]["policy"]
        return distribution(model, model.compute({"states": x, "agent_id": self._agent_id(uid, len(x))}, "policy"))

    def value(self, uid: str, critic_states: Tensor) -> Tensor:
        """The critic's raw prediction ``[B]`` for raw inputs ``[B, F]``."""
        owner = self.set_of(uid)
        table = owner.shared_normalisers if self.centralised else owner.state_normalisers
        x = table[self.kinds[uid]].normalise(critic_states.double())
        model = self.models[uid]["value"]
        return model.compute({"states": x, "agent_id": self._agent_id(uid, len(x))}, "value")[0][:, 0]

    # ---- one update ----------------------------------------------------------------------------------------------------

    def update(self, steps: Sequence[Step], permutations: Mapping[str, Sequence[Tensor]]) -> None:
        """Learn from a rollout.

        :param permutations: by agent, the order of the N rows in each epoch
        """
        for owner in self.sets:
            self._update_set(owner, steps, permutations[owner.names[0]])

    def _update_set(self, owner: ParameterSet, steps: Sequence[Step], permutations: Sequence[Tensor]) -> None:
        first = owner.names[0]
        with torch.no_grad():
            batches = {uid: self._batch(uid, steps) for uid in owner.names}
            owner.value_normaliser.learn(torch.cat([batches[uid].returns for uid in owner.names]).unsqueeze(-1))
            for batch in batches.values():
                batch.returns = owner.value_normaliser.normalise(batch.returns.unsqueeze(-1)).squeeze(-1)
        owner.epochs, owner.divergences = 0, []
        threshold = self.setting("kl_threshold", first)
        for epoch in range(self.setting("learning_epochs", first)):
            parts = permutations[epoch].tensor_split(self.setting("mini_batches", first))
            divergences = [self._gradient_step(owner, batches, rows) for rows in parts]
            divergence = sum(divergences) / len(divergences)
            owner.epochs += 1
            owner.divergences.append(divergence)
            bounds = [threshold] if threshold > 0 else []
            if isinstance(owner.scheduler, AdaptiveRate):
                bounds += [2 * owner.scheduler.target, owner.scheduler.target / 2]
            self._near(torch.tensor([10 * abs(divergence - bound) for bound in bounds]))
            if isinstance(owner.scheduler, AdaptiveRate):
                owner.scheduler.step(divergence)
            elif owner.scheduler is not None:
                owner.scheduler.step()
            if threshold > 0 and divergence > threshold:
                break
        for uid in owner.names:  # agent after agent is one batch to a normaliser that keeps everything
            owner.state_normalisers[self.kinds[uid]].learn(torch.cat([step.states[uid] for step in steps]))
        for shared in owner.shared_normalisers.values():
            shared.learn(torch.cat([step.shared_states for step in steps]))

    def _critic_states(self, uid: str, states: Mapping[str, Tensor] | None, shared: Tensor | None) -> Tensor:
        chosen = shared if self.centralised else (None if states is None else states[uid])
        assert chosen is not None
        return chosen

    def _batch(self, uid: str, steps: Sequence[Step]) -> Batch:
        owner, T = self.set_of(uid), len(steps)
        rewards, terminated, truncated, raw, values, next_values, draws = [], [], [], [], [], [], []
        for step in steps:
            shaper = self.setting("rewards_shaper", uid)
            reward = step.rewards[uid].clone()
            rewards.append((reward if shaper is None else shaper(reward, step.timestep, step.timesteps)).double()[:, 0])
            terminated.append(step.terminated[uid][:, 0])
            truncated.append(step.truncated[uid][:, 0])
            raw.append(self.value(uid, self._critic_states(uid, step.states, step.shared_states)))
            values.append(owner.value_normaliser.denormalise(raw[-1]))
            draws.append(
                drawn(
                    self.models[uid]["policy"],
                    self.policy(uid, step.states[uid]),
                    step.actions[uid],
                    step.log_prob[uid],
                )
            )
        for t, step in enumerate(steps):
            if t + 1 < T:
                successors = values[t + 1].clone()
            else:
                beyond = self._critic_states(uid, step.next_states, step.shared_next_states)
                successors = owner.value_normaliser.denormalise(self.value(uid, beyond))
            for e in range(len(successors)):
                if bool(truncated[t][e]):
                    last = self._critic_states(uid, step.final_states, step.final_shared_states)[e : e + 1]
                    successors[e] = owner.value_normaliser.denormalise(self.value(uid, last))[0]
            next_values.append(successors)
        advantages = generalised_advantages(
            torch.stack(rewards),
            torch.stack(values),
            torch.stack(next_values),
            torch.stack(terminated),
            torch.stack(truncated),
            self.setting("discount_factor", uid),
            self.setting("lambda", uid),
            self.setting("time_limit_bootstrap", uid),
        )
        returns = (advantages + torch.stack(values)).flatten()
        flat = advantages.flatten()
        spread = ((flat - flat.mean()) ** 2).sum().div(len(flat) - 1).sqrt()
        return Batch(
            torch.cat([step.states[uid] for step in steps]),
            torch.cat([self._critic_states(uid, step.states, step.shared_states) for step in steps]),
            torch.cat(draws),
            torch.cat([step.log_prob[uid][:, 0] for step in steps]).double(),
            torch.cat(raw),
            returns,
            (flat - flat.mean()) / (spread + 1e-8),
        )

    def _loss(self, uid: str, batch: Batch, rows: Tensor) -> tuple[Tensor, float]:
        """One agent's loss on some rows, and its estimate of the KL divergence there."""
        now = self.policy(uid, batch.states[rows])
        log_ratio = now.log_prob(batch.drawn[rows]) - batch.log_prob[rows]
        ratio = log_ratio.exp()
        advantages = batch.advantages[rows]
        clip = self.setting("ratio_clip", uid)
        self._near(((ratio - 1).abs() - clip).abs())
        policy_loss = -torch.min(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages).mean()
        values, old, targets = self.value(uid, batch.critic_states[rows]), batch.values[rows], batch.returns[rows]
        errors = (targets - values) ** 2
        if self.setting("clip_predicted_values", uid):
            clip = self.setting("value_clip", uid)
            clipped = old + (values - old).clamp(-clip, clip)
            outside = (values - old).abs() > clip
            self._near(((values - old).abs() - clip).abs())
            self._near((targets - (values + clipped) / 2).abs()[outside])
            errors = torch.max(errors, (targets - clipped) ** 2)
        loss = policy_loss + self.setting("value_loss_scale", uid) * errors.mean()
        entropy_scale = self.setting("entropy_loss_scale", uid)
        if entropy_scale > 0:
            loss = loss - entropy_scale * now.entropy().mean()
        return loss, float(((ratio - 1) - log_ratio).mean().detach())

    def _gradient_step(self, owner: ParameterSet, batches: Mapping[str, Batch], rows: Tensor) -> float:
        losses, divergences = [], []
        for uid in owner.names:
            loss, divergence = self._loss(uid, batches[uid], rows)
            losses.append(loss)
            divergences.append(divergence)
        owner.optimizer.zero_grad()
        (sum(losses, torch.zeros(())) / len(losses)).backward()
        bound = self.setting("grad_norm_clip", owner.names[0])
        if bound > 0 and owner.split:
            torch.nn.utils.clip_grad_norm_(owner.policy_parameters, bound)
            torch.nn.utils.clip_grad_norm_(owner.value_parameters, bound)
        elif bound > 0:
            torch.nn.utils.clip_grad_norm_([*owner.policy_parameters, *owner.value_parameters], bound)
        owner.optimizer.step()
        self._weigh(owner.optimizer)
        return sum(divergences) / len(divergences)

    # ---- how far rounding may carry ------------------------------------------------------------------------------------

    def _near(self, distances: Tensor) -> None:
        if distances.numel():
            self.kink = min(self.kink, float(distances.detach().min()))

    def _weigh(self, optimizer: torch.optim.Adam) -> None:
        for group in optimizer.param_groups:
            states = [optimizer.state[p] for p in group["params"] if p in optimizer.state]
            if not states:
                continue
            squares = torch.cat([state["exp_avg_sq"].flatten() for state in states])
            size = (squares / (1 - 0.999 ** float(states[0]["step"]))).sqrt()
            smallest = torch.where(size > 0, size, math.inf).min()
            self.doubt = max(self.doubt, group["lr"] * 1e-10 / (float(smallest) + 1e-8))
