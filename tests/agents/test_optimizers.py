"""Optimizers of several sets against one ``torch.optim.Adam`` for each."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from coterie.agents.config import ConfigError
from coterie.agents.optimizers import OptimizerSettings, SetOptimizers, plain
from coterie.models.flat_parameters import FlatParameters
from coterie.schedulers import KLAdaptiveLR


class Sets:
    """S policies and critics in common storage, and copies that plain PyTorch trains."""

    def __init__(self, settings: Sequence[OptimizerSettings], seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.settings = list(settings)
        self.modules = [[nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), nn.Linear(3, 1)] for _ in settings]
        self.copies = copy.deepcopy(self.modules)
        self.storage = FlatParameters(self.modules)
        self.optimizers = SetOptimizers(self.storage, self.storage.width_of([self.modules[0][0]]), self.settings)
        self.plain = [self._plain(setting, own) for setting, own in zip(self.settings, self.copies, strict=True)]
        self.optimizers.begin_update()

    @staticmethod
    def _plain(setting: OptimizerSettings, modules: list[nn.Module]) -> torch.optim.Adam:
        rate = setting.learning_rate
        rates = [rate, rate] if isinstance(rate, float) else list(rate)  # type: ignore[arg-type]
        return torch.optim.Adam(
            [{"params": list(m.parameters()), "lr": r} for m, r in zip(modules, rates, strict=True)]
        )

    def losses(self, modules: list[list[nn.Module]], x: Tensor) -> list[Tensor]:
        """One loss for each set, of unequal sizes."""
        return [
            (policy(x).square().sum() + (value(x) - s).square().sum()) * (10.0**s)
            for s, (policy, value) in enumerate(modules)
        ]

    def step(self, x: Tensor) -> Tensor:
        return self.optimizers.step(torch.stack(self.losses(self.modules, x)).sum())  # type: ignore[arg-type]

    def plain_step(self, x: Tensor, stopped: Sequence[int] = ()) -> list[list[float]]:
        """One step of every set's own Adam; returns norms before clipping."""
        norms = []
        for s, (setting, modules, adam, loss) in enumerate(
            zip(self.settings, self.copies, self.plain, self.losses(self.copies, x), strict=True)  # type: ignore[arg-type]
        ):
            adam.zero_grad()
            loss.backward()
            separate = not isinstance(setting.learning_rate, float)
            parts = modules if separate else [nn.ModuleList(modules)]
            limit = setting.grad_norm_clip or float("inf")
            norms.append([float(clip_grad_norm_(part.parameters(), limit)) for part in parts])
            if s not in stopped:
                adam.step()
        return norms

    def assert_equal(self) -> None:
        for s, (mine, theirs) in enumerate(zip(self.modules, self.copies, strict=True)):
            for module, other in zip(mine, theirs, strict=True):
                torch.testing.assert_close(
                    module.state_dict(), other.state_dict(), atol=1e-6, rtol=1e-5, msg=lambda m, s=s: f"set {s}: {m}"
                )


def inputs(steps: int) -> list[Tensor]:
    return [torch.randn(6, 3, generator=torch.Generator().manual_seed(i)) for i in range(steps)]


SETTINGS = {
    "one set": [OptimizerSettings(1e-2, 0.5)],
    "no clip": [OptimizerSettings(1e-2), OptimizerSettings(1e-2)],
    "clips": [OptimizerSettings(1e-2, 0.5), OptimizerSettings(1e-2, 0.0), OptimizerSettings(1e-2, 30.0)],
    "rates": [OptimizerSettings(1e-2, 0.5), OptimizerSettings(1e-3, 0.5), OptimizerSettings(5e-2, 0.5)],
    "pairs": [OptimizerSettings((1e-2, 1e-3), 0.5), OptimizerSettings([1e-3, 5e-2], 1.0)],
    "pairs without clip": [OptimizerSettings((1e-2, 1e-3)), OptimizerSettings((1e-2, 1e-3))],
    "a pair and a number": [OptimizerSettings((1e-2, 1e-3), 0.5), OptimizerSettings(1e-2, 0.5)],
    "a number and a pair": [OptimizerSettings(1e-2, 0.5), OptimizerSettings((1e-2, 1e-3), 0.5)],
}


@pytest.mark.parametrize("name", SETTINGS)
def test_sets_are_trained_as_by_themselves(name: str) -> None:
    sets = Sets(SETTINGS[name])
    for x in inputs(8):
        sets.step(x)
        sets.plain_step(x)
        sets.assert_equal()


@pytest.mark.parametrize("name", ["clips", "pairs", "pairs without clip"])
def test_norms_are_those_before_clipping(name: str) -> None:
    sets = Sets(SETTINGS[name])
    for x in inputs(3):
        torch.testing.assert_close(sets.step(x), torch.tensor(sets.plain_step(x)), rtol=1e-4, atol=1e-5)


def test_the_norm_of_a_set_with_one_rate_among_pairs_is_that_of_all() -> None:
    sets = Sets(SETTINGS["a pair and a number"])
    (x,) = inputs(1)
    norms, expected = sets.step(x), sets.plain_step(x)
    assert norms[0].tolist() == pytest.approx(expected[0], rel=1e-4)
    # by part, so that both together make the whole
    assert float(norms[1].norm()) == pytest.approx(expected[1][0], rel=1e-4)


def test_one_sets_gradient_does_not_clip_anothers() -> None:
    """Set 2's gradient is a hundred times set 0's: a common norm would all but stop set 0."""
    sets = Sets([OptimizerSettings(1e-2, 1.0)] * 3)
    (x,) = inputs(1)
    sets.step(x)
    norms = sets.storage.grad.norm(dim=1)
    assert float(norms[2]) == pytest.approx(1.0, rel=1e-3)
    assert float(norms[0]) == pytest.approx(1.0, rel=1e-3)


def test_gradients_do_not_pile_up() -> None:
    sets = Sets([OptimizerSettings(1e-9)])
    (x,) = inputs(1)
    first = sets.step(x)
    torch.testing.assert_close(sets.step(x), first, rtol=1e-4, atol=0)


def snapshot(sets: Sets, s: int) -> tuple[Tensor, dict[str, Any]]:
    return sets.storage.data[s].clone(), copy.deepcopy(sets.optimizers.optimizers[s].state_dict())


def test_a_stopped_set_keeps_parameters_and_optimizer_state() -> None:
    sets = Sets([OptimizerSettings(1e-2, 0.5, kl_threshold=t) for t in (0.1, 0.1, 0.0)])
    data = inputs(6)
    sets.step(data[0])
    sets.plain_step(data[0])
    assert sets.optimizers.needs_kl
    # set 1 went too far; set 2 has no bound
    assert sets.optimizers.end_epoch(torch.tensor([0.05, 0.2, 9.0]))
    before = snapshot(sets, 1)
    for x in data[1:4]:
        sets.step(x)
        sets.plain_step(x, stopped=[1])
        sets.assert_equal()
    after = snapshot(sets, 1)
    assert torch.equal(before[0], after[0])
    torch.testing.assert_close(after[1], before[1], rtol=0, atol=0)
    # a low divergence later does not wake it within this update
    assert sets.optimizers.end_epoch(torch.tensor([0.05, 0.0, 9.0]))
    sets.step(data[4])
    sets.plain_step(data[4], stopped=[1])
    sets.assert_equal()
    # the next update takes all along again
    sets.optimizers.begin_update()
    sets.step(data[5])
    sets.plain_step(data[5])
    sets.assert_equal()


def test_an_update_is_over_when_every_set_has_stopped() -> None:
    sets = Sets([OptimizerSettings(1e-2, kl_threshold=0.125)] * 2)
    assert sets.optimizers.end_epoch(torch.tensor([0.125, 0.125])), "the bound itself is allowed"
    assert sets.optimizers.end_epoch(torch.tensor([0.2, 0.0]))
    assert not sets.optimizers.end_epoch(torch.tensor([0.0, 0.2]))
    before = sets.storage.data.clone()
    sets.step(inputs(1)[0])
    assert torch.equal(sets.storage.data, before)


def test_without_a_bound_the_divergence_is_not_read() -> None:
    sets = Sets([OptimizerSettings(1e-2)] * 2)
    assert not sets.optimizers.needs_kl
    # reading this tensor would raise
    assert sets.optimizers.end_epoch(torch.empty(2, device="meta"))


# ---- schedulers -----------------------------------------------------------------------------------------------------

SCHEDULERS: list[tuple[Callable[..., Any], dict[str, Any]]] = [
    (torch.optim.lr_scheduler.StepLR, {"step_size": 2, "gamma": 0.5}),
    (torch.optim.lr_scheduler.ExponentialLR, {"gamma": 0.9}),
    (torch.optim.lr_scheduler.LinearLR, {"start_factor": 0.5, "total_iters": 4}),
    (torch.optim.lr_scheduler.CosineAnnealingLR, {"T_max": 5}),
    (torch.optim.lr_scheduler.LambdaLR, {"lr_lambda": lambda epoch: 1.0 / (1 + epoch)}),
    (torch.optim.lr_scheduler.OneCycleLR, {"max_lr": 0.1, "total_steps": 20, "cycle_momentum": False}),
    (torch.optim.lr_scheduler.PolynomialLR, {"total_iters": 6}),
]


@pytest.mark.parametrize(("scheduler", "kwargs"), SCHEDULERS, ids=lambda v: getattr(v, "__name__", ""))
@pytest.mark.parametrize("pair", [False, True])
def test_torch_schedulers_work_as_anywhere(scheduler: Callable[..., Any], kwargs: dict[str, Any], pair: bool) -> None:
    rate: Any = (1e-2, 3e-3) if pair else 1e-2
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of a scheduler stepped before its optimizer, for one
        sets = Sets([OptimizerSettings(rate, 0.5, scheduler=scheduler, scheduler_kwargs=kwargs)] * 2)
        theirs = [scheduler(adam, **kwargs) for adam in sets.plain]
        for x in inputs(6):
            sets.step(x)
            sets.plain_step(x)
            sets.optimizers.end_epoch(torch.zeros(2))
            for own in theirs:
                own.step()
            sets.assert_equal()
            assert sets.optimizers.learning_rates() == [
                pytest.approx(adam.param_groups[0]["lr"]) for adam in sets.plain
            ]


def test_the_adaptive_scheduler_follows_each_sets_divergence() -> None:
    settings = OptimizerSettings(1e-3, scheduler=KLAdaptiveLR, scheduler_kwargs={"kl_threshold": 0.01})
    sets = Sets([settings] * 3)
    assert sets.optimizers.needs_kl
    sets.optimizers.end_epoch(torch.tensor([0.001, 0.01, 0.03]))
    assert sets.optimizers.learning_rates() == [pytest.approx(1.5e-3), 1e-3, pytest.approx(1e-3 / 1.5)]
    (x,) = inputs(1)
    for adam, rate in zip(sets.plain, sets.optimizers.learning_rates(), strict=True):
        for group in adam.param_groups:
            group["lr"] = rate
    sets.step(x)
    sets.plain_step(x)
    sets.assert_equal()


def test_a_stopped_sets_scheduler_rests() -> None:
    sets = Sets(
        [OptimizerSettings(1e-2, 0, 0.1, torch.optim.lr_scheduler.ExponentialLR, {"gamma": 0.5}) for _ in range(2)]
    )
    sets.optimizers.end_epoch(torch.tensor([0.2, 0.0]))  # its epoch took place: it counts
    sets.optimizers.end_epoch(torch.tensor([0.0, 0.0]))
    assert sets.optimizers.learning_rates() == [pytest.approx(5e-3), pytest.approx(2.5e-3)]


def test_schedulers_step_by_themselves_where_there_is_no_divergence() -> None:
    decay = (torch.optim.lr_scheduler.ExponentialLR, {"gamma": 0.5})
    sets = Sets(
        [OptimizerSettings(1e-2, 0, 0.0, *decay), OptimizerSettings(1e-2), OptimizerSettings(1e-2, 0, 0.0, *decay)]
    )
    for x in inputs(2):
        sets.optimizers.begin_update(taking_part=[True, True, False])
        sets.step(x)
        sets.optimizers.step_schedulers()
    assert sets.optimizers.learning_rates() == [pytest.approx(2.5e-3), 1e-2, 1e-2]
    before = sets.storage.data.clone()
    sets.optimizers.optimizers[0].param_groups[0]["lr"] = 0.0
    sets.optimizers.step_schedulers()
    sets.step(inputs(1)[0])
    assert torch.equal(sets.storage.data[0], before[0]), "the next step has the rates of now"


def test_a_rate_changed_from_outside_counts_from_the_next_update() -> None:
    sets = Sets([OptimizerSettings(1e-2)])
    sets.optimizers.optimizers[0].param_groups[0]["lr"] = 0.0
    sets.optimizers.begin_update()
    before = sets.storage.data.clone()
    sets.step(inputs(1)[0])
    assert torch.equal(sets.storage.data, before)


# ---- state ----------------------------------------------------------------------------------------------------------


def train(sets: Sets, data: Sequence[Tensor]) -> None:
    for x in data:
        sets.optimizers.begin_update()
        sets.step(x)
        sets.optimizers.end_epoch(torch.full((len(sets.settings),), 0.05))


@pytest.mark.parametrize(
    "settings",
    [
        [OptimizerSettings(1e-2, 0.5), OptimizerSettings(1e-3)],
        [OptimizerSettings((1e-2, 1e-3), 0.5)] * 2,
        [OptimizerSettings(1e-2, 0.5, scheduler=KLAdaptiveLR, scheduler_kwargs={"kl_threshold": 0.01})] * 2,
        *([OptimizerSettings(1e-2, 0.5, scheduler=s, scheduler_kwargs=k)] * 2 for s, k in SCHEDULERS),
    ],
)
def test_resuming_equals_going_on(settings: list[OptimizerSettings]) -> None:
    data = inputs(10)
    through = Sets(settings)
    train(through, data[:5])
    file = io.BytesIO()
    torch.save({"optimizers": through.optimizers.state_dict(), "data": through.storage.data}, file)
    train(through, data[5:])
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = Sets(settings, seed=1)
    with torch.no_grad():
        resumed.storage.data.copy_(saved["data"])
    resumed.optimizers.load_state_dict(saved["optimizers"])
    train(resumed, data[5:])
    torch.testing.assert_close(resumed.storage.data, through.storage.data, rtol=0, atol=0)
    assert resumed.optimizers.learning_rates() == through.optimizers.learning_rates()


def test_a_saved_state_is_no_view_of_the_running_one() -> None:
    sets = Sets([OptimizerSettings(1e-2)])
    train(sets, inputs(2))
    other = Sets([OptimizerSettings(1e-2)])
    other.optimizers.load_state_dict(copy.deepcopy(sets.optimizers.state_dict()))
    before = copy.deepcopy(sets.optimizers.state_dict())
    train(other, inputs(2))
    torch.testing.assert_close(sets.optimizers.state_dict(), before, rtol=0, atol=0)


def test_plain_keeps_what_a_file_without_code_can_hold() -> None:
    state = {
        "a": 1,
        "b": [1.0, "x", None],
        "c": torch.ones(1),
        "d": print,
        "e": [print],
        "f": {"g": (1, True)},
        "h": {"i": print},
    }
    assert set(plain(state)) == {"a", "b", "c", "f"}


# ---- what is refused ------------------------------------------------------------------------------------------------


def test_a_pair_of_rates_needs_two_models() -> None:
    storage = FlatParameters([[nn.Linear(2, 2)]])
    with pytest.raises(ValueError, match=r"\(policy, value\) pair"):
        SetOptimizers(storage, 6, [OptimizerSettings((1e-3, 1e-3))])


def test_frozen_parameters_cannot_be_trained() -> None:
    storage = FlatParameters([[nn.Linear(2, 2).requires_grad_(False)]])
    with pytest.raises(ValueError, match="frozen"):
        SetOptimizers(storage, 0, [OptimizerSettings(1e-3)])


def test_a_scheduler_that_needs_a_metric_is_refused() -> None:
    with pytest.raises(ValueError, match="ReduceLROnPlateau needs a metric"):
        Sets([OptimizerSettings(1e-3, scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau)])


def test_a_scheduler_that_follows_a_divergence_is_refused_where_there_is_none() -> None:
    storage = FlatParameters([[nn.Linear(2, 2)]])
    for scheduler, use in (
        (torch.optim.lr_scheduler.ReduceLROnPlateau, "scheduler of torch's"),
        (KLAdaptiveLR, "scheduler"),
    ):
        with pytest.raises(ConfigError, match=rf"learning_rate_scheduler: {scheduler.__name__} needs .* use a {use}"):
            SetOptimizers(storage, 0, [OptimizerSettings(1e-3, scheduler=scheduler)], has_kl=False)
    with pytest.raises(ConfigError, match="use KLAdaptiveLR or a scheduler that is stepped without one"):
        SetOptimizers(storage, 0, [OptimizerSettings(1e-3, scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau)])
