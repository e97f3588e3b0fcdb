"""Photon noise from end to end: simulated pictures, guidance, rows, the command line, who refuses it."""

from dataclasses import replace

import pytest
import torch
from programs import says
from toys import blurred_toy, gaussian_kernel_prior, gaussian_prior

from codiffuse.data.measurements import SimulatedBlur
from codiffuse.data.measurements import pictures as files
from codiffuse.data.sources import sources
from codiffuse.errors import InputError
from codiffuse.guidance.dps import DPS
from codiffuse.inference.restorer import Restorer
from codiffuse.inference.scoring import Scorer
from codiffuse.methods.blind_dps import BlindDPS
from codiffuse.methods.non_blind import NonBlind
from codiffuse.methods.steps import ReverseProcess
from codiffuse.methods.variables import Variable
from codiffuse.operators.blur import BlurOperator
from codiffuse.operators.noise import GaussianNoise, PoissonNoise
from codiffuse.randomness import GeneratorNoise
from codiffuse.simulate.gaussian import GaussianKernels

PEAK = 200.0


def simulated(folder, sigma=None, peak=PEAK, **options) -> SimulatedBlur:
    return SimulatedBlur(sources(folder), GaussianKernels(7), sigma, BlurOperator(), peak=peak, **options)


def test_a_measurement_counts_photons(pictures):
    sample = simulated(pictures).load(0)
    counts = PEAK * sample.y
    torch.testing.assert_close(counts, counts.round(), atol=1e-3, rtol=0)
    rate = BlurOperator()(sample.truth[None], kernel=sample.kernel[None])[0]
    assert float(((sample.y - rate) ** 2 / (rate.clamp_min(1e-3) / PEAK)).mean()) == pytest.approx(1, abs=0.05)
    assert sample.sigma == pytest.approx(float((sample.y - rate).std()), rel=0.05)


def test_the_level_of_gaussian_noise_does_not_matter(pictures):
    plain, told = simulated(pictures).load(1), simulated(pictures, sigma=(0.01, 0.3)).load(1)
    torch.testing.assert_close(plain.y, told.y, rtol=0, atol=0)
    assert plain.sigma == told.sigma
    other = simulated(pictures, seed=1).load(1)
    assert (plain.y - other.y).abs().max() > 0.05


def test_the_packaged_samples_have_it_too():
    source = files("sample:camera", GaussianKernels(7), BlurOperator(), crop=32, peak=10.0)
    counts = 10 * source.load(0).y
    torch.testing.assert_close(counts, counts.round(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("peak", [0, -1.0, float("inf")])
def test_a_peak_must_be_positive(pictures, peak):
    with pytest.raises(InputError, match="positive number of photons"):
        simulated(pictures, peak=peak)


@pytest.mark.parametrize("rule", ["norm", "likelihood"])
def test_the_oracle_trusts_dark_pixels_more(rule):
    """With one level for all pixels the residual of the dark half would be as large as that of the bright one."""
    y = torch.cat([torch.full((1, 3, 32, 16), 0.1), torch.full((1, 3, 32, 16), 0.9)], -1)
    noisy = PoissonNoise(PEAK)(y, torch.Generator().manual_seed(0))
    toy = replace(blurred_toy(), y=noisy, known={"kernel": torch.ones(1, 1, 1, 1)})
    method = NonBlind(gaussian_prior(0.25), DPS(rule, 0.02 if rule == "likelihood" else 2.0), ReverseProcess(100))

    def left(noise):
        found = method(replace(toy, noise=noise), noise=GeneratorNoise([0]))
        residual = (found.raw["x"][0, 0] - noisy[0]).square()
        return float((residual[..., :16].mean() / residual[..., 16:].mean()).sqrt())

    level = float(PoissonNoise(PEAK).level(noisy))
    assert left(PoissonNoise(PEAK)) < 0.7 * left(GaussianNoise(level))


@pytest.mark.parametrize("peak", [None, PEAK])
def test_a_method_is_told_the_noise(pictures, peak, monkeypatch):
    told = []
    monkeypatch.setattr(BlindDPS, "__call__", lambda self, measurement, **_: told.append(measurement.noise) or 1 / 0)
    method = BlindDPS(Variable(gaussian_prior(0.25)), {"kernel": Variable(gaussian_kernel_prior(), size=7)})
    restorer = Restorer(method, "blind_dps", BlurOperator(), Scorer(BlurOperator()), peak=peak)
    with pytest.raises(ZeroDivisionError):
        list(restorer([simulated(pictures, sigma=0.02, peak=peak).load(0)]))
    [noise] = told
    assert noise == PoissonNoise(PEAK) if peak else float(noise.sigma) == pytest.approx(0.02)


@pytest.fixture
def photons(infer, pictures):
    """Calls a quick run on pictures that are blurred here and counted in photons."""
    return lambda *settings: infer("input=pictures", "data=blurred", "limit=1", "noise=poisson", *settings)


@pytest.mark.parametrize("method", ["blind_dps", "blind_dps_official", "dps"])
def test_rows_say_which_noise(photons, method):
    ended = photons(f"method={method}", "noise.peak=50")
    assert (ended.code, ended.err) == (0, "")
    [row] = ended.rows()
    assert (row["noise"], row["peak"]) == ("poisson", 50.0)
    assert 0.05 < row["sigma"] < 1 / 50**0.5
    assert "poisson" in (ended.folder / "report.html").read_text()


def test_rows_of_gaussian_noise_are_what_they_were(infer, pictures):
    [row] = infer("input=pictures", "data=blurred", "limit=1", "sigma=5/255", "method=blind_dps").rows()
    assert row["sigma"] == 5 / 255
    assert not {"noise", "peak"} & row.keys()


@pytest.mark.parametrize(
    "settings", [["method=fast_em_once"], ["method=pigdm"], ["method=blind_dps", "pipeline=photograph"]]
)
def test_who_takes_one_level_for_all_pixels_refuses(photons, settings):
    says(photons(*settings), "Expected a method that knows photon noise", settings[0][7:], "noise=gaussian")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("noise.peak=0", ["positive number of photons", "0"]),
        ("noise.peak=many", ["Expected a number", "peak", "'many'"]),
        ("noise=null", ["for noise", "set noise=gaussian"]),
    ],
)
def test_what_is_no_noise_is_refused(photons, setting, words):
    says(photons("method=blind_dps", setting), *words)
