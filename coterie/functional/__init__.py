"""Pure tensor maths: torch in, torch out."""

from coterie.functional.advantages import gae, masked_mean, multi_agent_gae, outcome_known, standardise
from coterie.functional.diagnostics import explained_variance, is_clipped
from coterie.functional.distributions import (
    bernoulli_entropy,
    bernoulli_log_prob,
    categorical_entropy,
    categorical_kl,
    categorical_log_prob,
    categorical_sample,
    normal_entropy,
    normal_kl,
    normal_log_prob,
    tanh_log_derivative,
    tanh_normal_entropy,
)
from coterie.functional.ppo import KL_ESTIMATORS, clipped_surrogate_loss, clipped_value_loss, kl_estimate

__all__ = [
    "KL_ESTIMATORS",
    "bernoulli_entropy",
    "bernoulli_log_prob",
    "categorical_entropy",
    "categorical_kl",
    "categorical_log_prob",
    "categorical_sample",
    "clipped_surrogate_loss",
    "clipped_value_loss",
    "explained_variance",
    "gae",
    "is_clipped",
    "kl_estimate",
    "masked_mean",
    "multi_agent_gae",
    "normal_entropy",
    "normal_kl",
    "normal_log_prob",
    "outcome_known",
    "standardise",
    "tanh_log_derivative",
    "tanh_normal_entropy",
]
