"""IPPO learns tic-tac-toe against itself, then plays against a random player.

A turn-based PettingZoo environment: only the player whose turn it is acts, illegal moves are masked, and what a move leads
to is known only when the opponent has answered. Needs ``pip install ".[pettingzoo]"``.
"""

from __future__ import annotations

import argparse

import pettingzoo
import torch
from torch import Tensor

from coterie import set_seed, wrap_env
from coterie.agents import IPPO, IPPO_DEFAULT_CONFIG
from coterie.envs import MultiAgentEnv
from coterie.memories import RandomMemory
from coterie.models import build_models
from coterie.trainers import SequentialTrainer


def games(num_envs: int, seed: int) -> MultiAgentEnv:
    return wrap_env(lambda: pettingzoo.make("aec", "classic/tictactoe-v3"), num_envs=num_envs, seed=seed)


def play_at_random(states: Tensor, action_masks: Tensor | None) -> Tensor:
    """Any legal move ``[E, 1]``."""
    if action_masks is None:  # as on the empty board, were it not said
        action_masks = torch.ones(len(states), 9)
    return torch.multinomial(action_masks.float(), 1)


def main(arguments: list[str] | None = None) -> float:
    """Train and evaluate; returns the mean result against a random player, from -1 (lost) to 1 (won)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--timesteps", type=int, default=20_000, help="steps of the vectorised environment, one move each"
    )
    parser.add_argument("--num-envs", type=int, default=16)
    parser.add_argument("--rollouts", type=int, default=128)
    parser.add_argument("--games", type=int, default=256, help="games of the final evaluation, for each side")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--directory", default="runs")
    parser.add_argument("--name", default="", help="name of the run's folder")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    set_seed(args.seed)

    env = games(args.num_envs, args.seed)
    cfg = IPPO_DEFAULT_CONFIG.copy()
    cfg["rollouts"] = args.rollouts
    cfg["entropy_loss_scale"] = 0.02
    cfg["experiment"]["directory"] = args.directory
    cfg["experiment"]["experiment_name"] = args.name
    agent = IPPO(
        env.possible_agents,
        build_models(env, "ippo", shared=True),  # one player, who sees which side it is on
        {uid: RandomMemory(args.rollouts, env.num_envs) for uid in env.possible_agents},
        env.observation_spaces,
        env.action_spaces,
        cfg=cfg,
    )
    SequentialTrainer(env, agent, cfg={"timesteps": args.timesteps, "headless": True}).train()
    checkpoint = agent.experiment_dir / "player.pt"
    agent.save(checkpoint)

    results = []
    for side in env.possible_agents:
        test = games(args.num_envs, args.seed + 10_000)
        models = {
            uid: {"policy": roles["policy"]} if uid == side else {"policy": play_at_random}
            for uid, roles in build_models(env, "ippo", shared=True).items()
        }
        team = IPPO(env.possible_agents, models, None, env.observation_spaces, env.action_spaces)
        team.load_teammates(checkpoint, {side: side})
        played = SequentialTrainer(test, team, cfg={"headless": True}).eval(episodes=args.games)
        results.append(played["agents"][side])
        lost = float((played["returns"][:, env.possible_agents.index(side)] < 0).double().mean())
        print(f"as {side}: mean result {results[-1]:.2f}, {lost:.0%} of {played['episodes']} games lost")
    print(f"evaluation return against a random player: {sum(results) / 2:.2f}")
    return sum(results) / 2


if __name__ == "__main__":
    main()
