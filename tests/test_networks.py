"""Networks: laws of the UNet and of the small denoisers, recorded outputs, and the keys of published checkpoints."""

import json

import pytest
import torch

from codiffuse.errors import InputError
from codiffuse.networks.dncnn import DnCNN, FFDNet
from codiffuse.networks.unet import UNet, sinusoidal_embedding

SMALL = {"channels": 8, "channel_mult": (1, 2), "attention_levels": (1,), "head_channels": 8, "norm_groups": 4}
DEFAULT_CHANNEL_MULT = {256: (1, 1, 2, 2, 4, 4), 128: (1, 1, 2, 3, 4), 64: (1, 2, 3, 4)}


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def awake(network, seed=0):
    """Random weights everywhere: a fresh UNet ends in zeros and so answers zero."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.data.normal_(std=0.2, generator=generator)
    return network


def small_unet(**options):
    return awake(UNet(**{**SMALL, **options}))


def published_unet(config):
    """The `UNet` of a guided-diffusion model config, whose `attention_resolutions` are sizes of feature maps."""
    mult = config["channel_mult"]
    mult = tuple(int(m) for m in mult.split(",")) if mult else DEFAULT_CHANNEL_MULT[config["image_size"]]
    sizes = [config["image_size"] >> level for level in range(len(mult))]
    attended = [int(size) for size in str(config["attention_resolutions"]).split(",")]
    channels = 1 if config.get("grayscale") else 2 if config.get("twochan") else 3
    return UNet(
        in_channels=channels,
        out_channels=2 * channels if config["learn_sigma"] else channels,
        channels=config["num_channels"],
        channel_mult=mult,
        num_res_blocks=config["num_res_blocks"],
        attention_levels=[sizes.index(size) for size in attended],
        head_channels=config["num_head_channels"],
        dropout=config["dropout"],
    )


# Laws of the UNet


@pytest.mark.parametrize("options", [{}, {"channel_mult": (1, 1, 2, 2), "num_res_blocks": 2}, {"patch_size": 4}])
@pytest.mark.parametrize("size", [(8, 8), (9, 13), (31, 8), (16, 40)])
def test_any_size_keeps_its_shape(options, size):
    network = small_unet(in_channels=2, out_channels=5, **options)
    output = network(randn(2, 2, *size), torch.tensor([3.0, 700.0]))
    assert output.shape == (2, 5, *size)
    assert torch.isfinite(output).all()


def test_a_size_that_the_levels_do_not_divide_is_extended_by_its_edge():
    network, x, time = small_unet(channel_mult=(1, 1, 2)), randn(1, 3, 9, 14), torch.tensor([50.0])
    extended = torch.nn.functional.pad(x, (0, 2, 0, 3), mode="replicate")
    torch.testing.assert_close(network(x, time), network(extended, time)[..., :9, :14], rtol=0, atol=0)


def test_an_untrained_network_predicts_zero_whatever_it_sees():
    assert UNet(**SMALL)(randn(1, 3, 8, 8), torch.tensor([5.0])).abs().max() == 0


def test_output_depends_on_the_picture_the_time_and_every_weight():
    network, x = small_unet(), randn(1, 3, 8, 8)
    output = network(x, torch.tensor([5.0]))
    assert not torch.allclose(output, network(x.flip(-1), torch.tensor([5.0])))
    assert not torch.allclose(output, network(x, torch.tensor([5.5])))
    output.square().sum().backward()
    assert [name for name, weight in network.named_parameters() if weight.grad.abs().max() == 0] == []


def test_images_of_a_batch_do_not_meet():
    network, x, time = small_unet(), randn(3, 3, 9, 10), torch.tensor([1.0, 50.0, 900.0])
    alone = torch.cat([network(x[i : i + 1], time[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(network(x, time), alone, rtol=1e-5, atol=1e-5)


def test_patches_are_sub_sampled_pictures():
    network = small_unet(in_channels=2, out_channels=3, patch_size=2)
    same = UNet(in_channels=8, out_channels=12, **SMALL)
    same.load_state_dict(network.state_dict())
    x, time = randn(1, 2, 16, 16), torch.tensor([100.0])
    expected = torch.nn.functional.pixel_shuffle(same(torch.nn.functional.pixel_unshuffle(x, 2), time), 2)
    torch.testing.assert_close(network(x, time), expected, rtol=0, atol=0)


@pytest.mark.parametrize("frozen", [True, False])
def test_checkpointing_changes_nothing_but_memory(frozen):
    results = []
    for use_checkpoint in (False, True):
        network = small_unet(use_checkpoint=use_checkpoint).requires_grad_(not frozen)
        x = randn(2, 3, 8, 8).requires_grad_()
        output = network(x, torch.tensor([5.0, 500.0]))
        output.square().sum().backward()
        gradients = [p.grad for p in network.parameters()]
        assert all(g is None for g in gradients) if frozen else all(g is not None for g in gradients)
        results.append((output.detach(), x.grad, [g for g in gradients if g is not None]))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)


def test_checkpointing_keeps_fewer_activations():
    def kept(use_checkpoint):
        network = small_unet(use_checkpoint=use_checkpoint).requires_grad_(False)
        count = 0

        def pack(tensor):
            nonlocal count
            count += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            network(randn(1, 3, 32, 32).requires_grad_(), torch.tensor([5.0]))
        return count

    assert kept(True) < kept(False) / 4


def test_other_precisions_work():
    network, x, time = small_unet(), randn(1, 3, 8, 8), torch.tensor([5.0])
    expected = network(x, time)
    exact = small_unet().double()(x.double(), time.double())
    assert exact.dtype == torch.float64
    torch.testing.assert_close(expected, exact.float(), rtol=1e-4, atol=1e-4)
    half = small_unet().bfloat16()(x.bfloat16(), time)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = network(x, time)
    for output in (half, mixed):
        assert output.dtype == torch.bfloat16
        torch.testing.assert_close(output.float(), expected, rtol=0, atol=0.1 * float(expected.detach().abs().max()))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"channels": 9}, "norm_groups.*9"),
        ({"norm_groups": 3}, "norm_groups.*3"),
        ({"head_channels": 5}, "head_channels.*5"),
    ],
)
def test_widths_that_do_not_divide_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        UNet(**{**SMALL, **options})


@pytest.mark.parametrize("width", [8, 9])
def test_sinusoids_turn_with_time_at_geometric_frequencies(width):
    embedding = sinusoidal_embedding(torch.tensor([0.0, 0.7]), width)
    assert embedding.shape == (2, width)
    assert embedding[0].tolist() == [1.0] * 4 + [0.0] * (width - 4)
    frequencies = torch.tensor([1.0, 0.1, 0.01, 0.001])
    torch.testing.assert_close(embedding[1, :8], torch.cat([(0.7 * frequencies).cos(), (0.7 * frequencies).sin()]))


# Laws of the small denoisers


@pytest.mark.parametrize(
    "network", [DnCNN(2, bias=False), DnCNN(2, bias=False, residual=True), FFDNet(2, 32, 5, bias=False)]
)
def test_without_biases_a_denoiser_works_at_any_scale(network):
    network, x, sigma = awake(network), randn(2, 2, 9, 11), torch.tensor([0.1, 0.3])
    torch.testing.assert_close(network(x / 8, sigma / 8), network(x, sigma) / 8)


@pytest.mark.parametrize("network", [DnCNN(), DnCNN(3, 16, 3, residual=True), FFDNet(1, 16, 4)])
@pytest.mark.parametrize("size", [(1, 1), (8, 8), (9, 16), (33, 7)])
def test_denoisers_keep_the_shape_and_do_not_mix_images(network, size):
    network, x, sigma = awake(network), randn(2, network.in_channels, *size), torch.tensor([0.1, 0.4])
    output = network(x, sigma)
    assert output.shape == x.shape
    torch.testing.assert_close(output[1:], network(x[1:], sigma[1:]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("network", [DnCNN(), FFDNet(1, 16, 4), DnCNN(noise_map=False)])
def test_only_a_network_with_a_noise_map_sees_the_level(network):
    network, x = awake(network), randn(1, 1, 8, 8)
    same = torch.equal(network(x, torch.tensor([0.1])), network(x, torch.tensor([0.4])))
    assert same == (network.model[0].in_channels == 1)


def test_residual_networks_predict_the_noise():
    direct, residual = awake(DnCNN()), awake(DnCNN(residual=True))
    x, sigma = randn(1, 1, 8, 8), torch.tensor([0.2])
    torch.testing.assert_close(residual(x, sigma), x - direct(x, sigma))


# Recorded outputs of the published programs


def load_recorded(network, data):
    network.load_state_dict(
        {key[2:]: value.float() for key, value in data.items() if key.startswith("w/")}, strict=True
    )
    return network.eval().requires_grad_(False)


@pytest.mark.parametrize("use_checkpoint", [False, True])
@pytest.mark.parametrize("name", ["unet_img_small", "unet_kernel_small", "unet_tilt_small"])
def test_unet_as_published(fixtures_dir, fixture_npz, name, use_checkpoint):
    data = {key: torch.from_numpy(value) for key, value in fixture_npz(f"small_nets/{name}.npz").items()}
    config = json.loads((fixtures_dir / f"small_nets/{name}.config.json").read_text())
    network = load_recorded(published_unet(config), data)
    network.use_checkpoint = use_checkpoint
    x = data["x"].requires_grad_()
    output = network(x, data["t"])
    torch.testing.assert_close(output, data["out"], rtol=0, atol=1e-5)
    (vjp,) = torch.autograd.grad(output, x, data["v"].float())
    torch.testing.assert_close(vjp, data["vjp"], rtol=0, atol=5e-5)


def test_fdncnn_as_published(fixture_npz):
    data = {key: torch.from_numpy(value) for key, value in fixture_npz("small_nets/fdncnn_full.npz").items()}
    network = load_recorded(DnCNN(), data)
    # The record's noise map varies over the picture, so it goes straight to the stack; `forward` makes a constant one.
    torch.testing.assert_close(network.model(data["x"]), data["out"], rtol=0, atol=1e-6)
    x, sigma = data["x"][:, :1], torch.tensor([0.1, 0.4])
    maps = torch.cat([x, sigma[:, None, None, None].expand_as(x)], 1)
    torch.testing.assert_close(network(x, sigma), network.model(maps), rtol=0, atol=0)


def test_ffdnet_as_published(fixture_npz):
    data = {key: torch.from_numpy(value) for key, value in fixture_npz("small_nets/ffdnet_nc32_nb5.npz").items()}
    output = load_recorded(FFDNet(1, 32, 5), data)(data["x"], data["sigma"].flatten())
    torch.testing.assert_close(output, data["out"], rtol=0, atol=1e-5)


# The keys of published checkpoints


def published_dncnn(config):
    return DnCNN(config["out_nc"], config["nc"], config["nb"], noise_map=config["in_nc"] > config["out_nc"])


def published_ffdnet(config):
    return FFDNet(config["in_nc"], config["nc"], config["nb"])


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("ffhq_unet_256", published_unet),
        ("imagenet_unet_256", published_unet),
        ("blinddps_kernel_unet_64", published_unet),
        ("blinddps_tilt_unet_256", published_unet),
        ("fastem_kernel_denoiser_fdncnn", published_dncnn),
        ("kair_dncnn_gray", published_dncnn),
        ("kair_ffdnet_gray", published_ffdnet),
    ],
)
def test_names_and_shapes_of_published_checkpoints(fixtures_dir, name, build):
    published = json.loads((fixtures_dir / f"keys/{name}.json").read_text())
    with torch.device("meta"):
        network = build(published["config"])
    state = network.state_dict()
    assert {key: list(value.shape) for key, value in state.items()} == published["keys"]
    assert sum(value.numel() for value in state.values()) == published["n_params_and_buffers"]
