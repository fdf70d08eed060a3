"""Agents that were absent for a whole rollout, and rows that only fill up a chunk, change nothing."""

from __future__ import annotations

import pytest
import torch
from gymnasium import spaces

from coterie.agents import IPPO
from coterie.memories import RandomMemory
from coterie.models import GaussianPolicy, Value, build_models
from coterie.models.base import Model
from coterie.schedulers import KLAdaptiveLR

NAMES, ENVS, STEPS = ["a", "b"], 3, 6
OFF = {"write_interval": 0, "checkpoint_interval": 0}


def play(agent: IPPO, steps: int, width: int, alive: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    for t in range(steps):
        states = {uid: torch.rand(ENVS, width, generator=generator) for uid in NAMES}
        infos = {"active_masks": {"a": torch.ones(ENVS, 1).bool(), "b": torch.full((ENVS, 1), alive)}}
        actions, _, _ = agent.act(states, t, steps, infos)
        rewards = {uid: torch.rand(ENVS, 1, generator=generator) for uid in NAMES}
        no = {uid: torch.zeros(ENVS, 1, dtype=torch.bool) for uid in NAMES}
        agent.record_transition(states, actions, rewards, states, no, no, infos, t, steps)
        agent.post_interaction(t, steps)


@pytest.mark.parametrize("scheduler", [None, KLAdaptiveLR])
def test_an_agent_that_was_absent_throughout_rests(scheduler: type | None) -> None:
    torch.manual_seed(0)
    box, moves = spaces.Box(-1, 1, (4,)), spaces.Box(-1, 1, (2,))
    models = {
        uid: {"policy": GaussianPolicy(box, moves, hidden=(8,)), "value": Value(box, moves, hidden=(8,))}
        for uid in NAMES
    }
    agent = IPPO(
        NAMES,
        models,
        {uid: RandomMemory(STEPS, ENVS) for uid in NAMES},
        cfg={"rollouts": STEPS, "learning_rate_scheduler": scheduler, "experiment": OFF},
    )
    agent.init()
    agent.set_running_mode("train")
    play(agent, STEPS, 4, alive=True)  # moments of Adam that would go on moving it

    def everything(uid: str) -> list[torch.Tensor]:
        tensors = [p.detach().clone() for role in ("policy", "value") for p in models[uid][role].parameters()]
        (learner,) = agent.learners
        assert learner.optimizers is not None
        optimizer = learner.optimizers.optimizers[NAMES.index(uid)]
        state = [value.clone() for row in optimizer.state.values() for value in row.values()]
        return [*tensors, *state, torch.tensor(optimizer.param_groups[0]["lr"])]

    before = {uid: everything(uid) for uid in NAMES}
    tracked: list[str] = []
    agent.records.tracker.close()
    agent.records.tracker = type(
        "Records", (), {"enabled": True, "track": lambda self, tag, value: tracked.append(tag)}
    )()
    play(agent, STEPS, 4, alive=False)
    same = {uid: all(map(torch.equal, before[uid], everything(uid))) for uid in NAMES}
    assert same == {"a": False, "b": True}
    assert any("Loss" in tag and "(a)" in tag for tag in tracked)
    assert not any("Loss" in tag and "(b)" in tag for tag in tracked)


def test_a_team_that_was_absent_throughout_learns_nothing() -> None:
    torch.manual_seed(0)
    box, moves = spaces.Box(-1, 1, (4,)), spaces.Box(-1, 1, (2,))
    one: dict[str, Model] = {"policy": GaussianPolicy(box, moves, hidden=(8,)), "value": Value(box, moves, hidden=(8,))}
    agent = IPPO(
        NAMES,
        dict.fromkeys(NAMES, one),
        {uid: RandomMemory(STEPS, ENVS) for uid in NAMES},
        cfg={"rollouts": STEPS, "experiment": OFF},
    )
    agent.init()
    agent.set_running_mode("train")
    before = [p.detach().clone() for model in one.values() for p in model.parameters()]
    nobody = torch.zeros(ENVS, 1, dtype=torch.bool)
    for t in range(STEPS):
        states = {uid: torch.full((ENVS, 4), float("nan")) for uid in NAMES}
        infos = {"active_masks": dict.fromkeys(NAMES, nobody)}
        actions, _, _ = agent.act(states, t, STEPS, infos)
        rewards, no = {uid: torch.ones(ENVS, 1) for uid in NAMES}, dict.fromkeys(NAMES, nobody)
        agent.record_transition(states, actions, rewards, states, no, no, infos, t, STEPS)
        agent.post_interaction(t, STEPS)
    assert all(
        torch.equal(p, old) for p, old in zip((p for m in one.values() for p in m.parameters()), before, strict=True)
    )


def test_what_fills_up_the_last_chunk_has_no_gradient_however_unlikely_it_is() -> None:
    torch.manual_seed(0)
    steps, moves = 9, spaces.Box(-1, 1, (45,))
    box = spaces.Box(-1, 1, (4,))

    class Team:
        possible_agents = NAMES
        observation_spaces = shared_observation_spaces = dict.fromkeys(NAMES, box)
        action_spaces = dict.fromkeys(NAMES, moves)
        device = torch.device("cpu")

    models = build_models(Team(), "ippo", rnn="gru", rnn_size=8, sequence_length=4, squash=False, initial_log_std=-4.0)
    # the zeros that fill up have a density of about e^138: their ratio to the zero kept as the old one is infinite
    agent = IPPO(
        NAMES,
        models,
        {uid: RandomMemory(steps, ENVS) for uid in NAMES},
        cfg={"rollouts": steps, "learning_rate": 1e-2, "experiment": OFF},
    )
    agent.init()
    agent.set_running_mode("train")
    play(agent, steps, 4, alive=True)
    for roles in models.values():
        assert all(bool(p.isfinite().all()) for model in roles.values() for p in model.parameters())
