"""Signs of trust: the laws of each measure, and the flags on constructed cases."""

import math

import pytest
import torch
from toys import blurred_toy

from codiffuse.data.sources import sources
from codiffuse.errors import InputError
from codiffuse.estimation.support import kernel_pixels
from codiffuse.inference import diagnostics
from codiffuse.inference.diagnostics import FLAGS, TRUST_TERMS, Diagnosis, diagnose, predictors, trust
from codiffuse.methods.base import Restarts
from codiffuse.metrics import consistency, reblur
from codiffuse.operators.blur import BlurOperator
from codiffuse.simulate.gaussian import gaussian_kernel

SIGMA = 0.02


def white(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def delta(size=9, row=4, column=4):
    kernel = torch.zeros(1, 1, size, size)
    kernel[0, 0, row, column] = 1
    return kernel


def line(size=9, length=5, row=4, left=2):
    kernel = torch.zeros(1, 1, size, size)
    kernel[0, 0, row, left : left + length] = 1 / length
    return kernel


# The residual


def test_residual_ratio_is_one_for_noise_of_that_level_and_agrees_with_reblur():
    residual, sigma = 0.1 * white(2, 3, 64, 64), torch.tensor([0.1, 0.05])
    ratio = consistency.residual_ratio(residual, sigma)
    torch.testing.assert_close(ratio, torch.tensor([1.0, 2.0]).double(), rtol=0.02, atol=0)
    operator = BlurOperator()
    loss = reblur(residual, torch.zeros_like(residual), delta().expand(2, -1, -1, -1), sigma, operator)
    torch.testing.assert_close(loss, sigma.double() ** 2 * (ratio**2 - 1))


def test_masked_pixels_do_not_count():
    residual, mask = 0.1 * white(1, 3, 40, 40), torch.ones(1, 1, 40, 40)
    mask[..., 10:20, 5:30] = 0
    spoilt = torch.where(mask == 0, 7.0, residual)
    sigma = torch.tensor([0.1])
    for measure in (
        lambda r, **options: consistency.residual_ratio(r, sigma, **options),
        lambda r, **options: consistency.residual_correlation(r, 3, **options),
        lambda r, **options: consistency.gradient_sparsity(r, **options),
        lambda r, **options: consistency.sharpening(r, 2 * r, sigma, **options),
    ):
        assert measure(spoilt, mask=mask) == measure(mask * residual, mask=mask)
        assert not torch.isclose(measure(spoilt), measure(residual), rtol=0.05)


@pytest.mark.parametrize("side", [32, 128])
def test_white_noise_of_any_size_is_uncorrelated(side):
    """The mean over draws is 0, as its chance spread of some sqrt(2 lags) / N a draw allows."""
    scores = consistency.residual_correlation(white(64, 1, side, side))
    spread = math.sqrt(2 * 40) / side**2
    assert abs(float(scores.mean())) < 4 * spread / 8
    assert float(scores.std()) < 2 * spread


def test_residual_correlation_of_a_moving_average_is_its_autocorrelation():
    """Of two columns: rho = 1/2 at one lag. Of two by two pixels: 1/4 + 1/4 + 2/16."""
    noise = white(8, 3, 129, 129)
    pairs = noise[..., 1:] + noise[..., :-1]
    assert float(consistency.residual_correlation(pairs).mean()) == pytest.approx(1 / 4, abs=0.01)
    squares = pairs[..., 1:, :] + pairs[..., :-1, :]
    assert float(consistency.residual_correlation(squares).mean()) == pytest.approx(5 / 8, abs=0.02)


def test_residual_correlation_equals_a_sum_over_pairs():
    residual, mask = (
        white(1, 1, 7, 6),
        (torch.rand(1, 1, 7, 6, generator=torch.Generator().manual_seed(1)) > 0.3).double(),
    )
    kept = {(r, c): float(residual[0, 0, r, c]) for r in range(7) for c in range(6) if mask[0, 0, r, c]}
    variance = sum(value**2 for value in kept.values()) / len(kept)
    expected = 0.0
    for down, right in [(1, 0), (2, 0), *((down, right) for right in (1, 2) for down in (-2, -1, 0, 1, 2))]:
        products = [v * kept[r + down, c + right] for (r, c), v in kept.items() if (r + down, c + right) in kept]
        expected += (sum(products) / len(products) / variance) ** 2 - 1 / len(products)
    assert float(consistency.residual_correlation(residual, 2, mask)) == pytest.approx(expected, abs=1e-12)


# Kernels


def test_width_is_that_of_an_axis():
    assert float(consistency.kernel_std(gaussian_kernel(33, 2.0)[None])) == pytest.approx(2, rel=1e-3)
    assert float(consistency.kernel_std(gaussian_kernel(33, 3.0, ratio=3)[None])) == pytest.approx(5**0.5, rel=1e-2)


@pytest.mark.parametrize("angle", [0.0, 0.7, 1.57, 2.5])
def test_widths_along_the_axes_are_those_of_the_gaussian_at_any_angle(angle):
    gaussians = torch.stack([gaussian_kernel(33, 3.0, ratio=2.0, angle=angle), gaussian_kernel(33, 2.0)])
    found = consistency.kernel_axes(gaussians)
    torch.testing.assert_close(found, torch.tensor([[3.0, 1.5], [2.0, 2.0]]).double(), rtol=2e-3, atol=0)
    torch.testing.assert_close(found.square().sum(1).sqrt(), consistency.kernel_spread(gaussians))
    assert consistency.kernel_axes(delta(row=2, column=7)).tolist() == [[0, 0]]
    torch.testing.assert_close(consistency.kernel_axes(line(length=2)), torch.tensor([[0.5, 0.0]]).double())


def test_spread_is_the_standard_deviation_of_place():
    assert consistency.kernel_spread(delta(row=2, column=7)) == 0
    assert float(consistency.kernel_spread(line(length=2))) == pytest.approx(0.5)
    assert float(consistency.kernel_spread(gaussian_kernel(33, 2.0)[None])) == pytest.approx(2 * math.sqrt(2), rel=1e-3)


@pytest.mark.parametrize("length", [1, 2, 5])
def test_kernel_pixels_counts_equal_pixels(length):
    assert float(kernel_pixels(line(length=length))) == pytest.approx(length)


def test_kernels_agree_up_to_shifts():
    same = torch.cat([line(), line(row=2, left=4), line(row=6, left=0)], 1)
    assert float(consistency.agreement(same)) == pytest.approx(1)
    assert float(consistency.support(line(row=5), same)) == pytest.approx(1)
    # A line and a delta share 1 / sqrt(5) of their energy: one pair of three is equal.
    mixed = torch.cat([line(), line(left=3), delta()], 1)
    assert float(consistency.agreement(mixed)) == pytest.approx((1 + 2 / math.sqrt(5)) / 3, abs=1e-6)
    assert float(consistency.support(delta(), mixed)) == pytest.approx((1 + 2 / math.sqrt(5)) / 3, abs=1e-6)
    assert consistency.agreement(same[:, :1]).isnan()
    assert consistency.support(line(), same[:, :0]).isnan()


# Gradients


def test_sharpening_is_the_ratio_of_gradients_without_noise():
    truth = blurred_toy(side=64).y.double()
    sigma = torch.tensor([SIGMA])
    assert float(consistency.sharpening(truth, truth, 0 * sigma)) == pytest.approx(1)
    assert float(consistency.sharpening(2 * truth, truth, 0 * sigma)) == pytest.approx(2)
    noisy = truth + 2 * SIGMA * white(*truth.shape)
    assert float(consistency.sharpening(truth, noisy, 2 * sigma)) == pytest.approx(1, abs=0.1)


def test_gradient_sparsity_is_one_for_stripes_and_small_for_one_edge():
    columns = torch.arange(20)
    diagonal = ((columns[:, None] + columns) % 2).double()[None, None]
    assert float(consistency.gradient_sparsity(diagonal)) == pytest.approx(1)
    edge = (columns >= 10).double().expand(1, 1, 20, 20)
    assert float(consistency.gradient_sparsity(edge)) == pytest.approx(math.sqrt(20 / (2 * 19 * 20)))
    blurred = BlurOperator("replicate")(edge, kernel=line().double())
    assert consistency.gradient_sparsity(blurred) > 1.5 * consistency.gradient_sparsity(edge)


def test_only_what_was_cut_off_is_clipped():
    y = torch.full((1, 3, 10, 10), 0.5)
    y[0, 1, 0] = 1.0
    y[0, 2, 1, :5] = 0.0
    assert float(consistency.clipped_share(y)) == pytest.approx(0.15)
    y[0, 0, 5, 5] = 1.2
    assert float(consistency.clipped_share(y)) == pytest.approx(0.05)
    assert float(consistency.clipped_share(0.98 + SIGMA * white(1, 3, 32, 32))) == 0
    assert float(consistency.clipped_share((1.0 + SIGMA * white(1, 3, 32, 32)).clamp(max=1))) > 0.4


# The diagnosis


def case(boundary="circular", side=48, sigma=SIGMA):
    """A restoration that is the truth: y, image on the operator's canvas, kernel, operator."""
    canvas = photograph(side)
    kernel, operator = line(), BlurOperator(boundary)
    blurred = operator(canvas[None], kernel=kernel)
    return (blurred + sigma * white(*blurred.shape).float())[0], canvas, kernel[0], operator


def photograph(side):
    """A sharp part of a packaged photograph."""
    return sources("sample:coffee")[0].load().pixels[:, 150 : 150 + side, 200 : 200 + side]


def test_a_faint_tail_hardly_counts():
    kernel = 0.6 * delta() + 0.4 / 81 * torch.ones(1, 1, 9, 9)
    assert float(kernel_pixels(kernel)) < 4


@pytest.mark.parametrize("boundary", ["circular", "unknown", "reflect"])
def test_the_truth_raises_no_flag(boundary):
    y, image, kernel, operator = case(boundary)
    restarts = Restarts(torch.cat([kernel, kernel, delta()[0]]), torch.tensor([1.0, 1.01, math.inf]))
    found = diagnose(y, image, kernel, SIGMA, operator, restarts=restarts, sigma_used=SIGMA)
    assert found.flags == ()
    assert found.features["residual_ratio"] == pytest.approx(1, abs=0.03)
    assert found.features["restart_support"] == pytest.approx(1)


def test_a_frame_explains_the_inner_part_as_its_canvas_explains_all():
    y, canvas, kernel, operator = case("unknown", side=64)
    mask = torch.ones(1, *y.shape[-2:])
    mask[:, 20:25, 30:40] = 0
    y = torch.where(mask == 0, 1.5, y)
    frame = operator.crop_to_frame(canvas, kernel_size=(9, 9))
    whole = diagnose(y, canvas, kernel, SIGMA, operator, mask=mask).features
    inner = diagnose(y, frame, kernel, SIGMA, operator, mask=mask).features
    assert whole["residual_ratio"] == pytest.approx(1, abs=0.03)
    assert inner["residual_ratio"] == pytest.approx(1, abs=0.03)
    assert whole["sharpening"] == inner["sharpening"]
    assert diagnose(y, frame, kernel, SIGMA, operator).features["residual_ratio"] > 2


def test_an_image_of_another_size_is_refused():
    y, image, kernel, operator = case()
    with pytest.raises(InputError, match="48, 48"):
        diagnose(y, image[:, 1:], kernel, SIGMA, operator)


def spoilt(flag):
    """Arguments of `diagnose` for a restoration with one thing wrong."""
    y, image, kernel, operator = case(side=64)
    options = {}
    if flag in ("no_blur", "sharp"):
        kernel = 0.7 * delta()[0] + 0.3 / 81
        options["is_sharp"] = flag == "sharp"
        y = operator(image[None], kernel=kernel[None])[0] + SIGMA * white(*image.shape).float()
    if flag == "residual_too_large":
        y = y + 2 * SIGMA * white(*y.shape, seed=1).float()
    if flag == "residual_not_white":
        y = y + 3 * SIGMA * operator(white(1, *y.shape, seed=1).float(), kernel=kernel[None])[0]
    if flag == "still_blurred":  # by 6 px, of which a line of 2 px was found
        wide = gaussian_kernel(33, std=6.0)[None]
        y = image = operator(photograph(128)[None], kernel=wide)[0]
        kernel = line(length=4)[0]
    if flag == "kernel_at_border":
        kernel = line(row=0)[0]
        y = operator(image[None], kernel=kernel[None])[0] + SIGMA * white(*y.shape).float()
    if flag == "restarts_disagree":
        options["restarts"] = Restarts(torch.cat([kernel, kernel.mT, delta()[0]]), torch.tensor([1.0, 1.0, 1.01]))
    if flag == "blur_not_uniform":
        options["window_kernels"] = torch.cat([kernel, kernel.mT, delta()[0]])
    if flag == "texture_poor":
        image = 0.5 + 0.02 * (image - 0.5)
        y = operator(image[None], kernel=kernel[None])[0] + SIGMA * white(*y.shape).float()
    if flag == "saturated":
        image = (1.6 * image).clamp(max=1)
        y = operator(image[None], kernel=kernel[None])[0] + SIGMA * white(*y.shape).float()
        options["mask"] = (y < 1).all(0, keepdim=True).float()
        y = y.clamp(max=1)
    if flag == "noise_corrected":
        options["sigma_used"] = 1.5 * SIGMA
    return (y, image, kernel, SIGMA, operator), options


@pytest.mark.parametrize("flag", FLAGS)
def test_each_flag_is_raised_by_its_cause(flag):
    arguments, options = spoilt(flag)
    found = diagnose(*arguments, **options)
    assert flag in found.flags
    assert (found.trust is None) == (flag in ("sharp", "no_blur"))


@pytest.mark.parametrize(("level", "raised"), [(2 / 255, False), (9 / 255, True)])
def test_what_every_photograph_leaves_unexplained_raises_no_flag(level, raised):
    """A noise of half a gray level, and a residual with structure that is many times larger."""
    y, image, kernel, operator = case(side=64, sigma=0.5 / 255)
    left = operator(white(1, *y.shape, seed=1).float(), kernel=kernel[None])[0]
    y = y + level * left / left.square().mean().sqrt()
    found = diagnose(y, image, kernel, 0.5 / 255, operator, sigma_used=max(level, 0.5 / 255))
    expected = {"residual_too_large", "residual_not_white", "noise_corrected"}
    assert set(found.flags) == (expected if raised else set())
    assert found.features["unexplained"] == pytest.approx(math.hypot(level, 0.5 / 255) / (5 / 255), rel=0.01)
    assert found.features["residual_ratio"] == pytest.approx(math.hypot(level, 0.5 / 255) / (0.5 / 255), rel=0.01)


def test_a_smooth_picture_is_not_taken_for_blurred():
    """Its result looks blurred; but the blur found is about as wide as the measurement looks blurred."""
    operator = BlurOperator()
    smooth = operator(photograph(128)[None], kernel=gaussian_kernel(33, std=0.7)[None])
    long = line(33, length=33, row=16, left=0)
    y = (operator(smooth, kernel=long) + 0.01 * white(*smooth.shape).float())[0]
    found = diagnose(y, smooth[0], long[0], 0.01, operator)
    assert found.features["remaining_spread"] > diagnostics.MAX_REMAINING_SPREAD
    assert "still_blurred" not in found.flags


def test_flags_are_plain_sentences():
    assert all(text[0].isupper() and text.endswith(".") and len(text) < 120 for text in FLAGS.values())


def test_a_wrong_kernel_is_trusted_less():
    y, image, kernel, operator = case(side=64)
    same = Restarts(kernel.expand(3, -1, -1), torch.tensor([1.0, 1.01, 1.02]))
    right = diagnose(y, image, kernel, SIGMA, operator, restarts=same)
    wrong_kernel = torch.full((1, 9, 9), 1 / 81)
    others = Restarts(torch.cat([wrong_kernel, kernel.mT, delta()[0]]), torch.tensor([2.0, 2.5, 3.0]))
    ringing = image + 0.3 * white(*image.shape).float()
    wrong = diagnose(y, ringing, wrong_kernel, SIGMA, operator, restarts=others)
    assert wrong.trust < right.trust - 0.2


@pytest.mark.parametrize("below", [0.2, 0.9])
def test_a_residual_below_the_noise_is_no_reason_to_trust(below):
    assert predictors({"unexplained": below}) == predictors({"unexplained": 1.0}) == {"unexplained": 0.0}
    assert predictors({"unexplained": 1.1})["unexplained"] > 0


def test_features_are_finite_and_those_without_a_value_are_left_out():
    flat = torch.full((3, 32, 32), 0.5)
    kernel = line()[0]
    found = diagnose(flat, flat, kernel, SIGMA, BlurOperator(), restarts=Restarts(kernel, torch.tensor([1.0])))
    assert all(math.isfinite(value) for value in found.features.values())
    assert not {"sparsity_before", "sharpening", "restart_agreement"} & found.features.keys()
    assert 0 <= found.trust <= 1


def test_trust_is_bounded_and_takes_a_missing_feature_as_typical():
    typical = {
        name: math.exp(term.mean) if name in diagnostics.LOGARITHMIC else term.mean
        for name, term in TRUST_TERMS.items()
    }
    assert trust({}) == pytest.approx(trust(typical)) == pytest.approx(trust(dict.fromkeys(typical)))
    assert trust({}) == pytest.approx(1 / (1 + math.exp(-diagnostics.TRUST_BIAS)))
    extreme = [trust({name: value}) for name in typical for value in (-1e9, 0.0, 1e9)]
    assert all(0.001 < value < 0.9999 for value in extreme)


def test_every_term_is_a_feature():
    y, image, kernel, operator = case()
    restarts = Restarts(kernel.expand(3, -1, -1), torch.tensor([1.0, 1.01, 1.02]))
    found = diagnose(y, image, kernel, SIGMA, operator, restarts=restarts, window_kernels=kernel.expand(2, -1, -1))
    assert isinstance(found, Diagnosis)
    assert TRUST_TERMS.keys() | diagnostics.LOGARITHMIC <= found.features.keys()
    assert len(TRUST_TERMS) in range(3, 6)
