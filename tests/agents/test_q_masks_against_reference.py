"""Updates of QMIX, VDN and IQL with agents that come, wait, die and may not do everything, against the slow reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from coterie.preprocessors import RunningScale, RunningStandardScaler
from tests.agents.ppo_reference_time import ABSENT
from tests.agents.ppo_runs import CUTS, TOLERANCE
from tests.agents.q_runs import ROWS, Case, Run, run_by_both
from tests.agents.q_teams import alike, attention, by_hand, crossing, pairs, shared, two_kinds

STATE_SCALER = {"shared_state_preprocessor": RunningStandardScaler, "mixer_input": "both"}
SCALER = {"state_preprocessor": RunningStandardScaler, "reward_preprocessor": RunningScale}
CUT = (*CUTS, CUTS[0])
BREAKS = (7, 10, 13, 16, 17, 20)


def three(*values: Any) -> dict[str, Any]:
    return dict(zip(("a0", "a1", "a2"), values, strict=True))


CASES = [
    # what may be done
    Case("iql, masked", "iql", masked=True),
    Case("iql, masked, single q", "iql", two_kinds, shared, {"double_q": False}, masked=True, told=True),
    Case("qmix, masked", "qmix", two_kinds, masked=True, told=True),
    Case("qmix, masked, episodes", "qmix", two_kinds, shared, {}, "episodes", masked=True, told=True),
    # agents that arrive late, miss steps, wait and die
    Case("iql, lives", "iql", style="lives"),
    Case("iql, lives, masked", "iql", two_kinds, shared, {"n_step": 3}, style="lives", masked=True),
    Case("iql, lives, episodes", "iql", memory="episodes", cfg={"td_lambda": 0.6}, style="lives", told=True),
    Case("iql, lives, prioritized", "iql", models=by_hand, memory="prioritized", style="lives", cfg={"learning_starts": 3}),
    Case("iql, lives, mean", "iql", lambda: alike(4), pairs, {"reward": "mean", "n_step": 2}, style="lives"),
    Case("iql, lives, scales", "iql", two_kinds, shared, {**SCALER, "n_step": 2}, style="lives"),
    Case("iql, lives, scales, sum", "iql", cfg={**SCALER, "reward": "sum"}, style="lives"),
    Case("iql, leaves", "iql", cfg={"n_step": 3}, style="leaves", masked=True),
    Case("vdn, lives", "vdn", style="lives"),
    Case("vdn, lives, episodes", "vdn", two_kinds, memory="episodes", cfg={"n_step": 3}, style="lives"),
    Case("qmix, lives, state normalised", "qmix", models=shared, cfg=STATE_SCALER, style="lives", masked=True),
    Case("vdn, lives, scales", "vdn", models=shared, cfg=SCALER, style="lives", masked=True),
    Case("vdn, leaves", "vdn", cfg={"n_step": 3, "time_limit_bootstrap": False}, style="leaves"),
    Case("qmix, lives", "qmix", two_kinds, cfg={"mixer_input": "both"}, style="lives", masked=True),
    Case("qmix, lives, prioritized", "qmix", models=shared, memory="prioritized", style="lives"),
    Case("qmix, lives, episodes", "qmix", two_kinds, memory="episodes", style="lives", told=True, cfg={
        "td_lambda": 0.6, "mixer_input": "observations",
    }),
    Case("qmix, leaves", "qmix", two_kinds, cfg={"n_step": 2, "mixer_input": "observations"}, style="leaves"),
    Case("attention, lives", "qmix", two_kinds, style="lives", mixer=attention, masked=True),
    Case("crossing, lives", "qmix", two_kinds, style="lives", mixer=crossing),
    Case("iql, lives, teammates", "iql", lambda: two_kinds(scripted=("a0",)), style="lives", cfg={"reward": "mean"}),
    # those that learn die, and teammates that don't play on
    Case("vdn, deserted", "vdn", lambda: alike(3, scripted=("a1", "a2")), style="lives", told=True),
    Case("vdn, deserted, 3 steps", "vdn", lambda: alike(4, scripted=("a0", "a3")), style="lives", cfg={"n_step": 3}),
    Case("qmix, deserted", "qmix", lambda: alike(4, scripted=("a1", "a2")), style="lives", masked=True),
    Case("qmix, deserted, episodes", "qmix", lambda: two_kinds(scripted=("a0", "b1")), style="leaves", memory="episodes", cfg={
        "td_lambda": 0.6,
    }),
    # agents that wait for their turns, of which all may be scripted
    Case("iql, turns", "iql", cfg={"n_step": 3}, style="turns"),
    Case("iql, turns, one step", "iql", two_kinds, style="turns", masked=True),
    Case("iql, turns, episodes", "iql", memory="episodes", cfg={"td_lambda": 0.6}, style="turns", told=True),
    Case("iql, waits", "iql", models=shared, cfg={"n_step": 3}, style="waits"),
    Case("vdn, turns", "vdn", lambda: alike(3, scripted=("a1",)), cfg={"n_step": 3}, style="turns"),
    Case("qmix, turns", "qmix", lambda: alike(3, scripted=("a1",)), cfg={"n_step": 3}, style="turns", told=True),
    Case("qmix, turns, episodes", "qmix", lambda: two_kinds(scripted=("b0", "b1")), memory="episodes", style="turns", cfg={
        "td_lambda": 0.6,
    }),
    Case("qmix, waits", "qmix", cfg={"reward": "sum", "n_step": 2}, style="waits"),
    # time limits that strike some while others go on
    Case("iql, cut", "iql", cfg={"n_step": 2}, style="lives", endings=CUT),
    Case("iql, cut, shared", "iql", two_kinds, shared, SCALER, style="leaves", endings=CUT, masked=True),
    Case("iql, cut, no bootstrap", "iql", cfg={"time_limit_bootstrap": False}, style="lives", endings=CUT),
    Case("iql, cut, by agent", "iql", style="waits", endings=CUT, cfg={
        "time_limit_bootstrap": three(True, False, True), "n_step": 3,
    }),
    Case("iql, cut, plays on", "iql", endings=CUT, memory="prioritized", cfg={"n_step": 3}),
    Case("vdn, cut", "vdn", cfg={"n_step": 3}, style="lives", endings=CUT),
    Case("qmix, cut", "qmix", two_kinds, style="lives", endings=CUT, cfg={"mixer_input": "observations"}),
    Case("qmix, cut, plays on", "qmix", two_kinds, memory="prioritized", endings=CUT, cfg={"mixer_input": "both"}),
    Case("iql, interrupted turns", "iql", style="turns", cfg={"n_step": 3, "batch_size": 10}, interrupted=BREAKS),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_updates(case: Case) -> None:
    run_by_both(case)


@pytest.mark.parametrize("algorithm", ["iql", "vdn", "qmix"])
def test_what_nobody_saw_is_not_read(algorithm: str) -> None:
    """Final states of environments that go on, and whatever stands for absent agents."""
    run = Run(Case("", algorithm, style="lives", endings=CUT))
    run.filler = run.garbage = float("nan")
    run.finish()
    assert run.difference() < TOLERANCE


def test_a_last_observation_must_be_finite() -> None:
    run = Run(Case("", "iql", style="lives", endings=CUT))
    observe = run._observe

    def spoilt(k: int) -> dict[str, Tensor]:
        cut = torch.tensor(run.plan.truncated["a0"][k - 1]).unsqueeze(-1) & run.plan.mask(ABSENT, "a0", k)
        return {uid: torch.where(cut & (uid == "a0"), torch.nan, x) for uid, x in observe(k).items()}

    run._observe = spoilt
    with pytest.raises(ValueError, match=r"states\['a0'\]: expected finite numbers, got nan"):
        run.finish()


def test_the_death_of_the_last_that_learns_is_an_end() -> None:
    """Also while a teammate that does not learn plays on, and whoever has not arrived yet is waited for."""
    run = run_by_both(Case("", "vdn", lambda: alike(3, scripted=("a1", "a2")), style="lives"))
    rows = [row for rows in run.reference.history.rows for row in rows]
    deaths = [row for row in rows if row.ends.get("a0") == "terminated" and not row.over]
    assert deaths
    assert all(row.deserted for row in deaths)
    assert any(row.status["a0"] == ABSENT and not row.deserted for row in rows)


def test_those_that_learn_may_die_one_after_another() -> None:
    run = Run(Case("", "vdn", lambda: alike(4, scripted=("a0", "a3")), style="lives"), seed=1)
    run.finish()
    history = run.reference.history
    stored = run.memory.get_tensor_by_name("team_terminated")
    alone = 0
    for e, rows in enumerate(history.rows):
        for n in range(history.oldest(e, ROWS), len(rows)):
            ends = {rows[n].ends.get(uid) for uid in ("a1", "a2")}
            if rows[n].step and not rows[n].over:
                assert bool(stored[n % ROWS, e]) == rows[n].deserted
                alone += rows[n].deserted and ends == {None, "terminated"}
    assert alone, "one was dead already"


def test_nothing_is_to_come_where_all_that_learn_are_terminated() -> None:
    """Whatever it is that ends the game for others: a0 and a2 are terminated where the time limit strikes a1."""
    run = run_by_both(Case("", "qmix", lambda: alike(3, scripted=("a1",)), cfg={"batch_size": 12}))
    rows = [row for rows in run.reference.history.rows for row in rows if row.over]
    assert any(row.ends == three("terminated", "truncated", "terminated") for row in rows)


@pytest.mark.parametrize("algorithm", ["iql", "vdn", "qmix"])
def test_normalisers_of_those_that_do_not_learn_stay_as_they_are(algorithm: str) -> None:
    run = Run(Case("", algorithm, lambda: alike(3, frozen=("a1",)), cfg=SCALER))
    while run.timestep < 6:
        run.step()
    seen = {}
    for group in run.agent.groups:
        for uid, s in zip(group.names, group.sets, strict=True):
            seen[uid] = float(group.state_preprocessor.members[s].current_count)
    assert seen["a1"] == 0.0
    assert min(seen["a0"], seen["a2"]) > 0.0
