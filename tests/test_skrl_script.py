"""A script in the style of skrl 1.4's documentation runs once its imports are renamed, and only these."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "skrl.md"
#: the page's table of modules
RENAMED = dict(re.findall(r"^\| `(skrl[\w.]*)` \| `(coterie[\w.]*)` \|$", PAGE.read_text(), re.MULTILINE))

SCRIPT = """
import torch
import torch.nn as nn
from mpe2 import simple_spread_v3

from skrl.envs.wrappers.torch import wrap_env
from skrl.memories.torch import RandomMemory
from skrl.models.torch import DeterministicMixin, GaussianMixin, Model
from skrl.multi_agents.torch.mappo import MAPPO, MAPPO_DEFAULT_CONFIG
from skrl.resources.preprocessors.torch import RunningStandardScaler
from skrl.resources.schedulers.torch import KLAdaptiveLR
from skrl.trainers.torch import SequentialTrainer
from skrl.utils import set_seed

set_seed(42)


class Policy(GaussianMixin, Model):
    def __init__(self, observation_space, action_space, device, clip_actions=False, clip_log_std=True,
                 min_log_std=-20, max_log_std=2, reduction="sum"):
        Model.__init__(self, observation_space, action_space, device)
        GaussianMixin.__init__(self, clip_actions, clip_log_std, min_log_std, max_log_std, reduction)
        self.net = nn.Sequential(nn.Linear(self.num_observations, 32), nn.ELU(), nn.Linear(32, self.num_actions))
        self.log_std_parameter = nn.Parameter(torch.zeros(self.num_actions))

    def compute(self, inputs, role):
        return self.net(inputs["states"]), self.log_std_parameter, {}


class Value(DeterministicMixin, Model):
    def __init__(self, observation_space, action_space, device, clip_actions=False):
        Model.__init__(self, observation_space, action_space, device)
        DeterministicMixin.__init__(self, clip_actions)
        self.net = nn.Sequential(nn.Linear(self.num_observations, 32), nn.ELU(), nn.Linear(32, 1))

    def compute(self, inputs, role):
        return self.net(inputs["states"]), {}


env = simple_spread_v3.parallel_env(continuous_actions=True)
env = wrap_env(env)
device = env.device

memories = {}
for agent_name in env.possible_agents:
    memories[agent_name] = RandomMemory(memory_size=16, num_envs=env.num_envs, device=device)

models = {}
for agent_name in env.possible_agents:
    models[agent_name] = {}
    models[agent_name]["policy"] = Policy(env.observation_space(agent_name), env.action_space(agent_name), device)
    models[agent_name]["value"] = Value(env.state_space(agent_name), env.action_space(agent_name), device)

cfg = MAPPO_DEFAULT_CONFIG.copy()
cfg["rollouts"] = 16
cfg["learning_epochs"] = 2
cfg["mini_batches"] = 2
cfg["discount_factor"] = 0.99
cfg["lambda"] = 0.95
cfg["learning_rate"] = 3e-4
cfg["learning_rate_scheduler"] = KLAdaptiveLR
cfg["learning_rate_scheduler_kwargs"] = {"kl_threshold": 0.008}
cfg["random_timesteps"] = 0
cfg["learning_starts"] = 0
cfg["grad_norm_clip"] = 1.0
cfg["ratio_clip"] = 0.2
cfg["value_clip"] = 0.2
cfg["clip_predicted_values"] = True
cfg["entropy_loss_scale"] = 0.0
cfg["value_loss_scale"] = 2.0
cfg["kl_threshold"] = 0
cfg["state_preprocessor"] = RunningStandardScaler
cfg["state_preprocessor_kwargs"] = {
    agent_name: {"size": env.observation_space(agent_name), "device": device} for agent_name in env.possible_agents
}
cfg["shared_state_preprocessor"] = RunningStandardScaler
cfg["shared_state_preprocessor_kwargs"] = {
    agent_name: {"size": env.state_space(agent_name), "device": device} for agent_name in env.possible_agents
}
cfg["value_preprocessor"] = RunningStandardScaler
cfg["value_preprocessor_kwargs"] = {
    agent_name: {"size": 1, "device": device} for agent_name in env.possible_agents
}
cfg["experiment"]["write_interval"] = 20
cfg["experiment"]["checkpoint_interval"] = 40
cfg["experiment"]["directory"] = DIRECTORY

agent = MAPPO(possible_agents=env.possible_agents,
              models=models,
              memories=memories,
              cfg=cfg,
              observation_spaces=env.observation_spaces,
              action_spaces=env.action_spaces,
              device=device,
              shared_observation_spaces=env.state_spaces)

trainer = SequentialTrainer(cfg={"timesteps": 80, "headless": True}, env=env, agents=agent)
trainer.train()
results = trainer.eval()
"""


def renamed(script: str) -> str:
    """The script with the modules after ``from`` renamed, and nothing else changed."""

    def replace(match: re.Match[str]) -> str:
        return f"from {RENAMED[match.group(1)]} import"

    return re.sub(r"from (skrl[\w.]*) import", replace, script)


def run(script: str, directory: Path) -> dict[str, Any]:
    names: dict[str, Any] = {"DIRECTORY": str(directory), "__name__": "__script__"}
    exec(compile(renamed(script), "script", "exec"), names)
    return names


def test_every_module_of_the_table_is_there() -> None:
    assert {*re.findall(r"from (skrl[\w.]*) import", SCRIPT), "skrl.multi_agents.torch.ippo"} == set(RENAMED)
    for name in RENAMED.values():
        importlib.import_module(name)


def test_a_mappo_script_runs_after_renaming_its_imports(tmp_path: Path) -> None:
    pytest.importorskip("mpe2")
    names = run(SCRIPT, tmp_path)
    agent = names["agent"]
    # hand-written models of that style take part in batched execution
    assert [(group.policy.mode, group.value.mode) for group in agent.groups] == [("stacked", "stacked")]
    assert names["results"]["episodes"] >= 32
    assert sorted(path.name for path in tmp_path.rglob("agent_*.pt")) == ["agent_40.pt", "agent_80.pt"]
    assert list(tmp_path.rglob("events.out.tfevents.*"))


def test_an_ippo_script_differs_by_the_import_and_the_critics_space(tmp_path: Path) -> None:
    pytest.importorskip("mpe2")
    script = SCRIPT.replace("mappo", "ippo").replace("MAPPO", "IPPO")
    script = script.replace("Value(env.state_space(agent_name)", "Value(env.observation_space(agent_name)")
    start = script.index('cfg["shared_state_preprocessor"]')
    script = script[:start] + script[script.index('cfg["value_preprocessor"]') :]
    script = script.replace(",\n              shared_observation_spaces=env.state_spaces", "")
    assert run(script, tmp_path)["results"]["episodes"] >= 32
