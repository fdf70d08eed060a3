from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from coterie.spaces import action_width, flat_size


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
    ],
)
def test_action_width(space: Any, width: int) -> None:
    assert action_width(space) == width


@pytest.mark.parametrize(
    "space", [spaces.Dict({"a": spaces.Discrete(2)}), spaces.MultiBinary(3), spaces.Tuple([spaces.Discrete(2)]), "box"]
)
def test_other_spaces_are_refused(space: Any) -> None:
    for function in (flat_size, action_width):
        with pytest.raises(TypeError, match="expected a Box, Discrete or MultiDiscrete"):
            function(space)
