"""Policies and critics as they are run: normalised inputs, precision, recurrent state, float32 out."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from coterie.agents.groups import CriticGroup, Group
from coterie.agents.model_faults import model_fault
from coterie.agents.normalisation import SetPreprocessor
from coterie.models.batch import ModelBatch
from coterie.models.distributions import Distribution

__all__ = ["CriticInput", "CriticNetworks", "GroupNetworks", "Recall", "select_rows"]


def select_rows(x: Tensor, index: Tensor | slice, length: int) -> Tensor:
    """Pick sequences: ``[N, ...]`` to ``[M, ...]``, or of ``length`` > 1 steps ``[L, N, ...]`` to rows ``[L * M, ...]``."""
    if isinstance(index, slice):
        return x[index] if length == 1 else x[:, index].flatten(0, 1)
    return x.index_select(0, index) if length == 1 else x.index_select(1, index).flatten(0, 1)


class CriticInput(NamedTuple):
    """What critics see in B environments (or rows)."""

    states: Tensor
    """``[B, A, F]``, or ``[B, 1, F]`` where all agents' critics see the same."""

    present: Tensor | None = None
    """Who is there, bool ``[B, agents of the team]``, for critics of whole teams; None for everyone."""

    def at(self, rows: Tensor | slice) -> CriticInput:
        """Some of the rows."""
        return CriticInput(self.states[rows], None if self.present is None else self.present[rows])

    @classmethod
    def join(cls, parts: Sequence[CriticInput]) -> CriticInput:
        """Rows of several moments one after the other."""
        states = torch.cat([part.states for part in parts])
        width = next((part.present.shape[1] for part in parts if part.present is not None), None)
        if width is None:
            return cls(states)
        everyone = [
            states.new_ones(len(part.states), width, dtype=torch.bool) if part.present is None else part.present
            for part in parts
        ]
        return cls(states, torch.cat(everyone))


@dataclass(frozen=True)
class Recall:
    """What a recurrent model is given beside its inputs of N sequences of ``length`` steps, rows in order of time."""

    state: Tensor  # [N, A or 1, W], before the first step
    starts: Tensor | None = None  # bool [L * N, A or 1, 1], True where an episode starts
    active: Tensor | None = None  # bool [L * N, A, 1], False where the state is left as it was
    length: int = 1

    def take(self, index: Tensor | slice) -> Recall:
        """Some of the sequences; ``starts`` and ``active`` are ``[L, N, ...]`` here where L > 1."""
        return replace(
            self,
            state=select_rows(self.state, index, 1),
            starts=None if self.starts is None else select_rows(self.starts, index, self.length),
            active=None if self.active is None else select_rows(self.active, index, self.length),
        )

    def shuffled(self, order: Tensor) -> Recall:
        """All sequences in another order, laid out as :meth:`take` wants them."""
        dim = 0 if self.length == 1 else 1
        return replace(
            self,
            state=self.state.index_select(0, order),
            starts=None if self.starts is None else self.starts.index_select(dim, order),
            active=None if self.active is None else self.active.index_select(dim, order),
        )


class _Networks:
    """Runs models.

    :param device: where they live
    :param mixed_precision: whether they run in bfloat16
    """

    def __init__(self, device: torch.device, mixed_precision: bool) -> None:
        self._device = device
        self._mixed_precision = mixed_precision

    def precision(self) -> contextlib.AbstractContextManager[Any]:
        """The context in which models run."""
        if self._mixed_precision:
            return torch.autocast(self._device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def _run(
        self, batch: ModelBatch, names: Sequence[str], inputs: CriticInput, recall: Recall | None
    ) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """What models compute, and their recurrent state after the last step.

        :raises ValueError: the model of one of the agents ``names`` cannot be run on such inputs
        """
        try:
            with self.precision():
                if not batch.recurrent:
                    return batch(inputs.states, inputs.present), None
                if recall is None:
                    rows, agents = inputs.states.shape[:2]
                    recall = Recall(batch.initial_state(rows, agents))
                return batch.unroll(inputs.states, recall.state, recall.starts, recall.active, recall.length)
        except RuntimeError as error:
            fault = model_fault(batch, names, error)
            if fault is None:
                raise
            raise fault from error


class GroupNetworks(_Networks):
    """Runs a group's policies.

    :param group: the group
    :param device: where its models live
    :param mixed_precision: whether they run in bfloat16
    """

    def __init__(self, group: Group, device: torch.device, mixed_precision: bool) -> None:
        super().__init__(device, mixed_precision)
        self.group = group
        #: what distributions are given besides, such as the standard deviation ``"std"`` of Gaussians; a model's own without
        self.exploration: dict[str, float | Tensor] = {}

    @property
    def remembers(self) -> bool:
        """Whether the policies are recurrent."""
        return self.group.policy is not None and self.group.policy.recurrent

    def normalised(self, states: Tensor) -> Tensor:
        """Observations ``[B, A, F]`` as policies see them."""
        stage = self.group.state_preprocessor
        return states if stage is None else stage(states)

    def distribution(
        self, states: Tensor, action_masks: Tensor | None = None, recall: Recall | None = None
    ) -> tuple[Distribution, Tensor | None]:
        """The policies' distributions, in float32, and their recurrent state after the last step.

        :param states: normalised observations ``[B, A, F]``
        :param action_masks: bool ``[B, A, n]``, True where allowed
        :param recall: for recurrent policies; zero states and one step by default

        :raises ValueError: masks of another form, or a policy that returns another number of outputs than its agent has actions
        """
        tensors, state = self.outputs(states, recall)
        assert self.group.policy is not None
        template: Any = self.group.policy.models[0]
        # a mixin of one's own need not know of masks, nor of exploration from outside
        masks = () if action_masks is None else (action_masks,)
        try:
            return template.make_distribution(tensors, *masks, **self.exploration), state
        except ValueError as error:
            fault = model_fault(self.group.policy, self.group.names, error, self._distribution_of)
            if fault is None:
                raise
            raise fault from error

    def _distribution_of(self, model: Any, tensors: Sequence[Tensor]) -> Distribution:
        """The distribution of one model by itself, where nothing is masked."""
        settings = {name: value for name, value in self.exploration.items() if not isinstance(value, Tensor)}
        distribution: Distribution = model.make_distribution(tensors, **settings)
        return distribution

    def outputs(self, states: Tensor, recall: Recall | None = None) -> tuple[list[Tensor], Tensor | None]:
        """What the policies compute, in float32, ``[B, A, n]`` each, and their recurrent state after the last step.

        :param states: normalised observations ``[B, A, F]``
        :param recall: for recurrent policies; zero states and one step by default
        """
        assert self.group.policy is not None
        tensors, state = self._run(self.group.policy, self.group.names, CriticInput(states), recall)
        return [tensor.float() for tensor in tensors], state


class CriticNetworks(_Networks):
    """Runs a critic group's critics.

    :param group: the critic group
    :param device: where its models live
    :param mixed_precision: whether they run in bfloat16
    :param preprocessor: what normalises their inputs
    """

    def __init__(
        self, group: CriticGroup, device: torch.device, mixed_precision: bool, preprocessor: SetPreprocessor | None
    ) -> None:
        super().__init__(device, mixed_precision)
        self.group = group
        self.preprocessor = preprocessor

    @property
    def remembers(self) -> bool:
        """Whether the critics are recurrent."""
        return self.group.batch.recurrent

    def initial_state(self, rows: int) -> Tensor:
        """What recurrent critics remember before the first step: zeros ``[rows, A or 1, W]``."""
        return self.group.batch.initial_state(rows, 1 if self.group.one_state else len(self.group.names))

    def normalised(self, critic: CriticInput) -> CriticInput:
        """Inputs as critics see them."""
        return critic if self.preprocessor is None else critic._replace(states=self.preprocessor(critic.states))

    def values(self, critic: CriticInput, recall: Recall | None = None) -> tuple[Tensor, Tensor | None]:
        """Predictions ``[B, A or 1, 1]``, in float32, and the recurrent state after the last step.

        :param critic: normalised inputs

        :raises ValueError: a critic that returns anything but one value
        """
        (values, *_), state = self._run(self.group.batch, self.group.names, critic, recall)
        if values.shape[-1] != 1:
            raise ValueError(
                f"the value model of {self.group.names[0]!r}: expected one value [B, 1], got {values.shape[-1]}"
            )
        return values.float(), state
