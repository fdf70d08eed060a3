"""What a rollout stores, how it is cut into sequences, and what critics make of it: small cases by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from coterie.agents import rollout as rollout_module
from coterie.agents.evaluation import Evaluation, evaluate
from coterie.agents.group_networks import CriticInput, CriticNetworks, Recall, select_rows
from coterie.agents.groups import CriticGroup, Group
from coterie.agents.ppo_advantages import standardise_advantages
from coterie.agents.rollout import Batch, CriticBatch, Rollout, Successors, Truncation, as_sequences, minibatches
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


def full_batches(length: int) -> tuple[Batch, CriticBatch]:
    """Numbers that tell step and sequence: 10 l + n."""
    lead = (4,) if length == 1 else (length, 4)
    rows = torch.arange(4) if length == 1 else 10 * torch.arange(length).unsqueeze(1) + torch.arange(4)

    def numbers(width: int) -> Tensor:
        return rows.float().view(*lead, 1, 1).expand(*lead, 2, width)

    def flags(width: int) -> Tensor:
        return (rows % 3 == 0).view(*lead, 1, 1).expand(*lead, 2, width)

    recall = Recall(100.0 + torch.arange(4.0).view(4, 1, 1), flags(1), flags(1), length)
    batch = Batch(
        *(numbers(k) for k in (3, 1, 1, 1, 1, 1)), mask=flags(1), action_masks=flags(4), recall=recall, length=length
    )
    return batch, CriticBatch(numbers(5), (rows % 3 == 0).unsqueeze(-1).expand(*lead, 2), recall, length)


@pytest.mark.parametrize("length", [1, 2])
def test_a_minibatch_has_every_tensor_of_its_sequences(length: int) -> None:
    batch, seen = full_batches(length)
    assert batch.sequences == seen.sequences == 4
    taken, taken_seen = batch.take(torch.tensor([2, 0])), seen.take(torch.tensor([2, 0]))
    rows = torch.tensor([2, 0] if length == 1 else [2, 0, 12, 10])
    for name in ("states", "actions", "log_prob", "advantages", "values", "returns"):
        assert getattr(taken, name)[:, 0, 0].tolist() == rows.tolist(), name
        assert getattr(taken, name).shape[1:] == getattr(batch, name).shape[-2:], name
    for name in ("mask", "action_masks"):
        assert torch.equal(getattr(taken, name)[:, 1, 0], rows % 3 == 0), name
    assert taken_seen.states[:, 0, 0].tolist() == rows.tolist()
    assert taken_seen.states.shape[1:] == (2, 5)
    assert taken_seen.present is not None
    assert torch.equal(taken_seen.present[:, 1], rows % 3 == 0)
    for recall in (taken.recall, taken_seen.recall):
        assert recall is not None
        assert recall.state.flatten().tolist() == [102.0, 100.0]  # one for each sequence
        assert recall.length == length
        for mask in (recall.starts, recall.active):
            assert mask is not None
            assert torch.equal(mask[:, 0, 0], rows % 3 == 0)


def test_a_minibatch_leaves_out_what_a_batch_does_not_have() -> None:
    taken = Batch(*(torch.arange(4.0).view(4, 1, 1),) * 6).take(torch.tensor([1]))
    assert (taken.mask, taken.action_masks, taken.recall) == (None,) * 3
    seen = CriticBatch(torch.arange(4.0).view(4, 1, 1)).take(torch.tensor([1]))
    assert (seen.states.item(), seen.present, seen.recall) == (1.0, None, None)


@pytest.mark.parametrize("length", [1, 2])
def test_an_epoch_shuffled_as_a_whole_has_the_minibatches_of_one_that_is_not(
    length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, seen = full_batches(length)
    epochs = []
    for limit in (2**26, 0):
        monkeypatch.setattr(rollout_module, "SHUFFLED_AT_ONCE", limit)
        torch.manual_seed(3)
        epochs.append(list(minibatches([batch, batch], [seen], 3)))
    sizes = [parts[0].states.shape[0] // length for parts, _ in epochs[0]]
    assert sizes == [2, 1, 1]  # four sequences
    order = torch.cat([parts[0].states[: len(parts[0].states) // length, 0, 0] for parts, _ in epochs[0]])
    assert order.tolist() != [0, 1, 2, 3]
    assert sorted(order.tolist()) == [0, 1, 2, 3]
    for (whole, whole_seen), (single, single_seen) in zip(*epochs, strict=True):
        assert len(whole) == len(single) == 2
        for mine, other in zip([*whole, *whole_seen], [*single, *single_seen], strict=True):
            for name, value in vars(mine).items():
                expected = getattr(other, name)
                if isinstance(value, Recall):
                    for part, theirs in zip(vars(value).values(), vars(expected).values(), strict=True):
                        assert torch.equal(torch.as_tensor(part), torch.as_tensor(theirs)), name
                else:
                    assert torch.equal(torch.as_tensor(value), torch.as_tensor(expected)), name


# ---- inputs of critics -----------------------------------------------------------------------------------------------


def test_inputs_of_several_moments_are_joined_with_everyone_there_where_nothing_is_said() -> None:
    plain = CriticInput(torch.zeros(1, 1, 2))
    some = CriticInput(torch.ones(2, 1, 2), torch.tensor([[T, F, T], [F, F, T]]))
    joined = CriticInput.join([plain, some])
    assert joined.states[:, 0, 0].tolist() == [0.0, 1.0, 1.0]
    assert joined.present is not None
    assert joined.present.tolist() == [[T, T, T], [T, F, T], [F, F, T]]
    assert CriticInput.join([plain, plain]).present is None
    part = some.at(torch.tensor([1]))
    assert part.states.shape == (1, 1, 2)
    assert part.present is not None
    assert part.present.tolist() == [[F, F, T]]
    assert plain.at(slice(0, 1)).present is None


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


def make_group(*names: str) -> Group:
    return Group(names, box(1), spaces.Discrete(3), None, [0] * len(names), None, None)


def make_rollout(group: Group, rows: int, envs: int, length: int = 1) -> Rollout:
    return Rollout(group, rows, envs, 1, length, CPU)


def row(envs: int, agents: int, t: int, **more: Tensor) -> dict[str, Tensor]:
    numbers = {name: torch.full((envs, agents, 1), float(t)) for name in ("states", "log_prob", "rewards")}
    flags = {name: torch.zeros(envs, agents, 1, dtype=torch.bool) for name in ("terminated", "truncated")}
    return {**numbers, **flags, "actions": torch.full((envs, agents, 1), t), **more}


NONE: dict[str, Tensor | None] = {"active": None, "present": None, "action_masks": None}


def test_masks_that_appear_late_are_true_before_and_where_a_step_has_none() -> None:
    rollout = make_rollout(make_group(*"ab"), 4, 1)
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
    rollout = make_rollout(make_group("a"), 5, 2, length=2)
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
    assert make_rollout(make_group("a"), 3, 1, length=10).length == 3


def test_memories_show_what_appears_late() -> None:
    rollout = make_rollout(make_group(*"ab"), 2, 1)
    memories = {"b": RandomMemory(2, 1)}  # a has none
    rollout.show_in(memories, {})
    assert "active" not in memories["b"].get_tensor_names()
    rollout.add(row(1, 2, 7), {**NONE, "active": torch.tensor([[[T], [F]]])}, None)
    rollout.show_in(memories, {"shared_states": torch.zeros(2, 1, 3)})
    assert memories["b"].get_tensor_by_name("active").flatten().tolist() == [F, T]
    assert memories["b"].get_tensor_by_name("states")[0].item() == 7.0
    assert memories["b"].get_tensor_by_name("shared_states").shape == (2, 1, 3)


# ---- values ----------------------------------------------------------------------------------------------------------


def played(
    critics: list[Model], length: int = 1, steps: int = 4, common: bool = False, groups: tuple[str, ...] = ("abc",)
) -> tuple[CriticNetworks, list[Rollout], Successors]:
    """One environment; states are 1, 2, 3, 4, and 5 after them.

    :param critics: of agents a, b, ...
    :param common: whether all see the same
    :param groups: the agents of each
    """
    found = [make_group(*names[: len(critics)]) for names in groups]
    storage = FlatParameters([[model] for model in dict.fromkeys(critics)])
    batch = ModelBatch(critics, "value", storage, torch.eye(len(critics)))
    rollouts = [make_rollout(group, steps, 1, length) for group in found]
    for rollout in rollouts:
        agents = len(rollout.names)
        for t in range(steps):
            rollout.add(row(1, agents, t, states=torch.full((1, agents, 1), t + 1.0)), NONE, None)
    beyond = Successors(CriticInput(torch.full((1, 1 if common else len(critics), 1), 5.0)))
    return CriticNetworks(CriticGroup(found, batch, common), CPU, False, None), rollouts, beyond


def evaluated(
    networks: CriticNetworks, rollouts: list[Rollout], beyond: Successors, state: Tensor | None = None, **ends: Tensor
) -> Evaluation:
    """What its critics make of a rollout of these groups alone; ``over`` where other groups have a say in that."""
    over = torch.cat([rollout.ended() for rollout in rollouts], dim=2).all(dim=2, keepdim=True)
    states = torch.cat([rollout.rows("states") for rollout in rollouts], dim=1)
    seen = CriticInput(states[:, :1] if networks.group.common_input else states)
    return evaluate(networks, rollouts, seen, beyond, state, ends.get("over", over))


def struck(row: int, agents: int, *whom: bool) -> Truncation:
    """A time limit, behind which ``agents`` see 100."""
    return Truncation(
        row,
        torch.tensor([0]),
        CriticInput(torch.full((1, agents, 1), 100.0)),
        torch.tensor(whom).view(1, -1, 1),
    )


def test_values_and_successors_of_a_feed_forward_critic() -> None:
    networks, rollouts, beyond = played([Identity()])
    rollouts[0]["truncated"][1] = True
    beyond.truncations.append(struck(1, 1, T))
    result = evaluated(networks, rollouts, beyond)
    assert result.values.flatten().tolist() == [1.0, 2.0, 3.0, 4.0]
    assert result.successors.flatten().tolist() == [2.0, 100.0, 4.0, 5.0]
    assert (result.chunk_states, result.state) == (None, None)


def test_a_time_limit_concerns_only_the_agents_that_it_struck() -> None:
    networks, rollouts, beyond = played([Identity(), Identity(10.0)])
    rollouts[0]["truncated"][1, 0, 0] = True
    beyond.truncations.append(struck(1, 2, T, F))
    result = evaluated(networks, rollouts, beyond)
    assert result.successors.squeeze().tolist() == [[2.0, 20.0], [100.0, 30.0], [4.0, 40.0], [5.0, 50.0]]


def test_a_time_limit_concerns_only_the_groups_that_it_struck() -> None:
    critic = Identity(3.0)
    networks, rollouts, beyond = played([critic] * 3, common=True, groups=("ab", "c"))
    beyond.truncations.append(struck(1, 1, F, T, F))
    beyond.truncations.append(struck(2, 1, F, F, T))
    result = evaluated(networks, rollouts, beyond)
    assert result.values[:, 0, :, 0].tolist() == [[3.0] * 3, [6.0] * 3, [9.0] * 3, [12.0] * 3]
    by_group = networks.group.by_group(result.successors)
    assert by_group["a", "b"].squeeze().tolist() == [[6.0, 6.0], [9.0, 300.0], [12.0, 12.0], [15.0, 15.0]]
    assert by_group["c",].flatten().tolist() == [6.0, 9.0, 300.0, 15.0]


def test_values_of_a_recurrent_critic_go_on_from_the_last_rollout_and_start_afresh_where_episodes_end() -> None:
    networks, rollouts, beyond = played([Sum()], length=2)
    rollouts[0]["terminated"][1] = True
    result = evaluated(networks, rollouts, beyond, torch.full((1, 1, 1), 1000.0))
    # 1000 + 1, + 2; then from zero: 3, + 4
    assert result.values.flatten().tolist() == [1001.0, 1003.0, 3.0, 7.0]
    # after the last row: 7 + 5
    assert result.successors.flatten().tolist() == [1003.0, 3.0, 7.0, 12.0]
    assert result.chunk_states is not None
    assert result.chunk_states.flatten().tolist() == [1000.0, 0.0]  # before rows 0 and 2
    assert result.state is not None
    assert result.state.item() == 7.0
    # without a state it starts from zero; an end in the last row clears what goes on
    rollouts[0]["truncated"][3] = True
    result = evaluated(networks, rollouts, beyond)
    assert result.values.flatten().tolist() == [1.0, 3.0, 3.0, 7.0]
    assert result.successors.flatten()[-1].item() == 12.0
    assert result.state is not None
    assert result.state.item() == 0.0


def test_a_recurrent_critic_sees_the_last_observation_with_what_it_remembers_before_it_is_cleared() -> None:
    networks, rollouts, beyond = played([Sum()], length=2)
    rollouts[0]["truncated"][1] = True
    beyond.truncations.append(struck(1, 1, T))
    result = evaluated(networks, rollouts, beyond)
    # 1 + 2 + 100 after row 1; row 2 begins from zero
    assert result.successors.flatten().tolist() == [3.0, 103.0, 7.0, 12.0]


def rests(rollout: Rollout, *rows: list[bool]) -> None:
    """Say where a group's agents act."""
    rollout.memory.create_tensor("active", (len(rollout.names), 1), torch.bool)
    rollout["active"].copy_(torch.tensor(rows).view(4, 1, -1, 1))


def test_a_critics_state_rests_where_its_agent_does_not_act() -> None:
    networks, rollouts, beyond = played([Sum(), Sum()], length=4)
    rests(rollouts[0], [T, T], [F, T], [T, T], [T, F])
    result = evaluated(networks, rollouts, beyond)
    # a skips row 1 (its value there means nothing): 1, then 1 + 3, + 4; b skips row 3: 1, 3, 6
    assert result.values[[0, 2, 3], 0, 0].flatten().tolist() == [1.0, 4.0, 8.0]
    assert result.values[:3, 0, 1].flatten().tolist() == [1.0, 3.0, 6.0]
    assert result.state is not None
    assert result.state.flatten().tolist() == [8.0, 6.0]
    assert result.successors[-1].flatten().tolist() == [13.0, 11.0]


def test_distinct_critics_of_several_groups_follow_each_their_own_agent() -> None:
    # nothing is said of b's acting: it always does
    networks, rollouts, beyond = played([Sum(), Sum(10.0)], length=2, common=True, groups=("a", "b"))
    rests(rollouts[0], [T], [F], [T], [T])
    rollouts[1]["terminated"][1] = True
    result = evaluated(networks, rollouts, beyond)
    assert not networks.group.one_state
    assert result.values[[0, 2, 3], 0, 0].flatten().tolist() == [1.0, 4.0, 8.0]
    assert result.values[:, 0, 1].flatten().tolist() == [10.0, 30.0, 30.0, 70.0]  # 1, + 2; 3, + 4
    assert result.chunk_states is not None
    assert result.chunk_states.squeeze(-1).tolist() == [[0.0, 0.0], [1.0, 0.0]]


@pytest.mark.parametrize("groups", [("ab",), ("a", "b")], ids=["one group", "two groups"])
def test_one_critic_for_a_team_has_one_state_which_is_cleared_when_all_are_done(groups: tuple[str, ...]) -> None:
    critic = Sum()
    networks, rollouts, beyond = played([critic, critic], length=2, common=True, groups=groups)
    assert networks.group.one_state
    rollouts[0]["terminated"][0, 0, 0] = True  # a alone
    for rollout in rollouts:
        rollout["terminated"][2] = True  # both
    rests(rollouts[0], *[[F] * len(rollouts[0].names)] * 4)  # who acts is nothing to it
    result = evaluated(networks, rollouts, beyond)
    assert result.values.squeeze().tolist() == [[1.0, 1.0], [3.0, 3.0], [6.0, 6.0], [4.0, 4.0]]
    assert result.successors.squeeze().tolist() == [[3.0, 3.0], [6.0, 6.0], [4.0, 4.0], [9.0, 9.0]]
    assert result.state is not None
    assert result.state.shape == (1, 1, 1)
    # agents of other groups may play on
    result = evaluated(networks, rollouts, beyond, over=torch.zeros(4, 1, 1, 1, dtype=torch.bool))
    assert result.values[:, 0, 0].flatten().tolist() == [1.0, 3.0, 6.0, 10.0]


@pytest.mark.parametrize("common", [True, False])
def test_what_a_single_agents_critic_remembers_follows_what_it_sees(common: bool) -> None:
    """The team's state: until the whole team is done. Its own: by what the agent does."""
    networks, rollouts, beyond = played([Sum()], length=2, common=common)
    rests(rollouts[0], [T], [F], [T], [T])
    rollouts[0]["terminated"][2] = True
    result = evaluated(networks, rollouts, beyond, over=torch.zeros(4, 1, 1, 1, dtype=torch.bool))
    assert networks.group.one_state == common
    # 1, 3, 6, 10 of all rows; or 1, (skipped), 4, and 4 from zero
    assert result.values[[0, 2, 3]].flatten().tolist() == ([1.0, 6.0, 10.0] if common else [1.0, 4.0, 4.0])
    assert result.chunk_states is not None
    assert result.chunk_states.flatten().tolist() == [0.0, 3.0 if common else 1.0]


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
