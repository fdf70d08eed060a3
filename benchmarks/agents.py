"""How cost grows with the number of agents that have parameters of their own: 3, 8 and 32, interleaved, one thread.

8 environments x 64 steps, 2x64 tanh networks of observations of 18 for policy and critic (IPPO, so that a team's size
does not change the critic's input), 4 epochs of 4 minibatches. The loop is the same update by hand, one agent after the other.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "peers")]

import plain_ppo_update as plain
from learner import interleaved
from random_team import RandomTeam

STEPS, ENVS, EPOCHS, PARTS, HIDDEN = 64, 8, 4, 4, 64

#: steps of acting and recording that are timed together
TIMED_STEPS = 50


def library(agents: int) -> tuple[Callable[[], None], Callable[[], None]]:
    """:data:`TIMED_STEPS` steps of acting and recording, and one update."""
    source = RandomTeam(agents, ENVS)
    playing, learning = (
        source.team(
            "ippo",
            shared=False,
            hidden=HIDDEN,
            rollouts=STEPS,
            learning_epochs=EPOCHS,
            mini_batches=PARTS,
            learning_rate=3e-4,
        )
        for _ in range(2)
    )
    source.fill(learning, STEPS)

    def play() -> None:
        playing.init()  # an empty rollout
        source.fill(playing, TIMED_STEPS)

    return play, lambda: learning._update(0, 1)


def loop(agents: int) -> Callable[[], None]:
    """The update by hand, agent after agent."""
    settings = plain.Settings(epochs=EPOCHS, mini_batches=PARTS)
    shapes = {"obs": 18, "n_actions": 5, "critic_in": 18}
    joint = plain.random_rollout(steps=STEPS, envs=ENVS, agents=agents, **shapes)
    learners = [plain.build(HIDDEN, **shapes) for _ in range(agents)]
    rollouts = [plain.of_agent(joint, agent, agents) for agent in range(agents)]

    def run() -> None:
        plain.update_distinct(learners, rollouts, settings)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--agents", type=int, nargs="*", default=[3, 8, 32])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="three repeats")
    args = parser.parse_args()
    repeats = 3 if args.quick else args.repeats
    torch.set_num_threads(1)
    torch.manual_seed(0)
    steps, updates, loops = [], [], []
    for agents in args.agents:
        step, update = library(agents)
        steps.append(step)
        updates.append(update)
        loops.append(loop(agents))
    rows = {
        "one step: act and record": interleaved(steps, repeats),
        "one update": interleaved(updates, repeats),
        "one update, a loop by hand": interleaved(loops, repeats),
    }
    titles = " | ".join(f"{n} agents, ms" for n in args.agents)
    print(f"| distinct parameters | {titles} | {args.agents[-1]} against {args.agents[0]} |")
    print("|---|" + "---|" * (len(args.agents) + 1))
    for name, times in rows.items():
        scale = 1e3 / TIMED_STEPS if name.startswith("one step") else 1e3
        medians = [scale * statistics.median(seconds) for seconds in times]
        ratio = statistics.median(b / a for a, b in zip(times[0], times[-1], strict=True))
        print(f"| {name} | {' | '.join(f'{m:.2f}' for m in medians)} | **{ratio:.1f}x** |")
    total = [
        [STEPS * a / TIMED_STEPS + b for a, b in zip(step, update, strict=True)]
        for step, update in zip(rows["one step: act and record"], rows["one update"], strict=True)
    ]
    medians = [1e3 * statistics.median(seconds) for seconds in total]
    ratio = statistics.median(b / a for a, b in zip(total[0], total[-1], strict=True))
    print(f"| {STEPS} steps and an update | {' | '.join(f'{m:.1f}' for m in medians)} | **{ratio:.1f}x** |")


if __name__ == "__main__":
    main()
