"""Train MAPPO on the built-in simple_spread task: three agents learn to cover three landmarks without colliding.

Run it as it is for the main job (a few minutes on two cores), or with ``--help`` for what can be changed. Curves go to
TensorBoard (``tensorboard --logdir runs``), ``metrics.csv`` and a picture.
"""

from __future__ import annotations

import argparse
import time

import torch

from coterie import set_seed
from coterie.agents import IPPO, IPPO_DEFAULT_CONFIG, MAPPO, MAPPO_DEFAULT_CONFIG
from coterie.envs import make
from coterie.memories import RandomMemory
from coterie.models import build_models
from coterie.preprocessors import ValueNorm
from coterie.trainers import SequentialTrainer
from learning_curve import report

ALGORITHMS = {"mappo": (MAPPO, MAPPO_DEFAULT_CONFIG), "ippo": (IPPO, IPPO_DEFAULT_CONFIG)}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--algorithm", choices=sorted(ALGORITHMS), default="mappo")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timesteps", type=int, default=24_000, help="steps of the vectorised environment")
    parser.add_argument("--num-envs", type=int, default=64)
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

    agent_class, default_config = ALGORITHMS[args.algorithm]
    cfg = default_config.copy()
    cfg["rollouts"] = 25
    cfg["learning_epochs"] = 10
    cfg["mini_batches"] = 4
    cfg["learning_rate"] = 1e-3
    cfg["learning_rate_scheduler"] = torch.optim.lr_scheduler.LinearLR
    updates = max(args.timesteps // cfg["rollouts"], 1)
    cfg["learning_rate_scheduler_kwargs"] = {
        "start_factor": 1.0,
        "end_factor": 0.05,
        "total_iters": updates * cfg["learning_epochs"],
    }
    cfg["discount_factor"] = 0.95
    cfg["value_preprocessor"] = ValueNorm
    cfg["clip_predicted_values"] = True
    cfg["entropy_loss_scale"] = 0.01
    cfg["grad_norm_clip"] = 10.0
    cfg["time_limit_bootstrap"] = True
    cfg["experiment"]["directory"] = args.directory
    cfg["experiment"]["experiment_name"] = args.name

    models = build_models(env, args.algorithm, shared=True, hidden=(128, 128))
    memories = {uid: RandomMemory(cfg["rollouts"], env.num_envs, env.device) for uid in env.possible_agents}
    agent = agent_class(
        possible_agents=env.possible_agents,
        models=models,
        memories=memories,
        observation_spaces=env.observation_spaces,
        action_spaces=env.action_spaces,
        device=env.device,
        cfg=cfg,
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
    seconds = time.monotonic() - start

    return report(trainer, seconds, args.evaluation_episodes)


if __name__ == "__main__":
    main()
