"""The cost of one QMIX, VDN or IQL update against a hand-written one, and that of a step of acting and recording.

An update draws 32 episodes of 25 steps (or 256 steps) of 3 agents and learns from them, on one thread. The yardstick
(``peers/plain_qmix_update.py``) is flat eager PyTorch with ``nn.GRU`` and fused Adam; with distinct parameters it loops over
agents. First the numbers of both are compared: weights after some updates from equal weights and batches.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "peers")]

import plain_qmix_update as plain
from learner import interleaved, void
from random_team import RandomTeam

from coterie.agent_tensors import AgentTensors
from coterie.agents.recording import RecordingAgent
from coterie.agents.replay_storage import Drawn
from coterie.agents.value_learning import ValueLearner
from coterie.memories import EpisodeMemory, ReplayMemory

STEPS, ENVS = 25, 32

#: episodes of each environment that are kept
EPISODES = 16

#: by how much a weight may differ after five steps of 5e-4
TOLERANCE = 2e-5

#: steps of acting and recording that are timed together
TIMED_STEPS = 50


@dataclass(frozen=True)
class Case:
    """What is measured."""

    name: str
    algorithm: str = "qmix"
    recurrent: bool = True
    episodes: bool = True
    shared: bool = True
    agents: int = 3

    def source(self, **options: Any) -> RandomTeam:
        """Random data of the right shapes."""
        return RandomTeam(self.agents, ENVS, state=18 * self.agents, **options)

    def team(self, source: RandomTeam) -> ValueLearner:
        """The library's learner."""
        return source.value_team(
            self.algorithm,
            EpisodeMemory if self.episodes else ReplayMemory,
            EPISODES * (STEPS + 1),
            shared=self.shared,
            hidden=(64,) if self.recurrent else (64, 64),
            rnn="gru" if self.recurrent else None,
            batch_size=32 if self.episodes else 256,
            exploration_epsilon=0.05,
        )

    def plain(self) -> plain.Learner:
        """The yardstick's."""
        settings = plain.Settings(batch_size=32 if self.episodes else 256)
        return plain.build(
            self.algorithm,
            recurrent=self.recurrent,
            shared=self.shared,
            agents=self.agents,
            state=18 * self.agents,
            settings=settings,
        )


CASES = (
    Case("QMIX, GRU, episodes"),
    Case("VDN, GRU, episodes", "vdn"),
    Case("IQL, GRU, episodes", "iql"),
    Case("QMIX, GRU, episodes, 8 agents", agents=8),
    Case("QMIX, GRU, episodes, distinct parameters", shared=False),
    Case("IQL, GRU, episodes, distinct parameters", "iql", shared=False),
    Case("QMIX, feed-forward, episodes", recurrent=False),
    Case("QMIX, feed-forward, 256 steps", recurrent=False, episodes=False),
    Case("IQL, feed-forward, 256 steps", "iql", recurrent=False, episodes=False),
)


# ---- updates ---------------------------------------------------------------------------------------------------------


def ours(case: Case) -> Callable[[], None]:
    """The library's update on a filled memory."""
    source = case.source()
    team = case.team(source)
    source.fill(team, EPISODES * STEPS)
    return lambda: team._update(0, 1)


def by_hand(case: Case) -> Callable[[], None]:
    """The yardstick's update on random data of the same shapes."""
    learner = case.plain()
    kept = plain.random_episodes(
        count=EPISODES * ENVS * (1 if case.episodes else STEPS),
        steps=STEPS if case.episodes else 1,
        agents=case.agents,
        state=18 * case.agents,
        individual=case.algorithm == "iql",
    )
    return lambda: void(plain.update(learner, kept.draw(learner.settings.batch_size)))


# ---- the same numbers --------------------------------------------------------------------------------------------------


def layers(module: nn.Module) -> list[nn.Module]:
    """Layers with parameters, in order."""
    return [part for part in module.modules() if next(part.parameters(recurse=False), None) is not None]


@torch.no_grad()
def copy_weights(team: ValueLearner, learner: plain.Learner) -> None:
    """Give the yardstick the weights of the library's networks."""
    leaders = team.possible_agents[: learner.agents]
    for uid, net in zip(leaders, learner.online, strict=False):
        for mine, theirs in zip(layers(team.models[uid]["q"]), layers(net), strict=True):
            for name, weight in theirs.named_parameters():
                weight.copy_(mine.get_parameter(name))
    if learner.mixes:
        copy_mixer(team.models[leaders[0]]["mixer"], learner.online[-1])
    learner.target.load_state_dict(learner.online.state_dict())


def copy_mixer(mine: nn.Module, theirs: nn.Module) -> None:
    """The library's mixer has the first layers of all its networks in one."""
    first = [theirs.w1[0], theirs.w2[0], theirs.v[0], theirs.b1]
    widths = [layer.out_features for layer in first]
    pairs = [(theirs.w1[2], mine.w1), (theirs.w2[2], mine.w2), (theirs.v[2], mine.v)]
    for name in ("weight", "bias"):
        for layer, part in zip(first, getattr(mine.first, name).split(widths), strict=True):
            getattr(layer, name).copy_(part)
        for layer, other in pairs:
            getattr(layer, name).copy_(getattr(other, name))


def as_drawn(drawn: Drawn, team: ValueLearner) -> plain.Episodes:
    """What the library has drawn, as the yardstick's batch."""

    def of_all(what: str) -> Tensor:
        return torch.cat([drawn.of(what, group) for group in team.groups], dim=2)

    rewards = of_all("rewards").squeeze(-1)[:-1]
    if team.cfg["reward"] != "individual":
        rewards = rewards.mean(dim=-1, keepdim=True)
    return plain.Episodes(
        of_all("states"),
        drawn.team("shared_states") if team.uses_shared_states else of_all("states")[..., 0, :],
        of_all("actions")[:-1],
        rewards,
        drawn.team("team_terminated")[:-1].flatten(2).float(),
        drawn.window.steps[:-1].unsqueeze(-1).float(),
    )


def difference(case: Case, updates: int) -> float:
    """Largest difference between a weight of the library's and the yardstick's, after updates with the same batches."""
    source = case.source()
    team, learner = case.team(source), case.plain()
    steps = EPISODES * STEPS
    ends = torch.rand(steps, ENVS) < 1.0 / 15
    ends[STEPS - 1 :: STEPS] = True  # at the latest
    source.fill(team, steps, ends, torch.rand(steps, ENVS) < 0.5)
    copy_weights(team, learner)
    storage = team._storage
    assert storage is not None
    draw = storage.draw
    for _ in range(updates):
        size = team._window_size(team.learners[0])
        drawn = draw(learner.settings.batch_size, *size)
        storage.draw = lambda *_, drawn=drawn: drawn  # type: ignore[method-assign]
        team._update(0, 1)
        plain.update(learner, as_drawn(drawn, team))
    mine = [parameter.detach().clone() for parameter in learner.parameters]
    copy_weights(team, learner)
    return max(float((a - b.detach()).abs().max()) for a, b in zip(mine, learner.parameters, strict=True))


# ---- acting and recording ------------------------------------------------------------------------------------------------


def stepping(team: RecordingAgent, source: RandomTeam, *, on_policy: bool) -> Callable[[], None]:
    """:data:`TIMED_STEPS` steps of acting and recording, of data made beforehand."""
    shape = source.num_envs, source.agents, 1
    single = partial(AgentTensors.single, source.possible_agents)
    moments = [(source.observations(), torch.randn(source.num_envs, source.state)) for _ in range(TIMED_STEPS + 1)]
    final = {"final_states": source.observations(), "final_shared_states": torch.randn(source.num_envs, source.state)}
    rewards, never, always = single(torch.randn(shape)), single(torch.zeros(shape) > 0), single(torch.zeros(shape) == 0)

    def run() -> None:
        if on_policy:
            team.init()  # an empty rollout
        for t in range(TIMED_STEPS):
            (states, shared), (following, shared_next) = moments[t], moments[t + 1]
            over = (t + 1) % source.episode == 0
            actions, _, _ = team.act(states, t, TIMED_STEPS)
            infos = {"shared_states": shared, "shared_next_states": shared_next, **(final if over else {})}
            team.record_transition(
                states, actions, rewards, following, never, always if over else never, infos, t, TIMED_STEPS
            )

    return run


def steps_of(envs: int) -> list[Callable[[], None]]:
    """MAPPO's steps, and QMIX's with two kinds of memories."""
    source = RandomTeam(3, envs)
    mappo = source.team("mappo", shared=True, hidden=64, rollouts=TIMED_STEPS, time_limit_bootstrap=True)
    replaying = [source.value_team("qmix", memory, 4 * TIMED_STEPS) for memory in (ReplayMemory, EpisodeMemory)]
    return [stepping(mappo, source, on_policy=True), *(stepping(team, source, on_policy=False) for team in replaying)]


# ---- command line ----------------------------------------------------------------------------------------------------------


def print_updates(repeats: int) -> None:
    """Updates of all cases."""
    print("| update | ours, ms | by hand, ms | ratio (quartiles) |")
    print("|---|---|---|---|")
    for case in CASES:
        a, b = interleaved([ours(case), by_hand(case)], repeats)
        ratios = [x / y for x, y in zip(a, b, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(
            f"| {case.name} | {1e3 * statistics.median(a):.2f} | {1e3 * statistics.median(b):.2f} "
            f"| **{middle:.2f}** ({low:.2f} .. {high:.2f}) |",
            flush=True,
        )


def print_steps(repeats: int) -> None:
    """Acting and recording, of several numbers of environments."""
    print("| one step: act and record | MAPPO, ms | QMIX, ReplayMemory, ms | ratio | QMIX, EpisodeMemory, ms | ratio |")
    print("|---|---|---|---|---|---|")
    for envs in (1, 8, 64):
        base, *others = interleaved(steps_of(envs), repeats)
        scale = 1e3 / TIMED_STEPS
        columns = [f"{scale * statistics.median(base):.3f}"]
        for seconds in others:
            ratio = statistics.median(x / y for x, y in zip(seconds, base, strict=True))
            columns += [f"{scale * statistics.median(seconds):.3f}", f"**{ratio:.2f}**"]
        print(f"| {envs} environments | {' | '.join(columns)} |", flush=True)


def print_check(updates: int) -> None:
    """Whether both compute the same.

    :raises SystemExit: they don't
    """
    print(f"| {updates} updates of equal batches | largest difference of a weight |")
    print("|---|---|")
    for case in CASES:
        found = difference(case, updates)
        print(f"| {case.name} | {found:.1e} |", flush=True)
        if not found < TOLERANCE:
            raise SystemExit(f"{case.name}: expected the same weights to {TOLERANCE}, got a difference of {found}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--quick", action="store_true", help="three repeats")
    parser.add_argument("--check", action="store_true", help="compare numbers only")
    args = parser.parse_args()
    repeats = 3 if args.quick else args.repeats
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print_check(5)
    if args.check:
        return
    print()
    print_updates(repeats)
    print()
    print_steps(repeats)


if __name__ == "__main__":
    main()
