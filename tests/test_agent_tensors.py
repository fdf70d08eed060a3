from __future__ import annotations

from typing import cast

import pytest
import torch
from torch import Tensor

from coterie.agent_tensors import AgentTensors, stack_agents


@pytest.fixture
def pair() -> Tensor:
    return torch.arange(12.0).view(3, 2, 2)


def test_names_lead_to_views(pair: Tensor) -> None:
    values = AgentTensors.single(["a", "b"], pair)
    assert torch.equal(values["b"], pair[:, 1])
    assert values["b"].shape == (3, 2)
    pair[0, 1, 0] = 99.0
    assert float(values["b"][0, 0]) == 99.0
    assert values["b"].data_ptr() == pair[:, 1].data_ptr()


def test_it_is_a_read_only_mapping(pair: Tensor) -> None:
    values = AgentTensors({("a", "b"): pair, ("c",): torch.zeros(3, 1, 5)})
    assert list(values) == ["a", "b", "c"]
    assert len(values) == 3
    assert "c" in values
    assert "d" not in values
    assert values["c"].shape == (3, 5)
    assert {uid: list(t.shape) for uid, t in values.items()} == {"a": [3, 2], "b": [3, 2], "c": [3, 5]}
    assert "('a', 'b'): [3, 2, 2]" in repr(values)
    with pytest.raises(KeyError, match="'d'"):
        values["d"]
    with pytest.raises(TypeError):
        values["a"] = pair  # type: ignore[index]


def test_a_known_stack_is_free(pair: Tensor) -> None:
    values = AgentTensors.single(["a", "b"], pair)
    assert values.stack(["a", "b"]) is pair
    assert stack_agents(values, ("a", "b")) is pair
    assert values.stacks == {("a", "b"): pair}


@pytest.mark.parametrize("names", [["b", "a"], ["b"], ["a", "c"]])
def test_any_other_stack_is_made(pair: Tensor, names: list[str]) -> None:
    values = AgentTensors({("a", "b"): pair, ("c",): torch.ones(3, 1, 2)})
    stacked = values.stack(names)
    assert stacked.shape == (3, len(names), 2)
    for i, name in enumerate(names):
        assert torch.equal(stacked[:, i], values[name])


def test_a_plain_dict_is_stacked_in_the_order_asked_for() -> None:
    plain = {"a": torch.zeros(3, 1), "b": torch.ones(3, 1)}
    assert stack_agents(plain, ["b", "a"])[0].flatten().tolist() == [1.0, 0.0]
    with pytest.raises(KeyError, match="'c'"):
        stack_agents(plain, ["a", "c"])


def test_map_applies_to_every_stack(pair: Tensor) -> None:
    calls = []

    def double(tensor: Tensor) -> Tensor:
        calls.append(tensor)
        return tensor * 2

    values = AgentTensors({("a", "b"): pair, ("c",): torch.ones(3, 1, 2)}).map(double)
    assert len(calls) == 2
    assert torch.equal(values["b"], pair[:, 1] * 2)
    assert torch.equal(values["c"], torch.full((3, 2), 2.0))


@pytest.mark.parametrize("shape", [(3,), (3, 3), (2,)])
def test_a_dimension_that_does_not_match_the_names_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected a tensor \[E, 2, ...\] for the agents \['a', 'b'\]"):
        AgentTensors.single(["a", "b"], torch.zeros(shape))


def test_a_name_in_two_stacks_is_refused() -> None:
    with pytest.raises(ValueError, match="'a' stands in more than one stack"):
        AgentTensors({("a",): torch.zeros(1, 1), cast("tuple[str, ...]", ("b", "a")): torch.zeros(1, 2)})


def test_join_puts_agents_side_by_side() -> None:
    stacked = torch.arange(12.0).view(2, 3, 2)
    tensors = AgentTensors.single(["a", "b", "c"], stacked)
    assert tensors.join(["a", "b", "c"]).tolist() == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]
    assert tensors.join(["a", "b", "c"]).data_ptr() == stacked.data_ptr()
    assert tensors.join(["c", "a"]).tolist() == [[4, 5, 0, 1], [10, 11, 6, 7]]
    unequal = AgentTensors({("a",): torch.ones(2, 1, 1), ("b",): torch.zeros(2, 1, 3)})
    assert unequal.join(["b", "a"]).tolist() == [[0, 0, 0, 1]] * 2
