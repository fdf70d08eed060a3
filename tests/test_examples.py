"""Every example runs, with a tiny budget, and every Python block of the README and the docs runs too."""

from __future__ import annotations

import importlib.util
import math
import re
import runpy
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"

SHARED = {"learning_curve.py"}  # what several examples end with, which runs nothing by itself
BUDGETS = {
    "hand_written_mixer.py": ["--timesteps", "40", "--num-envs", "8"],
    "mappo_spread.py": ["--timesteps", "50", "--num-envs", "8", "--evaluation-episodes", "16"],
    "ippo_pettingzoo.py": [
        "mpe2.simple_speaker_listener_v4",
        "--timesteps",
        "70",
        "--num-envs",
        "2",
        "--rollouts",
        "32",
    ],
    "mappo_vmas_navigation.py": ["--iterations", "1", "--num-envs", "4", "--epochs", "1"],
    "qmix_spread.py": ["--timesteps", "110", "--num-envs", "4", "--evaluation-episodes", "16"],
    "qmix_two_step.py": ["--timesteps", "20"],
    "recurrent_recall.py": ["--timesteps", "56", "--num-envs", "4"],
    "skrl_style.py": ["--timesteps", "50"],
    "tictactoe_self_play.py": ["--timesteps", "40", "--num-envs", "2", "--rollouts", "20", "--games", "4"],
}
NEEDS = {"ippo_pettingzoo.py": "mpe2", "mappo_vmas_navigation.py": "vmas", "tictactoe_self_play.py": "pygame"}


def test_every_example_has_a_budget() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == {*BUDGETS, *SHARED}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", sorted(BUDGETS))
def test_example(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.spec_from_file_location(f"example_{Path(name).stem}", EXAMPLES / name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    result = module.main(BUDGETS[name])
    assert math.isfinite(result)
    assert "return" in capsys.readouterr().out
    assert list(tmp_path.rglob("events.out.tfevents.*"))


SPREAD = {"mappo_spread.py": ("mappo", "ippo"), "qmix_spread.py": ("qmix", "vdn", "iql")}


@pytest.mark.parametrize(("name", "algorithm"), [(name, one) for name in SPREAD for one in SPREAD[name]])
def test_examples_on_simple_spread_end_with_their_results(
    name: str, algorithm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location("main_example", EXAMPLES / name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main([*BUDGETS[name], "--algorithm", algorithm, "--directory", str(tmp_path)])
    curve, checkpoint, result = capsys.readouterr().out.strip().splitlines()[-3:]
    assert Path(curve.removeprefix("learning curve: ")).read_bytes().startswith(b"\x89PNG")
    assert Path(checkpoint.removeprefix("checkpoint of the best evaluation: ")).exists()
    number = r"-?\d+\.\d\d"
    assert re.fullmatch(
        rf"final evaluation return: {number} \(sum over agents\) after 4[04]0 env steps in \d+ s", result
    )


@pytest.mark.parametrize("name", SPREAD)
def test_examples_on_simple_spread_say_that_they_need_steps(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = runpy.run_path(str(EXAMPLES / name))
    with pytest.raises(SystemExit):
        module["main"](["--timesteps", "0"])
    assert "--timesteps: expected at least 1, got 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("functions", "message"),
    [(["env"], "is played in turn.*examples/tictactoe_self_play.py"), ([], "has no parallel_env")],
)
def test_the_pettingzoo_example_says_what_it_cannot_take(
    functions: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    game = types.ModuleType("some_game")
    for name in functions:
        setattr(game, name, lambda: None)
    monkeypatch.setitem(sys.modules, "some_game", game)
    module = runpy.run_path(str(EXAMPLES / "ippo_pettingzoo.py"))
    with pytest.raises(SystemExit):
        module["main"](["some_game"])
    assert re.search(f"some_game {message}", " ".join(capsys.readouterr().err.split()))


def python_blocks() -> list[tuple[str, str]]:
    blocks = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        if path.exists():
            found = re.findall(r"^```python\n(.*?)^```", path.read_text(), flags=re.DOTALL | re.MULTILINE)
            blocks += [(f"{path.relative_to(ROOT)}#{i}", block) for i, block in enumerate(found, 1)]
    return blocks


@pytest.mark.parametrize(("place", "block"), python_blocks(), ids=[place for place, _ in python_blocks()])
def test_documented_code_runs(place: str, block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shortened = re.sub(r'("timesteps": )[\d_]+', r"\g<1>64", block)
    exec(compile(shortened, place, "exec"), {"__name__": "__documented__"})
