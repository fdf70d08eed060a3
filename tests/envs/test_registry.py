"""What every embedded environment must do, over the registry of all of them."""

from __future__ import annotations

import pytest
import torch
from gymnasium import spaces

from coterie.envs import MultiAgentEnv, make
from coterie.envs.registry import ENVIRONMENTS
from coterie.spaces import flat_size

every_name = pytest.mark.parametrize("name", sorted(ENVIRONMENTS))


@every_name
def test_the_contract(name):
    env = make(name, num_envs=3, seed=0)
    assert isinstance(env, MultiAgentEnv)
    states, infos = env.reset()
    generator = torch.Generator().manual_seed(0)
    ends = 0
    for _ in range(60):
        shared = env.state()
        assert shared.dtype == torch.float32
        for uid in env.possible_agents:
            assert shared.shape == (3, flat_size(env.shared_observation_space(uid)))
            assert states[uid].shape == (3, flat_size(env.observation_space(uid)))
            assert isinstance(env.action_space(uid), spaces.Discrete)
        actions = {
            uid: torch.randint(int(env.action_space(uid).n), (3, 1), generator=generator) for uid in env.possible_agents
        }
        states, rewards, terminated, truncated, infos = env.step(actions)
        ended = torch.stack([terminated[uid] | truncated[uid] for uid in env.possible_agents]).all(0)
        assert {"final_states", "final_shared_states"} <= set(infos) if ended.any() else not infos
        ends += int(ended.sum())
        for mapping, dtype in ((rewards, torch.float32), (terminated, torch.bool), (truncated, torch.bool)):
            assert list(mapping) == env.possible_agents
            assert all((value.shape, value.dtype) == ((3, 1), dtype) for value in mapping.values())
    assert ends >= 6
    env.close()
    env.close()


@every_name
def test_unknown_options_are_refused(name):
    with pytest.raises(TypeError, match="colour"):
        make(name, colour="red")


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"unknown environment 'matrix/climb': did you mean 'matrix/climbing'\?"):
        make("matrix/climb")
    with pytest.raises(ValueError, match=r"expected one of \['matrix/climbing', "):
        make("chess")
