"""The two-step game of the QMIX paper: QMIX finds the 8, while sums of values (VDN) and independent learners (IQL) take the 7.

The first agent chooses between a matrix that always pays 7 and one that pays 8 if both agents then play 1, 0 or 1 otherwise.
All three act at random while they learn, as in the paper, so what they differ in is what their values can express.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from coterie import set_seed
from coterie.agents import IQL, QMIX, VDN, MultiAgent
from coterie.envs import make
from coterie.memories import ReplayMemory
from coterie.models import build_models
from coterie.trainers import SequentialTrainer

ALGORITHMS = {"qmix": QMIX, "vdn": VDN, "iql": IQL}
SETTINGS = {
    "batch_size": 64,
    "learning_rate": 3e-3,
    "target_update_interval": 50,
    "exploration_epsilon": 1.0,
}


def learn(algorithm: str, args: argparse.Namespace) -> tuple[MultiAgent, float]:
    """A trained team, and the return of its greedy actions for one agent: both are paid the same."""
    set_seed(args.seed)
    env = make("matrix/two_step", num_envs=8)
    experiment = {"directory": args.directory, "experiment_name": f"two_step, {algorithm}, seed {args.seed}"}
    agent = ALGORITHMS[algorithm](
        possible_agents=env.possible_agents,
        models=build_models(env, algorithm, shared=False, hidden=(64,)),
        memories={uid: ReplayMemory(500, env.num_envs) for uid in env.possible_agents},
        observation_spaces=env.observation_spaces,
        action_spaces=env.action_spaces,
        cfg={**SETTINGS, "experiment": {**experiment, "checkpoint_interval": 0}},
        shared_observation_spaces=env.shared_observation_spaces,
    )
    cfg = {"timesteps": args.timesteps, "headless": True, "disable_progressbar": True}
    trainer = SequentialTrainer(env, agent, cfg=cfg, eval_env=make("matrix/two_step"))
    trainer.train()
    return agent, trainer.eval(episodes=1)["agents"]["agent_0"]


@torch.no_grad()
def team_values(agent: MultiAgent) -> Tensor:
    """The learned value of each joint action in each of the three states, ``[3, 2, 2]``."""
    states = torch.eye(3)
    first, second = (agent.models[uid]["q"].compute({"states": states}, "q")[0] for uid in agent.possible_agents)
    pairs = torch.stack(torch.broadcast_tensors(first[:, :, None], second[:, None, :]), dim=-1)  # [3, 2, 2, agents]
    mixer = agent.models["agent_0"].get("mixer")
    if mixer is None:
        return pairs.sum(dim=-1)
    inputs = {"q_values": pairs.flatten(0, 2), "states": states.repeat_interleave(4, dim=0)}
    return mixer(inputs)[0].view(3, 2, 2)


def main(arguments: list[str] | None = None) -> float:
    """Train the three teams and print a table; returns QMIX's return."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--timesteps", type=int, default=1000, help="steps of 8 copies of the game")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--directory", default="runs")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)

    results = {algorithm: learn(algorithm, args) for algorithm in ALGORITHMS}
    print("the team's value of each joint action (actions of agent_0 above each other, of agent_1 beside each other):")
    print(f"{'':6}{'first step':>16}{'2A, pays 7':>20}{'2B, pays 0 1 1 8':>20}{'return':>10}")
    for algorithm, (agent, earned) in results.items():
        if algorithm == "iql":  # whose agents have values of their own only
            print(f"{'IQL':6}{'-':>16}{'-':>20}{'-':>20}{earned:10.2f}")
            continue
        values = team_values(agent)
        for row, (name, end) in enumerate(((algorithm.upper(), f"{earned:10.2f}"), ("", ""))):
            cells = ("  ".join(f"{value:5.2f}" for value in values[state, row].tolist()) for state in range(3))
            first, *others = cells
            print(f"{name:6}{first:>16}" + "".join(f"{cell:>20}" for cell in others) + end)
    return results["qmix"][1]


if __name__ == "__main__":
    main()
