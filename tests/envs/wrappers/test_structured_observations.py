"""Observations that are no flat Box: what arrives in the tensors, and what is said of those that do not fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces

from coterie.envs.base import EnvError
from coterie.envs.wrappers import PettingZooEnv
from coterie.spaces import unflatten


def zeros(env):
    return {name: torch.zeros(env.num_envs, 1, dtype=torch.int64) for name in env.possible_agents}


@pytest.fixture
def observing(scripted):
    """Return a maker of environments with given observation spaces, which observe what a function says."""

    def make(kinds, look, **options):
        class Observing(scripted):
            def observation_space(self, agent):
                return kinds[agent]

            def observations(self, names):
                return {name: look(self, name) for name in names}

        return Observing(names=tuple(kinds), **options)

    return make


def test_every_kind(observing):
    kinds = {
        "image": spaces.Box(0, 255, (2, 1, 2), np.uint8),
        "number": spaces.Box(-1, 1, ()),
        "choice": spaces.Discrete(3, start=5),
        "choices": spaces.MultiDiscrete([2, 3]),
        "flags": spaces.MultiBinary((2, 2)),
        "dict": spaces.Dict({"b": spaces.Discrete(2), "a": spaces.Box(-1, 1, (2,))}),
        "tuple": spaces.Tuple([spaces.MultiBinary(1), spaces.Dict({"x": spaces.Box(-1, 1, (1, 1))})]),
    }
    values = {
        "image": np.array([[[1, 2]], [[3, 255]]], np.uint8),
        "number": np.float32(0.5),
        "choice": np.int64(6),
        "choices": np.array([1, 0]),
        "flags": np.array([[1, 0], [0, 1]], np.int8),
        "dict": {"b": 0, "a": np.array([0.25, -1], np.float32)},
        "tuple": (np.array([1], np.int8), {"x": np.array([[-0.5]], np.float32)}),
    }
    flat = {
        "image": [1, 2, 3, 255],
        "number": [0.5],
        "choice": [0, 1, 0],
        "choices": [0, 1, 1, 0, 0],
        "flags": [1, 0, 0, 1],
        "dict": [0.25, -1, 1, 0],  # in the order of the keys
        "tuple": [1, -0.5],
    }
    env = PettingZooEnv([observing(kinds, lambda env, name: values[name]) for _ in range(2)])
    assert env.observation_spaces == kinds
    states, infos = env.reset()
    assert "action_masks" not in infos
    # agents of equal width are stacked together, whatever their kinds
    assert set(states.stacks) == {("image", "flags", "dict"), ("number",), ("choice",), ("choices",), ("tuple",)}
    for _ in range(2):
        for name, expected in flat.items():
            assert states[name].tolist() == [expected, expected]
            assert states[name].dtype == torch.float32
        states = env.step(zeros(env))[0]
    assert not env.has_own_state
    assert env.state()[1].tolist() == [number for row in flat.values() for number in row]
    assert unflatten(env.observation_spaces["image"], states["image"])[0].tolist() == values["image"].tolist()


def test_rows_of_copies_and_moments_stay_apart(observing):
    # one-hots are set in zeros: what a copy showed before must not remain
    kinds = {"ada": spaces.Tuple([spaces.Discrete(9), spaces.Discrete(9)])}
    env = PettingZooEnv(
        [
            observing(kinds, lambda env, name: (env.steps, env.copy + env.episode), copy=i, length=2 + i)
            for i in range(2)
        ]
    )
    states, _ = env.reset()
    eye = torch.eye(9).tolist()
    assert states["ada"].tolist() == [eye[0] + eye[0], eye[0] + eye[1]]
    assert env.step(zeros(env))[0]["ada"].tolist() == [eye[1] + eye[0], eye[1] + eye[1]]
    states, *_, infos = env.step(zeros(env))
    assert states["ada"].tolist() == [eye[0] + eye[1], eye[2] + eye[1]]  # copy 0 in its episode 1
    assert infos["final_states"]["ada"][0].tolist() == eye[2] + eye[0]


@pytest.mark.parametrize(
    ("space", "value", "message"),
    [
        (spaces.Discrete(3), 3, r"value is 3; expected a number of Discrete\(3\)"),
        (spaces.MultiBinary(2), [1, 1, 1], r"value has shape \(3,\); expected \(2,\)"),
        (spaces.Dict({"a": spaces.Discrete(2)}), {}, r"value has the keys \[\]; expected \['a'\]"),
        (spaces.Tuple([spaces.Box(-1, 1, (2,))]), (np.zeros(1),), r"value\[0\] has shape \(1,\); expected \(2,\)"),
    ],
)
def test_an_observation_of_another_space_is_named(observing, space, value, message):
    good = space.sample()
    env = PettingZooEnv(
        [
            observing(
                {"ada": space, "bob": space},
                lambda e, n: value if (e.copy, e.steps, n) == (1, 1, "bob") else good,
                copy=i,
            )
            for i in range(2)
        ]
    )
    env.reset()
    with pytest.raises(
        EnvError, match=rf"copy 1, step 1: the observation of agent 'bob' is not of its space: {message}"
    ):
        env.step(zeros(env))


def test_nan_inside_a_structure_is_found(observing):
    kinds = {"ada": spaces.Dict({"a": spaces.Discrete(2), "b": spaces.Box(-1, 1, (2,))})}
    env = PettingZooEnv([observing(kinds, lambda env, name: {"a": 1, "b": np.array([0, np.nan])})])
    with pytest.raises(EnvError, match=r"the observation of agent 'ada' in copy 0 is nan at element \[3\]"):
        env.reset()
