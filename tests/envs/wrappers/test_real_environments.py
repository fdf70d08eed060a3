"""PettingZoo's own environments, wrapped in two copies and compared with the bare ones stepped by hand."""

from __future__ import annotations

import importlib
import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from gymnasium import spaces
from pettingzoo.utils import BaseWrapper

from coterie.envs.wrappers import wrap_env

SEED = 11


def load(path):
    """Import an environment's module, or skip the test where what it needs is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Box2D's extension ends the process where its warnings are errors
            return importlib.import_module(f"pettingzoo.{path}")
    except ImportError as error:
        pytest.skip(f"{path}: {error}")


def same(tensor, value, space=None):
    """Whether a row is an observation (beside which there may be a mask) of ``space``, or a state."""
    value = value["observation"] if isinstance(value, dict) else value
    row = value if space is None else spaces.utils.flatten(space, value)
    return np.array_equal(tensor.numpy(), np.asarray(row, np.float32).reshape(-1))


def draw(env, infos, rng):
    """Return random actions that the masks allow, for every agent, whether it is to act or not."""
    actions = {}
    for name, space in env.action_spaces.items():
        if isinstance(space, spaces.Box):
            low, high = np.float32(space.low), np.float32(space.high)
            actions[name] = torch.from_numpy(rng.uniform(low, high, (env.num_envs, *space.shape)).astype(np.float32))
            continue
        masks = infos["action_masks"][name] if "action_masks" in infos else torch.ones(env.num_envs, int(space.n))
        chosen = [[rng.choice(row.nonzero().numpy()[:, 0])] for row in masks]
        actions[name] = torch.tensor(np.array(chosen))
    return actions


def taken(action, space):
    return action.numpy() if isinstance(space, spaces.Box) else action.item()


def play_in_parallel(make, steps, states_every=1):
    """Play random actions, compare every number with the bare environments, and return what was met on the way."""
    env = wrap_env(make, num_envs=2, seed=SEED)
    names = env.possible_agents
    bare = [make() for _ in range(env.num_envs)]
    looks = [b.reset(seed=copy.seed)[0] for b, copy in zip(bare, env._copies, strict=True)]
    states, infos = env.reset()
    rng = np.random.default_rng(SEED)
    met = Counter()
    assert "action_masks" not in infos
    assert "waiting_masks" not in infos
    for step in range(steps + 1):
        shared = env.state() if step % states_every == 0 else None
        for i, b in enumerate(bare):
            active = infos.get("active_masks")
            for name in names:
                acts = active is None or active[name][i].item()
                assert acts == (name in b.agents)
                met["absent"] += not acts
                if acts:
                    assert same(states[name][i], looks[i][name], env.observation_spaces[name])
            assert shared is None or same(shared[i], b.state())
        if step == steps:
            break
        actions = draw(env, infos, rng)
        states, rewards, terminated, truncated, infos = env.step(actions)
        for i, b in enumerate(bare):
            before = list(b.agents)
            result = b.step({n: taken(actions[n][i], env.action_spaces[n]) for n in before})
            looks[i], earned, terms, truncs, _ = result
            over = not b.agents
            met["over"] += over
            for name in names:
                took_part = name in before
                assert rewards[name][i].item() == (np.float32(earned[name]) if took_part else 0.0)
                assert terminated[name][i].item() == (bool(terms[name]) if took_part else True)
                assert truncated[name][i].item() == (bool(truncs[name]) if took_part else False)
                met["rewards"] += took_part and earned[name] != 0
                last = infos["final_states"] if over else states
                if took_part:
                    assert same(
                        last[name][i], looks[i][name], env.observation_spaces[name]
                    )  # also of those who died in this step
                    met["died"] += not over and name not in b.agents
                else:
                    assert not last[name][i].any()
            if over:
                assert same(infos["final_shared_states"][i], b.state())
                looks[i] = b.reset()[0]
    for e in (env, *bare):
        e.close()
    return met


def play_in_turn(make, steps):
    """Play random legal actions and compare with the AEC environments played by hand, the way their loop is meant.

    ``last()`` tells an agent, at its turn, what it earned since its own last action; the wrapper tells it step by step.
    """
    env = wrap_env(make, num_envs=2, seed=SEED)
    names = env.possible_agents
    bare = [make() for _ in range(env.num_envs)]
    for b, copy in zip(bare, env._copies, strict=True):
        b.reset(seed=copy.seed)
    states, infos = env.reset()
    rng = np.random.default_rng(SEED)
    met = Counter()
    owed = [dict.fromkeys(names, 0.0) for _ in bare]  # earned since the agent's own last action
    for _ in range(steps):
        for i, b in enumerate(bare):
            turn = b.agent_selection
            look, reward, terminated, truncated, info = b.last()
            assert not terminated
            assert not truncated
            assert owed[i][turn] == pytest.approx(reward, abs=1e-6)
            owed[i][turn] = 0.0
            mask = look["action_mask"] if isinstance(look, dict) else info.get("action_mask")
            for name in names:
                inside = name in b.agents
                assert infos["active_masks"][name][i].item() == (name == turn)
                assert infos["waiting_masks"][name][i].item() == (inside and name != turn)
                if inside:
                    assert same(states[name][i], b.observe(name), env.observation_spaces[name])
                met["absent"] += not inside
                if "action_masks" in infos:
                    shown = infos["action_masks"][name][i].numpy()
                    assert np.array_equal(shown, mask) if name == turn else shown.all()
                    met["masked"] += name == turn and not all(mask)
        actions = draw(env, infos, rng)
        states, rewards, terminated, truncated, infos = env.step(actions)
        for i, b in enumerate(bare):
            before = list(b.agents)
            b.step(actions[b.agent_selection][i].item())
            lasts = {n: b.observe(n) for n in b.agents}
            for name in names:
                owed[i][name] += rewards[name][i].item()
            out = {n for n in before if b.terminations[n] or b.truncations[n]}
            over = out == set(before)
            met["over"] += over
            for name in names:
                inside = name in before
                assert terminated[name][i].item() == (bool(b.terminations[name]) if inside else True)
                assert truncated[name][i].item() == (bool(b.truncations[name]) if inside else False)
                if name in out:
                    last = (infos["final_states"] if over else states)[name][i]
                    assert same(last, lasts[name], env.observation_spaces[name])
                    met["died"] += not over
            while b.agents and (b.terminations[b.agent_selection] or b.truncations[b.agent_selection]):
                name = b.agent_selection
                assert owed[i][name] == pytest.approx(b.last()[1], abs=1e-6)
                met["rewards"] += owed[i][name] != 0
                owed[i][name] = 0.0
                b.step(None)
            if over:
                assert not b.agents
                b.reset()
    for e in (env, *bare):
        e.close()
    return met


def test_knights_archers_zombies():
    module = load("butterfly.knights_archers_zombies.knights_archers_zombies")
    met = play_in_parallel(lambda: module.parallel_env(spawn_delay=4, line_death=True, max_cycles=150), 400)
    assert met["died"] > 3
    assert met["absent"] > 50
    assert met["over"] > 3
    assert met["rewards"] > 3


def test_pursuit():
    module = load("sisl.pursuit.pursuit")
    met = play_in_parallel(lambda: module.parallel_env(max_cycles=90, n_pursuers=4, n_evaders=6), 200)
    assert met["over"] == 4
    assert met["rewards"] > 100
    assert met["absent"] == 0


@pytest.mark.parametrize("continuous", [True, False])
def test_pistonball(continuous):
    module = load("butterfly.pistonball.pistonball")
    met = play_in_parallel(lambda: module.parallel_env(n_pistons=4, max_cycles=15, continuous=continuous), 20, 10)
    assert met["over"] >= 2
    assert met["rewards"] > 20


@pytest.mark.slow
@pytest.mark.parametrize("continuous", [True, False])
def test_pistonball_for_long(continuous):
    module = load("butterfly.pistonball.pistonball")
    met = play_in_parallel(lambda: module.parallel_env(max_cycles=80, continuous=continuous), 200, 20)
    assert met["over"] >= 4


@pytest.mark.slow
def test_cooperative_pong():
    module = load("butterfly.cooperative_pong.cooperative_pong")
    assert play_in_parallel(lambda: module.parallel_env(render_mode="rgb_array"), 300, 20)["over"] >= 1


@pytest.mark.parametrize(
    ("path", "steps", "overs"),
    [
        ("tictactoe.tictactoe", 200, 40),
        ("connect_four.connect_four", 200, 10),
        ("rlcard_envs.leduc_holdem", 200, 60),
        ("rlcard_envs.texas_holdem", 200, 60),
    ],
)
def test_board_and_card_games(path, steps, overs):
    module = load(f"classic.{path}")
    met = play_in_turn(module.env, steps)
    assert met["over"] >= overs
    assert met["rewards"] >= overs
    assert met["masked"] > 20
    assert met["died"] == 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*precision lowered")
@pytest.mark.parametrize(
    "path", ["rlcard_envs.texas_holdem_no_limit", "rps.rps", "chess.chess", "go.go", "connect_four.connect_four"]
)
def test_other_games(path):
    module = load(f"classic.{path}")
    make = (lambda: module.env(board_size=5)) if path == "go.go" else module.env
    assert play_in_turn(make, 700)["over"] >= 2


@pytest.mark.slow
def test_hanabi():
    module = load("classic.hanabi.hanabi")

    class Reseeded(BaseWrapper):
        """Every game after the first is the same: without a seed the next one would not follow from the last."""

        def reset(self, seed=None, options=None):
            super().reset(seed=3 if seed is None else seed)

    met = play_in_turn(lambda: Reseeded(module.env()), 300)
    assert met["over"] > 10
    assert met["rewards"] > 10


def test_agents_that_die_between_turns():
    # the same environment as above, one agent's turn at a time
    module = load("butterfly.knights_archers_zombies.knights_archers_zombies")
    met = play_in_turn(lambda: module.env(spawn_delay=4, line_death=True, max_cycles=100), 600)
    assert met["died"] > 1
    assert met["absent"] > 50
    assert met["over"] > 1
