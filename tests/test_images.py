"""Reading any picture, refusing every damaged one in one line, and writing PNG files whole or not at all."""

import io
import struct
import warnings
import zlib

import numpy as np
import PIL
import pytest
import torch
from PIL import Image

from codiffuse.data.images import MAX_PIXELS, Picture, read_picture
from codiffuse.errors import InputError

HEIGHT, WIDTH = 40, 50
ORIENTATION = 274


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def rgb(rng):
    return rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.fixture
def smooth():
    """A picture that survives JPEG: every corner differs."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    return np.stack([rows * 6, columns * 5, 255 - rows * 6], 2).astype(np.uint8)


def unit(array: np.ndarray) -> torch.Tensor:
    """(H, W, C) or (H, W) integers -> (C, H, W) in [0, 1], by the definition."""
    array = np.atleast_3d(array)
    return torch.from_numpy((array.astype(np.float64) / np.iinfo(array.dtype).max).transpose(2, 0, 1)).float()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_bytes(width: int, height: int, bits: int, colour_type: int, rows: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    chunks = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def deep_png(array: np.ndarray) -> bytes:
    """16-bit PNG of (H, W, C) uint16; Pillow writes none in colour."""
    height, width, channels = array.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)  # filter type 0 starts each row
    return png_bytes(width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], rows)


def deep_tiff(array, byteorder="<", compression="none", orientation=1, planes=1) -> bytes:
    """16-bit RGB TIFF of (H, W, 3) uint16 in one strip."""
    height, width, _ = array.shape
    pack = {"none": bytes, "deflate": zlib.compress, "lzw": lzw_literals}[compression]
    strip = pack(array.astype(f"{byteorder}u2").tobytes())
    code = {"none": 1, "deflate": 8, "lzw": 5}[compression]
    depths = 8 + 2 + 12 * 11 + 4  # where the three bit depths lie, behind the 11 tags; the strip follows them
    tags = {256: width, 257: height, 258: depths, 259: code, 262: 2, 273: depths + 6, 274: orientation, 277: 3}
    tags |= {278: height, 279: len(strip), 284: planes}
    head = {"<": b"II", ">": b"MM"}[byteorder] + struct.pack(f"{byteorder}HIH", 42, 8, len(tags))
    for tag, value in tags.items():
        head += struct.pack(f"{byteorder}HHII", tag, *((3, 3) if tag == 258 else (4, 1)), value)
    return head + bytes(4) + struct.pack(f"{byteorder}3H", 16, 16, 16) + strip


def lzw_literals(data: bytes) -> bytes:
    """LZW that never compresses: the table is cleared before its codes outgrow 9 bits."""
    codes = [code for start in range(0, len(data), 200) for code in (256, *data[start : start + 200])] + [257]
    bits = "".join(f"{code:09b}" for code in codes)
    return int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")


def refused(path, *words: str, **options) -> None:
    with pytest.raises(InputError) as caught:
        read_picture(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in (str(path), "expected", *words)), message


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp", ".ppm", ".PNG"])
def test_lossless_colour_and_gray_are_read_exactly(tmp_path, rgb, suffix):
    Image.fromarray(rgb).save(tmp_path / f"a{suffix}")
    picture = read_picture(tmp_path / f"a{suffix}")
    assert picture.pixels.dtype == torch.float32
    assert picture.pixels.is_contiguous()
    assert picture.notes == ()
    torch.testing.assert_close(picture.pixels, unit(rgb))

    Image.fromarray(rgb[..., 0]).save(tmp_path / f"gray{suffix}")
    torch.testing.assert_close(read_picture(tmp_path / f"gray{suffix}").pixels, unit(rgb[..., 0]))


def test_jpeg_and_webp_are_close_to_what_was_saved(tmp_path, smooth):
    for name in ("a.jpg", "a.webp"):
        Image.fromarray(smooth).save(tmp_path / name, quality=95)
        assert (read_picture(tmp_path / name).pixels - unit(smooth)).abs().mean() < 0.02


def test_the_content_decides_the_format_and_names_may_be_unicode(tmp_path, rgb):
    path = tmp_path / "Фото été 写真.jpg"
    Image.fromarray(rgb).save(path, format="PNG")
    torch.testing.assert_close(read_picture(str(path)).pixels, unit(rgb))


def test_16_bit_gray_keeps_its_16_bits(tmp_path, rng):
    gray = rng.integers(0, 65536, (HEIGHT, WIDTH), dtype=np.uint16)
    (tmp_path / "a.png").write_bytes(deep_png(gray[..., None]))
    Image.fromarray(gray).save(tmp_path / "a.tif")
    (tmp_path / "a.pgm").write_bytes(b"P5 %d %d 65535\n" % (WIDTH, HEIGHT) + gray.astype(">u2").tobytes())
    for name in ("a.png", "a.tif", "a.pgm"):
        picture = read_picture(tmp_path / name)
        torch.testing.assert_close(picture.pixels, unit(gray), rtol=0, atol=1e-7)
        assert picture.notes == ("16 bit",)


@pytest.mark.parametrize("channels", [3, 4])
def test_16_bit_colour_png_keeps_its_16_bits(tmp_path, rng, channels):
    values = rng.integers(0, 65536, (HEIGHT, WIDTH, channels), dtype=np.uint16)
    (tmp_path / "a.png").write_bytes(deep_png(values))
    colour, alpha = unit(values)[:3], unit(values)[3:] if channels == 4 else 1
    picture = read_picture(tmp_path / "a.png")
    torch.testing.assert_close(picture.pixels, colour * alpha + 1 - alpha, rtol=0, atol=2e-7)
    assert picture.notes == ("16 bit", "alpha composited over white")[: channels - 2]


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("compression", ["none", "deflate", "lzw"])
def test_16_bit_colour_tiff_keeps_its_16_bits(tmp_path, rng, byteorder, compression):
    rgb16 = rng.integers(0, 65536, (HEIGHT, WIDTH, 3), dtype=np.uint16)
    (tmp_path / "a.tif").write_bytes(deep_tiff(rgb16, byteorder, compression, orientation=6))
    picture = read_picture(tmp_path / "a.tif")
    torch.testing.assert_close(picture.pixels, unit(np.rot90(rgb16, -1)), rtol=0, atol=1e-7)
    assert picture.notes == ("EXIF orientation 6 applied", "16 bit")


def test_16_bit_colour_tiff_in_tiles_keeps_its_16_bits(tmp_path, rng):
    import tifffile

    rgb16 = rng.integers(0, 65536, (HEIGHT, WIDTH, 3), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", rgb16, photometric="rgb", tile=(32, 16))  # neither divides the picture
    torch.testing.assert_close(read_picture(tmp_path / "a.tif").pixels, unit(rgb16), rtol=0, atol=1e-7)


def test_16_bit_tiff_in_separate_planes_is_refused(tmp_path, rgb):
    (tmp_path / "a.tif").write_bytes(deep_tiff(rgb.astype(np.uint16) * 257, planes=2))
    refused(tmp_path / "a.tif", "interleaved", "separate planes")


def test_of_16_bits_gray_with_alpha_8_are_read_and_the_note_says_so(tmp_path, rng):
    values = rng.integers(0, 65536, (HEIGHT, WIDTH, 2), dtype=np.uint16)
    values[..., 1] = 65535
    (tmp_path / "a.png").write_bytes(deep_png(values))
    picture = read_picture(tmp_path / "a.png")
    torch.testing.assert_close(picture.pixels, unit(values)[:1].expand(3, -1, -1), rtol=0, atol=1 / 255)
    assert picture.notes == ("8 of 16 bits read",)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_the_picture_upright(tmp_path, smooth, suffix, orientation):
    # What the camera stores when the upright scene is seen under each orientation, by the EXIF standard's words:
    # where the 0th row and the 0th column of the file belong in the scene.
    stored = {
        1: smooth,  # top, left
        2: smooth[:, ::-1],  # top, right
        3: smooth[::-1, ::-1],  # bottom, right
        4: smooth[::-1],  # bottom, left
        5: smooth.swapaxes(0, 1),  # left, top
        6: smooth[:, ::-1].swapaxes(0, 1),  # right, top
        7: smooth[::-1, ::-1].swapaxes(0, 1),  # right, bottom
        8: smooth[::-1].swapaxes(0, 1),  # left, bottom
    }[orientation]
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / f"a{suffix}"
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif, quality=95)
    picture = read_picture(path)
    assert picture.pixels.shape == (3, HEIGHT, WIDTH)
    assert (picture.pixels - unit(smooth)).abs().mean() < 0.02
    assert picture.notes == (() if orientation == 1 else (f"EXIF orientation {orientation} applied",))


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\x08\0\0\0\xff\xff"])
def test_a_broken_exif_block_does_not_stop_the_picture(tmp_path, smooth, exif):
    Image.fromarray(smooth).save(tmp_path / "a.jpg", exif=exif)
    with warnings.catch_warnings(action="ignore"):
        assert read_picture(tmp_path / "a.jpg").pixels.shape == (3, HEIGHT, WIDTH)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_composited_over_white(tmp_path, rng, mode):
    values = rng.integers(0, 256, (HEIGHT, WIDTH, len(mode)), dtype=np.uint8)
    Image.fromarray(values, mode=mode).save(tmp_path / "a.png")
    colour, alpha = unit(values)[:-1], unit(values)[-1:]
    picture = read_picture(tmp_path / "a.png")
    torch.testing.assert_close(picture.pixels, alpha * colour + (1 - alpha), rtol=0, atol=1e-6)
    assert picture.notes == ("alpha composited over white",)

    values[..., -1] = 255
    Image.fromarray(values, mode=mode).save(tmp_path / "opaque.png")
    picture = read_picture(tmp_path / "opaque.png")
    torch.testing.assert_close(picture.pixels, colour)
    assert picture.notes == ()


def test_palette_and_its_transparent_entry(tmp_path, rng):
    index = rng.integers(0, 3, (HEIGHT, WIDTH), dtype=np.uint8)
    palette = np.array([[255, 0, 0], [0, 128, 0], [10, 20, 30]], dtype=np.uint8)
    image = Image.fromarray(index, mode="P")
    image.putpalette(palette.tobytes())
    image.save(tmp_path / "opaque.png")
    image.save(tmp_path / "holed.png", transparency=1)  # a tRNS chunk

    opaque, holed = read_picture(tmp_path / "opaque.png"), read_picture(tmp_path / "holed.png")
    torch.testing.assert_close(opaque.pixels, unit(palette[index]))
    palette[1] = 255
    torch.testing.assert_close(holed.pixels, unit(palette[index]))
    assert opaque.notes == ("palette expanded",)
    assert holed.notes == ("palette expanded", "alpha composited over white")


def test_a_transparent_colour_of_an_rgb_png_is_white(tmp_path, rgb):
    rgb[3, 4] = (1, 2, 3)
    Image.fromarray(rgb).save(tmp_path / "a.png", transparency=(1, 2, 3))
    assert read_picture(tmp_path / "a.png").pixels[:, 3, 4].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("mode", "suffix", "colour", "expected"),
    [
        ("CMYK", ".tif", (255, 0, 0, 0), (0, 1, 1)),
        ("CMYK", ".jpg", (0, 255, 255, 0), (1, 0, 0)),
        pytest.param(
            *("YCbCr", ".tif", (255, 128, 128), (1, 1, 1)),
            marks=pytest.mark.skipif(PIL.__version__ < "13", reason="before Pillow 13 such a file cannot be read"),
        ),
        ("LAB", ".tif", (138, 128, 128), (0.508, 0.508, 0.508)),  # L* = 54.1 is the middle of sRGB
    ],
)
def test_other_colour_models_become_rgb(tmp_path, mode, suffix, colour, expected):
    Image.new(mode, (WIDTH, HEIGHT), colour).save(tmp_path / f"a{suffix}")
    picture = read_picture(tmp_path / f"a{suffix}")
    torch.testing.assert_close(picture.pixels.mean((1, 2)), torch.tensor(expected).float(), rtol=0, atol=0.02)
    assert picture.notes == (f"{mode} converted",)


def test_one_bit_pictures_are_black_and_white(tmp_path, rng):
    bits = rng.random((HEIGHT, WIDTH)) > 0.5
    Image.fromarray(bits).save(tmp_path / "a.png")
    picture = read_picture(tmp_path / "a.png")
    assert torch.equal(picture.pixels[0], torch.from_numpy(bits).float())
    assert picture.notes == ("1 bit",)


def test_of_several_frames_the_first_is_read(tmp_path):
    first, second = Image.new("RGB", (WIDTH, HEIGHT), "red"), Image.new("RGB", (WIDTH, HEIGHT), "blue")
    first.save(tmp_path / "a.tif", save_all=True, append_images=[second])
    picture = read_picture(tmp_path / "a.tif")
    assert picture.pixels[:, 0, 0].tolist() == [1, 0, 0]
    assert picture.notes == ("first of 2 frames",)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "uint16", ">u2", "float16", "float32", "float64"])
@pytest.mark.parametrize("channels", [None, 1, 3])
def test_npy_arrays(tmp_path, rng, dtype, channels):
    shape = (HEIGHT, WIDTH) if channels is None else (HEIGHT, WIDTH, channels)
    kind = np.dtype(dtype).kind
    white = {"b": 1, "u": np.iinfo(dtype).max if kind == "u" else 1, "f": 1}[kind]
    array = (rng.random(shape) * white).round(0 if kind != "f" else 3).astype(dtype)
    np.save(tmp_path / "a.npy", array)
    expected = np.atleast_3d(array).astype(np.float64).transpose(2, 0, 1) / white
    pixels = read_picture(tmp_path / "a.npy").pixels
    torch.testing.assert_close(pixels, torch.from_numpy(expected).float(), rtol=0, atol=1e-7)


def test_npy_keeps_noise_outside_the_unit_range_and_composites_alpha(tmp_path):
    noisy = np.full((HEIGHT, WIDTH), -0.25, dtype=np.float32)
    np.save(tmp_path / "noisy.npy", noisy)
    assert read_picture(tmp_path / "noisy.npy").pixels.min() == -0.25

    np.save(tmp_path / "rgba.npy", np.full((HEIGHT, WIDTH, 4), 0.5))
    rgba = read_picture(tmp_path / "rgba.npy")
    assert rgba.pixels.shape == (3, HEIGHT, WIDTH)
    assert rgba.pixels.unique().tolist() == [0.75]


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.full((40, 40), np.nan), ("NaN",)),
        (np.full((40, 40), np.inf), ("infinity",)),
        (np.full((40, 40), 1e300), ("infinity",)),  # finite, but not in float32
        (np.full((40, 40), 255.0), ("white", "255", "divide")),
        (np.zeros((40, 40), np.int64), ("int64", "uint8")),
        (np.zeros((40, 40), np.complex64), ("complex64",)),
        (np.zeros((40, 40), object), ("damaged",)),
        (np.zeros((3, 40, 50), np.uint8), ("(3, 40, 50)", "channels to the end")),
        (np.zeros((2, 40, 50, 3), np.uint8), ("(2, 40, 50, 3)", "one picture")),
        (np.zeros(40, np.uint8), ("(40,)",)),
        (np.zeros((0, 40), np.uint8), ("at least 32 x 32", "0 x 40")),
        (np.zeros((40, 40, 0), np.uint8), ("(40, 40, 0)",)),
        (np.float32(1), ("()",)),
    ],
)
def test_unfit_arrays_are_refused(tmp_path, array, words):
    np.save(tmp_path / "a.npy", array)
    refused(tmp_path / "a.npy", *words)


def test_missing_empty_and_folder(tmp_path):
    (tmp_path / "empty.png").touch()
    refused(tmp_path / "none.png", "no such file")
    refused(tmp_path / ("x" * 300 + ".png"), "no such file")
    refused(tmp_path / "empty.png", "empty file")
    refused(tmp_path, "folder")


def test_files_that_are_no_pictures(tmp_path):
    for name in ("a.png", "a.npy"):
        (tmp_path / name).write_text("this is\nno picture")
        refused(tmp_path / name, "got")
    with (tmp_path / "archive.npy").open("wb") as file:
        np.savez(file, a=np.zeros((40, 40)))
    with (tmp_path / "terabyte.npy").open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (10**6, 10**6)}
        np.lib.format.write_array_header_1_0(file, header)
    for name in ("archive.npy", "terabyte.npy"):
        refused(tmp_path / name, "damaged")


@pytest.mark.parametrize(
    "name", ["a.jpg", "p.jpg", "a.png", "deep.png", "a.tif", "deep.tif", "a.webp", "a.gif", "a.npy"]
)
def test_a_truncated_file_is_an_error_and_never_half_a_picture(tmp_path, rgb, name):
    path = tmp_path / name
    if name == "deep.png":
        path.write_bytes(deep_png(rgb.astype(np.uint16) * 257))
    elif name == "deep.tif":
        path.write_bytes(deep_tiff(rgb.astype(np.uint16) * 257, compression="deflate"))
    elif name == "a.npy":
        np.save(path, rgb)
    else:
        Image.fromarray(rgb).save(path, progressive=name.startswith("p"))
    whole = path.read_bytes()
    read_picture(path)
    for share in (0.05, 0.3, 0.6, 0.9, 0.98):
        path.write_bytes(whole[: int(share * len(whole))])
        refused(path)


def test_damaged_bytes_give_a_picture_or_an_input_error(tmp_path, rng, smooth):
    """Nothing else may escape: the runner records InputError and goes on."""
    for suffix in ("png", "jpg", "tif", "gif", "webp"):
        buffer = io.BytesIO()
        Image.fromarray(smooth).save(buffer, format={"jpg": "jpeg", "tif": "tiff"}.get(suffix, suffix))
        path = tmp_path / f"a.{suffix}"
        outcomes = set()
        for _ in range(60):
            damaged = np.frombuffer(buffer.getvalue(), np.uint8).copy()
            damaged[rng.integers(0, min(len(damaged), 400), 4)] = rng.integers(0, 256, 4)
            path.write_bytes(damaged.tobytes())
            try:
                with warnings.catch_warnings(action="ignore"):
                    outcomes.add(type(read_picture(path)))
            except InputError:
                outcomes.add(InputError)
        assert outcomes <= {Picture, InputError}
        assert InputError in outcomes


def test_small_pictures_need_a_lower_limit(tmp_path, rgb):
    Image.fromarray(rgb[:1, :1]).save(tmp_path / "pixel.png")
    Image.fromarray(rgb[:31]).save(tmp_path / "31.png")
    Image.fromarray(rgb[:32, :32]).save(tmp_path / "32.png")
    refused(tmp_path / "pixel.png", "at least 32 x 32", "1 x 1")
    refused(tmp_path / "31.png", "31 x 50")
    assert read_picture(tmp_path / "32.png").pixels.shape == (3, 32, 32)
    assert read_picture(tmp_path / "pixel.png", min_side=1).pixels.shape == (3, 1, 1)


def test_huge_pictures_are_refused_by_their_header(tmp_path):
    limit_of_pillow = Image.MAX_IMAGE_PIXELS
    side = 13_600
    assert 2 * limit_of_pillow < side**2 < MAX_PIXELS  # Pillow by itself takes this one for an attack
    (tmp_path / "large.png").write_bytes(png_bytes(side, side, 1, 0, b""))
    (tmp_path / "huge.png").write_bytes(png_bytes(60_000, 60_000, 8, 2, b""))
    refused(tmp_path / "large.png", "cannot be decoded")  # the size passes, only the pixels are missing
    refused(tmp_path / "huge.png", "200 megapixels", "60000 x 60000")
    assert limit_of_pillow == Image.MAX_IMAGE_PIXELS
