"""A team in the slow reference of PPO: its parameter sets, its networks, and what its agents learn from in a rollout.

Of the library it calls only the ``compute`` of the models that it is given, one step at a time.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from coterie.models.base import Model
from tests.agents.ppo_reference_parts import (
    AdaptiveRate,
    Normaliser,
    distribution,
    drawn,
    normaliser,
)
from tests.agents.ppo_reference_time import (
    ABSENT,
    ACTIVE,
    Life,
    Masks,
    Memory,
    Step,
    Walk,
    advantages_of,
    blank_memory,
    outcomes,
    walk,
    with_plain_cells,
)

Row = tuple[int, int]  # step and environment


@dataclass
class Batch:
    """What one agent learns from in a rollout."""

    states: list[Tensor]  # of each step, ``[E, F]``; so are the critic's
    critic_states: list[Tensor]
    allowed: list[Tensor | None]
    policy_memories: list[list[Memory]]  # by step and environment, before the row; so are the critic's
    critic_memories: list[list[Memory]]
    policy_rules: tuple[
        list[list[bool]], list[list[bool]]
    ]  # by environment and step: frozen, ended; so are the critic's
    critic_rules: tuple[list[list[bool]], list[list[bool]]]
    drawn: dict[Row, Tensor]
    log_prob: dict[Row, float]
    values: dict[Row, float]  # raw predictions of counting rows
    returns: dict[Row, float]
    advantages: dict[Row, float]

    def counting(self, rows: Sequence[Row]) -> list[Row]:
        return [row for row in rows if row in self.advantages]


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


class ReferenceTeam:
    """A team.

    :param models: by agent and role; copied at once, so that what is shared stays shared
    :param kinds: by agent, something that is equal for agents of equal spaces
    :param cfg: a complete configuration
    :param centralised: whether critics see more than the own observation (MAPPO) or not (IPPO)
    :param one_memory: agents whose critic has one memory for each environment rather than one for each of them
    """

    def __init__(
        self,
        models: Mapping[str, Mapping[str, Model]],
        kinds: Mapping[str, Any],
        cfg: Mapping[str, Any],
        centralised: bool,
        one_memory: Collection[str] = (),
    ) -> None:
        self.names = list(models)
        every = [model for roles in models.values() for model in roles.values()]
        kept = {id(space): space for model in every for space in (model.observation_space, model.action_space)}
        self.models = copy.deepcopy({uid: dict(roles) for uid, roles in models.items()}, kept)
        for roles in self.models.values():
            for model in roles.values():
                with_plain_cells(model.double())
        self.kinds = dict(kinds)
        self.cfg = dict(cfg)
        self.centralised = centralised
        self.one_memory = set(one_memory)
        self.sets = [self._make_set(names) for names in self._partition()]
        #: by role, agent and environment: what models remember of the rollouts before
        self.memories: dict[str, dict[str, list[Memory]]] = {"policy": {}, "value": {}}
        self.std: dict[str, float | None] = dict.fromkeys(self.names)

    def setting(self, key: str, uid: str) -> Any:
        """The value that an agent has of a configuration key."""
        value = self.cfg.get(key)
        if isinstance(value, Mapping) and set(value) == set(self.names):
            return value[uid]
        return value

    def number(self, key: str, uid: str, timestep: int, timesteps: int, part: int = 0) -> float:
        """The same for a number, of which there may be two, and each may be a schedule."""
        value = self.setting(key, uid)
        if isinstance(value, (tuple, list)):
            value = value[part]
        return float(value(timestep, timesteps) if callable(value) else value)

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
        split = isinstance(self.setting("learning_rate", first), (tuple, list))
        rates = [self.number("learning_rate", first, 0, 1, part) for part in range(2)]
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
            {self._scale(uid): make("shared_state_preprocessor") for uid in names},
        )

    def _scale(self, uid: str) -> Any:
        """Which normaliser of its set an agent's critic has, with MAPPO: one where all see the same, or one for each kind."""
        return self.kinds[uid] if self.cfg.get("critic_input") == "agent" else None

    def set_of(self, uid: str) -> ParameterSet:
        """The parameter set that an agent belongs to."""
        return next(s for s in self.sets if uid in s.names)

    # ---- networks ------------------------------------------------------------------------------------------------------

    def _call(self, uid: str, role: str, states: Tensor, memory: Memory) -> tuple[tuple[Tensor, ...], Memory]:
        """What a model makes of raw inputs ``[B, F]``, and what it remembers of them."""
        owner, model = self.set_of(uid), self.models[uid][role]
        shared = role == "value" and self.centralised
        scale = owner.shared_normalisers[self._scale(uid)] if shared else owner.state_normalisers[self.kinds[uid]]
        there = states[:, states.shape[1] - len(self.names) :] if self._of_team(uid, role) else None
        states = states if there is None else states[:, : -len(self.names)]
        agent_id = torch.zeros(len(states), len(self.names), dtype=torch.float64)
        agent_id[:, self.names.index(uid)] = 1.0
        inputs: dict[str, Any] = {"states": scale.normalise(states.double()), "agent_id": agent_id}
        if memory:
            inputs |= {"rnn": memory, "length": 1}
        if there is not None:
            of_all = model.compute({**inputs, "present": there.bool()}, role)[0]
            return (of_all[:, self.names.index(uid)].unsqueeze(-1),), []
        output = model.compute(inputs, role)
        tensors = [x for x in output if isinstance(x, Tensor)]
        tensors = [x.expand(len(states), -1) if x.dim() == 1 else x for x in tensors]  # a vector serves all rows
        return tuple(tensors), list(output[-1]["rnn"]) if memory else []

    def _of_team(self, uid: str, role: str) -> bool:
        """Whether a model gives every agent's value at once."""
        return role == "value" and self.models[uid][role].values_per_agent

    def _walk(
        self, uid: str, role: str, rows: Sequence[Tensor], memory: Memory, frozen: Sequence[bool], ended: Sequence[bool]
    ) -> Walk:
        return walk(lambda x, state: self._call(uid, role, x, state), rows, memory, frozen, ended)

    def _starts(self, uid: str, role: str, e: int) -> Memory:
        """What a model remembers in an environment at the start of a rollout."""
        table = self.memories[role].setdefault(uid, [])
        while len(table) <= e:
            table.append(blank_memory(self.models[uid][role]))
        return table[e]

    def _policy_of(self, uid: str, tensors: Sequence[Tensor], allowed: Tensor | None) -> Distribution:
        return distribution(self.models[uid]["policy"], tensors, allowed, self.std[uid])

    def _critic_states(
        self, uid: str, states: Mapping[str, Tensor] | None, shared: Tensor | None, masks: Masks
    ) -> Tensor:
        """What an agent's critic sees, ``[E, F]``, and who is there, where it gives every agent's value."""
        if not self.centralised:
            assert states is not None
            return masks.cleaned(states[uid], uid)
        kind = self.cfg.get("critic_input", "state")
        parts = []
        if kind in ("state", "both"):
            assert shared is not None
            parts.append(shared.double())
        if kind in ("observations", "both"):
            assert states is not None
            parts += [masks.cleaned(states[name], name) for name in self.names]
        if kind == "agent":
            assert states is not None
            assert shared is not None
            parts.append(masks.cleaned(torch.cat([states[uid], shared], dim=-1), uid))
        if self._of_team(uid, "value"):
            there = [[masks.status(name, e) != ABSENT for name in self.names] for e in range(len(parts[0]))]
            parts.append(torch.tensor(there).double())
        return torch.cat(parts, dim=-1)

    # ---- a rollout -----------------------------------------------------------------------------------------------------

    def _lives(self, uid: str, steps: Sequence[Step]) -> list[Life]:
        """What happened to an agent in each environment."""
        shaper = self.setting("rewards_shaper", uid)
        lives = []
        rewards = []
        for step in steps:
            reward = step.rewards[uid].clone()
            rewards.append(reward if shaper is None else shaper(reward, step.timestep, step.timesteps))
        for e in range(len(steps[0].rewards[uid])):
            there = [step.masks.status(uid, e) != ABSENT for step in steps]
            lives.append(
                Life(
                    [step.masks.status(uid, e) for step in steps],
                    steps[-1].next_masks.status(uid, e),
                    [float(r[e]) if here else 0.0 for r, here in zip(rewards, there, strict=True)],
                    [bool(step.terminated[uid][e]) and here for step, here in zip(steps, there, strict=True)],
                    [bool(step.truncated[uid][e]) and here for step, here in zip(steps, there, strict=True)],
                    [step.over(e) and not here for step, here in zip(steps, there, strict=True)],
                )
            )
        return lives

    def _rules(self, uid: str, role: str, steps: Sequence[Step]) -> tuple[list[list[bool]], list[list[bool]]]:
        """Rows that leave a memory as it was, and rows after which it is zero, by environment and step."""
        E = range(len(steps[0].shared_states))
        if role == "value" and uid in self.one_memory:
            return [[False] * len(steps) for _ in E], [[step.over(e) for step in steps] for e in E]
        lives = self._lives(uid, steps)
        frozen = [[status != ACTIVE for status in life.status] for life in lives]
        return frozen, [[life.done(t) for t in range(len(steps))] for life in lives]

    def acting(self, uid: str, steps: Sequence[Step]) -> list[Walk]:
        """An agent's policy along a rollout, in each environment."""
        frozen, ended = self._rules(uid, "policy", steps)
        inputs = [step.masks.cleaned(step.states[uid], uid) for step in steps]
        return [
            self._walk(uid, "policy", [x[e] for x in inputs], self._starts(uid, "policy", e), frozen[e], ended[e])
            for e in range(len(inputs[0]))
        ]

    def log_prob(self, uid: str, steps: Sequence[Step]) -> list[tuple[Row, Tensor]]:
        """Log-probability of what was done in each row in which an agent acted."""
        self._explore(steps)
        walks = self.acting(uid, steps)
        result = []
        for t, step in enumerate(steps):
            allowed = step.masks.choices(uid)
            for e, path in enumerate(walks):
                if step.masks.status(uid, e) == ACTIVE:
                    now = self._policy_of(uid, path.outputs[t], None if allowed is None else allowed[e : e + 1])
                    result.append(((t, e), now.log_prob(step.actions[uid][e : e + 1])))
        return result

    def _explore(self, steps: Sequence[Step]) -> None:
        for uid in self.names:
            if self.setting("exploration_std", uid) is not None:
                self.std[uid] = self.number("exploration_std", uid, steps[0].timestep, steps[0].timesteps)

    def _batch(self, uid: str, steps: Sequence[Step]) -> Batch:
        T, E = len(steps), len(steps[0].shared_states)
        to_scale = self.set_of(uid).value_normaliser.denormalise
        inputs = [self._critic_states(uid, step.states, step.shared_states, step.masks) for step in steps]
        last = steps[-1]
        beyond = self._critic_states(uid, last.next_states, last.shared_next_states, last.next_masks)
        rules = self._rules(uid, "value", steps)
        critics = [
            self._walk(uid, "value", [x[e] for x in inputs], self._starts(uid, "value", e), rules[0][e], rules[1][e])
            for e in range(E)
        ]
        policies = self.acting(uid, steps)

        def value(x: Tensor, memory: Memory) -> float:
            raw = self._call(uid, "value", x.unsqueeze(0), memory)[0][0]
            return float(to_scale(raw))

        batch = Batch(
            [step.masks.cleaned(step.states[uid], uid) for step in steps],
            inputs,
            [step.masks.choices(uid) for step in steps],
            [[path.before[t] for path in policies] for t in range(T)],
            [[path.before[t] for path in critics] for t in range(T)],
            self._rules(uid, "policy", steps),
            rules,
            *({}, {}, {}, {}, {}),
        )
        for e, life in enumerate(self._lives(uid, steps)):
            raw = [critics[e].outputs[t][0] for t in range(T)]
            values = [float(to_scale(x)) for x in raw]

            def final_value(t: int, e: int = e) -> float:
                step = steps[t]
                ended = step.over(e)  # otherwise it is over for this agent alone, and its next state is a true one
                states = step.final_states if ended else step.next_states
                shared = step.final_shared_states if ended else step.shared_next_states
                return value(self._critic_states(uid, states, shared, step.last_masks())[e], critics[e].after[t])

            led_to = outcomes(life)
            advantages = advantages_of(
                led_to,
                values,
                final_value,
                value(beyond[e], critics[e].after[-1]),
                self.setting("discount_factor", uid),
                self.setting("lambda", uid),
                self.setting("time_limit_bootstrap", uid),
            )
            for outcome in led_to:
                if outcome.counts:
                    t = outcome.row
                    batch.advantages[t, e] = advantages[t]
                    batch.returns[t, e] = advantages[t] + values[t]
                    batch.values[t, e] = float(raw[t])
                    allowed = batch.allowed[t]
                    before = self._policy_of(
                        uid, policies[e].outputs[t], None if allowed is None else allowed[e : e + 1]
                    )
                    log_prob = steps[t].log_prob[uid][e : e + 1]
                    batch.log_prob[t, e] = float(log_prob)
                    batch.drawn[t, e] = drawn(
                        self.models[uid]["policy"], before, steps[t].actions[uid][e : e + 1], log_prob
                    )
        for role, paths in (("policy", policies), ("value", critics)):
            self.memories[role][uid] = [path.last for path in paths]
        return batch
