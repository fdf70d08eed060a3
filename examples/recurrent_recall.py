"""Agents that must remember: a cue is shown at the first step and asked for at the last.

Trains the same team with a ready-made GRU, with hand-written models, and without a memory, which earns no more than chance.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from coterie import set_seed
from coterie.agents import MAPPO, MAPPO_DEFAULT_CONFIG
from coterie.envs import MultiAgentEnv, make
from coterie.memories import RandomMemory
from coterie.models import CategoricalMixin, DeterministicMixin, Model, build_models
from coterie.trainers import SequentialTrainer


class Remembering(Model):
    """A GRU cell between two linear layers: what one step computes, and what it remembers of it."""

    def __init__(self, observation_space: Any, action_space: Any, outputs: int) -> None:
        Model.__init__(self, observation_space, action_space)
        self.encoder = nn.Linear(self.num_observations, 32)
        self.cell = nn.GRUCell(32, 32)
        self.head = nn.Linear(32, outputs)

    def get_specification(self) -> dict[str, Any]:
        return {"rnn": {"sizes": [(1, 32)], "sequence_length": 7}}  # (layers, width) of each state; steps of a chunk

    def compute(self, inputs: Mapping[str, Any], role: str = "") -> tuple[Any, ...]:
        (state,) = inputs["rnn"]
        state = self.cell(torch.tanh(self.encoder(inputs["states"])), state[0])
        return self.head(state), {"rnn": [state.unsqueeze(0)]}


class Policy(CategoricalMixin, Remembering):
    def __init__(self, observation_space: Any, action_space: Any) -> None:
        Remembering.__init__(self, observation_space, action_space, int(action_space.n))
        CategoricalMixin.__init__(self)


class Critic(DeterministicMixin, Remembering):
    def __init__(self, state_space: Any, action_space: Any) -> None:
        Remembering.__init__(self, state_space, action_space, 1)
        DeterministicMixin.__init__(self)


def by_hand(env: MultiAgentEnv) -> dict[str, dict[str, Model]]:
    return {
        uid: {
            "policy": Policy(env.observation_spaces[uid], env.action_spaces[uid]),
            "value": Critic(env.shared_observation_spaces[uid], env.action_spaces[uid]),
        }
        for uid in env.possible_agents
    }


def main(arguments: list[str] | None = None) -> float:
    """Train the three teams; returns the mean evaluation return of the first, summed over its two agents."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--timesteps", type=int, default=1400, help="steps of the vectorised environment")
    parser.add_argument("--num-envs", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--directory", default="runs")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)

    env = make("memory/recall", num_envs=args.num_envs, seed=args.seed)
    eval_env = make("memory/recall", num_envs=64, seed=args.seed + 10_000)
    set_seed(args.seed)
    teams = {
        "ready-made GRU": build_models(env, "mappo", rnn="gru", sequence_length=7),
        "hand-written": by_hand(env),
        "without a memory": build_models(env, "mappo"),
    }
    returns = {}
    for name, models in teams.items():
        cfg = MAPPO_DEFAULT_CONFIG.copy()
        cfg["rollouts"] = 28
        cfg["learning_epochs"] = 5
        cfg["learning_rate"] = 3e-3
        cfg["entropy_loss_scale"] = 0.01
        cfg["experiment"]["directory"] = args.directory
        cfg["experiment"]["experiment_name"] = f"recall, {name}"
        agent = MAPPO(
            possible_agents=env.possible_agents,
            models=models,
            memories={uid: RandomMemory(cfg["rollouts"], env.num_envs) for uid in env.possible_agents},
            observation_spaces=env.observation_spaces,
            action_spaces=env.action_spaces,
            cfg=cfg,
            shared_observation_spaces=env.shared_observation_spaces,
        )
        trainer = SequentialTrainer(env, agent, cfg={"timesteps": args.timesteps, "headless": True}, eval_env=eval_env)
        trainer.train()
        returns[name] = trainer.eval(episodes=512)["mean"]
        print(f"{name}: evaluation return {returns[name]:.2f} of 2")
    return returns["ready-made GRU"]


if __name__ == "__main__":
    main()
