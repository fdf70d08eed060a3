"""A slow reference of the updates of QMIX, VDN and IQL: loops over windows, agents and steps, in float64.

Of the library it calls only the ``compute`` of the networks that it is given, one step at a time; histories, targets,
mixers and optimizers are its own.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from coterie.models.base import Model
from tests.agents.ppo_reference_parts import Normaliser, normaliser
from tests.agents.ppo_reference_time import ABSENT, ACTIVE, blank_memory, memory_sizes, with_plain_cells
from tests.agents.q_history import (
    TERMINATED,
    TRUNCATED,
    Deed,
    History,
    QStep,
    Row,
    deeds,
    lambda_target,
    n_step_target,
)
from tests.agents.q_mixers import mix


class Spread:
    """Divides rewards by the standard deviation of all that it was ever given."""

    def __init__(self, epsilon: float = 1e-8) -> None:
        self.epsilon = epsilon
        self.seen: list[float] = []

    def scale(self) -> float:
        if not self.seen:
            return 1.0
        mean = sum(self.seen) / len(self.seen)
        std = (sum((x - mean) ** 2 for x in self.seen) / len(self.seen)) ** 0.5
        return std if std > self.epsilon else 1.0


@dataclass
class ParameterSet:
    """Agents that are trained by one optimizer."""

    names: list[str]
    parameters: list[nn.Parameter]
    optimizer: torch.optim.Adam
    scheduler: Any
    state_scales: dict[Any, Normaliser]
    reward_scale: Spread | None
    mixer_scale: Normaliser


@dataclass
class Stretch:
    """What was drawn: rows ``first`` to ``first + steps`` of an environment, with ``ahead`` rows before them."""

    env: int
    first: int
    steps: int
    ahead: int = 0
    weight: float = 1.0
    rows: list[Row] = field(default_factory=list)  # from ``first`` on, one more than steps where there is one
    warm: list[Row] = field(default_factory=list)  # ahead of them


@dataclass
class Error:
    """A prediction and its target."""

    stretch: int
    predicted: Tensor
    target: float
    huber: float


class ReferenceQ:
    """A team.

    :param models: of the agents that learn, by agent and role; copied at once, so that what is shared stays shared
    :param names: of all agents, in the team's order
    :param kinds: by agent, something that is equal for agents of equal spaces
    :param cfg: a complete configuration
    :param mixed: whether there is one value for the team
    :param environments: how many there are
    :param whole: whether all rows of a stretch are learned from, else the first one alone
    """

    def __init__(
        self,
        models: Mapping[str, Mapping[str, Model]],
        names: Sequence[str],
        kinds: Mapping[str, Any],
        cfg: Mapping[str, Any],
        mixed: bool,
        environments: int,
        whole: bool,
    ) -> None:
        self.names, self.learners = list(names), list(models)
        every = [model for roles in models.values() for model in roles.values()]
        kept = {id(space): space for model in every for space in (model.observation_space, model.action_space)}
        self.models = copy.deepcopy({uid: dict(roles) for uid, roles in models.items()}, kept)
        for roles in self.models.values():
            for model in roles.values():
                with_plain_cells(model.double())
        self.targets = copy.deepcopy(self.models, kept)
        self.kinds, self.cfg, self.mixed, self.whole = dict(kinds), dict(cfg), mixed, whole
        self.sets = [self._make_set(together) for together in self._partition()]
        bootstraps = any(self.setting("time_limit_bootstrap", uid) for uid in self.names)
        shapers = {uid: self.setting("rewards_shaper", uid) for uid in self.names}
        self.history = History(environments, self.learners, bootstraps, shapers)
        self.steps: dict[str, int] = {}  # gradient steps by the first agent of those that learn together
        self.kink = float("inf")  # how near two choices of a target came to each other
        self.doubts: dict[nn.Parameter, Tensor] = {}  # see PPO's reference

    def setting(self, key: str, uid: str) -> Any:
        """The value that an agent has of a configuration key."""
        value = self.cfg[key]
        return value[uid] if isinstance(value, Mapping) and set(value) == set(self.names) else value

    # ---- parameter sets ------------------------------------------------------------------------------------------------

    def _partition(self) -> list[list[str]]:
        """Agents that share parameters, directly or through others; all of them where they learn one value."""
        if self.mixed:
            return [self.learners]
        owned = {uid: {id(p) for m in self.models[uid].values() for p in m.parameters()} for uid in self.learners}
        together: list[list[str]] = []
        for uid in self.learners:
            related = [names for names in together if any(owned[uid] & owned[other] for other in names)]
            together = [names for names in together if names not in related]
            together.append([*[other for names in related for other in names], uid])
        return together

    def _make_set(self, names: list[str]) -> ParameterSet:
        first = names[0]
        parameters: list[nn.Parameter] = []
        for uid in names:
            for model in self.models[uid].values():
                parameters += [p for p in model.parameters() if not any(p is other for other in parameters)]
        rate = self.setting("learning_rate", first)
        optimizer = torch.optim.Adam(parameters, lr=0.0 if callable(rate) else rate, betas=(0.9, 0.999), eps=1e-8)
        scheduler = self.setting("learning_rate_scheduler", first)
        kind, kwargs = self.setting("state_preprocessor", first), self.setting("state_preprocessor_kwargs", first)
        return ParameterSet(
            names,
            parameters,
            optimizer,
            scheduler and scheduler(optimizer, **self.setting("learning_rate_scheduler_kwargs", first)),
            {self.kinds[uid]: normaliser(kind, kwargs) for uid in names},
            None if self.setting("reward_preprocessor", first) is None else Spread(),
            normaliser(self.cfg.get("shared_state_preprocessor"), self.cfg.get("shared_state_preprocessor_kwargs", {})),
        )

    def set_of(self, uid: str) -> ParameterSet:
        """The parameter set that an agent belongs to."""
        return next(s for s in self.sets if uid in s.names)

    # ---- recording -----------------------------------------------------------------------------------------------------

    def record(self, step: QStep) -> None:
        """Take in a step of all environments; normalisers learn from it."""
        added = self.history.record(step)
        for owner in self.sets:
            for uid in owner.names:
                seen = [row.seen[uid] for row in added if row.status[uid] == ACTIVE]
                if seen:
                    owner.state_scales[self.kinds[uid]].learn(torch.stack(seen))
            if "mixer_input" in self.cfg:
                played = [row for row in added if any(row.status[uid] == ACTIVE for uid in owner.names)]
                if played:
                    owner.mixer_scale.learn(torch.stack([self._shared(row) for row in played]))
            if owner.reward_scale is None:
                continue
            for row in added:
                if self.cfg["reward"] == "individual":
                    owner.reward_scale.seen += [row.rewards[u] for u in owner.names if row.status[u] != ABSENT]
                else:
                    owner.reward_scale.seen.append(self._team_reward(row))

    def _team_reward(self, row: Row) -> float:
        total = sum(row.rewards[uid] for uid in self.learners)
        if self.cfg["reward"] == "sum":
            return total
        return total / max(sum(row.status[uid] != ABSENT for uid in self.learners), 1)

    def earned(self, row: Row, uid: str) -> float:
        """What an agent learns from in a row."""
        reward = row.rewards[uid] if self.cfg["reward"] == "individual" else self._team_reward(row)
        scale = self.set_of(uid).reward_scale
        return reward if scale is None else reward / scale.scale()

    # ---- networks ------------------------------------------------------------------------------------------------------

    def _call(self, model: Model, uid: str, seen: Tensor, memory: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Action values ``[B, n]`` of what an agent saw ``[B, F]``, and what a network remembers of it."""
        agent_id = torch.eye(len(self.names), dtype=torch.float64)[[self.names.index(uid)] * len(seen)]
        scaled = self.set_of(uid).state_scales[self.kinds[uid]].normalise(seen)
        inputs: dict[str, Any] = {"states": scaled, "agent_id": agent_id}
        if memory:
            inputs |= {"rnn": memory, "length": 1}
        output = model.compute(inputs, "q")
        return output[0], list(output[-1]["rnn"]) if memory else []

    def along(self, model: Model, uid: str, stretch: Stretch) -> list[Tensor]:
        """Action values ``[n]`` of each row of a stretch.

        What an agent remembers begins with its game, and stays as it is while the agent does not act. What it sees when it is
        cut off is looked at with what it remembers.
        """
        blank = blank_memory(model)
        if not memory_sizes(model):
            return list(self._call(model, uid, torch.stack([row.seen[uid] for row in stretch.rows]), [])[0])
        memory, before, values = blank, None, []
        for k, row in enumerate([*stretch.warm, *stretch.rows]):
            if row.first:
                memory, before = blank, None
            acts = row.status[uid] == ACTIVE
            if before == TERMINATED or (before == TRUNCATED and row.step and acts):
                memory = blank  # it plays on: a new game
            with torch.set_grad_enabled(torch.is_grad_enabled() and k >= len(stretch.warm)):
                q, after = self._call(model, uid, row.seen[uid].unsqueeze(0), memory)
            if k == len(stretch.warm) - 1:
                after = [state.detach() for state in after]
            memory = after if acts else memory
            if before == TRUNCATED and not acts:
                memory = blank
            if k >= len(stretch.warm):
                values.append(q[0])
            before = row.ends.get(uid) if row.step else None
        return values

    def _following(self, uid: str, online: Tensor, target: Tensor, allowed: list[bool] | None) -> Tensor:
        """The target network's value of the best choice: the online network's, or its own."""
        choosing = (online if self.setting("double_q", uid) else target).tolist()
        possible = [a for a in range(len(choosing)) if allowed is None or allowed[a]]
        if not possible:
            return torch.zeros((), dtype=torch.float64)
        possible.sort(key=lambda a: -choosing[a])
        if len(possible) > 1:
            self.kink = min(self.kink, choosing[possible[0]] - choosing[possible[1]])
        return target[possible[0]]

    # ---- targets -------------------------------------------------------------------------------------------------------

    def _target(self, done: Sequence[Deed], values: Mapping[int, float], i: int, uid: str) -> float:
        discount = self.setting("discount_factor", uid)
        if self.setting("td_lambda", uid) > 0:
            return lambda_target(done, values, i, self.setting("td_lambda", uid), discount)
        return n_step_target(done, values, i, self.setting("n_step", uid), discount)

    def _end(self, row: Row, uid: str) -> str | None:
        """How a row ends an agent's game: a truncation that nothing is made of is a termination."""
        end = row.ends[uid]
        return TERMINATED if end == TRUNCATED and not self.setting("time_limit_bootstrap", uid) else end

    def _team_end(self, row: Row) -> str | None:
        """How a row ends the team's game: nothing is to come only where all that learn are terminated."""
        if not row.over:
            return TERMINATED if row.deserted else None
        return TRUNCATED if any(self._end(row, uid) == TRUNCATED for uid in self.learners) else TERMINATED

    def _values(self, uid: str, stretch: Stretch) -> tuple[list[Tensor], list[Tensor]]:
        """Values of an agent's choices in the rows of a stretch, and of the rows themselves."""
        q = self.along(self.models[uid]["q"], uid, stretch)
        with torch.no_grad():
            q_target = self.along(self.targets[uid]["q"], uid, stretch)
        chosen = [x[row.actions[uid]] if row.step else x[0] for x, row in zip(q, stretch.rows, strict=True)]
        following = [
            self._following(uid, x.detach(), y, row.allowed[uid])
            for x, y, row in zip(q, q_target, stretch.rows, strict=True)
        ]
        return chosen, following

    def _errors(
        self, n: int, predicted: Mapping[int, Tensor], done: Sequence[Deed], values: Mapping[int, float], uid: str
    ) -> list[Error]:
        huber = float(self.setting("huber_delta", uid))
        return [
            Error(n, predicted[deed.row], self._target(done, values, i, uid), huber)
            for i, deed in enumerate(done)
            if self.whole or deed.row == 0
        ]

    def _own_errors(self, uid: str, n: int, stretch: Stretch) -> list[Error]:
        """What an independent learner has to learn from a stretch."""
        done = deeds(
            stretch.rows,
            stretch.steps,
            lambda row: row.status[uid] == ACTIVE,
            lambda row: self.earned(row, uid),
            lambda row: self._end(row, uid),
        )
        chosen, following = self._values(uid, stretch)
        values = {k: float(value) for k, value in enumerate(following)}
        return self._errors(n, dict(enumerate(chosen)), done, values, uid)

    def _team_errors(self, n: int, stretch: Stretch) -> list[Error]:
        """What the team has to learn from a stretch."""
        first = self.learners[0]
        done = deeds(
            stretch.rows,
            stretch.steps,
            lambda row: any(row.status[uid] == ACTIVE for uid in self.learners),
            lambda row: self.earned(row, first),
            self._team_end,
        )
        both = {uid: self._values(uid, stretch) for uid in self.learners}

        def together(part: int, k: int, models: Mapping[str, Mapping[str, Model]]) -> Tensor:
            row = stretch.rows[k]
            acting = [uid in both and row.status[uid] == ACTIVE for uid in self.names]
            values = [both[uid][part][k] if acts else None for uid, acts in zip(self.names, acting, strict=True)]
            mixer = models[first].get("mixer")
            scale = self.set_of(first).mixer_scale
            return mix(mixer, values, None if mixer is None else scale.normalise(self._shared(row).unsqueeze(0))[0])

        predicted = {deed.row: together(0, deed.row, self.models) for deed in done if self.whole or deed.row == 0}
        with torch.no_grad():
            following = {
                deed.leads_to: float(together(1, deed.leads_to, self.targets))
                for deed in done
                if deed.leads_to is not None
            }
        return self._errors(n, predicted, done, following, first)

    def _shared(self, row: Row) -> Tensor:
        """What a mixer sees."""
        kind = self.cfg["mixer_input"]
        parts = [row.state] if kind in ("state", "both") else []
        parts += [row.shown[uid] for uid in self.names] if kind in ("observations", "both") else []
        return torch.cat(parts)

    # ---- an update -----------------------------------------------------------------------------------------------------

    def update(self, names: Sequence[str], stretches: Sequence[Stretch], now: tuple[int, int]) -> list[float] | None:
        """One gradient step of those that learn together; the mean absolute error of each stretch, None without a step.

        :param names: the agents
        """
        owners = [owner for owner in self.sets if owner.names[0] in names]
        errors_of = []
        for owner in owners:
            errors: list[Error] = []
            for n, stretch in enumerate(stretches):
                if self.mixed:
                    errors += self._team_errors(n, stretch)
                else:
                    errors += [error for uid in owner.names for error in self._own_errors(uid, n, stretch)]
            errors_of.append(errors)
        if not any(errors_of):
            return None
        for owner, errors in zip(owners, errors_of, strict=True):
            if errors:
                self._gradient_step(owner, errors, stretches, now)
        leader = names[0]
        self.steps[leader] = self.steps.get(leader, 0) + 1
        if self.steps[leader] % self.setting("target_update_interval", leader) == 0:
            for owner in owners:
                self._follow(owner, self.setting("polyak", leader))
        every = [error for errors in errors_of for error in errors]
        sizes: list[list[float]] = [
            [abs(error.target - float(error.predicted.detach())) for error in every if error.stretch == n]
            for n in range(len(stretches))
        ]
        return [sum(size) / max(len(size), 1) for size in sizes]

    def _gradient_step(
        self, owner: ParameterSet, errors: Sequence[Error], stretches: Sequence[Stretch], now: tuple[int, int]
    ) -> None:
        total = torch.zeros((), dtype=torch.float64)
        for error in errors:
            off = (error.target - error.predicted).abs()
            delta = error.huber
            linear = delta > 0 and float(off.detach()) > delta
            loss = 2 * delta * off - delta**2 if linear else off**2
            total = total + stretches[error.stretch].weight * loss
        rate = self.setting("learning_rate", owner.names[0])
        if callable(rate):
            owner.optimizer.param_groups[0]["lr"] = rate(*now)
        for p in owner.parameters:  # what had no part in it has a gradient of 0, which Adam's moments notice
            p.grad = torch.zeros_like(p) if p.requires_grad else None
        (total / len(errors)).backward()
        bound = self.setting("grad_norm_clip", owner.names[0])
        if bound > 0:
            torch.nn.utils.clip_grad_norm_(owner.parameters, bound)
        owner.optimizer.step()
        if owner.scheduler is not None:
            owner.scheduler.step()
        for p in owner.parameters:
            state = owner.optimizer.state.get(p, {})
            if "exp_avg_sq" in state:
                size = (state["exp_avg_sq"] / (1 - 0.999 ** float(state["step"]))).sqrt()
                doubt = torch.where(size > 0, owner.optimizer.param_groups[0]["lr"] * 1e-10 / (size + 1e-8), 0.0)
                self.doubts[p] = torch.maximum(self.doubts.get(p, torch.zeros_like(doubt)), doubt)

    def _follow(self, owner: ParameterSet, part: float) -> None:
        seen: set[int] = set()
        with torch.no_grad():
            for uid in owner.names:
                for role, model in self.models[uid].items():
                    for p, q in zip(model.parameters(), self.targets[uid][role].parameters(), strict=True):
                        if id(q) not in seen:
                            seen.add(id(q))
                            q.copy_((1 - part) * q + part * p)
