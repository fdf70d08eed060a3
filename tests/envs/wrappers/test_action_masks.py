"""Action masks from observations and from infos: where they arrive, which states they describe, what is refused."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from coterie.agent_tensors import AgentTensors
from coterie.envs.base import EnvError
from coterie.envs.wrappers import PettingZooEnv, wrap_env


def zeros(env):
    width = env.action_spaces[env.possible_agents[0]].shape[0] if env.action_spaces["ada"].shape else 1
    return {name: torch.zeros(env.num_envs, width, dtype=torch.int64) for name in env.possible_agents}


def by_number(number, width=3):
    """Return a mask that tells ``number`` (modulo what fits) in binary, with the last choice always allowed."""
    return [(number >> i) & 1 for i in range(width - 1)] + [1]


@pytest.fixture
def masked(scripted):
    """Return a maker of environments whose masks are what ``say(env, agent)`` says, in observations or in infos."""

    def make(copy=0, say=None, where="observation", only=("ada", "bob"), **options):
        say = say or (lambda env, name: np.array(by_number(env.steps + env.possible_agents.index(name)), np.int8))

        class Masked(scripted):
            def observation_space(self, agent):
                if where != "observation" or agent not in only:
                    return self.box[agent]
                return spaces.Dict({"observation": self.box[agent], "action_mask": spaces.MultiBinary(3)})

            def observations(self, names):
                plain = super().observations(names)
                if where != "observation":
                    return plain
                return {
                    n: {"observation": plain[n], "action_mask": say(self, n)} if n in only else plain[n] for n in names
                }

            def info(self):
                if where != "info":
                    return {name: {} for name in self.agents}
                return {n: {"action_mask": say(self, n)} if n in only else {} for n in self.agents}

            def reset(self, seed=None, options=None):
                return super().reset(seed)[0], self.info()

            def step(self, actions):
                agents = self.agents
                result = list(super().step(actions))
                now, self.agents = self.agents, agents
                result[4] = self.info()
                self.agents = now
                return tuple(result)

        return Masked(copy, **options)

    return make


@pytest.mark.parametrize("where", ["observation", "info"])
def test_masks_describe_the_states_they_come_with(masked, where):
    # the mask of ada says the step, that of bob the step plus 1; copy 0 ends at step 2, copy 1 at step 3
    env = PettingZooEnv([masked(0, where=where, length=2), masked(1, where=where, length=3)])
    states, infos = env.reset()
    steps = [[0, 0], [1, 1], [0, 2], [1, 0]]
    for moment, expected in enumerate(steps):
        masks = infos["action_masks"]
        assert isinstance(masks, AgentTensors)
        assert set(masks.stacks) == {("ada", "bob")}
        assert masks["ada"].dtype == torch.bool
        assert states["ada"][:, 2].tolist() == expected
        assert masks["ada"].int().tolist() == [by_number(step) for step in expected], moment
        assert masks["bob"].int().tolist() == [by_number(step + 1) for step in expected], moment
        states, *_, infos = env.step(zeros(env))


def test_observations_lose_their_mask(masked):
    env = PettingZooEnv([masked()])
    assert env.observation_spaces["ada"] == env.envs[0].box["ada"]
    states, _ = env.reset()
    assert states["bob"].tolist() == [[0, 0, 0, 1]]
    assert env.state().shape == (1, 8)


def test_a_mask_beside_several_keys(scripted):
    class More(scripted):
        def observation_space(self, agent):
            parts = {"goal": spaces.Discrete(2), "observation": self.box[agent]}
            return spaces.Dict({**parts, "action_mask": spaces.Box(0, 1, (3,), np.int8)})

        def observations(self, names):
            plain = super().observations(names)
            return {n: {"goal": 1, "observation": plain[n], "action_mask": np.array([0, 1, 0])} for n in names}

    env = PettingZooEnv([More()])
    assert list(env.observation_spaces["ada"].spaces) == ["goal", "observation"]
    states, infos = env.reset()
    assert states["bob"].tolist() == [[0, 1, 0, 0, 0, 1]]
    assert infos["action_masks"]["bob"].tolist() == [[False, True, False]]


def test_an_observation_that_is_itself_a_dict(scripted):
    class Nested(scripted):
        def observation_space(self, agent):
            inner = spaces.Dict({"x": self.box[agent], "action": spaces.Discrete(2)})
            return spaces.Dict({"observation": inner, "action_mask": spaces.MultiBinary(3)})

        def observations(self, names):
            plain = super().observations(names)
            return {n: {"observation": {"x": plain[n], "action": 0}, "action_mask": np.ones(3)} for n in names}

    env = PettingZooEnv([Nested()])
    assert list(env.observation_spaces["ada"].spaces) == ["action", "x"]
    assert env.reset()[0]["bob"].tolist() == [[1, 0, 0, 0, 0, 1]]


@pytest.mark.parametrize("where", ["observation", "info"])
def test_only_some_have_masks(masked, where):
    env = PettingZooEnv([masked(where=where, only=("bob",))])
    _, infos = env.reset()
    assert list(infos["action_masks"]) == ["bob"]
    infos = env.step(zeros(env))[4]
    assert infos["action_masks"]["bob"].int().tolist() == [by_number(2)]


def test_masks_in_infos_stay_once_they_have_come(masked):
    def say(env, name):
        return np.array([0, 0, 1]) if (env.copy, env.steps, name) == (1, 1, "bob") else None

    env = PettingZooEnv([masked(i, say, where="info", length=9) for i in range(2)])
    assert "action_masks" not in env.reset()[1]
    masks = env.step(zeros(env))[4]["action_masks"]
    assert list(masks) == ["bob"]
    assert masks["bob"].int().tolist() == [[1, 1, 1], [0, 0, 1]]
    assert env.step(zeros(env))[4]["action_masks"]["bob"].all()  # None in an info: all is allowed


def test_masks_that_first_come_at_different_moments(masked):
    def say(env, name):
        return np.array([0, 0, 1]) if env.steps >= {"ada": 2, "bob": 1}[name] else None

    env = PettingZooEnv([masked(0, say, where="info", length=3)])
    seen = [env.reset()[1]] + [env.step(zeros(env))[4] for _ in range(4)]
    shown = [{n: m[0].int().tolist() for n, m in infos.get("action_masks", {}).items()} for infos in seen]
    free, held = [1, 1, 1], [0, 0, 1]
    assert shown == [
        {},
        {"bob": held},
        {"ada": held, "bob": held},
        {"ada": free, "bob": free},  # the next episode
        {"ada": free, "bob": held},
    ]


def test_a_mask_in_the_observation_goes_before_one_in_the_info(masked):
    env = PettingZooEnv([masked(spoil=None)])
    bare = env.envs[0]
    bare.info = lambda: {name: {"action_mask": np.array([0, 1, 0])} for name in bare.agents}
    assert env.reset()[1]["action_masks"]["ada"].int().tolist() == [by_number(0)]


def test_an_absent_agent_is_allowed_everything(masked):
    # what it shows is not even read: all False, or of the wrong length
    for nonsense in (np.zeros(3), np.ones(7)):
        for where in ("observation", "info"):
            say = lambda env, name: nonsense if (name, env.steps) == ("ada", 1) else np.array([1, 0, 1])  # noqa: B023, E731
            env = PettingZooEnv(
                [masked(0, say, where, leave={"ada": 1}), masked(1, lambda *_: np.array([1, 0, 1]), where)]
            )
            env.reset()
            infos = env.step(zeros(env))[4]  # ada leaves copy 0
            assert infos["active_masks"]["ada"].tolist() == [[False], [True]]
            assert infos["action_masks"]["ada"].int().tolist() == [[1, 1, 1], [1, 0, 1]]
            infos = env.step(zeros(env))[4]
            assert infos["action_masks"]["ada"].int().tolist() == [[1, 1, 1], [1, 0, 1]]
            assert infos["action_masks"]["bob"].int().tolist() == [[1, 0, 1], [1, 0, 1]]
            infos = env.step(zeros(env))[4]  # both begin again
            assert infos["action_masks"]["ada"].int().tolist() == [[1, 0, 1], [1, 0, 1]]


def test_the_mask_of_a_last_moment_is_not_read(masked):
    say = lambda env, name: np.zeros(3) if env.steps == 2 else np.array([0, 1, 0])  # noqa: E731
    env = PettingZooEnv([masked(0, say, length=2)])
    env.reset()
    env.step(zeros(env))
    infos = env.step(zeros(env))[4]
    assert infos["action_masks"]["ada"].int().tolist() == [[0, 1, 0]]


MULTI = spaces.MultiDiscrete([2, 3])


@pytest.mark.parametrize(
    "mask",
    [
        np.array([0, 1, 1, 0, 0]),
        [0, 1, 1, 0, 0],
        np.array([False, True, True, False, False]),
        (np.array([0, 1], np.int8), np.array([1, 0, 0], np.int8)),
        [[0, 1], [1, 0, 0]],
        ([False, True], [True, False, False]),
        np.array([0.0, 1.0, 1.0, 0.0, 0.0]),
    ],
)
def test_ways_to_write_a_multi_discrete_mask(masked, mask):
    env = PettingZooEnv([masked(0, lambda *_: mask, "info", action_space=MULTI)])
    assert env.reset()[1]["action_masks"]["bob"].int().tolist() == [[0, 1, 1, 0, 0]]
    assert env.step(zeros(env))[4]["action_masks"]["bob"].int().tolist() == [[0, 1, 1, 0, 0]]


def test_a_multi_discrete_of_rank_two(masked):
    space = spaces.MultiDiscrete([[2, 2], [2, 2]])
    nested = (((1, 0), (0, 1)), ((1, 1), (0, 1)))
    for mask in (nested, np.array(nested), np.array(nested).reshape(4, 2), np.array(nested).reshape(-1)):
        env = PettingZooEnv([masked(0, lambda *_: mask, "info", action_space=space)])  # noqa: B023
        assert env.reset()[1]["action_masks"]["ada"].int().tolist() == [[1, 0, 0, 1, 1, 1, 0, 1]]


HERE = "copy 1, step 1: the action mask of agent 'bob'"


@pytest.mark.parametrize(
    ("space", "mask", "message"),
    [
        (spaces.Discrete(3), np.zeros(3, np.int8), f"{HERE} allows nothing; .* needs at least one allowed choice"),
        (spaces.Discrete(3), np.ones(2), rf"{HERE} has shape \(2,\); expected 3 entries, one for each choice"),
        (spaces.Discrete(3), np.ones((3, 1)), rf"{HERE} has shape \(3, 1\); expected 3 entries"),
        (spaces.Discrete(3), [1, 0], f"{HERE} has 2 parts; expected 3 entries"),
        (spaces.Discrete(3), 1, f"{HERE} has the value 1; expected 3 entries"),
        (spaces.Discrete(3), [0, -np.inf, 0], rf"{HERE} is \[0.0, -inf, 0.0\]; expected 1 or True for what is allowed"),
        (spaces.Discrete(3), [1, 2, 0], rf"{HERE} is \[1, 2, 0\]; expected 1 or True"),
        (spaces.Discrete(3), ["a", "b", "c"], rf"{HERE} is \['a', 'b', 'c'\]; expected 1 or True"),
        (MULTI, [1, 1, 0, 0, 0], f"{HERE} allows nothing in dimension 1"),
        (MULTI, ([0, 0], [1, 1, 1]), f"{HERE} allows nothing in dimension 0"),
        (MULTI, ([1, 1, 1], [1, 1]), rf"{HERE} has 2 parts; expected 5 entries, or arrays of \[2, 3\]"),
        (MULTI, ([1, 1], [1, 1, 1], [1]), f"{HERE} has 3 parts; expected 5 entries"),
        (MULTI, np.ones(6), rf"{HERE} has shape \(6,\); expected 5 entries"),
    ],
)
@pytest.mark.parametrize("where", ["observation", "info"])
def test_a_bad_mask_is_named(masked, where, space, mask, message):
    good = np.ones(3 if space != MULTI else 5, np.int8)
    say = lambda env, name: mask if (env.copy, env.steps, name) == (1, 1, "bob") else good  # noqa: E731
    env = PettingZooEnv([masked(i, say, where, action_space=space) for i in range(2)])
    env.reset()
    with pytest.raises(EnvError, match=message):
        env.step(zeros(env))


def test_a_bad_mask_after_a_reset_within_the_step(masked):
    say = lambda env, name: np.full(3, env.episode == 0)  # noqa: E731
    env = PettingZooEnv([masked(0, say, length=1)])
    env.reset()
    with pytest.raises(EnvError, match="copy 0, step 0: the action mask of agent 'ada' allows nothing"):
        env.step(zeros(env))


def test_actions_that_cannot_be_masked(masked):
    for space in (spaces.Box(-1, 1, (3,)), spaces.MultiBinary(3)):
        with pytest.raises(TypeError, match=r"agent 'ada' has an action mask for .*; masks are for Discrete and Multi"):
            PettingZooEnv([masked(action_space=space)])
        env = PettingZooEnv([masked(where="info", action_space=space)])
        with pytest.raises(EnvError, match=r'info\["action_mask"\]: agent \'ada\' has an action mask for'):
            env.reset()


def test_an_observation_without_its_mask(scripted):
    class Forgetful(scripted):
        shown = np.zeros(4, np.float32)

        def observation_space(self, agent):
            return spaces.Dict({"observation": self.box[agent], "action_mask": spaces.MultiBinary(3)})

        def observations(self, names):
            return dict.fromkeys(names, self.shown)

    for shown, message in (
        (np.zeros(4, np.float32), "has no 'action_mask', which its space promises; it is a ndarray"),
        ({"observation": np.zeros(4)}, "has no 'action_mask', which its space promises; it is a dict"),
        ({"action_mask": np.ones(3)}, r"has, beside its action mask, the keys \[\]; expected \['observation'\]"),
        ({"observation": np.zeros(3), "action_mask": np.ones(3)}, r"is not of its space: value has shape \(3,\)"),
    ):
        bare = Forgetful()
        bare.shown = shown
        with pytest.raises(EnvError, match=f"copy 0, step 0: the observation of agent 'ada' {message}"):
            PettingZooEnv([bare]).reset()


def test_masks_of_agents_with_different_actions(scripted):
    class Two(scripted):
        def action_space(self, agent):
            return spaces.Discrete(2 if agent == "bob" else 3)

        def reset(self, seed=None, options=None):
            observations, _ = super().reset(seed)
            return observations, {"bob": {"action_mask": [0, 1]}, "cat": {"action_mask": [1, 1, 0]}}

    env = PettingZooEnv([Two(names=("ada", "bob", "cat"))])
    masks = env.reset()[1]["action_masks"]
    assert {name: mask.int().tolist() for name, mask in masks.items()} == {"bob": [[0, 1]], "cat": [[1, 1, 0]]}


def test_returned_masks_are_never_written_again(masked):
    mask = np.array([1, 1, 0], np.bool_)

    def say(env, name):
        mask[0] = env.steps % 2 == 0
        return mask

    env = PettingZooEnv([masked(0, say, where="info", length=9)])
    first = env.reset()[1]["action_masks"]["ada"]
    env.step(zeros(env))
    assert first.int().tolist() == [[1, 1, 0]]


def test_taxi_has_masks_in_its_infos():
    env = wrap_env(lambda: gymnasium.make("Taxi-v4"), num_envs=2, seed=3)
    bare = gymnasium.make("Taxi-v4")
    position, info = bare.reset(seed=3)
    states, infos = env.reset()
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        assert states["agent_0"].shape == (2, 500)
        assert states["agent_0"][0].nonzero().tolist() == [[position]]
        mask = infos["action_masks"]["agent_0"]
        assert mask[0].int().tolist() == info["action_mask"].tolist()
        actions = torch.multinomial(mask.float(), 1, generator=generator)
        states, *_, infos = env.step({"agent_0": actions})
        position, *_, info = bare.step(actions[0].item())
    env.close()
