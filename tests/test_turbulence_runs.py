"""Turbulence from end to end: simulated pictures, what a row says of a tilt, the command line, who refuses it."""

import dataclasses
import json
import re
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image
from programs import says
from torch import Tensor, nn
from toys import gaussian_prior, picture

from codiffuse import cli
from codiffuse.data.measurements import Sample, SimulatedBlur
from codiffuse.data.sources import sources
from codiffuse.errors import InputError
from codiffuse.guidance.dps import DPS
from codiffuse.guidance.joint import JointPiGDM
from codiffuse.inference.restorer import Restorer
from codiffuse.inference.scoring import Scorer
from codiffuse.inference.watch import step_residual
from codiffuse.methods.base import Measurement, StepInfo, restoration
from codiffuse.methods.blind_dps import BlindDPS
from codiffuse.methods.non_blind import NonBlind
from codiffuse.methods.steps import ReverseProcess
from codiffuse.methods.variables import Variable
from codiffuse.metrics.field import endpoint_error
from codiffuse.operators.blur import BlurOperator
from codiffuse.operators.noise import GaussianNoise
from codiffuse.operators.turbulence import TurbulenceOperator
from codiffuse.priors.parameterizations import X0Prediction
from codiffuse.priors.prior import LogSigmaTime, Prior
from codiffuse.randomness import GeneratorNoise
from codiffuse.simulate.gaussian import GaussianKernels
from codiffuse.simulate.turbulence import KolmogorovTilts, PatchTilts
from codiffuse.spaces import KernelSpace, TiltSpace

SIGMA = 0.02
SCORES = ["tilt_epe", "tilt_epe_zero", "kernel_std", "kernel_std_true"]


def simulated(folder, boundary="circular", law=None, **options) -> SimulatedBlur:
    kernels, law = GaussianKernels(7, std=(1.5, 1.5)), law or PatchTilts(1)
    return SimulatedBlur(sources(folder), kernels, SIGMA, TurbulenceOperator(boundary), tilt_law=law, **options)


# Simulated pictures


@pytest.mark.parametrize("law", [PatchTilts(1), KolmogorovTilts(1)])
@pytest.mark.parametrize("boundary", ["circular", "unknown"])
def test_the_measurement_is_what_the_operator_says(pictures, boundary, law):
    sample = simulated(pictures, boundary, law, crop=32).load(0)
    assert sample.truth.shape == sample.y.shape == (3, 32, 32)
    assert sample.tilt.shape == (2, 32, 32)
    operator, y = TurbulenceOperator(boundary), sample.y
    if boundary == "unknown":  # the frame tells of its inner part
        y = operator.crop_to_frame(y, kernel_size=(7, 7))
    # Beyond the frame the warp goes on with its edge, which the tilts of the outermost pixels show.
    residual = (y - operator(sample.truth[None], kernel=sample.kernel[None], tilt=sample.tilt[None])[0])[
        ..., 3:-3, 3:-3
    ]
    assert float(residual.std()) == pytest.approx(SIGMA, rel=0.06)


def test_a_tilt_has_the_size_of_its_picture_and_depends_on_seed_and_name(pictures):
    first, again, other = (simulated(pictures, seed=seed).load(1) for seed in (0, 0, 1))
    assert first.tilt.shape == (2, 40, 48)
    torch.testing.assert_close(first.tilt, again.tilt, rtol=0, atol=0)
    assert (first.tilt - other.tilt).abs().max() > 0.1
    assert (first.tilt - simulated(pictures).load(0).tilt).abs().max() > 0.1
    alone = simulated(pictures / "b.png").load(0)
    torch.testing.assert_close(first.y, alone.y, rtol=0, atol=0)


def test_kernel_and_noise_are_those_of_a_run_without_a_tilt(pictures):
    tilted = simulated(pictures).load(0)
    plain = SimulatedBlur(sources(pictures), GaussianKernels(7, std=(1.5, 1.5)), SIGMA, BlurOperator()).load(0)
    assert plain.tilt is None
    torch.testing.assert_close(tilted.kernel, plain.kernel, rtol=0, atol=0)
    still = BlurOperator()(tilted.truth[None], kernel=tilted.kernel[None])
    moved = TurbulenceOperator()(tilted.truth[None], kernel=tilted.kernel[None], tilt=tilted.tilt[None])
    torch.testing.assert_close(tilted.y - plain.y, (moved - still)[0], atol=1e-5, rtol=0)


def test_law_and_operator_must_both_have_a_tilt_or_neither(pictures):
    with pytest.raises(InputError, match=r"law of tilt fields.*data=turbulent"):
        SimulatedBlur(sources(pictures), GaussianKernels(7), SIGMA, TurbulenceOperator())
    with pytest.raises(InputError, match=r"no law of tilt fields for BlurOperator.*PatchTilts.*data\.tilt_law=null"):
        SimulatedBlur(sources(pictures), GaussianKernels(7), SIGMA, BlurOperator(), tilt_law=PatchTilts(1))


# Rows and outcomes


@dataclass(frozen=True)
class Told:
    """A blind method that finds the true scene, and the true tilt times `share` plus a shift."""

    scene: Tensor
    tilt: Tensor
    kernel: Tensor
    share: float = 1.0
    needs = ()

    def supports(self, operator):
        return None

    def __call__(self, measurement, *, noise, init=None, callback=None):
        shift = torch.tensor([0.5, -0.25]).view(1, 2, 1, 1)
        params = {"kernel": self.kernel[None], "tilt": self.share * self.tilt[None] + (shift if self.share != 1 else 0)}
        callback(StepInfo(1, 1, 0.5, self.scene[None, None], params))
        return restoration(measurement, self.scene[None, None], params, 1)


def told(boundary, share=1.0, seed=0):
    """An outcome, and the sample and the whole tilt behind it."""
    operator, generator = TurbulenceOperator(boundary), torch.Generator().manual_seed(seed)
    height, width = operator.image_shape((40, 48), kernel_size=(7, 7))
    scene = 0.25 + torch.from_numpy(picture(seed, (height, width)).copy()).permute(2, 0, 1) / 510
    kernel = GaussianKernels(7, std=(1.5, 1.5))(np.random.default_rng(seed))
    tilt = PatchTilts((height, width))(np.random.default_rng(seed))
    y = operator(scene[None], kernel=kernel[None], tilt=tilt[None])[0]
    y = y + SIGMA * torch.randn(y.shape, generator=generator)
    framed = operator.crop_to_frame(tilt, kernel_size=(7, 7))
    truth = operator.crop_to_frame(scene, kernel_size=(7, 7))
    sample = Sample("a", y, SIGMA, truth, kernel, tilt=framed)
    restorer = Restorer(Told(scene, tilt, kernel, share), "toy", operator, Scorer(operator))
    [outcome] = restorer([sample])
    return outcome, sample


@pytest.mark.parametrize("boundary", ["circular", "unknown"])
def test_a_perfect_restoration_leaves_the_noise(boundary):
    outcome, sample = told(boundary)
    row = outcome.row
    assert row["status"] == "ok"
    assert row["tilt_epe"] == pytest.approx(0, abs=1e-6)
    assert row["reblur"] == pytest.approx(0, abs=2e-4)
    assert float(outcome.residual.std()) == pytest.approx(SIGMA, rel=0.06)
    assert outcome.trace[0]["residual"] == pytest.approx(SIGMA, rel=0.06)
    assert row["kernel_std"] == row["kernel_std_true"] == pytest.approx(1.5, rel=0.1)
    torch.testing.assert_close(outcome.tilt, sample.tilt)
    torch.testing.assert_close(outcome.true_tilt, sample.tilt)


def test_a_tilt_is_scored_without_its_shift_and_beside_none_at_all():
    outcome, sample = told("circular", share=0.25)
    zero = float(endpoint_error(torch.zeros_like(sample.tilt)[None], sample.tilt[None], border=3))
    assert outcome.row["tilt_epe_zero"] == pytest.approx(zero)
    assert outcome.row["tilt_epe"] == pytest.approx(0.75 * zero, rel=1e-4)
    nothing, _ = told("circular", share=0.0)
    assert nothing.row["tilt_epe"] == pytest.approx(nothing.row["tilt_epe_zero"])


def test_what_was_made_to_judge_blurs_judges_nothing_else():
    row = told("circular")[0].row
    assert not {"trust", "flags", "sigma_used"} & row.keys()
    assert not any(name.startswith("feature_") for name in row)


def test_a_tilt_that_is_not_finite_fails_the_image():
    sample = told("circular")[1]
    method = Told(sample.truth, torch.full_like(sample.tilt, torch.nan), sample.kernel)
    [outcome] = Restorer(method, "toy", TurbulenceOperator(), Scorer(TurbulenceOperator()))([sample])
    assert outcome.row["status"] == "failed: NaN or infinite values"


def test_a_blur_that_is_restored_from_turbulence_has_the_score_of_no_tilt_only():
    sample = told("circular")[1]
    scores = Scorer(BlurOperator())(sample, sample.truth, {"kernel": sample.kernel})
    assert scores["tilt_epe"] is None
    assert scores["tilt_epe_zero"] > 0.1
    plain = dataclasses.replace(sample, tilt=None, kernel=None)
    assert [Scorer(BlurOperator())(plain, sample.truth, {"kernel": sample.kernel})[name] for name in SCORES] == [
        None
    ] * 4


def test_a_page_that_watches_knows_no_residual_of_a_tilt():
    sample = told("circular")[1]
    params = {"kernel": sample.kernel[None], "tilt": sample.tilt[None]}
    info = StepInfo(1, 1, 0.5, sample.truth[None, None], params)
    assert step_residual(info, sample.y) is None
    assert step_residual(dataclasses.replace(info, params={"kernel": params["kernel"]}), sample.y) > 0


# Methods


def oracle(guidance) -> NonBlind:
    return NonBlind(gaussian_prior(0.25), guidance, ReverseProcess(60))


def test_the_oracle_is_told_kernel_and_tilt():
    sample, method = told("circular")[1], oracle(DPS(scale=10.0))

    def restored(operator, **changed):
        [outcome] = Restorer(method, "dps", operator, Scorer(operator))([dataclasses.replace(sample, **changed)])
        return outcome

    outcome = restored(TurbulenceOperator())
    assert outcome.row["status"] == "ok"
    assert outcome.row["tilt_epe"] == 0
    assert float(outcome.residual.std()) < 2.5 * SIGMA
    still, blur = restored(TurbulenceOperator(), tilt=0 * sample.tilt), restored(BlurOperator())
    torch.testing.assert_close(still.image, blur.image, atol=1e-3, rtol=0)
    assert (outcome.image - blur.image).abs().max() > 0.05
    assert "true tilt for dps" in restored(TurbulenceOperator(), tilt=None).row["status"]


def test_the_oracle_says_what_it_cannot_use():
    assert oracle(DPS()).supports(TurbulenceOperator("reflect")) is None
    assert "beyond the frame" in oracle(DPS()).supports(TurbulenceOperator("unknown"))
    assert "blur operator" in oracle(None).supports(TurbulenceOperator())
    assert oracle(DPS()).supports(BlurOperator("unknown")) is None


def knowing(values, space, spread=0.1) -> Prior:
    """A prior that knows the coordinates of a value up to a share of x_t."""

    class Known(nn.Module):
        in_channels = values.shape[1]

        def forward(self, x_t, time):
            return (1 - spread) * space.encode(values) + spread * x_t

    return Prior(Known(), X0Prediction(), LogSigmaTime(), space).frozen()


def test_blind_dps_restores_with_priors_that_know_the_operator():
    sample, operator = told("circular")[1], TurbulenceOperator()
    kernel, tilt = sample.kernel[None], sample.tilt[None]
    method = BlindDPS(
        Variable(gaussian_prior(0.25)),
        {
            "kernel": Variable(knowing(kernel, KernelSpace(), 0.02), size=7),
            "tilt": Variable(knowing(tilt, TiltSpace(2.5))),
        },
        JointPiGDM({"image": 0.25, "kernel": 1e-4, "tilt": 1e-3}),
        ReverseProcess(60),
    )
    measurement = Measurement(sample.y[None], GaussianNoise(SIGMA), operator)
    found = method(measurement, noise=GeneratorNoise([0]))
    assert found.status == ("ok",)
    assert float(endpoint_error(found.params["tilt"], tilt, 3)) < 0.3 * float(endpoint_error(0 * tilt, tilt, 3))
    assert float(measurement.misfit(found.canvas(), found.params).sqrt()) < 2 * SIGMA


# The command line


@pytest.fixture
def benchmark(infer, tmp_path):
    """Calls a quick `bench/bsd100_turbulence` with further settings."""
    (tmp_path / "data/bsd100").mkdir(parents=True)
    for seed in range(2):
        Image.fromarray(picture(seed, (64, 70))).save(tmp_path / f"data/bsd100/{seed}.png")
    return lambda *settings: infer("experiment=bench/bsd100_turbulence", "crop=48", *settings)


def test_the_benchmark(benchmark):
    ended = benchmark("method=blind_dps", "method.process.num_steps=8", "num_particles=2", "batch_size=2")
    assert (ended.code, ended.err) == (0, "")
    assert "tilt error (EPE, px)" in ended.out
    for row in ended.rows():
        assert (row["status"], row["nfe"], row["sigma"]) == ("ok", 8, 0.01)
        assert min(row[name] for name in SCORES) > 0
        assert row["step_factor"] in (1.0, 0.5, 0.25)
    images = ended.folder / "images/0"
    assert {"tilt.png", "true_tilt.png", "tilt.npy", "panel.png"} <= {path.name for path in images.iterdir()}
    assert np.load(images / "tilt.npy").shape == (2, 48, 48)
    summary = json.loads((ended.folder / "summary.json").read_text())
    assert (summary["experiment"], summary["metrics"]["tilt_epe_zero"]["n"]) == ("bsd100_turbulence", 2)
    page = (ended.folder / "report.html").read_text()
    tile = re.search(r'<div class="tile"><h2>Tilt error.*?</div>', page)[0]
    assert f"{summary['metrics']['tilt_epe']['mean']:.3f} px" in tile
    assert f"{summary['metrics']['tilt_epe_zero']['mean']:.3f} px for no tilt at all" in tile
    assert page.count('<figure class="tilt">') == page.count('<figure class="true_tilt">') == 2
    assert "images/0/tilt.npy" in page
    assert "Trust" not in page


def test_other_boundaries_and_gray_pictures(benchmark):
    ended = benchmark("method=blind_dps", "boundary=unknown", "data.gray=true", "limit=1")
    assert (ended.code, ended.err) == (0, "")
    assert np.load(ended.folder / "images/0/tilt.npy").shape == (2, 48, 48)


@pytest.mark.parametrize("settings", [["method=dps"], ["method=fast_em_once", "operator=blur"]])
def test_what_a_restoration_is_compared_with(benchmark, settings):
    """The oracle, and a method that ignores the tilt."""
    ended = benchmark(*settings, "limit=1", "method.process.num_steps=8")
    assert (ended.code, ended.err) == (0, "")
    [row] = ended.rows()
    assert row["tilt_epe"] == (0 if "method=dps" in settings else None)
    assert row["tilt_epe_zero"] > 0
    assert (ended.folder / "images/0/true_tilt.png").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["method=fast_em_once"], ["fast_em_once supports", "needs a blur operator", "TurbulenceOperator"]),
        (["method=pigdm"], ["pigdm supports", "needs a blur operator"]),
        (["method=dps", "boundary=unknown"], ["dps supports", "tilt beyond the frame", "boundary=circular"]),
        (["method=blind_dps", "pipeline=photograph"], ["blind_dps supports", "kernel alone", "pipeline=null"]),
        (["method=blind_dps", "data=blurred"], ["law of tilt fields", "data=turbulent"]),
    ],
    ids=lambda value: " ".join(value) if "=" in value[0] else "",
)
def test_who_cannot_use_the_operator_says_so(benchmark, settings, words):
    says(benchmark(*settings), "Expected", *words)


def test_the_default_method_cannot_use_it(benchmark, program):
    ended = program(cli.infer, "experiment=bench/bsd100_turbulence", "kernel_size=9", "crop=48")
    says(ended, "fast_em supports", "needs a blur operator", "choose another method")
