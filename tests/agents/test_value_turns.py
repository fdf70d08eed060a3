"""Action values in games that are played in turn: what is learned from, and who is told where that is little."""

from __future__ import annotations

import logging

import pytest

from coterie.envs import wrap_env
from tests.agents.value_runs import begun, play
from tests.envs.wrappers.test_turn_based import NAMES, Rounds


@pytest.mark.parametrize(
    ("kind", "memory", "n_step", "told"),
    [
        ("iql", "replay", 1, True),
        ("iql", "prioritized", 1, True),
        ("iql", "replay", len(NAMES), False),
        ("iql", "episode", 1, False),
        ("vdn", "replay", 1, False),  # somebody in the team acts in each step
    ],
)
def test_actions_that_cannot_be_learned_from_are_told_of(
    kind: str, memory: str, n_step: int, told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    env = wrap_env([lambda: Rounds(length=9)] * 3)
    agent = begun(env, kind, memory, rows=60, n_step=n_step, batch_size=3 if memory == "episode" else 32)
    with caplog.at_level(logging.WARNING, "coterie.agents.value_learning"):
        play(env, agent, 55, state=False)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == int(told)
    if told:
        assert messages[0].startswith("['ada', 'bob', 'cat'] learn from ")
        assert "set cfg['n_step'] to the number of players" in messages[0]
    if told and memory == "replay":  # of 9 turns in a game it is known of the last one that it leads nowhere
        assert abs(int(messages[0].split()[5]) - 100 / 9) < 6
