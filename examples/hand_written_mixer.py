"""Everything by hand for QMIX: action values with a memory, a mixer, whole episodes in the replay, epsilon by agent.

Agents are shown a cue at the first step and asked for it at the last. They are paid as a team, so each must find out which
part of the reward it has earned.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from coterie import set_seed
from coterie.agents import QMIX, QMIX_DEFAULT_CONFIG
from coterie.envs import make
from coterie.memories import EpisodeMemory
from coterie.models import Mixer, Model, QMixin
from coterie.schedulers import LinearSchedule
from coterie.trainers import SequentialTrainer


class ActionValues(QMixin, Model):
    """The value of each action, from the observation and what a GRU cell remembers."""

    def __init__(self, observation_space: Any, action_space: Any, device: Any = None) -> None:
        Model.__init__(self, observation_space, action_space, device)
        QMixin.__init__(self)
        self.encoder = nn.Linear(self.num_observations, 32)
        self.cell = nn.GRUCell(32, 32)
        self.head = nn.Linear(32, self.num_actions)

    def get_specification(self) -> dict[str, Any]:
        # (layers, width) of each state; whole episodes are drawn, so that the length of sequences says only that there are some
        return {"rnn": {"sizes": [(1, 32)], "sequence_length": 7}}

    def compute(self, inputs: Mapping[str, Any], role: str = "") -> tuple[Any, ...]:
        (state,) = inputs["rnn"]
        state = self.cell(torch.relu(self.encoder(inputs["states"])), state[0])
        return self.head(state), {"rnn": [state.unsqueeze(0)]}


class WeightedSum(Mixer):
    """``q_tot = sum_i w_i(s) q_i + b(s)``. Weights are positive: what raises an agent's value raises the team's."""

    def __init__(self, state_space: Any, agents: int, device: Any = None) -> None:
        Mixer.__init__(self, state_space, agents, device)
        self.of_state = nn.Sequential(nn.Linear(self.num_observations, 32), nn.ReLU(), nn.Linear(32, agents + 1))

    def compute(self, inputs: Mapping[str, Any], role: str = "") -> tuple[Tensor, dict[str, Any]]:
        weights, offset = self.of_state(inputs["states"]).split([self.agents, 1], dim=-1)
        weighted = nn.functional.softplus(weights) * inputs["q_values"]  # [B, agents]; 0 for agents that are not there
        return weighted.sum(dim=-1, keepdim=True) + offset, {}


def main(arguments: list[str] | None = None) -> float:
    """Train and evaluate; returns the mean evaluation return, summed over the two agents."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--timesteps", type=int, default=1400, help="steps of the vectorised environment")
    parser.add_argument("--num-envs", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--directory", default="runs")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    set_seed(args.seed)
    env = make("memory/recall", num_envs=args.num_envs, seed=args.seed)

    mixer = WeightedSum(env.state_space("agent_0"), env.max_num_agents, env.device)
    models: dict[str, dict[str, Model]] = {
        uid: {
            "q": ActionValues(env.observation_space(uid), env.action_space(uid), env.device),
            "mixer": mixer,  # the same object for all of them: it values the whole team
        }
        for uid in env.possible_agents
    }
    cfg = QMIX_DEFAULT_CONFIG.copy()
    cfg["batch_size"] = 32  # episodes
    cfg["update_interval"] = 2
    cfg["learning_rate"] = 2e-3
    cfg["td_lambda"] = 0.8
    cfg["target_update_interval"] = 20
    cfg["exploration_epsilon"] = {"agent_0": LinearSchedule(1.0, 0.05, fraction=0.5), "agent_1": 0.3}
    cfg["experiment"]["directory"] = args.directory
    agent = QMIX(
        possible_agents=env.possible_agents,
        models=models,
        memories={uid: EpisodeMemory(280, env.num_envs, env.device) for uid in env.possible_agents},
        observation_spaces=env.observation_spaces,
        action_spaces=env.action_spaces,
        device=env.device,
        cfg=cfg,
        shared_observation_spaces=env.shared_observation_spaces,
    )
    eval_env = make("memory/recall", num_envs=64, seed=args.seed + 10_000)
    trainer = SequentialTrainer(env, agent, cfg={"timesteps": args.timesteps, "headless": True}, eval_env=eval_env)
    trainer.train()
    result = trainer.eval(episodes=512)["mean"]
    print(f"evaluation return {result:.2f} of 2, where chance earns 1")
    return result


if __name__ == "__main__":
    main()
