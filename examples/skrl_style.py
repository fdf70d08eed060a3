"""Everything by hand, in the style that skrl users know: models, memories, a configuration by agent, overridden hooks.

The default run takes about half a minute of one core, and ends at an evaluation return of -32 to -48 (sum over agents; acting
at random earns about -77).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from coterie import set_seed
from coterie.agents.mappo import MAPPO, MAPPO_DEFAULT_CONFIG
from coterie.envs import make
from coterie.memories import RandomMemory
from coterie.models import DeterministicMixin, GaussianMixin, Model
from coterie.preprocessors import RunningStandardScaler
from coterie.schedulers import KLAdaptiveLR
from coterie.trainers import SequentialTrainer


class Policy(GaussianMixin, Model):
    """Normals around a network's output; their spread is a parameter."""

    def __init__(self, observation_space: Any, action_space: Any, device: Any, clip_actions: bool = False) -> None:
        Model.__init__(self, observation_space, action_space, device)
        GaussianMixin.__init__(self, clip_actions, clip_log_std=True, min_log_std=-20, max_log_std=2)
        self.net = nn.Sequential(
            nn.Linear(self.num_observations, 64), nn.ELU(), nn.Linear(64, 64), nn.ELU(), nn.Linear(64, self.num_actions)
        )
        self.log_std_parameter = nn.Parameter(torch.full((self.num_actions,), -1.0))  # of actions in [0, 1]

    def compute(self, inputs: Mapping[str, Any], role: str = "") -> tuple[Tensor, Tensor, dict[str, Any]]:
        return 0.5 + 0.5 * torch.tanh(self.net(inputs["states"])), self.log_std_parameter, {}


class Critic(DeterministicMixin, Model):
    """A value of the shared state."""

    def __init__(self, observation_space: Any, action_space: Any, device: Any) -> None:
        Model.__init__(self, observation_space, action_space, device)
        DeterministicMixin.__init__(self, clip_actions=False)
        self.net = nn.Sequential(
            nn.Linear(self.num_observations, 64), nn.ELU(), nn.Linear(64, 64), nn.ELU(), nn.Linear(64, 1)
        )

    def compute(self, inputs: Mapping[str, Any], role: str = "") -> tuple[Tensor, dict[str, Any]]:
        return self.net(inputs["states"]), {}


class ReportingMAPPO(MAPPO):
    """MAPPO with two hooks overridden: one shapes what is recorded, one reports each update."""

    updates = 0

    def record_transition(
        self, states, actions, rewards, next_states, terminated, truncated, infos, timestep, timesteps
    ) -> None:
        rewards = {uid: 0.1 * reward for uid, reward in rewards.items()}
        super().record_transition(
            states, actions, rewards, next_states, terminated, truncated, infos, timestep, timesteps
        )

    def _update(self, timestep: int, timesteps: int) -> None:
        super()._update(timestep, timesteps)
        self.updates += 1
        self.track_data("Custom / Updates", self.updates)


def main(arguments: list[str] | None = None) -> float:
    """Train and evaluate; returns the mean evaluation return, summed over agents."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--timesteps", type=int, default=4_000)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--directory", default="runs")
    args = parser.parse_args(arguments)

    torch.set_num_threads(1)  # networks this small are slower on several threads
    set_seed(args.seed)
    env = make("particle/simple_spread", num_envs=64, seed=args.seed, continuous_actions=True)

    models: dict[str, dict[str, Model]] = {}
    for uid in env.possible_agents:
        models[uid] = {
            "policy": Policy(env.observation_space(uid), env.action_space(uid), env.device, clip_actions=True),
            "value": Critic(env.state_space(uid), env.action_space(uid), env.device),
        }
    memories = {
        uid: RandomMemory(memory_size=25, num_envs=env.num_envs, device=env.device) for uid in env.possible_agents
    }

    cfg = MAPPO_DEFAULT_CONFIG.copy()
    cfg["rollouts"] = 25
    cfg["discount_factor"] = 0.95
    cfg["time_limit_bootstrap"] = True  # agents see no clock: that time ran out says nothing of what they did
    cfg["learning_epochs"] = 4
    cfg["mini_batches"] = 4
    cfg["learning_rate"] = {"agent_0": 1e-3, "agent_1": 5e-4, "agent_2": 5e-4}  # any value may be given by agent
    cfg["entropy_loss_scale"] = {"agent_0": 0.01, "agent_1": 0.0, "agent_2": 0.0}
    cfg["learning_rate_scheduler"] = KLAdaptiveLR
    cfg["learning_rate_scheduler_kwargs"] = {"kl_threshold": 0.01, "max_lr": 1e-3}
    cfg["state_preprocessor"] = RunningStandardScaler
    cfg["state_preprocessor_kwargs"] = {
        uid: {"size": env.observation_space(uid), "device": env.device} for uid in env.possible_agents
    }
    cfg["shared_state_preprocessor"] = RunningStandardScaler
    cfg["shared_state_preprocessor_kwargs"] = {
        uid: {"size": env.state_space(uid), "device": env.device} for uid in env.possible_agents
    }
    cfg["value_preprocessor"] = RunningStandardScaler
    cfg["value_preprocessor_kwargs"] = {"size": 1, "device": env.device}
    cfg["experiment"]["directory"] = args.directory
    cfg["experiment"]["write_interval"] = 100

    agent = ReportingMAPPO(
        possible_agents=env.possible_agents,
        models=models,
        memories=memories,
        cfg=cfg,
        observation_spaces=env.observation_spaces,
        action_spaces=env.action_spaces,
        device=env.device,
        shared_observation_spaces=env.state_spaces,
    )
    trainer = SequentialTrainer(cfg={"timesteps": args.timesteps, "headless": True}, env=env, agents=agent)
    trainer.train()
    results = trainer.eval()
    print(f"{agent.updates} updates; evaluation return {results['mean']:.2f} (sum over agents)")
    return results["mean"]


if __name__ == "__main__":
    main()
