"""Agents: one file per algorithm, on a common base."""

from coterie.agents.base import MultiAgent
from coterie.agents.ippo import IPPO, IPPO_DEFAULT_CONFIG
from coterie.agents.iql import IQL, IQL_DEFAULT_CONFIG
from coterie.agents.mappo import MAPPO, MAPPO_DEFAULT_CONFIG
from coterie.agents.qmix import QMIX, QMIX_DEFAULT_CONFIG
from coterie.agents.vdn import VDN, VDN_DEFAULT_CONFIG

__all__ = [
    "IPPO",
    "IPPO_DEFAULT_CONFIG",
    "IQL",
    "IQL_DEFAULT_CONFIG",
    "MAPPO",
    "MAPPO_DEFAULT_CONFIG",
    "QMIX",
    "QMIX_DEFAULT_CONFIG",
    "VDN",
    "VDN_DEFAULT_CONFIG",
    "MultiAgent",
]
