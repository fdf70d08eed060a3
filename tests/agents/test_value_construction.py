"""What does not fit is refused when a team that learns action values is built, by an error that says what to do."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from gymnasium import spaces
from torch import nn

from coterie.agents.config import ConfigError
from coterie.memories import EpisodeMemory, PrioritizedMemory, RandomMemory, ReplayMemory
from coterie.models import CategoricalPolicy, QMIXMixer, QNetwork, Value, build_models
from coterie.preprocessors import PopArt, RunningScale, RunningStandardScaler, ValueNorm
from coterie.schedulers import KLAdaptiveLR
from tests.agents.toys import OFF, Toy, box
from tests.agents.value_runs import KINDS, begun, models_for, play, team, weights

ENV = Toy()
STATES, ACTIONS = ENV.observation_spaces["a"], ENV.action_spaces["a"]


def with_memories(**by_agent: Any) -> Any:
    kind = KINDS["vdn"]
    cfg = {"batch_size": 4, "experiment": OFF}
    return kind(["a", "b"], models_for(ENV, "vdn"), by_agent, ENV.observation_spaces, ENV.action_spaces, cfg=cfg)


def with_models(kind: str, env: Toy = ENV, **roles: Any) -> Any:
    """A team whose agents' models have other roles beside, or in place of, what they should have."""
    models = {uid: {**own, **roles} for uid, own in models_for(ENV, kind).items()}
    models = {uid: {role: model for role, model in own.items() if model is not None} for uid, own in models.items()}
    return team(env, kind, models=models)


def role(name: str, model: Any) -> Callable[[], Any]:
    return lambda: with_models("vdn", **{"q": None, name: model})


def mixer(make: Callable[[], Any]) -> Callable[[], Any]:
    return lambda: with_models("qmix", mixer=make())


def each_its_mixer() -> Any:
    first, second = models_for(ENV, "qmix"), models_for(ENV, "qmix")
    return team(ENV, "qmix", models={"a": first["a"], "b": second["b"]})


def one_mixer() -> Any:
    models = models_for(ENV, "qmix")
    return team(ENV, "qmix", models={"a": models["a"], "b": {"q": models["b"]["q"]}})


REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "memory of rollouts": (
        lambda: with_memories(a=RandomMemory(9, 3), b=RandomMemory(9, 3)),
        TypeError,
        r"memories\['a'\]: expected a ReplayMemory, PrioritizedMemory or EpisodeMemory, got RandomMemory",
    ),
    "memories of two kinds": (
        lambda: with_memories(a=ReplayMemory(9, 3), b=EpisodeMemory(9, 3)),
        ValueError,
        r"expected one kind and size for all agents.*'a' has .*ReplayMemory.*'b' .*EpisodeMemory",
    ),
    "memories of two sizes": (
        lambda: with_memories(a=ReplayMemory(9, 3), b=ReplayMemory(8, 3)),
        ValueError,
        "one kind and size",
    ),
    "memories of two priorities": (
        lambda: with_memories(a=PrioritizedMemory(9, 3), b=PrioritizedMemory(9, 3, alpha=0.5)),
        ValueError,
        "one kind and size",
    ),
    "memories of two dtypes": (
        lambda: with_memories(a=ReplayMemory(9, 3), b=ReplayMemory(9, 3, observation_dtype=torch.float16)),
        ValueError,
        "one kind and size",
    ),
    "one memory for two": (
        lambda: with_memories(**dict.fromkeys("ab", ReplayMemory(9, 3))),
        ValueError,
        "memories: 'a' and 'b' have one object in common; expected one for each agent",
    ),
    "memories of two weights": (
        lambda: with_memories(a=PrioritizedMemory(9, 3), b=PrioritizedMemory(9, 3, beta=0.5)),
        ValueError,
        "one kind and size",
    ),
    "a memory for one": (lambda: with_memories(a=ReplayMemory(9, 3)), ValueError, r"memories: .* missing \['b'\]"),
    "no memory": (with_memories, ValueError, r"memories: .* missing \['a', 'b'\]"),
    "a memory too small for its batch": (
        lambda: team(ENV, rows=8, batch_size=22),
        ConfigError,
        r"batch_size 22: a memory of 8 rows for each of 3 environments holds at most 21 windows of 2 rows.*larger memory_size",
    ),
    "a memory too small for its steps": (
        lambda: team(ENV, rows=8, n_step=8),
        ConfigError,
        "a memory of 8 rows for each environment never holds a window of 9 rows, as n_step .*expected a larger memory_size, or",
    ),
    "a memory too small for its sequences": (
        lambda: team(ENV, rnn="gru", rows=8, burn_in=4),
        ConfigError,
        "never holds a window of 9 rows, as n_step or sequence_length and burn_in have it",
    ),
    "a memory too small for its episodes": (
        lambda: team(ENV, memory="episode", rows=8, batch_size=25),
        ConfigError,
        "holds at most 24 episodes",
    ),
    "no mixer": (mixer(lambda: None), ValueError, r"models\['a'\]: expected a 'mixer'.*for a plain sum use VDN"),
    "a mixer for one": (one_mixer, ValueError, "expected a mixer model for every agent that learns or for none"),
    "a mixer for each": (each_its_mixer, ValueError, "expected one mixer, the same object for all agents"),
    "a mixer of three": (mixer(lambda: QMIXMixer(4, 3)), ValueError, "built for 3 agents, the team has 2"),
    "a mixer of another state": (
        mixer(lambda: QMIXMixer(9, 2)),
        ValueError,
        r"the mixer was built for inputs of size 9, cfg\['mixer_input'\] 'state' gives it 4",
    ),
    "a mixer that is none": (
        mixer(lambda: QNetwork(STATES, ACTIONS)),
        TypeError,
        r"models\['a'\]\['mixer'\]: expected a coterie Mixer, got QNetwork",
    ),
    "a mixer that is a layer": (mixer(lambda: nn.Linear(2, 1)), TypeError, "expected a coterie Model, got Linear"),
    "a policy": (
        role("policy", CategoricalPolicy(STATES, ACTIONS)),
        ValueError,
        r"expected a 'q', got \['policy'\] .*trainable",
    ),
    "a policy as values": (
        role("q", CategoricalPolicy(STATES, ACTIONS)),
        TypeError,
        "expected a model of action values, with QMixin, got CategoricalPolicy",
    ),
    "a critic as values": (
        role("q", Value(STATES, ACTIONS)),
        TypeError,
        r"models\['a'\]\['q'\]: expected .* got Value",
    ),
    "a critic": (role("value", Value(STATES, ACTIONS)), ValueError, r"expected a 'q', got \['value'\]"),
    "a misspelt role": (role("Q", QNetwork(STATES, ACTIONS)), ValueError, r"expected a 'q', got \['Q'\]"),
    "values of other observations": (role("q", QNetwork(box(5), ACTIONS)), ValueError, "built for 5 observations"),
    "values of other actions": (role("q", QNetwork(STATES, spaces.Discrete(3))), ValueError, "built for 3 actions"),
    "values of bounded numbers": (
        lambda: QNetwork(STATES, spaces.Box(-1, 1, (2,))),
        TypeError,
        r"need a Discrete action space, got Box.*wrap the environment in coterie.envs.DiscreteActions",
    ),
    "values of several choices": (
        lambda: build_models(Toy(actions=spaces.MultiDiscrete([2, 2])), "iql"),
        TypeError,
        "coterie.envs.DiscreteActions",
    ),
    "an environment of several choices": (
        lambda: with_models("vdn", Toy(actions=spaces.MultiDiscrete([2, 2]))),
        ValueError,
        "built for the actions Discrete",
    ),
    "frozen networks": (
        lambda: with_models("vdn", q=_frozen(QNetwork(STATES, ACTIONS))),
        ValueError,
        "every parameter is frozen",
    ),
    "several lambdas": (
        lambda: team(ENV, td_lambda=0.5),
        ConfigError,
        "td_lambda 0.5: its targets need more than single steps",
    ),
    "both of several steps": (
        lambda: team(ENV, memory="episode", td_lambda=0.5, n_step=2),
        ConfigError,
        "n_step 2 and td_lambda 0.5: expected one of them",
    ),
    "burn-in without a memory": (
        lambda: team(ENV, burn_in=2),
        ConfigError,
        "burn_in 2: only recurrent models can be warmed up",
    ),
    "burn-in of episodes": (
        lambda: team(ENV, memory="episode", rnn="gru", burn_in=2),
        ConfigError,
        "burn_in 2: episodes are drawn from their first step on",
    ),
    "steps beyond a sequence": (
        lambda: team(ENV, rnn="gru", n_step=5),
        ConfigError,
        "n_step 5: sequences of 4 steps show no more than these",
    ),
    "a divergence": (
        lambda: team(ENV, learning_rate_scheduler=KLAdaptiveLR),
        ConfigError,
        "KLAdaptiveLR needs a divergence of policies",
    ),
    "a metric": (
        lambda: team(ENV, learning_rate_scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau),
        ConfigError,
        "ReduceLROnPlateau needs a metric .*; use a scheduler of torch's that is stepped without one, or a schedule",
    ),
    "arguments of no scheduler": (
        lambda: team(ENV, learning_rate_scheduler_kwargs={"gamma": 0.9}),
        ConfigError,
        r"learning_rate_scheduler_kwargs: got {'gamma': 0.9} for 'a', .* since learning_rate_scheduler is None",
    ),
    "arguments of no normaliser": (
        lambda: team(ENV, reward_preprocessor_kwargs={"epsilon": 0.1}),
        ConfigError,
        "reward_preprocessor_kwargs: .* since reward_preprocessor is None; expected a class in reward_preprocessor, or {}",
    ),
    "a function as values": (
        lambda: with_models("vdn", q=lambda states, action_masks: states),
        TypeError,
        r"models\['a'\]\['q'\]: expected a coterie Model, got function; a plain function that acts goes under 'policy'",
    ),
    "a pair of rates": (
        lambda: team(ENV, learning_rate=(1e-3, 1e-3)),
        ConfigError,
        "learning_rate: expected a number above 0",
    ),
    "individual rewards": (
        lambda: team(ENV, reward="individual"),
        ConfigError,
        "reward: expected one of 'mean', 'sum'",
    ),
    "rewards by agent": (
        lambda: team(ENV, "iql", reward={"a": "sum", "b": "mean"}),
        ConfigError,
        "reward: expected .* the same for all agents, got a dict",
    ),
    "a mixer's input by agent": (
        lambda: team(ENV, "qmix", mixer_input={"a": "state", "b": "both"}),
        ConfigError,
        "mixer_input: expected .* the same for all agents",
    ),
    "another mixer's input": (
        lambda: team(ENV, "qmix", mixer_input="both"),
        ValueError,
        "built for inputs of size 4.*gives it 10",
    ),
    "half the agents": (
        lambda: team(ENV, exploration_epsilon={"a": 0.1}),
        ConfigError,
        r"exploration_epsilon: .* missing \['b'\], unknown \[\]",
    ),
    "a certain exploration": (lambda: team(ENV, exploration_epsilon=1.5), ConfigError, "at least 0.0 and at most 1.0"),
    "a key of rollouts": (lambda: team(ENV, rollouts=4), ConfigError, "unknown key 'rollouts'"),
    "a misspelt key": (
        lambda: team(ENV, target_update_intervall=4),
        ConfigError,
        "did you mean 'target_update_interval'",
    ),
    "no way to go": (lambda: team(ENV, polyak=0.0), ConfigError, "polyak: expected a number above 0"),
    "an empty batch": (lambda: team(ENV, batch_size=0), ConfigError, "batch_size: expected an integer of at least 1"),
}

#: what agents must agree on where their values are mixed, with two values each
AGREED: dict[str, tuple[Any, Any]] = {
    "discount_factor": (0.9, 0.99),
    "huber_delta": (0.0, 1.0),
    "time_limit_bootstrap": (True, False),
    "learning_rate": (1e-3, 1e-4),
    "grad_norm_clip": (1.0, 2.0),
    "batch_size": (4, 5),
    "gradient_steps": (1, 2),
    "n_step": (1, 2),
    "double_q": (True, False),
    "target_update_interval": (1, 2),
    "polyak": (1.0, 0.5),
    "learning_starts": (0, 1),
    "update_interval": (1, 2),
    "reward_preprocessor": (RunningScale, None),
}


class Halved(nn.Module):
    """A normaliser of one's own."""

    def forward(self, x: torch.Tensor, train: bool = False, inverse: bool = False) -> torch.Tensor:
        return x * 2 if inverse else x / 2


class HalvedOnly(Halved):
    keeps_mean = True


def _frozen(model: QNetwork) -> QNetwork:
    model.freeze_parameters()
    return model


@pytest.mark.parametrize("what", REFUSED)
def test_it_is_refused(what: str) -> None:
    make, kind, message = REFUSED[what]
    with pytest.raises(kind, match=message):
        make()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "scale", [RunningStandardScaler, ValueNorm, PopArt, Halved, functools.partial(ValueNorm, 1, beta=0.5)]
)
def test_normalisers_that_move_the_mean_of_rewards_are_refused(kind: str, scale: Any) -> None:
    name = getattr(scale, "__name__", "ValueNorm")
    with pytest.raises(
        ConfigError,
        match=rf"reward_preprocessor: expected a normaliser that leaves the mean .* got {name}: .* Use .*RunningScale;",
    ):
        team(ENV, kind, reward_preprocessor=scale)


@pytest.mark.parametrize("scale", [RunningScale, functools.partial(RunningScale, size=1, epsilon=0.5), HalvedOnly])
def test_normalisers_that_only_scale_rewards_are_taken(scale: Any) -> None:
    env = Toy()
    play(env, begun(env, "iql", options={"shared": False}, reward_preprocessor=scale), 4)


@pytest.mark.parametrize(
    ("cfg", "warned"),
    [
        ({"polyak": 0.01}, True),
        ({"polyak": {"a": 0.01, "b": 1.0}}, True),
        ({"polyak": 0.01, "target_update_interval": 1}, False),
        ({"polyak": 0.1, "target_update_interval": 50}, False),
        ({"polyak": 1.0}, False),
    ],
)
def test_targets_that_hardly_move_are_warned_about(
    cfg: dict[str, Any], warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def build(memory: str | None) -> list[str]:
        caplog.clear()
        team(ENV, "iql", memory, options={"shared": False}, **{"target_update_interval": 200, **cfg})
        return [record.getMessage() for record in caplog.records]

    with caplog.at_level(logging.WARNING, "coterie.agents.value_learning"):
        assert build(None) == [], "those that only act have no targets"
        messages = build("replay")
    assert len(messages) == warned
    if warned:
        assert "cfg['polyak'] is 0.01 and cfg['target_update_interval'] 200" in messages[0]
        assert "Set target_update_interval to 1" in messages[0]
        assert ("'b'" in messages[0]) == (cfg["polyak"] == 0.01)


@pytest.mark.parametrize("kind", ["qmix", "vdn"])
@pytest.mark.parametrize("key", AGREED)
def test_agents_whose_values_are_mixed_agree(kind: str, key: str) -> None:
    first, second = AGREED[key]
    with pytest.raises(
        ValueError, match=rf"agents 'a' and 'b' learn from one loss but not .*{key} is .*Give them equal values$"
    ):
        team(ENV, kind, options={"shared": False}, **{key: {"a": first, "b": second}})
    team(ENV, kind, options={"shared": False}, **{key: {"a": second, "b": second}})


@pytest.mark.parametrize("key", AGREED)
def test_independent_agents_need_not_agree(key: str) -> None:
    first, second = AGREED[key]
    env = Toy()
    agent = begun(env, "iql", options={"shared": False}, **{key: {"a": first, "b": second}})
    before = weights(agent)
    play(env, agent, 6)
    assert not torch.equal(weights(agent), before)


@pytest.mark.parametrize("kind", KINDS)
def test_exploration_may_differ_within_a_set(kind: str) -> None:
    env = Toy()
    agent = begun(
        env, kind, exploration_epsilon={"a": 0.0, "b": 1.0}, rewards_shaper={"a": None, "b": lambda r, t, n: 2 * r}
    )
    play(env, agent, 6)
    assert len(agent.learners) == 1


def test_what_was_passed_is_left_as_it_was() -> None:
    models, cfg = models_for(ENV, "qmix"), {"batch_size": 4, "experiment": {**OFF}}
    memories = {uid: ReplayMemory(9, 3) for uid in "ab"}
    before = {name: tensor.clone() for uid in "ab" for name, tensor in models[uid]["q"].state_dict().items()}
    with pytest.raises(ValueError, match="learn from one loss"):
        KINDS["qmix"](
            ["a", "b"], models, memories, ENV.observation_spaces, ENV.action_spaces,
            cfg={**cfg, "discount_factor": {"a": 0.9, "b": 0.8}},
        )  # fmt: skip
    assert cfg == {"batch_size": 4, "experiment": OFF}
    assert memories["a"].get_tensor_names() == ()
    assert all(torch.equal(models["b"]["q"].state_dict()[name], tensor) for name, tensor in before.items())
