"""The turbulence operator: laws against dense matrices in float64, autograd, recorded numbers, edge cases."""

import pytest
import torch
from test_operators import IMAGE_SIZE, KERNEL_SIZES, dense_image_matrix, randn, random_kernel

from codiffuse.errors import InputError
from codiffuse.fourier import BOUNDARIES, convolve
from codiffuse.operators.blur import BlurOperator
from codiffuse.operators.turbulence import TurbulenceOperator
from codiffuse.operators.warp import warp

FRAMED = [boundary for boundary in BOUNDARIES if boundary not in ("valid", "unknown")]
OPERATORS = [TurbulenceOperator(boundary) for boundary in BOUNDARIES]
OPERATORS += [TurbulenceOperator(boundary, order="blur_then_tilt") for boundary in FRAMED]
OPERATORS += [TurbulenceOperator("zero", 0.5), TurbulenceOperator("zero", 0.5, "blur_then_tilt")]


def with_tilt(operator, tilt):
    """The operator with its tilt filled in, for images of one batch entry or of many."""
    return lambda image, *, kernel: operator(image, kernel=kernel, tilt=tilt)


@pytest.mark.parametrize("kernel_size", KERNEL_SIZES)
@pytest.mark.parametrize("operator", OPERATORS, ids=repr)
def test_adjoint_is_the_transpose(operator, kernel_size):
    kernel, tilt = random_kernel(kernel_size, batch=1), 1.5 * randn(1, 2, *IMAGE_SIZE, seed=3)
    A = dense_image_matrix(with_tilt(operator, tilt), kernel, IMAGE_SIZE)
    y_shape = operator(torch.zeros(1, 1, *IMAGE_SIZE, dtype=A.dtype), kernel=kernel, tilt=tilt).shape[-2:]
    assert operator.image_shape(y_shape, kernel_size=kernel_size) == IMAGE_SIZE
    residual = randn(1, 1, *y_shape)
    back = operator.adjoint(residual, kernel=kernel, tilt=tilt)
    torch.testing.assert_close(back.flatten(), A.T @ residual.flatten())


@pytest.mark.parametrize("operator", OPERATORS, ids=repr)
def test_autograd_finds_the_derivatives_in_image_kernel_and_tilt(operator):
    image, kernel = randn(1, 1, 4, 5).requires_grad_(), random_kernel((3, 2), batch=1).requires_grad_()
    tilt = (1.5 * randn(1, 2, 4, 5, seed=3)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, k, phi: operator(x, kernel=k, tilt=phi), (image, kernel, tilt))
    y = operator(image, kernel=kernel, tilt=tilt)
    residual = randn(*y.shape, seed=4)
    back = operator.adjoint(residual, kernel=kernel, tilt=tilt)
    torch.testing.assert_close(back, torch.autograd.grad(y, image, residual)[0])


@pytest.mark.parametrize("operator", OPERATORS, ids=repr)
def test_no_tilt_is_the_blur_and_a_delta_leaves_the_tilt(operator):
    image, kernel = randn(2, 3, *IMAGE_SIZE), random_kernel((4, 3))
    still = torch.zeros(2, 2, *IMAGE_SIZE, dtype=image.dtype)
    blur = BlurOperator(operator.boundary, operator.pad_value)
    torch.testing.assert_close(operator(image, kernel=kernel, tilt=still), blur(image, kernel=kernel))

    tilt, delta = randn(2, 2, *IMAGE_SIZE, seed=3), torch.zeros_like(kernel)
    delta[..., 2, 1] = 1
    warped = warp(image, tilt, "replicate" if operator.boundary in ("valid", "unknown") else operator.boundary)
    if operator.pad_value == 0:
        torch.testing.assert_close(
            operator(image, kernel=delta, tilt=tilt), operator.crop_to_frame(warped, kernel_size=(4, 3))
        )


def test_the_order_is_what_it_says():
    image, kernel, tilt = randn(2, 3, *IMAGE_SIZE), random_kernel((4, 3)), randn(2, 2, *IMAGE_SIZE, seed=3)
    first = TurbulenceOperator("reflect")(image, kernel=kernel, tilt=tilt)
    torch.testing.assert_close(first, convolve(warp(image, tilt, "reflect"), kernel, "reflect"))
    second = TurbulenceOperator("reflect", order="blur_then_tilt")(image, kernel=kernel, tilt=tilt)
    torch.testing.assert_close(second, warp(convolve(image, kernel, "reflect"), tilt, "reflect"))
    assert (first - second).abs().max() > 0.1


def test_a_constant_tilt_commutes_with_the_blur_and_trades_with_the_image():
    image, kernel = randn(1, 1, 8, 9), random_kernel((3, 3), batch=1)
    tilt = torch.tensor([2.0, -1.0], dtype=image.dtype).view(1, 2, 1, 1).expand(1, 2, 8, 9)
    moved = image.roll((1, -2), (-2, -1))
    for order in ("tilt_then_blur", "blur_then_tilt"):
        operator = TurbulenceOperator("circular", order=order)
        expected = BlurOperator("circular")(moved, kernel=kernel)
        torch.testing.assert_close(operator(image, kernel=kernel, tilt=tilt), expected)


@pytest.mark.parametrize("boundary", ["valid", "unknown"])
def test_inside_a_larger_scene_the_canvas_shows_what_the_scene_does(boundary):
    """Away from its edge by the tilt's length, what lies beyond the canvas does not matter."""
    scene, tilt = randn(1, 2, 20, 21), randn(1, 2, 20, 21, seed=3).clamp(-1.5, 1.5)
    kernel = random_kernel((5, 4), batch=1)
    operator = TurbulenceOperator(boundary)
    expected = operator(scene, kernel=kernel, tilt=tilt)[..., 3:-3, 3:-3]
    inner = (..., slice(1, -1), slice(1, -1))
    seen = operator(scene[inner], kernel=kernel, tilt=tilt[inner])
    torch.testing.assert_close(seen[..., 2:-2, 2:-2], expected)
    assert (seen - operator(scene, kernel=kernel, tilt=tilt)[inner]).abs().max() > 1e-3


@pytest.mark.parametrize("operator", [OPERATORS[1], OPERATORS[-1]], ids=repr)
def test_particles_share_kernel_and_tilt(operator):
    particles, kernel = randn(2, 4, 3, *IMAGE_SIZE), random_kernel((4, 3))
    tilt = randn(2, 2, *IMAGE_SIZE, seed=3)
    together = operator(particles, kernel=kernel, tilt=tilt)
    back = operator.adjoint(together, kernel=kernel, tilt=tilt)
    for i in range(4):
        torch.testing.assert_close(together[:, i], operator(particles[:, i], kernel=kernel, tilt=tilt))
        torch.testing.assert_close(back[:, i], operator.adjoint(together[:, i], kernel=kernel, tilt=tilt))


def test_recorded_forward_model(fixture_npz):
    """The released BlindDPS, tilt then cross-correlation with zero padding, in its [-1, 1] units and in ours."""
    data = {name: torch.from_numpy(values).float() for name, values in fixture_npz("numeric/tilt_warp.npz").items()}
    params = {"kernel": data["kernel8"].flip(-2, -1), "tilt": data["tilt"]}
    y = TurbulenceOperator("zero")(data["image"], **params)
    torch.testing.assert_close(y, data["turbulence_forward"], rtol=0, atol=1e-5)
    gray = TurbulenceOperator("zero", pad_value=0.5)((data["image"] + 1) / 2, **params)
    torch.testing.assert_close(2 * gray - 1, data["turbulence_forward"], rtol=0, atol=1e-5)


def test_unusable_options_are_refused():
    with pytest.raises(InputError, match="'mirror'"):
        TurbulenceOperator("mirror")
    with pytest.raises(InputError, match=r"pad_value = 0\.5"):
        TurbulenceOperator("reflect", pad_value=0.5)
    with pytest.raises(InputError, match="'both'"):
        TurbulenceOperator(order="both")
    for boundary in ("valid", "unknown"):
        with pytest.raises(InputError, match="beyond the frame"):
            TurbulenceOperator(boundary, order="blur_then_tilt")
    with pytest.raises(InputError, match="one tilt field"):
        TurbulenceOperator()(randn(2, 3, 6, 7), kernel=random_kernel((3, 3)), tilt=randn(1, 2, 6, 7))
