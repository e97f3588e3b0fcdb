"""The benchmarks of BlindDPS: that they run, and count what they say they count."""

import sys
from dataclasses import dataclass

import pytest
import torch
from PIL import Image
from toys import make_outcome, picture

from benchmarks import blind_dps_overhead, stability


@pytest.fixture
def bench(program, tmp_path):
    """Calls a benchmark with arguments, on toy priors and the data sets `toys` and `flat` of two pictures each."""
    for folder, darkest, contrast in (("toys", 0, 1), ("flat", 120, 20)):
        (tmp_path / "data" / folder).mkdir(parents=True)
        for seed in range(2):
            Image.fromarray(darkest + picture(seed, (64, 70)) // contrast).save(tmp_path / f"data/{folder}/{seed}.png")
    return lambda module, *arguments: program(lambda: sys.exit(module.main()), *arguments)


def test_every_run_is_counted_once(bench):
    ended = bench(stability, "toys", "--runs", 3, "--steps", 4, "--crop", 40)
    assert (ended.code, ended.err) == (0, "")
    assert "blind_dps, 3 runs of 4 steps at 40 px:" in ended.out
    counts = ended.out.splitlines()[-1]
    numbers = [int(word.rstrip(",")) for word in counts.split() if word.rstrip(",").isdigit()]
    assert sum(numbers) == 3
    assert numbers[-1] == 0


def test_what_diverges_is_counted_as_failed(bench):
    wild = ["method=blind_dps_official", "method.guidance.scale=1e4", "kernel_size=9"]
    ended = bench(stability, "flat", "--runs", 2, "--steps", 2, "--crop", 40, "--set", *wild)
    assert ended.code == 0
    assert "blind_dps_official, 2 runs" in ended.out
    assert "failed 2, not finite and unmarked 0" in ended.out
    assert ended.out.count("failed: ") == 2


def test_verdicts():
    assert stability.verdict(make_outcome()) == "ok"
    assert stability.verdict(make_outcome(step_factor=0.5)) == "retried with 0.5 of the step"
    assert stability.verdict(make_outcome(status="failed: diverged", step_factor=0.25)) == "failed: diverged"
    broken = make_outcome()
    broken.kernel[0, 0, 0] = torch.nan
    assert stability.verdict(broken) == stability.UNMARKED


@dataclass(frozen=True)
class Restored:
    """A restorer whose outcome of one seed is not finite, and not marked so."""

    bad: int
    seed: int = 0

    def __call__(self, samples):
        found = make_outcome()
        if self.seed == self.bad:
            found.image[0, 0, 0] = torch.inf
        yield found


@pytest.mark.parametrize(("bad", "code"), [(1, 1), (7, 0)])
def test_an_unmarked_failure_is_an_error(bench, monkeypatch, bad, code):
    monkeypatch.setattr(stability.cli, "restorer_of", lambda plain, method: Restored(bad))
    ended = bench(stability, "toys", "--runs", 3, "--crop", 40)
    assert ended.code == code
    assert ended.out.endswith(f"failed 0, not finite and unmarked {code}\n")


@pytest.mark.parametrize(("settings", "networks"), [([], 2), (["operator=turbulence"], 3)])
def test_a_step_is_compared_with_its_networks(bench, settings, networks):
    ended = bench(blind_dps_overhead, "--sides", 40, "--repeats", 1, "--set", "kernel_size=9", *settings)
    assert (ended.code, ended.err) == (0, "")
    assert f"40 px: {networks} networks" in ended.out
    assert "from 256 px on holds" in ended.out


def test_a_missed_bound_is_told(bench, monkeypatch):
    monkeypatch.setattr(blind_dps_overhead, "BOUND_SIDE", 40)
    monkeypatch.setattr(blind_dps_overhead, "MAX_OVERHEAD", -1)
    ended = bench(blind_dps_overhead, "--sides", 40, "--repeats", 1, "--set", "kernel_size=9")
    assert ended.code == 1
    assert "is missed" in ended.out


@pytest.mark.parametrize("module", [stability, blind_dps_overhead])
def test_what_cannot_be_done_is_said_in_one_line(bench, module):
    given = ["toys"] if module is stability else []
    ended = bench(module, *given, "--set", "prior.kernel.name=nowhere")
    assert ended.code == 2
    assert ended.err.startswith("error: ")
    assert "nowhere" in ended.err
