"""Recurrent models in batches: every way of running them against a plain loop over agents, environments and steps."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from coterie.models import GRU, LSTM, DeterministicMixin, GaussianMixin, Model
from coterie.models.batch import VMAP_FROM, ModelBatch, same_architecture
from coterie.models.flat_parameters import FlatParameters
from coterie.models.sequences import Recurrence, recurrence_of

WIDTH, HIDDEN, STEPS, ENVS = 3, 4, 4, 3
BOX = spaces.Box(-1.0, 1.0, (2,))


class Recurrent(GaussianMixin, Model):
    """Encoder, recurrent layer, head; whole sequences."""

    cell: Any = GRU
    layers = 1

    def __init__(self, ids: int = 0) -> None:
        Model.__init__(self, WIDTH, BOX)
        GaussianMixin.__init__(self)
        self.uses_agent_id = ids > 0
        self.encoder = nn.Linear(WIDTH + ids, 5)
        self.log_std_parameter = nn.Parameter(torch.randn(2))
        self.head = nn.Linear(HIDDEN, 2)
        self.build()

    def build(self) -> None:
        self.rnn = self.cell(5, HIDDEN, self.layers)

    def get_specification(self) -> dict[str, Any]:
        return {"rnn": {"sizes": self.rnn.sizes, "sequence_length": 7, "whole_sequences": True}}

    def encode(self, inputs: Any) -> Tensor:
        x = torch.cat([inputs["states"], inputs["agent_id"]], dim=-1) if self.uses_agent_id else inputs["states"]
        return torch.tanh(self.encoder(x))

    def compute(self, inputs: Any, role: str = "") -> tuple[Any, ...]:
        features, states = self.rnn(self.encode(inputs), inputs)
        return self.head(features), self.log_std_parameter, {"rnn": states}


class WholeLSTM(Recurrent):
    cell, layers = LSTM, 2


class TwoLayers(Recurrent):
    """Two recurrent layers of one model, each with its own part of the states, and a skip connection."""

    def build(self) -> None:
        self.rnn, self.other = GRU(5, HIDDEN), LSTM(5, HIDDEN)

    def get_specification(self) -> dict[str, Any]:
        sizes = [*self.rnn.sizes, *self.other.sizes]
        return {"rnn": {"sizes": sizes, "sequence_length": 7, "whole_sequences": True}}

    def compute(self, inputs: Any, role: str = "") -> tuple[Any, ...]:
        x = self.encode(inputs)
        first, (h,) = self.rnn(x, {**inputs, "rnn": inputs["rnn"][:1]})
        second, (g, c) = self.other(x, {**inputs, "rnn": inputs["rnn"][1:]})
        return self.head(first * second + first), self.log_std_parameter, {"rnn": [h, g, c]}


class OddHead(Recurrent):
    """A whole-sequence model that cannot be stacked."""

    def compute(self, inputs: Any, role: str = "") -> tuple[Any, ...]:
        features, states = self.rnn(self.encode(inputs), inputs)
        return self.head(torch.softmax(features, -1)), self.log_std_parameter, {"rnn": states}


class Stepwise(Recurrent):
    """Written for single steps, with PyTorch's own cell."""

    def build(self) -> None:
        self.rnn = nn.GRUCell(5, HIDDEN)

    def get_specification(self) -> dict[str, Any]:
        return {"rnn": {"sizes": [(1, HIDDEN)], "sequence_length": 7}}

    def compute(self, inputs: Any, role: str = "") -> tuple[Any, ...]:
        h = self.rnn(self.encode(inputs), inputs["rnn"][0][0])
        return self.head(h), self.log_std_parameter, {"rnn": [h.unsqueeze(0)]}


class OwnCell(Recurrent):
    """Written for single steps, with a cell of linear layers."""

    def build(self) -> None:
        self.rnn = nn.Linear(5 + HIDDEN, HIDDEN)

    def get_specification(self) -> dict[str, Any]:
        return {"rnn": {"sizes": [(1, HIDDEN)], "sequence_length": 7}}

    def compute(self, inputs: Any, role: str = "") -> tuple[Any, ...]:
        h = torch.tanh(self.rnn(torch.cat([self.encode(inputs), inputs["rnn"][0][0]], dim=-1)))
        return self.head(h), self.log_std_parameter, {"rnn": [h.unsqueeze(0)]}


class StepwiseLSTM(Recurrent):
    """Written for single steps as for skrl: sizes with a number of environments, and an nn.LSTM of two layers."""

    def build(self) -> None:
        self.rnn = nn.LSTM(5, HIDDEN, num_layers=2)

    def get_specification(self) -> dict[str, Any]:
        return {"rnn": {"sizes": [(2, 64, HIDDEN), (2, 64, HIDDEN)], "sequence_length": 7}}

    def compute(self, inputs: Any, role: str = "") -> tuple[Any, ...]:
        h, c = inputs["rnn"]
        output, states = self.rnn(self.encode(inputs).unsqueeze(0), (h.contiguous(), c.contiguous()))
        return self.head(output.squeeze(0)), self.log_std_parameter, {"rnn": list(states)}


def reference(
    models: Sequence[Model], states: Tensor, state: Tensor, starts: Tensor | None, active: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Each agent of each environment by itself, step after step: outputs of rows, the parameter, the new states."""
    agents = len(models)
    ids = torch.eye(agents, dtype=states.dtype)
    means: list[list[Tensor]] = []
    new = []
    for n in range(ENVS):
        for a, model in enumerate(models):
            spec = recurrence_of(model)
            assert spec is not None
            now, rows = state[n, a : a + 1], []
            for step in range(STEPS):
                row = step * ENVS + n
                if starts is not None and bool(starts[row, a]):
                    now = torch.zeros_like(now)
                inputs = {
                    "states": states[row, a : a + 1], "agent_id": ids[a : a + 1], "rnn": spec.unpack(now),
                    "length": 1, "starts": None, "active": None,
                }  # fmt: skip
                mean, _, last = model.compute(inputs, "policy")
                if active is None or bool(active[row, a]):
                    now = spec.pack(last["rnn"])
                rows.append(mean)
            means.append(rows)
            new.append(now)
    outputs = torch.stack([torch.cat(rows) for rows in means], dim=1)  # [L, N*A, n]
    log_std = torch.stack([model.log_std_parameter for model in models])  # type: ignore[arg-type]
    return outputs.unflatten(1, (ENVS, agents)).flatten(0, 1), log_std, torch.cat(new).unflatten(0, (ENVS, agents))


def check(models: Sequence[Model], mode: str, common: bool, interrupted: bool) -> ModelBatch:
    """Compare a batch's unrolling with :func:`reference` on float64 copies: outputs of active rows, states, gradients."""
    agents = len(models)
    copies = {model: copy.deepcopy(model).double() for model in dict.fromkeys(models)}
    storage = FlatParameters([[model] for model in dict.fromkeys(models)])
    batch = ModelBatch(models, "policy", storage, torch.eye(agents))
    assert batch.mode == mode
    assert batch.recurrent
    assert batch.sequence_length == 7
    states = torch.randn(STEPS * ENVS, 1 if common else agents, WIDTH)
    state = torch.randn(batch.initial_state(ENVS, states.shape[1]).shape, requires_grad=True)
    columns = state.shape[1]
    starts, active = (torch.rand(STEPS * ENVS, columns, 1) < p for p in (0.3, 0.7))
    masks = (starts, active) if interrupted else (None, None)
    (mean, log_std), new = batch.unroll(states, state, *masks, STEPS)

    wide_state = state.detach().double().requires_grad_()
    wide_masks = [None if mask is None else mask.expand(-1, agents, -1) for mask in masks]
    expected, expected_std, expected_new = reference(
        [copies[model] for model in models],
        states.expand(-1, agents, -1).double(),
        wide_state.expand(-1, agents, -1),
        *wide_masks,
    )
    # a row that is not active may return anything
    counted = torch.ones(STEPS * ENVS, agents, 1) if wide_masks[1] is None else wide_masks[1].float()
    weights = counted * torch.randn(expected.shape)
    weights_new = torch.randn(new.shape)
    torch.testing.assert_close(mean.expand_as(expected).double() * counted, expected * counted, atol=1e-6, rtol=0)
    torch.testing.assert_close(
        log_std.expand(STEPS * ENVS, agents, -1)[0].double(), expected_std, atol=1e-6, rtol=0, check_dtype=False
    )
    torch.testing.assert_close(new.double(), expected_new[:, :columns], atol=1e-6, rtol=0)
    storage.grad.zero_()
    ((mean * weights).sum() + (new * weights_new).sum() + log_std.mean()).backward()
    ((expected * weights).sum() + (expected_new[:, :columns] * weights_new).sum()).backward()
    assert state.grad is not None
    torch.testing.assert_close(state.grad.double(), wide_state.grad, atol=1e-5, rtol=0)
    for model, other in copies.items():
        for (name, p), q in zip(model.named_parameters(), other.named_parameters(), strict=True):
            if name != "log_std_parameter":
                assert p.grad is not None
                torch.testing.assert_close(
                    p.grad.double(), q[1].grad, atol=2e-5, rtol=0, msg=lambda m, n=name: f"{n}: {m}"
                )
    return batch


KINDS = [Recurrent, WholeLSTM, OddHead, Stepwise, OwnCell, StepwiseLSTM]


@pytest.mark.parametrize("interrupted", [False, True])
@pytest.mark.parametrize("common", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_one_model_for_all(kind: type[Recurrent], common: bool, interrupted: bool) -> None:
    batch = check([kind()] * 3, "single", common, interrupted)
    assert batch.initial_state(5, 1 if common else 3).shape == (5, 1 if common else 3, batch.state_width)


@pytest.mark.parametrize("interrupted", [False, True])
@pytest.mark.parametrize("common", [False, True])
@pytest.mark.parametrize("share", [1, 2])
@pytest.mark.parametrize("kind", [Recurrent, WholeLSTM])
def test_recurrent_layers_are_stacked(kind: type[Recurrent], share: int, common: bool, interrupted: bool) -> None:
    models = [kind() for _ in range(3)]
    check([model for model in models for _ in range(share)], "stacked", common, interrupted)


class ListedLayers(TwoLayers):
    """:class:`TwoLayers` with states picked one by one."""

    def compute(self, inputs: Any, role: str = "") -> tuple[Any, ...]:
        x = self.encode(inputs)
        one, two, three = inputs["rnn"]
        first, h = self.rnn(x, {**inputs, "rnn": [one]})
        second, (g, c) = self.other(x, inputs={**inputs, "rnn": [two, three]})
        return self.head(first * second + first), self.log_std_parameter, {"rnn": [h[0], g, c]}


@pytest.mark.parametrize("kind", [TwoLayers, ListedLayers])
def test_several_recurrent_layers_are_stacked(kind: type[Recurrent]) -> None:
    check([kind() for _ in range(2)], "stacked", False, True)


@pytest.mark.parametrize("interrupted", [False, True])
@pytest.mark.parametrize("share", [1, 2])
@pytest.mark.parametrize("count", [2, VMAP_FROM])
@pytest.mark.parametrize("kind", [OddHead, Stepwise, OwnCell])
def test_other_models_go_through_vmap_or_the_loop(kind: Any, count: int, share: int, interrupted: bool) -> None:
    models = [kind() for _ in range(count)]
    mode = "loop" if count < VMAP_FROM or kind is Stepwise else "vmap"  # PyTorch's cell has no batched form
    check([model for model in models for _ in range(share)], mode, share == 2, interrupted)


@pytest.mark.parametrize(("kind", "mode"), [(Recurrent, "stacked"), (Stepwise, "loop")])
@pytest.mark.parametrize("common", [False, True])
def test_agent_ids(kind: type[Recurrent], mode: str, common: bool) -> None:
    check([kind(ids=3)] * 3, "single", common, True)
    check([kind(ids=3) for _ in range(3)], mode, common, True)
    models = [kind(ids=4), kind(ids=4)]
    check([models[0], models[0], models[1], models[1]], mode, common, True)


def test_models_of_different_classes_go_through_the_loop() -> None:
    check([Recurrent(), Stepwise(), Recurrent()], "loop", False, True)
    models = [Recurrent(), Recurrent()]
    check([models[0], models[1], models[0]], "loop", False, True)


def test_one_mask_stands_for_all_agents() -> None:
    models = [Recurrent() for _ in range(3)]
    batch = ModelBatch(models, "policy", FlatParameters([[m] for m in models]), torch.eye(3))
    states, state = torch.randn(STEPS * ENVS, 3, WIDTH), batch.initial_state(ENVS, 3)
    starts = torch.rand(STEPS * ENVS, 1, 1) < 0.5
    one = batch.unroll(states, state, starts, None, STEPS)
    torch.testing.assert_close(one, batch.unroll(states, state, starts.expand(-1, 3, -1), None, STEPS))


def test_a_rollout_step_by_step_is_one_long_sequence() -> None:
    for kind in (Recurrent, Stepwise):
        models = [kind() for _ in range(2)]
        batch = ModelBatch(models, "policy", FlatParameters([[m] for m in models]), torch.eye(2))
        states, starts = torch.randn(STEPS, ENVS, 2, WIDTH), torch.rand(STEPS, ENVS, 2, 1) < 0.4
        with torch.no_grad():
            (mean, _), last = batch.unroll(
                states.flatten(0, 1), batch.initial_state(ENVS, 2), starts.flatten(0, 1), None, STEPS
            )
            now, means = batch.initial_state(ENVS, 2), []
            for step in range(STEPS):
                (part, _), now = batch.unroll(states[step], now, starts[step], None, 1)
                means.append(part)
        torch.testing.assert_close(torch.cat(means), mean)
        torch.testing.assert_close(now, last)


def test_whole_and_stepwise_models_agree() -> None:
    whole, stepwise = Recurrent(), Stepwise()
    stepwise.load_state_dict({name.removesuffix("_l0"): tensor for name, tensor in whole.state_dict().items()})
    states, masks = torch.randn(STEPS * ENVS, 1, WIDTH), torch.rand(2, STEPS * ENVS, 1, 1) < 0.5
    results = []
    for model in (whole, stepwise):
        batch = ModelBatch([model], "policy", FlatParameters([[model]]), torch.eye(1))
        (mean, _), new = batch.unroll(states, batch.initial_state(ENVS, 1), masks[0], masks[1], STEPS)
        results.append((mean * masks[1], new))
    torch.testing.assert_close(results[0], results[1], atol=1e-6, rtol=0)


# ---- declarations and errors ----------------------------------------------------------------------------------------


def declaring(declared: Any) -> Model:
    model = Stepwise()
    model.get_specification = lambda: {"rnn": declared}  # type: ignore[method-assign]
    return model


def test_layers_with_hooks_are_not_stacked_without_them() -> None:
    models = [Recurrent() for _ in range(2)]
    for model in models:
        model.rnn.register_forward_hook(lambda module, args, output: (output[0] * 3.0, output[1]))
    check(models, "loop", False, True)


def test_operations_that_vmap_only_loops_over_go_through_the_loop() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert batch_of([Stepwise() for _ in range(VMAP_FROM)]).mode == "loop"


def test_states_keep_their_precision() -> None:
    for kind in (Recurrent, Stepwise, OwnCell):
        batch = batch_of([kind()])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            _, new = batch.unroll(torch.randn(6, 1, WIDTH), batch.initial_state(3, 1), None, None, 2)
        assert new.dtype == torch.float32


def test_models_of_unequal_sequence_lengths_are_of_unequal_architecture() -> None:
    class Longer(Recurrent):
        length = 7

        def get_specification(self) -> dict[str, Any]:
            return {"rnn": {**super().get_specification()["rnn"], "sequence_length": self.length}}

    one, other = Longer(), Longer()
    assert same_architecture([one, other])
    other.length = 8
    assert not same_architecture([one, other])


def test_what_a_model_declares() -> None:
    assert recurrence_of(declaring(None)) is None
    spec = recurrence_of(declaring({"sizes": [(2, 4), (1, 64, 3)], "sequence_length": 8}))
    assert spec == Recurrence(((2, 4), (1, 3)), 8, False)
    assert spec.width == 2 * 4 + 3
    assert recurrence_of(WholeLSTM()) == Recurrence(((2, HIDDEN), (2, HIDDEN)), 7, True)


def test_packed_states_can_be_unpacked() -> None:
    spec = Recurrence(((2, 3), (1, 2)), 1)
    states = [torch.arange(12.0).view(2, 2, 3), torch.arange(20.0, 24.0).view(1, 2, 2)]
    packed = spec.pack(states)
    # sequence 1: layer 0 has 3, 4, 5 and layer 1 has 9, 10, 11; then its row of the second tensor
    assert packed[1].tolist() == [3, 4, 5, 9, 10, 11, 22, 23]
    torch.testing.assert_close(spec.unpack(packed), states)
    torch.testing.assert_close(spec.pack([s.unsqueeze(0) for s in states]), packed.unsqueeze(0))


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"sizes": [(1, 4)], "sequence_length": 0}, "sequence_length that is a whole number of at least 1, got 0"),
        ({"sizes": [(1, 4)], "sequence_length": 2.5}, "sequence_length.*got 2.5"),
        ({"sizes": [(1, 4)]}, r"Stepwise.get_specification\(\)\['rnn'\]: expected \{'sizes'"),
        ({"sizes": [(1, 4)], "sequence_length": 4, "length": 4}, "expected.*'whole_sequences'.*got"),
        ({"sizes": [], "sequence_length": 4}, r"sizes \[\(layers, hidden\), ...\] of at least 1, got \[\]"),
        ({"sizes": [(0, 4)], "sequence_length": 4}, "at least 1"),
        ({"sizes": [(4,)], "sequence_length": 4}, "at least 1"),
        ({"sizes": 4, "sequence_length": 4}, "expected"),
        ("gru", "expected"),
    ],
)
def test_bad_declarations_are_named(declared: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        batch_of([declaring(declared)])


def batch_of(models: Sequence[Model]) -> ModelBatch:
    storage = FlatParameters([list(dict.fromkeys(models))])
    return ModelBatch(models, "policy", storage, torch.eye(len(models)))


def returning(states: Callable[[Tensor], Any], kind: type[Recurrent] = Stepwise) -> Model:
    class Custom(kind):  # type: ignore[valid-type, misc]
        def compute(self, inputs: Any, role: str = "") -> tuple[Any, ...]:
            mean, log_std, last = super().compute(inputs, role)
            new = states(last["rnn"][0])
            return (mean, log_std) if new is None else (mean, log_std, new)

    return Custom()


@pytest.mark.parametrize("kind", [Stepwise, Recurrent])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(
    ("states", "message"),
    [
        (
            lambda h: None,
            r"declares states in get_specification, but compute returned none: .*\{'rnn': \[new states\]\}",
        ),
        (lambda h: {}, "compute returned none"),
        (lambda h: {"rnn": h}, "compute returned none.*got Tensor"),
        (lambda h: {"rnn": [h[0]]}, r"returned states of shapes \[\[\d+, 4\]\]: .* declares \[\[1, \d+, 4\]\]"),
        (lambda h: {"rnn": [h, h]}, "returned states of shapes"),
        (lambda h: {"rnn": [None]}, r"shapes \['NoneType'\]"),
    ],
)
def test_bad_states_are_named(kind: type[Recurrent], count: int, states: Any, message: str) -> None:
    batch = batch_of([returning(states, kind) for _ in range(count)])
    with pytest.raises(ValueError, match=message):
        batch.unroll(torch.randn(STEPS * ENVS, count, WIDTH), batch.initial_state(ENVS, count), None, None, STEPS)


def test_wrong_shapes_are_named() -> None:
    models = [Recurrent() for _ in range(2)]
    batch = batch_of(models)
    states, state = torch.randn(STEPS * ENVS, 2, WIDTH), batch.initial_state(ENVS, 2)
    with pytest.raises(ValueError, match=r"5 rows for each.*\[N, 2, 4\], got 12 rows and a state of shape \[3, 2, 4\]"):
        batch.unroll(states, state, None, None, 5)
    with pytest.raises(ValueError, match=r"state of shape \[3, 1, 4\]"):
        batch.unroll(states, state[:, :1], None, None, STEPS)
    with pytest.raises(ValueError, match=r"starts: expected \[12, 2, 1\], got \[3, 2, 1\]"):
        batch.unroll(states, state, torch.zeros(ENVS, 2, 1, dtype=torch.bool), None, STEPS)
    with pytest.raises(ValueError, match=r"active: expected \[12, 2, 1\], got \[12, 2\]"):
        batch.unroll(states, state, None, torch.zeros(STEPS * ENVS, 2, dtype=torch.bool), STEPS)
    with pytest.raises(TypeError, match="Recurrent is recurrent: call unroll"):
        batch(states)


class Plain(DeterministicMixin, Model):
    def __init__(self) -> None:
        Model.__init__(self, WIDTH, BOX)
        DeterministicMixin.__init__(self)
        self.net = nn.Linear(WIDTH, 1)

    def compute(self, inputs: Any, role: str = "") -> tuple[Any, ...]:
        return self.net(inputs["states"]), {}


def test_feed_forward_models_have_no_states() -> None:
    batch = batch_of([Plain()])
    assert (batch.recurrent, batch.state_width, batch.sequence_length) == (False, 0, 1)
    assert batch.initial_state(5, 1).shape == (5, 1, 0)
    with pytest.raises(TypeError, match="Plain is not recurrent"):
        batch.unroll(torch.zeros(1, 1, WIDTH), batch.initial_state(1, 1), None, None, 1)


def test_models_of_unequal_recurrence_are_refused() -> None:
    with pytest.raises(ValueError, match=r"equal recurrence: Recurrent declares.*Plain None"):
        batch_of([Recurrent(), Plain()])
    with pytest.raises(ValueError, match="equal recurrence"):
        batch_of([Recurrent(), WholeLSTM()])


def test_keeping_tensors_on_self_is_refused() -> None:
    class Keeping(Stepwise):
        def compute(self, inputs: Any, role: str = "") -> tuple[Any, ...]:
            self.hidden = inputs["rnn"][0] * 1.0
            return super().compute(inputs, role)

    for count in (1, 2):
        with pytest.raises(ValueError, match=r"stores \['hidden'\] on self"):
            batch_of([Keeping() for _ in range(count)])
