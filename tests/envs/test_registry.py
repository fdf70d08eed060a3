"""What every embedded environment must do, over the registry of all of them."""

from __future__ import annotations

import pytest
import torch
from gymnasium import spaces

from coterie.envs import MultiAgentEnv, make
from coterie.envs.registry import ENVIRONMENTS, options
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
def test_unknown_options_are_refused_with_a_list_of_those_that_there_are(name):
    with pytest.raises(
        TypeError, match=f"{name}: unknown option 'colour'; its options and their defaults are "
    ) as error:
        make(name, colour="red")
    known = options(name)
    assert all(f"{key}={default!r}" in str(error.value) for key, default in known.items())
    make(name, 2, **known)  # each is taken


def test_what_options_there_are():
    assert options("matrix/penalty") == {"penalty": -100.0, "max_cycles": 25}
    assert options("matrix/two_step") == {"max_cycles": None}
    assert options("memory/recall") == {"agents": 2, "cues": 2, "delay": 6}
    common = {
        "max_cycles": 25,
        "continuous_actions": False,
        "stagger": False,
        "physics_dtype": None,
        "deferred_checks": None,
    }
    assert options("particle/simple_spread") == {"N": 3, "local_ratio": 0.5, **common}
    assert options("particle/simple_speaker_listener") == common
    with pytest.raises(TypeError, match=r"unknown option 'num_goods' \(did you mean 'num_good'\?\); its options"):
        make("particle/simple_tag", num_goods=2)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"unknown environment 'matrix/climb': did you mean 'matrix/climbing'\?"):
        make("matrix/climb")
    with pytest.raises(ValueError, match=r"expected one of \['matrix/climbing', "):
        make("chess")
