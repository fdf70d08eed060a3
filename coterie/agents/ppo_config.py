"""The configuration that both forms of multi-agent PPO share: defaults, and what each key must be."""

from __future__ import annotations

from coterie.agents.config import (
    Config,
    Key,
    boolean,
    callable_or_none,
    integer,
    keyword_arguments,
    learning_rate,
    normaliser,
    number,
    one_of,
    optional,
    pair,
    scheduled,
)

__all__ = ["PPO_DEFAULT_CONFIG", "PPO_KEYS"]

# fmt: off
PPO_DEFAULT_CONFIG = Config({
    "rollouts": 16,                       # steps of each environment between updates
    "learning_epochs": 8,                 # passes over the rollout in an update
    "mini_batches": 2,                    # parts of each pass, one optimizer step each

    "discount_factor": 0.99,              # gamma
    "lambda": 0.95,                       # of generalised advantage estimation

    "learning_rate": 1e-3,                # of Adam; a pair (policy, value) gives each its own, clipped by itself; or a schedule
    "learning_rate_scheduler": None,      # class of a scheduler, stepped after each epoch (KLAdaptiveLR, or any of torch's)
    "learning_rate_scheduler_kwargs": {}, # its keyword arguments, e.g. {"kl_threshold": 0.008}

    "state_preprocessor": None,           # class of a normaliser of observations, e.g. RunningStandardScaler
    "state_preprocessor_kwargs": {},      # its keyword arguments; size and device are filled in where they are left out
    "value_preprocessor": None,           # class of a normaliser of returns, e.g. ValueNorm
    "value_preprocessor_kwargs": {},      # as above

    "random_timesteps": 0,                # steps at the start that act at random
    "learning_starts": 0,                 # step from which updates take place

    "grad_norm_clip": 0.5,                # bound of the gradient's norm, 0 for none
    "ratio_clip": 0.2,                    # clipping range of the probability ratio; a pair (below 1, above 1), or a schedule
    "value_clip": 0.2,                    # clipping range of value predictions
    "clip_predicted_values": False,       # whether to clip them
    "huber_delta": 0.0,                   # from where the value loss is linear (MAPPO's authors: 10), 0 for the squared error
    "advantage_normalization": "agent",   # over each agent's rollout, over the "group" that shares parameters, or "off"

    "entropy_loss_scale": 0.0,            # weight of the entropy bonus, or a schedule
    "value_loss_scale": 1.0,              # weight of the value loss
    "exploration_std": None,              # standard deviation of Gaussian policies, or a schedule; None leaves it to them

    "kl_threshold": 0,                    # end an update once an epoch's mean KL exceeds it, 0 for never
    "kl_estimator": "k3",                 # how it is estimated: "k1" -log w, "k2" (log w)^2 / 2, "k3" w - 1 - log w

    "rewards_shaper": None,               # function (rewards, timestep, timesteps) -> rewards, each [E, 1]
    "time_limit_bootstrap": False,        # value what lies beyond a truncation; False treats it as a termination

    "mixed_precision": False,             # run networks in bfloat16, all else in float32 (where there are units for it)
    "trainable": True,                    # whether to learn; False for teammates that act and are seen by critics only

    "experiment": {
        "directory": "",                  # where runs are kept; "" for ./runs
        "experiment_name": "",            # name of this run's folder; "" for date, time and algorithm
        "write_interval": "auto",         # steps between writings of metrics, "auto" for 100 in a run, 0 for never
        "checkpoint_interval": "auto",    # steps between checkpoints, "auto" for 10 in a run, 0 for never
        "store_separately": False,        # a checkpoint file for each model in place of one for all
        "wandb": False,                   # mirror the metrics to Weights & Biases
        "wandb_kwargs": {},               # keyword arguments of wandb.init
    },
})
# fmt: on

PPO_KEYS: dict[str, Key] = {
    "rollouts": integer(1, per_agent=False),
    "learning_epochs": integer(1),
    "mini_batches": integer(1),
    "discount_factor": number(0.0, 1.0),
    "lambda": number(0.0, 1.0),
    "learning_rate": learning_rate(),
    "learning_rate_scheduler": callable_or_none("a class of learning-rate schedulers"),
    "learning_rate_scheduler_kwargs": keyword_arguments(),
    "state_preprocessor": normaliser(),
    "state_preprocessor_kwargs": keyword_arguments(),
    "value_preprocessor": normaliser(),
    "value_preprocessor_kwargs": keyword_arguments(),
    "random_timesteps": integer(0),
    "learning_starts": integer(0),
    "grad_norm_clip": number(0.0),
    "ratio_clip": pair(scheduled(number(0.0, above=True)), "below 1, above 1"),
    "value_clip": scheduled(number(0.0, above=True)),
    "clip_predicted_values": boolean(),
    "huber_delta": number(0.0),
    "advantage_normalization": one_of("agent", "group", "off"),
    "entropy_loss_scale": scheduled(number(0.0)),
    "value_loss_scale": number(0.0),
    "exploration_std": optional(scheduled(number(0.0, above=True))),
    "kl_threshold": number(0.0),
    "kl_estimator": one_of("k1", "k2", "k3"),
    "rewards_shaper": callable_or_none("a function (rewards, timestep, timesteps) -> rewards"),
    "time_limit_bootstrap": boolean(),
    "mixed_precision": boolean(),
    "trainable": boolean(),
}
