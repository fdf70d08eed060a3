"""Environments: the contract, wrappers for other libraries' environments, built-in batched tasks, and what changes one."""

from coterie.envs.base import EnvError, MultiAgentEnv
from coterie.envs.discrete_actions import DiscreteActions
from coterie.envs.last_action import LastAction
from coterie.envs.registry import make
from coterie.envs.wrappers import wrap_env

__all__ = ["DiscreteActions", "EnvError", "LastAction", "MultiAgentEnv", "make", "wrap_env"]
