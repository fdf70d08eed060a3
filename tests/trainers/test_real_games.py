"""PettingZoo's own environments are trained on: agents that die, images, games played in turn with masked actions."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import pytest
import torch

from coterie import wrap_env
from coterie.agents import IPPO, MAPPO
from coterie.memories import RandomMemory
from coterie.models import build_models
from coterie.trainers import SequentialTrainer

#: module, options, steps of a rollout, rollouts, options of the models
GAMES: dict[str, tuple[str, dict[str, Any], int, int, dict[str, Any]]] = {
    "knights_archers_zombies": (
        "butterfly.knights_archers_zombies.knights_archers_zombies",
        {"spawn_delay": 4, "line_death": True, "max_cycles": 150},
        80,
        2,
        {},
    ),
    "pursuit": ("sisl.pursuit.pursuit", {"n_pursuers": 4, "n_evaders": 6, "max_cycles": 30}, 20, 2, {}),
    "pistonball": ("butterfly.pistonball.pistonball", {"n_pistons": 4, "max_cycles": 10}, 4, 2, {"cnn": (4, 4)}),
    "tictactoe": ("classic.tictactoe.tictactoe", {}, 32, 2, {}),
    "connect_four": ("classic.connect_four.connect_four", {}, 48, 2, {}),
    "texas_holdem": ("classic.rlcard_envs.texas_holdem", {}, 32, 2, {}),
}
TURN_BASED = {"tictactoe", "connect_four", "texas_holdem"}


def load(path: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Box2D's extension ends the process where its warnings are errors
            return importlib.import_module(f"pettingzoo.{path}")
    except ImportError as error:
        pytest.skip(f"{path}: {error}")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("rnn", [None, "gru"])
@pytest.mark.parametrize("algorithm", [MAPPO, IPPO])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "pistonball" else ()) for name in GAMES]
)
def test_it_is_trained_on(name: str, algorithm: type[MAPPO] | type[IPPO], rnn: str | None) -> None:
    path, options, rollouts, updates, models = GAMES[name]
    module = load(path)
    make = module.env if name in TURN_BASED else module.parallel_env
    torch.manual_seed(0)
    env = wrap_env(lambda: make(**options), num_envs=2, seed=0)
    team = build_models(env, algorithm.__name__.lower(), hidden=(32,), rnn=rnn, rnn_size=16, **models)
    before = {
        uid: torch.cat([p.detach().flatten() for p in roles["policy"].parameters()]) for uid, roles in team.items()
    }
    agent = algorithm(
        env.possible_agents,
        team,
        {uid: RandomMemory(rollouts, env.num_envs) for uid in env.possible_agents},
        env.observation_spaces,
        env.action_spaces,
        env.device,
        {
            "rollouts": rollouts,
            "learning_epochs": 2,
            "time_limit_bootstrap": True,
            "experiment": {"write_interval": 0, "checkpoint_interval": 0},
        },
        env.shared_observation_spaces,
    )
    cfg = {"timesteps": rollouts * updates, "headless": True, "disable_progressbar": True}
    SequentialTrainer(env, agent, cfg=cfg).train()
    for uid, roles in team.items():
        now = torch.cat([p.detach().flatten() for p in roles["policy"].parameters()])
        assert bool(now.isfinite().all())
        assert not torch.equal(now, before[uid])
        memory = agent.memories[uid]
        if name in TURN_BASED:  # one of two players has the move
            assert 0.3 < float(memory.get_tensor_by_name("active").float().mean()) < 0.7
    if name == "knights_archers_zombies":  # who has died has no part in what is left of the episode
        alive = torch.stack([agent.memories[uid].get_tensor_by_name("active") for uid in team])
        assert not bool(alive.all())
    env.close()
