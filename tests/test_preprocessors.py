from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from coterie.preprocessors import (
    PopArt,
    Preprocessor,
    RunningStandardScaler,
    ValueNorm,
    rescale_output,
    stack_preprocessors,
)

KINDS = [RunningStandardScaler, ValueNorm, PopArt]


def moments(preprocessor: Preprocessor) -> tuple[Tensor, Tensor]:
    return preprocessor.get_buffer("running_mean"), preprocessor.get_buffer("running_variance")


# ---- running mean and variance --------------------------------------------------------------------------------------


def test_scaler_by_hand() -> None:
    scaler = RunningStandardScaler(1)
    scaler(torch.tensor([[1.0], [3.0]]), train=True)  # mean 2, variance 1
    scaler(torch.tensor([[8.0]]), train=True)  # mean 12 / 3 = 4, variance (9 + 1 + 16) / 3 = 26 / 3
    mean, variance = moments(scaler)
    assert float(mean) == pytest.approx(4.0)
    assert float(variance) == pytest.approx(26 / 3)
    assert float(scaler.current_count) == 3
    assert float(scaler(torch.tensor([[8.0]]))) == pytest.approx(4 / math.sqrt(26 / 3))


@pytest.mark.parametrize("sizes", [[1] * 200, [1, 2, 3, 50, 1, 143], [200]])
@pytest.mark.parametrize("offset", [0.0, 1e4, -1e6])
def test_scaler_against_numpy(sizes: list[int], offset: float) -> None:
    # a spread of 0.1 around 1e4: E[x^2] - E[x]^2 in float32 keeps no digit of it
    data = (offset + 0.1 * torch.randn(sum(sizes), 3, dtype=torch.float64)).float()
    scaler = RunningStandardScaler(3)
    for part in data.split(sizes):
        scaler(part, train=True)
    mean, variance = moments(scaler)
    exact = data.numpy().astype(np.float64)
    np.testing.assert_allclose(mean[0], exact.mean(axis=0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(variance[0], exact.var(axis=0), rtol=1e-7, atol=1e-15)


def test_scaler_before_it_saw_anything_only_clips() -> None:
    x = torch.tensor([[1.5, -0.5, 70.0]])
    torch.testing.assert_close(RunningStandardScaler(3)(x), torch.tensor([[1.5, -0.5, 5.0]]))


def test_scaler_clips() -> None:
    scaler = RunningStandardScaler(1, clip_threshold=2.0)
    scaler(torch.tensor([[-1.0], [1.0]]), train=True)
    torch.testing.assert_close(scaler(torch.tensor([[3.0], [-9.0], [1.0]])), torch.tensor([[2.0], [-2.0], [1.0]]))
    # what was clipped can't come back: 2 std above the mean is 2
    torch.testing.assert_close(scaler(torch.tensor([[9.0]]), inverse=True), torch.tensor([[2.0]]))


def test_scaler_adds_epsilon_to_the_deviation() -> None:
    scaler = RunningStandardScaler(1, epsilon=1.0)
    scaler(torch.tensor([[-1.0], [1.0]]), train=True)
    torch.testing.assert_close(scaler(torch.tensor([[1.0]])), torch.tensor([[0.5]]))  # 1 / (1 + 1)


# ---- value normalisation --------------------------------------------------------------------------------------------


def test_value_norm_debiasing_by_hand() -> None:
    norm = ValueNorm(1, beta=0.9)
    first, second = torch.tensor([[2.0], [4.0]]), torch.tensor([[10.0], [14.0]])
    norm(first, train=True)
    # weights 0.1 / 0.1: exactly the first batch's moments, not a tenth of them
    assert [float(m) for m in moments(norm)] == pytest.approx([3.0, 1.0])
    norm(second, train=True)
    # weights 0.09 and 0.1 over 0.19; mean of 3 and 12, second moment of 3^2 + 1 and 12^2 + 4
    mean = (0.09 * 3 + 0.1 * 12) / 0.19
    square = (0.09 * 10 + 0.1 * 148) / 0.19
    assert [float(m) for m in moments(norm)] == pytest.approx([mean, square - mean**2])
    expected = (20.0 - mean) / math.sqrt(square - mean**2)
    assert float(norm(torch.tensor([[20.0]]))) == pytest.approx(expected, rel=1e-6)


def test_value_norm_follows_the_paper_over_many_batches() -> None:
    norm = ValueNorm(2, beta=0.97)
    m = s = np.zeros(2)
    weight = 0.0
    for _ in range(50):
        batch = torch.randn(8, 2) * 3 + 100
        norm(batch, train=True)
        exact = batch.numpy().astype(np.float64)
        m = 0.97 * m + 0.03 * exact.mean(axis=0)
        s = 0.97 * s + 0.03 * (exact**2).mean(axis=0)
        weight = 0.97 * weight + 0.03
    mean, variance = moments(norm)
    np.testing.assert_allclose(mean[0], m / weight, rtol=1e-10)
    np.testing.assert_allclose(variance[0], s / weight - (m / weight) ** 2, rtol=1e-8)


def test_value_norm_default_is_no_frozen_start() -> None:
    # beta 0.99999: without debiasing the first mean would be 1e-5 of the truth
    norm = ValueNorm(1)
    data = torch.randn(100, 1) * 2 + 50
    norm(data, train=True)
    y = norm(data)
    assert float(y.mean()) == pytest.approx(0.0, abs=1e-5)
    assert float(y.std(correction=0)) == pytest.approx(1.0, abs=1e-5)


def test_value_norm_at_a_large_mean() -> None:
    data = (1e4 + 0.1 * torch.randn(400, 1, dtype=torch.float64)).float()
    norm = ValueNorm(1, min_variance=1e-6)
    for part in data.split(10):
        norm(part, train=True)
    exact = data.numpy().astype(np.float64)
    # batches of equal size, beta close to 1: nearly the plain moments
    np.testing.assert_allclose(float(moments(norm)[1]), exact.var(), rtol=1e-3)


def test_value_norm_floors_the_variance() -> None:
    norm = ValueNorm(1, min_variance=0.04)
    norm(torch.full((5, 1), 3.0), train=True)
    torch.testing.assert_close(norm(torch.tensor([[4.0]])), torch.tensor([[5.0]]))  # 1 / 0.2
    torch.testing.assert_close(norm(torch.tensor([[5.0]]), inverse=True), torch.tensor([[4.0]]))


def test_value_norm_does_not_clip() -> None:
    assert float(ValueNorm(1)(torch.tensor([[1000.0]]))) == 1000.0


@pytest.mark.parametrize("beta", [1.0, -0.1, 2.0])
def test_value_norm_refuses_a_decay_that_is_none(beta: float) -> None:
    with pytest.raises(ValueError, match="beta"):
        ValueNorm(1, beta=beta)


# ---- PopArt ---------------------------------------------------------------------------------------------------------


def test_popart_has_the_moments_of_value_norm() -> None:
    popart, norm = PopArt(2, beta=0.9), ValueNorm(2, beta=0.9)
    for _ in range(3):
        data = torch.randn(6, 2) * 3 + 100
        assert torch.equal(popart(data, train=True), norm(data, train=True))
        for mine, other in zip(popart.moments(), norm.moments(), strict=True):
            assert torch.equal(mine, other)
    mean, scale = popart.moments()
    torch.testing.assert_close((data - mean[0]) / scale[0], popart(data).double(), rtol=1e-5, atol=1e-5)


def test_popart_knows_no_values_until_it_learned() -> None:
    popart, x = PopArt(2), torch.randn(5, 2) * 100
    assert torch.equal(popart(x, inverse=True), torch.zeros(5, 2))
    assert torch.equal(popart(x), x)
    assert [float(m.abs().sum()) for m in popart.moments()] == [0.0, 0.0]
    popart(x, train=True)
    torch.testing.assert_close(popart(popart(x), inverse=True), x)


def test_moments_are_copies() -> None:
    for kind in (ValueNorm, PopArt):
        norm = kind(1)
        norm(torch.tensor([[1.0], [3.0]]), train=True)
        before = norm.moments()
        norm(torch.tensor([[50.0], [70.0]]), train=True)
        assert [float(m) for m in before] == pytest.approx([2.0, 1.0])


def test_rescaling_by_hand() -> None:
    # s = 2, m = 10 -> s' = 4, m' = 30: w' = w / 2, b' = (2 b + 10 - 30) / 4
    before = torch.tensor([[10.0]]), torch.tensor([[2.0]])
    after = torch.tensor([[30.0]]), torch.tensor([[4.0]])
    weight, bias = rescale_output(torch.tensor([[3.0, -1.0]]), torch.tensor([6.0]), before, after)
    assert torch.equal(weight, torch.tensor([[1.5, -0.5]]))
    assert torch.equal(bias, torch.tensor([-2.0]))


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e3])
def test_an_update_of_the_statistics_changes_no_prediction(size: int, unit: float) -> None:
    popart, layer, features = PopArt(size, beta=0.7), nn.Linear(8, size), torch.randn(50, 8)
    popart(unit * torch.randn(20, size), train=True)
    for step in range(20):
        predicted = popart(layer(features), inverse=True)
        before = popart.moments()
        # the returns' mean and spread move by orders of magnitude
        popart(unit * (torch.randn(20, size) * 2.0 ** (step % 7) + 5 * step), train=True)
        weight, bias = rescale_output(layer.weight, layer.bias, before, popart.moments())
        assert not torch.equal(weight, layer.weight)
        assert not weight.requires_grad
        layer.load_state_dict({"weight": weight, "bias": bias})
        torch.testing.assert_close(popart(layer(features), inverse=True), predicted, rtol=1e-5, atol=1e-5 * unit * 100)


def test_the_first_update_of_the_statistics_leaves_the_layer_alone() -> None:
    popart, layer = PopArt(1), nn.Linear(4, 1)
    before = popart.moments()
    popart(torch.randn(20, 1) * 1000 + 5000, train=True)
    weight, bias = rescale_output(layer.weight, layer.bias, before, popart.moments())
    assert torch.equal(weight, layer.weight)
    assert torch.equal(bias, layer.bias)
    # nor does an update without rows, before or after
    empty = PopArt(1)
    for moments_now in (empty.moments(), popart.moments()):
        weight, bias = rescale_output(layer.weight, layer.bias, moments_now, moments_now)
        torch.testing.assert_close((weight, bias), (layer.weight.detach(), layer.bias.detach()), rtol=0, atol=0)


def test_stacked_layers_are_rescaled_by_their_own_statistics() -> None:
    whole = stack_preprocessors([PopArt(1) for _ in range(3)])
    assert isinstance(whole, PopArt)
    weight, bias, features = torch.randn(3, 4, 6), torch.randn(3, 4), torch.randn(3, 10, 6)  # 4 outputs of one scale
    mask = torch.ones(3, 20, 1, dtype=torch.bool)
    mask[1] = False  # the second set has not learned yet
    whole(torch.randn(3, 20, 1), train=True, mask=mask)

    def predict() -> Tensor:
        y: Tensor = whole((features @ weight.mT + bias.unsqueeze(1)).flatten(1).unsqueeze(-1), inverse=True)
        return y

    predicted, old, before = predict(), weight, whole.moments()
    whole(torch.randn(3, 20, 1) * torch.tensor([1.0, 10.0, 100.0]).view(3, 1, 1) + 30, train=True)
    weight, bias = rescale_output(weight, bias, before, whole.moments())
    torch.testing.assert_close(predict()[[0, 2]], predicted[[0, 2]], rtol=1e-5, atol=1e-4)
    assert torch.equal(weight[1], old[1])


@pytest.mark.parametrize("unit", [1e-3, 1e3])
def test_learning_does_not_depend_on_the_unit_of_rewards(unit: float) -> None:
    # a linear critic that bootstraps from itself, the way an agent uses it
    states, following, rewards = torch.randn(30, 5), torch.randn(30, 5), torch.randn(6, 30, 1) + 0.5
    first = nn.Linear(5, 1)

    def learn(scale: float) -> tuple[Tensor, Tensor]:
        layer, popart = copy.deepcopy(first), PopArt(1, beta=0.9)
        for earned in rewards * scale:
            targets = earned + 0.9 * popart(layer(following), inverse=True)
            before = popart.moments()
            popart(targets, train=True)
            weight, bias = rescale_output(layer.weight, layer.bias, before, popart.moments())
            layer.load_state_dict({"weight": weight, "bias": bias})
            for _ in range(5):
                loss = (popart(targets) - layer(states)).square().mean()
                grads = torch.autograd.grad(loss, list(layer.parameters()))
                with torch.no_grad():
                    for parameter, grad in zip(layer.parameters(), grads, strict=True):
                        parameter -= 0.1 * grad
        return torch.cat([p.detach().flatten() for p in layer.parameters()]), popart(layer(states), inverse=True)

    (parameters, values), (others, scaled) = learn(1.0), learn(unit)
    torch.testing.assert_close(others, parameters, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scaled / unit, values, rtol=1e-4, atol=1e-5)


# ---- rows that count ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_only_rows_with_a_true_mask_are_learned_from(kind: type[Preprocessor]) -> None:
    masked, rest = kind(3), kind(3)
    for n in (6, 1, 9):
        x, mask = torch.randn(n, 3) * 5 + 100, torch.rand(n, 1) < 0.5
        mask[0] = True
        y = masked(x, train=True, mask=mask)
        rest(x[mask.squeeze(-1)], train=True)
        torch.testing.assert_close(masked.state_dict(), rest.state_dict(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(y, rest(x), rtol=1e-6, atol=1e-6)  # all rows are normalised


@pytest.mark.parametrize("kind", KINDS)
def test_a_true_mask_is_none(kind: type[Preprocessor]) -> None:
    masked, plain = kind(3), kind(3)
    for n in (6, 1):
        x = torch.randn(n, 3)
        masked(x, train=True, mask=torch.ones(n, 1, dtype=torch.bool))
        plain(x, train=True)
    torch.testing.assert_close(masked.state_dict(), plain.state_dict(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("garbage", [math.nan, math.inf, 1e38, 0.0])
@pytest.mark.parametrize("stacked", [False, True, "unequal"])
def test_garbage_in_masked_rows_changes_no_bit(kind: type[Preprocessor], garbage: float, stacked: bool | str) -> None:
    def make() -> nn.Module:
        members: list[nn.Module] = [kind(2) for _ in range(3)]
        if stacked == "unequal":
            members[1] = RunningStandardScaler(2, clip_threshold=1.0)
        return stack_preprocessors(members) if stacked else kind(2)

    one, other = make(), make()
    shape = (3, 8) if stacked else (8,)
    for _ in range(3):
        x, mask = torch.randn(*shape, 2), torch.rand(*shape, 1) < 0.6
        one(x, train=True, mask=mask)
        other(x.masked_fill(~mask, garbage), train=True, mask=mask)
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("warm", [False, True])
def test_a_set_without_rows_stays_as_it_is(kind: type[Preprocessor], warm: bool) -> None:
    members = [kind(2) for _ in range(3)]
    whole = stack_preprocessors(members)
    if warm:
        whole(torch.randn(3, 5, 2) * 3, train=True)
    before = copy.deepcopy([member.state_dict() for member in members])
    x, mask = torch.randn(3, 4, 2) + 7, torch.ones(3, 4, 1, dtype=torch.bool)
    x[1], mask[1] = math.nan, False
    alone = copy.deepcopy(members[2])
    whole(x, train=True, mask=mask)
    for name, tensor in members[1].state_dict().items():
        assert torch.equal(tensor, before[1][name]), name
    assert not torch.equal(moments(members[0])[0], before[0]["running_mean"])
    alone(x[2], train=True)
    torch.testing.assert_close(members[2].state_dict(), alone.state_dict(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_without_train_does_nothing(kind: type[Preprocessor]) -> None:
    preprocessor, x = kind(2), torch.randn(4, 2)
    before = copy.deepcopy(preprocessor.state_dict())
    assert torch.equal(preprocessor(x, mask=torch.zeros(4, 1, dtype=torch.bool)), preprocessor(x))
    torch.testing.assert_close(preprocessor.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    "mask", [torch.ones(4, 2, dtype=torch.bool), torch.ones(4, dtype=torch.bool), torch.ones(4, 1)]
)
def test_a_mask_of_another_kind_is_refused(mask: Tensor) -> None:
    for kind in KINDS:
        with pytest.raises(ValueError, match=r"mask: expected bool of shape \[4, 1\]"):
            kind(2)(torch.zeros(4, 2), train=True, mask=mask)


# ---- what all have in common ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_one_is_finite(kind: type[Preprocessor]) -> None:
    preprocessor = kind(2)
    y = preprocessor(torch.tensor([[3.0, -7.0]]), train=True)
    assert bool(torch.isfinite(y).all())
    preprocessor(torch.randn(10, 2), train=True)
    assert all(bool(torch.isfinite(m).all()) for m in moments(preprocessor))


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_batch_changes_nothing(kind: type[Preprocessor]) -> None:
    preprocessor = kind(2)
    preprocessor(torch.randn(5, 2), train=True)
    before = copy.deepcopy(preprocessor.state_dict())
    assert preprocessor(torch.empty(0, 2), train=True).shape == (0, 2)
    torch.testing.assert_close(preprocessor.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_inverse_round_trip(kind: type[Preprocessor]) -> None:
    preprocessor = kind(3)
    data = torch.randn(200, 3) * torch.tensor([0.5, 1.0, 100.0]) + torch.tensor([0.0, -5.0, 1000.0])
    y = preprocessor(data, train=True)
    inside = y.abs() < 5
    torch.testing.assert_close(preprocessor(y, inverse=True)[inside], data[inside], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_only_training_learns(kind: type[Preprocessor]) -> None:
    preprocessor = kind(2)
    before = copy.deepcopy(preprocessor.state_dict())
    preprocessor(torch.randn(5, 2) + 9)
    preprocessor(torch.randn(5, 2) + 9, inverse=True)
    torch.testing.assert_close(preprocessor.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_are_left_alone_and_keep_their_dtype(kind: type[Preprocessor]) -> None:
    preprocessor = kind(2)
    x = torch.randn(5, 2) + 9
    original = x.clone()
    assert preprocessor(x, train=True).dtype == torch.float32
    assert torch.equal(x, original)
    assert all(m.dtype == torch.float64 for m in moments(preprocessor))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_flow_only_where_asked(kind: type[Preprocessor]) -> None:
    preprocessor = kind(2)
    x = torch.randn(5, 2, requires_grad=True)
    assert not preprocessor(x, train=True).requires_grad
    assert preprocessor(x, no_grad=False).requires_grad
    assert not any(m.requires_grad for m in moments(preprocessor))


@pytest.mark.parametrize("kind", KINDS)
def test_state_dict_round_trip(kind: type[Preprocessor]) -> None:
    first, second = kind(2), kind(2)
    first(torch.randn(7, 2) * 3 + 2, train=True)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    x = torch.randn(4, 2)
    assert torch.equal(first(x), second(x))
    for preprocessor in (first, second):  # the count is part of the state: both go on alike
        preprocessor(torch.ones(3, 2), train=True)
    torch.testing.assert_close(first.state_dict(), second.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("size", "width"),
    [(3, 3), ((2, 3), 6), ([4], 4), (spaces.Box(-1, 1, (2, 2)), 4), (spaces.Discrete(5), 5)],
)
def test_size_may_be_a_space(kind: type[Preprocessor], size: Any, width: int) -> None:
    assert kind(size).size == width
    assert moments(kind(size))[0].shape == (1, width)


@pytest.mark.parametrize("kind", KINDS)
def test_a_size_below_one_is_refused(kind: type[Preprocessor]) -> None:
    with pytest.raises(ValueError, match="size of at least 1"):
        kind(0)


def test_the_base_leaves_the_formulas_to_others() -> None:
    base = Preprocessor(2)
    for call in (base.learn, base.normalise, base.denormalise):
        with pytest.raises(NotImplementedError):
            call(torch.zeros(1, 2))


# ---- several at once ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("warm", [False, True])
def test_stacked_equals_separate(kind: type[Preprocessor], warm: bool) -> None:
    members = [kind(3) for _ in range(4)]
    if warm:  # unequal histories
        for i, member in enumerate(members):
            member(torch.randn(i + 1, 3) * (i + 1), train=True)
    separate = copy.deepcopy(members)
    whole = stack_preprocessors(members)
    for n in (5, 1, 0, 12):
        x = torch.randn(4, n, 3) * 3 + torch.arange(4.0).view(4, 1, 1) * 100
        y = whole(x, train=True)
        expected = [m(part, train=True) for m, part in zip(separate, x, strict=True)]
        torch.testing.assert_close(y, torch.stack(expected), rtol=1e-7, atol=1e-7)
        back = torch.stack([m(part, inverse=True) for m, part in zip(separate, y, strict=True)])
        torch.testing.assert_close(whole(y, inverse=True), back, rtol=1e-7, atol=1e-7)
    for member, other in zip(members, separate, strict=True):
        torch.testing.assert_close(member.state_dict(), other.state_dict(), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_members_are_live_views_of_the_whole(kind: type[Preprocessor]) -> None:
    members = [kind(2) for _ in range(3)]
    whole = stack_preprocessors(members)
    whole(torch.randn(3, 6, 2) + 4, train=True)
    x = torch.randn(3, 5, 2)
    torch.testing.assert_close(torch.stack([m(p) for m, p in zip(members, x, strict=True)]), whole(x))
    other = kind(2)
    other(torch.randn(9, 2) * 7, train=True)
    members[1].load_state_dict(other.state_dict())  # a checkpoint loaded into a member reaches the whole
    torch.testing.assert_close(whole(x)[1], other(x[1]))
    members[2](torch.full((50, 2), -30.0), train=True)
    torch.testing.assert_close(whole(x)[2], members[2](x[2]))


def test_settings_survive_stacking() -> None:
    whole = stack_preprocessors([RunningStandardScaler(1, clip_threshold=0.5) for _ in range(2)])
    assert float(whole(torch.full((2, 1, 1), 3.0)).max()) == 0.5
    whole = stack_preprocessors([ValueNorm(1, min_variance=4.0) for _ in range(2)])
    whole(torch.zeros(2, 3, 1), train=True)
    torch.testing.assert_close(whole(torch.ones(2, 1, 1)), torch.full((2, 1, 1), 0.5))


@pytest.mark.parametrize(
    "members",
    [
        lambda: [RunningStandardScaler(2), RunningStandardScaler(2, clip_threshold=1.0)],
        lambda: [ValueNorm(2), ValueNorm(2, beta=0.5)],
        lambda: [RunningStandardScaler(2), ValueNorm(2)],
    ],
)
def test_unequal_ones_work_side_by_side(members: Any) -> None:
    mine = members()
    separate = copy.deepcopy(mine)
    whole = stack_preprocessors(mine)
    x = torch.randn(2, 6, 2) * 4
    expected = torch.stack([m(p, train=True) for m, p in zip(separate, x, strict=True)])
    torch.testing.assert_close(whole(x, train=True), expected)


class Halve(nn.Module):
    """A user's own: no subclass of anything in the library."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def forward(self, x: Tensor, train: bool = False, inverse: bool = False) -> Tensor:
        assert len(x) > 0
        self.seen += len(x) * train
        return x * 2 if inverse else x / 2


def test_any_module_will_do() -> None:
    members = [Halve(), Halve()]
    whole = stack_preprocessors(members)
    x = torch.randn(2, 3, 4)
    torch.testing.assert_close(whole(x, train=True), x / 2)
    torch.testing.assert_close(whole(whole(x), inverse=True), x)
    assert [m.seen for m in members] == [3, 3]


def test_any_module_is_shown_only_the_rows_that_count() -> None:
    members = [Halve(), Halve()]
    whole = stack_preprocessors(members)
    x, mask = torch.randn(2, 3, 4), torch.zeros(2, 3, 1, dtype=torch.bool)
    mask[0, :2] = True
    torch.testing.assert_close(whole(x, train=True, mask=mask), x / 2)
    torch.testing.assert_close(whole(x, train=True, inverse=True, mask=mask), x * 2)
    assert [m.seen for m in members] == [4, 0]


def test_a_subclass_that_knows_of_no_masks_still_learns() -> None:
    class Plain(ValueNorm):
        def learn(self, x: Tensor) -> None:  # type: ignore[override]
            super().learn(x)

    norm = Plain(1)
    norm(torch.tensor([[1.0], [3.0]]), train=True)
    assert float(moments(norm)[0]) == pytest.approx(2.0)


def test_a_subclass_with_private_attributes_stacks() -> None:
    class Shifted(RunningStandardScaler):
        def __init__(self, size: int) -> None:
            super().__init__(size)
            self._shift = 3.0

        def normalise(self, x: Tensor) -> Tensor:
            return super().normalise(x) + self._shift

    members = [Shifted(2), Shifted(2)]
    torch.testing.assert_close(stack_preprocessors(members)(torch.zeros(2, 1, 2)), torch.full((2, 1, 2), 3.0))
