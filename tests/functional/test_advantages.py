from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from coterie.functional import gae, masked_mean, multi_agent_gae, outcome_known, standardise
from coterie.functional.scan import backward_scan


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


# ---- teams' signals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rewards", "next_values", "terminated", "truncated"])
@pytest.mark.parametrize(
    "shape", [(3, 2, 4), (3, 2, 2, 1), (3, 1, 4, 1), (2, 2, 4, 1), (3, 1, 1, 1), (3, 1), (2, 1), (3, 2)]
)
def test_a_tensor_of_another_shape_is_named(name: str, shape: tuple[int, ...]) -> None:
    tensors = {key: torch.zeros(3, 2, 4, 1) for key in ("rewards", "values", "next_values")}
    tensors.update({key: torch.zeros(3, 2, 4, 1, dtype=torch.bool) for key in ("terminated", "truncated")})
    tensors[name] = torch.zeros(shape, dtype=tensors[name].dtype)
    with pytest.raises(ValueError, match=rf"expected {name} of shape \[3, 2, 4, 1\] as the values.*got") as caught:
        gae(**tensors, discount=0.9, gae_lambda=0.9)
    assert str(caught.value).endswith(f"got {list(shape)}")
    with pytest.raises(ValueError, match=f"expected {name}"):
        multi_agent_gae(**tensors, discount=0.9, gae_lambda=0.9, time_dim=0)


@pytest.mark.parametrize("shape", [(3, 2, 1, 1), (3, 2, 1)])
def test_values_of_a_whole_team_are_refused(shape: tuple[int, ...]) -> None:
    never = torch.zeros(3, 2, 4, 1, dtype=torch.bool)
    values = torch.zeros(3, 2, 4, 1)
    with pytest.raises(ValueError, match="expected next_values"):
        gae(values, values, torch.zeros(shape), never, never, 0.9, 0.9)
    with pytest.raises(ValueError, match="expected rewards"):
        gae(values, torch.zeros(shape), values, never, never, 0.9, 0.9)


@pytest.mark.parametrize(
    ("shape", "wrong"),
    [
        ((3, 2), (3, 1)),
        ((3, 2), (3,)),
        ((3, 2), (1, 2)),
        ((3, 1), (1, 1)),
        ((3, 1), (1,)),
        ((3, 2, 4), (3, 1, 1)),
        ((3, 2, 4), (3, 1)),
    ],
)
def test_only_a_dimension_of_agents_is_repeated_over(shape: tuple[int, ...], wrong: tuple[int, ...]) -> None:
    # [T], [T, E] and [T, E, A] without a last dimension of 1: nothing says which one is the agents
    values, never = torch.zeros(shape), torch.zeros(shape, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"expected rewards of shape \[[\d, ]+\] as the values; got"):
        gae(torch.zeros(wrong), values, values, never, never, 0.9, 0.9)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "shared", [("rewards",), ("terminated",), ("truncated",), ("rewards", "terminated", "truncated")]
)
@pytest.mark.parametrize("thin", [False, True])
def test_what_the_team_shares_counts_for_each_agent(shared: tuple[str, ...], thin: bool, masked: bool) -> None:
    T, E, A = 6, 3, 4
    full = random_rollout(T, (E, A, 1))
    active = full.pop("active") if masked else full.pop("active") & False
    team = dict(full)
    for name in shared:
        one = full[name][:, :, :1]
        full[name] = one.expand(T, E, A, 1).clone()
        team[name] = one.squeeze(-2) if thin else one
    mask = active if masked else None
    for mine, reference in zip(
        gae(**team, discount=0.9, gae_lambda=0.8, active=mask),
        gae(**full, discount=0.9, gae_lambda=0.8, active=mask),
        strict=True,
    ):
        assert mine.shape == (T, E, A, 1)
        assert torch.equal(mine, reference)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("time", "dims"), [(0, 4), (1, 4), (-3, 4), (-4, 4), (0, 3), (-3, 3), (2, 5), (-4, 5)])
def test_time_may_be_any_dimension_before_the_agents(time: int, dims: int, masked: bool) -> None:
    T, A = 5, 3
    lead = (2, 4)[: dims - 3]
    rollout = random_rollout(T, (*lead, A, 1))
    active = rollout.pop("active")
    rollout["rewards"] = rollout["rewards"][..., :1, :].squeeze(-2)  # the team's
    rollout["terminated"] = rollout["terminated"][..., :1, :]
    discount = torch.tensor([[0.9], [0.5], [1.0]])
    expected = gae(**rollout, discount=discount, gae_lambda=0.8, active=active if masked else None)
    front = time % dims
    moved = {name: tensor.movedim(0, front) for name, tensor in rollout.items()}
    mask = active.movedim(0, front) if masked else None
    results = multi_agent_gae(**moved, discount=discount, gae_lambda=0.8, active=mask, time_dim=time)
    for mine, reference in zip(results, expected, strict=True):
        assert mine.shape == moved["values"].shape
        torch.testing.assert_close(mine, reference.movedim(0, front), rtol=0, atol=0)


def test_the_public_helper_by_hand() -> None:
    # [E, T, A, 1] = [1, 3, 2, 1]; the team earns 1, 2, 3 and is cut after step 1 at a state worth 50 (agent 0) and 0
    # agent 0: as in test_truncated; agent 1 with all values 0 and discount * lambda = 0.25: 1 + 0.25 * 2 = 1.5, 2, 3
    zeros = torch.zeros(3)
    values = torch.stack([torch.tensor([10.0, 20, 30]), zeros], dim=-1).view(1, 3, 2, 1)
    following = torch.stack([torch.tensor([20.0, 50, 40]), zeros], dim=-1).view(1, 3, 2, 1)
    advantages, returns = multi_agent_gae(
        torch.tensor([1.0, 2, 3]).view(1, 3, 1),
        values,
        following,
        torch.zeros(1, 3, 1, dtype=torch.bool),
        torch.tensor([False, True, False]).view(1, 3, 1, 1),
        DISCOUNT,
        LAMBDA,
    )
    torch.testing.assert_close(advantages, torch.tensor([[2.75, 1.5], [7, 2], [-7, 3]]).view(1, 3, 2, 1))
    torch.testing.assert_close(returns, torch.tensor([[12.75, 1.5], [27, 2], [23, 3]]).view(1, 3, 2, 1))


@pytest.mark.parametrize(
    ("shape", "time"), [((4, 2, 1), -2), ((4, 2, 1), -1), ((4, 2, 1), 1), ((4, 2, 1), -4), ((4, 2, 3), 0), ((4, 1), 0)]
)
def test_the_helper_refuses_a_time_dimension_among_the_agents(shape: tuple[int, ...], time: int) -> None:
    values, never = torch.zeros(shape), torch.zeros(shape, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"expected values of shape \[..., T, A, 1\]"):
        multi_agent_gae(values, values, values, never, never, 0.9, 0.9, time_dim=time)


# ---- agents that don't always act -----------------------------------------------------------------------------------


def random_rollout(
    T: int, shape: tuple[int, ...], seed: int = 0, ends: float = 0.15, acts: float = 0.5
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rewards, values, following = torch.randn(3, T, *shape, generator=generator)
    terminated, truncated = torch.rand(2, T, *shape, generator=generator) < ends
    active = torch.rand(T, *shape, generator=generator) < acts
    return {
        "rewards": rewards,
        "values": values,
        "next_values": following,
        "terminated": terminated,
        "truncated": truncated,
        "active": active,
    }


def reference_gae(
    rollout: dict[str, Tensor], discount: float, gae_lambda: float, acts_next: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """One column at a time, in float64: cut into episodes, keep the own rows, then the plain formula.

    :param acts_next: who acts after the last row; an action whose outcome is unknown by then has no advantage

    :return: advantages, returns, and whether each outcome is known
    """
    T = len(rollout["rewards"])
    flat = {name: tensor.reshape(T, -1).tolist() for name, tensor in rollout.items()}
    columns = len(flat["rewards"][0])
    follows = [False] * columns if acts_next is None else acts_next.reshape(-1).tolist()
    advantages = [[0.0] * columns for _ in range(T)]
    returns = [list(row) for row in flat["values"]]
    known = [[False] * columns for _ in range(T)]
    for n in range(columns):
        r, v, w, term, trunc, acts = ([row[n] for row in flat[key]] for key in rollout)
        episodes: list[list[int]] = [[]]
        for t in range(T):
            episodes[-1].append(t)
            if term[t] or trunc[t]:
                episodes.append([])
        for episode in episodes:
            own = [t for t in episode if acts[t]]
            trajectory = []  # of own steps: row, reward, value of what follows
            for t, u in zip(own, [*own[1:], None], strict=False):
                earned = sum(r[s] for s in episode if s >= t and (u is None or s < u))
                end = episode[-1]
                beyond = 0.0 if term[end] else w[end]
                trajectory.append((t, earned, beyond if u is None else v[u]))
                known[t][n] = u is not None or term[end] or trunc[end] or follows[n]
            advantage = 0.0
            for t, earned, beyond in reversed(trajectory):
                if acts_next is not None and not known[t][n]:
                    continue
                advantage = earned + discount * beyond - v[t] + discount * gae_lambda * advantage
                advantages[t][n] = advantage
                returns[t][n] = advantage + v[t]
    shape = rollout["rewards"].shape
    return (
        torch.tensor(advantages, dtype=torch.float64).view(shape),
        torch.tensor(returns, dtype=torch.float64).view(shape),
        torch.tensor(known).view(shape),
    )


def acting(*values: int) -> Tensor:
    return flags(*values)


R5, V5, N5 = column(1, 2, 3, 4, 5), column(10, 20, 30, 40, 50), column(91, 92, 93, 94, 60)
NEVER5 = flags(0, 0, 0, 0, 0)


def test_waiting_mid_episode() -> None:
    # acts at rows 0 and 3; discount * lambda = 0.25
    # row 3: earns 4 + 5, then the rollout ends before a state worth 60:  9 + 0.5 * 60 - 40 = -1
    # row 0: earns 1 + 2 + 3, then acts on a state worth 40:              6 + 0.5 * 40 - 10 = 16;  16 + 0.25 * -1 = 15.75
    advantages, returns = gae(R5, V5, N5, NEVER5, NEVER5, DISCOUNT, LAMBDA, acting(1, 0, 0, 1, 0))
    torch.testing.assert_close(advantages, column(15.75, 0, 0, -1, 0))
    torch.testing.assert_close(returns, column(25.75, 20, 30, 39, 50))


def test_waiting_terminated() -> None:
    # the game ends in row 2, while the agent waits: its action of row 0 earned 1 + 2 + 3 and leads nowhere: 6 - 10 = -4
    # row 3 as before
    advantages, returns = gae(R5, V5, N5, flags(0, 0, 1, 0, 0), NEVER5, DISCOUNT, LAMBDA, acting(1, 0, 0, 1, 0))
    torch.testing.assert_close(advantages, column(-4, 0, 0, -1, 0))
    torch.testing.assert_close(returns, column(6, 20, 30, 39, 50))


def test_waiting_truncated() -> None:
    # cut in row 2 at a state worth 93: 6 + 0.5 * 93 - 10 = 42.5
    advantages, returns = gae(R5, V5, N5, NEVER5, flags(0, 0, 1, 0, 0), DISCOUNT, LAMBDA, acting(1, 0, 0, 1, 0))
    torch.testing.assert_close(advantages, column(42.5, 0, 0, -1, 0))
    torch.testing.assert_close(returns, column(52.5, 20, 30, 39, 50))


def test_what_is_earned_between_an_end_and_the_next_own_action_is_nobodys() -> None:
    # acts at rows 1 and 4; row 1 ends the episode: 2 - 20; rows 2 and 3 belong to no action, nor does row 0
    # row 4: 5 + 0.5 * 60 - 50 = -15
    advantages, _ = gae(R5, V5, N5, flags(0, 1, 0, 0, 0), NEVER5, DISCOUNT, LAMBDA, acting(0, 1, 0, 0, 1))
    torch.testing.assert_close(advantages, column(0, -18, 0, 0, -15))


def test_an_agent_that_never_acts_has_no_advantage() -> None:
    advantages, returns = gae(R5, V5, N5, NEVER5, flags(0, 1, 0, 0, 0), DISCOUNT, LAMBDA, acting(0, 0, 0, 0, 0))
    assert torch.equal(advantages, torch.zeros_like(R5))
    assert torch.equal(returns, V5)


@pytest.mark.parametrize("T", [7, 100])
def test_acting_always_is_the_plain_formula(T: int) -> None:
    rollout = random_rollout(T, (3, 2, 1))
    active = torch.ones_like(rollout.pop("active"))
    going_on = ~(rollout["terminated"] | rollout["truncated"])[:-1]
    rollout["next_values"][:-1][going_on] = rollout["values"][1:][going_on]
    for mine, plain in zip(
        gae(**rollout, discount=0.9, gae_lambda=0.8, active=active),
        gae(**rollout, discount=0.9, gae_lambda=0.8),
        strict=True,
    ):
        assert torch.equal(mine, plain)


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    length=st.integers(1, 24),
    ends=st.sampled_from([0.0, 0.1, 0.5]),
    acts=st.sampled_from([0.1, 0.5, 0.9]),
    discount=st.sampled_from([0.0, 0.5, 0.99, 1.0]),
    gae_lambda=st.sampled_from([0.0, 0.95, 1.0]),
)
def test_masked_gae_against_each_agents_own_trajectory(
    seed: int, length: int, ends: float, acts: float, discount: float, gae_lambda: float
) -> None:
    rollout = random_rollout(length, (2, 3, 1), seed, ends, acts)
    acts_next = torch.rand(2, 3, 1, generator=torch.Generator().manual_seed(seed)) < 0.5
    done = rollout["terminated"] | rollout["truncated"]
    for told in (None, acts_next):
        advantages, returns, known = reference_gae(rollout, discount, gae_lambda, told)
        mine = gae(**rollout, discount=discount, gae_lambda=gae_lambda, active_next=told)
        torch.testing.assert_close(mine[0].double(), advantages, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(mine[1].double(), returns, rtol=1e-5, atol=1e-5)
    assert torch.equal(outcome_known(rollout["active"], done, acts_next), known)


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 1e30])
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), length=st.sampled_from([1, 2, 9, 80]), ends=st.sampled_from([0.0, 0.2]))
def test_garbage_in_rows_without_an_action_does_not_leak(garbage: float, seed: int, length: int, ends: float) -> None:
    rollout = random_rollout(length, (2, 3, 1), seed, ends)
    before = gae(**rollout, discount=0.99, gae_lambda=0.95)
    active, done = rollout["active"], rollout["terminated"] | rollout["truncated"]
    dirty = {name: tensor.clone() for name, tensor in rollout.items()}
    dirty["values"][~active] = garbage
    read = done.clone()
    read[-1] = True
    dirty["next_values"][~read | rollout["terminated"]] = garbage
    # rewards that belong to no action, and a successor that no action leads to
    owned = owners(active, done)
    dirty["rewards"][~owned] = garbage
    dirty["next_values"][~owned] = garbage
    after = gae(**dirty, discount=0.99, gae_lambda=0.95)
    assert torch.equal(after[0], before[0])
    assert torch.equal(after[1][active], before[1][active])


def owners(active: Tensor, done: Tensor) -> Tensor:
    """Whether a row belongs to an own action of its episode."""
    owned, alive = torch.zeros_like(active), torch.zeros_like(active[0])
    for t in range(len(active)):
        alive = alive | active[t]
        owned[t] = alive
        alive = alive & ~done[t]
    return owned


def test_masks_must_be_bool_of_the_values_shape() -> None:
    ones = torch.ones(5, 1, 1, 1, dtype=torch.bool)
    for mask in (ones.float(), ones.squeeze(-1), ones.expand(5, 2, 1, 1)):
        with pytest.raises(ValueError, match=r"expected active as bool of shape \[5, 1, 1, 1\], got"):
            gae(R5, V5, N5, NEVER5, NEVER5, 0.9, 0.9, mask)
        with pytest.raises(ValueError, match="expected active"):
            multi_agent_gae(R5, V5, N5, NEVER5, NEVER5, 0.9, 0.9, mask, time_dim=0)
    with pytest.raises(ValueError, match=r"expected active_next as bool of shape \[1, 1, 1\]"):
        outcome_known(ones, ones, ones)


def test_known_outcomes_by_hand() -> None:
    active, never = acting(1, 0, 1, 0, 0), NEVER5
    no, yes = torch.zeros(1, 1, 1, dtype=torch.bool), torch.ones(1, 1, 1, dtype=torch.bool)
    # row 0 is followed by row 2; row 2 by nothing, by its next action behind the rollout, or by an end while it waits
    assert torch.equal(outcome_known(active, never, no), flags(1, 0, 0, 0, 0))
    assert torch.equal(outcome_known(active, never, yes), flags(1, 0, 1, 0, 0))
    assert torch.equal(outcome_known(active, flags(0, 0, 0, 1, 0), no), flags(1, 0, 1, 0, 0))
    assert torch.equal(outcome_known(active, flags(0, 0, 1, 0, 0), no), flags(1, 0, 1, 0, 0))
    assert torch.equal(outcome_known(active, flags(0, 1, 0, 0, 0), no), flags(1, 0, 0, 0, 0))
    # a team's end counts for each of its agents
    both = torch.cat([active, active], dim=2)
    ends = flags(0, 0, 0, 1, 0).squeeze(-1)
    assert torch.equal(outcome_known(both, ends, no.expand(1, 2, 1)), both)


# ---- the recurrence -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("T", [1, 2, 15, 16, 17, 63, 64, 65, 100, 127, 128, 129, 1024])
@pytest.mark.parametrize("shape", [(), (3, 2, 1), (1025,)])
def test_scan_against_the_definition(T: int, shape: tuple[int, ...]) -> None:
    x = torch.randn(T, *shape)
    weight = 0.97 * (torch.rand(T, *shape) < 0.98)
    expected, last = torch.zeros(T, *shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
    for t in reversed(range(T)):
        last = x[t].double() + weight[t].double() * last
        expected[t] = last
    torch.testing.assert_close(backward_scan(x, weight).double(), expected, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(backward_scan(x.double(), weight.double()), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("end", [0, 40, 41, 98])
def test_long_rollouts_let_nothing_cross_an_end(end: int) -> None:
    x, weight = torch.randn(100, 4), torch.full((100, 4), 0.9)
    weight[end] = 0.0
    before = backward_scan(x, weight)
    x[end + 1 :] += 100.0
    after = backward_scan(x, weight)
    assert torch.equal(before[: end + 1], after[: end + 1])
    assert not torch.isclose(before[end + 1 :], after[end + 1 :]).any()


# ---- entries that count ---------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("garbage", [0.0, math.nan, math.inf])
def test_standardise_counts_only_what_the_mask_lets_in(garbage: float) -> None:
    x = torch.tensor([1.0, garbage, 2.0, 3.0, garbage])
    mask = torch.tensor([True, False, True, True, False])
    # as test_standardise_by_hand; nothing for the rest
    torch.testing.assert_close(standardise(x, (0,), mask), torch.tensor([-1.0, 0.0, 0.0, 1.0, 0.0]))


def test_masked_standardise_is_that_of_the_rest() -> None:
    x, mask = torch.randn(6, 4, 3, 1) * 10 + 5, torch.rand(6, 4, 3, 1) < 0.5
    y = standardise(x, (0, 1), mask)
    for a in range(3):
        rest = standardise(x[:, :, a][mask[:, :, a]], (0,))
        torch.testing.assert_close(y[:, :, a][mask[:, :, a]], rest)
    torch.testing.assert_close(standardise(x, (0, 1), torch.ones_like(mask)), standardise(x, (0, 1)))
    # a mask of environments for all agents alike
    rows = torch.rand(6, 4, 1, 1) < 0.5
    torch.testing.assert_close(standardise(x, (0, 1), rows), standardise(x, (0, 1), rows.expand_as(x)))


def test_masked_standardise_of_one_and_of_none_is_zero() -> None:
    mask = torch.tensor([[True, False], [False, False], [False, False]])
    y = standardise(torch.tensor([[7.0, math.nan], [math.nan, 2.0], [1.0, math.inf]]), (0,), mask)
    assert torch.equal(y, torch.zeros(3, 2))


def test_masked_mean_by_hand() -> None:
    x = torch.tensor([[1.0, math.nan], [3.0, math.inf], [math.nan, 5.0]])
    mask = torch.tensor([[True, False], [True, False], [False, False]])
    assert torch.equal(masked_mean(x, mask, 0), torch.tensor([2.0, 0.0]))  # (1 + 3) / 2; none
    assert torch.equal(masked_mean(x, mask, (0, 1)), torch.tensor(2.0))
    # a mask that is broadcast counts each of its entries as often
    torch.testing.assert_close(
        masked_mean(torch.ones(4, 3, 2), torch.tensor([[True], [False], [True]]), (0, 1, 2)), torch.tensor(1.0)
    )


def test_masked_mean_has_no_gradient_where_masked() -> None:
    x = torch.tensor([2.0, math.nan, 4.0], requires_grad=True)
    masked_mean(x, torch.tensor([True, False, True]), 0).backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.tensor([0.5, 0.0, 0.5]))
