from __future__ import annotations

from typing import cast

import pytest
import torch
from torch import Tensor, nn

from coterie.models.flat_parameters import FlatParameters


def networks(count: int = 3, width: int = 4) -> list[nn.Sequential]:
    return [nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 1)) for _ in range(count)]


def flat(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def linear(net: nn.Sequential, i: int) -> nn.Linear:
    return cast("nn.Linear", net[i])


@pytest.fixture
def nets() -> list[nn.Sequential]:
    return networks()


def test_rows_are_the_modules_parameters(nets: list[nn.Sequential]) -> None:
    before = [flat(net) for net in nets]
    storage = FlatParameters([[net] for net in nets])
    assert storage.data.shape == (3, 2 * 4 + 4 + 4 + 1)
    for row, net, values in zip(storage.data, nets, before, strict=True):
        assert torch.equal(row, values)
        assert torch.equal(flat(net), values)


def test_modules_are_live_views(nets: list[nn.Sequential]) -> None:
    parameter = nets[1][0].weight
    storage = FlatParameters([[net] for net in nets])
    assert nets[1][0].weight is parameter, "an optimizer or a user may hold on to it"
    storage.data[1].fill_(7.0)
    assert all(bool((p == 7.0).all()) for p in nets[1].parameters())
    assert all(bool((value == 7.0).all()) for value in nets[1].state_dict().values())
    with torch.no_grad():
        linear(nets[2], 2).bias.fill_(5.0)
    assert float(storage.data[2, -1]) == 5.0


def test_loading_a_state_dict_changes_the_storage(nets: list[nn.Sequential]) -> None:
    storage = FlatParameters([[net] for net in nets])
    (other,) = networks(1)
    nets[0].load_state_dict(other.state_dict())
    assert torch.equal(storage.data[0], flat(other))


def test_gradients_land_in_the_rows(nets: list[nn.Sequential]) -> None:
    storage = FlatParameters([[net] for net in nets])
    x = torch.randn(5, 2)
    nets[1](x).sum().backward()
    assert torch.equal(storage.grad[0], torch.zeros_like(storage.grad[0]))
    expected = torch.autograd.grad(nets[1](x).sum(), list(nets[1].parameters()))
    torch.testing.assert_close(storage.grad[1], torch.cat([g.flatten() for g in expected]))


@pytest.mark.parametrize("disturb", ["to", "zero_grad", "half_and_back", "data"])
def test_link_mends_what_others_replaced(nets: list[nn.Sequential], disturb: str) -> None:
    storage = FlatParameters([[net] for net in nets])
    net = nets[1]
    if disturb == "to":
        net.to(torch.float64)
        net.to(torch.float32)
    elif disturb == "zero_grad":
        net.zero_grad(set_to_none=True)
    elif disturb == "half_and_back":
        net.half().float()
    else:
        for p in net.parameters():
            p.data = p.data.clone() + 1.0
    values = flat(net)
    storage.link()
    assert torch.equal(flat(net), values)
    assert torch.equal(storage.data[1], values)
    storage.data[1].zero_()
    assert torch.equal(flat(net), torch.zeros_like(values))
    storage.grad.zero_()
    net(torch.ones(1, 2)).sum().backward()
    assert float(storage.grad[1, -1]) == 1.0  # of the output's bias
    assert torch.equal(storage.grad[0], torch.zeros_like(values))


def test_a_parameter_in_two_modules_of_a_set_counts_once() -> None:
    trunk = nn.Linear(2, 3)
    policy, value = nn.Sequential(trunk, nn.Linear(3, 4)), nn.Sequential(trunk, nn.Linear(3, 1))
    storage = FlatParameters([[policy, value]])
    assert storage.data.shape == (1, 9 + 16 + 4)
    assert storage.width_of([policy]) == 25
    assert storage.holds(trunk.weight)
    assert not storage.holds(nn.Linear(1, 1).weight)


def test_frozen_parameters_are_left_out(nets: list[nn.Sequential]) -> None:
    for net in nets:
        net[0].requires_grad_(False)
    storage = FlatParameters([[net] for net in nets])
    assert storage.data.shape == (3, 5)
    assert not storage.holds(linear(nets[0], 0).weight)


def test_sets_without_trainable_parameters_have_empty_rows(nets: list[nn.Sequential]) -> None:
    """A team of frozen policies may still act."""
    for net in nets:
        net.requires_grad_(False)
    storage = FlatParameters([[net] for net in nets])
    assert storage.data.shape == storage.grad.shape == (3, 0)


def test_stacked_is_a_live_leaf_whose_gradient_lands_in_the_rows(nets: list[nn.Sequential]) -> None:
    storage = FlatParameters([[net] for net in nets])
    weights = [linear(net, 0).weight for net in nets]
    leaf = storage.stacked(weights)
    assert leaf is not None
    assert leaf.is_leaf
    torch.testing.assert_close(leaf.detach(), torch.stack([w.detach() for w in weights]))
    with torch.no_grad():
        weights[2].fill_(9.0)
    assert bool((leaf[2] == 9.0).all())
    (leaf * torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)).sum().backward()
    for i, weight in enumerate(weights):
        assert weight.grad is not None
        assert torch.equal(weight.grad, torch.full((4, 2), i + 1.0))


def test_stacked_in_another_layout(nets: list[nn.Sequential]) -> None:
    storage = FlatParameters([[net] for net in nets])
    weights = [linear(net, 0).weight for net in nets]
    leaf = storage.stacked(weights, lambda w: w.mT)
    assert leaf is not None
    assert leaf.shape == (3, 2, 4)
    factors = torch.randn(3, 2, 4)
    (leaf * factors).sum().backward()
    for weight, factor in zip(weights, factors, strict=True):
        assert weight.grad is not None
        torch.testing.assert_close(weight.grad, factor.mT)


def test_stacked_refuses_uneven_distances(nets: list[nn.Sequential]) -> None:
    storage = FlatParameters([[net] for net in nets])
    a, b, c = (linear(net, 0).weight for net in nets)
    assert storage.stacked([a, b, c]) is not None
    assert storage.stacked([a, c]) is not None
    assert storage.stacked([b, a]) is None
    assert storage.stacked([a, c, b]) is None
    assert storage.stacked([a, a]) is None


def test_several_models_of_one_set_stack(nets: list[nn.Sequential]) -> None:
    storage = FlatParameters([nets])
    leaf = storage.stacked([linear(net, 2).weight for net in nets])
    assert leaf is not None
    torch.testing.assert_close(leaf.detach(), torch.stack([linear(net, 2).weight.detach() for net in nets]))


def test_sets_of_unequal_layout_are_refused() -> None:
    with pytest.raises(ValueError, match="same shapes"):
        FlatParameters([networks(1), networks(1, width=5)])


def test_two_dtypes_are_refused() -> None:
    with pytest.raises(ValueError, match="one dtype"):
        FlatParameters([[nn.Linear(2, 2), nn.Linear(2, 2).double()]])
