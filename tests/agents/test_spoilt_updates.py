"""A model that returns NaN: the update that it spoils is an error that names the agents, before anything is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gymnasium import spaces
from torch import nn

from coterie.agents import IPPO, IQL
from coterie.agents.checks import check_gradients
from coterie.memories import RandomMemory, ReplayMemory
from coterie.models import CategoricalPolicy, DeterministicMixin, Model, QNetwork
from coterie.trainers import SequentialTrainer
from tests.agents.toys import OFF, Toy, box

CHOICE = spaces.Discrete(4)


class Critic(DeterministicMixin, Model):
    def __init__(self, spoilt: bool) -> None:
        Model.__init__(self, box(3), CHOICE)
        DeterministicMixin.__init__(self)
        self.net, self.spoilt = nn.Linear(3, 1), spoilt

    def compute(self, inputs: Any, role: str = "") -> tuple[Any, ...]:
        value = self.net(inputs["states"])
        return (value - value) / (value - value) if self.spoilt else value, {}


class Policy(CategoricalPolicy):
    def __init__(self, spoilt: bool) -> None:
        super().__init__(box(3), CHOICE, hidden=(4,))
        self.spoilt = spoilt

    def compute(self, inputs: Any, role: str = "") -> tuple[Any, ...]:
        logits = super().compute(inputs, role)[0]
        return (logits - logits) / (logits - logits) if self.spoilt else logits, {}


def train(env: Toy, agent: Any, timesteps: int = 8) -> None:
    cfg = {"timesteps": timesteps, "headless": True, "disable_progressbar": True, "close_environment_at_exit": False}
    SequentialTrainer(env, agent, cfg=cfg).train()


@pytest.mark.parametrize("role", ["policy", "value"])
@pytest.mark.parametrize("grad_norm_clip", [0.0, 0.5])
def test_an_update_that_spoils_parameters_names_the_agents(role: str, grad_norm_clip: float, tmp_path: Path) -> None:
    env = Toy("abc")
    models: dict[str, dict[str, Model]] = {
        uid: {"policy": Policy(role == "policy" and uid == "b"), "value": Critic(role == "value" and uid == "b")}
        for uid in "abc"
    }
    models["c"] = models["b"]
    memories = {uid: RandomMemory(4, env.num_envs) for uid in "abc"}
    experiment = {"directory": str(tmp_path), "write_interval": 0, "checkpoint_interval": 4}
    cfg = {
        "rollouts": 4, "learning_epochs": 2, "mini_batches": 1, "experiment": experiment, "grad_norm_clip": grad_norm_clip,
    }  # fmt: skip
    agent = IPPO(list("abc"), models, memories, cfg=cfg)
    with pytest.raises(
        FloatingPointError, match=r"update of \['b', 'c'\]: .*2 of 2 steps.*compute.*learning_rate.*checkpoint"
    ):
        train(env, agent)
    assert not list(tmp_path.rglob("*.pt"))
    assert all(p.isfinite().all() for model in models["a"].values() for p in model.parameters())


def test_an_update_of_action_values_is_looked_at_too() -> None:
    env = Toy("ab")
    models = {uid: {"q": QNetwork(box(3), CHOICE, hidden=(4,))} for uid in "ab"}
    memories = {uid: ReplayMemory(32, env.num_envs) for uid in "ab"}
    cfg = {"batch_size": 4, "learning_starts": 0, "update_interval": 1, "experiment": OFF}
    agent = IQL(["a", "b"], models, memories, cfg=cfg)
    with torch.no_grad():
        next(models["b"]["q"].parameters()).fill_(torch.nan)
    others = [p.detach().clone() for p in models["a"]["q"].parameters()]
    with pytest.raises(FloatingPointError, match=r"the loss of \['b'\] is nan: .*nothing was learned"):
        train(env, agent, 16)
    assert all(torch.equal(p, q) for p, q in zip(models["a"]["q"].parameters(), others, strict=True))


def test_gradients_of_action_values_are_looked_at_too() -> None:
    """A root of nothing is a finite number, and has no slope."""

    class Rooted(QNetwork):
        def compute(self, inputs: Any, role: str = "") -> tuple[Any, ...]:
            q = super().compute(inputs, role)[0]
            return q + (q - q).sqrt(), {}

    env = Toy("ab")
    models: Any = {"a": {"q": QNetwork(box(3), CHOICE, hidden=(4,))}, "b": {"q": Rooted(box(3), CHOICE, hidden=(4,))}}
    memories = {uid: ReplayMemory(32, env.num_envs) for uid in "ab"}
    cfg = {"batch_size": 4, "learning_starts": 0, "update_interval": 1, "experiment": OFF}
    with pytest.raises(FloatingPointError, match=r"update of \['b'\].*parameters are spoilt"):
        train(env, IQL(["a", "b"], models, memories, cfg=cfg), 16)


def test_infinity_counts_and_large_numbers_do_not() -> None:
    sets = [["a", "b"], ["c"]]
    check_gradients([torch.full((2, 1), 3e38), torch.full((2, 1), 3e38)], sets)
    check_gradients([torch.zeros(2, 2)], sets)
    with pytest.raises(FloatingPointError, match=r"\['c'\].*in 1 of 3 steps"):
        check_gradients([torch.ones(2, 2), torch.tensor([[1.0, 1.0], [1.0, torch.inf]]), torch.ones(2, 2)], sets)
