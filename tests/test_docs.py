from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from coterie.envs.registry import ENVIRONMENTS, options

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_the_configuration_page_is_generated_from_the_defaults() -> None:
    spec = importlib.util.spec_from_file_location("generate_configuration", ROOT / "docs" / "generate_configuration.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written = (ROOT / "docs" / "configuration.md").read_text()
    assert written == module.page(), "run: .venv/bin/python docs/generate_configuration.py"


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
