"""Environments of other libraries brought under the contract of :class:`~coterie.envs.base.MultiAgentEnv`."""

from coterie.envs.wrappers.gymnasium import OneAgentTeam
from coterie.envs.wrappers.pettingzoo import PettingZooEnv
from coterie.envs.wrappers.tuple_team import TupleTeam
from coterie.envs.wrappers.turn_based import TurnBasedTeam
from coterie.envs.wrappers.vmas import VmasEnv
from coterie.envs.wrappers.wrap import wrap_env

__all__ = ["OneAgentTeam", "PettingZooEnv", "TupleTeam", "TurnBasedTeam", "VmasEnv", "wrap_env"]
