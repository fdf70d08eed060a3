"""Seeding of the global random number generators."""

from __future__ import annotations

import random

import numpy as np
import torch

__all__ = ["set_seed"]


def set_seed(seed: int | None = None, deterministic: bool = False) -> int:
    """Seed Python's, NumPy's and torch's global generators.

    Environments have generators of their own, seeded where they are built.

    :param seed: a non-negative integer below 2**32; None draws one
    :param deterministic: ask torch for deterministic algorithms, which may be slower

    :return: the seed

    :raises ValueError: a seed out of range
    """
    if seed is None:
        seed = random.SystemRandom().randrange(2**32)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ValueError(f"seed: expected an integer from 0 to 2**32 - 1, got {seed!r}")
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (environments may use the legacy generator)
    torch.manual_seed(seed)
    if deterministic:
        torch.use_deterministic_algorithms(True)
    return seed
