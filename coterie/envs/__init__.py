"""Environments: the contract, wrappers for other libraries' environments, and built-in batched tasks."""

from coterie.envs.base import EnvError, MultiAgentEnv
from coterie.envs.registry import make
from coterie.envs.wrappers import wrap_env

__all__ = ["EnvError", "MultiAgentEnv", "make", "wrap_env"]
