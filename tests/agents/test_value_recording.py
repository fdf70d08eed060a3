"""What becomes of a step on its way into the replay memory: refused as a whole, or stored with all that bears on it."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from coterie.preprocessors import RunningStandardScaler
from tests.agents.toys import Toy
from tests.agents.value_runs import begun, everything, play, same


@pytest.mark.parametrize("lacking", ["final_shared_states", "final_states", "shared_states"])
def test_of_a_step_that_is_refused_nothing_is_stored(lacking: str) -> None:
    """It may be sent again, mended."""
    env = Toy(lengths=(5, 5, 5))
    agent = begun(env, "qmix", state_preprocessor=RunningStandardScaler, learning_starts=10**6)
    refused = []

    def tell(of: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        if of == "record" and arguments[7] == 4:
            *rest, infos, timestep, timesteps = arguments
            before = everything(agent)
            told = {key: value for key, value in infos.items() if key != lacking}
            if lacking == "final_states":
                told[lacking] = {uid: torch.full_like(x, torch.nan) for uid, x in infos[lacking].items()}
            with pytest.raises((KeyError, ValueError), match=lacking):
                agent.record_transition(*rest, told, timestep, timesteps)
            after = everything(agent)
            refused.append(all(same(after[part], before[part]) for part in ("modules", "memory")))
        return arguments

    play(env, agent, 6, tell)
    assert refused == [True]
    assert len(agent._storage.memory) == 6 * env.num_envs


def test_a_memory_that_will_never_hold_a_batch_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    env = Toy(lengths=(9, 9, 9))
    agent = begun(env, "vdn", "episode", rows=30, batch_size=12)
    with caplog.at_level(logging.WARNING, "coterie.agents.off_policy"):
        play(env, agent, 28)
        assert caplog.records == []
        play(env, agent, 30)
    (message,) = (record.getMessage() for record in caplog.records)
    assert message.startswith(
        "the memory of 30 rows for each of 3 environments is full and does not hold the 12 samples"
    )


@pytest.mark.parametrize("resets", [True, False])
def test_what_is_allowed_in_last_states_counts(resets: bool) -> None:
    """Where an environment does not reset itself, the masks of the next states are those of the last ones."""
    env = Toy("a", lengths=(100,), masks=lambda age: {})
    agent = begun(env, "iql", batch_size=1, learning_starts=10**6, exploration_epsilon=0.0)
    with torch.no_grad():
        for p in agent.models["a"]["q"].parameters():
            p.zero_()
        list(agent.models["a"]["q"].parameters())[-1].copy_(torch.tensor([0.0, 100.0, 0.0, 0.0]))
        agent._targets["a"].follow(1.0)
    only_first = {"a": torch.tensor([[True, False, False, False]])}

    def tell(of: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        if of == "act":
            return (*arguments[:3], {"action_masks": only_first})
        states, actions, rewards, following, ends, _, _, timestep, timesteps = arguments
        cuts = {"a": torch.full((1, 1), timestep == 2)}
        infos: dict[str, Any] = {"action_masks": only_first}
        if resets:
            infos |= {"final_states": following, "final_action_masks": only_first}
        return (states, actions, rewards, following, ends, cuts, infos, timestep, timesteps)

    play(env, agent, 5, tell, state=False)
    drawn = agent._storage.draw(200, 1, 0)
    (stream,) = agent._streams(agent.learners[0], drawn)
    assert bool(stream.following.abs().max() < 1e-6), "the action worth 100 is never allowed"
