"""The model: a network's ``compute`` and, from a mixin, the distribution that its output describes."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

from coterie.functional import categorical_sample
from coterie.models.distributions import mask_logits
from coterie.spaces import flat_size, unflatten

__all__ = ["Model"]


class Model(nn.Module):
    """Base of policies and critics. Combine it with a mixin and write :meth:`compute`::

        class Policy(GaussianMixin, Model):
            def __init__(self, observation_space, action_space, device=None):
                Model.__init__(self, observation_space, action_space, device)
                GaussianMixin.__init__(self)
                self.net = nn.Sequential(nn.Linear(self.num_observations, 64), nn.ELU(), nn.Linear(64, self.num_actions))
                self.log_std_parameter = nn.Parameter(torch.zeros(self.num_actions))

            def compute(self, inputs, role):
                return self.net(inputs["states"]), self.log_std_parameter, {}

    ``inputs["states"]`` is the model's own input ``[B, num_observations]``: an agent's observation, or the shared state for a
    centralised critic. ``compute`` must treat the rows of a batch one by one and keep no tensors on ``self``: models of
    one architecture then run as a single batched computation, whatever they are written like. Plain attributes that it reads
    are taken as they are when the agent is built.

    :param observation_space: space of the model's input (or its flat size)
    :param action_space: space of the agent's actions (or its flat size)
    :param device: where parameters live; the CPU by default
    """

    #: True where ``compute`` reads ``inputs["agent_id"]``, a one-hot ``[B, agents of the team]``
    uses_agent_id: bool = False
    #: True where ``compute`` returns a value for every agent of the team, ``[B, agents of the team]``, from all agents'
    #: observations together, one row for each environment; ``inputs["present"]``, bool ``[B, agents of the team]`` or None,
    #: says who is there
    values_per_agent: bool = False
    #: True where ``compute`` takes its input apart into the observations of the team's agents, so that nothing else of the
    #: same size will do
    needs_observations: bool = False

    def __init__(
        self,
        observation_space: gymnasium.Space | int | tuple[int, ...] | None,
        action_space: gymnasium.Space | int | tuple[int, ...] | None,
        device: str | torch.device | None = None,
    ) -> None:
        super().__init__()
        self.device = torch.device("cpu") if device is None else torch.device(device)
        self.observation_space = observation_space
        self.action_space = action_space
        self.num_observations = flat_size(observation_space)
        self.num_actions = flat_size(action_space)

    def compute(self, inputs: Mapping[str, Any], role: str = "") -> tuple[Any, ...]:
        """Run the network: write this method; the mixin's docstring says what it returns."""
        raise NotImplementedError(f"{type(self).__name__} must define compute(inputs, role)")

    def act(self, inputs: Mapping[str, Any], role: str = "") -> tuple[Tensor, Tensor | None, dict[str, Any]]:
        """Act on (or evaluate) a batch of inputs; mixins define it."""
        raise NotImplementedError(f"{type(self).__name__} needs a mixin such as GaussianMixin or DeterministicMixin")

    def forward(self, inputs: Mapping[str, Any], role: str = "") -> tuple[Tensor, Tensor | None, dict[str, Any]]:
        """Alias of :meth:`act`."""
        return self.act(inputs, role)

    def random_act(self, inputs: Mapping[str, Any], role: str = "") -> tuple[Tensor, None, dict[str, Any]]:
        """Draw actions uniformly from the action space (a Box must be bounded): ``[B, n]`` like those of :meth:`act`.

        ``inputs["action_masks"]``, bool ``[B, n]``, leaves only some of a Discrete or MultiDiscrete space.

        :raises ValueError: a Box without bounds, or masks of another form or for another space
        :raises TypeError: a space without a uniform distribution
        """
        batch, space, masks = inputs["states"].shape[:-1], self.action_space, inputs.get("action_masks")
        if isinstance(space, (gymnasium.spaces.Discrete, gymnasium.spaces.MultiDiscrete)):
            nvec = [int(space.n)] if isinstance(space, gymnasium.spaces.Discrete) else space.nvec.ravel().tolist()
            if masks is None:
                columns = [torch.randint(n, (*batch, 1), device=self.device) for n in nvec]
            else:
                equal = mask_logits(torch.zeros(*batch, sum(nvec), device=self.device), masks)
                columns = [categorical_sample(part) for part in equal.split(nvec, dim=-1)]
            return torch.cat(columns, dim=-1), None, {}
        if masks is not None:
            raise ValueError(f"action_masks: expected a Discrete or MultiDiscrete action space, got {space}")
        if isinstance(space, gymnasium.spaces.MultiBinary):
            return torch.randint(2, (*batch, self.num_actions), device=self.device), None, {}
        if isinstance(space, gymnasium.spaces.Box):
            if not space.is_bounded():
                raise ValueError(f"cannot draw uniformly from the unbounded {space}; set random_timesteps to 0")
            low, high = (
                torch.as_tensor(b.ravel(), dtype=torch.float32, device=self.device) for b in (space.low, space.high)
            )
            return low + (high - low) * torch.rand(*batch, low.numel(), device=self.device), None, {}
        raise TypeError(
            f"cannot draw uniformly from {space}: expected Discrete, MultiDiscrete, MultiBinary or a bounded Box"
        )

    def unflatten(self, states: Tensor) -> Any:
        """Give flat observations ``[..., F]`` the structure of the observation space: see :func:`coterie.spaces.unflatten`.

        :raises TypeError: the model was built for a size, not for a space
        """
        if not isinstance(self.observation_space, gymnasium.Space):
            raise TypeError(
                f"{type(self).__name__} was built for observations of size {self.num_observations}: pass a space to it for "
                "them to have a structure"
            )
        return unflatten(self.observation_space, states)

    def set_mode(self, mode: str) -> None:
        """Switch the module to ``"train"`` or ``"eval"``."""
        if mode not in ("train", "eval"):
            raise ValueError(f"expected mode 'train' or 'eval', got {mode!r}")
        self.train(mode == "train")

    def init_state_dict(self, role: str = "") -> None:
        """Create the parameters of lazy modules by one pass over a zero input."""
        if any(nn.parameter.is_lazy(p) for p in self.parameters()):
            with torch.no_grad():
                self.compute(self._zero_inputs(), role)

    def _zero_inputs(self) -> dict[str, Any]:
        """Inputs of ``compute`` for a batch of one row."""
        inputs: dict[str, Any] = {
            "states": torch.zeros(1, self.num_observations, device=self.device),
            "taken_actions": torch.zeros(1, self.num_actions, device=self.device),
        }
        if rnn := self.get_specification().get("rnn"):
            states = [torch.zeros(size[0], 1, size[-1], device=self.device) for size in rnn["sizes"]]
            inputs |= {"rnn": states, "length": 1, "starts": None, "active": None}
        return inputs

    def init_parameters(self, method_name: str = "normal_", *args: Any, **kwargs: Any) -> None:
        """Initialise every parameter with ``torch.nn.init.<method_name>``."""
        self._apply_init(method_name, lambda name: True, args, kwargs)

    def init_weights(self, method_name: str = "orthogonal_", *args: Any, **kwargs: Any) -> None:
        """Initialise parameters whose name ends in ``weight`` with ``torch.nn.init.<method_name>``."""
        self._apply_init(method_name, lambda name: name.endswith("weight"), args, kwargs)

    def init_biases(self, method_name: str = "constant_", *args: Any, **kwargs: Any) -> None:
        """Initialise parameters whose name ends in ``bias`` with ``torch.nn.init.<method_name>``."""
        self._apply_init(method_name, lambda name: name.endswith("bias"), args, kwargs)

    def _apply_init(
        self, method_name: str, wanted: Callable[[str], bool], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        method = getattr(nn.init, method_name, None)
        if method is None:
            raise ValueError(f"torch.nn.init has no function {method_name!r}")
        for name, parameter in self.named_parameters():
            if wanted(name):
                method(parameter, *args, **kwargs)

    def freeze_parameters(self, freeze: bool = True) -> None:
        """Stop (or resume) gradients for every parameter."""
        self.requires_grad_(not freeze)

    def get_specification(self) -> dict[str, Any]:
        """What a model asks of the machinery around it; a feed-forward model asks nothing.

        A recurrent one returns ``{"rnn": {"sizes": [(layers, hidden), ...], "sequence_length": L}}``: one size for each
        state tensor (one for a GRU, two for an LSTM), and the number of steps that gradients flow through. ``compute`` is
        then called one step at a time, with a list of states ``[layers, B, hidden]`` in ``inputs["rnn"]``, and returns the
        new ones in its last item, ``{"rnn": [...]}``. States are zeroed where episodes start, and frozen where an agent does
        not act, outside of it.

        With ``"whole_sequences": True`` beside these, ``compute`` is called once for L steps of N sequences, and sees to that
        itself, as the layers :class:`GRU` and :class:`LSTM` do: ``inputs["states"]`` is ``[L*N, F]``, row ``l * N + n`` being
        step l of sequence n, ``inputs["rnn"]`` has the states ``[layers, N, hidden]`` before the first step,
        ``inputs["length"]`` is L, and ``inputs["starts"]`` (True: the state is zeroed before this row) and
        ``inputs["active"]`` (False: this row leaves the state as it was) are bool ``[L*N, 1]`` or None. It returns the
        states after the last step.
        """
        return {}

    def output_layers(self) -> list[nn.Linear]:
        """The layers whose outputs are a critic's values, which PopArt rescales: the linear layer that was made last.

        :raises TypeError: the model has no linear layer
        """
        layers = [module for module in self.modules() if isinstance(module, nn.Linear)]
        if not layers:
            raise TypeError(
                f"{type(self).__name__} has no nn.Linear to take for its output layer: override output_layers"
            )
        return layers[-1:]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the parameters to ``path``."""
        # copied, since a view would bring along all of the storage that its team's models share
        state = self.state_dict()
        torch.save({name: value.clone() if isinstance(value, Tensor) else value for name, value in state.items()}, path)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Read parameters that :meth:`save` wrote; nothing in the file is executed."""
        self.load_state_dict(torch.load(path, map_location=self.device, weights_only=True))

    def box_bounds(self) -> tuple[Tensor, Tensor] | None:
        """Flat lower and upper bounds ``[n]`` of a Box action space, None for other spaces."""
        if not isinstance(self.action_space, gymnasium.spaces.Box):
            return None
        low, high = (
            torch.as_tensor(np.asarray(bound, dtype=np.float32).ravel(), device=self.device)
            for bound in (self.action_space.low, self.action_space.high)
        )
        return low, high
