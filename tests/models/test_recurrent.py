"""Recurrent layers against PyTorch's own: ``nn.GRU`` and ``nn.LSTM`` where nothing interrupts a sequence, else their cells,
called step by step for each sequence by itself.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from coterie.models import GRU, LSTM
from coterie.models.recurrent import RecurrentLayer

L, N, F, H = 5, 4, 3, 6
KINDS = [(GRU, nn.GRU, nn.GRUCell), (LSTM, nn.LSTM, nn.LSTMCell)]


def by_cells(
    kind: Any, layer: RecurrentLayer, x: Tensor, states: list[Tensor], starts: Tensor | None, active: Tensor | None
) -> tuple[Tensor, list[Tensor]]:
    """Unroll with PyTorch's cells, one sequence, one step and one layer at a time."""
    cells = []
    for names in layer.weight_names():
        cell = kind(layer.get_parameter(names[0]).shape[1], layer.hidden_size).to(x.dtype)
        for name, own in zip(names, ("weight_ih", "weight_hh", "bias_ih", "bias_hh"), strict=True):
            delattr(cell, own)
            setattr(cell, own, layer.get_parameter(name))
        cells.append(cell)
    rows = x.unflatten(0, (L, -1))
    features, finals = [], []
    for n in range(rows.shape[1]):
        now = [[state[i, n : n + 1] for state in states] for i in range(len(cells))]
        outputs = []
        for step in range(L):
            row = step * rows.shape[1] + n
            if starts is not None and bool(starts[row]):
                now = [[torch.zeros_like(s) for s in layer_states] for layer_states in now]
            if active is None or bool(active[row]):
                value = rows[step, n : n + 1]
                for i, cell in enumerate(cells):
                    new = cell(value, now[i][0] if len(states) == 1 else tuple(now[i]))
                    now[i] = [new] if len(states) == 1 else list(new)
                    value = now[i][0]
            outputs.append(now[-1][0])
        features.append(torch.cat(outputs))
        finals.append([torch.cat([layer_states[j] for layer_states in now]) for j in range(len(states))])
    new_states = [torch.stack([final[j] for final in finals], dim=1) for j in range(len(states))]
    return torch.stack(features, dim=1).flatten(0, 1), new_states


def leaves(kind: type[RecurrentLayer], layers: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, list[Tensor]]:
    x = torch.randn(L * N, F, dtype=dtype, requires_grad=True)
    return x, [torch.randn(layers, N, H, dtype=dtype, requires_grad=True) for _ in range(kind.states)]


def gradients(features: Tensor, states: list[Tensor], wanted: list[Tensor]) -> list[Tensor]:
    """Gradients of a random sum of the features and of the last states."""
    generator = torch.Generator().manual_seed(1)
    parts = [(t * torch.randn(t.shape, generator=generator, dtype=t.dtype)).sum() for t in (features, *states)]
    return list(torch.autograd.grad(torch.stack(parts).sum(), wanted))


def masks(kind: str) -> tuple[Tensor | None, Tensor | None]:
    """Interruptions of sequences: [L*N, 1] each, row l*N+n."""
    starts, active = torch.zeros(L, N, 1, dtype=torch.bool), torch.ones(L, N, 1, dtype=torch.bool)
    starts[0, 0] = starts[2, 0] = starts[4, 1] = starts[2, 2] = starts[3, 2] = True
    active[1, 0] = active[2, 0] = active[0, 1] = active[2, 2] = active[4, 2] = False
    active[:, 3] = False
    rows = starts.flatten(0, 1), active.flatten(0, 1)
    return rows[0] if "starts" in kind else None, rows[1] if "active" in kind else None


@pytest.mark.parametrize("interrupted", ["", "starts", "active", "starts and active"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(("kind", "stock", "cell"), KINDS)
def test_sequences_against_cells(kind: Any, stock: Any, cell: Any, layers: int, interrupted: str) -> None:
    layer = kind(F, H, layers).double()
    x, states = leaves(kind, layers)
    starts, active = masks(interrupted)
    features, new = layer(x, {"rnn": states, "length": L, "starts": starts, "active": active})
    expected, expected_new = by_cells(cell, layer, x, states, starts, active)
    torch.testing.assert_close(features, expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(new, expected_new, atol=1e-12, rtol=0)
    wanted = [x, *states, *layer.parameters()]
    torch.testing.assert_close(
        gradients(features, new, wanted), gradients(expected, expected_new, wanted), atol=1e-11, rtol=0
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(("kind", "stock", "cell"), KINDS)
def test_unbroken_sequences_against_the_stock_layer(
    kind: Any, stock: Any, cell: Any, layers: int, dtype: torch.dtype
) -> None:
    theirs = stock(F, H, layers).to(dtype)
    layer = kind(F, H, layers).to(dtype)
    layer.load_state_dict(theirs.state_dict())  # equal names, equal shapes
    x, states = leaves(kind, layers, dtype)
    features, new = layer(x, {"rnn": states, "length": L})
    first = states[0] if len(states) == 1 else tuple(states)
    expected, last = theirs(x.unflatten(0, (L, N)), first)
    expected, expected_new = expected.flatten(0, 1), [last] if len(states) == 1 else list(last)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(features, expected, atol=tolerance, rtol=0)
    torch.testing.assert_close(new, expected_new, atol=tolerance, rtol=0)
    mine = gradients(features, new, [x, *states, *layer.parameters()])
    others = gradients(expected, expected_new, [x, *states, *theirs.parameters()])
    torch.testing.assert_close(mine, others, atol=20 * tolerance, rtol=0)
    with torch.no_grad():  # as an acting policy does
        torch.testing.assert_close(layer(x, {"rnn": states, "length": L}), (features, new))


@pytest.mark.parametrize(("kind", "stock", "cell"), KINDS)
def test_steps_one_by_one_are_the_sequence(kind: Any, stock: Any, cell: Any) -> None:
    layer = kind(F, H, 2)
    x, states = leaves(kind, 2, torch.float32)
    starts, active = masks("starts and active")
    assert starts is not None
    assert active is not None
    features, new = layer(x, {"rnn": states, "length": L, "starts": starts, "active": active})
    parts, now = [], states
    for step in range(L):
        rows = slice(step * N, (step + 1) * N)
        part, now = layer(x[rows], {"rnn": now, "length": 1, "starts": starts[rows], "active": active[rows]})
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts), features)
    torch.testing.assert_close(now, new)


@pytest.mark.parametrize(("kind", "stock", "cell"), KINDS)
def test_what_comes_before_a_start_or_in_a_frozen_row_changes_nothing_after_it(
    kind: Any, stock: Any, cell: Any
) -> None:
    layer = kind(F, H)
    x, states = leaves(kind, 1, torch.float32)
    starts, active = torch.zeros(L, N, 1, dtype=torch.bool), torch.ones(L, N, 1, dtype=torch.bool)
    starts[3], active[4, 2] = True, False

    def last(x: Tensor, states: list[Tensor]) -> Tensor:
        described = {"rnn": states, "length": L, "starts": starts.flatten(0, 1), "active": active.flatten(0, 1)}
        return torch.cat(layer(x, described)[1], dim=-1)

    other = x.detach().clone()
    other[: 3 * N] = 7.0
    other[4 * N + 2] = -7.0
    assert torch.equal(last(x, states), last(other, [state + 1.0 for state in states]))
    (by_x,) = torch.autograd.grad(last(x, states).sum(), x)
    assert bool((by_x[: 3 * N] == 0).all())
    assert bool((by_x[4 * N + 2] == 0).all())
    assert bool((by_x[4 * N] != 0).any())


@pytest.mark.parametrize("interrupted", ["", "starts and active"])
@pytest.mark.parametrize(("kind", "stock", "cell"), KINDS)
def test_vmap_over_parameters(kind: Any, stock: Any, cell: Any, interrupted: str) -> None:
    models = [kind(F, H, 2).double() for _ in range(3)]
    inputs = [leaves(kind, 2) for _ in models]
    starts, active = masks(interrupted)
    described = {"length": L, "starts": starts, "active": active}
    parameters = {
        name: torch.stack([m.get_parameter(name) for m in models]) for name, _ in models[0].named_parameters()
    }

    def call(parameters: Any, x: Tensor, states: list[Tensor]) -> Any:
        return torch.func.functional_call(models[0], parameters, (x, {"rnn": states, **described}))

    xs = torch.stack([x for x, _ in inputs])
    states = [torch.stack(list(parts)) for parts in zip(*(s for _, s in inputs), strict=True)]
    features, _ = torch.func.vmap(call)(parameters, xs, states)
    expected = torch.stack([m(x, {"rnn": s, **described})[0] for m, (x, s) in zip(models, inputs, strict=True)])
    torch.testing.assert_close(features, expected, atol=1e-12, rtol=0)
    wanted = [*(x for x, _ in inputs), *(p for m in models for p in m.parameters())]
    torch.testing.assert_close(gradients(features, [], wanted), gradients(expected, [], wanted), atol=1e-11, rtol=0)


def test_reduced_precision_stops_at_the_recurrence() -> None:
    layer = GRU(F, H)
    x, states = leaves(GRU, 1, torch.float32)
    expected, _ = layer(x.bfloat16().float(), {"rnn": states, "length": L})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features, _ = layer(x.bfloat16(), {"rnn": states, "length": L})
    assert features.dtype == torch.float32
    assert torch.equal(features, expected)


def test_states_start_at_zero_where_none_are_given() -> None:
    layer = LSTM(F, H)
    x, _ = leaves(LSTM, 1, torch.float32)
    features, new = layer(x, {})
    zeros = [torch.zeros(1, L * N, H)] * 2
    torch.testing.assert_close((features, new), layer(x, {"rnn": zeros, "length": 1}))


@pytest.mark.parametrize("kind", [GRU, LSTM])
def test_initial_weights(kind: type[RecurrentLayer]) -> None:
    layer = kind(F, H, 2)
    for names in layer.weight_names():
        for gate in layer.get_parameter(names[1]).detach().chunk(layer.gates):
            torch.testing.assert_close(gate @ gate.mT, torch.eye(H), atol=1e-5, rtol=0)
        for name in (names[0], *names[2:]):
            parameter = layer.get_parameter(name)
            assert float(parameter.detach().abs().max()) <= 1 / math.sqrt(H)
            assert float(parameter.detach().std()) > 0.3 / math.sqrt(H)


def test_errors() -> None:
    with pytest.raises(ValueError, match="sizes of at least 1, got inputs 3, hidden 0, layers 1"):
        GRU(3, 0)
    layer = GRU(F, H)
    x, states = leaves(GRU, 1, torch.float32)
    with pytest.raises(ValueError, match="20 rows: expected a multiple of the length 3"):
        layer(x, {"rnn": states, "length": 3})
    with pytest.raises(ValueError, match=r"1 state\(s\) of shape \[1, 4, 6\], got \[\[1, 5, 6\]\]"):
        layer(x, {"rnn": [torch.zeros(1, 5, H)], "length": L})
    with pytest.raises(ValueError, match=r"2 state\(s\) of shape"):
        LSTM(F, H)(x, {"rnn": states, "length": L})
