from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from coterie.agents.normalisation import SetPreprocessor
from coterie.preprocessors import PopArt, Preprocessor, RunningStandardScaler, ValueNorm

KINDS = [RunningStandardScaler, ValueNorm, PopArt]


def by_hand(members: list[Preprocessor], x: Tensor, mask: Tensor) -> None:
    """Each set learns from its own agents' rows that count."""
    share = x.shape[1] // len(members)
    for s, member in enumerate(members):
        own = slice(s * share, (s + 1) * share)
        member(x[:, own][mask[:, own].squeeze(-1)], train=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("sets", "agents"), [(1, 1), (1, 4), (2, 4), (4, 4)])
def test_each_set_learns_from_its_own_agents_rows_that_count(kind: type[Preprocessor], sets: int, agents: int) -> None:
    members = [kind(3) for _ in range(sets)]
    separate = copy.deepcopy(members)
    whole = SetPreprocessor(members, agents)
    for _ in range(3):
        x, mask = torch.randn(6, agents, 3) * 4 + 10, torch.rand(6, agents, 1) < 0.5
        mask[0] = True
        by_hand(separate, x, mask)
        y = whole(x.masked_fill(~mask, math.nan), train=True, mask=mask)
        for mine, other in zip(members, separate, strict=True):
            torch.testing.assert_close(mine.state_dict(), other.state_dict(), rtol=1e-12, atol=1e-12)
        assert torch.equal(torch.isfinite(y), mask.expand_as(y))
        torch.testing.assert_close(y[mask.expand_as(y)], whole(x)[mask.expand_as(y)])


@pytest.mark.parametrize("sets", [1, 2, 4])
@pytest.mark.parametrize("wide", [False, True])
def test_what_agents_have_in_common_counts_where_any_of_a_sets_agents_sees_it(sets: int, wide: bool) -> None:
    agents = 4
    members: list[Preprocessor] = [ValueNorm(3) for _ in range(sets)]
    separate = copy.deepcopy(members)
    x = torch.randn(20, 1, 3)
    mask = torch.rand(20, agents if wide else 1, 1) < 0.3
    y = SetPreprocessor(members, agents)(x, train=True, mask=mask)
    share = agents // sets
    for s, member in enumerate(separate):
        seen = mask[:, s * share : (s + 1) * share].any(dim=1) if wide else mask[:, 0]
        member(x[:, 0][seen.squeeze(-1)], train=True)
        torch.testing.assert_close(members[s].state_dict(), member.state_dict(), rtol=1e-12, atol=1e-12)
    assert y.shape == (20, 1 if sets == 1 else agents, 3)


def test_a_preprocessor_of_ones_own_need_not_know_of_masks() -> None:
    class Shift(nn.Module):
        def forward(self, x: Tensor, train: bool = False, inverse: bool = False) -> Tensor:
            return x - 1 if inverse else x + 1

    x, mask = torch.randn(5, 2, 3), torch.rand(5, 2, 1) < 0.5
    for sets in (1, 2):
        whole = SetPreprocessor([Shift() for _ in range(sets)], 2)
        torch.testing.assert_close(whole(x, train=True), x + 1)
        torch.testing.assert_close(whole(x, train=True, mask=mask), x + 1)
