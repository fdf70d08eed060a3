"""The cost of one whole update against a hand-written one of the same maths, interleaved in one process.

Both sides do 5 epochs of 4 minibatches on 64 environments x 100 steps of 3 agents, on one thread. The yardstick
(``peers/plain_ppo_update.py``) is flat eager PyTorch with fused Adam; with distinct parameters it is a loop over agents.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "peers")]

import plain_ppo_update as plain
from random_team import RandomTeam

EPOCHS, PARTS, STEPS, ENVS, AGENTS = 5, 4, 100, 64, 3


def ours(algorithm: str, *, shared: bool, hidden: int, epochs: int = EPOCHS) -> Callable[[], None]:
    """The library's update on a filled rollout."""
    source = RandomTeam(AGENTS, ENVS)
    team = source.team(
        algorithm,
        shared=shared,
        hidden=hidden,
        rollouts=STEPS,
        learning_epochs=epochs,
        mini_batches=PARTS,
        learning_rate=3e-4,
        entropy_loss_scale=0.01,
        value_loss_scale=0.5,
        clip_predicted_values=True,
        time_limit_bootstrap=True,
    )
    source.fill(team, STEPS)
    return lambda: team._update(0, 1)


def by_hand(algorithm: str, *, shared: bool, hidden: int) -> Callable[[], None]:
    """The yardstick's update on random data of the same shapes."""
    settings = plain.Settings(epochs=EPOCHS, mini_batches=PARTS)
    shapes = {"obs": 18, "n_actions": 5, "critic_in": 54 if algorithm == "mappo" else 18}
    joint = plain.random_rollout(steps=STEPS, envs=ENVS, agents=AGENTS, **shapes)
    learners = [plain.build(hidden, **shapes) for _ in range(1 if shared else AGENTS)]
    rollouts = [joint] if shared else [plain.of_agent(joint, agent, AGENTS) for agent in range(AGENTS)]
    for learner, rollout in zip(learners, rollouts, strict=True):
        rollout.log_probs = plain.log_prob(learner, rollout.observations, rollout.actions)
    return lambda: void(plain.update_distinct(learners, rollouts, settings))


def void(_: object) -> None:
    """Drop a result."""


def interleaved(functions: list[Callable[[], None]], repeats: int) -> list[list[float]]:
    """Seconds of each function, called in turn."""
    for function in functions:
        function()
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(repeats):
        for function, seconds in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            seconds.append(time.perf_counter() - start)
    return times


def per_minibatch(algorithm: str, *, shared: bool) -> tuple[float, float, float]:
    """Tensor operations, Python calls and C calls of a minibatch: what each epoch after the first adds, by its parts."""
    counts = []
    for epochs in (1, EPOCHS):
        update = ours(algorithm, shared=shared, hidden=64, epochs=epochs)
        update()
        calls = plain.count_calls(update)
        counts.append((plain.count_ops(update), calls["call"], calls["c_call"]))
    ops, calls, c_calls = ((many - one) / ((EPOCHS - 1) * PARTS) for one, many in zip(*counts, strict=True))
    return ops, calls, c_calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--hidden", type=int, nargs="*", default=[64, 256])
    parser.add_argument("--quick", action="store_true", help="three repeats of the small networks")
    args = parser.parse_args()
    repeats, widths = (3, [64]) if args.quick else (args.repeats, args.hidden)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print("| update | networks | ours, ms | by hand, ms | ratio (min .. max) | ops | Python calls | C calls |")
    print("|---|---|---|---|---|---|---|---|")
    for hidden in widths:
        for shared in (True, False):
            for algorithm in ("ippo", "mappo"):
                mine = ours(algorithm, shared=shared, hidden=hidden)
                yardstick = by_hand(algorithm, shared=shared, hidden=hidden)
                a, b = interleaved([mine, yardstick], repeats)
                ratios = [x / y for x, y in zip(a, b, strict=True)]
                ops, calls, c_calls = per_minibatch(algorithm, shared=shared)
                print(
                    f"| {algorithm}, {'shared' if shared else 'distinct'} parameters | 2x{hidden} "
                    f"| {1e3 * statistics.median(a):.1f} | {1e3 * statistics.median(b):.1f} "
                    f"| **{statistics.median(ratios):.2f}** ({min(ratios):.2f} .. {max(ratios):.2f}) "
                    f"| {ops:.0f} | {calls:.0f} | {c_calls:.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
