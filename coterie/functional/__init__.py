"""Pure tensor maths: torch in, torch out."""

from coterie.functional.advantages import gae, masked_mean, multi_agent_gae, standardise
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
from coterie.functional.own_time import outcome_known
from coterie.functional.ppo import KL_ESTIMATORS, clipped_surrogate_loss, clipped_value_loss, kl_estimate
from coterie.functional.td import chosen_values, double_q_values, greedy_actions, td_loss, td_returns

__all__ = [
    "KL_ESTIMATORS",
    "bernoulli_entropy",
    "bernoulli_log_prob",
    "categorical_entropy",
    "categorical_kl",
    "categorical_log_prob",
    "categorical_sample",
    "chosen_values",
    "clipped_surrogate_loss",
    "clipped_value_loss",
    "double_q_values",
    "explained_variance",
    "gae",
    "greedy_actions",
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
    "td_loss",
    "td_returns",
]
