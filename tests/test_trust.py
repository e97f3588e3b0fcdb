"""The fit of the trust, on constructed runs."""

import json

import pytest
import torch

from benchmarks import trust as bench
from codiffuse.inference.diagnostics import trust


def write_runs(folder, count=60, slope=2.0, seed=0):
    """Rows whose gain follows one feature, with noise, and not the other; three seeds a picture."""
    generator = torch.Generator().manual_seed(seed)
    useful, useless, noise = torch.randn(3, count, generator=generator).tolist()
    folder.mkdir(parents=True)
    with open(folder / "results.jsonl", "w") as file:
        for number in range(count):
            row = {"id": f"p{number // 3}", "status": "ok", "psnr_measurement_aligned": 20.0, "trust": 0.5}
            row |= {"psnr_aligned": 20.5 + slope * useful[number] + noise[number]}
            row |= {"feature_useful": useful[number], "feature_useless": useless[number]}
            row |= {"feature_rare": None if number % 2 else 1.0 + number}
            file.write(json.dumps(row) + "\n")
        file.write(json.dumps(row | {"id": "x", "status": "failed: diverged"}) + "\n")
        file.write(json.dumps(row | {"id": "sharp", "trust": None}) + "\n")
        file.write(json.dumps({"id": "photo", "status": "ok", "psnr_aligned": None, "feature_useful": 0.0}) + "\n")


def test_auroc_is_the_chance_of_the_right_order():
    bad = torch.tensor([True, True, False, False])
    assert bench.auroc(torch.tensor([-1000.0, -2000.0, -3000.0, -4000.0]), bad) == 1
    assert bench.auroc(torch.tensor([1.0, 3.0, 2.0, 1.0]), bad) == pytest.approx((0 + 0.5 + 1 + 1) / 4)


def test_the_fit_finds_what_decides_and_reads_runs_below_a_folder(tmp_path):
    write_runs(tmp_path / "a" / "seed0")
    runs = bench.read_runs([tmp_path])
    assert len(runs) == 60
    single = bench.single_aurocs(runs, torch.tensor([run.gain < 0 for run in runs]))
    assert single["useful"] < 0.15
    assert 0.3 < single["useless"] < 0.7
    bias, terms = bench.fit(runs, ["useful", "useless", "rare"])
    assert terms["useful"].weight > 1.5 > 2 * abs(terms["useless"].weight)
    assert terms["rare"].mean == pytest.approx(sum(range(1, 60, 2)) / 30)
    assert bias > 0


def test_a_fit_promises_what_it_keeps(tmp_path):
    """Where the gain is linear in a feature, with normal noise, the mean trust is the share of good runs."""
    write_runs(tmp_path / "a", count=900, slope=1.0)
    runs = bench.read_runs([tmp_path])
    bias, terms = bench.fit(runs, ["useful"])
    promised = sum(trust(run.features, bias, terms) for run in runs) / len(runs)
    assert promised == pytest.approx(sum(run.gain >= 0 for run in runs) / len(runs), abs=0.03)


def test_cross_validation_never_sees_the_picture_it_judges(tmp_path):
    write_runs(tmp_path / "a")
    runs = bench.read_runs([tmp_path])
    lied = [bench.Run(run.id, -run.gain if run.id == "p3" else run.gain, run.features, run.predictors) for run in runs]
    honest, other = bench.cross_validated(runs, ["useful"]), bench.cross_validated(lied, ["useful"])
    own = torch.tensor([run.id == "p3" for run in runs])
    torch.testing.assert_close(honest[own], other[own], rtol=0, atol=0)
    assert not torch.allclose(honest[~own], other[~own])


@pytest.mark.parametrize("options", [(), ("--fit", "useful,useless")])
def test_the_command_prints_a_report(tmp_path, monkeypatch, capsys, options):
    write_runs(tmp_path / "a")
    monkeypatch.setattr("sys.argv", ["trust", str(tmp_path), *options])
    assert bench.main() == 0
    printed = capsys.readouterr().out
    assert "60 runs of 20 pictures" in printed
    assert ("TRUST_BIAS" in printed) == bool(options)


def test_the_command_says_what_it_lacks(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["trust", str(tmp_path)])
    assert bench.main() == 2
    assert "got 0" in capsys.readouterr().err
