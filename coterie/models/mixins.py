"""Mixins that turn what a model computes into actions, log-probabilities and entropies."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import torch
from torch import Tensor

from coterie.models.base import Model
from coterie.models.distributions import (
    REDUCTIONS,
    Bernoulli,
    Categorical,
    Distribution,
    EpsilonGreedy,
    Interval,
    MultiCategorical,
    Normal,
    TanhNormal,
)

__all__ = [
    "BernoulliMixin",
    "CategoricalMixin",
    "DeterministicMixin",
    "GaussianMixin",
    "MultiCategoricalMixin",
    "MultivariateGaussianMixin",
    "QMixin",
    "StochasticMixin",
    "TanhGaussianMixin",
    "computed_tensors",
]


def computed_tensors(output: Any, model: object) -> tuple[Tensor, ...]:
    """Take the tensors out of what ``compute`` returned.

    :raises TypeError: ``compute`` returned anything but a tuple that starts with a tensor
    """
    tensors = tuple(item for item in output if isinstance(item, Tensor)) if isinstance(output, Sequence) else ()
    if not tensors:
        raise TypeError(
            f"{type(model).__name__}.compute returned {type(output).__name__}: expected a tuple, (mean, log_std, {{}}) for a "
            "Gaussian policy, (logits, {}) for a categorical one, (q, {}) for action values, (value, {}) for a critic"
        )
    return tensors


def _refuse_masks(action_masks: Tensor | None, policy: object, kind: str) -> None:
    if action_masks is not None:
        raise ValueError(
            f"{type(policy).__name__}: {kind} has no action masks: expected a Discrete or MultiDiscrete action space, or "
            "infos without 'action_masks' for the agent"
        )


def _check_width(output: Tensor, policy: Model, what: str) -> None:
    """Refuse outputs ``[..., n]`` that are not one for each action: a wrong number of them would broadcast, or be drawn from.

    :raises ValueError: there are more or fewer
    """
    if output.shape[-1] != policy.num_actions:
        raise ValueError(
            f"{type(policy).__name__}.compute returned {what} {list(output.shape)}: expected one for each of the "
            f"{policy.num_actions} actions of {policy.action_space} (self.num_actions)"
        )


class StochasticMixin(Model):
    """Base of the policies' mixins: everything but the choice of the distribution."""

    _last: dict[str, Distribution]

    def __getstate__(self) -> dict[str, Any]:
        """A copy does not bring the last call along, nor the graph that hangs on it."""
        return {name: value for name, value in self.__dict__.items() if name != "_last"}

    @abstractmethod
    def make_distribution(self, tensors: Sequence[Tensor], action_masks: Tensor | None = None) -> Distribution:
        """Build the action distribution from the tensors that ``compute`` returned, ``[..., n]`` each.

        :param action_masks: bool ``[..., n]``, False where an action is forbidden; for Discrete and MultiDiscrete spaces

        :raises ValueError: masks of another form, or for other spaces
        """

    def settings(self) -> tuple[Any, ...]:
        """Whatever of this mixin changes the distribution: models are batched together only where it is equal."""
        return ()

    def act(self, inputs: Mapping[str, Any], role: str = "") -> tuple[Tensor, Tensor | None, dict[str, Any]]:
        """Sample actions, or evaluate ``inputs["taken_actions"]``, among those that ``inputs["action_masks"]`` allows (bool
        ``[B, n]``, for Discrete and MultiDiscrete spaces).

        :return: actions ``[B, n]`` as the environment takes them, their log-probability ``[B, 1]``, and a dict with
            ``"mean_actions"``, the actions of the distribution's mode ``[B, n]``, beside what ``compute`` put into its own.
            ``"taken_actions"`` are latent ones: those that were drawn, before any clipping or squashing.
        """
        output = self.compute(inputs, role)
        tensors, masks = computed_tensors(output, self), inputs.get("action_masks")
        # a mixin of one's own need not know of masks
        distribution = self.make_distribution(tensors) if masks is None else self.make_distribution(tensors, masks)
        self._last = {**getattr(self, "_last", {}), role: distribution}
        latent = inputs.get("taken_actions")
        if latent is None:
            latent = distribution.sample()
        outputs = dict(output[-1]) if isinstance(output[-1], Mapping) else {}
        outputs["mean_actions"] = distribution.actions(distribution.mode())
        return distribution.actions(latent), distribution.log_prob(latent), outputs

    def distribution(self, role: str = "") -> Distribution:
        """The distribution of the last call of :meth:`act`.

        :raises RuntimeError: :meth:`act` has not been called for this role
        """
        last = getattr(self, "_last", {})
        if role not in last:
            raise RuntimeError(f"call act(inputs, role={role!r}) before asking for its distribution")
        return last[role]

    def get_entropy(self, role: str = "") -> Tensor:
        """Entropy ``[B, 1]`` of the last call of :meth:`act`."""
        return self.distribution(role).entropy()


class GaussianMixin(StochasticMixin):
    """Independent normals: ``compute`` returns ``mean [B, n], log_std ([n] or [B, n]), {}``.

    :param clip_actions: clip what goes to the environment to the bounds of the action space; log-probabilities stay those
        of the drawn values
    :param clip_log_std: clamp ``log_std`` to ``[min_log_std, max_log_std]``
    :param reduction: ``"sum"``, ``"mean"``, ``"prod"`` or ``"none"``: how action dimensions combine in the log-probability
    :param role: accepted for compatibility, without effect

    :raises ValueError: an unknown reduction, or an empty range for ``log_std``
    """

    def __init__(
        self,
        clip_actions: bool = False,
        clip_log_std: bool = True,
        min_log_std: float = -20.0,
        max_log_std: float = 2.0,
        reduction: str = "sum",
        role: str = "",
    ) -> None:
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduction: expected one of {REDUCTIONS}, got {reduction!r}")
        if clip_log_std and not min_log_std <= max_log_std:
            raise ValueError(f"expected min_log_std <= max_log_std, got {min_log_std} and {max_log_std}")
        self._clip_log_std = bool(clip_log_std)
        self._log_std_range = (float(min_log_std), float(max_log_std))
        self._reduction = reduction
        self._clip_actions = bool(clip_actions) and isinstance(self.action_space, gymnasium.spaces.Box)
        self._bounds = self.box_bounds() if self._clip_actions else None

    def settings(self) -> tuple[Any, ...]:
        return self._clip_actions, self._clip_log_std, self._log_std_range, self._reduction

    def _log_std(self, log_std: Tensor) -> Tensor:
        return log_std.clamp(*self._log_std_range) if self._clip_log_std else log_std

    def make_distribution(
        self, tensors: Sequence[Tensor], action_masks: Tensor | None = None, std: float | Tensor | None = None
    ) -> Distribution:
        """See :meth:`StochasticMixin.make_distribution`.

        :param std: standard deviations in place of the policy's own (which may then be left out), as they are: a positive
            number, or a tensor that broadcasts to the means
        """
        mean, log_std = self._parameters_of(tensors, action_masks, std)
        return Normal(mean, log_std, self._bounds, self._reduction)

    def _parameters_of(
        self, tensors: Sequence[Tensor], action_masks: Tensor | None, std: float | Tensor | None
    ) -> tuple[Tensor, Tensor]:
        _refuse_masks(action_masks, self, "a Gaussian")
        mean = tensors[0]
        _check_width(mean, self, "means")
        if std is not None:
            if not isinstance(std, Tensor) and not std > 0.0:
                raise ValueError(f"std: expected a positive number, got {std}")
            return mean, torch.as_tensor(std, dtype=mean.dtype, device=mean.device).log().expand_as(mean)
        if len(tensors) < 2:
            raise TypeError(
                f"{type(self).__name__}.compute must return (mean, log_std, {{}}), got {len(tensors)} tensor(s)"
            )
        if tensors[1].dim() and tensors[1].shape[-1] != 1:  # one number may stand for all actions
            _check_width(tensors[1], self, "log_std")
        return mean, self._log_std(tensors[1])

    def get_log_std(self, role: str = "") -> Tensor:
        """Logarithm of the standard deviation of the last call of :meth:`act`, expanded to ``[B, n]``."""
        distribution = self.distribution(role)
        assert distribution.std is not None
        return distribution.std.log().expand_as(distribution.mean)


class MultivariateGaussianMixin(GaussianMixin):
    """A multivariate normal with a diagonal covariance: ``compute`` returns ``mean [B, n], log_std ([n] or [B, n]), {}``.

    With a diagonal covariance the joint density is the product of the dimensions' densities, so this is
    :class:`GaussianMixin` with the reduction fixed to the sum.
    """

    def __init__(
        self,
        clip_actions: bool = False,
        clip_log_std: bool = True,
        min_log_std: float = -20.0,
        max_log_std: float = 2.0,
        role: str = "",
    ) -> None:
        GaussianMixin.__init__(self, clip_actions, clip_log_std, min_log_std, max_log_std, "sum", role)


class TanhGaussianMixin(GaussianMixin):
    """Normals squashed into the bounds of the action space: ``compute`` returns ``mean [B, n], log_std, {}`` before tanh.

    :raises ValueError: the action space is not a bounded Box
    """

    def __init__(
        self,
        clip_log_std: bool = True,
        min_log_std: float = -20.0,
        max_log_std: float = 2.0,
        reduction: str = "sum",
        role: str = "",
    ) -> None:
        GaussianMixin.__init__(self, False, clip_log_std, min_log_std, max_log_std, reduction, role)
        bounds = self.box_bounds()
        if bounds is None or not all(bool(torch.isfinite(bound).all()) for bound in bounds):
            raise ValueError(f"a tanh-squashed Gaussian needs a bounded Box action space, got {self.action_space}")
        self._interval = Interval(*bounds)

    def make_distribution(
        self, tensors: Sequence[Tensor], action_masks: Tensor | None = None, std: float | Tensor | None = None
    ) -> Distribution:
        mean, log_std = self._parameters_of(tensors, action_masks, std)
        return TanhNormal(mean, log_std, self._interval, self._reduction)


class CategoricalMixin(StochasticMixin):
    """One discrete choice: ``compute`` returns ``logits [B, n], {}``.

    :param unnormalized_log_prob: whether ``compute`` returns logits (True) or probabilities (False)
    :param role: accepted for compatibility, without effect
    """

    def __init__(self, unnormalized_log_prob: bool = True, role: str = "") -> None:
        self._unnormalized_log_prob = bool(unnormalized_log_prob)

    def settings(self) -> tuple[Any, ...]:
        return (self._unnormalized_log_prob,)

    def _logits(self, output: Tensor) -> Tensor:
        _check_width(output, self, "logits" if self._unnormalized_log_prob else "probabilities")
        return output if self._unnormalized_log_prob else output.clamp_min(torch.finfo(output.dtype).tiny).log()

    def make_distribution(self, tensors: Sequence[Tensor], action_masks: Tensor | None = None) -> Distribution:
        return Categorical(self._logits(tensors[0]), action_masks)


class MultiCategoricalMixin(CategoricalMixin):
    """Several independent discrete choices: ``compute`` returns ``logits [B, sum(nvec)], {}``.

    :param unnormalized_log_prob: whether ``compute`` returns logits (True) or probabilities (False)
    :param reduction: ``"sum"``, ``"mean"``, ``"prod"`` or ``"none"``: how choices combine in the log-probability
    :param role: accepted for compatibility, without effect

    :raises ValueError: an unknown reduction
    :raises TypeError: the action space is not MultiDiscrete
    """

    def __init__(self, unnormalized_log_prob: bool = True, reduction: str = "sum", role: str = "") -> None:
        CategoricalMixin.__init__(self, unnormalized_log_prob, role)
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduction: expected one of {REDUCTIONS}, got {reduction!r}")
        if not isinstance(self.action_space, gymnasium.spaces.MultiDiscrete):
            raise TypeError(f"expected a MultiDiscrete action space, got {self.action_space}")
        self._reduction = reduction
        self._nvec = tuple(int(n) for n in self.action_space.nvec.ravel())

    def settings(self) -> tuple[Any, ...]:
        return (*super().settings(), self._reduction, self._nvec)

    def make_distribution(self, tensors: Sequence[Tensor], action_masks: Tensor | None = None) -> Distribution:
        return MultiCategorical(self._logits(tensors[0]), self._nvec, self._reduction, action_masks)


class BernoulliMixin(StochasticMixin):
    """Independent yes-or-no choices: ``compute`` returns ``logits [B, n], {}``, the log-odds of a 1; actions are 0 or 1.

    :param unnormalized_log_prob: whether ``compute`` returns logits (True) or probabilities of a 1 (False)
    :param reduction: ``"sum"``, ``"mean"``, ``"prod"`` or ``"none"``: how choices combine in the log-probability
    :param role: accepted for compatibility, without effect

    :raises ValueError: an unknown reduction
    :raises TypeError: the action space is not MultiBinary
    """

    def __init__(self, unnormalized_log_prob: bool = True, reduction: str = "sum", role: str = "") -> None:
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduction: expected one of {REDUCTIONS}, got {reduction!r}")
        if not isinstance(self.action_space, gymnasium.spaces.MultiBinary):
            raise TypeError(f"expected a MultiBinary action space, got {self.action_space}")
        self._unnormalized_log_prob = bool(unnormalized_log_prob)
        self._reduction = reduction

    def settings(self) -> tuple[Any, ...]:
        return self._unnormalized_log_prob, self._reduction

    def make_distribution(self, tensors: Sequence[Tensor], action_masks: Tensor | None = None) -> Distribution:
        _refuse_masks(action_masks, self, "a MultiBinary action")
        output = tensors[0]
        _check_width(output, self, "logits")
        if not self._unnormalized_log_prob:
            output = torch.logit(output, eps=torch.finfo(output.dtype).eps)
        return Bernoulli(output, self._reduction)


class QMixin(StochasticMixin):
    """Values of discrete actions, acted on epsilon-greedily: ``compute`` returns ``q [B, n], {}``.

    :meth:`act` is greedy. To explore, ask for a distribution with an epsilon::

        q, _ = model.compute(inputs, "q")
        actions = model.make_distribution([q], action_masks, epsilon=0.1).sample()

    :param role: accepted for compatibility, without effect

    :raises TypeError: the action space is not Discrete
    """

    def __init__(self, role: str = "") -> None:
        if not isinstance(self.action_space, gymnasium.spaces.Discrete):
            raise TypeError(
                f"{type(self).__name__}: action values need a Discrete action space, got {self.action_space}: wrap the "
                "environment in coterie.envs.DiscreteActions, which makes one choice of several, and of bounded numbers"
            )

    def make_distribution(
        self, tensors: Sequence[Tensor], action_masks: Tensor | None = None, epsilon: float | Tensor = 0.0
    ) -> EpsilonGreedy:
        """See :meth:`StochasticMixin.make_distribution`.

        :param epsilon: probability of an action at random: a number, or a tensor that broadcasts to ``[..., 1]``

        :raises ValueError: values of another number of actions than the space has, or an epsilon that is no probability
        """
        (q, *_) = tensors
        _check_width(q, self, "values")
        return EpsilonGreedy(q, epsilon, action_masks)


class DeterministicMixin(Model):
    """A value without randomness, for critics: ``compute`` returns ``value [B, n], {}``.

    :param clip_actions: clip the output to the bounds of the action space (for deterministic policies)
    :param role: accepted for compatibility, without effect
    """

    def __init__(self, clip_actions: bool = False, role: str = "") -> None:
        self._bounds = self.box_bounds() if clip_actions else None

    def settings(self) -> tuple[Any, ...]:
        """See :meth:`StochasticMixin.settings`."""
        return (self._bounds is not None,)

    def act(self, inputs: Mapping[str, Any], role: str = "") -> tuple[Tensor, Tensor | None, dict[str, Any]]:
        """Compute the output ``[B, n]``; the log-probability is None."""
        output = self.compute(inputs, role)
        value = computed_tensors(output, self)[0]
        if self._bounds is not None:
            value = value.clamp(*self._bounds)
        return value, None, dict(output[-1]) if isinstance(output[-1], Mapping) else {}
