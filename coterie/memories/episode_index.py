"""Which episodes are complete, and still whole in their column."""

from __future__ import annotations

import numpy as np
import torch

from coterie.memories.columns import START, Columns, Ints

__all__ = ["EpisodeIndex"]


class EpisodeIndex:
    """Where episodes start in columns, found from the flags of their rows.

    It reads the rows written since it was last asked, so that nothing has to be done, or waited for, when a row is written.
    The episodes of a column are counted without end, the one that is running included.
    """

    def __init__(self, columns: Columns) -> None:
        self.columns = columns
        #: at most T whole episodes, the one that is to come, and one that isn't whole any more
        self._room = columns.rows + 2
        #: int64 [T + 2, E]: the first row of episode number k stands at k % (T + 2), and likewise the row behind its last one
        self._starts: Ints = np.zeros((self._room, columns.envs), np.int64)
        self._ends: Ints = np.zeros_like(self._starts)
        self.clear()

    def clear(self) -> None:
        """Forget everything; the rows that are held will be read anew."""
        envs = self.columns.envs
        self._count: Ints = np.zeros(envs, np.int64)  # episodes found
        self._first: Ints = np.zeros(envs, np.int64)  # the first whole episode
        self._read: Ints = np.zeros(envs, np.int64)  # rows whose flags were read
        self._steps: Ints = np.zeros(envs, np.int64)  # steps before the last of them
        self._version = -1
        #: whether an episode was seen that has more rows than a column
        self.too_long = False

    @property
    def nbytes(self) -> int:
        """Bytes held for starts and ends."""
        return self._starts.nbytes + self._ends.nbytes

    @staticmethod
    def predict_bytes(rows: int, envs: int) -> int:
        """:attr:`nbytes` for columns of that size."""
        return 2 * (rows + 2) * envs * 8

    def whole(self) -> tuple[Ints, Ints]:
        """Episodes that are complete and whole: the first's number and how many, int64 ``[E]``.

        Where flags are on another device than the CPU, this waits for it if rows were written since the last time.
        """
        self._follow()
        return self._first, np.maximum(self._count - 1 - self._first, 0)

    def rows(self, numbers: Ints, envs: Ints) -> tuple[Ints, Ints]:
        """First row and the row behind the last one of episodes, int64 ``[B]`` both."""
        return self._starts[numbers % self._room, envs], self._ends[numbers % self._room, envs]

    def _follow(self) -> None:
        columns = self.columns
        if self._version == columns.version:
            return
        self._version = columns.version
        self._forget_overwritten()  # makes room
        self._skip_unread()
        numbers, flags = self._unread()
        for row in np.flatnonzero(flags.any(1)):
            envs = np.flatnonzero(flags[row])
            self._add(numbers[row, envs], envs)
        self._forget_overwritten()  # what was running until now may have become an episode without its first rows
        self._note_length(columns.written, columns.every)

    def _forget_overwritten(self) -> None:
        oldest, every = self.columns.oldest, self.columns.every
        while True:
            gone = (self._first < self._count - 1) & (self._starts[self._first % self._room, every] < oldest)
            if not gone.any():
                return
            self._first += gone

    def _skip_unread(self) -> None:
        """Rows were overwritten unread: episodes that end before the next start are not known, but they aren't whole."""
        lost = np.flatnonzero(self._read < self.columns.oldest)
        if lost.size:
            self._read[lost] = self.columns.oldest[lost]
            # what is running at the oldest row may have started there, or ahead of it: the latter, until the row is read
            self._starts[self._count[lost] % self._room, lost] = self._read[lost] - 1
            self._steps[lost] = -1
            self._count[lost] += 1
            self._first[lost] = self._count[lost]

    def _unread(self) -> tuple[Ints, np.ndarray]:
        """Numbers ``[N, E]`` of rows not read yet, the next one to be written included, and whether they start an episode."""
        columns = self.columns
        longest = int((columns.written + 1 - self._read).max())
        numbers = self._read + np.arange(longest)[:, None]
        places = torch.from_numpy((numbers % columns.rows * columns.envs + columns.every).ravel()).to(columns.device)
        read = columns.flags.view(-1).index_select(0, places)
        both = torch.cat((read, columns.coming)).cpu().numpy() >= START
        flags, fresh = both[: numbers.size].reshape(numbers.shape), both[numbers.size :]
        flags = (flags & (numbers < columns.written)) | (fresh & (numbers == columns.written))
        self._read = columns.written + fresh  # one that isn't written yet may still become a start
        return numbers, flags

    def _add(self, starts: Ints, envs: Ints) -> None:
        """In each of these columns an episode starts, and one ends."""
        self._note_length(starts, envs)
        steps = self.columns.steps_before(starts, envs)
        self._ends[(self._count[envs] - 1) % self._room, envs] = starts
        # one without a step, since it was interrupted at its first one, is none: the later one takes its place
        none = (self._count[envs] > 0) & (self._steps[envs] == steps)
        self._count[envs[none]] -= 1
        self._starts[self._count[envs] % self._room, envs] = starts
        self._steps[envs] = steps
        self._count[envs] += 1

    def _note_length(self, ends: Ints, envs: Ints) -> None:
        """Look whether the last episode found in columns started more than T rows ahead of ``ends``."""
        last = self._starts[(self._count[envs] - 1) % self._room, envs]
        self.too_long = self.too_long or bool(((ends - last > self.columns.rows) & (self._count[envs] > 0)).any())
