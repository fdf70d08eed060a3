"""The slow reference itself, by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from coterie.models.recurrent import GRU, LSTM
from tests.agents.ppo_presence import GOING_ON, LIVES, make_plan
from tests.agents.ppo_reference_parts import Allowed, RescalingMoments
from tests.agents.ppo_reference_time import (
    ABSENT,
    ACTIVE,
    WAITING,
    Cells,
    Life,
    Masks,
    Outcome,
    Step,
    advantages_of,
    outcomes,
    walk,
)
from tests.agents.ppo_runs import CUTS, ENDINGS, T

NEVER = [False] * 4


def life(
    status: list[str],
    rewards: list[float],
    terminated: list[bool] | None = None,
    truncated: list[bool] | None = None,
    after: str = ACTIVE,
) -> Life:
    never = [False] * len(status)
    return Life(status, after, rewards, terminated or never, truncated or never)


def test_actions_and_what_they_led_to() -> None:
    # acts, waits, acts, is absent (and earns nothing), acts and waits until the end
    status = [ACTIVE, WAITING, ACTIVE, ABSENT, ACTIVE, WAITING]
    known = outcomes(life(status, [1.0, 2.0, 4.0, 0.0, 8.0, 16.0], after=WAITING))
    assert known == [
        Outcome(0, 1, "next", 3.0),
        Outcome(2, 3, "next", 4.0),
        Outcome(4, 5, "unknown", 24.0),
    ]
    assert [outcome.counts for outcome in known] == [True, True, False]
    assert outcomes(life(status, [1.0, 2.0, 4.0, 0.0, 8.0, 16.0]))[-1] == Outcome(4, 5, "beyond", 24.0)


def test_an_end_closes_the_last_action_and_what_follows_belongs_to_none() -> None:
    status = [ACTIVE, WAITING, WAITING, ACTIVE]
    ends = [False, True, False, False]
    for kind, flags in (("terminated", (ends, NEVER)), ("truncated", (NEVER, ends)), ("terminated", (ends, ends))):
        known = outcomes(life(status, [1.0, 2.0, 4.0, 8.0], *flags))
        assert known == [Outcome(0, 1, kind, 3.0), Outcome(3, 3, "beyond", 8.0)]


@pytest.mark.parametrize("bootstrap", [True, False])
def test_advantages(bootstrap: bool) -> None:
    # values 1, 2, 3, 4 and 5 after the last row; everything earns 1; discount and lambda 0.5.
    # going on:        delta 1, .5, 0, -.5
    going_on = outcomes(life([ACTIVE] * 4, [1.0] * 4))
    values = [1.0, 2.0, 3.0, 4.0]
    found = advantages_of(going_on, values, lambda t: math.nan, 5.0, 0.5, 0.5, bootstrap)
    assert found == {0: 1.11718750, 1: 0.46875, 2: -0.125, 3: -0.5}
    # terminated in row 0, truncated in row 2 at a state worth 7: delta 0, .5, 1.5 (-2 without a bootstrap), -.5
    broken = outcomes(life([ACTIVE] * 4, [1.0] * 4, [True, False, False, False], [False, False, True, False]))
    found = advantages_of(broken, values, lambda t: {2: 7.0}[t], 5.0, 0.5, 0.5, bootstrap)
    last = 1.5 if bootstrap else -2.0
    assert found == {0: 0.0, 1: 0.5 + 0.25 * last, 2: last, 3: -0.5}


def test_an_action_that_waits_for_its_outcome_passes_on_its_value_alone() -> None:
    # row 2 is open; row 0: 1 + 1 + 0.5 * 3 - 1 = 2.5
    known = outcomes(life([ACTIVE, WAITING, ACTIVE, WAITING], [1.0] * 4, after=WAITING))
    found = advantages_of(known, [1.0, math.nan, 3.0, math.nan], lambda t: math.nan, 5.0, 0.5, 0.5, True)
    assert found == {0: 2.5}


def test_an_end_in_absence_is_a_termination() -> None:
    status = [ACTIVE, ABSENT, ABSENT, ACTIVE]
    missed = Life(status, ACTIVE, [1.0, 0.0, 0.0, 8.0], NEVER, NEVER, [False, False, True, False])
    assert outcomes(missed) == [Outcome(0, 2, "terminated", 1.0), Outcome(3, 3, "beyond", 8.0)]
    assert [missed.done(t) for t in range(4)] == [False, False, True, False]


def test_only_allowed_choices_have_a_probability() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]).log().double()
    some = Allowed(
        torch.tensor([[1.0, 2.0, 3.0], [1.0, 1.0, 1.0]]).log(), torch.tensor([[True, False, True], [True] * 3])
    )
    torch.testing.assert_close(some.log_prob(torch.tensor([2, 0])), torch.tensor([3 / 4, 1 / 3]).log())
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    torch.testing.assert_close(some.entropy(), torch.tensor([entropy, math.log(3)]))
    with pytest.raises(ValueError, match="not in list"):
        some.log_prob(torch.tensor([1, 0]))
    torch.testing.assert_close(
        Allowed(logits, None).log_prob(torch.tensor([0, 0])).exp()[0], torch.tensor(1 / 6).double()
    )


def test_masks() -> None:
    masks = Masks(
        active={"a": torch.tensor([[True], [False], [False]])}, waiting={"a": torch.tensor([[False], [True], [False]])}
    )
    assert [masks.status("a", e) for e in range(3)] == [ACTIVE, WAITING, ABSENT]
    seen = torch.tensor([[1.0], [2.0], [math.nan]])
    assert masks.cleaned(seen, "a").tolist() == [[1.0], [2.0], [0.0]]


def test_who_is_seen_in_last_states() -> None:
    """By environment: a is cut off while b lives on, or dies; the episode ends for both by time, or b dies in that step."""
    flag = torch.tensor([[True]]).expand(4, 1)
    b_next = torch.tensor([[True], [False], [True], [True]])
    step = Step(
        *(0, 1, {}, {}, {}, {}, {}),
        {"a": ~flag, "b": torch.tensor([[False], [True], [False], [True]]), "c": ~flag},
        {
            "a": flag,
            "b": torch.tensor([[False], [False], [True], [False]]),
            "c": torch.tensor([[0], [0], [1], [1]]).bool(),
        },
        *(torch.zeros(4, 1), torch.zeros(4, 1)),
        masks=Masks(active={"a": flag, "b": flag, "c": torch.tensor([[True], [True], [True], [False]])}),
        next_masks=Masks(active={"a": ~flag, "b": b_next, "c": flag}),
    )  # c goes on in environments 0 and 1, and is absent in the last one
    assert [step.over(e) for e in range(4)] == [False, False, True, True]
    last = step.last_masks()
    assert [last.status("a", e) for e in range(4)] == [ACTIVE] * 4
    assert [last.status("b", e) for e in range(4)] == [ACTIVE, ABSENT, ACTIVE, ABSENT]
    assert [last.status("c", e) for e in range(4)] == [ACTIVE, ACTIVE, ACTIVE, ABSENT]


@pytest.mark.parametrize(("ours", "theirs"), [(GRU, nn.GRU), (LSTM, nn.LSTM)])
def test_cells_are_torch_s_layers(ours: type, theirs: type) -> None:
    layer = ours(3, 4, 2)
    cells = Cells(layer)
    stock = theirs(3, 4, 2)
    stock.load_state_dict(layer.state_dict())
    x = torch.randn(5, 2, 3)
    memory = [torch.zeros(2, 2, 4) for _ in range(1 if ours is GRU else 2)]
    found = []
    for row in x:
        y, memory = cells(row, {"rnn": memory})
        found.append(y)
    expected, last = stock(x)
    torch.testing.assert_close(torch.stack(found), expected)
    torch.testing.assert_close(tuple(memory), (last,) if ours is GRU else last)


def test_a_walk_freezes_and_forgets() -> None:
    # a memory that adds up what it sees; row 1 is not remembered, row 2 ends an episode
    result = walk(
        lambda x, memory: ((x,), [memory[0] + x]),
        [torch.tensor([v]) for v in (1.0, 2.0, 4.0, 8.0)],
        [torch.zeros(1, 1)],
        [False, True, False, False],
        [False, False, True, False],
    )
    assert [float(memory[0]) for memory in result.before] == [0.0, 1.0, 1.0, 0.0]
    assert [float(memory[0]) for memory in result.after] == [1.0, 1.0, 5.0, 8.0]
    assert float(result.last[0]) == 8.0


def test_rescaling_moments() -> None:
    scale = RescalingMoments(beta=0.5)
    assert scale.denormalise(torch.tensor([3.0]).double()).tolist() == [0.0]
    scale.learn(torch.tensor([[1.0], [3.0]]))
    assert scale.normalise(torch.tensor([3.0]).double()).tolist() == [1.0]
    # weights 0.25 and 0.5 of 0.75: mean (2 + 2 * 6) / 3 = 14/3, of squares (5 + 2 * 36) / 3, variance 77/3 - 196/9 = 35/9
    scale.learn(torch.tensor([[6.0], [6.0]]))
    mean, std = scale.moments()
    torch.testing.assert_close((float(mean), float(std)), (14 / 3, math.sqrt(35) / 3))


@pytest.mark.parametrize("endings", [ENDINGS, CUTS])
@pytest.mark.parametrize("style", ["present", "lives", "leaves", "turns", "waits"])
@pytest.mark.parametrize("seed", range(5))
def test_made_up_lives_are_possible(style: str, endings: Any, seed: int) -> None:
    names = ["a", "b", "c"]
    plan = make_plan(names, 3, T, endings, style, seed)
    ends = {
        (u * T + t, e)
        for u, each in enumerate(endings)
        for kind, where in each.items()
        for t, e in where
        if kind not in GOING_ON
    }
    seen = set()
    left = 0
    for e in range(3):
        unfinished: set[str] = set()
        for k in range(2 * T):
            here = {uid for uid in names if plan.status[uid][k][e] != ABSENT}
            seen |= {plan.status[uid][k][e] for uid in names}
            assert here, "somebody is always there"
            assert bool(plan.over(k)[e]) == ((k, e) in ends)
            unfinished |= {uid for uid in names if plan.status[uid][k][e] == ACTIVE}
            unfinished -= {uid for uid in here if plan.terminated[uid][k][e] or plan.truncated[uid][k][e]}
            if (k, e) in ends:
                assert not (unfinished & here)
                left += len(unfinished)
                unfinished = set()
    waiting = {ACTIVE} if style == "present" else {ACTIVE, WAITING}
    assert seen == waiting | ({ABSENT} if style in LIVES else set())
    assert (left > 0) == (style == "leaves"), "who left without an end"
