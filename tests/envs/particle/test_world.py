"""Physics and rewards with numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from coterie.envs.particle import TASKS, SimpleReference, SimpleSpeakerListener, SimpleSpread, SimpleTag
from coterie.envs.particle.world import contact_force, integrate, limit_speed

IDLE, LEFT, RIGHT, DOWN, UP = range(5)


def all_do(env, choice):
    return {name: torch.full((env.num_envs, 1), choice) for name in env.possible_agents}


def test_integrate_moves_with_the_old_velocity():
    position, velocity = integrate(torch.tensor([[[1.0]]]), torch.tensor([[[2.0]]]), torch.tensor([[[5.0]]]))
    assert position.item() == pytest.approx(1.2)  # 1 + 0.1 2
    assert velocity.item() == pytest.approx(2.0)  # 0.75 2 + 0.1 5


def test_contact_force_is_a_softplus_of_the_penetration():
    # two bodies 0.3 apart with reach 0.3: penetration 0.001 ln 2, force 100 times that, along x and opposite
    at_reach = torch.tensor([[[0.0], [0.3]], [[0.0], [0.0]]], dtype=torch.float64)
    force = contact_force(at_reach, 0.3)
    assert force[0, :, 0].tolist() == pytest.approx([-0.1 * math.log(2), 0.1 * math.log(2)], rel=1e-9)
    assert force[1].abs().max() == 0
    # deep inside, the penetration is reach - distance: 100 * 0.2
    assert contact_force(at_reach / 3, 0.3)[0, 1, 0].item() == pytest.approx(20.0)
    # far away, nothing
    assert contact_force(at_reach * 10, 0.3).abs().max() == 0


def test_contact_force_of_radii_that_differ_and_of_obstacles():
    # bodies at x = 0 and 1 with reach 0.5 of each other: too far apart. An obstacle at 1.3 reaches 0.4 from the second body,
    # which it pushes by 100 * (0.4 - 0.3), and 0.2 from the first, which it does not push
    bodies = torch.tensor([[[0.0], [1.0]], [[0.0], [0.0]]], dtype=torch.float64)
    obstacle = torch.tensor([[[1.3]], [[0.0]]], dtype=torch.float64)
    reach = torch.tensor([[0.5, 0.5, 0.2], [0.5, 0.5, 0.4]], dtype=torch.float64)[..., None]
    force = contact_force(bodies, reach, obstacle)
    assert force.shape == (2, 2, 1)
    assert force[0, :, 0].tolist() == pytest.approx([0.0, -10.0])
    assert force[1].abs().max() == 0
    assert contact_force(bodies, reach[:, :2]).abs().max() < 1e-200


def test_limit_speed_keeps_the_direction():
    velocities = torch.tensor([[[3.0, 0.3], [3.0, 0.0]], [[4.0, 0.4], [4.0, 0.0]]])  # [2, M, E]: speeds 5, 0.5; 5, 0
    limited = limit_speed(velocities, torch.tensor([[1.0], [10.0]]))
    assert limited[:, 0, 0].tolist() == pytest.approx([0.6, 0.8])
    assert limited[:, 0, 1].tolist() == pytest.approx([0.3, 0.4])
    assert torch.equal(limited[:, 1], velocities[:, 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bodies_in_one_spot_give_no_nan(dtype):
    positions = torch.zeros(2, 3, 1, dtype=dtype)
    positions[:, 2] = 1e-25  # closer than any direction can be told, but not the same
    assert contact_force(positions, 0.3).isfinite().all()
    env = SimpleSpread(2, seed=0, physics_dtype=dtype)
    env.reset()
    env.place(positions=torch.zeros(3, 2))
    states, rewards, *_ = env.step(all_do(env, UP))
    assert all(value.isfinite().all() for mapping in (states, rewards) for value in mapping.values())


def test_spread_rewards():
    env = SimpleSpread(1, seed=0, local_ratio=0.25)
    env.reset()
    spots = torch.tensor([[-1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    env.place(positions=spots, landmarks=spots)  # each on a landmark, far apart
    _, rewards, *_ = env.step(all_do(env, IDLE))
    assert [value.item() for value in rewards.values()] == [0.0, 0.0, 0.0]
    # agents 0 and 1 are 0.2 apart, so they collide; landmarks at distance 0, 0.5 (of agent 2), 0.3 (of agent 0)
    env.place(
        positions=torch.tensor([[0.0, 0.0], [0.2, 0.0], [0.0, 1.0]]),
        landmarks=torch.tensor([[0.0, 0.0], [0.0, 1.5], [0.0, -0.3]]),
    )
    _, rewards, *_ = env.step(all_do(env, IDLE))  # positions change with the old velocity, which is 0
    # shared -0.8; own -1, -1, 0: 0.75 * -0.8 + 0.25 * own
    assert [value.item() for value in rewards.values()] == pytest.approx([-0.85, -0.85, -0.6])


def test_spread_counts_every_collision():
    env = SimpleSpread(1, seed=0, local_ratio=1.0, N=4)
    env.reset()
    env.place(positions=torch.tensor([[0.0, 0.0], [0.2, 0.0], [-0.2, 0.0], [0.9, 0.9]]))
    _, rewards, *_ = env.step(all_do(env, IDLE))
    assert [value.item() for value in rewards.values()] == [-2.0, -1.0, -1.0, 0.0]


def test_spread_observation_layout():
    env = SimpleSpread(1, seed=0, N=2)
    env.reset()
    states = env.place(
        positions=torch.tensor([[0.5, 0.25], [-0.5, 0.0]]),
        velocities=torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
        landmarks=torch.tensor([[0.0, 0.0], [1.0, 1.0]]),
    )
    #                                     velocity  position   landmarks               other        said
    assert states["agent_0"][0].tolist() == [1, 2, 0.5, 0.25, -0.5, -0.25, 0.5, 0.75, -1.0, -0.25, 0, 0]
    assert states["agent_1"][0].tolist() == [3, 4, -0.5, 0.0, 0.5, 0.0, 1.5, 1.0, 1.0, 0.25, 0, 0]


@pytest.mark.parametrize(
    ("choice", "velocity"), [(IDLE, [0, 0]), (LEFT, [-0.5, 0]), (RIGHT, [0.5, 0]), (DOWN, [0, -0.5]), (UP, [0, 0.5])]
)
@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("task", sorted(TASKS))
def test_what_actions_do(task, continuous, choice, velocity):
    """A push of 5 gives 0.5 after one step; a continuous action puts 1 on the button of the discrete one."""
    env = TASKS[task](1, seed=0, continuous_actions=continuous)
    env.reset()
    (_, bodies, _), (_, landmarks, _) = (env.get_state()[name].shape for name in ("positions", "landmarks"))
    env.place(  # no contacts
        positions=torch.arange(bodies)[:, None].expand(-1, 2).double(),
        landmarks=torch.full((landmarks, 2), -5.0),
    )
    actions = {}
    for name, space in env.action_spaces.items():
        speaker = name == "speaker_0"
        if continuous:
            actions[name] = torch.zeros(1, *space.shape)
            actions[name][0, 0 if speaker else choice] = 1.0
        else:
            actions[name] = torch.tensor([[0 if speaker else choice]])
    env.step(actions)
    strengths = [3, 3, 3, 4] if task == "simple_tag" else [5] * bodies
    expected = [strength / 5 * part for strength in strengths for part in velocity]
    assert env.get_state()["velocities"][0].flatten().tolist() == pytest.approx(expected)


def test_speaker_listener_rewards_and_speech():
    env = SimpleSpeakerListener(1, seed=0)
    env.reset()
    marks = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    states = env.place(positions=torch.tensor([[0.5, 0.5]]), landmarks=marks, goals=torch.tensor([2]))
    assert states["speaker_0"][0].tolist() == pytest.approx([0.15, 0.15, 0.65])
    states, rewards, *_ = env.step({"speaker_0": torch.tensor([[1]]), "listener_0": torch.tensor([[IDLE]])})
    assert [value.item() for value in rewards.values()] == [-0.5, -0.5]  # (0.5, 0.5) to (0, 1): 0.25 + 0.25
    #                                      velocity   landmarks                        said
    assert states["listener_0"][0].tolist() == [0, 0, -0.5, -0.5, 0.5, -0.5, -0.5, 0.5, 0, 1, 0]


def test_reference_rewards_and_speech():
    env = SimpleReference(1, seed=0, local_ratio=0.25)
    env.reset()
    marks = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
    # agent 1 must reach goal 0 = landmark 1, seen by agent 0; agent 0 must reach goal 1 = landmark 2
    env.place(positions=torch.tensor([[0.0, 0.0], [0.0, 0.0]]), landmarks=marks, goals=torch.tensor([1, 2]))
    said = {"agent_0": torch.tensor([[5 * 9 + IDLE]]), "agent_1": torch.tensor([[5 * 3 + IDLE]])}
    states, rewards, *_ = env.step(said)
    # own: -5 and -1; shared -3
    assert [value.item() for value in rewards.values()] == pytest.approx([0.75 * -3 + 0.25 * -5, 0.75 * -3 + 0.25 * -1])
    assert states["agent_0"][0, 8:11].tolist() == pytest.approx([0.25, 0.75, 0.25])
    assert states["agent_1"][0, 8:11].tolist() == pytest.approx([0.25, 0.25, 0.75])
    assert states["agent_0"][0, 11:].tolist() == [float(k == 3) for k in range(10)]
    assert states["agent_1"][0, 11:].tolist() == [float(k == 9) for k in range(10)]


def tag(positions, velocities=None, **kwargs):
    """Return a game of tag with everything placed, and obstacles out of the way."""
    env = SimpleTag(1, seed=0, **kwargs)
    env.reset()
    landmarks = env.get_state()["landmarks"].shape[1]
    fields = {"positions": torch.tensor(positions), "landmarks": torch.full((landmarks, 2), -9.0)}
    states = env.place(**fields, velocities=torch.tensor(velocities or [[0.0, 0.0]] * len(positions)))
    return env, states


def test_tag_rewards_of_collisions():
    # adversary (radius 0.075) and good agent (0.05) collide below 0.125
    env, _ = tag([[0.0, 0.0], [0.6, 0.0], [0.1, 0.0], [0.0, 0.124], [0.6, 0.126]], num_adversaries=3, num_good=2)
    _, rewards, *_ = env.step(all_do(env, IDLE))
    # agent_0 at (0, 0.124): adversary_0 at 0.124, adversary_2 at 0.159; agent_1: adversary_1 at 0.126
    assert [value.item() for value in rewards.values()] == [10.0, 10.0, 10.0, -10.0, 0.0]
    env, _ = tag([[0.0, 0.0], [0.1, 0.0], [0.05, 0.0], [0.05, 0.05]], num_adversaries=2, num_good=2)
    _, rewards, *_ = env.step(all_do(env, IDLE))
    # both adversaries touch both good agents: 4 pairs, and 2 for each good agent
    assert [value.item() for value in rewards.values()] == [40.0, 40.0, -20.0, -20.0]


@pytest.mark.parametrize(
    ("position", "penalty"),
    [
        ([0.0, 0.0], 0.0),
        ([0.89, -0.89], 0.0),
        ([0.95, 0.0], 0.5),  # 10 (0.95 - 0.9)
        ([-0.95, 0.98], 1.3),  # 0.5 + 0.8
        ([1.0, 0.0], 1.0),  # exp(0)
        ([0.0, -1.5], math.e),  # exp(2 * 1.5 - 2)
        ([3.0, 0.0], 10.0),  # exp(4) is more than 10
        ([5.0, -5.0], 20.0),
    ],
)
def test_tag_penalty_of_leaving(position, penalty):
    env, _ = tag([[-3.0, 3.0], position], num_adversaries=1)
    _, rewards, *_ = env.step(all_do(env, IDLE))
    assert rewards["adversary_0"].item() == 0  # may be anywhere
    assert rewards["agent_0"].item() == pytest.approx(-penalty, rel=1e-6)


def test_tag_speeds_are_limited_by_kind():
    env, _ = tag([[0.0, 0.0], [0.0, 3.0]], [[1.0, 0.0], [1.3, 0.0]], num_adversaries=1)
    env.step(all_do(env, RIGHT))
    # 0.75 + 0.3 = 1.05, and 0.975 + 0.4 = 1.375
    assert env.get_state()["velocities"][0, :, 0].tolist() == pytest.approx([1.0, 1.3])
    assert env.get_state()["positions"][0, :, 0].tolist() == pytest.approx([0.1, 0.13])


def test_tag_obstacles_push_and_stay():
    env, _ = tag([[0.0, 0.0], [3.0, 3.0]], num_adversaries=1, num_obstacles=1)
    env.place(landmarks=torch.tensor([[0.0, 0.265]]))
    env.step(all_do(env, IDLE))
    # reach 0.075 + 0.2 = 0.275, penetration 0.01, force 1 downwards, 0.1 after a step
    assert env.get_state()["velocities"][0].flatten().tolist() == pytest.approx([0.0, -0.1, 0.0, 0.0], abs=1e-5)
    assert env.get_state()["landmarks"].flatten().tolist() == pytest.approx([0.0, 0.265])


def test_tag_observation_layout():
    env, _ = tag(
        [[0.0, 0.0], [0.5, 0.0], [0.0, 1.0]], [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], num_adversaries=1, num_good=2
    )
    states = env.place(landmarks=torch.tensor([[1.0, 1.0], [-1.0, 0.5]]))
    #                                           velocity, position, obstacles, others, velocities of the other good ones
    assert states["adversary_0"][0].tolist() == [1, 2, 0, 0, 1, 1, -1, 0.5, 0.5, 0, 0, 1, 3, 4, 5, 6]
    assert states["agent_0"][0].tolist() == [3, 4, 0.5, 0, 0.5, 1, -1.5, 0.5, -0.5, 0, -0.5, 1, 5, 6]
    assert states["agent_1"][0].tolist() == [5, 6, 0, 1, 1, 0, -1, -0.5, 0, -1, 0.5, -1, 3, 4]
    assert {names: tuple(stack.shape) for names, stack in states.stacks.items()} == {
        ("adversary_0",): (1, 1, 16),
        ("agent_0", "agent_1"): (1, 2, 14),
    }


@pytest.mark.parametrize("kwargs", [{"num_good": 0}, {"num_adversaries": 0}, {"num_obstacles": -1}])
def test_tag_parameters_out_of_range(kwargs):
    with pytest.raises(ValueError, match=next(iter(kwargs))):
        SimpleTag(**kwargs)
