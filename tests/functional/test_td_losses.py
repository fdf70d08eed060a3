"""Action values: the greedy choice, the chosen one's value, double Q-learning's, and the loss."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from coterie.functional import chosen_values, double_q_values, greedy_actions, td_loss

Q = torch.tensor([[1.0, 5.0, 3.0], [2.0, 2.0, -1.0]])


def bools(*rows: list[int]) -> Tensor:
    return torch.tensor(rows, dtype=torch.bool)


# ---- choices ---------------------------------------------------------------------------------------------------------


def test_the_greedy_choice_by_hand() -> None:
    # the first of the two that are equal
    assert greedy_actions(Q).tolist() == [[1], [0]]
    assert greedy_actions(Q).dtype == torch.int64
    assert greedy_actions(Q, bools([1, 0, 1], [0, 1, 1])).tolist() == [[2], [1]]
    assert greedy_actions(Q, bools([0, 0, 1])).tolist() == [[2], [2]]  # one mask for both rows
    assert greedy_actions(Q, bools([0, 0, 0], [0, 0, 0])).tolist() == [[0], [0]]


def test_what_is_forbidden_is_never_chosen() -> None:
    for garbage in (math.nan, math.inf, 1e38):
        q = torch.tensor([[garbage, -1e38, garbage]])
        assert greedy_actions(q, bools([0, 1, 0])).tolist() == [[1]]


def test_chosen_values_by_hand() -> None:
    for dtype in (torch.int64, torch.int32, torch.uint8):
        assert chosen_values(Q, torch.tensor([[2], [0]], dtype=dtype)).tolist() == [[3], [2]]
    stacked = torch.stack([Q, -Q])  # [T, B, n]
    assert chosen_values(stacked, torch.tensor([[[0], [1]], [[1], [2]]])).tolist() == [[[1], [2]], [[-5], [1]]]


def test_chosen_values_have_a_gradient_at_the_choice_alone() -> None:
    q = Q.clone().requires_grad_()
    (chosen_values(q, torch.tensor([[2], [0]])) * torch.tensor([[3.0], [7.0]])).sum().backward()
    assert q.grad is not None
    assert q.grad.tolist() == [[0, 0, 3], [7, 0, 0]]


def test_double_q_by_hand() -> None:
    # online chooses 1 and 0; target's own best would be 0 (10) and 2 (9)
    target = torch.tensor([[10.0, 20.0, 30.0], [7.0, 8.0, 9.0]])
    assert double_q_values(Q, target).tolist() == [[20], [7]]
    assert double_q_values(target, target).tolist() == [[30], [9]]
    # 1 is forbidden in the first row: online prefers 2 to 0; in the second 0 is: 1
    assert double_q_values(Q, target, bools([1, 0, 1], [0, 1, 1])).tolist() == [[30], [8]]


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf])
def test_where_nothing_is_allowed_the_value_is_zero_and_so_are_gradients(garbage: float) -> None:
    online, target = Q.clone(), 10 * Q
    online[1] = target[1] = garbage
    online.requires_grad_()
    target.requires_grad_()
    values = double_q_values(online, target, bools([1, 1, 1], [0, 0, 0]))
    assert values.tolist() == [[50], [0]]
    values.sum().backward()
    assert target.grad is not None
    assert target.grad.tolist() == [[0, 1, 0], [0, 0, 0]]


def test_masks_that_do_not_fit_are_refused() -> None:
    for use in (greedy_actions, lambda q, masks: double_q_values(q, q, masks)):
        with pytest.raises(ValueError, match=r"action_masks: expected bool, got torch.float32"):
            use(Q, torch.ones(2, 3))
        for shape in ((2, 2), (3, 3), (1, 2, 3)):
            with pytest.raises(ValueError, match=r"action_masks: expected what broadcasts to \[2, 3\], got \["):
                use(Q, torch.ones(shape, dtype=torch.bool))


# ---- the loss --------------------------------------------------------------------------------------------------------

PREDICTED = torch.tensor([[1.0, 2.0], [3.0, 4.0]])[..., None]  # [T, B, 1]
TARGETS = torch.tensor([[2.0, 5.0], [3.0, 0.0]])[..., None]  # errors 1, 3, 0, -4
MASK = bools([1, 1], [0, 1])[..., None]


def test_the_squared_loss_by_hand() -> None:
    # (1 + 9 + 16) / 3
    for delta in (0.0, 0, math.inf):
        assert float(td_loss(PREDICTED, TARGETS, MASK, delta)) == pytest.approx(26 / 3)
    everything = torch.ones_like(MASK)
    assert float(td_loss(PREDICTED, TARGETS, everything)) == pytest.approx(26 / 4)
    assert float(td_loss(PREDICTED, TARGETS, everything[:1, :1])) == pytest.approx(26 / 4)
    # over time alone: 1 / 1, (9 + 16) / 2
    assert td_loss(PREDICTED, TARGETS, MASK, dim=(0,)).tolist() == [[1], [12.5]]


def test_the_huber_loss_by_hand() -> None:
    # delta 2: 1;  2 (2 * 3 - 2) = 8;  2 (2 * 4 - 2) = 12
    for delta in (2.0, torch.tensor([2.0])):
        assert float(td_loss(PREDICTED, TARGETS, MASK, delta)) == pytest.approx(21 / 3)
    error = TARGETS[MASK]
    torchs = torch.nn.functional.huber_loss(PREDICTED[MASK], error, delta=2.0)
    torch.testing.assert_close(td_loss(PREDICTED, TARGETS, MASK, 2.0), 2.0 * torchs)


def test_each_agent_may_have_its_own_delta() -> None:
    # [T, B, A, 1] = [1, 1, 3, 1], errors of 4: 16 squared; 1 (8 - 1) = 7; 16
    predicted = torch.zeros(1, 1, 3, 1)
    deltas = torch.tensor([[0.0], [1.0], [math.inf]])
    loss = td_loss(predicted, predicted + 4, torch.ones(1, 1, 1, 1, dtype=torch.bool), deltas, dim=(0, 1, 3))
    assert loss.tolist() == [16, 7, 16]
    assert deltas.tolist() == [[0.0], [1.0], [math.inf]]


def test_samples_have_weights() -> None:
    # B is dimension 1: (0.5 * 1 + 2 * 9 + 2 * 16) / 3
    weights = torch.tensor([0.5, 2.0])
    assert float(td_loss(PREDICTED, TARGETS, MASK, weights=weights)) == pytest.approx(50.5 / 3)
    # one more time step and two agents, so that no two dimensions are equal
    predicted, targets = torch.randn(2, 5, 3, 2, 1)
    weights = torch.rand(3)
    by_hand = ((targets - predicted) ** 2 * weights[None, :, None, None]).mean()
    torch.testing.assert_close(td_loss(predicted, targets, torch.ones(1, dtype=torch.bool), weights=weights), by_hand)


def test_gradients_by_hand() -> None:
    # -2 e w / 3 for those that count
    predicted = PREDICTED.clone().requires_grad_()
    td_loss(predicted, TARGETS, MASK, weights=torch.tensor([0.5, 2.0])).backward()
    assert predicted.grad is not None
    torch.testing.assert_close(predicted.grad.flatten(), torch.tensor([-1.0, -12, 0, 16]) / 3)
    predicted = PREDICTED.clone().requires_grad_()
    td_loss(predicted, TARGETS, MASK, 2.0).backward()  # -2 min(|e|, delta)
    assert predicted.grad is not None
    torch.testing.assert_close(predicted.grad.flatten(), torch.tensor([-2.0, -4, 0, 4]) / 3)


@pytest.mark.parametrize("delta", [0.0, 2.0])
@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 1e38])
def test_what_does_not_count_has_no_effect(garbage: float, delta: float) -> None:
    clean = PREDICTED.clone().requires_grad_()
    expected = td_loss(clean, TARGETS, MASK, delta)
    expected.backward()
    for place in ("predicted", "targets", "both"):
        predicted, targets = PREDICTED.clone(), TARGETS.clone()
        if place != "targets":
            predicted[~MASK] = garbage
        if place != "predicted":
            targets[~MASK] = -garbage
        predicted.requires_grad_()
        loss = td_loss(predicted, targets, MASK, delta)
        loss.backward()
        assert torch.equal(loss, expected)
        assert torch.equal(predicted.grad, clean.grad)


def test_a_sample_that_does_not_count_may_have_any_weight() -> None:
    predicted = PREDICTED.clone().requires_grad_()
    mask = bools([1, 0], [1, 0])[..., None]
    loss = td_loss(predicted, TARGETS, mask, weights=torch.tensor([1.0, math.nan]))
    loss.backward()
    assert loss.item() == 0.5
    assert predicted.grad.flatten().tolist() == [-1, 0, 0, 0]


def test_nothing_that_counts_is_a_loss_of_zero() -> None:
    predicted = torch.full((2, 2, 1), math.nan, requires_grad=True)
    loss = td_loss(predicted, predicted.detach(), torch.zeros(2, 2, 1, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert not predicted.grad.any()


def test_targets_have_no_gradient() -> None:
    predicted, targets = PREDICTED.clone().requires_grad_(), TARGETS.clone().requires_grad_()
    td_loss(predicted, targets, MASK).backward()
    assert targets.grad is None


def test_tensors_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"targets: expected the predictions' shape \[2, 2, 1\], got \[2, 2\]"):
        td_loss(PREDICTED, TARGETS[..., 0], MASK)
    with pytest.raises(ValueError, match=r"mask: expected bool, got torch.float32"):
        td_loss(PREDICTED, TARGETS, MASK.float())
    with pytest.raises(ValueError, match=r"mask: expected what broadcasts to \[2, 2, 1\], got \[2, 2, 2\]"):
        td_loss(PREDICTED, TARGETS, MASK.expand(2, 2, 2))
    for shape in ((3,), (2, 1), (1, 2, 1)):
        with pytest.raises(ValueError, match=r"weights: expected one for each sample, \[B\]"):
            td_loss(PREDICTED, TARGETS, MASK, weights=torch.ones(shape))
    with pytest.raises(ValueError, match="weights: expected one for each sample"):
        td_loss(torch.ones(2), torch.ones(2), torch.ones(2, dtype=torch.bool), weights=torch.ones(()))
