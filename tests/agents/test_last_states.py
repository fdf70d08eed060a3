"""Who is seen in the last states of agents that a time limit struck, by hand: the values of seven environments at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from unittest.mock import ANY

import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from coterie.agents import IPPO, MAPPO
from coterie.memories import RandomMemory
from coterie.models import CategoricalPolicy, DeterministicMixin, Model
from tests.agents.toys import OFF, box

NAMES = ["a", "b", "c"]
CHOICE = spaces.Discrete(2)
STATE = 5.0

# 0  the time limit strikes all
# 1  it strikes b and c, and a dies in that step
# 2  it strikes b and c, and a has died before
# 3  it strikes b alone, and a dies in that step
# 4  it strikes all, while b waits
# 5  it strikes b alone, and a arrives in that step
# 6  it strikes nobody, and a dies
ENVS = 7
TERMINATED = {"a": [0, 1, 1, 1, 0, 0, 1], "b": [0] * 7, "c": [0] * 7}
TRUNCATED = {"a": [1, 0, 0, 0, 1, 0, 0], "b": [1, 1, 1, 1, 1, 1, 0], "c": [1, 1, 1, 0, 1, 0, 0]}
ACTIVE = {"a": [1, 1, 0, 1, 1, 0, 1], "b": [1, 1, 1, 1, 0, 1, 1], "c": [1] * 7}
WAITING = {"a": [0] * 7, "b": [0, 0, 0, 0, 1, 0, 0], "c": [0] * 7}
ACTIVE_NEXT = {"a": [1, 1, 1, 0, 1, 1, 0], "b": [1, 1, 1, 0, 1, 0, 1], "c": [1] * 7}
SEEN_FIRST = {"a": [0.0] * 7, "b": [0.0] * 7, "c": [0.0] * 7}
SEEN_LAST = {"a": [1.0] * 7, "b": [10.0] * 7, "c": [100.0] * 7}
SEEN_NEXT = {"a": [2.0] * 7, "b": [20.0] * 7, "c": [200.0] * 7}

# what b sees after the step, by itself and of all: the next row where it goes on, elsewhere its last state. It waits in 4
OF_B = {"own": [10, 10, 10, 20, None, 20, 20], "all": [111, 110, 110, 220, None, 222, 220]}
NUMBER_OF_B = [3, 2, 2, 2, None, 3, 2]
# c goes on in 3, 5 and 6
OF_C = {"own": [100, 100, 100, 200, 100, 200, 200], "all": [111, 110, 110, 200, 111, 202, 220]}
NUMBER_OF_C = [3, 2, 2, 1, 3, 2, 2]


class Sum(DeterministicMixin, Model):
    """The value is the sum of what is seen."""

    def __init__(self, size: int) -> None:
        Model.__init__(self, size, CHOICE)
        DeterministicMixin.__init__(self)
        self.factor = nn.Parameter(torch.ones(()))

    def compute(self, inputs: Mapping[str, Any], role: str = "") -> tuple[Any, ...]:
        return self.factor * inputs["states"].sum(dim=-1, keepdim=True), {}


class Headcount(Sum):
    """For all agents the same: that sum, and 1000 for everyone who is there."""

    values_per_agent = True

    def compute(self, inputs: Mapping[str, Any], role: str = "") -> tuple[Any, ...]:
        states, present = inputs["states"], inputs["present"]
        number = torch.full_like(states[:, :1], len(NAMES)) if present is None else present.sum(dim=1, keepdim=True)
        return (super().compute(inputs)[0] + 1000.0 * number).expand(-1, len(NAMES)), {}


def stack(table: Mapping[str, list[Any]], kind: torch.dtype = torch.bool) -> dict[str, Tensor]:
    return {uid: torch.tensor(column, dtype=kind).unsqueeze(-1) for uid, column in table.items()}


def successors(kind: str, masked: bool = True) -> dict[str, list[float]]:
    """V of what followed on the first of two steps, by agent and environment: rewards are 0, discount 1, lambda 0."""
    critic = Headcount(3) if kind == "team" else Sum({"own": 1, "agent": 2, "observations": 3, "both": 4}[kind])
    models = {uid: {"policy": CategoricalPolicy(box(1), CHOICE, hidden=(4,)), "value": critic} for uid in NAMES}
    cfg: dict[str, Any] = {
        "rollouts": 2, "learning_epochs": 1, "mini_batches": 1, "time_limit_bootstrap": True, "discount_factor": 1.0,
        "lambda": 0.0, "advantage_normalization": "off", "experiment": OFF,
    }  # fmt: skip
    if kind != "own":
        cfg["critic_input"] = "observations" if kind == "team" else kind
    agent = (IPPO if kind == "own" else MAPPO)(
        NAMES,
        models,
        {uid: RandomMemory(2, ENVS) for uid in NAMES},
        cfg=cfg,
        observation_spaces=dict.fromkeys(NAMES, box(1)),
        action_spaces=dict.fromkeys(NAMES, CHOICE),
        shared_observation_spaces=dict.fromkeys(NAMES, box(1)),
    )
    agent.init()
    agent.set_running_mode("train")
    nothing, never = stack(dict.fromkeys(NAMES, [0] * ENVS), torch.float32), stack(dict.fromkeys(NAMES, [0] * ENVS))
    shared = torch.full((ENVS, 1), STATE)
    before = {"active_masks": stack(ACTIVE), "waiting_masks": stack(WAITING)} if masked else {}
    after: dict[str, Any] = {"shared_states": shared, "shared_next_states": shared}
    if masked:
        after["active_masks"] = stack(ACTIVE_NEXT)
    first, last, following = (stack(table, torch.float32) for table in (SEEN_FIRST, SEEN_LAST, SEEN_NEXT))
    final = {"final_states": last, "final_shared_states": shared}
    ends = stack(TERMINATED), stack(TRUNCATED)
    actions, _, _ = agent.act(first, 0, 2, before)
    agent.record_transition(first, actions, nothing, following, *ends, {**after, **final}, 0, 2)
    agent.post_interaction(0, 2)
    actions, _, _ = agent.act(following, 1, 2)
    agent.record_transition(following, actions, nothing, following, never, never, after, 1, 2)
    agent.post_interaction(1, 2)
    found = {}
    for uid in NAMES:
        assert agent.memories is not None
        stored = {
            name: agent.memories[uid].get_tensor_by_name(name, keepdim=True)[0, :, 0]
            for name in ("advantages", "values")
        }
        found[uid] = (stored["advantages"] + stored["values"]).tolist()
    return found


def plus(column: list[Any], added: list[Any]) -> list[Any]:
    return [None if x is None else x + y for x, y in zip(column, added, strict=True)]


@pytest.mark.parametrize("kind", ["own", "observations", "both", "agent", "team"])
def test_who_is_seen_in_the_last_states(kind: str) -> None:
    found = successors(kind)
    for uid, table, number in (("b", OF_B, NUMBER_OF_B), ("c", OF_C, NUMBER_OF_C)):
        seen = table["own" if kind in ("own", "agent") else "all"]
        if kind in ("agent", "both"):
            seen = plus(seen, [STATE] * ENVS)
        if kind == "team":
            seen = plus(seen, [None if n is None else 1000 * n for n in number])
        assert found[uid] == [ANY if x is None else x for x in seen], uid


def test_who_dies_in_the_last_step_is_not_seen_without_masks_either() -> None:
    """Nobody is said to be absent, so in environments 2 and 4 all are there until then, and afterwards everywhere."""
    found = successors("team", masked=False)
    assert found["b"] == [3111, 2110, 2110, 3222, 3111, 3222, 3222]
    assert found["c"] == [3111, 2110, 2110, 3222, 3111, 3222, 3222]
