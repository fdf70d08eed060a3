"""One Adam per parameter set, stepped together."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adam import adam
from torch.optim.lr_scheduler import ReduceLROnPlateau

from coterie.agents.config import ConfigError, scheduled_value
from coterie.models.flat_parameters import FlatParameters
from coterie.schedulers import KLAdaptiveLR

__all__ = ["OptimizerSettings", "SetOptimizers"]


#: a learning rate, or a schedule of it
Rate = float | Callable[[int, int], float]


@dataclass(frozen=True)
class OptimizerSettings:
    """What one parameter set asks of its optimizer.

    :param learning_rate: a number or a schedule ``(timestep, timesteps) -> number``, or a pair of these for policy and value
        (clipped by themselves then)
    :param grad_norm_clip: bound of the gradient's norm; 0 for none
    :param kl_threshold: stop the update once an epoch's mean KL exceeds it; 0 for never
    :param scheduler: class of a learning-rate scheduler, stepped after each epoch
    :param scheduler_kwargs: its keyword arguments
    """

    learning_rate: Rate | Sequence[Rate]
    grad_norm_clip: float = 0.0
    kl_threshold: float = 0.0
    scheduler: Callable[..., Any] | None = None
    scheduler_kwargs: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, cfg: Mapping[str, Mapping[str, Any]], uid: str) -> OptimizerSettings:
        """Those of an agent.

        :param cfg: the configuration, each key's values by agent
        """
        return cls(
            learning_rate=cfg["learning_rate"][uid],
            grad_norm_clip=cfg["grad_norm_clip"][uid],
            kl_threshold=cfg["kl_threshold"][uid] if "kl_threshold" in cfg else 0.0,
            scheduler=cfg["learning_rate_scheduler"][uid],
            scheduler_kwargs=cfg["learning_rate_scheduler_kwargs"][uid],
        )

    def rates(self, parts: int) -> list[Rate]:
        """The rate of each of ``parts`` parts."""
        rate = self.learning_rate
        return list(rate) if isinstance(rate, Sequence) else [rate] * parts


class SetOptimizers:
    """Optimizers of S parameter sets stored as rows ``[S, D]``.

    Each set has a true ``torch.optim.Adam`` of its own, over its row: learning rates, schedulers and state dicts work as
    anywhere. A step gathers the rows of equal learning rate and hands them to PyTorch's fused kernel together.

    :param storage: parameters and gradients
    :param policy_width: number of elements, at the start of a row, that belong to policies
    :param settings: of each set
    :param has_kl: whether an update has a KL divergence for :meth:`end_epoch`

    :raises ConfigError: a scheduler that needs what an update does not have
    :raises ValueError: nothing to train, or settings that exclude each other
    """

    def __init__(
        self, storage: FlatParameters, policy_width: int, settings: Sequence[OptimizerSettings], has_kl: bool = True
    ) -> None:
        self._storage = storage
        self._settings = list(settings)
        width = storage.data.shape[1]
        if width == 0:
            raise ValueError(
                "every parameter is frozen: expected at least one to train (pass memories=None to act only)"
            )
        pairs = [isinstance(setting.learning_rate, (tuple, list)) for setting in settings]
        separate = any(pairs)
        if separate and not 0 < policy_width < width:
            raise ValueError(
                "a (policy, value) pair of learning rates needs a value model that is not the policy itself"
            )
        self._parts = [slice(0, policy_width), slice(policy_width, width)] if separate else [slice(0, width)]
        # sets with one rate, among sets with pairs, have one norm over both parts
        joint = [separate and not pair for pair in pairs]
        self._joint = torch.tensor(joint, device=storage.data.device).unsqueeze(1) if any(joint) else None
        self.optimizers = [self._adam(s, setting) for s, setting in enumerate(settings)]
        self.schedulers = [
            None if setting.scheduler is None else setting.scheduler(optimizer, **(setting.scheduler_kwargs or {}))
            for setting, optimizer in zip(settings, self.optimizers, strict=True)
        ]
        for setting in settings:
            if setting.scheduler is not None and any(callable(rate) for rate in setting.rates(1)):
                raise ValueError(
                    "learning_rate is a schedule, and learning_rate_scheduler changes it too: give one of them up"
                )
        self._check_schedulers(has_kl)
        limits = [setting.grad_norm_clip or math.inf for setting in settings]
        self._limits = torch.tensor(limits, device=storage.data.device).unsqueeze(1)
        self._clips = any(math.isfinite(limit) for limit in limits)
        self._active = [True] * len(settings)
        self._batches: list[_AdamBatch] | None = None  # None where the next step has to gather them anew

    def _check_schedulers(self, has_kl: bool) -> None:
        if any(isinstance(scheduler, ReduceLROnPlateau) for scheduler in self.schedulers):
            instead = "KLAdaptiveLR or a scheduler" if has_kl else "a scheduler of torch's"
            raise ConfigError(
                "learning_rate_scheduler: ReduceLROnPlateau needs a metric that an update does not have; use "
                f"{instead} that is stepped without one, or a schedule as learning_rate"
            )
        if not has_kl and any(isinstance(scheduler, KLAdaptiveLR) for scheduler in self.schedulers):
            raise ConfigError(
                "learning_rate_scheduler: KLAdaptiveLR needs a divergence of policies, which action values don't have; "
                "use a scheduler of torch's, or a schedule as learning_rate"
            )

    def _adam(self, s: int, setting: OptimizerSettings) -> torch.optim.Adam:
        groups = []
        for part, rate in zip(self._parts, setting.rates(len(self._parts)), strict=True):
            lr = 0.0 if callable(rate) else float(rate)  # that of a schedule is set when an update begins
            row = nn.Parameter(self._storage.data[s, part])
            row.grad = self._storage.grad[s, part]
            groups.append({"params": [row], "lr": lr})
        optimizer = torch.optim.Adam(groups, fused=True)
        for group in optimizer.param_groups:
            (row,) = group["params"]
            optimizer.state[row] = {
                "step": torch.zeros((), dtype=torch.float32, device=row.device),
                "exp_avg": torch.zeros_like(row),
                "exp_avg_sq": torch.zeros_like(row),
            }
        return optimizer

    @property
    def needs_kl(self) -> bool:
        """Whether :meth:`end_epoch` reads the KL divergence (which waits for the device)."""
        adaptive = any(isinstance(scheduler, KLAdaptiveLR) for scheduler in self.schedulers)
        return adaptive or any(setting.kl_threshold > 0 for setting in self._settings)

    def learning_rates(self) -> list[float]:
        """The policy's present learning rate of each set."""
        return [float(optimizer.param_groups[0]["lr"]) for optimizer in self.optimizers]

    def begin_update(self, timestep: int = 0, timesteps: int = 1, taking_part: Sequence[bool] | None = None) -> None:
        """Let sets take part again, at the learning rates that schedules give for this time step.

        :param taking_part: which sets do, None for all; the others' parameters, moments and schedulers stay as they are

        :raises ValueError: a schedule gives a negative number or none
        """
        for setting, optimizer in zip(self._settings, self.optimizers, strict=True):
            for group, rate in zip(optimizer.param_groups, setting.rates(len(self._parts)), strict=True):
                if callable(rate):
                    group["lr"] = scheduled_value("learning_rate", rate, timestep, timesteps)
        self._storage.link()
        self._active = [True] * len(self._settings) if taking_part is None else list(taking_part)
        self._batches = self._gather()

    def _gather(self) -> list[_AdamBatch]:
        batches: dict[tuple[Any, ...], _AdamBatch] = {}
        for optimizer, active in zip(self.optimizers, self._active, strict=True):
            if not active:
                continue
            optimizer._opt_called = True  # type: ignore[attr-defined]  # what LR schedulers look at to warn about their order
            for group in optimizer.param_groups:
                key = (float(group["lr"]), *group["betas"], group["eps"], group["weight_decay"])
                batch = batches.setdefault(key, _AdamBatch(*key))
                for row in group["params"]:
                    batch.add(row, optimizer.state[row])
        return list(batches.values())

    def step(self, loss: Tensor) -> Tensor:
        """Take one step of every active set down the gradient of ``loss``, the sum of the sets' losses.

        :return: gradient norms before clipping ``[S, 1]`` (``[S, 2]``, policy and value, where any set has a pair of learning
            rates)
        """
        grad = self._storage.grad
        grad.zero_()
        loss.backward()
        norms = torch.stack([torch.linalg.vector_norm(grad[:, part], dim=1) for part in self._parts], dim=1)
        if self._clips:
            clipped = norms
            if self._joint is not None:
                clipped = torch.where(self._joint, norms.norm(dim=1, keepdim=True), norms)
            scale = (self._limits / (clipped + 1e-6)).clamp_max(1.0)
            for i, part in enumerate(self._parts):
                grad[:, part].mul_(scale[:, i : i + 1])
        if self._batches is None:
            self._batches = self._gather()
        for batch in self._batches:
            batch.step()
        return norms

    def end_epoch(self, kl: Tensor) -> bool:
        """Step the schedulers and stop the sets whose KL divergence left its bound.

        :param kl: the epoch's mean KL divergence of each set ``[S]``

        :return: whether any set goes on
        """
        divergences = kl.tolist() if self.needs_kl else [0.0] * len(self._settings)
        self.step_schedulers(divergences)
        for s, (setting, divergence) in enumerate(zip(self._settings, divergences, strict=True)):
            if setting.kl_threshold > 0 and divergence > setting.kl_threshold:
                self._active[s] = False
        return any(self._active)

    def step_schedulers(self, divergences: Sequence[float] | None = None) -> None:
        """Step the schedulers of the active sets.

        :param divergences: the KL divergence of each set, for schedulers that follow it
        """
        for s, scheduler in enumerate(self.schedulers):
            if scheduler is None or not self._active[s]:
                continue
            if isinstance(scheduler, KLAdaptiveLR):
                scheduler.step(None if divergences is None else divergences[s])
            else:
                scheduler.step()
        self._batches = None

    def state_dict(self) -> list[dict[str, Any]]:
        """State of each set's optimizer and scheduler."""
        return [
            {
                "optimizer": optimizer.state_dict(),
                "scheduler": None if scheduler is None else plain(scheduler.state_dict()),
            }
            for optimizer, scheduler in zip(self.optimizers, self.schedulers, strict=True)
        ]

    def misfits(self, states: Sequence[Mapping[str, Any]]) -> list[str]:
        """Why :meth:`load_state_dict` could not take ``states``; nothing where it can."""
        if len(states) != len(self.optimizers):
            return [f"expected {len(self.optimizers)} sets, the file has {len(states)}"]
        problems = []
        for s, (mine, theirs) in enumerate(zip(self.state_dict(), states, strict=True)):
            expected, got = (len(state["optimizer"]["param_groups"]) for state in (mine, theirs))
            if expected != got:
                problems.append(f"set {s}: expected {expected} learning rates, the file has {got}")
            known, given = (state["scheduler"] for state in (mine, theirs))
            if None not in (known, given) and set(known) != set(given):
                problems.append(
                    f"set {s}: expected a scheduler with {sorted(known)}, the file has one with {sorted(given)}"
                )
        return problems

    def load_state_dict(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Take what :meth:`state_dict` returned.

        Learning rates come along with the state of a scheduler, which made them what they are. Else they stay those of here.
        """
        for state, optimizer, scheduler in zip(states, self.optimizers, self.schedulers, strict=True):
            rates = [group["lr"] for group in optimizer.param_groups]
            optimizer.load_state_dict(dict(state["optimizer"]))
            if scheduler is not None and state["scheduler"] is not None:
                scheduler.load_state_dict(dict(state["scheduler"]))
                continue
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate


def plain(state: Mapping[str, Any]) -> dict[str, Any]:
    """Keep what a file without code can hold: numbers, strings, tensors, and lists, tuples and dicts of these."""

    def keep(value: Any) -> bool:
        if isinstance(value, (list, tuple)):
            return all(keep(item) for item in value)
        if isinstance(value, Mapping):
            return all(keep(item) for item in value.values())
        return value is None or isinstance(value, (bool, int, float, str, Tensor))

    return {name: value for name, value in state.items() if keep(value)}


class _AdamBatch:
    """Rows that the fused kernel updates in one call."""

    def __init__(self, lr: float, beta1: float, beta2: float, eps: float, weight_decay: float) -> None:
        self._kwargs: dict[str, Any] = {
            "lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": weight_decay,
            "amsgrad": False, "maximize": False, "fused": True,
        }  # fmt: skip
        self._rows: list[list[Tensor]] = [[], [], [], [], []]

    def add(self, row: Tensor, state: Mapping[str, Tensor]) -> None:
        assert row.grad is not None
        params, grads, exp_avgs, exp_avg_sqs, steps = self._rows
        params.append(row)
        grads.append(row.grad)
        exp_avgs.append(state["exp_avg"])
        exp_avg_sqs.append(state["exp_avg_sq"])
        steps.append(state["step"])

    @torch.no_grad()
    def step(self) -> None:
        params, grads, exp_avgs, exp_avg_sqs, steps = self._rows
        adam(params, grads, exp_avgs, exp_avg_sqs, [], steps, **self._kwargs)
