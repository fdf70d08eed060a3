"""What every test needs: one thread, a seed, no display, and a folder of its own."""

from __future__ import annotations

import os

# before anything imports matplotlib or pygame: tests open no window
os.environ["MPLBACKEND"] = "Agg"
os.environ["SDL_VIDEODRIVER"] = "dummy"

import random
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

# more threads are slower at these sizes, much slower on a busy machine
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed() -> int:
    """Seed every generator before each test, so that a test gives the same numbers alone and in any order."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  libraries draw from the legacy generator
    torch.manual_seed(0)
    return 0


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run each test in an empty folder: agents write to ``runs/`` in the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def no_window() -> Iterator[None]:
    """Fail a test that switches matplotlib to a backend that needs a display."""
    yield
    if (matplotlib := sys.modules.get("matplotlib")) is not None:
        assert matplotlib.get_backend().lower() == "agg"


@pytest.fixture(scope="session")
def repository() -> Path:
    """Return the repository's root, for tests that read or run its files."""
    return Path(__file__).resolve().parents[1]
