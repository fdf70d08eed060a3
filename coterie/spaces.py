"""Gymnasium spaces as the networks see them: sizes, and values flattened to one row of numbers and back.

Observations may be Box (of any rank), Discrete, MultiDiscrete, MultiBinary, and Dict and Tuple of these, nested at will.
A flat value is laid out as :func:`gymnasium.spaces.utils.flatten` does it: a Discrete value is one-hot, a MultiDiscrete
value is the one-hots of its entries one after the other, parts follow in the order of their space.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["action_width", "check_space", "flat_size", "flatten", "flatten_into", "unflatten", "unflatten_value"]

_KINDS = "Box, Discrete, MultiDiscrete, MultiBinary, or a Dict or Tuple of these"


def flat_size(space: gymnasium.Space | int | tuple[int, ...] | list[int] | None) -> int:
    """Width of a space as the input or output of a network.

    A Box or MultiBinary counts its elements, a Discrete its choices, a MultiDiscrete the sum of its choices, a Dict or
    Tuple its parts; an int or a shape stands for a Box, None for nothing.

    :raises TypeError: any other space
    """
    if space is None:
        return 0
    if isinstance(space, (int, np.integer)):
        return int(space)
    if isinstance(space, (tuple, list)):
        return int(np.prod(space))
    if isinstance(space, (spaces.Box, spaces.MultiBinary)):
        return int(np.prod(space.shape))
    if isinstance(space, spaces.Discrete):
        return int(space.n)
    if isinstance(space, spaces.MultiDiscrete):
        return int(space.nvec.sum())
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        return sum(flat_size(part) for _, part in _parts(space))
    raise _unsupported(space)


def action_width(space: gymnasium.Space) -> int:
    """Number of entries of one action as it is stored: 1 for Discrete, one for each part of the others.

    :raises TypeError: no Box, Discrete, MultiDiscrete or MultiBinary
    """
    if isinstance(space, spaces.Discrete):
        return 1
    if isinstance(space, spaces.MultiDiscrete):
        return int(space.nvec.size)
    if isinstance(space, (spaces.Box, spaces.MultiBinary)):
        return int(np.prod(space.shape))
    raise TypeError(
        f"expected a Box, Discrete, MultiDiscrete or MultiBinary action space, got {space}; wrap the environment so that "
        "an action is one of these"
    )


def check_space(space: gymnasium.Space) -> None:
    """Check that values of ``space`` can be flattened.

    :raises TypeError: the space, or one inside it, is of another kind
    """
    flat_size(space)
    if not isinstance(space, gymnasium.Space):
        raise _unsupported(space)


def flatten(space: gymnasium.Space, value: Any) -> NDArray[np.float32]:
    """Return a value of ``space`` as one row of numbers, float32 ``[flat_size(space)]``.

    :raises TypeError: the space, or one inside it, is of no kind that is supported
    :raises ValueError: the value is not of this space
    """
    check_space(space)
    row = np.zeros(flat_size(space), dtype=np.float32)
    flatten_into(row, space, value)
    return row


def flatten_into(row: NDArray[np.float32], space: gymnasium.Space, value: Any) -> None:
    """Write a value of ``space`` into ``row`` ``[flat_size(space)]``, which holds zeros; see :func:`flatten`."""
    _write(row, 0, space, value, "value")


def unflatten(space: gymnasium.Space, tensor: Tensor) -> Any:
    """Give flat values ``[..., flat_size(space)]`` the structure of ``space``: views of ``tensor``, nothing is copied.

    - a Box or MultiBinary becomes ``[..., *its shape]``;
    - a Discrete stays one-hot, ``[..., n]``; a MultiDiscrete stays one-hots one after the other, ``[..., sum(nvec)]``;
    - a Dict becomes a dict, a Tuple a tuple, of what their parts become.

    :raises TypeError: the space, or one inside it, is of no kind that is supported
    :raises ValueError: the last dimension has another size
    """
    check_space(space)
    size = flat_size(space)
    if tensor.dim() == 0 or tensor.shape[-1] != size:
        raise ValueError(f"expected a tensor [..., {size}] of flat values of {space}, got shape {list(tensor.shape)}")
    return _structure(space, tensor)


def unflatten_value(space: gymnasium.Space, row: NDArray[Any]) -> Any:
    """Return the value of ``space`` whose flat form is ``row`` ``[flat_size(space)]``: the inverse of :func:`flatten`.

    :raises TypeError: the space, or one inside it, is of no kind that is supported
    :raises ValueError: ``row`` has another size, or holds no choice where a Discrete or MultiDiscrete is
    """
    check_space(space)
    if row.shape != (flat_size(space),):
        raise ValueError(f"expected a row of {flat_size(space)} numbers for {space}, got shape {list(row.shape)}")
    return _read(space, row)


def _unsupported(space: Any) -> TypeError:
    return TypeError(
        f"expected a space of kind {_KINDS}, got {space}; wrap the environment so that it gives numbers of fixed shape"
    )


def _parts(space: spaces.Dict | spaces.Tuple) -> list[tuple[Any, gymnasium.Space]]:
    """Return the keys and spaces of the parts, in the order in which they are laid out."""
    return list(space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces))


def _write(row: NDArray[np.float32], start: int, space: gymnasium.Space, value: Any, name: str) -> int:
    """Write ``value`` into ``row`` from ``start`` on, and return where it ends; ``name`` is its own, for messages."""
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        parts = _parts(space)
        _check_parts(space, parts, value, name)
        for key, part in parts:
            start = _write(row, start, part, value[key], f"{name}[{key!r}]")
        return start
    array = _as_array(value, space, name)
    if isinstance(space, (spaces.Box, spaces.MultiBinary)):
        if array.shape != space.shape:
            raise ValueError(f"{name} has shape {array.shape}; expected {space.shape} of {space}")
        if isinstance(space, spaces.MultiBinary) and not ((array == 0) | (array == 1)).all():
            raise ValueError(f"{name} is {array.tolist()}; expected zeros and ones of {space}")
        end = start + array.size
        row[start:end] = array.reshape(-1)
        return end
    if isinstance(space, spaces.Discrete):
        if array.size != 1:
            raise ValueError(f"{name} has shape {array.shape}; expected one number of {space}")
        choice = int(array.reshape(())) - int(space.start)
        if array.dtype.kind == "f" or not 0 <= choice < space.n:
            raise ValueError(f"{name} is {array.tolist()}; expected a number of {space}")
        row[start + choice] = 1.0
        return start + int(space.n)
    if isinstance(space, spaces.MultiDiscrete):
        if array.shape != space.shape:
            raise ValueError(f"{name} has shape {array.shape}; expected {space.shape} of {space}")
        choices = array.astype(np.int64) - space.start
        if array.dtype.kind == "f" or (choices < 0).any() or (choices >= space.nvec).any():
            raise ValueError(f"{name} is {array.tolist()}; expected numbers of {space}")
        row[start + _offsets(space) + choices.reshape(-1)] = 1.0
        return start + int(space.nvec.sum())
    raise _unsupported(space)


def _offsets(space: spaces.MultiDiscrete) -> NDArray[np.int64]:
    """Return where the one-hot of each entry starts."""
    sizes = space.nvec.reshape(-1).astype(np.int64)
    return np.asarray(np.cumsum(sizes) - sizes)


def _as_array(value: Any, space: gymnasium.Space, name: str) -> NDArray[Any]:
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:  # ragged lists and the like
        raise ValueError(f"{name} is no array: {error}; expected numbers of {space}") from error
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name} is a {type(value).__name__} of {array.dtype}; expected numbers of {space}")
    return array


def _check_parts(
    space: spaces.Dict | spaces.Tuple, parts: list[tuple[Any, gymnasium.Space]], value: Any, name: str
) -> None:
    if isinstance(space, spaces.Dict):
        if not isinstance(value, Mapping):
            raise ValueError(
                f"{name} is a {type(value).__name__}; expected a mapping with the keys {list(space.spaces)}"
            )
        if value.keys() != space.spaces.keys():
            raise ValueError(f"{name} has the keys {list(value)}; expected {list(space.spaces)}")
    elif not isinstance(value, (tuple, list)) or len(value) != len(parts):
        got = f"{len(value)} parts" if isinstance(value, (tuple, list)) else f"a {type(value).__name__}"
        raise ValueError(f"{name} is {got}; expected a tuple of {len(parts)} parts for {space}")


def _structure(space: gymnasium.Space, tensor: Tensor) -> Any:
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        parts = _parts(space)
        pieces = tensor.split([flat_size(part) for _, part in parts], dim=-1) if parts else ()
        values = [_structure(part, piece) for (_, part), piece in zip(parts, pieces, strict=True)]
        return dict(zip(space.spaces, values, strict=True)) if isinstance(space, spaces.Dict) else tuple(values)
    if isinstance(space, (spaces.Box, spaces.MultiBinary)):
        return tensor.unflatten(-1, space.shape) if space.shape else tensor.squeeze(-1)
    return tensor


def _read(space: gymnasium.Space, row: NDArray[Any]) -> Any:
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        parts = _parts(space)
        ends = np.cumsum([flat_size(part) for _, part in parts], dtype=np.int64)
        values = [_read(part, piece) for (_, part), piece in zip(parts, np.split(row, ends[:-1]), strict=False)]
        return dict(zip(space.spaces, values, strict=True)) if isinstance(space, spaces.Dict) else tuple(values)
    return spaces.utils.unflatten(space, row)
