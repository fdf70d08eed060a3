"""The built-in tasks against mpe2's, step for step from the same states: observations, rewards, ends, shared state."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch

from coterie.envs.particle import TASKS

pytest.importorskip("mpe2")

MODULES = {
    "simple_spread": "simple_spread_v3",
    "simple_speaker_listener": "simple_speaker_listener_v4",
    "simple_reference": "simple_reference_v3",
    "simple_tag": "simple_tag_v3",
}
TOLERANCE = 1e-5


def pair(task, episodes, continuous, crowded=False, **kwargs):
    """Return mpe2's environments, and one built-in one whose copies stand in the same states."""
    module = importlib.import_module(f"mpe2.{MODULES[task]}")
    references = [module.parallel_env(continuous_actions=continuous, **kwargs) for _ in range(episodes)]
    for seed, reference in enumerate(references):
        reference.reset(seed=seed)
    worlds = [reference.unwrapped.world for reference in references]
    if crowded:
        rng = np.random.default_rng(1)
        for world in worlds:
            for entity in world.entities if task == "simple_tag" else world.agents:
                entity.state.p_pos = rng.uniform(-0.25, 0.25, 2)
    fields = {
        "positions": torch.tensor(np.array([[a.state.p_pos for a in w.agents if a.movable] for w in worlds])),
        "landmarks": torch.tensor(
            np.array([[mark.state.p_pos for mark in w.landmarks] for w in worlds]).reshape(episodes, -1, 2)
        ),
    }
    if task not in {"simple_spread", "simple_tag"}:
        goals = [[a.goal_b for a in w.agents if a._goal_b is not None] for w in worlds]
        fields["goals"] = torch.tensor(
            [[w.landmarks.index(goal) for goal in of_copy] for w, of_copy in zip(worlds, goals, strict=True)]
        )
    env = TASKS[task](episodes, continuous_actions=continuous, seed=0, **kwargs)
    env.reset()
    return references, env, env.place(**fields)


def random_actions(env, rng):
    """Draw legal actions as arrays [E, n]; continuous ones touch both bounds now and then."""
    actions = {}
    for name, space in env.action_spaces.items():
        if env.continuous_actions:
            values = rng.uniform(-0.2, 1.2, (env.num_envs, *space.shape)).clip(0, 1)
            actions[name] = values.astype(np.float32)
        else:
            actions[name] = rng.integers(space.n, size=(env.num_envs, 1))
    return actions


def towards_middle(env, references):
    """Return actions that drive all agents of a copy into each other."""
    actions = {}
    for i, name in enumerate(env.possible_agents):
        x, y = np.array([reference.unwrapped.world.agents[i].state.p_pos for reference in references]).T
        if env.continuous_actions:
            push = np.stack([0 * x, x > 0, x <= 0, y > 0, y <= 0], axis=1)
            actions[name] = push.astype(np.float32)
        else:
            actions[name] = np.where(abs(x) > abs(y), np.where(x > 0, 1, 2), np.where(y > 0, 3, 4))[:, None]
    return actions


def run(references, env, states, choose):
    """Step both sides to the end of the episode; return the largest error and the number of collisions."""
    worst, bumps = 0.0, 0
    names = env.possible_agents
    for row, reference in enumerate(references):
        for name in names:
            expected = reference.aec_env.observe(name)
            worst = max(worst, float(np.abs(expected - states[name][row].numpy()).max()))
    for t in range(env.max_cycles):
        actions = choose()
        next_states, rewards, terminated, truncated, infos = env.step(
            {k: torch.from_numpy(v) for k, v in actions.items()}
        )
        last = t == env.max_cycles - 1
        assert bool(infos) == last
        states = infos["final_states"] if last else next_states
        shared = (infos["final_shared_states"] if last else env.state()).numpy()
        for row, reference in enumerate(references):
            mine = {k: v[row] if env.continuous_actions else int(v[row, 0]) for k, v in actions.items()}
            observations, their_rewards, ends, cuts, _infos = reference.step(mine)
            assert np.abs(reference.state() - shared[row]).max() <= TOLERANCE
            for name in names:
                worst = max(worst, float(np.abs(observations[name] - states[name][row].numpy()).max()))
                worst = max(worst, abs(their_rewards[name] - float(rewards[name][row])))
                assert (ends[name], cuts[name]) == (bool(terminated[name][row]), bool(truncated[name][row]))
            agents = reference.unwrapped.world.agents
            solid = [mark for mark in reference.unwrapped.world.landmarks if mark.collide]
            bumps += sum(
                bool(np.linalg.norm(a.state.p_pos - b.state.p_pos) < a.size + b.size)
                for i, a in enumerate(agents)
                for b in agents[:i] + solid
            )
    return worst, bumps


@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("task", sorted(TASKS))
def test_spaces(task, continuous):
    reference = importlib.import_module(f"mpe2.{MODULES[task]}").parallel_env(continuous_actions=continuous)
    env = TASKS[task](continuous_actions=continuous)
    assert env.possible_agents == reference.possible_agents
    for name in env.possible_agents:
        assert env.action_spaces[name] == reference.action_space(name)
        assert env.observation_spaces[name] == reference.observation_space(name)
        assert env.shared_observation_spaces[name] == reference.state_space


@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("task", sorted(TASKS))
def test_random_actions(task, continuous):
    references, env, states = pair(task, 25, continuous)
    rng = np.random.default_rng(0)
    worst, _ = run(references, env, states, lambda: random_actions(env, rng))
    assert worst <= TOLERANCE


@pytest.mark.parametrize(("n", "local_ratio"), [(2, 1.0), (3, 0.5), (5, 0.2)])
@pytest.mark.parametrize("continuous", [False, True])
def test_agents_driven_into_each_other(continuous, n, local_ratio):
    references, env, states = pair("simple_spread", 25, continuous, crowded=True, N=n, local_ratio=local_ratio)
    worst, bumps = run(references, env, states, lambda: towards_middle(env, references))
    assert worst <= TOLERANCE
    assert bumps >= 25 * 4  # enough contacts for the comparison to mean something


def test_float32_physics_would_not_do():
    """Why physics is float64: contacts amplify rounding until it shows."""
    _references, env, _ = pair("simple_spread", 25, False, crowded=True)
    rough = TASKS["simple_spread"](25, physics_dtype=torch.float32)
    rough.reset()
    now = env.get_state()
    rough.place(positions=now["positions"], landmarks=now["landmarks"])
    for _ in range(env.max_cycles - 1):
        actions = {name: torch.ones(25, 1, dtype=torch.int64) for name in env.possible_agents}
        for i, name in enumerate(env.possible_agents):
            x = env.get_state()["positions"][:, i, 0]
            actions[name] = torch.where(x > 0, 1, 2)[:, None]
        env.step(actions)
        rough.step(actions)
    assert (env.state() - rough.state()).abs().max() > TOLERANCE


@pytest.mark.parametrize("local_ratio", [0.0, 0.7, 1.0])
def test_local_ratio_of_reference(local_ratio):
    references, env, states = pair("simple_reference", 3, False, local_ratio=local_ratio, max_cycles=10)
    rng = np.random.default_rng(0)
    worst, _ = run(references, env, states, lambda: random_actions(env, rng))
    assert worst <= TOLERANCE


def test_one_agent_alone():
    references, env, states = pair("simple_spread", 3, False, N=1)
    rng = np.random.default_rng(0)
    worst, _ = run(references, env, states, lambda: random_actions(env, rng))
    assert worst <= TOLERANCE


TEAMS = [{}, {"num_good": 3, "num_adversaries": 2, "num_obstacles": 4}, {"num_good": 2, "num_obstacles": 0}]


@pytest.mark.parametrize("kwargs", TEAMS)
@pytest.mark.parametrize("continuous", [False, True])
def test_tag_with_everybody_driven_into_each_other(continuous, kwargs):
    references, env, states = pair("simple_tag", 25, continuous, crowded=True, **kwargs)
    worst, bumps = run(references, env, states, lambda: towards_middle(env, references))
    assert worst <= TOLERANCE
    assert bumps >= 25 * 25  # a contact a step


@pytest.mark.parametrize("kwargs", TEAMS)
def test_tag_with_random_actions(kwargs):
    references, env, states = pair("simple_tag", 25, True, **kwargs)
    rng = np.random.default_rng(0)
    worst, _ = run(references, env, states, lambda: random_actions(env, rng))
    assert worst <= TOLERANCE


@pytest.mark.parametrize("continuous", [False, True])
def test_tag_with_everybody_leaving_at_full_speed(continuous):
    """Agents reach their greatest speed, and the good ones all three parts of the penalty."""
    references, env, states = pair("simple_tag", 8, continuous, num_good=2, num_obstacles=0)

    def outwards():
        pushes = {}
        for i, name in enumerate(env.possible_agents):
            way = [1, 2, 3, 4, 2][i]
            one_hot = np.zeros((8, 5), dtype=np.float32)
            one_hot[:, way] = 1
            pushes[name] = one_hot if continuous else np.full((8, 1), way)
        return pushes

    worst, _ = run(references, env, states, outwards)
    assert worst <= TOLERANCE
    agents = [agent for reference in references for agent in reference.unwrapped.world.agents]
    assert [np.linalg.norm(a.state.p_vel) for a in agents] == pytest.approx([a.max_speed for a in agents])
    assert max(abs(a.state.p_pos).max() for a in agents if not a.adversary) > 2.2  # exp(2 * 2.2 - 2) is more than 10
