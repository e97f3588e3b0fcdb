"""What networks predict and how they are told the time: round trips, Tweedie, exact posteriors of Gaussian data."""

import math

import pytest
import torch
from torch import nn

from codiffuse.errors import InputError
from codiffuse.priors.parameterizations import EdmPrediction, EpsPrediction, VPrediction, X0Prediction
from codiffuse.priors.prior import LogSigmaTime, Prior, StepIndexTime, published_time
from codiffuse.schedule import add_noise, cosine_schedule, eps_from_x0, linear_schedule
from codiffuse.spaces import ImageSpace

PARAMETERIZATIONS = [EpsPrediction(), VPrediction(), X0Prediction(), EdmPrediction(), EdmPrediction(sigma_data=0.3)]
ALPHA_BARS = torch.cat([linear_schedule().respaced(20).alpha_bar, torch.tensor([0.99995, 4e-5], dtype=torch.float64)])


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def noisy(std=0.5):
    x0, eps = std * randn(len(ALPHA_BARS), 3, 4, 4), randn(len(ALPHA_BARS), 3, 4, 4, seed=1)
    return x0, eps, add_noise(x0, eps, ALPHA_BARS)


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_x0_undoes_target(parameterization):
    x0, eps, x_t = noisy()
    output = parameterization.target(x0, eps, ALPHA_BARS)
    torch.testing.assert_close(parameterization.x0(x_t, output, ALPHA_BARS), x0, rtol=0, atol=1e-12)


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_single_precision_does_not_suffer_from_an_alpha_bar_near_one(parameterization):
    x0, eps, x_t = noisy()
    output = parameterization.target(x0, eps, ALPHA_BARS)
    single = parameterization.target(x0.float(), eps.float(), ALPHA_BARS)
    torch.testing.assert_close(single, output.float(), rtol=0, atol=1e-6)
    clean = ALPHA_BARS > 0.5  # Near pure noise an eps network must be worse: x0-hat divides by sqrt(alpha_bar).
    roundtrip = parameterization.x0(x_t.float(), output.float(), ALPHA_BARS)
    torch.testing.assert_close(roundtrip[clean], x0[clean].float(), rtol=0, atol=1e-6)


def test_outputs_are_what_their_names_say():
    x0, eps, x_t = noisy()
    bar = ALPHA_BARS[:, None, None, None]
    assert torch.equal(EpsPrediction().target(x0, eps, ALPHA_BARS), eps)
    assert torch.equal(X0Prediction().target(x0, eps, ALPHA_BARS), x0)
    # v is the velocity of the rotation x = cos(angle) x0 + sin(angle) eps.
    angle = torch.atan2((1 - bar).sqrt(), bar.sqrt()).requires_grad_()
    x = angle.cos() * x0 + angle.sin() * eps
    torch.testing.assert_close(x, x_t)
    (velocity,) = torch.autograd.grad(x[0, 0, 0, 0], angle)
    assert float(velocity[0]) == pytest.approx(float(VPrediction().target(x0, eps, ALPHA_BARS)[0, 0, 0, 0]), rel=1e-9)


@pytest.mark.parametrize("sigma_data", [0.5, 0.25])
def test_edm_feeds_and_asks_for_unit_variance(sigma_data):
    parameterization = EdmPrediction(sigma_data)
    one, zero = torch.ones(len(ALPHA_BARS), 1, 1, 1, dtype=torch.float64), torch.zeros(1, 1, 1, 1, dtype=torch.float64)

    def variance(of):
        """Variance of a linear map of independent x0 of std sigma_data and eps of std 1."""
        return (sigma_data * of(one, zero * one)).square() + of(zero * one, one).square()

    fed = variance(lambda x0, eps: parameterization.network_input(add_noise(x0, eps, ALPHA_BARS), ALPHA_BARS))
    torch.testing.assert_close(fed, one)
    torch.testing.assert_close(variance(lambda x0, eps: parameterization.target(x0, eps, ALPHA_BARS)), one)


class GaussianNetwork(nn.Module):
    """The perfect network for data N(mean, std^2), by `predicts`; it sees only what a network sees: input and time."""

    in_channels = 3

    def __init__(self, predicts, mean, std, sigma_data=0.5):
        super().__init__()
        self.predicts, self.mean, self.std, self.sigma_data = predicts, mean, std, sigma_data

    def forward(self, fed, time):
        sigma = torch.exp(time / 250)[:, None, None, None]
        # x = x0 + sigma n, from what EDM (Karras et al. 2022, Table 1) or a plain VP network is fed.
        total = sigma**2 + self.sigma_data**2 if self.predicts == "edm" else sigma**2 + 1
        x = fed * total.sqrt()
        x0 = (self.std**2 * x + sigma**2 * self.mean) / (self.std**2 + sigma**2)
        n = (x - x0) / sigma
        if self.predicts == "edm":
            c_skip, c_out = self.sigma_data**2 / total, sigma * self.sigma_data / total.sqrt()
            return (x0 - c_skip * x) / c_out
        return {"eps": n, "x0": x0, "v": (n - sigma * x0) / (1 + sigma**2).sqrt()}[self.predicts]


@pytest.mark.parametrize(
    ("predicts", "parameterization"),
    [
        ("eps", EpsPrediction()),
        ("v", VPrediction()),
        ("x0", X0Prediction()),
        ("edm", EdmPrediction()),
    ],
)
def test_prior_of_gaussian_data_is_the_exact_posterior_mean_and_score(predicts, parameterization):
    mean, std = 0.2, 0.4
    prior = Prior(GaussianNetwork(predicts, mean, std), parameterization, LogSigmaTime(), ImageSpace()).frozen()
    *_, x_t = noisy(std)
    bar = ALPHA_BARS[:, None, None, None]
    leaf = x_t.requires_grad_()
    x0 = prior.denoise(leaf, ALPHA_BARS).x0
    marginal = bar * std**2 + 1 - bar
    gain = std**2 * bar.sqrt() / marginal
    torch.testing.assert_close(x0, mean + gain * (x_t - bar.sqrt() * mean), rtol=1e-9, atol=1e-9)
    # Tweedie: the noise that x0-hat implies is -sqrt(1 - alpha_bar) times the score of the marginal.
    score = -(x_t - bar.sqrt() * mean) / marginal
    torch.testing.assert_close(eps_from_x0(x_t, x0, ALPHA_BARS), -(1 - bar).sqrt() * score, rtol=1e-7, atol=1e-7)
    # The Jacobian of x0-hat is what guidance pulls back through.
    (slope,) = torch.autograd.grad(x0.sum(), leaf)
    torch.testing.assert_close(slope, gain.expand_as(slope), rtol=1e-8, atol=1e-9)


# How networks are told the time


@pytest.mark.parametrize("chain", [linear_schedule(), cosine_schedule(), linear_schedule(100)])
def test_step_time_meets_every_entry_and_rises_between_them(chain):
    time = StepIndexTime(chain)
    entries = torch.arange(len(chain), dtype=torch.float64)
    torch.testing.assert_close(time(chain.alpha_bar), entries, rtol=0, atol=1e-9)
    between = (chain.alpha_bar[1:] * chain.alpha_bar[:-1]).sqrt()
    assert ((time(between) > entries[:-1]) & (time(between) < entries[1:])).all()
    assert time(torch.tensor([1 - 1e-9, 1e-20], dtype=torch.float64)).tolist() == [0, len(chain) - 1]


@pytest.mark.parametrize("spacing", [100, 20, "ddim50"])
def test_step_time_of_a_respaced_chain_is_the_original_step(spacing):
    chain = linear_schedule().respaced(spacing)
    torch.testing.assert_close(published_time()(chain.alpha_bar), chain.original_steps.double(), rtol=0, atol=1e-9)


def test_log_sigma_time_is_proportional_to_log_sigma():
    sigma = torch.tensor([0.01, 1.0, math.e, 100.0], dtype=torch.float64)
    expected = [250 * math.log(s) for s in sigma.tolist()]
    assert LogSigmaTime()(1 / (1 + sigma**2)).tolist() == pytest.approx(expected, abs=1e-9)


# The wrapper itself


class Recorder(nn.Module):
    """Keeps what it is fed; its output has twice the channels, the second half a constant."""

    in_channels = 3

    def __init__(self, variance=0.5):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(variance))

    def forward(self, x, time, *condition):
        self.seen = (x, time, *condition)
        return torch.cat([torch.zeros_like(x), self.weight.expand_as(x)], 1)


def recording_prior():
    return Prior(Recorder(), EpsPrediction(), published_time(), ImageSpace(), learned_variance=True)


def test_the_second_half_of_the_channels_is_the_variance_fraction():
    x_t = torch.full((2, 3, 4, 4), 0.5)
    denoised = recording_prior().denoise(x_t, torch.full((2,), 0.25, dtype=torch.float64))
    torch.testing.assert_close(denoised.x0, 2 * x_t)
    torch.testing.assert_close(denoised.variance_fraction, torch.full_like(x_t, 0.75))


def test_a_condition_reaches_the_network_and_none_does_not():
    prior, x_t, alpha_bar = recording_prior(), torch.zeros(1, 3, 4, 4), linear_schedule().alpha_bar[500:501]
    prior.denoise(x_t, alpha_bar)
    assert len(prior.network.seen) == 2
    assert (prior.network.seen[1].dtype, prior.network.seen[1].tolist()) == (torch.float32, [500.0])
    condition = torch.ones(1, 3, 8, 8)
    prior.denoise(x_t, alpha_bar, condition)
    assert prior.network.seen[2] is condition


def test_a_frozen_prior_has_no_weight_gradients_and_evaluates():
    prior = recording_prior().train().frozen()
    assert not prior.training
    assert not any(weight.requires_grad for weight in prior.parameters())


def test_other_channels_than_the_networks_are_refused():
    with pytest.raises(InputError, match=r"Expected 3 channels.*got 1"):
        recording_prior().denoise(torch.zeros(1, 1, 8, 8), torch.tensor([0.5]))
