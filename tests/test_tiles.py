"""Restoring pictures of any size: without seams, however many tiles, samples, and bytes there are."""

from dataclasses import replace
from itertools import accumulate

import pytest
import torch
from torch.profiler import profile
from toys import blurred_toy, gaussian_prior, tiny_prior

from codiffuse.errors import InputError
from codiffuse.guidance.pigdm import PiGDM
from codiffuse.inference.progress import StepRecorder
from codiffuse.methods.base import restoration
from codiffuse.methods.memory import OVERHEAD
from codiffuse.methods.non_blind import NonBlind
from codiffuse.methods.steps import ReverseProcess
from codiffuse.methods.tiles import Tiled
from codiffuse.operators.blur import BlurOperator
from codiffuse.randomness import FieldNoise, GeneratorNoise, RecordedNoise

SHORT = ReverseProcess(num_steps=2)
KERNEL = (7, 7)


def noise(seed=0):
    return GeneratorNoise([seed])


def field(sample=0):
    """The noise of a sample that is restored by tiles."""
    return FieldNoise(noise().spawn("tiles").seeds[0], first=sample)


def photograph(side=64, boundary="unknown", **options):
    """A toy picture as a photograph: what lies beyond its frame is not known."""
    return replace(blurred_toy(side=side, **options), operator=BlurOperator(boundary))


def tiled(prior=None, tile=40, overlap=16, max_memory=2**30, **options):
    return Tiled(NonBlind(prior or tiny_prior(), process=SHORT, **options), tile, overlap, max_memory)


def exact(num_particles=1):
    """Posterior sampling with an exact Gaussian prior, whose network looks at single pixels."""
    guidance = PiGDM(r2_rule="vp", data_variance=0.1, zeta="one")
    return NonBlind(gaussian_prior(0.1), guidance, ReverseProcess(num_steps=5, clip="none"), num_particles)


def by_windows(frame, share=0.6, **options):
    """A method whose memory is too short for the whole of a picture."""
    method = Tiled(exact(**options), 128, 32, 2**30)
    needed = method.estimate(frame, KERNEL).bytes
    method = replace(method, max_memory=int(share * needed))
    assert method.plan(frame, KERNEL).num_windows > 1
    return method


def short_of_memory(method, frame=(64, 64)):
    """The same method, which has to compute the activations of some tiles again, and of some not."""
    lean = replace(method, max_memory=int(0.7 * method.estimate(frame, KERNEL).bytes))
    ample, short = (which.plan(frame, KERNEL) for which in (method, lean))
    assert ample.tiles == short.tiles
    assert 0 < short.prior.kept < ample.prior.kept == ample.num_tiles
    return lean


def masked(measurement):
    mask = (torch.rand(measurement.y[:, :1].shape, generator=torch.Generator().manual_seed(1)) > 0.05).float()
    return replace(measurement, y=torch.where(mask > 0, measurement.y, 1.0), mask=mask)


def test_a_picture_that_one_tile_holds_is_left_to_the_method():
    measurement, method = photograph(32), tiled(num_particles=2)
    whole = method.non_blind(measurement, noise=field())
    found = method(measurement, noise=noise())
    assert torch.equal(found.samples, whole.samples)
    assert found.nfe == whole.nfe == 2


@pytest.mark.parametrize("boundary", ["unknown", "circular"])
@pytest.mark.parametrize("mask", [False, True])
def test_tiles_of_a_network_that_looks_at_pixels_are_the_whole(boundary, mask):
    measurement = photograph(boundary=boundary)
    if mask:
        measurement = masked(measurement)
    method = Tiled(exact(num_particles=2), 48, 24, 2**30)
    found = method(measurement, noise=noise())
    for sample in range(2):
        alone = exact()(measurement, noise=field(sample)).raw["x"]
        assert torch.allclose(found.raw["x"][:, sample], alone[:, 0], atol=1e-4)
    assert found.status == ("ok",)
    assert torch.equal(found.params["kernel"], measurement.known["kernel"])
    assert found.nfe == 4 * 5


def test_tiles_of_a_network_with_surroundings_are_nearly_the_whole():
    measurement, method = photograph(), tiled()
    whole = method.non_blind(measurement, noise=field()).image
    assert 0 < float((method(measurement, noise=noise()).image - whole).abs().max()) < 0.1 * float(whole.std())


@pytest.mark.parametrize("mask", [False, True])
def test_windows_agree_with_the_whole(mask):
    """They overlap by several times the kernel, beyond which its inverse does not reach."""
    measurement = photograph(128, sigma=0.1)
    if mask:
        measurement = masked(measurement)
    method = by_windows((128, 128))
    found = method(measurement, noise=noise())
    whole = method.non_blind(measurement, noise=field())
    assert found.raw["x"].shape == whole.raw["x"].shape
    assert (found.raw["x"] - whole.raw["x"]).abs().max() < 0.01 < 0.1 < float(whole.raw["x"].std())
    assert found.status == ("ok",)


@pytest.mark.parametrize("boundary", ["circular", "valid"])
def test_windows_leave_unused_what_the_boundary_says_of_the_outside(boundary):
    measurement = photograph(128, boundary, sigma=0.1)
    method = by_windows((128, 128))
    found = method(measurement, noise=noise())
    whole = method.non_blind(replace(measurement, operator=BlurOperator("unknown")), noise=field())
    canvas = measurement.operator.image_shape((128, 128), kernel_size=KERNEL)
    assert found.image.shape == measurement.y.shape
    assert found.raw["x"].shape[-2:] == found.as_init()["image"].shape[-2:] == canvas
    assert (found.image - whole.image).abs().max() < 0.02


def test_gray_pictures_keep_their_channel():
    assert tiled()(photograph(channels=1), noise=noise()).samples.shape == (1, 1, 1, 64, 64)


def test_samples_depend_on_the_seed_and_not_on_what_is_kept_or_restored_with_them():
    measurement, prior = photograph(), tiny_prior()
    two = tiled(prior, num_particles=2)(measurement, noise=noise())
    assert torch.allclose(two.image, two.samples.mean(1))
    assert (two.samples[:, 0] - two.samples[:, 1]).abs().max() > 0.01
    lean = short_of_memory(tiled(prior, num_particles=2))
    assert torch.allclose(lean(measurement, noise=noise()).samples, two.samples, atol=1e-4)
    other = tiled(prior)(measurement, noise=noise(1)).samples
    assert (other[:, 0] - two.samples[:, 0]).abs().max() > 0.01


def test_progress_counts_all_steps_and_tells_what_it_shows():
    measurement, seen, shown = photograph(), [], []
    method = tiled(num_particles=3)
    plan = method.plan((64, 64), KERNEL)
    recorder = StepRecorder(measurement, lambda info, residual: shown.append(residual))
    method(measurement, noise=noise(), callback=lambda info: (seen.append(info), recorder(info)))
    assert (plan.num_tiles, plan.num_solves) == (9, 3)
    assert [info.number for info in seen] == list(range(1, 7))
    assert {info.total for info in seen} == {6}
    assert all(info.part is measurement for info in seen)
    assert len(shown) == 2  # step 5 and the last
    assert all(0 < residual < 50 for residual in shown)


def test_progress_of_windows():
    measurement, seen = photograph(128), []
    method = by_windows((128, 128))
    method(measurement, noise=noise(), callback=seen.append)
    assert len(seen) == seen[0].total == method.plan((128, 128), KERNEL).num_solves * method.num_steps
    for info in seen:
        assert info.part.operator(info.x0, kernel=info.params["kernel"]).shape[-2:] == info.part.y.shape[-2:]
        assert info.part.y.shape[-1] < 128


def test_short_memory_first_costs_time_then_smaller_tiles_then_windows():
    prior, frame = tiny_prior(), (300, 400)
    ample = Tiled(NonBlind(prior, process=SHORT), 256, 32, 2**32).estimate(frame, KERNEL)

    def within(share):
        method = Tiled(NonBlind(prior, process=SHORT), 256, 32, int(share * ample.bytes))
        assert method.estimate(frame, KERNEL).bytes <= method.max_memory
        return method.plan(frame, KERNEL)

    plans = [within(share) for share in (1.001, 0.8, 0.4, 0.17)]
    assert [plan.num_windows > 1 for plan in plans] == [False, False, False, True]
    assert plans[0].prior.kept == plans[0].num_tiles > plans[1].prior.kept
    assert plans[0].tiles == plans[1].tiles
    assert max(plans[2].tile) < max(plans[1].tile)


def test_a_plan_holds_the_end_of_a_run_when_there_are_more_samples_than_a_window_has_pictures():
    """All samples are clipped then, and the residual of the whole is computed: as the allocator counts it."""
    measurement, frame, count = photograph(200), (200, 200), 8
    method = Tiled(exact(num_particles=count), 128, 32, 1)
    with pytest.raises(InputError, match="GiB or more") as caught:
        method.plan(frame, KERNEL)
    least = float(str(caught.value).split()[1]) * 2**30
    plan = replace(method, max_memory=int(1.01 * least)).plan(frame, KERNEL)
    assert plan.num_windows > 1
    x = torch.rand(1, count, 3, 206, 206)
    with profile(profile_memory=True) as profiled:
        restoration(measurement, x, measurement.known, 1)
    sizes = [event.nbytes() for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    peak = x.nbytes + max(accumulate(sizes))
    assert 0.9 * plan.bytes < peak <= plan.bytes


def test_one_tile_takes_as_many_samples_at_a_time_as_fit():
    measurement, method = photograph(32), tiled(num_particles=3)
    lean = replace(method, max_memory=int(0.8 * method.plan((32, 32), KERNEL).bytes))
    plans = [which.plan((32, 32), KERNEL) for which in (method, lean)]
    assert [(plan.at_once, plan.together, plan.num_solves) for plan in plans] == [(True, 3, 1), (True, 2, 1)]
    together, apart = (which(measurement, noise=noise()).samples for which in (method, lean))
    assert torch.allclose(together, apart, atol=1e-4)


def test_half_of_the_free_memory_is_used_unless_told_otherwise(monkeypatch):
    monkeypatch.setattr("codiffuse.methods.tiles.free_bytes", lambda device: 2 * 10**8)
    method = tiled(tile=256, max_memory=None)
    assert method.plan((300, 400), KERNEL) == replace(method, max_memory=10**8).plan((300, 400), KERNEL)
    assert method.plan((300, 400), KERNEL) != replace(method, max_memory=10**9).plan((300, 400), KERNEL)


def test_too_little_memory_is_said_before_the_run():
    with pytest.raises(InputError, match=r"got 9\.31e-05 GiB; set max_memory= higher"):
        tiled(max_memory=10**5)(photograph(), noise=noise())


def test_what_tiles_compute_again_takes_half_as_much_time_more(monkeypatch):
    monkeypatch.setattr("codiffuse.methods.memory._seconds", lambda call, device: 0.1)
    one, three = tiled(), tiled(num_particles=3)
    fast, thrice = (method.estimate((64, 64), KERNEL).seconds for method in (one, three))
    assert fast == pytest.approx(9 * 2 * 0.1 * OVERHEAD)
    assert thrice == pytest.approx(3 * fast)
    lean = short_of_memory(one)
    again = 1 - lean.plan((64, 64), KERNEL).prior.kept / 9
    assert lean.estimate((64, 64), KERNEL).seconds == pytest.approx((1 + again / 2) * fast)


def test_a_plan_in_words():
    assert tiled(num_particles=4).describe((64, 94), KERNEL) == "12 tiles of 38 x 34 px, 2 steps, 4 samples"
    assert tiled().describe((30, 20), KERNEL) == "1 tile of 26 x 36 px, 2 steps, 1 sample"


def test_a_tile_that_diverges_fails_the_picture():
    prior = tiny_prior()
    with torch.no_grad():
        prior.network.out[-1].weight.fill_(torch.nan)
    assert tiled(prior)(photograph(), noise=noise()).status == ("failed: NaN or infinite values",)


def test_what_cannot_be_tiled_is_refused():
    method, measurement = tiled(), photograph()
    with pytest.raises(InputError, match="set batch_size=1"):
        method(photograph(count=2), noise=GeneratorNoise([0, 1]))
    with pytest.raises(InputError, match="use a blind method"):
        method(replace(measurement, known={}), noise=noise())
    with pytest.raises(InputError, match="GeneratorNoise"):
        method(measurement, noise=RecordedNoise({}))
    with pytest.raises(InputError, match="tile of at least 48 px, got 40; set tile=48"):
        tiled(tile=40, overlap=24)
    with pytest.raises(InputError, match="overlap of at least 4 px, got 2; set overlap=4"):
        tiled(overlap=2)


def test_it_is_a_method():
    method = tiled()
    assert method.needs == ("kernel",)
    assert method.num_steps == 2
    assert method.supports(BlurOperator()) is None
    assert "blur" in method.supports(object())
