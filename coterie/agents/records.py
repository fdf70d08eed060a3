"""The records of a run: metrics over time, the episodes that ended, and when metrics and checkpoints are due."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coterie.agents.tracking import Tracker, make_writable, start_wandb
from coterie.episodes import EpisodeCounter

__all__ = ["RunRecords"]


class RunRecords:
    """What a team writes down of a run.

    :param names: the agents' names
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = list(names)
        self.tracker = Tracker(None)
        self.write_interval = 0
        self.checkpoint_interval = 0
        self._episodes: EpisodeCounter | None = None
        #: mean return of the team over the episodes that ended last, None before the first
        self.recent_return: float | None = None
        self._finished: list[tuple[Tensor, Tensor]] = []  # returns [N, A] and lengths [N] since the last writing
        self._started, self._clock = 0.0, (0, 0.0)  # time; time step and time of the last writing

    def begin(self, directory: Path, cfg: Mapping[str, Any], timesteps: int) -> None:
        """Begin a run: make its directory and open its files.

        :param cfg: the agents' configuration
        :param timesteps: of the run, which decide the intervals that are ``"auto"``; 0 where they are not known

        :raises OSError: the directory cannot be written
        """
        experiment = cfg["experiment"]

        def interval(name: str, parts: int) -> int:
            value = experiment[name]
            if value != "auto":
                return int(value)
            return max(timesteps // parts, 1) if timesteps else 0

        self.write_interval = interval("write_interval", 100)
        self.checkpoint_interval = interval("checkpoint_interval", 10)
        if self.write_interval > 0 or self.checkpoint_interval > 0:
            make_writable(directory)
        if experiment["wandb"]:
            start_wandb(directory.name, cfg)
        self.tracker.close()
        self.tracker = Tracker(directory if self.write_interval > 0 else None)
        self._episodes = None
        self._finished.clear()
        self._started = time.monotonic()
        self._clock = (0, self._started)

    @property
    def num_envs(self) -> int | None:
        """Number of environments whose episodes are counted, None before the first step."""
        return None if self._episodes is None else self._episodes.num_envs

    def count_step(self, earned: Tensor, ended: Tensor) -> None:
        """Take in one step of all environments.

        :param earned: rewards ``[E, A]``
        :param ended: bool ``[E]``, whose episodes are over
        """
        if self._episodes is None:
            self._episodes = EpisodeCounter(earned.shape[0], self._names, earned.device)
        finished = self._episodes.add(earned, ended)
        if finished is not None:
            self.recent_return = float(finished[0].sum(dim=1).mean())
            if self.tracker.enabled:
                self._finished.append(finished)

    def track_episodes(self) -> None:
        """Track the episodes that ended since the last writing, each of which counts the same."""
        if not self._finished:
            return
        returns, lengths = (torch.cat(parts) for parts in zip(*self._finished, strict=True))
        self._finished.clear()
        team = returns.sum(dim=1)
        for name, values in (("Reward / Total reward", team), ("Episode / Total timesteps", lengths.double())):
            self.tracker.track(f"{name} (max)", values.max())
            self.tracker.track(f"{name} (min)", values.min())
            self.tracker.track(f"{name} (mean)", values.mean())
        for uid, mean in zip(self._names, returns.mean(dim=0), strict=True):
            self.tracker.track(f"Reward / Total reward ({uid})", mean)

    def write(self, timestep: int) -> None:
        """Write what was tracked since the last time."""
        self.track_episodes()
        now = time.monotonic()
        steps, since = timestep - self._clock[0], now - self._clock[1]
        if self.num_envs is not None and steps > 0 and since > 0:
            self.tracker.track("Performance / Steps per second", steps * self.num_envs / since)
            self.tracker.track("Performance / Training seconds", now - self._started)
        self._clock = (timestep, now)
        self.tracker.write(timestep)

    def write_evaluation(self, results: Mapping[str, Any], timestep: int) -> None:
        """Write an evaluation's results, whose time is not the training's."""
        self.tracker.track("Evaluation / Return (mean)", results["mean"])
        self.tracker.track("Evaluation / Return (std)", results["std"])
        for uid, value in results["agents"].items():
            self.tracker.track(f"Evaluation / Return ({uid})", value)
        self.write(timestep)
        self._clock = (timestep, time.monotonic())

    def due(self, interval: int, step: int, timesteps: int) -> bool:
        """Whether something that happens at an interval (0: never), and at the end, does now.

        :param step: number of steps that are behind
        """
        return interval > 0 and (step % interval == 0 or step == timesteps)
