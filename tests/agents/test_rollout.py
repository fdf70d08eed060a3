"""What a rollout stores, how it is cut into sequences, and what critics make of it: small cases by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from coterie.agents.evaluation import evaluate
from coterie.agents.group_networks import CriticInput, GroupNetworks, Recall, select_rows
from coterie.agents.groups import Group
from coterie.agents.ppo_advantages import standardise_advantages
from coterie.agents.rollout import Batch, Cut, Rollout, as_sequences
from coterie.memories import RandomMemory
from coterie.models import DeterministicMixin, Model
from coterie.models.batch import ModelBatch
from coterie.models.flat_parameters import FlatParameters
from tests.agents.toys import box

CPU = torch.device("cpu")
T, F = True, False


# ---- sequences -------------------------------------------------------------------------------------------------------


def test_sequences_are_chunks_of_each_environment_in_order_of_time() -> None:
    x = torch.tensor([[10 * t + e for e in range(2)] for t in range(5)])  # [T=5, E=2]
    assert as_sequences(x, 1).tolist() == [0, 1, 10, 11, 20, 21, 30, 31, 40, 41]
    # chunks of 2: (0, 1), (2, 3), (4, filled up); sequence c * E + e
    assert as_sequences(x, 2).tolist() == [[0, 1, 20, 21, 40, 41], [10, 11, 30, 31, 0, 0]]
    assert as_sequences(x[:4], 2).tolist() == [[0, 1, 20, 21], [10, 11, 30, 31]]
    assert as_sequences(x[:, :, None], 5).shape == (5, 2, 1)
    mask = as_sequences(torch.ones(3, 1, dtype=torch.bool), 2)
    assert mask.tolist() == [[T, T], [T, F]]


def test_rows_of_sequences_are_picked_whole() -> None:
    x = torch.tensor([[0, 1, 20, 21], [10, 11, 30, 31]])
    # rows in order of time: step 0 of sequences 3 and 0, then step 1 of both
    assert select_rows(x, torch.tensor([3, 0]), 2).tolist() == [21, 0, 31, 10]
    assert select_rows(x[0], torch.tensor([3, 0]), 1).tolist() == [21, 0]


def full_batch(length: int) -> Batch:
    """Numbers that tell step and sequence: 10 l + n."""
    lead = (4,) if length == 1 else (length, 4)
    rows = torch.arange(4) if length == 1 else 10 * torch.arange(length).unsqueeze(1) + torch.arange(4)

    def numbers(width: int) -> Tensor:
        return rows.float().view(*lead, 1, 1).expand(*lead, 2, width)

    def flags(width: int) -> Tensor:
        return (rows % 3 == 0).view(*lead, 1, 1).expand(*lead, 2, width)

    recall = Recall(100.0 + torch.arange(4.0).view(4, 1, 1), flags(1), flags(1), length)
    return Batch(
        *(numbers(k) for k in (3, 5, 1, 1, 1, 1, 1)),
        mask=flags(1),
        action_masks=flags(4),
        attendance=(rows % 3 == 0).unsqueeze(-1).expand(*lead, 2),
        policy_recall=recall,
        value_recall=recall,
        length=length,
    )


@pytest.mark.parametrize("length", [1, 2])
def test_a_minibatch_has_every_tensor_of_its_sequences(length: int) -> None:
    batch = full_batch(length)
    assert batch.sequences == 4
    taken = batch.take(torch.tensor([2, 0]))
    rows = torch.tensor([2, 0] if length == 1 else [2, 0, 12, 10])
    for name in ("states", "critic", "actions", "log_prob", "advantages", "values", "returns"):
        assert getattr(taken, name)[:, 0, 0].tolist() == rows.tolist(), name
        assert getattr(taken, name).shape[1:] == getattr(batch, name).shape[-2:], name
    for name in ("mask", "action_masks"):
        assert torch.equal(getattr(taken, name)[:, 1, 0], rows % 3 == 0), name
    assert taken.attendance is not None
    assert torch.equal(taken.attendance[:, 1], rows % 3 == 0)
    for recall in (taken.policy_recall, taken.value_recall):
        assert recall is not None
        assert recall.state.flatten().tolist() == [102.0, 100.0]  # one for each sequence
        assert recall.length == length
        for mask in (recall.starts, recall.active):
            assert mask is not None
            assert torch.equal(mask[:, 0, 0], rows % 3 == 0)


def test_a_minibatch_leaves_out_what_a_batch_does_not_have() -> None:
    taken = Batch(*(torch.arange(4.0).view(4, 1, 1),) * 7).take(torch.tensor([1]))
    assert (taken.mask, taken.action_masks, taken.attendance, taken.policy_recall, taken.value_recall) == (None,) * 5


# ---- inputs of critics -----------------------------------------------------------------------------------------------


def test_inputs_of_several_moments_are_joined_with_everyone_there_where_nothing_is_said() -> None:
    plain = CriticInput(torch.zeros(1, 1, 2))
    some = CriticInput(torch.ones(2, 1, 2), torch.tensor([[T, F, T], [F, F, T]]))
    joined = CriticInput.join([plain, some])
    assert joined.states[:, 0, 0].tolist() == [0.0, 1.0, 1.0]
    assert joined.attendance is not None
    assert joined.attendance.tolist() == [[T, T, T], [T, F, T], [F, F, T]]
    assert CriticInput.join([plain, plain]).attendance is None
    part = some.at(torch.tensor([1]))
    assert part.states.shape == (1, 1, 2)
    assert part.attendance is not None
    assert part.attendance.tolist() == [[F, F, T]]
    assert plain.at(slice(0, 1)).attendance is None


def test_a_recall_keeps_what_it_does_not_have() -> None:
    taken = Recall(torch.arange(3.0).view(3, 1, 1), length=2).take(torch.tensor([2]))
    assert (taken.starts, taken.active, taken.length) == (None, None, 2)
    assert taken.state.flatten().tolist() == [2.0]


# ---- a rollout -------------------------------------------------------------------------------------------------------


class Identity(DeterministicMixin, Model):
    """V(x) = w x, with w = 1."""

    def __init__(self, weight: float = 1.0) -> None:
        Model.__init__(self, 1, 1)
        DeterministicMixin.__init__(self)
        self.weight = nn.Parameter(torch.tensor([[weight]]))

    def compute(self, inputs: Any, role: str = "") -> tuple[Any, ...]:
        return inputs["states"] @ self.weight, {}


class Sum(Identity):
    """h' = h + x, V = w h': the sum of what was seen since the episode's start."""

    def get_specification(self) -> dict[str, Any]:
        return {"rnn": {"sizes": [(1, 1)], "sequence_length": 2}}

    def compute(self, inputs: Any, role: str = "") -> tuple[Any, ...]:
        after = inputs["rnn"][0] + inputs["states"]
        return after[0] @ self.weight, {"rnn": [after]}


def make_group(*critics: Model) -> Group:
    names = tuple("abc"[: len(critics)])
    unique = list(dict.fromkeys(critics))
    value = ModelBatch(critics, "value", FlatParameters([[model] for model in unique]), torch.eye(len(names)))
    return Group(names, box(1), spaces.Discrete(3), None, [unique.index(c) for c in critics], None, value)


def make_rollout(group: Group, rows: int, envs: int, length: int = 1) -> Rollout:
    return Rollout(group, rows, envs, 1, length, CPU)


def row(envs: int, agents: int, t: int, **more: Tensor) -> dict[str, Tensor]:
    numbers = {name: torch.full((envs, agents, 1), float(t)) for name in ("states", "log_prob", "rewards")}
    flags = {name: torch.zeros(envs, agents, 1, dtype=torch.bool) for name in ("terminated", "truncated")}
    return {**numbers, **flags, "actions": torch.full((envs, agents, 1), t), **more}


NONE: dict[str, Tensor | None] = {"active": None, "present": None, "action_masks": None}


def test_masks_that_appear_late_are_true_before_and_where_a_step_has_none() -> None:
    rollout = make_rollout(make_group(Identity(), Identity()), 4, 1)
    mask = torch.tensor([[[T], [F]]])
    allowed = torch.tensor([[[T, F, T], [T, T, T]]])
    assert rollout.add(row(1, 2, 0), NONE, None) is False
    assert rollout.mask("active") is None
    assert rollout.add(row(1, 2, 1), {**NONE, "active": mask}, None) is True
    assert rollout.add(row(1, 2, 2), {**NONE, "action_masks": allowed}, None) is True
    assert rollout.add(row(1, 2, 3), {**NONE, "active": ~mask, "action_masks": allowed}, None) is False
    assert rollout.mask("present") is None
    active, actions = rollout.mask("active"), rollout.mask("action_masks")
    assert active is not None
    assert actions is not None
    assert active.squeeze().tolist() == [[T, T], [T, F], [T, T], [F, T]]
    assert actions[:, 0, 0].tolist() == [[T, T, T], [T, T, T], [T, F, T], [T, F, T]]
    assert rollout["states"].squeeze().tolist() == [[0.0, 0.0], [1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]
    # the next rollout writes over the masks of this one, also where its steps have none
    rollout.clear()
    for name in ("active", "action_masks"):
        rollout[name].fill_(False)
    for t in range(4):
        assert rollout.add(row(1, 2, t), NONE, None) is False
    assert bool(rollout["active"].all())
    assert bool(rollout["action_masks"].all())
    rows = rollout.row_mask("active")
    assert rows is not None
    assert rows.shape == (4, 2, 1)


def test_recurrent_states_are_kept_at_the_starts_of_chunks() -> None:
    rollout = make_rollout(make_group(Identity()), 5, 2, length=2)
    assert rollout.policy_states() is None
    for _ in range(2):  # two rollouts
        for t in range(5):
            rollout.add(row(2, 1, t), NONE, torch.tensor([10.0 * t, 10.0 * t + 1]).view(2, 1, 1))
        states = rollout.policy_states()
        assert states is not None
        # steps 0, 2 and 4 of both environments: sequence c * E + e, as as_sequences counts them
        assert states.flatten().tolist() == [0.0, 1.0, 20.0, 21.0, 40.0, 41.0]
        rollout.clear()


def test_a_chunk_is_no_longer_than_the_rollout() -> None:
    assert make_rollout(make_group(Identity()), 3, 1, length=10).length == 3


def test_memories_show_what_appears_late() -> None:
    rollout = make_rollout(make_group(Identity(), Identity()), 2, 1)
    memories = {"b": RandomMemory(2, 1)}  # a has none
    rollout.show_in(memories, {})
    assert "active" not in memories["b"].get_tensor_names()
    rollout.add(row(1, 2, 7), {**NONE, "active": torch.tensor([[[T], [F]]])}, None)
    rollout.show_in(memories, {"shared_states": torch.zeros(2, 1, 3)})
    assert memories["b"].get_tensor_by_name("active").flatten().tolist() == [F, T]
    assert memories["b"].get_tensor_by_name("states")[0].item() == 7.0
    assert memories["b"].get_tensor_by_name("shared_states").shape == (2, 1, 3)


# ---- values ----------------------------------------------------------------------------------------------------------


def played(critics: list[Model], length: int = 1, steps: int = 4) -> tuple[GroupNetworks, Rollout]:
    """One environment; states are 1, 2, 3, 4, and 5 after them; the last seen after row 1, if asked for, is 100."""
    group = make_group(*critics)
    rollout = make_rollout(group, steps, 1, length)
    agents = len(critics)
    for t in range(steps):
        rollout.add(row(1, agents, t, states=torch.full((1, agents, 1), t + 1.0)), NONE, None)
    rollout.last = CriticInput(torch.full((1, agents, 1), 5.0))
    return GroupNetworks(group, CPU, False, None), rollout


def seen(rollout: Rollout) -> CriticInput:
    return CriticInput(rollout.rows("states"))


def over(rollout: Rollout) -> Tensor:
    """Where the episode of a team of this group alone ends."""
    return rollout.ended().all(dim=2, keepdim=True)


def test_values_and_successors_of_a_feed_forward_critic() -> None:
    networks, rollout = played([Identity()])
    rollout["truncated"][1] = True
    everyone = torch.ones(1, 1, 1, dtype=torch.bool)
    rollout.cuts.append(Cut(1, torch.tensor([0]), CriticInput(torch.full((1, 1, 1), 100.0)), everyone))
    result = evaluate(networks, rollout, seen(rollout), None, over(rollout))
    assert result.values.flatten().tolist() == [1.0, 2.0, 3.0, 4.0]
    assert result.successors.flatten().tolist() == [2.0, 100.0, 4.0, 5.0]
    assert (result.chunk_states, result.state) == (None, None)


def test_a_time_limit_concerns_only_the_agents_that_it_struck() -> None:
    networks, rollout = played([Identity(), Identity(10.0)])
    rollout["truncated"][1, 0, 0] = True
    agents = torch.tensor([[[T], [F]]])
    rollout.cuts.append(Cut(1, torch.tensor([0]), CriticInput(torch.full((1, 2, 1), 100.0)), agents))
    result = evaluate(networks, rollout, seen(rollout), None, over(rollout))
    assert result.successors.squeeze().tolist() == [[2.0, 20.0], [100.0, 30.0], [4.0, 40.0], [5.0, 50.0]]


def test_values_of_a_recurrent_critic_go_on_from_the_last_rollout_and_start_afresh_where_episodes_end() -> None:
    networks, rollout = played([Sum()], length=2)
    rollout["terminated"][1] = True
    result = evaluate(networks, rollout, seen(rollout), torch.full((1, 1, 1), 1000.0), over(rollout))
    # 1000 + 1, + 2; then from zero: 3, + 4
    assert result.values.flatten().tolist() == [1001.0, 1003.0, 3.0, 7.0]
    # after the last row: 7 + 5
    assert result.successors.flatten().tolist() == [1003.0, 3.0, 7.0, 12.0]
    assert result.chunk_states is not None
    assert result.chunk_states.flatten().tolist() == [1000.0, 0.0]  # before rows 0 and 2
    assert result.state is not None
    assert result.state.item() == 7.0
    # without a state it starts from zero; an end in the last row clears what goes on
    rollout["truncated"][3] = True
    result = evaluate(networks, rollout, seen(rollout), None, over(rollout))
    assert result.values.flatten().tolist() == [1.0, 3.0, 3.0, 7.0]
    assert result.successors.flatten()[-1].item() == 12.0
    assert result.state is not None
    assert result.state.item() == 0.0


def test_a_recurrent_critic_sees_the_last_observation_with_what_it_remembers_before_it_is_cleared() -> None:
    networks, rollout = played([Sum()], length=2)
    rollout["truncated"][1] = True
    everyone = torch.ones(1, 1, 1, dtype=torch.bool)
    rollout.cuts.append(Cut(1, torch.tensor([0]), CriticInput(torch.full((1, 1, 1), 100.0)), everyone))
    result = evaluate(networks, rollout, seen(rollout), None, over(rollout))
    # 1 + 2 + 100 after row 1; row 2 begins from zero
    assert result.successors.flatten().tolist() == [3.0, 103.0, 7.0, 12.0]


def test_a_critics_state_rests_where_its_agent_does_not_act() -> None:
    networks, rollout = played([Sum(), Sum()], length=4)
    active = torch.tensor([[T, T], [F, T], [T, T], [T, F]]).view(4, 1, 2, 1)
    rollout.memory.create_tensor("active", (2, 1), torch.bool)
    rollout["active"].copy_(active)
    result = evaluate(networks, rollout, seen(rollout), None, over(rollout))
    # a skips row 1 (its value there means nothing): 1, then 1 + 3, + 4; b skips row 3: 1, 3, 6
    assert result.values[[0, 2, 3], 0, 0].flatten().tolist() == [1.0, 4.0, 8.0]
    assert result.values[:3, 0, 1].flatten().tolist() == [1.0, 3.0, 6.0]
    assert result.state is not None
    assert result.state.flatten().tolist() == [8.0, 6.0]
    assert result.successors[-1].flatten().tolist() == [13.0, 11.0]


def test_one_critic_for_a_team_has_one_state_which_is_cleared_when_all_are_done() -> None:
    critic = Sum()
    networks, rollout = played([critic, critic], length=2)
    rollout["terminated"][0, 0, 0] = True  # a alone
    rollout["terminated"][2] = True  # both
    rollout.last = CriticInput(torch.full((1, 1, 1), 5.0))
    result = evaluate(networks, rollout, CriticInput(rollout.rows("states")[:, :1]), None, over(rollout))
    assert result.values.squeeze().tolist() == [[1.0, 1.0], [3.0, 3.0], [6.0, 6.0], [4.0, 4.0]]
    assert result.successors.squeeze().tolist() == [[3.0, 3.0], [6.0, 6.0], [4.0, 4.0], [9.0, 9.0]]
    assert result.state is not None
    assert result.state.shape == (1, 1, 1)
    # agents of other groups may play on
    result = evaluate(
        networks, rollout, CriticInput(rollout.rows("states")[:, :1]), None, torch.zeros(4, 1, 1, 1).bool()
    )
    assert result.values[:, 0, 0].flatten().tolist() == [1.0, 3.0, 6.0, 10.0]


# ---- advantages ------------------------------------------------------------------------------------------------------


def advantages(*columns: list[float]) -> Tensor:
    """``[T, 1, A, 1]`` from one column for each agent."""
    return torch.tensor(columns).t().reshape(-1, 1, len(columns), 1)


def test_advantages_are_standardised_by_agent_by_group_or_not_at_all() -> None:
    a = advantages([1.0, 2.0, 3.0], [0.0, 10.0, 20.0])
    (same,) = standardise_advantages([a], [None], "off", 1)
    assert same is a
    # mean 2, unbiased std 1; mean 10, unbiased std 10
    (by_agent,) = standardise_advantages([a], [None], "agent", 1)
    torch.testing.assert_close(by_agent, advantages([-1.0, 0.0, 1.0], [-1.0, 0.0, 1.0]))
    # one set of both: mean 36 / 6 = 6; squares 25 + 16 + 9 + 36 + 16 + 196 = 298; std sqrt(298 / 5) = 7.7201
    (together,) = standardise_advantages([a], [None], "group", 1)
    torch.testing.assert_close(together, (a - 6.0) / 7.720104, rtol=1e-5, atol=1e-6)
    # two sets of one agent each
    (apart,) = standardise_advantages([a], [None], "group", 2)
    torch.testing.assert_close(apart, by_agent)


def test_only_rows_that_count_enter_the_statistics() -> None:
    a = advantages([1.0, 999.0, 3.0], [5.0, -7.0, 8.0])
    mask = torch.tensor([[T, T], [F, F], [T, F]]).view(3, 1, 2, 1)
    # a: 1 and 3, mean 2, std sqrt 2; b: a single row becomes 0
    (by_agent,) = standardise_advantages([a], [mask], "agent", 1)
    torch.testing.assert_close(by_agent[[0, 2], 0, 0, 0], torch.tensor([-0.7071068, 0.7071068]))
    assert by_agent[0, 0, 1, 0].item() == 0.0
    # together 1, 3, 5: mean 3, std 2
    (together,) = standardise_advantages([a], [mask], "group", 1)
    assert together[mask].tolist() == pytest.approx([-1.0, 1.0, 0.0])  # a and b of row 0, a of row 2


def test_the_agents_of_a_set_are_standardised_together_across_groups() -> None:
    first, second = advantages([1.0, 2.0], [3.0, 6.0]), advantages([4.0, 8.0])
    # 1 2 3 6 4 8: mean 4, squares 9 + 4 + 1 + 4 + 0 + 16 = 34, std sqrt(34 / 5) = 2.607681
    results = standardise_advantages([first, second], [None, None], "group", 1)
    for got, x in zip(results, (first, second), strict=True):
        torch.testing.assert_close(got, (x - 4.0) / 2.607681, rtol=1e-5, atol=1e-6)
    by_agent = standardise_advantages([first, second], [None, None], "agent", 1)
    torch.testing.assert_close(by_agent[1], advantages([-0.7071068, 0.7071068]))
