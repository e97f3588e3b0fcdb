"""`codiffuse.restore`: the command line's numbers, every form of a picture, and nothing left behind in the process."""

import dataclasses
import json
import runpy
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hydra
import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from omegaconf import OmegaConf
from omegaconf.basecontainer import BaseContainer
from PIL import Image
from toys import SHORT_RUN, SHORT_RUN_STEPS, assert_same_rows, noisy_copy, picture

import codiffuse
from codiffuse import api, cli
from codiffuse.errors import InputError
from codiffuse.inference.pictures import WHITE_SPREAD
from codiffuse.methods.base import StepInfo
from codiffuse.methods.fast_em import FastEM
from codiffuse.priors import zoo

ROOT = Path(__file__).parents[1]


@pytest.fixture
def quick(use_tiny_zoo):
    """`restore` with the settings of `QUICK`."""

    def call(image, *, method="fast_em_once", kernel_size=9, overrides=("method.process.num_steps=2",), **settings):
        whole = {"pipeline": None, "boundary": "circular"}
        return codiffuse.restore(image, method, kernel_size=kernel_size, overrides=overrides, **(whole | settings))

    return call


@pytest.fixture
def instant(quick, monkeypatch):
    """`quick` with `noisy_copy` as its method."""
    monkeypatch.setattr(FastEM, "__call__", noisy_copy)
    return quick


# The same as the command line


@pytest.mark.parametrize(
    "settings",
    [
        {"seed": 3, "num_particles": 3},
        {"sigma": "5/255", "boundary": "unknown", "crop": 36},
        {"kernel_size": 8, "precision": "bfloat16", "animate": False},
    ],
    ids=str,
)
def test_the_command_line_finds_the_same(infer, quick, pictures, settings):
    ended = infer("input=pictures/b.png", *(f"{name}={value}" for name, value in settings.items()))
    folder = ended.folder / "images/b"
    restored = quick(pictures / "b.png", **settings)

    assert restored.status == "ok"
    assert_same_rows([restored.row], ended.rows(), 1e-4)
    assert np.abs(np.asarray(Image.open(folder / "restored.png")) - 255 * restored.image).max() < 0.51
    assert np.array_equal(np.asarray(restored.pil()), np.rint(255 * restored.image))
    assert np.allclose(np.load(folder / "kernel.npy"), restored.kernel, atol=1e-5)

    saved = restored.save("saved/here")
    assert {path.name for path in saved.iterdir()} == {path.name for path in folder.iterdir()}
    assert np.array_equal(np.asarray(Image.open(saved / "restored.png")), np.asarray(restored.pil()))
    assert len(json.loads((saved / "trace.json").read_text())) == 2


def test_an_array_is_what_a_file_named_image_is(instant, tmp_path):
    pixels = picture(4)
    for name in ("image", "other"):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    from_array = instant(pixels)
    assert from_array.row["id"] == "image"
    assert np.array_equal(from_array.image, instant(str(tmp_path / "image.png")).image)
    assert not np.array_equal(from_array.image, instant(tmp_path / "other.png").image)  # the name is part of the seed


def test_the_defaults_are_those_of_the_command_line(program, pictures):
    ended = program(cli.infer, "input=pictures/a.png", "kernel_size=17", *SHORT_RUN)
    seen = []
    restored = codiffuse.restore(
        "pictures/a.png", kernel_size=17, num_samples=None, overrides=SHORT_RUN, callback=seen.append
    )
    assert_same_rows([restored.row], ended.rows(), 1e-4)
    assert np.abs(np.asarray(Image.open(ended.folder / "images/a/restored.png")) - 255 * restored.image).max() < 0.51
    assert [info.number for info in seen] == list(range(1, SHORT_RUN_STEPS + 1))
    assert all(isinstance(info, StepInfo) and info.total == len(seen) for info in seen)
    assert restored.sigma == restored.row["sigma_used"]
    assert (restored.trust, list(restored.flags)) == (restored.row["trust"], restored.row["flags"])


# What comes out


def test_forms_of_a_picture(instant):
    colour, gray = picture(0), picture(0, channels=1)
    transparent = np.dstack([colour, np.full(colour.shape[:2], 255, np.uint8)])
    unit = (colour / 255).astype(np.float32)
    expected = {"colour": instant(colour).image, "gray": instant(gray).image}
    assert expected["colour"].shape == (40, 48, 3)
    assert expected["gray"].shape == (40, 48)
    for image, same in [
        (unit, "colour"),
        (torch.from_numpy(unit).movedim(-1, 0), "colour"),
        (torch.tensor(colour).movedim(-1, 0), "colour"),
        (Image.fromarray(transparent), "colour"),
        (Image.fromarray(gray), "gray"),
        (torch.tensor(gray), "gray"),
    ]:
        assert np.allclose(instant(image).image, expected[same], atol=1e-6), (type(image), image)
    for image in (gray[..., None], torch.tensor(gray)[None]):
        assert np.allclose(instant(image).image, expected["gray"][..., None], atol=1e-6)


def test_a_picture_of_pillow_is_upright(instant, tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(picture(0)).save(tmp_path / "image.png", exif=exif)
    with Image.open(tmp_path / "image.png") as opened:
        restored = instant(opened)
    assert restored.notes == ("EXIF orientation 6 applied",)
    assert restored.image.shape == (48, 40, 3)
    assert np.array_equal(restored.image, instant(tmp_path / "image.png").image)


@pytest.mark.parametrize("channels", [1, 3])
def test_samples_have_a_mean_and_a_spread(instant, tmp_path, channels):
    restored = instant(picture(0, channels=channels), num_particles=3, sigma=0.02)
    assert restored.samples.shape == (3, 40, 48, 3)[: 4 if channels == 3 else 3]
    assert restored.std.shape == (40, 48)
    assert restored.kernel.shape == (9, 9)
    arrays = (restored.image, restored.kernel, restored.std, restored.samples)
    assert {array.dtype for array in arrays} == {np.dtype(np.float32)}
    assert np.allclose(restored.image, restored.samples.mean(0), atol=1e-6)
    drawn = np.asarray(Image.open(restored.save(tmp_path) / "std.png"))
    assert np.abs(255 * restored.std / WHITE_SPREAD - drawn).max() < 0.51
    assert drawn.max() > 0
    assert (restored.sigma, restored.seconds) == (0.02, restored.row["seconds"])


def test_the_residual_is_in_units_of_sigma_and_leaves_out_what_is_clipped(instant):
    flat = np.full((40, 48), 0.5, np.float32)
    restored = instant(flat, sigma=0.005)  # noise of 0.01 is added, and the kernel is a delta
    assert restored.residual == pytest.approx(np.std(restored.image) / 0.005, rel=1e-3)
    assert restored.residual == pytest.approx(2, rel=0.1)
    assert restored.std is None
    flat[4:8] = flat[16:20] = flat[28:32] = 1  # what white gains by noise is cut off
    assert instant(flat, sigma=0.005).residual == pytest.approx(2, rel=0.05)
    assert instant(flat, sigma=0.005, saturation=None).residual == pytest.approx(2 * 0.85**0.5, rel=0.05)


def test_the_residual_grows_with_the_misfit(instant, monkeypatch):
    """Its unit is the noise level, not what a photograph's last step makes of it for the misfit's sake."""

    def raised(self, measurement, **options):
        found = noisy_copy(self, measurement, **options)
        return dataclasses.replace(found, noise_level=4 * measurement.sigma)  # for twice the noise

    monkeypatch.setattr(FastEM, "__call__", raised)
    restored = instant(np.full((40, 48), 0.5, np.float32), sigma=0.005)
    assert restored.sigma == pytest.approx(0.02)
    assert restored.residual == pytest.approx(2, rel=0.1)
    assert restored.residual == pytest.approx(restored.row["feature_residual_ratio"], rel=1e-3)


def test_a_packaged_sample_is_blurred_first_and_scored(instant):
    restored = instant("sample:coins", crop=48)
    assert restored.image.shape == (48, 48)
    assert restored.row["psnr_aligned"] > 10
    assert restored.sigma == pytest.approx(5 / 255)


def test_what_has_failed_says_so_and_can_be_saved(instant, tmp_path, monkeypatch):
    found = FastEM.__call__

    def spoilt(self, measurement, **options):
        restored = found(self, measurement, **options)
        restored.image[:, :, 3, 3] = torch.nan
        return restored

    monkeypatch.setattr(FastEM, "__call__", spoilt)
    restored = instant(picture(0))
    assert restored.status == "failed: NaN or infinite values"
    assert restored.residual is None
    assert restored.pil().size == (48, 40)
    assert "measurement.png" in {path.name for path in restored.save(tmp_path / "failed").iterdir()}


# What it says when something is wrong


@pytest.mark.parametrize(
    ("image", "settings", "words"),
    [
        ([[0.5]], {}, ["image", "NumPy array", "list"]),
        ("nothing.png", {}, ["nothing.png", "nothing is there"]),
        (np.zeros((3, 40, 48), np.uint8), {}, ["image", "(3, 40, 48)", "channels to the end"]),
        (torch.zeros(40, 48, 3), {}, ["image", "(40, 48, 3)", "channels first"]),
        (np.zeros((1, 40, 48, 3)), {}, ["an array", "(1, 40, 48, 3)", "give one picture"]),
        (np.zeros((40, 48, 5)), {}, ["an array", "(40, 48, 5)", "select its colours"]),
        (torch.zeros(1, 3, 40, 48), {}, ["a tensor", "(1, 3, 40, 48)", "give one picture"]),
        (torch.zeros(5, 40, 48), {}, ["a tensor", "(5, 40, 48)", "select its colours"]),
        ("a\nb.jpg", {}, ["a b.jpg", "nothing is there"]),
        (np.full((40, 48), -8.5), {}, ["image", "in [0, 1]", "-8.5", "(x + 1) / 2"]),
        (np.zeros((40, 48), np.int64), {}, ["image", "int64"]),
        (np.full((40, 48), np.nan), {}, ["image", "finite"]),
        (np.zeros((20, 48)), {}, ["image", "at least 32 x 32", "20 x 48"]),
        (torch.eye(40).to_sparse(), {}, ["image", "dense tensor", "sparse_coo"]),
        (torch.empty(3, 40, 48, device="meta"), {}, ["image", "dense tensor", "on meta"]),
        (torch.zeros(40, 48, dtype=torch.float8_e4m3fn), {}, ["image", "floats", "float8_e4m3fn"]),
        (None, {"sgima": 1}, ["sgima"]),
        (None, {"sigma": "loud"}, ["5/255", "loud"]),
        (None, {"sigma": {"a": 1}}, ["sigma", "dict"]),
        (None, {"sigma": np.full(3, 0.1)}, ["a number", "sigma", "ndarray of shape (3,)", "give"]),
        (None, {"sigma": torch.tensor([0.1])}, ["a number", "sigma", "Tensor of shape (1,)", "give"]),
        (None, {"sigma": np.array(0.1j)}, ["a number", "sigma", "complex", "give"]),
        (None, {"callback": 5}, ["callback", "int", "None"]),
        (None, {"method": 3}, ["method/3", "fast_em"]),
        (None, {"method": "3"}, ["method/3", "fast_em"]),
        (None, {"overrides": ["method=3"]}, ["method/3", "fast_em"]),
        (None, {"method": "nope"}, ["method/nope", "fast_em"]),
        (None, {"method": "pigdm"}, ["true kernel", "blind method"]),
        (None, {"boundary": "round"}, ["circular", "round"]),
        (None, {"kernel_size": 51}, ["40 x 48", "51 x 51"]),
        (None, {"num_samples": 0}, ["num_samples", "at least 1"]),
        (None, {"method": None}, ["method"]),
        (None, {"device": "tpu"}, ["cuda:N", "tpu"]),
        (None, {"input": "other.png"}, ["first argument"]),
        (None, {"overrides": "method.process.num_steps=2"}, ["list of overrides"]),
        (None, {"overrides": [2]}, ["list of overrides"]),
        (None, {"overrides": ["method.process.steps=2"]}, ["method.process.steps"]),
        (None, {"overrides": ["seed='"]}, ["seed"]),
    ],
    ids=lambda value: None if isinstance(value, np.ndarray | torch.Tensor) else str(value),
)
def test_errors_are_one_line(quick, image, settings, words):
    with pytest.raises(InputError) as caught:
        quick(picture(0) if image is None else image, **settings)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize("scalar", [np.float32, np.array, torch.tensor], ids=["numpy", "0-dim", "torch"])
def test_numbers_may_be_scalars_of_numpy_and_torch(instant, scalar):
    settings = {"sigma": scalar(0.02), "seed": np.array(3), "kernel_size": torch.tensor(7), "lpips": np.bool_(False)}
    restored = instant(picture(0), **settings)
    assert restored.sigma == pytest.approx(0.02)
    assert restored.kernel.shape == (7, 7)
    assert np.array_equal(restored.image, instant(picture(0), sigma=0.02, seed=3, kernel_size=7).image)


def test_no_overrides_at_all(instant):
    assert instant(picture(0), overrides=None).status == "ok"


def test_one_picture_at_a_time(instant, pictures):
    with pytest.raises(InputError, match=r"one picture, got 3 in .*pictures"):
        instant(pictures)
    assert instant(str(pictures / "a*")).status == "ok"


def test_a_bug_keeps_its_type(quick, monkeypatch):
    def fault(self, measurement, **_):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(FastEM, "__call__", fault)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        quick(picture(0))


# What stays behind


def test_hydra_is_left_as_it_was_found(instant, tmp_path):
    (tmp_path / "theirs.yaml").write_text("depth: 1\nboundary: none\n")
    OmegaConf.register_new_resolver("codiffuse.slug", lambda *_: "theirs", replace=True)
    with hydra.initialize_config_dir(str(tmp_path), version_base="1.2"):
        HydraConfig.instance().set_config(hydra.compose("theirs", return_hydra_config=True))
        found, resolvers = dict(Singleton._instances), dict(BaseContainer._resolvers)
        instant(picture(0))
        with pytest.raises(InputError):
            instant(picture(0), method="nope")
        assert dict(Singleton._instances) == found
        assert dict(BaseContainer._resolvers) == resolvers
        assert hydra.compose("theirs", ["depth=2"]).depth == 2
    OmegaConf.clear_resolver("codiffuse.slug")
    for kind in (HydraConfig, GlobalHydra):
        Singleton._instances.pop(kind, None)
    instant(picture(0))  # where there is none
    assert {HydraConfig, GlobalHydra}.isdisjoint(Singleton._instances)


def test_priors_are_kept_until_their_files_change(instant, tmp_path, use_tiny_zoo, monkeypatch):
    shutil.copytree(use_tiny_zoo, tmp_path / "zoo")
    monkeypatch.setenv("CODIFFUSE_ZOO", str(tmp_path / "zoo"))

    def loads(**settings):
        """Priors loaded by one more call."""
        before = api._loaded.cache_info().misses
        instant(picture(0), **settings)
        return api._loaded.cache_info().misses - before

    assert loads() == 2  # the image prior and the kernel denoiser
    assert loads(seed=1, boundary="reflect") == 0
    assert loads(precision="bfloat16") == 1
    spec, weights = (read(tmp_path / "zoo/natural_image") for read in (zoo.read_spec, zoo.read_weights))
    zoo.save(tmp_path / "zoo/natural_image", spec, weights, "# Made anew\n")
    assert loads() == 1


def test_kept_priors_give_the_same_result_again(quick):
    assert np.array_equal(quick(picture(0)).image, quick(picture(0)).image)


def test_threads_are_given_for_the_call_only(instant):
    before, seen = torch.get_num_threads(), []
    instant(picture(0), threads=before + 1, callback=lambda _: seen.append(torch.get_num_threads()))
    assert seen == [before + 1]
    assert torch.get_num_threads() == before


def test_several_threads_of_a_program_may_restore_at_once(instant):
    alone = [instant(picture(seed)).image for seed in range(3)]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda seed: instant(picture(seed)).image, range(3)))
    assert all(np.array_equal(one, other) for one, other in zip(alone, together, strict=True))


def test_the_package_offers_it_lazily():
    assert codiffuse.restore is api.restore
    assert {"restore", "Restored", "__version__"} <= set(dir(codiffuse))
    with pytest.raises(AttributeError, match="nothing"):
        _ = codiffuse.nothing


# The documentation


def test_of_a_sharp_picture_the_trust_is_unknown(program):
    pixels = np.random.default_rng(0).random((48, 48, 3), dtype=np.float32)
    restored = codiffuse.restore(pixels, sigma=0.01, num_samples=2)
    assert (restored.trust, restored.flags[0], restored.status) == (None, "sharp", "ok")
    assert restored.kernel.max() == 1


def test_the_walk_through_runs(tmp_path, instant, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CODIFFUSE_DOCS_SIDE", "48")
    names = runpy.run_path(str(ROOT / "docs/restore.py"))
    assert names["restored"].image.shape == (48, 48, 3)
    assert names["restored"].std.shape == (48, 48)
    assert {"restored.png", "kernel.npy", "std.png"} <= {path.name for path in names["folder"].iterdir()}
