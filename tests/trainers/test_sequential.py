from __future__ import annotations

import copy
import csv
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from coterie.agents import IPPO, MAPPO
from coterie.agents.config import ConfigError
from coterie.envs import MultiAgentEnv, make
from coterie.memories import RandomMemory
from coterie.models import build_models
from coterie.trainers import SequentialTrainer

AGENTS = ["a", "b"]


class CountingEnv(MultiAgentEnv):
    """Copy e's episodes last ``lengths[e]`` steps; agent a earns 1 a step, agent b the copy's number; b's action is ignored.

    Episodes of even copies are terminated, of odd ones truncated. Observations are (copy, episode, step).
    """

    def __init__(self, lengths: tuple[int, ...] = (2, 3)) -> None:
        self.possible_agents = AGENTS
        self.num_envs = len(lengths)
        self.device = torch.device("cpu")
        self.observation_spaces: Mapping[str, gymnasium.Space] = {uid: spaces.Box(-100, 100, (3,)) for uid in AGENTS}
        self.action_spaces: Mapping[str, gymnasium.Space] = {uid: spaces.Discrete(2) for uid in AGENTS}
        self.shared_observation_spaces: Mapping[str, gymnasium.Space] = {
            uid: spaces.Box(-100, 100, (3,)) for uid in AGENTS
        }
        self.lengths = torch.tensor(lengths)
        self.closed = self.rendered = self.states = 0

    def observe(self) -> Tensor:
        return torch.stack([torch.arange(self.num_envs), self.episodes, self.steps], dim=1).float()

    def both(self, x: Tensor) -> dict[str, Tensor]:
        return {uid: x.clone() for uid in AGENTS}

    def reset(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        self.steps = torch.zeros(self.num_envs, dtype=torch.int64)
        self.episodes = torch.zeros(self.num_envs, dtype=torch.int64)
        return self.both(self.observe()), {}

    def state(self) -> Tensor:
        self.states += 1
        return self.observe()

    def step(self, actions: Mapping[str, Tensor]) -> Any:
        self.last_actions = {uid: action.clone() for uid, action in actions.items()}
        self.steps += 1
        ended = self.steps >= self.lengths
        infos: dict[str, Any] = {}
        if ended.any():
            infos = {"final_states": self.both(self.observe()), "final_shared_states": self.observe()}
        self.steps[ended] = 0
        self.episodes[ended] += 1
        even = torch.arange(self.num_envs) % 2 == 0
        rewards = {"a": torch.ones(self.num_envs, 1), "b": torch.arange(self.num_envs).float().unsqueeze(1)}
        flags = self.both((ended & even).unsqueeze(1)), self.both((ended & ~even).unsqueeze(1))
        return self.both(self.observe()), rewards, *flags, infos

    def render(self) -> None:
        self.rendered += 1

    def close(self) -> None:
        self.closed += 1


def team(env: MultiAgentEnv, kind: type[MAPPO] | type[IPPO] = MAPPO, rollouts: int = 4, **cfg: Any) -> Any:
    quiet = {"write_interval": 0, "checkpoint_interval": 0}
    return kind(
        env.possible_agents,
        build_models(env, kind.__name__.lower(), hidden=(8,)),
        {uid: RandomMemory(rollouts, env.num_envs) for uid in env.possible_agents},
        env.observation_spaces,
        env.action_spaces,
        env.device,
        {"rollouts": rollouts, "mini_batches": 1, "learning_epochs": 1, "experiment": quiet, **cfg},
        env.shared_observation_spaces,
    )


def quiet(timesteps: int = 8, **cfg: Any) -> dict[str, Any]:
    return {
        "timesteps": timesteps,
        "headless": True,
        "disable_progressbar": True,
        "close_environment_at_exit": False,
        **cfg,
    }


def test_hooks_are_called_in_order_and_see_consecutive_moments() -> None:
    env = CountingEnv()
    agent = team(env)
    calls: list[str] = []
    moments: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    for name in ("init", "pre_interaction", "act", "record_transition", "post_interaction", "_update"):
        original = getattr(agent, name)

        def hook(*args: Any, _name: str = name, _original: Any = original, **kwargs: Any) -> Any:
            calls.append(_name)
            if _name == "record_transition":
                infos = args[6]
                moments.append((args[0]["a"], args[3]["a"], infos["shared_states"], infos["shared_next_states"]))
            return _original(*args, **kwargs)

        setattr(agent, name, hook)
    SequentialTrainer(env, agent, cfg=quiet(4)).train()
    step = ["pre_interaction", "act", "record_transition", "post_interaction"]
    assert calls == ["init", *step * 4, "_update"]
    for now, following in itertools.pairwise(moments):
        assert torch.equal(now[1], following[0])
        assert torch.equal(now[3], following[2])
    for states, next_states, shared, shared_next in moments:
        assert torch.equal(states, shared)
        assert torch.equal(next_states, shared_next)
    # copy 0 (2 steps an episode) shows the first moment of its next episode after its second step
    assert moments[1][1][0].tolist() == [0.0, 1.0, 0.0]


def test_the_shared_state_is_asked_for_only_where_critics_see_it() -> None:
    env = CountingEnv()
    SequentialTrainer(env, team(env, IPPO), cfg=quiet(4)).train()
    assert env.states == 0
    SequentialTrainer(env, team(env, MAPPO), cfg=quiet(4)).train()
    assert env.states == 5  # once after the reset and once a step


def test_evaluation_counts_whole_episodes_of_every_copy_and_agent() -> None:
    env = CountingEnv((2, 3))
    results = SequentialTrainer(env, team(env), cfg=quiet()).eval(episodes=4)
    # two episodes from each copy, though copy 0 has ended three by the time copy 1 has ended two
    assert results["episodes"] == 4
    assert sorted(results["lengths"].tolist()) == [2, 2, 3, 3]
    # a: 1 a step; b: 0 in copy 0, 1 a step in copy 1; team returns 2, 2, 6, 6
    assert results["agents"] == {"a": pytest.approx(2.5), "b": pytest.approx(1.5)}
    assert results["mean"] == pytest.approx(4.0)
    assert results["std"] == pytest.approx(2.0)
    assert sorted(results["returns"].tolist()) == [[2.0, 0.0], [2.0, 0.0], [3.0, 3.0], [3.0, 3.0]]


def test_evaluation_takes_the_mode_of_discrete_policies_and_samples_only_when_asked() -> None:
    env = CountingEnv((5,) * 64)
    agent = team(env)
    with torch.no_grad():  # action 1 is more probable, but not by much
        for p in agent.models["a"]["policy"].net[-1].parameters():
            p.zero_()
        agent.models["a"]["policy"].net[-1].bias[1] = 0.1
    trainer = SequentialTrainer(env, agent, cfg=quiet())
    trainer.eval(episodes=64)
    assert env.last_actions["a"].eq(1).all()
    trainer = SequentialTrainer(env, agent, cfg=quiet(stochastic_evaluation=True))
    trainer.eval(episodes=64)
    assert 5 < int(env.last_actions["a"].sum()) < 59


def test_evaluation_leaves_training_as_if_it_had_not_been() -> None:
    def train(evaluations: int) -> tuple[dict[str, Tensor], Tensor]:
        torch.manual_seed(0)
        env = make("particle/simple_spread", num_envs=4, seed=1)
        agent = team(env, state_preprocessor=None)
        eval_env = make("particle/simple_spread", num_envs=2, seed=2)
        trainer = SequentialTrainer(
            env, agent, cfg=quiet(12, evaluation_interval=evaluations, evaluation_episodes=2), eval_env=eval_env
        )
        trainer.train()
        return copy.deepcopy(agent.models["agent_0"]["policy"].state_dict()), torch.rand(3)

    (without, numbers), (often, same_numbers) = train(0), train(3)
    assert torch.equal(numbers, same_numbers)
    for name, value in without.items():
        assert torch.equal(value, often[name])


def test_evaluation_gives_the_running_mode_back() -> None:
    env = CountingEnv()
    agent = team(env)
    trainer = SequentialTrainer(env, agent, cfg=quiet())
    agent.set_running_mode("train")
    trainer.eval(episodes=2)
    assert agent.training
    agent.set_running_mode("eval")
    trainer.eval(episodes=2)
    assert not agent.training


def test_an_evaluation_that_cannot_end_gives_up() -> None:
    env = CountingEnv((2, 1000))
    trainer = SequentialTrainer(env, team(env), cfg=quiet(evaluation_timesteps=20))
    with pytest.raises(RuntimeError, match="evaluation_timesteps"):
        trainer.eval(episodes=2)


def test_periodic_evaluation_is_recorded_and_the_best_agent_kept(tmp_path: Path) -> None:
    env, eval_env = CountingEnv(), CountingEnv()
    agent = team(
        env,
        experiment={
            "directory": str(tmp_path),
            "experiment_name": "run",
            "write_interval": 2,
            "checkpoint_interval": 100,
        },
    )
    trainer = SequentialTrainer(
        env, agent, cfg=quiet(8, evaluation_interval=4, evaluation_episodes=2), eval_env=eval_env
    )
    trainer.train()
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    # one episode each: team returns 2 (copy 0) and 3 + 3 (copy 1)
    assert [(row["timestep"], row["evaluation_return"]) for row in rows if row["evaluation_return"]] == [
        ("4", "4"),
        ("8", "4"),
    ]
    assert (tmp_path / "run" / "checkpoints" / "best_agent.pt").exists()
    assert agent.best_checkpoint == tmp_path / "run" / "checkpoints" / "best_agent.pt"


def test_rendering_follows_headless() -> None:
    env = CountingEnv()
    SequentialTrainer(env, team(env), cfg=quiet(3)).train()
    assert env.rendered == 0
    SequentialTrainer(env, team(env), cfg={**quiet(3), "headless": False}).train()
    assert env.rendered == 3


def test_an_environment_without_a_renderer_says_what_to_set() -> None:
    env = CountingEnv()

    def render() -> None:
        raise NotImplementedError

    env.render = render  # type: ignore[method-assign]
    with pytest.raises(NotImplementedError, match=r"nothing to render with.*cfg\['headless'\] to True.*render_mode"):
        SequentialTrainer(env, team(env), cfg={**quiet(3), "headless": False}).train()


@pytest.mark.parametrize("episodes", [0, -1])
def test_an_evaluation_of_nothing_is_refused(episodes: int) -> None:
    env = CountingEnv()
    with pytest.raises(ValueError, match=f"episodes: expected at least 1 to evaluate, got {episodes}"):
        SequentialTrainer(env, team(env), cfg=quiet(3)).eval(episodes=episodes)


@pytest.mark.parametrize("kind", [MAPPO, IPPO])
def test_memories_for_another_number_of_environments_are_named(kind: Any) -> None:
    env = CountingEnv()
    agent = kind(
        AGENTS, build_models(env, kind.__name__.lower(), hidden=(8,)), {uid: RandomMemory(4, 8) for uid in AGENTS},
        cfg={"rollouts": 4, "experiment": {"write_interval": 0, "checkpoint_interval": 0}},
        shared_observation_spaces=env.shared_observation_spaces,
    )  # fmt: skip
    with pytest.raises(
        ValueError, match=r"expected steps of 8 environments, for .* memories .* got steps of 2: .*num_envs=2"
    ):
        SequentialTrainer(env, agent, cfg=quiet(4)).train()


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({"timestep": 5}, "timesteps"),
        ({"timesteps": -1}, "timesteps"),
        ({"timesteps": 1.5}, "timesteps"),
        ({"headless": 1}, "headless"),
        ({"evaluation_interval": 5}, "eval_env"),
        ([], "dict"),
    ],
)
def test_a_bad_configuration_is_refused(cfg: Any, message: str) -> None:
    env = CountingEnv()
    with pytest.raises(ConfigError, match=message):
        SequentialTrainer(env, team(env), cfg=cfg)


def test_environment_and_agents_must_fit() -> None:
    env = CountingEnv()
    agent = team(env)
    with pytest.raises(TypeError, match="wrap_env"):
        SequentialTrainer(object(), agent)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="MAPPO"):
        SequentialTrainer(env, {"a": agent})  # type: ignore[arg-type]
    env.possible_agents = ["a", "c"]
    with pytest.raises(ValueError, match="'c'"):
        SequentialTrainer(env, agent)


def test_training_without_memories_is_refused() -> None:
    env = CountingEnv()
    models = build_models(env, "mappo", hidden=(8,))
    agent = MAPPO(AGENTS, models, cfg={"experiment": {"write_interval": 0, "checkpoint_interval": 0}})
    trainer = SequentialTrainer(env, agent, cfg=quiet())
    with pytest.raises(ValueError, match=r"expected memories for \['a', 'b'\].*memories=None.*trainable.*eval\(\)"):
        trainer.train()
    assert trainer.eval(episodes=2)["episodes"] == 2  # to play is fine
    # a team in which nobody learns needs none
    models = build_models(env, "mappo", hidden=(8,))
    idle = MAPPO(
        AGENTS, models, cfg={"trainable": False, "experiment": {"write_interval": 0, "checkpoint_interval": 0}}
    )
    SequentialTrainer(env, idle, cfg=quiet()).train()


def test_training_again_does_not_follow_on_a_rollout_that_was_not_completed() -> None:
    env = CountingEnv((100, 100))
    agent = team(env, rollouts=4)
    SequentialTrainer(env, agent, cfg=quiet(3)).train()  # three of the four rows
    updates: list[int] = []
    agent._update = lambda timestep, timesteps: updates.append(timestep)
    SequentialTrainer(env, agent, cfg=quiet(4)).train()
    assert updates == [3]
    # all rows are of the second training: steps 0 to 3 of the episode that its reset began
    states = agent.memories["a"].get_tensor_by_name("states")
    assert states[:, 0, 2].tolist() == [0.0, 1.0, 2.0, 3.0]
