from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from coterie.models import DeterministicMixin, Model


class Critic(DeterministicMixin, Model):
    def __init__(self, lazy: bool = False, observations: int = 3) -> None:
        Model.__init__(self, observations, spaces.Discrete(2))
        DeterministicMixin.__init__(self)
        first: nn.Module = nn.LazyLinear(4) if lazy else nn.Linear(observations, 4)
        self.net = nn.Sequential(first, nn.Tanh(), nn.Linear(4, 1))

    def compute(self, inputs: Any, role: str = "") -> tuple[Any, ...]:
        return self.net(inputs["states"]), {}


@pytest.mark.parametrize(
    ("space", "size"),
    [
        (spaces.Box(-1, 1, (2, 3)), 6),
        (spaces.Discrete(5), 5),
        (spaces.MultiDiscrete([2, 3]), 5),
        (7, 7),
        ((2, 4), 8),
        (None, 0),
    ],
)
def test_sizes_follow_from_the_spaces(space: Any, size: int) -> None:
    model = Model(space, space)
    assert (model.num_observations, model.num_actions) == (size, size)
    assert model.device == torch.device("cpu")


def test_the_base_says_what_is_missing() -> None:
    model = Model(3, 2)
    with pytest.raises(NotImplementedError, match="compute"):
        model.compute({}, "policy")
    with pytest.raises(NotImplementedError, match="mixin"):
        model.act({}, "policy")


def test_calling_a_model_is_acting() -> None:
    critic, states = Critic(), torch.randn(5, 3)
    torch.testing.assert_close(critic({"states": states}, "value")[0], critic.act({"states": states}, "value")[0])


# ---- random actions -------------------------------------------------------------------------------------------------


def test_random_actions_of_a_discrete_space_are_uniform() -> None:
    actions, log_prob, _ = Model(3, spaces.Discrete(4)).random_act({"states": torch.zeros(40_000, 3)})
    assert log_prob is None
    assert actions.dtype == torch.int64
    torch.testing.assert_close(torch.bincount(actions.flatten()) / 40_000, torch.full((4,), 0.25), atol=1e-2, rtol=0)


def test_random_actions_of_a_multi_discrete_space() -> None:
    actions, _, _ = Model(3, spaces.MultiDiscrete([2, 3])).random_act({"states": torch.zeros(30_000, 3)})
    for column, n in zip(actions.unbind(-1), (2, 3), strict=True):
        torch.testing.assert_close(torch.bincount(column) / 30_000, torch.full((n,), 1 / n), atol=1e-2, rtol=0)


def test_random_actions_of_a_box_fill_its_bounds() -> None:
    low, high = np.array([[-1.0, 2.0]], np.float32), np.array([[3.0, 2.5]], np.float32)
    actions, _, _ = Model(3, spaces.Box(low, high)).random_act({"states": torch.zeros(10_000, 3)})
    assert actions.shape == (10_000, 2)
    # uniform: mean (low + high) / 2, extremes close to the bounds
    torch.testing.assert_close(actions.mean(0), torch.tensor([1.0, 2.25]), atol=5e-2, rtol=0)
    torch.testing.assert_close(actions.amin(0), torch.tensor([-1.0, 2.0]), atol=1e-2, rtol=0)
    torch.testing.assert_close(actions.amax(0), torch.tensor([3.0, 2.5]), atol=1e-2, rtol=0)


def test_random_actions_of_a_multi_binary_space() -> None:
    actions, _, _ = Model(3, spaces.MultiBinary((2, 2))).random_act({"states": torch.zeros(20_000, 3)})
    assert actions.dtype == torch.int64
    assert set(actions.flatten().tolist()) == {0, 1}
    torch.testing.assert_close(actions.float().mean(0), torch.full((4,), 0.5), atol=2e-2, rtol=0)


def test_random_actions_are_uniform_over_the_allowed() -> None:
    masks = torch.tensor([[True, False, True, True], [False, True, False, False]]).repeat(20_000, 1)
    inputs = {"states": torch.zeros(40_000, 3), "action_masks": masks}
    actions, _, _ = Model(3, spaces.Discrete(4)).random_act(inputs)
    assert actions.dtype == torch.int64
    assert set(actions[1::2].flatten().tolist()) == {1}
    frequencies = torch.bincount(actions[::2].flatten(), minlength=4) / 20_000
    torch.testing.assert_close(frequencies, torch.tensor([1 / 3, 0, 1 / 3, 1 / 3]), atol=2e-2, rtol=0)


def test_masked_random_actions_of_a_multi_discrete_space() -> None:
    masks = torch.tensor([False, True, True, False, True]).expand(20_000, 2, 5)
    inputs = {"states": torch.zeros(20_000, 2, 3), "action_masks": masks}
    actions, _, _ = Model(3, spaces.MultiDiscrete([2, 3])).random_act(inputs)
    assert actions.shape == (20_000, 2, 2)
    assert set(actions[..., 0].flatten().tolist()) == {1}
    frequencies = torch.bincount(actions[..., 1].flatten(), minlength=3) / 40_000
    torch.testing.assert_close(frequencies, torch.tensor([0.5, 0.0, 0.5]), atol=2e-2, rtol=0)


@pytest.mark.parametrize("space", [spaces.MultiBinary(4), spaces.Box(-1, 1, (4,)), spaces.Discrete(3)])
def test_random_actions_refuse_masks_that_fit_no_space(space: Any) -> None:
    inputs = {"states": torch.zeros(2, 3), "action_masks": torch.ones(2, 4, dtype=torch.bool)}
    with pytest.raises(ValueError, match="action_masks: expected"):
        Model(3, space).random_act(inputs)


def test_random_actions_keep_leading_dimensions() -> None:
    assert Model(3, spaces.Discrete(4)).random_act({"states": torch.zeros(5, 2, 3)})[0].shape == (5, 2, 1)


@pytest.mark.parametrize(
    ("space", "error", "message"),
    [
        (spaces.Box(-np.inf, np.inf, (2,)), ValueError, "random_timesteps to 0"),
        (spaces.Box(0, np.inf, (2,)), ValueError, "unbounded"),
        (2, TypeError, "expected Discrete"),
    ],
)
def test_random_actions_need_a_uniform_distribution(space: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Model(3, space).random_act({"states": torch.zeros(1, 3)})


# ---- initialisation -------------------------------------------------------------------------------------------------


def test_init_parameters_weights_and_biases() -> None:
    critic = Critic()
    critic.init_parameters("constant_", val=0.25)
    assert all(bool((p == 0.25).all()) for p in critic.parameters())
    critic.init_weights("constant_", 0.5)
    critic.init_biases("constant_", val=0.125)
    for name, p in critic.named_parameters():
        assert bool((p == (0.5 if name.endswith("weight") else 0.125)).all())
    critic.init_weights("orthogonal_", gain=2.0)
    weight = critic.net[2].weight
    torch.testing.assert_close(weight @ weight.mT, torch.tensor([[4.0]]))  # type: ignore[operator, union-attr, arg-type]


def test_init_with_an_unknown_method_is_refused() -> None:
    with pytest.raises(ValueError, match="'nonsense_'"):
        Critic().init_weights("nonsense_")


def test_lazy_layers_get_their_parameters() -> None:
    critic = Critic(lazy=True)
    critic.init_state_dict("value")
    assert critic.net[0].weight.shape == (4, 3)
    assert critic.act({"states": torch.zeros(2, 3)})[0].shape == (2, 1)


def test_init_state_dict_leaves_present_parameters_alone() -> None:
    critic = Critic()
    before = {name: p.clone() for name, p in critic.state_dict().items()}
    critic.init_state_dict("value")
    torch.testing.assert_close(critic.state_dict(), before)


def test_freezing() -> None:
    critic = Critic()
    critic.freeze_parameters()
    assert not any(p.requires_grad for p in critic.parameters())
    critic.freeze_parameters(False)
    assert all(p.requires_grad for p in critic.parameters())


def test_modes() -> None:
    critic = Critic()
    critic.set_mode("eval")
    assert not critic.net[0].training
    critic.set_mode("train")
    assert critic.net[0].training
    with pytest.raises(ValueError, match="'evaluate'"):
        critic.set_mode("evaluate")


def test_bounds_of_a_box_are_flat() -> None:
    low, high = np.array([[-1.0, 2.0]], np.float32), np.array([[3.0, np.inf]], np.float32)
    bounds = Model(3, spaces.Box(low, high)).box_bounds()
    assert bounds is not None
    torch.testing.assert_close(bounds, (torch.tensor([-1.0, 2.0]), torch.tensor([3.0, torch.inf])))
    assert Model(3, spaces.Discrete(2)).box_bounds() is None


# ---- files ----------------------------------------------------------------------------------------------------------


def test_save_and_load(tmp_path: Path) -> None:
    first, second = Critic(), Critic()
    first.save(tmp_path / "critic.pt")
    second.load(tmp_path / "critic.pt")
    torch.testing.assert_close(first.state_dict(), second.state_dict())


def test_a_file_holds_no_more_than_the_model(tmp_path: Path) -> None:
    """A parameter may be a view of storage that many models share: saving one must not save them all."""
    critic = Critic()
    critic.save(tmp_path / "alone.pt")
    for p in critic.parameters():
        large = torch.zeros(100_000)
        large[: p.numel()] = p.detach().flatten()
        p.data = large[: p.numel()].view(p.shape)
    critic.save(tmp_path / "view.pt")
    sizes = [(tmp_path / name).stat().st_size for name in ("alone.pt", "view.pt")]
    assert sizes[1] <= sizes[0] + 100


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def test_loading_executes_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    torch.save({"net.0.weight": Malicious(marker)}, tmp_path / "evil.pt")
    with pytest.raises(Exception, match=r"weights_only|Unsupported|Weights only"):
        Critic().load(tmp_path / "evil.pt")
    assert not marker.exists()


def test_loading_another_architecture_is_refused(tmp_path: Path) -> None:
    Critic(observations=5).save(tmp_path / "wide.pt")
    with pytest.raises(RuntimeError, match="size mismatch"):
        Critic().load(tmp_path / "wide.pt")


def test_unsupported_spaces_are_named() -> None:
    with pytest.raises(TypeError, match="Text"):
        Model(spaces.Text(5), 2)


def test_device_defaults_to_the_cpu() -> None:
    assert Model(3, 2, "meta").device == torch.device("meta")
    assert isinstance(Critic().act({"states": torch.zeros(1, 3)})[0], Tensor)
