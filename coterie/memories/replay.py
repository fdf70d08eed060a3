"""A memory for learning from what was done long ago: windows of steps, drawn uniformly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coterie.memories.base import AnyMemory, Memory, Size
from coterie.memories.columns import START, STEP, Columns
from coterie.memories.narrowing import check_observation_dtype
from coterie.memories.window import Window

__all__ = ["ReplayMemory"]


class ReplayMemory(Memory):
    """A ring of T rows for each of E environments, from which windows of rows are drawn uniformly.

    The rows of an environment follow each other in time. A row is either a *step* (what was seen, what was done, and what came
    of it), or a *last observation* (what was seen when a time limit struck; no step was taken). So the row behind a step always
    shows what the step led to, unless the step was a termination: then the next row is the first of the next episode.

    After each step come, in this order::

        memory.add_samples(**rows)        # of every environment
        memory.add_last(envs, **rows)     # of environments at whose step a time limit struck
        memory.end_episodes(ended)        # whose next row starts an episode

    and :meth:`interrupt`, whenever environments are reset from outside amid their episodes.

    Drawing has a generator of its own, on the host: torch's global one is left alone, and draws are the same on every device.
    ``memory_index`` is where the first environment's next row goes, ``filled`` tells that every ring is full.

    :param memory_size: rows T of each environment. A last observation takes one as well
    :param num_envs: number of environments E
    :param device: where tensors live; the CPU by default
    :param seed: of the memory's generator; torch's initial seed by default
    :param observation_dtype: what whoever creates tensors of observations is asked to keep them as: torch.float16 or
        torch.bfloat16, which round, or torch.uint8, torch.int8 or torch.int16, for whole numbers; None: as they are

    :raises ValueError: a size below 1, or another ``observation_dtype``
    """

    def __init__(
        self,
        memory_size: int,
        num_envs: int = 1,
        device: str | torch.device | None = None,
        *,
        seed: int | None = None,
        observation_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(memory_size, num_envs, device)
        check_observation_dtype(observation_dtype)
        self.seed = torch.initial_seed() if seed is None else seed
        self.observation_dtype = observation_dtype
        self._random = np.random.default_rng(self.seed)
        self._own_columns: Columns | None = None

    # ---- tensors ---------------------------------------------------------------------------------------------------------

    @property
    def _columns(self) -> Columns:
        """What is known of the rows; made when it is first needed, since memories that show others' rows need none."""
        if self._parent is not None:
            return self._holder._columns
        if self._own_columns is None:
            self._own_columns = Columns(self.memory_size, self.num_envs, self.device)
        return self._own_columns

    @property
    def _holder(self: AnyMemory) -> AnyMemory:
        """Who keeps the rows.

        :raises TypeError: a memory of another kind does
        """
        if self._parent is None:
            return self
        if not isinstance(self._parent, type(self)):
            raise TypeError(f"a {type(self).__name__} cannot draw from the rows of a {type(self._parent).__name__}")
        return self._parent

    def create_tensor(
        self, name: str, size: Size, dtype: torch.dtype = torch.float32, stored: torch.dtype | None = None
    ) -> bool:
        created = super().create_tensor(name, size, dtype, stored)
        assert self._columns is not None  # made now, so that `nbytes` is what it will be
        return created

    @property
    def nbytes(self) -> int:
        return super().nbytes + (0 if self._own_columns is None else self._own_columns.nbytes)

    def predict_bytes(self, specs: Mapping[str, tuple[Size, torch.dtype]]) -> int:
        return super().predict_bytes(specs) + Columns.predict_bytes(self.memory_size, self.num_envs)

    def empty_copy(self: AnyMemory, device: str | torch.device | None = None) -> AnyMemory:
        """Another memory of the same class, settings and seed, without tensors; its generator starts anew.

        :param device: where its tensors will live; this one's by default
        """
        twin = super().empty_copy(device)
        assert isinstance(twin, ReplayMemory)
        twin._random = np.random.default_rng(twin.seed)
        return twin

    def reset(self) -> None:
        """Forget what was written; the storage and the generator stay."""
        super().reset()
        if not self._tensors:
            self._own_columns = None  # an empty copy gets its own
        elif self._own_columns is not None:
            self._own_columns.clear()

    def expose(
        self, parent: Memory, tensors: dict[str, Tensor], dtypes: Mapping[str, torch.dtype] | None = None
    ) -> None:
        super().expose(parent, tensors, dtypes)
        self._own_columns = None

    # ---- writing ---------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def add_samples(self, **tensors: Tensor) -> None:
        """Write a step's row ``[E, ...]`` into every tensor, behind the newest row of each environment.

        Everything is looked at before anything is written.

        :raises KeyError: a name without a tensor
        :raises ValueError: a tensor without a row, which would keep that of an older step; a row of the wrong shape, or with
            numbers that its ``stored`` dtype cannot hold
        """
        rows, fits = self._rows_to_write(tensors, self.num_envs)
        if len(rows) < len(self._tensors):
            raise ValueError(f"expected a row for every tensor, got none for {sorted(set(self._tensors) - set(rows))}")
        self._write_steps(rows, self._columns)
        self._losses.note(fits, self.device)

    def _write_steps(self, rows: Mapping[str, Tensor], columns: Columns) -> None:
        place = columns.place()
        self._write(rows, place)
        columns.add_steps(place)
        self.memory_index, self.filled = columns.position, self.filled or columns.full

    @torch.no_grad()
    def add_last(self, envs: Tensor, **tensors: Tensor) -> None:
        """Write last observations of some environments, behind the steps at which their episodes were cut off.

        Their next rows start episodes. Where ``envs`` is on another device than the CPU, this waits for it.

        :param envs: int64 ``[K]``, K from 0 to E, none of them twice
        :param tensors: rows ``[K, ...]``; tensors that are not named hold zeros or False there

        :raises KeyError: a name without a tensor
        :raises ValueError: environments that don't exist, come twice, or took no step since their last row of this kind or
            :meth:`end_episodes`; a row of the wrong shape, or with numbers that its ``stored`` dtype cannot hold
        """
        if envs.dim() != 1 or envs.dtype != torch.int64:
            raise ValueError(f"envs: expected int64 [K], got {envs.dtype} {list(envs.shape)}")
        rows, fits = self._rows_to_write(tensors, envs.shape[0])
        columns, numbers = self._columns, envs.cpu().numpy()
        columns.check_last(numbers)
        if not len(numbers):
            return
        places = columns.places(numbers)
        self._write(rows, places)
        for name in self._tensors.keys() - rows.keys():
            self._tensors[name].flatten(0, 1).index_fill_(0, places, 0)
        columns.add_last(numbers, places)
        self._losses.note(fits, self.device)
        self.memory_index, self.filled = columns.position, self.filled or columns.full

    def end_episodes(self, ended: Tensor) -> None:
        """The next rows of these environments start episodes. Comes after the rows of the step with which they ended.

        :param ended: bool ``[E]``

        :raises ValueError: another shape or dtype
        """
        self._check_writable()
        if ended.shape != (self.num_envs,) or ended.dtype != torch.bool:
            raise ValueError(f"ended: expected bool {[self.num_envs]}, got {ended.dtype} {list(ended.shape)}")
        self._columns.end(ended.to(self.device))

    def interrupt(self) -> None:
        """What comes next doesn't follow: environments were reset from outside, or others take their places.

        Nothing will show what the newest steps of the episodes that were running led to, so these rows become last
        observations: what came before can still be learned from. Waits for the device.
        """
        self._check_writable()
        self._columns.interrupt()

    def _write(self, rows: Mapping[str, Tensor], place: int | Tensor) -> None:
        """Write rows of every column at a ring row, or of some columns at int64 ``[K]`` into ``T * E``."""
        if isinstance(place, int):
            for name, row in rows.items():
                self._tensors[name][place].copy_(row)
        else:
            for name, row in rows.items():
                target = self._tensors[name]
                target.flatten(0, 1).index_copy_(0, place, row.to(target))

    # ---- drawing ---------------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Number of steps held, in all environments."""
        if self._parent is None and self._own_columns is None:
            return 0
        return int(self._columns.eligible(0, 0)[1].sum())

    def ready(self, batch_size: int, length: int = 1, burn_in: int = 0) -> bool:
        """Whether at least ``batch_size`` different windows can be drawn."""
        return int(self._columns.eligible(burn_in, length)[1].sum()) >= batch_size

    def windows(self, batch_size: int, length: int = 1, burn_in: int = 0) -> Window:
        """Draw B windows of ``R = burn_in + length + 1`` rows; a window may come more than once.

        Windows may run across the ends of episodes, but never over the place that is written next. Row ``burn_in`` is a
        step; all steps with ``burn_in`` older and ``length`` newer rows of their environment held are equally likely.

        :param length: rows to learn from
        :param burn_in: rows ahead of them

        :raises ValueError: there is no such window, or numbers out of range
        """
        self._check_counts(batch_size=batch_size, length=length, burn_in=burn_in)
        columns = self._columns
        drawn = columns.draw(burn_in, length, batch_size, self._random)
        if drawn is None:
            raise self._nothing_to_draw(length, burn_in)
        first, envs = (torch.from_numpy(numbers).to(self.device, non_blocking=True) for numbers in drawn)
        return self._window(first, envs, length, burn_in)

    @staticmethod
    def _check_counts(**counts: int) -> None:
        """Check what is asked for: integers of at least 1, or 0 for ``burn_in``."""
        for name, value in counts.items():
            least = 0 if name == "burn_in" else 1
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name}: expected an integer of at least {least}, got {value!r}")

    def _nothing_to_draw(self, length: int, burn_in: int) -> ValueError:
        rows = burn_in + length + 1
        if rows > self.memory_size:
            return ValueError(
                f"a window of {rows} rows (burn_in {burn_in}, length {length}, and one for what came of them) never fits a "
                f"memory of {self.memory_size}: expected memory_size of at least {rows}"
            )
        return ValueError(
            f"there is no window of {rows} rows to draw: the memory holds {len(self)} steps of {self.num_envs} environments; "
            "add more first, and ask ready()"
        )

    def _window(self, first: Tensor, envs: Tensor, length: int, burn_in: int, weights: Tensor | None = None) -> Window:
        """The windows whose row ``burn_in`` stands in ring rows ``first`` ``[B]`` of ``envs`` ``[B]``."""
        columns = self._columns
        offsets = torch.arange(-burn_in, length + 1, device=self.device).unsqueeze(-1)
        rows = (first + offsets).remainder_(self.memory_size)
        flags = columns.flags.view(-1).index_select(0, self._flat(rows, envs)).view_as(rows)
        steps, starts = (flags & STEP).bool(), flags >= START
        return Window(rows, envs, torch.ones_like(steps), steps, starts, weights, burn_in)

    def _flat(self, rows: Tensor, envs: Tensor) -> Tensor:
        """Positions in ``T * E``, int64 ``[R * B]``."""
        return torch.add(envs, rows, alpha=self.num_envs).view(-1)

    def gather(self, name: str, window: Window) -> Tensor:
        """What a window's rows hold, ``[R, B, ...]``, as the dtype that the tensor was created with.

        :raises KeyError: there is no such tensor
        :raises ValueError: rows came with numbers that a ``stored`` dtype cannot hold (see :meth:`create_tensor`)
        """
        self._check_losses()
        flat = self.get_tensor_by_name(name, keepdim=False)
        rows = flat.index_select(0, self._flat(window.rows, window.envs))
        return rows.view(*window.rows.shape, *rows.shape[1:]).to(self.dtype_of(name))

    def sample(
        self, names: Sequence[str], batch_size: int, mini_batches: int = 1, sequence_length: int = 1
    ) -> list[list[Tensor]]:
        """Draw ``batch_size`` steps uniformly (whatever the kind of the memory), in ``mini_batches`` parts.

        With a ``sequence_length`` of L, that many sequences of L rows of one environment, the first of them a step, one
        sequence after the other: ``[batch_size * L, ...]``. They may run across the ends of episodes, last observations
        included.

        :raises ValueError: there is nothing to draw, or numbers out of range
        """
        self._check_counts(batch_size=batch_size, sequence_length=sequence_length)
        columns = self._columns
        drawn = columns.draw(0, sequence_length - 1, batch_size, self._random)
        if drawn is None:
            what = "steps" if sequence_length == 1 else f"sequences of {sequence_length} rows"
            raise ValueError(f"cannot draw {batch_size} {what} from a memory that holds {len(self)} steps")
        return self._ring_sequences(names, drawn[0], drawn[1], sequence_length, mini_batches)

    def sample_all(self, names: Sequence[str], mini_batches: int = 1, sequence_length: int = 1) -> list[list[Tensor]]:
        """Every step once, shuffled, in ``mini_batches`` parts.

        With a ``sequence_length`` of L, each environment's rows from the oldest on, last observations included, in sequences of
        L that are shuffled; the newest rows that fill none are left out.

        :raises ValueError: a ``sequence_length`` below 1
        """
        self._check_counts(sequence_length=sequence_length)
        columns = self._columns
        if sequence_length == 1:
            low, counts = columns.eligible(0, 0)
        else:
            low, counts = np.zeros_like(columns.written), (columns.written - columns.oldest) // sequence_length
        envs = np.repeat(columns.every, counts)
        numbers = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts) + low[envs]
        order = self.shuffled(len(envs)).cpu().numpy()
        envs, numbers = envs[order], numbers[order]
        if sequence_length == 1:
            first = columns.row_of[numbers % self.memory_size, envs].astype(np.int64)
        else:
            first = (columns.oldest[envs] + numbers * sequence_length) % self.memory_size
        return self._ring_sequences(names, first, envs, sequence_length, mini_batches)

    def _ring_sequences(
        self, names: Sequence[str], first: np.ndarray, envs: np.ndarray, length: int, mini_batches: int
    ) -> list[list[Tensor]]:
        """Sequences from ring rows ``first`` ``[N]`` of ``envs`` ``[N]`` on."""
        rows = (first[:, None] + np.arange(length)) % self.memory_size
        indexes = torch.from_numpy(rows * self.num_envs + envs[:, None]).to(self.device)
        return [self.sample_by_index(names, part.flatten())[0] for part in indexes.tensor_split(mini_batches)]

    def shuffled(self, count: int) -> Tensor:
        """A random order of ``count`` transitions, int64, from the memory's own generator."""
        return torch.from_numpy(self._random.permutation(count)).to(self.device)

    # ---- files -----------------------------------------------------------------------------------------------------------

    def _contents(self) -> dict[str, Any]:
        extra = {"columns": self._columns.contents(), "generator": self._random.bit_generator.state}
        return super()._contents() | extra

    def _check_contents(self, contents: dict[str, Any]) -> None:
        super()._check_contents(contents)
        missing = {"columns", "generator"} - set(contents)
        if missing:
            raise ValueError(f"expected the file of a {type(self).__name__}; this one lacks {sorted(missing)}")
        self._columns.check_contents(contents["columns"])
        try:
            np.random.default_rng(0).bit_generator.state = contents["generator"]
        except (TypeError, ValueError, KeyError) as error:
            raise ValueError(f"the file's generator state cannot be used: {error}") from error

    def _take_contents(self, contents: dict[str, Any]) -> None:
        super()._take_contents(contents)
        self._columns.take_contents(contents["columns"])
        self.memory_index, self.filled = self._columns.position, self._columns.full
        self._random.bit_generator.state = contents["generator"]
