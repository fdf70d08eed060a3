from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

from coterie.memories import EpisodeMemory


def empty(size: int = 10, envs: int = 1) -> EpisodeMemory:
    memory = EpisodeMemory(size, envs, seed=0)
    memory.create_tensor("x", 1)
    return memory


def add(
    memory: EpisodeMemory, *numbers: float, ended: list[int] | None = None, cut: dict[int, float] | None = None
) -> None:
    """A step; ``cut``: last observations by environment, ``ended``: environments whose episode is over."""
    memory.add_samples(x=torch.tensor(numbers).view(-1, 1))
    if cut:
        memory.add_last(torch.tensor(list(cut)), x=torch.tensor(list(cut.values())).view(-1, 1))
    memory.end_episodes(torch.tensor([env in (ended or []) for env in range(memory.num_envs)]))


def by_first(values: Tensor, first: Tensor) -> dict[float, list]:
    """Columns of ``[R, B]`` by the number in the first row of each stretch."""
    return dict(zip(first.tolist(), values.T.tolist(), strict=True))


def test_episodes_of_unequal_length_by_hand() -> None:
    memory = empty(envs=2)
    add(memory, 0, 100)
    add(memory, 1, 101, ended=[0])  # environment 0 terminates after 2 steps
    add(memory, 2, 102, cut={1: 103})  # environment 1 is cut off after 3
    add(memory, 3, 104, ended=[0, 1])  # 2 steps, and 1
    add(memory, 4, 105)  # running
    assert memory.episodes == 4
    assert len(memory) == 10
    window = memory.windows(4)
    x = memory.gather("x", window).squeeze(-1)
    assert x.shape == (4, 4), "three steps, and what came of the last"
    assert by_first(x, x[0]) == {
        0: [0, 1, 1, 1],  # padding repeats the last row
        2: [2, 3, 3, 3],
        100: [100, 101, 102, 103],
        104: [104, 104, 104, 104],
    }
    T, F = True, False
    assert by_first(window.real, x[0]) == {0: [T, T, F, F], 2: [T, T, F, F], 100: [T, T, T, T], 104: [T, F, F, F]}
    assert by_first(window.steps, x[0]) == {0: [T, T, F, F], 2: [T, T, F, F], 100: [T, T, T, F], 104: [T, F, F, F]}
    assert by_first(window.ends, x[0]) == {0: [F, T, F, F], 2: [F, T, F, F], 100: [F, F, T, F], 104: [T, F, F, F]}
    assert window.starts.tolist() == [[T] * 4, [F] * 4, [F] * 4, [F] * 4]
    assert by_first(window.envs.view(1, -1), x[0]) == {0: [0], 2: [0], 100: [1], 104: [1]}
    assert (window.weights, window.learn_from) == (None, 0)
    assert not bool(window.steps[-1].any())


def test_short_episodes_make_short_windows() -> None:
    memory = empty()
    for number in range(3):
        add(memory, number, ended=[0])
    assert memory.windows(2).rows.shape == (2, 2)


def test_length_and_burn_in_make_no_difference() -> None:
    memory = empty()
    add(memory, 0, ended=[0])
    assert memory.ready(1, 50, 3)
    window = memory.windows(1, length=50, burn_in=3)
    assert (window.rows.shape, window.learn_from) == ((2, 1), 0)


def test_an_episode_that_is_running_is_not_drawn() -> None:
    memory = empty()
    add(memory, 0)
    add(memory, 1)
    assert not memory.ready(1)
    with pytest.raises(ValueError, match=r"cannot draw 1 episodes: 0 are complete.*add more first"):
        memory.windows(1)
    memory.end_episodes(torch.tensor([True]))
    assert memory.ready(1), "the end counts as soon as it is told"
    assert not memory.ready(2)
    assert memory.windows(1).steps.flatten().tolist() == [True, True, False]


def test_an_episode_goes_with_its_first_row() -> None:
    memory = empty(size=5)
    for number in (0, 1, 2):
        add(memory, number, ended=[0] if number == 2 else [])
    add(memory, 3)
    add(memory, 4, ended=[0])
    assert memory.episodes == 2  # 0 1 2 | 3 4: the ring is full
    add(memory, 5)
    assert memory.episodes == 1
    x = memory.gather("x", memory.windows(1)).flatten().tolist()
    assert x == [3, 4, 4]
    add(memory, 6, ended=[0])
    add(memory, 7, ended=[0])
    add(memory, 8, ended=[0])
    # 5 6 over the ring's edge: rows 0 1; 3 was overwritten by 8
    assert memory.episodes == 3
    window = memory.windows(3)
    assert sorted(memory.gather("x", window)[0].flatten().tolist()) == [5, 7, 8]


def test_an_episode_over_the_rings_edge_is_whole() -> None:
    memory = empty(size=4)
    for number in range(3):
        add(memory, number, ended=[0])
    for number in (3, 4, 5):
        add(memory, number, cut={0: 6.0} if number == 5 else None)
    window = memory.windows(1)
    assert window.rows.flatten().tolist() == [3, 0, 1, 2]
    assert memory.gather("x", window).flatten().tolist() == [3, 4, 5, 6]
    assert window.steps.flatten().tolist() == [True, True, True, False]


def test_the_episodes_of_a_draw_are_different_ones() -> None:
    memory = empty(size=40, envs=2)
    for t in range(20):
        add(memory, 10.0 * t, 10.0 * t + 1, ended=[0, 1])
    for _ in range(30):
        first = memory.gather("x", memory.windows(30))[0].flatten()
        assert len(first.unique()) == 30
    with pytest.raises(ValueError, match="cannot draw 41 episodes: 40 are complete"):
        memory.windows(41)


def test_an_episode_longer_than_the_memory_is_told_once() -> None:
    memory = empty(size=3)
    for number in range(3):
        add(memory, number)
        assert not memory.ready(1)
    add(memory, 3)
    with pytest.warns(UserWarning, match="an episode takes more than the 3 rows of an EpisodeMemory"):
        assert not memory.ready(1)
    for number in range(8):
        add(memory, number)
        assert not memory.ready(1)  # another warning would be an error
    with pytest.raises(ValueError, match="episodes of more than 3 rows are never whole"):
        memory.windows(1)


def test_a_long_episode_nobody_looked_at_is_noticed_too() -> None:
    memory = empty(size=3)
    for number in range(9):
        add(memory, number)
    with pytest.warns(UserWarning, match="more than the 3 rows"):
        assert memory.episodes == 0


def test_an_episode_that_fills_the_memory_is_whole() -> None:
    memory = empty(size=3)
    for round_ in range(3):
        add(memory, 0)
        add(memory, 1, cut={0: 2})
        assert memory.episodes == 1, round_
    assert memory.gather("x", memory.windows(1)).flatten().tolist() == [0, 1, 2]


def test_short_episodes_that_nobody_looked_at_are_no_long_one() -> None:
    memory = empty(size=4)
    for number in range(11):
        add(memory, number, ended=[0] if number % 2 else [])
    # 7 | 8 9 | 10: rows from before were lost unread
    assert memory.episodes == 1
    assert memory.gather("x", memory.windows(1)).flatten().tolist() == [8, 9, 9]


def test_an_interrupted_episode_ends_with_its_newest_step_unlearned() -> None:
    memory = empty()
    for number in range(3):
        add(memory, number)
    memory.interrupt()
    window = memory.windows(1)
    assert memory.gather("x", window).flatten().tolist() == [0, 1, 2]
    assert window.steps.flatten().tolist() == [True, True, False]
    assert window.real.flatten().tolist() == [True, True, True]
    assert window.ends.flatten().tolist() == [False, True, False]


def test_an_episode_interrupted_at_its_first_step_is_none() -> None:
    memory = empty()
    add(memory, 0, ended=[0])
    add(memory, 1)
    memory.interrupt()
    add(memory, 2)
    add(memory, 3, ended=[0])
    window = memory.windows(2)
    x = memory.gather("x", window).squeeze(-1)
    assert by_first(x, x[0]) == {0: [0, 0, 0], 2: [2, 3, 3]}
    assert by_first(window.real, x[0]) == {0: [True, False, False], 2: [True, True, False]}
    with pytest.raises(ValueError, match="2 are complete"):
        memory.windows(3)


def test_steps_are_sampled_from_any_episode() -> None:
    memory = empty()
    for number in range(4):
        add(memory, number, cut={0: 50.0} if number == 1 else None)
    assert memory.sample(["x"], 200)[0][0].unique().tolist() == [0, 1, 2, 3]


def test_no_warning_for_what_fits() -> None:
    memory = empty(size=4, envs=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(30):
            add(memory, number, number, ended=[0] if number % 4 == 3 else [], cut={1: 0.0} if number % 3 == 2 else None)
            memory.ready(1)
