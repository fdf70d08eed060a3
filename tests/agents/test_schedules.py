"""Numbers that follow the time step: when schedules are asked, and what their numbers reach."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from coterie import functional
from coterie.agents import IPPO, MAPPO, MultiAgent
from coterie.agents.config import ConfigError
from coterie.memories import RandomMemory
from coterie.models import (
    CategoricalPolicy,
    GaussianMixin,
    GaussianPolicy,
    Model,
    TanhGaussianPolicy,
    Value,
    build_models,
)
from coterie.schedulers import ExponentialSchedule, KLAdaptiveLR, LinearSchedule
from coterie.trainers import SequentialTrainer
from tests.agents.toys import OFF, Toy, box

FREE = box(2)
BOUNDED = spaces.Box(-1.0, 1.0, (2,))
ROLLOUTS = 4


def team(env: Toy, kind: type[MultiAgent] = IPPO, models: Any = None, shared: bool = True, **cfg: Any) -> Any:
    settings = {"rollouts": ROLLOUTS, "learning_epochs": 2, "mini_batches": 2, "experiment": OFF, **cfg}
    if models is None:
        models = build_models(env, "mappo" if kind is MAPPO else "ippo", shared=shared, hidden=(8,))
    learners = [uid for uid in env.possible_agents if "value" in models[uid]]
    memories = {uid: RandomMemory(ROLLOUTS, env.num_envs) for uid in learners}
    return kind(env.possible_agents, models, memories, env.observation_spaces, env.action_spaces, cfg=settings)


def train(env: Toy, agent: Any, timesteps: int, **cfg: Any) -> None:
    base = {"timesteps": timesteps, "headless": True, "disable_progressbar": True, "close_environment_at_exit": False}
    SequentialTrainer(env, agent, cfg={**base, **cfg}, eval_env=Toy(actions=env.action_spaces["a"])).train()


def rates_at_updates(agent: Any) -> list[list[list[float]]]:
    """For each update to come, the rates of each set's parts at its first step."""
    rates: list[list[list[float]]] = []
    (learner,) = agent.learners
    begin = learner.optimizers.begin_update

    def spy(*args: Any) -> None:
        begin(*args)
        rates.append([[float(g["lr"]) for g in adam.param_groups] for adam in learner.optimizers.optimizers])

    learner.optimizers.begin_update = spy
    return rates


class Calls:
    """A schedule of ones that notes when it was asked."""

    def __init__(self, value: float = 1.0) -> None:
        self.value = value
        self.at: list[tuple[int, int]] = []

    def __call__(self, timestep: int, timesteps: int) -> float:
        self.at.append((timestep, timesteps))
        return self.value


# ---- learning rate ---------------------------------------------------------------------------------------------------


def test_a_scheduled_learning_rate_is_that_of_the_update() -> None:
    env = Toy()
    # 8 of 16 steps from 1e-3 to 0; updates after the steps 3, 7, 11 and 15: 1e-3 (1 - 3 / 8), 1e-3 (1 - 7 / 8), 0, 0
    agent = team(env, learning_rate=LinearSchedule(1e-3, 0.0, fraction=0.5))
    rates = rates_at_updates(agent)
    states: list[Tensor] = []
    update = agent._update

    def spy(*args: Any) -> None:
        update(*args)
        states.append(agent.learners[0].storage.data.clone())

    agent._update = spy
    train(env, agent, 16)
    assert [rate for ((rate,),) in rates] == pytest.approx([6.25e-4, 1.25e-4, 0.0, 0.0])
    assert not torch.equal(states[0], states[1])
    assert torch.equal(states[1], states[2])
    assert torch.equal(states[2], states[3])


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        ((LinearSchedule(1e-2, 0.0), 1e-3), [[6.25e-3, 1e-3], [1.25e-3, 1e-3]]),
        ([1e-3, ExponentialSchedule(1e-2, 1e-4)], [[1e-3, 10 ** (-2 - 2 * 3 / 8)], [1e-3, 10 ** (-2 - 2 * 7 / 8)]]),
        ((2e-3, 1e-3), [[2e-3, 1e-3]] * 2),
    ],
)
def test_policy_and_value_may_have_schedules_of_their_own(rate: Any, expected: list[list[float]]) -> None:
    env = Toy()
    agent = team(env, learning_rate=rate)
    rates = rates_at_updates(agent)
    train(env, agent, 8)
    assert [parts for (parts,) in rates] == [pytest.approx(parts) for parts in expected]


def test_agents_with_models_of_their_own_may_have_schedules_of_their_own() -> None:
    env = Toy()
    agent = team(env, shared=False, learning_rate={"a": LinearSchedule(1e-2, 0.0), "b": 1e-3})
    rates = rates_at_updates(agent)
    train(env, agent, 8)
    assert rates == [
        [pytest.approx([6.25e-3]), pytest.approx([1e-3])],
        [pytest.approx([1.25e-3]), pytest.approx([1e-3])],
    ]


def test_a_schedule_and_a_scheduler_of_the_rate_are_too_many() -> None:
    for rate in (LinearSchedule(1e-2, 0.0), (1e-3, LinearSchedule(1e-2, 0.0))):
        with pytest.raises(ValueError, match="learning_rate is a schedule, and learning_rate_scheduler changes it too"):
            team(Toy(), learning_rate=rate, learning_rate_scheduler=KLAdaptiveLR)


# ---- the losses' numbers ---------------------------------------------------------------------------------------------


def test_schedules_are_asked_once_at_each_update() -> None:
    schedules = {key: Calls() for key in ("learning_rate", "ratio_clip", "value_clip", "entropy_loss_scale")}
    env = Toy(actions=FREE)
    rising = Calls(0.5)
    train(env, team(env, clip_predicted_values=True, exploration_std=rising, **schedules), 10)
    for key, calls in schedules.items():
        # two minibatches of two epochs share an answer; a pair asks for its two parts
        assert sorted(set(calls.at)) == [(3, 10), (7, 10)], key
    # once per rollout, before its first action
    assert rising.at == [(0, 1), (0, 10), (4, 10), (8, 10)]


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[tuple[Any, ...]]]:
    """The arguments of every loss that is worked out."""
    seen: dict[str, list[tuple[Any, ...]]] = {"clipped_surrogate_loss": [], "clipped_value_loss": []}
    for name, calls in seen.items():
        original = getattr(functional, name)

        def spy(*args: Any, original: Any = original, calls: list[tuple[Any, ...]] = calls) -> Any:
            calls.append(tuple(a.detach() if isinstance(a, Tensor) else a for a in args))
            return original(*args)

        monkeypatch.setattr(functional, name, spy)
    return seen


def test_scheduled_clipping_reaches_the_losses(losses: dict[str, list[tuple[Any, ...]]]) -> None:
    env = Toy()
    agent = team(
        env,
        ratio_clip=(0.2, LinearSchedule(0.4, 0.0)),
        value_clip=LinearSchedule(1.0, 0.0),
        clip_predicted_values=True,
    )
    train(env, agent, 8)
    # four minibatches an update, after the steps 3 and 7 of 8: 0.4 (1 - 3 / 8), 0.4 (1 - 7 / 8)
    assert [args[2] for args in losses["clipped_surrogate_loss"]] == [(0.2, pytest.approx(0.25))] * 4 + [
        (0.2, pytest.approx(0.05))
    ] * 4
    assert [args[3] for args in losses["clipped_value_loss"]] == pytest.approx([0.625] * 4 + [0.125] * 4)


def test_agents_may_differ_in_clipping_even_where_they_share_a_model(losses: dict[str, list[tuple[Any, ...]]]) -> None:
    env = Toy()
    agent = team(env, ratio_clip={"a": 0.1, "b": (0.2, LinearSchedule(1.2, 0.0))}, value_clip={"a": 1.0, "b": 2.0})
    train(env, agent, 4)  # the update is at step 3 of 4: 1.2 (1 - 3 / 4)
    low, high = losses["clipped_surrogate_loss"][0][2]
    assert low.flatten().tolist() == pytest.approx([0.1, 0.2])
    assert high.flatten().tolist() == pytest.approx([0.1, 0.3])
    assert losses["clipped_value_loss"][0][3] == math.inf  # predictions are not clipped


def test_a_scheduled_entropy_bonus_fades() -> None:
    def bonus_at(timestep: int) -> bool:
        """Whether an update at this step draws a policy that has no other reason to change towards uniformity."""
        env = Toy(("a",), lengths=(4, 4), earn=lambda age, actions: {"a": torch.zeros(2, 1)})
        models = build_models(env, "ippo", hidden=(4,))
        with torch.no_grad():
            models["a"]["policy"].net[-1].bias.copy_(torch.tensor([2.0, 0.0, 0.0, 0.0]))
            for parameter in models["a"]["value"].parameters():
                parameter.zero_()  # returns are 0, and so are advantages
        agent = team(env, models=models, entropy_loss_scale=LinearSchedule(0.5, 0.0, fraction=0.5))
        before = models["a"]["policy"].net[-1].bias.clone()
        agent.init()
        agent.set_running_mode("train")
        states, infos = env.reset()
        for t in range(timestep - 3, timestep + 1):
            actions, _, _ = agent.act(states, t, 16, infos)
            states, *rest = env.step(actions)
            agent.record_transition(states, actions, rest[0], states, *rest[1:3], rest[3], t, 16)
            agent.post_interaction(t, 16)
        change = models["a"]["policy"].net[-1].bias - before
        assert bool((change[0] < 0) & (change[1:] > 0).all()) != bool((change == 0).all())
        return bool((change != 0).all())

    assert bonus_at(3)
    assert bonus_at(7)
    assert not bonus_at(11)


@pytest.mark.parametrize("key", ["learning_rate", "ratio_clip", "value_clip", "entropy_loss_scale"])
@pytest.mark.parametrize("value", [math.nan, -1.0, "0.1", None, math.inf])
def test_a_schedule_that_gives_no_sensible_number_is_named(key: str, value: Any) -> None:
    env = Toy()
    agent = team(env, clip_predicted_values=True, **{key: lambda timestep, timesteps: value})
    with pytest.raises(
        ConfigError, match=f"{key}: expected its schedule to give a number of at least 0.0, got .* at step 3"
    ):
        train(env, agent, 4)


# ---- exploration -----------------------------------------------------------------------------------------------------


class Mean(GaussianMixin, Model):
    """A policy without standard deviations of its own."""

    def __init__(self) -> None:
        Model.__init__(self, box(3), FREE)
        GaussianMixin.__init__(self)
        self.layer = nn.Linear(3, 2)

    def compute(self, inputs: Any, role: str = "") -> tuple[Any, ...]:
        return self.layer(inputs["states"]), {}


@pytest.mark.parametrize("kind", [IPPO, MAPPO])
@pytest.mark.parametrize("action", [FREE, BOUNDED], ids=["normal", "tanh"])
@pytest.mark.parametrize("std", [0.3, LinearSchedule(1.0, 0.1)], ids=["number", "schedule"])
def test_ratios_are_1_before_the_first_step_of_an_update(
    kind: type[MultiAgent], action: Any, std: Any, losses: dict[str, list[tuple[Any, ...]]]
) -> None:
    env = Toy(actions=action, lengths=(5, 7, 4))
    agent = team(env, kind, exploration_std=std, learning_epochs=1, mini_batches=1, learning_rate=1e-2)
    train(env, agent, 16)
    ratios = [args[0].exp() for args in losses["clipped_surrogate_loss"]]
    assert len(ratios) == 4
    for ratio in ratios:  # the rounding of a sum of two log-probabilities
        torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=0, atol=2e-6)


def test_actions_are_spread_as_the_rollouts_first_step_says_and_evaluations_as_at_present() -> None:
    env = Toy(("a",), actions=FREE)
    agent = team(env, models={"a": {"policy": Mean(), "value": Value(box(3), FREE, hidden=(4,))}},
                 exploration_std=LinearSchedule(1.0, 0.0))  # fmt: skip
    agent.init()
    agent.set_running_mode("train")
    states, infos = env.reset()

    def spread(t: int) -> float:
        torch.manual_seed(5)
        noise = torch.randn(3, 2)
        torch.manual_seed(5)
        actions, _, outputs = agent.act(states, t, 16, infos)
        ratios = (actions["a"] - outputs["a"]["mean_actions"]) / noise
        assert float(ratios.std()) < 1e-5
        return float(ratios.mean())

    spreads = []
    for t in range(12):
        spreads.append(spread(t))
        actions, _, _ = agent.act(states, t, 16, infos)
        following, *rest = env.step(actions)
        agent.record_transition(states, actions, rest[0], following, *rest[1:3], rest[3], t, 16)
        agent.post_interaction(t, 16)
        states = following
    # rollouts begin at the steps 0, 4 and 8 of 16
    assert spreads == pytest.approx([1.0] * 4 + [0.75] * 4 + [0.5] * 4, abs=1e-5)
    agent.set_running_mode("eval")
    assert spread(0) == pytest.approx(0.5, abs=1e-5)  # whatever the evaluation's clock says
    agent.set_running_mode("train")
    assert spread(12) == pytest.approx(0.25, abs=1e-5)


def test_the_log_std_of_a_policy_rests_while_it_is_given_from_outside() -> None:
    env = Toy(("a",), actions=FREE)
    agent = team(env, exploration_std=0.5, entropy_loss_scale=0.1, learning_rate=1e-2)
    policy = agent.models["a"]["policy"]
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    train(env, agent, 8)
    for name, value in policy.state_dict().items():
        assert torch.equal(value, before[name]) == (name == "log_std_parameter"), name


def test_only_gaussian_policies_explore_so() -> None:
    env = Toy()
    with pytest.raises(
        ConfigError, match=r"exploration_std: expected Gaussian policies, \['a', 'b'\] have a CategoricalP"
    ):
        team(env, exploration_std=0.5)
    mixed = Toy("abc", actions={"a": FREE, "b": spaces.Discrete(4), "c": BOUNDED})
    models: dict[str, Any] = {
        "a": {"policy": GaussianPolicy(box(3), FREE, hidden=(4,)), "value": Value(box(3), FREE, hidden=(4,))},
        "b": {"policy": CategoricalPolicy(box(3), spaces.Discrete(4), hidden=(4,))},
        "c": {"policy": lambda states, masks: torch.zeros(len(states), 2)},
    }
    trainable = {"a": True, "b": False, "c": False}
    with pytest.raises(ConfigError, match=r"\['b'\] have a CategoricalPolicy; a dict by agent has None"):
        team(mixed, models=models, exploration_std={"a": 0.5, "b": 0.5, "c": None}, trainable=trainable)
    # one value for all is not meant for those that don't learn
    train(mixed, team(mixed, models=models, exploration_std=0.5, trainable=trainable), 4)
    # a script has no distribution at all
    agent = team(mixed, models=models, exploration_std={"a": 0.5, "b": None, "c": 0.5}, trainable=trainable)
    train(mixed, agent, 4)


def test_a_frozen_teammate_explores_as_it_is_told() -> None:
    env = Toy("ab", actions=BOUNDED)
    models: dict[str, Any] = {uid: {"policy": TanhGaussianPolicy(box(3), BOUNDED, hidden=(4,))} for uid in "ab"}
    models["a"]["value"] = Value(box(3), BOUNDED, hidden=(4,))
    agent = team(env, models=models, exploration_std={"a": 0.5, "b": 1e-6}, trainable={"a": True, "b": False})
    agent.set_running_mode("train")
    states, _ = env.reset()
    actions, _, outputs = agent.act(states, 0, 1)
    distance = {uid: float((actions[uid] - outputs[uid]["mean_actions"]).abs().max()) for uid in "ab"}
    assert distance["b"] < 1e-4 < distance["a"]


def test_a_schedule_that_ends_at_no_spread_at_all_is_refused_when_it_does() -> None:
    env = Toy(("a",), actions=FREE)
    agent = team(env, exploration_std=LinearSchedule(1.0, 0.0, fraction=0.5))
    with pytest.raises(
        ConfigError, match=r"exploration_std: expected its schedule to give a number above 0\.0, got 0\.0 at"
    ):
        train(env, agent, 16)


def test_what_all_explore_with_leaves_a_teammate_that_does_not_learn_alone() -> None:
    env = Toy("ab", actions=BOUNDED)
    models: dict[str, Any] = {
        uid: {"policy": TanhGaussianPolicy(box(3), BOUNDED, hidden=(4,), initial_log_std=-12.0)} for uid in "ab"
    }
    models["a"]["value"] = Value(box(3), BOUNDED, hidden=(4,))
    for setting in ({"exploration_std": 0.5}, {"random_timesteps": 10}):
        agent = team(env, models=models, trainable={"a": True, "b": False}, **setting)
        agent.set_running_mode("train")
        actions, _, outputs = agent.act(env.reset()[0], 0, 1)
        distance = {uid: float((actions[uid] - outputs[uid]["mean_actions"]).abs().max()) for uid in "ab"}
        assert distance["b"] < 1e-3 < distance["a"]


def test_the_present_spread_is_kept_in_checkpoints(tmp_path: Path) -> None:
    env = Toy(("a",), actions=FREE)
    agent = team(env, exploration_std=LinearSchedule(1.0, 0.1))
    train(env, agent, 8)
    agent.save(tmp_path / "team.pt")
    other = team(env, exploration_std=LinearSchedule(1.0, 0.1))
    assert other.networks["a",].exploration["std"] == 1.0
    other.load(tmp_path / "team.pt")
    assert other.networks["a",].exploration["std"] == agent.networks["a",].exploration["std"] < 1.0
