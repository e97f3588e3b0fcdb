"""What a run takes: measured on a small picture, right for large ones."""

import gc

import pytest
import torch
from toys import tiny_prior

from codiffuse.methods import memory
from codiffuse.methods.memory import SHARE, Estimate, bytes_per_pixel, estimate, free_bytes, particles_that_fit


def kept_bytes(prior, side):
    """What the backward pass keeps, counted at this size."""
    kept = {}

    def count(tensor):
        kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x = torch.rand(1, 3, side, side, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        prior.denoise(x, torch.full((1,), 0.5, dtype=torch.float64))
    return sum(size for pointer, size in kept.items() if pointer not in {p.data_ptr() for p in prior.parameters()})


@pytest.mark.parametrize("autocast", [False, True])
def test_memory_grows_with_the_area(autocast):
    """In bfloat16 the copies of the weights are kept too, but do not grow."""
    prior = tiny_prior()
    prior.autocast = autocast
    assert bytes_per_pixel(prior) == pytest.approx(kept_bytes(prior, 192) / 192**2, rel=0.05)


def test_measuring_keeps_nothing():
    def living():
        gc.collect()
        return sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())

    first, second = tiny_prior(), tiny_prior()  # each is measured once
    bytes_per_pixel(first)
    before = living()
    bytes_per_pixel(second)
    assert living() == before


def test_a_prior_is_measured_once_in_each_precision(monkeypatch):
    prior, sides = tiny_prior(), []
    monkeypatch.setattr(memory, "_kept_bytes", lambda prior, side: (sides.append(side), 100 * side**2)[1])
    for prior.autocast in (False, True, False, True):
        assert bytes_per_pixel(prior) == 100
    assert sides == 2 * [96, 64]


def test_particles_are_as_many_as_the_free_memory_holds(monkeypatch):
    prior = tiny_prior()
    each = bytes_per_pixel(prior) * 32**2 / SHARE
    monkeypatch.setattr(memory, "free_bytes", lambda device: int(3.5 * each))
    assert particles_that_fit(prior, (1, 8, 3, 32, 32)) == 3
    assert particles_that_fit(prior, (1, 3, 3, 32, 32)) is None
    assert particles_that_fit(prior, (1, 1, 3, 512, 512)) is None


def test_free_memory_is_some():
    assert free_bytes(torch.device("cpu")) > 2**20


def test_time_is_that_of_one_call_times_calls_and_area(monkeypatch):
    prior = tiny_prior()
    monkeypatch.setattr(memory, "_seconds", lambda call, device: (call(), 0.2)[1])
    small = estimate(prior, (1, 1, 3, 128, 128), 25)
    assert small.seconds == pytest.approx(25 * 0.2 * memory.OVERHEAD)
    large = estimate(prior, (1, 2, 3, 256, 512), 50)
    assert large.seconds == pytest.approx(2 * 2 * 8 * small.seconds)
    assert large.bytes == pytest.approx(bytes_per_pixel(prior) * 2 * 256 * 512 / SHARE, abs=1)
    # What is smaller than the picture that is timed is timed itself.
    assert estimate(prior, (1, 1, 3, 32, 32), 25).seconds == pytest.approx(small.seconds)


def test_the_probe_is_timed():
    assert 0 < estimate(tiny_prior(), (1, 1, 3, 32, 32), 1).seconds < 10


def test_one_run_after_the_other_takes_the_sum_of_times_and_the_larger_memory():
    assert Estimate(3, 10) + Estimate(4, 7) == Estimate(7, 10)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (59.6, "60 s"), (720, "12 min"), (5999, "100 min"), (7200, "2.0 h")]
)
def test_an_estimate_in_words(seconds, text):
    assert str(Estimate(seconds, int(3.1 * 2**30))) == f"about {text} and 3.1 GiB"
