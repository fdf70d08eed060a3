"""Whole updates of QMIX, VDN and IQL, by the library and by the slow reference, give the same parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from coterie.memories import PrioritizedMemory
from coterie.preprocessors import RunningScale, RunningStandardScaler
from tests.agents.q_runs import Case, run_by_both
from tests.agents.q_teams import (
    alike,
    attention,
    by_hand,
    crossing,
    mixture,
    pairs,
    qmix,
    shared,
    two_kinds,
    unequal,
)

THREE = ("a0", "a1", "a2")
STATE_SCALER = {"shared_state_preprocessor": RunningStandardScaler}
SCALER = {"state_preprocessor": RunningStandardScaler, "reward_preprocessor": RunningScale}
HARD = {"target_update_interval": 4}
BREAKS = (7, 10, 13, 16, 17, 20)
SOFT = {"target_update_interval": 1, "polyak": 0.3}


def three(*values: Any) -> dict[str, Any]:
    return dict(zip(THREE, values, strict=True))


def shape_rewards(rewards: Tensor, timestep: int, timesteps: int) -> Tensor:
    return rewards.mul_(0.1) + timestep / timesteps


def falling(timestep: int, timesteps: int) -> float:
    return 5e-3 * (1 - timestep / timesteps)


CASES = [
    # how parameters are shared
    Case("iql", "iql"),
    Case("iql, shared", "iql", models=shared),
    Case("iql, one agent", "iql", lambda: alike(1)),
    Case("iql, two kinds", "iql", two_kinds),
    Case("iql, pairs", "iql", lambda: alike(4), pairs),
    Case("iql, mixture", "iql", lambda: alike(4), mixture),
    Case("iql, unequal", "iql", models=unequal),
    Case("iql, by hand", "iql", models=by_hand),
    Case("vdn", "vdn"),
    Case("vdn, two kinds", "vdn", two_kinds),
    Case("qmix", "qmix"),
    Case("qmix, shared", "qmix", models=shared),
    Case("qmix, two kinds", "qmix", two_kinds),
    Case("qmix, two kinds, shared", "qmix", two_kinds, shared),
    Case("qmix, pairs", "qmix", lambda: alike(4), pairs),
    Case("qmix, by hand", "qmix", models=by_hand),
    # mixers and what they see
    Case("one layer", "qmix", mixer=qmix(1)),
    Case("attention", "qmix", mixer=attention),
    Case("attention, two kinds", "qmix", two_kinds, mixer=attention),
    Case("crossing", "qmix", two_kinds, mixer=crossing),
    Case("observations", "qmix", two_kinds, cfg={"mixer_input": "observations"}),
    Case("both", "qmix", two_kinds, cfg={"mixer_input": "both"}),
    Case("state, normalised", "qmix", two_kinds, cfg=STATE_SCALER),
    Case("both, normalised", "qmix", two_kinds, cfg={**STATE_SCALER, "mixer_input": "both"}),
    Case("normalised, teammates", "qmix", lambda: two_kinds(scripted=("b0",)), cfg=STATE_SCALER),
    # memories
    Case("iql, prioritized", "iql", memory="prioritized", cfg={"learning_starts": 0, "update_interval": 2}),
    Case("iql, prioritized, unequal", "iql", models=unequal, memory="prioritized"),
    Case("vdn, prioritized", "vdn", memory="prioritized", cfg={"n_step": 2, "huber_delta": 0.7}),
    Case("qmix, prioritized", "qmix", two_kinds, memory="prioritized"),
    Case("iql, episodes", "iql", memory="episodes", cfg={"td_lambda": 0.6}),
    Case("iql, episodes, 3 steps", "iql", two_kinds, shared, {"n_step": 3}, "episodes"),
    Case("qmix, episodes", "qmix", two_kinds, memory="episodes", cfg={"td_lambda": 0.6}),
    Case("qmix, episodes, 3 steps", "qmix", memory="episodes", cfg={"n_step": 3, "time_limit_bootstrap": False}),
    # targets
    Case("iql, 3 steps", "iql", cfg={"n_step": 3}),
    Case("vdn, 3 steps", "vdn", cfg={"n_step": 3}),
    Case("qmix, 3 steps", "qmix", two_kinds, cfg={"n_step": 3}),
    Case("iql, single q", "iql", cfg={"double_q": False}),
    Case("vdn, single q", "vdn", cfg={"double_q": False, "n_step": 2}),
    Case("qmix, single q", "qmix", two_kinds, cfg={"double_q": False}, memory="episodes"),
    Case("iql, no bootstrap, 3 steps", "iql", cfg={"time_limit_bootstrap": False, "n_step": 3}),
    Case("qmix, no bootstrap", "qmix", two_kinds, cfg={"time_limit_bootstrap": False}),
    Case("vdn, no bootstrap", "vdn", cfg={"time_limit_bootstrap": False, "n_step": 2}),
    Case("iql, hard, unequal", "iql", models=unequal, cfg={**HARD, "gradient_steps": 2}, updates=18),
    Case("qmix, hard", "qmix", two_kinds, cfg={**HARD, "gradient_steps": 2}, updates=10),
    Case("iql, soft", "iql", cfg=SOFT),
    Case("qmix, soft", "qmix", cfg=SOFT),
    # losses, rewards, scales
    Case("iql, huber", "iql", cfg={"huber_delta": 0.5}),
    Case("qmix, huber", "qmix", cfg={"huber_delta": 0.5}),
    Case("iql, mean", "iql", two_kinds, cfg={"reward": "mean"}),
    Case("iql, sum", "iql", cfg={"reward": "sum", "n_step": 2}),
    Case("qmix, sum", "qmix", two_kinds, cfg={"reward": "sum", "rewards_shaper": shape_rewards}),
    Case("iql, scales, shared", "iql", two_kinds, shared, SCALER),
    Case("iql, scales, pairs", "iql", lambda: alike(4), pairs, SCALER),
    Case("iql, scales, mean", "iql", cfg={**SCALER, "reward": "mean"}),
    Case("iql, scales, mean, shared", "iql", models=shared, cfg={**SCALER, "reward": "mean"}),
    Case("vdn, scales", "vdn", two_kinds, cfg={**SCALER, "reward": "sum"}),
    Case("qmix, scales", "qmix", two_kinds, shared, {**SCALER, "mixer_input": "both"}),
    # settings by agent, and of the optimizer
    Case("iql, by agent", "iql", cfg={
        "discount_factor": three(0.9, 0.5, 0.99), "learning_rate": three(1e-3, 5e-3, 3e-3),
        "huber_delta": three(0.0, 0.3, 1.0), "grad_norm_clip": three(0.0, 0.5, 2.0),
        "time_limit_bootstrap": three(True, False, True), "rewards_shaper": three(None, shape_rewards, None),
    }),
    Case("iql, by agent, shared", "iql", models=shared, cfg={
        "discount_factor": three(0.9, 0.5, 0.99), "huber_delta": three(0.0, 0.3, 1.0), "n_step": 3,
        "time_limit_bootstrap": three(True, False, True),
    }),
    Case("iql, loops by agent", "iql", cfg={
        "update_interval": three(2, 3, 2), "batch_size": three(4, 6, 4), "n_step": three(1, 3, 1),
        "gradient_steps": three(1, 2, 1), "double_q": three(False, True, False), "target_update_interval": three(2, 5, 2),
    }),
    Case("qmix, schedule", "qmix", cfg={"learning_rate": falling, "grad_norm_clip": 0}),
    Case("iql, scheduler", "iql", cfg={
        "learning_rate_scheduler": torch.optim.lr_scheduler.ExponentialLR, "learning_rate_scheduler_kwargs": {"gamma": 0.8},
    }),
    # teammates that don't learn
    Case("iql, teammates", "iql", lambda: alike(3, scripted=("a1",)), shared),
    Case("iql, frozen", "iql", lambda: two_kinds(frozen=("a1",), scripted=("b0",)), cfg={"reward": "mean"}),
    Case("vdn, teammates", "vdn", lambda: two_kinds(scripted=("a0",)), cfg={"reward": "sum"}),
    Case("vdn, frozen", "vdn", lambda: alike(3, frozen=("a0",)), cfg=SCALER),
    Case("qmix, teammates", "qmix", lambda: two_kinds(scripted=("b0",), frozen=("a1",))),
    Case("qmix, teammates, all seen", "qmix", lambda: two_kinds(scripted=("b0",)), cfg={"mixer_input": "observations"}),
    Case("attention, teammates", "qmix", lambda: alike(3, scripted=("a0",)), mixer=attention),
    Case("crossing, teammates", "qmix", lambda: two_kinds(frozen=("a0",)), mixer=crossing),
    # training that begins anew amid episodes
    Case("iql, interrupted", "iql", cfg={"n_step": 3, "batch_size": 12}, interrupted=BREAKS),
    Case("vdn, interrupted", "vdn", cfg={"n_step": 3, "batch_size": 12}, interrupted=BREAKS),
    Case("qmix, interrupted", "qmix", two_kinds, memory="episodes", cfg={"td_lambda": 0.6}, interrupted=BREAKS[::2]),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_updates(case: Case) -> None:
    run_by_both(case)


def test_priorities_are_the_mean_errors() -> None:
    """Those that were set and not written over: all of what is held."""
    run = run_by_both(Case("", "vdn", memory="prioritized", cfg={"n_step": 2, "learning_starts": 0}))
    memory, history = run.memory, run.reference.history
    assert isinstance(memory, PrioritizedMemory)
    held = history.stretches(memory.memory_size, 0, 0)
    stored = memory._priorities.values.view(memory.memory_size, memory.num_envs)
    mine = torch.tensor([run.priorities[place] for place in held])
    theirs = torch.stack([stored[n % memory.memory_size, e] for e, n in held])
    torch.testing.assert_close(theirs, mine, atol=1e-5, rtol=1e-5)
    assert len({round(float(x), 4) for x in mine}) > 5
