"""coterie: multi-agent reinforcement learning in PyTorch."""

from coterie._version import __version__
from coterie.envs import wrap_env
from coterie.seeding import set_seed

__all__ = ["__version__", "set_seed", "wrap_env"]
