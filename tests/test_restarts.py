"""The choice among restarts: per image, by the residual alone, never a failed run."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from toys import blurred_toy, tiny_prior

from codiffuse.errors import InputError
from codiffuse.estimation.hqs import HQS
from codiffuse.estimation.regularizers import NoRegularizer
from codiffuse.methods.base import restoration
from codiffuse.methods.fast_em import FastEM
from codiffuse.methods.restarts import BestOfRestarts, keep_better, residual
from codiffuse.methods.steps import ReverseProcess
from codiffuse.randomness import GeneratorNoise


@dataclass
class Scripted:
    """Returns prepared restorations in order and remembers what it was started from."""

    prepared: list
    needs: ClassVar = ()
    num_steps = 3

    def __post_init__(self):
        self.inits = []

    def supports(self, operator):
        return None

    def __call__(self, measurement, *, noise, init=None, callback=None):
        self.inits.append(init)
        return self.prepared[len(self.inits) - 1]


def found(measurement, error, nfe=3):
    """A restoration whose residual grows with `error` `(B,)`: y itself, off by that much, with a delta kernel."""
    delta = torch.zeros(len(measurement.y), 1, 7, 7)
    delta[..., 3, 3] = 1
    sign = torch.ones_like(measurement.y)
    sign[..., ::2] = -1
    x = measurement.y + torch.tensor(error).reshape(-1, 1, 1, 1) * sign
    return restoration(measurement, x.unsqueeze(1), {"kernel": delta}, nfe)


@pytest.fixture
def measurement():
    toy = blurred_toy(2)
    return replace(toy, y=0.2 + 0.6 * toy.y)  # away from 0 and 1, where samples are clipped


def test_residual_is_the_rms_over_sigma(measurement):
    error = torch.tensor([0.02, 0.05])
    torch.testing.assert_close(residual(measurement, found(measurement, error.tolist())), error / 0.02)


def test_each_image_keeps_its_own_best(measurement):
    first, second = found(measurement, [0.01, 0.05]), found(measurement, [0.04, 0.02])
    best = keep_better(measurement, first, second)
    assert torch.equal(best.image[0], first.image[0])
    assert torch.equal(best.image[1], second.image[1])
    assert torch.equal(best.raw["x"][1], second.raw["x"][1])


def test_a_failed_run_is_never_kept_and_its_status_goes_with_it(measurement):
    good, broken = found(measurement, [0.03, 0.03]), found(measurement, [0.01, 0.01])
    broken.image[0] = float("nan")
    broken = replace(broken, status=("failed: NaN or infinite values", "ok"))
    for best in (keep_better(measurement, good, broken), keep_better(measurement, broken, good)):
        assert best.status == ("ok", "ok")
        assert torch.equal(best.image[0], good.image[0])
        assert torch.equal(best.image[1], broken.image[1])


def test_refinement_goes_on_from_the_best_and_is_kept_only_if_it_helps(measurement):
    runs = [found(measurement, [error] * 2) for error in (0.05, 0.02, 0.04)]
    worse, better = found(measurement, [0.03] * 2), found(measurement, [0.01] * 2)
    first, refine = Scripted(runs), Scripted([worse, better])
    method = BestOfRestarts(first, refine, 7, (0.1, 0.2, 0.3), 2, min_agreement=None)
    chosen = method(measurement, noise=GeneratorNoise([0, 1]))
    widths = [float(init["kernel"][0].amax()) for init in first.inits]
    assert widths == sorted(widths, reverse=True)  # a wider Gaussian has a lower peak
    assert widths[0] > 1.5 * widths[2]
    for init in refine.inits:
        assert torch.equal(init["image"], runs[1].canvas())
    assert torch.equal(chosen.image, better.image)
    assert chosen.nfe == 15


def test_refinement_goes_on_from_the_consensus_and_is_kept_unless_it_failed(measurement):
    runs = [found(measurement, [error] * 2) for error in (0.05, 0.02, 0.04)]
    for run, column in zip(runs, (1, 3, 3), strict=True):  # one kernel has a second peak
        run.params["kernel"][..., 3, column] += 1
        run.params["kernel"] /= 2
    worse = found(measurement, [0.03] * 2)
    broken = replace(found(measurement, [0.01] * 2), status=("ok", "failed: NaN or infinite values"))
    refine = Scripted([worse, broken])
    method = BestOfRestarts(Scripted(runs), refine, 7, (0.1, 0.2, 0.3), 2, min_agreement=0.9)
    chosen = method(measurement, noise=GeneratorNoise([0, 1]))
    assert refine.inits[0].keys() == {"kernel"}
    torch.testing.assert_close(refine.inits[0]["kernel"], runs[1].params["kernel"])  # the one that differs is left out
    assert torch.equal(chosen.image[0], broken.image[0])
    assert torch.equal(chosen.image[1], worse.image[1])
    assert chosen.restarts.kernels.shape == (2, 3, 7, 7)
    torch.testing.assert_close(
        chosen.restarts.residuals[0], torch.stack([residual(measurement, run)[0] for run in runs])
    )


def test_with_a_real_method_steps_are_counted_through():
    method = FastEM(tiny_prior(), HQS(NoRegularizer(), iterations=2), process=ReverseProcess(3), kernel_size=7)
    refine = replace(method, process=ReverseProcess(2, start=0.5))
    whole = BestOfRestarts(method, refine, 7, (0.1, 0.2), num_refinements=2)
    seen = []
    best = whole(blurred_toy(), noise=GeneratorNoise([0]), callback=seen.append)
    assert whole.num_steps == 10
    assert [info.number for info in seen] == list(range(1, 11))
    assert {info.total for info in seen} == {10}
    start = {"kernel": seen[0].params["kernel"]}
    single = method(blurred_toy(), noise=GeneratorNoise([0]), init=start)
    assert best.image.shape == single.image.shape


def test_an_init_replaces_the_gaussians(measurement):
    first = Scripted([found(measurement, [0.02] * 2)] * 2)
    init = {"kernel": measurement.known["kernel"]}
    BestOfRestarts(first, Scripted([]), 7, (0.1, 0.2), 0)(measurement, noise=GeneratorNoise([0, 1]), init=init)
    assert first.inits == [init, init]


@pytest.mark.parametrize("agreement", [-0.1, 1.5])
def test_agreement_is_a_share(agreement):
    with pytest.raises(InputError, match="min_agreement"):
        BestOfRestarts(Scripted([]), Scripted([]), min_agreement=agreement)


@pytest.mark.parametrize("widths", [(), (0.1, 0.0)])
def test_starts_must_make_sense(widths):
    with pytest.raises(InputError, match="initial_widths"):
        BestOfRestarts(Scripted([]), Scripted([]), initial_widths=widths)
