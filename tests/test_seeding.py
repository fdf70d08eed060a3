from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from coterie import set_seed


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002


@pytest.fixture
def undeterministic() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


def test_every_generator_is_seeded() -> None:
    assert set_seed(7) == 7
    first = draws()
    second = draws()
    set_seed(7)
    assert draws() == first
    set_seed(8)
    other = draws()
    assert all(a != b for a, b in zip(first, other, strict=True))
    assert first != second


def test_no_seed_draws_one_that_can_be_used_again() -> None:
    set_seed(1)
    seed = set_seed(None)
    first = draws()
    assert 0 <= seed < 2**32
    assert set_seed(seed) == seed
    assert draws() == first
    set_seed(1)
    assert set_seed() != seed, "a drawn seed does not follow from the last one"


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_the_ends_of_the_range(seed: int) -> None:
    assert set_seed(seed) == seed


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, "1", True])
def test_bad_seeds_are_refused(seed: Any) -> None:
    with pytest.raises(ValueError, match="seed: expected an integer"):
        set_seed(seed)


@pytest.mark.usefixtures("undeterministic")
def test_deterministic_algorithms() -> None:
    set_seed(3)
    assert not torch.are_deterministic_algorithms_enabled()
    set_seed(3, deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
