from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from coterie.memories import Memory, RandomMemory, ReplayMemory


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
