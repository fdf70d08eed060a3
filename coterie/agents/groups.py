"""Groups: agents that run as one batch. Names stay outside; inside, tensors have an agent dimension.

Two partitions of a team matter. A *parameter set* is what one optimizer trains: agents that share any model belong to
one, an agent with models of its own is one by itself. A *group* is a set of agents with equal spaces, so that their data
stack into ``[T, E, A, F]``, and with policies of one kind of distribution. Parameter sets of one shape and architecture are
trained together (a *learner*): their parameters are rows of one tensor and each step of the update is taken for all of them
at once.

Critics run by *critic groups*: those of one group, or of all groups that have the same critics and see the same.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import gymnasium
import torch
from torch import Tensor

from coterie.agents.normalisation import SetPreprocessor
from coterie.agents.optimizers import SetOptimizers
from coterie.models.base import Model
from coterie.models.batch import ModelBatch, same_architecture
from coterie.models.flat_parameters import FlatParameters
from coterie.models.scripted import ScriptedPolicy
from coterie.spaces import action_width, flat_size

__all__ = ["CriticGroup", "Group", "Learner", "TeamMember", "build_learners"]


@dataclass(frozen=True)
class TeamMember:
    """One agent as the partition sees it.

    :param models: those that take part, by role
    :param own: settings by key that belong to parameters: agents that share a model must agree on them
    :param common: settings by key that belong to the loop of an update: agents that are trained together must agree on them
    :param role: that of the model it acts by
    :param tie: agents of equal ties learn from one loss, also where they share no model; None for no tie
    """

    name: str
    index: int
    models: Mapping[str, Model]
    observation_space: gymnasium.Space
    action_space: gymnasium.Space
    state_space: gymnasium.Space | None
    own: Mapping[str, Any]
    common: Mapping[str, Any]
    role: str = "policy"
    tie: Hashable = None

    @property
    def acting(self) -> Model:
        """The model it acts by."""
        return self.models[self.role]

    def spaces(self) -> tuple[str, ...]:
        """A text for each space: equal for agents whose data stack."""
        return tuple(str(space) for space in (self.observation_space, self.action_space, self.state_space))


@dataclass
class Group:
    """Agents of equal spaces whose models run as one batch.

    ``policy`` is what the agents act by, whatever its role. ``sets[i]`` is the parameter set, within the learner, of the i-th
    agent. Scripted agents have ``scripts`` in place of a policy. ``value`` may serve agents of other groups too: it is that of
    the :class:`CriticGroup`.
    """

    names: tuple[str, ...]
    observation_space: gymnasium.Space
    action_space: gymnasium.Space
    state_space: gymnasium.Space | None
    sets: list[int]
    policy: ModelBatch | None
    value: ModelBatch | None
    scripts: list[ScriptedPolicy] | None = None
    state_preprocessor: SetPreprocessor | None = None

    @cached_property
    def size(self) -> int:
        """Number of agents A."""
        return len(self.names)

    @cached_property
    def observation_width(self) -> int:
        """Number of elements F of an observation."""
        return flat_size(self.observation_space)

    @cached_property
    def action_width(self) -> int:
        """Number of elements of an action as it is stored."""
        return action_width(self.action_space)


@dataclass
class CriticGroup:
    """Agents whose critics run as one batch: a group's, or those of all groups of a learner that have the same critics, where
    these see one row for each environment.

    Agents stand group after group. ``preprocessor`` normalises inputs that are for critics alone.
    """

    groups: list[Group]
    batch: ModelBatch
    common_input: bool
    preprocessor: SetPreprocessor | None = None

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the agents."""
        return tuple(name for group in self.groups for name in group.names)

    @cached_property
    def sets(self) -> list[int]:
        """The parameter set of each agent."""
        return [s for group in self.groups for s in group.sets]

    @property
    def one_state(self) -> bool:
        """Whether recurrent critics have one state for each environment: one model sees the same for all agents. It changes
        with every step and ends with the whole team's episode; states of single agents follow these.
        """
        return self.common_input and self.batch.one_for_all

    def by_group(self, x: Tensor) -> dict[tuple[str, ...], Tensor]:
        """Hand ``[..., A or 1, n]`` out to the groups; 1 stands for all agents."""
        if len(self.groups) == 1 or x.shape[-2] == 1:
            return {group.names: x for group in self.groups}
        parts = x.split([group.size for group in self.groups], dim=-2)
        return {group.names: part for group, part in zip(self.groups, parts, strict=True)}


@dataclass
class Learner:
    """Parameter sets that are trained together, and the groups whose agents they serve.

    Recurrent models learn from chunks of ``sequence_length`` steps.
    """

    groups: list[Group]
    critics: list[CriticGroup]
    storage: FlatParameters
    policy_width: int
    num_sets: int
    agents_per_set: int
    sequence_length: int = 1
    value_preprocessor: SetPreprocessor | None = None
    reward_preprocessor: SetPreprocessor | None = None
    mixer_preprocessor: SetPreprocessor | None = None
    optimizers: SetOptimizers | None = None

    @property
    def names(self) -> list[str]:
        """Names of all agents, group after group."""
        return [name for group in self.groups for name in group.names]

    @property
    def sets(self) -> list[int]:
        """The parameter set of each agent."""
        return [s for group in self.groups for s in group.sets]

    def value_models(self) -> list[list[Model]]:
        """The value models of each parameter set."""
        models: list[list[Model]] = [[] for _ in range(self.num_sets)]
        for critics in self.critics:
            for model, s in zip(critics.batch.models, critics.sets, strict=True):
                if not any(model is other for other in models[s]):
                    models[s].append(model)
        return models

    def preprocessors(self) -> Iterator[tuple[str, SetPreprocessor]]:
        """Everything that normalises, by a name of its own; what serves several groups comes once."""
        for group in self.groups:
            if group.state_preprocessor is not None:
                yield f"state_preprocessor/{group.names[0]}", group.state_preprocessor
        known: list[SetPreprocessor] = []
        for critics in self.critics:
            stage = critics.preprocessor
            if stage is not None and not any(stage is other for other in known):
                known.append(stage)
                yield f"shared_state_preprocessor/{critics.names[0]}", stage
        if self.value_preprocessor is not None:
            yield "value_preprocessor", self.value_preprocessor
        if self.reward_preprocessor is not None:
            yield "reward_preprocessor", self.reward_preprocessor
        if self.mixer_preprocessor is not None:
            yield "shared_state_preprocessor", self.mixer_preprocessor

    def set_names(self) -> list[list[str]]:
        """Names of the agents of each parameter set."""
        names: list[list[str]] = [[] for _ in range(self.num_sets)]
        for group in self.groups:
            for name, s in zip(group.names, group.sets, strict=True):
                names[s].append(name)
        return names


def build_learners(
    members: Sequence[TeamMember], device: torch.device, common_critic_input: bool = False, team_size: int | None = None
) -> list[Learner]:
    """Partition a team into learners and groups.

    :param common_critic_input: whether all critics see the same, one row for each environment
    :param team_size: number of agents of the team, for members that are only some of it

    :raises ValueError: agents that share a model differ in settings that belong to the parameters
    """
    ids = torch.eye(len(members) if team_size is None else team_size, device=device)
    return [_build(sets, ids, common_critic_input) for sets in _alike_sets(_parameter_sets(members))]


def _parameter_sets(members: Sequence[TeamMember]) -> list[list[TeamMember]]:
    """Agents connected by shared parameters or ties together, in the team's order."""
    sets: list[tuple[set[Hashable], list[TeamMember]]] = []
    for member in members:
        mine: set[Hashable] = {id(p) for model in member.models.values() for p in model.parameters()}
        if member.tie is not None:
            mine.add(member.tie)
        joined = [entry for entry in sets if entry[0] & mine]
        sets = [entry for entry in sets if not any(entry is other for other in joined)]
        together = [other for entry in joined for other in entry[1]]
        sets.append((mine.union(*(entry[0] for entry in joined)), [*together, member]))
    for _, together in sets:
        first = together[0]
        for member in together[1:]:
            differing = [
                f"{key} is {mine[key]} for {first.name!r} and {theirs[key]} for {member.name!r}"
                for mine, theirs in ((first.own, member.own), (first.common, member.common))
                for key in mine
                if mine[key] != theirs[key]
            ]
            if differing:
                tied = first.tie is not None and first.tie == member.tie
                bond = "learn from one loss" if tied else "share a model"
                raise ValueError(
                    f"agents {first.name!r} and {member.name!r} {bond} but not the settings of its training: "
                    f"{'; '.join(differing)}. Give them equal values" + ("" if tied else ", or models of their own")
                )
    return sorted((sorted(t, key=lambda m: m.index) for _, t in sets), key=lambda t: t[0].index)


def _unique(sequence: Sequence[Model]) -> list[Model]:
    return list(dict.fromkeys(sequence))


def _stackable(a: list[TeamMember], b: list[TeamMember]) -> bool:
    """Whether two parameter sets may be rows of one learner."""
    if len(a) != len(b) or a[0].common != b[0].common:
        return False
    if any(member.spaces() != a[0].spaces() for member in (*a, *b)) or set(a[0].models) != set(b[0].models):
        return False
    for role in a[0].models:
        mine, theirs = (_unique([member.models[role] for member in team]) for team in (a, b))
        if len(mine) != 1 or len(theirs) != 1 or not same_architecture([mine[0], theirs[0]]):
            return False
    same_object = [len({id(model) for model in team[0].models.values()}) for team in (a, b)]
    return same_object[0] == same_object[1]


def _alike_sets(sets: Sequence[list[TeamMember]]) -> list[list[list[TeamMember]]]:
    learners: list[list[list[TeamMember]]] = []
    for parameter_set in sets:
        for learner in learners:
            if _stackable(learner[0], parameter_set):
                learner.append(parameter_set)
                break
        else:
            learners.append([parameter_set])
    return learners


def _build(sets: list[list[TeamMember]], ids: Tensor, common_critic_input: bool) -> Learner:
    policies = [_unique([m.acting for m in team]) for team in sets]
    others = [_unique([model for m in team for role, model in m.models.items() if role != m.role]) for team in sets]
    storage = FlatParameters([[*p, *o] for p, o in zip(policies, others, strict=True)])
    alike: dict[Hashable, list[tuple[int, TeamMember]]] = {}
    for s, team in enumerate(sets):
        for member in team:
            key = member.spaces(), member.role, _distribution_kind(member.acting)
            alike.setdefault(key, []).append((s, member))
    groups = []
    for entries in alike.values():
        team = _together([member for _, member in entries]) if len(sets) == 1 else [member for _, member in entries]
        set_of = {member.name: s for s, member in entries}
        positions = ids[[member.index for member in team]]
        acting = [m.acting for m in team]
        scripts = [policy for policy in acting if isinstance(policy, ScriptedPolicy)]
        groups.append(
            Group(
                names=tuple(member.name for member in team),
                observation_space=team[0].observation_space,
                action_space=team[0].action_space,
                state_space=team[0].state_space,
                sets=[set_of[member.name] for member in team],
                policy=None if scripts else ModelBatch(acting, team[0].role, storage, positions),
                value=None,
                scripts=scripts or None,
            )
        )
    critics = _critic_groups(groups, {m.name: m for team in sets for m in team}, storage, ids, common_critic_input)
    width = storage.width_of(policies[0])
    return Learner(groups, critics, storage, width, len(sets), len(sets[0]), _sequence_length(groups))


def _critic_groups(
    groups: Sequence[Group], members: Mapping[str, TeamMember], storage: FlatParameters, ids: Tensor, common_input: bool
) -> list[CriticGroup]:
    """The critics of a learner's groups as they run, those of agents that only act left out where any of them has none."""
    alike: dict[Hashable, list[Group]] = {}
    for group in groups:
        models = [members[name].models.get("value") for name in group.names]
        if None not in models:
            alike.setdefault(frozenset(models) if common_input else group.names, []).append(group)
    found = []
    for together in alike.values():
        team = [members[name] for group in together for name in group.names]
        positions = ids[[member.index for member in team]]
        batch = ModelBatch([member.models["value"] for member in team], "value", storage, positions)
        found.append(CriticGroup(together, batch, common_input))
        for group in together:
            group.value = batch
    return found


def _sequence_length(groups: Sequence[Group]) -> int:
    """The chunks' length that a learner's recurrent models agree on; 1 without any."""
    batches = [batch for group in groups for batch in (group.policy, group.value) if batch is not None]
    lengths = {batch.sequence_length for batch in batches if batch.recurrent}
    if len(lengths) > 1:
        names = [name for group in groups for name in group.names]
        raise ValueError(
            f"the recurrent models of {names} are trained together but have sequence lengths {sorted(lengths)}: expected one"
        )
    return lengths.pop() if lengths else 1


def _distribution_kind(policy: Model) -> Hashable:
    """What policies must have in common for one distribution object to serve them all."""
    if isinstance(policy, ScriptedPolicy):
        return ScriptedPolicy
    return type(policy).make_distribution, repr(policy.settings())  # type: ignore[attr-defined, operator]


def _together(team: list[TeamMember]) -> list[TeamMember]:
    """Order agents so that those of one acting model stand together."""
    order = _unique([member.acting for member in team])
    key: Callable[[TeamMember], int] = lambda member: order.index(member.acting)  # noqa: E731
    return sorted(team, key=key)
