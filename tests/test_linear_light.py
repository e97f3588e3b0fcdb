"""Blur in linear light: the curve, the operator, and its linearisation against dense matrices in float64."""

from dataclasses import replace

import pytest
import torch
from test_joint_gram import covariance_of_both
from test_operators import EXACT, IMAGE_SIZE, R2, SIGMA2, dense_image_matrix, random_kernel, random_mask
from toys import blurred_toy, tiny_prior

from codiffuse.errors import InputError
from codiffuse.estimation.hqs import HQS
from codiffuse.estimation.regularizers import NoRegularizer
from codiffuse.fourier import BOUNDARIES
from codiffuse.guidance.dps import DPS
from codiffuse.methods.fast_em import FastEM
from codiffuse.methods.non_blind import NonBlind
from codiffuse.methods.steps import ReverseProcess
from codiffuse.operators.blur import BlurOperator
from codiffuse.operators.linear_light import LinearLightBlur, slope, to_light, to_values
from codiffuse.randomness import GeneratorNoise


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_curve_is_that_of_srgb():
    values = torch.tensor([0.0, 0.04045, 0.5, 1.0], dtype=torch.float64)
    expected = torch.tensor([0.0, 0.0031308, 0.2140411, 1.0], dtype=torch.float64)
    torch.testing.assert_close(to_light(values), expected, atol=1e-7, rtol=0)


def test_the_curve_has_an_inverse_and_a_slope_beyond_the_range_too():
    values = torch.linspace(-0.1, 1.1, 500, dtype=torch.float64, requires_grad=True)
    light = to_light(values)
    torch.testing.assert_close(to_values(light), values, atol=1e-7, rtol=0)
    torch.testing.assert_close(slope(values), torch.autograd.grad(light.sum(), values)[0])


def test_blur_mixes_light():
    """Black and white in equal parts make 0.735, not 0.5."""
    image = torch.zeros(1, 1, 4, 8)
    image[..., ::2] = 1
    y = LinearLightBlur()(image, kernel=torch.tensor([[[[0.25, 0.5, 0.25]]]]))
    torch.testing.assert_close(y, torch.full_like(y, 0.7353570), atol=1e-5, rtol=0)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_guidance_direction_is_the_dense_solve(boundary, masked):
    kernel, image = random_kernel((4, 3)), rand(2, 3, *IMAGE_SIZE)
    operator = LinearLightBlur(boundary, **EXACT)
    y = operator(rand(2, 3, *IMAGE_SIZE, seed=1), kernel=kernel)
    mask = random_mask(y.shape[-2:]) if masked else None
    direction = operator.guidance_direction(y, image, R2, SIGMA2, kernel=kernel, mask=mask)
    for b in range(2):
        A = dense_image_matrix(BlurOperator(boundary), kernel[b : b + 1], IMAGE_SIZE)
        kept = mask[b].flatten() > 0 if masked else torch.ones(len(A), dtype=torch.bool)
        for c in range(3):
            weight = 1 / slope(y[b, c].flatten())
            J = (weight[:, None] * A * slope(image[b, c].flatten()))[kept]
            residual = (weight * (to_light(y[b, c].flatten()) - A @ to_light(image[b, c].flatten())))[kept]
            gram = R2[b] * J @ J.T + SIGMA2[b] * torch.eye(len(J), dtype=J.dtype)
            expected = J.T @ torch.linalg.solve(gram, residual)
            torch.testing.assert_close(direction[b, c].flatten(), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("boundary", ["circular", "reflect", "unknown"])
def test_the_joint_gram_is_that_of_the_derivatives(boundary, masked):
    """Those in image and kernel, by automatic differentiation."""
    kernel, image, operator = random_kernel((4, 3)), rand(2, 3, *IMAGE_SIZE), LinearLightBlur(boundary, **EXACT)
    residual = rand(*operator(image, kernel=kernel).shape, seed=1) - 0.5
    mask = random_mask(residual.shape[-2:]) if masked else None
    r2 = {"image": torch.tensor([0.3, 0.1]).double(), "kernel": torch.tensor([0.01, 0.2]).double()}
    found = operator.solve_joint_gram(residual, r2, SIGMA2, image=image, kernel=kernel, mask=mask)
    seen = residual if mask is None else mask * residual
    shaken = operator.parameter_gram(seen, r2, image=image, kernel=kernel, mask=mask)
    for b in range(2):
        J, B = torch.autograd.functional.jacobian(
            lambda x, k: operator(x, kernel=k).flatten(), (image[b : b + 1], kernel[b : b + 1])
        )
        kept = torch.ones(len(J), dtype=torch.bool) if mask is None else mask[b].expand_as(residual[b]).flatten() > 0
        J, B, Z = J.flatten(1), B.flatten(1), torch.eye(12).double() - 1 / 12  # the kernel's sum is known
        of_kernel = r2["kernel"][b] * B @ Z @ B.T
        explained = torch.where(kept, of_kernel @ torch.where(kept, residual[b].flatten(), 0), 0)
        torch.testing.assert_close(shaken[b].flatten(), explained, rtol=1e-7, atol=1e-7)
        gram = r2["image"][b] * J @ J.T + of_kernel + SIGMA2[b] * torch.eye(len(J), dtype=J.dtype)
        # Of the product of both errors: blurred light over the slope at y, as if the slope at x were its RMS there.
        k, x = kernel[b : b + 1], image[b : b + 1]
        scale = (BlurOperator(boundary)(slope(x).square(), kernel=k).sqrt() / slope(operator(x, kernel=k))).flatten()
        of_both = covariance_of_both(operator, x, k, Z)
        gram = gram + r2["image"][b] * r2["kernel"][b] * scale[:, None] * of_both * scale
        expected = torch.linalg.solve(gram[kept][:, kept], residual[b].flatten()[kept])
        torch.testing.assert_close(found[b].flatten()[kept], expected, rtol=1e-7, atol=1e-7)
        assert not bool(found[b].flatten()[~kept].any())


@pytest.mark.parametrize("boundary", ["circular", "unknown"])
def test_ten_steps_of_the_joint_system_are_close(boundary):
    scene = blurred_toy(2, side=48, sigma=1e-9).y.double().clamp(0.02, 0.98)
    kernel = torch.full((2, 1, 1, 5), 0.2).double()
    r2 = {"image": torch.full((2,), 0.03).double(), "kernel": torch.full((2,), 1e-4).double()}
    y = LinearLightBlur(boundary)(scene, kernel=kernel)
    residual = 0.05 * torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).double()
    exact, ten = (
        LinearLightBlur(boundary, **options).solve_joint_gram(
            residual, r2, torch.full((2,), 0.02**2).double(), image=scene, kernel=kernel
        )
        for options in (EXACT, {"cg_iterations": 10, "cg_tolerance": 0.0})
    )
    assert (ten - exact).norm() < 0.1 * exact.norm()


@pytest.mark.parametrize("boundary", ["circular", "unknown"])
def test_ten_steps_are_enough_where_slopes_differ(boundary):
    """From shadows to highlights the slope of the curve changes tenfold, which the preconditioner must know of."""
    scene = blurred_toy(2, side=48, sigma=1e-9).y.double().clamp(0.02, 0.98)
    kernel = torch.full((2, 1, 1, 5), 0.2).double()
    r2, sigma2 = torch.full((2,), 0.03).double(), torch.full((2,), 0.02**2).double()
    y = LinearLightBlur(boundary)(scene, kernel=kernel)
    image = scene + 0.1 * torch.randn(scene.shape, generator=torch.Generator().manual_seed(1)).double()
    exact, ten = (
        LinearLightBlur(boundary, **options).guidance_direction(y, image, r2, sigma2, kernel=kernel)
        for options in (EXACT, {"cg_iterations": 10, "cg_tolerance": 0.0})
    )
    assert (ten - exact).norm() < 0.04 * exact.norm()


def test_without_spread_guidance_is_the_gradient_of_the_likelihood():
    """Close to the truth, where the linearisation is exact."""
    kernel = random_kernel((4, 3))
    image = rand(2, 3, *IMAGE_SIZE).requires_grad_()
    operator = LinearLightBlur("unknown", **EXACT)
    y = (operator(image, kernel=kernel) + 1e-6 * rand(2, 3, 3, 5, seed=2)).detach()
    misfit = ((y - operator(image, kernel=kernel)).square().flatten(1).sum(1) / (2 * SIGMA2)).sum()
    direction = operator.guidance_direction(y, image.detach(), 0 * R2, SIGMA2, kernel=kernel)
    torch.testing.assert_close(direction, -torch.autograd.grad(misfit, image)[0], rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("boundary", ["circular", "unknown"])
def test_particles_share_kernel_and_measurement(boundary):
    operator, kernel, particles = LinearLightBlur(boundary), random_kernel((4, 3)), rand(2, 5, 3, *IMAGE_SIZE)
    y = operator(particles[:, :1], kernel=kernel)
    together = operator.guidance_direction(y, particles, R2, SIGMA2, kernel=kernel)
    for i in range(5):
        alone = operator.guidance_direction(y[:, 0], particles[:, i], R2, SIGMA2, kernel=kernel)
        torch.testing.assert_close(together[:, i], alone)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_the_kernel_equations_know_of_light(boundary):
    """Of noise-free pictures they find the kernel, which those of encoded values miss."""
    kernel, image = random_kernel((3, 3)), rand(2, 2, 3, 16, 17)
    operator = LinearLightBlur(boundary, **EXACT)
    y = operator(image[:, :1], kernel=kernel)[:, 0]
    alpha, start = torch.full((2,), 1e-10, dtype=torch.float64), torch.full_like(kernel, 1 / 9)

    def found(operator):
        equations = operator.normal_equations(y, image[:, :1], kernel_size=(3, 3))
        return equations.prepare(alpha)(start)

    torch.testing.assert_close(found(operator), kernel, atol=1e-6, rtol=0)
    assert (found(BlurOperator(boundary, **EXACT)) - kernel).abs().max() > 1e-3


def test_the_kernel_equations_keep_the_level_of_the_noise():
    """Light is scaled so that what sigma is in encoded values it is, on average, in the equations too."""
    image = rand(2, 1, 3, 64, 64)
    y, noise = image[:, 0], 1e-4 * torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)).double()
    scale2 = LinearLightBlur().normal_equations(y, image, kernel_size=(3, 3)).denominator / (
        torch.fft.rfft2(to_light(image)).abs().square().sum(1)
    )
    level = scale2.mean((1, 2, 3)).sqrt() * (to_light(y + noise) - to_light(y)).square().mean((1, 2, 3)).sqrt()
    assert level.tolist() == pytest.approx([1e-4, 1e-4], rel=0.03)


def test_masked_pixels_do_not_matter():
    kernel, image = random_kernel((3, 3)), rand(2, 1, 3, 12, 12)
    operator = LinearLightBlur("reflect", **EXACT)
    y = operator(image, kernel=kernel)[:, 0]
    mask = random_mask((12, 12))
    spoiled = torch.where(mask > 0, y, 1 - y)
    directions = [
        operator.guidance_direction(v.unsqueeze(1), image, R2, SIGMA2, kernel=kernel, mask=mask) for v in (y, spoiled)
    ]
    torch.testing.assert_close(*directions)
    alpha, start = torch.ones(2, dtype=torch.float64), torch.full_like(kernel, 1 / 9)
    kernels = [
        operator.normal_equations(v, image, kernel_size=(3, 3), mask=mask).prepare(alpha)(start) for v in (y, spoiled)
    ]
    torch.testing.assert_close(*kernels)


@pytest.mark.parametrize("boundary", ["circular", "unknown"])
@pytest.mark.parametrize("channels", [1, 3])
def test_methods_take_it_as_any_blur(boundary, channels):
    prior, process = tiny_prior(), ReverseProcess(num_steps=3)
    measurement = replace(blurred_toy(2, channels=channels), operator=LinearLightBlur(boundary))
    for method in (
        NonBlind(prior, process=process),
        FastEM(prior, HQS(NoRegularizer(), 3), process=process, kernel_size=7),
    ):
        found = method(measurement, noise=GeneratorNoise([0, 1]))
        assert found.image.shape == measurement.y.shape
        assert found.params["kernel"].sum((1, 2, 3)).tolist() == pytest.approx([1, 1], abs=1e-4)


def test_what_it_cannot_do_is_refused():
    method = NonBlind(tiny_prior(), DPS(), ReverseProcess(num_steps=2))
    with pytest.raises(InputError, match="guidance=pigdm"):
        method(replace(blurred_toy(), operator=LinearLightBlur()), noise=GeneratorNoise([0]))
    with pytest.raises(InputError, match="pad_value = 0"):
        LinearLightBlur("zero", pad_value=0.5)
    with pytest.raises(InputError, match="boundary among"):
        LinearLightBlur("wrap")
