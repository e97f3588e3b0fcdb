"""The covariance of the residual when image and operator are both uncertain, against dense matrices in float64."""

import itertools

import pytest
import torch

from codiffuse.guidance.joint import JointPiGDM, PowerLaw
from codiffuse.operators.blur import BlurOperator
from codiffuse.operators.covariance import Stationary, covary, filtered, image_power
from codiffuse.operators.joint_spectrum import JointSpectrum
from codiffuse.schedule import linear_schedule

STEP = linear_schedule().steps()[500]


def dense_joint_gram(operator, image, kernel, r_x2, r_k2):
    """That of white errors dx, and dk of a kernel whose sum stays one, by automatic differentiation and by hand."""
    pixels = operator(image, kernel=kernel).numel()
    A = torch.autograd.functional.jacobian(lambda x: operator(x, kernel=kernel), image).reshape(pixels, -1)
    B = torch.autograd.functional.jacobian(lambda k: operator(image, kernel=k), kernel).reshape(pixels, -1)
    Z = torch.eye(kernel.numel(), dtype=kernel.dtype) - 1 / kernel.numel()
    return r_x2 * A @ A.T + r_k2 * B @ Z @ B.T + r_x2 * r_k2 * covariance_of_both(operator, image, kernel, Z)


def covariance_of_both(operator, image, kernel, of_kernel, **params):
    """Of dk * dx, pixels d apart: sum over i of Cov(dk_i, dk_i+d)."""
    (h, w), (height, width) = kernel.shape[-2:], operator(image, kernel=kernel, **params).shape[-2:]
    of_kernel = of_kernel.reshape(h, w, h, w)
    plane = kernel.new_zeros(height, width, height, width)
    for r, c, s, t in itertools.product(range(h), range(w), range(h), range(w)):
        for row, column in itertools.product(range(height), range(width)):
            at, to = row + s - r, column + t - c
            if operator.boundary == "circular":
                at, to = at % height, to % width
            if 0 <= at < height and 0 <= to < width:
                plane[row, column, at, to] += of_kernel[r, c, s, t]
    return torch.block_diag(*[plane.reshape(height * width, -1)] * image.shape[1])


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("boundary", ["circular", "unknown", "reflect", "zero"])
def test_the_joint_gram_matrix_is_solved(boundary, masked):
    """Against the dense matrix r_x^2 A A^T + r_k^2 B Z B^T + Cov(dk * dx) + sigma^2 I, in float64."""
    generator = torch.Generator().manual_seed(3)

    def random(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    operator = BlurOperator(boundary, cg_iterations=200, cg_tolerance=1e-10)
    # A closed form is exact for a kernel as large as the picture.
    size = (6, 8) if boundary == "circular" and not masked else (3, 4)
    image, kernel = random(1, 2, *operator.image_shape((6, 8), kernel_size=size)), random(1, 1, *size)
    mask = (random(1, 1, 6, 8) > 0.3).double() if masked else None
    r_x2, r_k2, sigma2 = (torch.tensor([value], dtype=torch.float64) for value in (0.3, 0.2, 0.1))
    gram = dense_joint_gram(operator, image, kernel, 0.3, 0.2) + 0.1 * torch.eye(96, dtype=torch.float64)
    residual = random(1, 2, 6, 8)
    kept = torch.ones(96, dtype=torch.bool) if mask is None else mask.expand(1, 2, 6, 8).flatten() > 0
    expected = torch.zeros(96, dtype=torch.float64)
    expected[kept] = torch.linalg.solve(gram[kept][:, kept], residual.flatten()[kept])
    found = operator.solve_joint_gram(
        residual, {"image": r_x2, "kernel": r_k2}, sigma2, image=image, kernel=kernel, mask=mask
    )
    torch.testing.assert_close(found.flatten(), expected, atol=1e-6, rtol=1e-6)

    without = dense_joint_gram(operator, image, kernel, 0.0, 0.2)
    seen = residual if mask is None else mask * residual
    expected = torch.where(kept, without @ seen.flatten(), 0)
    found = operator.parameter_gram(seen, {"image": r_x2, "kernel": r_k2}, image=image, kernel=kernel, mask=mask)
    torch.testing.assert_close(found.flatten(), expected)


@pytest.mark.parametrize("boundary", ["circular", "reflect"])
def test_errors_of_the_picture_may_be_correlated(boundary):
    """Against A C A^T with the dense circulant C of a power law, and what that gives with errors of the kernel."""
    generator = torch.Generator().manual_seed(0)
    operator = BlurOperator(boundary, cg_iterations=300, cg_tolerance=1e-12)
    size = (6, 8) if boundary == "circular" else (3, 4)
    image, kernel = (torch.rand(1, 1, *shape, generator=generator).double() for shape in ((6, 8), size))
    kernel = kernel / kernel.sum()
    law = PowerLaw()
    covariance = JointPiGDM({"image": law}).covariance("image", STEP, torch.tensor([0.5]).double())
    C = covary(image_power(covariance, (6, 8)), torch.eye(48).double().reshape(48, 1, 6, 8)).reshape(48, 48)
    torch.testing.assert_close(C, C.T)
    # Its eigenvalues are the power, that of what x_t leaves open of Gaussian pictures of this law; in [0, 1] units.
    frequency = (
        (torch.fft.fftfreq(6)[:, None].square() + torch.fft.fftfreq(8).square()).sqrt().clamp(min=0.004).double()
    )
    prior = 0.0037 / frequency**2.5
    expected = 0.25 / (1 / prior + STEP.alpha_bar / (1 - STEP.alpha_bar))
    torch.testing.assert_close(torch.linalg.eigvalsh(C), expected.flatten().sort().values, rtol=1e-5, atol=1e-9)

    A = torch.autograd.functional.jacobian(lambda x: operator(x, kernel=kernel), image).reshape(48, 48)
    gram = A @ C @ A.T + 0.01 * torch.eye(48).double()
    residual = torch.randn(1, 1, 6, 8, generator=generator).double()
    still = {"image": covariance, "kernel": torch.zeros(1).double()}
    found = operator.solve_joint_gram(residual, still, torch.tensor([0.01]).double(), image=image, kernel=kernel)
    torch.testing.assert_close(found.flatten(), torch.linalg.solve(gram, residual.flatten()), rtol=1e-6, atol=1e-6)


def test_a_tilt_may_add_white_errors():
    law = Stationary(lambda grid: torch.full((2, 1, grid[0], grid[1] // 2 + 1), 3.0))
    both = law + torch.tensor([1.0, 2.0])
    image = torch.randn(2, 3, 8, 9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        covary(image_power(both, (8, 9)), image), image * torch.tensor([4.0, 5.0]).reshape(2, 1, 1, 1)
    )
    torch.testing.assert_close(image_power(both, (4, 4))[:, 0, 0, 0], torch.tensor([4.0, 5.0]))


def test_the_mean_brightness_is_known():
    """Kernels sum to one, so that an uncertain one explains no residual that is the same everywhere."""
    generator = torch.Generator().manual_seed(0)
    image, kernel = torch.rand(1, 3, 16, 16, generator=generator), torch.rand(1, 1, 5, 5, generator=generator)
    kernel = kernel / kernel.sum()
    residual, sigma2 = torch.full((1, 3, 16, 16), 0.1), torch.tensor([0.01])
    solve = BlurOperator().solve_joint_gram
    sure, unsure = (
        solve(
            residual, {"image": torch.tensor([0.1]), "kernel": torch.tensor([r2])}, sigma2, image=image, kernel=kernel
        )
        for r2 in (0.0, 1.0)
    )
    torch.testing.assert_close(unsure, sure)


def test_the_closed_form_knows_its_own_part_of_the_kernel():
    """S without it is what is left for a sure kernel with as much noise as the product of both errors adds."""
    generator = torch.Generator().manual_seed(0)
    image, kernel = (torch.rand(1, 3, n, n, generator=generator).double() for n in (16, 5))
    kernel = kernel[:, :1] / kernel[:, :1].sum()
    v, sigma2 = torch.randn(1, 3, 16, 16, generator=generator).double(), torch.tensor([0.01]).double()
    r2 = {"image": torch.tensor([0.3]).double(), "kernel": torch.tensor([0.02]).double()}
    operator, values = BlurOperator(), {"image": image, "kernel": kernel}
    w = operator.solve_joint_gram(v, r2, sigma2, **values)
    rest = v - operator.parameter_gram(w, r2, **values)
    spectrum = JointSpectrum.of(r2, sigma2, image, kernel, (16, 16))
    torch.testing.assert_close(rest, filtered(w, spectrum.a, (16, 16)))
    # On the support alone it is more, in fewer directions: the closed form spreads it over the whole picture.
    ones = torch.ones_like(v[:, :1])
    exact = operator.parameter_gram(w, r2, **values, mask=ones)
    assert not torch.allclose(exact, v - rest)
