"""What the particle tasks promise as environments: ends, snapshots, randomness, tensors that are never written again."""

from __future__ import annotations

import copy

import pytest
import torch

from coterie.agent_tensors import AgentTensors
from coterie.envs.base import EnvError
from coterie.envs.particle import TASKS, SimpleSpread
from coterie.envs.particle.world import World, restart

every_task = pytest.mark.parametrize("task", sorted(TASKS))
both_kinds = pytest.mark.parametrize("continuous", [False, True])


def draw(env, generator):
    """Draw random legal actions."""
    if env.continuous_actions:
        return {k: torch.rand(env.num_envs, *s.shape, generator=generator) for k, s in env.action_spaces.items()}
    return {k: torch.randint(int(s.n), (env.num_envs, 1), generator=generator) for k, s in env.action_spaces.items()}


def play(env, steps, seed=0):
    """Step with random actions; return everything that came out."""
    generator = torch.Generator().manual_seed(seed)
    trace = []
    for _ in range(steps):
        states, rewards, _, truncated, infos = env.step(draw(env, generator))
        trace += [*states.values(), *rewards.values(), *truncated.values(), env.state()]
        trace += list(infos.get("final_states", {}).values())
    return trace


def same(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@every_task
@both_kinds
@pytest.mark.parametrize("num_envs", [1, 3])
def test_shapes_and_types(task, continuous, num_envs):
    env = TASKS[task](num_envs, seed=0, continuous_actions=continuous, max_cycles=2)
    states, infos = env.reset()
    assert infos == {}
    generator = torch.Generator().manual_seed(0)
    for step in range(3):
        states, rewards, terminated, truncated, infos = env.step(draw(env, generator))
        widths = []
        for name in env.possible_agents:
            width = env.observation_spaces[name].shape[0]
            widths.append(width)
            assert (states[name].shape, states[name].dtype) == ((num_envs, width), torch.float32)
            assert (rewards[name].shape, rewards[name].dtype) == ((num_envs, 1), torch.float32)
            for flag in (terminated[name], truncated[name]):
                assert (flag.shape, flag.dtype) == ((num_envs, 1), torch.bool)
            assert not terminated[name].any()
            assert bool(truncated[name].all()) == bool(truncated[name].any()) == (step == 1)
            if step == 1:
                assert infos["final_states"][name].shape == (num_envs, width)
        assert set(infos) == ({"final_states", "final_shared_states"} if step == 1 else set())
        assert env.state().shape == (num_envs, sum(widths)) == (num_envs, *env.shared_observation_space(name).shape)
        assert torch.equal(env.state(), torch.cat([states[name] for name in env.possible_agents], dim=1))


def test_stacks_are_not_copied():
    env = SimpleSpread(4, seed=0)
    states, _ = env.reset()
    assert isinstance(states, AgentTensors)
    assert states.stack(env.possible_agents).shape == (4, 3, 18)
    assert states.stack(env.possible_agents).data_ptr() == states["agent_0"].data_ptr() == env.state().data_ptr()
    listener = TASKS["simple_speaker_listener"](4, seed=0)
    states, _ = listener.reset()
    assert {names: tuple(stack.shape) for names, stack in states.stacks.items()} == {
        ("speaker_0",): (4, 1, 3),
        ("listener_0",): (4, 1, 11),
    }


def test_the_last_observation_of_an_episode_is_the_true_one():
    env = SimpleSpread(2, seed=0, max_cycles=2)
    env.reset()
    now = env.get_state()
    now["remaining"] = torch.tensor([2, 1])  # copy 1 ends first
    now["positions"] = torch.tensor([[-0.9, 0.0], [0.0, 0.0], [0.9, 0.0]]).double().expand(2, 3, 2)
    env.set_state(now)
    right = {name: torch.full((2, 1), 2) for name in env.possible_agents}
    states, _, _, truncated, infos = env.step(right)
    assert truncated["agent_0"].tolist() == [[False], [True]]
    # after one push from rest: velocity 0.5, position not yet changed
    assert infos["final_states"]["agent_0"][1, :4].tolist() == pytest.approx([0.5, 0, -0.9, 0])
    assert infos["final_shared_states"][1, :4].tolist() == pytest.approx([0.5, 0, -0.9, 0])
    assert states["agent_0"][0, :4].tolist() == pytest.approx([0.5, 0, -0.9, 0])  # this one goes on
    assert states["agent_0"][1, :2].tolist() == [0, 0]  # this one is new, and at rest
    assert states["agent_0"][1, 2].item() != pytest.approx(-0.9)
    assert torch.equal(env.state()[1, :18], states["agent_0"][1])
    states, _, _, truncated, infos = env.step(right)
    assert truncated["agent_0"].tolist() == [[True], [False]]
    # position -0.9 + 0.1 * 0.5; velocity 0.75 * 0.5 + 0.5
    assert infos["final_states"]["agent_0"][0, :4].tolist() == pytest.approx([0.875, 0, -0.85, 0])
    assert states["agent_0"][1, :2].tolist() == pytest.approx([0.5, 0])
    _, _, _, truncated, _ = env.step(right)
    assert truncated["agent_0"].tolist() == [[False], [True]]  # two steps after its restart


@every_task
def test_what_was_returned_is_never_written_again(task):
    env = TASKS[task](3, seed=0, max_cycles=3, stagger=True)
    env.reset()
    generator = torch.Generator().manual_seed(0)
    kept = []
    for _ in range(8):
        *mappings, infos = env.step(draw(env, generator))
        tensors = [value for mapping in mappings for value in mapping.values()] + [env.state()]
        tensors += list(infos.get("final_states", {}).values())
        kept += [(tensor, tensor.clone()) for tensor in tensors]
    assert all(torch.equal(tensor, then) for tensor, then in kept)


@every_task
@both_kinds
def test_seeds(task, continuous):
    def trace(seed):
        env = TASKS[task](4, seed=seed, continuous_actions=continuous, max_cycles=3)
        states, _ = env.reset()
        return list(states.values()) + play(env, 7)

    assert same(trace(1), trace(1))
    assert not same(trace(1), trace(2))
    assert not same(trace(None), trace(None))


def test_randomness_is_the_environment_s_own():
    before = torch.get_rng_state()
    one, two, alone = (SimpleSpread(4, seed=5, max_cycles=2) for _ in range(3))
    one.reset()
    two.reset()
    alone.reset()
    first = play(one, 5)
    torch.manual_seed(99)
    torch.set_rng_state(before)
    assert same(first, play(two, 5))
    assert same(first, play(alone, 5))
    assert torch.equal(torch.get_rng_state(), before)
    SimpleSpread(1).reset()
    assert torch.equal(torch.get_rng_state(), before)


@every_task
def test_resets_are_uniform_over_the_arena(task):
    env = TASKS[task](4000, seed=0)
    env.reset()
    state = env.get_state()
    for name in ("positions", "landmarks"):
        points = state[name] / (0.9 if (task, name) == ("simple_tag", "landmarks") else 1.0)
        assert points.min() >= -1
        assert points.max() <= 1
        assert points.mean(0).abs().max() < 0.06  # the standard error is 0.577 / sqrt(4000) = 0.009
        assert (points.var(0) - 1 / 3).abs().max() < 0.03
    assert state["velocities"].abs().sum() == state["words"].abs().sum() == 0
    for goals in state["goals"].T:
        assert (goals.bincount(minlength=3) / 4000 - 1 / 3).abs().max() < 0.04
    corner = torch.cat([state["positions"], state["landmarks"]], 1).flatten(1)
    assert (torch.corrcoef(corner.T) - torch.eye(corner.shape[1])).abs().max() < 0.08  # drawn independently


@every_task
@both_kinds
def test_snapshots_are_exact(task, continuous):
    env = TASKS[task](5, seed=0, continuous_actions=continuous, max_cycles=4, stagger=True)
    env.reset()
    play(env, 6)
    snapshot, state = env.get_state(), env.state()
    expected = play(env, 9, seed=3)
    env.set_state(snapshot)
    assert torch.equal(env.state(), state)
    assert same(play(env, 9, seed=3), expected)
    other = TASKS[task](5, seed=77, continuous_actions=continuous, max_cycles=4)  # needs no reset first
    other.set_state(snapshot)
    assert same(play(other, 9, seed=3), expected)


def test_a_snapshot_is_a_copy():
    env = SimpleSpread(2, seed=0)
    env.reset()
    snapshot, state = env.get_state(), env.state().clone()
    for value in snapshot.values():
        value.zero_()
    assert torch.equal(env.state(), state)
    assert env.get_state()["remaining"].tolist() == [25, 25]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positions": None}, "'positions'.*NoneType"),
        ({"positions": torch.zeros(2, 4, 2)}, r"'positions'.*\[2, 2, 2\].*\[2, 4, 2\]"),
        ({"velocities": torch.full((2, 2, 2), float("nan"))}, "'velocities'.*finite"),
        ({"goals": torch.tensor([[0, 3], [0, 0]])}, "'goals'.*3 landmarks"),
        ({"goals": torch.zeros(2, 2)}, "'goals'.*int64"),
        ({"remaining": torch.tensor([0, 1])}, r"'remaining'.*\[0, 1\].*1 to 25"),
        ({"remaining": torch.tensor([26, 1])}, r"'remaining'.*1 to 25"),
        ({"remaining": torch.tensor([1])}, r"'remaining'.*2 numbers"),
        ({"generator": torch.zeros(3, dtype=torch.uint8)}, "'generator'"),
        ({"extra": torch.zeros(3)}, "extra"),
    ],
)
def test_states_that_do_not_fit(change, message):
    env = TASKS["simple_reference"](2, seed=0)
    env.reset()
    state = env.state()
    with pytest.raises(EnvError, match=message):
        env.set_state(env.get_state() | change)
    with pytest.raises(EnvError):
        env.set_state({})
    assert env.state() is state


def test_place_keeps_the_rest():
    env = SimpleSpread(2, seed=0)
    env.reset()
    before = env.get_state()
    states = env.place(positions=torch.zeros(3, 2), velocities=torch.ones(2, 3, 2))
    after = env.get_state()
    assert states["agent_2"][:, :4].tolist() == [[1, 1, 0, 0]] * 2
    for name in ("landmarks", "remaining", "generator"):
        assert torch.equal(before[name], after[name])
    with pytest.raises(EnvError, match="place_of_birth"):
        env.place(place_of_birth=torch.zeros(3, 2))


@every_task
def test_deep_copies_are_independent(task):
    env = TASKS[task](3, seed=0, max_cycles=3)
    env.reset()
    twin, spare = copy.deepcopy(env), copy.deepcopy(env)
    expected = play(env, 7)
    assert same(play(twin, 7), expected)
    play(twin, 4)
    assert same(play(spare, 7), expected)


def test_stagger_spreads_the_first_ends():
    env = SimpleSpread(5, seed=0, max_cycles=10, stagger=True)
    for _ in range(2):
        env.reset()
        assert env.get_state()["remaining"].tolist() == [10, 8, 6, 4, 2]
    ends = [[] for _ in range(5)]
    for step in range(1, 31):
        *_, truncated, infos = env.step({name: torch.zeros(5, 1, dtype=torch.int64) for name in env.possible_agents})
        for row in truncated["agent_0"].squeeze(1).nonzero().flatten().tolist():
            ends[row].append(step)
        assert bool(infos) == bool(truncated["agent_0"].any())
    assert ends == [[10, 20, 30], [8, 18, 28], [6, 16, 26], [4, 14, 24], [2, 12, 22]]
    few = SimpleSpread(7, max_cycles=2, stagger=True)
    few.reset()
    assert few.get_state()["remaining"].tolist() == [2, 2, 2, 2, 1, 1, 1]


def test_no_reset_work_where_nobody_ends(monkeypatch):
    env = SimpleSpread(3, seed=0, max_cycles=4)
    env.reset()
    calls = []
    monkeypatch.setattr(env, "sample", lambda: calls.append(1) or SimpleSpread.sample(env))
    play(env, 9)
    assert len(calls) == 2


@every_task
def test_before_the_first_reset(task):
    env = TASKS[task]()
    for use in (env.state, env.get_state, lambda: env.step(draw(env, None))):
        with pytest.raises(EnvError, match=r"call reset\(\) first"):
            use()


@pytest.mark.parametrize(
    "kwargs", [{"num_envs": 0}, {"max_cycles": 0}, {"N": 0}, {"local_ratio": 1.5}, {"local_ratio": -0.1}]
)
def test_parameters_out_of_range(kwargs):
    with pytest.raises(ValueError, match=next(iter(kwargs))):
        SimpleSpread(**kwargs)


@every_task
@both_kinds
def test_the_pure_step_compiles_as_one_graph(task, continuous):
    env = TASKS[task](4, seed=0, continuous_actions=continuous)
    env.reset()
    actions = env._reader.read(draw(env, torch.Generator().manual_seed(0)))
    world, fresh = env._present(), env.sample()
    advance = torch.compile(env.advance, fullgraph=True, backend="eager")
    again = torch.compile(restart, fullgraph=True, backend="eager")
    expected, observation, rewards = env.advance(world, actions)
    moved, observed, rewarded = advance(world, actions)
    assert same([*moved, observed, rewarded], [*expected, observation, rewards])
    ended = torch.tensor([True, False, False, True])
    renewed = again(ended, fresh, world)
    assert isinstance(renewed, World)
    assert torch.equal(renewed.positions[..., ended], fresh.positions[..., ended])
    assert torch.equal(renewed.positions[..., ~ended], world.positions[..., ~ended])
