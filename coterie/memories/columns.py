"""Rings of rows, one for each environment: where its next row goes, where steps are, and what is held."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["START", "STEP", "Columns", "Ints"]

Ints = npt.NDArray[np.int64]

#: flags of a row: a step was taken in it; it is the first of an episode
STEP, START = 1, 2


class Columns:
    """E columns of T rows, each written in a circle of its own.

    A column's rows are counted without end: row number ``n`` stands in ring row ``n % T`` until row ``n + T`` takes its
    place. Its steps are counted as well, from 0 on. A row that is no step shows a state only (a *last observation*). Since
    the steps of a column are in order, those that may start a window have the numbers of a range, which makes uniform
    drawing exact and cheap.

    Counts live on the host, so that no draw waits for a device; flags of rows live on ``device``, so that no write does.

    :param rows: rows of each column T
    :param envs: columns E
    :param device: where ``flags`` live
    """

    def __init__(self, rows: int, envs: int, device: torch.device) -> None:
        self.rows, self.envs, self.device = rows, envs, device
        self.every: Ints = np.arange(envs)
        #: int64 [E]: rows written, and steps among them
        self.written: Ints = np.zeros(envs, np.int64)
        self.taken: Ints = np.zeros(envs, np.int64)
        #: int64 [T, E]: steps that came before this row
        self.before: Ints = np.zeros((rows, envs), np.int64)
        #: int32 [T, E]: the ring row of step number s stands at s % T
        self.row_of: npt.NDArray[np.int32] = np.zeros((rows, envs), np.int32)
        #: uint8 [T, E]: STEP, and START in the first row of an episode
        self.flags = torch.zeros(rows, envs, dtype=torch.uint8, device=device)
        #: uint8 [E]: flags of the next step's row
        self.coming = torch.zeros(envs, dtype=torch.uint8, device=device)
        self._amid = torch.full_like(self.coming, STEP)
        self.clear()

    def clear(self) -> None:
        """Forget all rows."""
        self.written[:] = 0
        self.taken[:] = 0
        self.coming = torch.full_like(self.coming, STEP | START)
        #: whether last observations may follow: a step was added, and nobody has said yet which episodes it ended
        self.open = False
        #: goes up with every change
        self.version = 0
        self._align()

    def _align(self) -> None:
        """Find out whether all columns are written at one row: slices are much faster than positions of their own."""
        places, slots = self.written % self.rows, self.taken % self.rows
        self._row = int(places[0]) if bool((places == places[0]).all()) else None
        self._slot = int(slots[0]) if bool((slots == slots[0]).all()) else None

    # ---- writing ---------------------------------------------------------------------------------------------------------

    def place(self) -> int | Tensor:
        """Where the next row goes: its ring row if that is the same for all columns, else int64 ``[E]`` into ``T * E``."""
        return self._row if self._row is not None else self.places(self.every)

    def places(self, envs: Ints) -> Tensor:
        """Where these columns' next rows go, int64 ``[K]`` into ``T * E``."""
        return torch.from_numpy(self.written[envs] % self.rows * self.envs + envs).to(self.device, non_blocking=True)

    def add_steps(self, place: int | Tensor) -> None:
        """Count a step's row in every column, at :meth:`place`."""
        if isinstance(place, int):
            self.before[place] = self.taken
            self.flags[place].copy_(self.coming)
            rows: int | Ints = place
        else:
            rows = self.written % self.rows
            self.before[rows, self.every] = self.taken
            self.flags.view(-1).index_copy_(0, place, self.coming)
        if self._slot is not None:
            self.row_of[self._slot] = rows
            self._slot = (self._slot + 1) % self.rows
        else:
            self.row_of[self.taken % self.rows, self.every] = rows
        if self._row is not None:
            self._row = (self._row + 1) % self.rows
        self.coming = self._amid
        self.written += 1
        self.taken += 1
        self.open = True
        self.version += 1

    def check_last(self, envs: Ints) -> None:
        """Check that last observations may be added to these columns.

        :raises ValueError: an environment that does not exist, comes twice, or has no running step
        """
        if envs.size == 0:
            return
        if envs.min() < 0 or envs.max() >= self.envs:
            raise ValueError(f"envs: expected numbers from 0 to {self.envs - 1}, got {envs.tolist()}")
        if not self.open:
            raise ValueError(
                "a last observation comes behind the step that it shows the outcome of, before end_episodes"
            )
        newest_is_step = self.before[(self.written[envs] - 1) % self.rows, envs] < self.taken[envs]
        if np.unique(envs).size != envs.size or not newest_is_step.all():
            raise ValueError(f"envs: expected one last observation for each step, got more in {envs.tolist()}")

    def add_last(self, envs: Ints, places: Tensor) -> None:
        """Count a last observation in these columns, at :meth:`places`: their next rows start episodes."""
        self.before[self.written[envs] % self.rows, envs] = self.taken[envs]
        self.flags.view(-1).index_fill_(0, places, 0)
        self.coming = self.coming.index_fill(0, torch.from_numpy(envs).to(self.device), STEP | START)
        self.written[envs] += 1
        self.version += 1
        self._align()

    def end(self, ended: Tensor) -> None:
        """The next rows of these columns (bool ``[E]``) start episodes."""
        if self.coming is self._amid:
            self.coming = torch.add(self._amid, ended, alpha=START)
        else:
            self.coming = self.coming | ended.to(torch.uint8) * START
        self.open = False
        self.version += 1

    def interrupt(self) -> None:
        """What comes next does not follow in any column: the last step of what was running is left as a last observation."""
        cut = np.flatnonzero(self.coming.cpu().numpy() == STEP)
        places = (self.written[cut] - 1) % self.rows * self.envs + cut
        self.flags.view(-1)[torch.from_numpy(places).to(self.device)] &= START
        self.taken[cut] -= 1
        self.coming = torch.full_like(self.coming, STEP | START)
        self.open = False
        self.version += 1
        self._align()

    # ---- what is held ----------------------------------------------------------------------------------------------------

    @property
    def position(self) -> int:
        """Ring row of the first column's next row."""
        return self._row if self._row is not None else int(self.written[0] % self.rows)

    @property
    def full(self) -> bool:
        """Whether every row of every column was written."""
        return bool(self.written.min() >= self.rows)

    @property
    def oldest(self) -> Ints:
        """Number of the oldest row that each column still holds, int64 ``[E]``."""
        return np.maximum(self.written - self.rows, 0)

    def steps_before(self, rows: Ints, envs: Ints | None = None) -> Ints:
        """Steps before row number ``rows`` (from the oldest one held to the next one written) of columns, int64."""
        envs = self.every if envs is None else envs
        return np.where(rows == self.written[envs], self.taken[envs], self.before[rows % self.rows, envs])

    def between(self, ahead: int, behind: int) -> tuple[Ints, Ints]:
        """Row numbers with at least ``ahead`` older and ``behind`` newer rows held: from the first on, before the second."""
        first = np.minimum(self.oldest + ahead, self.written)
        return first, np.maximum(self.written - behind, first)

    def eligible(self, ahead: int, behind: int) -> tuple[Ints, Ints]:
        """Steps with at least ``ahead`` older and ``behind`` newer rows held: the first's number, and how many; ``[E]``."""
        first, end = self.between(ahead, behind)
        low = self.steps_before(first)
        return low, self.steps_before(end) - low

    def draw(self, ahead: int, behind: int, count: int, random: np.random.Generator) -> tuple[Ints, Ints] | None:
        """Ring rows and environments, int64 ``[count]``, of steps drawn uniformly from the :meth:`eligible`.

        None: there is none.
        """
        low, counts = self.eligible(ahead, behind)
        ends = counts.cumsum()
        if ends[-1] == 0:
            return None
        drawn = random.integers(ends[-1], size=count)
        envs = np.searchsorted(ends, drawn, side="right")
        steps = low[envs] + drawn - (ends - counts)[envs]
        return self.row_of[steps % self.rows, envs].astype(np.int64), envs

    # ---- size and files --------------------------------------------------------------------------------------------------

    @property
    def nbytes(self) -> int:
        """Bytes held, on the host and the device."""
        host = (self.written, self.taken, self.before, self.row_of)
        return sum(array.nbytes for array in host) + sum(
            flags.nbytes for flags in (self.flags, self.coming, self._amid)
        )

    @staticmethod
    def predict_bytes(rows: int, envs: int) -> int:
        """:attr:`nbytes` of columns of that size: 13 bytes a row, 18 an environment."""
        return rows * envs * (8 + 4 + 1) + envs * (8 + 8 + 1 + 1)

    def contents(self) -> dict[str, Any]:
        """Everything as tensors and plain values; copies."""
        host = {name: torch.from_numpy(getattr(self, name)) for name in ("written", "taken", "before", "row_of")}
        flags = {"flags": self.flags, "coming": self.coming}
        return {name: tensor.clone() for name, tensor in {**host, **flags}.items()} | {"open": self.open}

    def check_contents(self, contents: dict[str, Any]) -> None:
        """Refuse contents of other columns.

        :raises ValueError: something is missing, of another shape or dtype, or no position in these columns
        """
        for name, mine in self.contents().items():
            other: Any = contents.get(name)
            if type(other) is not type(mine):
                raise ValueError(
                    f"columns: expected {name!r} as {type(mine).__name__}, the file has {type(other).__name__}"
                )
            if isinstance(mine, Tensor) and (mine.shape, mine.dtype) != (other.shape, other.dtype):
                raise ValueError(
                    f"columns: expected {name!r} of shape {list(mine.shape)} and {mine.dtype}, "
                    f"the file has {list(other.shape)} and {other.dtype}"
                )
        bounds = (
            ("taken", contents["written"]),
            ("before", contents["taken"]),
            ("row_of", self.rows - 1),
            ("flags", STEP | START),
            ("coming", STEP | START),
        )
        if any(bool(((contents[name] < 0) | (contents[name] > most)).any()) for name, most in bounds):
            raise ValueError("columns: the file has positions that these columns don't have; it is damaged")

    def take_contents(self, contents: dict[str, Any]) -> None:
        """Take over what :meth:`check_contents` has let pass."""
        for name in ("written", "taken", "before", "row_of"):
            getattr(self, name)[:] = contents[name].cpu().numpy()
        self.flags.copy_(contents["flags"])
        self.coming = contents["coming"].clone()
        self.open = contents["open"]
        self.version += 1
        self._align()
