"""What learners of action values tell of themselves: each agent's own, or the team's where it learns one value."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from coterie.agents.value_statistics import ValueStatistics
from coterie.schedulers import LinearSchedule
from tests.agents.toys import Toy
from tests.agents.value_runs import KINDS, begun, play

LOSS, PREDICTED, TARGET = "Loss / Value loss", "Value / Predicted", "Value / Target"
NORM, RATE, EPSILON = "Learning / Gradient norm", "Learning / Learning rate", "Exploration / Epsilon"


def learner(*groups: str, rates: tuple[float, ...] = (0.5,)) -> Any:
    """Agents that are named by letters, a parameter set for each rate."""
    return SimpleNamespace(
        names=[uid for names in groups for uid in names],
        groups=[SimpleNamespace(names=tuple(names)) for names in groups],
        optimizers=SimpleNamespace(learning_rates=lambda: list(rates)),
    )


def outcome(predicted: list[list[float]], targets: list[list[float]], known: list[list[int]]) -> Any:
    """Of windows of one step: a row for each window, a column for each agent, ``[1, B, A, 1]``."""
    return tuple(
        torch.tensor(rows, dtype=kind).unsqueeze(0).unsqueeze(-1)
        for rows, kind in ((predicted, torch.float32), (targets, torch.float32), (known, torch.bool))
    )


def written(statistics: ValueStatistics, epsilon: float = 0.25) -> dict[str, float]:
    """What is told, and that it is told once and in numbers."""
    told: list[tuple[str, Any]] = []
    statistics.write(lambda tag, value: told.append((tag, value)), lambda group: [epsilon] * len(group.names))
    assert len(dict(told)) == len(told)
    assert all(type(value) is float for _, value in told), "nothing that would have to be waited for"
    return dict(told)


def of(uid: str, *values: float) -> dict[str, float]:
    return {f"{tag} ({uid})": v for tag, v in zip((LOSS, PREDICTED, TARGET, NORM, RATE), values, strict=True)}


def test_means_are_over_all_that_was_learned_from_since_the_last_writing() -> None:
    statistics, team = ValueStatistics(), learner("ab", rates=(0.1, 0.2))
    nan = float("nan")
    one = outcome([[1, 10], [3, nan]], [[2, 30], [4, nan]], [[1, 1], [1, 0]])
    statistics.add(team, torch.tensor([1.0, 400.0]), torch.tensor([2, 1]), [one], torch.tensor([[3.0], [5.0]]))
    two = outcome([[nan, 20], [8, 30]], [[nan, 20], [11, 70]], [[0, 1], [1, 1]])
    statistics.add(team, torch.tensor([9.0, 800.0]), torch.tensor([1, 2]), [two], torch.tensor([[1.0], [7.0]]))
    # a: losses 1, 1 and 9; values 1, 3 and 8; targets 2, 4 and 11; norms 3 and 1.    b: 400, 800, 800; 10, 20, 30; 30, 20, 70
    expected = {
        **of("a", 11 / 3, 4.0, 17 / 3, 2.0, 0.1),
        **of("b", 2000 / 3, 20.0, 40.0, 6.0, 0.2),
        f"{EPSILON} (a)": 0.25,
        f"{EPSILON} (b)": 0.25,
    }
    assert written(statistics) == pytest.approx(expected)
    assert written(statistics) == {}
    statistics.add(team, torch.tensor([1.0, 400.0]), torch.tensor([2, 1]), [one], torch.tensor([[3.0], [5.0]]))
    assert written(statistics)[f"{LOSS} (a)"] == 1.0, "what was written is over"
    statistics.add(team, torch.tensor([1.0, 400.0]), torch.tensor([2, 1]), [one], torch.tensor([[3.0], [5.0]]))
    statistics.clear()
    assert written(statistics) == {}


def test_agents_of_one_set_have_its_norm_and_rate_and_values_of_their_own() -> None:
    statistics = ValueStatistics()
    parts = [outcome([[1, 2]], [[3, 4]], [[1, 1]]), outcome([[5]], [[6]], [[1]])]
    statistics.add(learner("ac", "b"), torch.tensor([7.0, 8.0, 9.0]), torch.ones(3), parts, torch.tensor([[3.0, 4.0]]))
    found = written(statistics)
    assert found.items() >= of("a", 7.0, 1.0, 3.0, 5.0, 0.5).items(), "a policy's norm and a value's make one"
    assert found.items() >= of("c", 8.0, 2.0, 4.0, 5.0, 0.5).items()
    assert found.items() >= of("b", 9.0, 5.0, 6.0, 5.0, 0.5).items()


def test_a_set_that_rests_counts_neither_with_its_norm_nor_as_an_update() -> None:
    statistics, team = ValueStatistics(), learner("ab", rates=(0.1, 0.2))
    one = outcome([[1, 10]], [[2, 30]], [[1, 0]])
    statistics.add(team, torch.tensor([1.0, 0.0]), torch.tensor([1, 0]), [one], torch.tensor([[3.0], [99.0]]))
    statistics.add(team, torch.tensor([1.0, 0.0]), torch.tensor([1, 0]), [one], torch.tensor([[3.0], [99.0]]))
    assert not {tag for tag in written(statistics) if "(b)" in tag and EPSILON not in tag}
    two = outcome([[1, 10]], [[2, 30]], [[1, 1]])
    statistics.add(team, torch.tensor([1.0, 0.0]), torch.tensor([1, 0]), [one], torch.tensor([[3.0], [99.0]]))
    statistics.add(team, torch.tensor([1.0, 400.0]), torch.tensor([1, 1]), [two], torch.tensor([[3.0], [5.0]]))
    assert written(statistics).items() >= of("b", 400.0, 10.0, 30.0, 5.0, 0.2).items()


def test_the_device_is_not_waited_for_before_the_writing() -> None:
    """Reading a tensor of the device ``meta`` would raise."""
    statistics = ValueStatistics()
    parts = [tuple(tensor.to("meta") for tensor in outcome([[1, 2]], [[3, 4]], [[1, 1]]))]
    for _ in range(2):
        statistics.add(learner("ab"), *torch.ones(2, 2, device="meta"), parts, torch.ones(1, 1, device="meta"))  # type: ignore[arg-type]
    with pytest.raises(NotImplementedError):
        written(statistics)


# ---- in a team -------------------------------------------------------------------------------------------------------


def metrics(env: Toy, kind: str, steps: int = 8, **settings: Any) -> dict[str, list[float]]:
    """What is written after each of some steps, by tag."""
    experiment = {"directory": "runs", "experiment_name": "x", "write_interval": 1, "checkpoint_interval": 0}
    agent = begun(env, kind, experiment=experiment, batch_size=3, **settings)
    agent.records.tracker.track = lambda tag, value: found.setdefault(tag, []).append(value)
    found: dict[str, list[float]] = {}
    play(env, agent, steps)
    return found


def constant(rewards: Mapping[str, float]) -> Any:
    def earn(age: Tensor, actions: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {uid: torch.full((len(age), 1), reward) for uid, reward in rewards.items()}

    return earn


@pytest.mark.parametrize("shared", [True, False])
def test_independent_agents_have_metrics_of_their_own(shared: bool) -> None:
    pytest.importorskip("tensorboard")
    rewards = {"a": 1.0, "b": 20.0, "c": 300.0}
    env = Toy("abc", earn=constant(rewards))
    rates = 1e-2 if shared else {"a": 1e-3, "b": 1e-2, "c": 1e-4}
    epsilons = {"a": 0.1, "b": LinearSchedule(0.2, 0.0), "c": 0.3}
    found = metrics(
        env, "iql", options={"shared": shared}, discount_factor=0.0, learning_rate=rates, exploration_epsilon=epsilons
    )
    for uid, reward in rewards.items():
        assert found[f"{TARGET} ({uid})"] == pytest.approx([reward] * 7), "the reward is all that is learned"
        for predicted, loss in zip(found[f"{PREDICTED} ({uid})"], found[f"{LOSS} ({uid})"], strict=True):
            assert loss == pytest.approx((reward - predicted) ** 2, rel=0.1, abs=1.0)
        rate = rates if isinstance(rates, float) else rates[uid]
        assert found[f"{RATE} ({uid})"] == pytest.approx([rate] * 7)
    assert found[f"{EPSILON} (a)"] == [0.1] * 7
    assert found[f"{EPSILON} (b)"] == pytest.approx([0.2 * (1 - t / 100) for t in range(1, 8)])
    norms = [found[f"{NORM} ({uid})"] for uid in "abc"]
    assert (norms[0] == norms[1] == norms[2]) == shared
    if not shared:
        assert all(a < b < c for a, b, c in zip(*norms, strict=True)), "gradients are as large as errors are"


@pytest.mark.parametrize("kind", ["vdn", "qmix"])
def test_a_teams_value_goes_by_its_first_learning_agent(kind: str) -> None:
    pytest.importorskip("tensorboard")
    env = Toy("abc", earn=constant({"a": 1.0, "b": 2.0, "c": 300.0}))
    found = metrics(env, kind, options={"shared": False}, discount_factor=0.0, reward="sum")
    assert found[f"{TARGET} (a)"] == pytest.approx([303.0] * 7)
    of_values = {tag for tag in found if tag.startswith(("Loss", "Value", "Learning"))}
    assert of_values == {f"{tag} (a)" for tag in (LOSS, PREDICTED, TARGET, NORM, RATE)}
    assert {tag for tag in found if tag.startswith("Exploration")} == {f"{EPSILON} ({uid})" for uid in "abc"}


@pytest.mark.parametrize("kind", KINDS)
def test_metrics_are_means_of_all_updates_between_two_writings(kind: str) -> None:
    pytest.importorskip("tensorboard")
    env = Toy()
    runs = []
    for interval in (1, 4):
        torch.manual_seed(0)
        experiment = {"directory": "runs", "experiment_name": "x", "write_interval": interval, "checkpoint_interval": 0}
        env = Toy(lengths=(100, 100, 100))
        agent = begun(env, kind, experiment=experiment, batch_size=3)
        found: dict[str, list[float]] = {}
        agent.track_data = lambda tag, value, found=found: found.setdefault(tag, []).append(value)
        play(env, agent, 12)
        runs.append(found)
    each, seldom = runs
    for tag in (LOSS, PREDICTED, TARGET, NORM):
        values = each[f"{tag} (a)"]  # time step 0 has nothing to draw from
        means = [sum(part) / len(part) for part in (values[:3], values[3:7], values[7:])]
        assert seldom[f"{tag} (a)"] == pytest.approx(means, rel=1e-4)


def test_a_run_that_begins_anew_forgets_what_was_not_written() -> None:
    pytest.importorskip("tensorboard")
    env = Toy()
    experiment = {"directory": "runs", "experiment_name": "x", "write_interval": 1000, "checkpoint_interval": 0}
    agent = begun(env, "iql", experiment=experiment)
    play(env, agent, 6)
    agent.init()
    agent.set_running_mode("train")
    found: list[str] = []
    agent.track_data = lambda tag, value: found.append(tag)
    agent.write_tracking_data(1, 100)
    assert found == []
