"""Learning runs whose results are known from elsewhere: returns after a few minutes, seed by seed. One thread a run.

``--list`` shows the tasks, what is known of them, and their settings are in ``learning_tasks.py``. Each run leaves its
``metrics.csv`` in ``runs/learning/<task>-<seed>``; ``plot_curves.py`` draws them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from learning_tasks import ALGORITHMS, TASKS, Models, Task

from coterie import set_seed
from coterie.memories import RandomMemory, ReplayMemory
from coterie.models import build_models
from coterie.trainers import SequentialTrainer


def run(name: str, seed: int, directory: Path | str = "runs/learning", **changes: Any) -> tuple[float, float, int]:
    """Train on one task.

    :param changes: of the task's fields

    :return: evaluation return, seconds of training (evaluations included), environment steps
    """
    task = Task(**{**vars(TASKS[name]), **changes})
    torch.set_num_threads(1)
    set_seed(seed)
    env, eval_env = task.environment(task.num_envs, seed), task.environment(task.num_envs, seed + 10_000)
    cfg: dict[str, Any] = {
        **task.settings(),
        "experiment": {"directory": str(directory), "experiment_name": f"{name}-{seed}", "checkpoint_interval": 0},
    }
    models: Models = build_models(env, task.algorithm, **task.models)
    if task.change_models is not None:
        models = task.change_models(env, models)
    learning = [uid for uid, roles in models.items() if {"value", "q"} & set(roles)]
    memory, size = (RandomMemory, cfg["rollouts"]) if task.memory_size is None else (ReplayMemory, task.memory_size)
    agent = ALGORITHMS[task.algorithm](
        env.possible_agents,
        models,
        {uid: memory(size, env.num_envs) for uid in learning},
        env.observation_spaces,
        env.action_spaces,
        env.device,
        cfg,
        env.shared_observation_spaces,
    )
    trainer = SequentialTrainer(
        env,
        agent,
        cfg={
            "timesteps": task.timesteps,
            "headless": True,
            "disable_progressbar": True,
            "stochastic_evaluation": task.sampled,
            "evaluation_interval": max(task.timesteps // 20, 1),
            "evaluation_episodes": 128,
        },
        eval_env=eval_env,
    )
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    results = trainer.eval(episodes=512)
    reached = results["agents"][env.possible_agents[0]] if task.of_one else results["mean"]
    return reached, seconds, task.timesteps * env.num_envs


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="*", default=list(TASKS), help="which tasks; all by default")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--directory", default="runs/learning")
    parser.add_argument("--list", action="store_true", help="show the tasks and leave")
    args = parser.parse_args(arguments)
    unknown = [name for name in args.tasks if name not in TASKS]
    if unknown:
        parser.error(f"unknown tasks {unknown}: expected some of {list(TASKS)}")
    if args.list:
        for name, task in TASKS.items():
            print(f"{name}: {task.known}; goal {task.goal}, {task.timesteps * task.num_envs:,} env steps")
        return
    print("| task | seed | return | goal | env steps | seconds |\n|---|---|---|---|---|---|")
    for name in args.tasks:
        for seed in args.seeds:
            reached, seconds, steps = run(name, seed, args.directory)
            print(f"| {name} | {seed} | {reached:.3f} | {TASKS[name].goal} | {steps:,} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
