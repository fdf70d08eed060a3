from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from coterie.models import low_precision
from coterie.models.low_precision import Perceptron
from coterie.models.perceptrons import mlp

ROWS = 300


def outcome(net: nn.Module, x: Tensor, target: Tensor, forward=None) -> list[Tensor]:
    """Output, and gradients of the input and of all parameters, under autocast."""
    net.zero_grad()
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = net(x) if forward is None else forward(net, x)
    (y.float() - target).square().mean().backward()
    return [y.float().detach(), x.grad, *(p.grad for p in net.parameters())]


@pytest.fixture
def case() -> tuple[Perceptron, Tensor, Tensor]:
    torch.manual_seed(0)
    net = mlp(18, 3, (96, 64))
    for bias in (p for name, p in net.named_parameters() if name.endswith("bias")):
        nn.init.normal_(bias, std=0.3)
    return net, torch.randn(ROWS, 18), torch.randn(ROWS, 3)


@pytest.mark.parametrize("fused", [True, False])
def test_it_equals_its_layers_to_the_rounding_of_bfloat16(case, fused: bool, monkeypatch) -> None:
    net, x, target = case
    if not fused:
        monkeypatch.setattr(low_precision, "_fused_layer", lambda: None)
    calls = []
    original = low_precision._LowPerceptron.apply
    monkeypatch.setattr(low_precision._LowPerceptron, "apply", lambda *a: calls.append(1) or original(*a))
    mine = outcome(net, x, target)
    assert calls == [1]
    exact = copy.deepcopy(net).double()
    y = nn.Sequential.forward(exact, x64 := x.double().requires_grad_())
    exact.zero_grad()
    (y - target.double()).square().mean().backward()
    truth = [y.detach(), x64.grad, *(p.grad for p in exact.parameters())]
    for got, true in zip(mine, truth, strict=True):
        assert got.dtype == torch.float32
        # bfloat16 has 8 bits: 0.4 % of a number, here of each of some hundred terms
        assert (got - true).abs().max() <= 0.02 * true.abs().max()


def test_without_autocast_it_is_float32(case) -> None:
    net, x, _ = case
    assert torch.equal(net(x), nn.Sequential.forward(net, x))


def test_inputs_that_need_no_gradient_get_none(case) -> None:
    net, x, _ = case
    with torch.autocast("cpu", dtype=torch.bfloat16):
        net(x).sum().backward()
    assert x.grad is None
    assert all(bool(p.grad.abs().sum() > 0) for p in net.parameters())


@pytest.mark.parametrize("change", ["activation", "few rows", "hook", "no bias", "float16"])
def test_what_it_cannot_do_goes_through_the_layers(case, change: str, monkeypatch) -> None:
    net, x, _ = case
    monkeypatch.setattr(low_precision._LowPerceptron, "apply", None)
    dtype = torch.bfloat16
    if change == "activation":
        net[1] = nn.ReLU()
    elif change == "few rows":
        x = x[:8]
    elif change == "hook":
        seen = []
        net[0].register_forward_hook(lambda *args: seen.append(1))
    elif change == "no bias":
        net[2].bias = None
    elif change == "float16":
        dtype = torch.float16
    with torch.autocast("cpu", dtype=dtype):
        assert net(x).shape == (len(x), 3)
