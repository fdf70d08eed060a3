"""Masks at one moment, and what can be seen there: small tables by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from coterie.agent_tensors import AgentTensors
from coterie.agents.groups import Group
from coterie.agents.masks import Masks, blank, join_masks
from coterie.agents.moments import Moment
from tests.agents.toys import box

T, F = True, False


def column(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.bool).unsqueeze(1)


def rows(mask: Tensor | None) -> Any:
    return None if mask is None else mask.squeeze(-1).tolist()


# ---- blank -----------------------------------------------------------------------------------------------------------


def test_blank_puts_zeros_where_an_agent_is_absent_whatever_stood_there() -> None:
    x = torch.tensor([[[1.0, 2.0], [float("nan"), float("inf")]]])
    assert blank(x, torch.tensor([[[True], [False]]])).tolist() == [[[1.0, 2.0], [0.0, 0.0]]]
    assert x[0, 1].isnan().any()  # a copy
    assert blank(x, None) is x


# ---- masks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("infos", [None, {}, {"active_masks": {}, "waiting_masks": {}, "action_masks": {}}])
def test_without_masks_nothing_is_masked(infos: Any) -> None:
    masks = Masks(infos)
    assert masks.active(["a", "b"]) is None
    assert masks.present(["a", "b"]) is None
    assert masks.actions(["a", "b"], 3) is None


def test_who_waits_is_present_but_not_active_and_who_does_neither_is_absent() -> None:
    masks = Masks(
        {
            "active_masks": {"a": column(1, 0, 0), "b": column(1, 1, 0), "c": column(1, 1, 1)},
            "waiting_masks": {"a": column(0, 1, 0), "c": column(0, 0, 0)},
        }
    )
    # in the order asked for
    assert rows(masks.active(["b", "a"])) == [[T, T], [T, F], [F, F]]
    # a waits in environment 1; nothing is said of b's waiting
    assert rows(masks.present(["b", "a"])) == [[T, T], [T, T], [F, F]]
    # all of c's are True: as good as no mask
    assert masks.active(["c"]) is None
    assert masks.present(["c"]) is None


def test_everyone_waiting_or_active_is_as_good_as_no_mask_of_presence() -> None:
    masks = Masks({"active_masks": {"a": column(1, 0)}, "waiting_masks": {"a": column(0, 1)}})
    assert rows(masks.active(["a"])) == [[T], [F]]
    assert masks.present(["a"]) is None


def test_agents_without_a_mask_are_active_and_may_do_anything() -> None:
    masks = Masks({"active_masks": {"a": column(0, 1)}, "action_masks": {"a": torch.tensor([[T, F], [F, T]])}})
    assert rows(masks.active(["a", "b"])) == [[F, T], [T, T]]
    assert masks.active(["b"]) is None
    assert masks.actions(["b"], 2) is None
    # a may do anything in environment 0, where it does not act
    actions = masks.actions(["b", "a"], 2)
    assert actions is not None
    assert actions.tolist() == [[[T, T], [T, T]], [[T, T], [F, T]]]


def test_waiting_without_active_masks_means_nothing() -> None:
    masks = Masks({"waiting_masks": {"a": column(1, 0)}})
    assert masks.active(["a"]) is None
    assert masks.present(["a"]) is None


@pytest.mark.parametrize("form", ["dict", "stack", "flat dict", "flat stack", "two stacks"])
def test_masks_come_as_dicts_or_stacks_with_or_without_their_last_dimension(form: str) -> None:
    both = torch.tensor([[T, F], [F, T], [T, T]])  # [E, A]
    stack = AgentTensors.single(["a", "b"], both.unsqueeze(-1))
    values: Any = {
        "dict": {uid: stack[uid] for uid in "ab"},
        "stack": stack,
        "flat dict": {"a": both[:, 0], "b": both[:, 1]},
        "flat stack": AgentTensors.single(["a", "b"], both),
        "two stacks": AgentTensors({("b",): both[:, 1:], ("a",): both[:, :1]}),
    }[form]
    for names in (["a", "b"], ["b", "a"]):
        mask = Masks({"active_masks": values}).active(names)
        assert mask is not None
        assert mask.dtype == torch.bool
        assert mask.shape == (3, 2, 1)
        assert rows(mask) == [[bool(both[e, "ab".index(uid)]) for uid in names] for e in range(3)]


def test_a_stack_of_the_very_agents_is_not_copied() -> None:
    stack = AgentTensors.single(["a", "b"], torch.tensor([[[T], [F]]]))
    mask = Masks({"active_masks": stack}).active(["a", "b"])
    assert mask is not None
    assert mask.data_ptr() == stack.stack(["a", "b"]).data_ptr()


@pytest.mark.parametrize(
    ("key", "ask"),
    [
        ("active_masks", lambda m: m.active(["a", "b"])),
        ("active_masks", lambda m: m.present(["a", "b"])),
        ("action_masks", lambda m: m.actions(["a", "b"], 3)),
    ],
)
@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (torch.ones(2, 2, dtype=torch.bool), ValueError, r"expected a tensor of shape \[2, .\], got \[2, 2\]"),
        (torch.ones(2, 1, 1), ValueError, r"expected a tensor of shape \[2, .\], got \[2, 1, 1\]"),
        (torch.tensor(True), ValueError, r"expected a tensor of shape \[2, .\], got \[\]"),
        ([True, True], TypeError, r"expected a tensor \[2, .\], got list; torch.as_tensor makes one"),
        (None, TypeError, r"expected a tensor \[2, .\], got NoneType"),
    ],
)
def test_a_mask_of_another_form_is_refused_by_name(
    key: str, ask: Any, wrong: Any, error: type[Exception], message: str
) -> None:
    right = torch.ones(2, 3 if key == "action_masks" else 1, dtype=torch.bool)
    with pytest.raises(error, match=rf"^infos\['{key}'\]\['b'\]: {message}"):
        ask(Masks({key: {"a": right, "b": wrong}}, rows=2))


@pytest.mark.parametrize("form", ["dict", "stack", "one of them"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.int64])
def test_masks_of_numbers_are_refused(form: str, dtype: torch.dtype) -> None:
    """A mask of numbers may be one that is added to logits, where 0 allows."""
    both = torch.ones(2, 2, 1, dtype=dtype)
    stack = AgentTensors.single(["a", "b"], both)
    masks: Any = {"dict": dict(stack), "stack": stack, "one of them": {"a": column(1, 0), "b": both[:, 0]}}[form]
    who = "b" if form == "one of them" else "a"
    with pytest.raises(
        TypeError, match=rf"^infos\['active_masks'\]\['{who}'\]: expected bool \[E, 1\], got {dtype}; .*\.bool\(\)"
    ):
        Masks({"active_masks": masks}).active(["a", "b"])


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("form", ["dict", "stack"])
def test_masks_of_other_environments_are_refused(rows: int, form: str) -> None:
    """One row would fit any number of environments, and forbid all of them the same."""
    stack = AgentTensors.single(["a", "b"], torch.ones(rows, 2, 4, dtype=torch.bool))
    masks = Masks({"action_masks": stack if form == "stack" else dict(stack)}, rows=2)
    with pytest.raises(ValueError, match=rf"\['a'\]: expected a tensor of shape \[2, 4\], got \[{rows}, 4\]"):
        masks.actions(["a", "b"], 4)


def test_masks_elsewhere_are_refused() -> None:
    masks = Masks({"active_masks": {"a": column(1, 0).to("meta")}}, device=torch.device("cpu"))
    with pytest.raises(ValueError, match=r"\['a'\]: expected a tensor on cpu, where the agent is, got one on meta"):
        masks.active(["a"])


@pytest.mark.parametrize("key", ["active_masks", "waiting_masks", "action_masks"])
def test_masks_come_by_agent(key: str) -> None:
    with pytest.raises(TypeError, match=rf"infos\['{key}'\]: expected a mapping from agent to bool tensor, got Tensor"):
        Masks({key: column(1, 0)})
    with pytest.raises(TypeError, match="infos: expected a dict, got list"):
        Masks([1])  # type: ignore[arg-type]


@pytest.mark.parametrize("key", ["active_masks", "waiting_masks", "action_masks"])
def test_a_mask_under_a_misspelt_name_is_refused(key: str) -> None:
    mask = column(1, 0)
    masks = Masks({key: {"a": mask, "agent_b": mask}})
    with pytest.raises(ValueError, match=rf"infos\['{key}'\]: unknown agent 'agent_b', .* no mask for \['b'\]"):
        masks.check_names(["a", "b"], {"a": mask, "b": mask})
    masks.check_names(["a"], {})  # those of others, where the team has all of its own
    masks.check_names(["a", "b"], {"a": mask, "b": mask, "agent_b": mask})  # an agent of another team
    Masks({key: {"a": mask}}).check_names(["a", "b"], {})


@pytest.mark.parametrize("wrong", [torch.ones(2, 2, dtype=torch.bool), torch.ones(2, 1, 1, dtype=torch.bool)])
def test_a_waiting_mask_of_another_shape_is_refused_by_name(wrong: Any) -> None:
    masks = Masks({"active_masks": {"a": column(1, 0)}, "waiting_masks": {"a": wrong}})
    with pytest.raises(ValueError, match=r"infos\['waiting_masks'\]\['a'\]: expected a tensor of shape \[E, 1\]"):
        masks.present(["a"])


def test_a_waiting_mask_may_lack_its_last_dimension() -> None:
    masks = Masks(
        {"active_masks": {"a": column(0, 1, 0), "b": column(0, 0, 0)}, "waiting_masks": {"b": column(1, 0, 0)[:, 0]}}
    )
    assert rows(masks.present(["a", "b"])) == [[F, T], [T, F], [F, F]]


# ---- moments ---------------------------------------------------------------------------------------------------------


def group(*names: str, width: int = 1) -> Group:
    return Group(tuple(names), box(width), box(1), None, [0] * len(names), None, None)


def moment(presence: dict[str, Tensor | None], calls: list[tuple[str, ...]] | None = None) -> Moment:
    """The team a, b, c: b stands alone in a group of wide observations."""
    groups = [group("c", "a"), group("b", width=2)]
    observed = {
        ("c", "a"): torch.tensor([[[3.0], [1.0]], [[30.0], [10.0]]]),
        ("b",): torch.tensor([[[2.0, 2.5]], [[20.0, 25.0]]]),
    }

    def observe(one: Group) -> Tensor:
        if calls is not None:
            calls.append(one.names)
        return observed[one.names]

    shared = torch.tensor([[7.0], [70.0]])
    return Moment(groups, ["a", "b", "c"], observe, shared, lambda one: presence.get(one.names[0]))


def test_observations_are_joined_in_the_teams_order_once() -> None:
    calls: list[tuple[str, ...]] = []
    seen = moment({}, calls)
    assert calls == []  # nothing is looked up before it is asked for
    assert seen.joined().tolist() == [[1.0, 2.0, 2.5, 3.0], [10.0, 20.0, 25.0, 30.0]]
    assert seen.joined() is seen.joined()
    assert calls == [("c", "a"), ("b",)]
    assert seen.shared is not None
    assert seen.shared.tolist() == [[7.0], [70.0]]


def test_attendance_is_in_the_teams_order_and_none_where_all_are_there() -> None:
    assert moment({}).attendance() is None
    # of the group (c, a): c is missing in row 0, a in row 1; nothing is known of b's group, so it is there
    mask = torch.tensor([[[F], [T]], [[T], [F]]])
    attendance = moment({"c": mask}).attendance()
    assert attendance is not None
    assert attendance.tolist() == [[T, T, F], [F, T, T]]
    assert moment({"b": column(1, 0).unsqueeze(1)}).attendance().tolist() == [[T, T, T], [T, F, T]]  # type: ignore[union-attr]


def test_masks_of_groups_are_joined_with_ones_for_those_without() -> None:
    own = torch.tensor([[[True], [False]], [[False], [True]]])  # [2, 2, 1]
    assert rows(join_masks({("a",): None, ("b", "c"): own, ("d",): None})) == [[1, 1, 0, 1], [1, 0, 1, 1]]
    over_time = join_masks({("b", "c"): own.expand(3, 2, 2, 1), ("a",): None})
    assert over_time is not None
    assert (over_time.dtype, over_time.shape) == (torch.bool, (3, 2, 3, 1))
    assert rows(over_time[2]) == [[1, 0, 1], [0, 1, 1]]
    assert join_masks({("b", "c"): own}) is own
    assert join_masks({("a",): None, ("b", "c"): None}) is None
