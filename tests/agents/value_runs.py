"""Teams that learn action values, small and quick, and the loop that drives them, for tests of their behaviour."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor

from coterie.agents import IQL, QMIX, VDN
from coterie.envs import MultiAgentEnv
from coterie.memories import EpisodeMemory, PrioritizedMemory, ReplayMemory
from coterie.models import build_models
from tests.agents.toys import OFF

KINDS: dict[str, Any] = {"qmix": QMIX, "vdn": VDN, "iql": IQL}
MEMORIES: dict[str, Any] = {"replay": ReplayMemory, "prioritized": PrioritizedMemory, "episode": EpisodeMemory}
ROWS = 40

#: called with the agent and what it is told of a step before it is: the arguments of act, or those of record_transition
Tell = Callable[[str, tuple[Any, ...]], tuple[Any, ...]]


def told_all(what: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return arguments


def models_for(env: MultiAgentEnv, kind: str, rnn: str | None = None, **options: Any) -> dict[str, dict[str, Any]]:
    """Networks of 8 units; an agent's ``q`` and the team's ``mixer``."""
    options = {"hidden": (8,), "rnn": rnn, "rnn_size": 5, "sequence_length": 4, "agent_id": False, **options}
    return build_models(env, kind, **options)


def team(
    env: MultiAgentEnv,
    kind: str = "vdn",
    memory: str | None = "replay",
    rnn: str | None = None,
    models: Mapping[str, Mapping[str, Any]] | None = None,
    rows: int = ROWS,
    kept: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    learners: str | None = None,
    **cfg: Any,
) -> Any:
    """A team that is about to train.

    :param kept: what else its memories are made with
    :param options: of :func:`models_for`
    :param learners: letters of agents that have memories; all by default
    """
    names = [uid for uid in env.possible_agents if learners is None or uid in learners]
    settings = {
        "batch_size": 4,
        "target_update_interval": 3,
        "learning_rate": 1e-2,
        "exploration_epsilon": 0.3,
        "experiment": OFF,
        **cfg,
    }
    made = None
    if memory is not None:
        made = {uid: MEMORIES[memory](rows, env.num_envs, **{"seed": 3, **(kept or {})}) for uid in names}
    return KINDS[kind](
        env.possible_agents,
        models_for(env, kind, rnn, **(options or {})) if models is None else models,
        made,
        env.observation_spaces,
        env.action_spaces,
        cfg=settings,
        shared_observation_spaces=env.shared_observation_spaces,
    )


def begun(env: MultiAgentEnv, *args: Any, **kwargs: Any) -> Any:
    agent = team(env, *args, **kwargs)
    agent.init()
    agent.set_running_mode("train")
    return agent


def play(
    env: Any, agent: Any, steps: int, tell: Tell = told_all, first: int = 0, timesteps: int = 100, state: bool = True
) -> None:
    """Train for some steps, from the environment's reset on."""
    states, infos = env.reset()
    shared = env.state() if state else None
    for t in range(first, first + steps):
        act = tell("act", (states, t, timesteps, infos))
        actions = agent.act(*act)[0]
        following, *rest, infos = env.step(actions)
        noted = infos
        if state:
            shared, before = env.state(), shared
            noted = {**infos, "shared_states": before, "shared_next_states": shared}
        step = (act[0], actions, rest[0], following, *rest[1:], noted, t, timesteps)
        agent.record_transition(*tell("record", step))
        agent.post_interaction(t, timesteps)
        states = following


def everything(agent: Any) -> dict[str, Any]:
    """Copies of all that training changes: networks, targets, normalisers, optimizers, counters, and what is remembered."""
    memory = agent._storage.memory
    return copy.deepcopy(
        {
            "modules": {name: module.state_dict() for name, module in agent.checkpoint_modules().items()},
            "optimizers": [x.optimizers.state_dict() for x in agent.learners if x.optimizers is not None],
            "state": agent.checkpoint_state(),
            "memory": memory._contents(),
            "acting": agent._acting.memory,
        }
    )


def weights(agent: Any) -> Tensor:
    return torch.cat([learner.storage.data.flatten().clone() for learner in agent.learners])


def same(a: Any, b: Any) -> bool:
    """Whether two nests of tensors and plain values are equal to the last bit; NaN equals NaN."""
    if isinstance(a, Tensor):
        if not isinstance(b, Tensor) or a.shape != b.shape or a.dtype != b.dtype:
            return False
        return bool(torch.isclose(a, b, rtol=0, atol=0, equal_nan=a.is_floating_point()).all())
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def choices(n: int = 4) -> spaces.Discrete:
    return spaces.Discrete(n)
