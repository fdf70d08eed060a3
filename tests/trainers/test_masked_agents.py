"""Evaluation and the records of training where agents wait, leave and come: whose rewards count."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from coterie.agents import IPPO, MAPPO, MultiAgent
from coterie.envs import wrap_env
from coterie.memories import RandomMemory
from coterie.models import build_models
from coterie.trainers import SequentialTrainer
from tests.agents.toys import OFF, Toy
from tests.envs.wrappers.test_turn_based import Rounds

ALGORITHMS: list[type[MultiAgent]] = [IPPO, MAPPO]


def team(env: Any, kind: type[MultiAgent] = IPPO, **cfg: Any) -> Any:
    settings = {"rollouts": 4, "learning_epochs": 1, "mini_batches": 2, "experiment": OFF, **cfg}
    names = env.possible_agents
    models = build_models(
        env, "mappo" if kind is MAPPO else "ippo", hidden=(8,), rnn="gru", rnn_size=4, sequence_length=3
    )
    memories = {uid: RandomMemory(4, env.num_envs) for uid in names}
    return kind(
        names, models, memories, env.observation_spaces, env.action_spaces, cfg=settings,
        shared_observation_spaces=env.shared_observation_spaces,
    )  # fmt: skip


def quiet(timesteps: int = 1) -> dict[str, Any]:
    return {"timesteps": timesteps, "headless": True, "disable_progressbar": True, "close_environment_at_exit": False}


def game(garbage: float, lengths: tuple[int, ...] = (4, 6)) -> Toy:
    """Everyone earns 1 a step. b has left from age 2 on, c waits at odd ages, d arrives at age 3; who is absent earns
    ``garbage``, and observes it.
    """

    def absent(age: Tensor) -> dict[str, Tensor]:
        never = torch.zeros_like(age, dtype=torch.bool)
        return {"a": never, "b": age >= 2, "c": never, "d": age < 3}

    def masks(age: Tensor) -> dict[str, Any]:
        gone = absent(age)
        odd = age % 2 == 1
        active = {uid: ~gone[uid] & ~(odd if uid == "c" else torch.zeros_like(odd)) for uid in "abcd"}
        return {
            "active_masks": {uid: mask.unsqueeze(1) for uid, mask in active.items()},
            "waiting_masks": {"c": odd.unsqueeze(1)},
        }

    def earn(age: Tensor, actions: Any) -> dict[str, Tensor]:
        return {uid: torch.where(gone, garbage, 1.0).unsqueeze(1) for uid, gone in absent(age).items()}

    env = Toy("abcd", lengths=lengths, masks=masks, earn=earn)
    observe = env.observe

    def spoiled() -> dict[str, Tensor]:
        gone = absent(env.age)
        states = observe()
        return {uid: torch.where(gone[uid].unsqueeze(1), garbage, state) for uid, state in states.items()}

    env.observe = spoiled  # type: ignore[method-assign]
    return env


@pytest.mark.parametrize("garbage", [1000.0, math.nan, math.inf])
@pytest.mark.parametrize("kind", ALGORITHMS)
def test_an_evaluation_counts_what_agents_earn_while_they_are_there(kind: type[MultiAgent], garbage: float) -> None:
    env = game(garbage)
    results = SequentialTrainer(env, team(env, kind), cfg=quiet()).eval(episodes=2)
    # copy 0: 4 steps, a 4, b 2 (ages 0 and 1), c 4 (waiting or not), d 1 (age 3); copy 1: 6 steps, 6, 2, 6, 3
    assert sorted(results["returns"].tolist()) == [[4.0, 2.0, 4.0, 1.0], [6.0, 2.0, 6.0, 3.0]]
    assert sorted(results["lengths"].tolist()) == [4, 6]
    assert results["agents"] == {"a": 5.0, "b": 2.0, "c": 5.0, "d": 2.0}
    assert results["mean"] == pytest.approx((11 + 17) / 2)
    assert results["std"] == pytest.approx(3.0)


@pytest.mark.parametrize("garbage", [1000.0, math.nan])
@pytest.mark.parametrize("kind", ALGORITHMS)
def test_the_records_of_training_count_the_same(kind: type[MultiAgent], garbage: float, tmp_path: Path) -> None:
    env = game(garbage)
    experiment = {"directory": str(tmp_path), "experiment_name": "run", "write_interval": 12, "checkpoint_interval": 0}
    agent = team(env, kind, experiment=experiment)
    SequentialTrainer(env, agent, cfg=quiet(12)).train()
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    tracked = {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    # 12 steps: three episodes of copy 0, two of copy 1
    returns = {"a": (3 * 4 + 2 * 6) / 5, "b": 2.0, "c": (3 * 4 + 2 * 6) / 5, "d": (3 * 1 + 2 * 3) / 5}
    for uid, expected in returns.items():
        assert tracked[f"Reward / Total reward ({uid})"] == [pytest.approx(expected)]
    assert tracked["Reward / Total reward (mean)"] == [pytest.approx((3 * 11 + 2 * 17) / 5)]
    assert tracked["Reward / Total reward (max)"] == [17.0]
    assert tracked["Reward / Total reward (min)"] == [11.0]
    assert tracked["Episode / Total timesteps (mean)"] == [pytest.approx((3 * 4 + 2 * 6) / 5)]
    assert agent.recent_return == 14.0  # of those that ended in step 12: 11 and 17
    numbers = [value for values in tracked.values() for value in values]
    assert all(map(math.isfinite, numbers))
    assert all(p.isfinite().all() for roles in agent.models.values() for m in roles.values() for p in m.parameters())


# ---- turns -----------------------------------------------------------------------------------------------------------


def prefer_zero(agent: Any) -> None:
    """Make choice 0, which is always allowed, the best of all policies."""
    for roles in agent.models.values():
        with torch.no_grad():
            head: nn.Linear = roles["policy"].head
            head.weight.zero_()
            head.bias.copy_(torch.tensor([5.0, 0.0, 0.0, 0.0]))


@pytest.mark.parametrize("kind", ALGORITHMS)
@pytest.mark.parametrize(
    ("deaths", "bob"),
    [({}, 150.0), ({2: ["bob"]}, 30.0), ({1: ["bob"]}, 10.0)],
)
def test_games_in_turns_are_evaluated_and_learned(kind: type[MultiAgent], deaths: Any, bob: float) -> None:
    """Turn t of 5 earns everyone who is in the game 10 t: 10 + 20 + 30 + 40 + 50."""
    env = wrap_env([Rounds(5, deaths), Rounds(5, deaths)])
    agent = team(env, kind)
    prefer_zero(agent)
    trainer = SequentialTrainer(env, agent, cfg=quiet(20))
    results = trainer.eval(episodes=4)
    assert results["agents"] == {"ada": 150.0, "bob": bob, "cat": 150.0}
    assert results["lengths"].tolist() == [5] * 4
    before = torch.cat([learner.storage.data.flatten().clone() for learner in agent.learners])
    trainer.train()
    after = torch.cat([learner.storage.data.flatten() for learner in agent.learners])
    assert after.isfinite().all()
    assert not torch.equal(after, before)


def test_policies_in_games_of_turns_remember_their_own_moves() -> None:
    """ada, bob and cat move in turn: in five turns ada and bob move twice, and what waits does not count."""
    env = wrap_env([Rounds(5), Rounds(5)])
    agent = team(env)
    seen: list[Tensor] = []
    look = agent._look

    def spy(*arguments: Any) -> Any:
        result = look(*arguments)
        seen.append(result[1])  # the state before
        return result

    agent._look = spy
    agent.set_running_mode("eval")
    SequentialTrainer(env, agent, cfg=quiet()).eval(episodes=4)
    (names,) = (group.names for group in agent.groups)
    for t, state in enumerate(seen):
        turn = t % 5
        moved = [turn > names.index(uid) for uid in names]  # ada moves at turn 0, bob at 1, cat at 2
        assert state.abs().sum(dim=-1).gt(0).tolist() == [moved, moved], t
        if turn in (1, 2, 3, 4):
            mover = (turn - 1) % 3
            others = [i for i in range(3) if i != mover]
            assert torch.equal(state[:, others], seen[t - 1][:, others])
            assert not torch.equal(state[:, mover], seen[t - 1][:, mover])
