"""Running the models of several agents as one computation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from coterie.models.base import Model
from coterie.models.flat_parameters import FlatParameters
from coterie.models.mixins import computed_tensors
from coterie.models.plan import Plan, build_plan, trace

__all__ = ["ModelBatch", "same_architecture"]

#: below this number of models a plain loop beats vmap, whose fixed cost is about that of three small networks
VMAP_FROM = 5

#: attributes that are compared by other means, and the distribution that a policy keeps of its last call
_NOT_COMPARED = {"_parameters", "_buffers", "_modules", "_last"}


def same_architecture(models: Sequence[Model]) -> bool:
    """Whether models have one class, one set of parameter shapes and, for policies, one set of distribution settings."""

    def describe(model: Model) -> tuple[Any, ...]:
        settings: tuple[Any, ...] = getattr(model, "settings", tuple)()
        space = str(model.observation_space), str(model.action_space)
        parameters = [(name, p.shape, p.dtype, p.requires_grad) for name, p in model.named_parameters()]
        return type(model), settings, space, bool(model.uses_agent_id), parameters

    first = describe(models[0])
    return all(describe(model) == first for model in models[1:])


class ModelBatch:
    """The models that A agents use in one role, called with tensors over all of them.

    One model for all agents runs on all their rows at once. Distinct models of one architecture run as batched matrix
    products over their stacked parameters. What the batch cannot express (see ``plan.py``) goes through ``torch.vmap``,
    and what that cannot express through a loop over the models: slower, with the same results.

    :param models: the model of each agent, in the order of the agent dimension
    :param role: the role passed on to ``compute``
    :param storage: where the models' parameters live
    :param agent_ids: one-hot identities ``[A, agents of the team]``, for models that ask for them

    ``mode`` tells which way was taken: ``"single"``, ``"stacked"``, ``"vmap"`` or ``"loop"``.
    """

    def __init__(self, models: Sequence[Model], role: str, storage: FlatParameters, agent_ids: Tensor) -> None:
        self.models = list(models)
        self.role = role
        self.unique: list[Model] = list(dict.fromkeys(models))
        self.uses_agent_id = any(model.uses_agent_id for model in self.unique)
        self._agent_ids = agent_ids
        self._share = len(self.models) // len(self.unique)  # agents per model
        self._plan: Plan | None = None
        self._leaves: dict[str, Tensor] = {}
        self.mode = self._choose(storage)

    def _choose(self, storage: FlatParameters) -> str:
        if len(self.unique) == 1:
            trace(self.unique[0], self.role)  # for its check that compute keeps nothing on self
            return "single"
        regular = self.models == [model for model in self.unique for _ in range(self._share)]
        if not regular or not same_architecture(self.unique):
            return "loop"
        self._plan = build_plan(self.unique, self.role, storage)
        if self._plan is not None:
            return "stacked"
        if len(self.unique) >= VMAP_FROM and self._can_vmap(storage):
            return "vmap"
        return "loop"

    def _can_vmap(self, storage: FlatParameters) -> bool:
        """Stack the parameters for vmap; refused where models may differ in anything but their parameters."""
        first = self.unique[0]
        if any(True for model in self.unique for _ in model.buffers()):
            return False

        def attributes(model: Model) -> list[tuple[str, str, str]]:
            """Attributes and hooks of every submodule, as text."""
            return [
                (path, name, str(value.tolist()) if isinstance(value, Tensor) else repr(value))
                for path, module in model.named_modules()
                for name, value in vars(module).items()
                if name not in _NOT_COMPARED
            ]

        if any(attributes(model) != attributes(first) for model in self.unique[1:]):
            return False
        by_name = [dict(model.named_parameters()) for model in self.unique]
        for name in by_name[0]:
            parameters = [named[name] for named in by_name]
            leaf = storage.stacked(parameters) if all(storage.holds(p) for p in parameters) else None
            if leaf is None:
                return False
            self._leaves[name] = leaf
        try:
            with torch.no_grad():
                zeros = torch.zeros(len(self.unique), 2, first.num_observations, device=first.device)
                ids = self._agent_ids[:: self._share].unsqueeze(1).expand(-1, 2, -1)
                self._run_vmap({"states": zeros, "agent_id": ids})
        except Exception:  # noqa: BLE001 (control flow on values, in-place writes and whatever else vmap refuses in user code)
            self._leaves = {}
            return False
        return True

    def __call__(self, states: Tensor) -> tuple[Tensor, ...]:
        """Compute the role's outputs.

        :param states: ``[B, A, F]``, or ``[B, 1, F]`` where all agents see the same

        :return: the tensors that ``compute`` returns, each ``[B, A, n]``; 1 in place of B or A where entries along that
            dimension are equal (a parameter, or a single model that gives all agents the same value)
        """
        if self.mode == "single":
            return self._single(states)
        agents = len(self.models)
        if self.mode == "loop":
            return self._loop(states.expand(-1, agents, -1))
        models, share = len(self.unique), self._share
        batch = states.shape[0]
        if share == 1:
            x = states.transpose(0, 1).expand(models, -1, -1)
        else:
            x = states.expand(-1, agents, -1).unflatten(1, (models, share)).transpose(0, 1).flatten(1, 2)
        inputs = {"states": x}
        if self.uses_agent_id:
            ids = self._agent_ids.expand(batch, -1, -1).unflatten(1, (models, share))
            inputs["agent_id"] = ids.transpose(0, 1).flatten(1, 2)
        outputs = self._plan(inputs) if self._plan is not None else self._run_vmap(inputs)
        return tuple(self._from_models(output, batch) for output in outputs)

    def _single(self, states: Tensor) -> tuple[Tensor, ...]:
        model = self.unique[0]
        if self.uses_agent_id:
            states = states.expand(-1, len(self.models), -1)
        batch, agents, width = states.shape
        inputs: dict[str, Any] = {"states": states.reshape(batch * agents, width)}
        if self.uses_agent_id:
            inputs["agent_id"] = self._agent_ids.expand(batch, -1, -1).reshape(batch * agents, -1)
        tensors = _with_rows(computed_tensors(model.compute(inputs, self.role), model), batch * agents, model)
        return tuple(t.unflatten(0, _rows(t, batch, agents)) for t in tensors)

    def _loop(self, states: Tensor) -> tuple[Tensor, ...]:
        outputs: list[list[Tensor]] = [[] for _ in self.models]
        for model in self.unique:
            mine = [i for i, other in enumerate(self.models) if other is model]
            whole = len(mine) == len(self.models)
            own = states if whole else states[:, mine]
            batch = own.shape[0]
            inputs: dict[str, Any] = {"states": own.reshape(batch * len(mine), -1)}
            if model.uses_agent_id:
                inputs["agent_id"] = self._agent_ids[mine].expand(batch, -1, -1).reshape(batch * len(mine), -1)
            tensors = computed_tensors(model.compute(inputs, self.role), model)
            for tensor in _with_rows(tensors, batch * len(mine), model):
                rows = tensor.expand(batch * len(mine), -1)
                for i, column in zip(mine, rows.unflatten(0, (batch, len(mine))).unbind(1), strict=True):
                    outputs[i].append(column)
        return tuple(torch.stack(columns, dim=1) for columns in zip(*outputs, strict=True))

    def _run_vmap(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        model = self.unique[0]

        def compute(parameters: dict[str, Tensor], states: Tensor, agent_id: Tensor | None) -> tuple[Tensor, ...]:
            module = _Callable(model, self.role)
            named = {f"model.{name}": tensor for name, tensor in parameters.items()}
            tensors: tuple[Tensor, ...] = torch.func.functional_call(module, named, (states, agent_id))
            return _with_rows(tensors, states.shape[0], model)

        ids = inputs.get("agent_id")
        run = torch.func.vmap(compute, in_dims=(0, 0, None if ids is None else 0), randomness="different")
        return run(self._leaves, inputs["states"], ids)

    def _from_models(self, tensor: Tensor, batch: int) -> Tensor:
        """``[K, B*m or 1, n]`` to ``[B or 1, A, n]``."""
        if self._share == 1:
            return tensor.transpose(0, 1)
        if tensor.shape[1] == 1 and batch * self._share != 1:
            return tensor.repeat_interleave(self._share, dim=0).transpose(0, 1)
        return tensor.unflatten(1, (batch, self._share)).transpose(0, 1).flatten(1, 2)


class _Callable(nn.Module):
    """``compute`` as a forward, so that parameters can be substituted functionally."""

    def __init__(self, model: Model, role: str) -> None:
        super().__init__()
        self.model = model
        self.role = role

    def forward(self, states: Tensor, agent_id: Tensor | None) -> tuple[Tensor, ...]:
        output = self.model.compute({"states": states, "agent_id": agent_id}, self.role)
        return computed_tensors(output, self.model)


def _with_rows(tensors: Sequence[Tensor], rows: int, model: Model) -> tuple[Tensor, ...]:
    """Give bare parameters ``[n]`` the row dimension that outputs ``[rows, n]`` have.

    :raises ValueError: an output that is neither, or a first one without rows (a value that lost its last dimension would
        broadcast against targets ``[rows, 1]``)
    """
    for i, tensor in enumerate(tensors):
        if tensor.dim() not in ((2,) if i == 0 else (1, 2)) or (tensor.dim() == 2 and tensor.shape[0] not in (1, rows)):
            raise ValueError(
                f"{type(model).__name__}.compute returned a tensor of shape {list(tensor.shape)} for {rows} rows: "
                f"expected [{rows}, n]" + (", or [n] for a parameter" if i > 0 else "")
            )
    return tuple(tensor.unsqueeze(0) if tensor.dim() == 1 else tensor for tensor in tensors)


def _rows(tensor: Tensor, batch: int, agents: int) -> tuple[int, int]:
    return (batch, agents) if tensor.shape[0] == batch * agents else (1, 1)
