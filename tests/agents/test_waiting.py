"""A game of two that take turns, worked out by hand: what is earned while waiting belongs to the last own action."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from coterie.agents import IPPO, MAPPO
from coterie.memories import RandomMemory
from coterie.models import CategoricalPolicy, DeterministicMixin, Model

NAMES = ["a", "b"]
SEEN = spaces.Box(-np.inf, np.inf, (1,), np.float32)
CHOICE = spaces.Discrete(2)
DISCOUNT, LAMBDA = 0.5, 0.5  # their product is 0.25


class Read(DeterministicMixin, Model):
    """The value of a state is what is seen there, all added up, and the value of nothing."""

    def __init__(self, size: int, nothing: float) -> None:
        Model.__init__(self, size, CHOICE)
        DeterministicMixin.__init__(self)
        self.factor = nn.Parameter(torch.ones(()))
        self.nothing = nn.Parameter(torch.tensor(nothing))

    def compute(self, inputs: Mapping[str, Any], role: str = "") -> tuple[Any, ...]:
        return self.nothing + self.factor * inputs["states"].sum(dim=-1, keepdim=True), {}


class Game:
    """One environment, in which ``a`` acts in even rows and ``b`` in odd ones; the state says what it is worth.

    :param values: what each player sees, row by row and after the last
    :param rewards: what each earns, row by row
    :param ends: by row, "terminated" or "truncated", for both
    :param final: what both see at the end of an episode that was truncated
    :param absent: rows in which a player is not merely waiting
    :param state: what a critic sees beside the own observation, None for IPPO
    :param nothing: what critics make of zeros
    """

    def __init__(
        self,
        values: Mapping[str, Sequence[float]],
        rewards: Mapping[str, Sequence[float]],
        ends: Mapping[int, str] | None = None,
        final: float = 0.0,
        absent: Mapping[str, Sequence[int]] | None = None,
        state: float | None = None,
        nothing: float = 0.0,
        **cfg: Any,
    ) -> None:
        self.values, self.rewards, self.final = values, rewards, final
        self.ends, self.absent, self.state = ends or {}, absent or {}, state
        steps = len(rewards["a"])
        torch.manual_seed(0)
        models = {
            uid: {
                "policy": CategoricalPolicy(SEEN, CHOICE, hidden=(4,)),
                "value": Read(1 if state is None else 2, nothing),
            }
            for uid in NAMES
        }
        if state is not None:
            cfg["critic_input"] = "agent"
        self.agent = (IPPO if state is None else MAPPO)(
            NAMES,
            models,
            {uid: RandomMemory(steps, 1) for uid in NAMES},
            cfg={
                "rollouts": steps, "learning_epochs": 1, "mini_batches": 1, "learning_rate": 1e-3, "lambda": LAMBDA,
                "discount_factor": DISCOUNT, "advantage_normalization": "off", "time_limit_bootstrap": True,
                "experiment": {"write_interval": 0, "checkpoint_interval": 0}, **cfg,
            },
            shared_observation_spaces=dict.fromkeys(NAMES, SEEN),
        )  # fmt: skip
        self.agent.init({"timesteps": steps})
        self.agent.set_running_mode("train")
        self.metrics: dict[str, float] = {}
        self.agent.track_data = lambda tag, value: self.metrics.update({tag: float(value)})  # type: ignore[method-assign]
        for t in range(steps):
            self._step(t, steps)

    def _states(self, t: int) -> dict[str, Tensor]:
        return {uid: torch.tensor([[self.values[uid][t]]]) for uid in NAMES}

    def _masks(self, t: int) -> dict[str, Any]:
        turn = {uid: torch.tensor([[t % 2 == i]]) for i, uid in enumerate(NAMES)}
        waits = {uid: ~turn[uid] & (t not in self.absent.get(uid, ())) for uid in NAMES}
        return {"active_masks": turn, "waiting_masks": waits}

    def _step(self, t: int, steps: int) -> None:
        actions, _, _ = self.agent.act(self._states(t), t, steps, self._masks(t))
        infos = self._masks(t + 1)
        if self.state is not None:
            infos |= dict.fromkeys(("shared_states", "shared_next_states"), torch.tensor([[self.state]]))
        if t in self.ends:
            infos["final_states"] = dict.fromkeys(NAMES, torch.tensor([[self.final]]))
        ends = (
            dict.fromkeys(NAMES, torch.tensor([[self.ends.get(t) == kind]])) for kind in ("terminated", "truncated")
        )
        rewards = {uid: torch.tensor([[self.rewards[uid][t]]]) for uid in NAMES}
        self.agent.record_transition(self._states(t), actions, rewards, self._states(t + 1), *ends, infos, t, steps)
        self.agent.post_interaction(t, steps)

    def stored(self, name: str, uid: str) -> list[float]:
        """A number of the rollout, row by row, those of the own actions."""
        assert self.agent.memories is not None
        stored = self.agent.memories[uid].get_tensor_by_name(name, keepdim=True).flatten().tolist()
        return stored[NAMES.index(uid) :: 2]

    def parameters(self) -> list[Tensor]:
        models = [model for roles in self.agent.models.values() for model in roles.values()]
        return [p.detach().clone() for model in models for p in model.parameters()]


# what the other sees while a player waits must not matter: 77 for a in odd rows, 88 for b in even ones
VALUES = {"a": [1.0, 77.0, 2.0, 77.0, 3.0, 77.0, 4.0], "b": [88.0, 1.0, 88.0, 2.0, 88.0, 3.0, 8.0]}
REWARDS = {"a": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], "b": [100.0, 1.0, 2.0, 3.0, 4.0, 5.0]}


def test_rewards_up_to_the_next_own_action_count_undiscounted() -> None:
    game = Game(VALUES, REWARDS)
    # a acts in rows 0, 2, 4 and after the last:      earned 1 + 2 = 3, 3 + 4 = 7, 5 + 6 = 11
    # row 4: 11 + 0.5 * 4 - 3 = 10
    # row 2:  7 + 0.5 * 3 - 2 = 6.5,                  6.5 + 0.25 * 10 = 9
    # row 0:  3 + 0.5 * 2 - 1 = 3,                    3 + 0.25 * 9 = 5.25
    assert game.stored("advantages", "a") == [5.25, 9.0, 10.0]
    assert game.stored("returns", "a") == [6.25, 11.0, 13.0]
    # b acts in rows 1, 3, 5:                         earned 1 + 2 = 3, 3 + 4 = 7; the 100 belong to no action
    # row 5 is open: nothing but its value, 3, says anything of what came before
    # row 3:  7 + 0.5 * 3 - 2 = 6.5
    # row 1:  3 + 0.5 * 2 - 1 = 3,                    3 + 0.25 * 6.5 = 4.625
    assert game.stored("advantages", "b") == [4.625, 6.5, 0.0]
    assert game.stored("returns", "b") == [5.625, 8.5, 3.0]


def test_nothing_is_learned_from_an_action_whose_outcome_is_open() -> None:
    games = [Game(VALUES, {"a": REWARDS["a"], "b": [*REWARDS["b"][:5], last]}) for last in (5.0, 1e3)]
    assert all(torch.equal(x, y) for x, y in zip(games[0].parameters(), games[1].parameters(), strict=True))
    other = Game(VALUES, {"a": REWARDS["a"], "b": [*REWARDS["b"][:4], 1e3, 5.0]})
    assert not all(torch.equal(x, y) for x, y in zip(games[0].parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(
    ("end", "bootstrap", "worth"), [("terminated", True, 0.0), ("truncated", True, 6.0), ("truncated", False, 0.0)]
)
def test_an_end_while_waiting_ends_the_last_own_action(end: str, bootstrap: bool, worth: float) -> None:
    # b's move in row 3 ends the game; a waits there. The final state is worth 6
    game = Game(VALUES, REWARDS, {3: end}, final=6.0, time_limit_bootstrap=bootstrap)
    # a, row 2: 3 + 4 + 0.5 * 6 - 2 = 8 (5 where the end is worth nothing)
    #    row 0: 3 + 0.25 * 8 = 5 (4.25)
    #    row 4: another episode, 10 as before
    last = 5.0 + 0.5 * worth
    assert game.stored("advantages", "a") == [3.0 + 0.25 * last, last, 10.0]
    # b, row 3: 3 + 0.5 * 6 - 2 = 4 (1), since the 4 of row 4 are earned in the next episode, before b acts there
    #    row 1: 3 + 0.25 * 4 = 4 (3.25)
    last = 1.0 + 0.5 * worth
    assert game.stored("advantages", "b")[:2] == [3.0 + 0.25 * last, last]


def test_what_is_reported_for_an_absent_agent_is_not_earned() -> None:
    game = Game(VALUES, REWARDS, absent={"a": [1, 5]})
    # a is not there in rows 1 and 5: earned 1, 7, 5
    # row 4: 5 + 0.5 * 4 - 3 = 4; row 2: 6.5 + 0.25 * 4 = 7.5; row 0: 1 + 0.5 * 2 - 1 + 0.25 * 7.5 = 2.875
    assert game.stored("advantages", "a") == [2.875, 7.5, 4.0]


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        # a acts in rows 0 and 2, and is not there after the last: row 2 is open; row 0: 1 + 2 + 0.5 * 2 - 1 = 3
        (None, [3.0, 0.0]),
        # own observation and state: 1 + 5 and 2 + 5; row 0: 1 + 2 + 0.5 * 7 - 6 = 0.5
        (5.0, [0.5, 0.0]),
    ],
)
def test_who_is_absent_after_the_last_row_has_an_open_action(state: float | None, expected: list[float]) -> None:
    values = {"a": [1.0, 77.0, 2.0, 77.0], "b": [88.0, 1.0, 88.0, 2.0]}
    game = Game(values, {"a": [1.0, 2.0, 3.0], "b": [0.0, 0.0, 0.0]}, absent={"a": [3]}, state=state)
    assert game.stored("advantages", "a") == expected


@pytest.mark.parametrize("end", ["terminated", "truncated"])
@pytest.mark.parametrize("bootstrap", [True, False])
def test_the_end_of_an_episode_is_the_end_of_agents_that_have_left(end: str, bootstrap: bool) -> None:
    """Games that report the dead as done only when all are: nothing of the next episode may reach their last action, and
    the time that ran out was not theirs.
    """
    game = Game(VALUES, REWARDS, {3: end}, 6.0, {"a": [3]}, time_limit_bootstrap=bootstrap, nothing=8.0)
    # every state is worth 8 more; a, row 2: 3 - 10 = -7, since it is not there to earn the 4, nor to see anything
    # row 0: 3 + 0.5 * 10 - 9 = -1, and 0.25 * -7 = -1.75; row 4: 11 + 0.5 * 12 - 11 = 6
    assert game.stored("advantages", "a") == [-2.75, -7.0, 6.0]
    # b is there: row 3: 3 - 10 = -7, or 0.5 * 14 more; row 1: 3 + 0.5 * 10 - 9 = -1
    last = 0.0 if end == "truncated" and bootstrap else -7.0
    assert game.stored("advantages", "b")[:2] == [-1.0 + 0.25 * last, last]


@pytest.mark.parametrize("mid_episode", [True, False])
def test_nobody_may_have_waited_before_the_rollout_ends(mid_episode: bool) -> None:
    """Masks that come with the state after the last row, for the first time, tell whose last action is open."""

    class Late(Game):
        def _masks(self, t: int) -> dict[str, Any]:
            if t < 3:
                return {}
            waits = torch.tensor([[True]])
            return {"active_masks": {"a": ~waits, "b": waits}, "waiting_masks": {"a": waits, "b": ~waits}}

        def stored(self, name: str, uid: str) -> list[float]:
            assert self.agent.memories is not None
            return self.agent.memories[uid].get_tensor_by_name(name, keepdim=True).flatten().tolist()

    values = {uid: [1.0, 2.0, 3.0, 4.0] for uid in NAMES}
    ends = {} if mid_episode else {2: "truncated"}
    games = [
        Late(values, {"a": [1.0, 2.0, last], "b": [1.0, 2.0, 3.0]}, ends, 6.0, learning_rate=0.1)
        for last in (3.0, 100.0)
    ]
    # going on: b, row 2: 3 + 0.5 * 4 - 3 = 2; row 1: 2 + 0.5 * 3 - 2 = 1.5, and 0.25 * 2; row 0: 1 + 0.5 * 2 - 1 = 1
    # a: row 2 is open; row 1: 1.5; row 0: 1 + 0.25 * 1.5
    # cut off in row 2 at 6: both 3 + 0.5 * 6 - 3 = 3; row 1: 1.5 + 0.75 = 2.25; row 0: 1 + 0.25 * 2.25
    known = [1.0 + 0.25 * 2.25, 2.25, 3.0]
    assert games[0].stored("advantages", "b") == ([1.5, 2.0, 2.0] if mid_episode else known)
    assert games[0].stored("advantages", "a") == ([1.375, 1.5, 0.0] if mid_episode else known)
    alike = [torch.equal(x, y) for x, y in zip(games[0].parameters(), games[1].parameters(), strict=True)]
    assert all(alike) == mid_episode
    if mid_episode:  # of the two rows that count
        game = Late(values, {"a": [1.0, 2.0, 3.0], "b": [1.0, 2.0, 3.0]}, advantage_normalization="agent")
        # 1.375 and 1.5: mean 1.4375, standard deviation 0.0625 * sqrt(2)
        assert game.stored("advantages", "a") == pytest.approx([-(0.5**0.5), 0.5**0.5, 0.0])


def test_the_explained_variance_is_that_of_rows_that_count(tmp_path: Path) -> None:
    written = {"write_interval": 6, "checkpoint_interval": 0, "directory": str(tmp_path)}
    game = Game(VALUES, REWARDS, experiment=written)
    # b, rows 1 and 3: advantages 4.625 and 6.5, returns 5.625 and 8.5: 1 - (1.875 / 2.875)^2
    assert game.metrics["Value / Explained variance (b)"] == pytest.approx(1 - (15 / 23) ** 2)
    # a, rows 0, 2, 4: advantages 5.25, 9, 10, mean 97 / 12; returns 6.25, 11, 13, mean 121 / 12
    # 144 times their squared distances: 34^2 + 11^2 + 23^2 = 1806 and 46^2 + 11^2 + 35^2 = 3462
    assert game.metrics["Value / Explained variance (a)"] == pytest.approx(1 - 1806 / 3462)


def test_an_agent_with_a_single_counting_row_has_no_advantage_over_itself() -> None:
    """Not NaN: the standard deviation of one number is 0."""
    values = {"a": [1.0, 77.0, 2.0], "b": [88.0, 1.0, 88.0]}
    game = Game(values, {"a": [1.0, 2.0], "b": [3.0, 4.0]}, advantage_normalization="agent")
    assert game.stored("advantages", "a") == [0.0]
    assert all(bool(p.isfinite().all()) for p in game.parameters())
