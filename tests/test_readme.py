"""What README and docs promise exists: files they link to, methods, settings of their commands."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_named_files_exist(page):
    text = page.read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    named = re.findall(r"`((?:docs|conf|tests|src|results|data)/[\w/.-]+)`", text)
    missing = [path for path in links if not (page.parent / path).exists()]
    missing += [path for path in named if not (ROOT / path).exists()]
    assert missing == []


def test_every_method_of_the_table_can_be_chosen_and_none_is_missing():
    shipped = {path.stem for path in (ROOT / "conf/method").glob("*.yaml")}
    table = (ROOT / "README.md").read_text().partition("## Methods")[2].partition("## Numbers")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == shipped


@pytest.mark.parametrize("program", ["infer", "train"])
def test_groups_and_settings_of_commands_exist(program):
    from codiffuse import cli

    known = {path.name for path in (ROOT / "conf").iterdir()}
    known |= set(re.findall(r"^(\w+):", (cli.config_dir() / f"{program}.yaml").read_text(), re.MULTILINE))
    commands = [
        line for page in PAGES for line in page.read_text().splitlines() if line.startswith(f"python {program}.py")
    ]
    used = {word.partition("=")[0].split(".")[0] for line in commands for word in line.split() if "=" in word}
    assert len(commands) >= 2
    assert used <= known
