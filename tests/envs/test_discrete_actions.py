"""One choice among combinations: what each stands for, what reaches the environment, joint masks, what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from coterie.agent_tensors import AgentTensors
from coterie.envs import DiscreteActions, EnvError, MultiAgentEnv, make, wrap_env
from tests.envs.contract import draw
from tests.envs.games import Errands


class Spy(MultiAgentEnv):
    """Keeps the actions that it is given; infos are what is put in ``infos``."""

    def __init__(self, action_spaces: dict[str, spaces.Space], num_envs: int = 3) -> None:
        self.possible_agents = list(action_spaces)
        self.num_envs, self.device = num_envs, torch.device("cpu")
        self.action_spaces = action_spaces
        self.observation_spaces = dict.fromkeys(action_spaces, spaces.Box(0, 1, (1,)))
        self.shared_observation_spaces = self.observation_spaces
        self.infos: dict[str, Any] = {}
        self.given: Any = None
        self.calls: list[Any] = []

    def ones(self, dtype: torch.dtype) -> AgentTensors:
        return AgentTensors.single(
            self.possible_agents, torch.zeros(self.num_envs, len(self.possible_agents), 1, dtype=dtype)
        )

    def reset(self) -> Any:
        return self.ones(torch.float32), self.infos

    def step(self, actions: Any) -> Any:
        self.given = actions
        return (*(self.ones(t) for t in (torch.float32, torch.float32, torch.bool, torch.bool)), self.infos)

    def state(self) -> torch.Tensor:
        return torch.zeros(self.num_envs, 1)

    def close(self) -> None:
        self.calls.append("close")

    def render(self, **kwargs: Any) -> Any:
        self.calls.append(kwargs)
        return "picture"

    def get_state(self) -> dict[str, Any]:
        return {"age": 7}

    def set_state(self, state: Any) -> None:
        self.calls.append(state)


def step(env: MultiAgentEnv, **choices: list[int]) -> Any:
    return env.step({name: torch.tensor(values)[:, None] for name, values in choices.items()})


# ---- what each choice stands for -------------------------------------------------------------------------------------


def test_multi_discrete_by_hand() -> None:
    spy = Spy({"a": spaces.MultiDiscrete([2, 3])})
    env = DiscreteActions(spy)
    assert env.action_spaces["a"] == spaces.Discrete(6)
    assert env.choices("a").tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    step(env, a=[4, 0, 2])
    assert spy.given["a"].tolist() == [[1, 1], [0, 0], [0, 2]]
    assert spy.given["a"].dtype == torch.int64


def test_what_a_space_starts_from_is_the_environments_business() -> None:
    spy = Spy({"a": spaces.MultiDiscrete([[2], [3]], start=[[5], [-1]]), "b": spaces.Discrete(4, start=3)})
    env = DiscreteActions(spy)
    assert env.action_spaces["b"] == spaces.Discrete(4, start=3)  # actions count from 0 whatever it is
    step(env, a=[5, 0, 1], b=[3, 0, 1])
    assert spy.given["a"].tolist() == [[1, 2], [0, 0], [0, 1]]
    assert spy.given["b"].tolist() == [[3], [0], [1]]


def test_multi_binary_by_hand() -> None:
    spy = Spy({"a": spaces.MultiBinary(3), "b": spaces.MultiBinary((1, 2))})
    env = DiscreteActions(spy)
    assert [env.action_spaces[n].n for n in "ab"] == [8, 4]
    step(env, a=[0, 6, 3], b=[2, 1, 3])
    assert spy.given["a"].tolist() == [[0, 0, 0], [1, 1, 0], [0, 1, 1]]
    assert spy.given["b"].tolist() == [[1, 0], [0, 1], [1, 1]]
    assert spy.given["a"].dtype == torch.int64


def test_box_by_hand() -> None:
    spy = Spy({"a": spaces.Box(np.float32([-1, 0]), np.float32([1, 4]))})
    env = DiscreteActions(spy, bins=3)
    assert env.action_spaces["a"] == spaces.Discrete(9)
    expected = [[x, y] for x in (-1, 0, 1) for y in (0, 2, 4)]
    assert env.choices("a").tolist() == expected
    step(env, a=[0, 5, 7])
    assert spy.given["a"].tolist() == [[-1, 0], [0, 4], [1, 2]]
    assert spy.given["a"].dtype == torch.float32


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("bins", [2, 3, 5, 10, 1000])
def test_both_bounds_are_among_the_values_and_nothing_is_outside(dtype: Any, bins: int) -> None:
    for low, high in ((-0.1, 0.1), (0.3, 0.7), (-1e-3, 1e6), (-3e38, 3e38), (0.1, 0.1)):
        space = spaces.Box(low, high, (1,), dtype)
        values = DiscreteActions(Spy({"a": space}), bins=bins).choices("a")[:, 0]
        bounds = torch.from_numpy(np.concatenate([space.low, space.high])).float()
        assert values.shape == (bins,)
        assert values[0] == bounds[0]
        assert values[-1] == bounds[1]
        assert values.min() >= bounds[0]
        assert values.max() <= bounds[1]
        gaps = values.double().diff()
        torch.testing.assert_close(gaps, gaps.mean().expand_as(gaps), rtol=1e-2, atol=1e-7)


def test_boxes_of_any_rank_are_laid_out_row_by_row() -> None:
    spy = Spy({"a": spaces.Box(np.zeros((2, 2), np.float32), np.float32([[1, 2], [3, 4]]))})
    env = DiscreteActions(spy, bins=2)
    step(env, a=[15, 4, 1])
    assert spy.given["a"].tolist() == [[1, 2, 3, 4], [0, 2, 0, 0], [0, 0, 0, 4]]


def test_agents_of_all_kinds_together() -> None:
    action_spaces = {
        "box": spaces.Box(-1, 1, (2,)),
        "plain": spaces.Discrete(3),
        "multi": spaces.MultiDiscrete([3, 2]),
        "other box": spaces.Box(-1, 1, (2,)),
        "bits": spaces.MultiBinary(2),
        "wide": spaces.Box(0, 10, (1,)),
    }
    spy = Spy(action_spaces, num_envs=1)
    bins = {"box": 3, "other box": 2, "wide": 11}
    env = DiscreteActions(spy, bins)
    assert list(env.action_spaces) == list(action_spaces)
    assert [int(s.n) for s in env.action_spaces.values()] == [9, 3, 6, 4, 4, 11]
    env.step({name: torch.tensor([[i]]) for i, name in zip([5, 2, 3, 1, 2, 7], action_spaces, strict=True)})
    assert {name: value.tolist() for name, value in spy.given.items()} == {
        "box": [[0, 1]],
        "plain": [[2]],
        "multi": [[1, 1]],
        "other box": [[-1, 1]],
        "bits": [[1, 0]],
        "wide": [[7]],
    }


def test_agents_of_equal_spaces_are_stacked() -> None:
    spy = Spy(dict.fromkeys("abc", spaces.Box(-1, 1, (2,))))
    env = DiscreteActions(spy)
    for dtype in (torch.int64, torch.int32):
        choices = torch.randint(25, (3, 3, 1), dtype=dtype)
        env.step(AgentTensors.single("abc", choices))
        assert set(spy.given.stacks) == {("a", "b", "c")}
        assert torch.equal(spy.given.stack("abc"), env.choices("a")[choices[..., 0].long()])


def test_the_table_is_the_callers_to_change() -> None:
    env = DiscreteActions(Spy({"a": spaces.MultiDiscrete([2, 2])}))
    env.choices("a").zero_()
    assert env.choices("a").any()


def test_the_environment_hears_what_it_would_have_heard() -> None:
    # the same numbers, chosen here and given directly
    one, two = (make("particle/simple_spread", 4, seed=0, max_cycles=3, continuous_actions=True) for _ in range(2))
    env = DiscreteActions(one, bins=3)
    states, _ = env.reset()
    expected, _ = two.reset()
    generator = torch.Generator().manual_seed(0)
    for _ in range(7):
        assert all(torch.equal(states[n], expected[n]) for n in env.possible_agents)
        assert torch.equal(env.state(), two.state())
        choices = draw(env, {}, generator)
        states, rewards, _, truncated, infos = env.step(choices)
        numbers = {n: env.choices(n)[choice[:, 0]] for n, choice in choices.items()}
        expected, earned, _, cut, told = two.step(numbers)
        assert all(torch.equal(rewards[n], earned[n]) for n in env.possible_agents)
        assert all(torch.equal(truncated[n], cut[n]) for n in env.possible_agents)
        assert set(infos) == set(told)


# ---- masks -----------------------------------------------------------------------------------------------------------


def test_joint_masks_by_hand() -> None:
    spy = Spy({"a": spaces.MultiDiscrete([2, 3]), "b": spaces.MultiDiscrete([2, 2, 2])}, num_envs=2)
    a = torch.tensor([[1, 0, 1, 0, 1], [1, 1, 1, 1, 1]], dtype=torch.bool)
    b = torch.tensor([[0, 1, 1, 1, 1, 0], [1, 0, 0, 1, 0, 1]], dtype=torch.bool)
    spy.infos = {"action_masks": {"a": a, "b": b}, "final_action_masks": {"b": b}, "else": 5}
    env = DiscreteActions(spy)
    for infos in (env.reset()[1], step(env, a=[0, 0], b=[0, 0])[4]):
        # 0 of the first entry and 0 or 2 of the second: (0, 0), (0, 2)
        assert infos["action_masks"]["a"].int().tolist() == [[1, 0, 1, 0, 0, 0], [1] * 6]
        # (1, *, 0): 4 and 6;  (0, 1, 1): 3
        joint = [[0, 0, 0, 0, 1, 0, 1, 0], [0, 0, 0, 1, 0, 0, 0, 0]]
        assert infos["action_masks"]["b"].int().tolist() == infos["final_action_masks"]["b"].int().tolist() == joint
        assert list(infos["final_action_masks"]) == ["b"]
        assert infos["else"] == 5
    assert torch.equal(spy.infos["action_masks"]["a"], a)  # theirs is left alone


def test_masks_of_equal_width_but_other_dimensions() -> None:
    # one stack of width 5, of two spaces
    spy = Spy({"a": spaces.MultiDiscrete([2, 3]), "b": spaces.MultiDiscrete([3, 2]), "c": spaces.Discrete(5)}, 1)
    mask = torch.tensor([[[1, 0, 1, 0, 1]] * 3], dtype=torch.bool)
    spy.infos = {"action_masks": AgentTensors.single("abc", mask)}
    infos = DiscreteActions(spy).reset()[1]
    assert infos["action_masks"]["a"].int().tolist() == [[1, 0, 1, 0, 0, 0]]
    assert infos["action_masks"]["b"].int().tolist() == [[0, 1, 0, 0, 0, 1]]
    assert infos["action_masks"]["c"].int().tolist() == [[1, 0, 1, 0, 1]]


def test_a_joint_choice_is_allowed_where_each_entry_is() -> None:
    env = wrap_env([Errands(4, {"bob": 2}), Errands(3)])
    joint = DiscreteActions(wrap_env([Errands(4, {"bob": 2}), Errands(3)]))
    (_, infos), (_, told) = env.reset(), joint.reset()
    generator = torch.Generator().manual_seed(0)
    for _ in range(9):
        for key in ("action_masks", "final_action_masks"):
            assert (key in infos) == (key in told)
            for name in infos.get(key, {}):
                table, mask = joint.choices(name), infos[key][name]
                expected = mask[:, table[:, 0]] & mask[:, 2 + table[:, 1]]
                assert torch.equal(told[key][name], expected)
        choices = draw(joint, told, generator)
        told = joint.step(choices)[4]
        infos = env.step({name: joint.choices(name)[choice[:, 0]] for name, choice in choices.items()})[4]


def test_infos_without_masks_are_passed_on_as_they_are() -> None:
    spy = Spy({"a": spaces.MultiDiscrete([2, 3])})
    spy.infos = {"active_masks": {}}
    assert DiscreteActions(spy).reset()[1] is spy.infos


# ---- what is passed on, and what is refused --------------------------------------------------------------------------


def test_the_rest_is_passed_on() -> None:
    spy = Spy({"a": spaces.MultiBinary(2)})
    spy.has_own_state = False
    env = DiscreteActions(spy)
    assert isinstance(env, MultiAgentEnv)
    assert (env.env, env.num_envs, env.device, env.has_own_state) == (spy, 3, spy.device, False)
    assert env.possible_agents == env.agents == ["a"]
    assert env.observation_space("a") is spy.observation_space("a")
    assert env.shared_observation_space("a") is spy.shared_observation_space("a")
    assert env.render(mode="x") == "picture"
    assert env.get_state() == {"age": 7}
    env.set_state({"age": 8})
    env.close()
    assert spy.calls == [{"mode": "x"}, {"age": 8}, "close"]
    assert repr(DiscreteActions(make("matrix/climbing"))).startswith("DiscreteActions(<coterie")
    assert wrap_env(env) is env


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        ({"a": torch.tensor([[0], [6], [0]])}, r"actions\['a'\] .* is 6 in sub-environment 1; expected .* 0 to 5"),
        ({"a": torch.tensor([[0], [0], [-1]])}, r"actions\['a'\] .* is -1 in sub-environment 2"),
        ({"a": torch.zeros(3, 2, dtype=torch.int64)}, r"actions\['a'\] has shape \[3, 2\]; expected \[3, 1\]"),
        ({"a": torch.zeros(3, 1)}, r"actions\['a'\] has dtype torch.float32; expected an integer dtype"),
        ({"a": torch.zeros(3, 1, dtype=torch.bool)}, "expected an integer dtype"),
        ({}, "agent 'a' is missing from the actions"),
        (
            {"a": torch.zeros(3, 1, dtype=torch.int64), "z": torch.zeros(3, 1)},
            r"actions\['z'\] is for an unknown agent",
        ),
    ],
)
def test_bad_actions_are_named(actions: dict[str, torch.Tensor], message: str) -> None:
    spy = Spy({"a": spaces.MultiDiscrete([2, 3])})
    env = DiscreteActions(spy)
    env.reset()
    with pytest.raises(EnvError, match=message):
        env.step(actions)
    assert spy.given is None


BOX = spaces.Box(-1, 1, (2,))


@pytest.mark.parametrize(
    ("bins", "message"),
    [
        (1, "bins: expected an integer of at least 2, or a dict of them by agent, got 1"),
        (0, "expected an integer of at least 2"),
        (2.5, "got 2.5"),
        (True, "got True"),
        ("5", "got '5'"),
        (None, "got None"),
        ([3, 3], r"got \[3, 3\]"),
        ({"a": 1, "b": 3}, "at least 2 for agent 'a', both bounds being among the values, got 1"),
        ({"a": 3, "b": 2.0}, "for agent 'b'.*got 2.0"),
        ({"a": 3}, r"bins: nothing for agent 'b', which has Box"),
        ({"a": 3, "b": 3, "z": 3}, r"bins: unknown agent 'z'; expected some of \['a', 'b'\]"),
        ({"a": 3, "b": 3, "c": 3}, r"bins: agent 'c' has Discrete\(2\) actions; .* leave it out"),
    ],
)
def test_bad_bins(bins: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiscreteActions(Spy({"a": BOX, "b": BOX, "c": spaces.Discrete(2)}), bins)


@pytest.mark.parametrize(
    ("space", "number", "hint"),
    [
        (spaces.Box(-1, 1, (5,)), 3125, "5 bins for each of 5 entries; take fewer bins, or raise max_choices"),
        (spaces.MultiDiscrete([33, 32]), 1056, "raise max_choices, or learn with"),
        (spaces.MultiBinary(40), 2**40, "raise max_choices"),
    ],
)
def test_too_many_combinations(space: spaces.Space, number: int, hint: str) -> None:
    message = rf"agent 'b' has {number} combinations of .* actions, more than max_choices 1024: {hint}"
    with pytest.raises(ValueError, match=message):
        DiscreteActions(Spy({"a": spaces.Discrete(2), "b": space}))


def test_max_choices() -> None:
    two = Spy({"a": spaces.MultiDiscrete([2, 3])})
    assert DiscreteActions(two, max_choices=6).action_spaces["a"].n == 6
    with pytest.raises(ValueError, match="more than max_choices 5"):
        DiscreteActions(two, max_choices=5)
    assert DiscreteActions(Spy({"a": spaces.Discrete(2000)})).action_spaces["a"].n == 2000  # is left as it is
    assert DiscreteActions(Spy({"a": spaces.Box(-1, 1, (5,))}), max_choices=4000).action_spaces["a"].n == 3125
    for wrong in (0, True, 2.0, "many"):
        with pytest.raises(ValueError, match="max_choices: expected an integer of at least 1, got"):
            DiscreteActions(two, max_choices=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("bounds", [(-np.inf, 1), (0, np.inf), (-np.inf, np.inf)])
def test_unbounded_boxes(bounds: tuple[float, float]) -> None:
    half = spaces.Box(np.float32([0, bounds[0]]), np.float32([1, bounds[1]]))
    with pytest.raises(ValueError, match=r"agent 'b' has unbounded actions, Box.*need bounds"):
        DiscreteActions(Spy({"a": BOX, "b": half}))


def test_actions_of_other_kinds() -> None:
    with pytest.raises(
        TypeError, match=r"agent 'b': expected a Box, Discrete, MultiDiscrete or MultiBinary .* got Tuple"
    ):
        DiscreteActions(Spy({"a": BOX, "b": spaces.Tuple((BOX, BOX))}))
    with pytest.raises(TypeError, match=r"env: expected a MultiAgentEnv, got Errands; use coterie.wrap_env first"):
        DiscreteActions(Errands())  # type: ignore[arg-type]


def test_checks_that_were_put_off_are_made_at_the_end() -> None:
    env = DiscreteActions(Spy({"a": spaces.MultiDiscrete([2, 3])}))
    env._reader._deferred = True  # as off the CPU
    env.reset()
    wrong = {"a": torch.tensor([[0], [9], [0]])}
    env.step(wrong)
    with pytest.raises(EnvError, match=r"actions\['a'\] .* is 9"):
        env.close()
    assert env.env.calls == ["close"]
    env.step(wrong)
    with pytest.raises(EnvError, match=r"actions\['a'\] .* is 9"):
        env.reset()
