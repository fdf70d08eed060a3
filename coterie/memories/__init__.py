"""Memories: named tensors over time and environments."""

from coterie.memories.base import Memory
from coterie.memories.random import RandomMemory

__all__ = ["Memory", "RandomMemory"]
