"""What the last states of an episode would have allowed to whom: told where a time limit struck."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from coterie.agent_tensors import AgentTensors
from coterie.envs import EnvError, make, wrap_env
from tests.envs.contract import draw
from tests.envs.games import Errands, knights
from tests.envs.wrappers.test_turn_based import NAMES, Rounds

KEYS = ("final_active_masks", "final_action_masks")


def play(env, steps, seed=0):
    """Return the infos of each moment, from the first one on."""
    generator = torch.Generator().manual_seed(seed)
    _, infos = env.reset()
    shown = [infos]
    for _ in range(steps):
        *_, infos = env.step(draw(env, infos, generator))
        shown.append(infos)
    return shown


def rows(infos, key, row=0):
    return [infos[key][name][row].int().tolist() for name in infos[key]]


# ---- all at once -----------------------------------------------------------------------------------------------------


def test_masks_of_the_last_states_by_hand():
    # copy 0 is cut after step 2, copy 1 after step 3; the masks are those of steps 2 and 3, not of the next episodes' first
    env = wrap_env([Errands(2), Errands(3)])
    shown = play(env, 3)
    assert not any(key in infos for infos in shown[:2] for key in KEYS)
    assert isinstance(shown[2]["final_action_masks"], AgentTensors)
    # forbidden at step 2: 0 of the first entry, and (2 + agent) % 3 of the second
    assert rows(shown[2], "final_action_masks", 0) == [[0, 1, 1, 1, 0], [0, 1, 0, 1, 1], [0, 1, 1, 0, 1]]
    # at step 3: 1, and agent % 3
    assert rows(shown[3], "final_action_masks", 1) == [[1, 0, 0, 1, 1], [1, 0, 1, 0, 1], [1, 0, 1, 1, 0]]
    assert not any("final_active_masks" in infos for infos in shown)  # all would have gone on


def test_who_died_would_not_act():
    # bob dies in step 1, cat as time runs out for ada; in copy 1 nobody is there any more
    class Both(Errands):
        """Who dies as time runs out has both flags."""

        def step(self, actions):
            *shown, dies, cut, infos = super().step(actions)
            return *shown, dies, {name: flag or dies[name] for name, flag in cut.items()}, infos

    env = wrap_env([Both(3, {"bob": 1, "cat": 3}), Errands(3, early=True)])
    infos = play(env, 3)[3]
    assert rows(infos, "final_active_masks", 0) == [[1], [0], [0]]
    assert infos["final_active_masks"]["ada"].dtype == torch.bool
    # ada's is that of step 3; all is allowed to the others
    assert rows(infos, "final_action_masks", 0) == [[1, 0, 0, 1, 1], [1] * 5, [1] * 5]
    for key in KEYS:
        assert all(sum(row) in (0, 5) for row in rows(infos, key, 1))


def test_terminations_alone_say_nothing():
    infos = play(wrap_env([Errands(2), Errands(2, early=True)]), 2)[2]
    assert "final_active_masks" not in infos
    for env in (wrap_env(Errands(2, early=True)), wrap_env(Rounds(length=2))):
        assert not any(key in infos for infos in play(env, 4) for key in KEYS)


def test_games_without_masks_say_nothing():
    for env in (make("particle/simple_spread", 2, seed=0, max_cycles=2), make("matrix/climbing", 2)):
        assert not any(key in infos for infos in play(env, 30) for key in KEYS)


def test_the_dead_are_told_also_without_action_masks(scripted):
    env = wrap_env([scripted(0, 3, "truncated", leave={"ada": 1}), scripted(1, 2, "truncated")])
    shown = play(env, 3)
    assert not any(key in infos for infos in shown[:3] for key in KEYS)  # in copy 1 both go on
    assert rows(shown[3], "final_active_masks", 0) == [[0], [1]]
    assert "final_action_masks" not in shown[3]


class Odd(Errands):
    """Its masks in last states are as said."""

    def __init__(self, mask, early=False):
        super().__init__(2, early=early)
        self.mask = mask

    def look(self, names):
        seen = super().look(names)
        if self.steps == self.length:
            seen["bob"]["action_mask"] = self.mask
        return seen


def test_a_last_mask_that_allows_nothing_is_none():
    for mask in ([0] * 5, [1, 1, 0, 0, 0], [0, 0, 1, 1, 1]):
        infos = play(wrap_env(Odd(np.array(mask))), 2)[2]
        assert rows(infos, "final_action_masks")[1] == [1] * 5
        assert rows(infos, "final_action_masks")[0] == [0, 1, 1, 1, 0]


def test_a_bad_last_mask_is_named_and_that_of_the_dead_is_not_read():
    for mask, message in (
        (np.ones(4), r"has shape \(4,\); expected 5 entries"),
        ([2, 1, 1, 1, 1], "expected 1 or True"),
    ):
        with pytest.raises(EnvError, match=f"copy 0, step 2: the action mask of agent 'bob' .*{message}"):
            play(wrap_env(Odd(mask)), 2)
        play(wrap_env(Odd(mask, early=True)), 2)


def test_masks_in_infos():
    env = wrap_env(lambda: gymnasium.make("Taxi-v4", max_episode_steps=3), num_envs=2, seed=3)
    bare = gymnasium.make("Taxi-v4")  # without the limit
    bare.reset(seed=3)
    generator = torch.Generator().manual_seed(0)
    _, infos = env.reset()
    for step in (1, 2, 3):
        actions = draw(env, infos, generator)
        *_, infos = env.step(actions)
        *_, info = bare.step(int(actions["agent_0"][0]))
        assert ("final_action_masks" in infos) == (step == 3)
    assert rows(infos, "final_action_masks")[0] == info["action_mask"].tolist()
    assert 0 in info["action_mask"]
    assert rows(infos, "action_masks") != rows(infos, "final_action_masks")


def test_a_mask_that_first_comes_in_the_last_infos(scripted):
    def spoil(step, result):
        if step == 2:
            result[4] = {"bob": {"action_mask": [0, 1, 1]}}
        return tuple(result)

    env = wrap_env(scripted(0, 2, "truncated", spoil=spoil))
    shown = play(env, 3)
    assert "action_masks" not in shown[1]
    assert list(shown[2]["final_action_masks"]) == ["bob"]
    assert rows(shown[2], "final_action_masks") == [[0, 1, 1]]
    assert rows(shown[2], "action_masks") == [[1, 1, 1]]


def test_a_team_of_tuple_spaces():
    class Pair(gymnasium.Env):
        observation_space = spaces.Tuple((spaces.Box(0, 9, (1,)),) * 2)
        action_space = spaces.Tuple((spaces.Discrete(3),) * 2)

        def look(self):
            mask = np.ones(3, np.int8)
            mask[self.steps % 3] = 0
            return (np.full(1, self.steps, np.float32),) * 2, {"action_mask": mask}

        def reset(self, *, seed=None, options=None):
            self.steps = 0
            return self.look()

        def step(self, action):
            self.steps += 1
            seen, info = self.look()
            return seen, [0.0, 0.0], False, self.steps == 2, info

    infos = play(wrap_env(Pair()), 2)[2]
    assert rows(infos, "final_action_masks") == [[1, 1, 0]] * 2
    assert rows(infos, "action_masks") == [[0, 1, 1]] * 2


# ---- in turn ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dead_first", [True, False])
@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_whose_turn_it_would_have_been(dead_first, length):
    cut = play(wrap_env(Rounds(length, end="truncations", dead_first=dead_first)), length)[length]
    longer = play(wrap_env(Rounds(length + 1, dead_first=dead_first)), length)[length]
    assert rows(cut, "final_active_masks") == rows(longer, "active_masks")
    assert rows(cut, "final_active_masks")[length % 3] == [1]
    masks = rows(cut, "final_action_masks")
    if dead_first and length % 3:  # the first of the dead is selected: the mask of who moves says nothing
        assert masks == [[1] * 4] * 3
    else:
        assert masks == rows(longer, "action_masks")
        assert masks[length % 3] == [1, *(int(length % 3 == i) for i in range(3))]


@pytest.mark.parametrize("dead_first", [True, False])
def test_nobody_moves_where_the_one_who_would_has_died(dead_first):
    # bob, whose turn it would be, dies in the turn that is the last for the others
    class Grim(Rounds):
        def step(self, action):
            super().step(action)
            if self.turns == self.length and self.agents == list(NAMES):
                self.terminations["bob"], self.truncations["bob"] = True, False

    infos = play(wrap_env(Grim(4, end="truncations", dead_first=dead_first)), 4)[4]
    assert rows(infos, "final_active_masks") == [[0]] * 3


@pytest.mark.parametrize("turns", [False, True])
def test_knights_against_a_longer_game(turns):
    # of two games with the same seed and the same actions, the longer one shows who acts after the shorter one's end
    length = 20 if turns else 60
    short, long = knights(turns, length), knights(turns, 2 * length)
    generator = torch.Generator().manual_seed(0)
    (_, infos), _ = short.reset(), long.reset()
    ended = torch.zeros(2, dtype=torch.bool)
    seen = 0
    while not ended.all():
        actions = draw(short, infos, generator)
        states, _, terminated, truncated, infos = short.step(actions)
        later, *_, more = long.step(actions)
        over = torch.stack([terminated[n] | truncated[n] for n in short.possible_agents]).all(0)[:, 0] & ~ended
        struck = over & torch.stack([truncated[n] for n in short.possible_agents]).any(0)[:, 0]
        for row in struck.nonzero().flatten().tolist():
            assert rows(infos, "final_active_masks", row) == rows(more, "active_masks", row)
            for name in short.possible_agents:
                assert torch.equal(infos["final_states"][name][row], later[name][row])
            seen += 1
        ended |= over
        assert not any(key in infos for key in KEYS) or over.any() or ended.any()
    assert seen >= 1
    assert states.keys() == later.keys()
