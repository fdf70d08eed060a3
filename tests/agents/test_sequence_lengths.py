"""Sequences that recurrent models learn from: how many there are, who must agree on their length."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gymnasium import spaces

from coterie.agents import IPPO, MAPPO, MultiAgent
from coterie.memories import RandomMemory
from coterie.models import CategoricalPolicy, Model, Value
from coterie.models.distributions import Categorical
from coterie.models.mixins import StochasticMixin
from coterie.trainers import SequentialTrainer
from tests.agents.toys import OFF, Toy, box

CHOICE = spaces.Discrete(4)
ENVS = 3
STATE = 4


def policy(length: int | None) -> Model:
    memory = {} if length is None else {"rnn": "gru", "rnn_size": 4, "sequence_length": length}
    return CategoricalPolicy(box(3), CHOICE, hidden=(4,), **memory)


def value(length: int | None, size: int = 3) -> Model:
    memory = {} if length is None else {"rnn": "lstm", "rnn_size": 4, "sequence_length": length}
    return Value(box(size), CHOICE, hidden=(4,), **memory)


def roles(policy_length: int | None, value_length: int | None, size: int = 3) -> dict[str, Model]:
    return {"policy": policy(policy_length), "value": value(value_length, size)}


def build(models: Any, kind: type[MultiAgent] = IPPO, rollouts: int = 6, learners: str = "ab", **cfg: Any) -> Any:
    settings = {"rollouts": rollouts, "learning_epochs": 2, "mini_batches": 2, "experiment": OFF, **cfg}
    return kind(list(models), models, {uid: RandomMemory(rollouts, ENVS) for uid in learners}, cfg=settings)


def train(agent: Any, timesteps: int) -> None:
    env = Toy(tuple(agent.possible_agents), lengths=(5, 7, 4))
    cfg = {"timesteps": timesteps, "headless": True, "disable_progressbar": True, "close_environment_at_exit": False}
    SequentialTrainer(env, agent, cfg=cfg).train()


def test_lengths_that_differ_between_the_models_of_an_agent_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\['a'\] are trained together but have sequence lengths \[2, 3\]"):
        build({"a": roles(2, 3)}, learners="a")
    build({"a": roles(2, None)}, learners="a")
    build({"a": roles(None, 3)}, learners="a")


def test_lengths_that_differ_between_agents_with_one_critic_are_refused() -> None:
    critic = value(None)
    models = {"a": {"policy": policy(2), "value": critic}, "b": {"policy": policy(3), "value": critic}}
    with pytest.raises(ValueError, match=r"agents 'a' and 'b' share a model but not"):
        build(models)


@pytest.mark.parametrize("kind", [IPPO, MAPPO])
def test_independent_agents_may_have_lengths_of_their_own(kind: type[MultiAgent]) -> None:
    size = STATE if kind is MAPPO else 3
    agent = build({"a": roles(2, 2, size), "b": roles(3, 3, size), "c": roles(None, None, size)}, kind, learners="abc")
    assert sorted(learner.sequence_length for learner in agent.learners) == [1, 2, 3]
    before = [learner.storage.data.clone() for learner in agent.learners]
    train(agent, 12)
    for learner, old in zip(agent.learners, before, strict=True):
        assert not torch.equal(learner.storage.data, old)


@pytest.mark.parametrize(
    ("length", "rollouts", "sequences"),
    # rollouts / length rounded up, in each of 3 environments; a length beyond the rollout is the rollout's
    [(None, 6, 18), (2, 6, 9), (3, 6, 6), (4, 6, 6), (5, 6, 6), (6, 6, 3), (50, 6, 3), (2, 5, 9), (1, 4, 12)],
)
def test_minibatches_have_at_least_one_sequence(length: int | None, rollouts: int, sequences: int) -> None:
    models = {"a": roles(length, length)}
    what = "samples" if length in (None, 1) else f"sequences of {min(length, rollouts)} steps"  # type: ignore[type-var]
    with pytest.raises(
        ValueError, match=f"mini_batches: {sequences + 1} for 'a', but a rollout has {sequences} {what}"
    ):
        build(models, rollouts=rollouts, learners="a", mini_batches=sequences + 1)
    agent = build(models, rollouts=rollouts, learners="a", mini_batches=sequences)
    counted: list[int] = []
    loss = agent._loss

    def spy(learner: Any, batches: Any, *rest: Any) -> Any:
        counted.append(batches[0].states.shape[0])
        return loss(learner, batches, *rest)

    agent._loss = spy
    train(agent, rollouts)
    rows = 1 if length is None else min(length, rollouts)
    assert counted == [rows] * sequences * 2  # of two epochs


def test_a_frozen_teammates_sequences_are_nobodys_concern() -> None:
    models: dict[str, Any] = {"a": roles(None, None), "b": {"policy": policy(6)}}
    cfg: Any = {"learners": "a", "mini_batches": 18, "trainable": {"a": True, "b": False}}
    train(build(models, **cfg), 6)
    cfg["trainable"] = {"a": False, "b": True}
    models["b"]["value"] = value(None)
    with pytest.raises(ValueError, match="mini_batches: 18 for 'b'"):
        build(models, **{**cfg, "learners": "b"})


@pytest.mark.parametrize("kind", [IPPO, MAPPO])
@pytest.mark.parametrize("rollouts", [5, 7, 8])
@pytest.mark.parametrize("shared", [True, False])
def test_a_rollout_need_not_be_a_multiple_of_the_length(kind: type[MultiAgent], rollouts: int, shared: bool) -> None:
    """What fills up the last chunk has no effect, be it the masks of an all-active team or the numbers themselves."""
    size = STATE if kind is MAPPO else 3
    common = roles(3, 3, size)
    models = {uid: common if shared else roles(3, 3, size) for uid in "ab"}
    agent = build(models, kind, rollouts, mini_batches=3)
    before = [learner.storage.data.clone() for learner in agent.learners]
    masks: list[int] = []
    loss = agent._loss

    def spy(learner: Any, batches: Any, *rest: Any) -> Any:
        masks.append(sum(int(batch.mask.sum()) for batch in batches))
        for batch in batches:
            for rows in (batch.states, batch.advantages, batch.returns, batch.values, batch.log_prob):
                filled = ~batch.mask.expand(-1, rows.shape[1], -1)
                assert bool((rows.masked_select(filled.expand_as(rows)) == 0).all())
                # whatever stood there
                rows.masked_fill_(filled.expand_as(rows), 1e6 if rows is not batch.log_prob else -5.0)
        return loss(learner, batches, *rest)

    if rollouts % 3:
        agent._loss = spy
    train(agent, 2 * rollouts)
    if rollouts % 3:  # 3 minibatches of 2 epochs of 2 updates; each epoch has all rows of both agents once
        assert sum(masks) == 4 * rollouts * ENVS * 2
    for learner, old in zip(agent.learners, before, strict=True):
        assert learner.storage.data.isfinite().all()
        assert float((learner.storage.data - old).abs().max()) < 0.1
        assert not torch.equal(learner.storage.data, old)


# ---- mixins of one's own -----------------------------------------------------------------------------------------------


class Plain(StochasticMixin):
    """A distribution that knows neither of masks nor of standard deviations."""

    def make_distribution(self, tensors: Any) -> Any:  # type: ignore[override]
        return Categorical(tensors[0])


class Own(Plain, Model):
    def __init__(self) -> None:
        Model.__init__(self, box(3), CHOICE)
        self.layer = torch.nn.Linear(3, 4)

    def compute(self, inputs: Any, role: str = "") -> tuple[Any, ...]:
        return self.layer(inputs["states"]), {}


def test_a_mixin_of_ones_own_need_not_know_of_masks() -> None:
    agent = build({"a": {"policy": Own(), "value": value(None)}}, learners="a")
    before = agent.models["a"]["policy"].layer.weight.clone()
    train(agent, 6)
    assert not torch.equal(agent.models["a"]["policy"].layer.weight, before)
