"""Reading and writing checkpoint files, which hold tensors and plain values but never code."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

__all__ = ["CheckpointError", "check_states", "read_checkpoint", "write_checkpoint"]


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read, or does not fit the agent that loads it."""


def write_checkpoint(path: str | os.PathLike[str], contents: Mapping[str, Any]) -> None:
    """Write ``contents`` so that ``path`` holds the old file or the whole new one, whatever happens in between."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            torch.save(dict(contents), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)  # noqa: PTH105 (as the rest of the os calls here)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_checkpoint(path: str | os.PathLike[str], device: torch.device) -> dict[str, Any]:
    """Read a checkpoint with ``weights_only=True``: nothing in it is executed.

    :raises CheckpointError: the file is missing, damaged, or holds anything but tensors and plain values
    """
    try:
        contents = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint {os.fspath(path)!r}") from None
    except Exception as error:  # torch raises many kinds for damaged files, and UnpicklingError for code
        raise CheckpointError(f"cannot read {os.fspath(path)!r} as a checkpoint: {error}") from error
    if not isinstance(contents, dict) or "format" not in contents:
        raise CheckpointError(f"{os.fspath(path)!r} is not a checkpoint of this library")
    return contents


def check_states(kind: str, modules: Mapping[str, nn.Module], states: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """List every way in which ``states`` do not fit ``modules``, so that nothing is loaded by halves."""
    problems = [f"{kind} {name!r} is missing" for name in modules if name not in states]
    problems += [f"{kind} {name!r} is unknown here" for name in states if name not in modules]
    for name, module in modules.items():
        state, mine = states.get(name), module.state_dict()
        if state is None:
            continue
        for key in sorted({*state, *mine}):
            expected = list(mine[key].shape) if key in mine else "nothing"
            got = list(state[key].shape) if key in state else "nothing"
            if expected != got:
                problems.append(f"{kind} {name!r}, {key!r}: expected {expected}, the file has {got}")
    return problems
