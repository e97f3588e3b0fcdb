"""Random blur kernels: laws, recorded numbers of the published generator, edge cases."""

import math

import numpy as np
import pytest
import torch

from codiffuse.errors import InputError
from codiffuse.simulate.gaussian import GaussianKernels, gaussian_kernel
from codiffuse.simulate.mixture import MixtureKernels, RandomSizeKernels
from codiffuse.simulate.motion import (
    CameraShakeKernels,
    RandomPathKernels,
    _draw_line,
    _splat,
    camera_shake_kernel,
    random_path,
    random_path_kernel,
    shake_path,
)
from codiffuse.simulate.support import centre_kernel, pad_kernel

LAWS = [RandomPathKernels, CameraShakeKernels, GaussianKernels]
RECORDED_PATHS = [(0, 64, 0.5), (1, 64, 0.5), (2, 64, 0.9), (3, 64, 0.2), (4, 65, 0.5)]


class LowestUniform:
    """A generator whose `uniform` always returns the lower end: the shortest path that can be drawn."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        return low

    def __getattr__(self, name: str):
        return getattr(self.rng, name)


def centre_of_mass(kernel: torch.Tensor) -> tuple[float, float]:
    """Row and column."""
    mass = kernel[0].double() / kernel.double().sum()
    h, w = mass.shape
    return float(mass.sum(1) @ torch.arange(h).double()), float(mass.sum(0) @ torch.arange(w).double())


def covariance(kernel: torch.Tensor) -> np.ndarray:
    """Second central moments, x before y."""
    mass = kernel[0].double().numpy()
    y, x = np.indices(mass.shape)
    return np.cov(np.stack([x.ravel(), y.ravel()]), aweights=mass.ravel(), ddof=0)


def assert_is_kernel(kernel: torch.Tensor, h: int, w: int) -> None:
    assert kernel.shape == (1, h, w)
    assert kernel.dtype == torch.float32
    assert kernel.min() >= 0
    assert float(kernel.double().sum()) == pytest.approx(1, abs=1e-6)


# Laws that hold for every random kernel.


@pytest.mark.parametrize("law", LAWS)
def test_every_size_gives_a_centred_kernel(law):
    for size in [*range(5, 66), 106, 107, 128, 129]:
        rng = np.random.default_rng(size)
        for _ in range(3):
            kernel = law(size)(rng)
            assert_is_kernel(kernel, size, size)
            assert centre_of_mass(kernel) == pytest.approx((size // 2, size // 2), abs=0.5 + 1e-5)


@pytest.mark.parametrize("law", LAWS)
def test_rectangular_size_is_height_by_width(law):
    assert_is_kernel(law((21, 34))(np.random.default_rng(0)), 21, 34)


@pytest.mark.parametrize("law", LAWS)
def test_kernel_depends_on_the_seed_alone(law):
    first, again, other = (law(33)(np.random.default_rng(seed)) for seed in (7, 7, 8))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# The random-path model against the published generator.


@pytest.mark.parametrize(("seed", "size", "intensity"), RECORDED_PATHS)
def test_random_path_repeats_the_published_generator(fixture_npz, seed, size, intensity):
    recorded = fixture_npz("numeric/motionblur_seeded.npz")[f"seed{seed}_size{size}_int{intensity}/path"]
    path = random_path(size, intensity, np.random.RandomState(seed))
    # The recorded path lies on a canvas of twice the resolution.
    np.testing.assert_allclose(2 * np.stack([path.real, path.imag], 1) + size, recorded, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("seed", "size", "intensity"), RECORDED_PATHS)
def test_line_in_8_bits_repeats_the_published_kernel(fixture_npz, seed, size, intensity):
    from PIL import Image, ImageFilter

    recorded = fixture_npz("numeric/motionblur_seeded.npz")[f"seed{seed}_size{size}_int{intensity}/kernel"]
    line = _draw_line(random_path(size, intensity, np.random.RandomState(seed)), size, size, width=1)
    blurred = Image.fromarray((255 * line).astype(np.uint8)).filter(ImageFilter.GaussianBlur(1))
    kernel = np.asarray(blurred.resize((size, size), Image.Resampling.LANCZOS), dtype=np.float64)
    np.testing.assert_allclose(kernel / kernel.sum(), recorded, rtol=0, atol=2e-3 * recorded.max())


@pytest.mark.parametrize(("seed", "size", "intensity"), RECORDED_PATHS)
def test_float_raster_is_the_published_kernel_up_to_its_8_bits(fixture_npz, seed, size, intensity):
    recorded = fixture_npz("numeric/motionblur_seeded.npz")[f"seed{seed}_size{size}_int{intensity}/kernel"]
    kernel = random_path_kernel(size, intensity, np.random.RandomState(seed))[0].numpy()
    # Every pass of the original rounds to 8 bits, and its peak is about 85 of 255 levels: one is 1.2 % of the peak.
    # The outermost pixels are left out: for a path cut off there, the original's blur repeats the border.
    inner = np.s_[1:-1, 1:-1]
    np.testing.assert_allclose(kernel[inner], recorded[inner], rtol=0, atol=0.025 * recorded.max())
    assert np.corrcoef(kernel.ravel(), recorded.ravel())[0, 1] > 0.999


@pytest.mark.parametrize(("size", "spread"), [(5, 1), (33, 1), (64, 1), (107, 5)])
def test_shortest_path_ends_and_is_a_dot(size, spread):
    rng = LowestUniform()
    path = random_path(size, 0.5, rng)
    assert np.abs(path).max() < 0.2
    kernel = random_path_kernel(size, 0.5, rng)
    assert_is_kernel(kernel, size, size)
    assert np.trace(covariance(kernel)) < spread


def test_more_intensity_makes_the_path_more_erratic():
    def straightness(intensity: float) -> float:
        paths = [random_path(33, intensity, np.random.default_rng(seed)) for seed in range(100)]
        return float(np.mean([abs(path[-1] - path[0]) / np.abs(np.diff(path)).sum() for path in paths]))

    assert straightness(0.2) > 0.9 > 0.7 > straightness(1.0)


def test_random_path_lies_where_its_vertices_are():
    path = np.array([-10 - 4j, 10 - 4j])  # horizontal, 4 px above the middle
    line = _draw_line(path, 33, 33, width=1)
    rows, columns = np.nonzero(line)
    assert set(rows) == {25}
    assert (columns.min(), columns.max()) == (13, 53)


# The camera-shake model.


def test_shake_is_centred_exactly_and_fills_its_reach():
    for size in (33, 64):
        room = (size - 1) // 2
        kernel = camera_shake_kernel(size, np.random.default_rng(3), reach=0.5)
        assert centre_of_mass(kernel) == pytest.approx((size // 2, size // 2), abs=1e-4)
        farthest = (torch.nonzero(kernel[0]) - size // 2).abs().max()
        assert abs(int(farthest) - 0.5 * room) <= 1


def test_longer_exposure_tangles_the_shake():
    def straightness(exposure: float) -> float:
        paths = [shake_path(exposure, 1.0, 512, np.random.default_rng(seed)) for seed in range(50)]
        return float(np.mean([abs(path[-1] - path[0]) / np.abs(np.diff(path)).sum() for path in paths]))

    assert straightness(0.5) > 0.8 > 0.4 > straightness(16.0)


def test_long_shake_in_a_small_kernel_stays_stable():
    for seed in range(20):
        kernel = camera_shake_kernel(5, np.random.default_rng(seed), exposure=300.0)
        assert_is_kernel(kernel, 5, 5)
        assert kernel.max() < 0.5  # a diverging path would leave all but its last points in the centre pixel


def test_splat_bears_rounding_at_the_border():
    beyond = 2 + 1e-15
    raster = _splat(np.array([-beyond - 1j * beyond, beyond + 1j * beyond]), 5, 5)
    assert raster.min() >= 0
    assert (raster[0, 0], raster[4, 4]) == (1, 1)


def test_shake_has_no_gaps():
    kernel = CameraShakeKernels(129, exposure=(16, 16), anxiety=(2, 2), reach=(1, 1))(np.random.default_rng(0))
    num_pieces = pytest.importorskip("scipy.ndimage").label(kernel[0].numpy() > 0, np.ones((3, 3)))[1]
    assert num_pieces == 1


# Gaussian kernels.


def test_gaussian_moments():
    std, ratio, angle = 4.0, 2.0, math.radians(30)
    for size in (65, 64):
        along = np.array([math.cos(angle), math.sin(angle)])
        across = np.array([-along[1], along[0]])
        moments = covariance(gaussian_kernel(size, std, ratio, angle))
        assert along @ moments @ along == pytest.approx(std**2, rel=1e-4)
        assert across @ moments @ across == pytest.approx((std / ratio) ** 2, rel=1e-4)
        assert along @ moments @ across == pytest.approx(0, abs=1e-4)
        assert centre_of_mass(gaussian_kernel(size, std)) == pytest.approx((size // 2, size // 2), abs=1e-4)


def test_gaussian_repeats_the_published_kernels(fixture_npz):
    recorded = fixture_npz("numeric/blur_conv.npz")
    # They are a delta filtered with a Gaussian cut at 4 std, so the cut kernel of 25 px is the whole answer; float32.
    cut = gaussian_kernel(25, 3.0)
    wide = recorded["blinddps_gaussian64_std3_kernel"]
    np.testing.assert_allclose(pad_kernel(cut, 64)[0], wide, rtol=0, atol=1e-8)
    # Uncut, ours differs by the tail: exp(-4.33 ** 2 / 2) = 8e-5 of the peak beside the cut, 1e-4 in the normalisation.
    np.testing.assert_allclose(gaussian_kernel(64, 3.0)[0], wide, rtol=0, atol=2e-4 * wide.max())
    # On 7 px the filter folded its tails back at the border, which no cut Gaussian does.
    fold = np.pad(np.arange(7), 9, mode="symmetric")
    folded = np.zeros((7, 7))
    np.add.at(folded, np.ix_(fold, fold), cut[0].double().numpy())
    np.testing.assert_allclose(folded, recorded["dps_gaussian7_std3_kernel"], rtol=0, atol=1e-7)


def test_gaussian_law_stays_within_its_ranges():
    law, rng = GaussianKernels(65, std=(1.0, 4.0), max_anisotropy=3.0), np.random.default_rng(0)
    variances = np.array([np.linalg.eigvalsh(covariance(law(rng))) for _ in range(100)])
    minor, major = np.sqrt(variances).T
    assert minor.min() > 0.99
    assert 3.5 < major.max() < 4.01
    assert 2 < (major / minor).max() < 3.01


# Mixtures, sizes and centring.


def test_mixture_draws_each_law_with_its_weight():
    law = MixtureKernels((GaussianKernels(9), GaussianKernels(11)), weights=(3, 1))
    rng = np.random.default_rng(0)
    share = np.mean([law(rng).shape[-1] == 9 for _ in range(2000)])
    assert share == pytest.approx(0.75, abs=4 * math.sqrt(0.75 * 0.25 / 2000))
    equal = MixtureKernels(law.laws)
    assert np.mean([equal(rng).shape[-1] == 9 for _ in range(2000)]) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("canvas", [65, 66])
def test_random_size_pads_about_the_centre(canvas):
    law = RandomSizeKernels(GaussianKernels(3, std=(40, 40), max_anisotropy=1.0), sizes=(9, 65), canvas=canvas)
    rng, sizes = np.random.default_rng(0), set()
    for _ in range(400):
        kernel = law(rng)
        assert_is_kernel(kernel, canvas, canvas)
        assert centre_of_mass(kernel) == pytest.approx((canvas // 2, canvas // 2), abs=1e-4)
        sizes.add(int((kernel[0, canvas // 2] > 0).sum()))
    assert sizes == set(range(9, 66, 2))


@pytest.mark.parametrize(("size", "canvas"), [(5, 9), (5, 8), (4, 9), (4, 8), ((5, 4), (8, 9))])
def test_padding_maps_centre_to_centre(size, canvas):
    padded = pad_kernel(gaussian_kernel(size, 0.01), canvas)
    h, w = padded.shape[-2:]
    assert padded[0, h // 2, w // 2] == 1


def test_centring_shifts_without_wrapping():
    kernel = torch.zeros(1, 9, 8)
    kernel[0, 0, 5:8] = 1 / 3
    expected = torch.zeros(1, 9, 8)
    expected[0, 4, 3:6] = 1 / 3
    torch.testing.assert_close(centre_kernel(kernel), expected)


def test_centring_cuts_off_what_leaves_the_support():
    kernel = torch.zeros(1, 9, 9)
    kernel[0, 4, :6] = 0.15
    kernel[0, 4, 0] = 0.25
    centred = centre_kernel(kernel)
    assert_is_kernel(centred, 9, 9)
    assert centre_of_mass(centred) == pytest.approx((4, 4), abs=0.5)
    far_right = torch.zeros(1, 9, 9)
    far_right[0, 4, 0], far_right[0, 4, 8] = 0.9, 0.1  # the faint end does not reappear on the left
    assert torch.equal(centre_kernel(far_right), gaussian_kernel(9, 0.01))


def test_a_centre_of_mass_between_two_pixels_comes_to_rest():
    """Rounding errors put it on either side of the half pixel, from where it was once moved to and fro for ever."""
    law = MixtureKernels(3 * (RandomPathKernels(33),), weights=(0.4, 0.3, 0.3))
    assert_is_kernel(law(np.random.default_rng((0, 84271))), 33, 33)


def test_centring_can_be_switched_off():
    plain = RandomPathKernels(33, centred=False)(np.random.default_rng(5))
    rng = np.random.default_rng(5)
    torch.testing.assert_close(plain, random_path_kernel(33, rng.uniform(0.2, 1.0), rng))
    torch.testing.assert_close(RandomPathKernels(33)(np.random.default_rng(5)), centre_kernel(plain))


# Refusals.


@pytest.mark.parametrize(
    "request_",
    [
        lambda: RandomPathKernels(2),
        lambda: RandomPathKernels((33, 2)),
        lambda: RandomPathKernels(33, intensity=(0.0, 0.5)),
        lambda: RandomPathKernels(33, intensity=(0.5, 1.1)),
        lambda: RandomPathKernels(33, intensity=(0.8, 0.2)),
        lambda: random_path(33, 0.0, np.random.default_rng(0)),
        lambda: random_path_kernel(33, 1.5, np.random.default_rng(0)),
        lambda: CameraShakeKernels(33, exposure=(0.0, 1.0)),
        lambda: CameraShakeKernels(33, reach=(0.5, 1.5)),
        lambda: camera_shake_kernel(33, np.random.default_rng(0), anxiety=0.0),
        lambda: GaussianKernels(33, std=(0.0, 1.0)),
        lambda: GaussianKernels(33, max_anisotropy=0.5),
        lambda: gaussian_kernel(33, -1.0),
        lambda: gaussian_kernel(33, 1.0, ratio=0.5),
        lambda: MixtureKernels((GaussianKernels(9),), weights=(1, 1)),
        lambda: MixtureKernels((GaussianKernels(9),), weights=(0,)),
        lambda: RandomSizeKernels(GaussianKernels(9), sizes=(8, 33)),
        lambda: RandomSizeKernels(GaussianKernels(9), sizes=(9, 67)),
        lambda: pad_kernel(gaussian_kernel(9, 1.0), 7),
    ],
)
def test_impossible_requests_are_refused(request_):
    with pytest.raises(InputError, match=r"got|enlarge"):
        request_()
