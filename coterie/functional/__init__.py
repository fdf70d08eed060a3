"""Pure tensor maths: torch in, torch out."""

from coterie.functional.advantages import gae, standardise
from coterie.functional.distributions import (
    categorical_entropy,
    categorical_log_prob,
    categorical_sample,
    normal_entropy,
    normal_log_prob,
    tanh_log_derivative,
    tanh_normal_entropy,
)
from coterie.functional.ppo import clipped_surrogate_loss, clipped_value_loss, kl_estimate

__all__ = [
    "categorical_entropy",
    "categorical_log_prob",
    "categorical_sample",
    "clipped_surrogate_loss",
    "clipped_value_loss",
    "gae",
    "kl_estimate",
    "normal_entropy",
    "normal_log_prob",
    "standardise",
    "tanh_log_derivative",
    "tanh_normal_entropy",
]
