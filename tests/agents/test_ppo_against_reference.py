"""Whole updates of MAPPO and IPPO, by the library and by the slow reference, give the same parameters."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from coterie import functional
from coterie.preprocessors import RunningStandardScaler, ValueNorm
from coterie.schedulers import KLAdaptiveLR
from tests.agents.ppo_runs import CLASSES, TOLERANCE, Case, Run, run_by_both
from tests.agents.ppo_teams import (
    alike,
    central_critic,
    chain,
    common_trunk,
    distinct,
    distinct_with_id,
    frozen,
    handwritten,
    handwritten_by_data,
    handwritten_shared,
    mixed,
    mixture,
    one_model,
    own_buffers,
    own_constants,
    own_traced_buffers,
    own_traced_constants,
    pairs,
    shared,
    shared_policy,
    squashed,
    squashed_shared,
    state_dependent,
    unequal,
    unlike_activations,
)

SCALER = {"state_preprocessor": RunningStandardScaler, "state_preprocessor_kwargs": {}}
SHARED_SCALER = {"shared_state_preprocessor": RunningStandardScaler}
FOUR = ("a0", "b0", "a1", "b1")


def four(*values: Any) -> dict[str, Any]:
    return dict(zip(FOUR, values, strict=True))


def three(*values: Any) -> dict[str, Any]:
    return dict(zip(("a0", "a1", "a2"), values, strict=True))


def shape_rewards(rewards: Tensor, timestep: int, timesteps: int) -> Tensor:
    return 0.1 * rewards + timestep / timesteps


def tame_rewards(rewards: Tensor, timestep: int, timesteps: int) -> Tensor:
    return rewards.mul_(0.5)  # in place, which is the shaper's right but must not reach the environment's tensor


def warm_up(epoch: int) -> float:
    return 1 / (1 + 0.3 * epoch)


LOSS_VALUES = {
    "discount_factor": three(0.9, 0.99, 0.5),
    "lambda": three(0.95, 0.0, 1.0),
    "ratio_clip": three(0.02, 0.2, 0.1),
    "value_clip": three(0.02, 0.3, 0.1),
    "clip_predicted_values": three(True, False, True),
    "entropy_loss_scale": three(0.0, 0.05, 0.01),
    "value_loss_scale": three(0.5, 2.0, 0.0),
    "time_limit_bootstrap": three(True, False, True),
    "rewards_shaper": three(None, shape_rewards, tame_rewards),
}
SET_VALUES = {
    "learning_rate": three(1e-3, 5e-3, 3e-3),
    "grad_norm_clip": three(0.1, 0.0, 0.5),
    "kl_threshold": three(0.0, 1e-5, 1.0),
}
NORMALISERS = {"value_preprocessor": ValueNorm, **SCALER}

CASES = [
    # how parameters are shared
    Case("shared", lambda: alike(3), shared),
    Case("distinct", lambda: alike(3), distinct),
    Case("one agent", lambda: alike(1), distinct, algorithms=("mappo",)),
    Case("distinct with ids", lambda: alike(3), distinct_with_id, algorithms=("ippo",)),
    Case("two groups shared", mixed, shared),
    Case("two groups distinct", mixed, distinct),
    Case("mixture", lambda: alike(4), mixture),
    Case("mixture normalised", lambda: alike(4), mixture, NORMALISERS),
    Case("pairs", lambda: alike(4), pairs),
    Case("pairs normalised", lambda: alike(4), pairs, NORMALISERS),
    Case("central critic", lambda: alike(3), central_critic),
    Case("central critic normalised", lambda: alike(3), central_critic, NORMALISERS),
    Case("central critic of unlike agents", mixed, central_critic, NORMALISERS, ("mappo",)),
    Case("critic of unlike actions", lambda: mixed(4), central_critic, NORMALISERS),
    Case("shared policy", lambda: alike(3), shared_policy, algorithms=("mappo",)),
    Case("chain", lambda: alike(3), chain, NORMALISERS),
    Case("unequal", lambda: alike(3), unequal, algorithms=("mappo",)),
    Case("frozen layer", lambda: alike(3), frozen, algorithms=("mappo",)),
    Case("common trunk", lambda: alike(3), common_trunk, algorithms=("ippo",)),
    Case("one model for both roles", lambda: alike(3), one_model, algorithms=("ippo",)),
    Case("unlike activations", lambda: alike(4), unlike_activations, algorithms=("mappo",)),
    Case("own constants", lambda: alike(5), own_constants, algorithms=("mappo",)),
    Case("own buffers", lambda: alike(5), own_buffers, algorithms=("ippo",)),
    Case("own traced constants", lambda: alike(5), own_traced_constants, algorithms=("mappo",)),
    Case("own traced buffers", lambda: alike(5), own_traced_buffers, algorithms=("ippo",)),
    # distributions
    Case("multidiscrete", lambda: alike(3, "multidiscrete"), distinct, algorithms=("mappo",)),
    Case("gaussian", lambda: alike(3, "gaussian"), distinct, algorithms=("ippo",)),
    Case("state-dependent std", lambda: alike(3, "gaussian"), state_dependent, algorithms=("mappo",)),
    Case("clipped actions", lambda: alike(3, "clipped"), distinct, algorithms=("ippo",)),
    Case("squashed", lambda: alike(3, "bounded"), squashed, {"entropy_loss_scale": 0.0}, ("mappo",)),
    Case("squashed shared", lambda: alike(3, "bounded"), squashed_shared, {"entropy_loss_scale": 0.0}, ("ippo",)),
    # models that nothing is known about
    Case("handwritten", lambda: alike(3), handwritten),
    Case("handwritten, many", lambda: alike(6), handwritten, NORMALISERS),
    Case("handwritten, unlike", mixed, handwritten),
    Case("handwritten, shared", lambda: alike(3), handwritten_shared, algorithms=("ippo",)),
    Case("handwritten, by data", lambda: alike(3), handwritten_by_data, algorithms=("mappo",)),
    Case("handwritten, by data, many", lambda: alike(6), handwritten_by_data, NORMALISERS),
    # values of the configuration by agent
    Case("losses by agent, distinct", lambda: alike(3), distinct, LOSS_VALUES),
    Case("losses by agent, shared", lambda: alike(3), shared, LOSS_VALUES),
    Case("losses by agent, two groups", mixed, shared, {
        "lambda": four(0.9, 0.5, 0.0, 1.0), "ratio_clip": four(0.1, 0.02, 0.3, 0.05),
    }, ("ippo",)),
    Case("everything by agent", lambda: alike(3), distinct, {**LOSS_VALUES, **SET_VALUES, **NORMALISERS}),
    Case("epochs by agent", lambda: alike(3), distinct, {
        "learning_epochs": three(2, 4, 2), "mini_batches": three(2, 1, 2),
    }, ("mappo",)),
    Case("minibatches by agent", mixed, distinct, {"mini_batches": four(1, 3, 5, 3)}, ("ippo",)),
    # options
    Case("no value clipping", lambda: alike(3), shared, {"clip_predicted_values": False}, ("ippo",)),
    Case("no bootstrap", lambda: alike(3), distinct, {"time_limit_bootstrap": False}),
    Case("no bootstrap, normalised", lambda: alike(3), shared, {"time_limit_bootstrap": False, **NORMALISERS}),
    Case("no gradient clipping", lambda: alike(3), distinct, {"grad_norm_clip": 0}, ("mappo",)),
    Case("uneven minibatches", lambda: alike(3), distinct, {"mini_batches": 5}, ("ippo",)),
    Case("value norm", lambda: alike(3), shared, {
        "value_preprocessor": ValueNorm, "value_preprocessor_kwargs": {"beta": 0.9},
    }, ("mappo",)),
    Case("value norm, distinct", lambda: alike(3), distinct, {"value_preprocessor": ValueNorm}, ("ippo",)),
    Case("value scaler", lambda: alike(3), distinct, {"value_preprocessor": RunningStandardScaler}, ("mappo",)),
    Case("value scaler, two groups", mixed, shared, {"value_preprocessor": RunningStandardScaler}, ("ippo",)),
    Case("scalers", lambda: alike(3), distinct, {**SCALER, "state_preprocessor_kwargs": {"clip_threshold": 1.0}}),
    Case("scalers of two groups", mixed, shared, SCALER),
    Case("scaler by agent", lambda: alike(3), distinct, {
        "state_preprocessor": three(RunningStandardScaler, None, RunningStandardScaler),
    }, ("ippo",)),
    Case("value norm by agent", lambda: alike(3), distinct, {
        "value_preprocessor": three(ValueNorm, None, ValueNorm),
    }, ("mappo",)),
    Case("shared scaler by agent", lambda: alike(3), distinct, {
        "shared_state_preprocessor": three(None, None, RunningStandardScaler),
    }, ("mappo",)),
    Case("scaler's settings by agent", lambda: alike(3), distinct, {
        **SCALER, "state_preprocessor_kwargs": three({"clip_threshold": 1.0}, {}, {"epsilon": 0.1}),
    }, ("ippo",)),
    Case("kinds of value normalisers by agent", lambda: alike(3), distinct, {
        "value_preprocessor": three(ValueNorm, RunningStandardScaler, ValueNorm),
        "value_preprocessor_kwargs": three({"beta": 0.5}, {}, {}),
    }, ("mappo",)),
    Case("shared scaler, distinct", lambda: alike(3), distinct, {**SHARED_SCALER, **NORMALISERS}, ("mappo",)),
    Case("shared scaler, shared", lambda: alike(3), shared, {**SHARED_SCALER, **NORMALISERS}, ("mappo",)),
    Case("shared scaler, pairs", lambda: alike(4), pairs, {**SHARED_SCALER, **NORMALISERS}, ("mappo",)),
    Case("shared scaler, two groups", mixed, shared, {**SHARED_SCALER, **NORMALISERS}, ("mappo",)),
    Case("shared scaler, chain", lambda: alike(3), chain, {**SHARED_SCALER, **NORMALISERS}, ("mappo",)),
    Case("two rates", lambda: alike(3), distinct, {"learning_rate": (1e-3, 6e-3), "grad_norm_clip": 0.1}),
    Case("two rates, shared", mixed, shared, {"learning_rate": (6e-3, 1e-3), "grad_norm_clip": 0.1}),
    Case("two rates by agent", lambda: alike(3), distinct, {
        "learning_rate": three((1e-3, 6e-3), 2e-3, (5e-3, 1e-3)), "grad_norm_clip": 0.1,
    }, ("mappo",)),
    Case("shaped rewards", lambda: alike(3), shared, {"rewards_shaper": shape_rewards}, ("ippo",)),
    # learning rates that change and updates that end early
    Case("adaptive rate", lambda: alike(3), distinct, {
        "learning_rate_scheduler": KLAdaptiveLR, "learning_rate_scheduler_kwargs": {"kl_threshold": 3e-4},
    }, ("mappo",)),
    Case("adaptive rate by agent", lambda: alike(3), distinct, {
        "learning_rate_scheduler": KLAdaptiveLR,
        "learning_rate_scheduler_kwargs": three({"kl_threshold": 1e-6}, {"kl_threshold": 3e-4}, {"kl_threshold": 1.0}),
    }, ("ippo",)),
    Case("adaptive rate, two groups", mixed, shared, {
        "learning_rate_scheduler": KLAdaptiveLR, "learning_rate_scheduler_kwargs": {"kl_threshold": 3e-4},
    }, ("mappo",)),
    Case("adaptive rates, two each", lambda: alike(3), distinct, {
        "learning_rate": (1e-3, 6e-3), "learning_rate_scheduler": KLAdaptiveLR,
        "learning_rate_scheduler_kwargs": {"kl_threshold": 3e-4},
    }, ("ippo",)),
    Case("torch's scheduler", lambda: alike(3), distinct, {
        "learning_rate_scheduler": torch.optim.lr_scheduler.LambdaLR, "learning_rate_scheduler_kwargs": {"lr_lambda": warm_up},
    }, ("ippo",)),
    Case("torch's scheduler, two rates", lambda: alike(3), shared, {
        "learning_rate": (1e-3, 6e-3), "learning_rate_scheduler": torch.optim.lr_scheduler.ExponentialLR,
        "learning_rate_scheduler_kwargs": {"gamma": 0.8},
    }, ("mappo",)),
    Case("scheduler and stop", lambda: alike(3), distinct, {
        "kl_threshold": three(1e-5, 0, 1e-5), "learning_rate_scheduler": torch.optim.lr_scheduler.ExponentialLR,
        "learning_rate_scheduler_kwargs": {"gamma": 0.8},
    }, ("ippo",)),
    Case("stop in all sets", lambda: alike(3), shared, {"kl_threshold": 1e-6}, ("mappo",)),
]  # fmt: skip


def parameters() -> list[Any]:
    return [pytest.param(case, a, id=f"{case.name}-{a}") for case in CASES for a in case.algorithms]


@pytest.mark.parametrize(("case", "algorithm"), parameters())
def test_two_updates_equal_the_reference(case: Case, algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_by_both(case, algorithm, monkeypatch)
    scales = run.cfg["value_loss_scale"]
    if not isinstance(scales, dict) or all(scales.values()):
        assert run.movement() > 1e-3


def test_one_set_stops_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("stop", lambda: alike(3), distinct, {"learning_epochs": 4, "kl_threshold": three(1e-5, 0.0, 10.0)})
    run = run_by_both(case, "mappo", monkeypatch)
    assert [s.epochs for s in run.reference.sets] == [1, 4, 4]
    assert len(run.agent.learners) == 1


def test_a_stop_may_come_later_than_the_first_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = {"learning_epochs": 5, "mini_batches": 1, "kl_threshold": three(1e-5, 2e-4, 0.0)}
    run = run_by_both(Case("stop", lambda: alike(3), distinct, cfg), "mappo", monkeypatch)
    taken = [s.epochs for s in run.reference.sets]
    assert taken[0] == 2, "the first epoch's only minibatch is measured before any step"
    assert taken[0] < taken[1] < taken[2] == 5


def test_adaptive_rates_move_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(case for case in CASES if case.name == "adaptive rate by agent")
    run = run_by_both(case, "ippo", monkeypatch)
    rates = [s.optimizer.param_groups[0]["lr"] for s in run.reference.sets]
    assert rates[0] < 4e-3 < rates[2]


WAYS = {
    "shared": "single", "distinct": "stacked", "pairs": "stacked", "chain": "loop", "handwritten": "loop",
    "handwritten, many": "vmap", "handwritten, shared": "single", "handwritten, by data, many": "loop",
    "central critic of unlike agents": "single",
}  # fmt: skip


@pytest.mark.parametrize("name", WAYS)
def test_cases_reach_every_way_of_running_models(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(next(case for case in CASES if case.name == name), "mappo", monkeypatch)
    ways = {batch.mode for group in run.agent.groups for batch in (group.policy, group.value) if batch is not None}
    assert WAYS[name] in ways


@pytest.mark.parametrize("algorithm", CLASSES)
@pytest.mark.parametrize("name", ["scalers", "scalers of two groups", "handwritten, many", "mixture normalised"])
def test_the_first_ratio_is_one(name: str, algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(case for case in CASES if case.name == name)
    run = Run(replace(case, cfg={**case.cfg, **SCALER}), algorithm, monkeypatch)
    ratios: list[Tensor] = []
    loss = functional.clipped_surrogate_loss

    def listening(log_ratio: Tensor, *args: Any) -> Tensor:
        ratios.append(log_ratio.detach().exp())
        return loss(log_ratio, *args)

    monkeypatch.setattr(functional, "clipped_surrogate_loss", listening)
    for _ in range(2):
        ratios.clear()
        run.rollout()
        for learner in run.agent.learners:
            groups, minibatches = len(learner.groups), 6
            for first in ratios[:groups]:
                torch.testing.assert_close(first, torch.ones_like(first), atol=1e-6, rtol=0)
            assert all(float((later - 1).abs().max()) > 1e-3 for later in ratios[groups : minibatches * groups])
            del ratios[: minibatches * groups]
        assert not ratios
    for owner in run.reference.sets:
        for scaler in owner.state_normalisers.values():
            assert float(scaler.moments()[0].abs().max()) > 0.1, "the normaliser has learned"


@pytest.mark.parametrize("algorithm", CLASSES)
def test_final_states_of_environments_that_go_on_are_not_read(algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(Case("filler", lambda: alike(3), shared), algorithm, monkeypatch)
    run.filler = float("nan")
    run.rollout()
    assert run.difference() < TOLERANCE


@pytest.mark.parametrize("algorithm", CLASSES)
def test_an_agent_may_be_terminated_before_the_others(algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    endings = [{"first": [(2, 0), (7, 1)], "truncated": [(4, 2)]}]
    run = Run(Case("alone", lambda: alike(3), distinct, endings=endings), algorithm, monkeypatch)
    run.rollout()
    assert run.difference() < TOLERANCE


@pytest.mark.parametrize("algorithm", CLASSES)
@pytest.mark.parametrize("ends", [{}, {"truncated": [(4, 2), (6, 1)]}], ids=["alone", "while others end"])
def test_an_agent_may_be_truncated_before_the_others(
    ends: Any, algorithm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What follows is then in the next states: its environment has not been reset."""
    endings = [{"cut": [(2, 0), (4, 1), (7, 1)], **ends}]
    run = Run(Case("alone", lambda: alike(3), distinct, endings=endings), algorithm, monkeypatch)
    run.rollout()
    assert run.difference() < TOLERANCE
