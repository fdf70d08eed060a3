"""The steps that a team keeps: what users' memories show of them, how many bytes they take, and in which dtype they stand."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from gymnasium import spaces

from coterie.agents import IPPO, MAPPO
from coterie.memories import RandomMemory
from coterie.models import build_models
from coterie.trainers import SequentialTrainer
from tests.agents.toys import OFF, Toy
from tests.agents.value_runs import KINDS, MEMORIES, begun, play, team, weights

QUIET = {"headless": True, "close_environment_at_exit": False, "disable_progressbar": True}


def two_kinds(**options: Any) -> Toy:
    """Agents of two kinds, the second between those of the first."""
    actions = {"a": spaces.Discrete(4), "b": spaces.Discrete(3), "c": spaces.Discrete(4)}
    return Toy("abc", (3, 4, 9), {"a": 3, "b": 5, "c": 3}, actions, **options)


# ---- what memories show ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", MEMORIES)
def test_memories_show_their_agents_part(memory: str) -> None:
    env = two_kinds()
    agent = begun(env, "qmix", memory, rows=30)
    told: dict[str, list[torch.Tensor]] = {}

    def tell(what: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        if what == "record":
            for i, name in enumerate(("states", "actions", "rewards")):
                for uid in "abc":
                    told.setdefault(f"{name} {uid}", []).append(arguments[i][uid].clone())
            told.setdefault("shared_states", []).append(arguments[6]["shared_states"])
        return arguments

    play(env, agent, 12, tell)
    for uid in "abc":
        shown = agent.memories[uid]
        assert type(shown) is MEMORIES[memory]
        assert set(shown.get_tensor_names()) == {
            "states", "actions", "rewards", "terminated", "truncated", "team_terminated", "shared_states",
        }  # fmt: skip
        assert shown.nbytes == 0, "it is the team's memory that holds them"
        assert len(shown) == len(agent._storage.memory) == 36
        for name in ("states", "actions", "rewards", "shared_states"):
            given = torch.stack(told.get(f"{name} {uid}") or told[name])
            # copy 0 terminates: its rows are its steps, one after the other
            assert torch.equal(shown.get_tensor_by_name(name)[:12, 0], given[:, 0])
        (drawn,) = shown.sample(["states", "rewards"], 5)
        assert [tuple(tensor.shape) for tensor in drawn] == [(5, 5 if uid == "b" else 3), (5, 1)]
        with pytest.raises(RuntimeError, match="shows one agent's part"):
            shown.add_samples(states=torch.zeros(3, 3))


# ---- bytes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_bytes_are_known_before_they_are_taken(kind: str, memory: str, dtype: torch.dtype | None) -> None:
    env = two_kinds()
    agent = team(env, kind, memory, rows=50, kept={"observation_dtype": dtype})
    predicted = agent.memory_bytes
    # of 50 rows in 3 environments: observations of 3 + 5 + 3 numbers and, where a mixer sees it, a state of 4; for each of 3
    # agents an action of 8 bytes, a reward of 4 and two flags, and a flag of the team; 13 bytes for the order of rows
    number = 4 if dtype is None else 2
    row = number * (11 + (4 if kind == "qmix" else 0)) + 3 * (8 + 4 + 2) + 1 + 13
    assert predicted >= 150 * row
    if memory == "replay":
        assert predicted == 150 * row + 3 * 18
    agent.init()
    assert agent.memory_bytes == predicted
    agent.set_running_mode("train")
    play(env, agent, 5)
    assert agent.memory_bytes == predicted == agent._storage.memory.nbytes


def test_masks_count_once_they_are_there() -> None:
    env = two_kinds(masks=lambda age: {"active_masks": {"a": (age > 0).unsqueeze(1)}})
    agent = begun(env, "vdn", rows=50)
    predicted = agent.memory_bytes
    play(env, agent, 5)
    assert (
        agent.memory_bytes == predicted + 2 * 2 * 150
    )  # who acts and who is there, of the two agents of the first kind


def test_observations_stand_in_for_a_state_in_the_same_room() -> None:
    env = Toy(state=6, own_state=False)
    agent = begun(env, "qmix")
    with_state = agent.memory_bytes
    play(env, agent, 5, state=False)
    assert agent.memory_bytes == with_state - 4 * 6 * 40 * 3, "what all agents see is stored once"


@pytest.mark.parametrize("kind", [MAPPO, IPPO])
def test_rollouts_have_a_size_too(kind: Any) -> None:
    env = two_kinds()
    memories = {uid: RandomMemory(8, 3) for uid in "abc"}
    agent = kind(
        ["a", "b", "c"],
        build_models(env, kind.__name__.lower(), hidden=(8,)),
        memories,
        env.observation_spaces,
        env.action_spaces,
        cfg={"rollouts": 8, "experiment": OFF},
        shared_observation_spaces=env.shared_observation_spaces,
    )
    predicted = agent.memory_bytes
    # 8 rows in 3 environments: observations, a state where critics see it, and for each of 3 agents an action of 8 bytes, five
    # numbers and two flags
    assert predicted == 24 * (4 * (11 + (4 if kind is MAPPO else 0)) + 3 * (8 + 5 * 4 + 2))
    SequentialTrainer(env, agent, cfg={**QUIET, "timesteps": 9}).train()
    held = {id(rollout.memory): rollout.memory.nbytes for rollout in agent._storage.values()}
    assert agent.memory_bytes == predicted == sum(held.values()) + (agent._shared.nbytes if agent._shared else 0)


@pytest.mark.parametrize("shown", [True, False])
def test_the_trainer_tells_the_size_beside_its_progress(shown: bool, capsys: pytest.CaptureFixture[str]) -> None:
    env = two_kinds()
    agent = team(env, "vdn", rows=5000)
    size = agent.memory_bytes / 2**20
    cfg = {**QUIET, "timesteps": 3, "disable_progressbar": not shown}
    trainer = SequentialTrainer(env, agent, cfg=cfg)
    trainer.train()
    trainer.eval(episodes=1)
    printed = capsys.readouterr()
    expected = f"memory of steps: {size:.2f} MiB on cpu"
    assert (expected in printed.err) is shown
    assert printed.err.count("memory of steps") == int(shown)
    assert printed.out == ""
    assert size > 1


def test_nothing_is_told_of_agents_that_keep_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    env = two_kinds()
    agent = team(env, "vdn", None, trainable=False)
    SequentialTrainer(env, agent, cfg={**QUIET, "timesteps": 3, "disable_progressbar": False}).train()
    assert "memory of steps" not in capsys.readouterr().err


# ---- what rows hold ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", MEMORIES)
def test_observations_may_stand_in_half_precision(memory: str) -> None:
    env = Toy(lengths=(3, 4, 9))
    agent = begun(env, "qmix", memory, kept={"observation_dtype": torch.float16})
    before = weights(agent)
    play(env, agent, 15)
    assert not torch.equal(weights(agent), before)
    memory_of_team = agent._storage.memory
    assert memory_of_team.get_tensor_by_name("states/a").dtype == torch.float16
    assert memory_of_team.get_tensor_by_name("shared_states").dtype == torch.float16
    assert memory_of_team.get_tensor_by_name("rewards/a").dtype == torch.float32
    drawn = agent._storage.draw(2, 1, 0)
    assert drawn.of("states", agent.groups[0]).dtype == torch.float32
    assert agent.memories["a"].sample(["states"], 2)[0][0].dtype == torch.float32


def test_what_does_not_go_into_a_narrow_dtype_is_refused() -> None:
    env = Toy(lengths=(3, 4, 9))
    agent = begun(env, "vdn", kept={"observation_dtype": torch.uint8})
    with pytest.raises(ValueError, match=r"'states/a' is kept as torch.uint8: expected whole numbers from 0 to 255"):
        play(env, agent, 3)
    assert len(agent._storage.memory) == 0


# ---- ends of episodes --------------------------------------------------------------------------------------------------


def last_rows(agent: Any) -> int:
    """Number of rows that are no steps."""
    columns = agent._storage.memory._columns
    return int((columns.written - columns.taken).sum())


def without_final_states(what: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    if what == "record":
        infos = {key: value for key, value in arguments[6].items() if not key.startswith("final")}
        return (*arguments[:6], infos, *arguments[7:])
    return arguments


@pytest.mark.parametrize("kind", KINDS)
def test_without_final_states_the_next_ones_are_taken(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """The loop of an environment that does not reset itself: the successor that is passed is the true one."""
    env = Toy(lengths=(100, 4, 100))
    agent = begun(env, kind)
    seen: list[torch.Tensor] = []

    def tell(what: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        if what == "record" and bool(arguments[5]["a"].any()):
            seen.append(arguments[3]["a"][1].clone())
        return without_final_states(what, arguments)

    with caplog.at_level(logging.WARNING):
        play(env, agent, 9, tell)
    warnings = [record for record in caplog.records if "no 'final_states'" in record.getMessage()]
    assert len(warnings) == 1, "it is said once"
    assert last_rows(agent) == 2
    rows = agent.memories["a"].get_tensor_by_name("states")[:, 1]
    assert torch.equal(rows[[4, 9]], torch.stack(seen))


@pytest.mark.parametrize("kind", KINDS)
def test_time_limits_may_count_as_terminations(kind: str) -> None:
    env = Toy(lengths=(5, 4, 3))
    agent = begun(env, kind, time_limit_bootstrap=False)
    play(env, agent, 12)
    assert last_rows(agent) == 0
    flags = agent.memories["a"].get_tensor_by_name("team_terminated")[:12, 1].flatten()
    assert flags.nonzero().flatten().tolist() == [3, 7, 11]


@pytest.mark.parametrize("memory", MEMORIES)
def test_observations_stand_in_where_there_is_no_state(memory: str, caplog: pytest.LogCaptureFixture) -> None:
    env = Toy(lengths=(3, 4, 9), state=6, own_state=False)
    agent = team(env, "qmix", memory)
    before = weights(agent)
    with caplog.at_level(logging.WARNING):
        SequentialTrainer(env, agent, cfg={**QUIET, "timesteps": 15}).train()
    assert [record.getMessage() for record in caplog.records if "no state()" in record.getMessage()] == [
        "the environment has no state(): mixers see all agents' observations together in its place"
    ]
    assert not torch.equal(weights(agent), before)
    assert "shared_states" not in agent.memories["a"].get_tensor_names()


def test_a_mixer_of_another_size_cannot_make_do_with_observations() -> None:
    env = Toy(lengths=(3, 4, 9), state=7, own_state=False)
    agent = begun(env, "qmix")
    with pytest.raises(
        KeyError, match=r"Mixers were built for a state of 7 elements; all agents' observations.* have 6"
    ):
        play(env, agent, 3, state=False)
    assert len(agent._storage.memory) == 0
