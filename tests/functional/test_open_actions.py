"""Last actions of agents that wait when a rollout ends: what they earned so far says nothing of them, nor of those before."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from coterie.functional import gae, multi_agent_gae
from tests.functional.test_advantages import column, flags, random_rollout

REWARDS, VALUES, FOLLOWING = column(1, 2, 3, 4, 5), column(10, 20, 30, 40, 50), column(91, 92, 93, 94, 60)
NEVER = flags(0, 0, 0, 0, 0)
ACTS, WAITS = (torch.full((1, 1, 1), acts) for acts in (True, False))
DISCOUNT, LAMBDA = 0.5, 0.5  # discount * lambda = 0.25
ACTIVE = flags(1, 0, 0, 1, 0)


def found(
    terminated: Tensor, truncated: Tensor, active: Tensor | None, active_next: Tensor | None
) -> list[list[float]]:
    both = gae(REWARDS, VALUES, FOLLOWING, terminated, truncated, DISCOUNT, LAMBDA, active, active_next)
    return [tensor.flatten().tolist() for tensor in both]


def test_an_open_action_passes_on_its_value_alone() -> None:
    # row 3 is open; row 0: earns 1 + 2 + 3, then acts on a state worth 40: 6 + 0.5 * 40 - 10 = 16, and nothing of row 3
    assert found(NEVER, NEVER, ACTIVE, WAITS) == [[16, 0, 0, 0, 0], [26, 20, 30, 40, 50]]
    # who acts after the rollout has earned 4 + 5 for row 3: 9 + 0.5 * 60 - 40 = -1; 16 + 0.25 * -1 = 15.75
    for told in (ACTS, None):
        assert found(NEVER, NEVER, ACTIVE, told) == [[15.75, 0, 0, -1, 0], [25.75, 20, 30, 39, 50]]


@pytest.mark.parametrize(("end", "last"), [("terminated", -31.0), ("truncated", -1.0)])
def test_an_end_that_follows_closes_the_last_action(end: str, last: float) -> None:
    # row 4, while the agent waits: 4 + 5 - 40 = -31; cut off at a state worth 60: 9 + 0.5 * 60 - 40 = -1
    ends = {"terminated": NEVER, "truncated": NEVER, end: flags(0, 0, 0, 0, 1)}
    assert found(**ends, active=ACTIVE, active_next=WAITS)[0] == [16 + 0.25 * last, 0, 0, last, 0]
    # an end before it cuts it off from row 0: terminated, 6 - 10 = -4; truncated at a state worth 93, 6 + 46.5 - 10 = 42.5
    ends = {"terminated": NEVER, "truncated": NEVER, end: flags(0, 0, 1, 0, 0)}
    first = -4 if end == "terminated" else 42.5
    assert found(**ends, active=ACTIVE, active_next=WAITS)[0] == [first, 0, 0, 0, 0]


def test_all_may_act_in_every_row_and_wait_after_the_last() -> None:
    # row 4 is open; row 3: 4 + 0.5 * 50 - 40 = -11; row 2: 3 + 0.5 * 40 - 30 = -7, and 0.25 * -11 = -2.75
    advantages, returns = found(NEVER, NEVER, None, WAITS)
    assert advantages[2:] == [-9.75, -11, 0]
    assert returns[2:] == [20.25, 29, 50]
    # those who act: 5 + 0.5 * 60 - 50 = -15; row 3: -11 + 0.25 * -15 = -14.75
    assert found(NEVER, NEVER, None, ACTS)[0][3:] == [-14.75, -15]


@pytest.mark.parametrize("rows", [9, 80])
@pytest.mark.parametrize("garbage", [math.nan, math.inf])
def test_what_was_earned_since_an_open_action_has_no_effect(rows: int, garbage: float) -> None:
    rollout = random_rollout(rows, (2, 3, 1), ends=0.0)
    rollout["active"][-4], rollout["active"][-3:] = True, False
    following = torch.zeros(2, 3, 1, dtype=torch.bool)
    before = gae(**rollout, discount=0.9, gae_lambda=0.8, active_next=following)
    rollout["rewards"][-4:], rollout["next_values"][-1] = garbage, garbage
    after = gae(**rollout, discount=0.9, gae_lambda=0.8, active_next=following)
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))


def test_time_may_be_elsewhere() -> None:
    rollout = random_rollout(6, (4, 3, 1))
    following = torch.rand(4, 3, 1, generator=torch.Generator().manual_seed(1)) < 0.5
    expected = gae(**rollout, discount=0.9, gae_lambda=0.8, active_next=following)
    moved = {name: tensor.transpose(0, 1) for name, tensor in rollout.items()}
    mine = multi_agent_gae(**moved, discount=0.9, gae_lambda=0.8, active_next=following)
    assert all(torch.equal(x.transpose(0, 1), y) for x, y in zip(mine, expected, strict=True))
    plain = gae(**rollout, discount=0.9, gae_lambda=0.8)
    assert not torch.equal(plain[0], expected[0])


@pytest.mark.parametrize("wrong", [WAITS.float(), WAITS[0], WAITS.expand(2, 1, 1)])
def test_who_acts_next_must_be_bool_of_the_values_shape_without_time(wrong: Tensor) -> None:
    for active in (None, ACTIVE):
        with pytest.raises(ValueError, match=r"expected active_next as bool of shape \[1, 1, 1\], got"):
            found(NEVER, NEVER, active, wrong)
