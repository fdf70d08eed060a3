"""Environment steps per second end to end, learning included: against peers, and on the built-in tasks. One thread.

The peers live in an environment of their own (``benchmarks/peers/README.md``); give its Python with ``--peers``. Every
measurement is a process of its own, and processes of the library and of the peer alternate.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from coterie import set_seed, wrap_env
from coterie.agents import IPPO, MAPPO
from coterie.envs import MultiAgentEnv, make
from coterie.memories import RandomMemory
from coterie.models import build_models
from coterie.trainers import SequentialTrainer

HERE = Path(__file__).parent
QUIET = {"write_interval": 0, "checkpoint_interval": 0}


def train(env: MultiAgentEnv, algorithm: str, timesteps: int, warmup: int, models: dict[str, Any], **cfg: Any) -> float:
    """Environment steps per second of training for ``timesteps``, after ``warmup`` steps."""
    agent = {"mappo": MAPPO, "ippo": IPPO}[algorithm](
        env.possible_agents,
        build_models(env, algorithm, **models),
        {uid: RandomMemory(cfg["rollouts"], env.num_envs, env.device) for uid in env.possible_agents},
        env.observation_spaces,
        env.action_spaces,
        env.device,
        {**cfg, "experiment": QUIET},
        env.shared_observation_spaces,
    )
    for steps in (warmup, timesteps):
        trainer = SequentialTrainer(env, agent, cfg={"timesteps": steps, "headless": True, "disable_progressbar": True})
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
    return timesteps * env.num_envs / seconds


def mpe2_spread(algorithm: str, num_envs: int, steps: int) -> float:
    """mpe2's simple_spread with the settings of ``peers/skrl_spread.py``: distinct models, 100-step rollouts."""
    from mpe2 import simple_spread_v3

    env = wrap_env(simple_spread_v3.parallel_env, num_envs=num_envs, seed=0)
    return train(
        env,
        algorithm,
        steps,
        300,
        {"shared": False, "hidden": (64, 64)},
        rollouts=100,
        learning_epochs=4,
        mini_batches=4,
        learning_rate=3e-4,
        entropy_loss_scale=0.01,
        value_loss_scale=0.5,
    )


def navigation(algorithm: str, iterations: int, precision: str = "float32") -> float:
    """VMAS navigation with the settings of ``peers/torchrl_navigation.py``, networks in float32 or ``"bfloat16"``."""
    import vmas

    env = wrap_env(
        vmas.make_env("navigation", num_envs=60, continuous_actions=True, max_steps=100, seed=0, n_agents=3), seed=0
    )
    return train(
        env,
        algorithm,
        100 * iterations,
        100,
        {"shared": True, "hidden": (256, 256), "agent_id": False, "state_dependent_std": True},
        rollouts=100,
        learning_epochs=30,
        mini_batches=15,
        learning_rate=3e-4,
        discount_factor=0.99,
        **{"lambda": 0.9},
        entropy_loss_scale=1e-4,
        grad_norm_clip=1.0,
        time_limit_bootstrap=True,
        mixed_precision=precision == "bfloat16",
    )


def built_in(num_envs: int, rollouts: int, iterations: int) -> float:
    """IPPO on the built-in simple_spread, shared 2x64 networks, 4 epochs of 4 minibatches."""
    env = make("particle/simple_spread", num_envs=num_envs, seed=0)
    return train(
        env,
        "ippo",
        rollouts * iterations,
        rollouts,
        {"shared": True, "hidden": (64, 64)},
        rollouts=rollouts,
        learning_epochs=4,
        mini_batches=4,
    )


MEASURES: dict[str, Callable[..., float]] = {"mpe2": mpe2_spread, "navigation": navigation, "built-in": built_in}


def measure(name: str, *arguments: str | int) -> float:
    """Run one measurement in a process of its own."""
    command = [sys.executable, str(HERE / "throughput.py"), "--measure", name, *map(str, arguments)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def peer(python: str, script: str, *arguments: str) -> float:
    """Run a peer's measurement."""
    command = [python, str(HERE / "peers" / script), *arguments]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(json.loads(output.strip().splitlines()[-1])["env_steps_per_second"])


def compare(title: str, mine: Callable[[], float], theirs: Callable[[], float] | None, repeats: int) -> None:
    """Alternate, and print medians and the ratio of neighbours."""
    a, b = [], []
    for _ in range(repeats):
        a.append(mine())
        if theirs is not None:
            b.append(theirs())
    row = f"| {title} | {statistics.median(a):,.0f} ({min(a):,.0f} .. {max(a):,.0f}) |"
    if b:
        ratios = [x / y for x, y in zip(a, b, strict=True)]
        row += f" {statistics.median(b):,.0f} ({min(b):,.0f} .. {max(b):,.0f}) | **{statistics.median(ratios):.2f}x** |"
    else:
        row += " | |"
    print(row, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", help="the Python that has the peers installed; without it only the library is timed")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one repeat")
    parser.add_argument("--only", default="", help="compare only what has this in its title")
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    set_seed(0)
    if args.measure:
        name, *rest = args.measure
        print(MEASURES[name](*(int(x) if x.isdigit() else x for x in rest)))
        return
    repeats = 1 if args.quick else args.repeats
    skrl = args.peers and (
        lambda algorithm: peer(args.peers, "skrl_spread.py", "--algorithm", algorithm, "--steps", "3000")
    )
    torchrl = args.peers and (lambda algorithm: peer(args.peers, "torchrl_navigation.py", "--algorithm", algorithm))

    def compare_if(title: str, *how: Any) -> None:
        if args.only in title:
            compare(title, *how)

    print("| task | env steps/s, median (range) | peer, median (range) | ratio |")
    print("|---|---|---|---|")
    for algorithm in ("mappo", "ippo"):
        rival = (lambda a=algorithm: skrl(a)) if skrl else None
        for envs, steps in ((1, 3000), (8, 800)):
            title = (
                f"mpe2 simple_spread, {algorithm}, distinct 2x64, {envs} env{'s' * (envs > 1)} against skrl with one"
            )
            compare_if(title, lambda a=algorithm, e=envs, s=steps: measure("mpe2", a, e, s), rival, repeats)
    for algorithm in ("mappo", "ippo"):
        rival = (lambda a=algorithm: torchrl(a)) if torchrl else None
        for precision in ("float32", "bfloat16"):
            title = f"VMAS navigation, {algorithm}, tutorial settings, {precision}, against TorchRL in float32"
            compare_if(title, lambda a=algorithm, p=precision: measure("navigation", a, 3, p), rival, repeats)
    compare_if(
        "built-in simple_spread, IPPO, 256 envs x 128 steps", lambda: measure("built-in", 256, 128, 5), None, repeats
    )


if __name__ == "__main__":
    main()
