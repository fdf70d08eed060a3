"""Agents: one file per algorithm, on a common base."""

from coterie.agents.base import MultiAgent
from coterie.agents.ippo import IPPO, IPPO_DEFAULT_CONFIG
from coterie.agents.mappo import MAPPO, MAPPO_DEFAULT_CONFIG

__all__ = ["IPPO", "IPPO_DEFAULT_CONFIG", "MAPPO", "MAPPO_DEFAULT_CONFIG", "MultiAgent"]
