"""Trainers: the loop between an environment and its agents."""

from coterie.trainers.sequential import SEQUENTIAL_TRAINER_DEFAULT_CONFIG, SequentialTrainer

__all__ = ["SEQUENTIAL_TRAINER_DEFAULT_CONFIG", "SequentialTrainer"]
