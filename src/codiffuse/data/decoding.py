"""The values that picture files hold, upright: decoded by Pillow, or by tifffile where Pillow has no mode for them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from codiffuse.data.profiles import embedded
from codiffuse.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

# Tags of EXIF and TIFF.
ORIENTATION = 274  # how the camera was held, 1 (upright) to 8
BITS_PER_SAMPLE = 258
PHOTOMETRIC = 262  # 0: white is zero
PLANAR_CONFIGURATION = 284  # 2: one colour after the other
SAMPLE_FORMAT = 339  # 2: signed
ICC_PROFILE = 34675

# What undoes each orientation: the axes to flip, after a transposition for the four that swap the sides.
_FLIPS = {2: (1,), 3: (0, 1), 4: (0,), 5: (), 6: (1,), 7: (0, 1), 8: (0,)}
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the latter two: BigTIFF
_DEEP_MODES = ("I;16", "I;16B", "I;16L", "I", "F")  # gray, and the only modes of Pillow beyond 8 bits

# Of a 16-bit colour sample Pillow reads the high byte alone. The raw mode of the other byte order reads the low one.
_NON_NATIVE = "B" if sys.byteorder == "little" else "L"
_LOW_BYTE = {
    f"{mode};16{order}": f"{mode};16{other}"
    for mode in ("RGB", "RGBA")
    for order, other in (("B", "L"), ("L", "B"), ("N", _NON_NATIVE))
}


def decode_file(path: Path, check_size: Callable[[int, int], None]) -> tuple[np.ndarray, list[str]]:
    """Decodes a picture file; of several frames the first.

    Args:
        path: The file; its content decides the format.
        check_size: Called with height and width before anything of that size is made.

    Returns:
        (H, W, 1 | 2 | 3 | 4) values in the file's own number type, of which 2 and 4 have alpha at the end; and what was
        done to them, in words.

    Raises:
        InputError: Values that are neither gray nor colours nor on a scale that is known.
        Exception: Whatever a decoder raises on damaged bytes.
    """
    from PIL import UnidentifiedImageError

    try:
        with _opened(path) as image:
            check_size(image.height, image.width)
            return decode(image, str(path), path)
    except UnidentifiedImageError:
        with path.open("rb") as file:
            if file.read(4) not in TIFF_MAGIC:
                raise
    return _decode_by_tifffile(path, check_size)


def decode(image: Image.Image, name: str, path: Path | None = None) -> tuple[np.ndarray, list[str]]:
    """Decodes a picture of Pillow; returns and raises what `decode_file` does.

    Args:
        image: The picture.
        name: What error messages call it.
        path: Its file, from which the low bytes of 16-bit colours are read; without it they are lost.
    """
    frames = getattr(image, "n_frames", 1)
    notes = [f"first of {frames} frames"] if frames > 1 else []

    raw_mode = _raw_mode(image, name)  # before getexif(), which may load the image and so drop it
    orientation = image.getexif().get(ORIENTATION)
    has_low_bytes = raw_mode in _LOW_BYTE and path is not None
    array = _pillow_values(image, notes, deep=has_low_bytes)
    if has_low_bytes:
        array = _with_low_bytes(array, _low_bytes(path), image.info.get("transparency"))
    elif ";16" in raw_mode and image.mode not in _DEEP_MODES:
        notes.append("8 of 16 bits read")
    elif image.format == "TIFF" and array.dtype == np.uint16 and image.tag_v2.get(PHOTOMETRIC) == 0:
        array = 65535 - array  # Pillow does so up to 8 bits
    if orientation in _FLIPS:
        notes.append(f"EXIF orientation {orientation} applied")
    # Asked again, because Pillow turns a TIFF by itself while loading it and then forgets the tag.
    return _upright(np.atleast_3d(array), image.getexif().get(ORIENTATION)), notes


def size_of(path: Path) -> tuple[int, int]:
    """(width, height) of a picture file as its header has them, which may be of any size.

    Raises:
        Exception: Whatever a decoder raises on damaged bytes.
    """
    with _opened(path) as image:
        return image.size


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Pillow warns from 89 and refuses from 179 megapixels; the caller's check of the size has the say here."""
    from PIL import Image

    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        with Image.open(path) as image:
            yield image
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _raw_mode(image: Image.Image, name: str) -> str:
    """How Pillow unpacks the samples of a PNG or TIFF file; empty for the others, of which colour is read in 8 bits.

    Empty also for a picture that Pillow has unpacked already.
    """
    if image.format not in ("PNG", "TIFF") or not image.tile:
        return ""
    if image.format == "PNG":
        return image.tile[0].args
    bits = image.tag_v2.get(BITS_PER_SAMPLE, (1,))
    if image.tag_v2.get(PLANAR_CONFIGURATION) == 2 and max(bits) > 8:  # Pillow reads noise
        raise InputError(f"{name}: expected interleaved colours in a 16-bit TIFF, got separate planes; save it so")
    if image.mode == "I" or bits == (12,):  # nobody knows which value is white
        sign = "" if image.tag_v2.get(SAMPLE_FORMAT) == (2,) else "u"
        raise InputError(f"{name}: expected uint8, uint16 or float values, got {sign}int{bits[0]}; save one of these")
    return image.tile[0].args[0]


def _low_bytes(path: Path) -> np.ndarray:
    """(H, W, 3 | 4) low bytes of 16-bit samples."""

    def low(args: str | tuple) -> str | tuple:
        return _LOW_BYTE[args] if isinstance(args, str) else (_LOW_BYTE[args[0]], *args[1:])

    with _opened(path) as image:
        image.tile = [tile._replace(args=low(tile.args)) for tile in image.tile]
        return np.asarray(image)


def _with_low_bytes(high: np.ndarray, low: np.ndarray, transparent: tuple[int, ...] | None) -> np.ndarray:
    """(H, W, 3 | 4) 16-bit values; where only the high bytes have alpha, one colour of the file is transparent."""
    deep = high[..., : low.shape[2]].astype(np.uint16) << 8 | low
    if deep.shape == high.shape:
        return deep
    opaque = (deep != np.array(transparent)).any(-1, keepdims=True)  # Pillow compares the high bytes alone
    return np.concatenate([deep, 65535 * opaque.astype(np.uint16)], -1)


def _pillow_values(image: Image.Image, notes: list[str], deep: bool) -> np.ndarray:
    """(H, W) or (H, W, 2 | 3 | 4) values of an image that Pillow decodes; `deep` if these are but the high bytes."""
    icc = image.info.get("icc_profile", b"")
    if image.mode in _DEEP_MODES:
        _leave_profile(icc, "L", notes)
        array = np.asarray(image)
        # Mode I is 32 bits wide, but what it holds of a 16-bit PGM is on the 16-bit scale.
        fits = array.dtype == np.int32 and array.min() >= 0 and array.max() <= 65535
        return array.astype(np.uint16) if fits else array

    if image.mode in ("P", "PA"):
        notes.append("palette expanded")
    elif image.mode == "1":
        notes.append("1 bit")
    elif image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        notes.append(f"{image.mode} converted")

    if image.mode == "LAB":
        return np.asarray(_lab_to_rgb(image))
    colours = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    wanted = colours + "A" * image.has_transparency_data
    inked = image.mode == "CMYK"
    if deep:
        _leave_profile(icc, colours, notes)
    elif profile := embedded(icc, "CMYK" if inked else colours, notes):
        notes.append(f"colours of {profile.name} converted to sRGB")
        image = profile.apply(image if inked else image.convert(wanted))
    return np.asarray(image.convert(wanted))


def _leave_profile(icc: bytes | None, mode: str, notes: list[str]) -> None:
    if profile := embedded(icc, mode, notes):
        notes.append(f"colours left as they are in {profile.name}: only those of 8 bits are converted")


def _lab_to_rgb(image: Image.Image) -> Image.Image:
    from PIL import ImageCms

    lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return ImageCms.applyTransform(image, ImageCms.buildTransform(lab, rgb, "LAB", "RGB"))


def _upright(array: np.ndarray, orientation: int | None) -> np.ndarray:
    """Undoes the EXIF orientation of an (H, W, C) array."""
    if orientation not in _FLIPS:
        return array
    return np.flip(array.swapaxes(0, 1) if orientation >= 5 else array, _FLIPS[orientation])


@contextmanager
def _silent(logger: logging.Logger) -> Iterator[None]:
    """tifffile logs every damaged tag, and then raises: that one line is enough."""
    disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = disabled


def _decode_by_tifffile(path: Path, check_size: Callable[[int, int], None]) -> tuple[np.ndarray, list[str]]:
    """What `decode_file` returns, for TIFF files of samples that Pillow does not know, such as colours in floats."""
    import tifffile

    with _silent(tifffile.logger()), tifffile.TiffFile(path) as file:
        page = file.pages.first
        check_size(page.imagelength, page.imagewidth)
        kind = page.photometric
        if kind not in (tifffile.PHOTOMETRIC.MINISBLACK, tifffile.PHOTOMETRIC.RGB):
            raise InputError(
                f"{path}: expected a TIFF of gray or RGB values, got {kind.name} in {page.dtype}; convert it"
            )
        array, frames = np.atleast_3d(page.asarray()), len(file.pages)
        icc = page.tags[ICC_PROFILE].value if ICC_PROFILE in page.tags else b""
    if page.axes == "SYX":
        array = np.moveaxis(array, 0, -1)
    if page.axes not in ("YX", "YXS", "SYX") or array.shape[:2] != (page.imagelength, page.imagewidth):
        raise ValueError(f"axes {page.axes} of shape {array.shape}")
    colours = 3 if kind == tifffile.PHOTOMETRIC.RGB else 1
    has_alpha = page.extrasamples[:1] == (tifffile.EXTRASAMPLE.UNASSALPHA,)
    notes = [f"first of {frames} frames"] if frames > 1 else []
    _leave_profile(bytes(icc), "RGB" if colours == 3 else "L", notes)
    if array.shape[2] > colours + has_alpha:
        notes.append(f"{colours + has_alpha} of {array.shape[2]} channels read")
    orientation = page.tags[ORIENTATION].value if ORIENTATION in page.tags else None
    if orientation in _FLIPS:
        notes.append(f"EXIF orientation {orientation} applied")
    return _upright(array[..., : colours + has_alpha], orientation), notes
