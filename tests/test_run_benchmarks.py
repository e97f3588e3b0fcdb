"""The benchmarks that read run folders: on folders whose numbers are known."""

import json
import re

import numpy as np
import pytest
import torch
import yaml
from programs import run

from benchmarks import blind_kernels, paired
from codiffuse import cli
from codiffuse.metrics.kernel import mnc
from codiffuse.simulate.gaussian import gaussian_kernel

MOTION = {"_target_": "codiffuse.simulate.motion.RandomPathKernels", "size": 15}
GAUSSIAN = {"_target_": "codiffuse.simulate.gaussian.GaussianKernels", "size": 17, "std": [2.0, 2.0]}
NAMES = ("a", "b", "c")


@pytest.fixture
def make_run(tmp_path):
    """Makes a run folder: what found each kernel from the true one, and columns of the rows, as functions of both."""

    def make(name, law=MOTION, seed=0, method="blind_dps", found=lambda true: true, row=None, names=NAMES, steps=100):
        folder = tmp_path / name
        data = {
            "_target_": "codiffuse.data.measurements.blurred",
            "input": "not_there",
            "law": law,
            "sigma": 0.02,
            "operator": {"_target_": "codiffuse.operators.blur.BlurOperator", "boundary": "circular"},
            "seed": seed,
        }
        config = {"seed": seed, "data": data, "method": {"steps": steps}}
        source = blind_kernels.simulation(config)
        rows = []
        for index, image in enumerate(names):
            true = source.true_kernel(image)
            kernel = found(true)
            (folder / "images" / image).mkdir(parents=True)
            np.save(folder / "images" / image / "kernel.npy", kernel[0].numpy())
            scores = {"psnr_measurement": 20.0 + index + seed, "psnr_measurement_aligned": 20.0}
            scores |= {"psnr_aligned": 21.0, "kernel_mnc": float(mnc(kernel[None], true[None]))}
            line = {"id": image, "method": method, "status": "ok", **scores} | (row(index, seed) if row else {})
            rows.append(line if line["status"] == "ok" else {"id": image, "status": line["status"]})
        (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "summary.json").write_text(json.dumps({"method": method}))
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        return folder

    return make


def kernels_of(*folders):
    return run(lambda: exit_with(blind_kernels.main()), *folders)


def pairs_of(ours, theirs):
    return run(lambda: exit_with(paired.main()), "--of", *ours, "--beside", *theirs)


def exit_with(code):
    raise SystemExit(code)


def numbers(text):
    return [float(value) for value in re.findall(r"-?\d+\.\d+", text)]


# The best constant kernel


def test_of_two_kernels_it_is_their_bisector():
    """A point and two points, scaled to norm 1: their inner product, a cosine, is 1 / sqrt 2."""
    point, two = torch.zeros(2, 1, 9, 9)
    point[0, 2, 6] = 1  # off the centre: places do not matter
    two[0, 4, 4] = two[0, 4, 7] = 0.5
    best = blind_kernels.best_constant([point, two])
    assert float(best.sum()) == pytest.approx(1)
    mean = float(torch.stack([mnc(best[None], each[None]) for each in (point, two)]).mean())
    assert mean == pytest.approx(((1 + 0.5**0.5) / 2) ** 0.5, abs=1e-6)


def test_it_is_better_than_any_of_the_kernels_and_than_what_lies_near(make_run):
    source = blind_kernels.simulation(yaml.safe_load((make_run("run") / "config.yaml").read_text()))
    true = [source.true_kernel(str(index)) for index in range(12)]
    stack = torch.stack(true)

    def score(kernel):
        return float(mnc(kernel[None], stack).mean())

    best = blind_kernels.best_constant(true)
    assert score(best) > max(map(score, true)) + 0.02
    assert score(best) > score(stack.mean(0)) + 0.005  # places matter
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        near = (best + 0.01 * best.max() * torch.rand(best.shape, generator=generator)).clamp(min=0)
        assert score(near) <= score(best) + 1e-6


# Kernels of runs


def test_where_all_kernels_are_equal_the_constant_one_is_perfect(make_run):
    ended = kernels_of(make_run("run", GAUSSIAN, found=lambda true: gaussian_kernel(17, 2.2)))
    assert (ended.code, ended.err) == (0, "")
    head, match, width, constant, gained = ended.out.splitlines()
    assert head == "blind_dps: 3 images, 1 seeds, 3 kernels, 0 failed and left out"
    expected = float(mnc(gaussian_kernel(17, 2.2)[None], gaussian_kernel(17, 2.0)[None]))
    assert numbers(match)[0] == pytest.approx(expected, abs=1e-3)
    assert numbers(match)[3] == 1
    assert "difference -0.00" in match
    assert "which excludes 0" in match
    assert numbers(width) == pytest.approx([10.0] * 4, abs=0.3)
    assert numbers(constant) == [0.0] * 4
    assert numbers(gained) == [1.0, 1.0, 1.0]


def test_the_longer_and_the_shorter_width_are_told_apart(make_run):
    """1.5 by 3 for 2 by 2: off by 50 and 25 %, and by sqrt(5.625 / 4) - 1 in the mean square."""
    ended = kernels_of(make_run("run", GAUSSIAN, found=lambda true: gaussian_kernel(25, 3.0, ratio=2.0, angle=0.4)))
    both, longer, shorter, rms = numbers(ended.out.splitlines()[2])
    assert (longer, shorter, rms) == pytest.approx((50, 25, 18.6), abs=0.5)
    assert 25 <= both <= 50


def test_seeds_are_pooled_and_failures_counted(make_run):
    def row(index, seed):
        return {"status": "failed: diverged"} if (index, seed) == (1, 1) else {}

    ended = kernels_of(*(make_run(f"run{seed}", seed=seed, row=row) for seed in (0, 1)))
    head, match, *_ = ended.out.splitlines()
    assert head == "blind_dps: 3 images, 2 seeds, 5 kernels, 1 failed and left out"
    assert numbers(match)[0] == 1
    assert numbers(match)[3] < 0.9
    assert "which excludes 0" in match


def test_a_tilt_is_compared_with_none(make_run):
    def row(index, seed):
        return {"tilt_epe": 0.5 + 0.1 * index, "tilt_epe_zero": 0.55 + 0.1 * index}

    ended = kernels_of(make_run("run", row=row))
    error = ended.out.splitlines()[-1]
    assert error.startswith("end-point error, px 0.600")
    assert "of no tilt 0.650" in error
    assert "difference -0.050 [-0.050, -0.050], which excludes 0" in error


def test_what_cannot_be_read_is_said_in_one_line(make_run, tmp_path):
    changed = make_run("changed", row=lambda index, seed: {"kernel_mnc": 0.5})
    photographs = make_run("photographs", row=lambda index, seed: {"kernel_mnc": None})
    failed = make_run("failed", row=lambda index, seed: {"status": "failed: diverged"})
    other = make_run("other", method="fast_em")
    for folders, words in [
        ([changed], "made by another version"),
        ([photographs], "without a true kernel"),
        ([failed], "failed images only"),
        ([tmp_path / "nowhere"], "summary.json"),
        ([make_run("run"), other], "one method"),
        ([other, other], "another seed"),
    ]:
        ended = kernels_of(*folders)
        assert ended.code == 2
        assert len(ended.err.splitlines()) == 1
        assert ended.err.startswith("error: ")
        assert words in ended.err


def test_kernels_are_those_that_blurred(make_run, pictures):
    """Of pictures that are there: the measurement is the true kernel's."""
    config = yaml.safe_load((make_run("run") / "config.yaml").read_text())
    source = cli.measurements({"data": config["data"] | {"input": str(pictures)}})
    for index, name in enumerate(source.ids):
        assert torch.equal(source.load(index).kernel, blind_kernels.simulation(config).true_kernel(name))


# Pairs


def gains(values):
    return lambda index, seed: {"psnr_aligned": 20.0 + values[seed][index]}


def test_a_share_of_the_gain_and_a_difference_that_excludes_none(make_run):
    ours = [make_run(f"a{seed}", seed=seed, row=gains([[1, 2, 3], [2, 3, 4]])) for seed in (0, 1)]
    theirs = [make_run(f"b{seed}", seed=seed, method="dps", row=gains([[2, 4, 6], [4, 6, 8]])) for seed in (0, 1)]
    ended = pairs_of(ours, theirs)
    assert (ended.code, ended.err) == (0, "")
    head, gained, share, *others = ended.out.splitlines()
    assert head.startswith(
        "blind_dps beside dps: 3 images, 2 seeds, 6 pairs; failed and left out: 0 and 0; on one side"
    )
    assert head.endswith("only: 0")
    assert gained.startswith("gain: 2.500 [")
    assert "difference -2.500 [-3.500, -1.500], which excludes 0" in gained  # of each image: 1.5, 2.5, 3.5
    assert share == "share of the gain: 50.0% [50.0%, 50.0%]"
    assert [line.partition(":")[0] for line in others] == ["psnr_aligned", "kernel_mnc"]


def test_the_same_numbers_differ_by_nothing(make_run):
    few, many = make_run("few"), make_run("many", steps=1000)
    ended = pairs_of([few], [many])
    assert "difference 0.000 [0.000, 0.000], which contains 0" in ended.out.splitlines()[1]
    noisy = make_run("noisy", row=gains([[0.5, 1, 1.8]]))
    assert "which contains 0" in pairs_of([noisy], [many]).out.splitlines()[1]


def test_only_what_both_have_is_compared(make_run):
    def failing(index, seed):
        return {"status": "failed: diverged"} if index == 0 else {}

    ended = pairs_of([make_run("a", row=failing)], [make_run("b", names=("a", "b", "d"), method="dps")])
    assert ended.out.splitlines()[0] == (
        "blind_dps beside dps: 1 images, 1 seeds, 1 pairs; failed and left out: 1 and 0; on one side only: 2"
    )


def test_other_measurements_are_refused(make_run):
    one = make_run("one")
    for name, row in (("b", {"psnr_measurement": 19.0}), ("c", {"psnr_measurement": None})):
        ended = pairs_of([one], [make_run(name, row=lambda index, seed, row=row: row)])
        assert ended.code == 2
        assert "the same measurements" in ended.err
    ended = pairs_of([one], [make_run("d", seed=5)])
    assert ended.code == 2
    assert "none in common" in ended.err
