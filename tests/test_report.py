"""The report page: complete, escaped, offline, quick."""

import json
import re
import time
from dataclasses import replace
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest
import torch

from codiffuse.inference.charts import gain_bars, residual_curve
from codiffuse.inference.diagnostics import FLAGS
from codiffuse.inference.report import write_report
from codiffuse.inference.summary import summarize
from codiffuse.inference.writers import Outcome, RunFolder

HEADER = {
    "method": "fast_em",
    "experiment": "bench/x",
    "run_id": "r1",
    "device": "cpu",
    "commit": "abc123",
    "versions": {"torch": "2.9"},
    "settings": {"seed": 7, "note": "<b>bold</b>"},
}
NASTY = "<script>alert('1')&\"x\""


def make_row(name: str, gain: float | None = 3.0, status: str = "ok", **more) -> dict:
    after = None if gain is None else 20.0 + gain
    row = {"id": name, "method": "fast_em", "sigma": 0.02, "status": status, "seconds": 1.5, "nfe": 25}
    return row | {"psnr_measurement_aligned": 20.0, "psnr_aligned": after, "kernel_mnc": 0.912, "lpips": None} | more


def make_outcome(name: str, image_size: int = 32, truth: bool = True, **row) -> Outcome:
    pixels, kernel = torch.rand(3, 32, 32), torch.rand(1, 9, 9)
    return Outcome(
        id=name,
        row=make_row(name, **row),
        y=pixels,
        image=torch.rand(3, image_size, image_size),
        kernel=kernel,
        samples=torch.rand(2, 3, 32, 32),
        truth=pixels if truth else None,
        true_kernel=kernel if truth else None,
        trace=[{"step": step, "alpha_bar": 0.5, "residual": 1 / step} for step in range(1, 30)],
        frames=[(pixels, kernel)],
    )


class Page(HTMLParser):
    """Elements of a page, checked to be closed in the order they were opened."""

    VOID = frozenset({"meta", "img", "input", "line", "rect", "polyline"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def named(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    return RunFolder(tmp_path)


def report(folder: RunFolder, ids: list[str]) -> Page:
    folder.finish(ids, HEADER)
    return Page((folder.root / "report.html").read_text())


def test_page_shows_every_image_and_its_files(folder):
    ids = ["a", "bild_ä", "with space"]
    for name in ids:
        folder.write(make_outcome(name))
    page = report(folder, ids)
    assert all(name in page.text for name in ids)
    sources = [image["src"] for image in page.named("img")]
    names = {"measurement.png", "restored.png", "truth.png", "std.png", "kernel.png", "true_kernel.png", "trace.gif"}
    assert {unquote(source) for source in sources} == {f"images/{name}/{file}" for name in ids for file in names}
    links = [link["href"] for link in page.named("a")]
    assert all((folder.root / unquote(path)).is_file() for path in [*sources, *links])
    assert all(image["alt"] for image in page.named("img"))
    assert len(page.named("svg")) == 3  # a residual curve each


def test_everything_known_is_shown_beside_its_file(folder):
    more = {
        "residual": torch.zeros(3, 32, 32),
        "restart_kernels": torch.rand(4, 9, 9),
        "restart_residuals": [1.0, 1.1, 1.2, 1.3],
        "windows": [(0, 0, 16, 16)],
        "mask": torch.eye(32)[None],
    }
    folder.write(replace(make_outcome("a"), **more))
    page = report(folder, ["a"])
    sources = {image["src"] for image in page.named("img")}
    assert {f"images/a/{name}.png" for name in ("residual", "restarts", "windows", "saturated", "std")} <= sources


def test_the_run_is_seen_without_a_click(folder):
    folder.write(make_outcome("a"))
    report(folder, ["a"])
    html = (folder.root / "report.html").read_text()
    (details,) = re.findall(r'<section class="tables">.*?</section>', html, re.DOTALL)
    assert html.count("<details") == details.count("<details")
    assert re.search(r'trace\.gif" [^>]*loading="lazy"', html)


@pytest.mark.parametrize(
    ("trust", "level", "chance"),
    [
        (1.0, "high", "99 %"),
        (0.8, "high", "80 %"),
        (0.79, "doubtful", "79 %"),
        (0.5, "doubtful", "50 %"),
        (0.49, "low", "49 %"),
        (0.001, "low", "1 %"),
    ],
)
def test_verdict_stands_above_the_pictures(folder, trust, level, chance):
    flags = ["kernel_at_border", "blur_not_uniform", "made_of_<cheese>"]
    folder.write(make_outcome("a", trust=trust, flags=flags))
    page = report(folder, ["a"])
    html = (folder.root / "report.html").read_text()
    assert f'class="verdict {level}"' in html
    assert f"Trust: {level}." in page.text
    assert chance in page.text
    assert all(FLAGS[flag] in page.text for flag in flags[:2])
    assert "made of <cheese>" in page.text
    assert html.index('class="verdict') < html.index("measurement.png")


def test_no_trust_is_high_beside_a_serious_flag(folder):
    for name, flags in (("a", ["texture_poor"]), ("b", ["saturated"])):
        folder.write(make_outcome(name, trust=0.95, flags=flags))
    page = report(folder, ["a", "b"])
    assert all(text in page.text for text in ("High trust", "1 of 2", "1 doubtful"))
    assert "compare them before you use it" in page.text


def test_nobody_judged(folder):
    folder.write(make_outcome("a"))
    folder.write(make_outcome("b", trust=None, flags=["saturated"]))
    page = report(folder, ["a", "b"])
    assert "Trust" not in page.text
    assert FLAGS["saturated"] in page.text
    assert [part["class"] for part in page.named("div") if "verdict" in part["class"]] == ["verdict"]


def test_trust_of_many_images_in_one_tile(folder):
    for name, trust in {"a": 0.9, "b": 0.95, "c": 0.6, "d": 0.1, "e": None}.items():
        folder.write(make_outcome(name, trust=trust))
    page = report(folder, list("abcde"))
    for text in ("High trust", "2 of 4", "1 doubtful", "1 low"):
        assert text in page.text
    alone = report(folder, ["a"])
    assert "90 % chance of a better picture" in alone.text


def test_large_pictures_are_embedded_small_and_linked_whole(folder):
    large = torch.zeros(3, 40, 2000)
    folder.write(replace(make_outcome("a", truth=False), y=large, image=large, samples=large.expand(2, -1, -1, -1)))
    page = report(folder, ["a"])
    sources = {image["src"]: image for image in page.named("img")}
    for name in ("measurement", "restored", "std"):
        assert f"images/a/{name}.png" not in sources
        preview = sources[f"images/a/{name}_preview.jpg"]
        assert (preview["width"], preview["height"]) == ("1600", "32")
    links = {link["href"] for link in page.named("a")}
    assert {"images/a/measurement.png", "images/a/restored.png", "images/a/std.png"} <= links
    assert "2000 x 40 px" in page.text


def test_long_times_are_told_in_minutes(folder):
    folder.write(make_outcome("a", seconds=1830.0))
    assert "30 min" in report(folder, ["a"]).text


def test_page_needs_no_network(folder):
    folder.write(make_outcome("a"))
    report(folder, ["a"])
    html = (folder.root / "report.html").read_text()
    assert not re.search(r"https?:|//\w|@import|url\(", html)


def test_texts_are_escaped(folder):
    folder.write(make_outcome(NASTY, status=f"failed: {NASTY}"))
    page = report(folder, [NASTY])
    html = (folder.root / "report.html").read_text()
    assert "<script>alert" not in html
    assert "<b>bold" not in html
    assert page.text.count(NASTY) == 2  # name and reason
    assert "<b>bold</b>" in page.text
    assert len(page.named("script")) == 1
    assert any(image["alt"].startswith(NASTY) for image in page.named("img"))


def test_failed_images_come_first_with_their_reason(folder):
    folder.write(make_outcome("fine"))
    folder.write(Outcome("unreadable", {"id": "unreadable", "status": "failed: not a picture", "sigma": None}))
    folder.write(make_outcome("away", status="failed: diverged"))
    page = report(folder, ["fine", "unreadable", "away"])
    headings = re.findall(r"<h3>(.*?)</h3>", (folder.root / "report.html").read_text())
    assert headings == ["unreadable", "away", "fine"]
    assert "not a picture" in page.text
    assert "2 of 3" in page.text


def test_numbers_and_settings(folder):
    gains = {"a": 1.0, "b": 2.0, "c": 6.0}
    for name, gain in gains.items():
        folder.write(make_outcome(name, gain=gain))
    page = report(folder, list(gains))
    for text in ("+3.00 dB", "+6.00 dB", "95 % interval +1.00 dB to +6.00 dB", "0.912", "1.5 s", "25 network calls"):
        assert text in page.text
    assert all(text in page.text for text in ("seed", "7", "commit abc123", "torch 2.9", "bench/x"))
    assert "None" not in page.text
    assert "nan" not in page.text
    assert {"psnr_aligned", "kernel_mnc"} <= {cell.get("title") for cell in page.named("th")}


def test_photographs_without_truth(folder):
    for name in ("a", "b", "c", "d"):
        folder.write(make_outcome(name, truth=False, gain=None))
    page = report(folder, ["a", "b", "c", "d"])
    assert "Gain" not in page.text
    assert "Truth" not in page.text


def test_pictures_of_different_size_stand_side_by_side(folder):
    folder.write(make_outcome("same"))
    folder.write(make_outcome("larger", image_size=40))
    page = report(folder, ["same", "larger"])
    assert [slider["aria-label"].split(":")[0] for slider in page.named("input")] == ["same"]


def test_gain_chart_appears_from_four_images(folder):
    for number, name in enumerate("abcd"):
        folder.write(make_outcome(name, gain=number - 1.5))
    assert len(report(folder, ["a", "b", "c"]).named("rect")) == 0
    page = report(folder, ["a", "b", "c", "d"])
    cards = {card["id"] for card in page.named("article")}
    bars = [link["href"] for link in page.named("a") if link["href"].startswith("#")]
    assert len(bars) == 4
    assert {bar.removeprefix("#") for bar in bars} == cards
    assert [bar["class"] for bar in page.named("rect")] == ["better", "better", "worse", "worse"]


def test_gain_bars_are_in_proportion():
    page = Page(gain_bars([("a", "image-1", -1.0), ("b", "image-2", 4.0), ("c", "image-3", 0.0)], 1.0))
    heights = [float(bar["height"]) for bar in page.named("rect")]
    assert heights[0] == pytest.approx(4 * heights[2], rel=0.01)
    assert heights[1] == 1  # still to be seen
    assert len(Page(gain_bars([("a", "image-1", 0.0)], 0.0)).named("rect")) == 1


def test_residual_curve_is_logarithmic():
    trace = [{"step": step, "residual": 10.0**-step} for step in (1, 2, 3)]
    (line,) = Page(residual_curve(trace, 0.05, "x")).named("polyline")
    points = [tuple(map(float, point.split(","))) for point in line["points"].split()]
    assert points[1][0] - points[0][0] == pytest.approx(points[2][0] - points[1][0], abs=0.2)
    assert points[1][1] - points[0][1] == pytest.approx(points[2][1] - points[1][1], abs=0.2)
    assert points[1][1] > points[0][1]


def test_residual_curve_ends_with_the_last_step():
    long = [{"step": step, "residual": 1.0 / step} for step in range(1, 1001)]
    (line,) = Page(residual_curve(long, None, "x")).named("polyline")
    points = line["points"].split()
    assert 100 < len(points) <= 201
    assert points[0].startswith("44.0,")
    assert points[-1].startswith("312.0,")
    assert points[-1] != points[-2]


def test_residual_curve_leaves_out_what_cannot_be_drawn():
    broken = [{"step": 1, "residual": 0.5}, {"step": 2, "residual": None}, {"step": 3, "residual": 0.0}]
    assert residual_curve(broken, 0.02, "x") == ""
    assert residual_curve([*broken, {"step": 4, "residual": 0.5}], None, "x") != ""
    assert residual_curve([], 0.02, "x") == ""


def test_hundred_images_take_less_than_two_seconds(folder):
    folder.write(make_outcome("0"))
    source = folder.root / "images" / "0"
    trace = json.dumps([{"step": step, "alpha_bar": 0.5, "residual": 1 / step} for step in range(1, 1001)])
    for number in range(100):
        target = folder.root / "images" / str(number)
        target.mkdir(exist_ok=True)
        for file in source.iterdir():
            (target / file.name).write_bytes(file.read_bytes())
        (target / "trace.json").write_text(trace)
    rows = [make_row(str(number), gain=number / 10) for number in range(100)]
    summary = summarize(rows, HEADER)
    start = time.process_time()
    write_report(folder.root, rows, summary, HEADER)
    assert time.process_time() - start < 2
    assert len(Page((folder.root / "report.html").read_text()).named("article")) == 100
