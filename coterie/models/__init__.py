"""Models: the base class, the distribution mixins, ready-made networks and their batched execution."""

from coterie.models.base import Model
from coterie.models.build import build_models
from coterie.models.mixins import (
    BernoulliMixin,
    CategoricalMixin,
    DeterministicMixin,
    GaussianMixin,
    MultiCategoricalMixin,
    MultivariateGaussianMixin,
    TanhGaussianMixin,
)
from coterie.models.networks import (
    BernoulliPolicy,
    CategoricalPolicy,
    GaussianPolicy,
    MultiCategoricalPolicy,
    TanhGaussianPolicy,
    Value,
)
from coterie.models.perceptrons import mlp
from coterie.models.recurrent import GRU, LSTM
from coterie.models.scripted import ScriptedPolicy
from coterie.models.team_critics import TeamValue

__all__ = [
    "GRU",
    "LSTM",
    "BernoulliMixin",
    "BernoulliPolicy",
    "CategoricalMixin",
    "CategoricalPolicy",
    "DeterministicMixin",
    "GaussianMixin",
    "GaussianPolicy",
    "Model",
    "MultiCategoricalMixin",
    "MultiCategoricalPolicy",
    "MultivariateGaussianMixin",
    "ScriptedPolicy",
    "TanhGaussianMixin",
    "TanhGaussianPolicy",
    "TeamValue",
    "Value",
    "build_models",
    "mlp",
]
