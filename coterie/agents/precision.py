"""Where networks may run in bfloat16 to any purpose."""

from __future__ import annotations

import logging
import platform

import torch

__all__ = ["has_bfloat16_units", "mixed_precision_allowed"]

_log = logging.getLogger(__name__)

_X86 = ("x86_64", "AMD64", "i386", "i686")


def has_bfloat16_units(device: torch.device) -> bool:
    """Whether a device computes in bfloat16 itself, rather than by conversions to float32 and back."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return True
    if platform.machine() in _X86:
        # of PyTorch's own, since the standard library does not say what a processor can do
        flags = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(bool(getattr(torch.cpu, flag, bool)()) for flag in flags)
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def mixed_precision_allowed(wanted: bool, device: torch.device) -> bool:
    """Whether to run networks in bfloat16: where it is wanted, unless that would only cost time, of which the log warns."""
    if not wanted or has_bfloat16_units(device):
        return wanted
    _log.warning(
        "mixed_precision: %s has no bfloat16 units, and a layer of 256 units takes 2 to 6 times as long by conversions "
        "as in float32 (benchmarks/bfloat16.py): networks run in float32",
        device,
    )
    return False
