"""Metrics against skimage, scipy, brute force and recorded numbers."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage, optimize, signal
from skimage import data
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from codiffuse.errors import InputError
from codiffuse.metrics import (
    Lpips,
    align,
    find_lpips_weights,
    kernel_mse,
    kernel_shift,
    mnc,
    psnr,
    psnr_aligned,
    reblur,
    ssim,
)

PHOTO = torch.from_numpy(data.astronaut() / 255.0).permute(2, 0, 1)[None]  # (1, 3, 512, 512) float64


def photo(size=96, top=40, left=150):
    return PHOTO[..., top : top + size, left : left + size]


def noise_like(image, seed=0):
    return torch.randn(image.shape, generator=torch.Generator().manual_seed(seed), dtype=image.dtype)


def random_kernels(*shape, seed=0):
    kernels = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 4
    return kernels / kernels.sum(dim=(-2, -1), keepdim=True)


def crop(image, border):
    return image[..., border:-border, border:-border]


# PSNR and SSIM


@pytest.mark.parametrize("channels", [1, 3])
def test_psnr_and_ssim_equal_skimage_image_by_image(channels):
    truth = torch.cat([photo(48), photo(48, top=200)])[:, :channels]
    estimate = (truth + torch.tensor([0.05, 0.2])[:, None, None, None] * noise_like(truth)).clamp(0, 1)
    for i in range(2):
        a, b = estimate[i].numpy(), truth[i].numpy()
        assert psnr(estimate, truth)[i].item() == pytest.approx(peak_signal_noise_ratio(b, a, data_range=1), abs=1e-9)
        expected = structural_similarity(
            a, b, channel_axis=0, data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        assert ssim(estimate, truth)[i].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("metric", [psnr, ssim, lambda a, b: psnr_aligned(a, b, 2, 4)])
def test_scores_clip_but_never_round_to_eight_bits(metric):
    truth = photo(32) ** 1.1  # off the 8-bit grid of the photograph
    wild = truth + 0.5 * noise_like(truth)
    torch.testing.assert_close(metric(wild, truth), metric(wild.clamp(0, 1), truth), rtol=0, atol=1e-12)
    nearly = (truth + 1e-3 * noise_like(truth)).clamp(0, 1)
    rounded = (nearly * 255).round() / 255
    assert (metric(nearly, truth) > metric(rounded, truth)).all()
    assert metric(nearly.float(), truth.float()).dtype == torch.float64


def test_images_of_different_or_too_small_shape_are_refused():
    with pytest.raises(InputError, match="one shape"):
        psnr(photo(32)[:, :1], photo(32))
    assert ssim(photo(11), photo(11)) == 1
    with pytest.raises(InputError, match="at least 11 px"):
        ssim(photo(10), photo(10))


# Alignment


@pytest.mark.parametrize("shift", [(0, 0), (3, -5), (-8, 8), (8, 1)])
def test_integer_shift_is_undone_exactly(shift):
    truth = photo(96)
    estimate = photo(96, top=40 - shift[0], left=150 - shift[1])  # estimate(r) = truth(r - shift)
    aligned, found = align(estimate, truth, max_shift=8, border=8)
    torch.testing.assert_close(found, -torch.tensor([shift], dtype=torch.float64), rtol=0, atol=1e-9)
    torch.testing.assert_close(crop(aligned, 8), crop(truth, 8), rtol=0, atol=1e-9)


def test_integer_search_equals_brute_force():
    truth = photo(48)
    estimate = ndimage.gaussian_filter(photo(48, top=43, left=148).numpy(), (0, 0, 1, 2))
    errors = {
        (i, j): np.mean((np.roll(estimate, (i, j), (2, 3)) - truth.numpy())[..., 6:-6, 6:-6] ** 2)
        for i in range(-6, 7)
        for j in range(-6, 7)
    }
    best = min(errors, key=errors.get)
    _, found = align(torch.from_numpy(estimate), truth, max_shift=6, border=6)
    assert best == (3, -2)
    assert (found - torch.tensor([best])).abs().max() < 0.6
    assert psnr_aligned(torch.from_numpy(estimate), truth, 6, 6) >= -10 * np.log10(errors[best])


def test_aligned_psnr_does_not_depend_on_integer_shifts():
    truth = photo(96)
    scores = []
    for i, j in [(0, 0), (4, -3), (-5, 5)]:
        estimate = ndimage.gaussian_filter(photo(160, top=10 - i, left=120 - j).numpy(), (0, 0, 1.3, 1.3))
        scores.append(psnr_aligned(torch.from_numpy(estimate[..., 30:126, 30:126]), truth, 8, 8))
    assert max(scores) - min(scores) < 1e-3


@pytest.mark.parametrize("seed", range(3))
def test_aligned_psnr_is_at_least_the_plain_one_of_the_same_pixels(seed):
    truth = photo(40, top=60 * seed)
    for estimate in (noise_like(truth, seed), photo(40, top=300), truth + 0.1 * noise_like(truth, seed), truth):
        assert psnr_aligned(estimate, truth, 5, 7) >= psnr(crop(estimate, 7), crop(truth, 7))


def scene(shift=(0.0, 0.0), size=64, blur_px=0.0):
    """Sum of Gaussian blobs, exactly shifted and blurred since it is a formula: out(r) = scene(r - shift)."""
    rng = np.random.default_rng(5)
    grid = np.arange(size, dtype=float)
    image = np.full((size, size), 0.3)
    for row, column, width, height in rng.uniform((-5, -5, 1.2, -0.2), (size + 5, size + 5, 4, 0.4), (60, 4)):
        variance = width**2 + blur_px**2
        y, x = (np.exp(-((grid - c - s) ** 2) / (2 * variance)) for c, s in zip((row, column), shift, strict=True))
        image += height * width**2 / variance * np.outer(y, x)
    return torch.from_numpy(image)[None, None] / 2


@pytest.mark.parametrize("blur_px", [0.0, 2.5])
def test_sub_pixel_shifts_are_found_in_sharp_blurred_and_noisy_images(blur_px):
    shifts = [(0.5, -0.5), (2.3, 1.25), (-4.49, 0.1)]
    estimate = torch.cat([scene(shift, blur_px=blur_px) for shift in shifts])
    estimate = estimate + 0.01 * noise_like(estimate)
    _, found = align(estimate, scene().expand(3, -1, -1, -1), max_shift=6, border=8)
    torch.testing.assert_close(found, -torch.tensor(shifts, dtype=torch.float64), rtol=0, atol=0.05)


def test_moved_image_is_the_estimate_at_the_reported_shift():
    black_and_white = (photo(40)[:, :1] > 0.5).double()  # its fractional shifts overshoot [0, 1]
    truth = 0.6 * black_and_white + 0.4 * black_and_white.roll(1, -1)
    fractions = []
    for estimate in (black_and_white, noise_like(truth)):
        aligned, shift = align(estimate, truth, max_shift=5, border=7)
        mirrored = np.pad(estimate[0, 0].clamp(0, 1).numpy(), ((0, 40), (0, 40)), mode="symmetric")
        moved = np.fft.ifft2(ndimage.fourier_shift(np.fft.fft2(mirrored), shift[0].numpy())).real[:40, :40]
        np.testing.assert_allclose(aligned[0, 0].numpy(), moved.clip(0, 1), atol=1e-9)
        fractions.append((shift - shift.round()).abs().max().item())
    assert fractions[0] > 0.2
    assert fractions[1] == 0  # Newton's method goes astray on this noise: the best integer shift stands


def test_sub_pixel_psnr_equals_a_general_optimiser_on_scipys_fourier_shift():
    truth = photo(64)[0, 1].numpy()
    kernel = np.outer([0.1, 0.2, 0.3, 0.4], [0.6, 0.0, 0.4])  # moves the image by a fraction, and not symmetrically
    estimate = signal.convolve2d(truth, kernel, mode="same", boundary="symm")
    mirrored = np.pad(estimate, ((0, 64), (0, 64)), mode="symmetric")

    def error(shift):
        moved = np.fft.ifft2(ndimage.fourier_shift(np.fft.fft2(mirrored), shift)).real[:64, :64]
        return np.mean((moved - truth)[5:-5, 5:-5] ** 2)

    best = optimize.minimize(error, (0.1, 0.1), method="Nelder-Mead", options={"xatol": 1e-4, "fatol": 1e-12})
    score = psnr_aligned(torch.from_numpy(estimate)[None, None], torch.from_numpy(truth)[None, None], 5, 5)
    assert -10 * np.log10(best.fun) == pytest.approx(score.item(), abs=2e-3)
    assert score - (-10 * np.log10(error((0, 0)))) > 0.5


def test_sub_pixel_step_does_not_reward_noise():
    truth = photo(96)
    noisy = (truth + 0.1 * noise_like(truth)).clamp(0, 1)
    gain = psnr_aligned(noisy, truth, 4, 8) - psnr(crop(noisy, 8), crop(truth, 8))
    assert 0 <= gain < 0.01


def test_each_image_is_aligned_on_its_own():
    truth = torch.cat([photo(48), photo(48, top=200)])
    estimate = torch.cat([photo(48, left=152), photo(48, top=203)])
    together = psnr_aligned(estimate, truth, 4, 5), align(estimate, truth, 4, 5)[1]
    for i in range(2):
        alone = (estimate[i : i + 1], truth[i : i + 1], 4, 5)
        assert psnr_aligned(*alone)[0].item() == pytest.approx(together[0][i].item(), rel=1e-6)
        torch.testing.assert_close(align(*alone)[1][0], together[1][i], rtol=0, atol=1e-9)


def test_alignment_of_flat_and_failed_images_does_not_stop_the_batch():
    truth = torch.cat([photo(32), torch.full_like(photo(32), 0.25), photo(32)])
    estimate = torch.cat([photo(32), torch.full_like(photo(32), 0.75), torch.full_like(photo(32), torch.nan)])
    scores = psnr_aligned(estimate, truth, 3, 4)
    assert scores[0] > 100
    assert scores[1].item() == pytest.approx(-10 * np.log10(0.25), abs=1e-6)
    assert scores[2].isnan()


@pytest.mark.parametrize(("max_shift", "border"), [(5, 4), (0, 16), (-1, 3)])
def test_impossible_alignment_windows_are_refused(max_shift, border):
    with pytest.raises(InputError, match="max_shift"):
        align(photo(32), photo(32), max_shift, border)


# Reblurring


def convolve(image, kernel):
    """An operator that knows nothing of ours: `scipy.signal.convolve`, image by image."""
    blurred = [signal.convolve(x, k, mode="same") for x, k in zip(image.numpy(), kernel.numpy(), strict=True)]
    return torch.from_numpy(np.stack(blurred))


def test_reblur_is_the_excess_over_the_noise():
    x, kernel = torch.cat([photo(64), photo(64, top=200)]), random_kernels(2, 1, 5, 5)
    sigma = torch.tensor([0.02, 0.1])
    clean = convolve(x, kernel)
    y = clean + sigma[:, None, None, None] * noise_like(clean)
    assert (reblur(y, x, kernel, sigma, convolve).abs() < 0.05 * sigma**2).all()  # 5 standard deviations
    torch.testing.assert_close(reblur(clean, x, kernel, sigma, convolve), -(sigma.double() ** 2))
    wrong = reblur(y, x, kernel.flip(-2, -1), sigma, convolve)
    expected = ((convolve(x, kernel.flip(-2, -1)) - y) ** 2).mean(dim=(1, 2, 3)) - sigma**2
    torch.testing.assert_close(wrong, expected.double(), rtol=1e-5, atol=0)
    assert (wrong > reblur(y, x, kernel, sigma, convolve)).all()


# Kernels


@pytest.mark.parametrize("pair", range(4))
def test_mnc_equals_the_recorded_numbers(pair, fixture_npz):
    recorded = fixture_npz("numeric/mnc.npz")
    estimate, truth = (torch.from_numpy(recorded[f"p{pair}/{name}"])[None, None] for name in ("est", "gt"))
    assert mnc(estimate, truth).item() == pytest.approx(recorded[f"p{pair}/mnc_corr_full"].item(), abs=1e-9)


@pytest.mark.parametrize("size", [(9, 9), (8, 8), (6, 13), (15, 15)])
def test_kernel_scores_equal_brute_force_for_any_size(size):
    estimate, truth = random_kernels(2, 1, *size), random_kernels(2, 1, 9, 9, seed=1)
    for i in range(2):
        a, b = estimate[i, 0].numpy(), truth[i, 0].numpy()
        correlation = signal.correlate(b, a, mode="full", method="direct")
        expected = correlation.max() / np.linalg.norm(a) / np.linalg.norm(b)
        assert mnc(estimate, truth)[i].item() == pytest.approx(expected, abs=1e-12)

        # Both on one plane with their centres at (40, 40), the estimate moved to every place.
        plane_a, plane_b = np.zeros((2, 80, 80))
        for plane, kernel in ((plane_a, a), (plane_b, b)):
            h, w = kernel.shape
            plane[40 - h // 2 : 40 - h // 2 + h, 40 - w // 2 : 40 - w // 2 + w] = kernel
        errors = {
            (r, c): np.sum((np.roll(plane_a, (r, c), (0, 1)) - plane_b) ** 2)
            for r in range(-12, 13)
            for c in range(-12, 13)
        }
        best = min(errors, key=errors.get)
        assert kernel_mse(estimate, truth)[i].item() == pytest.approx(errors[best] / 81, abs=1e-12)
        assert tuple(kernel_shift(estimate, truth)[i].tolist()) == best


def test_kernel_scores_ignore_shifts_and_padding():
    truth = random_kernels(3, 1, 7, 7)
    estimate = F.pad(truth, (5, 2, 1, 8))
    torch.testing.assert_close(mnc(estimate, truth), torch.ones(3, dtype=torch.float64))
    assert kernel_mse(estimate, truth).max() < 1e-15
    assert (kernel_mse(estimate, truth) >= 0).all()


def test_image_and_kernel_are_off_by_opposite_shifts():
    x, shift = photo(64), (2, -3)
    kernel = random_kernels(1, 1, 5, 5)
    moved_kernel = F.pad(kernel, (3, 3, 3, 3)).roll(shift, (-2, -1))
    moved_image = x.roll((-shift[0], -shift[1]), (-2, -1))
    torch.testing.assert_close(  # the pair explains the measurement as well as the truth does
        crop(convolve(moved_image, moved_kernel), 8), crop(convolve(x, kernel), 8), rtol=0, atol=1e-12
    )
    assert kernel_shift(moved_kernel, kernel).tolist() == [[-2, 3]]
    torch.testing.assert_close(align(moved_image, x, 4, 8)[1], torch.tensor([[2.0, -3.0]], dtype=torch.float64))


# LPIPS


@pytest.fixture(scope="module")
def lpips_weights():
    path = find_lpips_weights()
    if path is None:
        pytest.skip("no LPIPS weights: CODIFFUSE_WEIGHTS names no folder that holds them")
    return path


@pytest.fixture(scope="module")
def lpips(lpips_weights):
    return Lpips(lpips_weights)


def lpips_by_hand(state, estimate, truth):
    """The definition of Zhang et al. (2018), Eq. (1), written out for AlexNet."""
    shift = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    scale = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    # The published scaling layer rounds these constants in [-1, 1] units.
    shift, scale = (2 * shift - 1).mul(1000).round().div(1000), (2 * scale).mul(1000).round().div(1000)
    x = (torch.cat([estimate, truth]).float() * 2 - 1 - shift) / scale
    total = 0.0
    for layer, (name, stride, padding) in enumerate([(0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1)]):
        if layer in (1, 2):
            x = F.max_pool2d(x, 3, 2)
        x = F.conv2d(x, state[f"features.{name}.weight"], state[f"features.{name}.bias"], stride, padding).relu()
        a, b = (x / (x.norm(dim=1, keepdim=True) + 1e-10)).chunk(2)
        total = total + ((a - b) ** 2 * state[f"lin{layer}.model.1.weight"]).sum(1).mean(dim=(1, 2))
    return total


def test_lpips_is_zero_for_equal_images_and_grows_with_noise(lpips):
    truth = photo(64).float()
    scores = [lpips((truth + level * noise_like(truth)).clamp(0, 1), truth).item() for level in (0, 0.05, 0.1, 0.2)]
    assert scores[0] == 0
    assert scores == sorted(scores)
    assert scores[-1] > 0.1


def test_lpips_equals_its_definition(lpips, lpips_weights):
    truth = torch.cat([photo(64), photo(64, top=200)])
    estimate = (truth + 0.1 * noise_like(truth)).clamp(0, 1)
    expected = lpips_by_hand(torch.load(lpips_weights, weights_only=True), estimate, truth)
    torch.testing.assert_close(lpips(estimate, truth), expected.double(), rtol=1e-4, atol=1e-6)


def test_lpips_takes_gray_images_and_refuses_tiny_ones(lpips):
    gray, noisy = photo(64)[:, :1], photo(64)[:, :1] + 0.1
    assert lpips(noisy, gray).item() == lpips(noisy.expand(-1, 3, -1, -1), gray.expand(-1, 3, -1, -1)).item()
    assert lpips(photo(31) * 0.5, photo(31)).isfinite()
    with pytest.raises(InputError, match="at least 31 px"):
        lpips(photo(30), photo(30))


def test_lpips_completes_plain_torchvision_weights_with_the_published_heads(lpips, lpips_weights, tmp_path):
    state = torch.load(lpips_weights, weights_only=True)
    features = {name: value for name, value in state.items() if name.startswith("features.")}
    torch.save(features | {"classifier.1.weight": torch.zeros(2)}, tmp_path / "alexnet.pth")
    a, b = photo(48), photo(48, top=200)
    assert Lpips(tmp_path / "alexnet.pth")(a, b).item() == pytest.approx(lpips(a, b).item(), abs=1e-7)


def test_missing_or_foreign_lpips_weights_are_explained(tmp_path, monkeypatch):
    monkeypatch.setenv("CODIFFUSE_WEIGHTS", str(tmp_path / "mine"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert find_lpips_weights() is None
    with pytest.raises(InputError, match=r"lpips_alexnet\.pth into .*mine"):
        Lpips()
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"no features\.0\.bias"):
        Lpips(tmp_path / "other.pth")


def test_lpips_weights_are_found_in_the_named_folder_before_the_hub_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CODIFFUSE_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cached = tmp_path / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth"
    cached.parent.mkdir(parents=True)
    cached.touch()
    assert find_lpips_weights() == cached
    (tmp_path / "lpips_alexnet.pth").touch()
    assert find_lpips_weights() == tmp_path / "lpips_alexnet.pth"
