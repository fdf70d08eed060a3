from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from coterie.functional import gae, standardise


def column(*numbers: float) -> Tensor:
    """One environment, one agent: ``[T, 1, 1, 1]``."""
    return torch.tensor(numbers, dtype=torch.float32).view(-1, 1, 1, 1)


def flags(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.bool).view(-1, 1, 1, 1)


NEVER = flags(0, 0, 0)
REWARDS = column(1, 2, 3)
VALUES = column(10, 20, 30)
DISCOUNT, LAMBDA = 0.5, 0.5  # discount * lambda = 0.25


def test_mid_episode() -> None:
    # next values: 20, 30, then 40 behind the last row
    # delta_0 = 1 + 0.5 * 20 - 10 = 1        A_0 = 1 + 0.25 * -2.25 = 0.4375
    # delta_1 = 2 + 0.5 * 30 - 20 = -3       A_1 = -3 + 0.25 * -7  = -4.75
    # delta_2 = 3 + 0.5 * 40 - 30 = -7       A_2 = -7
    advantages, returns = gae(REWARDS, VALUES, column(20, 30, 40), NEVER, NEVER, DISCOUNT, LAMBDA)
    a_1 = -3 + 0.25 * -7
    torch.testing.assert_close(advantages, column(1 + 0.25 * a_1, a_1, -7))
    torch.testing.assert_close(returns, column(1 + 0.25 * a_1 + 10, a_1 + 20, 23))


def test_terminated() -> None:
    # step 1 terminates: its successor is worth nothing, whatever V says, and nothing behind it reaches back
    # delta_1 = 2 - 20 = -18                 A_1 = -18
    # delta_0 = 1                            A_0 = 1 + 0.25 * -18 = -3.5
    advantages, returns = gae(REWARDS, VALUES, column(20, 99, 40), flags(0, 1, 0), NEVER, DISCOUNT, LAMBDA)
    torch.testing.assert_close(advantages, column(-3.5, -18, -7))
    torch.testing.assert_close(returns, column(6.5, 2, 23))


def test_truncated() -> None:
    # step 1 is cut at a state worth 50: the bootstrap stays, the recursion ends
    # delta_1 = 2 + 0.5 * 50 - 20 = 7        A_1 = 7
    # delta_0 = 1                            A_0 = 1 + 0.25 * 7 = 2.75
    advantages, returns = gae(REWARDS, VALUES, column(20, 50, 40), NEVER, flags(0, 1, 0), DISCOUNT, LAMBDA)
    torch.testing.assert_close(advantages, column(2.75, 7, -7))
    torch.testing.assert_close(returns, column(12.75, 27, 23))


def test_terminated_and_truncated_at_once_counts_as_terminated() -> None:
    both = flags(0, 1, 0)
    together = gae(REWARDS, VALUES, column(20, 99, 40), both, both, DISCOUNT, LAMBDA)
    alone = gae(REWARDS, VALUES, column(20, 99, 40), both, NEVER, DISCOUNT, LAMBDA)
    torch.testing.assert_close(together, alone)


def test_termination_hides_a_value_that_is_not_a_number() -> None:
    advantages, _ = gae(REWARDS, VALUES, column(20, float("nan"), 40), flags(0, 1, 0), NEVER, DISCOUNT, LAMBDA)
    torch.testing.assert_close(advantages, column(-3.5, -18, -7))


def test_lambda_one_is_the_discounted_sum_and_lambda_zero_one_step() -> None:
    # returns: 1 + 0.5 * 2 + 0.25 * 3 + 0.125 * 40 = 7.75; 2 + 1.5 + 0.25 * 40 = 13.5; 3 + 20 = 23
    _, returns = gae(REWARDS, VALUES, column(20, 30, 40), NEVER, NEVER, 0.5, 1.0)
    torch.testing.assert_close(returns, column(7.75, 13.5, 23))
    _, returns = gae(REWARDS, VALUES, column(20, 30, 40), NEVER, NEVER, 0.5, 0.0)
    torch.testing.assert_close(returns, column(11, 17, 23))


def test_each_agent_has_its_own_discount_and_lambda() -> None:
    T, E, A = 5, 3, 2
    rewards, values, following = torch.randn(3, T, E, A, 1)
    terminated, truncated = torch.rand(2, T, E, A, 1) < 0.2
    discounts, lambdas = torch.tensor([[0.9], [0.5]]), torch.tensor([[0.95], [0.3]])
    advantages, returns = gae(rewards, values, following, terminated, truncated, discounts, lambdas)
    for a in range(A):
        own = [x[:, :, a] for x in (rewards, values, following, terminated, truncated)]
        expected = gae(*own, float(discounts[a]), float(lambdas[a]))
        torch.testing.assert_close((advantages[:, :, a], returns[:, :, a]), expected)


def test_environments_are_independent() -> None:
    data = [torch.randn(4, 2, 1, 1) for _ in range(3)]
    ends = torch.tensor([[0, 1], [0, 0], [1, 0], [0, 0]], dtype=torch.bool).view(4, 2, 1, 1)
    advantages, _ = gae(*data, ends, torch.zeros_like(ends), 0.9, 0.9)
    for e in range(2):
        alone, _ = gae(*(x[:, e] for x in data), ends[:, e], torch.zeros_like(ends[:, e]), 0.9, 0.9)
        torch.testing.assert_close(advantages[:, e], alone)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), length=st.integers(2, 12), data=st.data(), truncated=st.booleans())
def test_nothing_crosses_the_end_of_an_episode(seed: int, length: int, data: st.DataObject, truncated: bool) -> None:
    end = data.draw(st.integers(0, length - 2))
    generator = torch.Generator().manual_seed(seed)
    rewards, values, following = torch.randn(3, length, 1, 1, 1, generator=generator)
    ends = torch.zeros(length, 1, 1, 1, dtype=torch.bool)
    ends[end] = True
    none = torch.zeros_like(ends)
    kind = (none, ends) if truncated else (ends, none)
    before = gae(rewards, values, following, *kind, 0.99, 0.95)
    rewards, values, following = rewards.clone(), values.clone(), following.clone()
    for tensor in (rewards, values, following):
        tensor[end + 1 :] += 100.0
    after = gae(rewards, values, following, *kind, 0.99, 0.95)
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old[: end + 1], new[: end + 1])
        assert not torch.equal(old[end + 1 :], new[end + 1 :])


@pytest.mark.parametrize("end", ["nothing", "termination", "truncation"])
def test_the_last_value_counts_unless_the_task_ended(end: str) -> None:
    terminated = flags(0, 0, end == "termination")
    truncated = flags(0, 0, end == "truncation")
    results = [gae(REWARDS, VALUES, column(20, 30, v), terminated, truncated, 0.9, 0.9)[0] for v in (0.0, 10.0)]
    # 0.9 * 10 = 9 at the last step, times 0.81 at each step before
    difference = column(9 * 0.81**2, 9 * 0.81, 9) if end != "termination" else column(0, 0, 0)
    torch.testing.assert_close(results[1] - results[0], difference, atol=1e-5, rtol=0)


def test_inputs_are_left_alone() -> None:
    inputs = [REWARDS.clone(), VALUES.clone(), column(20, 30, 40)]
    gae(*inputs, flags(0, 1, 0), flags(0, 0, 1), 0.9, 0.9)
    assert torch.equal(inputs[0], REWARDS)
    assert torch.equal(inputs[1], VALUES)


@pytest.mark.parametrize("name", ["values", "next_values", "terminated", "truncated"])
def test_a_tensor_of_another_shape_is_named(name: str) -> None:
    tensors = {"values": VALUES, "next_values": VALUES, "terminated": NEVER, "truncated": NEVER}
    # [3, 1, 1] would broadcast against [3, 1, 1, 1] into nonsense
    tensors[name] = tensors[name].squeeze(-1)
    with pytest.raises(ValueError, match=rf"expected {name} of shape \[3, 1, 1, 1\].*\[3, 1, 1\]"):
        gae(REWARDS, **tensors, discount=0.9, gae_lambda=0.9)


def test_standardise_by_hand() -> None:
    # mean 2, unbiased variance ((1)^2 + 0 + 1^2) / 2 = 1
    torch.testing.assert_close(standardise(torch.tensor([1.0, 2.0, 3.0]), (0,)), torch.tensor([-1.0, 0.0, 1.0]))


def test_standardise_over_time_and_environments_keeps_agents_apart() -> None:
    x = torch.randn(6, 4, 3, 1) * torch.tensor([1.0, 10.0, 100.0]).view(3, 1) + 5
    y = standardise(x, (0, 1))
    torch.testing.assert_close(y.mean(dim=(0, 1)), torch.zeros(3, 1), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.std(dim=(0, 1)), torch.ones(3, 1))


def test_standardise_of_one_sample_is_zero() -> None:
    y = standardise(torch.full((1, 1, 2, 1), 7.0), (0, 1))
    assert torch.equal(y, torch.zeros(1, 1, 2, 1))


def test_standardise_of_equal_numbers_is_finite() -> None:
    assert torch.equal(standardise(torch.full((4, 2, 1), 3.0), (0,)), torch.zeros(4, 2, 1))
