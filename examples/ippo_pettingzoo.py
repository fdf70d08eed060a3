"""Train IPPO on any PettingZoo parallel environment, given by the name of its module.

    python examples/ippo_pettingzoo.py mpe2.simple_speaker_listener_v4 --timesteps 2000
    python examples/ippo_pettingzoo.py mpe2.simple_spread_v3 --option continuous_actions=True --distinct

Options of the environment go behind ``--option``: ``--option max_cycles=50 --option continuous_actions=True``.
"""

from __future__ import annotations

import argparse
import ast
import importlib
from typing import Any

import torch

from coterie import set_seed, wrap_env
from coterie.agents import IPPO, IPPO_DEFAULT_CONFIG
from coterie.memories import RandomMemory
from coterie.models import build_models
from coterie.preprocessors import RunningStandardScaler, ValueNorm
from coterie.trainers import SequentialTrainer


def option(text: str) -> tuple[str, Any]:
    """Read ``name=value``; the value is a Python literal, or a string where it is none."""
    name, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"expected name=value, got {text!r}")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def main(arguments: list[str] | None = None) -> float:
    """Train and evaluate; returns the mean evaluation return, summed over agents."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("environment", help="a module with a parallel_env function")
    parser.add_argument("--option", type=option, action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--num-envs", type=int, default=8)
    parser.add_argument("--timesteps", type=int, default=10_000, help="steps of the vectorised environment")
    parser.add_argument("--rollouts", type=int, default=64)
    parser.add_argument("--evaluation-episodes", type=int, default=32)
    parser.add_argument("--distinct", action="store_true", help="give every agent parameters of its own")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--directory", default="runs")
    args = parser.parse_args(arguments)

    torch.set_num_threads(1)
    set_seed(args.seed)
    module = importlib.import_module(args.environment)
    if not hasattr(module, "parallel_env"):
        if hasattr(module, "env"):
            parser.error(
                f"{args.environment} is played in turn and has no parallel_env: wrap_env takes its env function as it is, see "
                "examples/tictactoe_self_play.py"
            )
        parser.error(f"{args.environment} has no parallel_env: name the module of a PettingZoo environment")
    options = dict(args.option)

    def factory() -> Any:
        return module.parallel_env(**options)

    env = wrap_env(factory, num_envs=args.num_envs, seed=args.seed)
    eval_env = wrap_env(factory, num_envs=args.num_envs, seed=args.seed + 10_000)

    cfg = IPPO_DEFAULT_CONFIG.copy()
    cfg["rollouts"] = args.rollouts
    cfg["learning_epochs"] = 5
    cfg["mini_batches"] = 4
    cfg["learning_rate"] = 7e-4
    cfg["entropy_loss_scale"] = 0.01
    cfg["state_preprocessor"] = RunningStandardScaler
    cfg["value_preprocessor"] = ValueNorm
    cfg["time_limit_bootstrap"] = True
    cfg["experiment"]["directory"] = args.directory

    agent = IPPO(
        possible_agents=env.possible_agents,
        models=build_models(env, "ippo", shared=not args.distinct),
        memories={uid: RandomMemory(cfg["rollouts"], env.num_envs, env.device) for uid in env.possible_agents},
        observation_spaces=env.observation_spaces,
        action_spaces=env.action_spaces,
        device=env.device,
        cfg=cfg,
    )
    trainer = SequentialTrainer(env, agent, cfg={"timesteps": args.timesteps, "headless": True}, eval_env=eval_env)
    trainer.train()
    results = trainer.eval(episodes=args.evaluation_episodes)
    print(f"recorded in {agent.experiment_dir}")
    print(
        f"evaluation return: {results['mean']:.2f} +- {results['std']:.2f} (sum over agents), by agent {results['agents']}"
    )
    return results["mean"]


if __name__ == "__main__":
    main()
