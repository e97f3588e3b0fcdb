"""FFT convolution at every boundary: laws, an independent direct convolution, recorded numbers, edge cases."""

import numpy as np
import pytest
import scipy.signal
import torch

from codiffuse.errors import InputError
from codiffuse.fourier import (
    BOUNDARIES,
    convolve,
    correlate,
    crop_to_frame,
    extend,
    fast_shape,
    kernel_adjoint,
    kernel_otf,
    otf_to_kernel,
    pad,
    reach,
    unpad_adjoint,
)

PADDED = ("reflect", "symmetric", "replicate", "zero")
NUMPY_MODE = {"circular": "wrap", "reflect": "reflect", "symmetric": "symmetric", "replicate": "edge"}

# (image, kernel): odd and even, one pixel, as large as the image, and (padded boundaries only) beyond it.
SMALL = [((6, 7), (3, 3)), ((7, 6), (4, 2)), ((8, 9), (2, 5)), ((5, 5), (1, 1)), ((6, 7), (6, 7)), ((7, 4), (7, 4))]
LARGE = [((4, 5), (11, 18)), ((1, 3), (4, 9)), ((2, 1), (8, 7))]
CASES = [(b, *sizes) for b in BOUNDARIES for sizes in SMALL + (LARGE if b in PADDED else [])]


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def delta(size, batch=1, dtype=torch.float64):
    kernel = torch.zeros(batch, 1, *size, dtype=dtype)
    kernel[..., size[0] // 2, size[1] // 2] = 1
    return kernel


def direct_convolution(image, kernel, boundary, pad_value=0.0):
    """Plane by plane with numpy's padding and scipy's direct sum."""
    h, w = kernel.shape[-2:]
    margins = ((h - 1 - h // 2, h // 2), (w - 1 - w // 2, w // 2))
    planes = []
    for b, c in np.ndindex(*image.shape[:2]):
        plane = image[b, c].numpy()
        if boundary == "zero":
            plane = np.pad(plane, margins, constant_values=pad_value)
        elif boundary in NUMPY_MODE:
            plane = np.pad(plane, margins, mode=NUMPY_MODE[boundary])
        planes.append(scipy.signal.convolve2d(plane, kernel[b, 0].numpy(), mode="valid"))
    return torch.from_numpy(np.stack(planes)).unflatten(0, image.shape[:2])


@pytest.mark.parametrize(("boundary", "image_size", "kernel_size"), CASES)
def test_convolve_is_the_direct_sum(boundary, image_size, kernel_size):
    image, kernel = randn(2, 3, *image_size), randn(2, 1, *kernel_size, seed=1)
    expected = direct_convolution(image, kernel, boundary)
    torch.testing.assert_close(convolve(image, kernel, boundary), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize(("boundary", "image_size", "kernel_size"), CASES)
def test_correlate_is_the_adjoint_in_the_image(boundary, image_size, kernel_size):
    image, kernel = randn(2, 3, *image_size), randn(2, 1, *kernel_size, seed=1)
    blurred = convolve(image, kernel, boundary)
    residual = randn(*blurred.shape, seed=2)
    back = correlate(residual, kernel, boundary)
    assert back.shape == image.shape
    torch.testing.assert_close((blurred * residual).sum(), (image * back).sum(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("boundary", "image_size", "kernel_size", "pad_value"),
    [(*case, 0.0) for case in CASES] + [(*case, 0.5) for case in CASES if case[0] == "zero"],
)
def test_kernel_adjoint_is_the_adjoint_in_the_kernel(boundary, image_size, kernel_size, pad_value):
    image, kernel = randn(2, 3, *image_size), randn(2, 1, *kernel_size, seed=1)
    blurred = convolve(image, kernel, boundary, pad_value)
    residual = randn(*blurred.shape, seed=2)
    back = kernel_adjoint(image, residual, boundary, kernel_size, pad_value)
    assert back.shape == kernel.shape
    torch.testing.assert_close((blurred * residual).sum(), (kernel * back).sum(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_adjoints_are_what_autograd_finds(boundary):
    image, kernel = randn(2, 3, 7, 6).requires_grad_(), randn(2, 1, 4, 3, seed=1).requires_grad_()
    blurred = convolve(image, kernel, boundary)
    residual = randn(*blurred.shape, seed=2)
    image_grad, kernel_grad = torch.autograd.grad(blurred, (image, kernel), residual)
    torch.testing.assert_close(correlate(residual, kernel, boundary), image_grad)
    torch.testing.assert_close(kernel_adjoint(image, residual, boundary, (4, 3)), kernel_grad)


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("size", [(5, 3), (4, 6)])
def test_centred_delta_is_the_identity(boundary, size):
    canvas = randn(1, 2, 9, 8)
    frame = crop_to_frame(canvas, size) if boundary in ("valid", "unknown") else canvas
    torch.testing.assert_close(convolve(canvas, delta(size), boundary), frame)


def test_pad_value_is_what_lies_outside():
    image, kernel = randn(2, 3, 6, 5), randn(2, 1, 4, 3, seed=1)
    blurred = convolve(image, kernel, "zero", pad_value=0.5)
    torch.testing.assert_close(blurred, direct_convolution(image, kernel, "zero", 0.5), rtol=0, atol=1e-11)
    # Affine: the linear part is the difference to a black image.
    linear = blurred - convolve(torch.zeros_like(image), kernel, "zero", pad_value=0.5)
    torch.testing.assert_close(linear, convolve(image, kernel, "zero"))


@pytest.mark.parametrize("boundary", [*NUMPY_MODE, "zero"])
@pytest.mark.parametrize("margins", [(0, 0, 0, 0), (2, 0, 1, 3), (9, 14, 11, 8)])
def test_pad_is_numpys_and_unpad_adjoint_its_adjoint(boundary, margins):
    top, bottom, left, right = margins
    image = randn(2, 3, 4, 5)
    options = {"constant_values": 0.5} if boundary == "zero" else {"mode": NUMPY_MODE[boundary]}
    expected = np.pad(image.numpy(), ((0, 0), (0, 0), (top, bottom), (left, right)), **options)
    np.testing.assert_array_equal(pad(image, margins, boundary, pad_value=0.5).numpy(), expected)

    padded = pad(image, margins, boundary)
    weights = randn(*padded.shape, seed=1)
    folded = unpad_adjoint(weights, margins, boundary)
    assert folded.shape == image.shape
    torch.testing.assert_close((padded * weights).sum(), (image * folded).sum())


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_any_axes_may_stand_between_batch_and_plane(boundary):
    particles, kernel = randn(2, 4, 3, 7, 8), randn(2, 1, 3, 4, seed=1)
    folded = particles.flatten(1, 2)
    blurred = convolve(folded, kernel, boundary)
    torch.testing.assert_close(convolve(particles, kernel, boundary).flatten(1, 2), blurred)
    torch.testing.assert_close(convolve(particles[:, 0, 0], kernel, boundary), blurred[:, 0])
    torch.testing.assert_close(
        correlate(blurred.unflatten(1, (4, 3)), kernel, boundary).flatten(1, 2), correlate(blurred, kernel, boundary)
    )
    shared = randn(2, 1, *blurred.shape[1:], seed=2)[:, :, :3]  # one residual for all particles
    torch.testing.assert_close(
        kernel_adjoint(particles, shared, boundary, (3, 4)),
        kernel_adjoint(particles, shared.expand(-1, 4, -1, -1, -1), boundary, (3, 4)),
    )


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_kept(boundary, dtype):
    image, kernel = randn(1, 3, 33, 30), randn(1, 1, 8, 7, seed=1)
    blurred = convolve(image.to(dtype), kernel.to(dtype), boundary)
    back = correlate(blurred, kernel.to(dtype), boundary)
    gradient = kernel_adjoint(image.to(dtype), blurred, boundary, (8, 7))
    assert blurred.dtype == back.dtype == gradient.dtype == dtype
    torch.testing.assert_close(blurred.double(), convolve(image, kernel, boundary), rtol=0, atol=2e-5)


@pytest.mark.parametrize("size", [(1, 1), (3, 3), (4, 6), (8, 9)])
@pytest.mark.parametrize("shape", [(8, 9), (9, 12)])
def test_otf_to_kernel_undoes_kernel_otf(size, shape):
    kernel = randn(2, 1, *size)
    otf = kernel_otf(kernel, shape)
    assert otf.shape == (2, 1, shape[0], shape[1] // 2 + 1)
    torch.testing.assert_close(otf_to_kernel(otf, shape, size), kernel)


def test_otf_at_frequency_zero_is_the_sum_and_a_symmetric_kernel_has_a_real_one():
    kernel = randn(2, 1, 5, 3).abs()
    torch.testing.assert_close(kernel_otf(kernel, (8, 8))[..., 0, 0].real, kernel.sum((-2, -1)))
    assert kernel_otf(kernel + kernel.flip(-2, -1), (8, 8)).imag.abs().max() < 1e-14


def test_crop_to_frame_takes_what_the_measurement_shows():
    canvas = torch.arange(7 * 9.0).reshape(1, 1, 7, 9)
    assert reach((4, 3)) == (1, 2, 1, 1)
    torch.testing.assert_close(crop_to_frame(canvas, (4, 3)), canvas[..., 1:5, 1:8])
    torch.testing.assert_close(crop_to_frame(pad(canvas, reach((6, 5)), "reflect"), (6, 5)), canvas)


def test_extend_adds_exactly_what_a_convolution_reads():
    image = randn(1, 1, 5, 6)
    assert extend(image, (4, 3), "valid").shape == (1, 1, 5, 6)
    extended = extend(image, (4, 3), "symmetric")
    assert extended.shape == (1, 1, 8, 8)
    kernel = randn(1, 1, 4, 3, seed=1)
    torch.testing.assert_close(convolve(extended, kernel, "valid"), convolve(image, kernel, "symmetric"))


def test_fast_shape_has_small_prime_factors():
    assert fast_shape((386, 97)) == (400, 100)
    assert fast_shape((64, 1)) == (64, 1)


def test_recorded_cross_correlation_with_zero_padding(fixture_npz):
    """The released BlindDPS cross-correlates with left pad `(n - 1) // 2`: our convolution with the flipped kernel."""
    data = fixture_npz("numeric/blur_conv.npz")
    image = torch.from_numpy(data["x"])
    for name in ("k7", "k8"):
        kernel = torch.from_numpy(data[name]).flip(-2, -1)
        expected = torch.from_numpy(data[f"blinddps_conv2d_same_zero/{name}"])
        torch.testing.assert_close(convolve(image, kernel, "zero"), expected, rtol=0, atol=1e-6)


def test_recorded_reflect_and_circular_blur(fixture_npz):
    data = fixture_npz("numeric/blur_conv.npz")
    kernel = torch.from_numpy(data["dps_gaussian7_std3_kernel"]).float()[None, None]
    expected = torch.from_numpy(data["dps_gaussian7_std3_reflect"])
    torch.testing.assert_close(convolve(torch.from_numpy(data["x"]), kernel, "reflect"), expected, rtol=0, atol=1e-6)

    data = fixture_npz("numeric/mstep_hqs.npz")
    image = torch.from_numpy(data["x"][:1])
    for name in ("k8", "k9"):
        kernel = torch.from_numpy(data[f"p2o/{name}"])
        expected = torch.from_numpy(data[f"fft_blur/{name}"])
        torch.testing.assert_close(convolve(image, kernel, "circular"), expected, rtol=0, atol=1e-6)
        grid = torch.fft.irfft2(kernel_otf(kernel, (16, 16)), s=(16, 16))
        torch.testing.assert_close(grid, torch.from_numpy(data[f"p2o/otf_spatial{name[1]}"]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("boundary", ["circular", "valid", "unknown"])
def test_a_kernel_larger_than_the_image_is_refused_where_it_makes_no_sense(boundary):
    with pytest.raises(InputError, match="5 x 3"):
        convolve(randn(1, 1, 4, 8), randn(1, 1, 5, 3), boundary)


@pytest.mark.parametrize("shape", [(1, 1, 3, 3), (2, 2, 3, 3), (2, 3, 3)])
def test_kernels_never_broadcast(shape):
    for function in (convolve, correlate):
        with pytest.raises(InputError, match="one kernel for each"):
            function(randn(2, 3, 8, 8), randn(*shape), "circular")


def test_an_unknown_boundary_is_named():
    with pytest.raises(InputError, match="'mirror'"):
        convolve(randn(1, 1, 8, 8), randn(1, 1, 3, 3), "mirror")
    with pytest.raises(InputError, match="'valid'"):
        pad(randn(1, 1, 8, 8), (1, 1, 1, 1), "valid")
