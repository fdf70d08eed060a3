from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from coterie.agents import IPPO, MultiAgent
from coterie.agents.tracking import CSV_COLUMNS, Tracker, experiment_directory, make_writable
from coterie.memories import RandomMemory
from coterie.models import CategoricalPolicy, GaussianPolicy, Value

ENVS, ROLLOUTS = 2, 4
OBSERVATION = spaces.Box(-np.inf, np.inf, (3,))


def scalars(directory: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows: (time step, value) by tag."""
    events = EventAccumulator(str(directory))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def rows(directory: Path) -> list[dict[str, str]]:
    with (directory / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def build(discrete: bool = True, **experiment: Any) -> MultiAgent:
    action: Any = spaces.Discrete(2) if discrete else spaces.Box(-1, 1, (2,))
    kind = CategoricalPolicy if discrete else GaussianPolicy
    models = {
        uid: {"policy": kind(OBSERVATION, action, hidden=(4,)), "value": Value(OBSERVATION, action, hidden=(4,))}
        for uid in "ab"
    }
    memories = {uid: RandomMemory(ROLLOUTS, ENVS) for uid in "ab"}
    settings = {"experiment_name": "run", "checkpoint_interval": 0, **experiment}
    cfg = {"rollouts": ROLLOUTS, "learning_epochs": 2, "experiment": settings}
    return IPPO(["a", "b"], models, memories, cfg=cfg)


def play(agent: MultiAgent, steps: int, timesteps: int) -> None:
    """Episodes of four steps, whose step t pays t + 1 to a and ten times that to b; all copies alike."""
    for t in range(steps):
        states = {uid: torch.randn(ENVS, 3) for uid in "ab"}
        actions, _, _ = agent.act(states, t, timesteps)
        rewards = {uid: torch.full((ENVS, 1), (t % 4 + 1.0) * scale) for uid, scale in (("a", 1), ("b", 10))}
        ends = dict.fromkeys("ab", torch.full((ENVS, 1), t % 4 == 3))
        never = dict.fromkeys("ab", torch.zeros(ENVS, 1, dtype=torch.bool))
        agent.record_transition(states, actions, rewards, states, ends, never, {}, t, timesteps)
        agent.post_interaction(t, timesteps)


# ---- the tracker ----------------------------------------------------------------------------------------------------


def test_values_are_averaged_but_for_extremes(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path)
    for value in (1.0, torch.tensor(2.0), np.float32(6.0)):
        for tag in ("x", "x (min)", "x (max)", "x (mean)"):
            tracker.track(tag, value)
    tracker.write(10)
    tracker.track("x", 5)
    tracker.write(20)
    tracker.write(30)
    tracker.close()
    assert scalars(tmp_path) == {
        "x": [(10, 3.0), (20, 5.0)],
        "x (min)": [(10, 1.0)],
        "x (max)": [(10, 6.0)],
        "x (mean)": [(10, 3.0)],
    }


def test_columns_of_the_table(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path)
    tracker.track("Reward / Total reward (mean)", 1.5)
    tracker.track("Evaluation / Return (mean)", torch.tensor(1 / 3))
    tracker.write(10)
    tracker.track("Loss / Policy loss (a)", 1.0)
    tracker.write(20)  # nothing of the table: no row
    tracker.track("Episode / Total timesteps (mean)", 25)
    tracker.write(30)
    tracker.close()
    with (tmp_path / "metrics.csv").open(newline="") as file:
        table = list(csv.reader(file))
    assert table == [
        ["timestep", "return", "evaluation_return", "episode_length", "steps_per_second", "training_seconds"],
        ["10", "1.5", "0.333333", "", "", ""],
        ["30", "", "", "25", "", ""],
    ]
    assert list(CSV_COLUMNS) == table[0][1:]


def test_the_table_is_continued(tmp_path: Path) -> None:
    for timestep in (10, 20):
        tracker = Tracker(tmp_path)
        tracker.track("Reward / Total reward (mean)", timestep)
        tracker.write(timestep)
        tracker.close()
    assert [row["timestep"] for row in rows(tmp_path)] == ["10", "20"]


def test_without_a_directory_nothing_is_kept_or_written() -> None:
    tracker = Tracker(None)
    assert not tracker.enabled
    tracker.track("x", 1.0)
    tracker.write(1)
    tracker.close()
    tracker.close()
    assert list(Path().iterdir()) == []


def test_where_an_experiment_goes() -> None:
    settings = {"directory": "", "experiment_name": ""}
    default = experiment_directory(settings, "MAPPO")
    assert default.parent == Path("runs")
    assert default.name.endswith("_MAPPO")
    assert experiment_directory(settings, "MAPPO") != default, "two runs at once do not share a folder"
    assert experiment_directory({"directory": "x/y", "experiment_name": "z"}, "MAPPO") == Path("x/y/z")
    assert experiment_directory({"directory": Path("x"), "experiment_name": "z"}, "MAPPO") == Path("x/z")


@pytest.mark.parametrize("blocked", ["here", "here/run"])
def test_a_file_in_the_directorys_place(tmp_path: Path, blocked: str) -> None:
    (tmp_path / blocked).parent.mkdir(exist_ok=True)
    (tmp_path / blocked).write_text("")
    with pytest.raises(
        OSError, match=r"cannot write to the experiment directory .*run.*cfg\['experiment'\]\['directory'\]"
    ):
        make_writable(tmp_path / "here" / "run")


def test_trying_out_leaves_nothing_behind(tmp_path: Path) -> None:
    make_writable(tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []


# ---- what agents track ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("discrete", [True, False])
def test_tags(discrete: bool) -> None:
    agent = build(discrete, write_interval=4)
    agent.init({"timesteps": 8})
    play(agent, 8, 8)
    agent.records.tracker.close()
    found = scalars(Path("runs/run"))
    own = {
        "Reward / Total reward",
        "Loss / Policy loss",
        "Loss / Value loss",
        "Policy / Entropy",
        "Policy / KL divergence",
        "Policy / Clip fraction",
        "Value / Explained variance",
        "Learning / Gradient norm",
        "Learning / Learning rate",
    }
    if not discrete:
        own.add("Policy / Standard deviation")
    expected = {f"{tag} ({uid})" for tag in own for uid in "ab"}
    for tag in ("Reward / Total reward", "Episode / Total timesteps"):
        expected |= {f"{tag} ({kind})" for kind in ("min", "max", "mean")}
    expected |= {"Performance / Steps per second", "Performance / Training seconds"}
    assert set(found) == expected
    for tag, series in found.items():
        assert [step for step, _ in series] == [4, 8], tag
        assert all(np.isfinite(value) for _, value in series), tag
    # 1 + 2 + 3 + 4 = 10, and ten times that
    assert found["Reward / Total reward (a)"] == [(4, 10.0), (8, 10.0)]
    assert found["Reward / Total reward (b)"] == [(4, 100.0), (8, 100.0)]
    assert found["Reward / Total reward (mean)"] == [(4, 110.0), (8, 110.0)]
    assert found["Episode / Total timesteps (max)"] == [(4, 4.0), (8, 4.0)]
    assert [value for _, value in found["Learning / Learning rate (a)"]] == pytest.approx([1e-3, 1e-3])
    table = rows(Path("runs/run"))
    assert [(row["timestep"], row["return"], row["episode_length"]) for row in table] == [
        ("4", "110", "4"),
        ("8", "110", "4"),
    ]
    assert all(float(row["steps_per_second"]) > 0 for row in table)
    assert agent.recent_return == 110.0


@pytest.mark.parametrize(
    ("interval", "timesteps", "steps", "written"),
    [
        (3, 100, 8, [3, 6]),
        ("auto", 200, 8, [2, 4, 6, 8]),
        ("auto", 8, 8, [1, 2, 3, 4, 5, 6, 7, 8]),  # a short run is written whole
        (5, 8, 8, [5, 8]),  # and its end in any case
        (0, 8, 8, []),
    ],
)
def test_intervals(interval: Any, timesteps: int, steps: int, written: list[int]) -> None:
    agent = build(write_interval=interval)
    agent.init({"timesteps": timesteps})
    play(agent, steps, timesteps)
    agent.records.tracker.close()
    if not written:
        assert not Path("runs").exists()
        return
    found = scalars(Path("runs/run"))
    assert [step for step, _ in found["Performance / Training seconds"]] == written


@pytest.mark.parametrize("trainer_cfg", [None, {}])
def test_a_loop_of_ones_own_that_names_no_length_writes_nothing_by_itself(trainer_cfg: Any) -> None:
    agent = build(write_interval="auto", checkpoint_interval="auto")
    agent.init(trainer_cfg)
    play(agent, 4, 1000)
    assert not Path("runs").exists()


def test_an_interval_of_zero_writes_nothing() -> None:
    agent = build(write_interval=0)
    agent.init({"timesteps": 8})
    agent.track_data("x", 1.0)
    play(agent, 8, 8)
    agent.write_tracking_data(8, 8)
    assert list(Path().iterdir()) == []


def test_an_unwritable_directory_is_told_before_the_first_step() -> None:
    Path("runs").write_text("a file")
    agent = build(write_interval=1)
    with pytest.raises(OSError, match="cannot write to the experiment directory 'runs/run'"):
        agent.init({"timesteps": 8})
    # who writes nothing needs no directory
    build(write_interval=0).init({"timesteps": 8})


def test_an_agent_that_only_acts_touches_no_files() -> None:
    agent = build(write_interval=1)
    agent.act({uid: torch.zeros(ENVS, 3) for uid in "ab"}, 0, 1)
    assert list(Path().iterdir()) == []


def test_ones_own_values_are_written_too() -> None:
    agent = build(write_interval=2)
    agent.init({"timesteps": 8})
    agent.track_data("Mine / Number", 3)
    agent.track_data("Mine / Number", torch.tensor(5.0))
    play(agent, 2, 8)
    agent.records.tracker.close()
    assert scalars(Path("runs/run"))["Mine / Number"] == [(2, 4.0)]


def test_an_evaluation_is_written_at_once() -> None:
    agent = build(write_interval=1000)
    agent.init({"timesteps": 8000})
    agent.record_evaluation({"mean": 3.0, "std": 0.5, "agents": {"a": 1.0, "b": 2.0}}, 40, 8000)
    agent.records.tracker.close()
    found = scalars(Path("runs/run"))
    assert found["Evaluation / Return (mean)"] == [(40, 3.0)]
    assert found["Evaluation / Return (std)"] == [(40, 0.5)]
    assert found["Evaluation / Return (b)"] == [(40, 2.0)]
    assert rows(Path("runs/run"))[0]["evaluation_return"] == "3"


def test_a_missing_wandb_is_explained() -> None:
    try:
        import wandb  # noqa: F401
    except ImportError:
        agent = build(write_interval=1, wandb=True)
        with pytest.raises(ImportError, match=r"install wandb"):
            agent.init({"timesteps": 8})
    else:
        pytest.skip("wandb is installed")
