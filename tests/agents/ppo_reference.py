"""Updates of MAPPO or IPPO, written slowly: loops over agents, sets, environments and steps, in float64.

It follows the formulas of Schulman et al. 2016 (arXiv 1506.02438), Schulman et al. 2017 (arXiv 1707.06347) and Yu et al. 2022
(arXiv 2103.01955), uses ``torch.distributions``, torch's recurrent cells and ``torch.optim.Adam``, and shares no arithmetic
with the library: of the library it calls only the ``compute`` of the models it is given, one step at a time.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from coterie.models.base import Model
from tests.agents.ppo_reference_parts import AdaptiveRate, RescalingMoments
from tests.agents.ppo_reference_team import Batch, ParameterSet, ReferenceTeam, Row
from tests.agents.ppo_reference_time import ACTIVE, Step, memory_sizes, sequence_length

__all__ = ["ReferencePPO", "Step"]


class ReferencePPO(ReferenceTeam):
    """A team and its updates."""

    def __init__(
        self,
        models: Mapping[str, Mapping[str, Model]],
        kinds: Mapping[str, Any],
        cfg: Mapping[str, Any],
        centralised: bool,
        one_memory: Collection[str] = (),
    ) -> None:
        super().__init__(models, kinds, cfg, centralised, one_memory)
        #: smallest distance of a ratio, a value or ten times a KL divergence from where rounding would decide on a branch
        self.kink = math.inf
        #: by parameter, the largest change that an error of 1e-10 in its gradient would have made
        self.doubts: dict[nn.Parameter, Tensor] = {}

    # ---- one update ----------------------------------------------------------------------------------------------------

    def update(self, steps: Sequence[Step], permutations: Mapping[str, Sequence[Tensor]]) -> None:
        """Learn from a rollout.

        :param permutations: by agent, the order of the N rows (of the sequences, with recurrent models) in each epoch
        """
        self._explore(steps)
        for owner in self.sets:
            self._update_set(owner, steps, permutations[owner.names[0]])

    def learns_at(self, uid: str, timestep: int) -> bool:
        """Whether an agent learns from the rollout whose last step is this one."""
        return timestep >= (self.setting("learning_starts", uid) or 0)

    def look_on(self, uid: str, steps: Sequence[Step]) -> None:
        """Remember a rollout without learning from it."""
        for role in ("policy", "value"):
            frozen, ended = self._rules(uid, role, steps)
            for e in range(len(steps[0].shared_states)):
                rows = [self._sees(uid, role, step)[e] for step in steps]
                path = self._walk(uid, role, rows, self._starts(uid, role, e), frozen[e], ended[e])
                self.memories[role][uid][e] = path.last

    def _sees(self, uid: str, role: str, step: Step) -> Tensor:
        """What an agent's policy or critic sees in a step, ``[E, F]``."""
        if role == "policy":
            return step.masks.cleaned(step.states[uid], uid)
        return self._critic_states(uid, step.states, step.shared_states, step.masks)

    def _update_set(self, owner: ParameterSet, steps: Sequence[Step], permutations: Sequence[Tensor]) -> None:
        first = owner.names[0]
        now = (steps[-1].timestep, steps[-1].timesteps)
        if not self.learns_at(first, now[0]):
            with torch.no_grad():
                for uid in owner.names:
                    self.look_on(uid, steps)
            return
        rates = self.setting("learning_rate", first)
        rates = tuple(rates) if isinstance(rates, (tuple, list)) else (rates, rates)
        for part, group in enumerate(owner.optimizer.param_groups):
            if callable(rates[part]):
                group["lr"] = self.number("learning_rate", first, *now, part)
        with torch.no_grad():
            batches = {uid: self._batch(uid, steps) for uid in owner.names}
            self._normalise_returns(owner, batches)
            self._normalise_advantages(owner, batches)
        owner.epochs, owner.divergences = 0, []
        threshold = self.setting("kl_threshold", first)
        anything = any(batch.advantages for batch in batches.values())  # a set without rests
        for epoch in range(self.setting("learning_epochs", first) if anything else 0):
            parts = permutations[epoch].tensor_split(self.setting("mini_batches", first))
            divergences = [
                kl for part in parts for kl in self._gradient_step(owner, batches, self._rows(owner, part, steps), now)
            ]
            divergence = sum(divergences) / max(len(divergences), 1)
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
        self._learn_states(owner, batches, steps)

    def _normalise_returns(self, owner: ParameterSet, batches: Mapping[str, Batch]) -> None:
        """Put returns on the scale of the predictions, after the normaliser has learned from them."""
        scale = owner.value_normaliser
        before = scale.moments() if isinstance(scale, RescalingMoments) and scale.weight else None
        scale.learn(torch.tensor([[r] for batch in batches.values() for r in batch.returns.values()]).double())
        for batch in batches.values():
            for row, value in batch.returns.items():
                batch.returns[row] = float(scale.normalise(torch.tensor([value]).double()))
        if before is None:
            return
        assert isinstance(scale, RescalingMoments)
        (mean, std), (new_mean, new_std) = before, scale.moments()
        done: set[int] = set()
        for uid in owner.names:
            # what was v std + mean is the same as v' std' + mean'
            for row, value in batches[uid].values.items():
                batches[uid].values[row] = float((value * std + mean - new_mean) / new_std)
            critic = self.models[uid]["value"]
            # of critics of whole teams, one for each kind of agent
            ends = list(getattr(critic, "value_heads", [critic]))
            for head in [[m for m in end.modules() if isinstance(m, nn.Linear)][-1] for end in ends]:
                if id(head) not in done:
                    done.add(id(head))
                    head.weight.mul_(std / new_std)
                    head.bias.copy_((std * head.bias + mean - new_mean) / new_std)

    def _normalise_advantages(self, owner: ParameterSet, batches: Mapping[str, Batch]) -> None:
        kind = self.setting("advantage_normalization", owner.names[0]) or "agent"
        if kind == "off":
            return
        together = [owner.names] if kind == "group" else [[uid] for uid in owner.names]
        for names in together:
            numbers = [a for uid in names for a in batches[uid].advantages.values()]
            if not numbers:
                continue
            mean = sum(numbers) / len(numbers)
            spread = math.sqrt(sum((a - mean) ** 2 for a in numbers) / max(len(numbers) - 1, 1))
            for uid in names:
                for row, a in batches[uid].advantages.items():
                    batches[uid].advantages[row] = (a - mean) / (spread + 1e-8)

    def _length(self, owner: ParameterSet, T: int) -> int | None:
        lengths = {sequence_length(m) for uid in owner.names for m in self.models[uid].values()} - {None}
        assert len(lengths) < 2
        return min(*lengths, T) if lengths else None  # type: ignore[type-var]

    def _rows(self, owner: ParameterSet, part: Tensor, steps: Sequence[Step]) -> list[list[Row]]:
        """The rows of a minibatch, those of one sequence together."""
        T, E = len(steps), len(steps[0].shared_states)
        L = self._length(owner, T) or 1
        places = [divmod(n, E) for n in part.tolist()]
        return [[(t, e) for t in range(c * L, min((c + 1) * L, T))] for c, e in places]

    def _outputs(self, uid: str, role: str, batch: Batch, sequences: Sequence[Sequence[Row]]) -> tuple[Tensor, ...]:
        """What a model makes now of the counting rows."""
        states = batch.states if role == "policy" else batch.critic_states
        outputs: list[tuple[Tensor, ...]] = []
        if not memory_sizes(self.models[uid][role]):
            rows = batch.counting([row for sequence in sequences for row in sequence])
            return self._call(uid, role, torch.stack([states[t][e] for t, e in rows]), [])[0]
        frozen, ended = batch.policy_rules if role == "policy" else batch.critic_rules
        memories = batch.policy_memories if role == "policy" else batch.critic_memories
        for sequence in sequences:
            (start, e) = sequence[0]
            times = [t for t, _ in sequence]
            path = self._walk(
                uid,
                role,
                [states[t][e] for t in times],
                memories[start][e],
                [frozen[e][t] for t in times],
                [ended[e][t] for t in times],
            )
            outputs += [output for row, output in zip(sequence, path.outputs, strict=True) if row in batch.advantages]
        return tuple(torch.cat(parts) for parts in zip(*outputs, strict=True))

    def _loss(
        self, uid: str, batch: Batch, sequences: Sequence[Sequence[Row]], now: tuple[int, int]
    ) -> tuple[Tensor, list[float]] | None:
        """The loss of each of an agent's counting rows, and estimates of the KL divergence there; None without any."""
        rows = batch.counting([row for sequence in sequences for row in sequence])
        if not rows:
            return None

        def column(table: Mapping[Row, float]) -> Tensor:
            return torch.tensor([table[row] for row in rows], dtype=torch.float64)

        masks = [batch.allowed[t] for t, _ in rows]
        allowed = (
            None
            if masks[0] is None
            else torch.stack([m[e] for m, (_, e) in zip(masks, rows, strict=True) if m is not None])
        )
        policy = self._policy_of(uid, self._outputs(uid, "policy", batch, sequences), allowed)
        log_ratio = policy.log_prob(torch.cat([batch.drawn[row] for row in rows])) - column(batch.log_prob)
        ratio, advantages = log_ratio.exp(), column(batch.advantages)
        below, above = (self.number("ratio_clip", uid, *now, part) for part in range(2))
        self._near((ratio - 1 - above).abs())
        self._near((1 - below - ratio).abs())
        loss = -torch.min(ratio * advantages, ratio.clamp(1 - below, 1 + above) * advantages)
        values = self._outputs(uid, "value", batch, sequences)[0][:, 0]
        old, targets = column(batch.values), column(batch.returns)
        delta = self.setting("huber_delta", uid) or 0.0

        def penalty(error: Tensor) -> Tensor:
            size = error.abs()
            return torch.where(size <= delta, size**2, 2 * delta * size - delta**2) if delta > 0 else size**2

        errors = penalty(targets - values)
        if self.setting("clip_predicted_values", uid):
            clip = self.number("value_clip", uid, *now)
            clipped = old + (values - old).clamp(-clip, clip)
            outside = (values - old).abs() > clip
            self._near(((values - old).abs() - clip).abs())
            self._near((targets - (values + clipped) / 2).abs()[outside])
            errors = torch.max(errors, penalty(targets - clipped))
        loss = loss + self.setting("value_loss_scale", uid) * errors
        entropy_scale = self.number("entropy_loss_scale", uid, *now)
        if entropy_scale > 0:
            loss = loss - entropy_scale * policy.entropy()
        kind = self.setting("kl_estimator", uid) or "k3"
        kl = {"k1": -log_ratio, "k2": log_ratio**2 / 2, "k3": (ratio - 1) - log_ratio}[kind]
        return loss, kl.detach().tolist()

    def _gradient_step(
        self,
        owner: ParameterSet,
        batches: Mapping[str, Batch],
        sequences: Sequence[Sequence[Row]],
        now: tuple[int, int],
    ) -> list[float]:
        found = [self._loss(uid, batches[uid], sequences, now) for uid in owner.names]
        parts = [part for part in found if part is not None]
        for p in [*owner.policy_parameters, *owner.value_parameters]:
            p.grad = torch.zeros_like(p) if p.requires_grad else None  # nothing is learned from nothing
        if parts:
            torch.cat([losses for losses, _ in parts]).mean().backward()
        bound = self.setting("grad_norm_clip", owner.names[0])
        if bound > 0 and owner.split:
            torch.nn.utils.clip_grad_norm_(owner.policy_parameters, bound)
            torch.nn.utils.clip_grad_norm_(owner.value_parameters, bound)
        elif bound > 0:
            torch.nn.utils.clip_grad_norm_([*owner.policy_parameters, *owner.value_parameters], bound)
        owner.optimizer.step()
        self._weigh(owner.optimizer)
        return [kl for _, divergences in parts for kl in divergences]

    def _learn_states(self, owner: ParameterSet, batches: Mapping[str, Batch], steps: Sequence[Step]) -> None:
        """Normalisers of observations learn from rows in which an agent acted, once from what several of them see."""
        seen_by_all: dict[Any, dict[Row, Tensor]] = {}
        seen_by_each: dict[Any, list[Tensor]] = {}
        for uid in owner.names:
            rows = [
                (t, e)
                for t, step in enumerate(steps)
                for e in range(len(step.shared_states))
                if step.masks.status(uid, e) == ACTIVE
            ]
            own = [steps[t].states[uid][e].double() for t, e in rows]
            if own:
                owner.state_normalisers[self.kinds[uid]].learn(torch.stack(own))
            seen = [batches[uid].critic_states[t][e] for t, e in rows]
            if self._of_team(uid, "value"):
                seen = [x[: -len(self.names)] for x in seen]
            seen_by_all.setdefault(self._scale(uid), {}).update(zip(rows, seen, strict=True))
            seen_by_each.setdefault(self._scale(uid), []).extend(seen)
        if self.centralised:
            for scale, scaler in owner.shared_normalisers.items():
                each = self.cfg.get("critic_input") == "agent"
                parts = seen_by_each[scale] if each else list(seen_by_all[scale].values())
                if parts:
                    scaler.learn(torch.stack(parts))

    # ---- how far rounding may carry ------------------------------------------------------------------------------------

    def _near(self, distances: Tensor) -> None:
        if distances.numel():
            self.kink = min(self.kink, float(distances.detach().min()))

    def _weigh(self, optimizer: torch.optim.Adam) -> None:
        for group in optimizer.param_groups:
            for p in group["params"]:
                state = optimizer.state.get(p, {})
                if "exp_avg_sq" not in state:
                    continue
                size = (state["exp_avg_sq"] / (1 - 0.999 ** float(state["step"]))).sqrt()
                doubt = torch.where(size > 0, group["lr"] * 1e-10 / (size + 1e-8), 0.0)
                self.doubts[p] = torch.maximum(self.doubts.get(p, torch.zeros_like(doubt)), doubt)

    @property
    def doubt(self) -> float:
        """The largest of all doubts."""
        return max(float(doubt.max()) for doubt in self.doubts.values())
