"""Environments of every kind for the contract: parallel, in turn, batched; with masks, deaths and time limits."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from coterie.envs import MultiAgentEnv, make, wrap_env


class Errands:
    """Three agents with MultiDiscrete actions and masks that follow from the step; the time limit is a truncation.

    Observations are [step, agent, what the agent did last, times 10]. Masks forbid the first entry's choice ``step % 2`` and
    the second entry's ``(step + agent) % 3``.

    :param length: steps of an episode
    :param leave: who is terminated after which step
    :param early: whether all are terminated when the episode ends
    """

    def __init__(self, length: int = 4, leave: dict[str, int] | None = None, early: bool = False) -> None:
        self.length, self.leave, self.early = length, leave or {}, early
        self.possible_agents = ["ada", "bob", "cat"]
        self.agents: list[str] = []

    def observation_space(self, agent: str) -> spaces.Space:
        return spaces.Dict({"observation": spaces.Box(-9, 99, (3,)), "action_mask": spaces.MultiBinary(5)})

    def action_space(self, agent: str) -> spaces.Space:
        return spaces.MultiDiscrete([2, 3])

    def look(self, names: list[str]) -> dict[str, Any]:
        seen = {}
        for name in names:
            place = self.possible_agents.index(name)
            mask = np.ones(5, np.int8)
            mask[[self.steps % 2, 2 + (self.steps + place) % 3]] = 0
            numbers = np.array([self.steps, place, self.did.get(name, -1)], np.float32)
            seen[name] = {"observation": numbers, "action_mask": mask}
        return seen

    def reset(self, seed: int | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        self.steps, self.did = 0, {}
        self.agents = list(self.possible_agents)
        return self.look(self.agents), {}

    def step(self, actions: dict[str, Any]) -> Any:
        before = self.agents
        for name in before:
            first, second = actions[name]
            place = self.possible_agents.index(name)
            assert first != self.steps % 2
            assert second != (self.steps + place) % 3
        self.did = {name: 10 * actions[name][0] + actions[name][1] for name in before}
        self.steps += 1
        over = self.steps == self.length
        dies = {name: self.leave.get(name) == self.steps or (over and self.early) for name in before}
        self.agents = [] if over else [name for name in before if not dies[name]]
        cut = {name: over and not dies[name] for name in before}
        return self.look(before), {n: float(self.did[n]) for n in before}, dies, cut, {}

    def close(self) -> None:
        pass


def pettingzoo(path: str, **options: Any) -> Any:
    """Import an environment's module, or skip the test where what it needs is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Box2D's extension ends the process where its warnings are errors
            return importlib.import_module(f"pettingzoo.{path}")
    except ImportError as error:
        pytest.skip(f"{path}: {error}")


def knights(turns: bool, max_cycles: int = 20) -> MultiAgentEnv:
    module = pettingzoo("butterfly.knights_archers_zombies.knights_archers_zombies")
    kind = module.env if turns else module.parallel_env
    return wrap_env(lambda: kind(spawn_delay=2, line_death=True, max_cycles=max_cycles), num_envs=2, seed=3)


def vmas(**options: Any) -> MultiAgentEnv:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library = pytest.importorskip("vmas")
    return wrap_env(library.make_env("simple_spread", num_envs=3, max_steps=5, **options), seed=0)


#: environments whose actions are Discrete
DISCRETE: dict[str, Callable[[], MultiAgentEnv]] = {
    "spread": lambda: make("particle/simple_spread", 3, seed=0, max_cycles=4, stagger=True),
    "tag": lambda: make("particle/simple_tag", 3, seed=0, max_cycles=3),
    "speaker": lambda: make("particle/simple_speaker_listener", 2, seed=0, max_cycles=3),
    "matrix": lambda: make("matrix/two_step", 4, seed=0),
    "recall": lambda: make("memory/recall", 3, seed=0, delay=2),
    "tictactoe": lambda: wrap_env(pettingzoo("classic.tictactoe.tictactoe").env, num_envs=3, seed=0),
    "knights": lambda: knights(turns=False, max_cycles=60),
    "knights in turn": lambda: knights(turns=True),
    "taxi": lambda: wrap_env(lambda: gymnasium.make("Taxi-v4", max_episode_steps=4), num_envs=2, seed=0),
}

#: others
OTHERS: dict[str, Callable[[], MultiAgentEnv]] = {
    "continuous spread": lambda: make("particle/simple_spread", 2, seed=0, max_cycles=3, continuous_actions=True),
    "vmas": vmas,
    "errands": lambda: wrap_env(
        [Errands(3), Errands(4, {"bob": 2}), Errands(4, {"ada": 1, "cat": 4}), Errands(2, early=True)]
    ),
}
ALL = {**DISCRETE, **OTHERS}
