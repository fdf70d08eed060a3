"""Models that return or take another number of numbers than they should: the error names the agent and the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from coterie.agents import IPPO, MAPPO
from coterie.memories import RandomMemory
from coterie.models import (
    BernoulliMixin,
    CategoricalMixin,
    CategoricalPolicy,
    DeterministicMixin,
    GaussianMixin,
    Model,
    MultiCategoricalMixin,
    TanhGaussianMixin,
    Value,
)
from coterie.trainers import SequentialTrainer
from tests.agents.toys import OFF, Toy, box

CHOICE, BUTTONS, SWITCHES = spaces.Discrete(5), spaces.Box(-1.0, 1.0, (3,)), spaces.MultiBinary(3)
LEVERS = spaces.MultiDiscrete([2, 3])


class Logits(CategoricalMixin, Model):
    def __init__(self, outputs: int, inputs: int = 3, space: Any = CHOICE) -> None:
        Model.__init__(self, box(3), space)
        CategoricalMixin.__init__(self)
        self.net = nn.Sequential(nn.Linear(inputs, 4), nn.Tanh(), nn.Linear(4, outputs))

    def compute(self, inputs: Any, role: str = "") -> tuple[Any, ...]:
        return self.net(inputs["states"]), {}


class Probabilities(Logits):
    def __init__(self, outputs: int) -> None:
        super().__init__(outputs)
        CategoricalMixin.__init__(self, unnormalized_log_prob=False)

    def compute(self, inputs: Any, role: str = "") -> tuple[Any, ...]:
        return super().compute(inputs)[0].softmax(dim=-1), {}


class Levers(MultiCategoricalMixin, Logits):
    def __init__(self, outputs: int) -> None:
        Logits.__init__(self, outputs, space=LEVERS)
        MultiCategoricalMixin.__init__(self)


class Switches(BernoulliMixin, Model):
    def __init__(self, outputs: int) -> None:
        Model.__init__(self, box(3), SWITCHES)
        BernoulliMixin.__init__(self)
        self.net = nn.Linear(3, outputs)

    def compute(self, inputs: Any, role: str = "") -> tuple[Any, ...]:
        return self.net(inputs["states"]), {}


class Means(GaussianMixin, Model):
    def __init__(self, outputs: int, spreads: int = 3) -> None:
        Model.__init__(self, box(3), BUTTONS)
        self.mix()
        self.net = nn.Linear(3, outputs)
        self.log_std = nn.Parameter(torch.zeros(spreads))

    def mix(self) -> None:
        GaussianMixin.__init__(self)

    def compute(self, inputs: Any, role: str = "") -> tuple[Any, ...]:
        return self.net(inputs["states"]), self.log_std, {}


class Squashed(TanhGaussianMixin, Means):
    def __init__(self, outputs: int) -> None:
        Means.__init__(self, outputs)

    def mix(self) -> None:
        TanhGaussianMixin.__init__(self)


def team(right: Callable[[], Model], odd: Model, critic: Model | None = None) -> tuple[Toy, MAPPO]:
    """Agents a and b with right policies, and c with another one."""
    policies = {"a": right(), "b": right(), "c": odd}
    env = Toy("abc", actions=odd.action_space)  # type: ignore[arg-type]
    models = {uid: {"policy": policy, "value": Value(box(4), CHOICE, hidden=(4,))} for uid, policy in policies.items()}
    if critic is not None:
        models["b"]["value"] = critic
    memories = {uid: RandomMemory(4, env.num_envs) for uid in "abc"}
    cfg = {"rollouts": 4, "learning_epochs": 1, "mini_batches": 1, "experiment": OFF}
    return env, MAPPO(list("abc"), models, memories, cfg=cfg, shared_observation_spaces=env.shared_observation_spaces)


def play(env: Toy, agent: Any, timesteps: int = 4) -> None:
    cfg = {"timesteps": timesteps, "headless": True, "disable_progressbar": True, "close_environment_at_exit": False}
    SequentialTrainer(env, agent, cfg=cfg).train()


@pytest.mark.parametrize(
    ("kind", "outputs", "message"),
    [
        *(
            (Logits, n, rf"Logits.compute returned logits \[1, {n}\].*each of the 5 actions of Discrete\(5\)")
            for n in (1, 4, 6)
        ),
        (Probabilities, 4, r"Probabilities.compute returned probabilities \[1, 4\].*5 actions"),
        (Levers, 6, r"Levers.compute returned logits \[1, 6\].*5 actions of MultiDiscrete"),
        (Switches, 1, r"Switches.compute returned logits \[1, 1\].*3 actions of MultiBinary"),
        (Means, 1, r"Means.compute returned means \[1, 1\].*3 actions of Box"),
        (Squashed, 1, r"Squashed.compute returned means \[1, 1\].*3 actions of Box"),
    ],
)
@pytest.mark.parametrize("alone", [True, False])
def test_a_policy_with_a_wrong_number_of_outputs_is_named(kind: Any, outputs: int, message: str, alone: bool) -> None:
    right = {Logits: 5, Probabilities: 5, Levers: 5}.get(kind, 3)
    env, agent = team(lambda: kind(outputs if alone else right), kind(outputs))
    culprit = "a" if alone else "c"
    with pytest.raises(ValueError, match=rf"models\['{culprit}'\]\['policy'\]: {message}"):
        play(env, agent)
    play(*team(lambda: kind(right), kind(right)))


def test_a_wrong_number_of_spreads_is_named_and_one_for_all_is_fine() -> None:
    with pytest.raises(ValueError, match=r"models\['a'\]\['policy'\]: Means.compute returned log_std \[2\].*3 actions"):
        play(*team(lambda: Means(3, 2), Means(3, 2)))
    play(*team(lambda: Means(3, 1), Means(3, 1)))


def test_a_team_that_only_acts_is_looked_at_too() -> None:
    env = Toy("ab", actions=CHOICE)
    agent = IPPO(["a", "b"], {uid: {"policy": Logits(4)} for uid in "ab"}, cfg={"experiment": OFF})
    with pytest.raises(ValueError, match=r"models\['a'\]\['policy'\].*logits \[1, 4\]"):
        agent.act(env.reset()[0], 0, 1)


class Halves(CategoricalMixin, Model):
    """A mixin of one's own: two numbers for each action."""

    def __init__(self) -> None:
        Model.__init__(self, box(3), CHOICE)
        CategoricalMixin.__init__(self)
        self.net = nn.Linear(3, 10)

    def compute(self, inputs: Any, role: str = "") -> tuple[Any, ...]:
        return self.net(inputs["states"]), {}

    def make_distribution(self, tensors: Any, action_masks: Tensor | None = None) -> Any:
        first, second = tensors[0].chunk(2, dim=-1)
        return super().make_distribution([first + second], action_masks)


def test_who_makes_a_distribution_of_something_else_may() -> None:
    play(*team(Halves, Halves()))


# ---- inputs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alone", [True, False])
def test_a_policy_for_other_observations_is_named_with_both_widths(alone: bool) -> None:
    env, agent = team(lambda: Logits(5, 7 if alone else 3), Logits(5, 7))
    culprit = "a" if alone else "c"
    with pytest.raises(
        ValueError,
        match=rf"models\['{culprit}'\]\['policy'\]: layer net.0 of Logits .*in_features=7.* was given 3 numbers.*\[B, 3\]",
    ):
        play(env, agent)


def test_one_policy_for_all_is_found_too() -> None:
    policy = Logits(5, 7)
    env = Toy("ab", actions=CHOICE)
    agent = IPPO(["a", "b"], {uid: {"policy": policy} for uid in "ab"}, cfg={"experiment": OFF})
    with pytest.raises(ValueError, match=r"models\['a'\]\['policy'\]: layer net.0 of Logits"):
        agent.act(env.reset()[0], 0, 1)


class Critic(DeterministicMixin, Model):
    def __init__(self, inputs: int) -> None:
        Model.__init__(self, box(4), CHOICE)
        DeterministicMixin.__init__(self)
        self.net = nn.Sequential(nn.Linear(inputs, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))

    def compute(self, inputs: Any, role: str = "") -> tuple[Any, ...]:
        return self.net(inputs["states"]), {}


def test_a_critic_of_other_states_is_named() -> None:
    with pytest.raises(ValueError, match=r"models\['b'\]\['value'\]: layer net.0 of Critic .*in_features=9.* given 4"):
        play(*team(lambda: Logits(5), Logits(5), Critic(9)))


class Reshaping(Logits):
    def compute(self, inputs: Any, role: str = "") -> tuple[Any, ...]:
        return inputs["states"].view(-1, 2, 2).flatten(1), {}


def test_other_trouble_is_named_with_the_shape_that_caused_it() -> None:
    with pytest.raises(ValueError, match=r"models\['c'\].*Reshaping.compute fails for .*\[1, 3\]: shape"):
        play(*team(lambda: Logits(5), Reshaping(5)))


def test_what_is_not_a_models_fault_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    _, agent = team(lambda: Logits(5), Logits(5))
    (batch,) = [group.policy for group in agent.groups]
    assert batch is not None
    model = batch.models[0]

    def fail(*args: Any) -> Any:
        raise RuntimeError("out of something")

    monkeypatch.setattr(type(batch), "__call__", fail)
    agent.set_running_mode("eval")
    model.train()
    with pytest.raises(RuntimeError, match="out of something"):
        agent.networks[agent.groups[0].names].distribution(torch.zeros(2, 3, 3))
    assert model.net.training  # looking at it changed nothing
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_masks_of_another_form_are_no_fault_of_a_model() -> None:
    policies = {uid: CategoricalPolicy(box(3), CHOICE, hidden=(4,)) for uid in "ab"}
    agent = IPPO(["a", "b"], {uid: {"policy": policy} for uid, policy in policies.items()}, cfg={"experiment": OFF})
    networks = agent.networks[agent.groups[0].names]
    with pytest.raises(ValueError, match="action_masks"):
        networks.distribution(torch.zeros(2, 2, 3), torch.ones(2, 2, 4, dtype=torch.bool))
