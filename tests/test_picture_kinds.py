"""Every kind of picture file through the whole program: its pixels arrive, or one line says why not."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from programs import QUICK, Ended, once, run
from test_images import deep_png, png_chunk
from toys import noisy_copy, picture

import codiffuse
from codiffuse import cli
from codiffuse.data.images import picture_of, read_picture
from codiffuse.errors import InputError
from codiffuse.methods.fast_em import FastEM

COLOUR, GRAY = picture(0), picture(1, channels=1)
UNIT, UNIT_GRAY = COLOUR / 255, GRAY / 255
LEVEL = 0.51 / 255  # what is written down is rounded to 8 bits
JPEG = 0.06


@dataclass(frozen=True)
class Kind:
    """A file and what becomes of it.

    Attributes:
        write: makes the file.
        expected: `(H, W, 3)` or `(H, W)` in [0, 1].
        note: what the log says about it.
        tolerance: largest difference of a pixel.
    """

    write: Callable[[Path], object]
    expected: np.ndarray
    note: str = ""
    tolerance: float = LEVEL


def saved(array: np.ndarray, mode: str | None = None, **options: object) -> Callable[[Path], object]:
    """Writes an array by Pillow."""
    return lambda path: Image.fromarray(array, mode=mode).save(path, **options)


def tiff(array: np.ndarray, **options: object) -> Callable[[Path], object]:
    """Writes an array by tifffile."""
    return lambda path: tifffile.imwrite(path, array, **options)


def npy(array: np.ndarray) -> Callable[[Path], object]:
    return lambda path: np.save(path, array)


def palette(path: Path, **options: object) -> None:
    image = Image.fromarray(INDEX, mode="P")
    image.putpalette(COLOURS.tobytes())
    image.save(path, **options)


def animation(path: Path) -> None:
    frames = [Image.fromarray(INDEX, mode="P"), Image.fromarray(2 - INDEX, mode="P")]
    for frame in frames:
        frame.putpalette(COLOURS.tobytes())
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=50)


def damaged_tag(path: Path) -> None:
    """A picture that Pillow does not know, with a resolution that makes no sense."""
    tifffile.imwrite(path, UNIT.astype(np.float32), photometric="rgb")
    with tifffile.TiffFile(path) as file:
        place = file.pages.first.tags["XResolution"].offset + 2  # where the type of its value stands
    content = bytearray(path.read_bytes())
    content[place : place + 2] = b"\xff\x63"
    path.write_bytes(content)


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[274] = orientation
    return tags


def over_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return alpha * colours + 1 - alpha


def exposed(light: np.ndarray) -> np.ndarray:
    """By the documentation: the 99.9th percentile becomes white, and what is brighter too."""
    return np.minimum(light / np.quantile(light, 0.999), 1)


INDEX = (GRAY // 86).astype(np.uint8)  # 0, 1, 2
COLOURS = np.array([[255, 0, 0], [0, 128, 0], [10, 20, 230]], np.uint8)
ALPHA = np.where(GRAY > 127, 255, 51).astype(np.uint8)
HOLED = np.where(INDEX[..., None] == 1, 255, COLOURS[INDEX]) / 255
SMALL, LONG = picture(2, (33, 47)), picture(3, (64, 1000))
LIGHT = (8 * UNIT**3).astype(np.float32)  # linear light of high dynamic range
SPARKS = UNIT_GRAY.astype(np.float32)  # within [0, 1] but for one light
SPARKS[20, 20] = 9

KINDS = {
    "small.png": Kind(saved(SMALL), SMALL / 255),
    "long.png": Kind(saved(LONG), LONG / 255),
    "gray.png": Kind(saved(GRAY), UNIT_GRAY),
    "photo.jpg": Kind(saved(COLOUR, quality=95, subsampling=0), UNIT, tolerance=JPEG),
    "rotated.jpg": Kind(
        saved(np.ascontiguousarray(np.rot90(COLOUR)), quality=95, subsampling=0, exif=exif(6)),
        UNIT,
        "EXIF orientation 6 applied",
        JPEG,
    ),
    "cmyk.jpg": Kind(
        lambda path: Image.fromarray(COLOUR).convert("CMYK").save(path, quality=95), UNIT, "CMYK converted", JPEG
    ),
    "gray_deep.png": Kind(saved(GRAY.astype(np.uint16) * 257), UNIT_GRAY, "16 bit"),
    "gray16.tif": Kind(saved(GRAY.astype(np.uint16) * 257), UNIT_GRAY, "16 bit"),
    "colour16.tif": Kind(tiff(COLOUR.astype(np.uint16) * 257, photometric="rgb"), UNIT, "16 bit"),
    "white_is_zero16.tif": Kind(
        tiff(65535 - GRAY.astype(np.uint16) * 257, photometric="miniswhite"), UNIT_GRAY, "16 bit"
    ),
    "white_is_zero8.tif": Kind(tiff(255 - GRAY, photometric="miniswhite"), UNIT_GRAY),
    "float_gray.tif": Kind(saved(UNIT_GRAY.astype(np.float32)), UNIT_GRAY),
    "float_colour.tif": Kind(tiff(UNIT.astype(np.float32), photometric="rgb", compression="zlib"), UNIT),
    "float_planes.tif": Kind(
        tiff(UNIT.astype(np.float32).transpose(2, 0, 1).copy(), photometric="rgb", planarconfig="separate"), UNIT
    ),
    "damaged_tag.tif": Kind(damaged_tag, UNIT),
    "half_alpha.tif": Kind(
        tiff(
            np.dstack([UNIT, ALPHA / 255]).astype(np.float16),
            photometric="rgb",
            extrasamples=["unassalpha"],
            extratags=[(274, 3, 1, 3, True)],
        ),
        over_white(UNIT, ALPHA[..., None] / 255)[::-1, ::-1],
        "alpha composited over white",
        2 * LEVEL,
    ),
    "pages.tif": Kind(tiff(np.stack([UNIT_GRAY, 1 - UNIT_GRAY]).astype(np.float64)), UNIT_GRAY, "first of 2 frames"),
    "light.tif": Kind(tiff(LIGHT, photometric="rgb"), exposed(LIGHT), "divided by"),
    "array.npy": Kind(npy(LIGHT), exposed(LIGHT), "float values up to 8: divided by"),
    "sparks.npy": Kind(npy(SPARKS), SPARKS.clip(max=1), "divided by 1,"),
    "noisy.npy": Kind(npy(UNIT * 1.2 - 0.1), (UNIT * 1.2 - 0.1).clip(0, 1)),  # not clipped before it is written down
    "bilevel.png": Kind(saved(GRAY > 127), GRAY > 127, "1 bit"),
    "gray_alpha.png": Kind(
        saved(np.dstack([GRAY, ALPHA]), "LA"), over_white(UNIT_GRAY, ALPHA / 255), "alpha composited over white"
    ),
    "colour_alpha.png": Kind(
        saved(np.dstack([COLOUR, ALPHA]), "RGBA"),
        over_white(UNIT, ALPHA[..., None] / 255),
        "alpha composited over white",
    ),
    "palette.png": Kind(palette, COLOURS[INDEX] / 255, "palette expanded"),
    "holed_palette.png": Kind(lambda path: palette(path, transparency=1), HOLED, "alpha composited over white"),
    "animated.gif": Kind(animation, COLOURS[INDEX] / 255, "first of 2 frames"),
}


def truncated(path: Path) -> None:
    file = io.BytesIO()
    Image.fromarray(COLOUR).save(file, "JPEG", quality=95)
    path.write_bytes(file.getvalue()[: len(file.getvalue()) // 2])


def truncated_tiff(path: Path) -> None:
    tifffile.imwrite(path, UNIT.astype(np.float32), photometric="rgb", compression="zlib")
    path.write_bytes(path.read_bytes()[:-200])


REFUSED = {
    "truncated.jpg": (truncated, ["cannot be decoded", "get it again"]),
    "truncated_float.tif": (truncated_tiff, ["cannot be decoded", "get it again"]),
    "empty.png": (Path.touch, ["empty file"]),
    "text.png": (lambda path: path.write_text("no picture\n"), ["cannot be decoded", "convert it to PNG"]),
    "radiance.hdr": (lambda path: path.write_bytes(b"#?RADIANCE\n\n-Y 40 +X 48\n"), ["cannot be decoded", "TIFF"]),
    "scene.exr": (lambda path: path.write_bytes(b"\x76\x2f\x31\x01\x02\0\0\0"), ["cannot be decoded", "TIFF"]),
    "signed.tif": (tiff(GRAY.astype(np.int16)), ["int16", "uint16"]),
    "labels.tif": (tiff(GRAY.astype(np.uint32)), ["uint32", "uint16"]),
    "levels.npy": (npy(GRAY.astype(np.float32)), ["white at 1", "0 to 255", "divide"]),
    "unseen.png": (saved(np.dstack([COLOUR, 0 * ALPHA]), "RGBA"), ["transparent", "opaque"]),
    "planes16.tif": (
        tiff(COLOUR.astype(np.uint16).transpose(2, 0, 1).copy(), photometric="rgb", planarconfig="separate"),
        ["interleaved", "separate planes"],
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where all these files are."""
    folder = tmp_path_factory.mktemp("kinds")
    for name, kind in KINDS.items():
        kind.write(folder / name)
    for name, (write, _) in REFUSED.items():
        write(folder / name)
    return folder


@pytest.fixture(scope="module")
def ended(folder, tiny_zoo) -> Ended:
    """One run of the program over them."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        monkeypatch.setenv("CODIFFUSE_ZOO", str(tiny_zoo))
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
        monkeypatch.setattr(FastEM, "__call__", noisy_copy)
        settings = ["saturation=null", "animate=false", "hydra.run.dir=run"]
        names = f"input=[{','.join([*KINDS, *REFUSED])}]"
        ended = run(cli.infer, *QUICK, *once(()), *settings, names)
    assert "Traceback" not in ended.out + ended.err
    return ended


@pytest.mark.parametrize("name", KINDS)
def test_pixels_arrive(ended, folder, name):
    kind, stem = KINDS[name], Path(name).stem
    measurement = np.asarray(Image.open(folder / f"run/images/{stem}/measurement.png")) / 255
    assert measurement.shape == kind.expected.shape
    assert np.abs(measurement - kind.expected).max() <= kind.tolerance
    restored = Image.open(folder / f"run/images/{stem}/restored.png")
    assert np.asarray(restored).shape == kind.expected.shape
    lines = [line for line in ended.out.splitlines() if f" {stem}: " in line]
    assert bool(lines) == bool(kind.note), lines
    assert kind.note in "".join(lines)


@pytest.mark.parametrize("name", REFUSED)
def test_one_line_says_why_not(ended, folder, name):
    words = REFUSED[name][1]
    [line] = [line for line in ended.err.splitlines() if name in line]
    assert line.startswith(f"error: {Path(name).stem} failed: {name}: expected")
    assert all(word in line for word in words), line
    with pytest.raises(InputError) as caught:
        read_picture(folder / name)
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words)


def test_the_program_says_nothing_else(ended):
    assert len(ended.err.splitlines()) == len(REFUSED)
    assert f"{len(KINDS)} of {len(KINDS) + len(REFUSED)} images restored" in ended.out
    assert "tifffile" not in ended.out


def test_light_is_exposed_and_noise_is_kept():
    bright = (1.9 * UNIT_GRAY).astype(np.float32)  # too much of it lies above 1 to be noise
    noisy = np.ones((100, 100), np.float32)
    noisy[0, :9] = 1.9  # what noise may do to white
    for array, expected in [(LIGHT, exposed(LIGHT)), (bright, exposed(bright)), (SPARKS, SPARKS.clip(max=1))]:
        picture = picture_of(array)
        assert np.allclose(picture.pixels.movedim(0, -1).squeeze(-1).numpy(), expected, atol=1e-6)
        assert "made white" in picture.notes[0]
    for array in (noisy, (UNIT * 1.2 - 0.1).astype(np.float32)):
        picture = picture_of(array)
        assert np.array_equal(picture.pixels.movedim(0, -1).squeeze(-1).numpy(), array)
        assert picture.notes == ()


def test_a_transparent_colour_of_16_bits_is_compared_with_all_of_them(tmp_path):
    deep = COLOUR.astype(np.uint16) * 257
    deep[3, 4] = deep[3, 5] = 0x1234
    deep[3, 5, 2] += 1  # the same high bytes, so that only 16 bits tell it from the transparent colour
    deep[3, 6] = 0x3412  # what its bytes make the other way round
    content = deep_png(deep)
    (tmp_path / "key.png").write_bytes(content[:33] + png_chunk(b"tRNS", 3 * b"\x12\x34") + content[33:])
    found = read_picture(tmp_path / "key.png")
    expected = deep / 65535
    expected[3, 4] = 1
    assert np.abs(found.pixels.movedim(0, -1).numpy() - expected).max() < 1e-6
    assert found.notes == ("16 bit", "alpha composited over white")


@pytest.mark.filterwarnings("ignore:the matrix subclass")
def test_subclasses_of_arrays_are_arrays():
    expected = picture_of(GRAY).pixels
    for array in (np.ma.array(GRAY), np.ma.array(GRAY[..., None]), np.matrix(GRAY), np.matrix(UNIT_GRAY)):
        pixels = picture_of(array).pixels
        assert pixels.dtype == torch.float32
        assert type(pixels.numpy()) is np.ndarray
        assert np.allclose(pixels, expected, atol=1e-6)
    with pytest.raises(InputError, match="masked array; fill"):
        picture_of(np.ma.array(GRAY, mask=GRAY > 200))


@pytest.mark.parametrize("pixels", [SMALL, SMALL[..., 0], LONG], ids=["33 x 47", "33 x 47 gray", "64 x 1000"])
def test_a_kernel_as_large_as_the_picture(use_tiny_zoo, pixels):
    steps = ["method.process.num_steps=1", "pipeline.finish.non_blind.process.num_steps=1"]
    sizes = {"kernel_size": 33, "num_samples": 1, "boundary": "unknown"}
    restored = codiffuse.restore(pixels, "fast_em_once", **sizes, overrides=steps)
    assert restored.status == "ok"
    assert restored.image.shape == pixels.shape
    assert restored.kernel.shape == (33, 33)
