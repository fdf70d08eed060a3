"""Teams of those that learn action values and those that don't: scripts, frozen networks, policies and values from files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from coterie.agents import IPPO, MAPPO
from coterie.agents.checkpoints import CheckpointError
from coterie.memories import RandomMemory, ReplayMemory
from coterie.models import CategoricalPolicy, GaussianPolicy, QMIXMixer, QNetwork, build_models
from coterie.preprocessors import RunningStandardScaler
from coterie.trainers import SequentialTrainer
from tests.agents.toys import OFF, Toy, box
from tests.agents.value_runs import KINDS, models_for, same, weights

QUIET = {"headless": True, "disable_progressbar": True, "close_environment_at_exit": False, "timesteps": 15}


def second_choice(states: Tensor, action_masks: Tensor | None) -> Tensor:
    return torch.full((len(states), 1), 1)


def network(role: str, env: Toy, uid: str, hidden: int = 8) -> dict[str, Any]:
    kind = QNetwork if role == "q" else CategoricalPolicy
    return {role: kind(env.observation_spaces[uid], env.action_spaces[uid], hidden=(hidden,))}


def value_team(env: Toy, kind: str, others: dict[str, dict[str, Any]], **cfg: Any) -> Any:
    """Those of the team that are not among the others learn, each with a network of its own."""
    learners = [uid for uid in env.possible_agents if uid not in others]
    mixer = QMIXMixer(env.state_size, len(env.possible_agents), embed=4, hypernet_hidden=5)
    models = {uid: network("q", env, uid) for uid in learners}
    if kind == "qmix":
        models = {uid: {**roles, "mixer": mixer} for uid, roles in models.items()}
    settings = {
        "batch_size": 4,
        "learning_rate": 1e-2,
        "target_update_interval": 3,
        "exploration_epsilon": 0.3,
        "experiment": OFF,
        "trainable": {uid: uid in learners for uid in env.possible_agents},
        **cfg,
    }
    memories = {uid: ReplayMemory(30, env.num_envs, seed=1) for uid in learners}
    return KINDS[kind](
        env.possible_agents, {**models, **others}, memories, env.observation_spaces, env.action_spaces, cfg=settings
    )


def train(env: Toy, agent: Any) -> None:
    SequentialTrainer(env, agent, cfg=QUIET).train()


def state_of(agent: Any, uids: str) -> dict[str, dict[str, Tensor]]:
    modules, owners = agent.checkpoint_modules(), agent.checkpoint_owners()
    return {
        f"{uid} {role}": {key: value.clone() for key, value in modules[name].state_dict().items()}
        for uid in uids
        for role, name in owners[uid].items()
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("role", "who"), [("q", "a"), ("policy", "c")])
def test_frozen_teammates_act_and_stay_as_they_are(kind: str, role: str, who: str) -> None:
    env = Toy("abc", lengths=(3, 4, 9))
    agent = value_team(env, kind, {who: network(role, env, who)}, state_preprocessor=RunningStandardScaler)
    learners = "abc".replace(who, "")
    assert "".join(agent.learning_agents) == learners
    before, taught = state_of(agent, who), state_of(agent, learners)
    train(env, agent)
    assert same(state_of(agent, who), before)
    after = state_of(agent, learners)
    assert all(not same(after[name], taught[name]) for name in taught)
    assert who not in agent.memories
    taken = torch.stack([step[who] for step in env.taken])
    assert len(taken.unique()) > 1
    if role == "q":  # a setting for all is not meant for those that don't learn: it is greedy
        states = {uid: torch.randn(500, 3) for uid in "abc"}
        assert torch.equal(agent.act(states, 0, 1)[0][who], agent.act(states, 0, 1)[0][who])
        assert not torch.equal(agent.act(states, 0, 1)[0]["b"], agent.act(states, 0, 1)[0]["b"])


@pytest.mark.parametrize("kind", KINDS)
def test_teammates_may_be_functions_with_any_actions(kind: str) -> None:
    actions = {"a": spaces.Discrete(4), "b": spaces.Discrete(3), "c": spaces.Box(-1, 1, (2,)), "d": spaces.Discrete(4)}
    env = Toy("abcd", lengths=(3, 4, 9), observations={"a": 3, "b": 2, "c": 3, "d": 3}, actions=actions)
    drift = lambda states, action_masks: states[:, :2].clamp(-1, 1)  # noqa: E731
    agent = value_team(env, kind, {"c": {"policy": drift}, "d": {"policy": second_choice}})
    before = weights(agent)
    train(env, agent)
    assert not torch.equal(weights(agent), before)
    assert {int(step["d"].unique()) for step in env.taken} == {1}
    assert bool(weights(agent).isfinite().all())


@pytest.mark.parametrize("kind", KINDS)
def test_a_gaussian_policy_may_be_a_teammate(kind: str) -> None:
    env = Toy(
        "abc",
        lengths=(3, 4, 9),
        actions={"a": spaces.Discrete(4), "b": spaces.Box(-1, 1, (2,)), "c": spaces.Discrete(4)},
    )
    policy = GaussianPolicy(env.observation_spaces["b"], env.action_spaces["b"], hidden=(8,))
    agent = value_team(env, kind, {"b": {"policy": policy}})
    train(env, agent)
    assert bool(weights(agent).isfinite().all())


def test_rewards_are_those_of_the_learners() -> None:
    """The mean of 1 and 2; the scripted one's 1000 are its own affair."""
    earned = {"a": 1.0, "b": 2.0, "c": 1000.0}
    env = Toy(
        "abc", lengths=(3, 4, 9), earn=lambda age, actions: {uid: torch.full((3, 1), r) for uid, r in earned.items()}
    )
    for reward, expected in (("mean", 1.5), ("sum", 3.0)):
        agent = value_team(env, "vdn", {"c": {"policy": second_choice}}, reward=reward)
        train(env, agent)
        drawn = agent._storage.draw(8, 1, 0)
        assert agent._rewards.of(agent.learners[0], drawn).unique().tolist() == [expected]


@pytest.mark.parametrize("kind", ["qmix", "vdn"])
def test_the_team_value_is_that_of_those_who_learn(kind: str) -> None:
    """Whatever the frozen one's network says, nothing that is learned changes, where it acts alike."""

    def learned(scale: float) -> Tensor:
        torch.manual_seed(0)
        env = Toy("abc", lengths=(3, 4, 9))
        roles = network("q", env, "b")
        with torch.no_grad():
            for parameter in list(roles["q"].parameters())[-2:]:
                parameter.mul_(scale)
        agent = value_team(env, kind, {"b": roles})
        train(env, agent)
        return torch.cat([x.storage.data.flatten() for x in agent.learners if agent.learns(x)])

    assert torch.equal(learned(1.0), learned(64.0))


@pytest.mark.parametrize("kind", KINDS)
def test_sharing_with_those_who_learn_is_refused(kind: str) -> None:
    env = Toy("ab")
    models = models_for(env, kind)
    with pytest.raises(ValueError, match=r"'b' does not learn .* but shares its policy with agents that do, \['a'\]"):
        KINDS[kind](
            ["a", "b"],
            models,
            None,
            env.observation_spaces,
            env.action_spaces,
            cfg={"trainable": {"a": True, "b": False}},
        )


# ---- from files --------------------------------------------------------------------------------------------------------


def ppo_team(env: Toy, kind: Any, others: dict[str, dict[str, Any]], **cfg: Any) -> Any:
    models = {**build_models(env, kind.__name__.lower(), hidden=(8,), shared=False), **others}
    learners = [uid for uid in env.possible_agents if uid not in others]
    settings = {
        "rollouts": 5,
        "experiment": OFF,
        "trainable": {uid: uid in learners for uid in env.possible_agents},
        **cfg,
    }
    memories = {uid: RandomMemory(5, env.num_envs) for uid in learners}
    return kind(
        env.possible_agents, models, memories, env.observation_spaces, env.action_spaces, cfg=settings,
        shared_observation_spaces=env.shared_observation_spaces,
    )  # fmt: skip


@pytest.mark.parametrize(("kind", "other"), [("qmix", MAPPO), ("vdn", IPPO), ("iql", MAPPO)])
def test_values_act_in_a_team_that_learns_policies(kind: str, other: Any, tmp_path: Path) -> None:
    env = Toy("ab", lengths=(3, 4, 9))
    teacher = value_team(env, kind, {}, state_preprocessor=RunningStandardScaler)
    train(env, teacher)
    teacher.save(tmp_path / "teacher.pt")
    agent = ppo_team(env, other, {"b": network("q", env, "b")}, state_preprocessor=RunningStandardScaler)
    agent.load_teammates(tmp_path / "teacher.pt", {"b": "a"})
    assert same(state_of(agent, "b")["b q"], state_of(teacher, "a")["a q"])
    before = state_of(agent, "b")
    states = torch.randn(200, 3)
    teacher.set_running_mode("eval")
    expected = teacher.act({"a": states, "b": states}, 0, 1)[0]["a"]
    assert torch.equal(agent.act({"a": states, "b": states}, 0, 1)[0]["b"], expected), "it is greedy, also in training"
    train(env, agent)
    assert same(state_of(agent, "b"), before)


@pytest.mark.parametrize("kind", KINDS)
def test_policies_act_in_a_team_that_learns_values(kind: str, tmp_path: Path) -> None:
    env = Toy("ab", lengths=(3, 4, 9))
    teacher = ppo_team(env, MAPPO, {}, state_preprocessor=RunningStandardScaler)
    train(env, teacher)
    teacher.save(tmp_path / "teacher.pt")
    agent = value_team(env, kind, {"a": network("policy", env, "a")}, state_preprocessor=RunningStandardScaler)
    agent.load_teammates(tmp_path / "teacher.pt", {"a": "b"})
    assert same(state_of(agent, "a")["a policy"], state_of(teacher, "b")["b policy"])
    assert same(state_of(agent, "a")["a state_preprocessor"], state_of(teacher, "b")["b state_preprocessor"])
    train(env, agent)
    assert bool(weights(agent).isfinite().all())


def test_what_does_not_fit_is_listed_and_nothing_is_loaded(tmp_path: Path) -> None:
    env = Toy("ab", lengths=(3, 4, 9))
    value_team(env, "qmix", {}, state_preprocessor=RunningStandardScaler).save(tmp_path / "teacher.pt")
    agent = ppo_team(env, IPPO, {"b": network("q", env, "b", hidden=9)})
    before = state_of(agent, "ab")
    with pytest.raises(CheckpointError) as error:
        agent.load_teammates(tmp_path / "teacher.pt", {"b": "a", "a": "z"})
    for part in (
        "'a' from 'z': expected one of",
        "only the file has a state_preprocessor",
        "expected [9, 3], the file has",
    ):
        assert part in str(error.value)
    assert same(state_of(agent, "ab"), before)


def test_a_past_self_is_played_against(tmp_path: Path) -> None:
    env = Toy("ab", lengths=(3, 4, 9))
    teacher = value_team(env, "iql", {})
    train(env, teacher)
    teacher.save(tmp_path / "teacher.pt")
    agent = value_team(env, "iql", {"b": network("q", env, "b")})
    agent.load_teammates(tmp_path / "teacher.pt", {"a": "a", "b": "a"})
    assert same(state_of(agent, "b")["b q"], state_of(teacher, "a")["a q"])
    assert same(state_of(agent, "a")["a q"], state_of(teacher, "a")["a q"])
    train(env, agent)
    assert same(state_of(agent, "b")["b q"], state_of(teacher, "a")["a q"])
    assert box(3) == env.observation_spaces["a"]
