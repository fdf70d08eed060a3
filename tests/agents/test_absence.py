"""Whatever absent agents observe, do and earn changes nothing, to the last bit; what present ones do changes something."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from coterie.preprocessors import PopArt, RunningStandardScaler, ValueNorm
from tests.agents.ppo_memory_models import remembering, seeing
from tests.agents.ppo_reference_time import ABSENT, ACTIVE
from tests.agents.ppo_runs import Case, Run, T
from tests.agents.ppo_teams import E, mixed

CRITICS = ["own", "state", "observations", "agent", "both"]
JUNK = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 0.0, 1.0])


def make_case(sees: str, share: bool, memory: str | None) -> Case:
    models = seeing(sees, share) if memory is None else remembering(memory, memory, share, sees=sees)
    cfg: dict[str, Any] = {"state_preprocessor": RunningStandardScaler, "advantage_normalization": "group"}
    cfg["value_preprocessor"] = PopArt if share else ValueNorm
    cfg["huber_delta"] = 0.5
    if sees != "own":
        cfg |= {"critic_input": sees, "shared_state_preprocessor": RunningStandardScaler}
    return Case("absence", mixed, models, cfg, style="leaves", masked=True)


def junk(what: str, tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Anything at all, of the same shape and kind."""
    if tensor.dtype == torch.bool:
        forbidden = what == "action_masks" and bool(torch.rand((), generator=generator) < 0.5)
        return torch.zeros_like(tensor) if forbidden else torch.rand(tensor.shape, generator=generator) < 0.5
    if not tensor.is_floating_point():
        return torch.randint(-(2**40), 2**40, tensor.shape, generator=generator)
    return JUNK[torch.randint(len(JUNK), tensor.shape, generator=generator)]


class Spoiler:
    """Changes what the library is told of some agents.

    :param whom: a status: of whom
    :param what: of what, None for everything
    """

    def __init__(self, run: Run, whom: str, what: str | None = None) -> None:
        self.run, self.whom, self.what = run, whom, what
        self.generator = torch.Generator().manual_seed(5)
        self.changed: set[str] = set()

    def __call__(self, what: str, uid: str, k: int, tensor: Tensor) -> Tensor:
        if self.what not in (None, what):
            return tensor
        plan = self.run.plan
        where = plan.mask(self.whom, uid, k + 1 if what == "next_states" else k)
        if self.whom == ABSENT:
            new = junk(what, tensor, self.generator)
        elif what == "actions" and not tensor.is_floating_point():
            new = self._another_choice(uid, tensor)
        else:
            new = other(what, tensor)
        if what == "terminated":  # an episode is over when all agents are said to be done
            new = new | plan.over(k)
        if what == "final_states" and self.whom == ABSENT:  # who dies in the last step is not there after it
            where = where | torch.tensor(plan.terminated[uid][k]).unsqueeze(-1)
        if bool(where.any()):
            self.changed.add(what)
        return torch.where(where, new, tensor)

    def _another_choice(self, uid: str, actions: Tensor) -> Tensor:
        """Other actions than those ``[E, k]`` taken, where the masks allow any."""
        space, mask = self.run.team.action_spaces[uid], self.run.masks.choices(uid)
        assert mask is not None
        sizes = [int(space.n)] if isinstance(space, spaces.Discrete) else space.nvec.tolist()
        parts = zip(mask.split(sizes, dim=1), actions.split(1, dim=1), strict=True)
        others = [allowed.scatter(1, taken, False) for allowed, taken in parts]
        best = torch.cat([other.int().argmax(dim=1, keepdim=True) for other in others], dim=1)
        return torch.where(torch.cat([other.any(dim=1, keepdim=True) for other in others], dim=1), best, actions)


def other(what: str, tensor: Tensor) -> Tensor:
    """Something else that is possible."""
    if what == "action_masks":
        return torch.ones_like(tensor)
    return tensor + 0.1 if tensor.is_floating_point() else 1 - tensor.clamp(max=1)


def snapshot(
    case: Case, algorithm: str, folder: Path, whom: str | None = None, what: str | None = None
) -> tuple[dict[str, Tensor], set[str]]:
    """Two updates: parameters, statistics, metrics, all that is stored, and the last actions of those that act."""
    kept: dict[str, Tensor] = {}
    with pytest.MonkeyPatch.context() as patch:
        experiment = {"directory": str(folder), "experiment_name": f"{whom}", "write_interval": T}
        case.cfg["experiment"] = {**experiment, "checkpoint_interval": 0}
        run = Run(case, algorithm, patch, seed=1)  # where somebody is absent, and somebody acts, after each rollout
        statuses = {s for rows in run.plan.status.values() for row in rows for s in row}
        assert statuses == {"active", "waiting", "absent"}
        spoiler = None if whom is None else Spoiler(run, whom, what)
        if spoiler is not None:
            run.spoil = spoiler
        track = run.agent.track_data
        counter = itertools.count()

        def listening(tag: str, value: Any) -> None:
            if not tag.startswith("Performance"):
                kept[f"metric {next(counter)} {tag}"] = torch.as_tensor(value).detach().clone()
            track(tag, value)

        patch.setattr(run.agent, "track_data", listening)
        torch.manual_seed(1)
        for k in range(2 * T):
            run.step()
            if (k + 1) % T == 0:
                for uid, memory in (run.agent.memories or {}).items():
                    for name in memory.get_tensor_names():
                        stored = memory.get_tensor_by_name(name, keepdim=True)
                        kept[f"stored {k} {uid} {name}"] = stored.clone()
        for name, module in run.agent.checkpoint_modules().items():
            for key, tensor in module.state_dict().items():
                kept[f"{name} {key}"] = tensor.clone()
        told = run.told("states", run.timestep, run.states)
        actions, log_prob, _ = run.agent.act(told, run.timestep, 2 * T, run.infos(run.masks, run.timestep))
        for uid in run.team.possible_agents:
            acts = run.plan.mask(ACTIVE, uid, run.timestep)
            kept[f"acted {uid}"] = torch.where(acts, actions[uid], 0)
            kept[f"log_prob {uid}"] = torch.where(acts, log_prob[uid], 0)
        assert sum(name.startswith("metric") for name in kept) > 10
        return kept, set() if spoiler is None else spoiler.changed


def differing(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]


def named(sees: str, share: bool, memory: str | None) -> Any:
    algorithm = "ippo" if sees == "own" else "mappo"
    return pytest.param(
        sees, share, memory, id=f"{algorithm}-{sees}-{'shared' if share else 'distinct'}-{memory or 'no memory'}"
    )


CASES = [
    named(sees, share, memory)
    for sees in CRITICS
    for share in (True, False)
    for memory in (None, "gru", "library lstm")
]
FEWER = [named(sees, memory is None, memory) for sees in CRITICS for memory in (None, "gru")]
EVERYTHING = {"states", "actions", "rewards", "next_states", "final_states", "action_masks", "terminated", "truncated"}


@pytest.mark.parametrize(("sees", "share", "memory"), CASES)
def test_absent_agents_change_nothing(sees: str, share: bool, memory: str | None, tmp_path: Path) -> None:
    case, algorithm = make_case(sees, share, memory), "ippo" if sees == "own" else "mappo"
    clean, _ = snapshot(case, algorithm, tmp_path)
    spoiled, changed = snapshot(case, algorithm, tmp_path, ABSENT)
    assert changed == EVERYTHING, "the test has something to test"
    assert differing(clean, spoiled) == []
    assert all(bool(tensor.isfinite().all()) for tensor in spoiled.values() if tensor.is_floating_point())


@pytest.mark.parametrize("what", ["states", "actions", "rewards", "next_states", "final_states", "action_masks"])
@pytest.mark.parametrize(("sees", "share", "memory"), FEWER)
def test_present_agents_change_something(sees: str, share: bool, memory: str | None, what: str, tmp_path: Path) -> None:
    """Otherwise the test above would say nothing."""
    if what in ("next_states", "final_states") and sees == "state":
        pytest.skip("its critics do not see observations")
    case, algorithm = make_case(sees, share, memory), "ippo" if sees == "own" else "mappo"
    clean, _ = snapshot(case, algorithm, tmp_path)
    changed, of = snapshot(case, algorithm, tmp_path, ACTIVE, what)
    assert of == {what}
    differences = differing(clean, changed)
    assert any(name.startswith("models/") for name in differences)
    assert any(name.startswith("metric") for name in differences)
    assert any(name.startswith(("acted", "log_prob")) for name in differences)


@pytest.mark.parametrize("sees", ["own", "state", "agent"])
def test_waiting_agents_states_and_rewards_count(sees: str, tmp_path: Path) -> None:
    case, algorithm = make_case(sees, False, None), "ippo" if sees == "own" else "mappo"
    clean, _ = snapshot(case, algorithm, tmp_path)
    changed, _ = snapshot(case, algorithm, tmp_path, "waiting", "rewards")
    assert any(name.startswith("models/") for name in differing(clean, changed))
    assert clean["acted a0"].shape[0] == E
