"""Running the models of several agents as one computation."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from coterie.models.base import Model
from coterie.models.flat_parameters import FlatParameters
from coterie.models.mixins import computed_tensors
from coterie.models.plan import Plan, build_plan, trace
from coterie.models.sequences import Recurrence, recurrence_of, unroll

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
        return type(model), settings, space, bool(model.uses_agent_id), recurrence_of(model), parameters

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

    ``mode`` tells which way was taken: ``"single"``, ``"stacked"``, ``"vmap"`` or ``"loop"``. Feed-forward models are called,
    recurrent ones (:attr:`recurrent`) unrolled.

    :raises ValueError: models of which some are recurrent and others not, or whose states or sequence lengths differ
    """

    def __init__(self, models: Sequence[Model], role: str, storage: FlatParameters, agent_ids: Tensor) -> None:
        self.models = list(models)
        self.role = role
        self.unique: list[Model] = list(dict.fromkeys(models))
        self.uses_agent_id = any(model.uses_agent_id for model in self.unique)
        self._agent_ids = agent_ids
        self._positions = agent_ids.argmax(dim=-1)  # in the team
        self._share = len(self.models) // len(self.unique)  # agents per model
        self._plan: Plan | None = None
        self._leaves: dict[str, Tensor] = {}
        self._recurrence = _common_recurrence(self.unique)
        self._of_team = self._are_of_team()
        self.mode = self._choose(storage)

    @property
    def recurrent(self) -> bool:
        """Whether the models carry states from step to step."""
        return self._recurrence is not None

    @property
    def team_size(self) -> int:
        """Number of agents of the whole team."""
        return int(self._agent_ids.shape[1])

    @property
    def state_width(self) -> int:
        """Number of elements W of one agent's states; 0 for feed-forward models."""
        return 0 if self._recurrence is None else self._recurrence.width

    @property
    def sequence_length(self) -> int:
        """Number of steps that gradients flow through; 1 for feed-forward models."""
        return 1 if self._recurrence is None else self._recurrence.sequence_length

    @property
    def one_for_all(self) -> bool:
        """Whether one model serves all agents and does not tell them apart: what all see alike it sees once."""
        return self.mode == "single" and not self.uses_agent_id

    def initial_state(self, rows: int, agents: int) -> Tensor:
        """States before the first step of an episode: zeros ``[rows, As, W]``.

        :param rows: number of environments (or sequences)
        :param agents: number of agents of the inputs: 1 where all see the same

        As is 1 where one model serves all agents the same input, else the number of agents.
        """
        first = next(self.unique[0].parameters(), None)
        dtype = None if first is None else first.dtype
        device = self.unique[0].device if first is None else first.device
        return torch.zeros(rows, self._state_agents(agents), self.state_width, dtype=dtype, device=device)

    def _state_agents(self, agents: int) -> int:
        return 1 if agents == 1 and self.one_for_all else len(self.models)

    def _choose(self, storage: FlatParameters) -> str:
        if len(self.unique) == 1:
            trace(self.unique[0], self.role)  # for its check that compute keeps nothing on self
            return "single"
        if self._of_team:
            return "loop"
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
            """Attributes, hooks and class of every submodule, as text."""
            return [
                (path, name, str(value.tolist()) if isinstance(value, Tensor) else repr(value))
                for path, module in model.named_modules()
                for name, value in (*vars(module).items(), ("__class__", type(module)))
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
            with torch.no_grad(), warnings.catch_warnings():
                # one says that an operation without a batched form is looped over inside, with more ado than outside
                warnings.simplefilter("error")
                zeros = torch.zeros(len(self.unique), 2, first.num_observations, device=first.device)
                ids = self._agent_ids[:: self._share].unsqueeze(1).expand(-1, 2, -1)
                if self._recurrence is None:
                    self._run_vmap({"states": zeros, "agent_id": ids})
                else:
                    inputs = {
                        "states": zeros,
                        "agent_id": ids,
                        "state": zeros.new_zeros(len(zeros), 1, self.state_width),
                    }
                    mask = torch.zeros(len(zeros), 2, 1, dtype=torch.bool, device=first.device)
                    self._unroll_vmap(inputs, 2)
                    self._unroll_vmap({**inputs, "starts": mask, "active": mask}, 2)
        except Exception:  # noqa: BLE001 (control flow on values, in-place writes and whatever else vmap refuses in user code)
            self._leaves = {}
            return False
        return True

    def __call__(self, states: Tensor, present: Tensor | None = None) -> tuple[Tensor, ...]:
        """Compute the role's outputs.

        :param states: ``[B, A, F]``, or ``[B, 1, F]`` where all agents see the same
        :param present: bool ``[B, agents of the team]``, who is there, for models with ``values_per_agent``; without effect on
            others

        :return: the tensors that ``compute`` returns, each ``[B, A, n]``; 1 in place of B or A where entries along that
            dimension are equal (a parameter, or a single model that gives all agents the same value)

        :raises TypeError: the models are recurrent
        """
        if self._recurrence is not None:
            raise TypeError(f"{type(self.unique[0]).__name__} is recurrent: call unroll, which takes its states")
        if self._of_team:
            return (self._team_values(states, present),)
        if self.mode == "single":
            return self._single(states)
        if self.mode == "loop":
            return self._loop(states)
        batch = states.shape[0]
        if self.uses_agent_id:
            ids = self._to_models(self._agent_ids.expand(batch, -1, -1))
            inputs = {"states": self._to_models(states), "agent_id": ids}
        elif states.shape[1] == 1:  # each model sees once what its agents see alike
            outputs = self._stacked({"states": states.transpose(0, 1).expand(len(self.unique), -1, -1)})
            return tuple(self._to_agents(output) for output in outputs)
        else:
            inputs = {"states": self._to_models(states)}
        return tuple(self._from_models(output, batch) for output in self._stacked(inputs))

    def _stacked(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        return self._plan(inputs) if self._plan is not None else self._run_vmap(inputs)

    def _are_of_team(self) -> bool:
        of_team = [model.values_per_agent for model in self.unique]
        if any(of_team) and (not all(of_team) or self._recurrence is not None):
            names = sorted({type(model).__name__ for model in self.unique})
            raise ValueError(
                f"{names}: critics with a value for each agent of a team cannot be batched with others, nor be recurrent; "
                "give all agents of equal spaces such a critic"
            )
        return any(of_team)

    def _team_values(self, states: Tensor, present: Tensor | None) -> Tensor:
        """The columns ``[B, A, 1]`` of these agents in what critics of the whole team return."""
        batch, rows, team = states.shape[0], states.shape[1], self._agent_ids.shape[1]
        if rows != 1:
            raise ValueError(
                f"a critic of the whole team sees one row per environment, [B, 1, F]: got {list(states.shape)}"
            )
        by_model: dict[Model, Tensor] = {}
        for model in self.unique:
            values = computed_tensors(model.compute({"states": states[:, 0], "present": present}, self.role), model)[0]
            if values.shape != (batch, team):
                raise ValueError(
                    f"{type(model).__name__}.compute returned a tensor of shape {list(values.shape)}: expected a value "
                    f"for each agent of the team, [{batch}, {team}]"
                )
            by_model[model] = values
        if len(self.unique) == 1:
            return by_model[self.unique[0]][:, self._positions].unsqueeze(-1)
        columns = zip(self.models, self._positions.tolist(), strict=True)
        return torch.stack([by_model[model][:, column] for model, column in columns], dim=1).unsqueeze(-1)

    def unroll(
        self, states: Tensor, state: Tensor, starts: Tensor | None, active: Tensor | None, length: int
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Compute a recurrent role's outputs over L steps of N sequences.

        As is as :meth:`initial_state` says; masks of one agent stand for all.

        :param states: ``[L*N, A, F]``, or ``[L*N, 1, F]`` where all agents see the same; row ``l * N + n`` is step l of
            sequence n
        :param state: states before the first step ``[N, As, W]``
        :param starts: bool ``[L*N, As, 1]``, True where an episode starts, so that the state is zeroed before the row
        :param active: bool ``[L*N, As, 1]``, False where the row leaves the state as it was
        :param length: L

        :return: the outputs as of a call, ``[L*N, A, n]``, and the states after the last step ``[N, As, W]``

        :raises TypeError: the models are feed-forward
        :raises ValueError: a number of rows that is no multiple of L, or states or masks of other shapes
        """
        if self._recurrence is None:
            raise TypeError(f"{type(self.unique[0]).__name__} is not recurrent: call the batch itself")
        agents = self._state_agents(states.shape[1])
        batch, sequences = states.shape[0], state.shape[0]
        if batch != length * sequences or state.shape[1:] != (agents, self.state_width):
            raise ValueError(
                f"expected {length} rows for each of the sequences of a state [N, {agents}, {self.state_width}], got "
                f"{batch} rows and a state of shape {list(state.shape)}"
            )
        by_agent = {"states": states.expand(-1, agents, -1), "state": state}
        if self.uses_agent_id:
            by_agent["agent_id"] = self._agent_ids.expand(batch, -1, -1)
        for name, mask in (("starts", starts), ("active", active)):
            if mask is not None:
                if mask.dim() != 3 or mask.shape[0] != batch or mask.shape[1] not in (1, agents) or mask.shape[2] != 1:
                    raise ValueError(f"{name}: expected [{batch}, {agents}, 1], got {list(mask.shape)}")
                by_agent[name] = mask.expand(-1, agents, -1)
        if self.mode == "loop":
            *outputs, new = self._loop_sequences(by_agent, length)
        elif self.mode == "single":
            rows = {name: tensor.flatten(0, 1) for name, tensor in by_agent.items()}
            *outputs, new = _unroll_rows(self.unique[0], self.role, self._recurrence, rows, length)
            outputs = [t.unflatten(0, _rows(t, batch, agents)) for t in outputs]
            new = new.unflatten(0, (sequences, agents))
        else:
            inputs = {name: self._to_models(tensor) for name, tensor in by_agent.items()}
            *outputs, new = (self._unroll_vmap if self._plan is None else self._unroll_plan)(inputs, length)
            outputs = [self._from_models(output, batch) for output in outputs]
            new = self._from_models(new, sequences)
        return tuple(outputs), new

    def _loop_sequences(self, by_agent: Mapping[str, Tensor], length: int) -> list[Tensor]:
        """Outputs ``[L*N, A, n]`` and then the new states ``[N, A, W]``, model by model."""
        columns: list[list[Tensor]] = [[] for _ in self.models]
        for model in self.unique:
            mine = [i for i, other in enumerate(self.models) if other is model]
            rows = {name: tensor[:, mine].flatten(0, 1) for name, tensor in by_agent.items()}
            if not model.uses_agent_id:
                rows.pop("agent_id", None)
            recurrence = recurrence_of(model)
            assert recurrence is not None
            *outputs, new = _unroll_rows(model, self.role, recurrence, rows, length)
            count = len(rows["states"])
            for tensor in (*(output.expand(count, -1) for output in outputs), new):
                for i, column in zip(mine, tensor.unflatten(0, (-1, len(mine))).unbind(1), strict=True):
                    columns[i].append(column)
        return [torch.stack(parts, dim=1) for parts in zip(*columns, strict=True)]

    def _unroll_plan(self, inputs: Mapping[str, Tensor], length: int) -> tuple[Tensor, ...]:
        assert self._plan is not None
        assert self._recurrence is not None
        return self._plan({**inputs, "rnn": self._recurrence.unpack(inputs["state"]), "length": length})

    def _unroll_vmap(self, inputs: Mapping[str, Tensor], length: int) -> tuple[Tensor, ...]:
        assert self._recurrence is not None
        module = _Unrolled(self.unique[0], self.role, self._recurrence, length)

        def compute(parameters: dict[str, Tensor], rows: dict[str, Tensor]) -> tuple[Tensor, ...]:
            named = {f"model.{name}": tensor for name, tensor in parameters.items()}
            outputs: tuple[Tensor, ...] = torch.func.functional_call(module, named, (rows,))
            return outputs

        return torch.func.vmap(compute, randomness="different")(self._leaves, dict(inputs))

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
            own = states if whole or states.shape[1] == 1 else states[:, mine]
            if model.uses_agent_id:
                own = own.expand(-1, len(mine), -1)
            batch, agents = own.shape[:2]  # 1 agent where all see alike, and the model need not run for each of its own
            inputs: dict[str, Any] = {"states": own.reshape(batch * agents, -1)}
            if model.uses_agent_id:
                inputs["agent_id"] = self._agent_ids[mine].expand(batch, -1, -1).reshape(batch * agents, -1)
            tensors = computed_tensors(model.compute(inputs, self.role), model)
            for tensor in _with_rows(tensors, batch * agents, model):
                rows = tensor.expand(batch * agents, -1).unflatten(0, (batch, agents)).expand(-1, len(mine), -1)
                for i, column in zip(mine, rows.unbind(1), strict=True):
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

    def _to_models(self, tensor: Tensor) -> Tensor:
        """``[B, A or 1, n]`` to ``[K, B*m, n]``, m agents to a model."""
        models, share = len(self.unique), self._share
        if share == 1:
            return tensor.transpose(0, 1).expand(models, -1, -1)
        return tensor.expand(-1, models * share, -1).unflatten(1, (models, share)).transpose(0, 1).flatten(1, 2)

    def _to_agents(self, tensor: Tensor) -> Tensor:
        """``[K, B or 1, n]`` to ``[B or 1, A, n]``, where a model's agents have one output in common."""
        shared = tensor if self._share == 1 else tensor.repeat_interleave(self._share, dim=0)
        return shared.transpose(0, 1)

    def _from_models(self, tensor: Tensor, batch: int) -> Tensor:
        """``[K, B*m or 1, n]`` to ``[B or 1, A, n]``."""
        if self._share == 1 or tensor.shape[1] == 1:
            return self._to_agents(tensor)
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


class _Unrolled(nn.Module):
    """:func:`_unroll_rows` as a forward: see :class:`_Callable`."""

    def __init__(self, model: Model, role: str, recurrence: Recurrence, length: int) -> None:
        super().__init__()
        self.model = model
        self.settings = role, recurrence
        self.length = length

    def forward(self, rows: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        return _unroll_rows(self.model, *self.settings, rows, self.length)


def _unroll_rows(
    model: Model, role: str, recurrence: Recurrence, rows: Mapping[str, Tensor], length: int
) -> tuple[Tensor, ...]:
    """Outputs ``[L*N or 1, n]`` of one model, and then its new states ``[N, W]``.

    :param rows: ``"states"`` ``[L*N, F]``, the packed ``"state"`` ``[N, W]`` and, where there are any, ``"agent_id"``,
        ``"starts"`` and ``"active"``
    """
    inputs = {name: rows[name] for name in ("states", "agent_id") if name in rows}
    tensors, state = unroll(
        model, role, recurrence, inputs, rows["state"], rows.get("starts"), rows.get("active"), length
    )
    return (*_with_rows(tensors, rows["states"].shape[0], model), state)


def _common_recurrence(models: Sequence[Model]) -> Recurrence | None:
    """What the models of a batch declare.

    :raises ValueError: states or sequence lengths differ
    """
    first = recurrence_of(models[0])
    for model in models[1:]:
        other = recurrence_of(model)
        if (other is None) != (first is None) or (
            first is not None
            and other is not None
            and (first.sizes, first.sequence_length) != (other.sizes, other.sequence_length)
        ):
            raise ValueError(
                f"agents of equal spaces need models of equal recurrence: {type(models[0]).__name__} declares {first}, "
                f"{type(model).__name__} {other}"
            )
    return first


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
