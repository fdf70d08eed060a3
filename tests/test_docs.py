from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from coterie import agents
from coterie.envs.registry import ENVIRONMENTS, options
from coterie.schedulers import LinearSchedule

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_configuration", ROOT / "docs" / "generate_configuration.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_of_configurations_are_generated_from_the_defaults(generator: ModuleType) -> None:
    stale = [str(path.relative_to(ROOT)) for path, page in generator.pages().items() if path.read_text() != page]
    assert not stale, "run: .venv/bin/python docs/generate_configuration.py"


ALGORITHMS = [name for name in agents.__all__ if f"{name}_DEFAULT_CONFIG" in agents.__all__]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_has_a_page_with_exactly_its_keys(name: str, generator: ModuleType) -> None:
    defaults = getattr(agents, f"{name}_DEFAULT_CONFIG")
    documented = {key: default for key, default, _ in generator.of_algorithm(name.lower())}
    assert documented.keys() == defaults.keys() - {"experiment"}
    values = {key: eval(default, {"LinearSchedule": LinearSchedule}) for key, default in documented.items()}
    assert values == {key: defaults[key] for key in documented}
    assert {key for key, _, _ in generator.of_experiment()} == defaults["experiment"].keys()
    text = (ROOT / "docs" / "algorithms" / f"{name.lower()}.md").read_text()
    sections = ("The update", "What to pass", "Configuration", "Departures from the paper", "Traps", "Measured")
    assert [section for section in sections if not re.search(f"^## {section}s?$", text, re.MULTILINE)] == []


def test_the_page_of_environments_has_every_task_with_every_option_and_its_default() -> None:
    page = (ROOT / "docs" / "environments.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+/\w+)` \|.*\| ([^|]*) \|$", page, re.MULTILINE))
    assert rows == {
        name: ", ".join(f"`{option}={default!r}`" for option, default in options(name).items()) for name in ENVIRONMENTS
    }
    explained = {
        word for row in re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", page, re.MULTILINE) for word in row.split(", ")
    }
    assert explained == {f"`{option}`" for name in ENVIRONMENTS for option in options(name)}


def test_the_start_page_shows_the_first_script_of_the_readme() -> None:
    (shown,) = re.findall(r'^--8<-- "README.md:(\w+)"$', (ROOT / "docs" / "index.md").read_text(), re.MULTILINE)
    readme = (ROOT / "README.md").read_text()
    part = readme[readme.index(f"[start:{shown}] -->") : readme.index(f"<!-- --8<-- [end:{shown}]")]
    assert "pip install ." in part
    assert "trainer.train()" in part
    assert not re.findall(r"\]\((?!http)", part)  # what it links to would stand elsewhere on the site


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_links_and_named_files_exist(page: Path) -> None:
    text = page.read_text()
    assert not re.search(r"PLACEHOLDER|@[A-Z]+@|TODO", text)
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    named = re.findall(r"`((?:examples|benchmarks|docs|tests|coterie)/[\w./-]+)`", text)
    missing = [link for link in links if not (page.parent / link).exists()]
    missing += [name for name in named if not (ROOT / name).exists()]
    assert not missing
