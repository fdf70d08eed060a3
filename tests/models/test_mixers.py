"""Mixers against loops over environments, agents and units; what they promise in every state; and who is left out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from coterie.models import AttentionMixer, Mixer, QMIXMixer

S, N, E = 5, 3, 4
KINDS: dict[str, Any] = {
    "qmix": lambda **kwargs: QMIXMixer(S, N, embed=E, hypernet_hidden=6, **kwargs),
    "qmix, one layer": lambda **kwargs: QMIXMixer(S, N, embed=E, hypernet_layers=1, **kwargs),
    "attention": lambda **kwargs: AttentionMixer(S, N, embed=E, heads=2, hidden=6, **kwargs),
}


@pytest.fixture(params=KINDS)
def mixer(request: pytest.FixtureRequest) -> Mixer:
    model: Mixer = KINDS[request.param]()
    return model


def mix(mixer: Mixer, q_values: Tensor, states: Tensor, active: Tensor | None = None) -> Tensor:
    return mixer({"q_values": q_values, "states": states, "active": active}, "mixer")[0]


# ---- numbers ---------------------------------------------------------------------------------------------------------


def rows_of(layer: nn.Linear, x: list[float]) -> list[float]:
    """A linear layer in plain floats."""
    weight, bias = layer.weight.tolist(), layer.bias.tolist()
    return [sum(w * v for w, v in zip(row, x, strict=True)) + b for row, b in zip(weight, bias, strict=True)]


def relu(x: list[float]) -> list[float]:
    return [max(v, 0.0) for v in x]


def qmix_by_loops(mixer: QMIXMixer, q_values: list[float], state: list[float]) -> float:
    """ELU(q |W1| + b1) |W2| + V, unit by unit."""
    first = rows_of(mixer.first, state)
    cut = np.cumsum([0, *mixer.widths])
    w1, w2, v, b1 = (first[cut[i] : cut[i + 1]] for i in range(4))
    if mixer.w1 is not None and mixer.w2 is not None:
        w1, w2 = rows_of(mixer.w1, relu(w1)), rows_of(mixer.w2, relu(w2))
    (total,) = rows_of(mixer.v, relu(v))
    for unit in range(E):
        x = b1[unit]
        for agent in range(N):
            x += q_values[agent] * abs(w1[agent * E + unit])
        total += (x if x > 0 else math.expm1(x)) * abs(w2[unit])
    return total


def attention_by_loops(
    mixer: AttentionMixer, q_values: list[float], state: list[float], active: list[bool] | None = None
) -> float:
    """c + sum_h w_h sum_i softmax_i(e_i . query_h / sqrt(E)) q_i over the agents that are there."""
    first = rows_of(mixer.first, state)
    cut = np.cumsum([0, *mixer.widths])
    keys, query, w, c = (first[cut[i] : cut[i + 1]] for i in range(4))
    query, weights = rows_of(mixer.query, relu(query)), rows_of(mixer.w, relu(w))
    (total,) = rows_of(mixer.c, relu(c))
    there = [i for i in range(N) if active is None or active[i]]
    for head in range(mixer.heads):
        scores = [sum(keys[i * E + d] * query[head * E + d] for d in range(E)) / math.sqrt(E) for i in there]
        shares = [math.exp(score) for score in scores]
        for i, share in zip(there, shares, strict=True):
            total += abs(weights[head]) * share / sum(shares) * q_values[i]
    return total


@pytest.mark.parametrize("kind", KINDS)
def test_values_against_loops(kind: str) -> None:
    mixer = KINDS[kind]().double()
    mixer.init_parameters("normal_")
    q_values, states = 3.0 * torch.randn(7, N).double(), torch.randn(7, S).double()
    by_loops: Any = attention_by_loops if kind == "attention" else qmix_by_loops
    expected = [[by_loops(mixer, q, s)] for q, s in zip(q_values.tolist(), states.tolist(), strict=True)]
    torch.testing.assert_close(
        mix(mixer, q_values, states), torch.tensor(expected, dtype=torch.float64), atol=1e-9, rtol=1e-9
    )


def test_qmix_with_weights_set_by_hand() -> None:
    """State 2, two agents, one hidden unit: |W1| = (2, 4), b1 = 1, |W2| = 6, V = 3 relu(2) - 1 = 5."""
    mixer = QMIXMixer(1, 2, embed=1, hypernet_layers=1)
    with torch.no_grad():
        mixer.first.weight.copy_(torch.tensor([[1.0], [-2.0], [-3.0], [1.0], [0.5]]))  # W1, W2, V, b1
        mixer.first.bias.zero_()
        mixer.v.weight.fill_(3.0)
        mixer.v.bias.fill_(-1.0)
    q_values = torch.tensor([[0.5, 1.0], [0.5, -1.0]])
    # row 0: .5 * 2 + 1 * 4 + 1 = 6, * 6 + 5 = 41; row 1: .5 * 2 - 1 * 4 + 1 = -2, (e^-2 - 1) * 6 + 5
    expected = torch.tensor([[41.0], [6.0 * math.expm1(-2.0) + 5.0]])
    torch.testing.assert_close(mix(mixer, q_values, torch.full((2, 1), 2.0)), expected)


def test_attention_with_weights_set_by_hand() -> None:
    """One head, embed 1, hidden 1, state 2: e = (2, -2), query 1, so lambda = softmax(2, -2); |w| = 3, c = relu(2) + 1."""
    mixer = AttentionMixer(1, 2, embed=1, heads=1, hidden=1)
    with torch.no_grad():
        mixer.first.weight.copy_(torch.tensor([[1.0], [-1.0], [1.0], [1.0], [1.0]]))  # e_0, e_1, query, w, c
        mixer.first.bias.zero_()
        for layer, weight, bias in ((mixer.query, 0.5, 0.0), (mixer.w, -1.0, -1.0), (mixer.c, 1.0, 1.0)):
            layer.weight.fill_(weight)
            layer.bias.fill_(bias)
    share = 1.0 / (1.0 + math.exp(-4.0))
    expected = 3.0 * (share * 10.0 + (1.0 - share) * 20.0) + 3.0
    torch.testing.assert_close(
        mix(mixer, torch.tensor([[10.0, 20.0]]), torch.tensor([[2.0]])), torch.tensor([[expected]])
    )


def test_weights_of_attention_share_out_the_heads() -> None:
    """Equal values of all agents come out times the sum of the heads' weights, whoever attention goes to."""
    mixer = KINDS["attention"]()
    states = torch.randn(9, S)
    constant = mix(mixer, torch.zeros(9, N), states)
    one = mix(mixer, torch.ones(9, N), states) - constant
    hidden = mixer.first(states).split(mixer.widths, dim=-1)[2].relu()
    torch.testing.assert_close(one, mixer.w(hidden).abs().sum(-1, keepdim=True), atol=1e-5, rtol=1e-5)


# ---- promises --------------------------------------------------------------------------------------------------------


def test_it_rises_with_every_agent_in_every_state(mixer: Mixer) -> None:
    mixer.init_parameters("normal_")
    q_values = (5.0 * torch.randn(2000, N)).requires_grad_()
    states = torch.randn(2000, S)
    for active in (None, torch.rand(2000, N) < 0.6):
        (slope,) = torch.autograd.grad(mix(mixer, q_values, states, active).sum(), q_values)
        assert bool((slope >= 0).all())
        counted = slope if active is None else slope[active]
        assert float((counted > 0).float().mean()) > 0.8
    lower = q_values.detach() - torch.rand(2000, N)
    risen = mix(mixer, q_values, states) - mix(mixer, lower, states)
    assert bool((risen >= -1e-3).all())


def test_it_depends_on_the_state(mixer: Mixer) -> None:
    q_values = torch.randn(1, N)
    first, second = (mix(mixer, q_values, torch.randn(1, S)) for _ in range(2))
    assert not torch.allclose(first, second, atol=1e-4)


@pytest.mark.parametrize("left_out", [0.0, math.nan, math.inf, 1e6])
def test_who_is_not_active_has_no_influence(mixer: Mixer, left_out: float) -> None:
    q_values, states = torch.randn(50, N), torch.randn(50, S)
    active = torch.rand(50, N) < 0.5
    active[0], active[1] = False, True  # nobody, everybody
    with_zeros = torch.where(active, q_values, 0.0).requires_grad_()
    with_others = torch.where(active, q_values, left_out).requires_grad_()
    outcomes = []
    for q in (with_zeros, with_others):
        mixer.zero_grad()
        q_tot = mix(mixer, q, states, active)
        q_tot.square().sum().backward()
        assert q.grad is not None
        assert torch.equal(q.grad[~active], torch.zeros(int((~active).sum())))
        assert bool((q.grad[active] != 0).all())
        outcomes.append([q_tot.detach(), q.grad, *(p.grad.clone() for p in mixer.parameters() if p.grad is not None)])
    for one, other in zip(*outcomes, strict=True):
        assert bool(torch.isfinite(one).all())
        assert torch.equal(one, other)
    everyone = torch.ones(50, N, dtype=torch.bool)
    torch.testing.assert_close(mix(mixer, q_values, states, everyone), mix(mixer, q_values, states))


def test_attention_goes_to_those_who_are_there() -> None:
    mixer = KINDS["attention"]().double()
    q_values, states, active = torch.randn(8, N).double(), torch.randn(8, S).double(), torch.rand(8, N) < 0.6
    active[0] = False
    expected = [
        [attention_by_loops(mixer, *row)]
        for row in zip(q_values.tolist(), states.tolist(), active.tolist(), strict=True)
    ]
    torch.testing.assert_close(mix(mixer, q_values, states, active), torch.tensor(expected, dtype=torch.float64))


def test_gradients_reach_every_parameter(mixer: Mixer) -> None:
    mix(mixer, torch.randn(100, N), torch.randn(100, S)).square().sum().backward()
    for name, p in mixer.named_parameters():
        assert p.grad is not None, name
        assert bool(p.grad.any()), name


def test_in_reduced_precision_the_agents_values_keep_theirs(mixer: Mixer) -> None:
    q_values, states = torch.randn(200, N), torch.randn(200, S)
    active = torch.rand(200, N) < 0.8
    for mask in (None, active):
        expected = mix(mixer, q_values, states, mask)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            q_tot = mix(mixer, q_values, states, mask)
        assert q_tot.dtype == torch.float32
        torch.testing.assert_close(q_tot, expected, atol=0.05, rtol=0.02)
        mixer.zero_grad()
        q_tot.sum().backward()
        assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in mixer.parameters())
    # a difference that bfloat16 cannot hold: at 1000 its numbers are 4 apart
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        high, higher = (mix(mixer.double(), q_values.double() + base, states.double()) for base in (1000.0, 1000.5))
    assert bool((higher > high).all())


# ---- forms -----------------------------------------------------------------------------------------------------------


def test_images_in_the_state_go_through_convolutions() -> None:
    space = spaces.Dict({"image": spaces.Box(0, 255, (6, 6), np.uint8), "speed": spaces.Box(-1.0, 1.0, (2,))})
    for kind in (QMIXMixer, AttentionMixer):
        mixer = kind(space, 2)
        assert mixer.num_observations == 38
        assert [m.out_channels for m in mixer.modules() if isinstance(m, nn.Conv2d)] == [16, 32, 32]
        assert mix(mixer, torch.randn(4, 2), torch.randn(4, 38)).shape == (4, 1)


def test_sizes() -> None:
    mixer = QMIXMixer(54, 3)
    # two hypernetworks of 64, V's layer of 32 and b1 of 32 from the state; then 3 * 32, 32 and 1
    assert (mixer.first.in_features, mixer.first.out_features) == (54, 64 + 64 + 32 + 32)
    assert [layer.out_features for layer in (mixer.w1, mixer.w2, mixer.v)] == [96, 32, 1]  # type: ignore[union-attr]
    lone = QMIXMixer(spaces.Box(-1.0, 1.0, (2, 3)), 1, hypernet_layers=1, embed=8)
    assert lone.w1 is None
    assert lone.first.out_features == 8 + 8 + 8 + 8
    assert mix(QMIXMixer(7, 1), torch.randn(3, 1), torch.randn(3, 7)).shape == (3, 1)


class WeightedSum(Mixer):
    """The example of the docstring, with a lazy layer."""

    def __init__(self, output: str = "right") -> None:
        Mixer.__init__(self, S, N)
        self.weights = nn.LazyLinear(N)
        self.output = output

    def compute(self, inputs: Any, role: str = "") -> Any:
        q_tot = (self.weights(inputs["states"]).exp() * inputs["q_values"]).sum(dim=-1, keepdim=True)
        return {
            "right": (q_tot, {"extra": 1}), "flat": (q_tot.squeeze(-1), {}), "bare": q_tot,
            "by agent": (inputs["q_values"], {}),
        }[self.output]  # fmt: skip


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_a_hand_written_mixer() -> None:
    mixer = WeightedSum()
    mixer.init_state_dict("mixer")
    assert mixer.weights.weight.shape == (N, S)
    q_values, states = torch.randn(4, N), torch.randn(4, S)
    active = torch.tensor([[True, False, True]]).expand(4, N)
    q_values[:, 1] = math.nan
    q_tot, nothing, outputs = mixer.act({"q_values": q_values, "states": states, "active": active})
    weights = mixer.weights(states).exp()
    torch.testing.assert_close(q_tot, weights[:, :1] * q_values[:, :1] + weights[:, 2:] * q_values[:, 2:])
    assert nothing is None
    assert outputs == {"extra": 1}
    assert mixer.act({"q_values": q_values, "states": states})[0].isnan().all()


@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize(
    ("output", "error", "message"),
    [
        ("flat", ValueError, r"WeightedSum.compute returned a tensor of shape \[4\]: expected .* \[4, 1\]"),
        ("by agent", ValueError, r"WeightedSum.compute returned a tensor of shape \[4, 3\]: expected .* \[4, 1\]"),
        ("bare", TypeError, r"WeightedSum.compute returned Tensor: expected a tuple"),
    ],
)
def test_wrong_outputs_are_named(output: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        mix(WeightedSum(output), torch.randn(4, N), torch.randn(4, S))


@pytest.mark.parametrize(
    ("q_values", "states", "active", "message"),
    [
        ((4, 2), (4, S), None, r"values of 3 agents for 4 states, floating \[4, 3\], got torch.float32 \[4, 2\]"),
        ((3, 3), (4, S), None, r"floating \[4, 3\], got torch.float32 \[3, 3\]"),
        ((4, 3, 1), (4, S), None, r"got torch.float32 \[4, 3, 1\]"),
        ((4, 3), (4, 6), None, r"expected states \[B, 5\], got \[4, 6\]"),
        ((4, 3), (2, 2, S), None, r"expected states \[B, 5\], got \[2, 2, 5\]"),
        ((4, 3), (4, S), torch.ones(4, 1, dtype=torch.bool), r"bool \[4, 3\].*got torch.bool \[4, 1\]"),
        ((4, 3), (4, S), torch.ones(4, 3), r"bool \[4, 3\].*got torch.float32 \[4, 3\]"),
    ],
)
def test_wrong_inputs_are_named(
    mixer: Mixer, q_values: tuple[int, ...], states: tuple[int, ...], active: Tensor | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        mix(mixer, torch.randn(q_values), torch.randn(states), active)


def test_values_of_integers_are_refused(mixer: Mixer) -> None:
    with pytest.raises(ValueError, match=r"floating \[4, 3\], got torch.int64 \[4, 3\]"):
        mix(mixer, torch.ones(4, 3).long(), torch.randn(4, S))


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match="hypernet_layers: expected 1 or 2, got 3"):
        QMIXMixer(S, N, hypernet_layers=3)
    with pytest.raises(ValueError, match=r"at least one unit, got widths \[64, 64, 0, 0\]"):
        QMIXMixer(S, N, embed=0)
    with pytest.raises(ValueError, match="heads: expected at least 1, got 0"):
        AttentionMixer(S, N, heads=0)
    for state, agents in ((S, 0), (0, N)):
        with pytest.raises(ValueError, match=rf"got {agents} agents and a state of size {state}"):
            QMIXMixer(state, agents)
    with pytest.raises(NotImplementedError, match="must define compute"):
        mix(Mixer(S, N), torch.randn(4, N), torch.randn(4, S))
