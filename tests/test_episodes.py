from __future__ import annotations

import torch
from torch import Tensor

from coterie.episodes import EpisodeCounter

CPU = torch.device("cpu")


def flags(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.bool)


def test_returns_and_lengths_by_hand() -> None:
    counter = EpisodeCounter(2, ["a", "b"], CPU)
    assert counter.add(torch.tensor([[1.0, 10.0], [2.0, 20.0]]), flags(0, 0)) is None
    finished = counter.add(torch.tensor([[3.0, 30.0], [4.0, 40.0]]), flags(1, 0))
    assert finished is not None
    returns, lengths = finished
    assert returns.tolist() == [[4.0, 40.0]]  # 1 + 3, 10 + 30
    assert lengths.tolist() == [2]
    finished = counter.add(torch.tensor([[5.0, 50.0], [6.0, 60.0]]), flags(1, 1))
    assert finished is not None
    # environment 0 began anew; environment 1 has 2 + 4 + 6 and 20 + 40 + 60
    assert finished[0].tolist() == [[5.0, 50.0], [12.0, 120.0]]
    assert finished[1].tolist() == [1, 3]
    finished = counter.add(torch.ones(2, 2), flags(1, 1))
    assert finished is not None
    assert finished[0].tolist() == [[1.0, 1.0], [1.0, 1.0]]


def test_results_are_not_changed_by_later_steps() -> None:
    counter = EpisodeCounter(1, ["a"], CPU)
    finished = counter.add(torch.tensor([[2.0]]), flags(1))
    counter.add(torch.tensor([[7.0]]), flags(0))
    assert finished is not None
    assert finished[0].tolist() == [[2.0]]


def test_rewards_are_left_alone_and_summed_in_float64() -> None:
    counter = EpisodeCounter(1, ["a"], CPU)
    rewards = torch.full((1, 1), 0.1)
    for _ in range(999):
        counter.add(rewards, flags(0))
    finished = counter.add(rewards, flags(1))
    assert finished is not None
    assert float(rewards) == float(torch.tensor(0.1))
    assert finished[0].dtype == torch.float64
    torch.testing.assert_close(finished[0], torch.tensor([[1000 * float(torch.tensor(0.1))]], dtype=torch.float64))


def test_an_infinite_return_does_not_outlive_its_episode() -> None:
    counter = EpisodeCounter(1, ["a"], CPU)
    counter.add(torch.tensor([[torch.inf]]), flags(1))
    finished = counter.add(torch.tensor([[1.0]]), flags(1))
    assert finished is not None
    assert finished[0].tolist() == [[1.0]]


def test_reset_forgets_running_episodes() -> None:
    counter = EpisodeCounter(1, ["a"], CPU)
    counter.add(torch.tensor([[5.0]]), flags(0))
    counter.reset()
    finished = counter.add(torch.tensor([[1.0]]), flags(1))
    assert finished is not None
    assert (finished[0].tolist(), finished[1].tolist()) == ([[1.0]], [1])
