"""The diffusion chain: laws of its tables, respacing and reverse steps, and recorded numbers of published programs."""

import math
from dataclasses import replace

import pytest
import torch

from codiffuse.errors import InputError
from codiffuse.guidance.pigdm import PiGDM
from codiffuse.methods.steps import ReverseProcess, learned_log_variance
from codiffuse.schedule import (
    Schedule,
    add_noise,
    cosine_schedule,
    eps_from_x0,
    linear_schedule,
    score_from_x0,
    spread,
    tweedie_x0,
)

SPACINGS = [1000, 100, 20, "ddim100", "ddim50"]


def float64(*values):
    return torch.tensor(values, dtype=torch.float64)


def assert_table(actual, recorded, tolerance=1e-12):
    actual, recorded = (torch.as_tensor(table, dtype=torch.float64) for table in (actual, recorded))
    torch.testing.assert_close(actual, recorded, rtol=0, atol=tolerance)


def unit_weights(step, process=None):
    """Weights of x0, x_t and z in one reverse step, read off by feeding it ones and zeros."""
    advance = (process or ReverseProcess()).advance
    one, zero = float64(1.0), float64(0.0)
    return tuple(
        float(advance(x_t, x0, step, z)) for x0, x_t, z in [(one, zero, zero), (zero, one, zero), (zero, zero, one)]
    )


# Laws


@pytest.mark.parametrize("schedule", [linear_schedule(), cosine_schedule(), linear_schedule(250)])
def test_noise_grows_along_the_chain_from_nothing_to_all(schedule):
    assert (schedule.alpha_bar.diff() < 0).all()
    assert schedule.alpha_bar[0] > 0.999
    assert schedule.alpha_bar[-1] < 1e-3
    assert schedule.posterior_variance[0] == 0
    assert (schedule.posterior_variance <= schedule.betas).all()


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("make", [linear_schedule, cosine_schedule])
def test_respacing_keeps_alpha_bar(make, spacing):
    full = make()
    short = full.respaced(spacing)
    assert len(short) == int(str(spacing).removeprefix("ddim"))
    assert (short.original_steps.diff() > 0).all()
    assert short.num_original == len(full)
    torch.testing.assert_close(short.alpha_bar, full.alpha_bar[short.original_steps], rtol=1e-12, atol=1e-15)


def test_respacing_twice_remembers_the_training_chain():
    twice = linear_schedule().respaced("ddim100").respaced("ddim20")
    assert twice.original_steps.tolist() == list(range(0, 1000, 50))
    assert twice.num_original == 1000


def test_steps_crowd_where_there_is_little_noise():
    assert linear_schedule().respaced(5, 2.0).original_steps.tolist() == [0, 62, 250, 562, 999]


@pytest.mark.parametrize("power", [1.0, 1.5, 3.0])
@pytest.mark.parametrize("steps", [1, 2, 100, 990, 1000])
def test_crowded_steps_stay_distinct_and_reach_the_end(steps, power):
    kept = linear_schedule().respaced(steps, power).original_steps
    assert len(kept) == steps
    assert (kept.diff() > 0).all()
    assert kept[-1] == (999 if steps > 1 else 0)


def test_one_step_is_the_first_and_all_steps_change_nothing():
    full = linear_schedule()
    assert full.respaced(1).original_steps.tolist() == [0]
    assert_table(full.respaced(1000).betas, full.betas, 1e-15)


@pytest.mark.parametrize("spacing", [1000, 20, 1])
def test_steps_are_the_tables_from_the_noise_to_the_data(spacing):
    schedule = linear_schedule().respaced(spacing)
    steps = schedule.steps()
    assert [step.index for step in steps] == list(range(len(schedule)))[::-1]
    for step in (steps[0], steps[len(steps) // 2], steps[-1]):
        assert step.alpha_bar == float(schedule.alpha_bar[step.index])
        assert step.alpha_bar_prev == float(schedule.alpha_bar_prev[step.index])
        assert step.beta == float(schedule.betas[step.index])
        assert step.posterior_variance == pytest.approx(float(schedule.posterior_variance[step.index]), rel=1e-12)
        assert math.isfinite(step.posterior_log_variance)
    assert steps[-1].alpha_bar_prev == 1


def test_one_step_of_noise_after_another_is_the_chain():
    # x_t = sqrt(1 - beta_t) x_{t-1} + sqrt(beta_t) n: mean and variance, propagated step by step.
    schedule = linear_schedule().respaced(50)
    mean, variance = 1.0, 0.0
    for beta in schedule.betas.tolist():
        mean, variance = math.sqrt(1 - beta) * mean, (1 - beta) * variance + beta
    assert mean == pytest.approx(math.sqrt(schedule.alpha_bar[-1]), rel=1e-12)
    assert variance == pytest.approx(1 - float(schedule.alpha_bar[-1]), rel=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_a_reverse_step_with_the_true_x0_keeps_the_marginals(eta):
    # With x_t = a x0 + s n, the step must give x_{t-1} of mean a' x0 and variance s'^2: DDIM, Eq. (12), for every eta.
    process = ReverseProcess(eta=eta)
    for step in linear_schedule().respaced(20).steps()[:-1]:
        on_x0, on_x_t, on_z = unit_weights(step, process)
        assert on_x0 + on_x_t * math.sqrt(step.alpha_bar) == pytest.approx(math.sqrt(step.alpha_bar_prev), rel=1e-10)
        variance = on_x_t**2 * (1 - step.alpha_bar) + on_z**2
        assert variance == pytest.approx(1 - step.alpha_bar_prev, rel=1e-10)


@pytest.mark.parametrize("variance", ["small", "large", "learned"])
def test_the_last_step_gives_x0_and_adds_no_noise(variance):
    last = linear_schedule().respaced(20).steps()[-1]
    x_t, x0, z = torch.full((3, 2), 0.7), torch.linspace(-2, 2, 6).reshape(3, 2), torch.full((3, 2), 100.0)
    torch.testing.assert_close(ReverseProcess(variance=variance).advance(x_t, x0, last, z), x0)
    clipped = ReverseProcess(variance=variance, clip="guided").advance(x_t, x0, last, z)
    torch.testing.assert_close(clipped, x0.clamp(-1, 1))


def test_tweedie_eps_and_score_are_one_statement():
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 4, 3, 5, 5, generator=generator, dtype=torch.float64)
    alpha_bar = float64(0.9999, 0.5, 0.01, 4e-5)
    x_t = add_noise(x0, eps, alpha_bar)
    torch.testing.assert_close(tweedie_x0(x_t, eps, alpha_bar), x0)
    torch.testing.assert_close(eps_from_x0(x_t, x0, alpha_bar), eps)
    sigma = (1 - spread(alpha_bar, x_t)).sqrt()
    torch.testing.assert_close(score_from_x0(x_t, x0, alpha_bar), -eps / sigma)


def test_spread_takes_shape_and_dtype_of_the_image():
    assert spread(float64(0.1, 0.2), torch.zeros(2, 3, 4, 4)).shape == (2, 1, 1, 1)
    assert spread(float64(0.1, 0.2), torch.zeros(2, 3, 4, 4)).dtype == torch.float32


# A chain cut short starts nearer to the data


def test_start_runs_the_last_part_of_the_chain():
    chain = ReverseProcess(num_steps=10, start=0.3).schedule()
    assert len(chain) == 10
    assert (chain.original_steps[0], chain.original_steps[-1]) == (0, 299)
    assert_table(chain.alpha_bar, linear_schedule().alpha_bar[chain.original_steps])


# What is refused


@pytest.mark.parametrize("spacing", [0, -3, 1001, "ddim0", "ddim300", "ddim", "100", "ddim1.5"])
def test_impossible_spacing_is_refused(spacing):
    with pytest.raises(InputError, match=f"steps.*{spacing}"):
        linear_schedule().respaced(spacing)


@pytest.mark.parametrize(("steps", "power"), [(10, 0.5), (10, float("nan")), ("ddim10", 2.0)])
def test_impossible_power_is_refused(steps, power):
    with pytest.raises(InputError, match="power"):
        linear_schedule().respaced(steps, power)


@pytest.mark.parametrize(
    "betas", [torch.full((3,), 0.1), float64(0.1, 0.0), float64(0.1, 1.5), float64(0.1, math.nan), float64(0.1)[None]]
)
def test_impossible_betas_are_refused(betas):
    with pytest.raises(InputError, match="beta"):
        Schedule(betas, torch.arange(len(betas)), len(betas))


@pytest.mark.parametrize(
    "options", [{"start": 0}, {"start": 1.1}, {"eta": -0.1}, {"variance": "fixed"}, {"clip": True}]
)
def test_impossible_process_is_refused(options):
    with pytest.raises(InputError, match="Expected"):
        ReverseProcess(**options)


def test_learned_variance_without_a_network_that_learns_it_is_refused():
    step = linear_schedule().steps()[0]
    with pytest.raises(InputError, match="variance=small"):
        ReverseProcess(variance="learned").advance(torch.zeros(1), torch.zeros(1), step, torch.zeros(1))


# Recorded numbers


@pytest.mark.parametrize("spacing", SPACINGS)
def test_tables_as_published(fixture_npz, spacing):
    recorded = {
        key.removeprefix(f"{spacing}/"): value
        for key, value in fixture_npz("numeric/schedules.npz").items()
        if key.startswith(f"{spacing}/")
    }
    schedule = linear_schedule().respaced(spacing)
    assert_table(schedule.betas, recorded["betas"])
    assert_table(schedule.alpha_bar, recorded["alphas_cumprod"])
    assert_table(schedule.alpha_bar_prev, recorded["alphas_cumprod_prev"])
    assert_table(schedule.posterior_variance, recorded["posterior_variance"])
    assert_table(schedule.posterior_log_variance_clipped, recorded["posterior_log_variance_clipped"])
    assert schedule.original_steps.tolist() == recorded["timestep_map"].tolist()

    steps = schedule.steps()[::-1]
    assert_table([step.x0_weight for step in steps], recorded["posterior_mean_coef1"])
    weights = [unit_weights(step) for step in steps]
    assert_table([on_x0 for on_x0, _, _ in weights], recorded["posterior_mean_coef1"])
    assert_table([on_x_t for _, on_x_t, _ in weights], recorded["posterior_mean_coef2"])


def test_cosine_betas_as_published(fixture_npz):
    assert_table(cosine_schedule().betas, fixture_npz("numeric/schedules.npz")["cosine1000/betas"])


@pytest.mark.parametrize("spacing", SPACINGS)
def test_guidance_weights_of_released_fast_em(fixture_npz, spacing):
    recorded = fixture_npz("numeric/schedules.npz")
    steps = linear_schedule().respaced(spacing).steps()[::-1]
    guidance = PiGDM(r2_rule="beta_tilde", zeta="released")
    assert_table([step.posterior_variance for step in steps], recorded[f"{spacing}/fastem_v"])
    assert_table([math.sqrt(guidance.r2(step)) for step in steps], recorded[f"{spacing}/fastem_r"])
    # How far one unit of gradient moves the mean of x_{t-1}: what is added to x0-hat, times the weight of x0-hat.
    shift = [float(guidance.x0_shift(float64(1.0), step)) * step.x0_weight for step in steps]
    assert_table(shift, recorded[f"{spacing}/fastem_guidance_coef"])


@pytest.fixture(scope="module")
def recorded_step(fixture_npz):
    """Reads `{process}/{kind}/{chain}/t...` records as tensors; x0-hat is Tweedie's, clipped."""
    data = {key: torch.from_numpy(value) for key, value in fixture_npz("numeric/ddpm_ddim_single_step.npz").items()}

    def read(chain, t, prefix):
        step = linear_schedule().respaced(chain).steps()[::-1][t]
        eps, variance = data["model_out"].chunk(2, 1)
        x0 = tweedie_x0(data["x"], eps, float64(step.alpha_bar)).clamp(-1, 1)
        record = {key.removeprefix(prefix): value for key, value in data.items() if key.startswith(prefix)}
        torch.testing.assert_close(x0, record["pred_xstart"], rtol=0, atol=1e-6)
        return step, x0, (variance + 1) / 2, record

    return data["x"], data["noise"], read


CHAIN_STEPS = [(1000, t) for t in (0, 1, 500, 999)] + [(100, t) for t in (0, 1, 50, 99)]
KINDS = {"learned_range": "learned", "fixed_small": "small", "fixed_large": "large"}


@pytest.mark.parametrize(("chain", "t"), CHAIN_STEPS)
@pytest.mark.parametrize("kind", KINDS)
def test_ancestral_step_as_published(recorded_step, kind, chain, t):
    x_t, z, read = recorded_step
    step, x0, fraction, record = read(chain, t, f"ddpm/{kind}/{chain}/t{t}/")
    process = ReverseProcess(variance=KINDS[kind])
    mean = process.advance(x_t, x0, step, torch.zeros_like(z), fraction)
    torch.testing.assert_close(mean, record["mean"], rtol=0, atol=1e-6)
    sample = process.advance(x_t, x0, step, z, fraction)
    torch.testing.assert_close(sample, record["sample"], rtol=0, atol=1e-6)
    if kind == "learned_range":
        # Log-variances reach 10, so single precision itself is 1e-6 here.
        torch.testing.assert_close(learned_log_variance(fraction, step), record["log_variance"], rtol=1e-6, atol=1e-6)
    elif t > 0:
        # At t = 0 a fixed log-variance is a convention that nothing uses, as no noise is added: `small` records -inf.
        log_variance = 2 * math.log(unit_weights(step, process)[2])
        assert log_variance == pytest.approx(float(record["log_variance"].mean()), abs=2e-6)


def rounded_as_published(step):
    """The step with alpha_bar_{t-1} and sigma_t^2 in float32, which the published DDIM works in."""
    bar, previous = torch.tensor([step.alpha_bar, step.alpha_bar_prev])
    variance = (((1 - previous) / (1 - bar)).sqrt() * (1 - bar / previous).sqrt()).square()
    beta = float(variance) * (1 - step.alpha_bar) / (1 - float(previous))
    return replace(step, alpha_bar_prev=float(previous), beta=beta)


@pytest.mark.parametrize(("chain", "t"), CHAIN_STEPS)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_step_as_published(recorded_step, eta, chain, t):
    # The published DDIM draws eta sqrt(beta~) z whatever variance the network was given; t = 0 returns x0-hat.
    x_t, z, read = recorded_step
    step, x0, _, record = read(chain, t, f"ddim/learned_range/{chain}/t{t}/")
    # At t = 1, 1 - alpha_bar_{t-1} is 1e-4 and keeps three digits in float32: the record is off by up to 3e-4 there.
    step = rounded_as_published(step) if t == 1 else step
    sample = ReverseProcess(variance="small", eta=eta).advance(x_t, x0, step, z)
    torch.testing.assert_close(sample, record[f"eta{eta}/sample"], rtol=0, atol=1e-6)
