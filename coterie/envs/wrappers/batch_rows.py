"""Undo a change in some rows of every batched tensor that hangs on an object.

A simulator that can restart all copies at once, but one copy only slowly, is restarted as a whole; the rows of the
copies that were not meant are then put back as they were.
"""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Hashable, Iterator
from enum import Enum
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from coterie.envs.base import EnvError

__all__ = ["BatchRows"]

_CONTAINERS = (dict, list, tuple, deque)
_LEAVES = (type, Enum, np.ndarray, types.FunctionType, types.MethodType, types.ModuleType)

Path = tuple[Hashable, ...]


class _Saved(NamedTuple):
    """One tensor as it was: its owner, itself, how often it had been written to, and a copy of its content."""

    owner: Any
    tensor: Tensor
    version: int
    content: Tensor


class BatchRows:
    """The content of every tensor that can be reached from ``root`` through attributes, lists, tuples and dicts.

    The tree is walked each time: simulators rebind their tensors at every step, and make new ones as they go. What is
    no tensor has no rows, and is left alone.

    :param root: the object whose tensors are kept
    :param num_rows: size E of the batch dimension: a tensor's first dimension of this size. Tensors without one belong
        to no row and are left alone
    :param skip: attributes of ``root`` that are not looked into
    """

    def __init__(self, root: Any, num_rows: int, skip: frozenset[str] = frozenset()) -> None:
        self._root = root
        self._num_rows = num_rows
        self._skip = skip
        contents: dict[int, Tensor] = {}
        self._by_owner: dict[tuple[int, Hashable], _Saved] = {}
        self._by_path: dict[Path, _Saved] = {}
        for path, owner, tensor in _tensors(root, skip):
            if num_rows in tensor.shape:
                content = contents.get(id(tensor))
                if content is None:
                    content = contents[id(tensor)] = tensor.detach().clone()
                saved = _Saved(owner, tensor, tensor._version, content)
                self._by_owner[id(owner), path[-1]] = self._by_path[path] = saved

    def restore(self, rows: Tensor) -> None:
        """Put back the rows where the mask ``rows`` bool ``[E]`` is True; the others stay as they are now.

        :raises EnvError: a tensor has changed its shape, so that its rows have nowhere to go
        """
        masks: dict[tuple[int, int], Tensor] = {}
        merged: dict[tuple[int, int], Tensor] = {}  # attributes that shared a tensor go on sharing one
        for path, owner, new in list(_tensors(self._root, self._skip)):
            # an object that can be reached in several ways may now be found in another; a list may have been made anew
            old = self._by_owner.get((id(owner), path[-1])) or self._by_path.get(path)
            if old is None or (new is old.tensor and new._version == old.version):
                continue
            if new.shape != old.content.shape:
                raise EnvError(
                    f"{'.'.join(map(str, path))} had shape {list(old.content.shape)} and has {list(new.shape)} after a "
                    "reset: its rows cannot be kept for the copies that go on"
                )
            pair = (id(old.content), id(new))
            if pair not in merged:
                dim = new.shape.index(self._num_rows)
                if (new.dim(), dim) not in masks:
                    shape = [1] * new.dim()
                    shape[dim] = self._num_rows
                    masks[new.dim(), dim] = rows.to(new.device).reshape(shape)
                merged[pair] = torch.where(masks[new.dim(), dim], old.content, new)
            _put(owner, path[-1], merged[pair])


def _tensors(root: Any, skip: frozenset[str]) -> Iterator[tuple[Path, Any, Tensor]]:
    """Yield ``(path, owner, tensor)`` for every tensor below ``root``; each owner is visited once."""
    seen = {id(root)}
    pending: list[tuple[Path, Any]] = [((), root)]
    while pending:
        path, owner = pending.pop()
        for key, value in _children(owner):
            if isinstance(value, Tensor):
                yield (*path, key), owner, value
            elif (
                (isinstance(value, _CONTAINERS) or hasattr(value, "__dict__"))
                and not isinstance(value, _LEAVES)
                and id(value) not in seen
                and (path or key not in skip)
            ):
                seen.add(id(value))
                pending.append(((*path, key), value))


def _children(owner: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(owner, dict):
        return iter(owner.items())
    if isinstance(owner, (list, tuple, deque)):
        return iter(enumerate(owner))
    return iter(vars(owner).items())


def _put(owner: Any, key: Any, tensor: Tensor) -> None:
    if isinstance(owner, tuple):
        owner[key].copy_(tensor)
    elif isinstance(owner, (dict, list, deque)):
        owner[key] = tensor
    else:
        vars(owner)[key] = tensor
