"""Time limits that strike one agent while the others go on: its successor is what it saw last, theirs the next row."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from coterie.agents import IPPO, MAPPO, MultiAgent
from coterie.memories import RandomMemory
from coterie.models import CategoricalPolicy, Value, build_models
from tests.agents.toys import OFF, Toy, box

NAMES = ["a", "b"]
ENVS, STEPS = 2, 3


def build(kind: type[MultiAgent]) -> Any:
    """Critics are the sum of what they see."""
    actions = spaces.Discrete(2)

    def roles() -> Any:
        value = Value(box(2), actions, hidden=())
        with torch.no_grad():
            value.net[0].weight.fill_(1.0)
        return {"policy": CategoricalPolicy(box(2), actions, hidden=(4,)), "value": value}

    cfg = {"rollouts": STEPS, "learning_epochs": 1, "mini_batches": 1, "time_limit_bootstrap": True, "experiment": OFF}
    models = {uid: roles() for uid in NAMES}
    agent = kind(NAMES, models, {uid: RandomMemory(STEPS, ENVS) for uid in NAMES}, cfg=cfg)
    agent.init()
    agent.set_running_mode("train")
    return agent


def flags(table: list[list[int]]) -> dict[str, Tensor]:
    """By environment and agent."""
    stacked = torch.tensor(table, dtype=torch.bool)
    return {uid: stacked[:, i : i + 1] for i, uid in enumerate(NAMES)}


def numbers(*by_agent: float) -> dict[str, Tensor]:
    """The same in both environments, as observations of two elements of which the second is 0."""
    return {uid: torch.tensor([[x, 0.0]] * ENVS) for uid, x in zip(NAMES, by_agent, strict=True)}


@pytest.mark.parametrize("kind", [IPPO, MAPPO])
@pytest.mark.parametrize("another_ends", [False, True])
def test_an_agent_may_be_truncated_alone(
    kind: type[MultiAgent], another_ends: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """In row 1 of environment 0 agent a is truncated and b goes on; environment 1 may end at the same moment."""
    agent = build(kind)
    successors: list[Tensor] = []
    evaluate = agent._evaluate

    def spy(*args: Any) -> Any:
        result = evaluate(*args)
        successors.append(result.successors.detach())
        return result

    agent._evaluate = spy
    nobody, rewards = flags([[0, 0], [0, 0]]), dict.fromkeys(NAMES, torch.zeros(ENVS, 1))
    with caplog.at_level(logging.WARNING):
        for t in range(STEPS):
            states, following = numbers(t, 10.0 + t), numbers(t + 1.0, 11.0 + t)
            shared, shared_next = (torch.tensor([[x, 0.0]] * ENVS) for x in (100.0 + t, 101.0 + t))
            infos: dict[str, Any] = {"shared_states": shared, "shared_next_states": shared_next}
            terminated, truncated = nobody, nobody
            if t == 1:
                truncated = flags([[1, 0], [1, 1] if another_ends else [0, 0]])
                if another_ends:  # rows of environments that did not end mean nothing
                    garbage = torch.tensor([[-999.0, 0.0], [50.0, 0.0]])
                    infos["final_states"] = {"a": garbage, "b": garbage + torch.tensor([5.0, 0.0])}
                    infos["final_shared_states"] = torch.tensor([[-999.0, 0.0], [500.0, 0.0]])
            actions, _, _ = agent.act(states, t, STEPS, {})
            if t == 2:  # a is absent in environment 0, and its numbers are garbage
                states = {**states, "a": torch.tensor([[-777.0, 0.0], [2.0, 0.0]])}
            agent.record_transition(states, actions, rewards, following, terminated, truncated, infos, t, STEPS)
            agent.post_interaction(t, STEPS)
    assert not caplog.records  # nothing was reset without final_states
    (only,) = successors  # a and b are trained together
    row = only[1, :, :, 0]
    if kind is IPPO:
        # a saw 2 last; b's next row is 12; where environment 1 ended, 50 and 55 were seen last
        assert row[0].tolist() == [2.0, 12.0]
        assert row[1].tolist() == ([50.0, 55.0] if another_ends else [2.0, 12.0])
    else:
        assert row[0].tolist() == [102.0, 102.0]
        assert row[1].tolist() == ([500.0, 500.0] if another_ends else [102.0, 102.0])


@pytest.mark.parametrize("lacking", ["shared_states", "final_shared_states", "shared_next_states"])
def test_of_a_step_that_is_refused_nothing_is_stored(lacking: str) -> None:
    """It may be sent again, mended."""
    env = Toy("ab", lengths=(STEPS, STEPS))
    models = build_models(env, "mappo", hidden=(4,))
    cfg = {"rollouts": STEPS, "time_limit_bootstrap": True, "experiment": OFF}
    agent: Any = MAPPO(
        NAMES,
        models,
        {uid: RandomMemory(STEPS, ENVS) for uid in NAMES},
        env.observation_spaces,
        env.action_spaces,
        cfg=cfg,
        shared_observation_spaces=env.shared_observation_spaces,
    )
    agent.init()
    agent.set_running_mode("train")
    states, infos = env.reset()
    shared = env.state()
    for t in range(STEPS):
        actions = agent.act(states, t, STEPS, infos)[0]
        following, *rest, infos = env.step(actions)
        shared, before = env.state(), shared
        told = {**infos, "shared_states": before, "shared_next_states": shared}
        step = (states, actions, rest[0], following, *rest[1:])
        if t == STEPS - 1:
            with pytest.raises(KeyError, match=lacking):
                agent.record_transition(*step, {k: x for k, x in told.items() if k != lacking}, t, STEPS)
            assert [len(rollout.memory) for rollout in agent._storage.values()] == [t * ENVS]
            assert len(agent._shared) == t * ENVS
        agent.record_transition(*step, told, t, STEPS)
        states = following
    assert all(len(successors.truncations) == 1 for successors in agent._successors.values())
    agent.post_interaction(STEPS - 1, STEPS)
