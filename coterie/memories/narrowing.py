"""Tensors kept in fewer bytes than they are used with, and the check that nothing is lost without a word."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["check_narrowing", "narrow"]


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


def narrow(name: str, row: Tensor, stored: torch.dtype) -> Tensor:
    """``row`` as ``stored``, which has fewer bytes or fewer values.

    Values are looked at on the CPU only, since looking waits for any other device. Floats are rounded; that is no loss to speak
    of here, but numbers out of range are.

    :raises ValueError: on the CPU, numbers that an integer dtype cannot hold exactly, or that are infinite or no numbers as
        a narrower float
    """
    if row.dtype == stored:
        return row
    kept = row.to(stored)
    if row.device.type == "cpu":
        if not stored.is_floating_point:
            if not torch.equal(kept.to(row.dtype), row):
                limits = torch.iinfo(stored)
                raise ValueError(
                    f"{name!r} is kept as {stored}: expected whole numbers from {limits.min} to {limits.max}, got values from "
                    f"{row.min().item()} to {row.max().item()}, some of which it cannot hold; keep it as a float"
                )
        elif not bool(kept.isfinite().all()):
            raise ValueError(
                f"{name!r} is kept as {stored}: expected finite numbers up to {torch.finfo(stored).max:g}, got values from "
                f"{row.min().item()} to {row.max().item()}; scale them, or keep them as {row.dtype}"
            )
    return kept
