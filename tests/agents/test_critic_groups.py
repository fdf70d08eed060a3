"""Critics that serve agents of several groups: what runs together, how often, on which scale, and what is saved of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from coterie.agents import IPPO, MAPPO, MultiAgent
from coterie.agents.checkpoints import CheckpointError, read_checkpoint
from coterie.agents.groups import CriticGroup, Learner, TeamMember, build_learners
from coterie.memories import RandomMemory
from coterie.models import CategoricalPolicy, DeterministicMixin, Model, TeamValue, Value
from coterie.preprocessors import RunningStandardScaler
from coterie.trainers import SequentialTrainer
from tests.agents.toys import OFF, Toy, box

CHOICE = spaces.Discrete(4)
SIZES = {"a": 3, "b": 2, "c": 3, "d": 5}  # three kinds of agents
STATE = 4
EVERYONE = sum(SIZES.values())
ROLLOUTS, ENVS = 4, 2


# ---- what runs together ----------------------------------------------------------------------------------------------


def learners(
    critics: Mapping[str, Model | None], policies: Mapping[str, Model] | None = None, common: bool = True
) -> list[Learner]:
    members = []
    for i, (uid, critic) in enumerate(critics.items()):
        policy = CategoricalPolicy(box(SIZES[uid]), CHOICE, hidden=(4,)) if policies is None else policies[uid]
        models: dict[str, Model] = {"policy": policy}
        if critic is not None:
            models["value"] = critic
        members.append(TeamMember(uid, i, models, box(SIZES[uid]), CHOICE, box(STATE), {}, {}))
    return build_learners(members, torch.device("cpu"), common)


def runs(learner: Learner) -> list[str]:
    return ["".join(critics.names) for critics in learner.critics]


def critic() -> Model:
    return Value(box(STATE), CHOICE, hidden=(4,))


def test_one_critic_of_all_kinds_runs_for_all_of_them() -> None:
    (learner,) = learners(dict.fromkeys(SIZES, critic()))
    assert ["".join(group.names) for group in learner.groups] == ["ac", "b", "d"]
    (critics,) = learner.critics
    assert critics.names == ("a", "c", "b", "d")
    assert critics.batch.mode == "single"
    assert len(critics.batch.models) == 4
    assert all(group.value is critics.batch for group in learner.groups)
    assert (critics.common_input, critics.one_state, critics.sets) == (True, True, [0] * 4)
    assert learner.value_models() == [critics.batch.unique]


def test_critics_that_see_something_else_for_each_agent_run_kind_by_kind() -> None:
    (learner,) = learners(dict.fromkeys(SIZES, critic()), common=False)
    assert runs(learner) == ["ac", "b", "d"]
    assert [len(critics.batch.models) for critics in learner.critics] == [2, 1, 1]
    assert not any(critics.one_state for critics in learner.critics)
    assert learner.value_models() == [learner.critics[0].batch.unique]


def test_kinds_with_other_critics_run_by_themselves() -> None:
    first, second = critic(), critic()
    policy = CategoricalPolicy(box(3), CHOICE, hidden=(4,))
    policies = {"a": policy, "c": policy, **{uid: CategoricalPolicy(box(SIZES[uid]), CHOICE) for uid in "bd"}}
    # a and c share a policy; a shares a critic with d, c with b: one set, whose kinds have other critics
    critics = {"a": first, "b": second, "c": second, "d": first}
    (learner,) = learners(critics, policies)
    assert runs(learner) == ["ac", "b", "d"]
    assert learner.value_models() == [[first, second]]
    # a kind that has both has them in common with another such kind
    policies["d"] = CategoricalPolicy(box(2), CHOICE, hidden=(4,))
    policies["b"] = policies["d"]
    members = [
        TeamMember(uid, i, {"policy": policies[uid], "value": critics[uid]}, box(n), CHOICE, box(STATE), {}, {})
        for i, (uid, n) in enumerate((("a", 3), ("b", 2), ("c", 3), ("d", 2)))
    ]
    (learner,) = build_learners(members, torch.device("cpu"), True)
    assert [sorted(names) for names in runs(learner)] == [["a", "b", "c", "d"]]
    assert not learner.critics[0].one_state


def test_agents_without_critics_have_none_to_run() -> None:
    value = critic()
    (first, second) = learners({"a": value, "b": value, "d": None})
    assert (runs(first), runs(second)) == (["ab"], [])
    assert second.groups[0].value is None


def test_a_model_that_tells_agents_apart_has_a_state_for_each() -> None:
    told = Value(box(STATE), CHOICE, hidden=(4,), agent_ids=4)
    (learner,) = learners(dict.fromkeys(SIZES, told))
    assert runs(learner) == ["acbd"]
    assert not learner.critics[0].one_state


def test_values_are_handed_out_to_groups() -> None:
    (learner,) = learners(dict.fromkeys(SIZES, critic()))
    (critics,) = learner.critics
    values = torch.arange(8.0).view(2, 4, 1)
    parts = critics.by_group(values)
    assert {names: part.flatten().tolist() for names, part in parts.items()} == {
        ("a", "c"): [0.0, 1.0, 4.0, 5.0],
        ("b",): [2.0, 6.0],
        ("d",): [3.0, 7.0],
    }
    one = values[:, :1]
    assert all(part is one for part in critics.by_group(one).values())
    alone = CriticGroup(learner.groups[:1], critics.batch, True)
    assert alone.by_group(values[:, :2])["a", "c"].shape == (2, 2, 1)


# ---- how often -------------------------------------------------------------------------------------------------------

#: number of rows of each call of a critic
CALLS: list[int] = []


class Counted(Value):
    def compute(self, inputs: Mapping[str, Any], role: str = "") -> tuple[Any, ...]:
        CALLS.append(inputs["states"].shape[0])
        return super().compute(inputs, role)


class CountedTeam(TeamValue):
    def compute(self, inputs: Mapping[str, Any], role: str = "") -> tuple[Any, ...]:
        CALLS.append(inputs["states"].shape[0])
        return super().compute(inputs, role)


def critic_of(kind: str) -> Model:
    if kind in ("mean", "attention"):
        return CountedTeam({uid: box(n) for uid, n in SIZES.items()}, kind, hidden=(8,), heads=2)
    if kind == "heads":
        return Counted(box(EVERYONE), CHOICE, hidden=(8,), values=len(SIZES))
    rnn: Any = {"rnn": "gru", "rnn_size": 4, "sequence_length": 2} if kind == "recurrent" else {}
    return Counted(box(EVERYONE), CHOICE, hidden=(8,), **rnn)


def team(env: Toy, value: Model | Mapping[str, Model], kind: type[MultiAgent] = MAPPO, **cfg: Any) -> Any:
    settings = {"rollouts": ROLLOUTS, "learning_epochs": 1, "mini_batches": 2, "experiment": OFF, **cfg}
    critics = dict.fromkeys(SIZES, value) if isinstance(value, Model) else value
    models = {
        uid: {"policy": CategoricalPolicy(box(n), CHOICE, hidden=(4,)), "value": critics[uid]}
        for uid, n in SIZES.items()
    }
    memories = {uid: RandomMemory(ROLLOUTS, env.num_envs) for uid in SIZES}
    return kind(
        list(SIZES), models, memories, env.observation_spaces, env.action_spaces, cfg=settings,
        shared_observation_spaces=env.shared_observation_spaces,
    )  # fmt: skip


def train(env: Toy, agent: Any, timesteps: int = ROLLOUTS) -> None:
    cfg = {"timesteps": timesteps, "headless": True, "disable_progressbar": True, "close_environment_at_exit": False}
    SequentialTrainer(env, agent, cfg=cfg).train()


@pytest.mark.parametrize("kind", ["plain", "heads", "mean", "attention", "recurrent"])
def test_a_critic_of_several_kinds_runs_once_for_each_row(kind: str) -> None:
    env = Toy(tuple(SIZES), lengths=(9, 3), observations=SIZES)  # the second copy is truncated once
    agent = team(env, critic_of(kind), critic_input="observations", time_limit_bootstrap=True)
    CALLS.clear()
    train(env, agent)
    # the rollout's 4 x 2 rows; the successors of the last row of both, and of one row at which a time limit struck; then
    # two minibatches of 4 rows. With a memory: the rollout row by row, and minibatches of 2 sequences of 2 steps
    rollout = [ENVS] * ROLLOUTS if kind == "recurrent" else [ROLLOUTS * ENVS]
    assert [*rollout, ENVS + 1, 4, 4] == CALLS
    assert len(agent.learners[0].groups) == 3
    (successors,) = agent._successors.values()
    assert successors.last.states.shape == (ENVS, 1, EVERYONE)


@pytest.mark.parametrize("kind", ["plain", "recurrent"])
def test_what_a_critic_sees_is_kept_once(kind: str) -> None:
    env = Toy(tuple(SIZES), lengths=(9, 3), observations=SIZES)
    agent = team(env, critic_of(kind), critic_input="observations")
    found: list[Any] = []
    make = agent._batches
    agent._batches = lambda learner: found.append(make(learner)) or found[-1]
    train(env, agent)
    (batches, seen) = found[0]
    assert len(batches) == 3
    (critics,) = seen
    assert critics.states.shape[-2:] == (1, EVERYONE)
    if kind == "recurrent":
        assert critics.recall.state.shape == (ROLLOUTS // 2 * ENVS, 1, 4)
        (state,) = agent._critic_states.values()
        assert state.shape == (ENVS, 1, 4)


# ---- inputs that are not what was said ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("common", "expected"), [(True, 1), (False, 2)])
def test_inputs_of_another_number_of_agents_are_named(common: bool, expected: int) -> None:
    class Odd(IPPO):
        common_critic_input = common

        def critic_states(self, group: Any, moment: Any) -> Tensor:
            return moment.of(group)[:, :1] if not common else moment.of(group)

    env = Toy(tuple(SIZES), observations=SIZES)
    agent = team(env, {uid: Value(box(n), CHOICE) for uid, n in SIZES.items()}, Odd)
    with pytest.raises(
        ValueError,
        match=rf"Odd.critic_states returned inputs of shape \[3, {3 - expected}, 3\] for \['a', 'c'\]: "
        rf"expected \[B, {expected}, F\], since common_critic_input is {common}",
    ):
        train(env, agent)


# ---- scales ----------------------------------------------------------------------------------------------------------


def some_there(age: Tensor) -> dict[str, Any]:
    """Nobody acts at age 2; b never does, a at ages 0 and 1, c at 0, d at 0 and from 3 on."""
    return {
        "active_masks": {
            "a": (age < 2).unsqueeze(1),
            "b": (age < 0).unsqueeze(1),
            "c": (age == 0).unsqueeze(1),
            "d": ((age == 0) | (age > 2)).unsqueeze(1),
        }
    }


def test_a_set_has_one_scale_of_what_its_kinds_see_alike_and_learns_each_row_once() -> None:
    env = Toy(tuple(SIZES), lengths=(9, 9), observations=SIZES, masks=some_there)
    agent = team(env, critic(), shared_state_preprocessor=RunningStandardScaler)
    (learner,) = agent.learners
    (critics,) = learner.critics
    (scaler,) = critics.preprocessor.members
    assert agent.critic_networks[critics.names].preprocessor is critics.preprocessor
    states: list[Tensor] = []
    record = agent.record_transition

    def spy(*args: Any) -> None:
        states.append(args[6]["shared_states"].clone())
        record(*args)

    agent.record_transition = spy
    train(env, agent)
    # ages 0, 1 and 3: somebody acts in these rows; two copies of each
    seen = torch.cat([states[t] for t in (0, 1, 3)]).double()
    assert scaler.current_count.item() == 6
    torch.testing.assert_close(scaler.running_mean[0], seen.mean(0))
    torch.testing.assert_close(scaler.running_variance[0], seen.var(0, correction=0))


def test_kinds_with_critics_of_their_own_in_one_set_share_the_scale() -> None:
    """A set has one scale of what it sees, however many critics."""
    env = Toy(("a", "b"), lengths=(9, 9), observations=3, actions={"a": CHOICE, "b": spaces.Discrete(3)})
    trunk = nn.Linear(STATE, 1)

    class OnTrunk(DeterministicMixin, Model):
        def __init__(self) -> None:
            Model.__init__(self, box(STATE), CHOICE)
            DeterministicMixin.__init__(self)
            self.trunk, self.own = trunk, nn.Linear(1, 1)

        def compute(self, inputs: Mapping[str, Any], role: str = "") -> tuple[Any, ...]:
            return self.own(self.trunk(inputs["states"])), {}

    models = {
        uid: {"policy": CategoricalPolicy(box(3), env.action_spaces[uid], hidden=(4,)), "value": OnTrunk()}
        for uid in "ab"
    }
    cfg = {"rollouts": ROLLOUTS, "experiment": OFF, "shared_state_preprocessor": RunningStandardScaler}
    agent: Any = MAPPO(
        ["a", "b"], models, {uid: RandomMemory(ROLLOUTS, ENVS) for uid in "ab"}, env.observation_spaces,
        env.action_spaces, cfg=cfg, shared_observation_spaces=env.shared_observation_spaces,
    )  # fmt: skip
    first, second = agent.learners[0].critics
    assert agent.learners[0].value_models() == [[models["a"]["value"], models["b"]["value"]]]
    assert first.preprocessor is second.preprocessor
    train(env, agent)
    assert first.preprocessor.members[0].current_count.item() == ROLLOUTS * ENVS
    assert [name for name in agent.checkpoint_modules() if "preprocessor" in name] == ["shared_state_preprocessor/a/a"]


def agents_own(**cfg: Any) -> Any:
    """Critics of the own observation and the state, of which two kinds have one in common."""
    env = Toy(("a", "b", "c"), lengths=(9, 9), observations=3, actions={
        "a": CHOICE, "b": spaces.Discrete(3), "c": CHOICE,
    })  # fmt: skip
    value = Value(box(3 + STATE), CHOICE, hidden=(4,))
    models = {
        uid: {"policy": CategoricalPolicy(box(3), env.action_spaces[uid], hidden=(4,)), "value": value} for uid in "abc"
    }
    settings = {"rollouts": ROLLOUTS, "experiment": OFF, "critic_input": "agent", **cfg}
    agent: Any = MAPPO(
        list("abc"), models, {uid: RandomMemory(ROLLOUTS, ENVS) for uid in "abc"}, env.observation_spaces,
        env.action_spaces, cfg=settings, shared_observation_spaces=env.shared_observation_spaces,
    )  # fmt: skip
    return env, agent


def test_inputs_of_each_agent_are_normalised_kind_by_kind() -> None:
    env, agent = agents_own(shared_state_preprocessor=RunningStandardScaler)
    train(env, agent)
    stages = [critics.preprocessor for critics in agent.learners[0].critics]
    assert [stage.members[0].current_count.item() for stage in stages] == [2 * ROLLOUTS * ENVS, ROLLOUTS * ENVS]
    names = [name for name in agent.checkpoint_modules() if "preprocessor" in name]
    assert names == ["shared_state_preprocessor/a/a", "shared_state_preprocessor/b/a"]


# ---- agreement on normalisers -----------------------------------------------------------------------------------------


def by_agent(odd: str, value: Any, other: Any) -> dict[str, Any]:
    return {uid: value if uid == odd else other for uid in SIZES}


@pytest.mark.parametrize("key", ["state_preprocessor", "shared_state_preprocessor"])
@pytest.mark.parametrize("odd", ["b", "c"])  # of another kind than a, and of the same
def test_agents_that_share_a_critic_agree_on_their_normalisers(key: str, odd: str) -> None:
    env = Toy(tuple(SIZES), observations=SIZES)
    kwargs = {f"{key}_kwargs": by_agent(odd, {"epsilon": 0.5}, {"epsilon": 0.25})}
    with pytest.raises(
        ValueError,
        match=rf"agents 'a' and '{odd}' share a model but not {key}_kwargs: \{{'epsilon': 0.25\}} against "
        r"\{'epsilon': 0.5\}; give them equal values",
    ):
        team(env, critic(), **kwargs, **{key: RunningStandardScaler})


@pytest.mark.parametrize("odd", ["b", "c"])
def test_critics_of_what_each_agent_sees_agree_too(odd: str) -> None:
    kwargs = {uid: {"clip_threshold": 1.0 if uid == odd else 2.0} for uid in "abc"}
    with pytest.raises(ValueError, match=rf"agents 'a' and '{odd}' share a model but not shared_state_preprocessor_kw"):
        agents_own(shared_state_preprocessor=RunningStandardScaler, shared_state_preprocessor_kwargs=kwargs)


@pytest.mark.parametrize("odd", ["b", "c"])
@pytest.mark.parametrize("key", ["state_preprocessor", "shared_state_preprocessor"])
def test_agents_that_share_a_critic_agree_on_the_class(key: str, odd: str) -> None:
    env = Toy(tuple(SIZES), observations=SIZES)
    with pytest.raises(ValueError, match=rf"agents 'a' and '{odd}' share a model but not .*{key}"):
        team(env, critic(), **{key: by_agent(odd, None, RunningStandardScaler)})


def test_sizes_follow_from_the_data_and_need_not_agree() -> None:
    env = Toy(tuple(SIZES), observations=SIZES)
    kwargs = {uid: {"size": box(n), "device": torch.device("cpu"), "epsilon": 0.5} for uid, n in SIZES.items()}
    agent = team(
        env, critic(), state_preprocessor=RunningStandardScaler, state_preprocessor_kwargs=kwargs,
        shared_state_preprocessor=RunningStandardScaler,
        shared_state_preprocessor_kwargs={"size": box(STATE), "clip_threshold": 2.0},
    )  # fmt: skip
    assert [group.state_preprocessor.members[0].size for group in agent.groups] == [3, 2, 5]
    assert {group.state_preprocessor.members[0].epsilon for group in agent.groups} == {0.5}
    assert agent.learners[0].critics[0].preprocessor.members[0].clip_threshold == 2.0
    with pytest.raises(ValueError, match=r"state_preprocessor_kwargs\['b'\]: expected size 2, got 3"):
        team(
            env, critic(), state_preprocessor=RunningStandardScaler,
            state_preprocessor_kwargs={**kwargs, "b": {"size": 3, "epsilon": 0.5}},
        )  # fmt: skip


def test_agents_that_share_nothing_may_differ() -> None:
    env = Toy(tuple(SIZES), observations=SIZES)
    kwargs = {uid: {"clip_threshold": 1.0 + i} for i, uid in enumerate(SIZES)}
    agent = team(
        env, {uid: critic() for uid in SIZES},
        state_preprocessor=RunningStandardScaler, state_preprocessor_kwargs=kwargs,
        shared_state_preprocessor=RunningStandardScaler, shared_state_preprocessor_kwargs=kwargs,
    )  # fmt: skip
    for stages in (
        [group.state_preprocessor for group in agent.groups],
        [critics.preprocessor for learner in agent.learners for critics in learner.critics],
    ):
        clips = [member.clip_threshold for stage in stages for member in stage.members]
        assert clips == [1.0, 3.0, 2.0, 4.0]  # a, c; b; d


# ---- checkpoints --------------------------------------------------------------------------------------------------------

SCALERS = {"state_preprocessor": RunningStandardScaler, "shared_state_preprocessor": RunningStandardScaler}


def statistics(agent: Any) -> dict[str, dict[str, Tensor]]:
    modules = agent.checkpoint_modules()
    return {name: dict(module.state_dict()) for name, module in modules.items() if "preprocessor" in name}


def test_a_scale_of_several_kinds_is_saved_once_and_loaded(tmp_path: Path) -> None:
    env = Toy(tuple(SIZES), lengths=(9, 9), observations=SIZES, masks=some_there)
    agent = team(env, critic(), **SCALERS)
    train(env, agent)
    agent.save(tmp_path / "agent.pt")
    saved = statistics(agent)
    # those of observations by kind, each by the set's first agent; one for what all see
    assert sorted(saved) == [
        "shared_state_preprocessor/a/a", "state_preprocessor/a/a", "state_preprocessor/b/a", "state_preprocessor/d/a",
    ]  # fmt: skip
    owners = read_checkpoint(tmp_path / "agent.pt", torch.device("cpu"))["owners"]
    assert {uid: own["state_preprocessor"] for uid, own in owners.items()} == {
        "a": "state_preprocessor/a/a", "b": "state_preprocessor/b/a", "c": "state_preprocessor/a/a",
        "d": "state_preprocessor/d/a",
    }  # fmt: skip
    other = team(env, critic(), **SCALERS)
    other.load(tmp_path / "agent.pt")
    torch.testing.assert_close(statistics(other), saved, rtol=0, atol=0)
    inputs = torch.randn(5, 1, STATE)
    stages = [one.learners[0].critics[0].preprocessor for one in (agent, other)]
    torch.testing.assert_close(stages[0](inputs), stages[1](inputs), rtol=0, atol=0)
    assert stages[1].members[0].current_count.item() == 6
    with pytest.raises(CheckpointError, match="shared_state_preprocessor/b/b"):
        team(env, {uid: critic() for uid in SIZES}, **SCALERS).load(tmp_path / "agent.pt")


@pytest.mark.parametrize("shared", [True, False])
def test_names_in_a_checkpoint_of_one_kind_of_agents(shared: bool) -> None:
    value = critic()
    names = ["a", "b", "c"]
    models = {
        uid: {"policy": CategoricalPolicy(box(3), CHOICE, hidden=(4,)), "value": value if shared else critic()}
        for uid in names
    }
    memories = {uid: RandomMemory(ROLLOUTS, ENVS) for uid in names}
    agent = MAPPO(names, models, memories, cfg={"rollouts": ROLLOUTS, "experiment": OFF, **SCALERS})
    sets = ["a"] if shared else names
    assert sorted(statistics(agent)) == [
        *(f"shared_state_preprocessor/a/{uid}" for uid in sets), *(f"state_preprocessor/a/{uid}" for uid in sets),
    ]  # fmt: skip
