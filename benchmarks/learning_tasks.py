"""The tasks of ``learning.py``: environments, what is known of their returns, and settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from coterie import wrap_env
from coterie.agents import IPPO, IQL, MAPPO, QMIX, VDN
from coterie.agents.value_learning import ValueLearner
from coterie.envs import MultiAgentEnv, make
from coterie.models import DeterministicMixin, Model, TeamValue
from coterie.preprocessors import ValueNorm
from coterie.schedulers import LinearSchedule
from coterie.spaces import flat_size

ALGORITHMS = {"mappo": MAPPO, "ippo": IPPO, "qmix": QMIX, "vdn": VDN, "iql": IQL}

Models = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Task:
    """One run's settings.

    :param environment: makes the environment from a number of copies and a seed
    :param known: what is known of its returns
    :param goal: the return to reach
    :param timesteps: steps of the vectorised environment
    :param sampled: whether evaluations sample actions rather than taking the most probable ones
    :param models: options of ``build_models``
    :param change_models: what is done to the models afterwards
    :param of_one: whether the return is one agent's (all share their reward) rather than the sum over agents
    :param memory_size: rows of each environment that are kept; the rollout's, for those that learn from rollouts
    """

    environment: Callable[[int, int], MultiAgentEnv]
    known: str
    goal: float
    timesteps: int
    num_envs: int = 64
    algorithm: str = "mappo"
    models: dict[str, Any] = field(default_factory=dict)
    change_models: Callable[[MultiAgentEnv, Models], Models] | None = None
    cfg: dict[str, Any] = field(default_factory=dict)
    sampled: bool = False
    of_one: bool = False
    memory_size: int | None = None

    def settings(self) -> dict[str, Any]:
        """Configuration of the agents, but for where they write."""
        settings = VALUE_SETTINGS if issubclass(ALGORITHMS[self.algorithm], ValueLearner) else SETTINGS
        cfg = {**settings, **self.cfg}
        cfg["learning_rate"] = LinearSchedule(cfg["learning_rate"], 0.05 * cfg["learning_rate"])
        if self.models.get("critic") in ("pooled", "attention"):
            cfg["critic_input"] = "observations"
        return cfg


def built_in(name: str, **options: Any) -> Callable[[int, int], MultiAgentEnv]:
    return lambda num_envs, seed: make(name, num_envs=num_envs, seed=seed, **options)


def foraging(num_envs: int, seed: int) -> MultiAgentEnv:
    import gymnasium
    import lbforaging  # noqa: F401 (registers its environments)

    def one() -> gymnasium.Env:
        return gymnasium.make("Foraging-8x8-2p-2f-coop-v3", disable_env_checker=True)

    return wrap_env(one, num_envs=num_envs, seed=seed)


class WithinGroup(DeterministicMixin, Model):
    """Critics of groups by themselves: each sees the observations of its own group, and nobody else's.

    It takes all agents' observations and returns all agents' values, as a critic across groups does.
    """

    values_per_agent = True

    def __init__(self, env: MultiAgentEnv, groups: Sequence[Sequence[str]], pooling: str) -> None:
        sizes = [flat_size(env.observation_spaces[uid]) for uid in env.possible_agents]
        Model.__init__(self, sum(sizes), None)
        DeterministicMixin.__init__(self)
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        self.critics = torch.nn.ModuleList()
        self.members: list[list[int]] = []
        self.columns: list[list[int]] = []
        for group in groups:
            own = [env.possible_agents.index(uid) for uid in group]
            self.members.append(own)
            self.columns.append([c for i in own for c in range(starts[i], starts[i] + sizes[i])])
            self.critics.append(TeamValue({uid: env.observation_spaces[uid] for uid in group}, pooling))

    def compute(self, inputs: Any, role: str = "") -> tuple[Any, ...]:
        states = inputs["states"]
        values = torch.zeros(len(states), sum(map(len, self.members)))
        for critic, own, columns in zip(self.critics, self.members, self.columns, strict=True):
            values[:, own] = critic.compute({"states": states[:, columns]})[0]
        return values, {}


def flee(states: Tensor, action_masks: Tensor | None) -> Tensor:  # noqa: ARG001 (the form that scripts have)
    """A prey's rule in simple_tag, for three predators and two obstacles: away from the nearest one, back from the edge."""
    position, others = states[:, 2:4], states[:, 8:14].unflatten(1, (3, 2))
    nearest = others.norm(dim=-1).argmin(dim=1)
    away = -others[torch.arange(len(states)), nearest]
    away = away / away.norm(dim=1, keepdim=True).clamp_min(1e-6) - 2.0 * position * (position.abs() > 0.8)
    along_y = away[:, 1].abs() > away[:, 0].abs()
    upwards, rightwards = away[:, 1] > 0, away[:, 0] > 0
    return torch.where(along_y, 3 + upwards.long(), 1 + rightwards.long()).unsqueeze(1)


def hunt(env: MultiAgentEnv, models: Models) -> Models:
    """Predators that learn, against a prey that flees."""
    prey = [uid for uid in env.possible_agents if uid.startswith("agent")]
    return {uid: {"policy": flee} if uid in prey else roles for uid, roles in models.items()}


def within_groups(env: MultiAgentEnv, models: Models) -> Models:
    """A critic for each group of agents with equal observations, in place of the one across them."""
    kinds = {str(env.observation_spaces[uid]): [] for uid in env.possible_agents}
    for uid in env.possible_agents:
        kinds[str(env.observation_spaces[uid])].append(uid)
    critic = WithinGroup(env, list(kinds.values()), "attention")
    return {uid: {"policy": roles["policy"], "value": critic} for uid, roles in models.items()}


def hunt_within_groups(env: MultiAgentEnv, models: Models) -> Models:
    return hunt(env, within_groups(env, models))


REPEATED: dict[str, Any] = {
    "num_envs": 32,
    "timesteps": 10_000,
    "cfg": {"rollouts": 25, "learning_epochs": 10, "learning_rate": 5e-4, "entropy_loss_scale": 0.01},
}

REPEATED_VALUES: dict[str, Any] = {
    "timesteps": 3_000,
    "models": {"hidden": (32, 32)},
    "memory_size": 250,
}

RECALL: dict[str, Any] = {
    "timesteps": 2800,
    "cfg": {"rollouts": 28, "learning_epochs": 5, "learning_rate": 1e-3, "entropy_loss_scale": 0.01},
}

SPEAKER: dict[str, Any] = {
    "environment": built_in("particle/simple_speaker_listener"),
    "goal": -16.0,
    "timesteps": 10_000,
    "models": {"critic": "attention"},
    "cfg": {"entropy_loss_scale": 0.03},
}

TAG: dict[str, Any] = {
    "environment": built_in("particle/simple_tag"),
    "goal": 0.0,
    "timesteps": 10_000,
    "models": {"critic": "attention"},
    "of_one": True,
}

#: games of one repeated move: their name, what is known, the published return, and options
REPEATED_GAMES: dict[str, tuple[str, str, float, dict[str, Any]]] = {
    "climbing": ("climbing", "best 275; safe equilibrium 175, where most published methods end", 175.0, {}),
    "penalty-0": ("penalty", "best 250", 250.0, {"penalty": 0.0}),
    "penalty-25": ("penalty", "best 250, safe 50", 50.0, {"penalty": -25.0}),
    "penalty-100": ("penalty", "best 250, safe 50", 50.0, {"penalty": -100.0}),
}


def repeated(algorithm: str, **settings: Any) -> dict[str, Task]:
    """The repeated games for an algorithm; those of MAPPO by the game's name alone."""
    return {
        name if algorithm == "mappo" else f"{name}-{algorithm}": Task(
            built_in(f"matrix/{game}", **options), known, goal, algorithm=algorithm, of_one=True, **settings
        )
        for name, (game, known, goal, options) in REPEATED_GAMES.items()
    }


TASKS: dict[str, Task] = {
    "foraging": Task(
        foraging,
        "level-based foraging 8x8-2p-2f-coop, all food is 1.0; MAPPO 1.00 after 20M steps (Papoudakis et al. 2021)",
        goal=0.97,
        timesteps=30_000,
        num_envs=16,
        models={"critic": "heads"},
        cfg={
            "rollouts": 50,
            "discount_factor": 0.99,
            "learning_epochs": 5,
            "mini_batches": 2,
            "entropy_loss_scale": 0.01,
        },
        sampled=True,
    ),
    "speaker_listener": Task(
        built_in("particle/simple_speaker_listener"),
        "no communication -31, oracle -14.6 (sum of both agents)",
        goal=-16.0,
        timesteps=20_000,
        models={"hidden": (64, 64)},
        cfg={"entropy_loss_scale": 0.03},
    ),
    **repeated("mappo", **REPEATED),
    **repeated("qmix", **REPEATED_VALUES),
    **repeated("vdn", **REPEATED_VALUES),
    **repeated("iql", **REPEATED_VALUES),
    "recall-gru": Task(
        built_in("memory/recall"), "best 2.0, without memory 1.0", goal=1.95, models={"rnn": "gru"}, **RECALL
    ),
    "recall-lstm": Task(
        built_in("memory/recall"), "best 2.0, without memory 1.0", goal=1.95, models={"rnn": "lstm"}, **RECALL
    ),
    "speaker_listener-across": Task(known="a critic of both agents", **SPEAKER),
    "speaker_listener-within": Task(
        known="critics that see their own agent only: the speaker's does not know where the listener is",
        change_models=within_groups,
        **SPEAKER,
    ),
    "tag-across": Task(
        known="three predators after a scripted prey, all seen by the critic; return of a predator",
        change_models=hunt,
        **TAG,
    ),
    "tag-within": Task(known="the same with a critic of the predators alone", change_models=hunt_within_groups, **TAG),
    "recall-mlp": Task(built_in("memory/recall"), "best 2.0, without memory 1.0", goal=0.9, **RECALL),
}

SETTINGS: dict[str, Any] = {
    "rollouts": 25,
    "learning_epochs": 10,
    "mini_batches": 4,
    "learning_rate": 1e-3,
    "discount_factor": 0.95,
    "value_preprocessor": ValueNorm,
    "clip_predicted_values": True,
    "grad_norm_clip": 10.0,
    "time_limit_bootstrap": True,
}

VALUE_SETTINGS: dict[str, Any] = {
    "batch_size": 512,
    "discount_factor": 0.9,
    "learning_rate": 3e-3,
    "target_update_interval": 100,
    "exploration_epsilon": LinearSchedule(1.0, 0.05, fraction=0.1),
    "learning_starts": 50,
}
