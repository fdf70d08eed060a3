"""Ready-made policies and critics: an encoder by the observation's space, a perceptron, and memory where asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import torch
from torch import Tensor, nn

from coterie.models.base import Model
from coterie.models.encoders import CNN, make_encoder
from coterie.models.mixins import (
    BernoulliMixin,
    CategoricalMixin,
    DeterministicMixin,
    GaussianMixin,
    MultiCategoricalMixin,
    QMixin,
    TanhGaussianMixin,
)
from coterie.models.perceptrons import POLICY_GAIN, VALUE_GAIN, layers, mlp, orthogonal
from coterie.models.recurrent import GRU, LSTM, RecurrentLayer

__all__ = [
    "RNNS",
    "BernoulliPolicy",
    "CategoricalPolicy",
    "GaussianPolicy",
    "MultiCategoricalPolicy",
    "Network",
    "QNetwork",
    "TanhGaussianPolicy",
    "Value",
]

RNNS: dict[str, type[RecurrentLayer]] = {"gru": GRU, "lstm": LSTM}


class Network(Model):
    """The network of every policy and critic here: encoder, hidden layers, recurrent layers, linear head.

    Recurrent layers stand between hidden layers and head, as in MAPPO (Yu et al. 2022, arXiv 2103.01955).

    :param outputs: width of the linear head; None for a network that ends with the features below it
    :param head_gain: gain of the head's orthogonal weights
    :param hidden: widths of the hidden layers
    :param activation: a key of :data:`coterie.models.perceptrons.ACTIVATIONS`
    :param agent_ids: number of agents of the team, to append a one-hot agent id to the features; 0 to leave it out
    :param rnn: ``"gru"`` or ``"lstm"`` for a memory, None for none
    :param rnn_size: width of the recurrent layers
    :param rnn_layers: number of recurrent layers
    :param sequence_length: number of steps that the recurrent layers' gradients flow through
    :param cnn: output channels of the convolutions that images go through; empty to flatten images

    :raises ValueError: an unknown activation or recurrent layer, or a layer without units
    """

    def __init__(
        self,
        observation_space: gymnasium.Space | int | tuple[int, ...] | None,
        action_space: gymnasium.Space | int | tuple[int, ...] | None,
        device: str | torch.device | None,
        outputs: int | None,
        head_gain: float,
        *,
        hidden: Sequence[int] = (64, 64),
        activation: str = "tanh",
        agent_ids: int = 0,
        rnn: str | None = None,
        rnn_size: int = 64,
        rnn_layers: int = 1,
        sequence_length: int = 10,
        cnn: Sequence[int] = CNN,
    ) -> None:
        Model.__init__(self, observation_space, action_space, device)
        self.uses_agent_id = agent_ids > 0
        self.sequence_length = sequence_length
        self.encoder = make_encoder(observation_space, cnn, activation)
        inputs = agent_ids + (self.num_observations if self.encoder is None else self.encoder.size)
        self.rnn: RecurrentLayer | None = None
        self.head: nn.Linear | None = None
        #: number of features below the head
        self.width = [inputs, *hidden][-1] if rnn is None else rnn_size
        if rnn is None and outputs is not None:
            self.net = mlp(inputs, outputs, hidden, activation, head_gain)
        else:
            self.net = layers(inputs, hidden, activation)
        if rnn is not None:
            if rnn not in RNNS:
                raise ValueError(f"rnn: expected one of {sorted(RNNS)} or None, got {rnn!r}")
            if sequence_length < 1:
                raise ValueError(f"sequence_length: expected at least 1 step, got {sequence_length}")
            self.rnn = RNNS[rnn]([inputs, *hidden][-1], rnn_size, rnn_layers)
            if outputs is not None:
                self.head = orthogonal(nn.Linear(rnn_size, outputs), head_gain)
        self.to(self.device)

    def get_specification(self) -> dict[str, Any]:
        if self.rnn is None:
            return {}
        length = self.sequence_length
        return {"rnn": {"sizes": self.rnn.sizes, "sequence_length": length, "whole_sequences": True}}

    def _run(self, inputs: Mapping[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Output ``[B, outputs]`` (or features ``[B, width]``), and what ``compute`` returns last."""
        x = inputs["states"] if self.encoder is None else self.encoder(inputs["states"])
        if self.uses_agent_id:
            if inputs.get("agent_id") is None:
                raise KeyError(
                    f"{type(self).__name__} was built with agent ids: pass inputs['agent_id'], a one-hot [B, agents]"
                )
            x = torch.cat([x, inputs["agent_id"]], dim=-1)
        if self.rnn is None:
            return self.net(x), {}
        features, states = self.rnn(self.net(x), inputs)
        return features if self.head is None else self.head(features), {"rnn": states}


class _LogitsPolicy(Network):
    def __init__(
        self,
        observation_space: gymnasium.Space,
        action_space: gymnasium.Space,
        device: str | torch.device | None = None,
        **network: Any,
    ) -> None:
        outputs = Model(None, action_space).num_actions
        Network.__init__(self, observation_space, action_space, device, outputs, POLICY_GAIN, **network)

    def compute(self, inputs: Mapping[str, Any], role: str = "") -> tuple[Any, ...]:
        return self._run(inputs)


class CategoricalPolicy(CategoricalMixin, _LogitsPolicy):
    """Policy for a Discrete action space; keyword arguments are those of :class:`Network`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        _LogitsPolicy.__init__(self, *args, **kwargs)
        CategoricalMixin.__init__(self)


class MultiCategoricalPolicy(MultiCategoricalMixin, _LogitsPolicy):
    """Policy for a MultiDiscrete action space; keyword arguments are those of :class:`Network`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        _LogitsPolicy.__init__(self, *args, **kwargs)
        MultiCategoricalMixin.__init__(self)


class BernoulliPolicy(BernoulliMixin, _LogitsPolicy):
    """Policy for a MultiBinary action space; keyword arguments are those of :class:`Network`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        _LogitsPolicy.__init__(self, *args, **kwargs)
        BernoulliMixin.__init__(self)


class _MeanPolicy(Network):
    """A Gaussian's network.

    :param initial_log_std: initial logarithm of the standard deviation
    :param state_dependent_std: let the network compute the log-std in place of one learned vector
    """

    def __init__(
        self,
        observation_space: gymnasium.Space,
        action_space: gymnasium.Space,
        device: str | torch.device | None = None,
        *,
        initial_log_std: float = 0.0,
        state_dependent_std: bool = False,
        **network: Any,
    ) -> None:
        width = Model(None, action_space).num_actions
        outputs = 2 * width if state_dependent_std else width
        Network.__init__(self, observation_space, action_space, device, outputs, POLICY_GAIN, **network)
        self.state_dependent_std = state_dependent_std
        if state_dependent_std:
            (head,) = self.output_layers()
            nn.init.constant_(head.bias[width:], initial_log_std)
        else:
            self.log_std_parameter = nn.Parameter(torch.full((width,), float(initial_log_std), device=self.device))

    def compute(self, inputs: Mapping[str, Any], role: str = "") -> tuple[Any, ...]:
        output, last = self._run(inputs)
        if self.state_dependent_std:
            mean, log_std = output.chunk(2, dim=-1)
            return mean, log_std, last
        return output, self.log_std_parameter, last


class GaussianPolicy(GaussianMixin, _MeanPolicy):
    """Policy for a Box: normals around the network's output, clipped to finite bounds for the environment.

    Keyword arguments are those of :class:`Network` and :class:`_MeanPolicy`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        _MeanPolicy.__init__(self, *args, **kwargs)
        GaussianMixin.__init__(self, clip_actions=True)


class TanhGaussianPolicy(TanhGaussianMixin, _MeanPolicy):
    """Policy for a bounded Box: normals squashed into its bounds; keyword arguments as of :class:`GaussianPolicy`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        _MeanPolicy.__init__(self, *args, **kwargs)
        TanhGaussianMixin.__init__(self)


class Value(DeterministicMixin, Network):
    """Critic: one value ``[B, 1]``; other keyword arguments are those of :class:`Network`.

    :param values: with more than one, a value for each of that many agents of a team, ``[B, agents of the team]``, from
        what all of them see alike
    """

    def __init__(
        self,
        observation_space: gymnasium.Space,
        action_space: gymnasium.Space,
        device: str | torch.device | None = None,
        *,
        values: int = 1,
        **network: Any,
    ) -> None:
        Network.__init__(self, observation_space, action_space, device, values, VALUE_GAIN, **network)
        DeterministicMixin.__init__(self)
        self.values_per_agent = values > 1

    def compute(self, inputs: Mapping[str, Any], role: str = "") -> tuple[Any, ...]:
        return self._run(inputs)


class QNetwork(QMixin, Network):
    """Action values ``[B, n]`` for a Discrete action space; other keyword arguments are those of :class:`Network`.

    :param activation: a key of :data:`coterie.models.perceptrons.ACTIVATIONS`
    :param dueling: work values out as ``Q = V + A - mean of A over actions`` from two streams (Wang et al. 2016, arXiv
        1511.06581, eq. 9), each with a hidden layer of its own: the last one of ``hidden``, or behind recurrent layers one
        more of their width (Kapturowski et al. 2019, R2D2). Without such a layer the same functions would come out as
        without streams

    :raises ValueError: two streams, and no hidden layer
    """

    def __init__(
        self,
        observation_space: gymnasium.Space,
        action_space: gymnasium.Space,
        device: str | torch.device | None = None,
        *,
        hidden: Sequence[int] = (64, 64),
        activation: str = "relu",
        dueling: bool = False,
        **network: Any,
    ) -> None:
        outputs = Model(None, action_space).num_actions
        recurrent = network.get("rnn") is not None
        if dueling and not recurrent and not hidden:
            raise ValueError("dueling: expected at least one hidden layer, for each of the two streams, got hidden ()")
        below = hidden[:-1] if dueling and not recurrent else hidden
        Network.__init__(
            self, observation_space, action_space, device, None if dueling else outputs, VALUE_GAIN,
            hidden=below, activation=activation, **network,
        )  # fmt: skip
        QMixin.__init__(self)
        self.value: nn.Sequential | None = None
        self.advantage: nn.Sequential | None = None
        if dueling:
            own = (self.width if recurrent else hidden[-1],)
            self.value = mlp(self.width, 1, own, activation, VALUE_GAIN).to(self.device)
            self.advantage = mlp(self.width, outputs, own, activation, VALUE_GAIN).to(self.device)

    def compute(self, inputs: Mapping[str, Any], role: str = "") -> tuple[Any, ...]:
        output, last = self._run(inputs)
        if self.value is None or self.advantage is None:
            return output, last
        advantage = self.advantage(output)
        return self.value(output) + advantage - advantage.mean(dim=-1, keepdim=True), last

    def output_layers(self) -> list[nn.Linear]:
        if self.value is None or self.advantage is None:
            return super().output_layers()
        # shifting both shifts the value alone: what all advantages are shifted by leaves with their mean
        heads = (list(stream.children())[-1] for stream in (self.value, self.advantage))
        return [head for head in heads if isinstance(head, nn.Linear)]
