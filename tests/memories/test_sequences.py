"""Drawing of sequences through skrl's calls: ``sample`` and ``sample_all``."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from coterie.memories import Memory, RandomMemory, ReplayMemory


def numbered(kind: Any, size: int = 4, envs: int = 2, rows: int = 4, **kwargs: Any) -> Any:
    """The step t of environment e holds ``10 t + e``."""
    memory = kind(size, envs, **kwargs)
    memory.create_tensor("x", 1)
    for t in range(rows):
        memory.add_samples(x=10.0 * t + torch.arange(envs).view(-1, 1))
    return memory


def sequences(parts: list[list[torch.Tensor]], length: int) -> set[tuple[float, ...]]:
    return {tuple(s) for (x,) in parts for s in x.view(-1, length).tolist()}


@pytest.mark.parametrize("kind", [RandomMemory, ReplayMemory])
@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (3, {(0, 10), (10, 20), (1, 11), (11, 21)}),
        # 40 and 50 took the places of 0 and 10: nothing runs from 50 to 20
        (6, {(20, 30), (30, 40), (40, 50), (21, 31), (31, 41), (41, 51)}),
    ],
)
def test_sequences_follow_time(kind: Any, rows: int, expected: set[tuple[float, ...]]) -> None:
    memory = numbered(kind, rows=rows)
    parts = memory.sample(["x"], 200, mini_batches=3, sequence_length=2)
    assert [len(x) for (x,) in parts] == [134, 134, 132]
    assert sequences(parts, 2) == expected


@pytest.mark.parametrize("kind", [RandomMemory, ReplayMemory])
def test_the_longest_sequence_is_the_whole_memory(kind: Any) -> None:
    memory = numbered(kind, rows=5)
    assert sequences(memory.sample(["x"], 30, sequence_length=4), 4) == {(10, 20, 30, 40), (11, 21, 31, 41)}
    with pytest.raises(ValueError, match="cannot draw 1 sequences of 5 rows"):
        memory.sample(["x"], 1, sequence_length=5)
    with pytest.raises(ValueError, match="sequence_length: expected"):
        memory.sample(["x"], 1, sequence_length=0)


def test_without_replacement_no_sequence_comes_twice() -> None:
    memory = numbered(RandomMemory, rows=6, replacement=False)
    assert len(sequences(memory.sample(["x"], 6, sequence_length=2), 2)) == 6
    with pytest.raises(ValueError, match="cannot draw 7 sequences of 2 rows from a memory that holds 6"):
        memory.sample(["x"], 7, sequence_length=2)


def test_every_row_is_in_one_sequence() -> None:
    memory = numbered(Memory, size=6, rows=8)
    parts = memory.sample_all(["x"], mini_batches=2, sequence_length=3)
    assert [len(x) for (x,) in parts] == [6, 6]
    assert sequences(parts, 3) == {(20, 30, 40), (50, 60, 70), (21, 31, 41), (51, 61, 71)}
    orders = {tuple(memory.sample_all(["x"], sequence_length=2)[0][0].flatten().tolist()) for _ in range(5)}
    assert len(orders) > 1, "shuffled"
    for length in (4, 0):
        with pytest.raises(ValueError, match="expected a divisor of the 6 rows"):
            memory.sample_all(["x"], sequence_length=length)


def test_an_exposed_memory_draws_sequences_from_where_its_group_has_got_to() -> None:
    group = numbered(Memory, rows=6)
    mine = RandomMemory(4, 2)
    mine.expose(group, {"x": group.get_tensor_by_name("x")})
    assert sequences(mine.sample(["x"], 60, sequence_length=4), 4) == {(20, 30, 40, 50), (21, 31, 41, 51)}
    assert sequences(mine.sample_all(["x"], sequence_length=2), 2) == {(20, 30), (40, 50), (21, 31), (41, 51)}


def uneven() -> ReplayMemory:
    memory = numbered(ReplayMemory, size=5, rows=2, seed=0)
    memory.add_last(torch.tensor([1]), x=torch.tensor([[99.0]]))
    for t in (2, 3):
        memory.add_samples(x=10.0 * t + torch.arange(2).view(-1, 1))
    return memory  # 0 10 20 30 and 1 11 99 21 31


def test_sequences_start_with_steps() -> None:
    memory = uneven()
    drawn = sequences(memory.sample(["x"], 300, sequence_length=3), 3)
    assert drawn == {(0, 10, 20), (10, 20, 30), (1, 11, 99), (11, 99, 21)}


def test_each_step_of_a_replay_memory_once() -> None:
    memory = uneven()
    parts = memory.sample_all(["x"], mini_batches=2)
    assert [len(x) for (x,) in parts] == [4, 4]
    assert sequences(parts, 1) == {(n,) for n in (0, 10, 20, 30, 1, 11, 21, 31)}
    memory.add_samples(x=torch.tensor([[40.0], [41.0]]))
    memory.add_samples(x=torch.tensor([[50.0], [51.0]]))
    assert sequences(memory.sample_all(["x"]), 1) == {(n,) for n in (10, 20, 30, 40, 50, 21, 31, 41, 51)}


def test_the_newest_rows_that_fill_no_sequence_are_left_out() -> None:
    memory = uneven()
    assert sequences(memory.sample_all(["x"], sequence_length=2), 2) == {(0, 10), (20, 30), (1, 11), (99, 21)}
    memory.add_samples(x=torch.tensor([[40.0], [41.0]]))
    # the second column has lost its oldest row: 11 99 21 31 41
    assert sequences(memory.sample_all(["x"], sequence_length=4), 4) == {(0, 10, 20, 30), (11, 99, 21, 31)}
