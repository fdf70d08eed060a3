"""One update of QMIX, VDN or IQL written by hand in eager PyTorch: the yardstick for a value learner's speed and numbers.

Shapes: T steps, B episodes, A agents, F feature, n actions. The agents share one network and are just more rows of its batch,
or each has its own and the networks run in a Python loop. Sequences are time-major; every episode starts with a memory of
zeros, so that ``nn.GRU`` takes it whole. Shorter episodes are padded, and what is padding is masked out of the loss::

    V_t  = Q'(o_{t+1}, argmax_a Q(o_{t+1}, a))                          per agent, Q' the target network
    y_t  = r_t + gamma (1 - terminated_t) mix'(V_t, s_{t+1})            IQL: of each agent, without a mixer
    loss = mean over the steps taken of (mix(Q(o_t, u_t), s_t) - y_t)^2      IQL with networks apart: summed over these

    mix  = ELU(Q |W1(s)| + b1(s)) |W2(s)| + v(s)                        QMIX; a plain sum for VDN

W1, W2 and v come from networks of two layers with a ReLU, b1 from one layer. One step of fused Adam, after the gradient's norm
is clipped. Targets are copied every ``target_interval`` updates. Single steps are episodes of one step.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import elu


@dataclass(frozen=True)
class Settings:
    """What the update is asked to do."""

    batch_size: int = 32
    discount: float = 0.99
    learning_rate: float = 5e-4
    grad_norm_clip: float = 10.0
    target_interval: int = 200


@dataclass
class Episodes:
    """Episodes of at most T steps, padded to T: what is kept, or drawn."""

    observations: Tensor  # [T + 1, B, A, F], with what the last step led to
    states: Tensor  # [T + 1, B, S]
    actions: Tensor  # int64 [T, B, A, 1]
    rewards: Tensor  # [T, B, 1] of the team, or [T, B, A] of each agent
    terminated: Tensor  # [T, B, 1], 1 where the episode ended for good
    taken: Tensor  # [T, B, 1], 1 where a step was taken, 0 in padding

    def draw(self, count: int) -> Episodes:
        """Different episodes, drawn uniformly."""
        index = torch.randperm(self.actions.shape[1])[:count]
        return Episodes(*(tensor.index_select(1, index) for tensor in vars(self).values()))


class AgentNet(nn.Module):
    """Linear, ReLU, GRU (or linear and ReLU once more), linear."""

    def __init__(self, obs: int, n_actions: int, hidden: int, *, recurrent: bool) -> None:
        super().__init__()
        self.enter = nn.Linear(obs, hidden)
        self.middle: nn.Module = nn.GRU(hidden, hidden) if recurrent else nn.Linear(hidden, hidden)
        self.head = nn.Linear(hidden, n_actions)
        self.recurrent = recurrent

    def forward(self, x: Tensor) -> Tensor:
        """Action values ``[T, B, n]`` of ``[T, B, F]``."""
        x = self.enter(x).relu()
        x = self.middle(x)[0] if self.recurrent else self.middle(x).relu()
        return self.head(x)


class Mixer(nn.Module):
    """The monotone network of QMIX."""

    def __init__(self, state: int, agents: int, embed: int = 32, hidden: int = 64) -> None:
        super().__init__()
        self.agents, self.embed = agents, embed
        self.w1 = nn.Sequential(nn.Linear(state, hidden), nn.ReLU(), nn.Linear(hidden, agents * embed))
        self.w2 = nn.Sequential(nn.Linear(state, hidden), nn.ReLU(), nn.Linear(hidden, embed))
        self.b1 = nn.Linear(state, embed)
        self.v = nn.Sequential(nn.Linear(state, embed), nn.ReLU(), nn.Linear(embed, 1))

    def forward(self, q: Tensor, states: Tensor) -> Tensor:
        """The team's values ``[T, B, 1]`` of ``[T, B, A]`` and ``[T, B, S]``."""
        length = q.shape[0]
        q, states = q.reshape(-1, 1, self.agents), states.flatten(0, 1)
        w1 = self.w1(states).abs().view(-1, self.agents, self.embed)
        hidden = elu(torch.bmm(q, w1) + self.b1(states).unsqueeze(1))
        mixed = torch.bmm(hidden, self.w2(states).abs().unsqueeze(-1)) + self.v(states).unsqueeze(1)
        return mixed.view(length, -1, 1)


class Learner:
    """Networks, their targets and the optimizer.

    :param nets: one network for all agents, or one for each
    :param mixer: None for none
    :param individual: each agent learns for itself (IQL); else the values are summed up where there is no mixer
    """

    def __init__(self, nets: list[AgentNet], mixer: Mixer | None, settings: Settings, *, individual: bool) -> None:
        self.online = nn.ModuleList([*nets, *([] if mixer is None else [mixer])])
        self.target = copy.deepcopy(self.online)
        self.agents, self.mixes, self.individual = len(nets), mixer is not None, individual
        self.parameters = list(self.online.parameters())
        apart = individual and len(nets) > 1
        #: what has a loss, and a gradient's norm, of its own
        self.parts = [list(net.parameters()) for net in nets] if apart else [self.parameters]
        self.optimizer = torch.optim.Adam(self.parameters, lr=settings.learning_rate, fused=True)
        self.settings, self.updates = settings, 0

    def q_values(self, nets: nn.ModuleList, observations: Tensor) -> Tensor:
        """Of every agent, ``[T, B, A, n]``."""
        if self.agents == 1:
            return nets[0](observations.flatten(1, 2)).unflatten(1, observations.shape[1:3])
        columns = zip(nets, observations.unbind(2), strict=False)  # the mixer comes behind them
        return torch.stack([net(column) for net, column in columns], dim=2)

    def mixed(self, nets: nn.ModuleList, q: Tensor, states: Tensor) -> Tensor:
        """What is learned: values ``[T, B, 1]``, or those of each agent."""
        if self.mixes:
            return nets[-1](q, states)
        return q if self.individual else q.sum(dim=-1, keepdim=True)


def update(learner: Learner, batch: Episodes) -> Tensor:
    """One step; the loss."""
    settings = learner.settings
    single = len(batch.actions) == 1  # nothing has to be remembered from step to step
    observations, states = batch.observations, batch.states
    q = learner.q_values(learner.online, observations[:1] if single else observations)
    with torch.no_grad():
        choosing = learner.q_values(learner.online, observations[1:]) if single else q[1:]
        judging = learner.q_values(learner.target, observations[1:] if single else observations)
        judging = judging if single else judging[1:]
        following = judging.gather(-1, choosing.argmax(dim=-1, keepdim=True)).squeeze(-1)
        following = learner.mixed(learner.target, following, states[1:])
        targets = batch.rewards + settings.discount * (1.0 - batch.terminated) * following
    chosen = q[: len(batch.actions)].gather(-1, batch.actions).squeeze(-1)
    errors = (learner.mixed(learner.online, chosen, states[:-1]) - targets) * batch.taken
    loss = errors.square().sum() / (batch.taken.sum() * (errors.shape[-1] // len(learner.parts)))
    learner.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    for part in learner.parts:
        nn.utils.clip_grad_norm_(part, settings.grad_norm_clip, foreach=True)
    learner.optimizer.step()
    learner.updates += 1
    if learner.updates % settings.target_interval == 0:
        learner.target.load_state_dict(learner.online.state_dict())
    return loss.detach()


def build(
    algorithm: str = "qmix",
    *,
    recurrent: bool = True,
    shared: bool = True,
    agents: int = 3,
    obs: int = 18,
    state: int = 54,
    n_actions: int = 5,
    hidden: int = 64,
    settings: Settings | None = None,
) -> Learner:
    """A learner of an algorithm: ``"qmix"``, ``"vdn"`` or ``"iql"``."""
    nets = [AgentNet(obs, n_actions, hidden, recurrent=recurrent) for _ in range(1 if shared else agents)]
    mixer = Mixer(state, agents) if algorithm == "qmix" else None
    return Learner(nets, mixer, settings or Settings(), individual=algorithm == "iql")


def random_episodes(
    *,
    count: int,
    steps: int = 25,
    shortest: int | None = None,
    agents: int = 3,
    obs: int = 18,
    state: int = 54,
    n_actions: int = 5,
    individual: bool = False,
    seed: int = 0,
) -> Episodes:
    """Random data of the right shapes: episodes of ``shortest`` to ``steps`` steps, one in ten terminated."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(shortest or steps, steps + 1, (count,), generator=g)
    every = torch.arange(steps).view(-1, 1)
    terminated = (every == lengths - 1) & (torch.rand(count, generator=g) < 0.1)
    return Episodes(
        observations=torch.randn(steps + 1, count, agents, obs, generator=g),
        states=torch.randn(steps + 1, count, state, generator=g),
        actions=torch.randint(n_actions, (steps, count, agents, 1), generator=g),
        rewards=torch.randn(steps, count, agents if individual else 1, generator=g),
        terminated=terminated.unsqueeze(-1).float(),
        taken=(every < lengths).unsqueeze(-1).float(),
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Time the update."""
    torch.manual_seed(args.seed)
    learner = build(args.algorithm, shared=args.sharing == "shared", agents=args.agents, state=18 * args.agents)
    shapes = {"agents": args.agents, "state": 18 * args.agents, "individual": args.algorithm == "iql"}
    episodes = random_episodes(count=args.episodes, steps=args.steps, seed=args.seed, **shapes)
    seconds = []
    for repeat in range(args.warmup + args.repeats):
        start = time.perf_counter()
        loss = update(learner, episodes.draw(learner.settings.batch_size))
        if repeat >= args.warmup:
            seconds.append(time.perf_counter() - start)
    return {
        "name": f"plain {args.algorithm} update, {args.sharing} parameters",
        "seconds": round(statistics.median(seconds), 5),
        "seconds_min": round(min(seconds), 5),
        "seconds_max": round(max(seconds), 5),
        "loss": round(float(loss), 5),
        "settings": vars(args),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--algorithm", choices=("qmix", "vdn", "iql"), default="qmix")
    parser.add_argument("--sharing", choices=("shared", "distinct"), default="shared")
    parser.add_argument("--repeats", type=int, default=50, help="updates to measure")
    parser.add_argument("--warmup", type=int, default=5, help="updates before the clock starts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--episodes", type=int, default=1000)
    parser.add_argument("--agents", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(run(args)))


if __name__ == "__main__":
    main()
