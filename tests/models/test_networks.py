"""Ready-made networks with a memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gymnasium import spaces
from torch import nn

from coterie.models import (
    BernoulliPolicy,
    CategoricalPolicy,
    GaussianPolicy,
    Model,
    MultiCategoricalPolicy,
    TanhGaussianPolicy,
    Value,
)
from coterie.models.batch import ModelBatch
from coterie.models.flat_parameters import FlatParameters
from coterie.models.sequences import Recurrence, recurrence_of

BOX = spaces.Box(-1.0, 1.0, (2,))
OBSERVATION = spaces.Box(-1.0, 1.0, (3,))
KINDS: list[tuple[type[Model], Any]] = [
    (GaussianPolicy, BOX),
    (TanhGaussianPolicy, BOX),
    (CategoricalPolicy, spaces.Discrete(3)),
    (MultiCategoricalPolicy, spaces.MultiDiscrete([2, 3])),
    (BernoulliPolicy, spaces.MultiBinary(3)),
    (Value, BOX),
]


def built(kind: type[Model], space: Any, **kwargs: Any) -> Model:
    model = kind(OBSERVATION, space, **kwargs)
    model.init_biases("normal_")
    return model


@pytest.mark.parametrize("rnn", ["gru", "lstm"])
@pytest.mark.parametrize("ids", [0, 3])
@pytest.mark.parametrize(("kind", "space"), KINDS)
def test_networks_with_a_memory_are_stacked(kind: type[Model], space: Any, ids: int, rnn: str) -> None:
    options: dict[str, Any] = {"hidden": (8,), "agent_ids": ids, "rnn": rnn, "rnn_size": 5, "rnn_layers": 2}
    models = [built(kind, space, **options) for _ in range(3)]
    batch = ModelBatch(models, "policy", FlatParameters([[model] for model in models]), torch.eye(3))
    assert batch.mode == "stacked"
    assert (batch.state_width, batch.sequence_length) == (10 * (1 if rnn == "gru" else 2), 10)
    # 4 steps of 2 sequences; a start within, a frozen row within
    states, state = torch.randn(8, 3, 3), torch.randn(2, 3, batch.state_width)
    starts, active = torch.zeros(8, 3, 1, dtype=torch.bool), torch.ones(8, 3, 1, dtype=torch.bool)
    starts[4, 1], active[3, 0] = True, False
    outputs, new = batch.unroll(states, state, starts, active, 4)
    for a, model in enumerate(models):
        spec = recurrence_of(model)
        assert spec is not None
        inputs = {
            "states": states[:, a], "agent_id": torch.eye(3)[a].expand(8, -1), "rnn": spec.unpack(state[:, a]),
            "length": 4, "starts": starts[:, a], "active": active[:, a],
        }  # fmt: skip
        *expected, last = model.compute(inputs, "policy")
        torch.testing.assert_close(spec.pack(last["rnn"]), new[:, a], atol=1e-6, rtol=0)
        for output, reference in zip(outputs, expected, strict=True):
            torch.testing.assert_close(output[:, a].expand(8, -1), reference.expand(8, -1), atol=1e-6, rtol=0)


def test_the_memory_stands_between_hidden_layers_and_head() -> None:
    value = built(Value, BOX, hidden=(8, 7), rnn="lstm", rnn_size=5, rnn_layers=2, sequence_length=12)
    assert [type(m).__name__ for m in value.children()] == ["Sequential", "LSTM", "Linear"]
    assert str(value.rnn) == "LSTM(7, 5, num_layers=2)"
    (head,) = value.output_layers()
    assert (head.in_features, head.out_features) == (5, 1)
    assert recurrence_of(value) == Recurrence(((2, 5), (2, 5)), 12, True)
    x, states = torch.randn(6, 3), [torch.randn(2, 3, 5) for _ in range(2)]
    inputs = {"states": x, "rnn": states, "length": 2, "starts": None, "active": None}
    first, second, features = nn.Linear(3, 8), nn.Linear(8, 7), nn.LSTM(7, 5, 2)
    modules = (("net.0", first), ("net.2", second), ("rnn", features))
    for name, module in modules:
        module.load_state_dict(value.get_submodule(name).state_dict())
    expected, _ = features(torch.tanh(second(torch.tanh(first(x)))).view(2, 3, 7), tuple(states))
    torch.testing.assert_close(value.compute(inputs)[0], head(expected.flatten(0, 1)), atol=1e-6, rtol=0)


@pytest.mark.parametrize("gain", [0.01, 1.0])
def test_the_head_has_the_gain_of_its_role(gain: float) -> None:
    model = GaussianPolicy(OBSERVATION, BOX, rnn="gru") if gain < 1 else Value(OBSERVATION, BOX, rnn="gru")
    (head,) = model.output_layers()
    gram = head.weight @ head.weight.mT
    torch.testing.assert_close(gram, gain**2 * torch.eye(len(gram)), atol=1e-5, rtol=1e-4)
    assert not head.bias.detach().any()


def test_a_spread_of_the_state_starts_where_asked() -> None:
    policy = GaussianPolicy(OBSERVATION, BOX, rnn="gru", state_dependent_std=True, initial_log_std=-1.5)
    _, log_std, last = policy.compute({"states": torch.zeros(4, 3)})
    torch.testing.assert_close(log_std, torch.full((4, 2), -1.5), atol=1e-2, rtol=0)  # the gain of the head
    assert [state.shape for state in last["rnn"]] == [(1, 4, 64)]


def test_acting_by_hand_hands_the_states_on() -> None:
    policy = built(GaussianPolicy, BOX, rnn="gru")
    _, _, outputs = policy.act({"states": torch.randn(4, 3)}, "policy")
    again = policy.act({"states": torch.randn(4, 3), "rnn": outputs["rnn"]}, "policy")[2]
    assert not torch.allclose(outputs["rnn"][0], again["rnn"][0])


def test_a_memory_remembers() -> None:
    """A sign is shown in the first of five steps, and asked for after the last: learnt with a memory alone."""
    value = Value(1, BOX, hidden=(8,), rnn="gru", rnn_size=8)
    signs = torch.tensor([1.0, -1.0])
    x = torch.cat([signs, torch.zeros(8)]).unsqueeze(-1)  # row l * 2 + n
    optimizer = torch.optim.Adam(value.parameters(), 1e-2)
    for _ in range(80):
        values = value.compute({"states": x, "length": 5})[0][-2:, 0]
        loss = (values - signs).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.01


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"rnn: expected one of \['gru', 'lstm'\] or None, got 'rnn'"):
        Value(OBSERVATION, BOX, rnn="rnn")
    with pytest.raises(ValueError, match="sequence_length: expected at least 1 step, got 0"):
        Value(OBSERVATION, BOX, rnn="gru", sequence_length=0)
    with pytest.raises(ValueError, match="at least 1, got inputs 64, hidden 0"):
        Value(OBSERVATION, BOX, rnn="gru", rnn_size=0)
    with pytest.raises(TypeError, match="hiden"):
        Value(OBSERVATION, BOX, hiden=(3,))
