"""Training in environments of which something was changed: joint choices, observations with the last action."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from coterie import wrap_env
from coterie.agents import IPPO, MAPPO
from coterie.envs import DiscreteActions, LastAction, MultiAgentEnv, make
from coterie.memories import RandomMemory
from coterie.models import build_models
from coterie.trainers import SequentialTrainer
from tests.envs.games import Errands

ENVIRONMENTS: dict[str, Callable[[], MultiAgentEnv]] = {
    "errands": lambda: wrap_env([Errands(4, {"bob": 2}), Errands(3)]),
    "tag": lambda: make("particle/simple_tag", 2, seed=0, max_cycles=5, continuous_actions=True),
}


@pytest.mark.parametrize("name", ENVIRONMENTS)
@pytest.mark.parametrize("algorithm", [MAPPO, IPPO])
def test_it_is_trained_in(name: str, algorithm: type[MAPPO] | type[IPPO]) -> None:
    env = LastAction(DiscreteActions(ENVIRONMENTS[name](), bins=2))
    models = build_models(env, algorithm.__name__.lower(), hidden=(16,))
    policy = models[env.possible_agents[0]]["policy"]
    before = torch.cat([p.detach().flatten() for p in policy.parameters()])
    agent = algorithm(
        possible_agents=env.possible_agents,
        models=models,
        memories={uid: RandomMemory(8, env.num_envs) for uid in env.possible_agents},
        cfg={"rollouts": 8, "learning_epochs": 1, "mini_batches": 1, "time_limit_bootstrap": True},
        observation_spaces=env.observation_spaces,
        action_spaces=env.action_spaces,
        device=env.device,
        shared_observation_spaces=env.shared_observation_spaces,
    )
    trainer = SequentialTrainer(env, agent, cfg={"timesteps": 16, "headless": True, "disable_progressbar": True})
    trainer.train()
    after = torch.cat([p.detach().flatten() for p in policy.parameters()])
    assert not torch.equal(before, after)
    assert after.isfinite().all()
    assert trainer.eval(episodes=4)["episodes"] >= 4
