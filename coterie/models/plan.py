"""Models of one architecture as one list of batched tensor operations.

``compute`` of every model is traced symbolically. Where the trace is made of layers, element-wise functions and means over
features alone, it is replayed on tensors ``[K, N, F]``, K models times N rows, with the models' parameters stacked along K: a
linear layer becomes one batched matrix product, a recurrent layer one scan. A trace with anything else in it is refused
(None), and the caller falls back to ``torch.vmap`` or to a loop, which are slower and always right.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from coterie.models.base import Model
from coterie.models.flat_parameters import FlatParameters
from coterie.models.layers import Tanh, stacked_linear, tanh
from coterie.models.recurrent import RecurrentLayer
from coterie.models.sequences import Recurrence, recurrence_of

__all__ = ["build_plan", "trace"]

Plan = Callable[[Mapping[str, Any]], tuple[Tensor, ...]]
Step = Callable[[list[Any]], Any]

#: inputs that describe sequences: only recurrent layers know what to do with them
SEQUENCE_INPUTS = ("rnn", "length", "starts", "active")

ELEMENTWISE_MODULES = (
    nn.ReLU, nn.ELU, nn.GELU, nn.SiLU, nn.LeakyReLU, nn.Sigmoid, nn.Softplus, nn.Identity, nn.Mish, nn.SELU,
    nn.CELU, nn.Hardtanh, nn.Hardswish, nn.Softsign, nn.Tanhshrink, nn.LogSigmoid, nn.ReLU6, nn.Hardsigmoid,
)  # fmt: skip
ELEMENTWISE_FUNCTIONS = {
    torch.tanh, torch.relu, torch.sigmoid, torch.exp, torch.log, torch.abs, torch.square, torch.sqrt, torch.clamp, torch.neg,
    torch.add, torch.sub, torch.mul, torch.div, torch.sin, torch.cos, torch.nn.functional.softplus,
    F.tanh, F.relu, F.elu, F.gelu, F.silu, F.leaky_relu, F.sigmoid, F.selu, F.mish, F.hardtanh, F.softsign,
    operator.add, operator.sub, operator.mul, operator.truediv, operator.neg, operator.pow,
}  # fmt: skip
ELEMENTWISE_METHODS = {
    "tanh", "relu", "sigmoid", "exp", "log", "abs", "square", "sqrt", "clamp", "neg", "add", "sub", "mul", "div",
    "expand_as", "float",
}  # fmt: skip


class _Traceable(nn.Module):
    """``compute`` as a function of plain tensors, for the tracer."""

    def __init__(self, model: Model, role: str) -> None:
        super().__init__()
        self.model = model
        self.role = role
        self.recurrence = recurrence_of(model)

    def forward(self, states: Any, agent_id: Any, rnn: Any, length: Any, starts: Any, active: Any) -> Any:
        inputs = {"states": states, "agent_id": agent_id}
        if self.recurrence is not None:
            inputs["rnn"] = [rnn[i] for i in range(len(self.recurrence.sizes))]
            if self.recurrence.whole_sequences:
                inputs |= {"length": length, "starts": starts, "active": active}
        return self.model.compute(inputs, self.role)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (Tanh, RecurrentLayer)) or super().is_leaf_module(m, module_qualified_name)


def trace(model: Model, role: str) -> tuple[fx.Graph, str] | None:
    """Trace ``model.compute``: its graph, and a text equal for models that compute the same function of their parameters.

    :return: None where the model cannot be traced (control flow on values, other inputs, calls that the tracer cannot follow)
        or computes something else in training than in evaluation

    :raises ValueError: ``compute`` keeps tensors on ``self``, so that one call changes what another returns
    """
    mode = model.training
    try:
        traces = [_trace_once(model.train(training), role) for training in (True, False)]
    finally:
        model.train(mode)
    if traces[0] is None or traces[1] is None or traces[0][1] != traces[1][1]:
        return None
    return traces[0]


def _trace_once(model: Model, role: str) -> tuple[fx.Graph, str] | None:
    before = dict(vars(model))
    try:
        graph = _Tracer().trace(_Traceable(model, role))
    except Exception:  # noqa: BLE001 (whatever user code raises at a symbolic value: it is then not traceable)
        return None
    finally:
        kept = [name for name, value in vars(model).items() if isinstance(value, fx.Proxy)]
        vars(model).update(before)
        for name in set(vars(model)) - set(before):
            del vars(model)[name]
    if kept:
        raise ValueError(
            f"{type(model).__name__}.compute stores {kept} on self: what it returns must depend on its inputs alone; "
            "compute the shared part in each role instead"
        )
    root = _Traceable(model, role)
    described = [str(root.get_submodule(n.target)) for n in graph.nodes if n.op == "call_module"]
    return graph, f"{graph}\n" + "\n".join(described)


def build_plan(models: Sequence[Model], role: str, storage: FlatParameters) -> Plan | None:
    """Compile the models' ``compute`` into one function of inputs ``[K, N, F]`` that returns tensors ``[K, N or 1, n]``.

    For recurrent models N is L*N, time-major, the inputs are also ``"rnn"`` (a list of states ``[K, layers, N, hidden]``),
    ``"length"``, ``"starts"`` and ``"active"``, and the last tensor returned is the packed new states ``[K, N, W]``.

    :return: None where the models differ in more than their parameters, or use an operation without a batched form
    """
    traces = [trace(model, role) for model in models]
    recurrence = recurrence_of(models[0])
    if recurrence is not None and not recurrence.whole_sequences:
        return None  # what is written for single steps has to be unrolled
    if traces[0] is None or any(t is None or t[1] != traces[0][1] for t in traces):
        return None
    compiler = _Compiler([_Traceable(model, role) for model in models], storage, recurrence)
    try:
        for node in traces[0][0].nodes:
            compiler.add(node)
    except _NoBatchedFormError:
        return None
    return compiler.plan()


class _NoBatchedFormError(Exception):
    """A traced operation has no rule here."""


class _Compiler:
    def __init__(
        self, roots: Sequence[_Traceable], storage: FlatParameters, recurrence: Recurrence | None = None
    ) -> None:
        self._roots = roots
        self._storage = storage
        self._recurrence = recurrence
        self._slots: dict[fx.Node, int] = {}
        self._rows: set[fx.Node] = set()  # nodes whose value has a row dimension: not bare parameters
        self._sequence: set[fx.Node] = set()  # nodes that describe sequences, among them states
        self._steps: list[Step] = []
        self._inputs: list[str] = []
        self._outputs: list[int] = []

    def plan(self) -> Plan:
        inputs, steps, outputs = self._inputs, self._steps, self._outputs

        def run(tensors: Mapping[str, Any]) -> tuple[Tensor, ...]:
            values: list[Any] = [tensors.get(name) for name in inputs]
            for step in steps:
                values.append(step(values))
            return tuple(values[i] for i in outputs)

        return run

    def add(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            if node.users:
                self._slots[node] = len(self._inputs)
                self._inputs.append(str(node.target))
                (self._sequence if node.target in SEQUENCE_INPUTS else self._rows).add(node)
        elif node.op == "output":
            (output,) = node.args
            if not isinstance(output, (tuple, list)):
                raise _NoBatchedFormError
            self._outputs = [self._slots[item] for item in output if isinstance(item, fx.Node)]
            if self._recurrence is not None:
                self._outputs.append(self._add_step(self._new_states(output[-1], self._recurrence)))
        else:
            rule = self._sequence_rule if self._is_of_sequences(node) else getattr(self, f"_{node.op}")
            self._slots[node] = self._add_step(rule(node))
            if node not in self._sequence and (
                node.op == "call_module" or any(argument in self._rows for argument in node.all_input_nodes)
            ):
                self._rows.add(node)

    def _add_step(self, step: Step) -> int:
        self._steps.append(step)
        return len(self._inputs) + len(self._steps) - 1

    # ---- recurrent layers ---------------------------------------------------------------------------------------------

    def _is_of_sequences(self, node: fx.Node) -> bool:
        return any(argument in self._sequence for argument in node.all_input_nodes)

    def _sequence_rule(self, node: fx.Node) -> Step:
        """A recurrent layer, or one item of a list of states or of what such a layer returns."""
        if node.op == "call_module":
            return self._recurrent_layer(node)
        source, item = node.args[0], node.args[-1]
        if node.target is not operator.getitem or source not in self._sequence or not isinstance(item, int):
            raise _NoBatchedFormError
        assert isinstance(source, fx.Node)
        if source.op == "call_module" and item == 0:
            self._rows.add(node)  # features
        else:
            self._sequence.add(node)
        x = self._slots[source]
        return lambda values: values[x][item]

    def _recurrent_layer(self, node: fx.Node) -> Step:
        name = str(node.target)
        layer = self._roots[0].get_submodule(name)
        arguments = [*node.args, *node.kwargs.values()]
        if not isinstance(layer, RecurrentLayer) or len(arguments) != 2 or self._hooked(name):
            raise _NoBatchedFormError
        x, inputs = arguments
        if not isinstance(x, fx.Node) or x not in self._rows or not isinstance(inputs, Mapping):
            raise _NoBatchedFormError
        states = inputs.get("rnn")
        if not isinstance(states, (list, tuple)):
            raise _NoBatchedFormError
        column: Callable[[Tensor], Tensor] = lambda bias: bias.unsqueeze(1)  # noqa: E731
        weights = [
            (
                self._stack(f"{name}.{weight}"),
                self._stack(f"{name}.{recurrent}"),
                self._stack(f"{name}.{bias}", column),
                self._stack(f"{name}.{recurrent_bias}", column),
            )
            for weight, recurrent, bias, recurrent_bias in layer.weight_names()
        ]
        rows = self._slots[x]
        described = [*states, *(inputs.get(key) for key in ("length", "starts", "active"))]
        slots = [self._slots[a] for a in described if isinstance(a, fx.Node) and a in self._sequence]
        if len(slots) != len(described):
            raise _NoBatchedFormError
        *before, length, starts, active = slots
        self._sequence.add(node)
        return lambda values: layer.scan(
            values[rows], weights, [values[i] for i in before], values[starts], values[active], values[length]
        )

    def _new_states(self, last: Any, recurrence: Recurrence) -> Step:
        states = last.get("rnn") if isinstance(last, Mapping) else None
        if isinstance(states, fx.Node) and states in self._sequence:
            whole = self._slots[states]
            return lambda values: recurrence.pack(values[whole])
        if not isinstance(states, (list, tuple)) or not all(state in self._sequence for state in states):
            raise _NoBatchedFormError
        slots = [self._slots[state] for state in states if isinstance(state, fx.Node)]
        return lambda values: recurrence.pack([values[i] for i in slots])

    # ---- parameters and feed-forward layers ---------------------------------------------------------------------------

    def _stack(self, names: str, layout: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
        try:
            parameters = [root.get_parameter(names) for root in self._roots]
        except AttributeError:  # worked out from other parameters, as spectral_norm does
            raise _NoBatchedFormError from None
        if not all(self._storage.holds(p) for p in parameters):
            raise _NoBatchedFormError
        leaf = self._storage.stacked(parameters, layout)
        if leaf is None:
            raise _NoBatchedFormError
        return leaf

    def _get_attr(self, node: fx.Node) -> Step:
        try:
            shape = self._roots[0].get_parameter(str(node.target)).shape
        except AttributeError:  # a buffer or a constant tensor
            raise _NoBatchedFormError from None
        if len(shape) == 1:
            leaf = self._stack(str(node.target), lambda x: x.unsqueeze(1))
        elif len(shape) == 2 and shape[0] == 1:
            leaf = self._stack(str(node.target))
        else:
            raise _NoBatchedFormError
        return lambda values: leaf

    def _call_module(self, node: fx.Node) -> Step:
        name = str(node.target)
        module = self._roots[0].get_submodule(name)
        if len(node.args) != 1 or node.kwargs:
            raise _NoBatchedFormError
        argument = node.args[0]
        if not isinstance(argument, fx.Node) or argument not in self._rows:
            raise _NoBatchedFormError
        if self._hooked(name):
            raise _NoBatchedFormError
        x = self._slots[argument]
        if type(module) is nn.Linear:
            weight = self._stack(f"{name}.weight")
            if module.bias is None:
                return lambda values: torch.bmm(values[x], weight.mT)
            bias = self._stack(f"{name}.bias", lambda b: b.unsqueeze(1))
            return lambda values: stacked_linear(values[x], weight, bias)
        if type(module) is nn.LayerNorm and len(module.normalized_shape) == 1:
            shape, eps = module.normalized_shape, module.eps
            if module.weight is None or module.bias is None:
                raise _NoBatchedFormError
            gain = self._stack(f"{name}.weight", lambda w: w.unsqueeze(1))
            shift = self._stack(f"{name}.bias", lambda b: b.unsqueeze(1))
            return lambda values: torch.addcmul(shift, F.layer_norm(values[x], shape, eps=eps), gain)
        if type(module) in (nn.Tanh, Tanh):
            inplace = len(argument.users) == 1 and self._is_linear(argument)
            return lambda values: tanh(values[x], inplace)
        if type(module) in ELEMENTWISE_MODULES and not getattr(module, "inplace", False):
            return lambda values: module(values[x])
        raise _NoBatchedFormError

    def _hooked(self, name: str) -> bool:
        return any(m._forward_hooks or m._forward_pre_hooks for m in (r.get_submodule(name) for r in self._roots))

    def _is_linear(self, node: fx.Node) -> bool:
        return node.op == "call_module" and type(self._roots[0].get_submodule(str(node.target))) is nn.Linear

    def _call_function(self, node: fx.Node) -> Step:
        if node.target in (torch.cat, torch.concat):
            return self._cat(node)
        if node.target is torch.mean:
            return self._mean(node)
        if node.target not in ELEMENTWISE_FUNCTIONS or node.kwargs.get("inplace"):
            raise _NoBatchedFormError
        return self._elementwise(node, node.target)

    def _call_method(self, node: fx.Node) -> Step:
        if node.target == "mean":
            return self._mean(node)
        if node.target not in ELEMENTWISE_METHODS:
            raise _NoBatchedFormError
        return self._elementwise(node, getattr(Tensor, str(node.target)))

    def _elementwise(self, node: fx.Node, function: Callable[..., Any]) -> Step:
        constants = [a for a in (*node.args, *node.kwargs.values()) if not isinstance(a, fx.Node)]
        if not all(constant is None or isinstance(constant, (int, float, bool, str)) for constant in constants):
            raise _NoBatchedFormError
        kwargs = dict(node.kwargs)
        if any(isinstance(value, fx.Node) for value in kwargs.values()):
            raise _NoBatchedFormError
        arguments = [self._slots[a] if isinstance(a, fx.Node) else None for a in node.args]
        fixed = list(node.args)
        return lambda values: function(
            *(fixed[i] if slot is None else values[slot] for i, slot in enumerate(arguments)), **kwargs
        )

    def _mean(self, node: fx.Node) -> Step:
        """The mean over the features of each row; over anything else it has no batched form."""
        named = {**dict(zip(("x", "dim", "keepdim"), node.args, strict=False)), **node.kwargs}
        x = named.pop("x", None)
        if named not in ({"dim": -1, "keepdim": True}, {"dim": 1, "keepdim": True}):  # [N, F] is what compute sees
            raise _NoBatchedFormError
        if not isinstance(x, fx.Node) or x not in self._rows:
            raise _NoBatchedFormError
        slot = self._slots[x]
        return lambda values: torch.mean(values[slot], dim=-1, keepdim=True)

    def _cat(self, node: fx.Node) -> Step:
        parts = node.args[0]
        dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
        # compute sees [N, F]: dimension 1 is the last one, here as there
        if dim not in (-1, 1) or not isinstance(parts, (tuple, list)) or not all(p in self._rows for p in parts):
            raise _NoBatchedFormError
        slots = [self._slots[part] for part in parts if isinstance(part, fx.Node)]
        return lambda values: torch.cat([values[slot] for slot in slots], dim=-1)
