"""Acting by action values: greedy in evaluations, epsilon-greedy in training, never forbidden, and training does not notice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from coterie.agents.config import ConfigError
from coterie.preprocessors import RunningScale, RunningStandardScaler
from coterie.schedulers import LinearSchedule
from coterie.trainers import SequentialTrainer
from tests.agents.test_evaluation_paths import (
    AFTER,
    BEFORE,
    BETWEEN,
    RECORDED,
    Disturbance,
    act_again,
    act_on_nonsense,
    evaluate,
    go_on_during_an_evaluation,
)
from tests.agents.test_evaluation_paths import evaluate_by_the_trainer as by_the_trainer
from tests.agents.test_evaluation_paths import masks as some_masks
from tests.agents.toys import Toy
from tests.agents.value_runs import KINDS, MEMORIES, begun, everything, play, same, team

WHERE = [(BETWEEN, evaluate), (BETWEEN, by_the_trainer), (BETWEEN, act_on_nonsense), (AFTER, evaluate)]
MORE = [(BEFORE, evaluate), (RECORDED, evaluate), (RECORDED, go_on_during_an_evaluation)]
QUIET = {"headless": True, "disable_progressbar": True, "close_environment_at_exit": False}


def trained(
    kind: str, memory: str, rnn: str | None, when: str = "", disturb: Disturbance = act_again
) -> dict[str, Any]:
    """All that there is after a short training that is disturbed at each step."""
    torch.manual_seed(0)
    env = Toy(lengths=(3, 4, 5), masks=some_masks)
    agent = begun(env, kind, memory, rnn, state_preprocessor=RunningStandardScaler, reward_preprocessor=RunningScale)
    states, infos = env.reset()
    shared = env.state()
    moments = (BEFORE, BETWEEN, RECORDED, AFTER)
    for t in range(14):
        act = states, t, 100, infos

        def now(moment: str, act: tuple[Any, ...] = act) -> None:
            if moment == when:
                with torch.random.fork_rng(devices=[]):
                    disturb(agent, act, None)

        now(moments[0])
        actions = agent.act(*act)[0]
        now(moments[1])
        following, *rest, infos = env.step(actions)
        shared, before = env.state(), shared
        noted = {**infos, "shared_states": before, "shared_next_states": shared}
        agent.record_transition(states, actions, rest[0], following, *rest[1:], noted, t, 100)
        now(moments[2])
        agent.post_interaction(t, 100)
        now(moments[3])
        states = following
    assert sum(agent._steps_taken.values()) > 3
    return {**everything(agent), "random": torch.rand(2)}


@pytest.mark.parametrize(
    ("kind", "memory", "rnn"), [("qmix", "replay", None), ("vdn", "episode", "gru"), ("iql", "prioritized", "gru")]
)
def test_training_goes_on_as_if_nothing_had_happened(kind: str, memory: str, rnn: str | None) -> None:
    expected = trained(kind, memory, rnn)
    for when, disturb in WHERE if rnn else [*WHERE, *MORE]:
        assert same(trained(kind, memory, rnn, when, disturb), expected), (when, disturb.__name__)


# ---- evaluation --------------------------------------------------------------------------------------------------------


def best(agent: Any, states: dict[str, Tensor]) -> dict[str, Tensor]:
    with torch.no_grad():
        return {uid: agent.models[uid]["q"].compute({"states": states[uid]}, "q")[0].argmax(-1, True) for uid in "ab"}


@pytest.mark.parametrize("kind", KINDS)
def test_acting_is_greedy_but_in_training(kind: str) -> None:
    env = Toy()
    agent = begun(env, kind, exploration_epsilon=1.0, random_timesteps=1000)
    states = {uid: torch.randn(500, 3) for uid in "ab"}
    greedy = best(agent, states)
    for mode, alike in (("eval", 1.0), ("train", 0.25), ("eval", 1.0), ("train", 0.25)):
        agent.set_running_mode(mode)
        random = torch.get_rng_state()
        actions, _, outputs = agent.act(states, 0, 1)
        for uid in "ab":
            assert abs(float((actions[uid] == greedy[uid]).float().mean()) - alike) < (0.1 if alike < 1 else 1e-9)
            assert torch.equal(outputs[uid]["mean_actions"], greedy[uid])
        if mode == "eval":
            assert torch.equal(torch.get_rng_state(), random), "no random number was spent"


@pytest.mark.parametrize("stochastic", [False, True])
def test_evaluations_count_episodes_and_change_nothing(stochastic: bool) -> None:
    env = Toy(lengths=(3, 4, 5), earn=lambda age, actions: {uid: actions[uid].float() for uid in "ab"})
    agent = begun(env, "vdn", exploration_epsilon=1.0)
    play(env, agent, 20)
    before = everything(agent)
    trainer = SequentialTrainer(env, agent, cfg={**QUIET, "stochastic_evaluation": stochastic})
    results = [trainer.eval(episodes=6) for _ in range(2)]
    assert [result["episodes"] for result in results] == [6, 6]
    assert sorted(results[0]["lengths"].tolist()) == [3, 3, 4, 4, 5, 5]
    assert same(everything(agent), before)
    assert agent.training, "it goes on training"


def test_evaluations_in_the_course_of_a_training_leave_it_as_it_is() -> None:
    def learned(interval: int) -> dict[str, Any]:
        torch.manual_seed(0)
        env, other = Toy(lengths=(3, 4, 5)), Toy(lengths=(2, 6), seed=9)
        agent = team(env, "qmix", "replay", "gru", exploration_epsilon=LinearSchedule(1.0, 0.0))
        cfg = {**QUIET, "timesteps": 20, "evaluation_interval": interval, "evaluation_episodes": 3}
        SequentialTrainer(env, agent, cfg=cfg, eval_env=other).train()
        kept = everything(agent)
        kept["state"].pop("best_return")
        return kept

    assert same(learned(0), learned(5))


# ---- exploration -------------------------------------------------------------------------------------------------------


def share_of_greedy(agent: Any, timestep: int, timesteps: int = 100) -> dict[str, float]:
    states = {uid: torch.randn(4000, 3) for uid in "ab"}
    greedy = best(agent, states)
    actions = agent.act(states, timestep, timesteps)[0]
    return {uid: float((actions[uid] == greedy[uid]).float().mean()) for uid in "ab"}


@pytest.mark.parametrize("kind", KINDS)
def test_epsilon_follows_its_schedule_for_each_agent(kind: str) -> None:
    """With 4 actions the greedy one is taken with probability 1 - epsilon + epsilon / 4 = 1 - 0.75 epsilon."""
    each = {"a": LinearSchedule(1.0, 0.0), "b": 0.4}
    for given, expected in (
        (0.4, [(0, 0.7, 0.7), (99, 0.7, 0.7)]),
        (LinearSchedule(1.0, 0.0, fraction=0.5), [(0, 0.25, 0.25), (25, 0.625, 0.625), (50, 1.0, 1.0)]),
        (each, [(0, 0.25, 0.7), (50, 0.625, 0.7), (100, 1.0, 0.7)]),
    ):
        agent = begun(Toy(), kind, exploration_epsilon=given)
        for timestep, *shares in expected:
            found = share_of_greedy(agent, timestep)
            assert [found["a"], found["b"]] == pytest.approx(shares, abs=0.03)
        agent.set_running_mode("eval")
        assert share_of_greedy(agent, 0) == {"a": 1.0, "b": 1.0}


@pytest.mark.parametrize("value", [1.5, -0.1, float("nan"), "much"])
@pytest.mark.parametrize("by_agent", [False, True])
def test_a_schedule_gives_probabilities(value: Any, by_agent: bool) -> None:
    env = Toy()
    schedule = lambda timestep, timesteps: value  # noqa: E731
    agent = begun(env, "iql", exploration_epsilon={"a": schedule, "b": 0.1} if by_agent else schedule)
    with pytest.raises(ConfigError, match=r"exploration_epsilon: expected its schedule to give a number of at least 0"):
        agent.act(env.reset()[0], 0, 1)


def test_the_first_steps_are_random_for_whom_it_is_asked() -> None:
    agent = begun(Toy(), "iql", options={"shared": False}, exploration_epsilon=0.0, random_timesteps={"a": 10, "b": 0})
    assert share_of_greedy(agent, 9) == {"a": pytest.approx(0.25, abs=0.03), "b": 1.0}
    assert share_of_greedy(agent, 10) == {"a": 1.0, "b": 1.0}
    agent.set_running_mode("eval")
    assert share_of_greedy(agent, 0) == {"a": 1.0, "b": 1.0}


# ---- masks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["greedy", "exploring", "random"])
def test_what_is_forbidden_is_never_done(kind: str, how: str) -> None:
    agent = begun(Toy(), kind, exploration_epsilon=1.0, random_timesteps=5)
    if how == "greedy":
        agent.set_running_mode("eval")
    states = {uid: torch.randn(2000, 3) for uid in "ab"}
    allowed = {uid: torch.rand(2000, 4) < 0.4 for uid in "ab"}
    for mask in allowed.values():
        mask[:, 2] |= ~mask.any(dim=1)
    actions = agent.act(states, 0 if how == "random" else 5, 10, {"action_masks": allowed})[0]
    for uid in "ab":
        assert bool(allowed[uid].gather(1, actions[uid]).all())
        assert set(actions[uid].flatten().tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_an_agent_that_may_do_nothing_is_an_error(mode: str) -> None:
    agent = begun(Toy(), "qmix")
    agent.set_running_mode(mode)
    states = {uid: torch.randn(3, 3) for uid in "ab"}
    allowed = {"b": torch.tensor([[True] * 4, [False] * 4, [True] * 4])}
    with pytest.raises(ValueError, match=r"nothing is allowed in environment 1 of agent 'b'"):
        agent.act(states, 0, 1, {"action_masks": allowed})
    absent = {"b": torch.tensor([[True], [False], [True]])}
    agent.act(states, 0, 1, {"action_masks": allowed, "active_masks": absent})


def test_targets_take_the_best_of_what_is_allowed() -> None:
    """Only action 1 is ever allowed to b: its values of the others must not enter, however high they are."""
    only = torch.tensor([False, True, False, False])
    env = Toy(lengths=(3, 5), masks=lambda age: {"action_masks": {"b": only.expand(2, 4)}})
    env_infos = env.step

    def step(actions: Any) -> Any:
        *rest, infos = env_infos(actions)
        if "final_states" in infos:
            infos["final_action_masks"] = {"b": only.expand(2, 4)}
        return *rest, infos

    env.step = step  # type: ignore[method-assign]
    agent = begun(env, "vdn", options={"shared": False}, learning_rate=1e-3)
    with torch.no_grad():
        for model in (agent.models["b"]["q"], next(iter(agent._targets.values())).models["b"]["q"]):
            *_, last = [p for name, p in model.named_parameters() if name.endswith("bias")]
            last.copy_(torch.tensor([1e6, 0.0, 1e6, 1e6]))
    largest: list[float] = []
    outcome = agent._outcome

    def watch(stream: Any, cfg: Any) -> Any:
        targets, known = outcome(stream, cfg)
        largest.append(float(targets[known].abs().max()))
        return targets, known

    agent._outcome = watch
    play(env, agent, 15)
    assert len(largest) > 5
    assert max(largest) < 100


@pytest.mark.parametrize("memory", MEMORIES)
def test_masks_that_come_late_leave_older_steps_unmasked(memory: str) -> None:
    """The first masks of any kind come with step 100; rows from before count as everybody's, with everything allowed."""
    now = [0]

    def late(age: Tensor) -> dict[str, Any]:
        now[0] += 1
        if now[0] <= 100:
            return {}
        even = (age % 2 == 0).unsqueeze(1)
        return {
            "active_masks": {"a": even},
            "waiting_masks": {"a": ~even},
            "action_masks": {"b": torch.tensor([True, False, True, True]).expand(3, 4)},
        }

    env = Toy(lengths=(6, 4, 5), masks=late)
    agent = begun(env, "qmix", memory, rows=150)
    play(env, agent, 100)  # 100 steps, and the reset
    names = {"active", "present", "action_masks"}
    memories = agent.memories
    assert not names & set(memories["a"].get_tensor_names())
    play(env, agent, 20, first=100)
    masks = {name: memories[uid].get_tensor_by_name(name) for name, uid in (("active", "a"), ("action_masks", "b"))}
    starts = int(agent._storage.memory._columns.written.min()) - 26
    for mask in masks.values():
        assert bool(mask[:starts].all())
        assert not bool(mask.all())
        assert mask.dtype == torch.bool
    assert bool(memories["b"].get_tensor_by_name("active").all())
    weights = torch.cat([learner.storage.data.flatten() for learner in agent.learners])
    assert bool(weights.isfinite().all())
