"""skrl's MAPPO and IPPO on simple_spread, trained end to end through skrl's own wrapper and trainer.

One PettingZoo parallel environment (the only multi-agent case that skrl's PettingZoo wrapper has), three agents, a
distinct policy and a distinct value network for each. Nothing of skrl is replaced: the environment goes through
``wrap_env`` and the loop is ``SequentialTrainer.train``. The timings by phase are the ones that skrl itself keeps
(``Stats / ...``); ``--detail`` adds a clock around the calls that skrl does not time.

Needs no adaptation of the environment: mpe2 brings ``state()`` and ``state_space``, and skrl recognises it. In skrl 2
the value model picks its own input, so MAPPO's reads ``inputs["states"]`` and IPPO's ``inputs["observations"]``.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")

import gymnasium
import numpy as np
import torch
from mpe2 import simple_spread_v3
from skrl import logger
from skrl.envs.wrappers.torch import MultiAgentEnvWrapper, wrap_env
from skrl.memories.torch import RandomMemory
from skrl.models.torch import CategoricalMixin, DeterministicMixin, Model
from skrl.multi_agents.torch import MultiAgent
from skrl.multi_agents.torch.ippo import IPPO, IPPO_CFG
from skrl.multi_agents.torch.mappo import MAPPO, MAPPO_CFG
from skrl.trainers.torch import SequentialTrainer
from skrl.utils import set_seed
from torch import Tensor, nn

N_AGENTS = 3
CYCLES = 25


def mlp(n_in: int, n_out: int, hidden: int) -> nn.Sequential:
    """Two tanh layers of ``hidden`` units and a linear head."""
    return nn.Sequential(
        nn.Linear(n_in, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, n_out)
    )


class Policy(CategoricalMixin, Model):
    """Categorical policy over an agent's own observation."""

    def __init__(self, hidden: int, **spaces: Any) -> None:
        Model.__init__(self, **spaces)
        CategoricalMixin.__init__(self, unnormalized_log_prob=True)
        self.net = mlp(self.num_observations, self.num_actions, hidden)

    def compute(self, inputs: dict[str, Tensor], role: str) -> tuple[Tensor, dict[str, Any]]:
        """Logits."""
        return self.net(inputs["observations"]), {}


class Value(DeterministicMixin, Model):
    """Value of the shared state (``centralised``) or of the agent's own observation."""

    def __init__(self, hidden: int, centralised: bool, **spaces: Any) -> None:
        Model.__init__(self, **spaces)
        DeterministicMixin.__init__(self)
        self.key = "states" if centralised else "observations"
        self.net = mlp(self.num_states if centralised else self.num_observations, 1, hidden)

    def compute(self, inputs: dict[str, Tensor], role: str) -> tuple[Tensor, dict[str, Any]]:
        """Value."""
        return self.net(inputs[self.key]), {}


def build(args: argparse.Namespace) -> tuple[MultiAgentEnvWrapper, MultiAgent]:
    """The wrapped environment and the agents."""
    env = wrap_env(
        simple_spread_v3.parallel_env(N=N_AGENTS, max_cycles=CYCLES, continuous_actions=False), verbose=False
    )
    models, memories = {}, {}
    for uid in env.possible_agents:
        spaces: dict[str, gymnasium.Space | torch.device] = {
            "observation_space": env.observation_space(uid),
            "state_space": env.state_space(uid),
            "action_space": env.action_space(uid),
            "device": env.device,
        }
        models[uid] = {
            "policy": Policy(args.hidden, **spaces),
            "value": Value(args.hidden, args.algorithm == "mappo", **spaces),
        }
        memories[uid] = RandomMemory(memory_size=args.rollouts, num_envs=env.num_envs, device=env.device)
    # skrl 2.1.1 reads the empty dicts that are the defaults of these four as per-agent dicts that name no agent, and
    # raises: they have to be given per agent
    nothing = {uid: {} for uid in env.possible_agents}
    agent_class, cfg_class = {"mappo": (MAPPO, MAPPO_CFG), "ippo": (IPPO, IPPO_CFG)}[args.algorithm]
    agent = agent_class(
        possible_agents=env.possible_agents,
        models=models,
        memories=memories,
        observation_spaces=env.observation_spaces,
        state_spaces=env.state_spaces,
        action_spaces=env.action_spaces,
        device=env.device,
        cfg=cfg_class(
            rollouts=args.rollouts,
            learning_epochs=args.epochs,
            mini_batches=args.mini_batches,
            learning_rate=3e-4,
            discount_factor=0.99,
            gae_lambda=0.95,
            ratio_clip=0.2,
            value_clip=0.2,
            grad_norm_clip=0.5,
            entropy_loss_scale=args.entropy,
            value_loss_scale=0.5,
            time_limit_bootstrap=args.time_limit_bootstrap,
            learning_rate_scheduler_kwargs=dict(nothing),
            observation_preprocessor_kwargs=dict(nothing),
            state_preprocessor_kwargs=dict(nothing),
            value_preprocessor_kwargs=dict(nothing),
            experiment={"write_interval": 0, "checkpoint_interval": 0},
        ),
    )
    return env, agent


def clocked(function: Callable[..., Any], seconds: dict[str, float], name: str) -> Callable[..., Any]:
    """``function``, with the time spent in it added to ``seconds[name]``."""

    def call(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        result = function(*args, **kwargs)
        seconds[name] += time.perf_counter() - start
        return result

    return call


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Warm up, train, and report."""
    set_seed(args.seed)
    env, agent = build(args)
    seconds: dict[str, float] = defaultdict(float)
    if args.detail:
        for owner, method in ((agent, "record_transition"), (env, "reset"), (env._env, "step")):
            setattr(owner, method, clocked(getattr(owner, method), seconds, method))
    trainer = SequentialTrainer(
        env=env,
        agents=agent,
        cfg={
            "timesteps": args.warmup,
            "headless": True,
            "disable_progressbar": True,
            "close_environment_at_exit": False,
        },
    )
    if args.warmup:
        trainer.train()
    agent.tracking_data.clear()
    seconds.clear()

    trainer.cfg.timesteps = args.steps
    start = time.perf_counter()
    trainer.train()
    total = time.perf_counter() - start

    phase = {
        name: float(np.sum(agent.tracking_data[tag])) / 1e3
        for name, tag in (
            ("act", "Stats / Inference time (ms)"),
            ("env", "Stats / Env stepping time (ms)"),
            ("update", "Stats / Algorithm update time (ms)"),
        )
    }
    updates = args.steps // args.rollouts
    report = {
        "name": f"skrl {args.algorithm} simple_spread",
        "env_steps": args.steps,
        "seconds": round(total, 4),
        "env_steps_per_second": round(args.steps / total, 1),
        "rollout_seconds": round(total - phase["update"], 4),
        "update_seconds": round(phase["update"], 4),
        "act_seconds": round(phase["act"], 4),
        "env_seconds": round(phase["env"], 4),
        "other_seconds": round(total - sum(phase.values()), 4),
        "updates": updates,
        "ms_per_update": round(1e3 * phase["update"] / updates, 2),
        "ms_per_minibatch_and_agent": round(
            1e3 * phase["update"] / (updates * args.epochs * args.mini_batches * N_AGENTS), 3
        ),
        "settings": {name: value for name, value in vars(args).items() if name not in ("steps", "detail")},
    }
    if args.detail:
        report["detail_seconds"] = {
            "raw_env_step": round(seconds["step"], 4),
            "wrapper_and_state": round(phase["env"] - seconds["step"], 4),
            "record_transition": round(seconds["record_transition"], 4),
            "reset": round(seconds["reset"], 4),
        }
    env.close()
    return report


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--algorithm", choices=("mappo", "ippo"), default="mappo")
    parser.add_argument("--steps", type=int, default=3000, help="environment steps to measure")
    parser.add_argument("--warmup", type=int, default=300, help="environment steps before the clock starts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--rollouts", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--mini-batches", type=int, default=4)
    parser.add_argument("--entropy", type=float, default=0.01, help="0 spares skrl the entropy")
    parser.add_argument("--time-limit-bootstrap", action="store_true")
    parser.add_argument("--detail", action="store_true", help="clock the calls that skrl does not time itself")
    args = parser.parse_args()
    if args.steps <= 0 or args.steps % args.rollouts or args.warmup % args.rollouts:
        parser.error("--steps and --warmup are to be multiples of --rollouts")
    torch.set_num_threads(1)
    logger.setLevel("ERROR")
    print(json.dumps(run(args)))


if __name__ == "__main__":
    main()
