"""Updates with action masks, and with agents that wait, arrive late, miss steps and die, against the slow reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from coterie.preprocessors import PopArt, RunningStandardScaler, ValueNorm
from coterie.schedulers import KLAdaptiveLR
from tests.agents.ppo_memory_models import seeing
from tests.agents.ppo_presence import LIVES
from tests.agents.ppo_reference_time import ACTIVE
from tests.agents.ppo_runs import CLASSES, CUTS, TOLERANCE, Case, Run, T, run_by_both
from tests.agents.ppo_teams import (
    Team,
    alike,
    built,
    central_critic,
    chain,
    distinct,
    handwritten,
    mixed,
    mixture,
    pairs,
    shared,
    squashed,
)

SCALER = {"state_preprocessor": RunningStandardScaler}
SHARED_SCALER = {"shared_state_preprocessor": RunningStandardScaler}
NORMALISERS = {**SCALER, "value_preprocessor": ValueNorm, "value_preprocessor_kwargs": {"beta": 0.9}}
POPART = {"value_preprocessor": PopArt, "value_preprocessor_kwargs": {"beta": 0.6}}
EVERYTHING = {**NORMALISERS, **SHARED_SCALER}


def shape_rewards(rewards: torch.Tensor, timestep: int, timesteps: int) -> torch.Tensor:
    return 0.1 * rewards + 1.0 + timestep / timesteps


def halving(timestep: int, timesteps: int) -> float:
    """From 1 to 1/2."""
    return 1.0 - 0.5 * timestep / timesteps


def of_all(critic: str, sees: str, share: bool) -> Any:
    """Ready-made models with one critic that gives every agent a value of its own."""
    return lambda team, algorithm: built(team, algorithm, shared=share, critic=critic, critic_input=sees, hidden=(8, 8))


def three_kinds() -> Team:
    """Kinds of two, one and one."""
    return Team({"a0": "discrete", "b0": "gaussian", "a1": "discrete", "c0": "multidiscrete"})


def crossed(team: Any, algorithm: str) -> Any:
    """The agents of a kind share a policy, and each shares its critic with one of the other kind."""
    models = shared(team, algorithm)
    critics = distinct(team, algorithm)
    first, second = critics["a0"]["value"], critics["a1"]["value"]
    values = {"a0": first, "b0": second, "a1": second, "b1": first}
    return {uid: {"policy": roles["policy"], "value": values[uid]} for uid, roles in models.items()}


def pairs_of_three(team: Any, algorithm: str) -> Any:
    """The first and the last agent share their models."""
    models = distinct(team, algorithm)
    return {**models, "a2": models["a0"]}


def times(factor: float) -> Any:
    return lambda timestep, timesteps: factor * halving(timestep, timesteps)


def three(*values: Any) -> dict[str, Any]:
    return dict(zip(("a0", "a1", "a2"), values, strict=True))


def case(
    name: str, team: Any, models: Any, cfg: Any = None, algorithms: Any = ("mappo", "ippo"), **kwargs: Any
) -> Case:
    if "shared_state_preprocessor" in (cfg or {}):
        algorithms = ("mappo",)
    return Case(name, team, models, cfg or {}, algorithms, **{"style": "lives", "masked": True, **kwargs})


# fmt: off
CASES = [
    # action masks alone
    case("masked, shared", lambda: alike(3), shared, style=None),
    case("masked, distinct", lambda: alike(3), distinct, style=None),
    case("masked, not told again", lambda: alike(3), distinct, style=None, told=False, algorithms=("ippo",)),
    case("masked multidiscrete", lambda: alike(3, "multidiscrete"), distinct, style=None),
    case("masked multidiscrete, shared", lambda: alike(3, "multidiscrete"), shared, style=None, algorithms=("mappo",)),
    case("masks of some", mixed, shared, style=None),
    case("masked, by hand", lambda: alike(6), handwritten, style=None, algorithms=("ippo",)),
    # lives without masks of actions
    case("lives, shared", lambda: alike(3), shared, masked=False),
    case("lives, distinct", lambda: alike(3), distinct, masked=False),
    case("lives, gaussian", lambda: alike(3, "gaussian"), distinct, masked=False, algorithms=("ippo",)),
    case("lives, squashed", lambda: alike(3, "bounded"), squashed, {"entropy_loss_scale": 0.0}, ("mappo",), masked=False),
    case("lives, clipped actions", lambda: alike(3, "clipped"), distinct, masked=False, algorithms=("ippo",)),
    case("lives, multibinary", lambda: alike(3, "multibinary"), shared, masked=False),
    case("lives, two groups", mixed, shared, masked=False),
    # who waits
    case("turns, shared", lambda: alike(2), shared, style="turns"),
    case("turns, distinct", lambda: alike(3), distinct, style="turns"),
    case("turns, not told again", lambda: alike(3), shared, style="turns", told=False, algorithms=("mappo",)),
    case("waits, normalised", lambda: alike(3), shared, NORMALISERS, style="waits"),
    case("waits, two groups", mixed, distinct, style="waits"),
    case("waits, no bootstrap", lambda: alike(3), distinct, {"time_limit_bootstrap": False}, style="waits"),
    # both
    case("lives and masks, shared", lambda: alike(3), shared),
    case("lives and masks, distinct", lambda: alike(3), distinct),
    case("lives and masks, not told again", lambda: alike(3), distinct, told=False),
    case("lives and masks, multidiscrete", lambda: alike(3, "multidiscrete"), distinct, algorithms=("mappo",)),
    case("lives and masks, two groups", mixed, shared, EVERYTHING),
    case("lives and masks, two groups, distinct", mixed, distinct, EVERYTHING),
    case("lives and masks, mixture, ippo", lambda: alike(4), mixture, NORMALISERS, ("ippo",)),
    case("lives and masks, chain, ippo", lambda: alike(3), chain, NORMALISERS, ("ippo",)),
    case("lives and masks, pairs, ippo", lambda: alike(4), pairs, {**SCALER, **POPART}, ("ippo",)),
    case("lives and masks, by hand, ippo", lambda: alike(6), handwritten, NORMALISERS, ("ippo",)),
    case("lives and masks, two groups, ippo", mixed, distinct, NORMALISERS, ("ippo",)),
    case("lives and masks, mixture", lambda: alike(4), mixture, EVERYTHING),
    case("lives and masks, pairs", lambda: alike(4), pairs, EVERYTHING),
    case("lives and masks, chain", lambda: alike(3), chain, EVERYTHING),
    case("lives and masks, central critic", mixed, central_critic, EVERYTHING, ("mappo",)),
    case("lives and masks, by hand", lambda: alike(6), handwritten, EVERYTHING),
    case("lives, one agent", lambda: alike(1), distinct, EVERYTHING, style="waits"),
    # absent at the end of an episode without ever having been done
    case("leaves, shared", lambda: alike(3), shared, style="leaves"),
    case("leaves, two groups", mixed, distinct, EVERYTHING, style="leaves"),
    case("leaves, no bootstrap", lambda: alike(3), distinct, {"time_limit_bootstrap": False}, ("ippo",), style="leaves"),
    # time limits that strike some while others go on
    case("cut alone, distinct", lambda: alike(4), distinct, endings=CUTS),
    case("cut alone, two groups", mixed, shared, EVERYTHING, style="leaves", endings=CUTS),
    *(
        case(f"cut alone, critic sees {kind}, {style}", lambda: alike(4), seeing(kind, style == "lives"), {
            "critic_input": kind,
        }, ("mappo",), style=style, masked=style is not None, endings=CUTS)
        for kind in ("observations", "agent", "both")
        for style in ("lives", "leaves", None)
    ),
    *(
        case(f"cut alone, {critic}, {style}", lambda: alike(4), of_all(critic, "observations", True), {
            "critic_input": "observations", **cfg,
        }, ("mappo",), style=style, endings=CUTS)
        for critic, style, cfg in (("pooled", "lives", EVERYTHING), ("attention", "leaves", {}), ("pooled", "waits", {}))
    ),
    # rollouts that are not learned from
    case("learns later", lambda: alike(3), distinct, {"learning_starts": T}),
    case("some learn later", lambda: alike(3), distinct, {"learning_starts": three(0, T, 0)}, ("ippo",)),
    # normalisers and who enters them
    case("scalers", lambda: alike(3), distinct, SCALER),
    case("scalers, shared", lambda: alike(3), shared, SCALER),
    case("value scaler", lambda: alike(3), distinct, {"value_preprocessor": RunningStandardScaler}),
    case("value norm, shared", lambda: alike(3), shared, {"value_preprocessor": ValueNorm}),
    case("popart", lambda: alike(3), distinct, POPART),
    case("popart, shared", lambda: alike(3), shared, POPART),
    case("popart, two groups", mixed, shared, POPART),
    case("popart, central critic", lambda: alike(3), central_critic, POPART, ("mappo",)),
    case("popart, chain", lambda: alike(3), chain, POPART, ("mappo",)),
    case("popart, all present", lambda: alike(3), distinct, POPART, style=None, masked=False),
    case("popart and scalers", lambda: alike(4), pairs, {**SCALER, **SHARED_SCALER, **POPART}),
    case("popart, unclipped, wide", lambda: alike(3), shared, {**POPART, "clip_predicted_values": False}, ("ippo",)),
    # advantages
    case("advantages of the group", lambda: alike(3), shared, {"advantage_normalization": "group"}),
    case("advantages of the group, distinct", lambda: alike(3), distinct, {"advantage_normalization": "group"}, ("ippo",)),
    case("advantages of two groups", mixed, central_critic, {"advantage_normalization": "group"}, ("mappo",)),
    case("advantages of pairs", lambda: alike(4), pairs, {"advantage_normalization": "group"}),
    case("advantages as they are", lambda: alike(3), distinct, {"advantage_normalization": "off"}),
    # losses
    case("asymmetric clip", lambda: alike(3), shared, {"ratio_clip": (0.02, 0.08)}),
    case("asymmetric clip by agent", lambda: alike(3), shared, {"ratio_clip": three((0.02, 0.1), (0.2, 0.01), (0.05, 0.05))}),
    case("huber", lambda: alike(3), distinct, {"huber_delta": 1.0}),
    case("huber by agent", lambda: alike(3), shared, {
        "huber_delta": three(0.5, 0.0, 2.0), "clip_predicted_values": False,
    }, ("ippo",)),
    case("huber, clipped, normalised", lambda: alike(3), shared, {**NORMALISERS, "huber_delta": 0.3}, ("mappo",)),
    case("losses by agent", lambda: alike(3), shared, {
        "discount_factor": three(0.9, 0.99, 0.5), "lambda": three(0.95, 0.0, 1.0), "value_clip": three(0.02, 0.3, 0.1),
        "entropy_loss_scale": three(0.0, 0.05, 0.01), "value_loss_scale": three(0.5, 2.0, 0.1),
        "clip_predicted_values": three(True, False, True), "time_limit_bootstrap": three(True, False, True),
        "rewards_shaper": three(None, shape_rewards, shape_rewards),
    }),
    case("shaped rewards", lambda: alike(3), shared, {"rewards_shaper": shape_rewards}),
    case("no gradient clipping", lambda: alike(3), distinct, {"grad_norm_clip": 0}, ("mappo",)),
    case("two rates", lambda: alike(3), distinct, {"learning_rate": (1e-3, 6e-3), "grad_norm_clip": 0.1}, ("ippo",)),
    case("uneven minibatches", lambda: alike(3), shared, {"mini_batches": 5}),
    # estimators of the divergence, which decide on rates and on stopping
    *(
        case(f"{estimator}, {what}", lambda: alike(3), models, {
            "kl_estimator": estimator, "mini_batches": 3, **cfg,
        }, algorithms)
        for estimator in ("k1", "k2", "k3")
        for what, models, cfg, algorithms in (
            ("rates", pairs_of_three, {
                "learning_rate_scheduler": KLAdaptiveLR, "learning_rate_scheduler_kwargs": {"kl_threshold": 1.5e-3},
            }, ("mappo",)),
            ("stop", shared, {"kl_threshold": 1.5e-3, "learning_epochs": 6}, ("ippo",)),
        )
    ),
    # schedules
    case("scheduled rate", lambda: alike(3), distinct, {"learning_rate": times(4e-3)}),
    case("scheduled rates", lambda: alike(3), shared, {"learning_rate": (times(1e-3), 6e-3)}, ("mappo",)),
    case("scheduled rates by agent", lambda: alike(3), distinct, {
        "learning_rate": three(times(2e-3), 5e-3, times(6e-3)),
    }, ("ippo",)),
    case("scheduled losses", lambda: alike(3), shared, {
        "ratio_clip": times(0.06), "value_clip": times(0.05), "entropy_loss_scale": times(0.05),
    }),
    case("scheduled clip above", lambda: alike(3), distinct, {"ratio_clip": (0.05, times(0.03))}, ("mappo",)),
    case("scheduled losses by agent", lambda: alike(3), shared, {
        "ratio_clip": three(times(0.06), 0.02, (times(0.05), times(0.02))),
        "entropy_loss_scale": three(times(0.05), 0.0, 0.01),
    }, ("ippo",)),
    case("exploration", lambda: alike(3, "gaussian"), distinct, {"exploration_std": 0.7}, masked=False),
    case("scheduled exploration", lambda: alike(3, "gaussian"), shared, {"exploration_std": times(1.2)}, masked=False),
    case("scheduled exploration, squashed", lambda: alike(3, "bounded"), squashed, {
        "exploration_std": times(0.8), "entropy_loss_scale": 0.0,
    }, ("mappo",), masked=False),
    # what critics see
    *(
        case(f"critic sees {kind}, {name}{', normalised' if cfg else ''}", lambda: alike(3), seeing(kind, share), {
            "critic_input": kind, **cfg,
        }, ("mappo",))
        for kind in ("state", "observations", "agent", "both")
        for name, share in (("shared", True), ("distinct", False))
        for cfg in ({}, EVERYTHING)
    ),
    *(
        case(f"critic sees {kind}, two groups", mixed, seeing(kind, True), {"critic_input": kind, **EVERYTHING}, ("mappo",))
        for kind in ("observations", "agent", "both")
    ),
    # critics with a value for each agent
    *(
        case(f"{critic}, critic of all, {style}, {name}", team, of_all(critic, sees, share), {
            "critic_input": sees, **cfg,
        }, ("mappo",), style=style)
        for critic, sees, style in (
            ("heads", "state", "lives"), ("heads", "both", "waits"), ("pooled", "observations", "lives"),
            ("attention", "observations", "lives"), ("attention", "observations", "turns"),
        )
        for name, team, share, cfg in (
            ("shared", lambda: alike(3), True, {}), ("distinct", lambda: alike(3), False, EVERYTHING),
            ("two groups", mixed, True, POPART if critic == "heads" else EVERYTHING),
        )
    ),
    # critics that serve several kinds of agents, and run once for all of them
    *(
        case(f"{critic}, {cfg_name}, three kinds", three_kinds, of_all(critic, sees, True), {
            "critic_input": sees, **cfg,
        }, ("mappo",))
        for critic, sees in (("mlp", "state"), ("heads", "both"), ("pooled", "observations"), ("attention", "observations"))
        for cfg_name, cfg in (("plain", {"mini_batches": 3}), ("normalised", EVERYTHING))
    ),
    case("popart, three kinds", three_kinds, of_all("mlp", "state", True), POPART, ("mappo",)),
    case("popart of all, three kinds", three_kinds, of_all("attention", "observations", True), {
        "critic_input": "observations", **POPART,
    }, ("mappo",)),
    case("two critics across two kinds", mixed, crossed, EVERYTHING, ("mappo",)),
    case("two critics across two kinds, all present", mixed, crossed, SHARED_SCALER, style=None, masked=False),
    case("critic sees both, popart", lambda: alike(3), seeing("both", True), {"critic_input": "both", **POPART}, ("mappo",)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("case", "algorithm"), [pytest.param(c, a, id=f"{c.name}-{a}") for c in CASES for a in c.algorithms]
)
def test_two_updates_equal_the_reference(case: Case, algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_by_both(case, algorithm, monkeypatch)
    assert run.movement() > 1e-3
    if case.style in LIVES and len(run.team.possible_agents) > 2:
        statuses = {s for rows in run.plan.status.values() for row in rows for s in row}
        assert statuses == {"active", "waiting", "absent"}


@pytest.mark.parametrize("algorithm", CLASSES)
def test_waiting_agents_may_have_no_choice(algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A game of turns may forbid everything to those whose turn it is not."""
    run = Run(case("no choice", lambda: alike(3), shared, style="turns"), algorithm, monkeypatch)

    def forbid(what: str, uid: str, k: int, tensor: torch.Tensor) -> torch.Tensor:
        return tensor & run.plan.mask(ACTIVE, uid, k) if what == "action_masks" else tensor

    run.spoil = forbid
    run.rollout()
    assert run.difference() < TOLERANCE
