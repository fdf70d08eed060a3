from __future__ import annotations

import pytest
import torch

from coterie.models import layers
from coterie.models.layers import stacked_linear, tanh

LARGE, SMALL = (64, 512), (3, 5)  # on both sides of the size from which the layers leave their stock forms


def test_the_sizes_are_on_both_sides() -> None:
    assert SMALL[0] * SMALL[1] < layers.WORTHWHILE <= LARGE[0] * LARGE[1]


@pytest.mark.parametrize("shape", [LARGE, SMALL])
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_tanh_and_its_gradient(shape: tuple[int, int], inplace: bool, dtype: torch.dtype) -> None:
    values = (3 * torch.randn(shape)).to(dtype)
    x = values.clone().requires_grad_()
    y = tanh(x * 1, inplace)
    y.square().sum().backward()
    reference = values.clone().requires_grad_()
    torch.tanh(reference).square().sum().backward()
    torch.testing.assert_close(y, torch.tanh(values), atol=2e-7, rtol=0)
    torch.testing.assert_close(x.grad, reference.grad, atol=1e-6, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(tanh(values.clone(), inplace), torch.tanh(values), atol=2e-7, rtol=0)


@pytest.mark.parametrize("shape", [LARGE, SMALL])
def test_tanh_leaves_its_input_alone_unless_told_otherwise(shape: tuple[int, int]) -> None:
    x = torch.randn(shape)
    before = x.clone()
    tanh(x)
    assert torch.equal(x, before)
    assert tanh(x, inplace=True).data_ptr() == x.data_ptr()


def test_tanh_of_extremes_is_finite() -> None:
    x = torch.full(LARGE, 1e30)
    assert tanh(x).eq(1).all()
    assert tanh(-x).eq(-1).all()


@pytest.mark.parametrize("rows", [2, 400])
def test_stacked_linear_equals_one_layer_after_the_other(rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(size, generator=generator) for size in ((4, rows, 16), (4, 5, 16), (4, 1, 5))]
    mine = [tensor.clone().requires_grad_() for tensor in tensors]
    stock = [tensor.clone().requires_grad_() for tensor in tensors]
    y = stacked_linear(*mine)
    expected = torch.stack([torch.nn.functional.linear(x, w, b[0]) for x, w, b in zip(*stock, strict=True)])
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)
    y.square().sum().backward()
    expected.square().sum().backward()
    for ours, theirs in zip(mine, stock, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-3, rtol=1e-5)
