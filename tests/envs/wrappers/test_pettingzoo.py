"""Copies of parallel environments: what is returned when, episode ends, seeds, shared states, absent agents."""

from __future__ import annotations

import logging
from collections import defaultdict

import numpy as np
import pytest
import torch
from gymnasium import spaces
from pettingzoo.utils.env import ParallelEnv

from coterie.agent_tensors import AgentTensors
from coterie.envs.base import EnvError
from coterie.envs.wrappers import PettingZooEnv, wrap_env


def zeros(env):
    return {name: torch.zeros(env.num_envs, 1, dtype=torch.int64) for name in env.possible_agents}


def test_mid_episode(scripted):
    env = PettingZooEnv([scripted(0), scripted(1)])
    states, infos = env.reset()
    assert infos == {}
    assert states["bob"].tolist() == [[0, 0, 0, 1], [1, 0, 0, 1]]
    states, rewards, terminated, truncated, infos = env.step(zeros(env))
    assert infos == {}
    assert states["ada"].tolist() == [[0, 0, 1, 0], [1, 0, 1, 0]]
    assert rewards["ada"].tolist() == [[1.0], [1.0]]
    for flags in (terminated, truncated):
        assert flags["bob"].tolist() == [[False], [False]]
        assert flags["bob"].dtype == torch.bool
    assert states["ada"].dtype == rewards["ada"].dtype == torch.float32
    assert isinstance(states, AgentTensors)
    assert set(states.stacks) == {("ada", "bob")}


@pytest.mark.parametrize("end", ["terminated", "truncated"])
def test_end_of_an_episode(scripted, end):
    # copy 0 ends at step 2, copy 1 at step 3
    env = PettingZooEnv([scripted(0, 2, end), scripted(1, 3, end)])
    env.reset()
    env.step(zeros(env))
    states, rewards, terminated, truncated, infos = env.step(zeros(env))
    assert states["ada"].tolist() == [[0, 1, 0, 0], [1, 0, 2, 0]]  # copy 0 shows episode 1, step 0
    assert infos["final_states"]["ada"][0].tolist() == [0, 0, 2, 0]
    assert infos["final_states"]["bob"][0].tolist() == [0, 0, 2, 1]
    assert infos["final_shared_states"][0].tolist() == [0, 0, 2, 0, 0, 0, 2, 1]
    assert env.state().tolist() == [[0, 1, 0, 0, 0, 1, 0, 1], [1, 0, 2, 0, 1, 0, 2, 1]]
    assert rewards["bob"].tolist() == [[2.0], [2.0]]
    assert terminated["ada"].tolist() == [[end == "terminated"], [False]]
    assert truncated["ada"].tolist() == [[end == "truncated"], [False]]
    assert "active_masks" not in infos

    states, rewards, terminated, truncated, infos = env.step(zeros(env))
    assert states["ada"].tolist() == [[0, 1, 1, 0], [1, 1, 0, 0]]
    assert infos["final_states"]["ada"][1].tolist() == [1, 0, 3, 0]
    assert rewards["ada"].tolist() == [[101.0], [3.0]]


def test_returned_tensors_are_never_written_again(scripted):
    # the scripted environment returns the same arrays at every step
    env = PettingZooEnv([scripted(0, 2), scripted(1, 3)])
    states, _ = env.reset()
    kept = [states["ada"], env.state()]
    for _ in range(7):
        next_states, rewards, terminated, truncated, infos = env.step(zeros(env))
        kept += [next_states["bob"], rewards["ada"], terminated["ada"], truncated["ada"], env.state()]
        kept += [infos["final_states"]["ada"], infos["final_shared_states"]] if "final_states" in infos else []
        kept = [(k, k.clone()) if isinstance(k, torch.Tensor) else k for k in kept]
    for tensor, then in (pair for pair in kept if isinstance(pair, tuple)):
        assert torch.equal(tensor, then)


def test_the_environment_may_write_to_its_actions(scripted):
    class Rude(scripted):
        def step(self, actions):
            for action in actions.values():
                action += 1
            return super().step(actions)

    for space in (spaces.Box(-1, 1, (2,)), spaces.MultiDiscrete([3, 4])):
        env = PettingZooEnv([Rude(action_space=space)])
        env.reset()
        dtype = torch.float32 if isinstance(space, spaces.Box) else torch.int64
        actions = AgentTensors.single(["ada", "bob"], torch.zeros(1, 2, 2, dtype=dtype))
        env.step(actions)
        assert not actions["ada"].any()


def test_heterogeneous_widths(scripted):
    env = PettingZooEnv([scripted(i, 1, names=("a", "b", "c"), widths=(4, 3, 4)) for i in range(2)])
    states, _ = env.reset()
    assert set(states.stacks) == {("a", "c"), ("b",)}
    assert states["c"].tolist() == [[0, 0, 0, 2], [1, 0, 0, 2]]
    assert env.state()[1].tolist() == [1, 0, 0, 0, 1, 0, 0, 1, 0, 0, 2]  # in the order of the agents
    infos = env.step(zeros(env))[4]
    assert infos["final_shared_states"][1].tolist() == [1, 0, 1, 0, 1, 0, 1, 1, 0, 1, 2]
    assert env.shared_observation_space("a").shape == (11,)


def test_observations_of_any_rank_and_type(scripted):
    class Image(scripted):
        def observations(self, names):
            return {n: np.arange(6, dtype=np.uint8).reshape(1, 2, 3) for n in names}

        def observation_space(self, agent):
            return spaces.Box(0, 255, (1, 2, 3), np.uint8)

    states, _ = PettingZooEnv([Image()]).reset()
    assert states["ada"].tolist() == [[0, 1, 2, 3, 4, 5]]
    assert states["ada"].dtype == torch.float32

    class Double(scripted):
        def observations(self, names):
            return {n: np.full(4, 0.1) for n in names}

    states, _ = PettingZooEnv([Double()]).reset()
    assert torch.equal(states["ada"], torch.full((1, 4), 0.1))


def test_actions_arrive_as_their_spaces_sample_them(scripted):
    cases = [
        (spaces.Discrete(3), torch.tensor([[2]]), np.int64(2)),
        (spaces.Discrete(3, start=5), torch.tensor([[2]]), np.int64(7)),
        (spaces.MultiDiscrete([2, 4]), torch.tensor([[1, 3]]), np.array([1, 3])),
        (spaces.MultiDiscrete([2, 4], dtype=np.int32), torch.tensor([[1, 3]]), np.array([1, 3], np.int32)),
        (
            spaces.MultiDiscrete([[2], [4]], start=[[1], [-1]]),
            torch.tensor([[1, 3]]),
            np.array([[2], [2]]),
        ),
        (spaces.MultiBinary(3), torch.tensor([[1, 0, 1]]), np.array([1, 0, 1], np.int8)),
        (spaces.MultiBinary((2, 1)), torch.tensor([[1, 0]]), np.array([[1], [0]], np.int8)),
        (spaces.Box(-1, 1, (2,)), torch.tensor([[0.5, -1.0]]), np.array([0.5, -1], np.float32)),
        (spaces.Box(-1, 1, (2, 1), np.float64), torch.tensor([[0.5, -1.0]]), np.array([[0.5], [-1]])),
    ]
    for space, action, expected in cases:
        bare = scripted(action_space=space)
        env = PettingZooEnv([bare])
        env.reset()
        env.step({"ada": action, "bob": action})
        got = bare.actions[0]["bob"]
        assert np.array_equal(got, expected)
        assert got.dtype == expected.dtype
        assert space.contains(got)


class TestState:
    def test_own_state_without_declared_space(self, scripted):
        class Stateful(scripted):
            def state(self):
                return np.array([[self.copy, self.episode], [self.steps, 7]])

        bare = [Stateful(0, 2), Stateful(1, 3)]
        env = PettingZooEnv(bare, seed=4)
        assert env.shared_observation_space("ada").shape == (4,)
        env.reset()
        assert bare[0].seeds == [4, 4]  # its width was found in an episode that is seeded again
        env.step(zeros(env))
        infos = env.step(zeros(env))[4]
        assert infos["final_shared_states"].tolist() == [[0, 1, 2, 7], [0, 0, 0, 0]]
        assert env.state().tolist() == [[0, 2, 0, 7], [1, 0, 2, 7]]
        assert env.state() is env.state()
        infos = env.step(zeros(env))[4]
        assert infos["final_shared_states"].tolist() == [[0, 0, 0, 0], [1, 0, 3, 7]]

    def test_own_state_is_asked_for_only_when_wanted(self, scripted):
        class Counting(scripted):
            state_space = spaces.Box(0, 1, (1,))
            calls = 0

            def state(self):
                self.calls += 1
                return np.zeros(1)

        bare = Counting(length=2)
        env = PettingZooEnv([bare])
        env.reset()
        env.step(zeros(env))
        assert bare.calls == 0
        env.step(zeros(env))
        assert bare.calls == 1  # the final one

    @pytest.mark.parametrize("how", ["missing", "base", "raises"])
    def test_fallback_is_logged_once(self, scripted, caplog, how):
        class Base(scripted, ParallelEnv):
            pass

        class Raises(scripted):
            def state(self):
                raise NotImplementedError

        kind = {"missing": scripted, "base": Base, "raises": Raises}[how]
        with caplog.at_level(logging.INFO):
            env = PettingZooEnv([kind(), kind(1)])
            env.reset()
            env.state()
            env.step(zeros(env))
            env.state()
        assert sum("no state of its own" in record.message for record in caplog.records) == 1
        assert env.state().shape == (2, 8)


class TestAbsentAgents:
    def test_an_agent_leaves(self, scripted):
        env = PettingZooEnv([scripted(0, 3, leave={"ada": 1}), scripted(1, 3)])
        env.reset()
        states, rewards, terminated, _, infos = env.step(zeros(env))
        assert states["ada"][0].tolist() == [0, 0, 1, 0]  # its true last observation
        assert rewards["ada"][0] == 1
        assert terminated["ada"].tolist() == [[True], [False]]
        assert isinstance(infos["active_masks"], AgentTensors)
        assert infos["active_masks"]["ada"].tolist() == [[False], [True]]
        assert infos["active_masks"]["bob"].tolist() == [[True], [True]]
        assert "final_states" not in infos

        states, rewards, terminated, truncated, infos = env.step(zeros(env))
        assert set(env.envs[0].actions[1]) == {"bob"}  # no action for who is not there
        assert states["ada"].tolist() == [[0, 0, 0, 0], [1, 0, 2, 0]]
        assert rewards["ada"].tolist() == [[0.0], [2.0]]
        assert terminated["ada"].tolist() == [[True], [False]]
        assert truncated["ada"].tolist() == [[False], [False]]

        states, _, terminated, _, infos = env.step(zeros(env))
        assert infos["final_states"]["bob"][0].tolist() == [0, 0, 3, 1]
        assert not infos["final_states"]["ada"][0].any()
        assert "active_masks" not in infos  # both are back
        assert states["ada"][0].tolist() == [0, 1, 0, 0]

    def test_an_agent_joins_late(self, scripted):
        class Late(scripted):
            def reset(self, seed=None, options=None):
                super().reset(seed)
                self.agents = ["bob"]
                return self.observations(self.agents), {}

            def step(self, actions):
                result = super().step(actions)
                if self.steps == 1:
                    self.agents = ["ada", "bob"]
                    result[0].update(self.observations(self.agents))
                return result

        env = PettingZooEnv([Late()])
        states, infos = env.reset()
        assert not states["ada"].any()
        assert infos["active_masks"]["ada"].tolist() == [[False]]
        states, _, _, _, infos = env.step(zeros(env))
        assert states["ada"].tolist() == [[0, 0, 1, 0]]
        assert "active_masks" not in infos
        env.step(zeros(env))
        assert set(env.envs[0].actions[1]) == {"ada", "bob"}

    def test_leaving_without_a_flag_is_an_error(self, scripted):
        def vanish(step, result):
            env.envs[0].agents = ["bob"]
            return tuple(result)

        env = PettingZooEnv([scripted(spoil=vanish)])
        env.reset()
        with pytest.raises(EnvError, match=r"copy 0, step 1: agent 'ada' left env.agents though"):
            env.step(zeros(env))


def test_rewards_in_a_defaultdict(scripted):
    def spoil(step, result):
        result[1] = defaultdict(int, bob=2.0)
        return tuple(result)

    env = PettingZooEnv([scripted(spoil=spoil)])
    env.reset()
    rewards = env.step(zeros(env))[1]
    assert rewards["ada"].tolist() == [[0.0]]
    assert rewards["bob"].tolist() == [[2.0]]


def test_infos_are_passed_on_only_when_there_are_any(scripted):
    def spoil(step, result):
        result[4] = {"ada": {"step": step}}
        return tuple(result)

    env = PettingZooEnv([scripted(0, 2, spoil=spoil), scripted(1, 9)])
    _, infos = env.reset()
    assert infos == {}
    infos = env.step(zeros(env))[4]
    assert infos["env_infos"] == [{"ada": {"step": 1}}, {"ada": {}, "bob": {}}]
    infos = env.step(zeros(env))[4]
    assert "env_infos" not in infos  # both infos that go with next_states are empty
    assert infos["final_env_infos"] == [{"ada": {"step": 2}}, None]


def test_seeds(scripted):
    bare = [scripted(i, 1) for i in range(3)]
    env = PettingZooEnv(bare, seed=7)
    env.reset()
    env.step(zeros(env))
    env.reset()
    first = [copy.seeds[0] for copy in bare]
    assert first[0] == 7
    assert len(set(first)) == 3
    assert all(copy.seeds[1:] == [None, None] for copy in bare)  # later episodes go on
    again = [scripted() for _ in range(3)]
    PettingZooEnv(again, seed=7).reset()
    assert [copy.seeds[0] for copy in again] == first
    neighbours = [scripted() for _ in range(3)]
    PettingZooEnv(neighbours, seed=8).reset()
    assert not {copy.seeds[0] for copy in neighbours} & set(first)
    unseeded = scripted()
    PettingZooEnv([unseeded]).reset()
    assert unseeded.seeds == [None]


def test_close_is_idempotent(scripted):
    bare = [scripted(), scripted()]
    env = PettingZooEnv(bare)
    env.close()
    env.close()
    assert [copy.closed for copy in bare] == [1, 1]


@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("continuous", [False, True])
def test_mpe_simple_spread_equals_the_bare_environment(num_envs, continuous):
    simple_spread = pytest.importorskip("mpe2.simple_spread_v3")
    make = lambda: simple_spread.parallel_env(max_cycles=4, continuous_actions=continuous)  # noqa: E731
    env = wrap_env(make, num_envs=num_envs, seed=5)
    bare = make()
    expected, _ = bare.reset(seed=5)
    states, _ = env.reset()
    generator = torch.Generator().manual_seed(0)
    for step in range(1, 10):
        for name in env.possible_agents:
            assert np.array_equal(states[name][0].numpy(), expected[name])
        assert np.array_equal(env.state()[0].numpy(), bare.state())
        shape = (num_envs, 5) if continuous else (num_envs, 1)
        actions = {
            name: torch.rand(shape, generator=generator) if continuous else torch.randint(5, shape, generator=generator)
            for name in env.possible_agents
        }
        states, rewards, terminated, truncated, infos = env.step(actions)
        taken = {n: a[0].numpy() if continuous else a[0].item() for n, a in actions.items()}
        expected, expected_rewards, _, expected_truncated, _ = bare.step(taken)
        for name in env.possible_agents:
            assert rewards[name][0].item() == pytest.approx(expected_rewards[name], rel=1e-6)
            assert truncated[name][0].item() == expected_truncated[name] == (step % 4 == 0)
            assert not terminated[name].any()
        assert ("final_states" in infos) == (step % 4 == 0)
        if step % 4 == 0:
            for name in env.possible_agents:
                assert np.array_equal(infos["final_states"][name][0].numpy(), expected[name])
            assert np.array_equal(infos["final_shared_states"][0].numpy(), bare.state())
            expected, _ = bare.reset()
    env.close()
    env.close()


def test_mpe_speaker_listener():
    speaker_listener = pytest.importorskip("mpe2.simple_speaker_listener_v4")
    env = wrap_env(lambda: speaker_listener.parallel_env(max_cycles=3), num_envs=2, seed=0)
    states, _ = env.reset()
    assert {name: list(states[name].shape) for name in states} == {"speaker_0": [2, 3], "listener_0": [2, 11]}
    for _ in range(4):
        states, _, _, _, infos = env.step(zeros(env))
        joined = torch.cat([states["speaker_0"], states["listener_0"]], dim=1)
        assert torch.equal(env.state(), joined)
    assert env.action_spaces["speaker_0"].n == 3
    assert infos == {}
    env.close()
