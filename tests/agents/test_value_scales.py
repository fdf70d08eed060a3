"""PopArt and ValueNorm in an agent: predictions survive the statistics, and learning does not depend on rewards' unit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from coterie.agents import IPPO, MAPPO, MultiAgent
from coterie.memories import RandomMemory
from coterie.models import CategoricalPolicy, DeterministicMixin, Model, Value, build_models
from coterie.preprocessors import PopArt, ValueNorm
from coterie.trainers import SequentialTrainer
from tests.agents.toys import OFF, Toy, box

CHOICE = spaces.Discrete(4)
STATE = 4


def shared(env: Toy, kind: type[MultiAgent]) -> Any:
    return build_models(env, "mappo" if kind is MAPPO else "ippo", hidden=(8,))


def distinct(env: Toy, kind: type[MultiAgent]) -> Any:
    return build_models(env, "mappo" if kind is MAPPO else "ippo", shared=False, hidden=(8,))


def one_critic(env: Toy, kind: type[MultiAgent]) -> Any:
    """Policies apart, in groups of their own where observations differ, and one critic of the state."""
    value = Value(box(STATE), CHOICE, hidden=(8,))
    return {
        uid: {"policy": CategoricalPolicy(env.observation_spaces[uid], CHOICE, hidden=(8,)), "value": value}
        for uid in env.possible_agents
    }


class Odd(DeterministicMixin, Model):
    """A critic that neither can be stacked nor ends in its head."""

    def __init__(self) -> None:
        Model.__init__(self, box(STATE), CHOICE)
        DeterministicMixin.__init__(self)
        self.head = nn.Linear(8, 1)
        self.body = nn.Linear(STATE, 8)

    def output_layers(self) -> list[nn.Linear]:
        return [self.head]

    def compute(self, inputs: Any, role: str = "") -> tuple[Any, ...]:
        return self.head(torch.softmax(self.body(inputs["states"]), dim=-1)), {}


def odd(env: Toy, kind: type[MultiAgent]) -> Any:
    return {
        uid: {"policy": CategoricalPolicy(env.observation_spaces[uid], CHOICE, hidden=(8,)), "value": Odd()}
        for uid in env.possible_agents
    }


CASES: dict[str, tuple[type[MultiAgent], Any, dict[str, int]]] = {
    "ippo, shared": (IPPO, shared, {"a": 3, "b": 3}),
    "ippo, distinct": (IPPO, distinct, {"a": 3, "b": 3, "c": 3}),
    "mappo, shared": (MAPPO, shared, {"a": 3, "b": 3}),
    "mappo, distinct": (MAPPO, distinct, {"a": 3, "b": 3}),
    "mappo, one critic for several groups": (MAPPO, one_critic, {"a": 3, "b": 5, "c": 3}),
    "mappo, loop": (MAPPO, odd, {"a": 3, "b": 3}),
}


def team(env: Toy, kind: type[MultiAgent], models: Any, **cfg: Any) -> Any:
    settings = {"rollouts": 4, "learning_epochs": 2, "mini_batches": 2, "experiment": OFF, **cfg}
    memories = {uid: RandomMemory(4, env.num_envs) for uid in env.possible_agents}
    spaces_of = env.observation_spaces, env.action_spaces
    return kind(env.possible_agents, models, memories, *spaces_of, cfg=settings)


def train(env: Toy, agent: Any, timesteps: int) -> None:
    cfg = {"timesteps": timesteps, "headless": True, "disable_progressbar": True, "close_environment_at_exit": False}
    SequentialTrainer(env, agent, cfg=cfg).train()


def half_there(age: Tensor) -> dict[str, Any]:
    return {"active_masks": {"b": (age % 3 != 1).unsqueeze(1)}, "waiting_masks": {"b": (age % 3 == 1).unsqueeze(1)}}


def predictions(agent: Any, learner: Any) -> list[Tensor]:
    """What the critics predict for the rollout's rows, on the scale of returns."""
    moment = agent._rollout_moment()
    by_group = {}
    for critics in learner.critics:
        values, _ = agent.critic_networks[critics.names].values(agent._critic_rows(critics, moment))
        by_group |= critics.by_group(values.expand(-1, len(critics.names), -1).unflatten(0, (4, -1)))
    return [agent._denormalise(learner, by_group[group.names]) for group in learner.groups]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("masks", [None, half_there], ids=["all", "masks"])
def test_the_statistics_leave_predictions_as_they_are(case: Any, masks: Any) -> None:
    kind, build, sizes = case
    env = Toy(tuple(sizes), observations=sizes, masks=masks)
    # b earns more and more: the statistics move far in each update
    env.earn = lambda age, actions: {
        uid: env.draw(1) * (10.0 if uid == "b" else 1.0) + 5.0 * len(env.taken) for uid in sizes
    }
    agent = team(env, kind, build(env, kind), value_preprocessor=PopArt, value_preprocessor_kwargs={"beta": 0.5})
    moved: list[float] = []
    learn = agent._learn_returns

    def spy(learner: Any, values: Any, counting: Any) -> Any:
        before = predictions(agent, learner)
        old = learner.value_preprocessor.members[0].moments()[0].item()
        renewed = learn(learner, values, counting)
        if agent_updates[0] > 0:  # before the first there is no scale
            for x, y in zip(before, predictions(agent, learner), strict=True):
                torch.testing.assert_close(y, x, rtol=1e-5, atol=1e-5 * float(x.abs().max()))
            for x, y in zip(before, renewed, strict=True):  # and what clipping compares with is the same again
                torch.testing.assert_close(
                    agent._denormalise(learner, y), x, rtol=1e-5, atol=1e-5 * float(x.abs().max())
                )
        moved.append(abs(learner.value_preprocessor.members[0].moments()[0].item() - old))
        return renewed

    agent_updates = [0]
    update = agent._update

    def count(*args: Any) -> None:
        update(*args)
        agent_updates[0] += 1

    agent._learn_returns, agent._update = spy, count
    train(env, agent, 16)
    assert agent_updates == [4]
    assert min(moved) > 1.0


def learned(unit: float, normaliser: Any, masks: Any, case: Any, **cfg: Any) -> tuple[Tensor, Tensor]:
    """Policies' and critics' parameters after six updates on rewards in another unit."""
    kind, build, sizes = case
    torch.manual_seed(3)
    env = Toy(tuple(sizes), observations=sizes, masks=masks, seed=4)
    models = build(env, kind)
    if normaliser is ValueNorm:  # whose scale is 1 before it has learned: only predictions of 0 are then free of units
        for layer in {id(m): m for roles in models.values() for m in roles["value"].output_layers()}.values():
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
    numbers = torch.Generator().manual_seed(5)
    env.earn = lambda age, actions: {
        uid: unit * (torch.randn(3, 1, generator=numbers) + actions[uid] + i) for i, uid in enumerate(sizes)
    }
    clipping = {"clip_predicted_values": True, "value_clip": 0.1, "huber_delta": 0.5, "time_limit_bootstrap": True}
    agent = team(env, kind, models, value_preprocessor=normaliser, entropy_loss_scale=0.01, **{**clipping, **cfg})
    train(env, agent, 24)
    parts = [
        [p.detach().flatten() for uid in sizes for p in models[uid][role].parameters()] for role in ("policy", "value")
    ]
    return torch.cat(parts[0]), torch.cat(parts[1])


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("masks", [None, half_there], ids=["all", "masks"])
@pytest.mark.parametrize("normaliser", [PopArt, ValueNorm])
def test_learning_does_not_depend_on_the_unit_of_rewards(case: Any, masks: Any, normaliser: Any) -> None:
    policies, critics = learned(1.0, normaliser, masks, case)
    # powers of two leave every digit of float32 as it is, but for the 1e-8 that is added to the advantages' deviation
    same_policies, same_critics = learned(1024.0, normaliser, masks, case)
    torch.testing.assert_close(same_policies, policies, rtol=0, atol=1e-5)
    torch.testing.assert_close(same_critics, critics, rtol=0, atol=1e-5)
    # 1000 rounds every reward anew: 6e-8 of it, which Adam's first steps (of a size that knows no unit) may turn into
    # about as much of the learning rate as gradients near zero are wrong by; 48 steps of 1e-3 were taken
    same_policies, _ = learned(1000.0, normaliser, masks, case)
    torch.testing.assert_close(same_policies, policies, rtol=0, atol=1e-4)


def test_without_a_normaliser_learning_does_depend_on_it() -> None:
    case = CASES["ippo, shared"]
    policies, _ = learned(1.0, None, None, case)
    others, _ = learned(1000.0, None, None, case)
    assert float((policies - others).abs().max()) > 1e-3


class NoBias(Value):
    def __init__(self) -> None:
        Value.__init__(self, box(3), CHOICE, hidden=(4,))
        self.net[-1] = nn.Linear(4, 1, bias=False)


class NoLinear(DeterministicMixin, Model):
    def __init__(self) -> None:
        Model.__init__(self, box(3), CHOICE)
        DeterministicMixin.__init__(self)
        self.weight = nn.Parameter(torch.ones(3, 1))

    def compute(self, inputs: Any, role: str = "") -> tuple[Any, ...]:
        return inputs["states"] @ self.weight, {}


@pytest.mark.parametrize(
    ("critic", "error", "message"),
    [
        (NoBias, ValueError, "NoBias: PopArt needs an output layer with a bias"),
        (NoLinear, TypeError, "NoLinear has no nn.Linear to take for its output layer"),
    ],
)
def test_a_critic_that_cannot_be_rescaled_is_refused_when_the_team_is_built(
    critic: Any, error: Any, message: str
) -> None:
    env = Toy(("a",))
    models = {"a": {"policy": CategoricalPolicy(box(3), CHOICE, hidden=(4,)), "value": critic()}}
    with pytest.raises(error, match=message):
        team(env, IPPO, models, value_preprocessor=PopArt)
    team(env, IPPO, models, value_preprocessor=ValueNorm)
