"""Observations with the last action: at starts, ends, deaths and turns; spaces, shared states, snapshots."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from coterie.agent_tensors import AgentTensors
from coterie.envs import DiscreteActions, EnvError, LastAction, MultiAgentEnv, make, wrap_env
from coterie.models import build_models
from coterie.spaces import flat_size
from tests.envs.contract import draw
from tests.envs.games import ALL, Errands, knights, pettingzoo, vmas
from tests.envs.test_discrete_actions import Spy
from tests.envs.wrappers.test_absence import Roster
from tests.envs.wrappers.test_turn_based import Rounds, marks

NAMES = ("ada", "bob", "cat")


def hot(index: int | None, width: int) -> list[int]:
    return [int(i == index) for i in range(width)]


def tails(states: Any, width: int, row: int = 0) -> list[int | None]:
    """Each agent's last action in ``states``, None for zeros."""
    found = []
    for name in states:
        tail = states[name][row, -width:]
        assert tail.sum() in (0, 1)
        found.append(int(tail.argmax()) if tail.any() else None)
    return found


def choose(env: MultiAgentEnv, *numbers: int) -> dict[str, torch.Tensor]:
    names = env.possible_agents
    return {n: torch.full((env.num_envs, 1), i) for n, i in zip(names, numbers, strict=True)}


# ---- starts and ends -------------------------------------------------------------------------------------------------


def test_by_hand_over_an_episodes_end() -> None:
    # copies of 2 steps; the agents choose 1 and 2, then 0 and 1
    bare = make("matrix/climbing", 2, max_cycles=2)
    env = LastAction(bare)
    states, infos = env.reset()
    assert states["agent_0"].tolist() == [[1, 0, 0, 0]] * 2
    states, *_, infos = env.step(choose(env, 1, 2))
    assert states["agent_0"].tolist() == [[1, 0, 1, 0]] * 2
    assert states["agent_1"].tolist() == [[1, 0, 0, 1]] * 2
    assert "final_states" not in infos
    states, *_, infos = env.step(choose(env, 0, 1))
    assert states["agent_0"].tolist() == states["agent_1"].tolist() == [[1, 0, 0, 0]] * 2  # the next episode
    assert infos["final_states"]["agent_0"].tolist() == [[1, 1, 0, 0]] * 2
    assert infos["final_states"]["agent_1"].tolist() == [[1, 0, 1, 0]] * 2
    states, *_ = env.step(choose(env, 2, 2))
    assert states["agent_0"].tolist() == [[1, 0, 0, 1]] * 2
    states, _ = env.reset()
    assert states["agent_0"].tolist() == [[1, 0, 0, 0]] * 2


def test_copies_end_by_themselves() -> None:
    # copy 0 ends after 2 steps, copy 1 after 3; each copy chooses something else
    env = LastAction(DiscreteActions(wrap_env([Errands(2), Errands(3)])))
    states, infos = env.reset()
    generator = torch.Generator().manual_seed(0)
    before = [[None] * 3] * 2
    for step in range(1, 13):
        assert [tails(states, 6, row) for row in (0, 1)] == before
        actions = draw(env, infos, generator)
        states, *_, infos = env.step(actions)
        did = [[int(actions[name][row]) for name in NAMES] for row in (0, 1)]
        over = [step % 2 == 0, step % 3 == 0]
        before = [[None] * 3 if over[row] else did[row] for row in (0, 1)]
        for row in (0, 1):
            if over[row]:
                assert tails(infos["final_states"], 6, row) == did[row]
                # what the game itself tells of the last action agrees
                for name, choice in zip(NAMES, did[row], strict=True):
                    assert infos["final_states"][name][row, 2] == 10 * (choice // 3) + choice % 3


def test_who_dies_as_another_copy_ends_is_still_shown_what_it_did() -> None:
    env = LastAction(DiscreteActions(wrap_env([Errands(4, {"bob": 2}), Errands(2)])))
    _, infos = env.reset()
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        actions = draw(env, infos, generator)
        states, *_, infos = env.step(actions)
    assert tails(states, 6, 0) == [int(actions[name][0]) for name in NAMES]
    assert tails(states, 6, 1) == [None] * 3


def test_the_infos_of_the_environment_are_left_alone() -> None:
    class Over(Spy):
        def step(self, actions: Any) -> Any:
            states, rewards, ended, _, _ = super().step(actions)
            self.infos = {"final_states": states, "final_shared_states": self.state()}
            over = ended.map(torch.ones_like)
            return states, rewards, over, ended, self.infos

    spy = Over({"a": spaces.Discrete(2)})
    env = LastAction(spy)
    env.reset()
    *_, infos = env.step({"a": torch.tensor([[1], [0], [1]])})
    assert infos["final_states"]["a"].shape == (3, 3)
    assert spy.infos["final_states"]["a"].shape == (3, 1)


def test_multi_discrete_actions_are_one_hots_one_after_the_other() -> None:
    env = LastAction(wrap_env(Errands(4)))
    _, infos = env.reset()
    actions = {"ada": torch.tensor([[1, 2]]), "bob": torch.tensor([[1, 0]]), "cat": torch.tensor([[1, 1]])}
    states, *_ = env.step(actions)
    assert states["ada"][0, 3:].tolist() == [0, 1, 0, 0, 1]
    assert states["bob"][0, 3:].tolist() == [0, 1, 1, 0, 0]
    assert states["cat"][0, 3:].tolist() == [0, 1, 0, 1, 0]
    assert torch.equal(infos["action_masks"]["ada"], env.env.reset()[1]["action_masks"]["ada"])


def test_agents_of_different_actions_and_widths() -> None:
    env = LastAction(make("particle/simple_speaker_listener", 2, seed=0, max_cycles=5))
    env.reset()
    states, *_ = env.step({"speaker_0": torch.tensor([[2], [0]]), "listener_0": torch.tensor([[4], [1]])})
    assert states["speaker_0"].shape == (2, 6)
    assert states["speaker_0"][:, 3:].tolist() == [hot(2, 3), hot(0, 3)]
    assert states["listener_0"][:, 11:].tolist() == [hot(4, 5), hot(1, 5)]


def test_equal_widths_of_other_actions_are_told_apart() -> None:
    spy = Spy({"a": spaces.Discrete(5), "b": spaces.MultiDiscrete([2, 3]), "c": spaces.MultiDiscrete([3, 2])}, 1)
    env = LastAction(spy)
    env.reset()
    actions = {"a": torch.tensor([[3]]), "b": torch.tensor([[1, 2]]), "c": torch.tensor([[1, 1]])}
    states, *_ = env.step(actions)
    assert {name: value[0, 1:].int().tolist() for name, value in states.items()} == {
        "a": hot(3, 5),
        "b": [0, 1, 0, 0, 1],
        "c": [0, 1, 0, 0, 1],
    }
    assert set(states.stacks) == {("a",), ("b",), ("c",)}


@pytest.mark.parametrize("name", ["spread", "tag", "tictactoe", "knights", "recall"])
def test_what_was_observed_before_is_left_as_it_was(name: str) -> None:
    env, bare = LastAction(ALL[name]()), ALL[name]()
    (states, infos), (expected, told) = env.reset(), bare.reset()
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        for uid in env.possible_agents:
            width = flat_size(bare.observation_space(uid))
            assert torch.equal(states[uid][:, :width], expected[uid])
            if "final_states" in told:
                assert torch.equal(infos["final_states"][uid][:, :width], told["final_states"][uid])
        assert set(infos) == set(told)
        actions = draw(env, infos, generator)
        states, *flags, infos = env.step(actions)
        expected, *others, told = bare.step(actions)
        for mine, theirs in zip(flags, others, strict=True):
            assert all(torch.equal(mine[uid], theirs[uid]) for uid in env.possible_agents)


def test_actions_may_change_afterwards() -> None:
    env = LastAction(make("matrix/climbing", 2))
    env.reset()
    actions = choose(env, 1, 2)
    states, *_ = env.step(actions)
    actions["agent_0"].zero_()
    assert states["agent_0"][:, 1:].tolist() == [hot(1, 3)] * 2
    assert env.get_state()["last_actions"]["agent_0"].tolist() == [hot(1, 3)] * 2


# ---- who is not there, and who waits ---------------------------------------------------------------------------------


def test_the_absent_see_nothing() -> None:
    # cat arrives at moment 2; ada dies at moment 2, and comes back at moment 4; the end is at moment 6. All choose 1
    moments = [["ada", "bob"], ["ada", "bob"], ["bob", "cat"], ["bob", "cat"], list(NAMES), list(NAMES), []]
    env = LastAction(wrap_env(Roster(moments)))
    states, _ = env.reset()
    seen = [tails(states, 2)]
    for _ in range(6):
        states, *_, infos = env.step(choose(env, 1, 1, 1))
        seen.append(tails(states, 2))
    assert seen == [
        [None, None, None],
        [1, 1, None],
        [1, 1, None],  # ada's last observation, which comes of what it did; cat has just come
        [None, 1, 1],
        [None, 1, 1],  # ada is back, and has done nothing yet
        [1, 1, 1],
        [None, None, None],  # the next episode
    ]
    assert tails(infos["final_states"], 2) == [1, 1, 1]
    assert not infos["final_states"]["ada"][0, :2].eq(0).all()


def test_the_absent_are_zeros_at_the_end_too() -> None:
    env = LastAction(wrap_env(Roster([["ada", "bob"], ["bob"], ["bob"], []])))
    env.reset()
    for _ in range(3):
        *_, infos = env.step(choose(env, 1, 1, 1))
    assert [infos["final_states"][n][0].tolist() for n in ("ada", "cat")] == [[0] * 4] * 2
    assert tails(infos["final_states"], 2) == [None, 1, None]


def test_who_waits_goes_on_seeing_its_own_last_action() -> None:
    # in turn; in step t every agent is given t mod 4 as its action, which counts for one of them
    env = LastAction(wrap_env(Rounds(length=5, deaths={4: ["bob"]}, end="truncations")))
    states, infos = env.reset()
    seen, turns = [tails(states, 4)], [marks(infos)]
    for step in range(1, 7):
        states, *_, infos = env.step(choose(env, *[step % 4] * 3))
        seen.append(tails(states, 4))
        turns.append(marks(infos))
        if step == 5:  # cat chose 5 mod 4, and bob is no more
            assert tails(infos["final_states"], 4) == [0, None, 1]
    assert turns == ["Abc", "aBc", "abC", "Abc", "a-C", "Abc", "aBc"]
    assert seen == [
        [None, None, None],
        [1, None, None],
        [1, 2, None],
        [1, 2, 3],
        [0, 2, 3],  # ada acts for the second time; bob dies as it waits: its last observation
        [None, None, None],  # the next game
        [2, None, None],
    ]


# ---- shared states ---------------------------------------------------------------------------------------------------


def test_joined_observations_stay_just_that() -> None:
    env = LastAction(make("particle/simple_spread", 2, seed=0, max_cycles=2))
    assert not env.has_own_state
    assert env.shared_observation_space("agent_0").shape == (3 * (18 + 5),)
    states, _ = env.reset()
    for step in (1, 2, 3):
        assert torch.equal(env.state(), torch.cat([states[n] for n in env.possible_agents], dim=1))
        states, *_, infos = env.step(choose(env, 1, 2, 3))
        assert ("final_states" in infos) == (step == 2)
        if step == 2:
            final = torch.cat([infos["final_states"][n] for n in env.possible_agents], dim=1)
            assert torch.equal(infos["final_shared_states"], final)
            assert infos["final_shared_states"][0, 18:23].tolist() == hot(1, 5)
            assert not env.state()[0, 18:23].any()
    assert env.state() is env.state()


def test_joined_observations_are_zeros_for_the_absent() -> None:
    # ada dies at moment 1: what it observes last has its action, the joined state has nothing of it
    env = LastAction(wrap_env(Roster([["ada", "bob"], ["bob"], ["bob"], []])))
    env.reset()
    states, *_ = env.step(choose(env, 1, 0, 1))
    assert states["ada"].tolist() == [[2, 1, 0, 1]]
    assert env.state().tolist() == [[0, 0, 0, 0, 2, 2, 1, 0, 0, 0, 0, 0]]
    env.step(choose(env, 1, 0, 1))
    *_, infos = env.step(choose(env, 1, 1, 1))
    assert infos["final_shared_states"].tolist() == [[0, 0, 0, 0, 4, 2, 0, 1, 0, 0, 0, 0]]


def test_who_dies_as_time_runs_out_is_not_in_the_last_joined_state() -> None:
    for early in (False, True):
        env = LastAction(wrap_env(Errands(1, {"bob": 1}, early=early)))
        _, infos = env.reset()
        actions = {n: torch.tensor([[1, 2 if n != "bob" else 0]]) for n in NAMES}
        actions["cat"] = torch.tensor([[1, 0]])
        *_, infos = env.step(actions)
        last = infos["final_shared_states"].view(3, 8)
        # where all are terminated together, the state is shown as it was
        assert last[1].any() == early
        assert last[[0, 2], 3:].sum(1).tolist() == [2, 2]
        assert tails(infos["final_states"], 3) == [2, 0, 0]


def test_a_state_of_its_own_is_left_alone() -> None:
    for name in ("matrix/two_step", "memory/recall"):
        env, bare = LastAction(make(name, 2, seed=0)), make(name, 2, seed=0)
        env.reset()
        bare.reset()
        assert env.has_own_state
        assert env.shared_observation_space("agent_0") is env.env.shared_observation_space("agent_0")
        for _ in range(9):
            assert torch.equal(env.state(), bare.state())
            infos, told = env.step(choose(env, 1, 0))[4], bare.step(choose(env, 1, 0))[4]
            if told:
                assert torch.equal(infos["final_shared_states"], told["final_shared_states"])


def test_a_joined_state_of_another_width_is_refused() -> None:
    spy = Spy({"a": spaces.Discrete(2), "b": spaces.Discrete(2)})
    spy.has_own_state = False
    with pytest.raises(EnvError, match=r"a shared state of 1 numbers, and observations of 2 together"):
        LastAction(spy)


# ---- spaces ----------------------------------------------------------------------------------------------------------


def test_flat_boxes_stay_boxes() -> None:
    spy = Spy({"a": spaces.MultiDiscrete([2, 1])})
    spy.observation_spaces = {"a": spaces.Box(np.float64([-2, -1e300]), np.float64([3, 5]), dtype=np.float64)}
    space = LastAction(spy).observation_space("a")
    assert isinstance(space, spaces.Box)
    assert space.dtype == np.float32
    assert space.low.tolist() == [-2, -np.inf, 0, 0, 0]
    assert space.high.tolist() == [3, 5, 1, 1, 1]


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(0, 255, (12, 12, 3), np.uint8),
        spaces.Box(0, 1, ()),
        spaces.Discrete(4),
        spaces.Dict({"z": spaces.Discrete(3), "a": spaces.Box(0, 1, (2,))}),
    ],
)
def test_other_observations_become_a_tuple(space: spaces.Space) -> None:
    spy = Spy({"a": spaces.Discrete(2)})
    spy.observation_spaces = {"a": space}
    whole = LastAction(spy).observation_space("a")
    assert whole == spaces.Tuple((space, spaces.Box(0.0, 1.0, (2,), np.float32)))
    assert flat_size(whole) == flat_size(space) + 2


def test_models_still_find_the_image() -> None:
    module = pettingzoo("butterfly.pistonball.pistonball")
    env = LastAction(wrap_env(lambda: module.parallel_env(n_pistons=4, max_cycles=9, continuous=False), seed=0))
    states, _ = env.reset()
    models = build_models(env, "ippo", hidden=(8,), cnn=(4,), agent_id=False)
    uid = env.possible_agents[0]
    policy = models[uid]["policy"]
    assert any(isinstance(module, torch.nn.Conv2d) for module in policy.modules())
    assert policy.compute({"states": states[uid]}, "policy")[0].shape == (1, 3)
    states, *_ = env.step(choose(env, 2, 0, 1, 1))
    assert tails(states, 3) == [2, 0, 1, 1]
    env.close()


@pytest.mark.parametrize("space", [spaces.Box(-1, 1, (2,)), spaces.MultiBinary(2)])
def test_other_actions_are_refused(space: spaces.Space) -> None:
    with pytest.raises(
        TypeError, match=r"agent 'b' has .* actions; expected Discrete or MultiDiscrete ones: .* DiscreteActions"
    ):
        LastAction(Spy({"a": spaces.Discrete(2), "b": space}))
    with pytest.raises(TypeError, match="env: expected a MultiAgentEnv, got dict"):
        LastAction({})  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore")
def test_boxes_once_they_are_discrete() -> None:
    env = LastAction(DiscreteActions(vmas(), bins=3))
    env.reset()
    states, *_ = env.step(choose(env, *range(len(env.possible_agents))))
    assert tails(states, 9) == list(range(len(env.possible_agents)))


# ---- snapshots -------------------------------------------------------------------------------------------------------


class Saved(LastAction):
    """Over an environment that can neither hand over nor take a state: everything else is tested."""

    class Inner:
        """Stands in for the environment while states are handed over."""

        def get_state(self) -> dict[str, Any]:
            return {}

        def set_state(self, state: Any) -> None:
            assert state == {}

    def swap(self, use: Any) -> Any:
        env, self.env = self.env, self.Inner()  # type: ignore[assignment]
        try:
            return use()
        finally:
            self.env = env


def test_snapshots_hold_who_waits_and_what_it_did() -> None:
    env = Saved(wrap_env(Rounds(length=9)))
    env.reset()
    for step in (1, 2):
        env.step(choose(env, *[step] * 3))
    snapshot = env.swap(env.get_state)
    assert {n: t[0].tolist() for n, t in snapshot["last_actions"].items()} == {
        "ada": hot(1, 4),
        "bob": hot(2, 4),
        "cat": hot(None, 4),
    }
    assert [snapshot["active"][n].item() for n in NAMES] == [False, False, True]
    assert [snapshot["waiting"][n].item() for n in NAMES] == [True, True, False]
    other = Saved(wrap_env(Rounds(length=9)))
    other.reset()
    other.step(choose(other, 3, 3, 3))  # the game itself, which is bob's turn, is not handed over
    assert other.state().view(3, 7)[:, 3:].tolist() == [hot(3, 4), hot(None, 4), hot(None, 4)]
    other.swap(lambda: other.set_state(snapshot))
    assert other.state().view(3, 7)[:, 3:].tolist() == [hot(1, 4), hot(2, 4), hot(None, 4)]
    for mask in ("last_actions", "active", "waiting"):
        for value in snapshot[mask].values():
            value.zero_()  # these are copies, of which neither knows
    for each in (env, other):
        states, *_ = each.step(choose(each, 3, 3, 3))
        assert tails(states, 4) == [1, 2, 3]


def test_environments_without_snapshots_say_so() -> None:
    env = LastAction(wrap_env(Errands()))
    env.reset()
    with pytest.raises(NotImplementedError, match="PettingZooEnv cannot hand over its state"):
        env.get_state()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extra": 1}, r"the state has the keys \['active', 'env', 'extra'"),
        ({"last_actions": {}}, r"state\['last_actions'\]: expected tensors of \['agent_0', 'agent_1'\]"),
        ({"last_actions": None}, r"state\['last_actions'\]: expected tensors of .* got None"),
        ({"last_actions": {"agent_0": 1, "agent_1": 1}}, r"\['agent_0'\]: expected torch.float32 \[2, 3\], got int"),
        (
            {"last_actions": {"agent_0": torch.zeros(2, 3), "agent_1": torch.zeros(3, 3)}},
            r"\['agent_1'\]: expected torch.float32 \[2, 3\], got torch.float32 \[3, 3\]",
        ),
        ({"active": {"agent_0": torch.ones(2, 1)}}, r"state\['active'\]\['agent_0'\]: expected torch.bool \[2, 1\]"),
        ({"waiting": {"zed": torch.ones(2, 1, dtype=torch.bool)}}, r"state\['waiting'\]: expected tensors of"),
        ({"env": {}}, "the state has the keys"),
    ],
)
def test_states_that_do_not_fit(change: dict[str, Any], message: str) -> None:
    env = LastAction(make("matrix/climbing", 2))
    env.reset()
    env.step(choose(env, 1, 2))
    before = env.get_state()
    with pytest.raises(EnvError, match=message):
        env.set_state({**before, "last_actions": {n: torch.zeros(2, 3) for n in before["last_actions"]}, **change})
    after = env.get_state()
    assert all(torch.equal(before["last_actions"][n], after["last_actions"][n]) for n in before["last_actions"])


def test_a_loop_of_ones_own_may_pass_plain_dicts() -> None:
    class Plain(Spy):
        def step(self, actions: Any) -> Any:
            *mappings, infos = super().step(actions)
            return (*(dict(mapping) for mapping in mappings), infos)

    env = LastAction(Plain({"a": spaces.Discrete(2), "b": spaces.Discrete(2)}))
    env.reset()
    states, *_ = env.step({"a": torch.tensor([[1], [0], [1]]), "b": torch.tensor([[0], [0], [1]])})
    assert isinstance(states, AgentTensors)
    assert states["a"].tolist() == [[0, 0, 1], [0, 1, 0], [0, 0, 1]]
    # masks of some of the agents: without one, an agent is active
    env.env.infos = {"active_masks": {"b": torch.tensor([[False], [True], [True]])}}
    env.step({"a": torch.tensor([[1], [0], [1]]), "b": torch.tensor([[0], [0], [1]])})
    states, *_ = env.step({"a": torch.tensor([[1], [1], [1]]), "b": torch.tensor([[1], [1], [1]])})
    assert states["a"][:, 1:].tolist() == [[0, 1]] * 3
    assert states["b"][:, 1:].tolist() == [[0, 0], [0, 1], [0, 1]]


def test_the_dead_of_a_real_game_leave_nothing() -> None:
    env = LastAction(knights(turns=False, max_cycles=60))
    states, infos = env.reset()
    generator = torch.Generator().manual_seed(0)
    absent = 0
    for _ in range(200):
        before = infos.get("active_masks")
        states, *_, infos = env.step(draw(env, infos, generator))
        for name in env.possible_agents if before is not None else ():
            gone = ~before[name][:, 0]
            absent += int(gone.sum())
            assert not states[name][gone, -6:].any()
    assert absent > 50
