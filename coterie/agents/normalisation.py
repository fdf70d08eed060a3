"""Normalisers of a group's data: one for each parameter set, since a network has one scale of its inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import torch
from torch import Tensor, nn

from coterie.models.base import Model
from coterie.models.mixins import StochasticMixin
from coterie.preprocessors import PopArt, Preprocessor, rescale_output, stack_preprocessors
from coterie.spaces import flat_size

__all__ = ["OutputKeeper", "SetPreprocessor", "check_agreement", "make_preprocessor"]


class SetPreprocessor:
    """One preprocessor per parameter set, applied along the agent dimension.

    :param members: the preprocessor of each of the S sets, for ``[N, F]``
    :param agents: number of agents A of the group, of which each set has A / S, in order
    """

    def __init__(self, members: Sequence[nn.Module], agents: int) -> None:
        self.members = list(members)
        self._share = agents // len(members)
        self._stacked = stack_preprocessors(members)

    def __call__(self, x: Tensor, train: bool = False, inverse: bool = False, mask: Tensor | None = None) -> Tensor:
        """Apply to ``[B, A, F]``, or to ``[B, 1, F]`` that all agents have in common; the result has an entry for each
        agent unless one set serves all.

        :param mask: bool, what is learned from: ``[B, A, 1]``, or ``[B, 1, 1]`` for what all agents have in common (of
            which ``[B, A, 1]`` says where any of a set's agents sees it)
        """
        sets, batch, agents = len(self.members), x.shape[0], x.shape[1]
        if mask is not None and mask.shape[1] > agents:
            mask = mask.unflatten(1, (sets, -1)).any(dim=2)
        if sets == 1:
            flat = x.reshape(1, batch * agents, -1)
            rows_mask = None if mask is None else mask.reshape(1, batch * agents, 1)
            return self._stacked(flat, train=train, inverse=inverse, mask=rows_mask).view(batch, agents, -1)
        share = agents // sets if agents > 1 else 1

        def by_set(tensor: Tensor) -> Tensor:
            return tensor.expand(batch, sets * share, -1).unflatten(1, (sets, share)).transpose(0, 1).flatten(1, 2)

        rows_mask = None if mask is None else by_set(mask)
        y: Tensor = self._stacked(by_set(x), train=train, inverse=inverse, mask=rows_mask)
        y = y.unflatten(1, (batch, share)).transpose(0, 1).flatten(1, 2)
        return y if share == self._share else y.repeat_interleave(self._share, dim=1)


class OutputKeeper:
    """Keeps critics' predictions, on the scale of returns, as they are while their normalisers learn (see :class:`PopArt`).

    Made before the normalisers learn; without effect on those that are no ``PopArt``.

    :param normalisers: those of values
    :param critics: the value models of each parameter set

    :raises TypeError: a critic whose output layer is not known
    :raises ValueError: an output layer without a bias
    """

    def __init__(self, normalisers: SetPreprocessor, critics: Sequence[Sequence[Model]]) -> None:
        self._members = [member if isinstance(member, PopArt) else None for member in normalisers.members]
        self._layers: list[list[nn.Linear]] = []
        for member, models in zip(self._members, critics, strict=True):
            rescaled = [] if member is None else [(model, layer) for model in models for layer in model.output_layers()]
            for model, layer in rescaled:
                if layer.bias is None:
                    raise ValueError(f"{type(model).__name__}: PopArt needs an output layer with a bias, got {layer}")
                if isinstance(model, StochasticMixin) and type(model).output_layers is Model.output_layers:
                    raise ValueError(
                        f"{type(model).__name__} is a policy too, and PopArt rescales the layer of its values: define "
                        "output_layers() to say which that is"
                    )
            self._layers.append([layer for _, layer in rescaled])
        self._before = [None if member is None else member.moments() for member in self._members]

    @property
    def rescales(self) -> bool:
        """Whether there is anything to do."""
        return any(before is not None for before in self._before)

    @torch.no_grad()
    def rescale(self) -> None:
        """Make up in the critics' output layers for what was learned since this object was made."""
        for member, before, layers in zip(self._members, self._before, self._layers, strict=True):
            if member is None or before is None:
                continue
            for layer in layers:
                weight, bias = rescale_output(layer.weight, layer.bias, before, member.moments())
                layer.weight.copy_(weight)
                layer.bias.copy_(bias)

    @torch.no_grad()
    def renewed(self, predicted: Tensor) -> Tensor:
        """What the rescaled critics would predict where they predicted ``[..., A, 1]``; agents are ordered by set."""
        parts = []
        for part, member, before in zip(
            predicted.tensor_split(len(self._members), dim=-2), self._members, self._before, strict=True
        ):
            if member is not None and before is not None:  # a prediction changes as the bias does
                part = rescale_output(part, part, before, member.moments())[1]
            parts.append(part)
        return torch.cat(parts, dim=-2)


def check_agreement(owners: Mapping[str, int], key: str, kwargs: Mapping[str, Any]) -> None:
    """Check that agents which share a model are normalised alike, also where each kind has a normaliser of its own.

    :param owners: the parameter set of each agent
    :param key: the configuration's key, for messages
    :param kwargs: keyword arguments of the normalisers by agent; sizes and devices follow from the data and may differ

    :raises ValueError: two agents of a set differ
    """

    def settings(uid: str) -> str:
        return repr({name: value for name, value in (kwargs[uid] or {}).items() if name not in ("size", "device")})

    leaders: dict[int, str] = {}
    for uid, s in owners.items():
        leader = leaders.setdefault(s, uid)
        if settings(uid) != settings(leader):
            raise ValueError(
                f"agents {leader!r} and {uid!r} share a model but not {key}: {kwargs[leader]} against {kwargs[uid]}; give them "
                "equal values"
            )


def make_preprocessor(
    owners: Mapping[str, int],
    key: str,
    kinds: Mapping[str, Any],
    kwargs: Mapping[str, Any],
    size: gymnasium.Space | int | None,
    device: torch.device,
) -> SetPreprocessor | None:
    """Build normalisers of what several agents see, as configured.

    :param owners: the parameter set of each of the agents, in order
    :param key: the configuration's key, for messages
    :param kinds: the configured class by agent
    :param kwargs: its keyword arguments by agent; size and device are filled in where they are left out
    :param size: what the data's width follows from

    :return: None where no class is configured

    :raises ValueError: agents that share a model differ in its normaliser, or the configured size is not the data's
    """
    leaders: dict[int, str] = {}
    for name, s in owners.items():
        leader = leaders.setdefault(s, name)
        for option, values in ((key, kinds), (f"{key}_kwargs", kwargs)):
            if repr(values[name]) != repr(values[leader]):
                raise ValueError(
                    f"agents {leader!r} and {name!r} share a model but not {option}: {values[leader]} against {values[name]}; "
                    "give them equal values"
                )
    members = []
    for uid in leaders.values():
        kind, options = kinds[uid], dict(kwargs[uid] or {})
        if kind is None:
            continue
        if isinstance(kind, type) and issubclass(kind, Preprocessor):
            options = {"size": size, "device": device, **options}
            if flat_size(options["size"]) != flat_size(size):
                raise ValueError(f"{key}_kwargs[{uid!r}]: expected size {flat_size(size)}, got {options['size']}")
        members.append(kind(**options))
    if members and len(members) != len(leaders):
        raise ValueError(f"{key}: expected a class for all of {list(owners)} or for none: they are trained together")
    return SetPreprocessor(members, len(owners)) if members else None
