"""Every file of `conf/` composes, and says nothing that the class it configures does not understand."""

import inspect
from dataclasses import MISSING, fields
from pathlib import Path

import hydra
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from codiffuse import cli
from codiffuse.methods.photograph import Photograph
from codiffuse.methods.tiles import Tiled

CONF = cli.config_dir()
# Which program a group is for; files of `data` and `experiment` serve either.
GROUPS = {
    "method": "infer",
    "operator": "infer",
    "noise": "infer",
    "pipeline": "infer",
    "guidance": "infer",
    "regularizer": "infer",
    "prior": "infer",
    "unknowns": "infer",
    "model": "train",
    "trainer": "train",
    "logger": "train",
    "callbacks": "train",
}
GIVEN = {"infer": ["input=sample", "sigma=5/255", "kernel_size=9", "device=cpu"], "train": []}  # what people say
ADDED_IN_CODE = {".pipeline: missing blind"}  # the chosen method
HYDRA_KEYS = {"_target_", "_convert_", "_partial_", "_recursive_", "_args_"}


def task_of(path: Path) -> str:
    """`infer` or `train`: which program a file is for."""
    group = path.relative_to(CONF).parts[0]
    if group == "data":
        if path.stem.startswith("for_"):  # what a model trains on
            return "train"
        target = OmegaConf.load(path)["_target_"]
        return {"codiffuse.data": "infer", "codiffuse.training": "train"}[target.rpartition(".")[0].rpartition(".")[0]]
    if group == "experiment":
        return "train" if "override /model" in path.read_text() else "infer"
    return GROUPS[group]


def choice_of(path: Path) -> str:
    """`method/fast_em.yaml` as the command line has it: `method=fast_em`."""
    return "=".join(path.relative_to(CONF).with_suffix("").as_posix().split("/", 1))


def choices_of(path: Path) -> list[str]:
    """What a person types to use a file; parts of a method are chosen in its place."""
    group, name = path.relative_to(CONF).parts[0], path.stem
    inside = {
        "guidance": ("fast_em_once", "method.guidance"),
        "regularizer": ("fast_em_once", "method.m_step.regularizer"),
        "unknowns": ("blind_dps", "method.parameters"),
    }
    if name == "joint_pigdm":
        return ["method=blind_dps"]
    if choice_of(path) == "operator=turbulence":  # a sample is simulated, which needs a law of the tilts
        return [choice_of(path), "data=turbulent"]
    if group in inside:
        method, place = inside[group]
        return [f"method={method}", f"{group}@{place}={name}"]
    return [choice_of(path)]


FILES = sorted(CONF.glob("*/**/*.yaml"))
each_file = pytest.mark.parametrize("path", FILES, ids=choice_of)


def files_of(group):
    return pytest.mark.parametrize("path", [path for path in FILES if path.parent.name == group], ids=choice_of)


@pytest.fixture
def composed(tmp_path, monkeypatch):
    """Composes `infer` or `train` with overrides, resolved: what the program sees."""
    monkeypatch.setenv("CODIFFUSE_DATA", str(tmp_path))
    cli.register_resolvers()

    def call(task, *overrides):
        config = compose(task, [*GIVEN[task], *overrides], return_hydra_config=True)
        config.hydra.runtime.output_dir = str(tmp_path)
        HydraConfig.instance().set_config(config)
        del config.hydra
        return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield call


def components(node, path=""):
    """All mappings below `node` that have a `_target_`, with where they are."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield path, node
        for key, value in node.items():
            yield from components(value, f"{path}.{key}")
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from components(value, f"{path}[{number}]")


def misfits(node):
    """What a component is told that its class or function does not take, and what it needs and is not told."""
    for path, component in components(node):
        parameters = inspect.signature(hydra.utils.get_object(component["_target_"])).parameters
        open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        told = component.keys() - HYDRA_KEYS
        if not open_ended:
            yield from (f"{path}: unknown {key}" for key in sorted(told - parameters.keys()))
        for name, parameter in parameters.items():
            named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
            if named and parameter.default is parameter.empty and name not in told:
                yield f"{path}: missing {name}"


def test_every_folder_is_known():
    groups = {path.relative_to(CONF).parts[0] for path in FILES}
    assert groups <= GROUPS.keys() | {"data", "experiment"}
    assert {path.name for path in CONF.glob("*.yaml")} == {"infer.yaml", "train.yaml"}


@each_file
def test_every_file_composes_and_fits_its_classes(composed, path):
    task = task_of(path)
    config = composed(task, *choices_of(path))
    assert set(misfits(config)) <= ADDED_IN_CODE
    assert config.keys() | {"pipeline"} == composed(task).keys() | {
        "pipeline"
    }  # an experiment may set what there is, and add nothing


@pytest.mark.parametrize("task", ["infer", "train"])
def test_the_defaults_fit_their_classes(composed, task):
    config = composed(task)
    assert set(misfits(config)) <= ADDED_IN_CODE
    assert {"infer": ".method.fine.m_step.regularizer", "train": ".model"}[task] in dict(components(config))


def test_misfits_are_seen():
    good = {"_target_": "codiffuse.methods.steps.ReverseProcess", "num_steps": 3}
    assert list(misfits({"process": good})) == []
    assert list(misfits({"a": [good | {"nim_steps": 3}]})) == [".a[0]: unknown nim_steps"]
    assert list(misfits({"_target_": "codiffuse.estimation.hqs.HQS"})) == [": missing regularizer"]
    with pytest.raises(ImportError, match="nothing"):
        list(misfits({"_target_": "codiffuse.nothing.Here"}))


def test_there_are_methods_to_choose_from():
    assert len([path for path in FILES if path.parent.name == "method"]) >= 6


@files_of("method")
def test_methods_build(composed, use_tiny_zoo, path):
    config = composed("infer", *choices_of(path), "num_particles=3", "boundary=circular")
    method = hydra.utils.instantiate(config["method"])
    assert method.supports(hydra.utils.instantiate(config["operator"])) is None
    assert getattr(method, "kernel_size", 9) == 9  # the general settings arrive
    restarts = getattr(method, "coarse", method)
    sampler = getattr(restarts, "first", getattr(restarts, "e_step", restarts))
    assert sampler.num_particles == 3


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_precision_is_that_of_every_prior(composed, use_tiny_zoo, precision):
    priors = composed("infer", f"precision={precision}")["prior"]
    built = {name: hydra.utils.instantiate(each) for name, each in priors.items() if each["kind"] == "prior"}
    assert built.keys() == {"image", "kernel", "tilt"}
    assert {prior.autocast for prior in built.values()} == {precision == "bfloat16"}


@files_of("pipeline")
def test_pipelines_build_around_a_method(composed, use_tiny_zoo, path):
    plain = composed("infer", *choices_of(path), "num_samples=3", "max_memory=0.5")
    method = cli.restorer_of(plain, "fast_em").method
    assert method.blind.kernel_size == 9
    assert method.finish.non_blind.num_particles == 3
    assert method.finish.max_memory == 2**29
    assert method.kernel_size == 9


def test_the_shipped_pipeline_is_the_one_that_was_measured(composed, use_tiny_zoo):
    """Its limits are the defaults of the class, and its last step has the 12 steps of docs/methods.md."""
    method = cli.restorer_of(composed("infer", "pipeline=photograph"), "fast_em").method
    limits = {each.name: each.default for each in fields(Photograph) if isinstance(each.default, int | float)}
    assert {"least_sigma", "sharp_spread", "small_spread", "reach", "window"} <= limits.keys()
    assert {name: getattr(method, name) for name in limits} == pytest.approx(limits, rel=1e-3)
    process = method.finish.non_blind.process
    assert (process.num_steps, process.spacing, process.start) == (12, 2.0, 0.6)
    assert (method.finish.tile, method.finish.overlap) == (Tiled.tile, Tiled.overlap)


def test_settings_of_photographs_are_all_there_with_the_defaults_of_the_class(composed):
    shown = composed("infer", "kernel_size=auto", "num_samples=4")["pipeline"]
    scalars = {field.name: field.default for field in fields(Photograph) if field.default is not MISSING}
    assert len(scalars) >= 12
    assert {name: shown.get(name, "not there") for name in scalars} == scalars


@files_of("model")
def test_models_build(composed, path):
    from codiffuse.priors import zoo

    with torch.device("meta"):
        module = hydra.utils.instantiate(composed("train", *choices_of(path))["model"])
    assert zoo.count_parameters(module) > 0


@files_of("trainer")
def test_trainers_are_told_what_lightning_takes(composed, path):
    import pytorch_lightning as pl

    taken = inspect.signature(pl.Trainer).parameters
    assert composed("train", *choices_of(path))["trainer"].keys() <= taken.keys()


@pytest.mark.parametrize("path", [path for path in FILES if task_of(path) == "infer"], ids=choice_of)
def test_sources_build(composed, path):
    config = composed("infer", *choices_of(path), "input=sample")
    assert hydra.utils.instantiate(config["data"]).ids == ["astronaut"]


@pytest.mark.parametrize("name", ["kolmogorov_tilts", "patch_tilts", "patch_tilts_256", "turbulent"])
def test_laws_of_tilts_say_the_defaults_of_their_class(name):
    config = OmegaConf.load(CONF / f"data/{name}.yaml")
    law = OmegaConf.to_container(config["tilt_law" if name == "turbulent" else "law"])
    assert len(law) >= 3
    built = hydra.utils.instantiate(law)
    assert built == type(built)(size=law["size"])


@files_of("callbacks")
def test_callbacks_build(composed, path):
    for callback in (composed("train", *choices_of(path))["callbacks"] or {}).values():
        hydra.utils.instantiate(callback)


@pytest.mark.parametrize("text", ["5/255", "0.0196078431372549"])
def test_noise_levels_may_be_fractions(composed, text):
    config = composed("infer", f"sigma={text}", "data=blurred")
    assert config["data"]["sigma"] == pytest.approx(5 / 255)


def test_run_names_tell_commands_apart_and_stay(composed):
    def run_id(*overrides):
        return composed("infer", *overrides)["run_id"]

    assert run_id("method=pigdm").startswith("pigdm-")
    assert run_id("seed=1") == run_id("seed=1") != run_id("seed=2")
    # What does not change the result does not change the folder either: the run continues on another machine.
    assert run_id() == run_id("device=cpu", "threads=3", "limit=2", "batch_size=4")
