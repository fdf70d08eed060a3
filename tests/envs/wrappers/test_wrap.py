"""What wrap_env accepts, and what it says to the rest."""

from __future__ import annotations

import math
import types

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from pettingzoo.utils.env import AECEnv, ParallelEnv

from coterie.envs.base import EnvError
from coterie.envs.wrappers import PettingZooEnv, wrap_env


class Count(gymnasium.Env):
    """Observes its steps; terminates at 3, truncated at ``limit``."""

    observation_space = spaces.Box(0, 99, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, limit=9):
        self.limit = limit
        self.closed = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        self.first_draw = self.np_random.random()
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.steps += 1
        reward = float(action) + 0.5
        return np.full(1, self.steps, np.float32), reward, self.steps == 3, self.steps == self.limit, {"n": self.steps}

    def close(self):
        self.closed += 1


def test_skrl_calls(scripted):
    assert isinstance(wrap_env(scripted()), PettingZooEnv)
    assert isinstance(wrap_env(scripted(), wrapper="pettingzoo"), PettingZooEnv)
    assert isinstance(wrap_env(scripted(), "auto", False), PettingZooEnv)
    assert isinstance(wrap_env(scripted(), wrapper="Multi-Agent"), PettingZooEnv)


def test_functions_and_lists(scripted):
    assert wrap_env(scripted).num_envs == 1
    assert wrap_env(scripted, num_envs=3).num_envs == 3
    assert wrap_env(lambda: scripted(3), num_envs=2).num_envs == 2
    env = wrap_env([lambda: scripted(5), scripted(6)], num_envs=2)
    assert env.reset()[0]["ada"][:, 0].tolist() == [5, 6]
    factory_calls = []
    wrap_env(lambda: factory_calls.append(0) or scripted(), num_envs=4)
    assert len(factory_calls) == 4


def test_wrapped_environments_are_returned_unchanged(scripted):
    env = wrap_env(scripted())
    assert wrap_env(env) is env
    assert wrap_env(lambda: env) is env
    assert wrap_env(env, num_envs=1) is env
    with pytest.raises(ValueError, match=r"expected num_envs=2 copies, but .* has 1"):
        wrap_env(env, num_envs=2)


def test_real_parallel_class(scripted):
    class Real(scripted, ParallelEnv):
        pass

    assert isinstance(wrap_env(Real()), PettingZooEnv)


@pytest.mark.parametrize("limit", [2, 9])
def test_gymnasium(limit):
    env = wrap_env(Count(limit), seed=1)
    assert env.possible_agents == ["agent_0"]
    states, _ = env.reset()
    assert env.envs[0].env.first_draw == gymnasium.utils.seeding.np_random(1)[0].random()
    end = min(limit, 3)
    for step in range(1, end + 1):
        states, rewards, terminated, truncated, infos = env.step({"agent_0": torch.tensor([[1]])})
        assert rewards["agent_0"].tolist() == [[1.5]]
        assert terminated["agent_0"].item() == (step == 3)
        assert truncated["agent_0"].item() == (step == limit)
    assert states["agent_0"].item() == 0
    assert env.state().item() == 0
    assert infos["final_states"]["agent_0"].item() == end
    assert infos["final_shared_states"].item() == end
    assert infos["final_env_infos"] == [{"agent_0": {"n": end}}]
    env.close()
    env.close()
    assert env.envs[0].env.closed == 1


def test_copies_of_a_gymnasium_environment():
    env = wrap_env(lambda: gymnasium.make("CartPole-v1"), wrapper="gymnasium", num_envs=3, seed=0)
    states, _ = env.reset()
    assert len({row[0] for row in states["agent_0"].tolist()}) == 3
    for _ in range(40):
        env.step({"agent_0": torch.ones(3, 1, dtype=torch.int64)})
    bare = gymnasium.make("CartPole-v1")
    first, _ = bare.reset(seed=0)
    assert np.array_equal(states["agent_0"][0].numpy(), first)
    env.close()


tictactoe_v3 = types.ModuleType("games.tictactoe_v3")
tictactoe_v3.env = lambda: None


class Turns(AECEnv):
    """Agents that act in turn, without names."""


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (Turns(), "expected an environment with a list of names in possible_agents, got None"),
        (3, "expected a PettingZoo ParallelEnv or AECEnv, .* got builtins.int"),
        ("CartPole-v1", r"got the string 'CartPole-v1'; coterie.envs.make builds .* gymnasium.make"),
        (math, "got the module math; pass an environment"),
        (tictactoe_v3, r"got the module games.tictactoe_v3; .*wrap_env\(tictactoe_v3.env, "),
        ([tictactoe_v3], "got the module"),
        (None, "got builtins.NoneType"),
        (lambda: 3, "got builtins.int"),
    ],
)
def test_what_cannot_be_wrapped(env, message):
    with pytest.raises(TypeError, match=message):
        wrap_env(env)
    if not callable(env) and not isinstance(env, (Turns, list)):
        with pytest.raises(TypeError, match=message):  # what it is comes before how many are asked for
            wrap_env(env, num_envs=4)


def test_vector_environments_are_refused():
    env = gymnasium.make_vec("CartPole-v1", 2)
    with pytest.raises(TypeError, match="pass the function that makes one copy"):
        wrap_env(env)
    env.close()


def test_wrong_arguments(scripted):
    with pytest.raises(ValueError, match="got 'petingzoo'; did you mean 'pettingzoo'"):
        wrap_env(scripted(), wrapper="petingzoo")
    with pytest.raises(TypeError, match="expected an environment for the wrapper 'vmas', got one for 'pettingzoo'"):
        wrap_env(scripted(), wrapper="vmas")
    with pytest.raises(ValueError, match="expected a function that makes one environment for num_envs=2"):
        wrap_env(scripted(), num_envs=2)
    with pytest.raises(ValueError, match="num_envs"):
        wrap_env(scripted, num_envs=0)
    with pytest.raises(ValueError, match="empty list"):
        wrap_env([])
    with pytest.raises(ValueError, match="expected num_envs=3 copies, but the list has 2"):
        wrap_env([scripted, scripted], num_envs=3)
    one = scripted()
    with pytest.raises(ValueError, match="one object several times"):
        wrap_env([one, one])
    with pytest.raises(
        TypeError, match="expected an environment for the wrapper 'pettingzoo', got one for 'gymnasium'"
    ):
        wrap_env([scripted, Count])


def test_a_factory_that_raises_closes_the_copies_made_before(scripted):
    made = []

    def make():
        if len(made) == 2:
            raise OSError("no display")
        made.append(scripted())
        return made[-1]

    with pytest.raises(EnvError, match="copy 2 could not be made: OSError: no display"):
        wrap_env(make, num_envs=4)
    assert [env.closed for env in made] == [1, 1]


def test_copies_that_do_not_fit_are_closed(scripted):
    made = [scripted(), scripted(widths=(4, 3))]
    with pytest.raises(EnvError):
        wrap_env([lambda: made[0], lambda: made[1]])
    assert [env.closed for env in made] == [1, 1]
