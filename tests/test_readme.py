"""What README and docs promise exists: files they link to, methods, commands, calls from Python."""

import re
import shlex
from itertools import product
from pathlib import Path

import hydra
import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from PIL import Image
from toys import picture

import codiffuse
from codiffuse import cli
from codiffuse.errors import InputError
from codiffuse.inference.restorer import Restorer
from codiffuse.inference.writers import Outcome

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


def commands(program):
    """Each documented call as its overrides, without the shell; of a sweep, one for each of its jobs."""
    found = []
    for page in PAGES:
        for line in re.findall(rf"^python {program}\.py (.*)$", page.read_text(), re.MULTILINE):
            words = [word for word in shlex.split(line, comments=True) if not word.startswith("-")]
            choices = [override_values(word) for word in words]
            found += [pytest.param(job, id=f"{page.stem}: {' '.join(job)}") for job in product(*choices)]
    return found


def override_values(word):
    """`a=1,2` as `a=1` and `a=2`."""
    parsed = OverridesParser.create().parse_override(word)
    if not parsed.is_sweep_override():
        return [word]
    return [f"{parsed.get_key_element()}={value}" for value in parsed.sweep_string_iterator()]


@pytest.fixture
def somewhere(tmp_path, monkeypatch):
    """A folder of a reader who has data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CODIFFUSE_DATA", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("overrides", commands("infer"))
def test_documented_restorations_compose(overrides, somewhere):
    cli.compose_infer({}, overrides)


@pytest.mark.parametrize("overrides", commands("train"))
def test_documented_trainings_compose(overrides, somewhere):
    with cli.input_errors(), cli._own_hydra():
        cli.register_resolvers()
        with hydra.initialize_config_dir(str(cli.config_dir()), version_base="1.3"):
            cfg = hydra.compose("train", list(overrides), return_hydra_config=True)
    assert cfg["model"]
    recipe = cfg.hydra.runtime.choices["experiment"]  # optional: Hydra does not miss it
    assert recipe is None or (cli.config_dir() / "experiment" / f"{recipe}.yaml").is_file()


@pytest.mark.parametrize("wrong", ["method=nope", "experiment=bench/nope", "nope=1", "method.nope=1"])
def test_what_does_not_exist_does_not_compose(wrong, somewhere):
    cli.compose_infer({}, ["input=photo.jpg"])
    with pytest.raises(InputError):
        cli.compose_infer({}, ["input=photo.jpg", wrong])


def documented_settings():
    """What the pages say of settings inside the pipeline and inside methods: name, and value or nothing."""
    words = r"((?:\w+@)?\b(?:pipeline|method)\.\w[\w.]*\w)(=[^\s`\"\])]+)?"
    return sorted({found for page in PAGES for found in re.findall(words, page.read_text())})


@pytest.mark.parametrize(("name", "value"), documented_settings())
def test_documented_settings_can_be_set(name, value, somewhere):
    methods = ["fast_em", *sorted(path.stem for path in (ROOT / "conf/method").glob("*.yaml"))]
    refusals = [refusal(method, name, value) for method in methods]
    assert None in refusals, refusals[0]


def refusal(method, name, value):
    """Why a method has no such setting, or not of this value; None where it has."""
    try:
        plain, _ = cli.compose_infer(
            {"input": "photo.jpg", "method": method}, override_values(name + value) if value else ()
        )
        for part in name.partition("@")[2].split(".") if "@" in name else name.split("."):
            plain = plain[part]
    except (InputError, KeyError) as error:
        return f"{type(error).__name__}: {error}"


def test_documented_commands_are_found():
    assert len(documented_settings()) >= 5
    assert refusal("fast_em", "pipeline.no_such_thing", "")
    assert refusal("fast_em", "pipeline.reach", "=far")
    assert len(commands("infer")) >= 5
    assert len(commands("train")) >= 3
    assert override_values("seed=0,1") == ["seed=0", "seed=1"]
    assert override_values("run_id=mine") == ["run_id=mine"]


def test_documented_python_runs(somewhere, use_tiny_zoo, monkeypatch):
    """The method is built from the documented settings, and its place taken when it would run."""
    Image.fromarray(picture(0)).save("photo.jpg")
    called = []

    def quick(self, batch, *, show=None, callback=None):
        called.append(self)
        row = {"id": batch[0].id, "status": "ok", "sigma": 0.02, "seconds": 1.0, "notes": []}
        y = batch[0].y
        yield Outcome(batch[0].id, row, y, y, torch.ones(1, 1, 1), y.expand(2, -1, -1, -1), residual=0 * y)

    monkeypatch.setattr(Restorer, "__call__", quick)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(), re.DOTALL)
    names = {"codiffuse": codiffuse, "array": picture(1)}
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), names)
    assert len(called) == sum(block.count("codiffuse.restore(") for block in blocks) >= 3
    assert {"sharp.png", "results"} <= {path.name for path in somewhere.iterdir()}
