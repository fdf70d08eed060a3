"""When action values are learned, from what, and what must not come through: interruptions, noise, numbers that are none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from coterie.agents.value_learning import ValueLearner
from coterie.agents.window_values import values_over_time
from coterie.models import Model, QMixin
from coterie.preprocessors import RunningScale, RunningStandardScaler
from coterie.trainers import SequentialTrainer
from tests.agents.ppo_reference_time import ACTIVE
from tests.agents.toys import OFF, Toy
from tests.agents.value_lives import Lives, models_of, team_of_four
from tests.agents.value_runs import KINDS, MEMORIES, begun, everything, play, same, team, weights

QUIET = {"headless": True, "disable_progressbar": True, "close_environment_at_exit": False}


# ---- when there is an update -------------------------------------------------------------------------------------------


def times_of_updates(agent: Any, env: Toy, steps: int) -> list[int]:
    """The time step of each optimizer step."""
    times: list[int] = []
    learn = agent._learn

    def counted(learner: Any, timestep: int, timesteps: int) -> None:
        before = weights(agent)
        learn(learner, timestep, timesteps)
        assert not torch.equal(weights(agent), before)
        times.append(timestep)

    agent._learn = counted
    play(env, agent, steps)
    return times


@pytest.mark.parametrize("kind", KINDS)
def test_updates_come_when_they_are_due(kind: str) -> None:
    """Three environments: after two steps there are three windows of two rows, after three steps six."""
    cases: list[tuple[dict[str, Any], list[int]]] = [
        ({"batch_size": 3}, [1, 2, 3, 4, 5, 6, 7]),
        ({"batch_size": 4}, [2, 3, 4, 5, 6, 7]),
        ({"batch_size": 4, "learning_starts": 5}, [5, 6, 7]),
        ({"batch_size": 4, "update_interval": 3}, [2, 5]),
        ({"batch_size": 4, "update_interval": 3, "learning_starts": 3, "gradient_steps": 3}, [5, 5, 5]),
        ({"batch_size": 4, "n_step": 3}, [4, 5, 6, 7]),
        ({"learning_starts": 8}, []),
    ]
    for cfg, expected in cases:
        env = Toy(lengths=(100, 100, 100))
        agent = begun(env, kind, **cfg)
        assert times_of_updates(agent, env, 8) == expected, cfg
        assert agent.checkpoint_state()["steps_taken"] == {"a": len(expected)}


def test_whole_episodes_are_waited_for() -> None:
    """Copies' episodes end with steps 2, 4, 6, .. | 3, 6, .. | 7: four of them after step 6 (the time step 5)."""
    env = Toy(lengths=(2, 3, 7))
    agent = begun(env, "vdn", "episode", batch_size=4)
    assert times_of_updates(agent, env, 8) == [5, 6, 7]


def test_agents_that_differ_in_their_loops_learn_at_times_of_their_own() -> None:
    env = Toy(lengths=(100, 100, 100))
    agent = begun(env, "iql", options={"shared": False}, update_interval={"a": 2, "b": 3}, learning_starts=2)
    play(env, agent, 12)
    assert agent.checkpoint_state()["steps_taken"] == {"a": 5, "b": 4}


@pytest.mark.parametrize("kind", KINDS)
def test_targets_follow_at_their_interval(kind: str) -> None:
    env = Toy()
    agent = begun(env, kind, batch_size=3, target_update_interval=4)
    (targets,) = agent._targets.values()
    first, behind = targets._storage.data.clone(), []
    for k in range(1, 10):  # time step 0 has nothing to draw from
        play(env, agent, 1 if k > 1 else 2)
        behind.append(bool((targets._storage.data - weights(agent).view_as(targets._storage.data)).abs().max() > 0))
        if k < 4:
            assert torch.equal(targets._storage.data, first)
    assert [k for k, apart in enumerate(behind, 1) if not apart] == [4, 8]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_loaded_into_models_before_training_is_where_targets_start(kind: str) -> None:
    env = Toy()
    agent = team(env, kind)
    for parameter in agent.models["b"]["q"].parameters():
        parameter.data.add_(1.0)
    agent.init()
    (targets,) = agent._targets.values()
    assert torch.equal(targets._storage.data, agent.learners[0].storage.data)
    agent.set_running_mode("train")
    play(env, agent, 4)
    behind = targets._storage.data.clone()
    agent.init()
    assert torch.equal(targets._storage.data, behind), "once there was an update, they go on from where they are"
    assert not torch.equal(targets._storage.data, agent.learners[0].storage.data)


@pytest.mark.parametrize("reward", ["individual", "mean", "sum"])
def test_each_set_has_rewards_on_a_scale_of_its_own(reward: str) -> None:
    """a earns -1 and 1 in turn, b 10 times as much: a standard deviation of 1 and 10, of their mean 5.5, of their sum 11."""
    turn = lambda age: (2.0 * (age % 2) - 1).unsqueeze(1)  # noqa: E731
    env = Toy(lengths=(100, 100, 100), earn=lambda age, actions: {"a": turn(age), "b": 10 * turn(age)})
    agent = begun(env, "iql", options={"shared": False}, reward=reward, reward_preprocessor=RunningScale)
    play(env, agent, 20)
    stage = agent.learners[0].reward_preprocessor
    scales = {"individual": [1.0, 10.0], "mean": [5.5, 5.5], "sum": [11.0, 11.0]}[reward]
    found = [1 / float(stage(torch.ones(1, 2, 1))[0, i]) for i in range(2)]
    assert found == pytest.approx(scales, rel=0.02)


def test_a_memory_that_was_handed_over_sets_how_far_weights_correct() -> None:
    env = Toy()
    agent = begun(env, "vdn", "prioritized", kept={"alpha": 1.0})
    play(env, agent, 6)
    agent.memories["b"].beta = 0.0
    assert agent._storage.memory.beta == 0.0
    assert agent.memories["a"].beta == 0.0
    assert agent._storage.draw(20, 1, 0).window.weights.unique().tolist() == [1.0]
    agent.memories["a"].beta = 1.0
    assert len(agent._storage.draw(20, 1, 0).window.weights.unique()) > 1


def test_targets_may_go_a_part_of_the_way() -> None:
    env = Toy()
    agent = begun(env, "qmix", batch_size=3, target_update_interval=1, polyak=0.25)
    (targets,) = agent._targets.values()
    before = targets._storage.data.clone()
    play(env, agent, 2)
    expected = before + 0.25 * (weights(agent).view_as(before) - before)
    torch.testing.assert_close(targets._storage.data, expected)


def test_acting_alone_learns_nothing() -> None:
    env = Toy()
    agent = begun(env, "vdn", None)
    before = weights(agent)
    play(env, agent, 10)
    assert torch.equal(weights(agent), before)
    assert agent.memory_bytes == 0


def test_recording_before_init_is_refused() -> None:
    env = Toy()
    with pytest.raises(RuntimeError, match=r"record_transition before init: call agent.init\(\)"):
        play(env, team(env), 1)


# ---- where training is interrupted -------------------------------------------------------------------------------------


class Watch:
    """The targets that updates have, of whatever is learned from."""

    def __init__(self, agent: Any) -> None:
        self.targets: list[Tensor] = []
        outcome = agent._outcome

        def watch(stream: Any, cfg: Any) -> Any:
            targets, known = outcome(stream, cfg)
            self.targets.append(targets[known])
            return targets, known

        agent._outcome = watch

    def values(self) -> set[float]:
        return set(torch.cat(self.targets).tolist())


def worthless(agent: Any) -> None:
    """Let all networks predict 0, for ever."""
    for learner in agent.learners:
        learner.storage.data.zero_()
    for targets in agent._targets.values():
        targets._storage.data.zero_()


@pytest.mark.parametrize("kind", ["vdn", "iql"])
@pytest.mark.parametrize(
    ("memory", "cfg", "rnn"),
    [
        ("replay", {"n_step": 3}, None),
        ("prioritized", {"n_step": 3}, None),
        ("replay", {"td_lambda": 1.0}, "gru"),
        ("episode", {"td_lambda": 1.0}, None),
    ],
)
def test_nothing_reaches_across_an_interruption(kind: str, memory: str, cfg: dict[str, Any], rnn: str | None) -> None:
    """Rewards of the first run are 1, of the second 10, without discount or values: no target has both.

    The runs' lengths differ from copy to copy in whole episodes, so that drawn episodes are filled up behind their ends.
    """
    env = Toy(lengths=(3, 5, 100))
    agent = begun(
        env,
        kind,
        memory,
        rnn,
        batch_size=5,
        learning_rate=lambda t, n: 0.0,
        discount_factor=1.0,
        kept={"seed": 1},
        **cfg,
    )
    worthless(agent)
    watch = Watch(agent)
    for run, reward in enumerate((1.0, 100.0)):
        if run:
            agent.init()  # what a trainer does
            agent.set_running_mode("train")
        env.earn = lambda age, actions, reward=reward: {uid: torch.full((3, 1), reward) for uid in "ab"}
        play(env, agent, 13)
    play(env, agent, 0)
    assert len(watch.targets) > 10
    values = watch.values()
    assert max(values) >= 200
    assert all(value < 100 or value % 100 == 0 for value in values), sorted(values)


@pytest.mark.parametrize("memory", MEMORIES)
def test_two_trainings_one_after_the_other(memory: str) -> None:
    env = Toy(lengths=(3, 4, 50))
    agent = team(env, "qmix", memory)
    cfg = {**QUIET, "timesteps": 15}
    SequentialTrainer(env, agent, cfg=cfg).train()
    held, steps = len(agent._storage.memory), agent.checkpoint_state()["steps_taken"]["a"]
    assert held == 45
    before = weights(agent)
    SequentialTrainer(env, agent, cfg=cfg).train()
    # the last step of each running episode was interrupted: what it led to is not known. Copy 0 had just ended one
    assert len(agent._storage.memory) == 90 - 2
    assert agent.checkpoint_state()["steps_taken"]["a"] > steps
    assert not torch.equal(weights(agent), before)


@pytest.mark.parametrize(("kind", "memory"), [("qmix", "replay"), ("vdn", "episode"), ("iql", "prioritized")])
def test_rings_are_written_over_many_times(kind: str, memory: str) -> None:
    """Copies run out of step with each other, since those that are truncated have a row more."""
    env = Toy(lengths=(2, 3, 5), earn=lambda age, actions: {uid: (age + 1.0).unsqueeze(1) for uid in "ab"})
    agent = begun(env, kind, memory, rows=12, batch_size=3, learning_rate=lambda t, n: 0.0, discount_factor=1.0)
    worthless(agent)
    watch = Watch(agent)
    play(env, agent, 120)
    assert agent._storage.memory._columns.written.min() >= 120
    assert watch.values() == {1.0, 2.0, 3.0, 4.0, 5.0}  # all of what is earned at one time or another, and nothing else


# ---- recurrent networks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", ["episode", "replay"])
@pytest.mark.parametrize("style", ["present", "lives", "turns"])
def test_an_update_sees_the_values_that_were_acted_by(memory: str, style: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the start of an episode on, whoever waits, dies or is cut off while others go on, networks remember alike."""
    torch.manual_seed(0)
    lives_of = team_of_four(scripted=False)
    lives = Lives(lives_of, style)
    names = lives_of.possible_agents
    agent: Any = KINDS["iql"](
        names,
        models_of(lives_of, "iql", "gru", scripted=False, sequence_length=7),
        {uid: MEMORIES[memory](60, lives_of.num_envs, seed=3) for uid in names},
        lives_of.observation_spaces,
        lives_of.action_spaces,
        cfg={"experiment": OFF, "exploration_epsilon": 0.5, "learning_starts": 10**6, "batch_size": 4},
    )
    agent.init()
    agent.set_running_mode("train")
    storage, acted, places = agent._storage, [], []
    choose, add = agent._choose, storage.memory.add_samples

    def choosing(group: Any, *arguments: Any) -> Any:
        choice, distribution = choose(group, *arguments)
        acted.append((group.names, distribution.mean))
        return choice, distribution

    def adding(**rows: Tensor) -> None:
        places.append(storage.memory._columns.written.copy())
        add(**rows)

    monkeypatch.setattr(agent, "_choose", choosing)
    monkeypatch.setattr(storage.memory, "add_samples", adding)
    lives.play(agent)
    compared = 0
    for learner in agent.learners:
        for _ in range(12):
            drawn = storage.draw(4, *agent._window_size(learner))
            begun_in = drawn.window.starts.cumsum(0) > 0  # whose first row is in the window
            for group in learner.groups:
                with torch.no_grad():
                    values = values_over_time(agent.networks[group.names], group, drawn.of("states", group), drawn)
                then = [mean for of, mean in acted if of == group.names]
                for r, b in (drawn.window.steps & begun_in)[:-1].nonzero().tolist():
                    row, env = int(drawn.window.rows[r, b]), int(drawn.window.envs[b])
                    (t,) = [k for k, written in enumerate(places) if written[env] == row]
                    for i, uid in enumerate(group.names):
                        if bool(lives.plan.mask(ACTIVE, uid, t)[env]):
                            torch.testing.assert_close(values[r, b, i], then[t][env, i])
                            compared += 1
    assert compared > 100


# ---- noise and numbers that are none -----------------------------------------------------------------------------------


class Noisy(QMixin, Model):
    """Dropout, and a normalisation that learns in training."""

    def __init__(self, env: Toy) -> None:
        Model.__init__(self, env.observation_spaces["a"], env.action_spaces["a"])
        QMixin.__init__(self)
        self.net = nn.Sequential(
            nn.Linear(self.num_observations, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 4)
        )

    def compute(self, inputs: Any, role: str = "") -> Any:
        return self.net(inputs["states"]), {}


def test_targets_are_without_noise_and_learn_nothing_by_themselves() -> None:
    env = Toy()
    q = Noisy(env)
    agent = begun(env, "vdn", models={uid: {"q": q} for uid in "ab"}, target_update_interval=5, batch_size=3)
    (targets,) = agent._targets.values()
    (target,) = targets.modules().values()
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    play(env, agent, 5)  # four updates
    assert same(dict(target.state_dict()), before)
    assert not same(dict(q.state_dict()), before)
    play(env, agent, 1)
    assert same(dict(target.state_dict()), dict(q.state_dict()))
    states = {"states": torch.randn(4, 3)}
    assert torch.equal(target.compute(states)[0], target.compute(states)[0])
    assert not any(module.training for module in (*target.modules(), *q.modules()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", ["states", "rewards", "final_states", "shaped rewards", "shared", "last shared"])
def test_numbers_that_are_none_are_refused_before_anything_learns(kind: str, what: str) -> None:
    if what in ("shared", "last shared") and kind != "qmix":
        pytest.skip("it sees none")

    def tell(of: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        changed = list(arguments)
        if of == "record" and arguments[7] == 9:
            spoiled = {"states": 0, "rewards": 2}.get(what)
            if spoiled is not None:
                changed[spoiled] = {**arguments[spoiled], "a": arguments[spoiled]["a"] * torch.nan}
            elif what == "final_states":
                final = arguments[6]["final_states"]
                changed[6] = {**arguments[6], "final_states": {**final, "b": final["b"] + torch.inf}}
            elif what in ("shared", "last shared"):
                key = "shared_states" if what == "shared" else "final_shared_states"
                changed[6] = {**arguments[6], key: arguments[6][key] * torch.nan}
        return tuple(changed)

    def shaper(rewards: Tensor, timestep: int, timesteps: int) -> Tensor:
        return rewards * (torch.nan if what == "shaped rewards" and timestep == 9 else 1.0)

    env = Toy(lengths=(100, 10, 100))  # copy 1 is truncated with time step 9
    agent = begun(
        env, kind, rewards_shaper=shaper, state_preprocessor=RunningStandardScaler, reward_preprocessor=RunningScale
    )
    play(env, agent, 9)
    before = everything(agent)["modules"]
    agent.init()
    agent.set_running_mode("train")
    with pytest.raises(ValueError, match=r"expected finite numbers, got (nan|inf) in element"):
        play(env, agent, 12, tell)
    modules = everything(agent)["modules"]
    assert not same(modules, before), "it learned until then"
    for state in modules.values():
        for tensor in state.values():
            assert bool(tensor.isfinite().all())


@pytest.mark.parametrize("what", ["states", "shared states", "loss"])
def test_an_update_refuses_what_no_look_at_the_door_kept_out(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on an accelerator, where looking at each step would wait for it."""
    monkeypatch.setattr(ValueLearner, "_check_finite", lambda *arguments: None)

    def tell(of: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        if of != "record" or arguments[7] != 6:
            return arguments
        states, actions, rewards, *rest, infos, timestep, timesteps = arguments
        if what == "states":
            states = {**states, "a": states["a"] * torch.nan}
        elif what == "shared states":
            infos = {**infos, "shared_states": infos["shared_states"] * torch.inf}
        else:
            rewards = {uid: torch.full((3, 1), 1e30) for uid in "ab"}
        return (states, actions, rewards, *rest, infos, timestep, timesteps)

    env = Toy(lengths=(100, 100, 100))
    agent = begun(env, "qmix", batch_size=6)
    message = {
        "states": r"states of \['a', 'b'\] in the replay memory: expected finite",
        "shared states": "shared states in the replay memory: expected finite",
        "loss": r"the loss of \['a', 'b'\] is inf",
    }[what]
    with pytest.raises(FloatingPointError if what == "loss" else ValueError, match=message):
        play(env, agent, 40, tell)
    assert bool(weights(agent).isfinite().all())
    assert not agent.models["a"]["q"].training


# ---- what is measured --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_metrics_are_written_and_finite(kind: str) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    env = Toy(lengths=(3, 4, 5))
    experiment = {"directory": "runs", "experiment_name": kind, "write_interval": 10, "checkpoint_interval": 20}
    agent = team(env, kind, "prioritized", experiment=experiment, exploration_epsilon={"a": 0.25, "b": 0.75})
    SequentialTrainer(env, agent, cfg={**QUIET, "timesteps": 20}).train()
    events = EventAccumulator(f"runs/{kind}").Reload()
    tags = {
        "Loss / Value loss (a)", "Value / Predicted (a)", "Value / Target (a)", "Learning / Gradient norm (a)",
        "Learning / Learning rate (a)", "Exploration / Epsilon (a)", "Exploration / Epsilon (b)",
        "Reward / Total reward (mean)", "Reward / Total reward (b)", "Episode / Total timesteps (mean)",
        "Performance / Steps per second",
    }  # fmt: skip
    written = set(events.Tags()["scalars"])
    assert tags <= written, tags - written
    for tag in written:
        numbers = torch.tensor([event.value for event in events.Scalars(tag)])
        assert len(numbers) == 2
        assert bool(numbers.isfinite().all()), tag
    assert [events.Scalars(f"Exploration / Epsilon ({uid})")[0].value for uid in "ab"] == [0.25, 0.75]
    assert events.Scalars("Learning / Learning rate (a)")[0].value == pytest.approx(1e-2)
