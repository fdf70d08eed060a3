"""Batched execution against the plain loop over models: outputs and gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor, nn

from coterie.models import DeterministicMixin, GaussianMixin, Model
from coterie.models.batch import VMAP_FROM, ModelBatch, same_architecture
from coterie.models.flat_parameters import FlatParameters
from coterie.models.layers import WORTHWHILE, Tanh
from coterie.models.networks import CategoricalPolicy, GaussianPolicy, MultiCategoricalPolicy, TanhGaussianPolicy, Value

WIDTH = 3
BOX = spaces.Box(-1.0, 1.0, (2,))
OBSERVATION = spaces.Box(-1.0, 1.0, (WIDTH,))


class Policy(GaussianMixin, Model):
    """Linear mean and a parameter for the log-std; subclasses replace ``compute``."""

    def __init__(self, activation: nn.Module | None = None) -> None:
        Model.__init__(self, WIDTH, BOX)
        GaussianMixin.__init__(self)
        self.first = nn.Linear(WIDTH, 6)
        self.activation = nn.ELU() if activation is None else activation
        self.head = nn.Linear(6, 2)
        self.log_std_parameter = nn.Parameter(torch.randn(2))
        self.build()

    def build(self) -> None:
        """Add to the model."""

    def compute(self, inputs: Any, role: str = "") -> tuple[Any, ...]:
        return self.head(self.activation(self.first(inputs["states"]))), self.log_std_parameter, {}


def policy_class(
    compute: Callable[[Any, Tensor, Any], tuple[Any, ...]],
    build: Callable[[Any], None] = lambda model: None,
    agent_id: bool = False,
) -> type[Policy]:
    """A policy whose ``compute`` is ``compute(self, states, inputs)``."""

    class Custom(Policy):
        uses_agent_id = agent_id

        def build(self) -> None:
            build(self)

        def compute(self, inputs: Any, role: str = "") -> tuple[Any, ...]:
            return compute(self, inputs["states"], inputs)

    return Custom


def sets_of(models: Sequence[Model]) -> list[list[nn.Module]]:
    return [[model] for model in dict.fromkeys(models)]


def batch_of(models: Sequence[Model], storage: FlatParameters | None = None) -> ModelBatch:
    return ModelBatch(
        models, "policy", FlatParameters(sets_of(models)) if storage is None else storage, torch.eye(len(models))
    )


def check(
    models: Sequence[Model], mode: str | tuple[str, ...], batch: int = 5, common: bool = False, tolerance: float = 1e-6
) -> ModelBatch:
    """Compare a batch of the models with a loop over agents on float64 copies of them."""
    agents = len(models)
    modes = (mode,) if isinstance(mode, str) else mode
    copies = {model: copy.deepcopy(model).double() for model in dict.fromkeys(models)}
    storage = FlatParameters(sets_of(models))
    both = batch_of(models, storage)
    assert both.mode in modes
    states = torch.randn(batch, 1 if common else agents, WIDTH)
    outputs = [out.expand(batch, agents, -1) for out in both(states)]
    columns = []
    for a, model in enumerate(models):
        inputs: dict[str, Any] = {"states": states.expand(-1, agents, -1)[:, a].double()}
        if model.uses_agent_id:
            inputs["agent_id"] = torch.eye(agents).double()[a].expand(batch, -1)
        tensors = [t for t in copies[model].compute(inputs, "policy") if isinstance(t, Tensor)]
        columns.append([t.expand(batch, t.shape[-1]) for t in tensors])
    references = [torch.stack(list(column), dim=1) for column in zip(*columns, strict=True)]
    assert len(outputs) == len(references)
    weights = [torch.randn(r.shape) for r in references]
    for out, reference in zip(outputs, references, strict=True):
        torch.testing.assert_close(out.double(), reference, atol=tolerance, rtol=tolerance)
    storage.grad.zero_()
    torch.stack([(out * w).sum() for out, w in zip(outputs, weights, strict=True)]).sum().backward()
    torch.stack([(r * w).sum() for r, w in zip(references, weights, strict=True)]).sum().backward()
    for model, reference_model in copies.items():
        for (name, p), q in zip(model.named_parameters(), reference_model.parameters(), strict=True):
            if not p.requires_grad:
                continue
            mine = torch.zeros_like(p) if p.grad is None else p.grad
            expected = torch.zeros_like(q) if q.grad is None else q.grad
            # sums over rows of numbers of order 1
            torch.testing.assert_close(
                mine.double(), expected, atol=5 * tolerance, rtol=5 * tolerance, msg=lambda m, n=name: f"{n}: {m}"
            )
    return both


# ---- stacked: layers and element-wise functions ---------------------------------------------------------------------

ACTIVATIONS = [
    nn.Tanh(), Tanh(), nn.ReLU(), nn.ELU(), nn.ELU(0.7), nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.LeakyReLU(0.2),
    nn.Sigmoid(), nn.Softplus(2.0), nn.Identity(), nn.Mish(), nn.SELU(), nn.CELU(0.5), nn.Hardtanh(-0.5, 0.7),
    nn.Hardswish(), nn.Softsign(), nn.Tanhshrink(), nn.LogSigmoid(), nn.ReLU6(), nn.Hardsigmoid(),
]  # fmt: skip


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_activations_are_stacked(activation: nn.Module) -> None:
    check([Policy(copy.deepcopy(activation)) for _ in range(3)], "stacked")


def hidden(m: Any, states: Tensor) -> Tensor:
    result: Tensor = m.activation(m.first(states))
    return result


def add_layer_norm(m: Any) -> None:
    m.norm = nn.LayerNorm(6)
    nn.init.normal_(m.norm.weight)
    nn.init.normal_(m.norm.bias)


def add_branch(m: Any) -> None:
    m.branch = nn.Linear(WIDTH, 4, bias=False)
    m.head = nn.Linear(10, 2)


def add_identity(m: Any) -> None:
    m.first = nn.Linear(WIDTH + 3, 6)


def add_state_std(m: Any) -> None:
    m.std_head = nn.Linear(6, 2)


def add_row_std(m: Any) -> None:
    m.log_std_parameter = nn.Parameter(torch.randn(1, 2))


def add_common_std(m: Any) -> None:
    m.log_std_parameter = nn.Parameter(torch.randn(1))


def skrl_net(m: Any) -> None:
    m.net = nn.Sequential(
        nn.Linear(m.num_observations, 8), nn.ELU(), nn.Linear(8, 8), nn.ELU(), nn.Linear(8, m.num_actions), nn.Tanh()
    )
    m.log_std_parameter = nn.Parameter(torch.randn(m.num_actions))


def add_gain(m: Any) -> None:
    m.gain = nn.Parameter(torch.randn(6))


STACKED: dict[str, type[Policy]] = {
    "layer norm": policy_class(lambda m, x, _: (m.head(m.norm(hidden(m, x))), m.log_std_parameter, {}), add_layer_norm),
    "cat of branches": policy_class(
        lambda m, x, _: (m.head(torch.cat([hidden(m, x), m.branch(x)], dim=-1)), m.log_std_parameter, {}), add_branch
    ),
    "cat along dimension 1": policy_class(
        lambda m, x, _: (m.head(torch.concat((hidden(m, x), m.branch(x)), 1)), m.log_std_parameter, {}), add_branch
    ),
    "agent ids": policy_class(
        lambda m, x, i: (m.head(hidden(m, torch.cat([x, i["agent_id"]], dim=-1))), m.log_std_parameter, {}),
        add_identity,
        agent_id=True,
    ),
    "skip connection": policy_class(
        lambda m, x, _: (m.head(hidden(m, x) + 0.5 * torch.relu(m.first(x))), m.log_std_parameter, {})
    ),
    "functions": policy_class(
        lambda m, x, _: (m.head(F.leaky_relu(torch.sin(m.first(x)), 0.3)), m.log_std_parameter, {})
    ),
    "methods": policy_class(
        lambda m, x, _: (m.head(m.first(x).tanh().square().clamp(max=0.5)), m.log_std_parameter, {})
    ),
    "operators": policy_class(lambda m, x, _: (m.head((1.0 - m.first(x) ** 2) / 3.0), -m.log_std_parameter, {})),
    "a gain for each unit": policy_class(
        lambda m, x, _: (m.head(hidden(m, x) * m.gain + m.gain.exp()), m.log_std_parameter, {}), add_gain
    ),
    "clamped log-std": policy_class(
        lambda m, x, _: (m.head(hidden(m, x)), torch.clamp(m.log_std_parameter, -0.5, 0.5), {})
    ),
    "log-std clamped by keyword": policy_class(
        lambda m, x, _: (m.head(hidden(m, x)), torch.clamp(m.log_std_parameter, min=-0.5, max=0.5), {})
    ),
    "bounded mean and log-std": policy_class(
        lambda m, x, _: (2 * torch.tanh(m.head(hidden(m, x))), 2 * torch.tanh(m.log_std_parameter), {})
    ),
    "expanded log-std": policy_class(
        lambda m, x, _: (mean := m.head(hidden(m, x)), m.log_std_parameter.expand_as(mean), {})
    ),
    "log-std of the state": policy_class(
        lambda m, x, _: (m.head(hidden(m, x)), m.std_head(hidden(m, x)), {}), add_state_std
    ),
    "log-std with a row": policy_class(lambda m, x, _: (m.head(hidden(m, x)), m.log_std_parameter, {}), add_row_std),
    "one log-std for all": policy_class(
        lambda m, x, _: (mean := m.head(hidden(m, x)), mean * 0 + m.log_std_parameter, {}), add_common_std
    ),
    "skrl": policy_class(lambda m, x, _: (m.net(x), m.log_std_parameter, {}), skrl_net),
    "skrl, clamped and scaled": policy_class(
        lambda m, x, _: (2 * torch.tanh(m.net(x)), torch.clamp(m.log_std_parameter, -20, 2), {}), skrl_net
    ),
    "mean over features": policy_class(
        lambda m, x, _: (
            m.head(hidden(m, x) - hidden(m, x).mean(dim=-1, keepdim=True)) + torch.mean(x, 1, keepdim=True),
            m.log_std_parameter,
            {},
        )
    ),
    "no dict": policy_class(lambda m, x, _: (m.head(hidden(m, x)), m.log_std_parameter)),
}


@pytest.mark.parametrize("name", STACKED)
@pytest.mark.parametrize("count", [2, 3])
def test_networks_are_stacked(name: str, count: int) -> None:
    kind = STACKED[name]
    if name == "agent ids" and count == 2:
        count = 3  # the one-hot has three entries
    check([kind() for _ in range(count)], "stacked")


@pytest.mark.parametrize(
    ("kind", "space"),
    [
        (GaussianPolicy, BOX),
        (TanhGaussianPolicy, BOX),
        (CategoricalPolicy, spaces.Discrete(3)),
        (MultiCategoricalPolicy, spaces.MultiDiscrete([2, 3])),
        (Value, BOX),
    ],
)
@pytest.mark.parametrize("ids", [0, 3])
def test_ready_made_networks_are_stacked(kind: type[Model], space: Any, ids: int) -> None:
    models = [kind(OBSERVATION, space, hidden=(8, 8), agent_ids=ids) for _ in range(3)]
    for model in models:
        model.init_biases("normal_")
    check(models, "stacked")


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("common", [False, True])
@pytest.mark.parametrize("share", [1, 2, 3])
@pytest.mark.parametrize("name", ["skrl", "log-std of the state"])
def test_models_of_several_agents_each(name: str, share: int, common: bool, batch: int) -> None:
    models = [STACKED[name]() for _ in range(3)]
    check([model for model in models for _ in range(share)], "stacked", batch=batch, common=common)


def test_models_of_several_agents_each_with_ids() -> None:
    kind = policy_class(
        lambda m, x, i: (m.head(hidden(m, torch.cat([x, i["agent_id"]], -1))), m.log_std_parameter, {}),
        lambda m: setattr(m, "first", nn.Linear(WIDTH + 4, 6)),
        agent_id=True,
    )
    models = [kind(), kind()]
    both = check([models[0], models[0], models[1], models[1]], "stacked")
    assert both.uses_agent_id
    check([models[0], models[0], models[1], models[1]], "stacked", common=True, batch=1)


def test_the_plan_reads_present_parameters() -> None:
    models = [Policy() for _ in range(3)]
    both = batch_of(models)
    x = torch.randn(4, 3, WIDTH)
    other = Policy()
    models[1].load_state_dict(other.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(both(x)[0][:, 1], other.compute({"states": x[:, 1]})[0])


def test_outputs_of_parameters_are_not_expanded() -> None:
    mean, log_std = batch_of([Policy() for _ in range(3)])(torch.randn(50, 3, WIDTH))
    assert mean.shape == (50, 3, 2)
    assert log_std.shape == (1, 3, 2)


# ---- one model for all ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("agents", [1, 4])
def test_one_model_for_all(agents: int, batch: int) -> None:
    check([Policy()] * agents, "single", batch=batch)


def test_one_model_on_what_all_see_is_evaluated_once() -> None:
    critic = Value(OBSERVATION, BOX)
    (values,) = batch_of([critic] * 4)(torch.randn(6, 1, WIDTH))
    assert values.shape == (6, 1, 1)


@pytest.mark.parametrize(("pattern", "mode"), [([0, 0, 1, 1], "stacked"), ([0, 1, 0, 1, 1], "loop")])
def test_each_model_sees_once_what_its_agents_see_alike(pattern: list[int], mode: str) -> None:
    critics = [Value(OBSERVATION, BOX) for _ in range(2)]
    both = batch_of([critics[i] for i in pattern])
    assert both.mode == mode
    rows: list[int] = []

    def count(run: Any) -> Any:
        def counted(inputs: Any, *args: Any) -> Any:
            rows.append(inputs["states"].shape[-2])
            return run(inputs, *args)

        return counted

    if mode == "stacked":
        both._plan = count(both._plan)
    else:
        for critic in critics:
            critic.compute = count(critic.compute)  # type: ignore[method-assign]
    x = torch.randn(6, 1, WIDTH)
    (values,) = both(x)
    assert rows == ([6] if mode == "stacked" else [6, 6])
    for i, column in zip(pattern, values.unbind(1), strict=True):
        torch.testing.assert_close(column, critics[i].net(x[:, 0]))
    rows.clear()
    both(torch.randn(6, len(pattern), WIDTH))
    assert rows == ([12] if mode == "stacked" else [12, 18])


@pytest.mark.parametrize("common", [False, True])
def test_one_model_with_ids(common: bool) -> None:
    model = Value(OBSERVATION, BOX, agent_ids=3)
    check([model] * 3, "single", common=common)


# ---- what can't be stacked ------------------------------------------------------------------------------------------


class OwnLinear(nn.Linear):
    """Not ``nn.Linear`` itself: it might compute anything."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2.0


UNSTACKED: dict[str, type[Policy]] = {
    "chunk": policy_class(
        lambda m, x, _: (*m.wide(hidden(m, x)).chunk(2, dim=-1), {}), lambda m: setattr(m, "wide", nn.Linear(6, 4))
    ),
    "softmax": policy_class(lambda m, x, _: (m.head(torch.softmax(hidden(m, x), -1)), m.log_std_parameter, {})),
    "sum over features": policy_class(
        lambda m, x, _: (m.head(hidden(m, x)) + x.sum(-1, keepdim=True), m.log_std_parameter, {})
    ),
    "mean over rows": policy_class(
        lambda m, x, _: (m.head(hidden(m, x)) + 0.0 * x.mean(dim=0, keepdim=True).sum(), m.log_std_parameter, {})
    ),
    "mean over everything": policy_class(
        lambda m, x, _: (m.head(hidden(m, x)) + 0.0 * torch.mean(x), m.log_std_parameter, {})
    ),
    "own layer": policy_class(
        lambda m, x, _: (m.own(hidden(m, x)), m.log_std_parameter, {}), lambda m: setattr(m, "own", OwnLinear(6, 2))
    ),
    "where": policy_class(
        lambda m, x, _: (m.head(torch.where(x[:, :1] > 0, 2.0, 0.5).to(x) * hidden(m, x)), m.log_std_parameter, {})
    ),
    "layer norm without parameters": policy_class(
        lambda m, x, _: (m.head(F.layer_norm(m.first(x), (6,))), m.log_std_parameter, {})
    ),
    "matrix parameter": policy_class(
        lambda m, x, _: (hidden(m, x) @ m.matrix, m.log_std_parameter, {}),
        lambda m: setattr(m, "matrix", nn.Parameter(torch.randn(6, 2))),
    ),
}


@pytest.mark.parametrize("name", UNSTACKED)
def test_other_operations_go_through_the_loop(name: str) -> None:
    check([UNSTACKED[name]() for _ in range(3)], "loop")


@pytest.mark.parametrize("name", UNSTACKED)
def test_many_models_go_through_vmap(name: str) -> None:
    check([UNSTACKED[name]() for _ in range(VMAP_FROM)], "vmap")


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("common", [False, True])
@pytest.mark.parametrize("count", [3, VMAP_FROM])
def test_unstacked_models_of_several_agents_each(count: int, common: bool, batch: int) -> None:
    models = [UNSTACKED["chunk"]() for _ in range(count)]
    agents = [model for model in models for _ in range(2)]
    check(agents, "loop" if count < VMAP_FROM else "vmap", batch=batch, common=common)


@pytest.mark.parametrize("count", [3, VMAP_FROM])
def test_unstacked_models_with_ids(count: int) -> None:
    kind = policy_class(
        lambda m, x, i: (
            m.head(torch.softmax(m.first(torch.cat([x, i["agent_id"]], -1)), -1)),
            m.log_std_parameter,
            {},
        ),
        lambda m: setattr(m, "first", nn.Linear(WIDTH + count, 6)),
        agent_id=True,
    )
    check([kind() for _ in range(count)], "loop" if count < VMAP_FROM else "vmap", common=True)


@pytest.mark.parametrize("count", [3, VMAP_FROM])
def test_control_flow_on_values_goes_through_the_loop(count: int) -> None:
    def compute(m: Any, x: Tensor, _: Any) -> tuple[Any, ...]:
        h = hidden(m, x)
        return m.head(h if float(m.log_std_parameter.detach().sum()) > 0 else -2.0 * h), m.log_std_parameter, {}

    kind = policy_class(compute)
    models = [kind() for _ in range(count)]
    for i, model in enumerate(models):
        nn.init.constant_(model.log_std_parameter, 0.1 if i % 2 else -0.1)
    check(models, "loop")


@pytest.mark.parametrize("count", [3, VMAP_FROM])
def test_models_with_buffers_go_through_the_loop(count: int) -> None:
    kind = policy_class(
        lambda m, x, _: (m.head(m.norm(hidden(m, x))), m.log_std_parameter, {}),
        lambda m: setattr(m, "norm", nn.BatchNorm1d(6)),
    )
    models = [kind() for _ in range(count)]
    for i, model in enumerate(models):
        model.set_mode("eval")
        model.get_buffer("norm.running_mean").fill_(float(i))
    check(models, "loop")


def scaled(m: Any, x: Tensor, _: Any) -> tuple[Any, ...]:
    return m.head(hidden(m, x)) * m.scale, m.log_std_parameter, {}


def scaled_softmax(m: Any, x: Tensor, _: Any) -> tuple[Any, ...]:
    return m.head(torch.softmax(hidden(m, x), -1)) * m.scale, m.log_std_parameter, {}


def private_softmax(m: Any, x: Tensor, _: Any) -> tuple[Any, ...]:
    return m.head(torch.softmax(hidden(m, x), -1)) * m._scale, m.log_std_parameter, {}


@pytest.mark.parametrize("compute", [scaled, scaled_softmax, private_softmax])
@pytest.mark.parametrize("count", [2, VMAP_FROM])
@pytest.mark.parametrize("kind_of_constant", ["number", "tensor"])
def test_models_that_differ_in_a_constant_go_through_the_loop(
    compute: Callable[..., Any], count: int, kind_of_constant: str
) -> None:
    kind = policy_class(compute)
    models = [kind() for _ in range(count)]
    for i, model in enumerate(models):
        # differences too small for a printed tensor to show
        constant = 1.25 + i * 5e-6
        vars(model)["_scale" if compute is private_softmax else "scale"] = (
            constant if kind_of_constant == "number" else torch.tensor(constant, dtype=torch.float64).float()
        )
    check(models, "loop")


def test_models_that_agree_in_a_constant_are_stacked() -> None:
    kind = policy_class(scaled, lambda m: setattr(m, "scale", 0.3))
    check([kind() for _ in range(3)], "stacked")


@pytest.mark.parametrize("slopes", [(0.1, 0.2), (0.1, 0.1 + 1e-9)])
def test_layers_that_differ_in_a_setting_go_through_the_loop(slopes: tuple[float, float]) -> None:
    check([Policy(nn.LeakyReLU(slope)) for slope in slopes], "loop")


def test_layers_that_differ_in_kind_go_through_the_loop() -> None:
    check([Policy(nn.Tanh()), Policy(nn.ReLU())], "loop")


@pytest.mark.parametrize(
    "pattern", [[0, 0, 1], [0, 1, 0, 1], [0, 1, 1, 0], [1, 0, 0]], ids=lambda p: "".join(map(str, p))
)
@pytest.mark.parametrize("common", [False, True])
@pytest.mark.parametrize("batch", [1, 4])
def test_irregular_sharing_goes_through_the_loop(pattern: list[int], common: bool, batch: int) -> None:
    models = [Policy(), Policy()]
    check([models[i] for i in pattern], "loop", common=common, batch=batch)


def test_different_classes_and_widths_go_through_the_loop() -> None:
    class Wider(Policy):
        def build(self) -> None:
            self.first, self.head = nn.Linear(WIDTH, 9), nn.Linear(9, 2)

    models = [Policy(), Wider()]
    storage = FlatParameters([models])
    assert batch_of(models, storage).mode == "loop"
    assert not same_architecture(models)


def test_frozen_parameters_go_through_the_loop() -> None:
    models = [Policy() for _ in range(3)]
    for model in models:
        model.first.requires_grad_(False)
    check(models, "loop")


def test_layers_with_hooks_are_not_stacked_without_them() -> None:
    models = [Policy() for _ in range(2)]
    for model in models:
        model.first.register_forward_hook(lambda module, args, output: output * 3.0)
    check(models, "loop")


def test_layers_with_reparametrised_weights() -> None:
    models = [Policy() for _ in range(2)]
    for model in models:
        nn.utils.spectral_norm(model.first)
        model.set_mode("eval")
    assert batch_of(models).mode == "loop"


def test_layers_without_parameters_that_differ_in_kind_go_through_the_loop() -> None:
    """Sigmoid and Tanh have equal attributes: none."""
    models = [UNSTACKED["softmax"](nn.Sigmoid() if i % 2 else nn.Tanh()) for i in range(VMAP_FROM)]
    check(models, "loop")


@pytest.mark.parametrize("rnn", [None, "gru", "lstm"])
def test_many_rows_go_through_vmap_too(rnn: str | None) -> None:
    """Layers leave their stock forms there, which must not reach into vmap."""
    models = [
        GaussianPolicy(OBSERVATION, BOX, hidden=(64,), state_dependent_std=True, rnn=rnn) for _ in range(VMAP_FROM)
    ]
    both = batch_of(models)
    assert both.mode == "vmap"
    states = torch.randn(300, VMAP_FROM, WIDTH)
    assert states.shape[0] * 64 > WORTHWHILE
    mean, log_std = (
        both(states) if rnn is None else both.unroll(states, both.initial_state(300, VMAP_FROM), None, None, 1)[0]
    )
    torch.stack([mean.square().sum(), log_std.square().sum()]).sum().backward()
    grads = [{name: p.grad.clone() for name, p in m.named_parameters() if p.grad is not None} for m in models]
    for a, model in enumerate(models):
        expected = model.compute({"states": states[:, a]})
        torch.testing.assert_close(mean[:, a], expected[0], atol=1e-6, rtol=0)
        torch.testing.assert_close(log_std[:, a], expected[1], atol=1e-6, rtol=0)
        mine = torch.autograd.grad(expected[0].square().sum() + expected[1].square().sum(), list(model.parameters()))
        for grad, (name, _) in zip(mine, model.named_parameters(), strict=True):
            torch.testing.assert_close(grads[a][name], grad, atol=1e-4, rtol=1e-4)


# ---- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3])
def test_keeping_tensors_on_self_is_refused(count: int) -> None:
    def compute(m: Any, x: Tensor, _: Any) -> tuple[Any, ...]:
        m.features = hidden(m, x)
        return m.head(m.features), m.log_std_parameter, {}

    kind = policy_class(compute)
    models = [kind() for _ in range(count)]
    with pytest.raises(ValueError, match=r"Custom.compute stores \['features'\] on self"):
        batch_of(models)
    assert not hasattr(models[0], "features"), "tracing leaves nothing behind"


@pytest.mark.parametrize("count", [1, 3])
def test_an_output_of_another_number_of_rows_is_named(count: int) -> None:
    kind = policy_class(lambda m, x, _: (m.head(hidden(m, x))[:2], m.log_std_parameter, {}))
    both = batch_of([kind() for _ in range(count)])
    with pytest.raises(ValueError, match=r"Custom.compute returned a tensor of shape \[2, 2\] for 7 rows"):
        both(torch.randn(7, count, WIDTH))


class SqueezedValue(DeterministicMixin, Model):
    def __init__(self) -> None:
        Model.__init__(self, WIDTH, BOX)
        DeterministicMixin.__init__(self)
        self.net = nn.Linear(WIDTH, 1)

    def compute(self, inputs: Any, role: str = "") -> tuple[Any, ...]:
        return self.net(inputs["states"]).squeeze(-1), {}


@pytest.mark.parametrize("count", [1, 3, VMAP_FROM])
def test_a_value_without_its_last_dimension_is_named(count: int) -> None:
    """``[B]`` would broadcast against ``[B, 1]`` into a loss over all pairs."""
    both = batch_of([SqueezedValue() for _ in range(count)])
    with pytest.raises(ValueError, match=r"SqueezedValue.compute returned a tensor of shape \[7\].*expected \[7, n\]"):
        both(torch.randn(7, count, WIDTH))


@pytest.mark.parametrize("count", [1, 3, VMAP_FROM])
def test_an_output_that_is_no_tuple_is_named(count: int) -> None:
    kind = policy_class(lambda m, x, _: m.head(hidden(m, x)))  # type: ignore[arg-type, return-value]
    both = batch_of([kind() for _ in range(count)])
    with pytest.raises(TypeError, match=r"Custom.compute returned Tensor"):
        both(torch.randn(7, count, WIDTH))


def test_tracing_leaves_the_models_as_they_were() -> None:
    model = Policy()
    before = {name: id(value) for name, value in vars(model).items()}
    batch_of([model, Policy()])
    assert {name: id(value) for name, value in vars(model).items()} == before
