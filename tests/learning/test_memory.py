"""What only a policy with a memory can play."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from coterie.agents import IPPO, MAPPO
from coterie.envs import make
from coterie.memories import RandomMemory
from coterie.models import build_models
from coterie.trainers import SequentialTrainer


def recall(algorithm: type[MAPPO] | type[IPPO], **models: Any) -> float:
    """Train two agents to remember a cue of two kinds over three steps; return what they earn together, at best 2."""
    torch.manual_seed(0)
    env = make("memory/recall", num_envs=32, seed=0, delay=3)
    agent = algorithm(
        env.possible_agents,
        build_models(env, algorithm.__name__.lower(), hidden=(16,), **models),
        {uid: RandomMemory(10, env.num_envs) for uid in env.possible_agents},
        env.observation_spaces,
        env.action_spaces,
        env.device,
        {
            "rollouts": 10,  # two and a half episodes: some go on in the next rollout
            "learning_epochs": 4,
            "learning_rate": 1e-2,
            "entropy_loss_scale": 0.01,
            "experiment": {"write_interval": 0, "checkpoint_interval": 0},
        },
        env.shared_observation_spaces,
    )
    cfg = {"timesteps": 500, "headless": True, "disable_progressbar": True}
    trainer = SequentialTrainer(env, agent, cfg=cfg, eval_env=make("memory/recall", num_envs=64, seed=1, delay=3))
    trainer.train()
    return trainer.eval(episodes=1024)["mean"]


@pytest.mark.parametrize(
    ("algorithm", "models"),
    [
        (MAPPO, {"rnn": "gru", "rnn_size": 16, "sequence_length": 4}),  # which does not divide the rollout
        (MAPPO, {"rnn": "lstm", "rnn_size": 16, "sequence_length": 10}),
        (IPPO, {"rnn": "gru", "rnn_size": 16, "sequence_length": 5, "shared": False}),
    ],
)
def test_recurrent_policies_remember(algorithm: type[MAPPO] | type[IPPO], models: dict[str, Any]) -> None:
    assert recall(algorithm, **models) > 1.95


def test_without_a_memory_the_cue_is_lost() -> None:
    # the standard error of 1024 games of two agents is 0.022
    assert recall(MAPPO) == pytest.approx(1.0, abs=0.1)
