"""Gymnasium environments of a whole team: Tuple spaces, a list of rewards, one flag for the end.

Level-based foraging (``lbforaging``) and the multi-robot warehouse (``rware``) are of this kind::

    import gymnasium
    import lbforaging  # registers Foraging-8x8-2p-2f-coop-v3 and its like, with 1 to 4 foods
    from coterie import wrap_env

    def make():
        # Gymnasium's checker would warn of the list of rewards
        return gymnasium.make("Foraging-8x8-2p-2f-coop-v3", disable_env_checker=True)

    env = wrap_env(make, num_envs=16, seed=0)

Other settings go to the class itself: ``lbforaging.foraging.ForagingEnv(max_num_food=6, ...)``; likewise
``gymnasium.make("rware-tiny-2ag-v2", disable_env_checker=True)`` and ``rware.warehouse.Warehouse(...)``.
"""

from __future__ import annotations

from typing import Any

import gymnasium
from gymnasium import spaces

from coterie.envs.base import EnvError
from coterie.envs.wrappers.gymnasium import OneAgentTeam

__all__ = ["ForagingTeam", "TupleTeam", "WarehouseTeam", "as_team"]


class TupleTeam:
    """Steps a ``gymnasium.Env`` of n agents the way a PettingZoo parallel environment is stepped.

    - Agents are ``agent_0`` to ``agent_{n-1}``; the parts of the Tuple spaces are their spaces.
    - Rewards are the environment's own, one float for each agent. The flags of an end and the infos are everyone's.
    - It has no shared state, so the agents' observations stand in for one.

    An environment that terminates when its time is up needs a subclass whose :meth:`finished` says whether the task is
    done; hand its objects, or a function that makes one, to :func:`~coterie.envs.wrappers.wrap.wrap_env`.

    :param env: the environment; both its spaces are Tuples with one part for each agent

    :raises TypeError: it has other spaces
    """

    def __init__(self, env: gymnasium.Env) -> None:
        parts = _parts(env)
        if parts is None:
            raise TypeError(
                "expected an environment with a Tuple observation space and a Tuple action space of one part for each "
                f"agent, got {env.observation_space} and {env.action_space} in {env}"
            )
        self.env = env
        self.possible_agents = [f"agent_{i}" for i in range(len(parts[0]))]
        self.agents: list[str] = []
        self._observation_spaces, self._action_spaces = (
            dict(zip(self.possible_agents, part, strict=True)) for part in parts
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.env})"

    def finished(self) -> bool:
        """Return whether the task is done, asked when the environment terminates; if not, that was the time limit."""
        return True

    def observation_space(self, agent: str) -> gymnasium.Space:
        """Observation space of ``agent``."""
        return self._observation_spaces[agent]

    def action_space(self, agent: str) -> gymnasium.Space:
        """Action space of ``agent``."""
        return self._action_spaces[agent]

    def reset(self, seed: int | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode and return ``(observations, infos)``.

        :raises EnvError: the environment returned something else than an observation for each agent
        """
        observations, info = self.env.reset(seed=seed)
        self.agents = self.possible_agents[:]
        return self._by_agent("observations", observations), dict.fromkeys(self.possible_agents, info)

    def step(self, actions: dict[str, Any]) -> tuple[dict[str, Any], ...]:
        """Step and return observations, rewards, terminations, truncations and infos.

        :raises EnvError: the environment returned something else than an observation and a reward for each agent
        """
        names = self.possible_agents
        choice = tuple([actions[name] for name in names])
        observations, rewards, terminated, truncated, info = self.env.step(choice)
        if terminated and not self.finished():
            terminated, truncated = False, True
        if terminated or truncated:
            self.agents = []
        return (
            self._by_agent("observations", observations),
            {name: float(reward) for name, reward in self._by_agent("rewards", rewards).items()},
            dict.fromkeys(names, terminated),
            dict.fromkeys(names, truncated),
            dict.fromkeys(names, info),
        )

    def render(self) -> Any:
        """Return what the environment renders."""
        return self.env.render()

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def _by_agent(self, what: str, values: Any) -> dict[str, Any]:
        count = len(values) if hasattr(values, "__len__") else None
        if count != len(self.possible_agents):
            got = repr(values) if count is None else f"{count} of them"
            raise EnvError(f"expected {what} of {len(self.possible_agents)} agents, got {got}; one for each is needed")
        return dict(zip(self.possible_agents, values, strict=True))


class ForagingTeam(TupleTeam):
    """Level-based foraging, ``lbforaging.foraging.ForagingEnv``, put right in two places.

    - It terminates when ``max_episode_steps`` is reached as it does when all food is collected. Here the former, with food
      left, is a truncation.
    - It places players where no player stood in the *previous* episode, so that a seed gives different episodes to
      a new and to a used environment. Here a reset with a seed gives those of a new one. (Resets without a seed are as the
      environment makes them, and depend on the previous episode.)

    :param env: the environment
    """

    def finished(self) -> bool:
        return not self.env.unwrapped.field.any()  # type: ignore[attr-defined]

    def reset(self, seed: int | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        if seed is not None:
            for player in self.env.unwrapped.players:  # type: ignore[attr-defined]
                player.position = None
        return super().reset(seed)


class WarehouseTeam(TupleTeam):
    """The multi-robot warehouse, ``rware.warehouse.Warehouse``, put right in one place.

    Its work never ends, but it terminates after ``max_steps``, or ``max_inactivity_steps`` without a delivery. Here
    both are truncations.

    :param env: the environment
    """

    def finished(self) -> bool:
        return False


#: who needs a team of its own, by the class's full name, so that nothing has to be imported
_SPECIAL: dict[str, type[TupleTeam]] = {
    "lbforaging.foraging.environment.ForagingEnv": ForagingTeam,
    "rware.warehouse.Warehouse": WarehouseTeam,
}


def _parts(env: gymnasium.Env) -> tuple[spaces.Tuple, spaces.Tuple] | None:
    """Return the observation and the action space if both are Tuples, with as many parts."""
    observed, chosen = env.observation_space, env.action_space
    if isinstance(observed, spaces.Tuple) and isinstance(chosen, spaces.Tuple) and len(observed) == len(chosen):
        return observed, chosen
    return None


def as_team(env: gymnasium.Env) -> OneAgentTeam | TupleTeam:
    """Return what steps ``env`` like a parallel environment: a team of n where its spaces are Tuples, of one elsewhere."""
    if _parts(env) is None:
        return OneAgentTeam(env)
    for base in type(env.unwrapped).__mro__:
        special = _SPECIAL.get(f"{base.__module__}.{base.__qualname__}")
        if special is not None:
            return special(env)
    return TupleTeam(env)
