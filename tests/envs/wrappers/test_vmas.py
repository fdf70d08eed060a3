"""VMAS environments: masked resets that leave the other copies alone, random numbers of their own, time limits."""

from __future__ import annotations

import logging
import random

import numpy as np
import pytest
import torch

from coterie.agent_tensors import AgentTensors
from coterie.envs.base import EnvError
from coterie.envs.wrappers import VmasEnv, wrap_env
from coterie.envs.wrappers.batch_rows import BatchRows

# the legacy gym that vmas imports complains about NumPy 2, and about more on import
pytestmark = pytest.mark.filterwarnings("ignore")
E = 6


@pytest.fixture
def vmas():
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("vmas")


def make(vmas, scenario, seed=1, num_envs=E, **kwargs):
    return wrap_env(vmas.make_env(scenario, num_envs=num_envs, terminated_truncated=True, **kwargs), seed=seed)


def random_actions(env, generator):
    return {
        name: torch.rand(env.num_envs, *space.shape, generator=generator) * torch.from_numpy(space.high - space.low)
        + torch.from_numpy(space.low)
        for name, space in env.action_spaces.items()
    }


def rollout(env, ends, steps=12):
    """Step with scripted ends of episodes ``{step: mask}``; return what each step gave."""
    simulate, made = env.env.step, []

    def step(actions):
        result = simulate(actions)
        result[2][:] = ends.get(len(made), torch.zeros(env.num_envs, dtype=torch.bool))
        return result

    env.env.step = step
    generator = torch.Generator().manual_seed(5)
    env.reset()
    for index in range(steps):
        made.append(env.step(random_actions(env, generator)))
        # noise in a later step must not depend on how much a reset drew
        env._random._own[0] = torch.Generator().manual_seed(index).get_state()
    return made


SCENARIOS = ["navigation", "simple_spread", "balance", "transport", "wheel", "give_way", "flocking", "simple_tag"]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_masked_reset(vmas, scenario):
    ends = {3: torch.tensor([1, 0, 0, 1, 0, 0]).bool(), 4: torch.tensor([1, 0, 0, 0, 0, 1]).bool()}
    undisturbed = rollout(make(vmas, scenario), {})
    reset = rollout(make(vmas, scenario), ends)
    others = [1, 2, 4]
    for (states, rewards, _, _, _), (states_2, rewards_2, _, _, _) in zip(undisturbed, reset, strict=True):
        for name in states:
            assert torch.equal(states[name][others], states_2[name][others])
            assert torch.equal(rewards[name][others], rewards_2[name][others])

    states, _, terminated, truncated, infos = reset[3]
    for name in states:
        assert torch.equal(infos["final_states"][name], undisturbed[3][0][name])  # the true last observation
        assert (states[name][[0, 3]] != infos["final_states"][name][[0, 3]]).any(dim=1).all()
        assert torch.equal(terminated[name], ends[3][:, None])
        assert not truncated[name].any()
    assert torch.equal(infos["final_shared_states"], torch.cat([infos["final_states"][n] for n in states], dim=1))
    assert "final_states" not in reset[5][4]


def test_a_new_episode_starts_as_any_other(vmas):
    # the shaping of navigation is a distance kept from the step before: a stale one would show in the first reward
    env = make(vmas, "navigation", max_steps=None)
    rollout(env, {2: torch.tensor([1, 0, 0, 0, 0, 0]).bool()}, steps=3)
    world = env.env.world
    for agent in world.agents:
        distance = torch.linalg.vector_norm(agent.state.pos - agent.goal.state.pos, dim=-1)
        assert torch.allclose(agent.pos_shaping, distance, atol=1e-6)
        assert not agent.state.vel[0].any()
        assert agent.state.vel[1].any()
    assert env.env.steps.tolist() == [0, 3, 3, 3, 3, 3]
    observed = env._states["agent_0"][0, :2]
    assert torch.equal(observed, world.agents[0].state.pos[0])


def test_time_limit(vmas):
    env = make(vmas, "simple_spread", max_steps=3)
    env.reset()
    actions = {name: torch.zeros(E, 2) for name in env.possible_agents}
    resets = []
    original = env.env.reset
    env.env.reset = lambda *a, **k: resets.append(1) or original(*a, **k)
    for step in range(1, 7):
        _, _, terminated, truncated, infos = env.step(actions)
        for name in env.possible_agents:
            assert truncated[name].tolist() == [[step % 3 == 0]] * E
            assert not terminated[name].any()
            assert terminated[name].dtype == torch.bool
        assert ("final_states" in infos) == (step % 3 == 0)
    assert len(resets) == 2  # nothing is reset before an episode ends, nor twice when all end


def test_terminated_truncated_is_switched_on(vmas, caplog):
    bare = vmas.make_env("simple_spread", num_envs=2, max_steps=1)
    with caplog.at_level(logging.INFO):
        env = wrap_env(bare)
    assert "terminated_truncated is switched on" in caplog.text
    env.reset()
    _, _, terminated, truncated, _ = env.step({name: torch.zeros(2, 2) for name in env.possible_agents})
    assert truncated["agent_0"].all()
    assert not terminated["agent_0"].any()


@pytest.mark.parametrize("dict_spaces", [False, True])
def test_shapes(vmas, dict_spaces):
    env = make(vmas, "simple_tag", dict_spaces=dict_spaces)
    states, _ = env.reset()
    assert isinstance(states, AgentTensors)
    assert len(states.stacks) == 2  # two kinds of agents
    for name in env.possible_agents:
        assert states[name].shape == (E, *env.observation_space(name).shape)
    result = env.step(random_actions(env, torch.Generator()))
    for mapping in result[1:4]:
        assert mapping["agent_0"].shape == (E, 1)
    assert env.state().shape == (E, *env.shared_observation_space("agent_0").shape)
    assert torch.equal(env.state(), torch.cat([result[0][name] for name in env.possible_agents], dim=1))
    assert not any(tensor.requires_grad for mapping in result[:2] for tensor in mapping.values())


@pytest.mark.parametrize("kind", ["discrete", "multidiscrete"])
def test_discrete_actions(vmas, kind):
    env = make(vmas, "simple_spread", continuous_actions=False, multidiscrete_actions=kind == "multidiscrete")
    env.reset()
    width = 1 if kind == "discrete" else 2
    assert env.action_space("agent_0").shape == (() if kind == "discrete" else (2,))
    actions = {name: torch.ones(E, width, dtype=torch.int64) for name in env.possible_agents}
    env.step(actions)
    actions["agent_1"][4] = 9
    with pytest.raises(EnvError, match=r"step 2: the action of agent 'agent_1' in copy 4 is \[9"):
        env.step(actions)


def test_actions_outside_are_clipped(vmas, caplog):
    env, other = make(vmas, "simple_spread"), make(vmas, "simple_spread")
    env.reset(), other.reset()
    actions = {name: torch.full((E, 2), 1.5) for name in env.possible_agents}
    states = env.step(actions)[0]
    expected = other.step({name: torch.ones(E, 2) for name in env.possible_agents})[0]
    assert torch.equal(states["agent_2"], expected["agent_2"])
    env.step(actions)
    assert caplog.text.count("it was clipped") == 1
    assert actions["agent_0"].tolist() == [[1.5, 1.5]] * E


def test_returned_tensors_are_never_written_again(vmas):
    env = make(vmas, "navigation", max_steps=4)
    generator = torch.Generator().manual_seed(0)
    states, _ = env.reset()
    kept = [(states["agent_0"], states["agent_0"].clone()), (env.state(), env.state().clone())]
    for _ in range(9):
        states, rewards, terminated, truncated, infos = env.step(random_actions(env, generator))
        tensors = [states["agent_1"], rewards["agent_0"], terminated["agent_0"], truncated["agent_0"], env.state()]
        tensors += infos["env_infos"]["agent_0"].values()
        if "final_states" in infos:
            tensors += [infos["final_states"]["agent_0"], infos["final_shared_states"]]
        kept += [(tensor, tensor.clone()) for tensor in tensors]
    for tensor, then in kept:
        assert torch.equal(tensor, then)


class TestRandomNumbers:
    def test_a_seed_decides_everything(self, vmas):
        first, second, third = make(vmas, "navigation"), make(vmas, "navigation"), make(vmas, "navigation", seed=2)
        states = [env.reset()[0]["agent_0"] for env in (first, second, third)]
        assert torch.equal(states[0], states[1])
        assert not torch.equal(states[0], states[2])
        # later episodes too, whatever other environments and the global generators do in between
        first.reset()
        third.reset()
        torch.rand(9)
        vmas.make_env("navigation", num_envs=2, seed=0).reset()
        assert torch.equal(first.reset()[0]["agent_0"], [second.reset(), second.reset()][1][0]["agent_0"])

    def test_without_a_seed(self, vmas):
        def pair():
            bare = vmas.make_env("navigation", num_envs=2, seed=3)
            return wrap_env(bare).reset()[0]["agent_0"], wrap_env(bare).reset()[0]["agent_0"]

        one, two = pair()
        again, _ = pair()
        assert torch.equal(one, again)  # make_env(seed=3) decides
        assert not torch.equal(one, two)

    def test_other_generators_are_left_alone(self, vmas):
        def look():
            shared = type(env.env).vmas_random_state
            values = torch.get_rng_state(), np.random.get_state()[1], shared[0], shared[1][1]  # noqa: NPY002
            return [np.array(value).copy() for value in values], random.getstate(), shared[2]

        env = make(vmas, "navigation", max_steps=2)
        arrays, *states = look()
        env.reset()
        for _ in range(3):
            env.step({name: torch.zeros(E, 2) for name in env.possible_agents})
        env.env.scenario.reward = None  # the next step raises in the middle of VMAS
        with pytest.raises(EnvError):
            env.step({name: torch.zeros(E, 2) for name in env.possible_agents})
        arrays_2, *states_2 = look()
        assert states == states_2
        assert all(np.array_equal(a, b) for a, b in zip(arrays, arrays_2, strict=True))


class TestFaults:
    def zeros(self, env):
        return {name: torch.zeros(E, 2) for name in env.possible_agents}

    def test_a_scenario_that_raises(self, vmas):
        env = make(vmas, "simple_spread")
        env.reset()

        def fail(agent):
            raise KeyError("goal")

        env.env.scenario.reward = fail
        with pytest.raises(EnvError, match=r"step 1, all 6 copies: the environment's step\(\) raised KeyError: 'goal'"):
            env.step(self.zeros(env))

    def test_numbers(self, vmas):
        env = make(vmas, "simple_spread")
        env.reset()
        bad = torch.zeros(E)
        bad[2] = float("nan")
        env.env.scenario.reward = lambda agent: bad
        with pytest.raises(EnvError, match="step 1: the reward of agent 'agent_0' in copy 2 is nan"):
            env.step(self.zeros(env))

    def test_shapes(self, vmas):
        env = make(vmas, "simple_spread")
        env.reset()
        env.env.scenario.observation = lambda agent: torch.zeros(E, 1)
        with pytest.raises(EnvError, match=r"'agent_0' has shape \(6, 1\); expected \(6, 14\)"):
            env.step(self.zeros(env))

    def test_dictionary_observations(self, vmas):
        bare = vmas.make_env("simple_spread", num_envs=2)
        original = bare.scenario.observation
        bare.scenario.observation = lambda agent: {"all": original(agent)}
        bare.observation_space = bare.get_observation_space(bare.reset())
        with pytest.raises(TypeError, match="expected agent 'agent_0' to observe one tensor"):
            wrap_env(bare)

    def test_number_of_copies(self, vmas):
        make_one = lambda: vmas.make_env("simple_spread", num_envs=2)  # noqa: E731
        assert isinstance(wrap_env(make_one, "vmas", num_envs=2), VmasEnv)
        with pytest.raises(ValueError, match="expected num_envs=4 copies"):
            wrap_env(make_one, num_envs=4)
        with pytest.raises(TypeError, match="it steps copies itself"):
            wrap_env([make_one, make_one])


class TestBatchRows:
    class Node:
        def __init__(self, **values):
            self.__dict__.update(values)

    rows = torch.tensor([True, False, True])

    def test_tensors_everywhere(self):
        node = self.Node
        root = node(
            a=torch.zeros(3),
            deep=node(values=[torch.zeros(3, 2), {"key": torch.zeros(4, 3)}], pair=(torch.zeros(3),)),
            unrelated=torch.zeros(5),
            flag=torch.zeros(3, dtype=torch.bool),
        )
        root.deep.parent = root
        saved = BatchRows(root, 3)
        root.a = torch.ones(3)  # bound anew
        root.deep.values[0][:] = 1  # written to
        root.deep.values[1] = {"key": torch.ones(4, 3)}  # in a container made anew
        root.deep.pair[0].fill_(1)
        root.unrelated += 1
        root.flag |= True
        root.late = torch.ones(3)
        saved.restore(self.rows)
        assert root.a.tolist() == [0, 1, 0]
        assert root.deep.values[0].tolist() == [[0, 0], [1, 1], [0, 0]]
        assert root.deep.values[1]["key"].tolist() == [[0, 1, 0]] * 4
        assert root.deep.pair[0].tolist() == [0, 1, 0]
        assert root.unrelated.tolist() == [1] * 5
        assert root.flag.tolist() == [False, True, False]
        assert root.late.tolist() == [1, 1, 1]

    def test_shared_tensors(self):
        one = torch.zeros(3)
        root = self.Node(a=one, b=one, c=torch.zeros(3), d=torch.full((3,), 5.0))
        saved = BatchRows(root, 3)
        root.a = root.b = torch.ones(3)
        root.c = root.d = torch.ones(3)
        saved.restore(self.rows)
        assert root.a is root.b
        assert root.a.tolist() == [0, 1, 0]
        assert root.c.tolist() == [0, 1, 0]
        assert root.d.tolist() == [5, 1, 5]

    def test_objects_found_in_another_way(self):
        goals = [self.Node(pos=torch.full((3,), float(i))) for i in range(2)]
        root = self.Node(agent=self.Node(goal=goals[0]), goals=goals)
        saved = BatchRows(root, 3)
        root.agent.goal = goals[1]
        for goal in goals:
            goal.pos = torch.full((3,), 9.0)
        saved.restore(self.rows)
        assert [goal.pos.tolist() for goal in goals] == [[0, 9, 0], [1, 9, 1]]

    def test_a_changed_shape_is_an_error(self):
        root = self.Node(inner=self.Node(a=torch.zeros(3, 2)))
        saved = BatchRows(root, 3)
        root.inner.a = torch.zeros(3, 4)
        with pytest.raises(EnvError, match=r"inner.a had shape \[3, 2\] and has \[3, 4\] after a reset"):
            saved.restore(self.rows)
