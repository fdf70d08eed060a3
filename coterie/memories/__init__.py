"""Memories: named tensors over time and environments."""

from coterie.memories.base import Memory
from coterie.memories.episodes import EpisodeMemory
from coterie.memories.prioritized import PrioritizedMemory
from coterie.memories.random import RandomMemory
from coterie.memories.replay import ReplayMemory
from coterie.memories.window import Window

__all__ = ["EpisodeMemory", "Memory", "PrioritizedMemory", "RandomMemory", "ReplayMemory", "Window"]
