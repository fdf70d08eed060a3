"""Critics of whole teams: what depends on what, absence, order, and their place in batches."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from coterie.models import DeterministicMixin, Model, TeamValue, Value
from coterie.models.batch import ModelBatch
from coterie.models.flat_parameters import FlatParameters

TWO, THREE = spaces.Box(-1.0, 1.0, (2,)), spaces.Box(-1.0, 1.0, (3,))
ALIKE = {"a": TWO, "b": TWO, "c": TWO}
MIXED = {"a": TWO, "b": THREE, "c": TWO, "d": THREE}  # agents of a kind do not stand together
TEAMS = {"alike": ALIKE, "mixed": MIXED, "in order": {"a": TWO, "b": TWO, "c": THREE}, "alone": {"a": TWO}}
POOLINGS = ["mean", "attention"]


def critic(team: str | dict[str, Any], pooling: str, **kwargs: Any) -> TeamValue:
    spaces_by_agent = TEAMS[team] if isinstance(team, str) else team
    model = TeamValue(spaces_by_agent, pooling, **{"hidden": (8,), "heads": 2, **kwargs})
    model.init_biases("normal_")
    return model


def values(model: TeamValue, states: Tensor, present: Tensor | None = None) -> Tensor:
    result: Tensor = model.compute({"states": states, "present": present})[0]
    return result


def by_agent(team: str, states: Tensor) -> list[Tensor]:
    return list(states.split([space.shape[0] for space in TEAMS[team].values()], dim=-1))


def reference(model: TeamValue, team: str, states: Tensor, present: Tensor) -> Tensor:
    """Environment by environment and agent by agent, from the layers by hand; absent agents' values are left at zero."""
    kinds = list(dict.fromkeys(space.shape[0] for space in TEAMS[team].values()))
    result = torch.zeros(present.shape)
    for row in range(len(states)):
        observed = [part[row] for part in by_agent(team, states)]
        own = [model.embeddings[kinds.index(len(x))](x.unsqueeze(0)).squeeze(0) for x in observed]
        there = [j for j in range(len(own)) if bool(present[row, j])]
        for i in there:
            if model.pooling == "mean":
                others = [own[j] for j in there if j != i]
                pooled = torch.stack(others).mean(0) if others else torch.zeros_like(own[i])
            else:
                parts = []
                size = len(own[i]) // model.heads
                for h in range(model.heads):
                    part = slice(h * size, (h + 1) * size)
                    query = model.query(own[i])[part]
                    scores = torch.stack([query @ model.key(own[j])[part] / math.sqrt(size) for j in there])
                    weights = scores.softmax(0)
                    parts.append(sum(w * model.value(own[j])[part] for w, j in zip(weights, there, strict=True)))
                pooled = torch.cat(parts)  # type: ignore[arg-type]
            result[row, i] = model.value_heads[kinds.index(len(observed[i]))](torch.cat([own[i], pooled]))
    return result


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("team", TEAMS)
def test_values_against_agent_by_agent(team: str, pooling: str) -> None:
    model = critic(team, pooling)
    states = torch.randn(6, model.num_observations)
    agents = len(TEAMS[team])
    everyone = torch.ones(6, agents, dtype=torch.bool)
    torch.testing.assert_close(values(model, states), reference(model, team, states, everyone), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(values(model, states, everyone), values(model, states), atol=1e-6, rtol=1e-5)
    present = torch.rand(6, agents) < 0.6
    torch.testing.assert_close(
        values(model, states, present) * present,
        reference(model, team, states, present) * present,
        atol=1e-6,
        rtol=1e-5,
    )


@pytest.mark.parametrize("garbage", [7.0, 1e30, math.nan, math.inf])
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("team", ["alike", "mixed"])
def test_what_absent_agents_observe_changes_nothing(team: str, pooling: str, garbage: float) -> None:
    """Bit for bit: the values of those present, and every gradient."""
    model = critic(team, pooling)
    states = torch.randn(6, model.num_observations)
    present = torch.tensor([[i % 2 == j % 2 or j == 2 for j in range(len(TEAMS[team]))] for i in range(5)])
    present = torch.cat([present, torch.zeros_like(present[:1])])  # in the last row nobody is there
    other = states.clone()
    for part, mask in zip(by_agent(team, other), present.unbind(1), strict=True):
        part[~mask] = garbage
    results = []
    for x in (states, other):
        model.zero_grad()
        result = torch.where(present, values(model, x, present), 0.0)
        result.square().sum().backward()
        results.append([result.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    for one, two in zip(*results, strict=True):
        assert bool(one.isfinite().all())
        assert torch.equal(one, two)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_value_depends_on_all_who_are_there(pooling: str) -> None:
    model = critic("mixed", pooling)
    states = torch.randn(1, model.num_observations, requires_grad=True)
    present = torch.tensor([[True, True, False, True]])
    for i in (0, 1, 3):
        (grad,) = torch.autograd.grad(values(model, states, present)[0, i], states)
        moved = [bool(part.any()) for part in by_agent("mixed", grad)]
        assert moved == [True, True, False, True]


@pytest.mark.parametrize("pooling", POOLINGS)
def test_agents_of_a_kind_may_change_places(pooling: str) -> None:
    model = critic("mixed", pooling)
    states = torch.randn(5, model.num_observations)
    a, b, c, d = by_agent("mixed", states)
    swapped = values(model, torch.cat([c, d, a, b], dim=-1))
    torch.testing.assert_close(swapped, values(model, states)[:, [2, 3, 0, 1]], atol=1e-6, rtol=1e-5)
    assert not torch.allclose(swapped, values(model, states), atol=1e-3)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_parameters_fit_teams_of_any_size(pooling: str) -> None:
    small, large = critic({"a": TWO, "b": THREE}, pooling), critic("mixed", pooling)
    large.load_state_dict(small.state_dict())
    states = torch.randn(4, large.num_observations)
    # with two of its agents absent, the large team is the small one
    present = torch.tensor([[True, False, False, True]]).expand(4, -1)
    a, _, _, d = by_agent("mixed", states)
    torch.testing.assert_close(
        values(large, states, present)[:, [0, 3]], values(small, torch.cat([a, d], dim=-1)), atol=1e-6, rtol=1e-5
    )


def test_images_of_agents_are_encoded() -> None:
    picture = spaces.Box(0, 255, (5, 5, 3), np.uint8)
    model = critic({"a": picture, "b": TWO, "c": picture}, "mean", cnn=(4,))
    assert values(model, torch.rand(3, 152), torch.ones(3, 3, dtype=torch.bool)).shape == (3, 3)


def test_output_layers_are_the_heads() -> None:
    layers = critic("mixed", "attention").output_layers()
    assert [(layer.in_features, layer.out_features) for layer in layers] == [(8, 1), (8, 1)]


# ---- in batches -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_batch_has_the_columns_of_its_agents(pooling: str) -> None:
    model = critic("mixed", pooling)
    storage, ids = FlatParameters([[model]]), torch.eye(4)
    # two groups, by kind, share the one critic
    groups = [
        ModelBatch([model] * 2, "value", storage, ids[[0, 2]]),
        ModelBatch([model] * 2, "value", storage, ids[[1, 3]]),
    ]
    states, present = torch.randn(5, 1, model.num_observations), torch.rand(5, 4) < 0.7
    for seen in (None, present):
        expected = values(model, states[:, 0], seen)
        for batch, columns in zip(groups, ([0, 2], [1, 3]), strict=True):
            assert batch.mode == "single"
            (result,) = batch(states, seen)
            assert torch.equal(result, expected[:, columns].unsqueeze(-1))
    storage.grad.zero_()
    sum(batch(states, present)[0].sum() for batch in groups).backward()  # type: ignore[union-attr]
    assert bool(storage.grad.any())


def test_agents_may_have_such_a_critic_each() -> None:
    models = [critic("alike", "mean") for _ in range(3)]
    batch = ModelBatch(models, "value", FlatParameters([[model] for model in models]), torch.eye(3))
    states = torch.randn(5, 1, models[0].num_observations)
    (result,) = batch(states)
    for i, model in enumerate(models):
        torch.testing.assert_close(result[:, i, 0], values(model, states[:, 0])[:, i])


class Wide(DeterministicMixin, Model):
    values_per_agent = True

    def __init__(self) -> None:
        Model.__init__(self, 6, None)
        DeterministicMixin.__init__(self)
        self.net = nn.Linear(6, 2)

    def compute(self, inputs: Any, role: str = "") -> tuple[Any, ...]:
        return self.net(inputs["states"]), {}


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"pooling: expected one of \['mean', 'attention'\], got 'max'"):
        TeamValue(ALIKE, "max")
    with pytest.raises(ValueError, match="heads: expected a divisor of the width 8, got 3"):
        TeamValue(ALIKE, "attention", hidden=(8,), heads=3)
    with pytest.raises(ValueError, match="at least one hidden layer"):
        TeamValue(ALIKE, hidden=())
    with pytest.raises(ValueError, match="got 0 agents"):
        TeamValue({})
    model = critic("alike", "mean")
    for states, present in ((torch.zeros(2, 5), None), (torch.zeros(2, 6), torch.ones(2, 2, dtype=torch.bool))):
        with pytest.raises(ValueError, match=r"observations of 3 agents \[B, 6\] and present \[B, 3\], got"):
            values(model, states, present)
    batch = ModelBatch([model] * 3, "value", FlatParameters([[model]]), torch.eye(3))
    with pytest.raises(ValueError, match=r"one row per environment, \[B, 1, F\]: got \[2, 3, 6\]"):
        batch(torch.zeros(2, 3, 6))
    wide = Wide()
    batch = ModelBatch([wide] * 3, "value", FlatParameters([[wide]]), torch.eye(3))
    with pytest.raises(ValueError, match=r"Wide.compute returned.*\[2, 2\]: expected a value for each agent.*\[2, 3\]"):
        batch(torch.zeros(2, 1, 6))
    other = Value(6, TWO)
    with pytest.raises(ValueError, match=r"\['TeamValue', 'Value'\]: critics with a value for each agent.*cannot"):
        ModelBatch([model, other], "value", FlatParameters([[model, other]]), torch.eye(3)[:2])
