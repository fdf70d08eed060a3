"""What comes into an agent: everything works or is refused at the door, by name, with what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from coterie.agent_tensors import AgentTensors
from coterie.agents import IPPO, MAPPO, MultiAgent
from coterie.agents.intake import FLAGS, NUMBERS, Form, actions_of, check_form, take_in, take_one
from coterie.memories import RandomMemory
from coterie.models import build_models
from tests.agents.toys import OFF, Toy

E, F = 3, 3
ROLLOUTS = 2


def stacked(values: dict[str, Tensor]) -> AgentTensors:
    return AgentTensors.single(list(values), torch.stack(list(values.values()), dim=1))


# ---- one mapping -----------------------------------------------------------------------------------------------------


def test_a_fitting_stack_is_taken_as_it_is() -> None:
    stack = torch.zeros(E, 2, F)
    values = AgentTensors.single("ab", stack)
    assert take_in("x", values, "ab", Form(F, NUMBERS, E, torch.device("cpu"))) is stack
    assert take_in("x", dict(values), "ba", Form(F)).shape == (E, 2, F)


def test_one_entry_needs_no_dimension_of_its_own() -> None:
    flat = {uid: torch.arange(3.0) for uid in "ab"}
    for values in (flat, stacked(flat)):
        assert take_in("x", values, "ab", Form()).tolist() == [[[0.0], [0.0]], [[1.0], [1.0]], [[2.0], [2.0]]]
    with pytest.raises(ValueError, match=r"x\['a'\]: expected a tensor of shape \[E, 3\], got \[3\]"):
        take_in("x", flat, "ab", Form(F))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int64, torch.uint8, torch.bool])
def test_numbers_become_float32(dtype: torch.dtype) -> None:
    values = {uid: torch.ones(E, 1, dtype=dtype) for uid in "ab"}
    for given in (values, stacked(values)):
        taken = take_in("x", given, "ab", Form(1, NUMBERS))
        assert taken.dtype == torch.float32
        assert bool((taken == 1).all())
    with pytest.raises(TypeError, match=r"x\['a'\]: expected real numbers \[E, 1\], got torch.complex64; pass real"):
        take_in("x", {uid: torch.ones(E, 1, dtype=torch.complex64) for uid in "ab"}, "ab", Form(1, NUMBERS))


@pytest.mark.parametrize("space", [spaces.Discrete(4), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(2)])
def test_actions_that_are_choices_must_be_integers(space: Any) -> None:
    form = Form(1, actions_of(space))
    taken = take_in("actions", {"a": torch.ones(E, 1, dtype=torch.int32)}, "a", form)
    assert taken.dtype == torch.int64
    for dtype in (torch.float32, torch.bool):
        with pytest.raises(TypeError, match=rf"actions\['a'\]: expected integers \[E, 1\], got {dtype}; .*\.long\(\)"):
            take_in("actions", {"a": torch.ones(E, 1, dtype=dtype)}, "a", form)


def test_actions_of_a_box_may_be_any_numbers() -> None:
    form = Form(1, actions_of(spaces.Box(-1.0, 1.0, (1,))))
    assert take_in("actions", {"a": torch.ones(E, 1, dtype=torch.int64)}, "a", form).dtype == torch.float32


def test_tensors_of_unequal_environments_are_shown() -> None:
    with pytest.raises(
        ValueError, match=r"x: expected tensors \[E, 1\], of the same environments .*'a': '\[3, 1\].*'b': '\[1, 1\]"
    ):
        take_in("x", {"a": torch.zeros(3, 1), "b": torch.zeros(1, 1)}, "ab", Form(1))


def test_a_device_without_a_number_is_any_of_its_type() -> None:
    assert Form(device=torch.device("cuda")).is_at(_On("cuda:1"))  # type: ignore[arg-type]
    assert Form(device=torch.device("cuda:1")).is_at(_On("cuda:1"))  # type: ignore[arg-type]
    assert not Form(device=torch.device("cuda:0")).is_at(_On("cuda:1"))  # type: ignore[arg-type]
    assert not Form(device=torch.device("cuda")).is_at(_On("cpu"))  # type: ignore[arg-type]


class _On:
    def __init__(self, device: str) -> None:
        self.device = torch.device(device)


@pytest.mark.parametrize("given", ["dict", "stack", "two stacks"])
def test_forms_are_checked_without_stacking(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    both = torch.zeros(E, 2, F)
    values: Any = {
        "dict": {uid: both[:, i] for i, uid in enumerate("ab")},
        "stack": AgentTensors.single("ab", both),
        "two stacks": AgentTensors({("b",): both[:, :1], ("a",): both[:, 1:]}),
    }[given]
    monkeypatch.setattr(torch, "stack", None)
    check_form("x", values, "ab", Form(F, NUMBERS, E))
    with pytest.raises(ValueError, match=r"x\['a'\]: expected a tensor of shape \[4, 3\], got \[3, 3\]"):
        check_form("x", values, "ab", Form(F, NUMBERS, 4))
    with pytest.raises(TypeError, match=r"x\['a'\]: expected bool"):
        check_form("x", values, "ab", Form(F, FLAGS, E))


def test_a_single_tensor_is_checked_alike() -> None:
    form = Form(F, NUMBERS, E, torch.device("cpu"))
    assert take_one("x", torch.zeros(E, F, dtype=torch.float64), form).dtype == torch.float32
    with pytest.raises(ValueError, match=r"x: expected a tensor of shape \[3, 3\], got \[3, 4\]"):
        take_one("x", torch.zeros(E, 4), form)
    with pytest.raises(ValueError, match="x: expected a tensor on cpu, where the agent is, got one on meta"):
        take_one("x", torch.zeros(E, F, device="meta"), form)


def test_no_check_reads_a_value() -> None:
    """A look at a value would wait for an accelerator; tensors without values show that none is taken."""
    values = AgentTensors.single("ab", torch.zeros(E, 2, F, dtype=torch.bool, device="meta"))
    for given in (values, dict(values)):
        assert take_in("x", given, "ab", Form(F, FLAGS, E)).shape == (E, 2, F)


# ---- every entrance --------------------------------------------------------------------------------------------------


def build(space: Any, algorithm: type[MultiAgent] = IPPO, rnn: str | None = None) -> tuple[Toy, MultiAgent]:
    env = Toy(actions=space, lengths=(5, 2, 4))  # copy 1's time limit strikes at the second step
    models = build_models(
        env, "mappo" if algorithm is MAPPO else "ippo", hidden=(4,), rnn=rnn, rnn_size=4, sequence_length=2
    )
    agent = algorithm(
        env.possible_agents,
        models,
        {uid: RandomMemory(ROLLOUTS, E) for uid in "ab"},
        env.observation_spaces,
        env.action_spaces,
        cfg={"rollouts": ROLLOUTS, "learning_epochs": 1, "experiment": OFF, "time_limit_bootstrap": True},
        shared_observation_spaces=env.shared_observation_spaces,
    )
    agent.init()
    agent.set_running_mode("train")
    return env, agent


def train(env: Toy, agent: MultiAgent, change: Callable[[str, Any], Any], steps: int = 4) -> None:
    """Train for some steps, with each of the arguments passed through ``change``."""
    states, _ = env.reset()
    shared = env.state()
    for t in range(steps):
        ones = torch.ones(E, 1, dtype=torch.bool)
        masks: dict[str, Any] = {
            "active_masks": dict.fromkeys("ab", ones),
            "waiting_masks": dict.fromkeys("ab", ~ones),
        }
        if isinstance(env.action_spaces["a"], spaces.Discrete):
            masks["action_masks"] = {uid: ones.repeat(1, 4) for uid in "ab"}
        starts = {"episode_starts": dict.fromkeys("ab", ~ones)}
        infos = {key: change(key, value) for key, value in (masks | starts).items()}
        actions, _, _ = agent.act(change("act's states", states), t, 100, infos)
        following, rewards, terminated, truncated, after = env.step(actions)
        after |= {"shared_states": shared, "shared_next_states": env.state()}
        shared = after["shared_next_states"]
        agent.record_transition(
            change("states", states),
            change("actions", {uid: action.clone() for uid, action in actions.items()}),
            change("rewards", rewards),
            change("next_states", following),
            change("terminated", terminated),
            change("truncated", truncated),
            change("infos", {key: change(key, value) for key, value in after.items()}),
            t,
            100,
        )
        agent.post_interaction(t, 100)
        states = following


NUMBERED = ["act's states", "states", "rewards", "next_states", "final_states"]
FLAGGED = ["terminated", "truncated", "episode_starts", "active_masks", "waiting_masks", "action_masks"]
OPTIONAL = ["active_masks", "waiting_masks", "action_masks"]
DISCRETE = spaces.Discrete(4)


def attempt(entrance: str, corrupt: Callable[[Any], Any], space: Any = DISCRETE, **kwargs: Any) -> None:
    # who has episode_starts to heed remembers something
    rnn = "gru" if entrance == "episode_starts" else None
    env, agent = build(space, rnn=rnn, **kwargs)
    train(env, agent, lambda key, value: corrupt(value) if key == entrance else value)


def named(entrance: str, uid: str = "") -> str:
    """How messages name an entrance, or an agent's part of it."""
    what = "states" if entrance == "act's states" else entrance
    what = f"infos['{what}']" if entrance in OPTIONAL else what
    return what.replace("[", r"\[").replace("]", r"\]") + (rf"\['{uid}'\]" if uid else "")


CORRUPT: dict[str, tuple[Callable[[Any], Any], str, type[Exception], str]] = {
    "no tensor": (lambda v: {**v, "b": None}, "b", TypeError, r"expected a tensor .*, got NoneType$"),
    "an array": (lambda v: {**v, "b": v["b"].numpy()}, "b", TypeError, "got ndarray; torch.as_tensor makes one"),
    "a list": (lambda v: {**v, "b": v["b"].tolist()}, "b", TypeError, "got list; torch.as_tensor makes one"),
    "a scalar": (lambda v: {uid: v["b"].any().item() for uid in "ab"}, "a", TypeError, "got bool; torch.as_tensor"),
    "elsewhere": (lambda v: {**v, "b": v["b"].to("meta")}, "b", ValueError, "expected a tensor on cpu, .* on meta"),
    "all elsewhere": (
        lambda v: stacked({uid: v[uid].to("meta") for uid in "ab"}), "a", ValueError, "expected a tensor on cpu, .* on meta"
    ),
    "one row": (lambda v: {**v, "b": v["b"][:1]}, "b", ValueError, r"expected a tensor of shape \[3, .\], got \[1, .\]"),
    "five rows": (
        lambda v: stacked({uid: v[uid][[0, 1, 2, 0, 0]] for uid in "ab"}),
        "a",
        ValueError,
        r"expected a tensor of shape \[3, .\], got \[5, .\]",
    ),
    "too wide": (lambda v: {**v, "b": v["b"].repeat(1, 2)}, "b", ValueError, r"expected a tensor of shape \[.*, got \[3, "),
    "a row too many": (lambda v: {**v, "b": v["b"][None]}, "b", ValueError, r"of shape \[.*, got \[1, 3, "),
    "no dimension": (lambda v: {**v, "b": v["b"][0, 0]}, "b", ValueError, r"of shape \[.*, got \[\]"),
    "one tensor": (lambda v: v["a"], "", TypeError, "expected a mapping from agent to .*, got Tensor"),
}  # fmt: skip


@pytest.mark.parametrize("entrance", [*NUMBERED, *FLAGGED, "actions"])
@pytest.mark.parametrize("case", CORRUPT)
def test_what_is_no_tensor_of_the_right_shape_in_the_right_place_is_refused_by_name(entrance: str, case: str) -> None:
    corrupt, uid, error, message = CORRUPT[case]
    if entrance == "act's states" and case in ("one row", "five rows"):
        pytest.skip("acting has no number of environments of its own")
    with pytest.raises(error, match=rf"^{named(entrance, uid)}: .*{message}"):
        attempt(entrance, corrupt)


@pytest.mark.parametrize("entrance", [*NUMBERED, "terminated", "truncated", "episode_starts", "actions"])
def test_what_has_no_entry_for_an_agent_is_refused(entrance: str) -> None:
    with pytest.raises(KeyError, match=rf"{named(entrance)}: no entry for agent 'b'; .* got \['a'\]"):
        attempt(entrance, lambda v: {"a": v["a"]})
    if entrance != "final_states":  # None there is as good as nothing said
        with pytest.raises(TypeError, match=rf"^{named(entrance)}: expected a mapping from agent .*, got NoneType"):
            attempt(entrance, lambda v: None)


@pytest.mark.parametrize("entrance", OPTIONAL)
def test_masks_may_be_missing(entrance: str) -> None:
    attempt(entrance, lambda v: {"a": v["a"]})
    attempt(entrance, lambda v: None)


@pytest.mark.parametrize("entrance", [*NUMBERED, *FLAGGED, "actions"])
def test_entries_for_others_are_passed_by(entrance: str) -> None:
    attempt(entrance, lambda v: {**v, "c": "of another team"})


@pytest.mark.parametrize("entrance", FLAGGED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.int64])
@pytest.mark.parametrize("whole", [False, True])
def test_flags_that_are_numbers_are_refused(entrance: str, dtype: torch.dtype, whole: bool) -> None:
    """``~`` turns the number 1 into 254 or -2, which are as true as 1 is."""

    def corrupt(v: Any) -> Any:
        return stacked({uid: v[uid].to(dtype) for uid in "ab"}) if whole else {**v, "b": v["b"].to(dtype)}

    uid = "a" if whole else "b"
    with pytest.raises(TypeError, match=rf"^{named(entrance, uid)}: expected bool .*, got {dtype}; .* with \.bool\(\)"):
        attempt(entrance, corrupt)


@pytest.mark.parametrize("space", [DISCRETE, spaces.MultiDiscrete([3, 2]), spaces.MultiBinary(2)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_choices_that_are_no_integers_are_refused(space: Any, dtype: torch.dtype) -> None:
    with pytest.raises(
        TypeError, match=rf"^actions\['a'\]: expected integers \[3, .\], got {dtype}; pass actions as act"
    ):
        attempt("actions", lambda v: {uid: v[uid].to(dtype) for uid in "ab"}, space)
    attempt("actions", lambda v: {**v, "b": v["b"].to(torch.int32)}, space)


@pytest.mark.parametrize("entrance", [*NUMBERED, "actions"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.int64])
def test_numbers_of_other_types_give_the_same_as_float32(entrance: str, dtype: torch.dtype) -> None:
    results = []
    for kind in (torch.float32, dtype):
        torch.manual_seed(0)
        env, agent = build(spaces.Box(-3.0, 3.0, (2,)))

        def change(key: str, value: Any, kind: torch.dtype = kind) -> Any:
            return {uid: x.round().to(kind) for uid, x in value.items()} if key == entrance else value

        train(env, agent, change)
        results.append(torch.cat([learner.storage.data.flatten() for learner in agent.learners]))
    assert torch.equal(*results)


@pytest.mark.parametrize("key", ["shared_states", "shared_next_states", "final_shared_states"])
def test_the_shared_state_is_checked_too(key: str) -> None:
    attempt(key, lambda v: v.double(), algorithm=MAPPO)
    with pytest.raises(ValueError, match=rf"^infos\['{key}'\]: expected a tensor of shape \[3, 4\], got \[1, 4\]"):
        attempt(key, lambda v: v[:1], algorithm=MAPPO)
    with pytest.raises(ValueError, match=rf"^infos\['{key}'\]: expected a tensor on cpu, .* on meta"):
        attempt(key, lambda v: v.to("meta"), algorithm=MAPPO)


@pytest.mark.parametrize("wrong", [None, []])
def test_infos_that_are_no_dict_are_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"^infos: expected a dict, \{\} where there is nothing to say, got"):
        attempt("infos", lambda v: wrong)


def test_masks_under_a_misspelt_name_are_refused() -> None:
    env, agent = build(DISCRETE)
    states, _ = env.reset()
    ones = torch.ones(E, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"infos\['action_masks'\]: unknown agent 'B', while .* no mask for \['b'\]"):
        agent.act(states, 0, 1, {"action_masks": {"a": ones, "B": ones}})
    agent.act({**states, "B": states["b"]}, 0, 1, {"action_masks": {"a": ones, "B": ones}})  # an agent of another team
    actions = {uid: torch.zeros(E, 1, dtype=torch.int64) for uid in "ab"}
    following, *rest, _ = env.step(actions)
    with pytest.raises(ValueError, match=r"infos\['active_masks'\]: unknown agent 'B'"):
        agent.record_transition(
            states, actions, rest[0], following, *rest[1:], {"active_masks": {"B": ones[:, :1]}}, 0, 1
        )


@pytest.mark.parametrize("entrance", ["states", "actions", "next_states", "terminated", "truncated", "rewards"])
def test_nothing_of_a_step_that_is_refused_is_taken_in(entrance: str) -> None:
    """The groups of a and b are recorded one after the other; b's part is wrong."""
    env = Toy(observations={"a": 3, "b": 4}, lengths=(9, 9, 9))
    models = build_models(env, "ippo", hidden=(4,), rnn="gru", rnn_size=4, sequence_length=2)
    memories = {uid: RandomMemory(ROLLOUTS, E) for uid in "ab"}
    agent = IPPO(env.possible_agents, models, memories, cfg={"rollouts": ROLLOUTS, "experiment": OFF})
    agent.init()
    agent.set_running_mode("train")

    def spoil(key: str, value: Any) -> Any:
        return {**value, "b": value["b"][:1]} if key == entrance else value

    with pytest.raises(ValueError, match=rf"{entrance}\['b'\]: expected a tensor of shape \[3, .\], got \[1, .\]"):
        train(env, agent, spoil, 1)
    assert [agent._storage[uid,].memory.memory_index for uid in "ab"] == [0, 0]
    assert agent.records.num_envs is None
    assert agent._acting.memory == {}
    agent.init()
    train(env, agent, lambda key, value: value, ROLLOUTS)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda v: {**v, "b": v["b"][:1]}, r"final_states\['b'\]: expected a tensor of shape \[3, 3\], got \[1, 3\]"),
        (lambda v: {"a": v["a"]}, r"final_states: no entry for agent 'b'"),
    ],
)
def test_final_states_are_checked_too_where_a_time_limit_struck_some_while_others_go_on(
    wrong: Callable[[Any], Any], message: str
) -> None:
    env, agent = build(DISCRETE)
    states, _ = env.reset()
    actions, _, _ = agent.act(states, 0, 1)
    rewards = {uid: torch.zeros(E, 1) for uid in "ab"}
    never = dict.fromkeys("ab", torch.zeros(E, 1, dtype=torch.bool))
    struck = {"a": torch.tensor([[True], [True], [False]]), "b": torch.tensor([[True], [False], [False]])}
    with pytest.raises((KeyError, ValueError), match=message):
        agent.record_transition(states, actions, rewards, states, never, struck, {"final_states": wrong(states)}, 0, 1)
