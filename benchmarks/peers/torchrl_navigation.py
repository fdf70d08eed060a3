"""TorchRL's multi-agent PPO on VMAS navigation, with the components and the settings of its well-known tutorial.

Three agents, 60 batched environments of 100 steps (6,000 team frames an iteration), 30 epochs of 15 minibatches of 400
frames, policy and critic of two tanh layers of 256 units shared by the agents, tanh-normal actions. The critic sees all
observations (``mappo``) or the agent's own (``ippo``). Float32 on one CPU thread.

What differs from the tutorial's text: names that TorchRL has since changed (``SyncDataCollector`` is ``Collector`` in
0.14, ``entropy_coef`` is ``entropy_coeff``), and no progress bar. One frame is a step of one environment, of all its
agents.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from tensordict.nn.distributions import NormalParamExtractor
from torch import nn
from torchrl.collectors import Collector
from torchrl.data.replay_buffers import LazyTensorStorage, ReplayBuffer
from torchrl.data.replay_buffers.samplers import SamplerWithoutReplacement
from torchrl.envs import EnvBase, RewardSum, TransformedEnv
from torchrl.envs.libs.vmas import VmasEnv
from torchrl.modules import MultiAgentMLP, ProbabilisticActor, TanhNormal
from torchrl.objectives import ClipPPOLoss, ValueEstimators

MAX_STEPS = 100
N_AGENTS = 3
OBSERVATION = ("agents", "observation")


def make_env(num_envs: int, seed: int) -> EnvBase:
    """Navigation with the episode's reward summed by agent."""
    env = VmasEnv(
        scenario="navigation",
        num_envs=num_envs,
        continuous_actions=True,
        max_steps=MAX_STEPS,
        device="cpu",
        seed=seed,
        n_agents=N_AGENTS,
    )
    return TransformedEnv(env, RewardSum(in_keys=[env.reward_key], out_keys=[("agents", "episode_reward")]))


def make_networks(env: EnvBase, args: argparse.Namespace) -> tuple[ProbabilisticActor, TensorDictModule]:
    """The policy and the critic, each shared by all agents."""
    shape = {
        "n_agent_inputs": env.observation_spec[OBSERVATION].shape[-1],
        "n_agents": env.n_agents,
        "share_params": True,
        "depth": 2,
        "num_cells": args.hidden,
        "activation_class": nn.Tanh,
    }
    n_outputs = 2 * env.full_action_spec[env.action_key].shape[-1]
    actor_net = MultiAgentMLP(n_agent_outputs=n_outputs, centralised=False, **shape)
    box = env.full_action_spec_unbatched[env.action_key].space
    actor = ProbabilisticActor(
        module=TensorDictModule(
            nn.Sequential(actor_net, NormalParamExtractor()),
            in_keys=[OBSERVATION],
            out_keys=[("agents", "loc"), ("agents", "scale")],
        ),
        spec=env.action_spec_unbatched,
        in_keys=[("agents", "loc"), ("agents", "scale")],
        out_keys=[env.action_key],
        distribution_class=TanhNormal,
        distribution_kwargs={"low": box.low, "high": box.high},
        return_log_prob=True,
    )
    critic = TensorDictModule(
        MultiAgentMLP(n_agent_outputs=1, centralised=args.algorithm == "mappo", **shape),
        in_keys=[OBSERVATION],
        out_keys=[("agents", "state_value")],
    )
    return actor, critic


def make_loss(env: EnvBase, actor: ProbabilisticActor, critic: TensorDictModule) -> ClipPPOLoss:
    """The clipped PPO loss with GAE as its value estimator."""
    loss = ClipPPOLoss(
        actor_network=actor, critic_network=critic, clip_epsilon=0.2, entropy_coeff=1e-4, normalize_advantage=False
    )
    loss.set_keys(
        reward=env.reward_key,
        action=env.action_key,
        value=("agents", "state_value"),
        done=("agents", "done"),
        terminated=("agents", "terminated"),
    )
    loss.make_value_estimator(ValueEstimators.GAE, gamma=0.99, lmbda=0.9)
    return loss


def per_agent_dones(data: TensorDictBase, reward_key: tuple[str, str]) -> None:
    """Give the team's done flags the rewards' shape, as the value estimator asks."""
    shape = data.get_item_shape(("next", reward_key))
    for flag in ("done", "terminated"):
        data.set(("next", "agents", flag), data.get(("next", flag)).unsqueeze(-1).expand(shape))


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Warm up, train, and report."""
    torch.manual_seed(args.seed)
    num_envs = args.frames // MAX_STEPS
    env = make_env(num_envs, args.seed)
    actor, critic = make_networks(env, args)
    collector = Collector(
        env,
        actor,
        device="cpu",
        storing_device="cpu",
        frames_per_batch=args.frames,
        total_frames=args.frames * (args.warmup + args.iterations),
        auto_register_policy_transforms=False,  # today's default, said aloud to silence its warning
    )
    buffer = ReplayBuffer(
        storage=LazyTensorStorage(args.frames), sampler=SamplerWithoutReplacement(), batch_size=args.minibatch
    )
    loss_module = make_loss(env, actor, critic)
    optimizer = torch.optim.Adam(loss_module.parameters(), 3e-4)

    rollout, advantage, learn, reward = [], [], [], []
    clock = time.perf_counter
    mark = clock()
    for data in collector:
        collected = clock()
        per_agent_dones(data, env.reward_key)
        with torch.no_grad():
            loss_module.value_estimator(
                data,
                params=loss_module.critic_network_params,
                target_params=loss_module.target_critic_network_params,
            )
        estimated = clock()
        buffer.extend(data.reshape(-1))
        for _ in range(args.epochs):
            for _ in range(args.frames // args.minibatch):
                losses = loss_module(buffer.sample())
                loss = losses["loss_objective"] + losses["loss_critic"] + losses["loss_entropy"]
                loss.backward()
                nn.utils.clip_grad_norm_(loss_module.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
        collector.update_policy_weights_()
        finished = data.get(("next", "agents", "done"))
        reward.append(data.get(("next", "agents", "episode_reward"))[finished].mean().item())
        end = clock()
        rollout.append(collected - mark)
        advantage.append(estimated - collected)
        learn.append(end - estimated)
        mark = end
    collector.shutdown()

    first = args.warmup
    total = sum(rollout[first:]) + sum(advantage[first:]) + sum(learn[first:])
    frames = args.frames * args.iterations
    minibatches = args.iterations * args.epochs * (args.frames // args.minibatch)
    return {
        "name": f"torchrl {args.algorithm} navigation",
        "env_steps": frames,
        "seconds": round(total, 4),
        "env_steps_per_second": round(frames / total, 1),
        "rollout_seconds": round(sum(rollout[first:]), 4),
        "advantage_seconds": round(sum(advantage[first:]), 4),
        "update_seconds": round(sum(advantage[first:]) + sum(learn[first:]), 4),
        "rollout_env_steps_per_second": round(frames / sum(rollout[first:]), 1),
        "seconds_per_iteration": [
            round(sum(parts), 3) for parts in zip(rollout[first:], advantage[first:], learn[first:], strict=True)
        ],
        "ms_per_minibatch": round(1e3 * sum(learn[first:]) / minibatches, 3),
        "episode_reward_mean": [round(value, 4) for value in reward],
        "settings": {name: value for name, value in vars(args).items() if name != "iterations"},
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--algorithm", choices=("mappo", "ippo"), default="mappo")
    parser.add_argument("--iterations", type=int, default=3, help="iterations of --frames frames to measure")
    parser.add_argument("--warmup", type=int, default=1, help="iterations before the clock starts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--frames", type=int, default=6000, help=f"frames an iteration, a multiple of {MAX_STEPS}")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--minibatch", type=int, default=400)
    args = parser.parse_args()
    if args.iterations <= 0 or args.frames % MAX_STEPS or args.frames % args.minibatch:
        parser.error(f"--frames is to be a multiple of {MAX_STEPS} and of --minibatch, --iterations positive")
    torch.set_num_threads(1)
    print(json.dumps(run(args)))


if __name__ == "__main__":
    main()
