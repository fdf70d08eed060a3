from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from coterie.memories import EpisodeMemory, Memory, PrioritizedMemory, RandomMemory, ReplayMemory, narrowing


def row(*numbers: float, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.tensor(numbers, dtype=dtype).view(-1, 1)


@pytest.mark.parametrize("kind", [RandomMemory, ReplayMemory])
@pytest.mark.parametrize(
    ("dtype", "stored", "numbers"),
    [
        (torch.float32, torch.uint8, [0.0, 255.0, 17.0]),
        (torch.float32, torch.float16, [0.5, -65504.0, 1 / 3]),
        (torch.float32, torch.bfloat16, [0.5, 1e30, 1 / 3]),
        (torch.float64, torch.float32, [0.5, 1e30, 1 / 3]),
        (torch.int64, torch.int16, [-32768, 32767, 0]),
        (torch.int64, torch.uint8, [0, 255, 3]),
    ],
)
def test_rows_are_kept_narrow_and_drawn_wide(
    kind: Any, dtype: torch.dtype, stored: torch.dtype, numbers: list[float]
) -> None:
    memory = kind(3, 3)
    assert memory.create_tensor("x", 1, dtype, stored=stored)
    given = row(*numbers, dtype=dtype)
    for _ in range(2):
        memory.add_samples(x=given)
    kept = memory.get_tensor_by_name("x")
    assert kept.dtype == stored
    assert memory.dtype_of("x") == dtype
    expected = given.to(stored).to(dtype)
    if not stored.is_floating_point:
        assert torch.equal(expected, given)
    torch.testing.assert_close(kept[0].to(dtype), expected, rtol=0, atol=0)
    for (drawn,) in (*memory.sample(["x"], 4), *memory.sample_all(["x"]), *memory.sample(["x"], 2, 1, 2)):
        assert drawn.dtype == dtype
        assert set(drawn.flatten().tolist()) <= set(expected.flatten().tolist())
    if kind is ReplayMemory:
        window = memory.windows(3)
        drawn = memory.gather("x", window)
        assert drawn.dtype == dtype
        assert torch.equal(drawn[0], expected[window.envs])


@pytest.mark.parametrize("kind", [RandomMemory, ReplayMemory])
@pytest.mark.parametrize(
    ("stored", "number"),
    [
        (torch.uint8, 256.0),
        (torch.uint8, -1.0),
        (torch.uint8, 0.5),
        (torch.uint8, float("nan")),
        (torch.uint8, float("inf")),
        (torch.int8, 128.0),
        (torch.float16, 7e4),
        (torch.float16, float("nan")),
    ],
)
def test_numbers_that_do_not_survive_are_an_error(kind: Any, stored: torch.dtype, number: float) -> None:
    memory = kind(3, 2)
    memory.create_tensor("first", 1)
    memory.create_tensor("x", 1, stored=stored)
    memory.add_samples(first=row(1, 2), x=row(1, 2))
    before = {name: memory.get_tensor_by_name(name).clone() for name in ("first", "x")}
    with pytest.raises(ValueError, match=f"'x' is kept as {stored}: expected .* got values from"):
        memory.add_samples(first=row(3, 4), x=row(3, number))
    if kind is ReplayMemory:
        with pytest.raises(ValueError, match="'x' is kept as"):
            memory.add_last(torch.tensor([1]), first=row(3), x=row(number))
    for name, tensor in before.items():
        torch.testing.assert_close(memory.get_tensor_by_name(name), tensor, equal_nan=True)
    assert len(memory) == 2


def test_integers_beyond_a_narrow_dtype_are_an_error() -> None:
    memory = Memory(3, 2)
    memory.create_tensor("x", 1, torch.int64, stored=torch.uint8)
    with pytest.raises(ValueError, match="whole numbers from 0 to 255, got values from 3 to 300"):
        memory.add_samples(x=row(3, 300, dtype=torch.int64))
    memory.add_samples(x=row(3, 30, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [
        (torch.float16, torch.float32),
        (torch.float16, torch.bfloat16),
        (torch.int64, torch.float16),
        (torch.bool, torch.uint8),
        (torch.float32, torch.bool),
        (torch.complex64, torch.float32),
        (torch.float32, torch.int64),
    ],
)
def test_pairs_of_dtypes_that_make_no_sense(dtype: torch.dtype, stored: torch.dtype) -> None:
    memory = Memory(3)
    with pytest.raises(ValueError, match="'x': "):
        memory.create_tensor("x", 1, dtype, stored=stored)
    assert memory.get_tensor_names() == ()


def test_a_tensor_exists_with_both_of_its_dtypes() -> None:
    memory = Memory(3)
    assert memory.create_tensor("x", 1, stored=torch.float16)
    assert not memory.create_tensor("x", 1, torch.float32, torch.float16)
    assert memory.create_tensor("y", 1, stored=torch.float32), "the same one twice is as none"
    assert not memory.create_tensor("y", 1)
    for kwargs in ({}, {"dtype": torch.float16}, {"dtype": torch.float64, "stored": torch.float16}):
        with pytest.raises(ValueError, match=r"'x' exists with .* torch.float32 kept as torch.float16"):
            memory.create_tensor("x", 1, **kwargs)
    with pytest.raises(KeyError, match="no tensor 'z'"):
        memory.dtype_of("z")


def test_what_was_never_written_is_no_number_where_there_is_one() -> None:
    memory = Memory(2)
    memory.create_tensor("x", 1, stored=torch.float16)
    memory.create_tensor("y", 1, stored=torch.uint8)
    assert bool(memory.get_tensor_by_name("x").isnan().all())
    assert not bool(memory.get_tensor_by_name("y").any())


# ---- observations ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [ReplayMemory, PrioritizedMemory, EpisodeMemory])
@pytest.mark.parametrize("dtype", ["float16", float, torch.float64, torch.int32, torch.bool, torch.complex64])
def test_what_observations_cannot_be_kept_as_is_refused(kind: Any, dtype: Any) -> None:
    with pytest.raises(
        ValueError, match=r"observation_dtype: expected None or one of .*torch.float16.*torch.uint8.*, got "
    ):
        kind(4, 2, observation_dtype=dtype)


@pytest.mark.parametrize("dtype", narrowing.OBSERVATION_DTYPES)
def test_what_observations_may_be_kept_as_works(dtype: torch.dtype) -> None:
    memory = ReplayMemory(4, 2, observation_dtype=dtype)
    memory.create_tensor("x", 1, stored=memory.observation_dtype)
    for t in range(3):
        memory.add_samples(x=row(t, 10 + t))
    memory.add_last(torch.tensor([1]), x=row(99))
    window = memory.windows(20)
    drawn = memory.gather("x", window)
    assert drawn.dtype == torch.float32
    assert set(drawn.flatten().tolist()) == {0, 1, 2, 10, 11, 12, 99}


# ---- devices that would have to be waited for --------------------------------------------------------------------------


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if rows were on a device that isn't waited for."""
    monkeypatch.setattr(narrowing, "_at_hand", lambda row: False)


def begun(kind: Any, stored: torch.dtype = torch.uint8) -> Any:
    memory = kind(5, 2)
    memory.create_tensor("first", 1)
    memory.create_tensor("x", 1, stored=stored)
    memory.create_tensor("z", 1, stored=torch.float16)
    return memory


def add(memory: Any, *numbers: float) -> None:
    memory.add_samples(first=row(0, 0), x=row(*numbers), z=row(0, 1))


def readers(memory: Any, path: Any) -> list[Any]:
    drawing = [
        lambda: memory.sample(["x"], 2),
        lambda: memory.sample(["first"], 2, 1, 2),
        lambda: memory.sample_all(["first"]),
        lambda: memory.sample_by_index(["x"], torch.tensor([0, 1])),
        lambda: memory.save(path),
    ]
    return [*drawing, lambda: memory.gather("x", memory.windows(1))] if isinstance(memory, ReplayMemory) else drawing


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("kind", [RandomMemory, ReplayMemory, PrioritizedMemory])
@pytest.mark.parametrize(
    ("stored", "number"),
    [(torch.uint8, 256.0), (torch.uint8, 0.5), (torch.uint8, float("nan")), (torch.int8, -129.0), (torch.float16, 7e4)],
)
def test_elsewhere_what_was_lost_comes_out_when_it_is_read(
    kind: Any, stored: torch.dtype, number: float, tmp_path: Any
) -> None:
    memory = begun(kind, stored)
    add(memory, 1, 2)
    add(memory, 3, number)
    add(memory, 4, 5)  # what came later makes nothing good
    for read in readers(memory, tmp_path / "memory.pt"):
        with pytest.raises(ValueError, match=f"'x' is kept as {stored}: expected .* but rows came with others"):
            read()
    assert not list(tmp_path.iterdir())
    memory.reset()
    for t in range(3):
        add(memory, t, t)
    for read in readers(memory, tmp_path / "memory.pt"):
        read()


@pytest.mark.usefixtures("elsewhere")
def test_elsewhere_last_observations_are_looked_at_too() -> None:
    memory = begun(ReplayMemory)
    add(memory, 1, 2)
    memory.add_last(torch.tensor([1]), first=row(3), x=row(300))
    shown = ReplayMemory(5, 2)
    shown.expose(memory, {"mine": memory.get_tensor_by_name("x")}, {"mine": torch.float32})
    for one, name in ((memory, "first"), (shown, "mine")):
        with pytest.raises(ValueError, match=r"'x' is kept as torch.uint8: expected whole numbers from 0 to 255"):
            one.gather(name, memory.windows(1))


@pytest.mark.usefixtures("elsewhere")
def test_elsewhere_rows_that_were_refused_leave_no_trace() -> None:
    memory = begun(ReplayMemory)
    add(memory, 1, 2)
    with pytest.raises(ValueError, match="expected a row of shape"):
        memory.add_samples(x=row(3, 300), first=row(1, 2, 3), z=row(0, 1))
    with pytest.raises(ValueError, match="expected a row for every tensor"):
        memory.add_samples(x=row(3, 300))
    with pytest.raises(ValueError, match="expected numbers from 0 to 1"):
        memory.add_last(torch.tensor([2]), x=row(300))
    add(memory, 3, 4)
    memory.gather("x", memory.windows(1))


@pytest.mark.usefixtures("elsewhere")
def test_elsewhere_values_are_looked_at_once_for_all_rows_since_the_last_time(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, looks = begun(ReplayMemory), []
    stack = torch.stack
    monkeypatch.setattr(torch, "stack", lambda tensors: looks.append(len(tensors)) or stack(tensors))
    for t in range(4):
        add(memory, t, t)
    assert looks == [], "nothing is looked at while rows are added"
    window = memory.windows(1)
    for name in ("first", "x", "z"):
        memory.gather(name, window)
    assert looks == [2], "x and z in one look"
    add(memory, 4, 4)
    memory.sample(["x"], 1)
    assert looks == [2, 2]


@pytest.mark.usefixtures("elsewhere")
def test_a_whole_tensor_is_looked_at_at_once() -> None:
    memory = begun(Memory)
    with pytest.raises(ValueError, match="expected whole numbers from 0 to 255, got values from 256"):
        memory.set_tensor_by_name("x", torch.full((5, 2, 1), 256.0))
    memory.set_tensor_by_name("x", torch.full((5, 2, 1), 255.0))
    assert set(memory.get_tensor_by_name("x").flatten().tolist()) == {255}
