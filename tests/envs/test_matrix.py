"""The matrix games: every joint action's return by hand, ends, snapshots, and what does not fit."""

from __future__ import annotations

import copy
from itertools import product

import pytest
import torch

from coterie.agent_tensors import AgentTensors
from coterie.envs import EnvError, make
from coterie.envs.matrix import GAMES, Climbing, MatrixGame, Penalty, TwoStep

every_game = pytest.mark.parametrize("game", sorted(GAMES))


def joint(rows, columns):
    """Return the actions of agent_0 (rows) and agent_1 (columns), one entry a copy."""
    return {"agent_0": torch.tensor(rows)[:, None], "agent_1": torch.tensor(columns)[:, None]}


def returns_of_all_joint_actions(env):
    """Play every joint action in a copy of its own to the end of an episode; return each agent's return, [E]."""
    rows, columns = zip(*product(range(3), range(3)), strict=True)
    env.reset()
    totals = dict.fromkeys(env.possible_agents, 0.0)
    for t in range(1, 26):
        states, rewards, terminated, truncated, infos = env.step(joint(rows, columns))
        for name in env.possible_agents:
            assert (rewards[name].shape, rewards[name].dtype) == ((9, 1), torch.float32)
            totals[name] = totals[name] + rewards[name][:, 0]
            assert not terminated[name].any()
            assert truncated[name].tolist() == [[t == 25]] * 9
            assert states[name].tolist() == [[1.0]] * 9
        assert set(infos) == ({"final_states", "final_shared_states"} if t == 25 else set())
    assert infos["final_states"]["agent_1"].tolist() == infos["final_shared_states"].tolist() == [[1.0]] * 9
    return [total.tolist() for total in totals.values()]


def test_returns_of_climbing():
    # 25 times 11 -30 0 / -30 7 6 / 0 0 5, to each of the two agents
    expected = [275.0, -750.0, 0.0, -750.0, 175.0, 150.0, 0.0, 0.0, 125.0]
    assert returns_of_all_joint_actions(make("matrix/climbing", num_envs=9)) == [expected, expected]


@pytest.mark.parametrize(("k", "corner"), [(0, 0.0), (-25, -625.0), (-50, -1250.0), (-75, -1875.0), (-100, -2500.0)])
def test_returns_of_penalty(k, corner):
    # 25 times k 0 10 / 0 2 0 / 10 0 k
    expected = [corner, 0.0, 250.0, 0.0, 50.0, 0.0, 250.0, 0.0, corner]
    assert returns_of_all_joint_actions(make("matrix/penalty", num_envs=9, penalty=k)) == [expected, expected]


def test_the_default_penalty_is_the_hardest():
    env = Penalty()
    env.reset()
    assert env.step(joint([2], [2]))[1]["agent_0"].item() == -100


def test_returns_of_two_step():
    """All 16 pairs of joint actions, each in a copy of its own."""
    plays = list(product(range(2), repeat=4))
    env = make("matrix/two_step", num_envs=16)
    states, infos = env.reset()
    assert infos == {}
    assert states["agent_0"].tolist() == states["agent_1"].tolist() == env.state().tolist() == [[1, 0, 0]] * 16
    first = joint([play[0] for play in plays], [play[1] for play in plays])
    states, rewards, terminated, truncated, infos = env.step(first)
    assert infos == {}
    for name in env.possible_agents:
        assert rewards[name].tolist() == [[0.0]] * 16
        assert not (terminated[name] | truncated[name]).any()
        # agent_0's choice 0 leads to 2A, 1 to 2B, whatever agent_1 does: plays are sorted by it
        assert states[name].tolist() == [[0, 1, 0]] * 8 + [[0, 0, 1]] * 8
    assert torch.equal(env.state(), states["agent_0"])
    states, rewards, terminated, truncated, infos = env.step(joint([p[2] for p in plays], [p[3] for p in plays]))
    for name in env.possible_agents:
        # of (0, 0), (0, 1), (1, 0), (1, 1), after each of the first joint actions
        assert rewards[name][:, 0].tolist() == [7.0] * 8 + [0.0, 1.0, 1.0, 8.0] * 2
        assert terminated[name].all()
        assert not truncated[name].any()
        assert states[name].tolist() == [[1, 0, 0]] * 16
        assert infos["final_states"][name].tolist() == [[0, 0, 0]] * 16
    assert env.state().tolist() == [[1, 0, 0]] * 16
    assert infos["final_shared_states"].tolist() == [[0, 0, 0]] * 16


def test_copies_that_end_at_different_times():
    env = TwoStep(3)
    env.reset()
    env.set_state({"places": torch.tensor([0, 1, 2]), "ages": torch.tensor([0, 1, 1])})
    assert env.state().tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    states, rewards, terminated, _, infos = env.step(joint([1, 1, 1], [0, 0, 0]))
    assert rewards["agent_1"].tolist() == [[0.0], [7.0], [1.0]]
    assert terminated["agent_1"].tolist() == [[False], [True], [True]]
    assert states["agent_0"].tolist() == env.state().tolist() == [[0, 0, 1], [1, 0, 0], [1, 0, 0]]
    assert infos["final_states"]["agent_0"].tolist() == [[0, 0, 1], [0, 0, 0], [0, 0, 0]]
    assert env.get_state()["ages"].tolist() == [1, 0, 0]

    env = Climbing(2, max_cycles=3)
    env.set_state({"places": torch.tensor([0, 0]), "ages": torch.tensor([2, 1])})
    cut = [env.step(joint([0, 0], [0, 0]))[3]["agent_0"][:, 0].tolist() for _ in range(4)]
    assert cut == [[True, False], [False, True], [False, False], [True, False]]


def test_an_end_of_the_game_in_the_last_cycle_is_no_truncation():
    tables = [[[7.0]], [[1.0]]], [[[1]], [[2]]]
    for limit, ends in ((2, (True, False)), (1, (False, True))):
        env = MatrixGame(*tables, max_cycles=limit)
        env.reset()
        for _ in range(limit):
            _, _, terminated, truncated, infos = env.step(joint([0], [0]))
        assert (terminated["agent_0"].item(), truncated["agent_0"].item()) == ends
        assert infos["final_states"]["agent_0"].tolist() == [[0, 0] if limit == 2 else [0, 1]]


def test_three_agents_with_different_choices():
    payoffs = torch.arange(24).view(1, 2, 3, 4)
    env = MatrixGame(payoffs, num_envs=24)
    assert [int(env.action_spaces[name].n) for name in ("agent_0", "agent_1", "agent_2")] == [2, 3, 4]
    env.reset()
    choices = torch.tensor(list(product(range(2), range(3), range(4))))
    _, rewards, *_ = env.step(AgentTensors.single(env.possible_agents, choices[..., None]))
    assert rewards["agent_2"][:, 0].tolist() == list(range(24))


@every_game
def test_spaces_and_names(game):
    env = make(f"matrix/{game}", num_envs=2, seed=7)
    width = 3 if game == "two_step" else 1
    assert env.possible_agents == ["agent_0", "agent_1"]
    for name in env.possible_agents:
        assert env.observation_spaces[name].shape == env.shared_observation_spaces[name].shape == (width,)
        assert env.action_spaces[name].n == (2 if game == "two_step" else 3)
    states, _ = env.reset()
    assert states.stack(env.possible_agents).shape == (2, 2, width)
    assert env.state().dtype == states["agent_0"].dtype == torch.float32


def play(env, steps):
    generator = torch.Generator().manual_seed(0)
    n = int(env.action_spaces["agent_0"].n)
    trace = []
    for _ in range(steps):
        rows, columns = torch.randint(n, (2, env.num_envs), generator=generator).tolist()
        states, rewards, terminated, truncated, infos = env.step(joint(rows, columns))
        trace += [*states.values(), *rewards.values(), *terminated.values(), *truncated.values(), env.state()]
        trace += [*infos.get("final_states", {}).values()]
    return trace


@every_game
def test_snapshots_and_copies_are_exact(game):
    env = GAMES[game](4)
    env.reset()
    play(env, 12)
    snapshot, twin = env.get_state(), copy.deepcopy(env)
    kept = {name: value.clone() for name, value in snapshot.items()}
    expected = play(env, 31)
    assert all(torch.equal(a, b) for a, b in zip(play(twin, 31), expected, strict=True))
    other = GAMES[game](4)  # needs no reset first
    other.set_state(snapshot)
    assert all(torch.equal(a, b) for a, b in zip(play(other, 31), expected, strict=True))
    assert all(torch.equal(snapshot[name], value) for name, value in kept.items())


def test_a_snapshot_is_a_copy():
    env = TwoStep(2)
    env.reset()
    snapshot = env.get_state()
    snapshot["places"].fill_(2)
    assert env.get_state()["places"].tolist() == [0, 0]
    env.set_state(snapshot)
    snapshot["places"].fill_(1)
    assert env.get_state()["places"].tolist() == [2, 2]


@every_game
def test_what_was_returned_is_never_written_again(game):
    env = GAMES[game](3)
    env.reset()
    trace = play(env, 8)
    before = [tensor.clone() for tensor in trace]
    play(env, 30)
    assert all(torch.equal(a, b) for a, b in zip(trace, before, strict=True))


@every_game
def test_before_the_first_reset(game):
    env = GAMES[game]()
    for use in (env.state, env.get_state, lambda: env.step(joint([0], [0]))):
        with pytest.raises(EnvError, match=r"call reset\(\) first"):
            use()


def test_bad_actions_change_nothing():
    env = TwoStep(2)
    env.reset()
    with pytest.raises(EnvError, match=r"actions\['agent_1'\].* is 2 in sub-environment 1; expected .* 0 to 1"):
        env.step(joint([0, 0], [1, 2]))
    with pytest.raises(EnvError, match="'agent_1' is missing"):
        env.step({"agent_0": torch.zeros(2, 1, dtype=torch.int64)})
    assert env.get_state()["ages"].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"places": torch.tensor([0, 0])}, r"keys \['places'\]"),
        ({"places": torch.tensor([0, 1]), "ages": torch.tensor([0, 0])}, r"'places'.* \[0, 1\].*0 to 0"),
        ({"places": torch.tensor([0, 0]), "ages": torch.tensor([0, 25])}, r"'ages'.* \[0, 25\].*0 to 24"),
        ({"places": torch.tensor([0, 0]), "ages": torch.tensor([0, -1])}, "'ages'"),
        ({"places": torch.tensor([0, 0]), "ages": torch.tensor([0])}, "int64 tensor of 2"),
        ({"places": torch.zeros(2), "ages": torch.tensor([0, 0])}, "'places'.*int64"),
        ({"places": None, "ages": torch.tensor([0, 0])}, "'places'] is None"),
    ],
)
def test_states_that_do_not_fit(state, message):
    env = Climbing(2)
    env.reset()
    env.step(joint([0, 0], [0, 0]))
    with pytest.raises(EnvError, match=message):
        env.set_state(state)
    assert env.get_state()["ages"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Climbing(0), "num_envs is 0"),
        (lambda: Climbing(max_cycles=0), "max_cycles is 0"),
        (lambda: Penalty(penalty=100), "penalty is 100; expected 0 or less"),
        (lambda: MatrixGame([1.0, 2.0]), r"payoffs has shape \[2\]"),
        (lambda: MatrixGame([[]]), r"payoffs has shape \[1, 0\]"),
        (lambda: MatrixGame([[float("nan")]]), "finite"),
        (lambda: MatrixGame([[1.0], [2.0]]), "successors is None.*2 states"),
        (lambda: MatrixGame([[1.0], [2.0]], [[0], [3]]), "from 0 to 2"),
        (lambda: MatrixGame([[1.0], [2.0]], [[0, 1]]), r"shape \[2, 1\]"),
        (lambda: MatrixGame([[1.0], [2.0]], [[0.0], [1.0]]), "integers"),
    ],
)
def test_parameters_out_of_range(build, message):
    with pytest.raises(ValueError, match=message):
        build()
    with pytest.raises(TypeError, match="punishment"):
        make("matrix/penalty", punishment=-1)
