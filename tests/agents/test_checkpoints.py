from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from coterie.agents import IPPO, MAPPO, MultiAgent
from coterie.agents.checkpoints import CheckpointError, check_states, read_checkpoint, write_checkpoint
from coterie.memories import RandomMemory
from coterie.models import CategoricalPolicy, GaussianPolicy, Model, Value
from coterie.preprocessors import RunningStandardScaler, ValueNorm
from coterie.schedulers import KLAdaptiveLR

ENVS, ROLLOUTS = 3, 4
OFF: Any = {"write_interval": 0, "checkpoint_interval": 0}
CFG: dict[str, Any] = {
    "rollouts": ROLLOUTS,
    "learning_epochs": 2,
    "experiment": OFF,
    "state_preprocessor": RunningStandardScaler,
    "value_preprocessor": ValueNorm,
    "learning_rate_scheduler": KLAdaptiveLR,
}


def space(size: int) -> spaces.Box:
    return spaces.Box(-np.inf, np.inf, (size,))


def build(
    names: str = "ab",
    shared: bool = False,
    memories: bool = True,
    algorithm: type[MultiAgent] = MAPPO,
    observations: int = 4,
    hidden: int = 8,
    **cfg: Any,
) -> MultiAgent:
    actions = spaces.Discrete(3)

    def roles() -> dict[str, Model]:
        return {
            "policy": CategoricalPolicy(space(observations), actions, hidden=(hidden,)),
            "value": Value(space(6 if algorithm is MAPPO else observations), actions, hidden=(hidden,)),
        }

    common = roles()
    models = {uid: common if shared else roles() for uid in names}
    settings = {**CFG, **cfg}
    if algorithm is MAPPO and settings["state_preprocessor"] is not None:
        settings["shared_state_preprocessor"] = RunningStandardScaler
    own = {uid: RandomMemory(ROLLOUTS, ENVS) for uid in names} if memories else None
    agent = algorithm(list(names), models, own, cfg=settings)
    agent.init({"timesteps": 100})
    agent.set_running_mode("train")
    return agent


def play(agent: MultiAgent, updates: int, seed: int) -> None:
    """Train on random numbers that depend on the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)

    def draw(width: int) -> Tensor:
        return torch.randn(ENVS, width, generator=generator) * 3 + 1

    names = agent.possible_agents
    states, shared = {uid: draw(4) for uid in names}, draw(6)
    for t in range(updates * ROLLOUTS):
        actions, _, _ = agent.act(states, t, 100)
        following, shared_next = {uid: draw(4) for uid in names}, draw(6)
        rewards = {uid: draw(1) for uid in names}
        ends = torch.rand(ENVS, 1, generator=generator) < 0.2
        terminated, truncated = dict.fromkeys(names, ends), dict.fromkeys(names, torch.zeros_like(ends))
        infos = {"shared_states": shared, "shared_next_states": shared_next}
        agent.record_transition(states, actions, rewards, following, terminated, truncated, infos, t, 100)
        agent.post_interaction(t, 100)
        states, shared = following, shared_next


def everything(agent: MultiAgent) -> dict[str, Any]:
    optimizers = [x.optimizers.state_dict() for x in agent.learners if x.optimizers is not None]
    return copy.deepcopy(
        {
            "modules": {name: module.state_dict() for name, module in agent.checkpoint_modules().items()},
            "optimizers": optimizers,
        }
    )


def assert_same(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=0)


VARIANTS: dict[str, dict[str, Any]] = {
    "distinct": {},
    "shared": {"shared": True},
    "ippo": {"algorithm": IPPO},
    "ippo, shared": {"algorithm": IPPO, "shared": True},
    "pair of rates": {"learning_rate": (1e-3, 1e-4)},
    "pair of rates for one": {"learning_rate": {"a": 1e-3, "b": (1e-2, 1e-4)}},
    "two learners": {"learning_epochs": {"a": 1, "b": 2}},
    "bare": {"state_preprocessor": None, "value_preprocessor": None, "learning_rate_scheduler": None},
    "scheduler of functions": {
        "learning_rate_scheduler": torch.optim.lr_scheduler.LambdaLR,
        "learning_rate_scheduler_kwargs": {"lr_lambda": lambda epoch: 0.9**epoch},
    },
}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_a_resumed_agent_goes_on_as_if_nothing_had_happened(tmp_path: Path, variant: dict[str, Any]) -> None:
    agent = build(**variant)
    play(agent, 3, seed=1)
    agent.save(tmp_path / "agent.pt")
    saved = everything(agent)
    torch.manual_seed(99)
    resumed = build(**variant)
    resumed.load(tmp_path / "agent.pt")
    assert_same(everything(resumed), saved)
    for one in (agent, resumed):
        play(one, 3, seed=2)
    assert_same(everything(resumed), everything(agent))
    assert not torch.equal(next(iter(saved["modules"].values()))["net.0.weight"], agent.learners[0].storage.data[0])


def test_a_shared_model_is_stored_once(tmp_path: Path) -> None:
    build(shared=True).save(tmp_path / "shared.pt")
    contents = read_checkpoint(tmp_path / "shared.pt", torch.device("cpu"))
    assert sorted(name for name in contents["modules"] if name.startswith("models/")) == [
        "models/a/policy",
        "models/a/value",
    ]
    build().save(tmp_path / "distinct.pt")
    contents = read_checkpoint(tmp_path / "distinct.pt", torch.device("cpu"))
    assert len([name for name in contents["modules"] if name.startswith("models/")]) == 4


def test_loading_reaches_the_models_that_the_user_holds(tmp_path: Path) -> None:
    first, second = build(), build()
    first.save(tmp_path / "agent.pt")
    policy = second.models["b"]["policy"]
    second.load(tmp_path / "agent.pt")
    assert_same(policy.state_dict(), first.models["b"]["policy"].state_dict())


@pytest.mark.parametrize("shared", [False, True])
def test_an_agent_without_memories_loads_what_it_needs_to_act(tmp_path: Path, shared: bool) -> None:
    trained = build(shared=shared)
    play(trained, 2, seed=1)
    trained.save(tmp_path / "agent.pt")
    player = build(shared=shared, memories=False)
    player.load(tmp_path / "agent.pt")
    states = {uid: torch.randn(ENVS, 4) * 10 for uid in "ab"}
    outputs = []
    for agent in (trained, player):
        torch.manual_seed(0)
        outputs.append({uid: x.clone() for uid, x in agent.act(states, 0, 1)[1].items()})
    assert_same(outputs[0], outputs[1])


def test_what_an_agent_without_memories_saves_can_be_trained_on(tmp_path: Path) -> None:
    player = build(memories=False)
    player.save(tmp_path / "agent.pt")
    agent = build()
    agent.load(tmp_path / "agent.pt")
    assert_same(agent.models["a"]["policy"].state_dict(), player.models["a"]["policy"].state_dict())
    play(agent, 1, seed=1)


# ---- learning rates --------------------------------------------------------------------------------------------------

LAMBDA: dict[str, Any] = {
    "learning_rate_scheduler": torch.optim.lr_scheduler.LambdaLR,
    "learning_rate_scheduler_kwargs": {"lr_lambda": lambda epoch: 0.9**epoch},
}
FIXED: dict[str, Any] = {"learning_rate_scheduler": None}


def rates(agent: MultiAgent) -> list[list[float]]:
    """Of each parameter set, of its parts."""
    sets = [adam for x in agent.learners if x.optimizers is not None for adam in x.optimizers.optimizers]
    return [[group["lr"] for group in adam.param_groups] for adam in sets]


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        (1e-3, 1e-2, [[1e-2], [1e-2]]),
        ((1e-3, 1e-4), [1e-2, 3e-3], [[1e-2, 3e-3], [1e-2, 3e-3]]),
        ({"a": 1e-3, "b": 1e-4}, {"a": 1e-3, "b": 1e-2}, [[1e-3], [1e-2]]),
        ({"a": 1e-3, "b": (1e-3, 1e-4)}, {"a": 2e-3, "b": (3e-3, 4e-3)}, [[2e-3, 2e-3], [3e-3, 4e-3]]),
    ],
    ids=["number", "pair", "by agent", "pair for one"],
)
@pytest.mark.parametrize("trained", [False, True])
def test_a_fixed_learning_rate_is_the_configured_one(
    tmp_path: Path, before: Any, now: Any, expected: list[list[float]], trained: bool
) -> None:
    agent = build(**FIXED, learning_rate=before)
    play(agent, 2, seed=1)
    agent.save(tmp_path / "agent.pt")
    resumed = build(**FIXED, learning_rate=now)
    if trained:
        play(resumed, 1, seed=3)
    resumed.load(tmp_path / "agent.pt")
    assert rates(resumed) == expected
    # the first agent goes on with other rates, its Adams' moments as they were
    for learner in agent.learners:
        assert learner.optimizers is not None
        for adam, parts in zip(learner.optimizers.optimizers, expected, strict=True):
            for group, rate in zip(adam.param_groups, parts, strict=True):
                group["lr"] = rate
    for one in (agent, resumed):
        play(one, 2, seed=2)
    assert_same(everything(resumed), everything(agent))


@pytest.mark.parametrize("variant", [{}, LAMBDA], ids=["adaptive", "of functions"])
def test_a_scheduled_learning_rate_goes_on_where_it_was(tmp_path: Path, variant: dict[str, Any]) -> None:
    agent = build(**variant, learning_rate=1e-3)
    play(agent, 2, seed=1)
    agent.save(tmp_path / "agent.pt")
    reached = rates(agent)
    assert reached != [[1e-3], [1e-3]]
    resumed = build(**variant, learning_rate=5e-3)
    resumed.load(tmp_path / "agent.pt")
    assert rates(resumed) == reached


@pytest.mark.parametrize(("file", "here"), [(LAMBDA, FIXED), (FIXED, LAMBDA)], ids=["the file", "here"])
def test_a_scheduler_on_one_side_alone_leaves_the_configured_rate(
    tmp_path: Path, file: dict[str, Any], here: dict[str, Any]
) -> None:
    agent = build(**file, learning_rate=1e-3)
    play(agent, 2, seed=1)
    agent.save(tmp_path / "agent.pt")
    resumed = build(**here, learning_rate=5e-3)
    resumed.load(tmp_path / "agent.pt")
    assert rates(resumed) == [[5e-3], [5e-3]]
    play(resumed, 1, seed=2)
    # two epochs of an update: 0.9^2 * 5e-3 with the scheduler, which begins here
    assert rates(resumed) == [pytest.approx([5e-3 if here is FIXED else 4.05e-3])] * 2


def test_a_schedule_follows_the_time_steps_of_its_run(tmp_path: Path) -> None:
    agent = build(**FIXED, learning_rate=lambda timestep, timesteps: 1e-3)
    play(agent, 2, seed=1)
    agent.save(tmp_path / "agent.pt")
    resumed = build(**FIXED, learning_rate=lambda timestep, timesteps: 1e-4 * (timestep + 1))
    resumed.load(tmp_path / "agent.pt")
    play(resumed, 1, seed=2)  # one update, after step 3
    assert rates(resumed) == [pytest.approx([4e-4])] * 2


@pytest.mark.parametrize(("scheduled", "expected"), [(False, 0.2), (True, 0.5)])
def test_a_fixed_standard_deviation_is_the_configured_one_too(tmp_path: Path, scheduled: bool, expected: float) -> None:
    def gaussian(std: Any) -> MultiAgent:
        box = spaces.Box(-1.0, 1.0, (2,))
        models = {uid: {"policy": GaussianPolicy(space(4), box), "value": Value(space(4), box)} for uid in "ab"}
        memories = {uid: RandomMemory(ROLLOUTS, ENVS) for uid in "ab"}
        return IPPO(["a", "b"], models, memories, cfg={"rollouts": ROLLOUTS, "experiment": OFF, "exploration_std": std})

    gaussian((lambda timestep, timesteps: 0.5) if scheduled else 0.5).save(tmp_path / "agent.pt")
    resumed = gaussian((lambda timestep, timesteps: 0.2) if scheduled else 0.2)
    resumed.load(tmp_path / "agent.pt")
    # a schedule's changes when a rollout begins
    assert [networks.exploration["std"] for networks in resumed.networks.values()] == [expected]  # type: ignore[attr-defined]


# ---- what does not fit ----------------------------------------------------------------------------------------------


def test_other_agents_are_refused(tmp_path: Path) -> None:
    build("ab").save(tmp_path / "agent.pt")
    with pytest.raises(CheckpointError, match=r"holds the agents \['a', 'b'\], this is \['a', 'c'\]"):
        build("ac").load(tmp_path / "agent.pt")


@pytest.mark.parametrize(
    ("variant", "messages"),
    [
        (
            {"observations": 5},
            ["models/a/policy", "models/b/policy", "net.0.weight", "[8, 5]", "[8, 4]", "running_mean"],
        ),
        ({"hidden": 9}, ["models/a/policy", "models/b/value", "net.0.bias", "[9]", "[8]"]),
        ({"shared": True}, ["module 'models/b/policy' is unknown here", "module 'models/b/value' is unknown here"]),
        ({"value_preprocessor": None}, ["unknown here", "value_preprocessor/a"]),
        (
            {"learning_rate": (1e-3, 1e-3)},
            ["optimizers of 'a', set 0: expected 2 learning rates, the file has 1", "set 1"],
        ),
        (
            {
                "learning_rate_scheduler": torch.optim.lr_scheduler.StepLR,
                "learning_rate_scheduler_kwargs": {"step_size": 1},
            },
            ["set 0: expected a scheduler with", "kl_threshold"],
        ),
        ({"learning_epochs": {"a": 1, "b": 2}}, ["optimizers of 'a', expected 1 sets, the file has 2"]),
    ],
    ids=["observations", "hidden", "shared", "normaliser", "rates", "scheduler", "learners"],
)
def test_every_difference_is_listed_and_nothing_is_loaded(
    tmp_path: Path, variant: dict[str, Any], messages: list[str]
) -> None:
    trained = build()
    play(trained, 1, seed=1)
    trained.save(tmp_path / "agent.pt")
    torch.manual_seed(7)
    other = build(**variant)
    before = everything(other)
    with pytest.raises(CheckpointError) as error:
        other.load(tmp_path / "agent.pt")
    for message in messages:
        assert message in str(error.value)
    assert_same(everything(other), before)


def test_states_are_compared_by_name_and_shape() -> None:
    modules = {"x": torch.nn.Linear(2, 3), "y": torch.nn.Linear(1, 1)}
    states = {"x": {"weight": torch.zeros(3, 2), "extra": torch.zeros(1)}, "z": {}}
    assert check_states("module", modules, states) == [
        "module 'y' is missing",
        "module 'z' is unknown here",
        "module 'x', 'bias': expected [3], the file has nothing",
        "module 'x', 'extra': expected nothing, the file has [1]",
    ]


# ---- files ----------------------------------------------------------------------------------------------------------


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def test_loading_executes_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    torch.save({"format": 1, "agents": ["a", "b"], "modules": Malicious(marker)}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match="cannot read"):
        build().load(tmp_path / "evil.pt")
    assert not marker.exists()


def test_missing_and_damaged_files_are_told_apart(tmp_path: Path) -> None:
    agent = build()
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        agent.load(tmp_path / "none.pt")
    agent.save(tmp_path / "agent.pt")
    whole = (tmp_path / "agent.pt").read_bytes()
    for damaged in (b"", b"nonsense", whole[: len(whole) // 2]):
        (tmp_path / "damaged.pt").write_bytes(damaged)
        with pytest.raises(CheckpointError, match="cannot read"):
            agent.load(tmp_path / "damaged.pt")
    for stranger in ({"weights": torch.zeros(1)}, torch.zeros(1), {"format": 1}):
        torch.save(stranger, tmp_path / "stranger.pt")
        with pytest.raises(CheckpointError, match="is not a checkpoint"):
            agent.load(tmp_path / "stranger.pt")


def test_folders_are_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "agent.pt"
    build().save(path)
    assert path.is_file()


@pytest.mark.parametrize("broken", ["torch.save", "os.replace", "os.fsync"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str, error: BaseException
) -> None:
    path = tmp_path / "agent.pt"
    write_checkpoint(path, {"format": 1, "x": torch.ones(3)})
    before = path.read_bytes()

    def fail(*args: Any, **kwargs: Any) -> None:
        if broken == "torch.save":
            args[1].write(b"half")
        raise error

    monkeypatch.setattr(broken, fail)
    with pytest.raises(type(error)):
        write_checkpoint(path, {"format": 1, "x": torch.zeros(3)})
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["agent.pt"]
    assert torch.equal(read_checkpoint(path, torch.device("cpu"))["x"], torch.ones(3))


def test_a_write_takes_the_old_ones_place(tmp_path: Path) -> None:
    path = tmp_path / "agent.pt"
    for value in (1.0, 2.0):
        write_checkpoint(path, {"format": 1, "x": torch.full((3,), value)})
    assert float(read_checkpoint(path, torch.device("cpu"))["x"][0]) == 2.0
    assert [file.name for file in tmp_path.iterdir()] == ["agent.pt"]


# ---- when they are written ------------------------------------------------------------------------------------------


def written(**experiment: Any) -> list[str]:
    agent = build(experiment={"experiment_name": "run", "write_interval": 0, **experiment})
    play(agent, 2, seed=1)
    folder = Path("runs/run/checkpoints")
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


@pytest.mark.parametrize(("interval", "names"), [(3, ["agent_3.pt", "agent_6.pt"]), (0, []), ("auto", [])])
def test_checkpoints_are_written_at_their_interval(interval: Any, names: list[str]) -> None:
    # eight steps of a hundred; "auto" is every tenth
    assert written(checkpoint_interval=interval) == names


def test_models_may_be_stored_separately() -> None:
    names = [f"{uid}_{role}_8.pt" for uid in "ab" for role in ("policy", "value")]
    assert written(checkpoint_interval=8, store_separately=True) == names
    folder = Path("runs/run/checkpoints")
    for name in names:
        uid, role, _ = name.split("_")
        model = build(memories=False).models[uid][role]
        before = copy.deepcopy(model.state_dict())
        model.load(folder / name)
        assert not torch.equal(model.state_dict()["net.0.weight"], before["net.0.weight"])
        # a model's own numbers and no other's
        model.save("alone.pt")
        assert (folder / name).stat().st_size < Path("alone.pt").stat().st_size + 200


def test_the_best_agent_is_kept() -> None:
    agent = build(experiment={"experiment_name": "run", "write_interval": 0, "checkpoint_interval": 50})
    results = {"std": 0.0, "agents": {"a": 0.0, "b": 0.0}}
    agent.record_evaluation({"mean": 1.0, **results}, 10, 100)
    best = copy.deepcopy(agent.models["a"]["policy"].state_dict())
    play(agent, 2, seed=1)
    agent.record_evaluation({"mean": 0.5, **results}, 20, 100)
    resumed = build()
    resumed.load(agent.best_checkpoint)
    assert_same(resumed.models["a"]["policy"].state_dict(), best)
    # a resumed run knows what it has to beat
    resumed.experiment_dir, resumed.records.checkpoint_interval = Path("other"), 1
    resumed.record_evaluation({"mean": 0.9, **results}, 30, 100)
    assert not resumed.best_checkpoint.exists()
    resumed.record_evaluation({"mean": 1.1, **results}, 40, 100)
    assert resumed.best_checkpoint.exists()
