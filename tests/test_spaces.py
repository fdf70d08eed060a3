"""Sizes of spaces, and values flattened and put together again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.spaces import action_width, check_space, flat_size, flatten, flatten_into, unflatten, unflatten_value

NESTED = spaces.Dict(
    {
        "image": spaces.Box(0, 255, (2, 3), np.uint8),
        "hand": spaces.Tuple([spaces.Discrete(3, start=-1), spaces.MultiBinary((2, 2))]),
        "dice": spaces.MultiDiscrete([[2, 3], [1, 2]], start=[[0, 5], [-1, 0]]),
        "time": spaces.Box(0, 1, ()),
    }
)


@pytest.mark.parametrize(
    ("space", "size"),
    [
        (None, 0),
        (7, 7),
        (np.int64(7), 7),
        ((2, 3), 6),
        ([4], 4),
        (spaces.Box(-1, 1, (3,)), 3),
        (spaces.Box(-1, 1, (2, 3, 4)), 24),
        (spaces.Box(-1, 1, ()), 1),
        (spaces.Discrete(5), 5),
        (spaces.Discrete(5, start=2), 5),
        (spaces.MultiDiscrete([2, 3, 4]), 9),
        (spaces.MultiDiscrete([[2, 3], [4, 5]]), 14),
        (spaces.MultiBinary(3), 3),
        (spaces.MultiBinary((2, 3)), 6),
        (spaces.Tuple([spaces.Discrete(2), spaces.Box(0, 1, (2, 2))]), 6),
        (spaces.Tuple([]), 0),
        (NESTED, 8 + 3 + 4 + 6 + 1),
    ],
)
def test_flat_size(space: Any, size: int) -> None:
    result = flat_size(space)
    assert result == size
    assert type(result) is int


@pytest.mark.parametrize(
    ("space", "width"),
    [
        (spaces.Box(-1, 1, (3,)), 3),
        (spaces.Box(-1, 1, (2, 2)), 4),
        (spaces.Discrete(5), 1),
        (spaces.MultiDiscrete([2, 3, 4]), 3),
        (spaces.MultiDiscrete([[2, 3], [4, 5]]), 4),
        (spaces.MultiBinary(5), 5),
        (spaces.MultiBinary((2, 3)), 6),
    ],
)
def test_action_width(space: Any, width: int) -> None:
    result = action_width(space)
    assert result == width
    assert type(result) is int


@pytest.mark.parametrize("space", [spaces.Dict({"a": spaces.Discrete(2)}), spaces.Tuple([spaces.Discrete(2)]), "box"])
def test_actions_of_other_kinds_are_refused(space: Any) -> None:
    with pytest.raises(TypeError, match="expected a Box, Discrete, MultiDiscrete or MultiBinary action space"):
        action_width(space)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Text(3),
        spaces.Sequence(spaces.Discrete(2)),
        spaces.Graph(spaces.Box(0, 1, (2,)), None),
        spaces.OneOf([spaces.Discrete(2), spaces.Discrete(3)]),
    ],
)
def test_other_spaces_are_refused(space: Any) -> None:
    for whole in (space, spaces.Dict({"a": spaces.Tuple([spaces.Discrete(2), space])})):
        for call in (flat_size, check_space, lambda s: flatten(s, None), lambda s: unflatten(s, torch.zeros(1))):
            with pytest.raises(TypeError, match=rf"or a Dict or Tuple of these, got {type(space).__name__}.*; wrap"):
                call(whole)
    with pytest.raises(TypeError, match="got box"):
        flat_size("box")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="got 3"):
        check_space(3)  # type: ignore[arg-type]


def test_flatten_by_hand() -> None:
    value = {
        "image": np.array([[0, 1, 2], [253, 254, 255]], np.uint8),
        "hand": (np.int64(1), np.array([[1, 0], [0, 1]], np.int8)),
        "dice": np.array([[1, 7], [-1, 0]]),
        "time": np.array(0.5, np.float32),
    }
    expected = [
        *(0, 1, 0, 0, 1, 1, 1, 0),  # dice, the first key: 1 of {0, 1}, 7 of {5, 6, 7}, -1 of {-1}, 0 of {0, 1}
        *(0, 0, 1, 1, 0, 0, 1),  # hand: 1 of {-1, 0, 1}, then the four flags
        *(0, 1, 2, 253, 254, 255),
        0.5,
    ]
    flat = flatten(NESTED, value)
    assert flat.dtype == np.float32
    assert flat.tolist() == expected
    rows = np.zeros((2, flat_size(NESTED)), np.float32)
    flatten_into(rows[1], NESTED, value)
    assert rows.tolist() == [[0.0] * 22, expected]


def test_unflatten_by_hand() -> None:
    tensor = torch.arange(44.0).reshape(2, 1, 22)
    parts = unflatten(NESTED, tensor)
    assert list(parts) == ["dice", "hand", "image", "time"]
    assert parts["dice"].tolist() == [[list(range(8))], [list(range(22, 30))]]
    assert parts["hand"][0][1, 0].tolist() == [30, 31, 32]
    assert parts["hand"][1][1, 0].tolist() == [[33, 34], [35, 36]]
    assert parts["image"].shape == (2, 1, 2, 3)
    assert parts["image"][0, 0].tolist() == [[15, 16, 17], [18, 19, 20]]
    assert parts["time"].tolist() == [[21], [43]]
    tensor[0, 0, 15] = -1  # all are views
    assert parts["image"][0, 0, 0, 0] == -1


@pytest.mark.parametrize("shape", [(), (21,), (22, 1)])
def test_unflatten_refuses_other_widths(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected a tensor \[..., 22\]"):
        unflatten(NESTED, torch.zeros(shape))
    with pytest.raises(ValueError, match=r"expected a row of 22 numbers"):
        unflatten_value(NESTED, np.zeros(shape))


@pytest.mark.parametrize(
    ("space", "value", "message"),
    [
        (spaces.Box(0, 1, (2,)), [0.5], r"value has shape \(1,\); expected \(2,\)"),
        (spaces.Box(0, 1, (2, 3)), np.zeros((3, 2)), r"value has shape \(3, 2\); expected \(2, 3\)"),
        (spaces.Box(0, 1, (2,)), [[1], [1, 2]], "value is no array"),
        (spaces.Box(0, 1, (2,)), None, "value is a NoneType of object"),
        (spaces.Discrete(3), 3, r"value is 3; expected a number of Discrete\(3\)"),
        (spaces.Discrete(3, start=1), 0, "value is 0"),  # not the last choice, as a negative index would make it
        (spaces.Discrete(3), 1.0, "value is 1.0"),
        (spaces.Discrete(3), [1, 2], r"value has shape \(2,\); expected one number"),
        (spaces.MultiDiscrete([2, 3]), [1, 3], r"value is \[1, 3\]"),
        (spaces.MultiDiscrete([2, 3]), [-1, 0], r"value is \[-1, 0\]"),
        (spaces.MultiDiscrete([2, 3]), [1, 0, 0], r"value has shape \(3,\)"),
        (spaces.MultiBinary(2), [0, 2], r"value is \[0, 2\]; expected zeros and ones"),
        (spaces.Tuple([spaces.Discrete(2)] * 2), (0,), "value is 1 parts; expected a tuple of 2 parts"),
        (spaces.Tuple([spaces.Discrete(2)] * 2), 3, "value is a int; expected a tuple of 2 parts"),
        (spaces.Dict({"a": spaces.Discrete(2)}), {}, r"value has the keys \[\]; expected \['a'\]"),
        (spaces.Dict({"a": spaces.Discrete(2)}), {"a": 0, "b": 1}, r"keys \['a', 'b'\]; expected \['a'\]"),
        (spaces.Dict({"a": spaces.Discrete(2)}), [0], "value is a list; expected a mapping"),
        (spaces.Dict({"a": spaces.Tuple([spaces.Discrete(2)])}), {"a": (2,)}, r"value\['a'\]\[0\] is 2"),
    ],
)
def test_values_of_another_space_are_named(space: Any, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        flatten(space, value)


# -- any space -------------------------------------------------------------------------------------------------------

shapes = st.lists(st.integers(1, 3), max_size=3).map(tuple)


@st.composite
def multi_discretes(draw: Any) -> spaces.MultiDiscrete:
    shape = draw(st.lists(st.integers(1, 3), min_size=1, max_size=2))
    numbers = st.lists(st.integers(1, 4), min_size=int(np.prod(shape)), max_size=int(np.prod(shape)))
    nvec = np.array(draw(numbers)).reshape(shape)
    return spaces.MultiDiscrete(nvec, start=np.array(draw(numbers)).reshape(shape) - 2)


leaves = st.one_of(
    st.builds(lambda shape: spaces.Box(-3, 3, shape, np.float32), shapes),
    st.builds(lambda shape: spaces.Box(0, 255, shape, np.uint8), shapes),
    st.builds(lambda shape: spaces.Box(-9, 9, shape, np.int64), shapes),
    st.builds(lambda n, start: spaces.Discrete(n, start=start), st.integers(1, 5), st.integers(-3, 3)),
    multi_discretes(),
    st.builds(spaces.MultiBinary, st.one_of(st.integers(1, 4), st.lists(st.integers(1, 3), min_size=1, max_size=3))),
)
any_space = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.dictionaries(st.text("abc", min_size=1, max_size=2), inner, min_size=1, max_size=3).map(spaces.Dict),
        st.lists(inner, min_size=1, max_size=3).map(spaces.Tuple),
    ),
    max_leaves=6,
)


def assert_same(space: Any, got: Any, expected: Any) -> None:
    if isinstance(space, spaces.Dict):
        assert got.keys() == expected.keys()
        for key, part in space.spaces.items():
            assert_same(part, got[key], expected[key])
    elif isinstance(space, spaces.Tuple):
        assert len(got) == len(expected)
        for part, one, other in zip(space.spaces, got, expected, strict=True):
            assert_same(part, one, other)
    else:
        assert np.array_equal(got, expected)
        assert space.contains(got)


@settings(deadline=None, max_examples=200)
@given(any_space, st.integers(0, 2**31))
def test_round_trip(space: Any, seed: int) -> None:
    space.seed(seed)
    value = space.sample()
    flat = flatten(space, value)
    assert flat.shape == (flat_size(space),)
    assert np.array_equal(flat, spaces.utils.flatten(space, value))
    assert_same(space, unflatten_value(space, flat), value)


def flatten_parts(space: Any, parts: Any) -> torch.Tensor:
    """Join what unflatten returned: the reverse, written by the shapes that it promises."""
    if isinstance(space, spaces.Dict):
        return torch.cat([flatten_parts(part, parts[key]) for key, part in space.spaces.items()], dim=-1)
    if isinstance(space, spaces.Tuple):
        return torch.cat([flatten_parts(part, parts[i]) for i, part in enumerate(space.spaces)], dim=-1)
    if isinstance(space, spaces.Discrete):
        assert parts.shape == (2, 3, space.n)
    elif isinstance(space, spaces.MultiDiscrete):
        assert parts.shape == (2, 3, space.nvec.sum())
    else:
        assert parts.shape == (2, 3, *space.shape)
    return parts.reshape(2, 3, -1)


@settings(deadline=None, max_examples=200)
@given(any_space)
def test_unflatten_keeps_every_number_in_its_place(space: Any) -> None:
    tensor = torch.arange(6.0 * flat_size(space)).reshape(2, 3, -1)
    assert torch.equal(flatten_parts(space, unflatten(space, tensor)), tensor)
