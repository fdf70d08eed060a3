from __future__ import annotations

import logging
import platform

import pytest
import torch
from gymnasium import spaces

from coterie.agents import IPPO, MAPPO, precision
from coterie.agents.precision import has_bfloat16_units, mixed_precision_allowed
from coterie.memories import RandomMemory
from coterie.models import GaussianPolicy, Value

CPU = torch.device("cpu")
OFF = {"write_interval": 0, "checkpoint_interval": 0}
BOX, ACTIONS = spaces.Box(-1, 1, (6,)), spaces.Box(-1, 1, (2,))
ENVS, ROLLOUTS = 40, 8


@pytest.mark.parametrize(("bf16", "amx", "expected"), [(True, False, True), (False, True, True), (False, False, False)])
def test_the_processor_is_asked(bf16: bool, amx: bool, expected: bool, monkeypatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    assert has_bfloat16_units(CPU) is expected


def test_without_units_the_networks_stay_in_float32_and_the_log_says_why(monkeypatch, caplog) -> None:
    monkeypatch.setattr(precision, "has_bfloat16_units", lambda device: False)
    with caplog.at_level(logging.WARNING):
        assert not mixed_precision_allowed(False, CPU)
        assert not caplog.records
        assert not mixed_precision_allowed(True, CPU)
    assert "no bfloat16 units" in caplog.text
    assert "float32" in caplog.text


def team(algorithm: type[MAPPO] | type[IPPO], shared: bool, mixed: bool):
    torch.manual_seed(0)
    names = ["a", "b"]
    width = 12 if algorithm is MAPPO else 6

    def models():
        policy = GaussianPolicy(BOX, ACTIONS, hidden=(64, 64))
        return {"policy": policy, "value": Value(spaces.Box(-1, 1, (width,)), ACTIONS, hidden=(64, 64))}

    one = models()
    agent = algorithm(
        names,
        {uid: one if shared else models() for uid in names},
        {uid: RandomMemory(ROLLOUTS, ENVS) for uid in names},
        cfg={"rollouts": ROLLOUTS, "mixed_precision": mixed, "learning_epochs": 2, "experiment": OFF},
    )
    agent.init()
    agent.set_running_mode("train")
    generator = torch.Generator().manual_seed(1)
    for t in range(ROLLOUTS):
        states = {uid: torch.rand(ENVS, 6, generator=generator) for uid in names}
        actions, _, _ = agent.act(states, t, ROLLOUTS)
        rewards = {uid: torch.rand(ENVS, 1, generator=generator) for uid in names}
        no = {uid: torch.zeros(ENVS, 1, dtype=torch.bool) for uid in names}
        joined = torch.cat(list(states.values()), dim=1)
        shared_states = {"shared_states": joined, "shared_next_states": joined}
        agent.record_transition(states, actions, rewards, states, no, no, shared_states, t, ROLLOUTS)
        if t == ROLLOUTS - 1:
            break
        agent.post_interaction(t, ROLLOUTS)
    return agent


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("algorithm", [MAPPO, IPPO])
def test_an_update_in_mixed_precision_is_that_of_float32_nearly(algorithm, shared: bool, monkeypatch) -> None:
    monkeypatch.setattr(precision, "has_bfloat16_units", lambda device: True)
    plain, mixed = team(algorithm, shared, False), team(algorithm, shared, True)
    before = {uid: roles["policy"].state_dict()["net.0.weight"].clone() for uid, roles in plain.models.items()}
    for agent in (plain, mixed):
        torch.manual_seed(2)
        agent.post_interaction(ROLLOUTS - 1, ROLLOUTS)
    for uid in plain.possible_agents:
        for role in ("policy", "value"):
            mine, theirs = (agent.models[uid][role].state_dict() for agent in (plain, mixed))
            assert all(tensor.dtype == torch.float32 for tensor in theirs.values())
            if role == "policy":
                moved = (mine["net.0.weight"] - before[uid]).flatten()
                moved_too = (theirs["net.0.weight"] - before[uid]).flatten()
                assert not torch.equal(moved, moved_too)  # the switch does something
                assert torch.nn.functional.cosine_similarity(moved, moved_too, dim=0) > 0.8
        for name in ("log_prob", "values", "returns", "advantages"):
            assert mixed.memories[uid].get_tensor_by_name(name).dtype == torch.float32
