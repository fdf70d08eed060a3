"""Models: the base class, the distribution mixins, ready-made networks and their batched execution."""

from coterie.models.base import Model
from coterie.models.build import build_models
from coterie.models.mixers import AttentionMixer, Mixer, QMIXMixer
from coterie.models.mixins import (
    BernoulliMixin,
    CategoricalMixin,
    DeterministicMixin,
    GaussianMixin,
    MultiCategoricalMixin,
    MultivariateGaussianMixin,
    QMixin,
    TanhGaussianMixin,
)
from coterie.models.networks import (
    BernoulliPolicy,
    CategoricalPolicy,
    GaussianPolicy,
    MultiCategoricalPolicy,
    QNetwork,
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
    "AttentionMixer",
    "BernoulliMixin",
    "BernoulliPolicy",
    "CategoricalMixin",
    "CategoricalPolicy",
    "DeterministicMixin",
    "GaussianMixin",
    "GaussianPolicy",
    "Mixer",
    "Model",
    "MultiCategoricalMixin",
    "MultiCategoricalPolicy",
    "MultivariateGaussianMixin",
    "QMIXMixer",
    "QMixin",
    "QNetwork",
    "ScriptedPolicy",
    "TanhGaussianMixin",
    "TanhGaussianPolicy",
    "TeamValue",
    "Value",
    "build_models",
    "mlp",
]
