"""Every benchmark still runs, as short as it can be made; what it measures is not looked at."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
ARGUMENTS = {
    "agents.py": ["--quick"],
    "bfloat16.py": [],
    "env_stepping.py": ["--quick", "--num-envs", "4"],
    "gae.py": ["--quick"],
    "learner.py": ["--quick"],
    "learning.py": ["--list"],
    "throughput.py": ["--quick", "--only", "built-in"],
    "value_learner.py": ["--quick"],
}
#: what others import, and what draws
PARTS = {"learning_tasks.py", "plot_curves.py", "random_team.py"}


def test_every_benchmark_is_run() -> None:
    assert {path.name for path in BENCHMARKS.glob("*.py")} == set(ARGUMENTS) | PARTS


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ARGUMENTS))
def test_benchmark(name: str) -> None:
    if name == "env_stepping.py":
        pytest.importorskip("mpe2")
    command = [sys.executable, str(BENCHMARKS / name), *ARGUMENTS[name]]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert len(run.stdout.splitlines()) >= 3
