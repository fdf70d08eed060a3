"""Train QMIX, VDN or IQL on the built-in simple_spread task: three agents learn to cover three landmarks without colliding.

Run it as it is, or with ``--help`` for what can be changed. Curves go to TensorBoard (``tensorboard --logdir runs``),
``metrics.csv`` and a picture.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch

from coterie import set_seed
from coterie.agents import IQL, QMIX, VDN
from coterie.envs import make
from coterie.memories import ReplayMemory
from coterie.models import build_models
from coterie.preprocessors import RunningScale
from coterie.schedulers import LinearSchedule
from coterie.trainers import SequentialTrainer
from learning_curve import report

ALGORITHMS = {"qmix": QMIX, "vdn": VDN, "iql": IQL}
SETTINGS: dict[str, Any] = {
    "batch_size": 512,
    "learning_starts": 100,
    "discount_factor": 0.9,
    "learning_rate": LinearSchedule(1e-3, 1e-4),
    "target_update_interval": 1,
    "polyak": 0.01,
    "exploration_epsilon": LinearSchedule(1.0, 0.05, fraction=0.2),
    "reward_preprocessor": RunningScale,
}
MEMORY_SIZE = 2_000  # rows of each environment


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--algorithm", choices=sorted(ALGORITHMS), default="qmix")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timesteps", type=int, default=48_000, help="steps of the vectorised environment")
    parser.add_argument("--num-envs", type=int, default=32)
    parser.add_argument("--evaluation-episodes", type=int, default=512)
    parser.add_argument("--directory", default="runs")
    parser.add_argument("--name", default="", help="name of the run's folder; its time by default")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(arguments)
    if args.timesteps < 1:
        parser.error(f"--timesteps: expected at least 1, got {args.timesteps}")
    return args


def main(arguments: list[str] | None = None) -> float:
    """Train and evaluate; returns the mean evaluation return, summed over agents."""
    args = parse(arguments)
    torch.set_num_threads(1)  # networks this small are slower on several threads
    set_seed(args.seed)
    env = make("particle/simple_spread", num_envs=args.num_envs, device=args.device, seed=args.seed)
    eval_env = make("particle/simple_spread", num_envs=128, device=args.device, seed=args.seed + 10_000)

    agent = ALGORITHMS[args.algorithm](
        possible_agents=env.possible_agents,
        models=build_models(env, args.algorithm, shared=True, hidden=(128, 128)),
        memories={uid: ReplayMemory(MEMORY_SIZE, env.num_envs, env.device) for uid in env.possible_agents},
        observation_spaces=env.observation_spaces,
        action_spaces=env.action_spaces,
        device=env.device,
        cfg={**SETTINGS, "experiment": {"directory": args.directory, "experiment_name": args.name}},
        shared_observation_spaces=env.shared_observation_spaces,
    )
    trainer = SequentialTrainer(
        env,
        agent,
        cfg={
            "timesteps": args.timesteps,
            "headless": True,
            "evaluation_interval": max(args.timesteps // 20, 1),
            "evaluation_episodes": 128,
        },
        eval_env=eval_env,
    )
    start = time.monotonic()
    trainer.train()
    return report(trainer, time.monotonic() - start, args.evaluation_episodes)


if __name__ == "__main__":
    main()
