"""Steps per second of the built-in particle tasks against mpe2's parallel environments, on one thread.

Both sides draw random discrete actions inside the timed loop, restart ended episodes, and return every observation.
Rounds of the two alternate, so that a change of the machine's pace hits both; the figures are medians over rounds.

    python benchmarks/env_stepping.py [--quick] [--tasks simple_spread ...] [--num-envs 1 16 ...]
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from coterie.agent_tensors import AgentTensors
from coterie.envs.particle import TASKS

MPE2_MODULES = {
    "simple_spread": "simple_spread_v3",
    "simple_speaker_listener": "simple_speaker_listener_v4",
    "simple_reference": "simple_reference_v3",
    "simple_tag": "simple_tag_v3",
}


def mpe2_loop(task: str) -> Callable[[int], float]:
    """Return a function that steps mpe2's task so many times and returns the steps per second."""
    env = importlib.import_module(f"mpe2.{MPE2_MODULES[task]}").parallel_env()
    env.reset(seed=0)
    choices = {name: int(env.action_space(name).n) for name in env.possible_agents}
    limits = np.array(list(choices.values()))
    rng = np.random.default_rng(0)

    def run(steps: int) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            if not env.agents:
                env.reset()
            env.step(dict(zip(choices, rng.integers(limits).tolist(), strict=True)))
        return steps / (time.perf_counter() - start)

    return run


def coterie_loop(task: str, num_envs: int) -> Callable[[int], float]:
    """Return a function that steps the built-in task so many times and returns the steps per second of all copies."""
    env = TASKS[task](num_envs, seed=0)
    env.reset()
    names = env.possible_agents
    choices = [int(env.action_spaces[name].n) for name in names]  # type: ignore[attr-defined]
    generator = torch.Generator().manual_seed(0)

    def draw() -> AgentTensors:
        if len(set(choices)) == 1:
            return AgentTensors.single(names, torch.randint(choices[0], (num_envs, len(names), 1), generator=generator))
        columns = [torch.randint(n, (num_envs, 1, 1), generator=generator) for n in choices]
        return AgentTensors({(name,): column for name, column in zip(names, columns, strict=True)})

    def run(steps: int) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            env.step(draw())
        return steps * num_envs / (time.perf_counter() - start)

    return run


def main() -> None:
    """Measure, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="short rounds: a few seconds in all, rough figures")
    parser.add_argument("--tasks", nargs="+", choices=sorted(TASKS), default=sorted(TASKS))
    parser.add_argument("--num-envs", nargs="+", type=int, default=[1, 16, 64, 256, 1024])
    options = parser.parse_args()
    torch.set_num_threads(1)
    rounds, seconds = (3, 0.1) if options.quick else (9, 0.5)

    print("| task | copies | coterie, env steps/s | ms a vector step | mpe2, env steps/s | ratio |")
    print("|---|---:|---:|---:|---:|---:|")
    for task in options.tasks:
        theirs = mpe2_loop(task)
        their_steps = max(25, int(theirs(100) * seconds))
        for num_envs in options.num_envs:
            ours = coterie_loop(task, num_envs)
            our_steps = max(25, int(ours(100) * seconds / num_envs))
            pairs = [(ours(our_steps), theirs(their_steps)) for _ in range(rounds)]
            fast, slow = (statistics.median(column) for column in zip(*pairs, strict=True))
            ratio = statistics.median(a / b for a, b in pairs)
            print(
                f"| {task} | {num_envs} | {fast:,.0f} | {1000 * num_envs / fast:.3f} | {slow:,.0f} | {ratio:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
