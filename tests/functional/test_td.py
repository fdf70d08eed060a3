"""Targets of action values over several steps, against the arithmetic and against a slow loop over each agent's own actions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from coterie.functional import td_returns
from tests.functional.test_advantages import column, flags

NEVER = flags(0, 0, 0)
REWARDS, NEXT = column(1, 2, 3), column(20, 30, 40)


def found(result: tuple[Tensor, Tensor]) -> list[float | None]:
    """The targets, None where there is none (and then 0)."""
    targets, known = result
    assert not targets[~known].any()
    return [x if k else None for x, k in zip(targets.flatten().tolist(), known.flatten().tolist(), strict=True)]


# ---- one step --------------------------------------------------------------------------------------------------------


def test_one_step_mid_episode_and_at_the_end_of_the_window() -> None:
    # 1 + 0.5 * 20, 2 + 0.5 * 30, and behind the last row 3 + 0.5 * 40
    assert found(td_returns(REWARDS, NEXT, NEVER, NEVER, 0.5)) == [11, 17, 23]


def test_one_step_terminated() -> None:
    # row 1 leads nowhere, whatever V says
    for garbage in (30.0, math.nan, math.inf):
        following = column(20, garbage, 40)
        assert found(td_returns(REWARDS, following, flags(0, 1, 0), flags(0, 1, 0), 0.5)) == [11, 2, 23]


def test_one_step_truncated() -> None:
    # the last observation of row 1 is worth 50: 2 + 0.5 * 50
    assert found(td_returns(REWARDS, column(20, 50, 40), NEVER, flags(0, 1, 0), 0.5)) == [11, 27, 23]


def test_a_termination_is_an_end_also_where_ended_does_not_say_so() -> None:
    both = td_returns(REWARDS, NEXT, flags(0, 1, 0), flags(0, 1, 0), 0.5, td_lambda=0.5)
    alone = td_returns(REWARDS, NEXT, flags(0, 1, 0), NEVER, 0.5, td_lambda=0.5)
    assert found(both) == found(alone)


# ---- several steps ---------------------------------------------------------------------------------------------------


def test_lambda_mid_episode() -> None:
    # G_2 = 3 + 0.5 * 40 = 23;  G_1 = 2 + 0.5 (0.5 * 30 + 0.5 * 23) = 15.25;  G_0 = 1 + 0.5 (0.5 * 20 + 0.5 * 15.25)
    assert found(td_returns(REWARDS, NEXT, NEVER, NEVER, 0.5, td_lambda=0.5)) == [9.8125, 15.25, 23]


def test_lambda_terminated() -> None:
    # G_1 = 2;  G_0 = 1 + 0.5 (0.5 * 20 + 0.5 * 2) = 6.5
    ends = flags(0, 1, 0)
    assert found(td_returns(REWARDS, column(20, 99, 40), ends, ends, 0.5, td_lambda=0.5)) == [6.5, 2, 23]


def test_lambda_truncated() -> None:
    # G_1 = 2 + 0.5 * 50 = 27;  G_0 = 1 + 0.5 (0.5 * 20 + 0.5 * 27) = 12.75
    result = td_returns(REWARDS, column(20, 50, 40), NEVER, flags(0, 1, 0), 0.5, td_lambda=0.5)
    assert found(result) == [12.75, 27, 23]


def test_lambda_zero_is_one_step_and_lambda_one_is_monte_carlo() -> None:
    for zero in (0.0, 0, torch.tensor([[0.0]])):
        assert found(td_returns(REWARDS, NEXT, NEVER, NEVER, 0.5, td_lambda=zero)) == [11, 17, 23]
    # 1 + 0.5 * 2 + 0.25 * 3 + 0.125 * 40 = 7.75;  2 + 1.5 + 0.25 * 40 = 13.5;  3 + 20
    assert found(td_returns(REWARDS, NEXT, NEVER, NEVER, 0.5, td_lambda=1.0)) == [7.75, 13.5, 23]
    # up to the end: 1 + 0.5 * 2 = 2;  2;  3 + 20
    assert found(td_returns(REWARDS, NEXT, flags(0, 1, 0), flags(0, 1, 0), 0.5, td_lambda=1.0)) == [2, 2, 23]


def test_n_steps() -> None:
    # two: 1 + 0.5 * 2 + 0.25 * 30 = 9.5;  2 + 0.5 * 3 + 0.25 * 40 = 13.5;  of the last row there is one: 3 + 0.5 * 40
    assert found(td_returns(REWARDS, NEXT, NEVER, NEVER, 0.5, n_step=2)) == [9.5, 13.5, 23]
    # three, and more than there are
    for n in (3, 4, 1000):
        assert found(td_returns(REWARDS, NEXT, NEVER, NEVER, 0.5, n_step=n)) == [7.75, 13.5, 23]


@pytest.mark.parametrize("n", [2, 3, 9])
def test_n_steps_beyond_an_episode(n: int) -> None:
    ends = flags(0, 1, 0)
    # terminated: 1 + 0.5 * 2 = 2;  2.  truncated: 1 + 0.5 * 2 + 0.25 * 50 = 14.5;  2 + 0.5 * 50 = 27
    assert found(td_returns(REWARDS, column(20, 99, 40), ends, ends, 0.5, n_step=n)) == [2, 2, 23]
    assert found(td_returns(REWARDS, column(20, 50, 40), NEVER, ends, 0.5, n_step=n)) == [14.5, 27, 23]


def test_n_steps_count_from_each_row() -> None:
    # discount 0.5, n = 2, five rows, terminated in row 3
    # 1 + 0.5 * 2 + 0.25 * 30;  2 + 0.5 * 3 + 0.25 * 40;  3 + 0.5 * 4;  4;  5 + 0.5 * 60
    rewards, following, ends = column(1, 2, 3, 4, 5), column(20, 30, 40, 50, 60), flags(0, 0, 0, 1, 0)
    assert found(td_returns(rewards, following, ends, ends, 0.5, n_step=2)) == [9.5, 13.5, 5, 4, 35]


@pytest.mark.parametrize("several", [{"n_step": 3}, {"td_lambda": 0.5}, {"td_lambda": 1.0}])
def test_a_last_observation_stands_between_two_episodes(several: dict[str, float]) -> None:
    # row 1 is cut at the state that row 2 shows, worth 50; row 3 begins the next episode. Row 2 holds no step
    acted = flags(1, 1, 0, 1, 1)
    for garbage in (0.0, 77.0, math.nan, math.inf):
        rewards, following = column(1, 2, garbage, 4, 5), column(20, 50, garbage, 60, 70)
        for ended in (flags(0, 1, 0, 0, 0), flags(0, 1, 1, 0, 0)):
            none = flags(0, 0, 0, 0, 0)
            plain = td_returns(rewards, following, none, ended, 0.5, **several)[0].flatten().tolist()
            told = found(td_returns(rewards, following, none, ended, 0.5, active=acted, **several))
            assert told[2] is None
            # 2 + 0.5 * 50;  5 + 0.5 * 70
            assert (plain[1], plain[4]) == (told[1], told[4]) == (27, 40)
            # 1 + 0.5 * 27 and 4 + 0.5 * 40;  or half of each with 20 and 60
            half = several.get("td_lambda") == 0.5
            assert (told[0], told[3]) == ((12.75, 29) if half else (14.5, 24))
            assert (plain[0], plain[3]) == (told[0], told[3])


def test_what_is_filled_up_behind_an_episode_has_no_effect() -> None:
    ends = flags(0, 0, 1, 0, 0)
    for several in ({}, {"n_step": 4}, {"td_lambda": 0.9}):
        short = td_returns(REWARDS, NEXT, ends[:3], ends[:3], 0.9, **several)
        for garbage in (1.0, math.nan, math.inf):
            rewards, following = (torch.cat([x, column(garbage, garbage)]) for x in (REWARDS, NEXT))
            long = td_returns(rewards, following, ends, ends, 0.9, active=flags(1, 1, 1, 0, 0), **several)
            assert found(long) == [*found(short), None, None]


def test_each_agent_has_its_own_discount_and_lambda() -> None:
    T, E, A = 7, 3, 2
    rewards, following = torch.randn(2, T, E, A, 1)
    terminated, truncated, active = torch.rand(3, T, E, A, 1) < 0.3
    discounts, lambdas = torch.tensor([[0.9], [0.5]]), torch.tensor([[0.95], [0.3]])
    for own_time in (False, True):
        for several in ({"td_lambda": lambdas}, {"n_step": 3}, {}):
            mask = {"active": active} if own_time else {}
            both = td_returns(rewards, following, terminated, terminated | truncated, discounts, **several, **mask)
            for a in range(A):
                data = [x[:, :, a] for x in (rewards, following, terminated, terminated | truncated)]
                mine = {"td_lambda": float(lambdas[a])} if "td_lambda" in several else several
                alone = td_returns(*data, float(discounts[a]), **mine, active=active[:, :, a] if own_time else None)
                torch.testing.assert_close(both[0][:, :, a], alone[0])
                assert torch.equal(both[1][:, :, a], alone[1])


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 3, 2), (4, 3, 2, 1), (4, 2, 2, 2, 2)])
def test_any_trailing_shape(shape: tuple[int, ...]) -> None:
    rewards, following = torch.randn(2, *shape)
    terminated, active = torch.rand(2, *shape) < 0.4
    for several in ({"td_lambda": 0.5}, {"n_step": 3}):
        result = td_returns(rewards, following, terminated, terminated, 0.9, active=active, **several)
        flat = td_returns(*(x.view(4, -1) for x in (rewards, following, terminated, terminated)), 0.9,
                          active=active.view(4, -1), **several)  # fmt: skip
        assert result[0].shape == result[1].shape == shape
        assert torch.equal(result[0].view(4, -1), flat[0])


@pytest.mark.parametrize("thin", [False, True])
def test_what_the_team_shares_counts_for_each_agent(thin: bool) -> None:
    T, E, A = 5, 2, 3
    following = torch.randn(T, E, A, 1)
    shared = [torch.randn(T, E, 1, 1), *(torch.rand(3, T, E, 1, 1) < 0.4)]
    full = [x.expand(T, E, A, 1) for x in shared]
    team = [x.squeeze(-2) if thin else x for x in shared]
    results = []
    for rewards, terminated, ended, active in (full, team):
        results.append(td_returns(rewards, following, terminated, ended, 0.9, td_lambda=0.5, active=active))
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))


# ---- agents that wait for their turn ---------------------------------------------------------------------------------

R5, N5 = column(1, 2, 3, 4, 5), column(91, 92, 40, 94, 60)
NEVER5, ACTIVE = flags(0, 0, 0, 0, 0), flags(1, 0, 0, 1, 0)
ACTS, WAITS = (torch.full((1, 1, 1), acts) for acts in (True, False))


def test_waiting_mid_episode() -> None:
    # acts at rows 0 and 3, on states that are worth 40 (row 3) and 60 (behind the window)
    # row 3: earns 4 + 5:      9 + 0.5 * 60 = 39
    # row 0: earns 1 + 2 + 3:  6 + 0.5 * 40 = 26;  two of its own steps: 6 + 0.5 * 39 = 25.5;  half of each: 25.75
    assert found(td_returns(R5, N5, NEVER5, NEVER5, 0.5, active=ACTIVE)) == [26, None, None, 39, None]
    for n in (2, 5):
        assert found(td_returns(R5, N5, NEVER5, NEVER5, 0.5, n_step=n, active=ACTIVE))[0] == 25.5
    assert found(td_returns(R5, N5, NEVER5, NEVER5, 0.5, td_lambda=0.5, active=ACTIVE))[0] == 25.75
    assert found(td_returns(R5, N5, NEVER5, NEVER5, 0.5, td_lambda=1.0, active=ACTIVE))[0] == 25.5


@pytest.mark.parametrize("several", [{}, {"n_step": 2}, {"td_lambda": 0.5}])
def test_waiting_terminated(several: dict[str, float]) -> None:
    # the game ends in row 1 while the agent waits: row 0 earned 1 + 2, and leads nowhere; row 2 is nobody's
    ends = flags(0, 1, 0, 0, 0)
    assert found(td_returns(R5, N5, ends, ends, 0.5, active=ACTIVE, **several)) == [3, None, None, 39, None]


@pytest.mark.parametrize("several", [{}, {"n_step": 2}, {"td_lambda": 0.5}])
def test_waiting_truncated(several: dict[str, float]) -> None:
    # cut in row 1 at a state worth 92: 3 + 0.5 * 92 = 49
    ends = flags(0, 1, 0, 0, 0)
    assert found(td_returns(R5, N5, NEVER5, ends, 0.5, active=ACTIVE, **several)) == [49, None, None, 39, None]


@pytest.mark.parametrize("several", [{}, {"n_step": 2}, {"td_lambda": 0.5}])
def test_an_open_action_has_no_target_and_passes_on_its_value_alone(several: dict[str, float]) -> None:
    # behind the window the agent waits: row 3 is open; row 0 leads to its state, worth 40: 6 + 0.5 * 40
    result = td_returns(R5, N5, NEVER5, NEVER5, 0.5, active=ACTIVE, active_next=WAITS, **several)
    assert found(result) == [26, None, None, None, None]
    # an end that follows closes it: 9, or 9 + 0.5 * 60
    end = flags(0, 0, 0, 0, 1)
    result = td_returns(R5, N5, end, end, 0.5, active=ACTIVE, active_next=WAITS, **several)
    assert found(result)[3] == 9
    result = td_returns(R5, N5, NEVER5, end, 0.5, active=ACTIVE, active_next=WAITS, **several)
    assert found(result)[3] == 39
    # and so does acting on the state behind the window
    result = td_returns(R5, N5, NEVER5, NEVER5, 0.5, active=ACTIVE, active_next=ACTS, **several)
    assert found(result) == found(td_returns(R5, N5, NEVER5, NEVER5, 0.5, active=ACTIVE, **several))


def test_all_may_act_in_every_row_and_wait_behind_the_window() -> None:
    # row 2 is open; row 1: 2 + 0.5 * 30 = 17; row 0: 1 + 0.5 * (0.5 * 20 + 0.5 * 17) = 10.25
    assert found(td_returns(REWARDS, NEXT, NEVER, NEVER, 0.5, 0.5, active_next=WAITS)) == [10.25, 17, None]


def test_an_agent_that_never_acts_has_no_target() -> None:
    nan = torch.full_like(R5, math.nan)
    result = td_returns(nan, nan, NEVER5, flags(0, 1, 0, 0, 0), 0.5, 0.5, active=NEVER5)
    assert found(result) == [None] * 5


def reference(
    data: dict[str, Tensor], discount: float, td_lambda: float, n_step: int, acts_next: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One column at a time, in float64: cut into episodes, keep the own rows, then the definitions as sums.

    The lambda-return is written as the weighted mean of n-step returns (Sutton and Barto 2018, eq. 12.3), not recursively.
    """
    T = len(data["rewards"])
    shape = data["rewards"].shape
    flat = {name: tensor.reshape(T, -1).tolist() for name, tensor in data.items()}
    columns = len(flat["rewards"][0])
    follows = [True] * columns if acts_next is None else acts_next.reshape(-1).tolist()
    targets = torch.zeros(T, columns, dtype=torch.float64)
    known = torch.zeros(T, columns, dtype=torch.bool)
    for c in range(columns):
        r, v, term, ended, acts = ([row[c] for row in flat[key]] for key in data)
        start = 0
        while start < T:
            end = next((t for t in range(start, T) if ended[t]), T - 1)
            own = [t for t in range(start, end + 1) if acts[t]]
            chain = []  # row, what it earns, the value of what it leads to
            for t, u in zip(own, [*own[1:], end + 1], strict=False):
                chain.append((t, sum(r[t:u]), 0.0 if term[u - 1] else v[u - 1]))
            if chain and not ended[end] and not follows[c]:
                chain.pop()
            for i, (t, _, _) in enumerate(chain):
                left = len(chain) - i

                def steps(n: int, i: int = i, chain: list[tuple[int, float, float]] = chain) -> float:
                    earned = sum(discount**k * chain[i + k][1] for k in range(n))
                    return earned + discount**n * chain[i + n - 1][2]

                if n_step > 1:
                    targets[t, c] = steps(min(n_step, left))
                else:
                    mean = sum((1 - td_lambda) * td_lambda ** (n - 1) * steps(n) for n in range(1, left))
                    targets[t, c] = mean + td_lambda ** (left - 1) * steps(left)
                known[t, c] = True
            start = end + 1
    return targets.view(shape), known.view(shape)


@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    rows=st.integers(1, 20),
    ends=st.sampled_from([0.0, 0.1, 0.5]),
    acts=st.sampled_from([0.1, 0.5, 0.9, 1.0]),
    discount=st.sampled_from([0.0, 0.5, 0.99, 1.0]),
    several=st.sampled_from([(0.0, 1), (0.0, 2), (0.0, 3), (0.0, 50), (0.6, 1), (1.0, 1)]),
    told=st.sampled_from(["nothing", "active", "active_next", "both"]),
    garbage=st.sampled_from([math.nan, math.inf, -math.inf, 1e30]),
)
def test_against_sums_over_each_agents_own_actions(
    seed: int,
    rows: int,
    ends: float,
    acts: float,
    discount: float,
    several: tuple[float, int],
    told: str,
    garbage: float,
) -> None:
    shape = (rows, 2, 3, 1)
    generator = torch.Generator().manual_seed(seed)
    rewards, following = torch.randn(2, *shape, generator=generator)
    terminated, truncated = torch.rand(2, *shape, generator=generator) < ends
    active = torch.rand(shape, generator=generator) < acts
    acts_next = torch.rand(shape[1:], generator=generator) < 0.5
    if told in ("nothing", "active_next"):
        active = torch.ones_like(active)
    ended = terminated | truncated
    data = {"rewards": rewards, "next_values": following, "terminated": terminated, "ended": ended}
    masks = {}
    if told in ("active", "both"):
        masks["active"] = active
    if told in ("active_next", "both"):
        masks["active_next"] = acts_next
    expected, known = reference({**data, "active": active}, discount, *several, masks.get("active_next"))
    mine = td_returns(**data, discount=discount, td_lambda=several[0], n_step=several[1], **masks)
    torch.testing.assert_close(mine[0].double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(mine[1], known)

    # values that nothing reads: of rows that are terminated, and between two own actions or nobody's
    dirty = {name: tensor.clone() for name, tensor in data.items()}
    owned = torch.zeros_like(active)  # rewards of an action with a target
    for t in range(rows):
        before = owned[t - 1] & ~ended[t - 1] if t else torch.zeros_like(active[0])
        owned[t] = torch.where(active[t], known[t], before)
    acted_next = torch.cat([active[1:], torch.ones_like(active[:1])])
    dirty["next_values"][terminated | ~owned | (~acted_next & ~ended)] = garbage
    dirty["rewards"][~owned] = garbage
    again = td_returns(**dirty, discount=discount, td_lambda=several[0], n_step=several[1], **masks)
    assert all(torch.equal(x, y) for x, y in zip(mine, again, strict=True))


# ---- what is refused, and what is left alone -------------------------------------------------------------------------


def test_targets_have_no_gradient_and_inputs_are_left_alone() -> None:
    following = NEXT.clone().requires_grad_()
    kept = [x.clone() for x in (REWARDS, NEXT, ACTIVE)]
    for mask in (None, flags(1, 0, 1)):
        for several in ({"td_lambda": 0.5}, {"n_step": 2}, {}):
            ended = flags(0, 1, 0)
            targets, _ = td_returns(REWARDS, following, NEVER, ended, 0.5, active=mask, **several)
            assert not targets.requires_grad
            assert torch.equal(ended, flags(0, 1, 0))
    assert all(torch.equal(x, y) for x, y in zip(kept, (REWARDS, following.detach(), ACTIVE), strict=True))


def test_what_does_not_fit_is_refused() -> None:
    for n in (0, -1):
        with pytest.raises(ValueError, match=rf"n_step: expected at least 1, got {n}"):
            td_returns(REWARDS, NEXT, NEVER, NEVER, 0.5, n_step=n)
    for several in (0.5, torch.tensor([[0.0]])):
        with pytest.raises(ValueError, match=r"n_step 2 and td_lambda .*: expected one of them"):
            td_returns(REWARDS, NEXT, NEVER, NEVER, 0.5, td_lambda=several, n_step=2)
    good = {"rewards": REWARDS, "terminated": NEVER, "ended": NEVER, "active": NEVER}
    for name in good:
        wrong = {**good, name: good[name][:2]}
        with pytest.raises(
            ValueError, match=rf"expected {name} of shape \[3, 1, 1, 1\] as the values.*got \[2, 1, 1, 1\]"
        ):
            td_returns(next_values=NEXT, discount=0.5, **wrong)
    with pytest.raises(ValueError, match="expected active as bool"):
        td_returns(REWARDS, NEXT, NEVER, NEVER, 0.5, active=NEVER.float())
    with pytest.raises(ValueError, match=r"expected active_next as bool of shape \[1, 1, 1\]"):
        td_returns(REWARDS, NEXT, NEVER, NEVER, 0.5, active_next=NEVER)
