"""Masks at one moment, and what can be seen there: small tables by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from coterie.agent_tensors import AgentTensors
from coterie.agents.groups import Group
from coterie.agents.masks import Masks, blank
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


@pytest.mark.parametrize("form", ["dict", "stack", "flat dict", "flat stack", "numbers"])
def test_masks_come_as_dicts_or_stacks_with_or_without_their_last_dimension(form: str) -> None:
    both = torch.tensor([[T, F], [F, T], [T, T]])  # [E, A]
    stack = AgentTensors.single(["a", "b"], both.unsqueeze(-1))
    values: Any = {
        "dict": {uid: stack[uid] for uid in "ab"},
        "stack": stack,
        "flat dict": {"a": both[:, 0], "b": both[:, 1]},
        "flat stack": AgentTensors.single(["a", "b"], both),
        "numbers": {uid: stack[uid].float() for uid in "ab"},
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
@pytest.mark.parametrize("wrong", [torch.ones(2, 2, dtype=torch.bool), torch.ones(2, 1, 1), [True, True], None])
def test_a_mask_of_another_shape_is_refused_by_name(key: str, ask: Any, wrong: Any) -> None:
    right = torch.ones(2, 3 if key == "action_masks" else 1, dtype=torch.bool)
    with pytest.raises(ValueError, match=rf"infos\['{key}'\]\['b'\]: expected a bool tensor \[E, ."):
        ask(Masks({key: {"a": right, "b": wrong}}))


@pytest.mark.parametrize("wrong", [torch.ones(2, 2, dtype=torch.bool), [True, True]])
def test_a_waiting_mask_of_another_shape_is_refused_by_name(wrong: Any) -> None:
    masks = Masks({"active_masks": {"a": column(1, 0)}, "waiting_masks": {"a": wrong}})
    with pytest.raises(ValueError, match=r"infos\['waiting_masks'\]\['a'\]: expected a bool tensor \[E, 1\]"):
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
