"""Recurrent layers over whole sequences, with resets where episodes start and frozen states where an agent does not act.

The layers equal ``torch.nn.GRU`` and ``torch.nn.LSTM``. Those take unbroken sequences only, so they would have to be called
step by step; here one pass does them, for one model or for the stacked parameters of K models: ``x [K, L, N, F]``, L steps
of N sequences. The inputs of all rows are projected in one product, a step is one more product and a few element-wise
operations, and the backward pass is written out: the local derivatives of all steps are worked out at once, so that its
recursion is a product and a scaling per step, and the weights' gradients are one product over all rows.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from coterie.models.layers import stacked_linear, vmapped

__all__ = ["GRU", "LSTM", "RecurrentLayer"]

#: a layer's weight_ih ``[K, G, F]``, weight_hh ``[K, G, H]``, bias_ih ``[K, 1, G]`` and bias_hh ``[K, 1, G]``
LayerWeights = tuple[Tensor, Tensor, Tensor, Tensor]


def _fold(call: Callable[..., tuple[Tensor, ...]], size: int, dims: Sequence[int | None], args: Sequence[Any]) -> Any:
    """Rule for ``torch.vmap``: the mapped dimension becomes a part of K."""

    def folded(argument: Any, dim: int | None) -> Any:
        if not isinstance(argument, Tensor):
            return argument
        moved = argument.expand(size, *argument.shape) if dim is None else argument.movedim(dim, 0)
        return moved.flatten(0, 1)

    outputs = call(*(folded(argument, dim) for argument, dim in zip(args, dims, strict=True)))
    return tuple(output.unflatten(0, (size, -1)) for output in outputs), (0,) * len(outputs)


def _kept(starts: Tensor | None, like: Tensor) -> Tensor | None:
    """What a state is multiplied by before each step: 0 where an episode starts."""
    return None if starts is None else (~starts).to(like.dtype)


def _before(first: Tensor, after: Tensor, keep: Tensor | None) -> Tensor:
    """States before each step ``[K, L, N, H]``, from those before the first and those after each."""
    before = torch.cat([first.unsqueeze(1), after[:, :-1]], dim=1)
    return before if keep is None else before.mul_(keep)


def _tanh_(x: Tensor) -> Tensor:
    """Hyperbolic tangent in place, as 2 sigmoid(2x) - 1: see :func:`coterie.models.layers.tanh`."""
    return x.tanh_() if x.device.type != "cpu" or x.dtype != torch.float32 else x.add_(x).sigmoid_().mul_(2.0).sub_(1.0)


class _GRUScan(torch.autograd.Function):
    """States of a GRU after each step (Cho et al. 2014, in the form of ``torch.nn.GRU``)::

    r = sigmoid(x_r + U_r h + b_r),  z = sigmoid(x_z + U_z h + b_z)
    n = tanh(x_n + r (U_n h + b_n)),  h' = (1 - z) n + z h
    """

    @staticmethod
    def forward(
        x: Tensor, h: Tensor, weight: Tensor, bias: Tensor, starts: Tensor | None, active: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Scan.

        :param x: projected inputs ``[K, L, N, 3H]``, in the order r, z, n
        :param h: states before the first step ``[K, N, H]``
        :param weight: ``[K, 3H, H]``
        :param bias: ``[K, 1, 3H]``
        :param starts: bool ``[K, L, N, 1]``, True: the state is zeroed before the step
        :param active: bool ``[K, L, N, 1]``, False: the step leaves the state as it is

        :return: states after each step ``[K, L, N, H]``; for the backward pass r, z and U_n h + b_n ``[K, L, N, 3H]``, and n
        """
        size = h.shape[-1]
        after, candidates = (x.new_empty(*x.shape[:3], size) for _ in range(2))
        gates = torch.empty_like(x)
        keep = _kept(starts, x)
        for t in range(x.shape[1]):
            if keep is not None:
                h = h * keep[:, t]
            gate = torch.baddbmm(bias, h, weight.mT, out=gates[:, t])
            r_and_z = gate[..., : 2 * size].add_(x[:, t, :, : 2 * size]).sigmoid_()
            n = torch.addcmul(x[:, t, :, 2 * size :], r_and_z[..., :size], gate[..., 2 * size :], out=candidates[:, t])
            new = torch.lerp(_tanh_(n), h, r_and_z[..., size:], out=after[:, t])
            h = new if active is None else torch.where(active[:, t], new, h, out=new)
        return after, gates, candidates

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, h, weight, _, starts, active = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(h, weight, starts, active, *output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        h, weight, starts, active, after, gates, n = ctx.saved_tensors
        r, z, product = gates.unflatten(-1, (3, -1)).unbind(-2)
        keep = _kept(starts, after)
        before = _before(h, after, keep)
        # derivatives of h' by the arguments of r, z and by U_n h + b_n: [K, L, N, 3, H]; by the argument of n: [K, L, N, H]
        by_gates = torch.empty_like(gates).unflatten(-1, (3, -1))
        by_r, by_z, by_product = by_gates.unbind(-2)
        not_z = 1.0 - z
        by_n = torch.addcmul(not_z, not_z * n, n, value=-1.0)
        torch.mul(by_n, r, out=by_product)
        torch.mul(by_product, product, out=by_r).mul_(1.0 - r)
        torch.sub(before, n, out=by_z).mul_(z).mul_(not_z)
        if active is not None:
            by_gates, by_n, z = by_gates.mul_(active.unsqueeze(-1)), by_n.mul_(active), torch.where(active, z, 1.0)
        carried = torch.zeros_like(h)
        for t in reversed(range(after.shape[1])):
            by_h = grads[0][:, t] + carried  # of the loss by h', through all later steps too
            by_n[:, t].mul_(by_h)
            by_gate = by_gates[:, t].mul_(by_h.unsqueeze(-2)).flatten(-2)
            carried = torch.baddbmm(by_h * z[:, t], by_gate, weight)
            if keep is not None:
                carried.mul_(keep[:, t])
        rows = by_gates.flatten(-2).flatten(1, 2)
        by_weight, by_bias = torch.bmm(rows.mT, before.flatten(1, 2)), rows.sum(dim=1, keepdim=True)
        by_product.copy_(by_n)  # from here on by_gates are the derivatives by x
        return by_gates.flatten(-2), carried, by_weight, by_bias, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Sequence[int | None], *args: Any) -> Any:
        return _fold(_GRUScan.apply, info.batch_size, in_dims, args)


class _LSTMScan(torch.autograd.Function):
    """States of an LSTM after each step (Hochreiter and Schmidhuber 1997, in the form of ``torch.nn.LSTM``)::

    i, f, o = sigmoid(x + U h + b),  g = tanh(x_g + U_g h + b_g)
    c' = f c + i g,  h' = o tanh(c')
    """

    @staticmethod
    def forward(
        x: Tensor, h: Tensor, c: Tensor, weight: Tensor, bias: Tensor, starts: Tensor | None, active: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Scan: as :meth:`_GRUScan.forward`, with gates in the order i, f, g, o.

        :return: h and c after each step ``[K, L, N, H]``; for the backward pass the gates ``[K, L, N, 4H]``
        """
        size = h.shape[-1]
        hs, cs = (x.new_empty(*x.shape[:3], size) for _ in range(2))
        gates = x + bias.unsqueeze(1)  # what a step adds its product to
        keep = _kept(starts, x)
        for t in range(x.shape[1]):
            if keep is not None:
                h, c = h * keep[:, t], c * keep[:, t]
            gate = gates[:, t].baddbmm_(h, weight.mT)
            i, f, g, o = gate.split(size, dim=-1)
            gate[..., : 2 * size].sigmoid_()
            new_c = torch.mul(f, c, out=cs[:, t]).addcmul_(i, _tanh_(g))
            new_h = torch.mul(o.sigmoid_(), _tanh_(new_c.clone()), out=hs[:, t])
            h = new_h if active is None else torch.where(active[:, t], new_h, h, out=new_h)
            c = new_c if active is None else torch.where(active[:, t], new_c, c, out=new_c)
        return hs, cs, gates

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, h, c, weight, _, starts, active = inputs
        ctx.mark_non_differentiable(output[2])
        ctx.save_for_backward(h, c, weight, starts, active, *output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        h, c, weight, starts, active, hs, cs, gates = ctx.saved_tensors
        i, f, g, o = gates.unflatten(-1, (4, -1)).unbind(-2)
        keep = _kept(starts, hs)
        before_h, before_c = _before(h, hs, keep), _before(c, cs, keep)
        # derivatives of c' by the arguments of i, f, g, and of h' by that of o: [K, L, N, 4, H]; of h' by c': [K, L, N, H]
        by_gates = torch.empty_like(gates).unflatten(-1, (4, -1))
        by_i, by_f, by_g, by_o = by_gates.unbind(-2)
        tanh_c = _tanh_(cs.clone())
        by_c = torch.addcmul(o, o * tanh_c, tanh_c, value=-1.0)
        torch.mul(i, g, out=by_i).mul_(1.0 - i)
        torch.mul(f, before_c, out=by_f).mul_(1.0 - f)
        torch.mul(i, 1.0 - g * g, out=by_g)
        torch.mul(o, tanh_c, out=by_o).mul_(1.0 - o)
        through: Tensor | None = None
        if active is not None:
            by_gates, by_c, f = by_gates.mul_(active.unsqueeze(-1)), by_c.mul_(active), torch.where(active, f, 1.0)
            through = (~active).to(hs.dtype)  # h passes a frozen step as it is
        carried_h, carried_c = torch.zeros_like(h), torch.zeros_like(c)
        for t in reversed(range(hs.shape[1])):
            by_h = grads[0][:, t] + carried_h
            total_c = torch.addcmul(grads[1][:, t] + carried_c, by_h, by_c[:, t])
            by_gates[:, t, :, :3].mul_(total_c.unsqueeze(-2))
            by_o[:, t].mul_(by_h)
            carried_h = torch.bmm(by_gates[:, t].flatten(-2), weight)
            carried_c = total_c * f[:, t]
            if through is not None:
                carried_h.addcmul_(by_h, through[:, t])
            if keep is not None:
                carried_h, carried_c = carried_h.mul_(keep[:, t]), carried_c.mul_(keep[:, t])
        by_x = by_gates.flatten(-2)
        rows = by_x.flatten(1, 2)
        by_weight, by_bias = torch.bmm(rows.mT, before_h.flatten(1, 2)), rows.sum(dim=1, keepdim=True)
        return by_x, carried_h, carried_c, by_weight, by_bias, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Sequence[int | None], *args: Any) -> Any:
        return _fold(_LSTMScan.apply, info.batch_size, in_dims, args)


def _run(scan: type[torch.autograd.Function], *args: Tensor | None) -> tuple[Tensor, ...]:
    """Apply a scan, without the bookkeeping for a backward pass where there will be none."""
    call: Callable[..., tuple[Tensor, ...]] = scan.apply if torch.is_grad_enabled() or vmapped() else scan.forward
    return call(*args)


class RecurrentLayer(nn.Module):
    """Base of :class:`GRU` and :class:`LSTM`: everything but the cell.

    Parameters have the names and shapes of PyTorch's own, and their uniform initial values; but the recurrent weights of
    each gate start orthogonal.

    Models that use it declare ``{"rnn": {"sizes": self.rnn.sizes, "sequence_length": L, "whole_sequences": True}}`` in
    ``get_specification``, and write in ``compute``::

        features, states = self.rnn(self.encoder(inputs["states"]), inputs)
        return self.head(features), {"rnn": states}

    :param input_size: F
    :param hidden_size: H
    :param num_layers: number of layers on top of each other

    :raises ValueError: sizes below 1
    """

    #: gates of a cell
    gates: int
    #: state tensors of a cell
    states: int

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1) -> None:
        super().__init__()
        if min(input_size, hidden_size, num_layers) < 1:
            raise ValueError(
                f"expected sizes of at least 1, got inputs {input_size}, hidden {hidden_size}, layers {num_layers}"
            )
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        rows, bound = self.gates * hidden_size, 1.0 / math.sqrt(hidden_size)
        for layer, names in enumerate(self.weight_names()):
            shapes = (rows, hidden_size if layer else input_size), (rows, hidden_size), (rows,), (rows,)
            for name, shape in zip(names, shapes, strict=True):
                self.register_parameter(name, nn.Parameter(torch.empty(shape).uniform_(-bound, bound)))
            for gate in self.get_parameter(names[1]).detach().chunk(self.gates):
                nn.init.orthogonal_(gate)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """``(layers, hidden)`` of each state tensor, for ``get_specification``."""
        return [(self.num_layers, self.hidden_size)] * self.states

    def weight_names(self) -> list[tuple[str, str, str, str]]:
        """Names of each layer's parameters, in the order of :data:`LayerWeights`."""
        return [
            (f"weight_ih_l{layer}", f"weight_hh_l{layer}", f"bias_ih_l{layer}", f"bias_hh_l{layer}")
            for layer in range(self.num_layers)
        ]

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}"

    def forward(self, x: Tensor, inputs: Mapping[str, Any]) -> tuple[Tensor, list[Tensor]]:
        """Scan sequences.

        :param x: ``[L*N, input_size]``, time-major: row ``l * N + n`` is step l of sequence n
        :param inputs: what ``compute`` got. ``"rnn"``: states before the first step, a list of ``[layers, N, H]`` (zero where
            missing), ``"length"``: L (1 where missing), ``"starts"`` and ``"active"``: bool ``[L*N, 1]`` or None

        :return: features ``[L*N, H]`` (those of a row that is not active mean nothing), and the states after the last step

        :raises ValueError: a number of rows that is no multiple of L, or states of other shapes
        """
        # not get_parameter: torch.func puts other tensors in place of parameters
        weights = [tuple(getattr(self, name) for name in names) for names in self.weight_names()]
        stacked = [(w.unsqueeze(0), u.unsqueeze(0), b.view(1, 1, -1), c.view(1, 1, -1)) for w, u, b, c in weights]
        states, starts, active = inputs.get("rnn"), inputs.get("starts"), inputs.get("active")
        features, new = self.scan(
            x.unsqueeze(0),
            stacked,
            None if states is None else [state.unsqueeze(0) for state in states],
            None if starts is None else starts.unsqueeze(0),
            None if active is None else active.unsqueeze(0),
            inputs.get("length", 1),
        )
        return features.squeeze(0), [state.squeeze(0) for state in new]

    def scan(
        self,
        x: Tensor,
        weights: Sequence[LayerWeights],
        states: Sequence[Tensor] | None,
        starts: Tensor | None,
        active: Tensor | None,
        length: int,
    ) -> tuple[Tensor, list[Tensor]]:
        """:meth:`forward` for the stacked parameters of K models.

        :param x: ``[K, L*N, F]``
        :param weights: of each layer
        :param states: of ``[K, layers, N, H]`` each
        :param starts: bool ``[K, L*N, 1]``
        :param active: bool ``[K, L*N, 1]``
        :param length: L

        :return: features ``[K, L*N, H]`` and new states ``[K, layers, N, H]``
        """
        if torch.is_autocast_enabled(x.device.type):  # a recurrence adds its rounding errors up
            with torch.autocast(x.device.type, enabled=False):
                return self.scan(x.to(weights[0][0].dtype), weights, states, starts, active, length)
        models, rows = x.shape[:2]
        if rows % length:
            raise ValueError(f"{type(self).__name__} got {rows} rows: expected a multiple of the length {length}")
        per_step = length, rows // length
        shape = models, self.num_layers, per_step[1], self.hidden_size
        if states is None:
            states = [x.new_zeros(shape) for _ in range(self.states)]
        if [tuple(state.shape) for state in states] != [shape] * self.states:
            raise ValueError(
                f"{self} expected {self.states} state(s) of shape {list(shape[1:])}, got "
                f"{[list(state.shape[1:]) for state in states]}; is the model's get_specification right?"
            )
        starts = None if starts is None else starts.unflatten(1, per_step)
        active = None if active is None else active.unflatten(1, per_step)
        after: list[Sequence[Tensor]] = []
        for layer, (weight, recurrent, bias, recurrent_bias) in enumerate(weights):
            projected = stacked_linear(x, weight, bias).unflatten(1, per_step)
            first = [state[:, layer] for state in states]
            sequences = self.cell(projected, first, recurrent, recurrent_bias, starts, active)
            after.append([sequence[:, -1] for sequence in sequences])
            x = sequences[0].flatten(1, 2)
        return x, [torch.stack(list(layers), dim=1) for layers in zip(*after, strict=True)]

    @staticmethod
    @abstractmethod
    def cell(
        x: Tensor, states: Sequence[Tensor], weight: Tensor, bias: Tensor, starts: Tensor | None, active: Tensor | None
    ) -> Sequence[Tensor]:
        """Scan one layer: projected inputs ``[K, L, N, G]`` to each state after each step ``[K, L, N, H]``."""


class GRU(RecurrentLayer):
    """Gated recurrent units: one state."""

    gates, states = 3, 1

    @staticmethod
    def cell(
        x: Tensor, states: Sequence[Tensor], weight: Tensor, bias: Tensor, starts: Tensor | None, active: Tensor | None
    ) -> Sequence[Tensor]:
        return _run(_GRUScan, x, *states, weight, bias, starts, active)[:1]


class LSTM(RecurrentLayer):
    """Long short-term memory: two states, h and c."""

    gates, states = 4, 2

    @staticmethod
    def cell(
        x: Tensor, states: Sequence[Tensor], weight: Tensor, bias: Tensor, starts: Tensor | None, active: Tensor | None
    ) -> Sequence[Tensor]:
        return _run(_LSTMScan, x, *states, weight, bias, starts, active)[:2]
