"""A variable's way from x_t to x_{t-1}, its penalties, and what a guidance adds to it."""

import math

import pytest
import torch
from toys import blurred_toy, gaussian_kernel_prior

from codiffuse.errors import InputError
from codiffuse.guidance.coupled import Estimates, Pull
from codiffuse.guidance.dps import DPS
from codiffuse.guidance.joint import JointPiGDM, PowerLaw
from codiffuse.guidance.pigdm import PiGDM
from codiffuse.methods.steps import ReverseProcess, learned_log_variance
from codiffuse.methods.variables import L0Penalty, L1Penalty, Variable
from codiffuse.operators.noise import PoissonNoise
from codiffuse.schedule import linear_schedule
from codiffuse.spaces import KernelSpace, TiltSpace

STEP = linear_schedule().respaced(100).steps()[40]
PROCESS = ReverseProcess(100)


def coordinates(seed=0, count=2) -> torch.Tensor:
    return (0.4 * torch.randn(count, 1, 5, 5, generator=torch.Generator().manual_seed(seed))).clamp(-1, 1)


def posterior_mean(x0, x_t):
    """Ho et al., Eq. 7, as Alg. 1 of BlindDPS has it in lines 9 and 10."""
    of_x_t = math.sqrt(1 - STEP.beta) * (1 - STEP.alpha_bar_prev) / (1 - STEP.alpha_bar)
    return math.sqrt(STEP.alpha_bar_prev) * STEP.beta / (1 - STEP.alpha_bar) * x0 + of_x_t * x_t


def advance(variable, process=PROCESS, fraction=None, z=0.0, shift=0.0):
    x_t, x0 = coordinates(0), coordinates(1)
    return variable.advance(process, x_t, x0, shift + 0 * x0, STEP, z + 0 * x0, fraction)


@pytest.mark.parametrize("projected", [False, True])
def test_the_mean_is_taken_of_the_kernel_before_or_after_its_projection(projected):
    x_t, x0 = coordinates(0), coordinates(1)
    space = KernelSpace()
    expected = posterior_mean(space.encode(space.decode(x0)) if projected else x0, x_t)
    found = advance(Variable(gaussian_kernel_prior(), size=5, projected_mean=projected))
    torch.testing.assert_close(found, expected)


def test_a_variance_that_is_learned_is_used_where_it_is():
    learned, variable = ReverseProcess(100, variance="learned"), Variable(gaussian_kernel_prior(), size=5)
    fraction = torch.rand(2, 1, 5, 5, generator=torch.Generator().manual_seed(2))
    mean = advance(variable)
    with_it = advance(variable, learned, fraction, z=1.0) - mean
    torch.testing.assert_close(with_it, (0.5 * learned_log_variance(fraction, STEP)).exp())
    without = advance(variable, learned, None, z=1.0) - mean
    torch.testing.assert_close(without, torch.full_like(mean, math.sqrt(STEP.posterior_variance)))
    torch.testing.assert_close(advance(variable, PROCESS, fraction, z=1.0) - mean, without)
    with pytest.raises(InputError, match="variance=small"):  # as Fast EM and DPS have it
        learned.advance(mean, mean, STEP, mean)


def test_the_uniform_prior_is_a_descent_along_the_gradient():
    x_t, shift = coordinates(0), coordinates(3)
    expected = (x_t + STEP.x0_weight * shift).clamp(-1, 1)
    found = advance(Variable(space=KernelSpace(), size=5), z=1.0, shift=shift)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("guidance", "weight"),
    [
        (DPS("norm", 0.7), 0.7 * math.sqrt(STEP.alpha_bar)),
        (DPS("constant", 0.7), 0.7),
        (DPS("likelihood", 0.7), 0.7 * math.sqrt(STEP.alpha_bar) * STEP.beta / math.sqrt(1 - STEP.beta)),
        (JointPiGDM({}), math.sqrt(STEP.alpha_bar) * STEP.beta / math.sqrt(1 - STEP.beta)),
        (JointPiGDM({}, zeta="one"), STEP.beta / math.sqrt(1 - STEP.beta)),
    ],
)
def test_the_mean_moves_by_what_the_rule_says_times_the_gradient(guidance, weight):
    """BlindDPS, Alg. 1, lines 11 and 13; Fast EM, Eq. 15."""
    gradient, variable = coordinates(4), Variable(gaussian_kernel_prior(), size=5)
    nothing = torch.zeros(1)
    pull = Pull(Estimates(None, {}, {}, STEP), nothing, nothing, nothing, {}, None)
    shift = guidance.measured({"kernel": guidance.x0_shift(gradient, STEP)}, pull, {"kernel": 1.0})["kernel"]
    moved = advance(variable, shift=shift) - advance(variable)
    torch.testing.assert_close(moved, weight * gradient, atol=1e-6, rtol=1e-4)


def test_photon_noise_weighs_dark_pixels_more():
    residual = torch.ones(1, 1, 1, 2)
    variance = PoissonNoise(100.0).variance(torch.tensor([[[[0.1, 0.9]]]]))
    weighed = DPS().weigh(residual, variance)
    assert float(weighed[..., 0] / weighed[..., 1]) == pytest.approx(9)
    equal = DPS().weigh(residual, torch.full_like(variance, 0.01))
    torch.testing.assert_close(equal, torch.full_like(equal, 2 / 2**0.5))


def test_what_is_weighed_is_the_gradient_of_a_norm():
    """Chung et al., Eq. 17: 2 sqrt(sum r^2 mean(v) / v), minus whose gradient in A x is that in r."""
    residual = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    variance = PoissonNoise(50.0).variance(torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(1)))
    share = variance.mean((1, 2, 3), keepdim=True) / variance
    norm = 2 * (residual.square() * share).sum((1, 2, 3)).sqrt()
    expected = torch.autograd.grad(norm.sum(), residual)[0]
    torch.testing.assert_close(DPS("norm").weigh(residual.detach(), variance), expected)
    torch.testing.assert_close(DPS("likelihood").weigh(residual.detach(), variance), residual.detach() / variance)


def test_joint_guidance_divides_by_what_each_unknown_explains():
    toy, v = blurred_toy(2), {"image": 0.25, "kernel": 0.05}
    kernel = toy.known["kernel"]
    units = {"image": torch.full((2,), 0.5), "kernel": torch.tensor([0.1, 0.2])}
    residual, variance = torch.randn(toy.y.shape, generator=torch.Generator().manual_seed(0)), toy.noise.variance(toy.y)
    at = Estimates(toy.operator, {"image": toy.y, "kernel": kernel}, units, STEP)
    noise = 1 - STEP.alpha_bar
    r2 = {name: noise * v[name] / (noise + STEP.alpha_bar * v[name]) * units[name] ** 2 for name in v}
    expected = toy.operator.solve_joint_gram(residual, r2, toy.sigma.square(), image=toy.y, kernel=kernel)
    torch.testing.assert_close(JointPiGDM(v).weigh(residual, variance, at), expected, atol=1e-2, rtol=1e-3)
    alone = toy.operator.solve_gram(residual, r2["image"], toy.sigma.square(), kernel=kernel)
    assert (expected - alone).norm() > 0.1 * alone.norm()  # the kernel explains some of it


def test_unknowns_of_any_spread():
    """Without prior knowledge x_0 is x_t over sqrt(alpha_bar), up to its noise."""
    expected = (1 - STEP.alpha_bar) / STEP.alpha_bar
    assert STEP.gaussian_variance(math.inf) == pytest.approx(expected)
    assert STEP.gaussian_variance(1e9) == pytest.approx(expected, rel=1e-6)
    guidance = JointPiGDM({"tilt": math.inf}, data_unit={"tilt": 2.5})
    unit = torch.full((2,), 0.5)
    torch.testing.assert_close(guidance.covariance("tilt", STEP, unit), torch.full((2,), 0.25 * expected))


def test_l0_counts_what_exceeds_its_width():
    x0 = 2 * torch.tensor([0.0, 0.001, 0.9, 1.0]).reshape(1, 1, 2, 2) - 1
    assert float(L0Penalty(2.0, width=0.05)(x0)) == pytest.approx(2 * 2, rel=0.01)
    assert float(L1Penalty(2.0)(x0)) == pytest.approx(2 * 1.901, rel=1e-5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Variable(), "Expected a prior or a space"),
        (lambda: Variable(space=KernelSpace(), step=0), "step > 0, got 0"),
        (lambda: Variable(space=KernelSpace(), size=0), "size of whole pixels, .* got 0"),
        (lambda: Variable(space=KernelSpace(), size=-3), "got -3"),
        (lambda: Variable(space=KernelSpace(), size=7.0), r"got 7\.0"),
        (lambda: Variable(space=KernelSpace(), size=(7, 7, 7)), r"got \(7, 7, 7\)"),
        (lambda: L1Penalty(-1), "weight >= 0"),
        (lambda: L0Penalty(float("nan")), "weight >= 0"),
        (lambda: L0Penalty(width=0), "width > 0"),
        (lambda: TiltSpace(0), "max_tilt_px > 0"),
        (lambda: DPS("sometimes"), "rule norm, constant or likelihood"),
        (lambda: DPS(scale=-1), "scale > 0"),
        (lambda: DPS(scale=float("nan")), "scale > 0"),
        (lambda: DPS(scale="1"), "scale > 0 .* got '1'"),
        (lambda: JointPiGDM({"image": 0.25}, zeta="two"), "zeta"),
        (lambda: JointPiGDM({"image": -1}), r"data_variance\.image .* got -1"),
        (lambda: JointPiGDM({"image": float("nan")}), r"data_variance\.image"),
        (lambda: JointPiGDM({"kernel": PowerLaw()}), r"data_variance\.kernel .* PowerLaw"),
        (lambda: PowerLaw(amplitude=-1), r"amplitude of the image's spectrum, got -1"),
        (lambda: JointPiGDM({"kernel": "a"}), r"data_variance\.kernel .* got 'a'"),
        (lambda: JointPiGDM({"tilt": 0.1}, data_unit={"tilt": 0}), r"data_unit\.tilt .* got 0"),
        (lambda: PiGDM("vp", data_variance=0), "data_variance > 0"),
    ],
)
def test_what_cannot_be_is_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        wrong()


def test_sizes_may_be_oblong():
    assert Variable(space=KernelSpace(), size=(5, 7)).shape((32, 40)) == (1, 5, 7)
    assert Variable(space=KernelSpace(), size=[5, 7]).shape((32, 40)) == (1, 5, 7)
    assert Variable(space=TiltSpace(), channels=2).shape((32, 40)) == (2, 32, 40)


def test_the_dark_of_a_variable_goes_before_that_of_its_space():
    space = KernelSpace(dark=0.1)
    assert Variable(space=space).coordinates == space
    assert Variable(space=space, dark=0.0).coordinates == KernelSpace()
