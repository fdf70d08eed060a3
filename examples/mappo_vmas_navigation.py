"""Three agents find their goals in VMAS navigation, with the settings of the field's best-known tutorial for it.

60 environments x 100 steps an iteration, 30 epochs over minibatches of 400, shared parameters, two layers of 256 tanh units,
tanh-squashed Gaussian actions. ``--algorithm`` switches between MAPPO and IPPO. Needs the ``vmas`` extra.
"""

from __future__ import annotations

import argparse
import time

import torch
import vmas

from coterie import set_seed, wrap_env
from coterie.agents import IPPO, IPPO_DEFAULT_CONFIG, MAPPO, MAPPO_DEFAULT_CONFIG
from coterie.memories import RandomMemory
from coterie.models import build_models
from coterie.trainers import SequentialTrainer

ALGORITHMS = {"mappo": (MAPPO, MAPPO_DEFAULT_CONFIG), "ippo": (IPPO, IPPO_DEFAULT_CONFIG)}
STEPS = 100


def main(arguments: list[str] | None = None) -> float:
    """Train and evaluate; returns the mean evaluation return per agent."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--algorithm", choices=sorted(ALGORITHMS), default="mappo")
    parser.add_argument("--iterations", type=int, default=10, help="rollouts of 100 steps, each followed by an update")
    parser.add_argument("--num-envs", type=int, default=60)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--mixed-precision", action="store_true", help="run networks in bfloat16")
    parser.add_argument("--directory", default="runs")
    parser.add_argument("--name", default="", help="name of the run's folder")
    args = parser.parse_args(arguments)

    torch.set_num_threads(1)
    set_seed(args.seed)

    def environment(seed: int) -> vmas.simulator.environment.Environment:
        return vmas.make_env(
            "navigation",
            num_envs=args.num_envs,
            device=args.device,
            continuous_actions=True,
            max_steps=STEPS,
            seed=seed,
            terminated_truncated=True,
            n_agents=3,
        )

    env = wrap_env(environment(args.seed), seed=args.seed)
    eval_env = wrap_env(environment(args.seed + 10_000), seed=args.seed + 10_000)

    agent_class, default_config = ALGORITHMS[args.algorithm]
    cfg = default_config.copy()
    cfg["rollouts"] = STEPS
    cfg["learning_epochs"] = args.epochs
    cfg["mini_batches"] = max(STEPS * args.num_envs // 400, 1)
    cfg["learning_rate"] = 3e-4
    cfg["discount_factor"] = 0.99
    cfg["lambda"] = 0.9
    cfg["ratio_clip"] = 0.2
    cfg["entropy_loss_scale"] = 1e-4
    cfg["grad_norm_clip"] = 1.0
    cfg["time_limit_bootstrap"] = True
    cfg["mixed_precision"] = args.mixed_precision
    cfg["experiment"]["directory"] = args.directory
    cfg["experiment"]["experiment_name"] = args.name
    cfg["experiment"]["write_interval"] = STEPS

    agent = agent_class(
        possible_agents=env.possible_agents,
        models=build_models(
            env, args.algorithm, shared=True, hidden=(256, 256), agent_id=False, state_dependent_std=True
        ),
        memories={uid: RandomMemory(STEPS, env.num_envs, env.device) for uid in env.possible_agents},
        observation_spaces=env.observation_spaces,
        action_spaces=env.action_spaces,
        device=env.device,
        cfg=cfg,
        shared_observation_spaces=env.shared_observation_spaces,
    )
    timesteps = STEPS * args.iterations
    trainer = SequentialTrainer(env, agent, cfg={"timesteps": timesteps, "headless": True}, eval_env=eval_env)
    start = time.monotonic()
    trainer.train()
    seconds = time.monotonic() - start
    results = trainer.eval(episodes=args.num_envs)
    per_agent = sum(results["agents"].values()) / env.num_agents
    print(f"recorded in {agent.experiment_dir}")
    print(
        f"evaluation return: {per_agent:.2f} (mean over agents) after {timesteps * env.num_envs} frames, "
        f"{timesteps * env.num_envs / seconds:.0f} frames/s"
    )
    return per_agent


if __name__ == "__main__":
    main()
