from __future__ import annotations

import pytest
import torch

from coterie.memories.sum_tree import WIDTH, SumTree

CPU = torch.device("cpu")


def tree_of(weights: torch.Tensor) -> SumTree:
    tree = SumTree(len(weights), CPU)
    tree.rebuild(weights)
    return tree


def test_fractions_fall_where_the_sum_has_got_to() -> None:
    # sums 1 1 4 10: from 0 to .1 lies the first, from .1 to .4 the third, the rest is the fourth's
    tree = tree_of(torch.tensor([1.0, 0.0, 3.0, 6.0]))
    assert float(tree.total) == 10
    fractions = torch.tensor([0.0, 0.05, 0.1, 0.3, 0.41, 0.99], dtype=torch.float64)
    assert tree.draw(fractions).tolist() == [0, 0, 2, 2, 3, 3]


@pytest.mark.parametrize("size", [1, WIDTH - 1, WIDTH, WIDTH + 1, WIDTH**2, WIDTH**2 + 1, 3 * WIDTH**2 + 5])
def test_updates_and_rebuilding_agree_with_plain_sums(size: int) -> None:
    tree, weights = SumTree(size, CPU), torch.zeros(size, dtype=torch.float64)
    for count in (1, 7, 40):
        index = torch.randint(size, (count,))
        weights[index] = torch.rand(count, dtype=torch.float64)
        tree.update(index, weights[index])
        torch.testing.assert_close(tree.weights, weights, rtol=0, atol=0)
        torch.testing.assert_close(tree.total, weights.sum())
        fractions = torch.rand(50, dtype=torch.float64)
        expected = torch.searchsorted(weights.cumsum(0), fractions * weights.sum(), right=True)
        assert torch.equal(tree.draw(fractions), expected)
    rebuilt = tree_of(weights)
    assert torch.equal(rebuilt.draw(fractions), tree.draw(fractions))
    assert tree.nbytes == SumTree.predict_bytes(size)


def test_sums_do_not_drift() -> None:
    tree = tree_of(torch.rand(200))
    for _ in range(300):
        index = torch.randperm(200)[:20]
        tree.update(index, 10.0 ** torch.randint(-6, 12, (20,)).double())
    tree.update(torch.arange(200), torch.zeros(200))
    assert float(tree.total) == 0.0, "what was added and taken away again leaves nothing behind"


@pytest.mark.parametrize("scale", [1e-290, 1e-12, 1.0, 1e30])
def test_no_draw_ever_hits_a_weight_of_zero(scale: float) -> None:
    weights = torch.rand(3000, dtype=torch.float64) * scale
    weights[torch.rand(3000) < 0.9] = 0.0
    weights[-40:] = 0.0  # the last ones: where rounding would lead
    weights[: 4 * WIDTH] = 0.0
    tree = tree_of(weights)
    edge = torch.nextafter(torch.tensor(1.0, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64))
    # every place where a sum ends, as well as it can be hit
    exact = (weights.cumsum(0) / weights.sum()).clamp(max=float(edge))
    for fractions in (exact, torch.tensor([0.0, 1e-320, float(edge), 1.0], dtype=torch.float64)):
        assert bool((weights[tree.draw(fractions)] > 0).all())
