"""The zoo: what is saved comes back, and what cannot be loaded is refused in one line that says why."""

import pickle

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from toys import Trap

from codiffuse.errors import InputError
from codiffuse.networks.dncnn import DnCNN
from codiffuse.priors import zoo
from codiffuse.priors.parameterizations import EdmPrediction
from codiffuse.priors.prior import Prior
from codiffuse.schedule import linear_schedule
from codiffuse.spaces import ImageSpace

PRIOR = {
    "kind": "prior",
    "network": {
        "name": "UNet",
        "channels": 8,
        "channel_mult": [1, 2],
        "attention_levels": [],
        "head_channels": 8,
        "norm_groups": 4,
    },
    "parameterization": {"name": "EdmPrediction", "sigma_data": 0.4},
    "time": {"name": "LogSigmaTime"},
    "space": {"name": "ImageSpace"},
}
DENOISER = {"kind": "kernel_denoiser", "network": {"name": "DnCNN", "width": 8, "depth": 3, "bias": False}}


def trained(spec):
    """A model whose weights are random and exact in float16."""
    generator = torch.Generator().manual_seed(0)
    model = zoo.build(spec)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.1, generator=generator)
        parameter.data = parameter.data.half().float()
    return model


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A zoo of our own with one entry, `small`."""
    monkeypatch.setenv("CODIFFUSE_ZOO", str(tmp_path))
    zoo.save(tmp_path / "small", PRIOR, zoo.network_of(trained(PRIOR)).state_dict(), "# Small\n")
    return tmp_path / "small"


def refused(action, *words):
    with pytest.raises(InputError) as caught:
        action()
    message = str(caught.value)
    assert message.startswith("Expected")
    assert "\n" not in message
    assert all(word in message for word in words), message


# What is saved comes back


@pytest.mark.parametrize("spec", [PRIOR, DENOISER])
def test_a_saved_model_loads_by_name_and_by_path(tmp_path, monkeypatch, spec):
    monkeypatch.setenv("CODIFFUSE_ZOO", str(tmp_path))
    model = trained(spec).eval()
    zoo.save(tmp_path / "mine", spec, zoo.network_of(model).state_dict(), "# Mine\n")
    for name in ("mine", tmp_path / "mine", str(tmp_path / "mine")):
        loaded = zoo.load(name, spec["kind"])
        assert not loaded.training
        assert not any(p.requires_grad for p in loaded.parameters())
        for key, value in zoo.network_of(model).state_dict().items():
            assert torch.equal(zoo.network_of(loaded).state_dict()[key], value), key
    assert (tmp_path / "mine" / "README.md").read_text() == "# Mine\n"
    assert "mine" in zoo.zoo_names()


def test_a_loaded_prior_denoises_like_the_saved_one(folder):
    x_t, alpha_bar = torch.linspace(-1, 1, 3 * 64).reshape(1, 3, 8, 8), linear_schedule().alpha_bar[500:501]
    expected = trained(PRIOR).denoise(x_t, alpha_bar).x0.detach()
    torch.testing.assert_close(zoo.load("small").denoise(x_t, alpha_bar).x0, expected)


def test_the_spec_decides_every_part():
    model = zoo.build({**PRIOR, "learned_variance": True, "network": {**PRIOR["network"], "out_channels": 6}})
    assert isinstance(model, Prior)
    assert model.parameterization == EdmPrediction(sigma_data=0.4)
    assert model.space == ImageSpace()
    assert model.learned_variance
    assert (model.channels, model.network.out_channels) == (3, 6)
    denoiser = zoo.build(DENOISER)
    assert isinstance(denoiser, DnCNN)
    assert zoo.count_parameters(denoiser) == 9 * (2 * 8 + 8 * 8 + 8)


@pytest.mark.parametrize(("time", "last"), [("LinearStepTime", 4.0358e-5), ("CosineStepTime", 2.4e-9)])
def test_step_times_read_the_named_chain(time, last):
    model = zoo.build({**PRIOR, "time": {"name": time, "num_steps": 1000}})
    assert float(model.time.schedule.alpha_bar[-1]) == pytest.approx(last, rel=0.02)


def test_weights_are_stored_in_half_precision_and_used_in_single(folder):
    assert {value.dtype for value in load_file(folder / "model.safetensors").values()} == {torch.float16}
    assert {value.dtype for value in zoo.read_weights(folder).values()} == {torch.float32}
    assert {p.dtype for p in zoo.load("small").parameters()} == {torch.float32}


def test_bfloat16_runs_the_network_alone_in_half_precision(folder):
    x_t, alpha_bar = torch.linspace(-1, 1, 3 * 64).reshape(1, 3, 8, 8), linear_schedule().alpha_bar[500:501]
    single, half = zoo.load("small"), zoo.load("small", precision="bfloat16")
    assert half.output(x_t, alpha_bar).dtype == torch.bfloat16
    expected, found = (prior.denoise(x_t, alpha_bar).x0 for prior in (single, half))
    assert found.dtype == torch.float32
    assert 0 < (found - expected).abs().max() < 0.02
    refused(lambda: zoo.load("small", precision="float16"), "bfloat16", "'float16'")


def test_saving_copies_weights_that_share_memory(tmp_path):
    weights = torch.ones(4, 4, dtype=torch.float16)
    zoo.save(tmp_path / "shared", DENOISER, {"a": weights, "b": weights, "c": weights.T}, "")
    assert set(load_file(tmp_path / "shared" / "model.safetensors")) == {"a", "b", "c"}


def test_our_own_zoo_comes_before_the_shipped_one(folder):
    assert zoo.find("small") == folder
    assert zoo.zoo_dirs()[0] == folder.parent
    assert len(zoo.zoo_dirs()) == 2


# What is refused


def test_an_unknown_name_lists_the_known_ones(folder):
    refused(lambda: zoo.load("smal"), "small", "'smal'")


def test_the_wrong_kind_is_refused(folder):
    refused(lambda: zoo.load("small", "kernel_denoiser"), "'kernel_denoiser'", "'small'", "'prior'")


WEIGHT = "input_blocks.0.0.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.pop(WEIGHT), (WEIGHT, "missing")),
        (lambda w: w.update(extra=torch.zeros(1)), ("'extra'", "not part of the network")),
        (lambda w: w.update({WEIGHT: torch.zeros(8, 3, 5, 5)}), (WEIGHT, "(8, 3, 3, 3)", "(8, 3, 5, 5)")),
    ],
)
def test_weights_of_another_architecture_are_refused(folder, change, words):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")
    refused(lambda: zoo.load("small"), str(folder), *words)


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_truncated_weights_are_refused(folder, kept):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    refused(lambda: zoo.load("small"), str(path), "unreadable")


def test_missing_weights_are_refused(folder):
    (folder / "model.safetensors").unlink()
    refused(lambda: zoo.load("small"), "model.safetensors", "codiffuse export")


@pytest.mark.parametrize("text", [b"kind: [prior", b"a: b: c", b"\xff\xfe\x00", b"kind: !!python/object:os.system x"])
def test_malformed_yaml_is_refused(folder, text):
    (folder / "config.yaml").write_bytes(text)
    refused(lambda: zoo.load("small"), "YAML", "config.yaml")


@pytest.mark.parametrize("text", ["", "- prior", "prior"])
def test_yaml_that_is_no_mapping_is_refused(folder, text):
    (folder / "config.yaml").write_text(text)
    refused(lambda: zoo.load("small"), "mapping", "config.yaml")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": 2}, ("schema", "2", "update codiffuse")),
        ({"kind": "proir"}, ("'proir'",)),
        ({"kind": None}, ("None",)),
        ({"network": {"name": "UNett"}}, ("network.name", "UNet", "'UNett'")),
        ({"network": {"name": "os.system"}}, ("network.name", "'os.system'")),
        ({"network": {"name": ["UNet"]}}, ("network.name",)),
        ({"network": "UNet"}, ("network", "mapping")),
        ({"network": {**PRIOR["network"], "chanels": 8}}, ("UNet", "chanels")),
        ({"network": {**PRIOR["network"], "norm_groups": 5}}, ("norm_groups", "5")),
        ({"parameterization": {"name": "EdmPrediction", "sigma": 1}}, ("EdmPrediction", "'sigma'")),
        ({"time": None}, ("time.name", "LogSigmaTime")),
        ({"space": {"name": "KernelSpace", "scaling": "maximum"}}, ("max or sum", "'maximum'")),
    ],
)
def test_a_spec_that_cannot_be_built_is_refused(folder, change, words):
    (folder / "config.yaml").write_text(yaml.safe_dump({**PRIOR, **change}))
    refused(lambda: zoo.load("small"), *words)


def test_a_network_of_other_channels_than_the_spec_says_is_refused():
    network = {**PRIOR["network"], "in_channels": 1, "out_channels": 2}
    prior = zoo.build({**PRIOR, "network": network})
    refused(lambda: prior.denoise(torch.zeros(1, 1, 8, 8), torch.tensor([0.5])), "learned_variance", "2")


# Training checkpoints


def checkpoint(spec, **changes):
    model = trained(spec)
    state = {f"model.{key}": value for key, value in model.state_dict().items()}
    plain = {"state_dict": state, "hyper_parameters": {"spec": spec, "seed": 7}, "global_step": 12}
    return {**plain, **changes}


@pytest.mark.parametrize("spec", [PRIOR, DENOISER])
def test_a_training_checkpoint_gives_spec_weights_and_hyper_parameters(tmp_path, spec):
    torch.save(checkpoint(spec), tmp_path / "last.ckpt")
    read_spec, weights, hyper = zoo.checkpoint_spec_and_weights(tmp_path / "last.ckpt")
    assert read_spec == spec
    expected = zoo.network_of(trained(spec)).state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[key], expected[key]) for key in expected)
    assert (hyper["global_step"], hyper["seed"]) == (12, 7)
    zoo.save(tmp_path / "exported", read_spec, weights, "")
    zoo.load(tmp_path / "exported", spec["kind"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hyper_parameters": {}}, ("without model and weights",)),
        ({"hyper_parameters": {"spec": {"kind": "prior"}}}, ("network.name",)),
        ({"state_dict": {}}, ("missing",)),
        ({"hyper_parameters": {"spec": DENOISER}}, ("another architecture",)),
    ],
)
def test_a_checkpoint_without_what_it_takes_is_refused(tmp_path, changes, words):
    torch.save(checkpoint(PRIOR, **changes), tmp_path / "last.ckpt")
    refused(lambda: zoo.checkpoint_spec_and_weights(tmp_path / "last.ckpt"), *words)


def test_bare_weights_and_missing_files_are_refused(tmp_path):
    torch.save(trained(PRIOR).state_dict(), tmp_path / "bare.pt")
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    for name in ("bare.pt", "tensor.pt"):
        refused(lambda name=name: zoo.checkpoint_spec_and_weights(tmp_path / name), name, "without model and weights")
    refused(lambda: zoo.checkpoint_spec_and_weights(tmp_path / "none.ckpt"), "none.ckpt", "found none")


@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, protocol=2))])
def test_a_checkpoint_cannot_run_code(tmp_path, write):
    target, path = tmp_path / "trapped", tmp_path / "unsafe.ckpt"
    write(checkpoint(PRIOR, callbacks=Trap(target)), path)
    refused(lambda: zoo.checkpoint_spec_and_weights(path), "plain tensors", str(path))
    assert not target.exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 nor a zip"])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, content):
    (tmp_path / "broken.ckpt").write_bytes(content)
    refused(lambda: zoo.checkpoint_spec_and_weights(tmp_path / "broken.ckpt"), "broken.ckpt")
