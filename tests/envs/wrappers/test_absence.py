"""Agents that die, arrive late or come back: who is active, what is zero, when an episode is over."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
import torch
from gymnasium import spaces

from coterie.envs.base import EnvError
from coterie.envs.wrappers import PettingZooEnv

NAMES = ("ada", "bob", "cat")


class Roster:
    """Says who is in the game at each moment; observations are [moment, agent] + 1, rewards the moment.

    :param moments: who is in env.agents at moment 0, 1, ...; the episode ends at the last one, where all of the last
        but one are terminated
    :param died: (moment, agent) of agents that are terminated though they stay in env.agents
    :param extra: report everyone's observations and rewards at every moment
    """

    def __init__(self, moments, died=(), extra=False, truncated=False):
        self.moments, self.died, self.extra, self.truncated = moments, set(died), extra, truncated
        self.possible_agents = list(NAMES)
        self.actions = []

    def observation_space(self, agent):
        return spaces.Box(-9, 9, (2,), np.float32)

    def action_space(self, agent):
        return spaces.Discrete(2)

    def look(self, names):
        return {n: np.array([self.now, NAMES.index(n)], np.float32) + 1 for n in (NAMES if self.extra else names)}

    def reset(self, seed=None):
        self.now = 0
        self.agents = list(self.moments[0])
        return self.look(self.agents), {}

    def step(self, actions):
        self.actions.append(dict(actions))
        before = self.agents
        self.now += 1
        last = self.now == len(self.moments) - 1
        self.agents = list(self.moments[self.now])
        left = {n: last or n not in self.agents or (self.now, n) in self.died for n in before}
        ends = dict.fromkeys(before, False)
        terms, truncs = (ends, left) if self.truncated and last else (left, ends)
        seen = list(dict.fromkeys([*before, *self.agents]))
        rewards = dict.fromkeys(NAMES if self.extra else before, float(self.now))
        return self.look(seen), rewards, terms, truncs, {}


def zeros(env):
    return {name: torch.zeros(env.num_envs, 1, dtype=torch.int64) for name in env.possible_agents}


def play(env, steps):
    """Return what each moment shows of copy 0: (active, observed moment, reward, terminated) by agent, and infos."""
    states, infos = env.reset()
    shown = []
    rewards = terminated = truncated = None
    for step in range(steps + 1):
        masks = infos.get("active_masks")
        active = "".join(n[0] if masks is None or masks[n][0].item() else "-" for n in NAMES)
        observed = [int(states[n][0, 0]) for n in NAMES]
        earned = None if rewards is None else [rewards[n][0].item() for n in NAMES]
        done = None if terminated is None else [int(terminated[n][0] or truncated[n][0]) for n in NAMES]
        shown.append((active, observed, earned, done, env.state()[0].tolist(), infos))
        if step < steps:
            states, rewards, terminated, truncated, infos = env.step(zeros(env))
    return shown


@pytest.mark.parametrize("extra", [False, True])
def test_one_dies_and_one_arrives_late(extra):
    # an observation shows its moment + 1; cat arrives at moment 2, ada dies at moment 2, the end is at moment 4
    moments = [["ada", "bob"], ["ada", "bob"], ["bob", "cat"], ["bob", "cat"], []]
    env = PettingZooEnv([Roster(moments, extra=extra)])
    shown = play(env, 4)
    assert [s[0] for s in shown] == ["ab-", "ab-", "-bc", "-bc", "ab-"]
    assert [s[1] for s in shown] == [
        [1, 1, 0],
        [2, 2, 0],
        [3, 3, 3],  # the last that ada saw, the first that cat sees
        [0, 4, 4],
        [1, 1, 0],  # the next episode
    ]
    # what is reported of the absent counts for nothing; cat's first reward is for its first action
    assert [s[2] for s in shown[1:]] == [[1, 1, 0], [2, 2, 0], [0, 3, 3], [0, 4, 4]]
    # absent is terminated, but not in the step in which it arrives
    assert [s[3] for s in shown[1:]] == [[0, 0, 1], [1, 0, 0], [1, 0, 0], [1, 1, 1]]
    # zeros for the absent in the joined state, also where it shows its last observation
    assert [s[4] for s in shown] == [
        [1, 1, 1, 2, 0, 0],
        [2, 1, 2, 2, 0, 0],
        [0, 0, 3, 2, 3, 3],
        [0, 0, 4, 2, 4, 3],
        [1, 1, 1, 2, 0, 0],
    ]
    final = shown[4][5]
    assert [final["final_states"][n][0].tolist() for n in NAMES] == [[0, 0], [5, 2], [5, 3]]
    assert final["final_shared_states"][0].tolist() == [0, 0, 5, 2, 5, 3]
    assert [sorted(a) for a in env.envs[0].actions] == [["ada", "bob"]] * 2 + [["bob", "cat"]] * 2
    assert "final_states" not in shown[2][5]


@pytest.mark.parametrize("truncated", [False, True])
def test_one_comes_back(truncated):
    moments = [["ada", "bob", "cat"], ["bob", "cat"], ["ada", "bob", "cat"], ["ada", "bob", "cat"], []]
    shown = play(PettingZooEnv([Roster(moments, truncated=truncated)]), 4)
    assert [s[0] for s in shown] == ["abc", "-bc", "abc", "abc", "abc"]
    assert ["active_masks" in s[5] for s in shown] == [False, True, False, False, False]
    assert [s[1] for s in shown] == [[1, 1, 1], [2, 2, 2], [3, 3, 3], [4, 4, 4], [1, 1, 1]]
    assert [s[2] for s in shown[1:]] == [[1, 1, 1], [0, 2, 2], [3, 3, 3], [4, 4, 4]]
    assert [s[3] for s in shown[1:]] == [[1, 0, 0], [0, 0, 0], [0, 0, 0], [1, 1, 1]]


def test_the_last_one_leaves_as_another_comes_back():
    # nobody of those who acted goes on, yet the episode does
    moments = [["ada", "bob"], ["bob"], ["ada", "cat"], ["ada"], []]
    shown = play(PettingZooEnv([Roster(moments)]), 4)
    assert [s[0] for s in shown] == ["ab-", "-b-", "a-c", "a--", "ab-"]
    assert [s[3] for s in shown[1:]] == [[1, 0, 1], [0, 1, 0], [0, 1, 1], [1, 1, 1]]
    assert ["final_states" in s[5] for s in shown] == [False, False, False, False, True]
    assert [shown[4][5]["final_states"][n][0].tolist() for n in NAMES] == [[5, 1], [0, 0], [0, 0]]


@pytest.mark.parametrize("truncated", [False, True])
def test_who_dies_as_time_runs_out_is_not_in_the_last_state(truncated):
    class LastMoment(Roster):
        def step(self, actions):
            states, rewards, terms, truncs, infos = super().step(actions)
            if self.truncated and not self.agents:
                terms["bob"], truncs["bob"] = True, False
            return states, rewards, terms, truncs, infos

    env = PettingZooEnv([LastMoment([NAMES, NAMES, []], truncated=truncated), Roster([NAMES] * 4)])
    infos = play(env, 2)[-1][5]
    # at moment 2 all observe [3, agent + 1]; where all die together the state is shown as it was
    bob = [0, 0] if truncated else [3, 2]
    assert infos["final_shared_states"][0].tolist() == [3, 1, *bob, 3, 3]
    assert [infos["final_states"][n][0].tolist() for n in NAMES] == [[3, 1], [3, 2], [3, 3]]


def test_everyone_dies_at_once_before_the_end():
    # nobody is left who could act: the episode is over, whatever the environment had in mind, and a new one begins
    moments = [["ada", "bob"], ["ada", "bob"], [], ["cat"], []]
    shown = play(PettingZooEnv([Roster(moments)]), 3)
    assert [s[0] for s in shown] == ["ab-", "ab-", "ab-", "ab-"]
    assert [s[3] for s in shown[1:]] == [[0, 0, 1], [1, 1, 1], [0, 0, 1]]
    assert [s[1] for s in shown] == [[1, 1, 0], [2, 2, 0], [1, 1, 0], [2, 2, 0]]
    assert "final_states" in shown[2][5]


@pytest.mark.parametrize("extra", [False, True])
def test_the_dead_may_stay_in_the_list(extra):
    # ada is terminated at moments 1 and 2, and unflagged at moment 3
    moments = [list(NAMES)] * 4 + [[]]
    env = PettingZooEnv([Roster(moments, died=[(1, "ada"), (2, "ada")], extra=extra)])
    shown = play(env, 4)
    assert [s[0] for s in shown] == ["abc", "-bc", "-bc", "abc", "abc"]
    assert [s[1] for s in shown] == [[1, 1, 1], [2, 2, 2], [0, 3, 3], [4, 4, 4], [1, 1, 1]]
    assert [s[2] for s in shown[1:]] == [[1, 1, 1], [0, 2, 2], [0, 3, 3], [4, 4, 4]]
    assert [s[3] for s in shown[1:]] == [[1, 0, 0], [1, 0, 0], [0, 0, 0], [1, 1, 1]]
    assert [sorted(a) for a in env.envs[0].actions] == [sorted(NAMES)] * 4  # the environment wants an action of it


def test_copies_do_not_mix():
    one = [["ada", "bob"], ["ada", "bob"], ["bob", "cat"], ["bob", "cat"], []]
    other = [["cat"], list(NAMES), list(NAMES), ["bob"], []]
    apart = [play(PettingZooEnv([Roster(moments)]), 7) for moments in (one, other)]
    both = PettingZooEnv([Roster(other), Roster(one)])
    states, infos = both.reset()
    rewards = None
    for step in range(8):
        for row, alone in ((1, apart[0][step]), (0, apart[1][step])):
            masks = infos.get("active_masks")
            assert "".join(n[0] if masks is None or masks[n][row].item() else "-" for n in NAMES) == alone[0]
            assert [int(states[n][row, 0]) for n in NAMES] == alone[1]
            assert rewards is None or [rewards[n][row].item() for n in NAMES] == alone[2]
            assert both.state()[row].tolist() == alone[4]
        states, rewards, *_, infos = both.step(zeros(both))


def test_who_is_absent_cannot_change_the_joined_state():
    # minus zero, infinities and all: replaced, not multiplied
    class Odd(Roster):
        def look(self, names):
            return {**super().look(names), "ada": np.array([-1.0, -0.0], np.float32)}

    env = PettingZooEnv([Odd([["ada", "bob"], ["bob"], ["bob"], []])])
    env.reset()
    for _ in range(2):
        env.step(zeros(env))
        assert not torch.signbit(env.state()[0, :2]).any()


def test_an_arrival_without_observation_is_an_error():
    class Silent(Roster):
        def step(self, actions):
            observations, *rest = super().step(actions)
            observations.pop("cat", None)
            return observations, *rest

    env = PettingZooEnv([Silent([["ada", "bob"], list(NAMES), []])])
    env.reset()
    with pytest.raises(EnvError, match=r"copy 0, step 1: agent 'cat' joins in env.agents, but has no observation"):
        env.step(zeros(env))


def test_default_dictionaries():
    class Default(Roster):
        def step(self, actions):
            observations, rewards, *rest = super().step(actions)
            return observations, defaultdict(lambda: 0.5, {"bob": rewards["bob"]}), *rest

    env = PettingZooEnv([Default([["ada", "bob"], ["ada", "bob"], []])])
    env.reset()
    rewards = env.step(zeros(env))[1]
    assert [rewards[n].item() for n in NAMES] == [0.5, 1, 0]  # nothing for cat, which is not there

    class Empty(Roster):
        def step(self, actions):
            observations, *rest = super().step(actions)
            del observations["bob"]
            return defaultdict(lambda: np.zeros(2, np.float32), observations), *rest

    env = PettingZooEnv([Empty([["ada", "bob"], ["ada", "bob"], []])])
    env.reset()
    with pytest.raises(EnvError, match="agent 'bob' is missing from the observations"):
        env.step(zeros(env))


def test_nobody_at_reset_is_an_error():
    with pytest.raises(EnvError, match=r"copy 0, step 0: no agent takes part after reset\(\)"):
        PettingZooEnv([Roster([[], ["ada"], []])]).reset()


def test_states_of_the_environment_itself_are_left_alone():
    class Own(Roster):
        def state(self):
            return np.array([self.now, 7.0])

    env = PettingZooEnv([Own([["ada", "bob"], ["bob"], []])])
    assert env.has_own_state
    env.reset()
    env.step(zeros(env))
    assert env.state().tolist() == [[1, 7]]
    assert not PettingZooEnv([Roster([["ada"], []])]).has_own_state
