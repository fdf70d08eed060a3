from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from coterie.memories import EpisodeMemory, PrioritizedMemory, RandomMemory, ReplayMemory

KINDS = (ReplayMemory, PrioritizedMemory, EpisodeMemory)


def empty(kind: Any, size: int = 9, **kwargs: Any) -> Any:
    memory = kind(size, 2, **kwargs)
    memory.create_tensor("x", 1)
    memory.create_tensor("y", 2, stored=torch.float16)
    return memory


def advance(memory: Any, steps: range) -> None:
    for t in steps:
        memory.add_samples(x=torch.full((2, 1), float(t)), y=torch.full((2, 2), t / 8))
        if t % 3 == 0:
            memory.add_last(torch.tensor([1]), x=torch.full((1, 1), -1.0))
        memory.end_episodes(torch.tensor([t % 2 == 0, False]))


def used(kind: Any) -> Any:
    """A memory with uneven columns, draws behind it and, where there are any, priorities."""
    memory = empty(kind, seed=1)
    advance(memory, range(14))
    window = memory.windows(3)
    if kind is PrioritizedMemory:
        memory.update_priorities(window, torch.tensor([0.5, 3.0, 7.0]))
    advance(memory, range(14, 15))
    return memory


def same_future(memory: Any, other: Any) -> None:
    """Both draw alike now, and after more rows."""
    for more in range(3):
        for _ in range(3):
            mine, others = memory.windows(2), other.windows(2)
            for name in ("rows", "envs", "real", "steps", "starts", "weights"):
                one, two = getattr(mine, name), getattr(others, name)
                assert one is two is None or torch.equal(one, two), name
            for name in ("x", "y"):
                assert torch.equal(memory.gather(name, mine), other.gather(name, others))
            assert torch.equal(memory.sample(["x"], 9)[0][0], other.sample(["x"], 9)[0][0])
        for one in (memory, other):
            advance(one, range(20 + 4 * more, 24 + 4 * more))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fresh", [True, False])
def test_what_was_loaded_goes_on_as_what_was_saved(kind: Any, fresh: bool) -> None:
    memory = used(kind)
    memory.save("memory.pt")
    if fresh:
        other = kind(9, 2, seed=77)  # tensors come from the file
    else:
        other = empty(kind, seed=77)
        advance(other, range(5))
        other.ready(1)
        if kind is not EpisodeMemory:
            other.windows(1)
    other.load("memory.pt")
    assert other.get_tensor_names() == ("x", "y")
    assert (other.get_tensor_by_name("y").dtype, other.dtype_of("y")) == (torch.float16, torch.float32)
    assert (len(other), other.memory_index, other.filled) == (len(memory), memory.memory_index, memory.filled)
    assert other.nbytes == memory.nbytes
    same_future(memory, other)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_cut_loose_from_what_comes_later(kind: Any) -> None:
    memory = used(kind)
    memory.save("memory.pt")
    advance(memory, range(30, 33))
    other = empty(kind)
    other.load("memory.pt")
    same_future(other, _loaded(kind))


def _loaded(kind: Any) -> Any:
    memory = empty(kind)
    memory.load("memory.pt")
    return memory


def test_an_agents_part_can_be_saved_and_learned_from_elsewhere() -> None:
    group = used(ReplayMemory)
    mine = ReplayMemory(9, 2, seed=5)
    mine.expose(group, {"x": group.get_tensor_by_name("x")})
    mine.save("mine.pt")
    other = ReplayMemory(9, 2)
    other.load("mine.pt")
    assert len(other) == len(mine) == len(group)
    window, again = mine.windows(6), other.windows(6)
    assert torch.equal(mine.gather("x", window), other.gather("x", again))


@pytest.mark.parametrize("kind", KINDS)
def test_notes_come_with_the_file(kind: Any) -> None:
    memory = used(kind)
    memory.notes = {"of": [3, 4]}
    memory.save("memory.pt")
    assert memory.empty_copy().notes == {}
    other = empty(kind)
    other.notes = {"more": 1}
    other.load("memory.pt")
    assert other.notes == {"of": [3, 4]}


def spoilt(kind: Any) -> list[tuple[str, Any]]:
    """Files in which something is amiss, each with what the error says."""
    cases: list[tuple[str, Any]] = []

    def case(message: str, change: Any) -> None:
        contents = torch.load("memory.pt", weights_only=True)
        change(contents)
        cases.append((message, contents))

    case("notes: expected a dict, the file has list", lambda c: c.update(notes=[1]))
    case(r"lacks \['columns'\]", lambda c: c.pop("columns"))
    case(r"lacks \['generator'\]", lambda c: c.pop("generator"))
    case("generator state cannot be used", lambda c: c.update(generator={"state": 3}))
    case("expected 'taken' as Tensor, the file has NoneType", lambda c: c["columns"].pop("taken"))
    case("expected 'open' as bool", lambda c: c["columns"].update(open=1.5))
    case("expected 'flags' of shape", lambda c: c["columns"].update(flags=torch.zeros(9, 3, dtype=torch.uint8)))
    case("expected 'before' of shape .* torch.int64", lambda c: c["columns"].update(before=torch.zeros(9, 2)))
    case("it is damaged", lambda c: c["columns"]["row_of"].fill_(9))
    case("it is damaged", lambda c: c["columns"]["taken"].fill_(99))
    case("it is damaged", lambda c: c["columns"]["before"].fill_(-1))
    case("memory_index: expected 0 to 8", lambda c: c.update(memory_index=9))
    case("tensor 'x': expected shape", lambda c: c["tensors"].update(x=torch.zeros(9, 2, 2)))
    case("tensor 'y': expected what it is kept", lambda c: c["tensors"].update(y=c["tensors"]["y"].float()))
    case("tensor 'y': expected what it is kept", lambda c: c.update(dtypes={}))
    case(r"expected tensors \['x', 'y'\]", lambda c: c["tensors"].pop("x"))
    if kind is PrioritizedMemory:
        case(r"lacks \['priorities'\]", lambda c: c.pop("priorities"))
        case("expected 'values' as", lambda c: c["priorities"].update(values=torch.zeros(3)))
        case("it is damaged|file is damaged", lambda c: c["priorities"]["values"].fill_(float("nan")))
        case("expected 'largest' as", lambda c: c["priorities"].pop("largest"))
    return cases


@pytest.mark.parametrize("kind", KINDS)
def test_what_does_not_fit_is_refused_and_nothing_of_it_taken(kind: Any) -> None:
    used(kind).save("memory.pt")
    for message, contents in spoilt(kind):
        torch.save(contents, "spoilt.pt")
        memory, twin = used(kind), used(kind)
        with pytest.raises(ValueError, match=message):
            memory.load("spoilt.pt")
        same_future(memory, twin)


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_and_sizes_are_refused(kind: Any) -> None:
    plain = RandomMemory(9, 2)
    plain.create_tensor("x", 1)
    plain.create_tensor("y", 2, stored=torch.float16)
    plain.save("plain.pt")
    with pytest.raises(ValueError, match=f"expected the file of a {kind.__name__}; this one lacks"):
        empty(kind).load("plain.pt")
    used(kind).save("memory.pt")
    for memory in (kind(8, 2), kind(9, 3)):
        with pytest.raises(ValueError, match="expected shape"):
            memory.load("memory.pt")
        assert memory.get_tensor_names() == ()


def test_a_file_that_cannot_be_written_leaves_the_old_one(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = used(ReplayMemory)
    memory.save("memory.pt")
    before = Path("memory.pt").read_bytes()

    def fail(contents: Any, file: Any) -> None:
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        memory.save("memory.pt")
    assert Path("memory.pt").read_bytes() == before
    assert [path.name for path in Path().iterdir()] == ["memory.pt"], "nothing is left behind"


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def test_loading_executes_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    used(ReplayMemory).save("memory.pt")
    contents = torch.load("memory.pt", weights_only=True)
    contents["generator"] = Malicious(marker)
    torch.save(contents, "evil.pt")
    with pytest.raises(Exception, match="Weights only"):
        empty(ReplayMemory).load("evil.pt")
    assert not marker.exists()
