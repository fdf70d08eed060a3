"""Made-up lives: who acts, waits or is absent when, which episodes end how, and what agents may do."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import gymnasium
import torch
from gymnasium import spaces
from torch import Tensor

from tests.agents.ppo_reference_time import ABSENT, ACTIVE, WAITING

#: by kind, (step, environment) of the episodes that end in a rollout
Endings = Mapping[str, Sequence[tuple[int, int]]]

#: what happens to an environment whose episode does not end
GOING_ON = (None, "first", "cut", "parted")

#: styles of lives in which agents are absent
LIVES = ("lives", "leaves")


@dataclass
class Plan:
    """What happens to whom, for all steps and the state after the last: lists by step and environment."""

    status: dict[str, list[list[str]]]
    terminated: dict[str, list[list[bool]]]
    truncated: dict[str, list[list[bool]]]

    def mask(self, status: str, uid: str, k: int) -> Tensor:
        """Bool ``[E, 1]``."""
        return torch.tensor([[s == status] for s in self.status[uid][k]])

    def gone(self, uid: str, k: int) -> Tensor:
        """Where an agent is absent, and was not cut off just before: then it is shown once more. Bool ``[E, 1]``."""
        absent = self.mask(ABSENT, uid, k)
        if k == 0:
            return absent
        cut = torch.tensor(self.truncated[uid][k - 1]).unsqueeze(-1)
        return absent & ~(cut & ~self.mask(ABSENT, uid, k - 1) & ~self.over(k - 1))

    def over(self, k: int) -> Tensor:
        """Where all agents are done, bool ``[E, 1]``."""
        done = [torch.tensor(self.terminated[uid][k]) | torch.tensor(self.truncated[uid][k]) for uid in self.status]
        return torch.stack(done).all(0).unsqueeze(-1)


def make_plan(
    names: Sequence[str], environments: int, T: int, endings: Sequence[Endings], style: str, seed: int
) -> Plan:
    """Make up lives.

    Flags of absent agents are drawn at random, but that all are done where an episode ends. An agent that is absent then
    was done before, or did nothing in that episode, but for lives of the style "leaves".

    :param endings: of each rollout: for all agents by "terminated", "truncated" or "both", or for every other agent by
        either ("mixed"), or for every other agent alone by either ("first" and "cut"), while the others go on, or for the
        first agent by the second and for the second by the first, while the others go on ("parted")
    :param style: "present": all act always. "lives": agents arrive late, miss steps, wait, and die. "turns": one acts, the
        others wait. "waits": agents act or wait at random, and all are there. "leaves": lives in which an agent may also be
        absent when an episode ends that it acted in, without ever having been done
    """
    draw = random.Random(seed)
    steps = len(endings) * T
    plan = Plan(*({uid: [[] for _ in range(steps + 1)] for uid in names} for _ in range(3)))  # type: ignore[arg-type]
    ends = {(u * T + t, e): kind for u, each in enumerate(endings) for kind, where in each.items() for t, e in where}
    for e in range(environments):
        fresh, age = True, 0
        dead: set[str] = set()
        acted: set[str] = set()
        arrival: dict[str, int] = {}
        for k in range(steps + 1):
            if fresh:
                fresh, age = False, draw.randrange(len(names)) if style == "turns" else 0
                dead, acted = set(), set()
                arrival = {uid: draw.choice([0, 0, 0, 0, 1, 2]) if style in LIVES else 0 for uid in names}
            kind = ends.get((k, e))
            status = _status(names, style, age, dead, arrival, draw)
            if kind not in GOING_ON and style != "leaves":
                for uid in names:
                    if status[uid] == ABSENT and uid in acted - dead:
                        status[uid] = WAITING
            age += 1
            acted |= {uid for uid in names if status[uid] == ACTIVE}
            for uid in names:
                plan.status[uid][k].append(status[uid])
            if k == steps:
                break
            here = [uid for uid in names if status[uid] != ABSENT]
            for i, uid in enumerate(names):
                even = i % 2 == 0
                terminated = kind in ("terminated", "both") or (kind in ("mixed", "first") and even)
                truncated = kind in ("truncated", "both") or (kind == "mixed" and not even) or (kind == "cut" and even)
                if kind == "parted":
                    truncated, terminated = i == 0, i == 1
                if uid not in here and kind in GOING_ON:
                    terminated, truncated = draw.random() < 0.4, draw.random() < 0.4
                plan.terminated[uid][k].append(terminated)
                plan.truncated[uid][k].append(truncated)
            if kind is None and style in LIVES and len(here) > 1 and draw.random() < 0.25:
                dies = draw.choice(here)
                plan.terminated[dies][k][e] = True
                dead.add(dies)
            if kind in GOING_ON and bool(plan.over(k)[e]):  # somebody is yet to come
                late = next(uid for uid in names if uid not in here)
                plan.terminated[late][k][e] = plan.truncated[late][k][e] = False
            fresh = kind not in GOING_ON
    return plan


def _status(
    names: Sequence[str], style: str, age: int, dead: set[str], arrival: Mapping[str, int], draw: random.Random
) -> dict[str, str]:
    if style == "present":
        return dict.fromkeys(names, ACTIVE)
    if style == "turns":
        return {uid: ACTIVE if i == age % len(names) else WAITING for i, uid in enumerate(names)}
    if style == "waits":
        return {uid: draw.choice([ACTIVE, ACTIVE, WAITING]) for uid in names}
    alive = [uid for uid in names if uid not in dead]
    status = dict.fromkeys(names, ABSENT)
    for uid in alive:
        if arrival[uid] <= age:
            status[uid] = draw.choices([ACTIVE, WAITING, ABSENT], [6, 2, 2])[0]
    if all(s == ABSENT for s in status.values()):
        status[draw.choice(alive)] = ACTIVE
    return status


def choices(space: gymnasium.Space, present: Tensor, generator: torch.Generator) -> Tensor | None:
    """What an agent may do, bool ``[E, n]``: something in each dimension where it is present. None without choices."""
    if isinstance(space, spaces.Discrete):
        sizes = [int(space.n)]
    elif isinstance(space, spaces.MultiDiscrete):
        sizes = [int(n) for n in space.nvec]
    else:
        return None
    parts = []
    for n in sizes:
        allowed = torch.rand(len(present), n, generator=generator) < 0.6
        one = torch.randint(n, (len(present), 1), generator=generator)
        parts.append(torch.where(present, allowed.scatter(1, one, True), allowed & (allowed.sum(1, keepdim=True) > 1)))
    return torch.cat(parts, dim=-1)
