"""Whatever absent agents observe, do and earn changes nothing that is learned of action values, to the last bit."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from coterie.agents.tracking import Tracker
from coterie.preprocessors import RunningScale, RunningStandardScaler
from tests.agents.ppo_reference_time import ABSENT, ACTIVE, WAITING
from tests.agents.test_absence import junk, other
from tests.agents.toys import OFF
from tests.agents.value_lives import STEPS, Lives, as_it_is, models_of, team_of_four
from tests.agents.value_runs import KINDS, MEMORIES, everything, same

ROWS = 20
FINAL = {"final_states", "final_active", "final_allowed"}


class Spoiler:
    """Changes what the library is told of agents of a status; of last states, of those that there are none of."""

    def __init__(self, lives: Lives, whom: str, what: str | None = None) -> None:
        self.lives, self.whom, self.what = lives, whom, what
        self.generator = torch.Generator().manual_seed(5)
        self.changed: set[str] = set()

    def __call__(self, what: str, uid: str, k: int, tensor: Tensor) -> Tensor:
        if self.what not in (None, what):
            return tensor
        plan = self.lives.plan
        if self.whom == ABSENT:
            new = junk("action_masks" if what == "final_allowed" else what, tensor, self.generator)
        else:
            new = other("action_masks" if what == "final_allowed" else what, tensor)
        where = self._where(what, uid, k)
        if what == "terminated":
            new = new | plan.over(k)
        if bool(where.any()):
            self.changed.add(what)
        return torch.where(where, new, tensor)

    def _where(self, what: str, uid: str, k: int) -> Tensor:
        plan = self.lives.plan
        if what in FINAL and self.whom == ABSENT:  # who died, was not there, or goes on elsewhere has no last state
            ended = torch.tensor(plan.terminated[uid][k]).unsqueeze(-1)
            return plan.mask(ABSENT, uid, k) | ended | ~plan.over(k)
        if what in FINAL:
            return plan.mask(self.whom, uid, k) & plan.over(k)
        if self.whom == ABSENT and what in ("states", "next_states"):  # who was just cut off is shown once more
            return plan.gone(uid, k + 1 if what == "next_states" else k)
        return plan.mask(self.whom, uid, k + 1 if what == "next_states" else k)


class Listening(Tracker):
    """One that is told of metrics, without files."""

    enabled = True

    def write(self, timestep: int) -> None:
        pass


@functools.cache
def snapshot(
    kind: str, memory: str, rnn: str | None, whom: str | None = None, what: str | None = None, **cfg: Any
) -> tuple[dict[str, Any], set[str]]:
    """Everything that is learned, remembered and measured in one run."""
    torch.manual_seed(0)
    team = team_of_four()
    lives = Lives(team)
    assert {s for rows in lives.plan.status.values() for row in rows for s in row} == {ACTIVE, WAITING, ABSENT}
    settings = {
        "batch_size": 4,
        "update_interval": 3,
        "target_update_interval": 3,
        "learning_rate": 1e-2,
        "state_preprocessor": {**dict.fromkeys("abc", RunningStandardScaler), "d": None},
        "reward_preprocessor": RunningScale,
        "exploration_epsilon": 0.5,
        "experiment": OFF,
        **cfg,
    }
    if kind == "qmix":
        settings |= {"mixer_input": "both", "shared_state_preprocessor": RunningStandardScaler}
    if rnn is not None and memory == "replay":
        settings["burn_in"] = 2
    agent: Any = KINDS[kind](
        team.possible_agents,
        models_of(team, kind, rnn, shared=False),
        {uid: MEMORIES[memory](ROWS, team.num_envs, seed=3) for uid in "abc"},
        team.observation_spaces,
        team.action_spaces,
        cfg=settings,
    )
    agent.init()
    agent.set_running_mode("train")
    spoiler = None if whom is None else Spoiler(lives, whom, what)
    metrics: list[tuple[str, Tensor]] = []

    def listening(tag: str, value: Any) -> None:
        metrics.append((tag, torch.as_tensor(value).detach().clone()))

    agent.track_data = listening
    agent.records.tracker = Listening(None)
    lives.play(agent, as_it_is if spoiler is None else spoiler, each=lambda k: agent.write_tracking_data(k + 1, STEPS))
    assert sum(agent._steps_taken.values()) > 5, "there was something to learn from"
    assert len(metrics) > 30
    kept = everything(agent)
    memory_of_team = kept.pop("memory")
    kept |= {f"stored {name}": tensor for name, tensor in memory_of_team["tensors"].items()}
    kept |= {f"memory {name}": value for name, value in memory_of_team.items() if name != "tensors"}
    kept |= {f"metric {i} {tag}": value for i, (tag, value) in enumerate(metrics)}
    return kept, set() if spoiler is None else spoiler.changed


def differing(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    assert a.keys() == b.keys()
    return [name for name in a if not same(a[name], b[name])]


def finite(value: Any) -> bool:
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool(value.isfinite().all())
    if isinstance(value, dict):
        return all(map(finite, value.values()))
    return all(map(finite, value)) if isinstance(value, (list, tuple)) else True


CASES = [
    pytest.param(
        kind, memory, rnn, id=f"{kind}-{memory}-{rnn or 'no memory'}", marks=pytest.mark.slow if (i + j + k) % 2 else ()
    )
    for i, kind in enumerate(KINDS)
    for j, memory in enumerate(MEMORIES)
    for k, rnn in enumerate((None, "gru"))
]
EVERYTHING = FINAL | {"states", "actions", "rewards", "next_states", "action_masks", "terminated", "truncated"}


@pytest.mark.parametrize(("kind", "memory", "rnn"), CASES)
def test_absent_agents_change_nothing(kind: str, memory: str, rnn: str | None) -> None:
    clean, _ = snapshot(kind, memory, rnn)
    spoiled, changed = snapshot(kind, memory, rnn, ABSENT)
    assert changed == EVERYTHING, "the test has something to test"
    assert differing(clean, spoiled) == []
    assert finite({name: value for name, value in spoiled.items() if not name.startswith("stored")})


@pytest.mark.parametrize("what", ["states", "actions", "rewards", "action_masks", "final_states", "final_allowed"])
@pytest.mark.parametrize("kind", ["qmix", "iql"])
def test_present_agents_change_something(kind: str, what: str) -> None:
    """Otherwise the test above would say nothing."""
    clean, _ = snapshot(kind, "replay", None)
    changed, of = snapshot(kind, "replay", None, ACTIVE, what)
    assert of == {what}
    differences = differing(clean, changed)
    assert "modules" in differences
    assert any(name.startswith("metric") for name in differences)


@pytest.mark.parametrize("kind", KINDS)
def test_what_waiting_agents_earn_counts(kind: str) -> None:
    clean, _ = snapshot(kind, "replay", None, n_step=3)
    changed, _ = snapshot(kind, "replay", None, WAITING, "rewards", n_step=3)
    assert "modules" in differing(clean, changed)
