"""One multi-agent PPO update written by hand in eager PyTorch: the yardstick for a learner's speed and numbers.

Shapes: T time, E env, A agent, F feature, N = T*E*A rows with the agent running fastest. The agents share one policy
and one critic and are just more rows of the batch (``update``), or each has its own and the update is a Python loop
over agents (``update_distinct``). The critic reads the shared state, one row per agent (``mappo``), or the agent's own
observation (``ippo``).

With V the critic and V_t its value of the state acted upon in step t, all taken before the first gradient step::

    V'_t    = V_{t+1}, or V(last state of the episode) where the episode was truncated in step t
    delta_t = r_t + gamma (1 - terminated_t) V'_t - V_t
    A_t     = delta_t + gamma lambda (1 - (terminated_t or truncated_t)) A_{t+1},      A_T = 0
    R_t     = A_t + V_t
    a_t     = (A_t - mean A) / (std A + 1e-8)            over all N rows (for distinct models: the agent's T*E rows)

and in every minibatch, a random part of the rows, with w = pi(u|o) / pi_old(u|o) and clip(x) = min(max(x, -c), c)::

    policy  = -mean min(w a, (1 + clip(w - 1)) a)
    value   = mean max((V(s) - R)^2, (V_old + clip(V(s) - V_old) - R)^2)
    entropy = -mean sum_u pi(u|o) log pi(u|o)
    loss    = policy + value_scale * value - entropy_scale * entropy

One Adam step on policy and critic together, after the norm of their joint gradient is clipped.

Everything that the numbers depend on can be given: the weights (``Learner.policy`` and ``.critic`` are ordinary
modules), the rollout, and the order of the rows in each epoch (``orders``).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, log_softmax
from torch.utils._python_dispatch import TorchDispatchMode


@dataclass(frozen=True)
class Settings:
    """What the update is asked to do."""

    epochs: int = 5
    mini_batches: int = 4
    discount: float = 0.99
    gae_lambda: float = 0.95
    ratio_clip: float = 0.2
    value_clip: float = 0.2
    value_scale: float = 0.5
    entropy_scale: float = 0.01
    grad_norm_clip: float = 0.5


@dataclass
class Rollout:
    """What was seen in T steps; ``rows`` is E*A, or E where it is one agent's."""

    observations: Tensor  # [T * rows, F]
    states: Tensor  # [(T + 1) * rows, S]: the critic's input, with the one after the last step
    actions: Tensor  # int64 [T * rows, 1]
    log_probs: Tensor  # [T * rows, 1], of the policy that acted
    rewards: Tensor  # [T, rows]
    terminated: Tensor  # bool [T, rows]
    truncated: Tensor  # bool [T, rows]
    last_rows: Tensor  # int64 [K], the rows of truncated, flattened, where an episode was cut off
    last_states: Tensor  # [K, S], the critic's input at the end of those episodes


class Learner:
    """Policy, critic and their optimizer."""

    def __init__(self, policy: nn.Sequential, critic: nn.Sequential, lr: float) -> None:
        self.policy, self.critic = policy, critic
        self.policy_layers, self.critic_layers = layers(policy), layers(critic)
        self.parameters = [*policy.parameters(), *critic.parameters()]
        self.optimizer = torch.optim.Adam(self.parameters, lr=lr, fused=True)


def layers(net: nn.Sequential) -> list[tuple[Tensor, Tensor]]:
    """Weight and bias of each linear layer of a tanh network."""
    return [(layer.weight, layer.bias) for layer in net if isinstance(layer, nn.Linear)]


def forward(weights: list[tuple[Tensor, Tensor]], x: Tensor) -> Tensor:
    """The tanh network on ``x`` ``[B, F]``; the same numbers as the module, without the modules' calls."""
    *hidden, head = weights
    for weight, bias in hidden:
        x = linear(x, weight, bias).tanh_()
    return linear(x, *head)


def mlp(n_in: int, n_out: int, hidden: int) -> nn.Sequential:
    """Two tanh layers of ``hidden`` units and a linear head."""
    return nn.Sequential(
        nn.Linear(n_in, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, n_out)
    )


def build(hidden: int = 64, obs: int = 18, n_actions: int = 5, critic_in: int = 54, lr: float = 3e-4) -> Learner:
    """A policy over ``n_actions`` and a critic of ``critic_in`` inputs."""
    return Learner(mlp(obs, n_actions, hidden), mlp(critic_in, 1, hidden), lr)


@torch.no_grad()
def log_prob(learner: Learner, observations: Tensor, actions: Tensor) -> Tensor:
    """Log-probability ``[B, 1]`` of the actions."""
    return log_softmax(forward(learner.policy_layers, observations), dim=1).gather(1, actions)


@torch.no_grad()
def advantages_and_returns(learner: Learner, rollout: Rollout, settings: Settings) -> tuple[Tensor, Tensor, Tensor]:
    """Standardised advantages, returns and values, each ``[N, 1]``."""
    rewards, ended = rollout.rewards, rollout.terminated | rollout.truncated
    steps = len(rewards)
    values = forward(learner.critic_layers, rollout.states).view(steps + 1, -1)
    next_values = values[1:]
    if len(rollout.last_rows):
        last_values = forward(learner.critic_layers, rollout.last_states)
        next_values = next_values.reshape(-1).index_copy(0, rollout.last_rows, last_values.view(-1)).view_as(rewards)
    values = values[:-1]
    deltas = torch.addcmul(rewards, ~rollout.terminated, next_values, value=settings.discount).sub_(values)
    carry = (~ended).to(rewards.dtype).mul_(settings.discount * settings.gae_lambda).unbind()
    advantages = deltas.unbind()  # filled in place, from the end
    for t in range(steps - 2, -1, -1):
        advantages[t].addcmul_(carry[t], advantages[t + 1])
    returns = deltas + values
    std, mean = torch.std_mean(deltas)
    return deltas.sub_(mean).div_(std + 1e-8).view(-1, 1), returns.view(-1, 1), values.reshape(-1, 1)


def minibatch_step(learner: Learner, data: tuple[Tensor, ...], rows: Tensor, settings: Settings) -> Tensor:
    """One gradient step on the given rows; the three losses ``[policy, value, entropy]``."""
    observations, states, actions, old_log_prob, advantages, returns, old_values = (
        x.index_select(0, rows) for x in data
    )
    log_p = log_softmax(forward(learner.policy_layers, observations), dim=1)
    ratio = (log_p.gather(1, actions) - old_log_prob).exp()
    clipped = ratio.clamp(1.0 - settings.ratio_clip, 1.0 + settings.ratio_clip)
    policy_loss = -torch.minimum(ratio * advantages, clipped * advantages).mean()
    entropy = -(log_p.exp() * log_p).sum() / len(rows)

    values = forward(learner.critic_layers, states)
    near = old_values + (values - old_values).clamp(-settings.value_clip, settings.value_clip)
    value_loss = torch.maximum((values - returns).square(), (near - returns).square()).mean()

    loss = policy_loss + settings.value_scale * value_loss - settings.entropy_scale * entropy
    learner.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(learner.parameters, settings.grad_norm_clip, foreach=True)
    learner.optimizer.step()
    return torch.stack((policy_loss.detach(), value_loss.detach(), entropy.detach()))


def minibatch_data(learner: Learner, rollout: Rollout, settings: Settings) -> tuple[Tensor, ...]:
    """What a minibatch is drawn from."""
    advantages, returns, values = advantages_and_returns(learner, rollout, settings)
    states = rollout.states[: len(values)]
    return rollout.observations, states, rollout.actions, rollout.log_probs, advantages, returns, values


def update(learner: Learner, rollout: Rollout, settings: Settings, orders: Tensor | None = None) -> Tensor:
    """The whole update of one parameter set.

    :param orders: int64 ``[epochs, N]``, the order of the rows in each epoch; random if not given
    :return: the mean losses ``[policy, value, entropy]``
    """
    data = minibatch_data(learner, rollout, settings)
    count = len(rollout.actions)
    total = torch.zeros(3)
    for epoch in range(settings.epochs):
        order = torch.randperm(count) if orders is None else orders[epoch]
        for rows in order.chunk(settings.mini_batches):
            total += minibatch_step(learner, data, rows, settings)
    return total / (settings.epochs * settings.mini_batches)


def update_distinct(
    learners: list[Learner], rollouts: list[Rollout], settings: Settings, orders: Tensor | None = None
) -> Tensor:
    """The update of agents that share nothing, one after the other; mean losses ``[A, 3]``."""
    return torch.stack([update(*each, settings, orders) for each in zip(learners, rollouts, strict=True)])


def random_rollout(
    *, steps: int, envs: int, agents: int, obs: int, critic_in: int, n_actions: int, episode: int = 25, seed: int = 0
) -> Rollout:
    """Random data of the right shapes: episodes of ``episode`` steps, one in ten terminated, the others truncated."""
    g = torch.Generator().manual_seed(seed)
    count = envs * agents
    end = (torch.arange(1, steps + 1) % episode == 0).view(-1, 1, 1).expand(steps, envs, 1)
    terminated = end & (torch.rand(steps, envs, 1, generator=g) < 0.1)
    truncated = (end & ~terminated).expand(steps, envs, agents).reshape(steps, count)
    last_rows = truncated.reshape(-1).nonzero().view(-1)
    return Rollout(
        observations=torch.randn(steps * count, obs, generator=g),
        states=torch.randn((steps + 1) * count, critic_in, generator=g),
        actions=torch.randint(n_actions, (steps * count, 1), generator=g),
        log_probs=torch.zeros(steps * count, 1),
        rewards=torch.randn(steps, count, generator=g),
        terminated=terminated.expand(steps, envs, agents).reshape(steps, count),
        truncated=truncated,
        last_rows=last_rows,
        last_states=torch.randn(len(last_rows), critic_in, generator=g),
    )


def of_agent(rollout: Rollout, agent: int, agents: int) -> Rollout:
    """One agent's part of a rollout, in storage of its own."""
    mine = rollout.last_rows % agents == agent
    rows = {
        name: getattr(rollout, name)[agent::agents].contiguous()
        for name in ("observations", "states", "actions", "log_probs")
    }
    columns = {name: getattr(rollout, name)[:, agent::agents].contiguous() for name in ("rewards", "terminated")}
    return Rollout(
        **rows,
        **columns,
        truncated=rollout.truncated[:, agent::agents].contiguous(),
        last_rows=rollout.last_rows[mine] // agents,
        last_states=rollout.last_states[mine],
    )


class OpCounter(TorchDispatchMode):
    """Counts the operators that reach a backend, in the backward pass too."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def count_ops(function: Callable[[], Any]) -> int:
    """Tensor operators that ``function`` runs."""
    with OpCounter() as counter:
        function()
    return counter.count


def count_calls(function: Callable[[], Any]) -> dict[str, int]:
    """Calls of Python and of C functions that ``function`` makes (its own call included)."""
    counts = {"call": 0, "c_call": 0}

    def hook(_frame: Any, event: str, _arg: Any) -> None:
        if event in counts:
            counts[event] += 1

    sys.setprofile(hook)
    try:
        function()
    finally:
        sys.setprofile(None)
    counts["c_call"] -= 1  # the one that ends the counting
    return counts


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Time the update and count what a minibatch step costs."""
    torch.manual_seed(args.seed)
    settings = Settings(epochs=args.epochs, mini_batches=args.mini_batches)
    obs, n_actions = 18, 5
    critic_in = obs * args.agents if args.algorithm == "mappo" else obs
    shapes = {"obs": obs, "n_actions": n_actions, "critic_in": critic_in}
    joint = random_rollout(steps=args.steps, envs=args.envs, agents=args.agents, seed=args.seed, **shapes)
    distinct = args.sharing == "distinct"
    learners = [build(args.hidden, **shapes) for _ in range(args.agents if distinct else 1)]
    rollouts = [of_agent(joint, agent, args.agents) for agent in range(args.agents)] if distinct else [joint]

    seconds, advantage = [], []
    for repeat in range(args.warmup + args.repeats):
        for learner, rollout in zip(learners, rollouts, strict=True):  # as if it had just acted
            rollout.log_probs = log_prob(learner, rollout.observations, rollout.actions)
        start = time.perf_counter()
        for learner, rollout in zip(learners, rollouts, strict=True):
            minibatch_data(learner, rollout, settings)
        middle = time.perf_counter()
        losses = update_distinct(learners, rollouts, settings)
        if repeat >= args.warmup:
            advantage.append(middle - start)
            seconds.append(time.perf_counter() - middle)

    batches = [
        (learner, minibatch_data(learner, rollout, settings), torch.randperm(len(rollout.actions)))
        for learner, rollout in zip(learners, rollouts, strict=True)
    ]
    batches = [(learner, data, order.chunk(settings.mini_batches)[0]) for learner, data, order in batches]

    def step() -> None:
        for learner, data, rows in batches:
            minibatch_step(learner, data, rows, settings)

    calls = count_calls(step)
    median = statistics.median(seconds)
    env_steps = args.steps * args.envs
    steps = settings.epochs * settings.mini_batches
    return {
        "name": f"plain {args.algorithm} update, {args.sharing} parameters",
        "env_steps": env_steps,
        "seconds": round(median, 5),
        "env_steps_per_second": round(env_steps / median, 1),
        "seconds_min": round(min(seconds), 5),
        "seconds_max": round(max(seconds), 5),
        "advantage_seconds": round(statistics.median(advantage), 5),
        "ms_per_minibatch": round(1e3 * (median - statistics.median(advantage)) / steps, 3),
        "per_minibatch": {
            "aten_ops": count_ops(step),
            "python_calls": calls["call"],
            "c_calls": calls["c_call"],
        },
        "losses": [[round(value, 5) for value in row] for row in losses.tolist()],
        "settings": {**asdict(settings), **vars(args)},
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--algorithm", choices=("mappo", "ippo"), default="mappo")
    parser.add_argument("--sharing", choices=("shared", "distinct"), default="shared")
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--repeats", "--iterations", type=int, default=20, help="updates to measure")
    parser.add_argument("--warmup", type=int, default=3, help="updates before the clock starts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--envs", type=int, default=64)
    parser.add_argument("--agents", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--mini-batches", type=int, default=4)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(run(args)))


if __name__ == "__main__":
    main()
