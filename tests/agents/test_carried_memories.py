"""What recurrent critics remember from one rollout to the next, by hand, also of rollouts that are not learned from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from coterie.agents import IPPO, MAPPO, MultiAgent
from coterie.memories import RandomMemory
from coterie.models import CategoricalPolicy, DeterministicMixin, Model
from tests.agents.toys import OFF, box

NAMES = ["a", "b"]
CHOICE = spaces.Discrete(2)
STEPS = 2  # of a rollout
NUMBERS = [
    1.0,
    2.0,
    4.0,
    8.0,
    16.0,
]  # what is seen, step by step; agent b sees ten times as much, both have it as their state


class Adder(DeterministicMixin, Model):
    """The value of a state is all that was seen so far."""

    def __init__(self) -> None:
        Model.__init__(self, 1, CHOICE)
        DeterministicMixin.__init__(self)
        self.factor = nn.Parameter(torch.ones(()))

    def get_specification(self) -> dict[str, Any]:
        return {"rnn": {"sizes": [(1, 1)], "sequence_length": 2}}

    def compute(self, inputs: Mapping[str, Any], role: str = "") -> tuple[Any, ...]:
        total = inputs["rnn"][0] + inputs["states"].unsqueeze(0)
        return self.factor * total[0], {"rnn": [total]}


def build(kind: type[MultiAgent], starts: Any) -> Any:
    shared = Adder()
    models = {
        uid: {
            "policy": CategoricalPolicy(box(1), CHOICE, hidden=(4,)),
            "value": shared if kind is MAPPO else Adder(),
        }
        for uid in NAMES
    }
    cfg = {
        "rollouts": STEPS, "learning_epochs": 1, "mini_batches": 1, "learning_rate": 1e-12, "learning_starts": starts,
        "time_limit_bootstrap": True, "discount_factor": 1.0, "lambda": 0.0, "advantage_normalization": "off",
        "experiment": OFF,
    }  # fmt: skip
    agent = kind(
        NAMES,
        models,
        {uid: RandomMemory(STEPS, 1) for uid in NAMES},
        cfg=cfg,
        shared_observation_spaces=dict.fromkeys(NAMES, box(1)),
    )
    agent.init()
    agent.set_running_mode("train")
    return agent


def play(agent: Any, steps: int, ends: Mapping[tuple[int, str], str] | None = None) -> None:
    """Play from the first number on; ``ends`` has by step and agent how its episode ends."""
    for t in range(steps):
        now, following = ({"a": torch.tensor([[x]]), "b": torch.tensor([[10 * x]])} for x in NUMBERS[t : t + 2])
        infos = {"shared_states": now["a"], "shared_next_states": following["a"]}
        infos |= {
            "final_states": dict.fromkeys(NAMES, torch.tensor([[100.0]])),
            "final_shared_states": torch.full((1, 1), 100.0),
        }
        actions, _, _ = agent.act(now, t, 100, {})
        flags = (
            {uid: torch.tensor([[(ends or {}).get((t, uid)) == kind]]) for uid in NAMES}
            for kind in ("terminated", "truncated")
        )
        agent.record_transition(now, actions, dict.fromkeys(NAMES, torch.zeros(1, 1)), following, *flags, infos, t, 100)
        agent.post_interaction(t, 100)


def stored(agent: Any, name: str, uid: str) -> list[float]:
    tensor: Tensor = agent.memories[uid].get_tensor_by_name(name, keepdim=True)
    return tensor.flatten().tolist()


@pytest.mark.parametrize("starts", [0, STEPS, {"a": STEPS, "b": 0}], ids=["learns", "looks on", "one looks on"])
@pytest.mark.parametrize(
    ("ends", "values", "of_b"),
    [
        # 1 + 2 + 4 and 8 more; b sees ten times as much
        ({}, [7.0, 15.0], [70.0, 150.0]),
        # everything ends after 1 and 2, or after 1
        ({(1, "a"): "terminated", (1, "b"): "terminated"}, [4.0, 12.0], [40.0, 120.0]),
        ({(1, "a"): "truncated", (1, "b"): "truncated"}, [4.0, 12.0], [40.0, 120.0]),
        ({(0, "a"): "truncated", (0, "b"): "terminated"}, [6.0, 14.0], [60.0, 140.0]),
        # only a's game ends
        ({(1, "a"): "terminated"}, [4.0, 12.0], [70.0, 150.0]),
    ],
)
def test_critics_go_on_from_the_rollout_before(ends: Any, values: list[float], of_b: list[float], starts: Any) -> None:
    agent = build(IPPO, starts)
    play(agent, 2 * STEPS, ends)
    assert stored(agent, "values", "a") == values
    assert stored(agent, "values", "b") == of_b
    # rewards are 0, discount 1, lambda 0: what is seen next
    assert stored(agent, "advantages", "a") == [8.0, 16.0]


@pytest.mark.parametrize("starts", [0, STEPS], ids=["learns", "looks on"])
@pytest.mark.parametrize(
    ("ends", "values"),
    [
        ({}, [7.0, 15.0]),
        ({(1, "a"): "terminated", (1, "b"): "truncated"}, [4.0, 12.0]),
        ({(1, "a"): "terminated"}, [7.0, 15.0]),  # the state's only memory is the team's
    ],
)
def test_a_critic_of_the_state_goes_on_too(ends: Any, values: list[float], starts: Any) -> None:
    agent = build(MAPPO, starts)
    play(agent, 2 * STEPS, ends)
    for uid in NAMES:
        assert stored(agent, "values", uid) == values


def test_rollouts_that_are_looked_on_leave_everything_else_alone() -> None:
    agent = build(IPPO, 3 * STEPS)
    before = [p.clone() for roles in agent.models.values() for model in roles.values() for p in model.parameters()]
    play(agent, 2 * STEPS)
    after = [p for roles in agent.models.values() for model in roles.values() for p in model.parameters()]
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))
    for name in ("values", "returns", "advantages"):
        assert all(math.isnan(x) for x in stored(agent, name, "a")), "never written"


@pytest.mark.parametrize("starts", [0, STEPS])
@pytest.mark.parametrize("steps", [STEPS, STEPS + 1])
def test_nothing_is_remembered_of_before_init(steps: int, starts: int) -> None:
    """Whether the rollout that came before was complete or is discarded."""
    agent = build(IPPO, starts)
    play(agent, steps)
    agent.init()
    agent.set_running_mode("train")
    play(agent, 2 * STEPS)
    assert stored(agent, "values", "a") == [7.0, 15.0]
