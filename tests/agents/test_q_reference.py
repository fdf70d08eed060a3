"""The slow reference of the learners of action values itself, by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from coterie.agents.vdn import VDN_DEFAULT_CONFIG
from coterie.models.base import Model
from coterie.models.mixers import AttentionMixer, QMIXMixer
from coterie.models.mixins import QMixin
from tests.agents.ppo_reference_time import ABSENT, ACTIVE, WAITING, Masks
from tests.agents.q_history import (
    TERMINATED,
    TRUNCATED,
    Deed,
    History,
    QStep,
    Row,
    deeds,
    lambda_target,
    n_step_target,
)
from tests.agents.q_mixers import mix
from tests.agents.q_reference import ReferenceQ, Spread, Stretch

A, W = ACTIVE, WAITING


def row(status: str, reward: float, end: str | None = None, step: bool = True, first: bool = False) -> Row:
    return Row(step, first, {"a": status}, {}, {}, {}, torch.zeros(1), {"a": 0}, {"a": reward}, {"a": end})


def done(rows: list[Row], steps: int) -> list[Deed]:
    return deeds(rows, steps, lambda r: r.status["a"] == A, lambda r: r.rewards["a"], lambda r: r.ends["a"])


# ---- what was done, and what it led to -----------------------------------------------------------------------------------


def test_deeds() -> None:
    going_on = [row(A, 1.0), row(A, 2.0), row(A, 4.0)]
    assert done(going_on, 2) == [Deed(0, 1.0, 1, goes_on=True), Deed(1, 2.0, 2)]
    over = [row(A, 1.0), row(A, 2.0, TERMINATED), row(A, 4.0, first=True), row(A, 8.0)]
    assert done(over, 3) == [Deed(0, 1.0, 1, goes_on=True), Deed(1, 2.0, None), Deed(2, 4.0, 3)]
    cut = [row(A, 1.0), row(A, 2.0, TRUNCATED), row(A, 0.0, step=False), row(A, 8.0, first=True), row(A, 0.0)]
    assert done(cut, 4) == [Deed(0, 1.0, 1, goes_on=True), Deed(1, 2.0, 2), Deed(3, 8.0, 4)]


def test_deeds_of_those_who_wait() -> None:
    # what is earned while waiting belongs to what was done; what nothing shows the outcome of is left out
    rows = [row(W, 1.0), row(A, 2.0), row(W, 4.0), row(A, 8.0), row(W, 16.0), row(W, 0.0)]
    assert done(rows, 5) == [Deed(1, 6.0, 3)]
    rows[5] = row(A, 0.0)
    assert done(rows, 5) == [Deed(1, 6.0, 3, goes_on=True), Deed(3, 24.0, 5)]
    rows[4] = row(W, 16.0, TERMINATED)
    assert done(rows, 5) == [Deed(1, 6.0, 3, goes_on=True), Deed(3, 24.0, None)]


def test_deeds_before_an_interruption() -> None:
    rows = [row(A, 1.0), row(A, 99.0, step=False), row(A, 2.0, first=True), row(A, 0.0)]
    assert done(rows, 3) == [Deed(0, 1.0, 1), Deed(2, 2.0, 3)]
    assert done(rows[:2], 1) == [Deed(0, 1.0, 1)]


def test_targets() -> None:
    # rewards 1, 2, 4, all of one game; values 10, 20, 30 of what they lead to; discount 1/2
    one_game = [Deed(0, 1.0, 1, True), Deed(1, 2.0, 2, True), Deed(2, 4.0, 3)]
    values = {1: 10.0, 2: 20.0, 3: 30.0}
    one, two, three = 1 + 5.0, 1 + 1 + 5.0, 1 + 1 + 1 + 3.75
    assert [n_step_target(one_game, values, 0, n, 0.5) for n in (1, 2, 3, 4)] == [one, two, three, three]
    # lambda 1/2: 1/2 of the first, 1/4 of the second, 1/4 of the third.  By recursion: G2 = 4 + 0.5 * 30 = 19,
    # G1 = 2 + 0.5 * (0.5 * 20 + 0.5 * 19) = 11.75, G0 = 1 + 0.5 * (0.5 * 10 + 0.5 * 11.75) = 6.4375
    assert lambda_target(one_game, values, 2, 0.5, 0.5) == 19.0
    assert lambda_target(one_game, values, 1, 0.5, 0.5) == 11.75
    assert lambda_target(one_game, values, 0, 0.5, 0.5) == 6.4375 == one / 2 + two / 4 + three / 4
    ended = [Deed(0, 1.0, 1, True), Deed(1, 2.0, None), Deed(2, 4.0, 3)]
    assert n_step_target(ended, values, 0, 3, 0.5) == 2.0
    assert lambda_target(ended, values, 0, 0.5, 0.5) == 0.5 * 6.0 + 0.5 * 2.0


def test_rewards_are_divided_by_their_spread() -> None:
    spread = Spread()
    assert spread.scale() == 1.0
    spread.seen += [3.0]
    assert spread.scale() == 1.0
    spread.seen += [5.0]
    assert spread.scale() == 1.0  # mean 4, both one away from it
    spread.seen += [7.0, 1.0]
    assert spread.scale() == pytest.approx(math.sqrt(5.0))


# ---- histories -----------------------------------------------------------------------------------------------------------


def step(
    seen: float, terminated: bool = False, truncated: bool = False, status: str = ACTIVE, final: float = 0.0
) -> QStep:
    """One environment and one agent."""

    def table(x: Any) -> dict[str, Tensor]:
        return {"a": torch.tensor([[x]])}

    masks = Masks({"a": torch.tensor([[status == ACTIVE]])}, {"a": torch.tensor([[status == WAITING]])})
    return QStep(
        *(0, 1, table(seen), table(0), {}, table(10 * seen), table(0.0), table(terminated), table(truncated)),
        *(torch.tensor([[seen]]), torch.tensor([[0.0]]), table(final), torch.tensor([[final]]), masks),
    )


def test_history() -> None:
    history = History(1, ["a"], True, {"a": None})
    for recorded in (step(1.0), step(2.0, truncated=True, final=2.5), step(3.0, True, True), step(4.0)):
        history.record(recorded)
    (rows,) = history.rows
    assert [float(r.state) for r in rows] == [1.0, 2.0, 2.5, 3.0, 4.0]
    assert [r.step for r in rows] == [True, True, False, True, True]
    assert [r.first for r in rows] == [True, False, False, True, True]
    assert [r.ends.get("a") for r in rows] == [None, TRUNCATED, None, TERMINATED, None]
    assert history.episodes(9) == [(0, 0), (0, 3)]  # the third is running
    assert history.episodes(4) == [(0, 3)]
    assert history.stretches(9, 1, 1) == [(0, 1), (0, 3)]
    assert history.stretches(3, 0, 0) == [(0, 3), (0, 4)]
    assert [history.number(0, place, 3) for place in range(3)] == [3, 4, 2]
    history.interrupt()
    history.record(step(5.0))
    assert [r.step for r in rows[-2:]] == [False, True]
    assert rows[-1].first


def test_nothing_comes_of_those_who_are_not_there() -> None:
    history = History(1, ["a"], True, {"a": None})
    history.record(step(1.0, True, True, ABSENT))
    (only,) = history.rows[0]
    assert (float(only.seen["a"]), only.rewards["a"], only.ends["a"]) == (0.0, 0.0, TERMINATED)
    unheeded = History(1, ["a"], False, {"a": lambda reward, timestep, timesteps: reward + 1})
    unheeded.record(step(1.0, truncated=True))
    (only,) = unheeded.rows[0]
    assert only.rewards["a"] == 11.0


# ---- mixers --------------------------------------------------------------------------------------------------------------


def linear(weight: list[list[float]], bias: list[float]) -> Any:
    return SimpleNamespace(weight=torch.tensor(weight).double(), bias=torch.tensor(bias).double())


def numbers(*values: float) -> list[Tensor]:
    return [torch.tensor(value).double() for value in values]


def mixed(*arguments: Any) -> float:
    return float(mix(*arguments).detach())


def test_the_sum() -> None:
    assert mixed(None, [*numbers(1.0, 2.0), None], None) == 3.0


def test_qmix_by_hand() -> None:
    # state 2; two agents, two units.  W1 = [[1, -2], [-3, 1]] (by agent), W2 = [2, -1], v = 4, b1 = [1, -10]
    torch.manual_seed(0)
    mixer = QMIXMixer(1, 2, embed=2, hypernet_layers=1).double()
    with torch.no_grad():
        mixer.first.weight.copy_(torch.tensor([[0.5], [-1], [-1.5], [0.5], [1], [-0.5], [2], [-2], [0.5], [-5]]))
        mixer.first.bias.zero_()
        mixer.v.weight.copy_(torch.tensor([[0.25, 7.0]]))
        mixer.v.bias.fill_(0.5)
    # hidden = [1 * 1 + 2 * 3 + 1, 1 * 2 + 2 * 1 - 10] = [8, -6]; V = 0.25 * 4 + 7 * relu(-4) + 0.5 = 1.5
    expected = 8 * 2 + (math.exp(-6) - 1) * 1 + 1.5
    assert mixed(mixer, numbers(1.0, 2.0), torch.tensor([2.0]).double()) == pytest.approx(expected)
    # the second agent alone: [7, -8]
    alone = 7 * 2 + (math.exp(-8) - 1) * 1 + 1.5
    assert mixed(mixer, [None, *numbers(2.0)], torch.tensor([2.0]).double()) == pytest.approx(alone)


def test_qmix_of_two_layers_by_hand() -> None:
    # state 1; one agent, one unit: W1 = 3 relu(2) - 1 = 5, W2 = -2 relu(-1) + 4 = 4, V = 0, b1 = -1; ELU(0.1 * 5 - 1) * 4
    mixer = QMIXMixer(1, 1, embed=1, hypernet_hidden=1).double()
    with torch.no_grad():
        mixer.first.weight.copy_(torch.tensor([[2.0], [-1.0], [0.0], [-1.0]]))
        mixer.first.bias.zero_()
        for layer, weight, bias in ((mixer.w1, 3.0, -1.0), (mixer.w2, -2.0, 4.0), (mixer.v, 1.0, 0.0)):
            layer.weight.fill_(weight)
            layer.bias.fill_(bias)
    found = mixed(mixer, numbers(0.1), torch.ones(1).double())
    assert found == pytest.approx(4 * (math.exp(-0.5) - 1))


def test_attention_by_hand() -> None:
    # state 1; keys 1 and 0 of two agents, the query 2 relu(ln 3 / 2) = ln 3, w = -relu(5) -> 5, c = relu(3) + 0.5
    mixer = AttentionMixer(1, 2, embed=1, heads=1, hidden=1).double()
    with torch.no_grad():
        mixer.first.weight.copy_(torch.tensor([[1.0], [0.0], [math.log(3) / 2], [5.0], [3.0]]))
        mixer.first.bias.zero_()
        for layer, weight, bias in ((mixer.query, 2.0, 0.0), (mixer.w, -1.0, 0.0), (mixer.c, 1.0, 0.5)):
            layer.weight.fill_(weight)
            layer.bias.fill_(bias)
    state = torch.ones(1).double()
    assert mixed(mixer, numbers(4.0, 8.0), state) == pytest.approx(5 * (0.75 * 4 + 0.25 * 8) + 3.5)
    assert mixed(mixer, [None, *numbers(8.0)], state) == pytest.approx(5 * 8 + 3.5)
    assert mixed(mixer, [None, None], state) == pytest.approx(3.5)


# ---- a whole update ------------------------------------------------------------------------------------------------------


class Table(QMixin, Model):
    """``q_a = theta_a * x``."""

    def __init__(self, theta: list[float]) -> None:
        Model.__init__(self, spaces.Box(-9.0, 9.0, (1,)), spaces.Discrete(2))
        QMixin.__init__(self)
        self.theta = nn.Parameter(torch.tensor(theta))

    def compute(self, inputs: Any, role: str = "") -> tuple[Any, ...]:
        return inputs["states"] * self.theta, {}


def table(**cfg: Any) -> ReferenceQ:
    """One agent: online values x and 2 x, target values 10 x and 4 x."""
    complete = {**VDN_DEFAULT_CONFIG.copy(), "discount_factor": 0.5, "learning_rate": 0.1, **cfg}
    reference = ReferenceQ({"a": {"q": Table([1.0, 2.0])}}, ["a"], {"a": 0}, complete, True, 1, False)
    with torch.no_grad():
        reference.targets["a"]["q"].theta.copy_(torch.tensor([10.0, 4.0]))
    return reference


def two_steps(reference: ReferenceQ, allowed: list[list[bool]] | None = None, **last: Any) -> Stretch:
    """x = 1 and action 1, then x = 3 and what ``last`` says; each earns 10 x."""
    for seen in (step(1.0), step(3.0, **last)):
        seen.actions["a"] = torch.tensor([[1]])
        if allowed is not None:
            seen.masks.allowed = {"a": torch.tensor(allowed)}
        reference.record(seen)
    rows = reference.history.rows[0]
    return Stretch(0, 0, len(rows) - 1, rows=rows)


def test_a_double_q_target_by_hand() -> None:
    # online values at x = 3: 3 and 6, so action 1, worth 12 to the target network: 10 + 0.5 * 12 - 2 = 14
    reference = table()
    assert reference.update(["a"], [two_steps(reference)], (0, 1)) == [14.0]
    # d loss / d theta_1 = -2 * 14, clipped to 10; Adam's first step is the learning rate, whatever it is
    online = reference.models["a"]["q"].theta
    torch.testing.assert_close(online.detach(), torch.tensor([1.0, 2.1]).double(), atol=1e-7, rtol=0)
    assert reference.steps == {"a": 1}
    # the target's own choice: action 0, worth 30
    reference = table(double_q=False)
    assert reference.update(["a"], [two_steps(reference)], (0, 1)) == [10 + 15 - 2.0]
    # action 0 alone is allowed
    reference = table()
    assert reference.update(["a"], [two_steps(reference, [[True, False]])], (0, 1)) == [10 + 15 - 2.0]


def test_two_steps_by_hand() -> None:
    # the time limit strikes at x = 5 after the second: 10 + 0.5 (30 + 0.5 * 20) - 2 = 28; without a bootstrap 10 + 15 - 2
    reference = table(n_step=2)
    stretch = two_steps(reference, truncated=True, final=5.0)
    assert len(stretch.rows) == 3
    assert reference.update(["a"], [stretch], (0, 1)) == [28.0]
    reference = table(n_step=2, time_limit_bootstrap=False)
    stretch = two_steps(reference, truncated=True, final=5.0)
    assert len(stretch.rows) == 2
    stretch.steps = 2
    assert reference.update(["a"], [stretch], (0, 1)) == [23.0]


@pytest.mark.parametrize(("polyak", "expected"), [(1.0, [1.0, 2.2]), (0.5, [5.5, 3.1])])
def test_targets_follow_every_second_step(polyak: float, expected: list[float]) -> None:
    reference = table(target_update_interval=2, polyak=polyak)
    stretch = two_steps(reference)
    reference.update(["a"], [stretch], (0, 1))
    assert reference.targets["a"]["q"].theta.tolist() == [10.0, 4.0]
    reference.update(["a"], [stretch], (0, 1))
    found = reference.targets["a"]["q"].theta.detach()
    torch.testing.assert_close(found, torch.tensor(expected).double(), atol=1e-3, rtol=0)


def test_huber_and_weights() -> None:
    """The gradient of ``w (2 d |e| - d^2)`` is ``2 w d`` times that of the prediction, which is 1 here."""
    reference = table(huber_delta=3.0, grad_norm_clip=0)
    stretch = two_steps(reference)
    stretch.weight = 0.25
    reference.update(["a"], [stretch], (0, 1))
    theta = reference.models["a"]["q"].theta
    assert theta.grad is not None
    assert theta.grad.tolist() == [0.0, -2 * 0.25 * 3.0]


class Sum(Table):
    """Remembers the sum of all that it saw, which is the value of each action."""

    def get_specification(self) -> dict[str, Any]:
        return {"rnn": {"sizes": [(1, 1)], "sequence_length": 9}}

    def compute(self, inputs: Any, role: str = "") -> tuple[Any, ...]:
        total = inputs["rnn"][0] + inputs["states"]
        return total[0] * self.theta, {"rnn": [total]}


def test_what_is_remembered() -> None:
    model = Sum([1.0, 1.0]).double()
    cfg = VDN_DEFAULT_CONFIG.copy()
    reference = ReferenceQ({"a": {"q": model}}, ["a"], {"a": 0}, cfg, True, 1, True)

    def along(*rows: Row, warm: int = 0) -> list[float]:
        for k, each in enumerate(rows):
            each.seen["a"] = torch.tensor([10.0**k]).double()
        stretch = Stretch(0, 0, len(rows) - warm, warm, rows=list(rows[warm:]), warm=list(rows[:warm]))
        return [float(q[0].detach()) for q in reference.along(reference.models["a"]["q"], "a", stretch)]

    acts = [row(A, 0.0) for _ in range(4)]
    assert along(*acts) == [1, 11, 111, 1111]
    assert along(*acts, warm=2) == [111, 1111]
    assert along(acts[0], row(A, 0.0, first=True), acts[2]) == [1, 10, 110]
    # waiting is not remembered; an own end makes it forget, whether or not others go on
    assert along(acts[0], row(W, 0.0), acts[2]) == [1, 11, 101]
    assert along(row(A, 0.0, TERMINATED), acts[1], acts[2]) == [1, 10, 110]
    assert along(row(A, 0.0, TRUNCATED), acts[1], acts[2]) == [1, 10, 110]
    # what is seen at last is looked at with what is remembered: of an agent that does not act on it, or of all
    assert along(row(A, 0.0, TRUNCATED), row(ABSENT, 0.0), acts[2]) == [1, 11, 100]
    assert along(row(A, 0.0, TRUNCATED), row(A, 0.0, step=False), row(A, 0.0, first=True)) == [1, 11, 100]


def test_no_gradient_flows_through_what_is_ahead() -> None:
    class Growing(Sum):
        def compute(self, inputs: Any, role: str = "") -> tuple[Any, ...]:
            total = inputs["rnn"][0] + inputs["states"] * self.theta[:1]
            return total[0].expand(-1, 2), {"rnn": [total]}

    cfg = VDN_DEFAULT_CONFIG.copy()
    reference = ReferenceQ({"a": {"q": Growing([1.0, 1.0])}}, ["a"], {"a": 0}, cfg, True, 1, True)
    rows = [row(A, 0.0) for _ in range(3)]
    for each, seen in zip(rows, (5.0, 3.0, 2.0), strict=True):
        each.seen["a"] = torch.tensor([seen]).double()
    model = reference.models["a"]["q"]
    values = reference.along(model, "a", Stretch(0, 1, 1, 1, rows=rows[1:], warm=rows[:1]))
    values[-1][0].backward()
    assert float(values[-1][0].detach()) == 10.0
    assert model.theta.grad.tolist() == [5.0, 0.0]  # without the first row's 5


def test_nothing_is_learned_where_nobody_acted() -> None:
    reference = table()
    for seen in (step(1.0, status=WAITING), step(3.0)):
        reference.record(seen)
    assert reference.update(["a"], [Stretch(0, 0, 1, rows=reference.history.rows[0])], (0, 1)) is None
    assert reference.steps == {}
