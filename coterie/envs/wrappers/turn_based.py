"""A PettingZoo AEC environment, whose agents act in turn, seen as one that is stepped by a whole team."""

from __future__ import annotations

from typing import Any

import gymnasium
from pettingzoo.utils.env import AECEnv

__all__ = ["TurnBasedTeam"]


class TurnBasedTeam:
    """Steps an ``AECEnv`` the way a PettingZoo parallel environment is stepped: one step is one agent's turn.

    - Only :attr:`turn` acts; the actions of others are ignored. Everyone in :attr:`agents` observes and earns.
    - Rewards are what this very step brought (``env.rewards``), not what an agent gathered since it last acted.
    - The steps with ``None`` that an AEC environment wants for agents that are out of the game are taken in here. At the
      end of a game they come with the next :meth:`reset`, so that until then the environment shows its last state.

    :param env: the environment
    """

    def __init__(self, env: AECEnv) -> None:
        self.env = env
        self.possible_agents = getattr(env, "possible_agents", None)
        #: agents that are in the game, whether it is their turn or not
        self.agents: list[str] = []
        #: the agent that acts next; after the end of a game, nobody
        self.turn: str | None = None
        #: after the end of a game, the agent whose turn it would have been
        self.last_turn: str | None = None
        self._over = False  # the game has ended, and the last steps of the dead are due

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.env})"

    @property
    def unwrapped(self) -> Any:
        """The environment at the core of its wrappers."""
        return self.env.unwrapped

    @property
    def state_space(self) -> gymnasium.Space:
        """Space of :meth:`state`, where the environment says it."""
        return self.env.state_space

    def observation_space(self, agent: str) -> gymnasium.Space:
        """Observation space of ``agent``."""
        return self.env.observation_space(agent)

    def action_space(self, agent: str) -> gymnasium.Space:
        """Action space of ``agent``."""
        return self.env.action_space(agent)

    def reset(self, seed: int | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start a game and return ``(observations, infos)`` of everyone in it."""
        if self._over:
            self._over = False
            self._pass_over_the_dead()
        if seed is None:
            self.env.reset()
        else:
            self.env.reset(seed=seed)
        self._pass_over_the_dead()
        self._note_turn()
        return {n: self.env.observe(n) for n in self.agents}, {n: self.env.infos.get(n, {}) for n in self.agents}

    def step(self, actions: dict[str, Any]) -> tuple[dict[str, Any], ...]:
        """Let :attr:`turn` act and return observations, rewards, terminations, truncations and infos.

        They have everyone who was in the game before, and who has joined it.
        """
        env, before = self.env, self.agents
        env.step(actions[env.agent_selection])
        rewards = dict(env.rewards)
        flags = dict(env.terminations), dict(env.truncations)
        leaving = [name for name in env.agents if self._dead(name)]
        observations = {name: env.observe(name) for name in leaving}
        infos = {name: env.infos.get(name, {}) for name in leaving}
        self._over = len(leaving) == len(env.agents)
        if self._over:
            self.agents, self.turn, self.last_turn = [], None, self._after_the_dead()
        else:
            self._pass_over_the_dead()
            self._note_turn()
            for values, present in zip(flags, (env.terminations, env.truncations), strict=True):
                values.update(present)
            # now that the turn is settled, so that the agent that moves gets its action mask
            rest = [name for name in env.agents if name not in leaving]
            observations.update((name, env.observe(name)) for name in rest)
            infos.update((name, env.infos.get(name, {})) for name in rest)
        concerned = {*before, *self.agents}
        results = (observations, rewards, *flags, infos)
        return tuple({name: value for name, value in result.items() if name in concerned} for result in results)

    def state(self) -> Any:
        """Return the environment's own state, where it has one."""
        return self.env.state()

    def render(self) -> Any:
        """Return what the environment renders."""
        return self.env.render()

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def _dead(self, name: str) -> bool:
        return bool(self.env.terminations[name] or self.env.truncations[name])

    def _after_the_dead(self) -> str:
        """The agent that is selected, or, where the dead take their last steps first, would be after these."""
        following = getattr(self.unwrapped, "_skip_agent_selection", None)  # where AECEnv._deads_step_first keeps it
        return str(self.env.agent_selection if following is None else following)

    def _pass_over_the_dead(self) -> None:
        """Take the steps that the environment wants for agents that are out, until the turn is somebody else's."""
        env = self.env
        for _ in range(len(env.agents)):
            if not env.agents or not self._dead(env.agent_selection):
                return
            env.step(None)
        if env.agents and self._dead(env.agent_selection):
            raise RuntimeError(
                f"agent {env.agent_selection!r} is terminated or truncated, and still selected after step(None); an AEC "
                "environment removes such an agent then: call self._was_dead_step(action)"
            )

    def _note_turn(self) -> None:
        """Keep who is in the game, and whose turn it is."""
        env = self.env
        self.agents = [name for name in env.agents if not self._dead(name)]
        if self.agents and env.agent_selection not in self.agents:
            raise RuntimeError(f"agent_selection is {env.agent_selection!r}; expected one of env.agents, {env.agents}")
        self.turn = env.agent_selection if self.agents else None
