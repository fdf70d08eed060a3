"""Whole updates of recurrent action values, by the library and by the slow reference, give the same parameters."""

from __future__ import annotations

import pytest

from coterie.preprocessors import RunningScale, RunningStandardScaler
from tests.agents.ppo_reference_time import ACTIVE
from tests.agents.ppo_runs import CUTS
from tests.agents.q_reference import Stretch
from tests.agents.q_runs import Case, Run, run_by_both
from tests.agents.q_teams import Maker, alike, networks, remembering, two_kinds

GRU = networks(False, rnn="gru", rnn_size=5, sequence_length=3)
LSTM = networks(True, rnn="lstm", rnn_size=4, sequence_length=3)
SHARED = networks(True, rnn="gru", rnn_size=5, sequence_length=3)
SCALER = {"state_preprocessor": RunningStandardScaler, "reward_preprocessor": RunningScale}
CUT = (*CUTS, CUTS[0])
BREAKS = (7, 10, 13, 16, 17, 20)

CASES = [
    Case("iql", "iql", models=GRU),
    Case("iql, burn-in", "iql", two_kinds, SHARED, {"burn_in": 2, "n_step": 2}),
    Case("iql, lstm", "iql", models=LSTM, cfg={"burn_in": 1}),
    Case("iql, cells", "iql", models=remembering("gru", share=False, ids=True), cfg={"burn_in": 1, "td_lambda": 0.6}),
    Case("iql, prioritized", "iql", models=GRU, memory="prioritized", cfg={"burn_in": 1}),
    Case("iql, episodes", "iql", two_kinds, SHARED, {"td_lambda": 0.6}, "episodes"),
    Case("iql, episodes, layers", "iql", models=remembering("library lstm", True, layers=2), memory="episodes"),
    Case("iql, sequences of one", "iql", models=remembering("library gru", True, length=1), cfg={"n_step": 2}),
    Case("iql, ones warmed up", "iql", models=remembering("gru", True, length=1), cfg={"burn_in": 2}),
    Case("vdn, one layer more", "vdn", models=remembering("gru", False, layers=2), cfg={"double_q": False, "burn_in": 1}),
    Case("vdn, episodes", "vdn", two_kinds, SHARED, {"n_step": 3}, "episodes"),
    Case("vdn, sequences of one", "vdn", models=remembering("library gru", True, length=1), cfg={"n_step": 2}),
    Case("qmix", "qmix", two_kinds, SHARED, {"burn_in": 2, "td_lambda": 0.6}),
    Case("qmix, episodes", "qmix", two_kinds, SHARED, {"td_lambda": 0.6}, "episodes"),
    Case("qmix, episodes, no bootstrap", "qmix", models=GRU, memory="episodes", cfg={
        "time_limit_bootstrap": False, "n_step": 3,
    }),
    Case("qmix, scales", "qmix", two_kinds, SHARED, {**SCALER, "burn_in": 1}),
    Case("qmix, teammates", "qmix", lambda: two_kinds(scripted=("b0",)), SHARED, {"burn_in": 1}),
    Case("iql, interrupted", "iql", models=SHARED, cfg={"td_lambda": 0.6, "burn_in": 1}, interrupted=BREAKS),
    # who is there, and who acts
    Case("iql, lives", "iql", models=GRU, style="lives", masked=True, cfg={"td_lambda": 0.6}),
    Case("iql, lives, episodes", "iql", two_kinds, SHARED, {}, "episodes", style="lives", told=True),
    Case("iql, cells, lives", "iql", models=remembering("gru", False), style="lives", cfg={"burn_in": 1}, endings=CUT),
    Case("iql, turns", "iql", models=SHARED, style="turns", cfg={"n_step": 2}),
    Case("iql, waits", "iql", models=GRU, style="waits", cfg={"burn_in": 1, "td_lambda": 0.6}, endings=CUT),
    Case("iql, cut", "iql", models=GRU, style="lives", cfg={"td_lambda": 0.6}, endings=CUT),
    Case("iql, cut, shared", "iql", two_kinds, SHARED, {"burn_in": 1}, style="leaves", endings=CUT, masked=True),
    Case("iql, cut, plays on", "iql", models=SHARED, cfg={"burn_in": 2}, endings=CUT),
    Case("iql, told", "iql", models=SHARED, style="waits", cfg={"td_lambda": 0.6}, told=True, masked=True),
    Case("iql, told, cells", "iql", models=remembering("gru", True), style="waits", told=True, masked=True),
    Case("iql, interrupted turns", "iql", models=SHARED, style="turns", cfg={"n_step": 2}, interrupted=BREAKS),
    Case("vdn, lives", "vdn", models=GRU, style="lives", cfg={"n_step": 3}, masked=True, endings=CUT),
    Case("vdn, turns", "vdn", lambda: alike(3, scripted=("a1",)), SHARED, {"burn_in": 1}, style="turns"),
    Case("qmix, lives", "qmix", two_kinds, SHARED, {"td_lambda": 0.6, "burn_in": 1}, style="lives", masked=True),
    Case("qmix, lives, episodes", "qmix", two_kinds, SHARED, {"td_lambda": 0.6}, "episodes", style="lives",
         masked=True, told=True),
    Case("qmix, plays on", "qmix", two_kinds, GRU, {"burn_in": 1}, style="present", endings=CUT),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_updates(case: Case) -> None:
    run_by_both(case)


@pytest.mark.parametrize("style", ["lives", "waits", None])
@pytest.mark.parametrize("models", [SHARED, remembering("gru", share=False)], ids=["layers", "cells"])
def test_agents_act_on_what_they_learn_to_remember(models: Maker, style: str | None) -> None:
    """The reference's walk through each episode says what the library's agents, which are greedy here, have chosen."""
    cfg = {"learning_starts": 99, "exploration_epsilon": 0.0}
    run = Run(Case("", "iql", models=models, style=style, masked=True, endings=CUT, cfg=cfg))
    run.finish()
    chosen = 0
    for rows in run.reference.history.rows:
        starts = [n for n, row in enumerate(rows) if row.first]
        for first, end in zip(starts, [*starts[1:], len(rows)], strict=True):
            episode = rows[first:end]
            for uid in run.names:
                values = run.reference.along(run.reference.models[uid]["q"], uid, Stretch(0, 0, 0, rows=episode))
                for q, row in zip(values, episode, strict=True):
                    if row.step and row.status[uid] == ACTIVE:
                        allowed = row.allowed[uid] or [True] * len(q)
                        best = max((a for a in range(len(q)) if allowed[a]), key=lambda a, q=q: float(q[a].detach()))
                        assert row.actions[uid] == best
                        chosen += 1
    assert chosen > 50
