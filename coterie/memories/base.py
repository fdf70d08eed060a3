"""Named tensors ``[T, E, ...]`` that are filled row by row; what they mean is the business of who made them."""

from __future__ import annotations

import os
from collections.abc import Sequence

import gymnasium
import torch
from torch import Tensor

from coterie.spaces import flat_size

__all__ = ["Memory"]


class Memory:
    """A circular store of T rows for E environments.

    :param memory_size: number of rows T
    :param num_envs: number of environments E
    :param device: where tensors live; the CPU by default

    :raises ValueError: a size below 1
    """

    def __init__(self, memory_size: int, num_envs: int = 1, device: str | torch.device | None = None) -> None:
        for name, value in (("memory_size", memory_size), ("num_envs", num_envs)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: expected an integer of at least 1, got {value!r}")
        self.memory_size = memory_size
        self.num_envs = num_envs
        self.device = torch.device("cpu") if device is None else torch.device(device)
        self.memory_index = 0
        self.filled = False
        self._tensors: dict[str, Tensor] = {}
        self._parent: Memory | None = None

    def __len__(self) -> int:
        """Number of transitions held (rows times environments)."""
        holder = self if self._parent is None else self._parent
        return (holder.memory_size if holder.filled else holder.memory_index) * holder.num_envs

    def create_tensor(
        self, name: str, size: int | tuple[int, ...] | gymnasium.Space, dtype: torch.dtype = torch.float32
    ) -> bool:
        """Make room for ``[T, E, size]`` under ``name``, filled with NaN (0 for integers); others are left alone.

        :return: False where a tensor of that name, size and dtype exists already

        :raises ValueError: the name is taken by a tensor of another size or dtype
        """
        width = size if isinstance(size, tuple) else (flat_size(size),)
        shape = (self.memory_size, self.num_envs, *width)
        if name in self._tensors:
            old = self._tensors[name]
            if old.shape != shape or old.dtype != dtype:
                raise ValueError(
                    f"tensor {name!r} exists with shape {list(old.shape)} and {old.dtype}; asked for {list(shape)} and {dtype}"
                )
            return False
        fill = float("nan") if dtype.is_floating_point else 0
        self._tensors[name] = torch.full(shape, fill, dtype=dtype, device=self.device)
        return True

    def get_tensor_names(self) -> tuple[str, ...]:
        """Names of all tensors, sorted."""
        return tuple(sorted(self._tensors))

    def get_tensor_by_name(self, name: str, keepdim: bool = True) -> Tensor:
        """The tensor ``[T, E, ...]`` itself, or with ``keepdim=False`` as ``[T * E, ...]``.

        :raises KeyError: there is no such tensor
        """
        if name not in self._tensors:
            raise KeyError(f"no tensor {name!r} in this memory; it has {list(self.get_tensor_names())}")
        tensor = self._tensors[name]
        return tensor if keepdim else tensor.flatten(0, 1)

    def set_tensor_by_name(self, name: str, tensor: Tensor) -> None:
        """Copy ``tensor`` ``[T, E, ...]`` into the one stored under ``name``.

        :raises KeyError: there is no such tensor
        :raises ValueError: the shapes differ
        """
        mine = self.get_tensor_by_name(name)
        if mine.shape != tensor.shape:
            raise ValueError(f"tensor {name!r} has shape {list(mine.shape)}, got {list(tensor.shape)}")
        with torch.no_grad():
            mine.copy_(tensor)

    @torch.no_grad()
    def add_samples(self, **tensors: Tensor) -> None:
        """Write one row ``[E, ...]`` into each named tensor and go on to the next row (after the last, the first).

        :raises KeyError: a name without a tensor
        :raises ValueError: a row of the wrong shape
        """
        if not tensors:
            raise ValueError(f"expected tensors by name, from {list(self.get_tensor_names())}")
        if self._parent is not None:
            raise RuntimeError("this memory shows one agent's part of a group's storage: its group writes to it")
        for name, row in tensors.items():
            target = self.get_tensor_by_name(name)[self.memory_index]
            if row.shape != target.shape:
                raise ValueError(f"{name!r}: expected a row of shape {list(target.shape)}, got {list(row.shape)}")
            target.copy_(row)
        self.memory_index += 1
        if self.memory_index == self.memory_size:
            self.memory_index = 0
            self.filled = True

    def expose(self, parent: Memory, tensors: dict[str, Tensor]) -> None:
        """Show ``tensors`` (views of another memory's storage) as this memory's own; ``parent`` counts the rows."""
        self._parent = parent
        self._tensors = dict(tensors)

    def reset(self) -> None:
        """Forget what was written; the storage stays."""
        self.memory_index = 0
        self.filled = False

    def sample(
        self, names: Sequence[str], batch_size: int, mini_batches: int = 1, sequence_length: int = 1
    ) -> list[list[Tensor]]:
        """Draw transitions; subclasses decide which."""
        raise NotImplementedError(f"{type(self).__name__} does not say how to sample: use RandomMemory")

    def sample_by_index(self, names: Sequence[str], indexes: Tensor, mini_batches: int = 1) -> list[list[Tensor]]:
        """The transitions at ``indexes`` (int64 ``[N]`` into ``T * E``): a list per minibatch of a tensor per name."""
        flat = [self.get_tensor_by_name(name, keepdim=False) for name in names]
        return [[tensor[part] for tensor in flat] for part in indexes.tensor_split(mini_batches)]

    def sample_all(self, names: Sequence[str], mini_batches: int = 1, sequence_length: int = 1) -> list[list[Tensor]]:
        """Every transition once, shuffled, in ``mini_batches`` parts."""
        if sequence_length != 1:
            raise NotImplementedError("sampling of sequences is not available: expected sequence_length=1")
        return self.sample_by_index(names, self.shuffled(len(self)), mini_batches)

    def shuffled(self, count: int) -> Tensor:
        """A random order of ``count`` transitions, int64, from torch's global generator."""
        return torch.randperm(count, device=self.device)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write tensors and position to ``path``."""
        # copied, since an agent's part of a group's storage would bring along all of it
        tensors = {name: tensor.clone() for name, tensor in self._tensors.items()}
        contents = {"tensors": tensors, "memory_index": self.memory_index, "filled": self.filled}
        torch.save(contents, path)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Read what :meth:`save` wrote. Nothing in the file is executed.

        :raises ValueError: tensors of other names or shapes than this memory has; nothing is loaded then
        """
        contents = torch.load(path, map_location=self.device, weights_only=True)
        names = set(contents["tensors"])
        if self._tensors and names != set(self._tensors):
            raise ValueError(f"expected tensors {list(self.get_tensor_names())}, the file has {sorted(names)}")
        for name, tensor in contents["tensors"].items():  # all are looked at before any is taken
            known = name in self._tensors
            expected = self._tensors[name].shape if known else torch.Size((self.memory_size, self.num_envs))
            if (tensor.shape if known else tensor.shape[:2]) != expected:
                raise ValueError(f"tensor {name!r}: expected shape {list(expected)}, the file has {list(tensor.shape)}")
        for name, tensor in contents["tensors"].items():
            if name in self._tensors:
                self.set_tensor_by_name(name, tensor)
            else:
                self._tensors[name] = tensor
        self.memory_index = int(contents["memory_index"])
        self.filled = bool(contents["filled"])
