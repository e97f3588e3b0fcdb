"""Published checkpoints: recognised by names and shapes alone, loaded as priors, or refused in one line."""

import json
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from programs import says
from toys import Trap

from codiffuse import api
from codiffuse.errors import InputError
from codiffuse.inference.settings import prior_hashes
from codiffuse.networks.dncnn import DnCNN
from codiffuse.priors import checkpoints, zoo
from codiffuse.priors.checkpoints import FAST_EM, PUBLISHED, Published
from codiffuse.priors.spec import build, network_of
from codiffuse.schedule import linear_schedule
from codiffuse.spaces import ImageSpace, KernelSpace, TiltSpace

# By the name of the list of keys: file, part, kind, what the prior lives in.
RECORDED = {
    "ffhq_unet_256": ("ffhq_10m.pt", "image", "prior", ImageSpace()),
    "imagenet_unet_256": ("imagenet256.pt", "image", "prior", ImageSpace()),
    "blinddps_kernel_unet_64": ("kernel_checkpoint.pt", "kernel", "prior", KernelSpace("max", rotated=True)),
    "blinddps_tilt_unet_256": ("tilt_checkpoint.pt", "tilt", "prior", TiltSpace(1.0)),
    "fastem_kernel_denoiser_fdncnn": ("kernel_denoiser.pth", "kernel_denoiser", "kernel_denoiser", None),
}
FIRST, LAST = "input_blocks.0.0.weight", "time_embed.2.weight"


def with_network(spec, **network):
    return {**spec, "network": {**spec["network"], **network}}


SMALL = {"channels": 8, "channel_mult": (1, 2), "attention_levels": (1,), "head_channels": 8, "norm_groups": 4}
TINY = Published(
    "tiny image network", ("tiny.pt",), "image", "example.org/tiny", with_network(PUBLISHED[0].spec, **SMALL)
)


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """The weights of a network that is as good as published, and its file."""
    monkeypatch.setattr(checkpoints, "PUBLISHED", (*PUBLISHED[-2:], TINY))  # the large ones take time
    network = network_of(build(TINY.spec))
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data = parameter.data.normal_(std=0.1, generator=generator).half().float()
    weights = network.state_dict()
    torch.save(weights, tmp_path / "tiny.pt")
    return weights, tmp_path / "tiny.pt"


def refused(action, *words):
    with pytest.raises(InputError) as caught:
        action()
    message = str(caught.value)
    assert message.startswith("Expected")
    assert "\n" not in message
    assert all(word in message for word in words), message


# Which network it is


@pytest.mark.parametrize("name", RECORDED)
def test_names_and_shapes_say_which_network_it_is(fixtures_dir, name):
    recorded = json.loads((fixtures_dir / f"keys/{name}.json").read_text())
    weights = {key: torch.empty(shape, device="meta") for key, shape in recorded["keys"].items()}
    each = checkpoints.recognise(weights, Path("x.pt"))
    file, part, kind, space = RECORDED[name]
    assert file in each.files
    assert recorded["config"].get("model_path", f"models/{file}") == f"models/{file}"
    assert (each.part, each.spec["kind"]) == (part, kind)
    model = build(each.spec, "meta")
    assert zoo.count_parameters(model) == recorded["n_params_and_buffers"]
    if kind == "prior":
        assert (model.space, model.learned_variance) == (space, True)
        assert len(model.time.schedule.alpha_bar) == 1000


def test_a_kernel_denoiser_may_lack_its_biases(tmp_path, tiny):
    network = DnCNN(bias=False)
    torch.save(network.state_dict(), tmp_path / "any.pth")
    loaded = zoo.load(tmp_path / "any.pth", "kernel_denoiser")
    kernel, sigma = torch.rand(1, 1, 9, 9), torch.tensor([0.1])
    torch.testing.assert_close(loaded(kernel, sigma), network(kernel, sigma))
    torch.save({**network.state_dict(), "model.0.bias": torch.zeros(32)}, tmp_path / "one.pth")
    refused(lambda: zoo.load(tmp_path / "one.pth"), "without biases", "'model.0.bias' is not part of the network")


def test_no_two_can_be_mistaken_for_each_other():
    networks = [network_of(build(each.spec, "meta")).state_dict() for each in PUBLISHED]
    shapes = {tuple((key, value.shape) for key, value in weights.items()) for weights in networks}
    names = [name for each in PUBLISHED for name in each.files]
    assert len(shapes) == len(PUBLISHED)
    assert len(set(names)) == len(names)
    assert all(checkpoints.is_name(name) for name in names)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.pop(LAST), [f"'{LAST}' is missing"]),
        (lambda w: w.update(extra=torch.zeros(1)), ["'extra' is not part"]),
        (lambda w: w.update({FIRST: torch.zeros(8, 3, 5, 5)}), [f"'{FIRST}' is of", "(8, 3, 5, 5)", "(8, 3, 3, 3)"]),
        (lambda w: (w.pop(LAST), w.pop(FIRST)), [f"'{FIRST}' is missing and 1 more"]),
    ],
)
def test_the_nearest_network_is_named(tiny, change, words):
    weights, path = tiny
    change(weights)
    torch.save(weights, path)
    refused(lambda: zoo.load(path), str(path), "nearest is the tiny image network, but", *words)


# What is loaded


@pytest.mark.parametrize("name", ["unet_img_small", "unet_kernel_small", "unet_tilt_small"])
def test_recorded_numbers(fixture_npz, tmp_path, monkeypatch, name):
    """Of a small network with the layers of the published one, from its file to x0-hat."""
    data = {key: torch.from_numpy(value) for key, value in fixture_npz(f"small_nets/{name}.npz").items()}
    published = {"unet_img_small": 0, "unet_kernel_small": 2, "unet_tilt_small": 3}[name]
    network = {"channels": 32, "channel_mult": (1, 1), "attention_levels": (1,), "head_channels": 16}
    spec = with_network(PUBLISHED[published].spec, **network)
    monkeypatch.setattr(checkpoints, "PUBLISHED", (Published("small network", (), "image", "", spec),))
    weights = {key[2:]: value for key, value in data.items() if key.startswith("w/")}
    tables = {"sqrt_alphas_cumprod": torch.zeros(1000), "sqrt_1m_alphas_cumprod": torch.zeros(1000)}
    torch.save(weights | tables, tmp_path / "small.pt")
    prior = zoo.load(tmp_path / "small.pt", "prior")

    alpha_bar = linear_schedule().alpha_bar[data["t"].long()]
    denoised = prior.denoise(data["x"], alpha_bar)
    eps, variance = data["out"].chunk(2, 1)
    a = alpha_bar.reshape(-1, 1, 1, 1).float()
    torch.testing.assert_close(a.sqrt() * denoised.x0, data["x"] - (1 - a).sqrt() * eps, rtol=0, atol=2e-5)
    torch.testing.assert_close(denoised.variance_fraction, (variance + 1) / 2, rtol=0, atol=1e-5)


@pytest.mark.parametrize("as_saved", [{}, {"_use_new_zipfile_serialization": False}])
def test_a_file_becomes_a_frozen_prior(tiny, as_saved):
    weights, path = tiny
    torch.save({key: value.half() for key, value in weights.items()}, path, **as_saved)
    state = torch.random.get_rng_state()
    prior = zoo.load(str(path), "prior", precision="bfloat16")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert prior.autocast
    assert not prior.training
    assert not any(parameter.requires_grad for parameter in prior.parameters())
    assert prior.network.state_dict().keys() == weights.keys() == zoo.read(path)[1].keys()
    for key, value in prior.network.state_dict().items():
        assert (value.dtype, value.device.type) == (torch.float32, "cpu")
        assert torch.equal(value, weights[key]), key


def test_a_prior_outlives_its_file(tiny):
    weights, path = tiny
    prior = zoo.load(path)
    path.write_bytes(bytes(path.stat().st_size))
    for key, value in prior.network.state_dict().items():
        assert torch.equal(value, weights[key]), key


def test_a_zoo_folder_may_have_the_name_of_a_file(tiny, tmp_path):
    weights, _ = tiny
    zoo.save(tmp_path / "folder.pt", TINY.spec, weights, "# A folder\n")
    assert zoo.find(tmp_path / "folder.pt") == tmp_path / "folder.pt"
    assert zoo.load(tmp_path / "folder.pt", "prior").space == ImageSpace()


# What is refused


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ffhq_10m.pt", ["FFHQ", "github.com/DPS2022/diffusion-posterior-sampling", "set prior.image.name="]),
        ("kernel_checkpoint.pt", ["BlindDPS", "github.com/BlindDPS/blind-dps", "set prior.kernel.name="]),
        ("kernel_denoiser_33.pth", ["claroche-r/FastDiffusionEM", "set prior.kernel_denoiser.name="]),
        ("mine.PT", ["ffhq_10m.pt, imagenet256.pt", "check the path"]),
    ],
)
def test_a_missing_file_is_told_where_to_get(tmp_path, name, words):
    refused(lambda: zoo.load(tmp_path / name), str(tmp_path / name), "found none", *words)


def test_a_name_that_is_nothing_lists_what_may_be(use_tiny_zoo):
    refused(lambda: zoo.load("ffhq_10m"), "natural_image", "(.pt, .pth)", "'ffhq_10m'")


def test_the_kind_is_asked_for(tiny):
    refused(lambda: zoo.load(tiny[1], "kernel_denoiser"), "'kernel_denoiser'", "'tiny.pt'", "'prior'")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["an empty file", "download it again"]),
        (b"<!DOCTYPE html><html><title>Google Drive - Quota exceeded</title>", ["web page", "with a browser"]),
        (b"\n  <html>", ["web page"]),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:81d5", ["another kind"]),
        (b"PK\x03\x04 and no more", ["only a part", "download it again"]),
        (b"\x80\x02 and no more", ["damaged", "download it again"]),
    ],
    ids=["empty", "page", "page with space", "pointer", "zip", "pickle"],
)
def test_what_is_no_checkpoint(tmp_path, content, words):
    (tmp_path / "ffhq_10m.pt").write_bytes(content)
    refused(lambda: zoo.load(tmp_path / "ffhq_10m.pt"), str(tmp_path / "ffhq_10m.pt"), *words)


def test_a_folder_is_no_checkpoint(tmp_path):
    (tmp_path / "ffhq_10m.pt").mkdir()
    refused(lambda: zoo.load(tmp_path / "ffhq_10m.pt"), "got a folder")


@pytest.mark.parametrize("as_saved", [{}, {"_use_new_zipfile_serialization": False}])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9, 0.999])
def test_a_download_that_broke_off(tiny, as_saved, share):
    weights, path = tiny
    torch.save(weights, path, **as_saved)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    refused(lambda: zoo.load(path), str(path), "download it again")


def test_bytes_that_fell_over(tiny):
    """Whatever torch raises over the pickle in a file, it ends in one line."""
    _, path = tiny
    with zipfile.ZipFile(path) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    pickled = next(name for name in parts if name.endswith("data.pkl"))
    messages = []
    for position in range(0, 300, 7):
        broken = bytearray(parts[pickled])
        broken[position] ^= 0x80
        with zipfile.ZipFile(path, "w") as file:
            for name, content in parts.items():
                file.writestr(name, bytes(broken) if name == pickled else content)
        try:
            checkpoints.load_plain(path, "")  # not every byte means something
        except InputError as error:
            messages.append(str(error))
    assert len(messages) > 20
    assert all(message.startswith(f"Expected a checkpoint of plain tensors at {path}") for message in messages)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (torch.zeros(3), ["got a Tensor"]),
        ({"step": 1, "model": {}, "opt": {}}, ["a mapping with step, model, opt", "save the weights alone"]),
        ({"epoch": 1, "state_dict": {}}, ["codiffuse export"]),
        ({}, ["'model.0.weight' is missing"]),
    ],
    ids=["tensor", "trainer", "training", "nothing"],
)
def test_tensors_that_are_no_weights_of_a_network(tmp_path, content, words):
    torch.save(content, tmp_path / "other.pt")
    refused(lambda: zoo.load(tmp_path / "other.pt"), "other.pt", *words)


@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, protocol=2))])
def test_no_code_is_run(tiny, tmp_path, write):
    weights, path = tiny
    write({**weights, "trap": Trap(tmp_path / "trapped")}, path)
    refused(lambda: zoo.load(path), "pickled objects", "could run code", str(path))
    assert not (tmp_path / "trapped").exists()


# In a run


def test_a_run_with_a_checkpoint(infer, pictures, tiny):
    weights, path = tiny
    path = path.rename(path.with_name("tiny (1).pt"))  # as browsers do
    settings = ("input=pictures/a.png", f"prior.image.name={path}", "run_id=mine", "animate=false")
    ended = infer(*settings)
    assert (ended.code, ended.err) == (0, "")
    assert ended.rows()[0]["status"] == "ok"
    torch.save({key: 2 * value for key, value in weights.items()}, path)
    says(infer(*settings), "others for weights")
    says(infer("input=pictures/a.png", "prior.kernel_denoiser.name=kernel_denoiser.pth"), "none", FAST_EM)


def test_weights_are_known_by_their_bytes(tiny):
    _, path = tiny
    named = {"_target_": "codiffuse.priors.zoo.load", "name": str(path)}
    unused = named | {"name": "ffhq_10m.pt"}  # which need not be there
    settings = {"prior": {"image": named, "kernel": unused}, "method": {"prior": named}}
    before = prior_hashes(settings)
    assert before.keys() == {str(path)}
    path.write_bytes(path.read_bytes() + b"\n")
    assert prior_hashes(settings) != before


def test_a_checkpoint_is_kept_until_its_file_changes(tiny):
    _, path = tiny
    link = path.with_name("link.pt")
    link.symlink_to(path.rename(path.with_name("blob")))  # as caches of downloads have it
    first = api.load_prior(link, "prior")
    assert api.load_prior(link, "prior") is first
    os.utime(link, ns=(1, 1))
    assert api.load_prior(link, "prior") is not first
