"""Named tensors ``[T, E, ...]`` that are filled row by row; what they mean is the business of who made them."""

from __future__ import annotations

import copy
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import gymnasium
import torch
from torch import Tensor

from coterie.memories.narrowing import Losses, check_narrowing, narrow
from coterie.spaces import flat_size

__all__ = ["Memory"]

Size = int | tuple[int, ...] | gymnasium.Space
AnyMemory = TypeVar("AnyMemory", bound="Memory")


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
        self._dtypes: dict[str, torch.dtype] = {}  # of tensors that are used with another dtype than they are kept in
        self._losses = Losses()
        self._parent: Memory | None = None
        #: plain values that whoever makes the tensors wants to have in files with them; a file that is loaded brings its own
        self.notes: dict[str, Any] = {}

    def __len__(self) -> int:
        """Number of transitions held (rows times environments)."""
        holder = self if self._parent is None else self._parent
        return (holder.memory_size if holder.filled else holder.memory_index) * holder.num_envs

    def create_tensor(
        self, name: str, size: Size, dtype: torch.dtype = torch.float32, stored: torch.dtype | None = None
    ) -> bool:
        """Make room for ``[T, E, size]`` under ``name``, filled with NaN (0 for integers); others are left alone.

        :param dtype: what rows are given and drawn as
        :param stored: what they are kept as, to save room: a narrower float, or an integer; None: ``dtype``. Numbers that it
            cannot hold are an error: on the CPU when they are added; on another device, which would have to be waited for, when
            anything is read next (or saved), and from then on until :meth:`reset`.
        :return: False where a tensor of that name, size and dtypes exists already

        :raises ValueError: the name is taken by a tensor of another size or dtype; a ``dtype`` that cannot be ``stored`` so
        """
        kept = dtype if stored is None else stored
        check_narrowing(name, dtype, kept)
        shape = self._shape(size)
        if name in self._tensors:
            old, used = self._tensors[name], self.dtype_of(name)
            if old.shape != shape or old.dtype != kept or used != dtype:
                kind = f"{used}" if used == old.dtype else f"{used} kept as {old.dtype}"
                wanted = f"{dtype}" if dtype == kept else f"{dtype} kept as {kept}"
                raise ValueError(
                    f"tensor {name!r} exists with shape {list(old.shape)} and {kind}; asked for {list(shape)} and {wanted}"
                )
            return False
        fill = float("nan") if kept.is_floating_point else 0
        self._tensors[name] = torch.full(shape, fill, dtype=kept, device=self.device)
        if kept != dtype:
            self._dtypes[name] = dtype
        return True

    def _shape(self, size: Size) -> tuple[int, ...]:
        return (self.memory_size, self.num_envs, *(size if isinstance(size, tuple) else (flat_size(size),)))

    def dtype_of(self, name: str) -> torch.dtype:
        """What a tensor's rows are given and drawn as; it may be kept as another (``create_tensor(stored=)``).

        :raises KeyError: there is no such tensor
        """
        return self._dtypes.get(name) or self.get_tensor_by_name(name).dtype

    @property
    def nbytes(self) -> int:
        """Bytes that are held; a memory that shows another's storage holds none."""
        return 0 if self._parent is not None else sum(tensor.nbytes for tensor in self._tensors.values())

    def predict_bytes(self, specs: Mapping[str, tuple[Size, torch.dtype]]) -> int:
        """:attr:`nbytes` of this memory with tensors of these names, before any is made.

        :param specs: name to size (as for :meth:`create_tensor`) and the dtype that it is kept as
        """
        return sum(math.prod(self._shape(size)) * dtype.itemsize for size, dtype in specs.values())

    def empty_copy(self: AnyMemory, device: str | torch.device | None = None) -> AnyMemory:
        """Another memory of the same class and settings, without tensors and notes.

        :param device: where its tensors will live; this one's by default
        """
        twin = copy.copy(self)
        twin.device = self.device if device is None else torch.device(device)
        twin._tensors, twin._dtypes, twin._parent = {}, {}, None
        twin._losses, twin.notes = Losses(), {}
        twin.reset()
        return twin

    def get_tensor_names(self) -> tuple[str, ...]:
        """Names of all tensors, sorted."""
        return tuple(sorted(self._tensors))

    def get_tensor_by_name(self, name: str, keepdim: bool = True) -> Tensor:
        """The tensor ``[T, E, ...]`` itself, as it is kept, or with ``keepdim=False`` as ``[T * E, ...]``.

        :raises KeyError: there is no such tensor
        """
        if name not in self._tensors:
            raise KeyError(f"no tensor {name!r} in this memory; it has {list(self.get_tensor_names())}")
        tensor = self._tensors[name]
        return tensor if keepdim else tensor.flatten(0, 1)

    def set_tensor_by_name(self, name: str, tensor: Tensor) -> None:
        """Copy ``tensor`` ``[T, E, ...]`` into the one stored under ``name``.

        :raises KeyError: there is no such tensor
        :raises ValueError: the shapes differ, or there are numbers that its ``stored`` dtype cannot hold
        """
        mine = self.get_tensor_by_name(name)
        if mine.shape != tensor.shape:
            raise ValueError(f"tensor {name!r} has shape {list(mine.shape)}, got {list(tensor.shape)}")
        with torch.no_grad():
            if name in self._dtypes:
                tensor, _ = narrow(name, tensor, mine.dtype, wait=True)
            mine.copy_(tensor)

    @torch.no_grad()
    def add_samples(self, **tensors: Tensor) -> None:
        """Write one row ``[E, ...]`` into each named tensor and go on to the next row (after the last, the first).

        Everything is looked at before anything is written.

        :raises KeyError: a name without a tensor
        :raises ValueError: a row of the wrong shape, or with numbers that its ``stored`` dtype cannot hold
        """
        rows, fits = self._rows_to_write(tensors, self.num_envs)
        for name, row in rows.items():
            self._tensors[name][self.memory_index].copy_(row)
        self._losses.note(fits, self.device)
        self.memory_index += 1
        if self.memory_index == self.memory_size:
            self.memory_index = 0
            self.filled = True

    def _rows_to_write(self, tensors: Mapping[str, Tensor], count: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Rows ``[count, ...]`` as they are kept, all of them checked, and what is to be noted once they are written."""
        if not tensors:
            raise ValueError(f"expected tensors by name, from {list(self.get_tensor_names())}")
        self._check_writable()
        rows, fits = {}, {}
        for name, row in tensors.items():
            target = self.get_tensor_by_name(name)
            if row.shape != (expected := (count, *target.shape[2:])):
                raise ValueError(f"{name!r}: expected a row of shape {list(expected)}, got {list(row.shape)}")
            rows[name] = row
            if name in self._dtypes:
                rows[name], fit = narrow(name, row, target.dtype)
                if fit is not None:
                    fits[name] = fit
        return rows, fits

    def _check_writable(self) -> None:
        if self._parent is not None:
            raise RuntimeError("this memory shows one agent's part of a group's storage: its group writes to it")

    def expose(
        self, parent: Memory, tensors: dict[str, Tensor], dtypes: Mapping[str, torch.dtype] | None = None
    ) -> None:
        """Show ``tensors`` (views of another memory's storage) as this memory's own; ``parent`` counts the rows.

        :param dtypes: what those that are kept narrower than they are used are drawn as
        """
        self._parent = parent
        self._tensors = dict(tensors)
        self._dtypes = {name: dtype for name, dtype in (dtypes or {}).items() if tensors[name].dtype != dtype}

    def reset(self) -> None:
        """Forget what was written; the storage stays."""
        self.memory_index = 0
        self.filled = False
        self._losses.clear()

    def _check_losses(self) -> None:
        """Refuse to read where rows have lost something on their way in; looks once for all rows added since the last time.

        :raises ValueError: numbers that a ``stored`` dtype cannot hold (see :meth:`create_tensor`)
        """
        holder = self if self._parent is None else self._parent
        holder._losses.check(holder._tensors, holder._dtypes)

    def sample(
        self, names: Sequence[str], batch_size: int, mini_batches: int = 1, sequence_length: int = 1
    ) -> list[list[Tensor]]:
        """Draw transitions; subclasses decide which."""
        raise NotImplementedError(f"{type(self).__name__} does not say how to sample: use RandomMemory")

    def sample_by_index(self, names: Sequence[str], indexes: Tensor, mini_batches: int = 1) -> list[list[Tensor]]:
        """The transitions at ``indexes`` (int64 ``[N]`` into ``T * E``): a list per minibatch of a tensor per name.

        :raises ValueError: rows came with numbers that a ``stored`` dtype cannot hold (see :meth:`create_tensor`)
        """
        self._check_losses()
        flat = [(self.get_tensor_by_name(name, keepdim=False), self.dtype_of(name)) for name in names]
        return [[tensor[part].to(dtype) for tensor, dtype in flat] for part in indexes.tensor_split(mini_batches)]

    def sample_all(self, names: Sequence[str], mini_batches: int = 1, sequence_length: int = 1) -> list[list[Tensor]]:
        """Every transition once, shuffled, in ``mini_batches`` parts.

        With a ``sequence_length`` of L, sequences of L rows are shuffled instead, and ``N`` of them come as ``[N * L, ...]``:
        row after row of the first, then of the second. They may run across the ends of episodes.

        :raises ValueError: a number of rows that ``sequence_length`` does not divide
        """
        rows = len(self) // self.num_envs
        if sequence_length < 1 or rows % sequence_length:
            raise ValueError(
                f"sequence_length: expected a divisor of the {rows} rows held, so that each is in one sequence, "
                f"got {sequence_length}"
            )
        if sequence_length == 1:
            return self.sample_by_index(names, self.shuffled(len(self)), mini_batches)
        starts = self.shuffled(len(self) // sequence_length)
        return self._sequences(names, starts, sequence_length, sequence_length, mini_batches)

    def _sequences(
        self, names: Sequence[str], starts: Tensor, length: int, stride: int, mini_batches: int
    ) -> list[list[Tensor]]:
        """Sequences by number (int64 ``[N]``): environments change fastest, starts go up by ``stride`` from the oldest row."""
        holder = self if self._parent is None else self._parent
        oldest = holder.memory_index if holder.filled else 0
        first = starts.div(self.num_envs, rounding_mode="floor") * stride + oldest
        rows = (first.unsqueeze(-1) + torch.arange(length, device=self.device)) % self.memory_size
        indexes = rows * self.num_envs + (starts % self.num_envs).unsqueeze(-1)
        parts = indexes.tensor_split(mini_batches)
        return [self.sample_by_index(names, part.flatten())[0] for part in parts]

    def shuffled(self, count: int) -> Tensor:
        """A random order of ``count`` transitions, int64, from torch's global generator."""
        return torch.randperm(count, device=self.device)

    # ---- files -----------------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write tensors, position and notes to ``path``, which holds the old file or the whole new one, whatever happens.

        :raises ValueError: rows came with numbers that a ``stored`` dtype cannot hold (see :meth:`create_tensor`)
        """
        self._check_losses()
        path = Path(path)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        try:
            with os.fdopen(descriptor, "wb") as file:
                torch.save(self._contents(), file)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def load(self, path: str | os.PathLike[str]) -> None:
        """Read what :meth:`save` wrote, all of it or nothing. Nothing in the file is executed.

        :raises ValueError: tensors of other names, shapes or dtypes than this memory has, or another kind of memory's file
        :raises RuntimeError: this memory shows another's storage
        """
        self._check_writable()
        contents = torch.load(path, map_location=self.device, weights_only=True)
        self._check_contents(contents)
        self._take_contents(contents)

    def _contents(self) -> dict[str, Any]:
        """What a file holds: tensors and plain values."""
        holder = self if self._parent is None else self._parent
        # copied, since an agent's part of a group's storage would bring along all of it
        tensors = {name: tensor.clone() for name, tensor in self._tensors.items()}
        return {
            "tensors": tensors,
            "dtypes": dict(self._dtypes),
            "memory_index": holder.memory_index,
            "filled": holder.filled,
            "notes": dict(self.notes),
        }

    def _check_contents(self, contents: dict[str, Any]) -> None:
        """Refuse what does not fit, before any of it is taken.

        :raises ValueError: see :meth:`load`
        """
        missing = {"tensors", "memory_index", "filled"} - set(contents)
        if missing:
            raise ValueError(f"expected the file of a {type(self).__name__}; this one lacks {sorted(missing)}")
        names, dtypes, notes = set(contents["tensors"]), contents.get("dtypes", {}), contents.get("notes", {})
        if not isinstance(notes, dict):
            raise ValueError(f"notes: expected a dict, the file has {type(notes).__name__}")
        if self._tensors and names != set(self._tensors):
            raise ValueError(f"expected tensors {list(self.get_tensor_names())}, the file has {sorted(names)}")
        for name, tensor in contents["tensors"].items():
            known = name in self._tensors
            expected = self._tensors[name].shape if known else torch.Size((self.memory_size, self.num_envs))
            if (tensor.shape if known else tensor.shape[:2]) != expected:
                raise ValueError(f"tensor {name!r}: expected shape {list(expected)}, the file has {list(tensor.shape)}")
            mine = (self._tensors[name].dtype, self.dtype_of(name)) if known else None
            theirs = (tensor.dtype, dtypes.get(name, tensor.dtype))
            if mine not in (None, theirs):
                raise ValueError(
                    f"tensor {name!r}: expected what it is kept and used as to be {mine}, the file has {theirs}"
                )
        if not 0 <= contents["memory_index"] < self.memory_size:
            raise ValueError(
                f"memory_index: expected 0 to {self.memory_size - 1}, the file has {contents['memory_index']}"
            )

    def _take_contents(self, contents: dict[str, Any]) -> None:
        """Take over what :meth:`_check_contents` has let pass."""
        for name, tensor in contents["tensors"].items():
            if name in self._tensors:
                self.set_tensor_by_name(name, tensor)
            else:
                self._tensors[name] = tensor
        self._dtypes = dict(contents.get("dtypes", {}))
        self.notes = dict(contents.get("notes", {}))
        self._losses.clear()
        self.memory_index = int(contents["memory_index"])
        self.filled = bool(contents["filled"])
