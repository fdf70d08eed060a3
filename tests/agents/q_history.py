"""What happened, kept by the slow reference of the learners of action values: a list of rows for each environment.

Nothing here knows how the library stores a step. A row is a moment of one environment: what was seen, and, but for last
observations, what was done and what came of it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tests.agents.ppo_reference_time import ABSENT, ACTIVE, WAITING, Masks, Step

TERMINATED, TRUNCATED = "terminated", "truncated"


@dataclass
class QStep(Step):
    """A step of all environments, and what infos said about last states."""

    last: Masks = field(default_factory=Masks)


@dataclass
class Row:
    """A moment of one environment; mappings are by agent."""

    step: bool  # False: nothing was done, it only shows what the row before led to
    first: bool  # of an episode
    status: dict[str, str]
    seen: dict[str, Tensor]  # what an agent's network sees, [F]: also an absent one that was cut off just before
    shown: dict[str, Tensor]  # what others see of it: zeros where it is absent
    allowed: dict[str, list[bool] | None]  # None: everything is
    state: Tensor
    actions: dict[str, int] = field(default_factory=dict)
    rewards: dict[str, float] = field(default_factory=dict)
    ends: dict[str, str | None] = field(default_factory=dict)
    over: bool = False  # the episode, for everyone
    deserted: bool = False  # all that learn have died, in this row or before, and are not there in the next


class History:
    """All rows of all environments.

    :param learners: the agents that learn
    :param bootstraps: whether anything is made of last observations
    :param shapers: functions that change rewards, by agent
    """

    def __init__(
        self, environments: int, learners: Collection[str], bootstraps: bool, shapers: Mapping[str, Callable | None]
    ) -> None:
        self.rows: list[list[Row]] = [[] for _ in range(environments)]
        self._learners, self._bootstraps, self._shapers = list(learners), bootstraps, shapers
        self._fresh = [True] * environments
        self._struck: list[set[str]] = [set() for _ in range(environments)]  # while others went on
        self._dead: list[set[str]] = [set() for _ in range(environments)]

    def record(self, step: QStep) -> list[Row]:
        """Enter a step, and return the row of each environment."""
        added = []
        for e, rows in enumerate(self.rows):
            row = self._row(step, e)
            rows.append(row)
            added.append(row)
            self._bury(step, e, row)
            struck = {uid for uid in step.states if step.struck(uid, e)}
            self._struck[e] = set() if row.over else struck
            if row.over and self._bootstraps and struck & set(self._learners):
                rows.append(self._last(step, e))
            self._fresh[e] = row.over
        return added

    def _bury(self, step: QStep, e: int, row: Row) -> None:
        """Note who has died and does not come back at once."""
        died = {uid for uid in self._learners if row.ends[uid] == TERMINATED}
        back = {uid for uid in self._learners if step.next_masks.status(uid, e) != ABSENT}
        self._dead[e] = (self._dead[e] | died) - back
        row.deserted = self._dead[e] == set(self._learners)
        if row.over:
            self._dead[e] = set()

    def interrupt(self) -> None:
        """Episodes that were running are not taken up again."""
        for e, rows in enumerate(self.rows):
            if not self._fresh[e]:
                rows[-1].step = False
            self._fresh[e], self._struck[e], self._dead[e] = True, set(), set()

    def _row(self, step: QStep, e: int) -> Row:
        names = list(step.states)
        status = {uid: step.masks.status(uid, e) for uid in names}
        shown = {uid: step.masks.cleaned(step.states[uid], uid)[e] for uid in names}
        over = step.over(e)
        row = Row(
            True,
            self._fresh[e],
            status,
            {uid: step.states[uid][e].double() if uid in self._struck[e] else shown[uid] for uid in names},
            shown,
            {uid: _allowed(step.masks, uid, e) for uid in names},
            step.shared_states[e].double(),
            over=over,
        )
        for uid in names:
            row.actions[uid] = int(step.actions[uid][e])
            reward, shaper = step.rewards[uid].clone(), self._shapers[uid]
            if shaper is not None:
                reward = shaper(reward, step.timestep, step.timesteps)
            row.rewards[uid] = 0.0 if status[uid] == ABSENT else float(reward[e])
            if status[uid] == ABSENT:  # whatever it is said to have come to
                row.ends[uid] = TERMINATED if over else None
            elif bool(step.terminated[uid][e]):
                row.ends[uid] = TERMINATED
            else:
                row.ends[uid] = TRUNCATED if bool(step.truncated[uid][e]) else None
        return row

    def _last(self, step: QStep, e: int) -> Row:
        """What was seen at last of an episode that a time limit ended."""
        assert step.final_states is not None
        assert step.final_shared_states is not None
        status = {}
        for uid in step.states:
            there = ACTIVE if step.last.status(uid, e) == ACTIVE else WAITING
            status[uid] = there if step.struck(uid, e) else ABSENT
        seen = {
            uid: torch.zeros_like(x[e]).double() if status[uid] == ABSENT else x[e].double()
            for uid, x in step.final_states.items()
        }
        allowed = {uid: _allowed(step.last, uid, e) for uid in step.states}
        return Row(False, False, status, seen, seen, allowed, step.final_shared_states[e].double())

    # ---- the memory's rows ---------------------------------------------------------------------------------------------

    def number(self, e: int, place: int, size: int) -> int:
        """Which of an environment's rows a ring of ``size`` rows holds at a place: the newest that came there."""
        newest = len(self.rows[e]) - 1
        return newest - (newest - place) % size

    def oldest(self, e: int, size: int) -> int:
        """The oldest row that a ring holds."""
        return max(len(self.rows[e]) - size, 0)

    def stretches(self, size: int, ahead: int, behind: int) -> list[tuple[int, int]]:
        """Environment and number of each step with so many rows ahead of it and behind it in the ring."""
        return [
            (e, n)
            for e, rows in enumerate(self.rows)
            for n in range(self.oldest(e, size) + ahead, len(rows) - behind)
            if rows[n].step
        ]

    def episode(self, e: int, n: int) -> int:
        """The number of steps of the episode that starts in a row."""
        rows, k = self.rows[e], n
        while k < len(rows) and rows[k].step and (k == n or not rows[k].first):
            k += 1
        return k - n

    def episodes(self, size: int) -> list[tuple[int, int]]:
        """Environment and first row of each episode that is complete, and in the ring as a whole."""
        found = []
        for e, rows in enumerate(self.rows):
            for n in range(self.oldest(e, size), len(rows)):
                if rows[n].first and rows[n].step:
                    behind = n + self.episode(e, n)
                    if behind < len(rows) or self._fresh[e]:
                        found.append((e, n))
        return found


def _allowed(masks: Masks, uid: str, e: int) -> list[bool] | None:
    """What is allowed; who does not act may do everything."""
    choices = masks.choices(uid)
    return None if choices is None or masks.status(uid, e) != ACTIVE else [bool(x) for x in choices[e]]


# ---- what was done in a stretch of rows, and what it led to ------------------------------------------------------------


@dataclass
class Deed:
    """Something that was done, by an agent or by a team."""

    row: int
    reward: float = 0.0  # all that was earned up to what it led to
    leads_to: int | None = None  # the row whose value stands for all that comes later; None for nothing
    goes_on: bool = False  # whether another deed of the same episode follows, in the row that it leads to


def deeds(
    rows: Sequence[Row],
    steps: int,
    acts: Callable[[Row], bool],
    earns: Callable[[Row], float],
    ends: Callable[[Row], str | None],
) -> list[Deed]:
    """What was done in the first ``steps`` rows, in order of time; without what the rows don't show the outcome of.

    :param rows: one more than ``steps``, or as many where the last of them is a termination
    :param acts: whether something was done in a row that is a step
    :param earns: the reward in a row
    :param ends: whether the game ends with a row: TERMINATED, TRUNCATED (what follows has a value) or None
    """
    done: list[Deed] = []
    pending: Deed | None = None
    for k, row in enumerate(rows[:steps]):
        if not row.step:
            if pending is not None:  # nothing more was recorded: the last thing seen stands for it
                pending.leads_to = k
                done.append(pending)
            pending = None
            continue
        if acts(row):
            if pending is not None:
                pending.leads_to, pending.goes_on = k, True
                done.append(pending)
            pending = Deed(k)
        if pending is None:
            continue
        pending.reward += earns(row)
        end = ends(row)
        if end is not None:
            pending.leads_to = k + 1 if end == TRUNCATED else None
            done.append(pending)
            pending = None
    if pending is not None and (acts(rows[steps]) or not rows[steps].step):
        pending.leads_to = steps
        done.append(pending)
        return done
    if pending is not None and done:
        done[-1].goes_on = False  # where it led to is known, but not what came of the next one
    return done


def n_step_target(done: Sequence[Deed], values: Mapping[int, float], i: int, n: int, discount: float) -> float:
    """``r_i + g r_{i+1} + .. + g^n V``, of as many deeds up to n as there are in a row."""
    total, factor = 0.0, 1.0
    for deed in done[i : i + n]:
        total += factor * deed.reward
        factor *= discount
        last = deed
        if not deed.goes_on:
            break
    return total + (0.0 if last.leads_to is None else factor * values[last.leads_to])


def lambda_target(done: Sequence[Deed], values: Mapping[int, float], i: int, decay: float, discount: float) -> float:
    """The mean of all n-step targets, those of n steps weighted by ``(1 - lambda) lambda^(n - 1)``, the last by the rest."""
    longest = 1
    while done[i + longest - 1].goes_on:
        longest += 1
    total = 0.0
    for n in range(1, longest):
        total += (1 - decay) * decay ** (n - 1) * n_step_target(done, values, i, n, discount)
    return total + decay ** (longest - 1) * n_step_target(done, values, i, longest, discount)
