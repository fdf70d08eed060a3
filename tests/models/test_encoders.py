"""Observations of every structure, through encoders and the networks that use them."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from coterie.models import CategoricalPolicy, GaussianPolicy, Model, Value
from coterie.models.batch import VMAP_FROM, ModelBatch
from coterie.models.encoders import Encoder, ImageEncoder, image_layout, make_encoder
from coterie.models.flat_parameters import FlatParameters
from coterie.spaces import flat_size

BOX = spaces.Box(-1.0, 1.0, (2,))
BYTES: Any = {"low": 0, "high": 255, "dtype": np.uint8}


def image(*shape: int) -> spaces.Box:
    return spaces.Box(shape=shape, **BYTES)


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        # channels, height, width, channels last
        ((84, 84, 3), (3, 84, 84, True)),
        ((3, 84, 84), (3, 84, 84, False)),
        ((4, 5, 5), (4, 5, 5, False)),
        ((7, 7, 16), (16, 7, 7, True)),  # more channels than pixels on a side, but square
        ((16, 7, 7), (16, 7, 7, False)),
        ((5, 7, 3), (3, 5, 7, True)),  # not square: the smaller of the two
        ((3, 7, 5), (3, 7, 5, False)),
        ((3, 3, 3), (3, 3, 3, True)),
        ((5, 7, 5), (5, 5, 7, True)),
        ((6, 9), (1, 6, 9, False)),
    ],
)
def test_where_the_channels_are(shape: tuple[int, ...], layout: tuple[int, int, int, bool]) -> None:
    assert image_layout(shape) == layout


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        # sides of 48 and more shrink to (side + 4 - 8) // 4 + 1, of 12 and more to (side + 2 - 4) // 2 + 1
        ((3, 3), 32 * 3 * 3),
        ((3, 3, 3), 32 * 3 * 3),
        ((1, 1, 1), 32),
        ((11, 11, 3), 32 * 11 * 11),
        ((3, 12, 12), 32 * 6 * 6),  # 12 -> 6 -> 6 -> 6
        ((3, 40, 20), 32 * 10 * 10),  # 40 -> 20 -> 10 -> 10 and 20 -> 10 -> 10 -> 10
        ((64, 64, 3), 32 * 8 * 8),  # 64 -> 16 -> 8 -> 8
        ((84, 84), 32 * 10 * 10),  # 84 -> 21 -> 10 -> 10
    ],
)
def test_images_of_every_size(shape: tuple[int, ...], size: int) -> None:
    encoder = ImageEncoder(image(*shape))
    assert encoder.size == size
    assert encoder(torch.zeros(2, *shape)).shape == (2, size)


def test_a_convolution_sees_pixels_where_they_are() -> None:
    """One layer on 3x3 pixels with a kernel that picks its centre: the image itself, channel by channel, in [0, 1]."""
    pixels = torch.arange(18.0).view(1, 3, 3, 2)  # [B, H, W, C]: channel 0 has the even numbers
    for x, shape in ((pixels, (3, 3, 2)), (pixels.movedim(-1, 1), (2, 3, 3))):
        encoder = ImageEncoder(image(*shape), (2,), "leaky_relu")
        convolution = encoder.net[0]
        with torch.no_grad():
            convolution.weight.zero_()
            convolution.weight[0, 0, 1, 1] = convolution.weight[1, 1, 1, 1] = 255.0
        expected = [*range(0, 18, 2), *range(1, 18, 2)]
        torch.testing.assert_close(encoder(x)[0].tolist(), [float(n) for n in expected])


def test_only_bytes_are_scaled() -> None:
    assert ImageEncoder(spaces.Box(0.0, 255.0, (5, 5))).scale == 1.0
    assert ImageEncoder(image(5, 5)).scale == 1 / 255


def test_vectors_need_no_encoder() -> None:
    flat = [
        spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, ()), spaces.Box(-1, 1, (2, 2, 2, 2)), spaces.Discrete(3),
        spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(4), spaces.Dict({"a": BOX, "b": spaces.Discrete(2)}), 5, None,
    ]  # fmt: skip
    assert [make_encoder(space) for space in flat] == [None] * len(flat)
    assert make_encoder(image(4, 4), cnn=()) is None


NESTED = spaces.Dict(
    {
        "vector": spaces.Box(-1, 1, (2,)),
        "pair": spaces.Tuple((image(4, 5), spaces.Discrete(3), spaces.Box(-1, 1, ()))),
        "grid": spaces.Box(0.0, 1.0, (3, 4, 4)),
    }
)


def test_parts_are_encoded_each_by_its_own() -> None:
    encoder = Encoder(NESTED)
    # in the order of the space, which a Dict sorts by key: grid, pair (image, choice, number), vector
    x = torch.randn(6, flat_size(NESTED))
    grid, picture, choice, number, vector = x.split([48, 20, 3, 1, 2], dim=-1)
    first, second = encoder.images.values()
    expected = [first(grid.view(6, 3, 4, 4)), second(picture.view(6, 4, 5)), choice, number, vector]
    assert encoder.size == 32 * 16 + 32 * 20 + 3 + 1 + 2
    torch.testing.assert_close(encoder(x), torch.cat(expected, dim=-1))


def by_loop(models: list[Model], states: Tensor) -> tuple[Tensor, list[dict[str, Tensor]]]:
    copies = [copy.deepcopy(model) for model in models]
    outputs = torch.stack([model.compute({"states": states[:, i]})[0] for i, model in enumerate(copies)], dim=1)
    outputs.square().sum().backward()
    return outputs, [{name: p.grad for name, p in model.named_parameters() if p.grad is not None} for model in copies]


@pytest.mark.parametrize("rnn", [None, "gru"])
@pytest.mark.parametrize(("count", "mode"), [(1, "single"), (2, "loop"), (VMAP_FROM, "vmap")])
@pytest.mark.parametrize("space", [image(5, 5, 3), NESTED], ids=["image", "nested"])
def test_networks_of_structured_observations_in_batches(space: Any, count: int, mode: str, rnn: str | None) -> None:
    models: list[Model] = [GaussianPolicy(space, BOX, hidden=(8,), cnn=(4,), rnn=rnn, rnn_size=6) for _ in range(count)]
    for model in models:
        model.init_biases("normal_")
    batch = ModelBatch(models, "policy", FlatParameters([[model] for model in models]), torch.eye(count))
    assert batch.mode == mode
    for rows in (3, 700):  # on both sides of the size from which layers leave their stock forms
        states = torch.rand(rows, count, flat_size(space))
        for model in models:
            for p in model.parameters():
                assert p.grad is not None
                p.grad.zero_()
        if rnn is None:
            mean, _ = batch(states)
        else:
            (mean, _), _ = batch.unroll(states, batch.initial_state(rows, count), None, None, 1)
        mean.square().sum().backward()
        expected, grads = by_loop(models, states)
        torch.testing.assert_close(mean, expected, atol=1e-5, rtol=1e-4)
        for model, theirs in zip(models, grads, strict=True):
            named = dict(model.named_parameters())
            for name, grad in theirs.items():
                torch.testing.assert_close(named[name].grad, grad, atol=1e-4, rtol=1e-3)


def test_a_network_of_images_learns() -> None:
    """Which half of a 3x3 image is bright, from 32 images: plain regression of the sign."""
    value = Value(image(3, 3), BOX, hidden=(16,), cnn=(4,), activation="relu")
    x = torch.randint(0, 100, (32, 3, 3))
    sign = torch.ones(32, 1)
    sign[::2] = -1
    x[::2, 0] += 150
    x[1::2, 2] += 150
    optimizer = torch.optim.Adam(value.parameters(), 1e-2)
    for _ in range(60):
        loss = (value.compute({"states": x.flatten(1).float()})[0] - sign).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.05


def test_agent_ids_stand_beside_the_features() -> None:
    policy = CategoricalPolicy(image(4, 4), spaces.Discrete(3), agent_ids=2, cnn=(2,), hidden=(8,))
    states, ids = torch.rand(1, 16).expand(2, 16), torch.eye(2)
    logits = policy.compute({"states": states, "agent_id": ids})[0]
    assert not torch.allclose(logits[0], logits[1])


def test_hand_written_models_get_the_structure_back() -> None:
    model = Model(NESTED, BOX)
    structure = model.unflatten(torch.zeros(5, 2, flat_size(NESTED)))
    assert structure["grid"].shape == (5, 2, 3, 4, 4)
    assert [part.shape for part in structure["pair"]] == [(5, 2, 4, 5), (5, 2, 3), (5, 2)]
    with pytest.raises(TypeError, match="was built for observations of size 4: pass a space"):
        Model(4, BOX).unflatten(torch.zeros(5, 4))


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"cnn: expected layers of at least one channel, got \(4, 0\)"):
        Value(image(3, 3), BOX, cnn=(4, 0))
    with pytest.raises(ValueError, match=r"activation.*'swish'"):
        Value(image(3, 3), BOX, activation="swish")


def test_images_are_orthogonal_too() -> None:
    convolution = ImageEncoder(image(9, 9, 3)).net[0]
    assert isinstance(convolution, nn.Conv2d)
    rows = convolution.weight.detach().flatten(1)  # [16, 27]
    torch.testing.assert_close(rows @ rows.mT, 2 * torch.eye(16), atol=1e-5, rtol=0)
