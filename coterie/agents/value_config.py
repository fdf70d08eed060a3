"""The configuration that the learners of action values share: defaults, and what each key must be."""

from __future__ import annotations

from coterie.agents.config import (
    Config,
    Key,
    boolean,
    callable_or_none,
    integer,
    keyword_arguments,
    normaliser,
    number,
    one_of,
    scheduled,
)
from coterie.agents.ppo_config import PPO_DEFAULT_CONFIG
from coterie.schedulers import LinearSchedule

__all__ = ["MIXED_KEYS", "VALUE_DEFAULT_CONFIG", "VALUE_KEYS"]

# fmt: off
VALUE_DEFAULT_CONFIG = Config({
    "batch_size": 32,                     # what an update draws: steps, sequences or episodes, as the memory and the models are
    "update_interval": 1,                 # steps of each environment between updates
    "gradient_steps": 1,                  # draws of an update, one optimizer step each

    "discount_factor": 0.99,              # gamma
    "n_step": 1,                          # steps after which the target takes a value
    "td_lambda": 0.0,                     # lambda of TD(lambda) targets, for sequences and episodes; 0 for one step (or n_step)
    "double_q": True,                     # whether the online network chooses the action that the target network values
    "burn_in": 0,                         # steps ahead of a sequence that only warm recurrent models up

    "target_update_interval": 200,        # optimizer steps between updates of the target networks
    "polyak": 1.0,                        # part of the way that these go towards the online ones, 1 for copying them

    "exploration_epsilon": LinearSchedule(1.0, 0.05, fraction=0.1),  # probability of an action at random, or a schedule
    "random_timesteps": 0,                # steps at the start that act at random
    "learning_starts": 0,                 # step from which updates take place, once there is enough to draw from

    "learning_rate": 5e-4,                # of Adam, or a schedule
    "learning_rate_scheduler": None,      # class of a scheduler of torch's, stepped after each optimizer step
    "learning_rate_scheduler_kwargs": {}, # its keyword arguments
    "grad_norm_clip": 10.0,               # bound of the gradient's norm, 0 for none
    "huber_delta": 0.0,                   # from where the loss is linear, 0 for the squared error

    "state_preprocessor": None,           # class of a normaliser of observations, e.g. RunningStandardScaler
    "state_preprocessor_kwargs": {},      # its keyword arguments; size and device are filled in where they are left out

    "reward": "mean",                     # what is learned from: the "mean" or "sum" of those who are there
    "rewards_shaper": None,               # function (rewards, timestep, timesteps) -> rewards, each [E, 1]
    "reward_preprocessor": None,          # class of a normaliser of rewards, e.g. RunningScale
    "reward_preprocessor_kwargs": {},     # its keyword arguments, as above
    "time_limit_bootstrap": True,         # value what lies beyond a truncation; False treats it as a termination

    "mixed_precision": False,             # run networks in bfloat16, all else in float32 (where there are units for it)
    "trainable": True,                    # whether to learn; False for teammates that act only

    "experiment": PPO_DEFAULT_CONFIG.copy()["experiment"],
})
# fmt: on

VALUE_KEYS: dict[str, Key] = {
    "batch_size": integer(1),
    "update_interval": integer(1),
    "gradient_steps": integer(1),
    "discount_factor": number(0.0, 1.0),
    "n_step": integer(1),
    "td_lambda": number(0.0, 1.0),
    "double_q": boolean(),
    "burn_in": integer(0),
    "target_update_interval": integer(1),
    "polyak": number(0.0, 1.0, above=True),
    "exploration_epsilon": scheduled(number(0.0, 1.0)),
    "random_timesteps": integer(0),
    "learning_starts": integer(0),
    "learning_rate": scheduled(number(0.0, above=True)),
    "learning_rate_scheduler": callable_or_none("a class of learning-rate schedulers"),
    "learning_rate_scheduler_kwargs": keyword_arguments(),
    "grad_norm_clip": number(0.0),
    "huber_delta": number(0.0),
    "state_preprocessor": normaliser(),
    "state_preprocessor_kwargs": keyword_arguments(),
    "reward": one_of("mean", "sum", per_agent=False),
    "rewards_shaper": callable_or_none("a function (rewards, timestep, timesteps) -> rewards"),
    "reward_preprocessor": normaliser(),
    "reward_preprocessor_kwargs": keyword_arguments(),
    "time_limit_bootstrap": boolean(),
    "mixed_precision": boolean(),
    "trainable": boolean(),
}

#: keys that agents whose values are mixed must agree on, beside those of their optimizer
MIXED_KEYS = ("discount_factor", "huber_delta", "time_limit_bootstrap")
