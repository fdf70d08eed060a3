"""Gymnasium environments of a whole team: names, rewards, ends and seeds, with a scripted one and with the real ones."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from coterie.envs.base import EnvError
from coterie.envs.wrappers import PettingZooEnv, TupleTeam, wrap_env
from coterie.envs.wrappers.tuple_team import as_team

NOOP, LOAD = 0, 5  # of lbforaging


class Relay(gymnasium.Env):
    """Observations are [draw, step, agent], one longer for agent_1; rewards are 10 * agent + action, as a list."""

    action_space = spaces.Tuple((spaces.Discrete(2), spaces.MultiDiscrete([2, 3]), spaces.Box(-1, 1, (2,))))
    observation_space = spaces.Tuple(tuple(spaces.Box(0, 99, (3 + (i == 1),), np.float32) for i in range(3)))

    def __init__(self, end="terminated", length=3):
        self.end, self.length = end, length
        self.choices = []
        self.spoil = lambda result: result

    def observe(self):
        return tuple(np.array([self.draw, self.steps, i, 7][: 3 + (i == 1)]) for i in range(3))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.draw, self.steps = int(self.np_random.integers(90)), 0
        return self.observe(), {}

    def step(self, action):
        self.choices.append(action)
        self.steps += 1
        over = self.steps == self.length
        rewards = [np.float64(10 * i + np.sum(part)) for i, part in enumerate(action)]
        flags = over and self.end == "terminated", over and self.end == "truncated"
        return self.spoil([self.observe(), rewards, *flags, {"t": self.steps}])


def relay_actions():
    return {
        "agent_0": torch.tensor([[1]]),
        "agent_1": torch.tensor([[1, 2]]),
        "agent_2": torch.tensor([[0.5, -0.25]]),
    }


@pytest.mark.parametrize("end", ["terminated", "truncated"])
def test_a_team_steps_as_one(end):
    env = wrap_env(lambda: Relay(end), seed=5)
    assert isinstance(env, PettingZooEnv)
    assert env.possible_agents == ["agent_0", "agent_1", "agent_2"]
    for i, name in enumerate(env.possible_agents):
        assert env.action_spaces[name] == Relay.action_space[i]
        assert env.observation_spaces[name] == Relay.observation_space[i]
    assert env.shared_observation_space("agent_0").shape == (10,)
    states, _ = env.reset()
    draws = np.random.default_rng(5)  # as gymnasium seeds it
    first, second = draws.integers(90), draws.integers(90)
    assert states["agent_1"].tolist() == [[first, 0, 1, 7]]
    for t in (1, 2, 3):
        states, rewards, terminated, truncated, infos = env.step(relay_actions())
        # 0 + 1, 10 + 1 + 2, 20 + 0.5 - 0.25
        assert [value.item() for value in rewards.values()] == [1.0, 13.0, 20.25]
        for name in env.possible_agents:
            assert terminated[name].item() == (t == 3 and end == "terminated")
            assert truncated[name].item() == (t == 3 and end == "truncated")
    assert states["agent_2"].tolist() == [[second, 0, 2]]
    assert infos["final_states"]["agent_2"].tolist() == [[first, 3, 2]]
    assert infos["final_shared_states"].tolist() == [[first, 3, 0, first, 3, 1, 7, first, 3, 2]]
    assert infos["final_env_infos"][0]["agent_1"] == {"t": 3}
    choice = env.envs[0].env.choices[0]
    assert isinstance(choice, tuple)
    assert env.envs[0].env.action_space.contains(choice)


def test_which_environments_are_teams():
    assert type(as_team(Relay())) is TupleTeam
    single = Relay()
    single.action_space = spaces.Discrete(2)  # one agent that sees several things
    assert as_team(single).possible_agents == ["agent_0"]
    single.action_space = spaces.Tuple((spaces.Discrete(2),) * 2)  # two choices of one agent, which sees three things
    assert as_team(single).possible_agents == ["agent_0"]
    with pytest.raises(TypeError, match=r"one part for each agent, got Tuple.* and Tuple\(Discrete"):
        TupleTeam(single)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (1, [1.0, 2.0], "expected rewards of 3 agents, got 2 of them"),
        (1, 5.0, "expected rewards of 3 agents, got 5.0"),
        (0, (), "expected observations of 3 agents, got 0 of them"),
    ],
)
def test_what_does_not_fit_the_team(place, value, message):
    bare = Relay()
    env = wrap_env(bare)
    env.reset()
    bare.spoil = lambda result: [*result[:place], value, *result[place + 1 :]]
    bare.step, step = lambda action: tuple(step(action)), bare.step
    with pytest.raises(EnvError, match=f"copy 0, step 1: .*{message}"):
        env.step(relay_actions())


# -- level-based foraging -----------------------------------------------------------------------------------------------


def foraging(**kwargs):
    module = pytest.importorskip("lbforaging.foraging")
    settings = {
        "players": 2,
        "min_player_level": 1,
        "max_player_level": 2,
        "min_food_level": 1,
        "max_food_level": None,
        "field_size": (8, 8),
        "max_num_food": 2,
        "sight": 8,
        "max_episode_steps": 50,
        "force_coop": False,
    }
    return module.ForagingEnv(**settings | kwargs)


def both(env, first, second):
    return {
        "agent_0": torch.full((env.num_envs, 1), first),
        "agent_1": torch.full((env.num_envs, 1), second),
    }


def beside_food(age, levels=(1, 1)):
    """Return the environment after a reset, both players beside the only food, ``age`` steps into the episode."""
    env = wrap_env(foraging(max_num_food=1), seed=0)
    env.reset()
    game = env.envs[0].env
    game.field[:] = 0
    game.field[3, 3] = game._food_spawned = sum(levels)
    for player, position, level in zip(game.players, [(3, 2), (3, 4)], levels, strict=True):
        player.position, player.level = position, level
    game._gen_valid_moves()
    game.current_step = age
    return env


def test_foraging_names_and_spaces():
    gymnasium_id = "Foraging-8x8-2p-2f-coop-v3"
    pytest.importorskip("lbforaging")
    env = wrap_env(lambda: gymnasium.make(gymnasium_id, disable_env_checker=True), num_envs=3, seed=0)
    assert env.possible_agents == ["agent_0", "agent_1"]
    states, _ = env.reset()
    assert states["agent_0"].shape == (3, 12)  # 2 foods and 2 players, of 3 numbers
    assert len({tuple(row) for row in states["agent_0"].tolist()}) == 3
    assert env.action_spaces["agent_1"] == spaces.Discrete(6)
    assert type(env.envs[0]).__name__ == "ForagingTeam"
    env.close()


def test_six_foods():
    env = wrap_env(foraging(max_num_food=6, field_size=(12, 12)), seed=0)
    assert env.reset()[0]["agent_0"].shape == (1, 24)


def test_collecting_all_food_is_a_termination_worth_one():
    env = beside_food(age=0, levels=(1, 2))
    _, rewards, terminated, truncated, infos = env.step(both(env, LOAD, LOAD))
    # food of level 3, shared out by the players' levels: 1/3 and 2/3
    assert rewards["agent_0"].item() == pytest.approx(1 / 3)
    assert rewards["agent_1"].item() == pytest.approx(2 / 3)
    for name in env.possible_agents:
        assert terminated[name].item()
        assert not truncated[name].item()
    assert infos["final_states"]["agent_0"][0, :3].tolist() == [-1, -1, 0]  # no food


def test_time_that_runs_out_with_food_left_is_a_truncation():
    env = beside_food(age=48)
    _, _, terminated, truncated, _ = env.step(both(env, NOOP, LOAD))  # alone it is too heavy
    assert not (terminated["agent_0"] | truncated["agent_0"]).item()
    _, rewards, terminated, truncated, infos = env.step(both(env, LOAD, NOOP))
    for name in env.possible_agents:
        assert rewards[name].item() == 0
        assert not terminated[name].item()
        assert truncated[name].item()
    assert infos["final_states"]["agent_0"][0, :3].tolist() == [3, 3, 2]  # the food, still there


def test_the_last_food_in_the_last_step_is_a_termination():
    env = beside_food(age=49)
    _, _, terminated, truncated, _ = env.step(both(env, LOAD, LOAD))
    assert terminated["agent_0"].item()
    assert not truncated["agent_0"].item()


@pytest.mark.parametrize("seed", range(5))
def test_foraging_is_the_bare_environment(seed):
    """Copy 0 against the environment itself, over many episodes on a field where players often stand in the way."""

    def make():
        return foraging(field_size=(5, 5), max_num_food=1, max_episode_steps=9)

    env, bare = wrap_env(make, num_envs=2, seed=seed), make()
    states, _ = env.reset()
    observations, _ = bare.reset(seed=seed)
    rng = np.random.default_rng(seed)
    ends = 0
    for _ in range(160):
        choice = rng.integers(6, size=2)
        states, rewards, terminated, truncated, infos = env.step(both(env, *choice.tolist()))
        observations, expected, done, _, _ = bare.step(tuple(choice))
        assert done == (terminated["agent_0"] | truncated["agent_0"])[0].item()
        last = infos["final_states"] if done else states
        for i, name in enumerate(env.possible_agents):
            assert last[name][0].tolist() == observations[i].tolist()
            assert rewards[name][0].item() == pytest.approx(expected[i])
        if done:
            ends += 1
            assert terminated["agent_0"][0].item() == (not bare.field.any())
            observations, _ = bare.reset()
            assert states["agent_1"][0].tolist() == observations[1].tolist()
    assert ends >= 160 // 9


@pytest.mark.parametrize("used", [0, 1, 7])
def test_a_seed_gives_the_same_episodes_to_a_used_environment(used):
    for seed in range(20):
        game = foraging()
        rng = np.random.default_rng(1)
        for _ in range(used):
            game.reset(seed=seed)
            game.step(tuple(rng.integers(6, size=2)))
        expected, _ = foraging().reset(seed=seed)
        states, _ = wrap_env(game, seed=seed).reset()
        assert states["agent_0"][0].tolist() == expected[0].tolist()
        assert states["agent_1"][0].tolist() == expected[1].tolist()


# -- the warehouse ------------------------------------------------------------------------------------------------------


def warehouse(**kwargs):
    pytest.importorskip("rware")
    return gymnasium.make("rware-tiny-2ag-v2", disable_env_checker=True, **kwargs)


@pytest.mark.parametrize(("kwargs", "length"), [({"max_steps": 7}, 7), ({"max_inactivity_steps": 4}, 4)])
def test_the_warehouse_never_terminates(kwargs, length):
    env = wrap_env(lambda: warehouse(**kwargs), num_envs=2, seed=0)
    env.reset()
    for t in range(1, length + 1):
        _, _, terminated, truncated, infos = env.step(both(env, 0, 0))
        assert not terminated["agent_0"].any()
        assert truncated["agent_1"].tolist() == [[t == length]] * 2
    assert infos["final_states"]["agent_0"].shape == (2, 71)


def test_the_warehouse_is_the_bare_environment():
    env, bare = wrap_env(lambda: warehouse(max_steps=20), seed=3), warehouse(max_steps=20)
    env.reset()
    env = wrap_env(env.envs[0].env, seed=3)  # used before
    states, _ = env.reset()
    observations, _ = bare.reset(seed=3)
    rng = np.random.default_rng(0)
    for _ in range(50):
        assert [row.tolist() for row in observations] == [states[name][0].tolist() for name in env.possible_agents]
        choice = rng.integers(5, size=2)
        states, rewards, _, truncated, infos = env.step(both(env, *choice.tolist()))
        observations, expected, done, _, _ = bare.step(tuple(choice))
        assert [rewards[name].item() for name in env.possible_agents] == expected
        assert truncated["agent_0"].item() == done
        if done:
            assert infos["final_states"]["agent_1"][0].tolist() == observations[1].tolist()
            observations, _ = bare.reset()


def test_a_delivery_pays_the_agent_that_made_it():
    env = wrap_env(warehouse(), seed=0)
    env.reset()
    game = env.envs[0].env.unwrapped
    agent, shelf = game.agents[1], game.request_queue[0]
    goal = game.goals[0]
    agent.x, agent.y, agent.carrying_shelf = *goal, shelf
    shelf.x, shelf.y = goal
    other = game.agents[0]
    other.x, other.y = 0, 0
    game._recalc_grid()
    _, rewards, *_ = env.step(both(env, 0, 0))
    assert [value.item() for value in rewards.values()] == [0.0, 1.0]
