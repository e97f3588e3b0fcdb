"""Settings of another type or outside their range are refused before anything is loaded, in one line with the mend."""

import re
from pathlib import Path

import pytest
from PIL import Image
from programs import says
from torch import nn
from toys import noisy_copy, picture

import codiffuse
from codiffuse import cli
from codiffuse.errors import InputError
from codiffuse.inference import checks
from codiffuse.inference.provenance import resolve_device
from codiffuse.methods.fast_em import FastEM

ROOT = Path(__file__).parents[1]
WRONG = {
    "sigma": (["abc", "5/0", 0, 1, -1, float("nan"), True, [0.1]], "0 < sigma < 1"),
    "kernel_size": ([None, 0, True, 9.0, "large"], "auto or a whole number of at least 1"),
    "boundary": (["xyz", None, 3], "unknown, circular"),
    "num_samples": ([True, None, 0, 1.5, "4"], "a whole number of at least 1"),
    "num_particles": ([True, None, 0, 2.0], "a whole number of at least 1"),
    "step_lengths": (["each", None, 1], "joint, parameters_first, assumed"),
    "window": ([None, -1], "a whole number of at least 1"),
    "tile": ([None, 0.5], "a whole number of at least 1"),
    "max_memory": ([float("nan"), float("inf"), 0, -1, "much", True], "null or a positive number of GiB"),
    "saturation": (["abc", 2, 0, float("nan"), True], "null or a level in (0, 1]"),
    "crop": ([0, True, "half"], "null or a whole number of at least 1"),
    "limit": ([0, False], "null or a whole number of at least 1"),
    "seed": (["abc", 1.5, None, True, [1, 2]], "a whole number"),
    "precision": (["float8", None], "float32, bfloat16"),
    "batch_size": ([-1, 1.5], "null or a whole number of at least 1"),
    "threads": ([0, 1.5], "null or a whole number of at least 1"),
    "lpips": (["abc", 1, None], "true or false"),
    "animate": (["maybe", 0, None], "true or false"),
}
RIGHT = {
    "sigma": [None, "5/255", 0.02],
    "kernel_size": ["auto", 1],
    "max_memory": [None, 4, 0.001],
    "saturation": [None, 1, 0.5],
    "crop": [None, 64],
    "seed": [-1, 2**70],
    "animate": [True, False],
}


@pytest.fixture(scope="module")
def defaults():
    plain, _ = cli.compose_infer({"input": "sample"})
    return plain


@pytest.mark.parametrize("name", checks.SETTINGS)
def test_each_setting_has_its_values(defaults, name):
    checks.check_settings(defaults)
    for value in RIGHT.get(name, []):
        checks.check_settings(defaults | {name: value})
    values, words = WRONG[name]
    for value in values:
        with pytest.raises(InputError) as caught:
            checks.check_settings(defaults | {name: value})
        message = str(caught.value)
        assert message.startswith("Expected ")
        assert words in message
        assert f"set {name}=" in message
        if value is not None and not isinstance(value, bool):
            assert f"got {value!r};" in message
        else:
            assert f"got {'null' if value is None else str(value).lower()};" in message


def test_the_table_is_that_of_the_file():
    text = (cli.config_dir() / "infer.yaml").read_text()
    named = {"defaults", "hydra", "input", "device", "experiment_name", "run_id"}
    assert set(re.findall(r"^(\w+):", text, re.MULTILINE)) - named == set(checks.SETTINGS)
    groups = dict(re.findall(r"^  - (\w+): (\w+)", text, re.MULTILINE))
    assert groups == checks.GROUPS | {"pipeline": "photograph", "experiment": "null"}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["saturation=abc"], ["level in (0, 1]", "'abc'", "set saturation=0.98"]),
        (["animate=maybe"], ["true or false for animate", "'maybe'"]),
        (["seed=null"], ["whole number for seed", "null"]),
        (["max_memory=inf"], ["positive number of GiB for max_memory", "inf"]),
        (["device=null"], ["device=auto", "cuda:N", "None"]),
        (["data=null"], ["for data", "null", "set data=files"]),
        (["operator=null"], ["for operator", "null", "set operator=blur"]),
        (["prior=null"], ["for prior", "null", "set prior=natural"]),
        (["method.m_step.beta=abc"], ["a number for method.m_step.beta", "'abc'"]),
        (["+method.held_steps=true"], ["a whole number for method.held_steps", "true"]),
        (["prior.image.name=null"], ["a text for prior.image.name", "null"]),
        (["num_samples=3"], ["num_particles with pipeline=null", "set num_particles=3"]),
    ],
    ids=str,
)
def test_before_anything_is_loaded(infer, pictures, monkeypatch, settings, words):
    def load(*_, **__):
        raise AssertionError("loaded")

    monkeypatch.setattr("hydra.utils.instantiate", load)
    says(infer("input=pictures/a.png", *settings), "Expected", *words)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"device": None}, "device=auto"),
        ({"method": None}, "set method=fast_em"),
        ({"saturation": 2}, r"got 2; set saturation="),
        ({"overrides": ["method.coarse_kernel=abc"]}, "whole number for method.coarse_kernel, got 'abc'"),
        ({"pipeline": None, "num_samples": 5}, r"num_particles with pipeline=null, got num_samples=5"),
        ({"method": "pigdm", "num_samples": 3}, r"a method that finds no kernel, got num_samples=3"),
        ({"overrides": ["pipeline=null", "num_samples=2"]}, "set num_particles=2"),
    ],
    ids=str,
)
def test_from_python(settings, words):
    with pytest.raises(InputError, match=words):
        codiffuse.restore(picture(0), **settings)


def test_examples_of_the_documentation_are_right():
    texts = [codiffuse.restore.__doc__, cli.compose_infer.__doc__, (ROOT / "docs/python.md").read_text()]
    for text in texts:
        [inside] = re.findall(r"method(?:\.\w+)+=\w+", text)
        cli.compose_infer({"input": "sample"}, [inside])
    commands = re.findall(r"python infer\.py .*", (cli.config_dir() / "infer.yaml").read_text())
    assert len(commands) >= 3
    for command in commands:  # for photographs it is num_samples
        assert "num_particles=" not in command or "pipeline=null" in command


def test_samples_that_are_drawn_may_be_asked_for(defaults):
    whole = {"pipeline": None}
    for changed in ({}, {"num_samples": 7}, whole | {"num_samples": 3, "num_particles": 3}):
        checks.check_samples(defaults | changed, changed)
    checks.check_samples(defaults | whole, {"num_particles"})
    with pytest.raises(InputError, match="num_particles"):
        checks.check_samples(defaults | whole | {"num_samples": 3}, {"num_samples"})


class Machine(nn.Module):
    def __init__(
        self,
        width: int,
        share: float | None = 0.5,
        on: "bool | None" = None,
        names: list[str] | None = None,
        **options: object,
    ) -> None: ...


def test_arguments_of_components_are_of_the_types_they_are_annotated_with():
    target = {"_target_": f"{__name__}.Machine"}
    for right in ({}, {"width": 3, "share": None, "on": True}, {"share": 1, "names": 3, "more": "abc"}):
        checks.check_components({"parts": [target | right]})
    for name, value in (("width", 3.5), ("width", None), ("share", "much"), ("share", False), ("on", 1)):
        with pytest.raises(InputError, match=rf"for parts\.1\.{name}, got .*; set parts\.1\.{name}="):
            checks.check_components({"parts": [target, target | {name: value}]})
    with pytest.raises(InputError, match=r"Expected no part\.length: .*toy has only width; set one of these"):
        checks.check_components({"part": {"_target_": f"{__name__}.toy", "width": 3, "_partial_": True, "length": 4}})
    for unknown in ("codiffuse.nope.Nope", "codiffuse", 3):
        checks.check_components({"_target_": unknown, "width": "abc"})


@pytest.mark.parametrize("value", ["null", "3", "pigdm"])
@pytest.mark.parametrize("name", ["method.guidance", "method.process", "pipeline.finish", "pipeline.finish.non_blind"])
def test_a_component_is_no_plain_value(name, value):
    with pytest.raises(InputError, match=f"a component for {name}, got .*; leave that"):
        cli.compose_infer({"input": "sample", "method": "pigdm"}, [f"{name}={value}"])


@pytest.mark.parametrize("method", sorted(path.stem for path in (ROOT / "conf/method").glob("*.yaml")))
def test_every_method_passes(method):
    cli.compose_infer({"input": "sample", "method": method, "operator": "linear_light", "kernel_size": 9})


def toy(width: int) -> int:
    return width


@pytest.mark.parametrize("name", ["a${b}.png", r"x\\${b}'$c.png"])
def test_a_name_refers_to_no_setting(infer, tmp_path, name, monkeypatch):
    monkeypatch.setattr(FastEM, "__call__", noisy_copy)
    Image.fromarray(picture(0)).save(tmp_path / name)
    ended = infer(f"input={name}", "animate=false")
    assert (ended.code, ended.err) == (0, "")
    plain, _ = cli.compose_infer({"input": name})
    assert plain["input"] == plain["data"]["input"] == name
    [source] = cli.measurements(plain).ids
    assert source == ended.rows()[0]["id"]


@pytest.mark.parametrize("device", [None, True, "cuda:x", "tpu"])
def test_a_device_is_a_device(device):
    with pytest.raises(InputError, match="Expected device=auto, cpu, cuda or cuda:N"):
        resolve_device(device)
