"""AEC environments through wrap_env: whose turn it is, who waits, what each step earns, how games end."""

from __future__ import annotations

import logging

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from pettingzoo.utils import aec_to_parallel, wrappers
from pettingzoo.utils.env import AECEnv

from coterie.agent_tensors import AgentTensors
from coterie.envs.base import EnvError
from coterie.envs.wrappers import PettingZooEnv, TurnBasedTeam, wrap_env

NAMES = ("ada", "bob", "cat")


class Rounds(AECEnv):
    """Agents act in a circle. Turn t (from 1) earns everyone in the game 10 t, and the one who acted its action besides.

    Observations are [game, turns so far, agent]; masks allow choice 0 and the choice 1 + turns mod 3 to the one whose
    turn it is, and nothing to the others.

    :param length: turns of a game
    :param deaths: agents that are terminated by a turn: {turn: names}
    :param dead_first: whether the dead are selected at once for their last step, or when it is their turn
    :param arrivals: agents that enter by a turn: {turn: name}; they are not there from the start
    """

    def __init__(self, length=5, deaths=None, dead_first=True, arrivals=None, end="terminations", names=NAMES):
        super().__init__()
        self.metadata = {"name": "rounds_v0"}
        self.possible_agents = list(names)
        self.length, self.deaths, self.dead_first, self.end = length, deaths or {}, dead_first, end
        self.arrivals = arrivals or {}
        self.game = -1
        self.seeds, self.taken, self.last_steps, self.closed = [], [], [], 0

    def observation_space(self, agent):
        return spaces.Dict({"observation": spaces.Box(-99, 99, (3,)), "action_mask": spaces.MultiBinary(4)})

    def action_space(self, agent):
        return spaces.Discrete(4)

    def reset(self, seed=None, options=None):
        self.seeds.append(seed)
        self.game += 1
        self.turns = 0
        self.agents = [name for name in self.possible_agents if name not in self.arrivals.values()]
        self.rewards = dict.fromkeys(self.agents, 0)
        self._cumulative_rewards = dict.fromkeys(self.agents, 0)
        self.terminations = dict.fromkeys(self.agents, False)
        self.truncations = dict.fromkeys(self.agents, False)
        self.infos = {name: {} for name in self.agents}
        self.agent_selection = self.agents[0]
        self._skip_agent_selection = None

    def observe(self, agent):
        mask = np.zeros(4, np.int8)
        if agent == self.agent_selection:
            mask[[0, 1 + self.turns % 3]] = 1
        numbers = np.array([self.game, self.turns, self.possible_agents.index(agent)], np.float32)
        return {"observation": numbers, "action_mask": mask}

    def step(self, action):
        agent = self.agent_selection
        if self.terminations[agent] or self.truncations[agent]:
            self.last_steps.append((self.game, self.turns, agent))
            if self.dead_first or self.turns == self.length:
                self._was_dead_step(action)
                return
            assert action is None  # its own turn came: on to the next
            self.agent_selection = self.after(agent)
            self.agents.remove(agent)
            for values in (self.terminations, self.truncations, self.rewards, self._cumulative_rewards, self.infos):
                del values[agent]
            self._clear_rewards()
            return
        self.taken.append((agent, action))
        self.turns += 1
        self._cumulative_rewards[agent] = 0
        self.rewards = dict.fromkeys(self.agents, 10 * self.turns)
        self.rewards[agent] += int(action)
        if self.turns in self.arrivals:
            name = self.arrivals[self.turns]
            self.agents.append(name)
            self.rewards[name] = self._cumulative_rewards[name] = 0
            self.terminations[name] = self.truncations[name] = False
            self.infos[name] = {}
        for name in self.deaths.get(self.turns, ()):
            self.terminations[name] = True
        if self.turns == self.length:
            setattr(self, self.end, dict.fromkeys(self.agents, True))
        self.agent_selection = self.after(agent)
        self._accumulate_rewards()
        if self.dead_first:
            self._deads_step_first()

    def after(self, agent):
        """Return who follows in the circle; the dead are passed over where their last step comes first."""
        i = self.agents.index(agent)
        circle = self.agents[i + 1 :] + self.agents[: i + 1]
        alive = [name for name in circle if not (self.terminations[name] or self.truncations[name])]
        return alive[0] if self.dead_first and alive else circle[0]

    def close(self):
        self.closed += 1


def actions(env, number=0):
    """Return action ``number`` + its position for every agent."""
    return {n: torch.full((env.num_envs, 1), (number + i) % 4) for i, n in enumerate(env.possible_agents)}


def marks(infos, copy=0):
    """Return one letter for each agent: a upper case for active, lower case for waiting, - for absent."""
    active, waiting = infos["active_masks"], infos["waiting_masks"]
    assert isinstance(waiting, AgentTensors)
    letters = []
    for name in active:
        flags = active[name][copy].item(), waiting[name][copy].item()
        assert flags != (True, True)
        letters.append(name[0].upper() if flags[0] else name[0] if flags[1] else "-")
    return "".join(letters)


def column(values, copy=0):
    return [values[name][copy].tolist()[0] for name in values]


def test_one_step_is_one_turn():
    env = wrap_env(lambda: Rounds(length=4), num_envs=2, seed=7)
    assert isinstance(env, PettingZooEnv)
    states, infos = env.reset()
    assert marks(infos) == "Abc"
    for turn, (expected, earned) in enumerate(
        # everyone earns 10 t; ada acts 1, then bob 2 + 1, then cat 3 + 2 = 1 (mod 4), then ada 0
        [("aBc", [11, 10, 10]), ("abC", [20, 23, 20]), ("Abc", [30, 30, 31]), ("Abc", [40, 40, 40])],
        start=1,
    ):
        states, rewards, terminated, truncated, infos = env.step(actions(env, turn if turn < 4 else 0))
        assert marks(infos, 0) == marks(infos, 1) == expected
        assert column(rewards) == earned
        assert column(terminated) == [turn == 4] * 3
        assert column(truncated) == [False] * 3
        if turn < 4:
            assert [states[n][1].tolist() for n in NAMES] == [[0, turn, i] for i in range(3)]
            assert "final_states" not in infos
    assert env.envs[0].env.taken == [("ada", 1), ("bob", 3), ("cat", 1), ("ada", 0)]
    assert [infos["final_states"][n][0].tolist() for n in NAMES] == [[0, 4, i] for i in range(3)]
    assert [states[n][0].tolist() for n in NAMES] == [[1, 0, i] for i in range(3)]
    assert env.envs[0].env.seeds == [7, None]
    assert env.envs[1].env.seeds[1] is None


def test_masks_are_those_of_the_one_who_moves():
    env = wrap_env(Rounds(length=4))
    _, infos = env.reset()
    for turn in range(9):
        who, turns = turn % 4 % 3, turn % 4
        expected = [[True] * 4 for _ in NAMES]
        expected[who] = [True, *(turns % 3 == i for i in range(3))]
        assert [infos["action_masks"][n][0].tolist() for n in NAMES] == expected
        *_, infos = env.step(actions(env))


def test_truncation():
    env = wrap_env(Rounds(length=2, end="truncations"))
    env.reset()
    env.step(actions(env))
    _, _, terminated, truncated, infos = env.step(actions(env))
    assert column(terminated) == [False] * 3
    assert column(truncated) == [True] * 3
    assert infos["final_shared_states"][0].tolist() == [0, 2, 0, 0, 2, 1, 0, 2, 2]


@pytest.mark.parametrize("dead_first", [True, False])
@pytest.mark.parametrize("victim", ["ada", "bob", "cat"])
def test_an_agent_dies(dead_first, victim):
    # in turn 2, which is bob's: ada has acted, bob acts, cat is next
    env = wrap_env(Rounds(length=6, deaths={2: [victim]}, dead_first=dead_first))
    env.reset()
    env.step(actions(env))
    states, rewards, terminated, _, infos = env.step(actions(env))
    seat = NAMES.index(victim)
    assert [states[n][0].tolist() for n in NAMES] == [[0, 2, i] for i in range(3)]  # the last one too
    assert column(rewards) == [20, 21, 20]
    assert column(terminated) == [n == victim for n in NAMES]
    expected = {"ada": "-bC", "bob": "a-C", "cat": "Ab-"}[victim]
    assert marks(infos) == expected
    joined = [0, 2, 0, 0, 2, 1, 0, 2, 2]
    joined[3 * seat : 3 * seat + 3] = [0, 0, 0]
    assert env.state()[0].tolist() == joined
    assert infos["action_masks"][victim].all()
    assert infos["action_masks"][NAMES["ABC".index(next(c for c in expected if c.isupper()))]].sum() == 2

    following = {"ada": ["-Bc", "-bC", "-Bc"], "bob": ["A-c", "a-C", "A-c"], "cat": ["aB-", "Ab-", "aB-"]}[victim]
    for turn, expected in enumerate(following, start=3):
        states, rewards, terminated, _, infos = env.step(actions(env, turn))
        assert marks(infos) == expected
        assert states[victim][0].tolist() == [0, 0, 0]
        assert rewards[victim].item() == 0
        assert terminated[victim].item()
        assert all(rewards[n].item() >= 10 * turn for n in NAMES if n != victim)
    *_, terminated, _, infos = env.step(actions(env))
    assert column(terminated) == [True] * 3
    assert infos["final_states"][victim][0].tolist() == [0, 0, 0]
    assert marks(infos) == "Abc"
    assert len(env.envs[0].env.taken) == 6


@pytest.mark.parametrize("dead_first", [True, False])
def test_several_die_at_once(dead_first):
    env = wrap_env(Rounds(length=9, deaths={1: ["ada", "cat"], 3: ["bob"]}, dead_first=dead_first))
    env.reset()
    *_, infos = env.step(actions(env))
    assert marks(infos) == "-B-"
    *_, infos = env.step(actions(env))
    assert marks(infos) == "-B-"
    *_, infos = env.step(actions(env))  # nobody is left
    assert infos["final_states"]["bob"][0].tolist() == [0, 3, 1]
    assert marks(infos) == "Abc"
    assert [name for name, _ in env.envs[0].env.taken] == ["ada", "bob", "bob"]


def test_the_team_alone():
    team = TurnBasedTeam(Rounds(length=4, deaths={1: ["cat"]}, dead_first=False))
    assert team.agents == []
    observations, infos = team.reset(seed=1)
    assert list(observations) == list(infos) == team.agents == list(NAMES)
    assert team.turn == "ada"
    observations, rewards, terminated, truncated, _ = team.step({"ada": 2})
    assert team.agents == ["ada", "bob"]  # cat is still in the environment's list
    assert team.turn == "bob"
    assert set(observations) == set(NAMES)
    assert rewards == {"ada": 12, "bob": 10, "cat": 10}
    assert terminated == {"ada": False, "bob": False, "cat": True}
    assert truncated == dict.fromkeys(NAMES, False)
    for turn in (2, 3, 4):
        assert team.turn == ("bob", "ada", "bob")[turn - 2]
        observations, rewards, *_ = team.step(dict.fromkeys(NAMES, 0))
        assert set(observations) == {"ada", "bob"}
        assert rewards == {"ada": 10 * turn, "bob": 10 * turn}
    assert (team.agents, team.turn) == ([], None)


def test_an_agent_arrives():
    env = wrap_env(Rounds(length=5, arrivals={2: "bob"}))
    states, infos = env.reset()
    assert marks(infos) == "A-c"
    assert states["bob"].tolist() == [[0, 0, 0]]
    *_, infos = env.step(actions(env))
    assert marks(infos) == "a-C"
    states, rewards, terminated, _, infos = env.step(actions(env))
    assert marks(infos) == "aBc"  # the newcomer sits after cat
    assert states["bob"].tolist() == [[0, 2, 1]]
    assert rewards["bob"].item() == 0
    assert column(terminated) == [False] * 3


def test_rewards_add_up_to_what_the_environment_gathers():
    # by hand, as learners of AEC environments do it: last() tells what was earned since the agent's own last action
    bare = Rounds(length=7, deaths={4: ["bob"]})
    bare.reset()
    gathered = dict.fromkeys(NAMES, 0.0)
    for agent in bare.agent_iter():
        _, reward, terminated, truncated, _ = bare.last()
        gathered[agent] += reward
        bare.step(None if terminated or truncated else 2)
    env = wrap_env(Rounds(length=7, deaths={4: ["bob"]}))
    env.reset()
    total = dict.fromkeys(NAMES, 0.0)
    for _ in range(7):
        _, rewards, _, _, infos = env.step({n: torch.tensor([[2]]) for n in NAMES})
        for name in NAMES:
            total[name] += rewards[name].item()
    assert "final_states" in infos
    assert total == gathered


def test_the_last_steps_of_the_dead_come_after_the_last_state():
    class Own(Rounds):
        state_space = spaces.Box(-9, 9, (2,))

        def state(self):
            return np.array([self.turns, len(self.agents)], np.float32)

    env = wrap_env(Own(length=2))
    assert env.has_own_state
    assert env.state_space("ada").shape == (2,)
    env.reset()
    env.step(actions(env))
    assert env.state().tolist() == [[1, 3]]
    *_, infos = env.step(actions(env))
    assert infos["final_shared_states"].tolist() == [[2, 3]]  # with all three still there
    assert env.state().tolist() == [[0, 3]]
    assert env.envs[0].env.last_steps == [(0, 2, "ada"), (0, 2, "bob"), (0, 2, "cat")]
    assert env.envs[0].env.taken == [("ada", 0), ("bob", 1)]
    assert not wrap_env(Rounds()).has_own_state


def test_copies_may_be_at_different_turns():
    env = wrap_env([Rounds(length=3), Rounds(length=4)])
    _, infos = env.reset()
    seen = [(marks(infos, 0), marks(infos, 1))]
    for _ in range(4):
        *_, infos = env.step(actions(env))
        seen.append((marks(infos, 0), marks(infos, 1)))
    assert seen == [("Abc", "Abc"), ("aBc", "aBc"), ("abC", "abC"), ("Abc", "Abc"), ("aBc", "Abc")]


def test_masks_in_infos():
    class Informed(Rounds):
        def observation_space(self, agent):
            return spaces.Box(-99, 99, (3,))

        def observe(self, agent):
            seen = super().observe(agent)
            self.infos[agent] = {"action_mask": seen["action_mask"]}
            return seen["observation"]

    env = wrap_env(Informed())
    _, infos = env.reset()
    for turn in range(4):
        masks = infos["action_masks"]
        assert [int(masks[n].sum()) for n in NAMES] == [2 if i == turn % 3 else 4 for i in range(3)]
        *_, infos = env.step(actions(env))


def test_one_player():
    env = wrap_env(Rounds(length=3, names=("ada",)))
    _, infos = env.reset()
    for _ in range(4):
        assert infos["active_masks"]["ada"].item()
        assert not infos["waiting_masks"]["ada"].item()
        *_, infos = env.step(actions(env))


def test_the_wrappers_of_the_other_library_are_kept():
    make = lambda: wrappers.OrderEnforcingWrapper(wrappers.TerminateIllegalWrapper(Rounds(), illegal_reward=-1))  # noqa: E731
    env = wrap_env(make)
    env.reset()
    assert env.envs[0].unwrapped.game == 0
    env.step(actions(env))
    # choice 3 is not allowed to bob in turn 1, where 0 and 2 are
    _, rewards, terminated, _, infos = env.step({n: torch.tensor([[3]]) for n in NAMES})
    assert column(rewards) == [0, -1, 0]
    assert column(terminated) == [True] * 3
    assert marks(infos) == "Abc"
    *_, infos = env.step(actions(env))
    assert marks(infos) == "aBc"


@pytest.mark.parametrize("fault", ["immortal", "stranger", "raises"])
def test_faults_are_named(fault):
    class Faulty(Rounds):
        def step(self, action):
            if fault == "immortal" and self.terminations[self.agent_selection]:
                return
            super().step(action)
            if fault == "stranger":
                self.agent_selection = "zed"
                self.terminations["zed"] = self.truncations["zed"] = False
            if fault == "raises":
                raise OSError("no board")

    message = {
        "immortal": r"step\(\) raised RuntimeError: agent 'bob' is terminated or truncated, and still selected",
        "stranger": r"step\(\) raised RuntimeError: agent_selection is 'zed'; expected one of",
        "raises": r"step\(\) raised OSError: no board",
    }[fault]
    env = wrap_env([Rounds(), Faulty(deaths={1: ["bob"]})])
    env.reset()
    with pytest.raises(EnvError, match=rf"copy 1, step 1: the environment's {message}"):
        env.step(actions(env))


def test_close_render_and_names():
    class Painted(Rounds):
        def render(self):
            return "board"

    made = [Painted(), Painted()]
    env = wrap_env(made, wrapper="pettingzoo")
    assert repr(env.envs[0]) == "TurnBasedTeam(rounds_v0)"
    assert env.render() == "board"
    env.close()
    env.close()
    assert [e.closed for e in made] == [1, 1]
    assert wrap_env(TurnBasedTeam(Rounds())).num_envs == 1
    with pytest.raises(
        TypeError, match="expected an environment for the wrapper 'turn-based', got one for 'gymnasium'"
    ):
        wrap_env([Rounds(), gymnasium.make("CartPole-v1")])


def test_parallelizable_environments_are_told_of(caplog):
    class Both(Rounds):
        render_mode = None

        def __init__(self):
            super().__init__()
            self.metadata["is_parallelizable"] = True

    with caplog.at_level(logging.INFO):
        env = wrap_env(Both())
    assert any("one agent's turn at a time" in record.message for record in caplog.records)
    assert isinstance(env.envs[0], TurnBasedTeam)
    env = wrap_env(aec_to_parallel(Both()))
    assert not isinstance(env.envs[0], TurnBasedTeam)
