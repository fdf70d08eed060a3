"""What a run records: TensorBoard events, and a short CSV for those who only want the curve."""

from __future__ import annotations

import csv
import datetime as dt
import os
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["CSV_COLUMNS", "Tracker", "experiment_directory"]

#: columns of ``metrics.csv`` after the time step, and the tags they are taken from
CSV_COLUMNS = {
    "return": "Reward / Total reward (mean)",
    "evaluation_return": "Evaluation / Return (mean)",
    "episode_length": "Episode / Total timesteps (mean)",
    "steps_per_second": "Performance / Steps per second",
    "training_seconds": "Performance / Training seconds",
}


def experiment_directory(settings: Mapping[str, Any], name: str) -> Path:
    """``directory/experiment_name`` of an ``experiment`` configuration; the name defaults to the date, time and ``name``."""
    stamp = dt.datetime.now().strftime("%y-%m-%d_%H-%M-%S-%f")
    return Path(settings["directory"] or "runs") / (settings["experiment_name"] or f"{stamp}_{name}")


def start_wandb(name: str, cfg: Mapping[str, Any]) -> None:
    """Mirror the events to Weights & Biases, as a run of this name.

    :raises ImportError: wandb is not installed
    """
    try:
        import wandb  # noqa: PLC0415 (optional)
    except ImportError as error:
        raise ImportError("cfg['experiment']['wandb'] is True: install wandb, or set it to False") from error
    wandb.init(
        **{"name": name, "sync_tensorboard": True, "config": {"cfg": repr(cfg)}, **cfg["experiment"]["wandb_kwargs"]}
    )


def make_writable(directory: Path) -> None:
    """Create ``directory`` and try it out.

    :raises OSError: it cannot be created or written to
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise OSError(
            f"cannot write to the experiment directory {str(directory)!r} ({error}); set cfg['experiment']['directory'] to one "
            "that can be written, or both intervals in cfg['experiment'] to 0"
        ) from error


class Tracker:
    """Collects scalars and writes their mean at each interval (minimum and maximum for tags that end in ``(min)``, ``(max)``).

    Values may be tensors on a device: they are read when written.

    :param directory: where the event file and ``metrics.csv`` go; None records nothing
    """

    def __init__(self, directory: Path | None) -> None:
        self._data: defaultdict[str, list[Any]] = defaultdict(list)
        self._writer: Any = None
        self._csv = None if directory is None else directory / "metrics.csv"
        if directory is not None:
            from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 (it takes a second)

            self._writer = SummaryWriter(log_dir=os.fspath(directory))

    @property
    def enabled(self) -> bool:
        """Whether anything is recorded."""
        return self._writer is not None

    def track(self, tag: str, value: Any) -> None:
        """Remember a value until the next :meth:`write`."""
        if self.enabled:
            self._data[tag].append(value)

    def write(self, timestep: int) -> None:
        """Write what was tracked since the last time under ``timestep``."""
        if not self.enabled or not self._data:
            return
        values = {tag: _reduce(tag, tracked) for tag, tracked in self._data.items()}
        self._data.clear()
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, timestep)
        self._writer.flush()
        row = [values.get(tag) for tag in CSV_COLUMNS.values()]
        if self._csv is not None and any(value is not None for value in row):
            new = not self._csv.exists()
            with self._csv.open("a", newline="") as file:
                rows = csv.writer(file)
                if new:
                    rows.writerow(["timestep", *CSV_COLUMNS])
                rows.writerow([timestep, *("" if value is None else f"{value:.6g}" for value in row)])

    def close(self) -> None:
        """Flush and close the event file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _reduce(tag: str, values: list[Any]) -> float:
    numbers = [float(value) for value in values]
    if tag.endswith("(min)"):
        return min(numbers)
    if tag.endswith("(max)"):
        return max(numbers)
    return float(np.mean(numbers))
