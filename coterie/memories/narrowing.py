"""Tensors kept in fewer bytes than they are used with, and the checks that nothing is lost without a word."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["OBSERVATION_DTYPES", "Losses", "check_narrowing", "check_observation_dtype", "narrow"]

#: what observations, which are used as float32, may be kept as
OBSERVATION_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.uint8, torch.int8, torch.int16)


def check_narrowing(name: str, dtype: torch.dtype, stored: torch.dtype) -> None:
    """Check that a tensor of ``dtype`` may be kept as ``stored``: as a narrower float, or as an integer.

    :raises ValueError: bool or complex numbers, integers kept as floats, or a dtype that takes no fewer bytes
    """
    if stored == dtype:
        return
    plain = {torch.bool, torch.complex32, torch.complex64, torch.complex128}
    if dtype in plain or stored in plain or (stored.is_floating_point and not dtype.is_floating_point):
        raise ValueError(f"{name!r}: {dtype} cannot be kept as {stored}: expected a narrower float, or an integer")
    if stored.itemsize >= dtype.itemsize:
        raise ValueError(f"{name!r}: {stored} takes no fewer bytes than {dtype}: leave `stored` out")


def check_observation_dtype(dtype: torch.dtype | None) -> None:
    """Check that observations may be kept as ``dtype``; None is for leaving them as they are.

    :raises ValueError: naming what is possible
    """
    if dtype is not None and dtype not in OBSERVATION_DTYPES:
        possible = ", ".join(str(one) for one in OBSERVATION_DTYPES)
        raise ValueError(f"observation_dtype: expected None or one of {possible}, got {dtype!r}")


def narrow(name: str, row: Tensor, stored: torch.dtype, wait: bool = False) -> tuple[Tensor, Tensor | None]:
    """``row`` as ``stored``, which has fewer bytes or fewer values.

    Floats are rounded; that is no loss to speak of here, but numbers out of range are. Looking at values waits for any other
    device than the CPU, so on those it is left to be done later, unless one is to ``wait``.

    :return: the row as it is kept, and whether nothing was lost, bool without dimensions; None where it was looked at

    :raises ValueError: on the CPU or after waiting, numbers that an integer dtype cannot hold exactly, or that are infinite or
        no numbers as a narrower float
    """
    if row.dtype == stored:
        return row, None
    kept = row.to(stored)
    fits = (kept.isfinite() if stored.is_floating_point else kept.to(row.dtype) == row).all()
    if not (wait or _at_hand(row)):
        return kept, fits
    if not bool(fits):
        raise ValueError(
            f"{name!r} is kept as {stored}: expected {_what_fits(stored)}, got values from {row.min().item()} to "
            f"{row.max().item()}, some of which it cannot hold; {_advice(stored, row.dtype)}"
        )
    return kept, None


def _at_hand(row: Tensor) -> bool:
    """Whether values can be looked at without waiting for a device."""
    return row.device.type == "cpu"


def _what_fits(stored: torch.dtype) -> str:
    if stored.is_floating_point:
        return f"finite numbers up to {torch.finfo(stored).max:g}"
    limits = torch.iinfo(stored)
    return f"whole numbers from {limits.min} to {limits.max}"


def _advice(stored: torch.dtype, dtype: torch.dtype) -> str:
    return f"{'scale them, or ' if stored.is_floating_point else ''}keep it as {dtype}"


class Losses:
    """Whether rows that were written without being looked at (see :func:`narrow`) could be kept as they are, by tensor."""

    def __init__(self) -> None:
        self._fits: dict[str, Tensor] = {}

    def note(self, fits: Mapping[str, Tensor], device: torch.device) -> None:
        """Rows were written.

        :param fits: what :func:`narrow` returned of them, by tensor
        :param device: where the memory is
        """
        for name, whether in fits.items():
            one = whether.to(device)
            self._fits[name] = one & self._fits[name] if name in self._fits else one

    def check(self, stored: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype]) -> None:
        """Look at what was noted since the last time, which waits for the device. What was lost stays so until it is cleared.

        :param stored: all tensors as they are kept
        :param dtypes: what they are used as

        :raises ValueError: numbers were lost
        """
        if not self._fits:
            return
        fits = torch.stack(list(self._fits.values())).tolist()
        self._fits = {name: flag for (name, flag), fit in zip(self._fits.items(), fits, strict=True) if not fit}
        if self._fits:
            name = next(iter(self._fits))
            kept = stored[name].dtype
            raise ValueError(
                f"{name!r} is kept as {kept}: expected {_what_fits(kept)}, but rows came with others, and what is held of "
                f"them is wrong; {_advice(kept, dtypes[name])}, and begin with an empty memory (reset())"
            )

    def clear(self) -> None:
        """The rows are gone."""
        self._fits = {}
