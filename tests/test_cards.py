"""The card of an image: what a row tells about its restarts, its diagnostics and its file, and how that is shown."""

import dataclasses
import re

import pytest
import torch
from PIL import Image
from toys import blurred_toy, picture

from codiffuse.data.measurements import Sample
from codiffuse.inference.cards import card, is_feature, label
from codiffuse.inference.diagnostics import diagnose
from codiffuse.inference.report import write_report
from codiffuse.inference.restorer import Restorer
from codiffuse.inference.scoring import Scorer
from codiffuse.inference.summary import summarize
from codiffuse.inference.writers import RunFolder
from codiffuse.methods.base import Restarts, restoration
from codiffuse.methods.coarse import downsampled

ROW = {"id": "a", "method": "fast_em", "status": "ok", "sigma": 0.02, "seconds": 3.0, "nfe": 252}
FEATURES = {"feature_residual_ratio": 1.03, "feature_sparsity_before": 0.6947}


class Kept:
    """A blind method that keeps the true kernel; its runs ended there, elsewhere, and nowhere."""

    needs = ()

    def supports(self, operator):
        return None

    def __call__(self, measurement, *, noise, init=None, callback=None):
        kernel = measurement.known["kernel"]
        good = downsampled(kernel, 2)
        kernels = torch.cat([good, good.mT, good * torch.nan], 1)
        found = restoration(measurement, measurement.y[:, None], {"kernel": kernel}, 1)
        return dataclasses.replace(found, restarts=Restarts(kernels, torch.tensor([[0.5, 0.4, torch.inf]]), factor=2))


@pytest.fixture
def outcome():
    """Of a picture whose file needed care."""
    toy = blurred_toy()
    sample = Sample(
        "a", toy.y[0], 0.02, kernel=toy.known["kernel"][0], notes=("first of 3 frames", "alpha <over> white")
    )
    restorer = Restorer(Kept(), "fast_em", toy.operator, Scorer(toy.operator))
    restorer._measurement = lambda batch: toy  # a blind method is not told the kernel
    [found] = restorer([sample])
    return found


def test_restarts_are_compared_with_the_kept_kernel_at_their_resolution(outcome):
    same, turned, failed = outcome.row["restart_matches"]
    assert same == 1
    assert 0.3 < turned < 0.9
    assert failed is None


def test_each_restart_has_its_match_in_words(outcome, tmp_path):
    RunFolder(tmp_path).write(outcome)
    html = card(tmp_path, outcome.row | {"restart_matches": [1.0, 0.824, None]}, "image-1")
    figure = re.search(r'<figure class="restarts".*?</figure>', html, re.DOTALL)[0]
    assert re.findall("<li>(.*?)</li>", figure) == ["match 1.00", "match .82", ""]
    assert "--columns: 3" in figure
    assert "what they agree on was refined" in figure
    assert "noise level" not in figure  # at a lower resolution a residual of 1 is not
    without = card(tmp_path, outcome.row | {"restart_matches": None}, "image-1")  # of an older run
    assert "restarts.png" in without
    assert "<li>" not in re.search(r'<figure class="restarts".*?</figure>', without, re.DOTALL)[0]


def test_what_reading_did_is_in_the_row_and_on_the_card(outcome, tmp_path):
    assert outcome.row["notes"] == ["first of 3 frames", "alpha <over> white"]
    assert "On reading: first of 3 frames; alpha &lt;over&gt; white" in card(tmp_path, outcome.row, "image-1")
    assert "On reading" not in card(tmp_path, ROW | {"notes": []}, "image-1")


def test_an_image_that_failed_keeps_its_notes(outcome):
    restorer = Restorer(Kept(), "fast_em", blurred_toy().operator, Scorer(blurred_toy().operator))
    sample = Sample("a", torch.rand(3, 8, 8), 0.02, notes=("1 bit",))
    assert restorer.failed("a", "why", sample).row["notes"] == ["1 bit"]
    assert restorer.failed("a", "why").row["notes"] == []


def test_pictures_may_be_larger_than_pillow_likes(outcome, tmp_path, monkeypatch):
    RunFolder(tmp_path).write(outcome)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert "32 x 32 px" in card(tmp_path, outcome.row, "image-1")


@pytest.mark.parametrize(("trust", "shown"), [(0.9997, "99 %"), (0.634, "63 %"), (0.001, "1 %")])
def test_trust_is_never_certain(tmp_path, trust, shown):
    html = card(tmp_path, ROW | {"trust": trust}, "image-1")
    assert f"<td>{shown}</td>" in html
    assert f"estimated chance {shown}" in html


def test_network_calls_are_whole(tmp_path):
    rows = [ROW | {"nfe": nfe} for nfe in (175.6, 176.1)]
    write_report(tmp_path, rows, summarize(rows, {}), {})
    html = (tmp_path / "report.html").read_text()
    assert "176 network calls" in html
    assert html.count("<td>176</td>") == 2


def test_uncertainty_is_called_what_it_is(tmp_path):
    (tmp_path / "images/a").mkdir(parents=True)
    Image.new("L", (4, 4)).save(tmp_path / "images/a/std.png")
    html = card(tmp_path, ROW, "image-1")
    assert "standard deviation of the truth" in html
    assert "samples disagree" not in html


@pytest.mark.parametrize(
    ("judged", "caption"),
    [({"flags": ["sharp"], "trust": None}, "No blur was assumed"), ({"flags": [], "trust": 0.9}, "Estimated kernel")],
)
def test_the_kernel_of_a_sharp_picture_is_no_estimate(outcome, tmp_path, judged, caption):
    RunFolder(tmp_path).write(outcome)
    html = card(tmp_path, outcome.row | judged, "image-1")
    kernel = re.search(r"<figcaption>((?:No blur|Estimated).*?)</figcaption>", html)[1]
    assert kernel == caption
    assert ("Trust:" in html) == (judged["trust"] is not None)


def test_diagnostics_are_folded_and_have_plain_labels(tmp_path):
    html = card(tmp_path, ROW | FEATURES, "image-1")
    (folded,) = re.findall(r"<details>.*?</details>", html)
    assert all(label(name) in folded and label(name) not in html.replace(folded, "") for name in FEATURES)
    assert "0.695" in folded
    assert "Network calls" not in folded
    assert "<details" not in card(tmp_path, ROW, "image-1")


def test_diagnostics_have_a_mean_table_of_their_own(tmp_path):
    rows = [ROW | FEATURES]
    write_report(tmp_path, rows, summarize(rows, {}), {})
    html = (tmp_path / "report.html").read_text()
    tables = dict(re.findall(r'<details class="table"><summary>(.*?)</summary>(.*?)</details>', html))
    assert "feature_" in tables["Diagnostics: mean over the images"]
    assert not any("feature_" in table for name, table in tables.items() if not name.startswith("Diagnostics"))


def test_every_diagnostic_has_a_label(outcome):
    toy = blurred_toy()
    kernel, kernels = toy.known["kernel"][0], torch.rand(2, 7, 7)
    restarts = Restarts(kernels, torch.ones(2))
    found = diagnose(toy.y[0], toy.y[0], kernel, 0.02, toy.operator, restarts=restarts, window_kernels=kernels)
    columns = [f"feature_{name}" for name in found.features] + [name for name in outcome.row if is_feature(name)]
    assert len(columns) > 20
    assert [name for name in columns if label(name).startswith("feature")] == []


def test_report_of_a_run_tells_its_operator_and_what_reading_did(infer, tmp_path):
    pixels = Image.fromarray(picture(0))
    pixels.putalpha(200)
    pixels.save(tmp_path / "a.png")
    ended = infer("input=a.png", "operator=linear_light", "sigma=5/255", "animate=false")
    assert ended.code == 0, ended.err
    page = (ended.folder / "report.html").read_text()
    settings = dict(re.findall(r'<th scope="row" title="(\w+)">\1</th><td>(.*?)</td>', page))
    chosen = {"method": "fast_em_once", "operator": "linear_light", "pipeline": "null", "data": "files"}
    assert settings.items() >= chosen.items()
    assert ended.rows()[0]["notes"]
    assert ended.rows()[0]["notes"][0] in page
