"""Any photograph: windows, a support that grows, tiles, and what is said of it."""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import pytest
import torch
from toys import blurred_toy, tiny_prior

from codiffuse.errors import InputError
from codiffuse.estimation.hqs import HQS
from codiffuse.estimation.regularizers import NoRegularizer
from codiffuse.inference.progress import StepRecorder
from codiffuse.methods.base import Measurement, restoration
from codiffuse.methods.coarse import LARGEST_BLOCK, CoarseToFine
from codiffuse.methods.fast_em import FastEM
from codiffuse.methods.memory import peak_bytes
from codiffuse.methods.non_blind import NonBlind
from codiffuse.methods.photograph import Photograph, _clipped_mean
from codiffuse.methods.restarts import BestOfRestarts
from codiffuse.methods.steps import ReverseProcess
from codiffuse.methods.tiles import Tiled
from codiffuse.methods.windows import Window
from codiffuse.operators.blur import BlurOperator
from codiffuse.operators.noise import GaussianNoise
from codiffuse.randomness import GeneratorNoise

TRUE_SIZE = 15
UNKNOWN = BlurOperator("unknown")
SHARP = Photograph.sharp_spread


@dataclass(frozen=True)
class Truncating:
    """A blind method that finds as much of a flat kernel of `TRUE_SIZE` px as its support holds."""

    kernel_size: int = 9
    seen: list = field(default_factory=list)
    needs: ClassVar = ()
    num_steps = work = 2

    def supports(self, operator):
        return None

    def with_kernel_size(self, size):
        return replace(self, kernel_size=size)

    def __call__(self, measurement, *, noise, init=None, callback=None):
        self.seen.append((self.kernel_size, measurement))
        side = min(self.kernel_size, TRUE_SIZE)
        kernel = torch.zeros(1, 1, self.kernel_size, self.kernel_size)
        edge = (self.kernel_size - side) // 2
        kernel[..., edge : edge + side, edge : edge + side] = 1 / side**2
        shape = measurement.operator.image_shape(measurement.y.shape[-2:], kernel_size=kernel.shape[-2:])
        return restoration(measurement, torch.full((1, 1, 3, *shape), 0.5), {"kernel": kernel}, 2)


def photograph(blind, tile=48, num_samples=2, **options):
    process = ReverseProcess(num_steps=2)
    finish = Tiled(NonBlind(tiny_prior(), process=process, num_particles=num_samples), tile=tile, overlap=8)
    options = {"first_kernel_size": 9, "sharp_spread": 0.0, "small_spread": 0.0} | options
    return Photograph(blind, finish, HQS(NoRegularizer(), iterations=2), **options)


def blurred(side=64, sigma=0.02):
    return replace(blurred_toy(1, side=side, sigma=sigma), operator=UNKNOWN)


def run(method, measurement, **options):
    return method(measurement, noise=GeneratorNoise([0]), **options)


def test_the_support_grows_until_the_kernel_fits():
    blind = Truncating()
    found = run(photograph(blind), blurred())
    assert [size for size, _ in blind.seen] == [9, 13, 19]
    assert found.params["kernel"].shape == (1, 1, 19, 19)
    assert found.image.shape == (1, 3, 64, 64)
    assert found.samples.shape == (1, 2, 3, 64, 64)


@pytest.mark.parametrize(("options", "sizes"), [({"kernel_size": 9}, [9]), ({"max_kernel_size": 13}, [9, 13])])
def test_the_support_does_not_grow_beyond_what_was_asked(options, sizes):
    blind = Truncating()
    run(photograph(blind, **options), blurred())
    assert [size for size, _ in blind.seen] == sizes


def test_a_large_picture_is_seen_through_windows():
    blind = Truncating()
    found = run(photograph(blind, window=40, num_windows=2, kernel_size=9), blurred(96))
    row = blind.seen[0][1]
    gap = 8 + LARGEST_BLOCK
    assert row.y.shape == (1, 3, 40, 40 + gap + 40)
    assert row.operator.boundary == "unknown"
    assert len(found.windows.places) == 2
    assert found.windows.kernels.shape == (2, 9, 9)
    for place, left in zip(found.windows.places, (0, 40 + gap), strict=True):
        assert torch.equal(row.y[..., left : left + 40], place.crop(blurred(96).y))


def test_a_small_picture_is_its_own_window():
    blind = Truncating()
    measurement = blurred(64)
    found = run(photograph(blind, window=40, num_windows=3, kernel_size=9), measurement)
    assert blind.seen[0][1] is measurement
    assert len(found.windows.places) == 1


def with_memory(method, allowed):
    """Allows the search that many bytes; the restoration has no limit here."""
    finish = replace(method.finish, max_memory=allowed)
    unlimited = replace(finish, max_memory=None)
    object.__setattr__(finish, "plan", unlimited.plan)
    return replace(method, finish=finish)


def searched_bytes(method, side, kernel_size):
    return peak_bytes(method.finish.non_blind.prior, (1, 1, 3, side + kernel_size - 1, side + kernel_size - 1))


def test_the_search_takes_no_more_memory_than_it_may():
    """Three windows in a row, of which two fit, or one, or none."""
    method = photograph(Truncating(), window=40, num_windows=3, kernel_size=9)
    one, gap = searched_bytes(method, 40, 9), 8 + LARGEST_BLOCK
    two = peak_bytes(method.finish.non_blind.prior, (1, 1, 3, 48, 40 + gap + 40 + 8))
    for allowed, count in ((two, 2), (two - 1, 1), (one, 1)):
        assert len(with_memory(method, allowed)._mosaic(blurred(160), 9).windows) == count
    with pytest.raises(InputError, match=r"find a kernel of 9 px in a window of 40 x 40 px, got .* set max_memory="):
        run(with_memory(method, one - 1), blurred(160))


def test_a_small_picture_that_does_not_fit_is_looked_at_through_windows():
    method = photograph(Truncating(), window=40, num_windows=3, kernel_size=9)
    found = run(with_memory(method, searched_bytes(method, 64, 9) - 1), blurred(64))
    assert 0 < len(found.windows.places) < 3
    assert {place.width for place in found.windows.places} == {40}


def test_a_kernel_grows_only_as_far_as_the_memory_goes(caplog):
    blind = Truncating()
    method = photograph(blind, window=64, num_windows=1)
    with caplog.at_level("INFO"):
        found = run(with_memory(method, searched_bytes(method, 64, 13)), blurred(64))
    assert found.params["kernel"].shape[-1] == 13
    assert [size for size, _ in blind.seen] == [9, 13]
    assert "it stays there: Expected" in caplog.text
    assert caplog.text.count("GiB: kernel from") == 2  # each round says what is to come


def test_the_calls_of_all_rounds_count():
    method = photograph(Truncating())
    last = method.finish.plan((64, 64), (19, 19)).num_tiles * method.finish.num_steps
    assert run(method, blurred()).nfe == 3 * 2 + last


def test_windows_may_be_chosen_by_hand():
    blind = Truncating()
    found = run(photograph(blind, window=40, kernel_size=9, places=[[8, 50], [56, 0]]), blurred(96))
    assert found.windows.places == (Window(8, 50, 40, 40), Window(56, 0, 40, 40))
    assert torch.equal(blind.seen[0][1].y[..., :40], blurred(96).y[..., 8:48, 50:90])


@pytest.mark.parametrize("place", [[60, 0], [0, 57], [-1, 0]])
def test_windows_outside_the_picture_are_refused(place):
    with pytest.raises(InputError, match=r"within the picture of 96 x 96 px.*pipeline.places="):
        run(photograph(Truncating(), window=40, kernel_size=9, places=[place]), blurred(96))


def test_what_the_kernel_leaves_unexplained_raises_the_noise_within_limits():
    """The stub's gray picture explains nothing, so its residual is far above the noise."""
    measurement = blurred()
    factors = [
        float(run(photograph(Truncating(), max_noise_correction=limit), measurement).noise_level / measurement.sigma)
        for limit in (1.0, 1.5)
    ]
    assert factors == pytest.approx([1.0, 1.5])


def test_the_noise_is_raised_by_the_square_of_what_the_residual_is_above_it():
    """Gray plus noise of twice the level that is told: gray leaves twice that level, which counts fourfold."""
    noise = 0.04 * torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    found = run(photograph(Truncating()), Measurement(0.5 + noise, GaussianNoise(0.02), UNKNOWN))
    assert float(found.noise_level) == pytest.approx(4 * 0.02, rel=0.03)


@pytest.mark.parametrize(("size", "sigma", "told"), [(15, 0.002, 5 / 255), (15, 0.05, 0.05), (9, 0.002, 0.002)])
def test_the_search_alone_assumes_a_least_noise_level(size, sigma, told):
    blind, measurement = Truncating(), blurred(sigma=sigma)
    found = run(photograph(blind, first_kernel_size=size, kernel_size=size, max_noise_correction=1.0), measurement)
    assert float(blind.seen[0][1].sigma) == pytest.approx(told)
    assert float(found.noise_level) == pytest.approx(sigma)
    assert torch.equal(blind.seen[0][1].y, measurement.y)


def test_a_least_noise_level_below_zero_is_refused():
    with pytest.raises(InputError, match=r"least_sigma >= 0 in \[0, 1\] units, got -0.1"):
        photograph(Truncating(), least_sigma=-0.1)


@pytest.mark.parametrize(
    ("samples", "mean"), [([0.5, 0.5, 0.5, 1.0], 0.5375), ([0.4, 0.5, 0.6], 0.5), ([0.0, 1.0], 0.5)]
)
def test_what_one_sample_alone_shows_counts_little(samples, mean):
    """The odd one is taken for 0.65, 0.15 from the median; of two, neither is odder than the other."""
    values = torch.tensor(samples).reshape(1, -1, 1, 1, 1).expand(-1, -1, 3, 300, 5)
    assert torch.allclose(_clipped_mean(values, 0.15), torch.tensor(mean))
    spread = torch.rand(2, 4, 3, 300, 5)
    assert torch.allclose(_clipped_mean(spread, float("inf")), spread.mean(1))


def test_the_picture_is_the_clipped_mean_of_its_samples():
    method = photograph(Truncating(), reach=1e-3, num_samples=3)
    found = run(method, blurred(32))
    torch.testing.assert_close(found.image, _clipped_mean(found.samples, 1e-3))
    assert (found.image - found.samples.mean(1)).abs().max() > 3e-3


def test_a_reach_that_is_not_positive_is_refused():
    with pytest.raises(InputError, match="reach > 0"):
        photograph(Truncating(), reach=0.0)


def test_it_is_the_non_blind_restoration_with_the_kernel_that_was_found():
    measurement, method = blurred(40), photograph(Truncating(), max_noise_correction=1.0)
    found = run(method, measurement)
    known = replace(measurement, known={"kernel": found.params["kernel"]})
    torch.testing.assert_close(found.samples, run(method.finish, known).samples)


def test_progress_counts_the_whole_run():
    seen = []
    run(
        photograph(Truncating(), kernel_size=9),
        blurred(96),
        callback=lambda info: seen.append((info.number, info.total)),
    )
    assert seen[-1][0] == seen[-1][1]
    assert [number for number, _ in seen] == sorted({number for number, _ in seen})


def test_one_photograph_at_a_time():
    with pytest.raises(InputError, match="batch_size=1"):
        photograph(Truncating())(replace(blurred_toy(2), operator=UNKNOWN), noise=GeneratorNoise([0, 1]))


@dataclass(frozen=True)
class Failing(Truncating):
    def __call__(self, measurement, **options):
        found = super().__call__(measurement, **options)
        return replace(found, status=("failed: diverged",))


def test_a_failed_search_ends_there_and_says_so():
    seen, measurement = [], blurred(96)
    found = run(photograph(Failing(), kernel_size=9), measurement, callback=seen.append)
    assert found.status == ("failed: diverged",)
    assert found.image.shape == measurement.y.shape
    assert seen == []


def test_small_pictures_start_with_a_small_kernel():
    blind = Truncating()
    found = run(photograph(blind, first_kernel_size=33), blurred(32))
    assert [size for size, _ in blind.seen] == [15]
    assert found.status == ("ok",)


def test_a_given_kernel_is_a_start_at_every_size():
    starts = []

    @dataclass(frozen=True)
    class Started(Truncating):
        def __call__(self, measurement, *, init=None, **options):
            starts.append(init)
            return super().__call__(measurement, **options)

    kernel = torch.full((1, 1, 9, 9), 1 / 81)
    run(photograph(Started()), blurred(), init={"kernel": kernel, "image": blurred().y})
    assert [start["kernel"].shape[-1] for start in starts] == [9, 13, 19]
    torch.testing.assert_close(starts[1]["kernel"][..., 2:-2, 2:-2], kernel)
    assert all(start.keys() == {"kernel"} for start in starts)


def test_coarse_windows_are_recorded_against_what_they_see():
    once = FastEM(tiny_prior(), HQS(NoRegularizer(), iterations=2), process=ReverseProcess(2), kernel_size=9)
    blind = CoarseToFine(BestOfRestarts(once, once, 9, (0.1,), 1), once, 9, coarse_kernel=5)
    measurement = blurred(140)
    recorder = StepRecorder(measurement)
    found = run(photograph(blind, kernel_size=9, window=64, num_windows=2), measurement, callback=recorder)
    assert len(found.windows.places) == 2
    assert [record["step"] for record in recorder.trace(0)] == list(range(1, blind.num_steps + 1))


@pytest.mark.parametrize("wrong", [{"window": 0}, {"num_windows": 0}, {"kernel_size": -3}, {"first_kernel_size": 0}])
def test_sizes_and_counts_are_positive(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        photograph(Truncating(), **wrong)


def test_restarts_of_a_real_blind_method_are_passed_on():
    process = ReverseProcess(num_steps=2, start=0.5)
    once = FastEM(tiny_prior(), HQS(NoRegularizer(), iterations=2), process=process, kernel_size=7)
    found = run(photograph(BestOfRestarts(once, once, 7, (0.1, 0.2), 1), kernel_size=5), blurred(40))
    assert found.restarts.kernels.shape == (1, 2, 5, 5)
    assert found.nfe == 3 * 2 + 2


def sharp_measurement(sigma=0.02):
    """The finest texture there is."""
    y = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return Measurement(y, GaussianNoise(sigma), UNKNOWN)


def test_nothing_is_searched_for_in_a_sharp_picture(caplog):
    blind, told = Truncating(), []
    with caplog.at_level("INFO"):
        found = photograph(blind, sharp_spread=SHARP)(
            sharp_measurement(), noise=GeneratorNoise([0]), callback=told.append
        )
    assert not blind.seen
    assert "sharp" in caplog.text
    kernel = found.params["kernel"]
    assert (float(kernel.max()), float(kernel[0, 0, 4, 4]), kernel.shape) == (1, 1, (1, 1, 9, 9))
    assert (found.image.shape, found.restarts, found.windows) == ((1, 3, 64, 64), None, None)
    assert found.is_sharp
    assert [(info.number, info.total) for info in told] == [(n + 1, len(told)) for n in range(len(told))]


def unless_sharp(blind):
    """A method that looks at the spectrum first, and takes little time."""
    return photograph(blind, tile=96, num_samples=1, sharp_spread=SHARP)


def test_of_a_sharp_picture_only_the_end_of_the_reverse_process_is_run():
    """It begins where the noise of the process is about 42 gray levels, half of that in [-1, 1] coordinates."""
    told = []
    run(unless_sharp(Truncating()), sharp_measurement(), callback=told.append)
    first = ((1 - told[0].alpha_bar) / told[0].alpha_bar) ** 0.5 * 255 / 2
    assert first == pytest.approx(42, rel=0.05)


@pytest.mark.parametrize(("sigma", "searched"), [(14 / 255, False), (16 / 255, True)])
def test_in_much_noise_the_spectrum_does_not_tell(sigma, searched):
    blind = Truncating()
    run(unless_sharp(blind), sharp_measurement(sigma))
    assert bool(blind.seen) == searched


@pytest.mark.parametrize("masked", [False, True])
def test_clipped_lights_do_not_make_a_picture_sharp(masked):
    """Their edges are the only ones there are: what the mask leaves is smooth."""
    smooth, lights = blurred(), torch.zeros(1, 1, 64, 64)
    lights[..., 4::8, 4::8] = 1
    y, blind = torch.where(lights > 0, 1.0, smooth.y), Truncating()
    run(unless_sharp(blind), replace(smooth, y=y, mask=1 - lights if masked else None))
    assert bool(blind.seen) == masked


@pytest.mark.parametrize("options", [{"kernel_size": 9, "sharp_spread": SHARP}, {"sharp_spread": 0.0}])
def test_unless_somebody_says_that_it_is_blurred(options):
    blind = Truncating()
    photograph(blind, **options)(sharp_measurement(), noise=GeneratorNoise([0]))
    assert blind.seen


def test_a_kernel_to_start_from_says_so_too():
    blind, kernel = Truncating(), torch.full((1, 1, 5, 5), 1 / 25)
    photograph(blind, sharp_spread=SHARP)(sharp_measurement(), noise=GeneratorNoise([0]), init={"kernel": kernel})
    assert blind.seen


def slightly_blurred(side=96):
    """Fine texture after a blur of two pixels."""
    scene = torch.rand(1, 3, side + 2, side + 2, generator=torch.Generator().manual_seed(0))
    kernel = torch.zeros(1, 1, 3, 3)
    kernel[..., 1, 1:] = 0.5
    return Measurement(BlurOperator("valid")(scene, kernel=kernel), GaussianNoise(0.01), UNKNOWN)


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({"small_spread": 2.0, "small_border_limit": 1.0}, [5]),
        ({"small_spread": 2.0}, [5, 11, 17]),  # too little, so the usual first size
        ({"small_spread": 2.0, "first_kernel_size": 3}, [3, 5, 7, 11, 17]),
        ({"small_spread": 0.0}, [11, 17]),
    ],
)
def test_a_slight_blur_gets_a_small_kernel_first(options, sizes):
    blind = Truncating()
    options = {"small_kernel_size": 5, "first_kernel_size": 11} | options
    photograph(blind, **options)(slightly_blurred(), noise=GeneratorNoise([0]))
    assert [size for size, _ in blind.seen] == sizes
