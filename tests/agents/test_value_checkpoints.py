"""Checkpoints of those that learn action values, and files of their memories."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gymnasium import spaces

from coterie.agents.checkpoints import CheckpointError
from coterie.agents.groups import Group
from coterie.agents.replay_storage import ReplayStorage
from coterie.memories import ReplayMemory
from coterie.preprocessors import RunningScale, RunningStandardScaler
from coterie.trainers import SequentialTrainer
from tests.agents.test_evaluation_paths import masks as some_masks
from tests.agents.toys import Toy
from tests.agents.value_runs import KINDS, MEMORIES, begun, everything, play, same, team, weights

QUIET = {"headless": True, "disable_progressbar": True, "close_environment_at_exit": False}
NORMALISED: dict[str, Any] = {
    "state_preprocessor": RunningStandardScaler,
    "reward_preprocessor": RunningScale,
    "learning_rate_scheduler": torch.optim.lr_scheduler.ExponentialLR,
    "learning_rate_scheduler_kwargs": {"gamma": 0.9},
}


def training(env: Toy, steps: int = 11) -> Any:
    return {**QUIET, "timesteps": steps}


# ---- a run that is taken up again --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "memory", "rnn", "masks"),
    [
        ("qmix", "replay", None, None),
        ("qmix", "episode", "gru", some_masks),
        ("vdn", "prioritized", "gru", some_masks),
        ("vdn", "episode", None, None),
        ("iql", "replay", "lstm", None),
        ("iql", "prioritized", None, some_masks),
    ],
)
def test_a_resumed_run_is_the_uninterrupted_one(
    kind: str, memory: str, rnn: str | None, masks: Any, tmp_path: Path
) -> None:
    """Two trainings in a row, of one agent, and of two: the second starts with what the first left in files."""
    options = {} if kind == "qmix" else {"shared": False}

    def made(seed: int) -> Any:
        torch.manual_seed(seed)
        return team(env, kind, memory, rnn, options=options, kept={"seed": seed}, **NORMALISED)

    env = Toy(lengths=(3, 4, 9), **({} if masks is None else {"masks": masks}))
    first = made(0)
    SequentialTrainer(env, first, cfg=training(env)).train()
    first.save(tmp_path / "agent.pt")
    first.save_memory(tmp_path / "memory.pt")
    generators = env.generator.get_state(), torch.get_rng_state()

    def second_part(agent: Any) -> dict[str, Any]:
        env.generator.set_state(generators[0])
        torch.set_rng_state(generators[1])
        SequentialTrainer(env, agent, cfg=training(env)).train()
        return everything(agent)

    expected = second_part(first)
    other = made(1)
    assert not torch.equal(weights(other), weights(first))
    other.load(tmp_path / "agent.pt")
    other.load_memory(tmp_path / "memory.pt")
    assert same(second_part(other), expected)
    assert other.checkpoint_state()["steps_taken"] == first.checkpoint_state()["steps_taken"]

    forgetful = made(2)
    forgetful.load(tmp_path / "agent.pt")
    assert not same(second_part(forgetful)["modules"], expected["modules"]), "the memory matters"


@pytest.mark.parametrize("left_out", ["targets/", "models/", "state_preprocessor", "reward_preprocessor", "mixer"])
def test_a_checkpoint_has_all_that_was_learned(left_out: str, tmp_path: Path) -> None:
    env = Toy(lengths=(3, 4, 9))
    agent = begun(env, "qmix", target_update_interval=4, **NORMALISED)
    play(env, agent, 20)
    modules = agent.checkpoint_modules()
    names = [name for name in modules if left_out in name]
    assert names
    assert any(name.startswith("targets/") and name.endswith("mixer") for name in modules)
    agent.save(tmp_path / "agent.pt")
    contents = torch.load(tmp_path / "agent.pt", weights_only=True)
    for name in names:
        del contents["modules"][name]
    torch.save(contents, tmp_path / "part.pt")
    other = begun(env, "qmix", target_update_interval=4, **NORMALISED)
    before = everything(other)
    with pytest.raises(CheckpointError, match="is missing") as error:
        other.load(tmp_path / "part.pt")
    assert all(f"module {name!r} is missing" in str(error.value) for name in names)
    assert same(everything(other), before)


@pytest.mark.parametrize("kind", KINDS)
def test_an_agent_without_memories_acts_as_it_was_taught(kind: str, tmp_path: Path) -> None:
    env = Toy(lengths=(3, 4, 9))
    agent = begun(env, kind, rnn="gru", **NORMALISED)
    play(env, agent, 20)
    agent.save(tmp_path / "agent.pt")
    torch.manual_seed(1)
    actor = team(env, kind, None, "gru", **NORMALISED)
    actor.load(tmp_path / "agent.pt")
    agent.set_running_mode("eval")
    actor.set_running_mode("eval")
    seen = [{uid: torch.randn(50, 3) for uid in "ab"} for _ in range(4)]
    agent.set_running_mode("eval")
    taught, acted = ([member.act(states, 0, 1)[0] for states in seen] for member in (agent, actor))
    for mine, theirs in zip(acted, taught, strict=True):
        assert all(torch.equal(mine[uid], theirs[uid]) for uid in "ab")


# ---- files that don't fit ----------------------------------------------------------------------------------------------


def test_damaged_files_change_nothing(tmp_path: Path) -> None:
    env = Toy(lengths=(3, 4, 9))
    agent = begun(env, "qmix")
    play(env, agent, 10)
    agent.save(tmp_path / "agent.pt")
    agent.save_memory(tmp_path / "memory.pt")
    before = everything(agent)
    for name, load, kinds in (
        ("agent.pt", agent.load, CheckpointError),
        ("memory.pt", agent.load_memory, (RuntimeError, ValueError, EOFError, OSError)),
    ):
        whole = (tmp_path / name).read_bytes()
        for size in (0, 10, len(whole) // 2, len(whole) - 50):
            (tmp_path / "damaged.pt").write_bytes(whole[:size])
            with pytest.raises(kinds):
                load(tmp_path / "damaged.pt")
            assert same(everything(agent), before)
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        agent.load(tmp_path / "memory.pt")
    with pytest.raises(ValueError, match="expected the file of a ReplayMemory; this one lacks"):
        agent.load_memory(tmp_path / "agent.pt")
    assert same(everything(agent), before)


@pytest.mark.parametrize(("mine", "theirs"), [("vdn", "qmix"), ("qmix", "vdn"), ("vdn", "iql"), ("iql", "vdn")])
def test_files_of_other_algorithms_are_refused_whole(mine: str, theirs: str, tmp_path: Path) -> None:
    env = Toy(lengths=(3, 4, 9))
    other = begun(env, theirs, options={"shared": False})
    play(env, other, 10)
    other.save(tmp_path / "agent.pt")
    agent = begun(env, mine, options={"shared": False})
    before = everything(agent)
    with pytest.raises(CheckpointError, match="does not fit this agent") as error:
        agent.load(tmp_path / "agent.pt")
    expected = {"vdn qmix": "mixer' is unknown here", "qmix vdn": "mixer' is missing"}
    assert expected.get(f"{mine} {theirs}", "sets, the file has") in str(error.value)
    assert same(everything(agent), before)


def test_every_misfit_is_listed(tmp_path: Path) -> None:
    env = Toy(lengths=(3, 4, 9))
    begun(env, "qmix", **NORMALISED).save(tmp_path / "agent.pt")
    agent = begun(env, "qmix", options={"hidden": (9,)})
    with pytest.raises(CheckpointError) as error:
        agent.load(tmp_path / "agent.pt")
    for part in (
        "'models/a/q'",
        "'targets/a/q'",
        "'reward_preprocessor/a' is unknown",
        "expected [9, 3], the file has [8, 3]",
    ):
        assert part in str(error.value)


# ---- files of memories -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", MEMORIES)
def test_memories_go_on_amid_an_episode(memory: str, tmp_path: Path) -> None:
    """The same environment is played on, by the agent that began and by another with its files: no row differs."""

    def halves(change: bool) -> dict[str, Any]:
        torch.manual_seed(0)
        env = Toy(lengths=(3, 4, 9), masks=some_masks)
        agent = begun(env, "qmix", memory)
        states, infos = env.reset()
        shared = env.state()
        for t in range(24):
            if t == 13 and change:
                agent.save(tmp_path / "agent.pt")
                agent.save_memory(tmp_path / "memory.pt")
                with torch.random.fork_rng(devices=[]):
                    agent = begun(env, "qmix", memory, kept={"seed": 8})
                agent.load(tmp_path / "agent.pt")
                agent.load_memory(tmp_path / "memory.pt")
            actions = agent.act(states, t, 100, infos)[0]
            following, *rest, infos = env.step(actions)
            shared, before = env.state(), shared
            noted = {**infos, "shared_states": before, "shared_next_states": shared}
            agent.record_transition(states, actions, rest[0], following, *rest[1:], noted, t, 100)
            agent.post_interaction(t, 100)
            states = following
        shown = {uid: agent.memories[uid].get_tensor_by_name("states").clone() for uid in "ab"}
        return {**everything(agent), "shown": shown}

    assert same(halves(True), halves(False))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"kind": "vdn"}, "expected a shared state of size 4, the file has one of size 0|expected the shared state"),
        ({"rows": 41}, "expected shape"),
        ({"env": {"names": ("c", "b")}}, "holds the steps of another team: missing .*unknown here"),
        ({"env": {"observations": 2}}, "exists with shape"),
        ({"env": {"lengths": (3, 4)}}, "expected shape"),
        ({"env": {"state": 6}}, "expected a shared state of size 4, the file has one of size 6"),
        ({"kept": {"observation_dtype": torch.float16}}, "exists with shape"),
    ],
)
def test_memories_of_others_are_refused(other: dict[str, Any], message: str, tmp_path: Path) -> None:
    settings = dict(other)
    theirs = Toy(**{"lengths": (3, 4, 9), **settings.pop("env", {})})
    with_file = begun(theirs, **{"kind": "qmix", **settings})
    play(theirs, with_file, 8)
    with_file.save_memory(tmp_path / "memory.pt")
    env = Toy(lengths=(3, 4, 9))
    agent = begun(env, "qmix")
    play(env, agent, 8)
    before = everything(agent)
    with pytest.raises((ValueError, KeyError), match=message):
        agent.load_memory(tmp_path / "memory.pt")
    assert same(everything(agent), before)


def choosing(a: int, b: int, masked: bool) -> Toy:
    """Agents of so many choices."""
    masks = {"action_masks": {uid: torch.ones(3, n, dtype=torch.bool) for uid, n in (("a", a), ("b", b))}}
    actions = {"a": spaces.Discrete(a), "b": spaces.Discrete(b)}
    return Toy(lengths=(3, 4, 9), actions=actions, **({"masks": lambda age: masks} if masked else {}))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("theirs", "mine", "message"),
    [
        ((9, 9), (4, 4), r"expected {'agents': \['a', 'b'\], 'choices': \[4\]}, the file has .*'choices': \[9\]}"),
        ((3, 3), (4, 4), r"expected {'agents': \['a', 'b'\], 'choices': \[4\]}, the file has .*'choices': \[3\]}"),
        (
            (2, 9),
            (2, 4),
            r"group of 'b' expected {'agents': \['b'\], 'choices': \[4\]}, the file has .*'choices': \[9\]}",
        ),
        ((2, 4), (4, 4), r"holds the steps of another team: missing \[\], unknown here \['.*/b'"),
    ],
)
def test_memories_of_teams_with_other_actions_are_refused(
    theirs: tuple[int, int], mine: tuple[int, int], message: str, masked: bool, tmp_path: Path
) -> None:
    """Tensors of actions have one shape, however many there are to choose from."""
    env = choosing(*theirs, masked)
    with_file = begun(env, "vdn", options={"shared": False})
    play(env, with_file, 8)
    with_file.save_memory(tmp_path / "memory.pt")
    again = begun(env, "vdn", options={"shared": False})
    again.load_memory(tmp_path / "memory.pt")
    again.save_memory(tmp_path / "again.pt")
    env = choosing(*mine, masked)
    agent = begun(env, "vdn", options={"shared": False})
    play(env, agent, 8)
    before = everything(agent)
    for file in ("memory.pt", "again.pt"):
        with pytest.raises(ValueError, match=message):
            agent.load_memory(tmp_path / file)
        assert same(everything(agent), before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file["notes"].pop("a"), "the file has None"),
        (lambda file: file["notes"]["a"].update(agents=["a", "c"]), r"the file has {'agents': \['a', 'c'\]"),
        (
            lambda file: file["tensors"].update({"action_masks/a": torch.ones(40, 3, 2, 9, dtype=torch.bool)}),
            r"'action_masks/a' exists with shape \[40, 3, 2, 9\].* asked for \[40, 3, 2, 4\]",
        ),
        (
            lambda file: file["tensors"].update({"present/a": torch.ones(40, 3, 1, 1, dtype=torch.bool)}),
            r"'present/a' exists with shape \[40, 3, 1, 1\].* asked for \[40, 3, 2, 1\]",
        ),
    ],
)
def test_memories_with_something_amiss_are_refused(change: Any, message: str, tmp_path: Path) -> None:
    env = Toy(lengths=(3, 4, 9))
    agent = begun(env, "vdn")
    play(env, agent, 8)
    agent.save_memory(tmp_path / "memory.pt")
    contents = torch.load(tmp_path / "memory.pt", weights_only=True)
    change(contents)
    torch.save(contents, tmp_path / "memory.pt")
    before = everything(agent)
    with pytest.raises(ValueError, match=message):
        agent.load_memory(tmp_path / "memory.pt")
    assert same(everything(agent), before)


def test_memories_of_several_choices_at_once_know_each(tmp_path: Path) -> None:
    def storage(*nvec: int) -> ReplayStorage:
        space = spaces.Box(-1, 1, (2,))
        group = Group(("a",), space, spaces.MultiDiscrete(nvec), None, [0], None, None)
        return ReplayStorage(ReplayMemory(5, 1), [group], ["a"], torch.device("cpu"))

    storage(2, 3).memory.save(tmp_path / "memory.pt")
    storage(2, 3).read(tmp_path / "memory.pt")
    with pytest.raises(ValueError, match=r"'choices': \[3, 2\]}, the file has .*'choices': \[2, 3\]}"):
        storage(3, 2).read(tmp_path / "memory.pt")


def test_memories_where_there_is_none(tmp_path: Path) -> None:
    env = Toy()
    with pytest.raises(RuntimeError, match="nothing to save before init"):
        team(env, "vdn").save_memory(tmp_path / "memory.pt")
    with pytest.raises(RuntimeError, match="nothing to save before init, and without memories"):
        begun(env, "vdn", None).save_memory(tmp_path / "memory.pt")
    with pytest.raises(RuntimeError, match="expected an agent with memories"):
        begun(env, "vdn", None).load_memory(tmp_path / "memory.pt")
    with pytest.raises(FileNotFoundError):
        team(env, "vdn").load_memory(tmp_path / "memory.pt")
