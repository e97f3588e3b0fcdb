"""Embedded colour profiles: 8-bit colours arrive as sRGB, all others as they are, and the notes say which."""

import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms
from test_images import deep_png, png_chunk
from toys import picture

from codiffuse.data.images import picture_of, read_picture

COLOUR, GRAY = picture(0), picture(1, channels=1)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
# Primaries in XYZ for an eye that has adapted to D50; the columns are red, green and blue.
P3 = np.array([[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]])
BT709 = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
D50 = (0.9642, 1.0, 0.8249)
GAMMA = 1.8
UNUSABLE = b"no profile at all"


def fixed(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def profile(space: bytes, connection: bytes, tags: dict[bytes, bytes], name: str = "Toy") -> bytes:
    """An ICC profile of version 2, by the specification."""
    text = name.encode() + b"\0"
    tags = tags | {b"desc": b"desc" + bytes(4) + struct.pack(">I", len(text)) + text + bytes(78)}
    start, directory, body = 132 + 12 * len(tags), b"", b""
    for tag, data in tags.items():
        directory += tag + struct.pack(">II", start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    kind = b"prtr" if space == b"CMYK" else b"mntr"
    header = struct.pack(">I4sI", start + len(body), b"", 0x02400000) + kind + space + connection
    header += bytes(12) + b"acsp" + bytes(28) + fixed(*D50)
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + directory + body


def curve(gamma: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))


def xyz(*values: float) -> bytes:
    return b"XYZ " + bytes(4) + fixed(*values)


def of_primaries(matrix: np.ndarray, **options: str) -> bytes:
    tags = {b"wtpt": xyz(*D50)}
    for name, column in zip((b"r", b"g", b"b"), matrix.T, strict=True):
        tags |= {name + b"XYZ": xyz(*column), name + b"TRC": curve(GAMMA)}
    return profile(b"RGB ", b"XYZ ", tags, **options)


def of_gray() -> bytes:
    return profile(b"GRAY", b"XYZ ", {b"wtpt": xyz(*D50), b"kTRC": curve(GAMMA)})


def of_inks() -> bytes:
    """Black ink makes black, of the others all together a gray of lightness 70; each alone keeps white."""
    lightness = [0 if black else 70 if c and m and y else 100 for c, m, y, black in np.ndindex(2, 2, 2, 2)]
    nodes = b"".join(bytes([round(2.55 * level), 128, 128]) for level in lightness)
    straight = bytes(range(256))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    return profile(b"CMYK", b"Lab ", {b"wtpt": xyz(*D50), b"A2B0": table + 4 * straight + nodes + 3 * straight})


def encoded(light: np.ndarray) -> np.ndarray:
    """The curve of sRGB."""
    light = light.clip(0, 1)
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def expected(colours: np.ndarray) -> np.ndarray:
    """8-bit P3 colours in sRGB, by the definition."""
    return encoded((colours / 255) ** GAMMA @ (np.linalg.inv(BT709) @ P3).T)


def pixels(found) -> np.ndarray:
    return found.pixels.movedim(0, -1).squeeze(-1).numpy()


LEVEL = 1.6 / 255
WIDE, INKS = of_primaries(P3, name="Wide\nToy"), of_inks()


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_colours_become_srgb(tmp_path, suffix):
    path = tmp_path / f"wide.{suffix}"
    Image.fromarray(COLOUR).save(path, icc_profile=WIDE, **({"lossless": True} if suffix == "webp" else {}))
    found = read_picture(path)
    assert found.notes == ("colours of Wide Toy converted to sRGB",)
    assert np.abs(pixels(found) - expected(COLOUR)).max() < LEVEL
    assert np.abs(expected(COLOUR) - COLOUR / 255).max() > 0.05
    with Image.open(path) as image:
        assert np.array_equal(pixels(picture_of(image)), pixels(found))


def test_gray_alpha_and_palettes_too(tmp_path):
    alpha = np.where(GRAY > 127, 255, 0).astype(np.uint8)
    Image.fromarray(np.dstack([COLOUR, alpha])).save(tmp_path / "alpha.png", icc_profile=WIDE)
    found = read_picture(tmp_path / "alpha.png")
    over_white = np.where(alpha[..., None] == 255, expected(COLOUR), 1)
    assert np.abs(pixels(found) - over_white).max() < LEVEL
    assert found.notes[1] == "alpha composited over white"

    Image.fromarray(COLOUR).quantize(16).save(tmp_path / "palette.png", icc_profile=WIDE)
    with Image.open(tmp_path / "palette.png") as image:
        colours = np.asarray(image.convert("RGB"))
    assert np.abs(pixels(read_picture(tmp_path / "palette.png")) - expected(colours)).max() < LEVEL

    for icc in (of_gray(), WIDE):  # gray copies of colour pictures keep the profile of the colours
        Image.fromarray(GRAY).save(tmp_path / "gray.png", icc_profile=icc)
        found = read_picture(tmp_path / "gray.png")
        assert found.pixels.shape == (1, 40, 48)
        assert np.abs(pixels(found) - encoded((GRAY / 255) ** GAMMA)).max() < LEVEL


def test_inks_are_those_of_their_profile(tmp_path):
    inks = np.zeros((40, 48, 4), np.uint8)
    inks[10:20, :, :3] = 255
    inks[20:30, :, 3] = 255
    inks[30:, :, 0] = 255
    Image.fromarray(inks, mode="CMYK").save(tmp_path / "inks.tif", icc_profile=INKS)
    found = read_picture(tmp_path / "inks.tif")
    assert found.notes == ("CMYK converted", "colours of Toy converted to sRGB")
    gray = encoded(np.array(((70 + 16) / 116) ** 3))
    for row, level in ((5, 1), (15, gray), (25, 0), (35, 1)):
        assert np.abs(pixels(found)[row] - level).max() < LEVEL, row


@pytest.mark.parametrize("icc", [SRGB, of_primaries(P3)], ids=["sRGB", "P3"])
@pytest.mark.parametrize("kind", ["colour16.png", "gray16.png", "float.tif"])
def test_what_has_more_than_8_bits_stays_and_the_notes_say_so(tmp_path, icc, kind):
    deep = COLOUR.astype(np.uint16) * 257
    path = tmp_path / kind
    if kind == "colour16.png":
        content = deep_png(deep)
        chunk = png_chunk(b"iCCP", b"Toy\0\0" + zlib.compress(icc))
        path.write_bytes(content[:33] + chunk + content[33:])
    elif kind == "gray16.png":
        Image.fromarray(deep[..., 0].copy()).save(path, icc_profile=icc)
    else:
        tifffile.imwrite(path, (COLOUR / 255).astype(np.float32), photometric="rgb", iccprofile=icc)
    found = read_picture(path)
    same = COLOUR[..., 0] if kind == "gray16.png" else COLOUR
    assert np.allclose(pixels(found), same / 255, atol=1e-6)
    said = [note for note in found.notes if "Toy: only those of 8 bits" in note]
    assert len(said) == (icc != SRGB)


def test_srgb_by_any_name_changes_nothing(tmp_path):
    for icc in (SRGB, None):
        Image.fromarray(COLOUR).save(tmp_path / "a.png", icc_profile=icc)
        found = read_picture(tmp_path / "a.png")
        assert found.notes == ()
        assert np.array_equal(np.rint(255 * pixels(found)), COLOUR)


@pytest.mark.parametrize(
    ("icc", "note"),
    [
        (UNUSABLE, "damaged"),
        (WIDE[:200], "damaged"),
        (WIDE[:300] + bytes(len(WIDE) - 300), "damaged"),
        (INKS, "another colour model"),
        (of_gray(), "another colour model"),
    ],
    ids=["text", "truncated", "zeros", "inks", "gray"],
)
def test_a_profile_that_cannot_be_used_is_ignored(tmp_path, icc, note):
    Image.fromarray(COLOUR).save(tmp_path / "a.png", icc_profile=icc)
    found = read_picture(tmp_path / "a.png")
    assert [note in line for line in found.notes] == [True]
    assert np.array_equal(np.rint(255 * pixels(found)), COLOUR)


def test_a_profile_that_the_file_has_in_part_is_ignored(tmp_path):
    jpeg = io.BytesIO()
    Image.fromarray(COLOUR).save(jpeg, "JPEG", icc_profile=WIDE)
    content = jpeg.getvalue().replace(b"ICC_PROFILE\0\x01\x01", b"ICC_PROFILE\0\x01\x02")
    (tmp_path / "a.jpg").write_bytes(content)
    assert read_picture(tmp_path / "a.jpg").notes == ("damaged colour profile ignored",)
