from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from coterie.memories import EpisodeMemory, Memory, PrioritizedMemory, RandomMemory, ReplayMemory, Window

KINDS = (ReplayMemory, PrioritizedMemory, EpisodeMemory)


def filled(kind: Any = ReplayMemory, size: int = 6, envs: int = 2, rows: int = 0, **kwargs: Any) -> Any:
    """A memory of ``rows`` steps; the step t of environment e holds ``10 t + e``."""
    memory = kind(size, envs, **{"seed": 0, **kwargs})
    memory.create_tensor("x", 1)
    memory.create_tensor("flag", (), torch.bool)
    for t in range(rows):
        add(memory, t)
    return memory


def add(memory: ReplayMemory, t: int) -> None:
    numbers = 10.0 * t + torch.arange(memory.num_envs).view(-1, 1)
    memory.add_samples(x=numbers, flag=torch.ones(memory.num_envs, dtype=torch.bool))


def ints(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int64)


def x_of(memory: ReplayMemory, env: int) -> list[float]:
    return memory.get_tensor_by_name("x")[:, env, 0].tolist()


def drawn(memory: ReplayMemory, length: int = 1, burn_in: int = 0) -> set[tuple[float, ...]]:
    """All windows that can be drawn, each as what it holds from row to row."""
    window = memory.windows(400, length, burn_in)
    return set(map(tuple, memory.gather("x", window).squeeze(-1).T.tolist()))


# ---- writing --------------------------------------------------------------------------------------------------------


def test_a_last_observation_takes_a_row_of_its_environment_only() -> None:
    memory = filled(rows=2)
    memory.add_last(ints(1), x=torch.tensor([[99.0]]))
    memory.end_episodes(torch.tensor([False, True]))
    add(memory, 2)
    assert x_of(memory, 0)[:3] == [0, 10, 20]
    assert x_of(memory, 1)[:4] == [1, 11, 99, 21]
    assert memory.get_tensor_by_name("flag")[:4, 1].tolist() == [True, True, False, True], "not named: False"
    assert len(memory) == 6, "a last observation is no step"


def test_columns_wrap_at_their_own_places() -> None:
    memory = filled(size=4, rows=3)
    memory.add_last(ints(1), x=torch.tensor([[99.0]]))
    memory.end_episodes(torch.tensor([False, False]))
    assert (memory.memory_index, memory.filled) == (3, False)
    add(memory, 3)
    assert (memory.memory_index, memory.filled) == (0, True)
    add(memory, 4)
    # environment 0 has written 5 rows, environment 1 has written 6
    assert x_of(memory, 0) == [40, 10, 20, 30]
    assert x_of(memory, 1) == [31, 41, 21, 99]
    assert len(memory) == 4 + 3


def test_last_observations_everywhere_keep_columns_aligned() -> None:
    memory = filled(rows=1)
    memory.add_last(ints(1, 0), x=torch.tensor([[91.0], [90.0]]))
    assert isinstance(memory._columns.place(), int), "slices are copied, nothing is scattered"
    add(memory, 1)
    assert x_of(memory, 0)[:3] == [0, 90, 10]
    assert x_of(memory, 1)[:3] == [1, 91, 11]
    # apart, and together again
    memory.add_last(ints(0), x=torch.tensor([[95.0]]))
    assert not isinstance(memory._columns.place(), int)
    memory.add_last(ints(1), x=torch.tensor([[96.0]]))
    assert isinstance(memory._columns.place(), int)


def test_no_last_observation_is_no_event() -> None:
    memory = filled(rows=1)
    memory.add_last(ints(), x=torch.zeros(0, 1))
    add(memory, 1)
    assert memory.windows(1).starts.flatten().tolist() == [True, False]


def test_rows_that_need_gradients_and_other_dtypes_are_copied() -> None:
    memory = filled(rows=1)
    memory.add_last(ints(0), x=torch.ones(1, 1, dtype=torch.float64, requires_grad=True))
    memory.add_samples(x=torch.ones(2, 1, requires_grad=True), flag=ints(1, 0))
    assert not memory.get_tensor_by_name("x").requires_grad
    assert memory.get_tensor_by_name("flag")[2, 0]


@pytest.mark.parametrize(
    ("envs", "message"),
    [
        (ints(2), "from 0 to 1"),
        (ints(-1), "from 0 to 1"),
        (ints(0, 0), "one last observation for each step"),
        (torch.tensor([0], dtype=torch.int32), r"expected int64 \[K\]"),
        (torch.tensor([[0]]), r"expected int64 \[K\]"),
    ],
)
def test_environments_of_last_observations_are_checked(envs: Tensor, message: str) -> None:
    memory = filled(rows=1)
    with pytest.raises(ValueError, match=message):
        memory.add_last(envs, x=torch.zeros(len(envs), 1))
    assert memory._columns.written.tolist() == [1, 1]


def test_a_last_observation_comes_behind_a_step() -> None:
    row = torch.zeros(1, 1)
    for memory in (filled(), filled(rows=1)):
        memory.end_episodes(torch.tensor([True, False]))
        with pytest.raises(ValueError, match="before end_episodes"):
            memory.add_last(ints(0), x=row)
    memory = filled(rows=1)
    memory.add_last(ints(0), x=row)
    with pytest.raises(ValueError, match="one last observation for each step"):
        memory.add_last(ints(0), x=row)
    memory.add_last(ints(1), x=row)


def test_refused_rows_change_nothing() -> None:
    memory = filled(size=3, rows=3)
    before = memory.get_tensor_by_name("x").clone()
    row, flag = torch.full((2, 1), 7.0), torch.ones(2, dtype=torch.bool)
    for kwargs, error, message in (
        ({"x": row}, ValueError, r"expected a row for every tensor, got none for \['flag'\]"),
        ({"x": row, "flag": flag[:1]}, ValueError, r"'flag': expected a row of shape \[2\], got \[1\]"),
        ({"x": row, "flag": flag, "z": flag}, KeyError, "no tensor 'z'"),
        ({}, ValueError, "expected tensors by name"),
    ):
        with pytest.raises(error, match=message):
            memory.add_samples(**kwargs)
    for rows, error in (({"x": row}, ValueError), ({"z": row[:1]}, KeyError), ({}, ValueError)):
        with pytest.raises(error):
            memory.add_last(ints(0), **rows)
    assert torch.equal(memory.get_tensor_by_name("x"), before)
    assert len(memory) == 6


@pytest.mark.parametrize(
    "ended", [torch.zeros(2), torch.zeros(2, 1, dtype=torch.bool), torch.zeros(1, dtype=torch.bool)]
)
def test_what_ended_is_checked(ended: Tensor) -> None:
    with pytest.raises(ValueError, match=r"ended: expected bool \[2\]"):
        filled(rows=1).end_episodes(ended)


# ---- windows --------------------------------------------------------------------------------------------------------


def test_windows_of_a_young_memory() -> None:
    memory = filled(envs=1, rows=4)
    assert drawn(memory) == {(0, 10), (10, 20), (20, 30)}
    assert drawn(memory, length=2) == {(0, 10, 20), (10, 20, 30)}
    assert drawn(memory, length=1, burn_in=2) == {(0, 10, 20, 30)}
    window = memory.windows(5, length=1, burn_in=2)
    assert (window.learn_from, window.weights) == (2, None)
    assert window.rows.tolist() == [[0] * 5, [1] * 5, [2] * 5, [3] * 5]


def test_windows_run_over_the_rings_edge_but_not_over_the_newest_row() -> None:
    memory = filled(size=4, envs=1, rows=6)
    assert x_of(memory, 0) == [40, 50, 20, 30]
    assert drawn(memory) == {(20, 30), (30, 40), (40, 50)}
    assert drawn(memory, length=3) == {(20, 30, 40, 50)}
    assert memory.windows(1, length=3).rows.flatten().tolist() == [2, 3, 0, 1]


def test_last_observations_are_shown_but_never_learned_from() -> None:
    memory = filled(envs=1, size=9, rows=2)
    memory.add_last(ints(0), x=torch.tensor([[99.0]]))
    memory.end_episodes(torch.tensor([True]))
    for t in (2, 3):
        add(memory, t)
    # rows: 0 10 99 | 20 30
    assert drawn(memory) == {(0, 10), (10, 99), (20, 30)}
    assert drawn(memory, length=2) == {(0, 10, 99), (10, 99, 20)}
    assert drawn(memory, length=1, burn_in=1) == {(0, 10, 99), (99, 20, 30)}
    window = memory.windows(1, length=3, burn_in=1)
    assert memory.gather("x", window).flatten().tolist() == [0, 10, 99, 20, 30]
    assert window.steps.flatten().tolist() == [True, True, False, True, True]
    assert window.starts.flatten().tolist() == [True, False, False, True, False]
    assert window.ends.flatten().tolist() == [False, True, False, False, False]


def test_the_step_behind_a_termination_starts_the_next_episode() -> None:
    memory = filled(rows=2)
    memory.end_episodes(torch.tensor([True, False]))
    for t in (2, 3):
        add(memory, t)
    window = memory.windows(50, length=3)
    assert window.rows[:, 0].tolist() == [0, 1, 2, 3]
    for b, env in enumerate(window.envs.tolist()):
        assert window.starts[:, b].tolist() == [True, False, env == 0, False]
        assert window.ends[:, b].tolist() == [False, env == 0, False, False]
    assert set(window.envs.tolist()) == {0, 1}
    assert bool(window.steps.all())


def test_the_ends_of_an_episode_that_fills_a_window() -> None:
    steps = torch.tensor([[True, True], [True, True], [False, True]])
    none = torch.zeros_like(steps)
    window = Window(torch.zeros(3, 2, dtype=torch.int64), ints(0, 1), steps, steps, none)
    # a step before a row without one ends its episode; what the last row leads to isn't known
    assert window.ends.tolist() == [[False, False], [True, False], [False, False]]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_tiny_rings(size: int) -> None:
    for kind in (ReplayMemory, PrioritizedMemory):
        memory = filled(kind, size=size, envs=1, rows=5)
        with pytest.raises(
            ValueError, match=f"never fits a memory of {size}: expected memory_size of at least {size + 1}"
        ):
            memory.windows(1, length=size)
        if size > 1:
            window = memory.windows(1, length=size - 1)
            assert memory.gather("x", window).flatten().tolist() == [10.0 * t for t in range(5 - size, 5)]
            assert memory.windows(1, length=1, burn_in=size - 2).rows.shape == (size, 1)


def test_an_empty_memory_says_so() -> None:
    for kind in (ReplayMemory, PrioritizedMemory):
        memory = filled(kind, rows=1)
        assert not memory.ready(1)
        with pytest.raises(ValueError, match="no window of 2 rows to draw: the memory holds 2 steps of 2 environments"):
            memory.windows(1)
        with pytest.raises(ValueError, match="cannot draw 3 steps from a memory that holds 0 steps"):
            filled(kind).sample(["x"], 3)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_asked_for_is_checked(kind: type[ReplayMemory]) -> None:
    memory = filled(kind, rows=3)
    for kwargs in ({"batch_size": 0}, {"batch_size": 2.0}, {"batch_size": True}, {"length": 0}, {"burn_in": -1}):
        with pytest.raises(ValueError, match=f"{next(iter(kwargs))}: expected an integer of at least"):
            memory.windows(**{"batch_size": 1, **kwargs})


def test_enough_windows_to_be_ready() -> None:
    memory = filled(rows=4)
    assert memory.ready(6)
    assert not memory.ready(7)
    assert memory.ready(4, length=2)
    assert not memory.ready(5, length=2)
    assert memory.ready(2, 2, 1)
    assert not memory.ready(3, 2, 1)


def test_gathering_keeps_shapes_and_dtypes() -> None:
    memory = filled(rows=4)
    window = memory.windows(5, length=2)
    assert memory.gather("x", window).shape == (3, 5, 1)
    flags = memory.gather("flag", window)
    assert (flags.shape, flags.dtype) == ((3, 5), torch.bool)
    memory.gather("x", window).fill_(-1.0)
    assert bool((memory.get_tensor_by_name("x")[:4] >= 0).all()), "copies are given out"
    with pytest.raises(KeyError, match=r"no tensor 'z'.*\['flag', 'x'\]"):
        memory.gather("z", window)


# ---- interruptions --------------------------------------------------------------------------------------------------


def test_an_interruption_leaves_the_newest_step_as_a_last_observation() -> None:
    memory = filled(rows=3)
    memory.end_episodes(torch.tensor([False, True]))
    memory.interrupt()
    # environment 0 was running: row 20 only shows what 10 led to. Environment 1 had ended: 21 was a termination, say
    assert len(memory) == 5
    add(memory, 3)
    assert drawn(memory) == {(0, 10), (10, 20), (1, 11), (11, 21), (21, 31)}
    window = memory.windows(20, length=3)
    for b, env in enumerate(window.envs.tolist()):
        assert window.steps[:, b].tolist() == [True, True, env == 1, True]
        assert window.starts[:, b].tolist() == [True, False, False, True]
    for t in range(4, 20):  # the numbers of steps differ between columns for good
        add(memory, t)
    assert drawn(memory) == {(10.0 * t + e, 10.0 * t + 10 + e) for t in range(14, 19) for e in (0, 1)}


def test_interrupting_twice_or_nothing_makes_no_difference() -> None:
    memory = filled()
    memory.interrupt()
    assert len(memory) == 0
    for t in range(3):
        add(memory, t)
    memory.interrupt()
    memory.interrupt()
    assert len(memory) == 4


# ---- random numbers, copies, size -----------------------------------------------------------------------------------


def draws(memory: ReplayMemory) -> list[list[int]]:
    return [memory.windows(2).rows[0].tolist() for _ in range(8)]


@pytest.mark.parametrize("kind", KINDS)
def test_draws_follow_the_memorys_seed_and_leave_torchs_generator_alone(kind: type[ReplayMemory]) -> None:
    def make(seed: int | None) -> ReplayMemory:
        memory = filled(kind, size=40, seed=seed)
        for t in range(30):
            add(memory, t)
            memory.end_episodes(torch.tensor([True, True]))
        return memory

    memories = [make(3), make(3), make(4)]
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, second, third = map(draws, memories)
    assert first == second != third
    memories[0].sample(["x"], 4)
    memories[0].sample_all(["x"])
    assert torch.equal(torch.get_rng_state(), state)
    # without a seed, torch's decides
    torch.manual_seed(9)
    by_torch = [draws(make(None)) for _ in range(2)]
    torch.manual_seed(10)
    assert by_torch[0] == by_torch[1] != draws(make(None))


@pytest.mark.parametrize("kind", [Memory, RandomMemory, *KINDS])
def test_an_empty_copy_has_the_settings_and_nothing_else(kind: Any) -> None:
    memory = kind(6, 2)
    settings = {"observation_dtype": torch.float16, "seed": 3} if kind in KINDS else {}
    settings |= {"alpha": 0.3, "beta": 0.9, "eps": 0.1} if kind is PrioritizedMemory else {}
    settings |= {"replacement": False} if kind is RandomMemory else {}
    memory = kind(6, 2, **settings)
    memory.create_tensor("x", 1)
    for t in range(3):
        memory.add_samples(x=torch.full((2, 1), float(t)))
    copy = memory.empty_copy()
    assert type(copy) is kind
    assert (copy.memory_size, copy.num_envs, copy.device) == (6, 2, memory.device)
    assert (copy.get_tensor_names(), len(copy), copy.nbytes, copy.memory_index) == ((), 0, 0, 0)
    for name, value in settings.items():
        assert getattr(copy, name if hasattr(copy, name) else f"_{name}") == value
    copy.create_tensor("y", 1)
    copy.add_samples(y=torch.zeros(2, 1))
    assert memory.get_tensor_names() == ("x",)
    assert (len(memory), len(copy)) == (6, 2)
    assert memory.empty_copy("meta").device.type == "meta"


def test_an_empty_copy_draws_as_the_original_did_at_first() -> None:
    memory = filled(size=30, rows=25)
    first = draws(memory)
    copy = memory.empty_copy()
    copy.create_tensor("x", 1)
    for t in range(25):
        copy.add_samples(x=torch.full((2, 1), float(t)))
    assert draws(copy) == first


@pytest.mark.parametrize("kind", [Memory, *KINDS])
@pytest.mark.parametrize(("size", "envs"), [(1, 1), (33, 3), (70, 20)])
def test_bytes_are_predicted(kind: Any, size: int, envs: int) -> None:
    memory = kind(size, envs)
    specs: dict[str, Any] = {"x": ((3, 2), torch.float32), "y": (5, torch.int64), "z": ((), torch.bool)}
    predicted = memory.predict_bytes({**specs, "u": ((2,), torch.uint8)})
    for name, (width, dtype) in specs.items():
        memory.create_tensor(name, width, dtype)
    memory.create_tensor("u", 2, torch.float32, stored=torch.uint8)
    assert memory.nbytes == predicted
    assert sum(t.untyped_storage().nbytes() for t in map(memory.get_tensor_by_name, "xyzu")) == size * envs * (
        24 + 40 + 1 + 2
    )
    rows = {name: torch.zeros_like(memory.get_tensor_by_name(name)[0]) for name in "xyzu"}
    for _ in range(2 * size):
        memory.add_samples(**rows)
        if kind in KINDS:
            memory.end_episodes(torch.ones(envs, dtype=torch.bool))
    if kind in KINDS and size > 1:
        memory.windows(1)
        assert memory.nbytes == predicted, "nothing grows"


@pytest.mark.parametrize("kind", KINDS)
def test_reset_forgets(kind: type[ReplayMemory]) -> None:
    memory = filled(kind, rows=8)
    memory.end_episodes(torch.tensor([True, False]))
    memory.reset()
    assert (len(memory), memory.memory_index, memory.filled, memory.ready(1)) == (0, 0, False, False)
    for t in range(2):
        add(memory, t)
    memory.end_episodes(torch.tensor([True, True]))
    window = memory.windows(1)
    assert window.starts.flatten()[:2].tolist() == [True, False]
    assert memory.gather("x", window)[:2, 0, 0].tolist() in ([0, 10], [1, 11])


# ---- showing a part of another memory's storage ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_an_exposed_memory_draws_its_part(kind: type[ReplayMemory]) -> None:
    group = kind(6, 2, seed=0)
    group.create_tensor("x", (3, 1), stored=torch.float16)
    mine = kind(6, 2, seed=1)
    mine.create_tensor("old", 1)
    for _ in range(4):
        mine.add_samples(old=torch.zeros(2, 1))
    view = group.get_tensor_by_name("x")[:, :, 1]
    mine.expose(group, {"x": view}, {"x": torch.float32})
    assert (len(mine), mine.nbytes, mine.get_tensor_names()) == (0, 0, ("x",))
    for t in range(8):
        group.add_samples(x=torch.arange(6.0).view(2, 3, 1) + 10 * t)
        group.end_episodes(torch.tensor([t % 2 == 1, True]))
    assert len(mine) == len(group) == 12
    window = mine.windows(3)
    x = mine.gather("x", window)
    assert x.dtype == torch.float32
    assert torch.equal(x, group.gather("x", window)[:, :, 1])
    assert set((x[0] % 10).flatten().tolist()) <= {1.0, 4.0}
    assert mine.ready(2)
    assert mine.sample(["x"], 4)[0][0].shape == (4, 1)
    before = draws(group)
    group._random = type(group)(6, 2, seed=0)._random
    draws(mine)
    assert draws(group) == before, "looking at an agent's part doesn't change what the team draws"
    for call in (
        lambda: mine.add_samples(x=torch.zeros(2, 1)),
        lambda: mine.add_last(ints(0), x=torch.zeros(1, 1)),
        lambda: mine.end_episodes(torch.tensor([True, True])),
        mine.interrupt,
        lambda: mine.load("nowhere"),
    ):
        with pytest.raises(RuntimeError, match="its group writes to it"):
            call()


def test_a_memory_of_another_kind_cannot_be_drawn_from() -> None:
    mine = ReplayMemory(6, 2)
    mine.expose(RandomMemory(6, 2), {})
    with pytest.raises(TypeError, match="a ReplayMemory cannot draw from the rows of a RandomMemory"):
        mine.windows(1)
