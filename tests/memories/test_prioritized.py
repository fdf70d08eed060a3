from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from coterie.memories import PrioritizedMemory, Window


def filled(size: int = 8, envs: int = 1, rows: int = 5, **kwargs: Any) -> PrioritizedMemory:
    """The step t of environment e holds ``10 t + e``."""
    memory = PrioritizedMemory(size, envs, **{"seed": 0, **kwargs})
    memory.create_tensor("x", 1)
    for t in range(rows):
        add(memory, t)
    return memory


def add(memory: PrioritizedMemory, t: int) -> None:
    memory.add_samples(x=10.0 * t + torch.arange(memory.num_envs).view(-1, 1))


def window_of(memory: PrioritizedMemory, rows: list[int], envs: list[int] | None = None) -> Window:
    """Windows of two rows that start in these."""
    first = torch.tensor(rows)
    flags = torch.ones(2, len(rows), dtype=torch.bool)
    return Window(torch.stack((first, first + 1)), torch.tensor(envs or [0] * len(rows)), flags, flags, ~flags)


def weights_by_number(memory: PrioritizedMemory, draws: int = 400) -> dict[float, float]:
    window = memory.windows(draws)
    assert window.weights is not None
    return dict(zip(memory.gather("x", window)[0].flatten().tolist(), window.weights.tolist(), strict=True))


def frequencies(memory: PrioritizedMemory, draws: int = 40_000) -> dict[float, float]:
    first = memory.gather("x", memory.windows(draws))[0].flatten()
    numbers, counts = first.unique(return_counts=True)
    return dict(zip(numbers.tolist(), (counts / draws).tolist(), strict=True))


def test_draws_are_in_proportion_to_priorities() -> None:
    memory = filled(alpha=1.0, eps=1e-9)
    memory.windows(1)
    memory.update_priorities(window_of(memory, [0, 1, 2, 3]), torch.tensor([1.0, 4.0, 0.0, 5.0]))
    # 10 in all; a draw of 40,000 is spread evenly over the sum: at most one off for each border
    assert frequencies(memory) == pytest.approx({0.0: 0.1, 10.0: 0.4, 30.0: 0.5}, abs=1e-4)


def test_alpha_flattens_priorities() -> None:
    memory = filled(alpha=0.5)
    memory.windows(1)
    memory.update_priorities(window_of(memory, [0, 1, 2, 3]), torch.tensor([1.0, 4.0, 9.0, 16.0]))
    # roots: 1 2 3 4
    assert frequencies(memory) == pytest.approx({0.0: 0.1, 10.0: 0.2, 20.0: 0.3, 30.0: 0.4}, abs=1e-4)
    memory.alpha = 0.0
    assert frequencies(memory) == pytest.approx({0.0: 0.25, 10.0: 0.25, 20.0: 0.25, 30.0: 0.25}, abs=1e-4)


def test_weights_make_up_for_the_bias() -> None:
    memory = filled(alpha=1.0, beta=1.0)
    memory.windows(1)
    memory.update_priorities(window_of(memory, [0, 1, 2, 3]), torch.tensor([1.0, 2.0, 3.0, 4.0]))
    # N = 4, P = .1 .2 .3 .4: 1 / (N P) = 2.5 1.25 .833 .625; divided by the largest: 1 1/2 1/3 1/4
    assert weights_by_number(memory) == pytest.approx({0: 1, 10: 1 / 2, 20: 1 / 3, 30: 1 / 4}, rel=1e-5)
    memory.beta = 0.5
    assert weights_by_number(memory) == pytest.approx({0: 1, 10: 2**-0.5, 20: 3**-0.5, 30: 0.5}, rel=1e-5)
    memory.beta = 0
    assert weights_by_number(memory) == pytest.approx({0: 1, 10: 1, 20: 1, 30: 1})
    assert memory.windows(3).weights.dtype == torch.float32  # type: ignore[union-attr]


def test_the_largest_weight_is_that_of_the_batch() -> None:
    memory = filled(alpha=1.0, beta=1.0)
    memory.windows(1)
    memory.update_priorities(window_of(memory, [0, 1, 2, 3]), torch.tensor([1e-5, 2.0, 3.0, 4.0]))
    for _ in range(20):
        weights = memory.windows(2).weights
        assert weights is not None
        assert float(weights.max()) == 1.0


def test_new_rows_have_the_largest_priority_so_far() -> None:
    memory = filled(alpha=1.0)
    assert frequencies(memory) == pytest.approx(dict.fromkeys((0.0, 10.0, 20.0, 30.0), 0.25), abs=1e-4)
    memory.update_priorities(window_of(memory, [0, 1, 2, 3]), torch.tensor([1.0, 1.0, 6.0, 1.0]))
    add(memory, 5)
    # row 40 was there before the 6, row 50 is the newest
    assert frequencies(memory) == pytest.approx({0: 0.1, 10: 0.1, 20: 0.6, 30: 0.1, 40: 0.1}, abs=1e-4)
    add(memory, 6)
    assert frequencies(memory)[50.0] == pytest.approx(6 / 16, abs=1e-4)
    memory.update_priorities(window_of(memory, [2]), torch.tensor([1.0]))
    add(memory, 7)
    add(memory, 8)  # so far: the 6 counts although it is gone
    assert frequencies(memory)[70.0] == pytest.approx(6 / (1 + 1 + 1 + 1 + 6 + 6 + 6), abs=1e-4)


def test_new_rows_have_it_in_uneven_columns_too() -> None:
    memory = filled(envs=2, rows=2, alpha=1.0)
    memory.windows(1)
    memory.update_priorities(window_of(memory, [0, 0], [0, 1]), torch.tensor([3.0, 2.0]))
    memory.add_last(torch.tensor([1]), x=torch.tensor([[99.0]]))
    for t in (2, 3):
        add(memory, t)
    # 10 and 11 had 1 from the start, 20 and 21 came after the 3
    expected = {0.0: 3, 1.0: 2, 10.0: 1, 11.0: 1, 20.0: 3, 21.0: 3}
    assert frequencies(memory) == pytest.approx({n: p / 13 for n, p in expected.items()}, abs=2e-4)


def test_priorities_follow_their_rows_around_the_ring() -> None:
    memory = filled(size=4, envs=2, rows=4, alpha=1.0)
    memory.add_last(torch.tensor([1]), x=torch.tensor([[99.0]]))
    memory.windows(1)
    # environment 0: 0 10 20 30 from row 0 on; environment 1: 99 | 11 21 31: 11 in row 1
    memory.update_priorities(window_of(memory, [1, 2, 1, 2], [0, 0, 1, 1]), torch.tensor([1.0, 2.0, 3.0, 4.0]))
    add(memory, 4)
    # environment 0: 40 | 10 20 30, its newest has no outcome; environment 1: 99 41 | 21 31. New ones had priority 1 yet
    expected = {10.0: 1.0, 20.0: 2.0, 30.0: 1.0, 21.0: 4.0, 31.0: 1.0}
    assert frequencies(memory) == pytest.approx({n: p / 9 for n, p in expected.items()}, abs=2e-4)


def test_priorities_belong_to_the_first_row_that_is_learned_from() -> None:
    memory = filled(rows=6, alpha=1.0)
    window = memory.windows(50, length=2, burn_in=1)
    x = memory.gather("x", window).squeeze(-1)
    assert set(x[1].tolist()) == {10.0, 20.0, 30.0}
    memory.update_priorities(window, torch.where(x[1] == 20, 8.0, 1.0))
    first = memory.gather("x", memory.windows(10_000, length=2, burn_in=1))[1]
    assert float((first == 20).float().mean()) == pytest.approx(0.8, abs=1e-3)


def test_changing_the_length_of_windows_changes_what_can_be_drawn() -> None:
    memory = filled(size=20, rows=15)
    for length, burn_in in ((1, 0), (4, 0), (1, 3), (2, 1), (1, 0), (10, 4)):
        window = memory.windows(300, length, burn_in)
        first = memory.gather("x", window)[burn_in].unique()
        assert first.tolist() == [10.0 * t for t in range(burn_in, 15 - length)]


def test_a_window_drawn_twice_has_one_of_its_priorities() -> None:
    memory = filled(alpha=1.0)
    memory.windows(1)
    memory.update_priorities(window_of(memory, [1, 1, 1]), torch.tensor([5.0, 7.0, 6.0]))
    weights = memory._priorities.tree.weights
    assert float(weights[1]) in (pytest.approx(5.0), pytest.approx(6.0), pytest.approx(7.0))
    torch.testing.assert_close(memory._priorities.tree.total, weights.sum())
    torch.testing.assert_close(memory._priorities.values[1].double(), weights[1])


def test_update_of_a_row_that_can_no_longer_be_drawn_brings_it_not_back() -> None:
    memory = filled(size=4, rows=4, alpha=1.0)
    window = memory.windows(4)
    add(memory, 4)  # overwrites row 0
    memory.windows(1)
    memory.update_priorities(window_of(memory, [0]), torch.tensor([50.0]))
    assert 40.0 not in frequencies(memory)
    memory.update_priorities(window, torch.ones(4))
    assert sorted(frequencies(memory)) == [10, 20, 30]


@pytest.mark.parametrize("bad", [-1e-9, float("nan"), float("inf"), -float("inf")])
def test_priorities_must_be_finite_and_not_negative(bad: float) -> None:
    memory = filled()
    window = memory.windows(3)
    before = memory._priorities.values.clone()
    with pytest.raises(ValueError, match="priorities: expected finite numbers of at least 0"):
        memory.update_priorities(window, torch.tensor([1.0, bad, 1.0]))
    assert torch.equal(memory._priorities.values, before)
    memory.windows(3)


def test_priorities_beyond_float32_are_refused() -> None:
    memory = filled()
    with pytest.raises(ValueError, match="finite"):
        memory.update_priorities(memory.windows(1), torch.tensor([1e300], dtype=torch.float64))


def test_elsewhere_bad_priorities_come_out_at_the_next_draw() -> None:
    memory = filled()
    memory.windows(1)
    # as on a device that isn't waited for
    memory._priorities._refused = torch.tensor(False)
    with pytest.raises(ValueError, match="finite numbers"):
        memory.windows(1)
    memory.windows(1)


@pytest.mark.parametrize("priorities", [torch.ones(2), torch.ones(3, 1), torch.ones(3, dtype=torch.int64)])
def test_the_shape_of_priorities_is_checked(priorities: Tensor) -> None:
    memory = filled()
    with pytest.raises(ValueError, match=r"expected floats \[3\]"):
        memory.update_priorities(memory.windows(3), priorities)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            (name, value)
            for name in ("alpha", "beta")
            for value in (-0.1, 1.1, float("nan"), float("inf"), "0.5", None, True)
        ),
        *(("eps", value) for value in (0.0, float("inf"), "x", None)),
    ],
)
def test_settings_are_checked(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected a number"):
        PrioritizedMemory(4, **{name: value})


@pytest.mark.parametrize("beta", [-0.1, 3.0, float("nan"), float("inf"), "x"])
@pytest.mark.parametrize("shown", [False, True])
def test_beta_is_checked_when_it_is_set(beta: Any, shown: bool) -> None:
    memory = owner = filled()
    if shown:
        memory = PrioritizedMemory(8)
        memory.expose(owner, {"x": owner.get_tensor_by_name("x")})
    memory.beta = np.float32(0.5)
    with pytest.raises(ValueError, match="beta: expected a number from 0 to 1"):
        memory.beta = beta
    assert memory.beta == owner.beta == 0.5


def test_zero_priorities_can_still_be_drawn() -> None:
    memory = filled()
    memory.windows(1)
    memory.update_priorities(window_of(memory, [0, 1, 2, 3]), torch.zeros(4))
    assert frequencies(memory) == pytest.approx(dict.fromkeys((0.0, 10.0, 20.0, 30.0), 0.25), abs=1e-4)


def test_reset_forgets_priorities() -> None:
    memory = filled(alpha=1.0)
    memory.windows(1)
    memory.update_priorities(window_of(memory, [0, 1]), torch.tensor([100.0, 1.0]))
    memory.reset()
    for t in range(4):
        add(memory, t)
    assert frequencies(memory) == pytest.approx(dict.fromkeys((0.0, 10.0, 20.0), 1 / 3), abs=1e-4)
