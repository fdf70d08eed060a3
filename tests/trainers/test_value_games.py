"""QMIX, VDN and IQL are trained for some steps on every kind of environment that there is."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

from coterie import wrap_env
from coterie.envs import DiscreteActions, LastAction, MultiAgentEnv, make
from coterie.memories import EpisodeMemory, PrioritizedMemory, ReplayMemory
from coterie.models import build_models
from coterie.preprocessors import RunningScale, RunningStandardScaler
from coterie.trainers import SequentialTrainer
from tests.agents.toys import OFF
from tests.agents.value_runs import KINDS
from tests.envs.games import vmas
from tests.trainers.test_real_games import load

ENVS = 3


def built_in(name: str, **options: Any) -> Callable[[], MultiAgentEnv]:
    return lambda: make(name, num_envs=ENVS, seed=0, **options)


def foraging() -> MultiAgentEnv:
    pytest.importorskip("lbforaging")
    import gymnasium

    return wrap_env(lambda: gymnasium.make("Foraging-5x5-2p-1f-v3", max_episode_steps=12), num_envs=2, seed=0)


def pettingzoo(path: str, parallel: bool = True, **options: Any) -> Callable[[], MultiAgentEnv]:
    def opened() -> MultiAgentEnv:
        module = load(path)
        return wrap_env(lambda: (module.parallel_env if parallel else module.env)(**options), num_envs=2, seed=0)

    return opened


def vmas_with_choices() -> MultiAgentEnv:
    return LastAction(DiscreteActions(vmas(), bins=3))


KNIGHTS = "butterfly.knights_archers_zombies.knights_archers_zombies"

#: environment, algorithms, steps, the memory, what models are built with, and what else is configured
GAMES: dict[str, tuple[Callable[[], MultiAgentEnv], str, int, Any, dict[str, Any], dict[str, Any]]] = {
    "spread": (built_in("particle/simple_spread"), "qmix vdn iql", 40, ReplayMemory, {}, {"n_step": 2}),
    "spread, remembering": (
        lambda: LastAction(make("particle/simple_spread", num_envs=ENVS, seed=0)),
        "qmix",
        40,
        ReplayMemory,
        {"rnn": "gru", "rnn_size": 8, "sequence_length": 5, "agent_id": True},
        {"burn_in": 2, "td_lambda": 0.6},
    ),
    "tag": (built_in("particle/simple_tag"), "qmix iql", 30, PrioritizedMemory, {}, {"reward": "sum"}),
    "reference": (
        lambda: DiscreteActions(make("particle/simple_reference", num_envs=ENVS, seed=0)),
        "vdn",
        30,
        ReplayMemory,
        {},
        {},
    ),
    "speaker": (built_in("particle/simple_speaker_listener"), "qmix vdn", 30, EpisodeMemory, {}, {"td_lambda": 0.8}),
    "climbing": (built_in("matrix/climbing"), "qmix vdn iql", 30, EpisodeMemory, {}, {}),
    "two steps": (built_in("matrix/two_step"), "qmix", 20, ReplayMemory, {"mixer": "attention"}, {}),
    "recall": (
        built_in("memory/recall"),
        "vdn",
        30,
        EpisodeMemory,
        {"rnn": "lstm", "rnn_size": 8, "sequence_length": 5},
        {},
    ),
    "foraging": (foraging, "qmix vdn iql", 30, ReplayMemory, {}, {}),
    "knights": (
        pettingzoo(KNIGHTS, spawn_delay=4, line_death=True, max_cycles=150),
        "qmix iql",
        110,
        ReplayMemory,
        {"rnn": "gru", "rnn_size": 8, "sequence_length": 6},
        {"update_interval": 10},
    ),
    "pursuit": (
        pettingzoo("sisl.pursuit.pursuit", n_pursuers=4, n_evaders=6, max_cycles=12),
        "vdn",
        20,
        ReplayMemory,
        {},
        {"update_interval": 5},
    ),
    "tictactoe": (
        pettingzoo("classic.tictactoe.tictactoe", parallel=False),
        "iql vdn",
        40,
        PrioritizedMemory,
        {},
        {"n_step": 2, "state_preprocessor": None},
    ),
    "vmas": (vmas_with_choices, "qmix iql", 15, ReplayMemory, {}, {}),
}

CASES = [(name, kind) for name, (_, kinds, *_) in GAMES.items() for kind in kinds.split()]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_it_is_trained_on(name: str, kind: str) -> None:
    opened, _, steps, memory, options, cfg = GAMES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        env = opened()
    if kind == "iql" and "reward" not in cfg:
        cfg = {**cfg, "reward": "individual"}
    if kind != "qmix":
        options = {key: value for key, value in options.items() if key != "mixer"}
    models = build_models(env, kind, hidden=(16,), **options)
    agent = KINDS[kind](
        env.possible_agents,
        models,
        {uid: memory(60, env.num_envs, seed=1) for uid in env.possible_agents},
        env.observation_spaces,
        env.action_spaces,
        env.device,
        {
            "batch_size": 3,
            "target_update_interval": 2,
            "state_preprocessor": RunningStandardScaler,
            "reward_preprocessor": RunningScale,
            "experiment": OFF,
            **cfg,
        },
        env.shared_observation_spaces,
    )
    trained = {id(model): model for roles in models.values() for model in roles.values()}.values()
    before = [torch.cat([p.detach().flatten().clone() for p in model.parameters()]) for model in trained]
    trainer_cfg = {"timesteps": steps, "headless": True, "disable_progressbar": True}
    trainer = SequentialTrainer(env, agent, cfg=trainer_cfg)
    trainer.train()
    for model, old in zip(trained, before, strict=True):
        now = torch.cat([p.detach().flatten() for p in model.parameters()])
        assert bool(now.isfinite().all())
        assert not torch.equal(now, old), type(model).__name__
    shown = agent.memories[env.possible_agents[0]]
    names = shown.get_tensor_names()
    if name == "tictactoe":  # one of two has the move, on what is empty
        assert 0.3 < float(shown.get_tensor_by_name("active").float().mean()) < 0.7
        flat = agent._storage.memory
        allowed, actions = (
            flat.get_tensor_by_name(f"{what}/{env.possible_agents[0]}") for what in ("action_masks", "actions")
        )
        acts = flat.get_tensor_by_name(f"active/{env.possible_agents[0]}")
        steps_taken = (flat._columns.flags & 1).bool().view(60, -1, 1, 1)
        assert bool((allowed.gather(-1, actions) | ~(acts & steps_taken)).all())
    elif name == "knights":
        everyone = torch.stack([agent.memories[uid].get_tensor_by_name("active") for uid in env.possible_agents])
        assert not bool(everyone.all()), "somebody died"
    elif name == "climbing":
        assert "active" not in names
        assert trainer.eval(episodes=6)["episodes"] == 6
    env.close()
