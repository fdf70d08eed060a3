from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from coterie.models import CategoricalPolicy, Model, ScriptedPolicy, Value
from coterie.models.critic_inputs import CRITIC_INPUTS, critic_space

OBSERVATION = spaces.Box(-1.0, 1.0, (3,))
BOX = spaces.Box(np.array([-1.0, 0.0], dtype=np.float32), np.array([1.0, 2.0], dtype=np.float32))


def scripted(space: spaces.Space, actions: object) -> ScriptedPolicy:
    def script(states: Tensor, action_masks: Tensor | None) -> Tensor:
        return actions  # type: ignore[return-value]

    return ScriptedPolicy(OBSERVATION, space, script)


@pytest.mark.parametrize(
    ("space", "actions", "dtype"),
    [
        (spaces.Discrete(3), torch.tensor([[0], [2]]), torch.int64),
        (spaces.Discrete(3), torch.tensor([[0], [2]], dtype=torch.int32), torch.int64),
        (spaces.MultiDiscrete([2, 5]), torch.tensor([[1, 4], [0, 0]]), torch.int64),
        (spaces.MultiDiscrete([[2], [5]]), torch.tensor([[1, 4], [0, 0]]), torch.int64),
        (spaces.MultiBinary(2), torch.tensor([[True, False], [False, False]]), torch.int64),
        (BOX, torch.tensor([[1.0, 0.0], [-1.0, 2.0]]), torch.float32),
        (BOX, torch.tensor([[1.0, 0.0], [-1.0, 2.0]], dtype=torch.float64), torch.float32),
    ],
)
def test_actions_of_every_kind(space: spaces.Space, actions: Tensor, dtype: torch.dtype) -> None:
    policy = scripted(space, actions)
    chosen, log_prob, outputs = policy.act({"states": torch.zeros(2, 3)}, "policy")
    assert chosen.dtype == dtype
    assert torch.equal(chosen, actions.to(dtype))
    assert log_prob is None
    assert outputs["mean_actions"] is chosen
    assert not list(policy.parameters())


def test_the_function_gets_states_and_masks() -> None:
    def largest(states: Tensor, action_masks: Tensor | None) -> Tensor:
        assert action_masks is not None
        return states.masked_fill(~action_masks, -torch.inf).argmax(dim=-1, keepdim=True)

    policy = ScriptedPolicy(OBSERVATION, spaces.Discrete(3), largest)
    states, masks = torch.tensor([[3.0, 2.0, 1.0]] * 2), torch.tensor([[False, True, True], [True, True, True]])
    assert policy.choose(states, masks).tolist() == [[1], [0]]
    assert policy.act({"states": states, "action_masks": masks})[0].tolist() == [[1], [0]]


def test_rounding_is_forgiven() -> None:
    actions = scripted(BOX, torch.tensor([[1.000001, 0.0], [0.0, -0.000001]])).choose(torch.zeros(2, 3))
    assert actions.tolist() == [[1.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize(
    ("space", "actions", "error", "message"),
    [
        (
            spaces.Discrete(3),
            torch.zeros(2, dtype=torch.int64),
            ValueError,
            r"script returned.*\[2\]: expected \[2, 1\]",
        ),
        (spaces.Discrete(3), torch.zeros(2, 3, dtype=torch.int64), ValueError, r"expected \[2, 1\] for Discrete"),
        (spaces.Discrete(3), torch.zeros(2, 1), TypeError, "torch.float32: expected integers for Discrete"),
        (spaces.Discrete(3), [[0], [1]], TypeError, r"script returned list: expected a tensor of actions \[2, 1\]"),
        (spaces.Discrete(3), torch.tensor([[0], [3]]), ValueError, r"\[3\] for environment 1: .*entry 0 in \[0, 2\]"),
        (spaces.Discrete(3), torch.tensor([[-1], [0]]), ValueError, r"\[-1\] for environment 0"),
        (spaces.MultiDiscrete([2, 5]), torch.tensor([[1, 4], [1, 5]]), ValueError, r"entry 1 in \[0, 4\]"),
        (spaces.MultiBinary(2), torch.tensor([[1, 2], [0, 0]]), ValueError, r"entry 1 in \[0, 1\]"),
        (BOX, torch.zeros(2, 2, dtype=torch.int64), TypeError, "torch.int64: expected floats for Box"),
        (BOX, torch.tensor([[0.0, 0.0], [0.0, 2.1]]), ValueError, r"environment 1: expected entry 1 in \[0.0, 2.0\]"),
        (BOX, torch.tensor([[torch.nan, 0.0], [0.0, 0.0]]), ValueError, r"environment 0: expected entry 0"),
    ],
)
def test_what_the_function_returned_is_checked(space: spaces.Space, actions: object, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        scripted(space, actions).choose(torch.zeros(2, 3))


def test_something_that_cannot_be_called_is_refused() -> None:
    with pytest.raises(TypeError, match=r"expected a function.*got int"):
        ScriptedPolicy(OBSERVATION, BOX, 3)  # type: ignore[arg-type]


# ---- what critics see -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "size"), [("state", 7), ("observations", 2 + 3 + 4), ("agent", 3 + 7), ("both", 7 + 9)]
)
def test_critic_spaces(kind: str, size: int) -> None:
    observations = {"a": spaces.Box(-1, 1, (2,)), "b": spaces.Discrete(3), "c": spaces.Box(0, 1, (2, 2))}
    space = critic_space(kind, "b", observations, spaces.Box(0, 1, (7,)))
    assert (space.shape, space.dtype) == ((size,), np.float32)
    assert not space.is_bounded()


def test_a_state_that_is_missing_is_named() -> None:
    for kind in CRITIC_INPUTS:
        if kind == "observations":
            assert critic_space(kind, "a", {"a": OBSERVATION}, None).shape == (3,)
        else:
            with pytest.raises(ValueError, match=f"'{kind}' needs the environment's state"):
                critic_space(kind, "a", {"a": OBSERVATION}, None)
    with pytest.raises(ValueError, match=r"expected one of \['state', 'observations', 'agent', 'both'\], got 'all'"):
        critic_space("all", "a", {"a": OBSERVATION}, None)


# ---- output layers --------------------------------------------------------------------------------------------------


def test_output_layers() -> None:
    value = Value(OBSERVATION, BOX, hidden=(5,))
    (layer,) = value.output_layers()
    assert layer.out_features == 1
    assert layer is value.net[-1]
    assert CategoricalPolicy(OBSERVATION, spaces.Discrete(4)).output_layers()[0].out_features == 4

    class Convolution(Model):
        def __init__(self) -> None:
            super().__init__(OBSERVATION, BOX)
            self.net = nn.Conv1d(1, 1, 3)

    with pytest.raises(TypeError, match=r"Convolution has no nn.Linear.*override output_layers"):
        Convolution().output_layers()
