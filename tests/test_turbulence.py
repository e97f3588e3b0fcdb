"""The turbulence operator: laws against dense matrices in float64, autograd, recorded numbers, edge cases."""

import pytest
import torch
from test_joint_gram import covariance_of_both
from test_operators import IMAGE_SIZE, KERNEL_SIZES, dense_image_matrix, randn, random_kernel

from codiffuse.errors import InputError
from codiffuse.fourier import BOUNDARIES, convolve
from codiffuse.guidance.dps import DPS
from codiffuse.operators.blur import BlurOperator
from codiffuse.operators.turbulence import TurbulenceOperator
from codiffuse.operators.warp import warp
from codiffuse.schedule import linear_schedule

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


def test_dps_needs_nothing_but_the_operator_and_its_adjoint():
    """The cotangent is minus the gradient of twice the norm of the residual."""
    operator, image = TurbulenceOperator("reflect"), randn(1, 2, 3, *IMAGE_SIZE).requires_grad_()
    params = {"kernel": random_kernel((4, 3), batch=1), "tilt": randn(1, 2, *IMAGE_SIZE, seed=3)}
    y, sigma = randn(1, 1, 3, *IMAGE_SIZE, seed=4), torch.tensor([0.1])
    norms = (y - operator(image, **params)).flatten(2).norm(dim=2)
    (gradient,) = torch.autograd.grad(2 * norms.sum(), image)
    found = DPS().cotangent(operator, y, image.detach(), sigma, linear_schedule().steps()[0], **params)
    torch.testing.assert_close(found, -gradient)


# The joint Gram matrix, which is solved approximately


def variances(**values) -> dict[str, torch.Tensor]:
    return {name: torch.tensor([value], dtype=torch.float64) for name, value in values.items()}


SIGMA2 = torch.tensor([0.01], dtype=torch.float64)


@pytest.mark.parametrize("operator", OPERATORS, ids=repr)
def test_joint_gram_without_a_tilt_is_that_of_the_blur(operator):
    image, kernel, mask = randn(1, 2, *IMAGE_SIZE), random_kernel((3, 2), batch=1), None
    still = torch.zeros(1, 2, *IMAGE_SIZE, dtype=image.dtype)
    residual = randn(*operator(image, kernel=kernel, tilt=still).shape, seed=2)
    r2 = variances(image=0.1, kernel=0.02, tilt=0.0)
    for mask in (None, (randn(1, 1, *residual.shape[-2:], seed=5) > 0).double()):
        found = operator.solve_joint_gram(residual, r2, SIGMA2, image=image, kernel=kernel, tilt=still, mask=mask)
        blur = BlurOperator(operator.boundary, operator.pad_value)
        expected = blur.solve_joint_gram(residual, r2, SIGMA2, image=image, kernel=kernel, mask=mask)
        torch.testing.assert_close(found, expected)


def test_joint_gram_sees_the_picture_where_the_tilt_puts_it():
    image, kernel, residual = randn(1, 2, 8, 9), random_kernel((3, 2), batch=1), randn(1, 2, 8, 9, seed=2)
    tilt = torch.tensor([2.0, -1.0], dtype=image.dtype).view(1, 2, 1, 1).expand(1, 2, 8, 9)
    r2, mask = variances(image=0.1, kernel=0.2, tilt=0.0), torch.ones_like(residual[:, :1])  # no closed form with one
    moved = image.roll((1, -2), (-2, -1))
    expected = BlurOperator().solve_joint_gram(residual, r2, SIGMA2, image=moved, kernel=kernel, mask=mask)
    for order in ("tilt_then_blur", "blur_then_tilt"):
        operator = TurbulenceOperator("circular", order=order)
        found = operator.solve_joint_gram(residual, r2, SIGMA2, image=image, kernel=kernel, tilt=tilt, mask=mask)
        torch.testing.assert_close(found, expected)


def smooth(channels, size=12, seed=0):
    """A field that varies over about four pixels, in [0, 1]."""
    coarse = torch.rand(1, channels, size // 4, size // 4, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse.double(), (size, size), mode="bicubic", align_corners=True)


@pytest.mark.parametrize("order", ["tilt_then_blur", "blur_then_tilt"])
def test_joint_gram_is_symmetric_and_positive(order):
    operator, image, tilt = TurbulenceOperator("circular", order=order), smooth(2), 1.6 * smooth(2, seed=1) - 0.8
    kernel, r2 = random_kernel((5, 4), batch=1), variances(image=0.1, kernel=0.02, tilt=0.3)
    basis = torch.eye(288, dtype=torch.float64).view(288, 1, 2, 12, 12)
    columns = [operator.solve_joint_gram(e, r2, SIGMA2, image=image, kernel=kernel, tilt=tilt) for e in basis]
    matrix = torch.stack([column.flatten() for column in columns], 1)
    torch.testing.assert_close(matrix, matrix.T)
    assert torch.linalg.eigvalsh(matrix).min() > 0


@pytest.mark.parametrize(("order", "tolerance"), [("tilt_then_blur", 0.05), ("blur_then_tilt", 0.25)])
def test_joint_gram_is_close_to_the_dense_one(order, tolerance):
    """For a residual such as it expects, within that share of the exact solve; without the tilt's part it is not."""
    operator = TurbulenceOperator("reflect", order=order)
    ramp = torch.linspace(0, 2, 12, dtype=torch.float64)
    image = 0.2 * smooth(1) + ramp + ramp[:, None]  # of about the same slope everywhere, as the mean takes it to be
    kernel, tilt = random_kernel((3, 3), batch=1), 0.6 * smooth(2, seed=1) - 0.3
    r2 = variances(image=0.01, kernel=0.001, tilt=0.5)
    derivatives = torch.autograd.functional.jacobian(
        lambda x, k, phi: operator(x, kernel=k, tilt=phi), (image, kernel, tilt)
    )
    A, B, C = (D.reshape(144, -1) for D in derivatives)
    Z = torch.eye(9, dtype=torch.float64) - 1 / 9  # the kernel's sum is known
    of_both = covariance_of_both(operator, image, kernel, Z, tilt=tilt)
    of_parameters = 0.001 * B @ Z @ B.T + 0.5 * C @ C.T
    gram = 0.01 * A @ A.T + 1e-5 * of_both + of_parameters
    gram = gram + SIGMA2 * torch.eye(144, dtype=torch.float64)
    residual = torch.linalg.cholesky(gram) @ randn(144, 1, seed=6)
    expected = torch.linalg.solve(gram, residual)[:, 0]

    estimates = {"image": image, "kernel": kernel, "tilt": tilt}

    def error(**changed):
        found = operator.solve_joint_gram(residual.view(1, 1, 12, 12), r2 | variances(**changed), SIGMA2, **estimates)
        return float((found.flatten() - expected).norm() / expected.norm())

    assert error() < tolerance
    assert error(tilt=0.0) > 0.3

    found = operator.parameter_gram(expected.view(1, 1, 12, 12), r2, **estimates).flatten()
    explained = of_parameters @ expected
    assert (found - explained).norm() < 2 * tolerance * explained.norm()
    mask = (randn(1, 1, 12, 12, seed=5) > 0).double()
    seen = mask * residual.view(1, 1, 12, 12)
    masked = operator.parameter_gram(seen, r2, **estimates, mask=mask)
    torch.testing.assert_close(masked, mask * operator.parameter_gram(seen, r2, **estimates))


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
