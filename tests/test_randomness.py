"""Noise: streams that can be divided, and fields whose crops agree where they overlap."""

import pytest
import torch

from codiffuse.errors import InputError
from codiffuse.randomness import BLOCK, FieldNoise, GeneratorNoise

LIKE = torch.zeros(1)


def field(origin=(0, 0), shape=(1, 1, 3, 100, 90), name="step", seed=7, first=0):
    return FieldNoise(seed, origin, first).normal(name, shape, LIKE)


def test_spawned_streams_depend_on_seed_and_names_alone():
    def draw(source):
        return source.normal("step", (len(source.seeds), 2, 5), LIKE)

    used = GeneratorNoise([3])
    used.normal("init", (1, 4), LIKE)
    windows = draw(used.spawn("windows", count=3))
    assert torch.equal(windows, draw(GeneratorNoise([3]).spawn("windows", count=3)))
    assert torch.equal(windows[:2], draw(GeneratorNoise([3]).spawn("windows", count=2)))
    others = [draw(GeneratorNoise([3])), draw(GeneratorNoise([4]).spawn("windows")), draw(used.spawn("windows", 1))]
    everything = torch.cat([windows, *others])
    assert len({tuple(stream.flatten().tolist()) for stream in everything}) == len(everything)


def test_spawning_leaves_the_source_as_it_was():
    source = GeneratorNoise([3])
    source.spawn("windows")
    assert torch.equal(source.normal("a", (1, 9), LIKE), GeneratorNoise([3]).normal("a", (1, 9), LIKE))


@pytest.mark.parametrize("seeds", [[], [1, 2]])
def test_only_the_noise_of_one_image_is_divided(seeds):
    with pytest.raises(InputError, match="use batch 1"):
        GeneratorNoise(seeds).spawn("windows")


@pytest.mark.parametrize("origin", [(0, 0), (BLOCK, 2 * BLOCK), (17, 40), (-30, -BLOCK - 1), (1000, 3)])
def test_crops_agree_where_they_overlap(origin):
    top, left = origin
    here, there = field(origin), field((top + 21, left + 70), (1, 1, 3, 130, 60))
    assert torch.equal(here[..., 21:, 70:], there[..., :79, :20])


def test_each_call_name_seed_and_particle_has_its_own_field():
    source = FieldNoise(7)
    fields = [source.normal("step", (1, 1, 3, 70, 70), LIKE) for _ in range(2)]
    fields += [field(shape=(1, 1, 3, 70, 70), **other) for other in ({"name": "init"}, {"seed": 8}, {"first": 1})]
    flattened = torch.stack([one.flatten() for one in fields])
    correlation = torch.corrcoef(flattened) - torch.eye(len(fields))
    assert correlation.abs().max() < 5 / flattened.shape[1] ** 0.5


def test_particles_are_the_same_one_by_one():
    together = field(shape=(1, 3, 1, 40, 40))
    apart = [field(shape=(1, 1, 1, 40, 40), first=index) for index in range(3)]
    assert torch.equal(together, torch.cat(apart, 1))


def test_a_field_is_standard_normal_and_white_across_blocks():
    drawn = field((30, 30), (1, 2, 3, 256, 256))[0].flatten(0, 1)
    count = drawn.numel()
    assert abs(float(drawn.mean())) < 5 / count**0.5
    assert float(drawn.var()) == pytest.approx(1, abs=5 * (2 / count) ** 0.5)
    assert float(drawn.pow(4).mean()) == pytest.approx(3, abs=5 * (96 / count) ** 0.5)
    for distance in (1, BLOCK):
        for axis in (-1, -2):
            product = drawn * drawn.roll(distance, axis)
            assert abs(float(product.mean())) < 5 / count**0.5


def test_a_field_belongs_to_one_image_and_takes_the_type_of_its_measurement():
    assert FieldNoise(0).normal("step", (1, 1, 1, 4, 4), LIKE.double()).dtype == torch.float64
    with pytest.raises(InputError, match="use batch 1"):
        field(shape=(2, 1, 3, 8, 8))
