"""Random histories, against a plain list of all rows ever written: what may be drawn, and what a drawn window holds."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.memories import EpisodeMemory, PrioritizedMemory, ReplayMemory, Window


@dataclass
class Row:
    number: int  # its content, unlike that of any other row
    step: bool
    start: bool
    only_steps: int  # a tensor that last observations don't name: 0 there


@dataclass
class History:
    """Every row of every environment since the beginning; the ring has the last ``size`` of each."""

    size: int
    columns: list[list[Row]]
    fresh: list[bool] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=lambda: iter(range(1, 10**6)))

    @classmethod
    def of(cls, size: int, envs: int) -> History:
        return cls(size, [[] for _ in range(envs)], [True] * envs)

    def oldest(self, env: int) -> int:
        return max(0, len(self.columns[env]) - self.size)

    def add(self) -> list[int]:
        for env, column in enumerate(self.columns):
            number = next(self.numbers)
            column.append(Row(number, True, self.fresh[env], number))
        self.fresh = [False] * len(self.columns)
        return [column[-1].number for column in self.columns]

    def add_last(self, envs: list[int]) -> list[int]:
        for env in envs:
            self.columns[env].append(Row(next(self.numbers), False, False, 0))
            self.fresh[env] = True
        return [self.columns[env][-1].number for env in envs]

    def end(self, envs: list[int]) -> None:
        for env in envs:
            self.fresh[env] = True

    def interrupt(self) -> None:
        for env, column in enumerate(self.columns):
            if not self.fresh[env]:
                column[-1].step = False
                self.fresh[env] = True

    def eligible(self, length: int, burn_in: int) -> set[tuple[int, int]]:
        """(environment, row) of steps with so many rows around them."""
        found = set()
        for env, column in enumerate(self.columns):
            for n in range(self.oldest(env) + burn_in, len(column) - length):
                if column[n].step:
                    found.add((env, n))
        return found

    def episodes(self) -> dict[int, list[Row]]:
        """Complete episodes that are whole, by the number of their first row."""
        found = {}
        for env, column in enumerate(self.columns):
            starts = [n for n, row in enumerate(column) if row.start]
            ends = [*starts[1:], *([len(column)] if self.fresh[env] else [])]
            for start, end in zip(starts, ends, strict=False):
                rows = column[start:end]
                if start >= self.oldest(env) and any(row.step for row in rows):
                    found[rows[0].number] = rows
        return found

    def find(self, number: int) -> tuple[int, int]:
        ((env, n),) = [
            (env, n) for env, column in enumerate(self.columns) for n, row in enumerate(column) if row.number == number
        ]
        return env, n


KINDS = (ReplayMemory, PrioritizedMemory, EpisodeMemory)


def make(kind: type[ReplayMemory], history: History) -> Any:
    memory = kind(history.size, len(history.columns), seed=1)
    memory.create_tensor("x", 1)
    memory.create_tensor("only_steps", (), torch.int64)
    return memory


def check_rows(memory: ReplayMemory, window: Window, history: History) -> list[list[Row | None]]:
    """Compare what a window shows with the history; give its rows by stretch, None for padding."""
    x = memory.gather("x", window).squeeze(-1).long()
    only_steps = memory.gather("only_steps", window)
    stretches = []
    for b in range(x.shape[1]):
        env, first = history.find(int(x[0, b]))
        assert env == int(window.envs[b])
        rows: list[Row | None] = []
        for r in range(x.shape[0]):
            if window.real[r, b]:
                row = history.columns[env][first + r]  # there is no row behind the newest: an error here is a finding
                assert first + r >= history.oldest(env)
                flags = (bool(window.steps[r, b]), bool(window.starts[r, b]))
                assert (int(x[r, b]), *flags) == (row.number, row.step, row.start)
                assert int(only_steps[r, b]) == row.only_steps
                rows.append(row)
            else:
                assert not window.steps[r, b]
                assert not window.starts[r, b]
                assert x[r, b] == x[r - 1, b], "padding repeats the last row"
                rows.append(None)
        stretches.append(rows)
    return stretches


def check_windows(memory: ReplayMemory, history: History, length: int, burn_in: int) -> None:
    eligible = history.eligible(length, burn_in)
    assert memory.ready(len(eligible), length, burn_in)
    assert not memory.ready(len(eligible) + 1, length, burn_in)
    if not eligible:
        with pytest.raises(ValueError, match=r"never fits a memory|there is no window"):
            memory.windows(1, length, burn_in)
        return
    window = memory.windows(12, length, burn_in)
    assert window.rows.shape == (burn_in + length + 1, 12)
    assert window.learn_from == burn_in
    assert bool(window.real.all())
    for rows in check_rows(memory, window, history):
        learned = rows[burn_in]
        assert learned is not None
        assert history.find(learned.number) in eligible


def check_priorities(memory: PrioritizedMemory, history: History, length: int, burn_in: int) -> None:
    """The tree has the rows that may be drawn, and no other."""
    check_windows(memory, history, length, burn_in)
    if eligible := history.eligible(length, burn_in):
        weights = memory._priorities.tree.weights.view(history.size, -1)
        held = {(int(e), int(t)) for t, e in weights.nonzero()}
        assert held == {(env, n % history.size) for env, n in eligible}
        torch.testing.assert_close(memory._priorities.tree.total, weights.sum())


def check_episodes(memory: EpisodeMemory, history: History) -> None:
    episodes = history.episodes()
    assert memory.episodes == len(episodes)
    assert memory.ready(len(episodes))
    assert not memory.ready(len(episodes) + 1)
    with pytest.raises(ValueError, match="cannot draw"):
        memory.windows(len(episodes) + 1)
    if not episodes:
        return
    window = memory.windows(len(episodes))  # all of them
    assert window.rows.shape[0] == 1 + max(sum(row.step for row in rows) for rows in episodes.values())
    drawn = {}
    for rows in check_rows(memory, window, history):
        real = [row for row in rows if row is not None]
        drawn[real[0].number] = real
    assert drawn == episodes


# of one step: which environments' episodes are cut off, and which end in any other way
STEP = st.tuples(st.just("add"), st.integers(0, 7), st.integers(0, 7))
OTHER = st.tuples(st.sampled_from(["interrupt", "check", "check", "reload"]), st.just(0), st.just(0))
OPERATIONS = st.lists(STEP | STEP | STEP | OTHER, max_size=40)


@settings(max_examples=250, deadline=None, derandomize=True)
@given(
    size=st.integers(1, 7),
    envs=st.integers(1, 3),
    operations=OPERATIONS,
    length=st.integers(1, 3),
    burn_in=st.integers(0, 2),
    rare=st.booleans(),
)
def test_what_is_drawn_is_what_happened(
    size: int, envs: int, operations: list[tuple[str, int, int]], length: int, burn_in: int, rare: bool
) -> None:
    history = History.of(size, envs)
    memories = [make(kind, history) for kind in KINDS]
    for what, cut, over in [*operations, ("check", 0, 0)]:
        if what == "add":
            numbers = torch.tensor(history.add())
            for memory in memories:
                memory.add_samples(x=numbers.view(-1, 1).float(), only_steps=numbers)
            cut_off = [env for env in range(envs) if cut >> env & 1 and (not rare or over & 1)]
            last = torch.tensor(history.add_last(cut_off)).view(-1, 1).float()
            ended = [env for env in range(envs) if over >> env & 1 and not rare]
            history.end(ended)
            for memory in memories:
                memory.add_last(torch.tensor(cut_off, dtype=torch.int64), x=last)
                memory.end_episodes(torch.tensor([env in ended for env in range(envs)]))
        elif what == "interrupt":
            history.interrupt()
            for memory in memories:
                memory.interrupt()
        elif what == "reload":
            memories = [reloaded(memory, history) for memory in memories]
        else:
            replay, prioritized, episodes = memories
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="an episode takes more than")
                check_episodes(episodes, history)
            for ahead in {burn_in, 0}:
                check_windows(replay, history, length, ahead)
                check_priorities(prioritized, history, length, ahead)
            steps = sum(row.step for column in history.columns for row in column[-size:])
            assert [len(memory) for memory in memories] == [steps] * 3


def reloaded(memory: Any, history: History) -> Any:
    memory.save("memory.pt")
    other = make(type(memory), history)
    other.load("memory.pt")
    return other


# ---- drawing is uniform ---------------------------------------------------------------------------------------------


def uneven(kind: type[ReplayMemory], size: int = 12) -> tuple[Any, History]:
    """Three environments: one of long episodes without ends, one often cut off, one that terminates."""
    history = History.of(size, 3)
    memory = make(kind, history)
    for t in range(31):
        numbers = torch.tensor(history.add())
        memory.add_samples(x=numbers.view(-1, 1).float(), only_steps=numbers)
        cut = ([1] if t % 3 == 2 else []) + ([0] if t == 24 else [])
        memory.add_last(torch.tensor(cut, dtype=torch.int64), x=torch.tensor(history.add_last(cut)).view(-1, 1).float())
        history.end([2] if t % 4 == 0 else [])
        memory.end_episodes(torch.tensor([False, False, t % 4 == 0]))
    return memory, history


def chi_square(numbers: torch.Tensor, expected: int) -> float:
    """By how many standard deviations counts differ from those of a uniform draw over ``expected`` values."""
    counts = torch.unique(numbers, return_counts=True)[1].double()
    assert len(counts) == expected, "everything that may be drawn is drawn, and nothing else"
    mean = len(numbers) / expected
    statistic = float(((counts - mean) ** 2 / mean).sum())
    return (statistic - (expected - 1)) / (2 * (expected - 1)) ** 0.5


@pytest.mark.parametrize(("length", "burn_in"), [(1, 0), (3, 0), (2, 3)])
def test_windows_are_drawn_uniformly(length: int, burn_in: int) -> None:
    memory, history = uneven(ReplayMemory)
    window = memory.windows(60_000, length, burn_in)
    first = memory.gather("x", window)[burn_in]
    assert abs(chi_square(first, len(history.eligible(length, burn_in)))) < 4


def test_equal_priorities_are_drawn_uniformly() -> None:
    memory, history = uneven(PrioritizedMemory)
    first = torch.cat([memory.gather("x", memory.windows(2))[0] for _ in range(2000)])
    # half of the draws fall into each half of the sum, so counts vary less than those of independent draws
    assert chi_square(first, len(history.eligible(1, 0))) < 4


def test_episodes_are_drawn_uniformly() -> None:
    memory, history = uneven(EpisodeMemory)
    numbers = [memory.gather("x", memory.windows(1))[0] for _ in range(3000)]
    assert abs(chi_square(torch.cat(numbers), len(history.episodes()))) < 4
    # any two of them, too
    pairs = [memory.gather("x", memory.windows(2))[0].flatten().sort().values for _ in range(3000)]
    count = len(history.episodes())
    assert abs(chi_square(torch.stack([low * 1000 + high for low, high in pairs]), count * (count - 1) // 2)) < 4


@pytest.mark.parametrize("kind", KINDS)
def test_single_steps_are_drawn_uniformly(kind: type[ReplayMemory]) -> None:
    memory, history = uneven(kind)
    (x,) = memory.sample(["x"], 60_000)[0]
    assert abs(chi_square(x, len(history.eligible(0, 0)))) < 4
