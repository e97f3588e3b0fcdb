"""BlindDPS where it fails: runs that diverge and are repeated, what they cost, and what is refused."""

from dataclasses import replace

import pytest
import torch
from test_blind_dps import GainSpace, blind, run
from toys import blurred_toy, gaussian_kernel_prior, gaussian_prior

from codiffuse.errors import InputError
from codiffuse.guidance.dps import DPS
from codiffuse.guidance.joint import JointPiGDM
from codiffuse.guidance.pigdm import PiGDM
from codiffuse.methods.blind_dps import BlindDPS
from codiffuse.methods.variables import Variable
from codiffuse.spaces import ImageSpace, TiltSpace


class Still:
    """The same noise in every run."""

    def normal(self, name, shape, like):
        return torch.randn(shape, generator=torch.Generator().manual_seed(len(name))).to(like)


def first_shifts(monkeypatch, method, measurement) -> list[torch.Tensor]:
    """How far guidance moved the image in the first step of each run."""
    shifts, plain = [], Variable.advance

    def spied(self, process, x_t, x0, shift, step, *rest):
        if step.index == method.num_steps - 1 and x_t.shape[1] == 3:
            shifts.append(shift)
        return plain(self, process, x_t, x0, shift, step, *rest)

    monkeypatch.setattr(Variable, "advance", spied)
    method(measurement, noise=Still())
    return shifts


def test_each_retry_takes_half_the_step_of_the_last(monkeypatch):
    flat = replace(blurred_toy(), y=torch.full((1, 3, 32, 32), 0.5), known={})  # any error exceeds its signal
    shifts = first_shifts(monkeypatch, blind(DPS(scale=1000.0), max_retries=2), flat)
    assert len(shifts) == 3
    torch.testing.assert_close(shifts[1], shifts[0] / 2)
    torch.testing.assert_close(shifts[2], shifts[0] / 4)


def test_a_run_that_diverges_is_repeated_with_a_smaller_step():
    toy = replace(blurred_toy(), known={})
    wild = DPS(scale=100.0)
    failed, retried = run(blind(wild, max_retries=0), toy), run(blind(wild, max_retries=2), toy)
    assert failed.status[0].startswith("failed")
    assert float(failed.step_factor) == 1
    assert float(retried.step_factor) in (0.5, 0.25)
    assert int(retried.nfe) == {0.5: 2, 0.25: 3}[float(retried.step_factor)] * 20
    tame = run(blind(DPS(scale=1.0)), toy)
    assert (tame.step_factor.tolist(), tame.nfe) == ([1.0], 20)


def losing(method, lost, calls=None):
    """The same method with an image network that gives NaN for some of the batch, in its first calls."""
    network, done = method.image.prior.network, []
    plain = network.forward

    def forward(x_t, time):
        out = plain(x_t, time)
        done.append(0)
        if calls is None or len(done) <= calls:
            out[lost] = torch.nan
        return out

    network.forward = forward
    return method


def test_only_what_diverged_is_repeated():
    toy = replace(blurred_toy(2), known={})
    alone = run(blind(), toy, seeds=(0, 1))
    found = run(losing(blind(max_retries=3), [1], calls=20), toy, seeds=(0, 1))
    assert found.status == ("ok", "ok")
    assert found.step_factor.tolist() == [1.0, 0.5]
    assert found.nfe.tolist() == [20, 40]
    torch.testing.assert_close(found.image[0], alone.image[0])


@pytest.mark.parametrize(("lost", "steps"), [([0, 1], 10), ([1], 20)])
def test_a_run_ends_where_all_of_it_is_lost(lost, steps):
    method, seen = losing(blind(max_retries=0), lost), []
    found = run(method, replace(blurred_toy(2), known={}), seeds=(0, 1), callback=seen.append)
    assert (len(seen), found.nfe) == (steps, steps)
    assert found.status[1] == "failed: NaN or infinite values"
    assert found.status[0].startswith("failed") == (0 in lost)


def gain() -> Variable:
    return Variable(space=GainSpace(), size=1)


def kernels() -> Variable:
    return Variable(gaussian_kernel_prior(), size=7)


def fields() -> Variable:
    return Variable(space=TiltSpace(), channels=2)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: blind(max_retries=-1), "max_retries >= 0"),
        (lambda: blind(max_retries=2.5), "max_retries >= 0, a whole number, got 2.5"),
        (lambda: blind(num_particles=0), "num_particles >= 1"),
        (lambda: blind(num_particles=1.5), "num_particles >= 1, a whole number, got 1.5"),
        (lambda: blind(kernel_crop=2.5), "kernel_crop >= 1, a whole number, got 2.5"),
        (lambda: blind(PiGDM()), "guidance of all unknowns, got PiGDM"),
        (lambda: blind(kernel=Variable(gaussian_kernel_prior())), "a size of the kernel, got none"),
        (lambda: BlindDPS(Variable(space=ImageSpace()), {"kernel": kernels()}), "a prior of the image, got none"),
        (lambda: BlindDPS(Variable(gaussian_prior(0.25)), {}), "such as kernel, got none"),
        (lambda: replace(blind(), parameters={"image": kernels()}), "by their names, such as kernel, got image"),
        (lambda: BlindDPS(kernels(), {"kernel": kernels()}), r"images for the image, got .* kernels; set prior\.image"),
        (lambda: blind(kernel=Variable(gaussian_prior(0.25), size=7)), r"for the kernel, .* images; set prior\.kernel"),
        (lambda: blind(kernel=replace(fields(), size=7)), "for the kernel, got one of tilts"),
        (lambda: replace(blind(), parameters={"tilt": kernels()}), "for the tilt, got one of kernels"),
        (lambda: replace(blind(), parameters={"gain": gain()}, kernel_crop=5), "a kernel for kernel_crop"),
        (lambda: run(blind(JointPiGDM({"image": 0.25})), blurred_toy()), "guidance.data_variance.kernel="),
        (lambda: run(blind(kernel=Variable(gaussian_kernel_prior(), size=33)), blurred_toy()), "kernel no larger"),
        (lambda: run(blind(kernel_crop=9), blurred_toy()), "kernel_crop from 1 to the 7 px"),
    ],
)
def test_what_cannot_work_is_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        wrong()
