"""The demo: what a run tells while it goes on, how it stops, what it leaves, and that the page builds offline."""

import asyncio
import re
import sys
import threading
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from codiffuse import demo
from codiffuse.data.images import picture_of, read_picture
from codiffuse.errors import InputError
from codiffuse.inference.live import Choices, time_note, updates
from codiffuse.inference.watch import Look, step_residual, watch
from codiffuse.inference.writers import Outcome, write_files
from codiffuse.methods.base import Measurement, StepInfo
from codiffuse.operators.blur import BlurOperator
from codiffuse.operators.noise import GaussianNoise


class Restored:
    """What the demo reads of a result: of `y` (C, H, W), with a trivial restoration."""

    sigma, seconds, residual = 0.02, 3.0, 1.0

    def __init__(self, y: torch.Tensor, samples: int = 2, status: str = "ok") -> None:
        self.status = status
        self.row = {"id": "image", "method": "fast_em", "status": status, "sigma": 0.02, "seconds": 3.0}
        self.row |= {"trust": 0.63, "flags": ["kernel_at_border"]}
        kernel, frames = torch.full((1, 5, 5), 0.04), [(y, torch.ones(1, 5, 5))] * 3
        self.outcome = Outcome("image", self.row, y, y, kernel, y.expand(samples, -1, -1, -1), frames=frames)
        self.std = None if samples == 1 else np.zeros(y.shape[1:])

    def save(self, folder: Path) -> Path:
        folder.mkdir(parents=True)
        write_files(folder, self.outcome)
        return folder


class FakeRestore:
    """Tells of `total` steps, then fails or gives a result; remembers how it was called."""

    def __init__(self, total: int = 4, error: Exception | None = None, **result) -> None:
        self.total, self.error, self.result = total, error, result
        self.settings: dict = {}
        self.image: str | np.ndarray | None = None
        self.finished = threading.Event()

    def __call__(self, image, callback, **settings):
        self.image, self.settings = image, settings
        picture = read_picture(image) if isinstance(image, str) else picture_of(image, min_side=1)
        params = {"kernel": torch.full((1, 1, 5, 5), 0.04)}
        try:
            for number in range(1, self.total + 1):
                callback(StepInfo(number, self.total, 0.5, picture.pixels[None, None], params))
            if self.error:
                raise self.error
            return Restored(picture.pixels, **self.result)
        finally:
            self.finished.set()


@pytest.fixture
def photo(tmp_path) -> Path:
    path = tmp_path / "my photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 48, 3), dtype=np.uint8)).save(path)
    return path


def run(path, restore, tmp_path, choices=None, cancelled=None, **options) -> list[dict]:
    cancelled = cancelled or threading.Event()
    return list(updates(path and str(path), choices or Choices(), restore, cancelled, tmp_path / "s", **options))


def watched(restore, size=(16, 20), cancelled=None, interval=0.0):
    image, y = np.zeros((*size, 3)), torch.zeros(3, *size)
    return watch(restore, image, y, cancelled or threading.Event(), interval=interval)


def test_every_step_is_told_and_then_the_result():
    *looks, result = watched(FakeRestore(total=5))
    assert [look.number for look in looks] == [1, 2, 3, 4, 5]
    assert all(isinstance(look, Look) and look.image.shape == (3, 16, 20) for look in looks)
    assert looks[0].kernel.shape == (1, 5, 5)
    assert isinstance(result, Restored)


def test_looks_are_rare_but_the_last_step_is_seen():
    *looks, _ = watched(FakeRestore(total=500), interval=60)
    assert [look.number for look in looks] == [1, 500]


def test_large_estimates_are_reduced_before_they_are_kept():
    look, *_ = watched(FakeRestore(total=1), size=(700, 1100))
    assert look.image.shape == (3, 326, 512)


def test_cancelling_ends_the_run_without_a_result():
    restore, cancelled, seen = FakeRestore(total=10**9), threading.Event(), []
    for look in watched(restore, cancelled=cancelled):
        seen.append(look)
        if len(seen) == 3:
            cancelled.set()
    assert restore.finished.wait(5)
    assert all(isinstance(look, Look) for look in seen)


def test_closing_the_iterator_ends_the_run():
    restore = FakeRestore(total=10**9)
    looks = watched(restore)
    next(looks)
    looks.close()
    assert restore.finished.wait(5)


def test_errors_reach_whoever_watches():
    with pytest.raises(ZeroDivisionError):
        list(watched(FakeRestore(error=ZeroDivisionError())))


def blurred(boundary: str, side: int = 24, sigma: float = 0.05) -> tuple[Measurement, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    operator, kernel = BlurOperator(boundary), torch.rand(1, 1, 5, 4, generator=generator)
    shape = operator.image_shape((side, side), kernel_size=(5, 4))
    x, kernel = torch.rand(1, 3, *shape, generator=generator), kernel / kernel.sum()
    y = operator(x, kernel=kernel)
    y = y + sigma * torch.randn(y.shape, generator=generator)
    return Measurement(y, GaussianNoise(sigma), operator), x, kernel


@pytest.mark.parametrize("boundary", ["circular", "reflect", "unknown"])
@pytest.mark.parametrize("is_part", [False, True])
def test_residual_of_the_truth_is_the_noise(boundary, is_part):
    measurement, x, kernel = blurred(boundary)
    info = StepInfo(1, 2, 0.5, x[:, None], {"kernel": kernel}, part=measurement if is_part else None)
    elsewhere = torch.zeros(3, 90, 90) if is_part else measurement.y[0]
    assert step_residual(info, elsewhere) == pytest.approx(0.05, rel=0.06)


def test_residual_is_unknown_where_nothing_fits():
    x = torch.rand(1, 1, 3, 30, 30)
    assert step_residual(StepInfo(1, 2, 0.5, x, {"kernel": torch.ones(1, 1, 5, 5)}), torch.rand(3, 90, 90)) is None


def test_residual_of_a_gray_photograph_and_a_colour_estimate():
    measurement, x, kernel = blurred("circular")
    info = StepInfo(1, 2, 0.5, x[:, None], {"kernel": kernel})
    assert step_residual(info, measurement.y[0].mean(0, keepdim=True)) == pytest.approx(0.05 / 3**0.5, rel=0.1)


def test_page_goes_from_start_to_result(photo, tmp_path):
    restore = FakeRestore()
    news = run(photo, restore, tmp_path, Choices(kernel_size=21, noise=5.1, num_samples=2))
    expected = {"method": "fast_em", "kernel_size": 21, "sigma": pytest.approx(0.02), "num_samples": 2}
    assert restore.settings == expected
    assert restore.image == str(photo)  # not an array: the numbers are those of the command line
    assert [item["running"] for item in news[:-1]] == [True] * (len(news) - 1)
    assert not news[-1]["running"]
    assert news[0]["result"] is None  # of an earlier run
    assert "Step 1 of 4" in news[1]["status"]
    assert "residual" in news[1]["status"]
    assert news[1]["estimate"].shape == (40, 48, 3)
    assert news[1]["estimate"].dtype == np.uint8


def test_result_has_words_pictures_and_files(photo, tmp_path):
    found = run(photo, FakeRestore(), tmp_path)[-1]
    assert "doubtful" in found["verdict"]
    assert "63 %" in found["verdict"]
    assert found["verdict"].count("<li>") == 1
    before, after = (read_picture(path).pixels for path in found["result"])
    torch.testing.assert_close(before, after)
    torch.testing.assert_close(read_picture(found["restored"]).pixels, read_picture(photo).pixels)
    assert np.load(found["kernel_file"]).shape == (5, 5)
    with zipfile.ZipFile(found["report"]) as archive:
        names = set(archive.namelist())
        page = archive.read("report.html").decode()
    assert {f"images/my_photo/{name}" for name in ("restored.png", "std.png", "kernel.npy", "trace.gif")} <= names
    assert 'src="images/my_photo/restored.png"' in page
    assert "num_samples" in page


def test_settings_left_out_are_left_to_restore(photo, tmp_path):
    restore = FakeRestore()
    run(photo, restore, tmp_path)
    assert restore.settings == {"method": "fast_em", "num_samples": 4}


def test_photograph_is_reduced_first(photo, tmp_path):
    restore = FakeRestore(samples=1)
    found = run(photo, restore, tmp_path, Choices(longest_side=40))[-1]
    assert restore.image.shape == (33, 40, 3)
    assert found["spread"] is None


def test_gray_photograph(tmp_path):
    path = tmp_path / "gray.png"
    Image.fromarray(np.full((80, 80), 90, np.uint8)).save(path)
    restore = FakeRestore()
    assert run(path, restore, tmp_path, Choices(longest_side=40))[-1]["result"]
    assert restore.image.shape == (40, 40)


@pytest.mark.parametrize(
    ("path", "restore", "said"),
    [
        (None, FakeRestore(), "drop one"),
        ("absent.png", FakeRestore(), "absent.png"),
        ("photo", FakeRestore(status="failed: diverged"), "failed: diverged"),
        ("photo", FakeRestore(error=InputError("Expected <this>, got that; fix it.")), "Expected &lt;this&gt;, got"),
    ],
)
def test_what_a_person_can_mend_is_said_on_the_page(path, restore, said, photo, tmp_path):
    news = run(photo if path == "photo" else path, restore, tmp_path)
    assert said in news[-1]["status"]
    assert not news[-1]["running"]


def test_a_bug_frees_the_page_and_keeps_its_traceback(photo, tmp_path):
    seen = []
    news = updates(str(photo), Choices(), FakeRestore(error=ZeroDivisionError()), threading.Event(), tmp_path / "s")
    with pytest.raises(ZeroDivisionError):
        seen.extend(news)
    assert seen[-1]["running"] is False
    assert "bug" in seen[-1]["status"]


def test_stopped_run_leaves_no_result(photo, tmp_path):
    cancelled = threading.Event()
    cancelled.set()
    news = run(photo, FakeRestore(), tmp_path, cancelled=cancelled)
    assert news[-1] == {"status": "Stopped.", "running": False}
    assert not (tmp_path / "s").exists()


def test_note_about_time(tmp_path):
    path = tmp_path / "large.png"
    Image.new("L", (4000, 3000)).save(path)
    assert "12.0 megapixels" in time_note(str(path), 4, None)
    assert "0.8 megapixels" in time_note(str(path), 4, 1024)
    assert time_note(str(path), 1, 512) == ""
    assert time_note(None, 4, None) == ""
    (tmp_path / "broken.png").write_text("no picture")
    assert time_note(str(tmp_path / "broken.png"), 4, None) == ""


def test_note_about_time_of_a_picture_that_pillow_finds_too_large(tmp_path, monkeypatch):
    path = tmp_path / "huge.png"
    Image.new("L", (4000, 3000)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000 * 3000 // 2 - 1)  # it raises at twice this
    assert "12.0 megapixels" in time_note(str(path), 4, None)
    assert Image.MAX_IMAGE_PIXELS == 4000 * 3000 // 2 - 1


def test_note_about_time_counts_the_kernel(tmp_path):
    path = tmp_path / "picture.png"
    Image.new("L", (1000, 800)).save(path)
    assert "5 min" in time_note(str(path), 1, None)  # two minutes for the kernel, 200 s for the sample


class Stages:
    """A restoration in three stages: (steps, seconds a step, samples, of a part, by tiles); keeps the clock."""

    def __init__(self, *stages: tuple[int, float, int, bool, bool]) -> None:
        self.stages, self.now = stages, 0.0

    def monotonic(self) -> float:
        return self.now

    def __call__(self, image, callback, **settings):
        total, number = sum(steps for steps, *_ in self.stages), 0
        part = Measurement(torch.zeros(1, 3, 12, 12), GaussianNoise(0.1), BlurOperator("circular"))
        params = {"kernel": torch.full((1, 1, 5, 5), 0.04)}
        for steps, seconds, samples, of_part, tile in self.stages:
            x0 = torch.zeros(1, samples, 3, *((12, 12) if of_part else (40, 48)))
            for _ in range(steps):
                number, self.now = number + 1, self.now + seconds
                callback(StepInfo(number, total, 0.5, x0, params, part if of_part else None, tile=tile))
        return Restored(torch.zeros(3, 40, 48))


def told(stages: Stages, photo, tmp_path, monkeypatch, num_samples: int) -> list[str]:
    """Per step: the time left, or what is being done."""
    monkeypatch.setattr("codiffuse.inference.watch.time", stages)
    news = run(photo, stages, tmp_path, Choices(num_samples=num_samples), interval=0.0)
    found = [
        re.search(r"Step \d+ of \d+ · (?:about )?(.*?)(?: left)? · residual", item["status"]) for item in news[1:-2]
    ]
    return [match[1] for match in found]


@pytest.mark.parametrize("by_tiles", [False, True])
def test_time_left_is_that_of_the_last_stage(photo, tmp_path, monkeypatch, by_tiles):
    # Many cheap steps on parts of the picture, a few at its resolution, then the samples.
    stages = Stages((6, 1.0, 1, True, False), (2, 4.0, 1, False, False), (4, 10.0, 2, by_tiles, by_tiles))
    said = told(stages, photo, tmp_path, monkeypatch, num_samples=2)
    assert said == ["finding the kernel"] * 8 + ["restoring the picture", "20 s", "10 s", "0 s"]


def test_time_left_of_steps_that_are_all_alike_is_told_at_once(photo, tmp_path, monkeypatch):
    stages = Stages((2, 3.0, 1, False, False), (2, 3.0, 1, False, False))
    assert told(stages, photo, tmp_path, monkeypatch, num_samples=1)[1:] == ["6 s", "3 s", "0 s"]


def test_sample_is_a_small_blurred_photograph(tmp_path):
    assert read_picture(demo.sample_photograph(tmp_path)).pixels.shape == (3, 128, 128)


def test_without_gradio_one_line_tells_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setattr("sys.argv", ["demo"])
    with pytest.raises(SystemExit, match=r"^error: .*pip install 'codiffuse\[demo\]'\.$"):
        demo.main()


def test_page_builds_and_tells_nobody(tmp_path):
    pytest.importorskip("gradio")
    page = demo.build(FakeRestore(), tmp_path)
    assert page.analytics_enabled is False
    handlers = {handler.name for handler in page.fns.values()}
    assert {"run", "cancel"} <= handlers


def test_answers_forbid_the_browser_to_load_from_elsewhere():
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-own", b"1")]})
        await send({"type": "http.response.body", "body": b"page"})

    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(demo._OwnOriginOnly(app)({"type": "http"}, None, send))
    start, body = sent
    headers = dict(start["headers"])
    assert headers[b"x-own"] == b"1"
    allowed = headers[b"content-security-policy"].decode().removeprefix("default-src ").split()
    assert set(allowed) == {"'self'", "'unsafe-inline'", "'unsafe-eval'", "data:", "blob:"}  # no host, no scheme, no *
    assert body == {"type": "http.response.body", "body": b"page"}


def test_page_is_served_to_this_machine_alone(monkeypatch):
    launched, themes = {}, {}

    class Page:
        def launch(self, **settings):
            launched.update(settings)
            return None, "http://127.0.0.1:7860", None

        def block_thread(self):
            pass

    gradio = types.SimpleNamespace(themes=types.SimpleNamespace(Default=lambda **fonts: themes.update(fonts) or themes))
    middleware = types.SimpleNamespace(Middleware=lambda kind: kind)
    for name, module in {"gradio": gradio, "starlette": gradio, "starlette.middleware": middleware}.items():
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("GRADIO_ANALYTICS_ENABLED", "GRADIO_RUN_HISTORY", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "")  # restored afterwards
    monkeypatch.setattr(demo, "build", lambda restore, folder: Page())
    monkeypatch.setattr("sys.argv", ["demo"])
    demo.main()
    assert launched["app_kwargs"] == {"middleware": [demo._OwnOriginOnly]}
    assert launched["server_name"] == "127.0.0.1"
    assert launched["share"] is False
    assert launched["theme"] is themes
    assert all(isinstance(font, str) for fonts in themes.values() if isinstance(fonts, list) for font in fonts)
    assert "font" in themes  # gradio's own come from elsewhere
    assert demo.os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
