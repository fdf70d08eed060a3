"""Acting beside training: evaluations, repeated and refused calls leave training as it is, or are refused themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from coterie import functional
from coterie.agents import IPPO, MAPPO, MultiAgent
from coterie.memories import RandomMemory
from coterie.models import build_models
from coterie.preprocessors import RunningStandardScaler, ValueNorm
from coterie.trainers import SequentialTrainer
from tests.agents.test_acting import Count
from tests.agents.toys import OFF, Toy

ROLLOUTS = 4
NOTHING = torch.zeros(3, 1, dtype=torch.bool)


def masks(age: Tensor) -> dict[str, Any]:
    """a acts at even ages and waits at odd ones, b is absent at age 2 and may not do everything."""
    even = (age % 2 == 0).unsqueeze(1)
    return {
        "active_masks": {"a": even, "b": (age != 2).unsqueeze(1)},
        "waiting_masks": {"a": ~even},
        "action_masks": {"b": torch.stack([age >= 0, age % 2 == 0, age % 2 == 1, age > 3], dim=1)},
    }


def build(env: Toy, kind: type[MultiAgent] = IPPO, rnn: str | None = None, memories: bool = True, **cfg: Any) -> Any:
    settings = {
        "rollouts": ROLLOUTS,
        "learning_epochs": 2,
        "experiment": OFF,
        "state_preprocessor": RunningStandardScaler,
        "value_preprocessor": ValueNorm,
        "learning_rate": 1e-2,
        **cfg,
    }
    algorithm = "mappo" if kind is MAPPO else "ippo"
    return kind(
        env.possible_agents,
        build_models(env, algorithm, hidden=(8,), rnn=rnn, rnn_size=5, sequence_length=2),
        {uid: RandomMemory(ROLLOUTS, env.num_envs) for uid in env.possible_agents} if memories else None,
        env.observation_spaces,
        env.action_spaces,
        cfg=settings,
        shared_observation_spaces=env.shared_observation_spaces,
    )


def begun(env: Toy, *args: Any, **kwargs: Any) -> Any:
    agent = build(env, *args, **kwargs)
    agent.init()
    agent.set_running_mode("train")
    return agent


def weights(agent: Any) -> Tensor:
    return torch.cat([learner.storage.data.flatten().clone() for learner in agent.learners])


# ---- what training must not notice -------------------------------------------------------------------------------------

#: called with the agent, the arguments of act, and those of record_transition where there are any
Disturbance = Callable[[Any, tuple[Any, ...], tuple[Any, ...] | None], None]


def evaluate(agent: Any, act: Any = None, record: Any = None) -> None:
    """Act in other environments, of another number and without masks for b, for longer than their episodes last."""
    agent.set_running_mode("eval")
    env = Toy(lengths=(2, 3), masks=lambda age: {"active_masks": {"a": (age > 0).unsqueeze(1)}}, seed=5)
    states, infos = env.reset()
    for t in range(4):
        actions, _, _ = agent.act(states, t, 4, infos)
        states, _, terminated, truncated, infos = env.step(actions)
        infos["episode_starts"] = {uid: terminated[uid] | truncated[uid] for uid in "ab"}
    agent.set_running_mode("train")


def evaluate_twice(agent: Any, act: Any = None, record: Any = None) -> None:
    agent.set_running_mode("eval")
    agent.act({uid: torch.randn(7, 3) for uid in "ab"}, 0, 1)
    evaluate(agent)


def evaluate_by_the_trainer(agent: Any, act: Any = None, record: Any = None) -> None:
    SequentialTrainer(Toy(masks=masks, lengths=(3,), seed=5), agent, cfg={"headless": True}).eval(episodes=2)


def train_already(agent: Any, act: Any = None, record: Any = None) -> None:
    agent.set_running_mode("train")


def act_again(agent: Any, act: Any = None, record: Any = None) -> None:
    agent.act(*act)


def act_on_nonsense(agent: Any, act: Any = None, record: Any = None) -> None:
    states, *rest = act
    for wrong in (
        {**states, "a": states["a"] * torch.nan},
        {**states, "b": states["b"][:, :2]},
        {uid: state[:2] for uid, state in states.items()},
    ):
        with pytest.raises(ValueError, match=r"states|infos"):
            agent.act(wrong, *rest)


def record_nonsense(agent: Any, act: Any = None, record: Any = None) -> None:
    for i, wrong in ((0, torch.zeros(1, 3)), (1, NOTHING.float()), (2, NOTHING * torch.nan), (4, NOTHING.int())):
        arguments = list(record)
        arguments[i] = {**arguments[i], "a": wrong}
        with pytest.raises((TypeError, ValueError), match=r"states|actions|rewards|terminated"):
            agent.record_transition(*arguments)


def go_on_without_a_step(agent: Any, act: Any = None, record: Any = None) -> None:
    agent.post_interaction(100, 100)


def go_on_during_an_evaluation(agent: Any, act: Any = None, record: Any = None) -> None:
    agent.set_running_mode("eval")
    agent.post_interaction(100, 100)
    agent.set_running_mode("train")


BEFORE, BETWEEN, RECORDED, AFTER = "before act", "between act and record", "before post_interaction", "after it"
CASES: list[tuple[str, Disturbance]] = [
    *((when, what) for when in (BEFORE, BETWEEN, RECORDED, AFTER) for what in (evaluate, train_already)),
    (BETWEEN, evaluate_twice),
    (BETWEEN, evaluate_by_the_trainer),
    (BETWEEN, act_again),
    (BETWEEN, act_on_nonsense),
    (BEFORE, act_on_nonsense),
    (BETWEEN, record_nonsense),
    (AFTER, go_on_without_a_step),
    (BEFORE, go_on_during_an_evaluation),
    (RECORDED, go_on_during_an_evaluation),
]


def train(
    kind: type[MultiAgent], rnn: str | None, when: str = "", disturb: Disturbance = train_already, others: bool = False
) -> tuple[Tensor, dict[str, Any], Tensor]:
    """Three updates and a half, disturbed at each step.

    :param others: whether actions are recorded that the agent did not choose
    """
    torch.manual_seed(0)
    env = Toy(masks=masks)
    agent = begun(env, kind, rnn)

    def now(moment: str, *arguments: Any) -> None:
        if moment == when:
            with torch.random.fork_rng(devices=[]):
                disturb(agent, *arguments)

    states, infos = env.reset()
    shared = env.state()
    for t in range(3 * ROLLOUTS + 2):
        act = states, t, 100, infos
        now(BEFORE, act, None)
        actions, _, _ = agent.act(*act)
        if others:
            actions = {uid: (action + t) % 4 if uid == "a" else action * 0 for uid, action in actions.items()}
        following, *rest, infos = env.step(actions)
        shared, before = env.state(), shared
        noted = {**infos, "shared_states": before, "shared_next_states": shared}
        record = states, actions, rest[0], following, *rest[1:], noted, t, 100
        now(BETWEEN, act, record)
        agent.record_transition(*record)
        now(RECORDED, act, record)
        agent.post_interaction(t, 100)
        now(AFTER, act, record)
        states = following
    modules = {name: module.state_dict() for name, module in agent.checkpoint_modules().items()}
    return weights(agent), modules, torch.rand(2)


@pytest.mark.parametrize("kind", [IPPO, MAPPO])
@pytest.mark.parametrize("rnn", [None, "gru"])
@pytest.mark.parametrize(("when", "disturb"), CASES, ids=[f"{what.__name__}, {when}" for when, what in CASES])
def test_training_goes_on_as_if_nothing_had_happened(
    kind: type[MultiAgent], rnn: str | None, when: str, disturb: Disturbance
) -> None:
    torch.testing.assert_close(train(kind, rnn, when, disturb), train(kind, rnn), rtol=0, atol=0)


@pytest.mark.parametrize("rnn", [None, "gru"])
@pytest.mark.parametrize("disturb", [evaluate, act_again])
def test_actions_of_another_origin_are_evaluated_where_they_were_taken(rnn: str | None, disturb: Disturbance) -> None:
    expected = train(IPPO, rnn, others=True)
    torch.testing.assert_close(train(IPPO, rnn, BETWEEN, disturb, others=True), expected, rtol=0, atol=0)


@pytest.mark.parametrize("rnn", [None, "gru"])
def test_log_probabilities_are_those_of_the_policy_before_the_first_step_of_an_update(
    rnn: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Actions of another origin and acting twice: the ratio of an unchanged policy is 1 in every row that counts."""
    env = Toy(masks=masks)
    agent = begun(env, IPPO, rnn, learning_epochs=1, mini_batches=1, learning_rate=lambda timestep, timesteps: 0.0)
    ratios: list[Tensor] = []
    surrogate = functional.clipped_surrogate_loss

    def watch(log_ratio: Tensor, *others: Any) -> Tensor:
        ratios.append(log_ratio.detach())
        return surrogate(log_ratio, *others)

    monkeypatch.setattr(functional, "clipped_surrogate_loss", watch)
    states, infos = env.reset()
    for t in range(2 * ROLLOUTS):
        agent.act(states, t, 100, infos)
        actions = dict(agent.act(states, t, 100, infos)[0])
        if t % 2:
            actions["b"] = actions["b"] * 0
        following, *rest, infos = env.step(actions)
        agent.record_transition(states, actions, rest[0], following, *rest[1:], infos, t, 100)
        agent.post_interaction(t, 100)
        states = following
    assert len(ratios) == 2
    torch.testing.assert_close(ratios, [torch.zeros_like(ratio) for ratio in ratios], rtol=0, atol=1e-5)


@pytest.mark.parametrize("rnn", [None, "gru"])
def test_an_agent_that_was_not_told_to_train_learns_the_same(rnn: str | None) -> None:
    def learned(told: bool) -> Tensor:
        torch.manual_seed(0)
        env = Toy(masks=masks)
        agent = build(env, IPPO, rnn)
        agent.init()
        if told:
            agent.set_running_mode("train")
        states, infos = env.reset()
        for t in range(2 * ROLLOUTS + 1):
            actions = dict(agent.act(states, t, 100, infos)[0])
            if t % 3 == 2:
                actions["b"] = actions["b"] * 0
            following, *rest, infos = env.step(actions)
            agent.record_transition(states, actions, rest[0], following, *rest[1:], infos, t, 100)
            agent.post_interaction(t, 100)
            states = following
        return weights(agent)

    assert torch.equal(learned(True), learned(False))


# ---- what is refused ---------------------------------------------------------------------------------------------------


def transition(env: Toy, agent: Any) -> tuple[Any, ...]:
    states, infos = env.reset()
    actions, _, _ = agent.act(states, 0, 1, infos)
    following, *rest = env.step(actions)
    return states, actions, rest[0], following, *rest[1:], 0, 1


def test_recording_during_an_evaluation_is_refused() -> None:
    env = Toy()
    agent = begun(env)
    agent.set_running_mode("eval")
    step = transition(env, agent)
    with pytest.raises(RuntimeError, match=r"record_transition during an evaluation.*set_running_mode\('train'\)"):
        agent.record_transition(*step)
    agent.set_running_mode("train")
    assert agent._storage["a", "b"].memory.memory_index == 0
    agent.record_transition(*step)
    assert agent._storage["a", "b"].memory.memory_index == 1


@pytest.mark.parametrize("memories", [False, True])
def test_recurrent_policies_are_told_when_their_last_step_was_not_recorded(memories: bool) -> None:
    env = Toy()
    agent = begun(env, IPPO, "gru", memories)
    states, infos = env.reset()
    other = {uid: state + 1 for uid, state in states.items()}
    agent.act(states, 0, 1, infos)
    agent.act(states, 0, 1, infos)
    if not memories:  # then acting is all there is
        agent.act(other, 0, 1, infos)
        return
    with pytest.raises(RuntimeError, match=r"act: the last step was not recorded.*set_running_mode\('eval'\)"):
        agent.act(other, 0, 1, infos)
    with pytest.raises(RuntimeError, match="act: the last step was not recorded"):
        agent.act({uid: state[:2] for uid, state in states.items()}, 0, 1, {})
    agent.init()
    agent.act(other, 0, 1, infos)
    agent.set_running_mode("eval")
    agent.act(states, 0, 1, infos)


def test_policies_without_a_memory_may_look_elsewhere_before_they_record() -> None:
    env = Toy()
    agent = begun(env)
    step = transition(env, agent)
    agent.act({uid: torch.randn(5, 3) for uid in "ab"}, 0, 1)
    agent.record_transition(*step)


def test_a_full_rollout_that_was_not_learned_from_is_refused() -> None:
    env = Toy()
    agent = begun(env)
    for _ in range(ROLLOUTS):
        agent.record_transition(*transition(env, agent))
    step = transition(env, agent)
    with pytest.raises(RuntimeError, match=r"a rollout of 4 steps is full .* call agent.post_interaction after each"):
        agent.record_transition(*step)
    agent.post_interaction(ROLLOUTS - 1, 100)
    agent.record_transition(*step)


def test_masks_of_another_number_of_environments_do_not_hold() -> None:
    agent = build(Toy())
    agent.set_running_mode("eval")
    allowed = {"b": torch.tensor([[True, False, False, False]] * 3)}
    three, one = ({uid: torch.randn(n, 3) for uid in "ab"} for n in (3, 1))
    agent.act(three, 0, 1, {"action_masks": allowed})
    for _ in range(5):
        assert agent.act(three, 0, 1)[0]["b"].flatten().tolist() == [0, 0, 0]
    with pytest.raises(
        ValueError, match=r"states: expected 3 environments, as the masks of the last step have, got 1; pass"
    ):
        agent.act(one, 0, 1)
    agent.act(one, 0, 1, {})
    agent.act(three, 0, 1)  # nothing is known of masks any more


# ---- what policies remember --------------------------------------------------------------------------------------------


def counting(memories: bool = False) -> tuple[Toy, Any]:
    """Agents that choose the number of steps that they remember."""
    env = Toy(lengths=(9, 9, 9), actions=spaces.Discrete(20))
    values = build_models(env, "ippo", hidden=(4,))
    models = {uid: {"policy": Count(), "value": values[uid]["value"]} for uid in "ab"}
    given = {uid: RandomMemory(ROLLOUTS, 3) for uid in "ab"} if memories else None
    return env, IPPO(
        ["a", "b"],
        models,
        given,
        env.observation_spaces,
        env.action_spaces,
        cfg={"rollouts": ROLLOUTS, "experiment": OFF},
    )


def chosen(agent: Any, rows: int = 3, infos: Any = None) -> list[int]:
    actions, _, _ = agent.act({uid: torch.randn(rows, 3) for uid in "ab"}, 0, 1, infos)
    assert torch.equal(actions["a"], actions["b"])
    return actions["a"].flatten().tolist()


def test_other_environments_are_new_ones() -> None:
    _, agent = counting()
    assert [chosen(agent), chosen(agent), chosen(agent, 2), chosen(agent, 2)] == [[0] * 3, [1] * 3, [0] * 2, [1] * 2]
    starts = {uid: torch.tensor([[True], [False], [True]]) for uid in "ab"}
    assert chosen(agent, 3, {"episode_starts": starts}) == [0, 0, 0]
    assert chosen(agent, 3, {"episode_starts": starts}) == [0, 1, 0]


def test_an_evaluation_remembers_nothing_and_training_everything() -> None:
    env, agent = counting(memories=True)
    agent.init()
    agent.set_running_mode("train")
    states, infos = env.reset()
    for t in range(3):
        actions, _, _ = agent.act(states, t, 10, infos)
        assert actions["a"].flatten().tolist() == [t] * 3
        agent.set_running_mode("eval")
        assert [chosen(agent, 2), chosen(agent, 2)] == [[0] * 2, [1] * 2]
        agent.set_running_mode("eval")
        assert chosen(agent, 2) == [0] * 2
        agent.set_running_mode("train")
        following, *rest = env.step(actions)
        agent.record_transition(states, actions, rest[0], following, *rest[1:], t, 10)
        states, infos = following, rest[-1]


def test_an_agent_without_memories_is_told_of_ends_by_what_is_recorded() -> None:
    _, agent = counting()
    agent.init()
    for _ in range(2):
        chosen(agent)
    states = {uid: torch.randn(3, 3) for uid in "ab"}
    actions, _, _ = agent.act(states, 0, 1)
    ends = {"a": torch.tensor([[True], [False], [False]]), "b": torch.tensor([[False], [False], [True]])}
    cuts = {"a": torch.tensor([[False], [False], [True]]), "b": torch.tensor([[True], [False], [False]])}
    rewards = {uid: torch.zeros(3, 1) for uid in "ab"}
    agent.record_transition(states, actions, rewards, states, ends, cuts, {}, 0, 1)
    assert chosen(agent) == [0, 3, 0]
