"""ILVR: what it takes over from the measurement, what it says of the operator, the command line."""

from dataclasses import replace

import pytest
import torch
from toys import GaussianDenoiser, blurred_toy, gaussian_prior

from codiffuse.errors import InputError
from codiffuse.methods.base import is_blind
from codiffuse.methods.ilvr import ILVR
from codiffuse.methods.steps import ReverseProcess
from codiffuse.operators.blur import BlurOperator
from codiffuse.operators.noise import GaussianNoise
from codiffuse.operators.turbulence import TurbulenceOperator
from codiffuse.priors.parameterizations import X0Prediction
from codiffuse.priors.prior import LogSigmaTime, Prior
from codiffuse.randomness import GeneratorNoise
from codiffuse.spaces import ImageSpace

PRIOR = gaussian_prior(0.25)  # white: whatever is smooth in a sample comes from the measurement


def method(factor=4, **options) -> ILVR:
    return ILVR(PRIOR, factor, ReverseProcess(20), **options)


def run(factor=4, measurement=None, **options):
    return method(factor, **options)(measurement or blurred_toy(sigma=0.0001), noise=GeneratorNoise([0]))


@pytest.mark.parametrize(("factor", "side"), [(2, 32), (4, 32), (3, 32), (8, 40)])
def test_low_frequencies_are_those_of_the_measurement(factor, side):
    toy = blurred_toy(side=side)
    x, low_pass = run(factor, toy).raw["x"][:, 0], method(factor).low_pass
    kept = low_pass((x - toy.y)[:, None]).square().mean().sqrt()
    assert kept < 0.2 * (x - toy.y).square().mean().sqrt()
    assert kept < 0.4 * low_pass((x.roll(side // 2, -1) - toy.y)[:, None]).square().mean().sqrt()


def test_high_frequencies_are_those_of_the_prior():
    """Above the cutoff a sample has the prior's variance, and none of the measurement's."""
    toy, process = blurred_toy(side=64), ReverseProcess(400, clip="none")
    x = replace(method(num_particles=4), process=process)(toy, noise=GeneratorNoise([0])).raw["x"][0]
    spectrum = torch.fft.fft2(x, norm="ortho")
    high = spectrum[..., 24:40, 24:40].abs().square().mean()
    assert float(high) == pytest.approx(0.25 / 4, rel=0.1)
    low = (spectrum - torch.fft.fft2(toy.y, norm="ortho"))[..., :3, :3].abs().square().mean()
    assert low < 0.05 * high


def test_a_factor_of_one_keeps_all():
    toy = blurred_toy()
    torch.testing.assert_close(run(1, toy).raw["x"][:, 0], toy.y, atol=1e-5, rtol=0)


class Watched(GaussianDenoiser):
    """Keeps what it is asked about."""

    def forward(self, x_t, log_sigma):
        self.seen = [*getattr(self, "seen", []), x_t.detach()]
        return super().forward(x_t, log_sigma)


def test_what_is_taken_over_is_as_noisy_as_the_step():
    """A factor of one leaves nothing else: x_t = sqrt(alpha_bar) y + sqrt(1 - alpha_bar) z, of another z each step."""
    toy, network, process = blurred_toy(), Watched(0.25), ReverseProcess(20)
    prior = Prior(network, X0Prediction(), LogSigmaTime(), ImageSpace()).frozen()
    ILVR(prior, 1, process)(toy, noise=GeneratorNoise([0]))
    steps, y = process.schedule().steps(), 2 * toy.y - 1
    noise = [
        (x_t - step.alpha_bar**0.5 * y) / (1 - step.alpha_bar) ** 0.5
        for x_t, step in zip(network.seen[1:], steps[1:], strict=True)
    ]
    assert [float(z.std()) for z in noise] == pytest.approx([1] * 19, abs=0.05)
    assert [float(z.mean()) for z in noise] == pytest.approx([0] * 19, abs=0.08)
    assert abs(float((noise[0] * noise[1]).mean())) < 0.08


def test_the_filter_leaves_what_is_smooth_and_takes_what_is_not():
    flat, stripes = torch.full((1, 1, 3, 24, 24), 0.3), torch.tensor([1.0, -1.0]).repeat(12).expand(1, 1, 3, 24, 24)
    torch.testing.assert_close(method().low_pass(flat), flat)
    assert method().low_pass(stripes)[..., 4:-4].abs().max() < 0.05
    assert method().low_pass(torch.rand(2, 3, 1, 17, 30)).shape == (2, 3, 1, 17, 30)


@pytest.mark.parametrize("operator", [BlurOperator(), BlurOperator("unknown"), TurbulenceOperator("unknown")])
def test_it_says_that_nothing_happened(operator):
    toy = blurred_toy(channels=1)
    found = run(measurement=replace(toy, operator=operator, known={}))
    assert found.params.keys() == set(operator.params)
    assert found.params["kernel"].tolist() == [[[[1.0]]]]
    assert found.image.shape == toy.y.shape
    assert not found.params.get("tilt", torch.zeros(1)).any()
    torch.testing.assert_close(operator(found.canvas(), **found.params), found.canvas(), atol=1e-5, rtol=0)


def test_what_it_can_be_used_for():
    class Dimmed:
        params = ("kernel", "gain")

    assert method().supports(TurbulenceOperator()) is None
    assert "no value for gain" in method().supports(Dimmed())
    assert not is_blind(method())
    with pytest.raises(InputError, match="factor >= 1"):
        method(0)


def test_noise_plays_no_part():
    toy = blurred_toy()
    torch.testing.assert_close(
        run(measurement=toy).image, run(measurement=replace(toy, noise=GaussianNoise(0.3))).image
    )


@pytest.mark.parametrize("settings", [[], ["noise=poisson"], ["operator=turbulence", "data=turbulent"]])
def test_the_command_line(infer, pictures, settings):
    ended = infer(
        "input=pictures", "data=blurred", "sigma=5/255", "limit=1", "method=ilvr", "num_particles=2", *settings
    )
    assert (ended.code, ended.err) == (0, "")
    [row] = ended.rows()
    assert (row["status"], row["nfe"]) == ("ok", 2)
    assert "trust" not in row


def test_photographs_are_restored_without_a_search_for_kernels(infer, pictures):
    photograph = infer("input=pictures/a.png", "method=ilvr", "pipeline=photograph", "boundary=unknown")
    assert (photograph.code, photograph.err) == (0, "")
