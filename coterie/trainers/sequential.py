"""The sequential trainer: one loop, in which agents act and learn, or merely act."""

from __future__ import annotations

import atexit
import contextlib
import math
import sys
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from coterie.agent_tensors import AgentTensors, stack_agents
from coterie.agents.base import MultiAgent
from coterie.agents.config import Config, ConfigError, Key, boolean, check_config, integer
from coterie.agents.masks import Masks, blank
from coterie.envs.base import MultiAgentEnv
from coterie.episodes import EpisodeCounter

__all__ = ["SEQUENTIAL_TRAINER_DEFAULT_CONFIG", "SequentialTrainer"]

# fmt: off
SEQUENTIAL_TRAINER_DEFAULT_CONFIG = Config({
    "timesteps": 100000,                # steps of the vectorised environment
    "headless": False,                  # whether to leave rendering out
    "disable_progressbar": False,       # whether to leave the progress bar out
    "close_environment_at_exit": True,  # whether to close the environment when the program ends
    "environment_info": "episode",      # accepted for compatibility, without effect
    "stochastic_evaluation": False,     # whether evaluation samples actions rather than taking the most probable ones

    "evaluation_interval": 0,           # steps between evaluations during training, 0 for none
    "evaluation_episodes": 32,          # episodes of an evaluation
    "evaluation_timesteps": 100000,     # steps after which an evaluation whose episodes do not end gives up
})
# fmt: on

_KEYS: dict[str, Key] = {
    "timesteps": integer(0, per_agent=False),
    "headless": boolean(per_agent=False),
    "disable_progressbar": boolean(per_agent=False),
    "close_environment_at_exit": boolean(per_agent=False),
    "environment_info": Key("a string", lambda v: isinstance(v, str), per_agent=False),
    "stochastic_evaluation": boolean(per_agent=False),
    "evaluation_interval": integer(0, per_agent=False),
    "evaluation_episodes": integer(1, per_agent=False),
    "evaluation_timesteps": integer(1, per_agent=False),
}


class _Step(NamedTuple):
    """One step of an environment, each by agent."""

    timestep: int
    rewards: Mapping[str, Tensor]
    terminated: Mapping[str, Tensor]
    truncated: Mapping[str, Tensor]
    masks: Masks
    """Who took part."""


def _columns(values: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    """Stack ``[E, 1]`` (or ``[E]``) by agent into ``[E, A]``."""
    return stack_agents(values, names).flatten(1)


class SequentialTrainer:
    """Drives an environment with a team of agents.

    :param env: the environment (see :class:`MultiAgentEnv`)
    :param agents: the agents
    :param agents_scope: accepted for compatibility; must be empty
    :param cfg: what differs from :data:`SEQUENTIAL_TRAINER_DEFAULT_CONFIG`
    :param eval_env: a second environment for evaluations, so that those during training leave ``env`` alone

    :raises ConfigError: a bad configuration, or evaluations during training without ``eval_env``
    :raises TypeError: agents or environments of the wrong kind
    :raises ValueError: agents and environment that differ in names
    """

    def __init__(
        self,
        env: MultiAgentEnv,
        agents: MultiAgent,
        agents_scope: list[int] | None = None,
        cfg: Mapping[str, Any] | None = None,
        eval_env: MultiAgentEnv | None = None,
    ) -> None:
        if agents_scope:
            raise ValueError(
                f"agents_scope: one team acts in all environments, expected None or [], got {agents_scope}"
            )
        for name, candidate in (("env", env), ("eval_env", eval_env)):
            if not isinstance(candidate, MultiAgentEnv) and not (name == "eval_env" and candidate is None):
                raise TypeError(
                    f"{name}: expected a MultiAgentEnv, got {type(candidate).__name__}; use coterie.wrap_env"
                )
        if not isinstance(agents, MultiAgent):
            raise TypeError(f"agents: expected a MultiAgent such as MAPPO, got {type(agents).__name__}")
        if list(env.possible_agents) != agents.possible_agents:
            raise ValueError(f"the environment has the agents {env.possible_agents}, the team {agents.possible_agents}")
        self.cfg = check_config(SEQUENTIAL_TRAINER_DEFAULT_CONFIG, cfg, _KEYS)
        if self.cfg["evaluation_interval"] and eval_env is None:
            raise ConfigError(
                "evaluation_interval: evaluating during training needs an environment of its own, eval_env"
            )
        self.env = env
        self.agents = agents
        self.eval_env = eval_env
        self.timesteps = int(self.cfg["timesteps"])
        if self.cfg["close_environment_at_exit"]:
            for opened in (env, eval_env):
                if opened is not None:
                    _close_at_exit(opened)

    def train(self) -> None:
        """Train for ``cfg["timesteps"]`` steps of the vectorised environment.

        Beside the progress bar, the size of the steps that are kept to learn from is shown, before they take room.

        :raises ValueError: there are agents to train, and no memories to learn from
        """
        if self.agents.memories is None and self.agents.learning_agents:
            raise ValueError(
                f"train: expected memories for {self.agents.learning_agents} to learn from, the team was built with "
                "memories=None; pass some to the agent, set cfg['trainable'] to False for a team that does not learn, or call "
                "eval() to play only"
            )
        size = self.agents.memory_bytes
        if size and not self.cfg["disable_progressbar"]:
            tqdm.write(f"memory of steps: {size / 2**20:,.2f} MiB on {self.agents.device}", file=sys.stderr)
        self.agents.init(self.cfg)
        self.agents.set_running_mode("train")
        for step in self._loop(self.env, self.timesteps, training=True):
            self._evaluate_when_due(step.timestep + 1)

    def eval(self, episodes: int | None = None) -> dict[str, Any]:
        """Play whole episodes with the most probable actions and count their returns.

        Nothing is recorded or learned, and torch's random numbers go on as if nothing was played. Episodes are played in
        ``eval_env`` where there is one; otherwise in ``env``, whose running episodes are lost. Every copy contributes the
        same number of episodes, so that short ones are not over-represented.

        :param episodes: how many to play at least, ``cfg["evaluation_episodes"]`` by default

        :return: ``"mean"`` and ``"std"`` of the team's return (the sum over agents), ``"agents"`` with each agent's mean,
            ``"episodes"``, ``"returns"`` (float64 ``[N, A]``) and ``"lengths"`` (int64 ``[N]``)

        :raises ValueError: fewer than one episode
        :raises RuntimeError: episodes do not end within ``cfg["evaluation_timesteps"]`` steps
        """
        env = self.eval_env or self.env
        names = env.possible_agents
        wanted = self.cfg["evaluation_episodes"] if episodes is None else episodes
        if wanted < 1:
            raise ValueError(f"episodes: expected at least 1 to evaluate, got {wanted}")
        quota = math.ceil(wanted / env.num_envs)
        was_training = self.agents.training
        self.agents.set_running_mode("eval")
        counter = EpisodeCounter(env.num_envs, names, env.device)
        played = torch.zeros(env.num_envs, dtype=torch.int64, device=env.device)
        returns: list[Tensor] = []
        lengths: list[Tensor] = []
        try:
            with _undisturbed_random_numbers(self.agents.device):
                for step in self._loop(env, self.cfg["evaluation_timesteps"], training=False):
                    ended = (_columns(step.terminated, names) | _columns(step.truncated, names)).all(dim=1)
                    earned = blank(stack_agents(step.rewards, names), step.masks.present(names)).flatten(1)
                    finished = counter.add(earned, ended)
                    if finished is None:
                        continue
                    counts = played[ended] < quota
                    returns.append(finished[0][counts])
                    lengths.append(finished[1][counts])
                    played += ended
                    if bool((played >= quota).all()):
                        break
                else:
                    raise RuntimeError(
                        f"only {int(played.sum())} of {quota * env.num_envs} episodes ended within "
                        f"{self.cfg['evaluation_timesteps']} steps; raise evaluation_timesteps"
                    )
        finally:
            self.agents.set_running_mode("train" if was_training else "eval")
        by_agent = torch.cat(returns)
        team = by_agent.sum(dim=1)
        return {
            "mean": float(team.mean()),
            "std": float(team.std(correction=0)),
            "agents": dict(zip(names, by_agent.mean(dim=0).tolist(), strict=True)),
            "episodes": len(team),
            "returns": by_agent,
            "lengths": torch.cat(lengths),
        }

    def _evaluate_when_due(self, timestep: int) -> None:
        interval = self.cfg["evaluation_interval"]
        if interval and (timestep % interval == 0 or timestep == self.timesteps):
            self.agents.record_evaluation(self.eval(), timestep, self.timesteps)

    def _loop(self, env: MultiAgentEnv, timesteps: int, training: bool) -> Iterator[_Step]:
        """Play, and in training learn; yields what each step gave."""
        agents = self.agents
        shared = training and agents.uses_shared_states
        stochastic = training or self.cfg["stochastic_evaluation"]
        states, infos = env.reset()
        shared_states = _state_of(env) if shared else None
        hidden = not training or self.cfg["disable_progressbar"]
        progress = tqdm(
            range(timesteps), disable=hidden, unit=" env steps", unit_scale=env.num_envs, dynamic_ncols=True
        )
        for timestep in progress:
            if training:
                agents.pre_interaction(timestep, timesteps)
            actions, _, outputs = agents.act(states, timestep, timesteps, infos=infos)
            if not stochastic:
                actions = {uid: outputs[uid].get("mean_actions", actions[uid]) for uid in env.possible_agents}
            masks = Masks(infos)
            next_states, rewards, terminated, truncated, infos = env.step(actions)
            if training:
                step_infos = infos
                if shared_states is not None:
                    shared_next = env.state()
                    step_infos = {**infos, "shared_states": shared_states, "shared_next_states": shared_next}
                    shared_states = shared_next
                agents.record_transition(
                    states, actions, rewards, next_states, terminated, truncated, step_infos, timestep, timesteps
                )
                agents.post_interaction(timestep, timesteps)
                if not hidden and agents.recent_return is not None:
                    progress.set_postfix({"return": f"{agents.recent_return:.2f}"}, refresh=False)
            if not self.cfg["headless"]:
                _render(env)
            yield _Step(timestep, rewards, terminated, truncated, masks)
            states = next_states
            if not training:  # what training is told by record_transition
                names = env.possible_agents
                ended = (_columns(terminated, names) | _columns(truncated, names)).unsqueeze(-1)
                present = masks.present(names)
                if present is not None:  # an absent agent's end means nothing until the whole episode is over
                    ended = ended & (present | ended.all(dim=1, keepdim=True))
                infos = {**infos, "episode_starts": AgentTensors.single(names, ended)}


def _render(env: MultiAgentEnv) -> None:
    try:
        env.render()
    except NotImplementedError as error:
        raise NotImplementedError(
            "the environment has nothing to render with: set the trainer's cfg['headless'] to True, or build the environment "
            "with a render_mode"
        ) from error


def _state_of(env: MultiAgentEnv) -> Tensor | None:
    """The shared state of the present moment; None where the environment has none (agents then make do with observations)."""
    try:
        return env.state()
    except NotImplementedError:
        return None


def _close_at_exit(env: MultiAgentEnv) -> None:
    """Close ``env`` when the program ends, without keeping it alive until then."""
    reference = weakref.ref(env)

    def close() -> None:
        opened = reference()
        if opened is not None:
            opened.close()

    atexit.register(close)


@contextlib.contextmanager
def _undisturbed_random_numbers(device: torch.device) -> Iterator[None]:
    """Give back torch's generators as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
