from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from coterie.memories import Memory, RandomMemory


def numbered(memory_size: int = 4, num_envs: int = 3, rows: int | None = None, **kwargs: Any) -> RandomMemory:
    """A memory whose transition of row t and environment e holds the number ``t * E + e``."""
    memory = RandomMemory(memory_size, num_envs, **kwargs)
    memory.create_tensor("x", 1)
    memory.create_tensor("y", 2, torch.int64)
    for t in range(memory_size if rows is None else rows):
        numbers = torch.arange(num_envs).view(-1, 1) + t * num_envs
        memory.add_samples(x=numbers.float(), y=numbers.expand(-1, 2))
    return memory


def test_creating_a_tensor_leaves_the_others_alone() -> None:
    memory = Memory(4, 3)
    memory.create_tensor("x", 1)
    memory.set_tensor_by_name("x", torch.ones(4, 3, 1))
    memory.create_tensor("y", 2)
    assert torch.equal(memory.get_tensor_by_name("x"), torch.ones(4, 3, 1))
    assert memory.get_tensor_names() == ("x", "y")


@pytest.mark.parametrize(
    ("size", "shape"),
    [(2, (2,)), ((2, 3), (2, 3)), (spaces.Box(-1, 1, (2, 3)), (6,)), (spaces.Discrete(5), (5,))],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.bool])
def test_tensors_have_the_size_and_dtype_asked_for(size: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    memory = Memory(4, 3)
    assert memory.create_tensor("x", size, dtype)
    tensor = memory.get_tensor_by_name("x")
    assert tensor.shape == (4, 3, *shape)
    assert tensor.dtype == dtype
    # what was never written must not pass for data
    assert bool(tensor.isnan().all()) if dtype.is_floating_point else not bool(tensor.any())


def test_creating_a_tensor_twice() -> None:
    memory = numbered()
    before = memory.get_tensor_by_name("x").clone()
    assert not memory.create_tensor("x", 1)
    assert torch.equal(memory.get_tensor_by_name("x"), before)
    for size, dtype in ((2, torch.float32), (1, torch.int64)):
        with pytest.raises(ValueError, match="'x' exists with shape"):
            memory.create_tensor("x", size, dtype)


def test_samples_fill_rows_and_wrap() -> None:
    memory = numbered(rows=0)
    assert len(memory) == 0
    for t in range(6):
        memory.add_samples(x=torch.full((3, 1), float(t)), y=torch.full((3, 2), t))
        assert memory.memory_index == (t + 1) % 4
        assert memory.filled == (t >= 3)
        assert len(memory) == min(t + 1, 4) * 3
    # rows 4 and 5 took the place of 0 and 1
    assert memory.get_tensor_by_name("x")[:, 0, 0].tolist() == [4, 5, 2, 3]
    assert memory.get_tensor_by_name("y")[:, 2, 1].tolist() == [4, 5, 2, 3]


def test_samples_are_copied() -> None:
    memory = numbered(rows=0)
    row = torch.ones(3, 1)
    memory.add_samples(x=row)
    row.fill_(9.0)
    assert torch.equal(memory.get_tensor_by_name("x")[0], torch.ones(3, 1))


def test_samples_bring_no_gradients_along() -> None:
    memory = numbered(rows=0)
    memory.add_samples(x=torch.ones(3, 1, requires_grad=True) * 2)
    assert not memory.get_tensor_by_name("x").requires_grad


def test_tensors_are_the_storage_and_flat_ones_views_of_it() -> None:
    memory = numbered()
    flat = memory.get_tensor_by_name("x", keepdim=False)
    assert flat.shape == (12, 1)
    assert flat.flatten().tolist() == list(range(12))
    memory.get_tensor_by_name("x")[1, 2] = 99.0
    assert float(flat[5]) == 99.0


def test_reset_forgets() -> None:
    memory = numbered()
    memory.reset()
    assert len(memory) == 0
    assert (memory.memory_index, memory.filled) == (0, False)


@pytest.mark.parametrize("name", ["memory_size", "num_envs"])
@pytest.mark.parametrize("value", [0, -1, 2.0, True, "4", None])
def test_sizes_must_be_positive_integers(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected an integer of at least 1"):
        Memory(**{"memory_size": 2, "num_envs": 2, name: value})


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    memory = numbered()
    row = torch.zeros(3, 1)
    for call in (
        lambda: memory.get_tensor_by_name("z"),
        lambda: memory.set_tensor_by_name("z", row),
        lambda: memory.add_samples(z=row),
        lambda: memory.sample(["z"], 2),
        lambda: memory.sample_all(["x", "z"]),
    ):
        with pytest.raises(KeyError, match=r"no tensor 'z'.*\['x', 'y'\]"):
            call()
    with pytest.raises(ValueError, match="expected tensors by name"):
        memory.add_samples()


@pytest.mark.parametrize("shape", [(3,), (1, 1), (3, 2), (2, 1), (1, 3, 1)])
def test_rows_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    memory = numbered(rows=0)
    with pytest.raises(ValueError, match=r"'x': expected a row of shape \[3, 1\]"):
        memory.add_samples(x=torch.zeros(shape))
    assert len(memory) == 0
    with pytest.raises(ValueError, match=r"'x' has shape \[4, 3, 1\]"):
        memory.set_tensor_by_name("x", torch.zeros(shape))


# ---- sampling -------------------------------------------------------------------------------------------------------


def test_sample_all_covers_each_row_once() -> None:
    memory = numbered()
    parts = memory.sample_all(["x", "y"], mini_batches=5)
    assert [len(x) for x, _ in parts] == [3, 3, 2, 2, 2]
    assert sorted(torch.cat([x for x, _ in parts]).flatten().tolist()) == list(range(12))
    for x, y in parts:
        assert torch.equal(x.long().expand(-1, 2), y), "the tensors of one transition stay together"


def test_sample_all_shuffles_anew_each_time() -> None:
    memory = numbered(20)
    orders = [memory.sample_all(["x"])[0][0].flatten().tolist() for _ in range(2)]
    assert orders[0] != sorted(orders[0])
    assert orders[0] != orders[1]
    # minibatches mix time steps: they are no slices of time
    spans = [part[0].max() - part[0].min() for part in memory.sample_all(["x"], mini_batches=4)]
    assert min(spans) > 60 / 4


def test_sample_all_follows_the_global_seed() -> None:
    memory = numbered()
    torch.manual_seed(5)
    first = memory.sample_all(["x"])[0][0]
    torch.manual_seed(5)
    assert torch.equal(memory.sample_all(["x"])[0][0], first)


def test_sample_all_leaves_out_what_was_not_written() -> None:
    memory = numbered(rows=2)
    (x,) = memory.sample_all(["x"])[0]
    assert sorted(x.flatten().tolist()) == list(range(6))


def test_sample_without_replacement_repeats_nothing() -> None:
    memory = numbered(replacement=False)
    for _ in range(5):
        drawn = memory.sample(["x"], 12)[0][0].flatten().tolist()
        assert sorted(drawn) == list(range(12))
    with pytest.raises(ValueError, match="cannot draw 13 transitions from a memory that holds 12"):
        memory.sample(["x"], 13)


def test_sample_with_replacement_is_uniform() -> None:
    memory = numbered()
    drawn = torch.cat([x for (x,) in memory.sample(["x"], 60_000, mini_batches=3)]).flatten().long()
    torch.testing.assert_close(
        torch.bincount(drawn, minlength=12) / 60_000, torch.full((12,), 1 / 12), atol=5e-3, rtol=0
    )


def test_sample_draws_only_what_was_written() -> None:
    memory = numbered(rows=1)
    assert set(memory.sample(["x"], 100)[0][0].flatten().tolist()) == {0, 1, 2}
    with pytest.raises(ValueError, match="holds 0"):
        numbered(rows=0).sample(["x"], 1)


def test_samples_are_copies() -> None:
    memory = numbered()
    memory.sample_all(["x"])[0][0].fill_(77.0)
    memory.sample(["x"], 3)[0][0].fill_(77.0)
    assert not bool((memory.get_tensor_by_name("x") == 77.0).any())


def test_sample_by_index() -> None:
    ((x, y), (x_2, _)) = numbered().sample_by_index(["x", "y"], torch.tensor([7, 0, 7]), mini_batches=2)
    assert (x.flatten().tolist(), y[:, 0].tolist(), x_2.flatten().tolist()) == ([7, 0], [7, 0], [7])


def test_the_base_does_not_say_how_to_sample() -> None:
    memory = Memory(2)
    with pytest.raises(NotImplementedError, match="RandomMemory"):
        memory.sample([], 1)


# ---- showing a part of another memory's storage ---------------------------------------------------------------------


def exposed() -> tuple[Memory, RandomMemory]:
    group = Memory(4, 3)
    group.create_tensor("x", (2, 1))
    mine = RandomMemory(4, 3)
    mine.expose(group, {"x": group.get_tensor_by_name("x")[:, :, 1]})
    return group, mine


def test_an_exposed_memory_shows_its_part() -> None:
    group, mine = exposed()
    assert len(mine) == 0
    group.add_samples(x=torch.arange(6.0).view(3, 2, 1))
    assert len(mine) == 3
    assert mine.get_tensor_by_name("x")[0].flatten().tolist() == [1, 3, 5]
    assert sorted(mine.sample_all(["x"])[0][0].flatten().tolist()) == [1, 3, 5]
    with pytest.raises(RuntimeError, match="its group writes to it"):
        mine.add_samples(x=torch.zeros(3, 1))


def test_what_a_memory_held_before_it_was_exposed_does_not_count() -> None:
    group, _ = exposed()
    mine = numbered(4, 3)
    mine.expose(group, {"x": group.get_tensor_by_name("x")[:, :, 0]})
    assert len(mine) == 0


# ---- files ----------------------------------------------------------------------------------------------------------


def test_save_and_load(tmp_path: Path) -> None:
    memory = numbered(rows=5)
    memory.save(tmp_path / "memory.pt")
    other = numbered(rows=0)
    storage = other.get_tensor_by_name("x")
    other.load(tmp_path / "memory.pt")
    for name in ("x", "y"):
        assert torch.equal(other.get_tensor_by_name(name), memory.get_tensor_by_name(name))
    assert other.get_tensor_by_name("x") is storage, "who holds the tensor sees what was loaded"
    assert (other.memory_index, other.filled, len(other)) == (1, True, 12)
    fresh = RandomMemory(4, 3)
    fresh.load(tmp_path / "memory.pt")
    assert torch.equal(fresh.get_tensor_by_name("x"), memory.get_tensor_by_name("x"))


def test_a_file_holds_no_more_than_its_memory(tmp_path: Path) -> None:
    group = Memory(4, 3)
    group.create_tensor("x", (10_000, 1))
    mine = RandomMemory(4, 3)
    mine.expose(group, {"x": group.get_tensor_by_name("x")[:, :, 1]})
    mine.save(tmp_path / "memory.pt")
    assert (tmp_path / "memory.pt").stat().st_size < 10_000


def test_loading_other_names_is_refused(tmp_path: Path) -> None:
    memory = numbered()
    memory.create_tensor("z", 1)
    memory.save(tmp_path / "memory.pt")
    other = numbered(rows=0)
    with pytest.raises(ValueError, match=r"expected tensors \['x', 'y'\], the file has \['x', 'y', 'z'\]"):
        other.load(tmp_path / "memory.pt")
    assert other.get_tensor_names() == ("x", "y")
    assert len(other) == 0


@pytest.mark.parametrize("fresh", [True, False])
def test_loading_other_shapes_is_refused_as_a_whole(tmp_path: Path, fresh: bool) -> None:
    larger = numbered(memory_size=5)
    larger.save(tmp_path / "memory.pt")
    memory = RandomMemory(4, 3) if fresh else numbered()
    before = {name: memory.get_tensor_by_name(name).clone() for name in memory.get_tensor_names()}
    with pytest.raises(ValueError, match=r"'x'.*\[5, 3, 1\]"):
        memory.load(tmp_path / "memory.pt")
    after: dict[str, Tensor] = {name: memory.get_tensor_by_name(name) for name in memory.get_tensor_names()}
    torch.testing.assert_close(after, before)


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def test_loading_executes_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    torch.save({"tensors": {"x": Malicious(marker)}, "memory_index": 0, "filled": False}, tmp_path / "evil.pt")
    with pytest.raises(Exception, match="Weights only"):
        numbered().load(tmp_path / "evil.pt")
    assert not marker.exists()
