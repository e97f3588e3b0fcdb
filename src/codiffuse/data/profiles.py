"""Colour profiles (ICC) of pictures: 8-bit colours become sRGB, which is what files without one are taken for."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image, ImageCms

_MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # of Pillow, for the colour spaces of profiles
SAME = 2  # levels of 255 within which a profile is sRGB by another name
LONGEST_NAME = 40


@dataclass(frozen=True)
class Profile:
    """An embedded profile that is not sRGB.

    Attributes:
        name: as its maker calls it.
        mode: `L`, `RGB` or `CMYK`: the pixels that it is for.
        transform: from these to RGB in sRGB.
    """

    name: str
    mode: str
    transform: ImageCms.ImageCmsTransform

    def apply(self, image: Image.Image) -> Image.Image:
        """A picture of mode L, LA, RGB, RGBA or CMYK in sRGB; gray stays gray, alpha stays."""
        from PIL import ImageCms

        colours = ImageCms.applyTransform(image.convert(self.mode), self.transform)
        if image.mode in ("L", "LA"):
            colours = colours.getchannel("G")
        if "A" in image.getbands():
            colours.putalpha(image.getchannel("A"))
        return colours


def embedded(icc: bytes | None, mode: str, notes: list[str]) -> Profile | None:
    """The profile of a picture; `None` where its colours are sRGB, or nobody can tell what else they are.

    Args:
        icc: the content of the profile, empty where there is none, `None` where it could not be read.
        mode: `L`, `RGB` or `CMYK`, of the picture without its alpha.
        notes: gets a line for a profile that cannot be used.
    """
    from PIL import ImageCms

    if icc == b"":
        return None
    try:
        # With the darkest ink as black: what photo editors do.
        intent, flags = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
        opened = ImageCms.ImageCmsProfile(io.BytesIO(icc or b""))
        own = _MODES.get(opened.profile.xcolor_space)
        if own != mode and (own, mode) != ("RGB", "L"):
            notes.append("colour profile of another colour model ignored")
            return None
        transform = ImageCms.buildTransform(opened, ImageCms.createProfile("sRGB"), own, "RGB", intent, flags)
        return None if own != "CMYK" and _changes_nothing(transform, own) else Profile(_name(opened), own, transform)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):  # TypeError: a profile without a readable header
        notes.append("damaged colour profile ignored")
        return None


def _changes_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    from PIL import Image, ImageCms

    if mode == "L":
        levels = np.arange(256, dtype=np.uint8)[None]
    else:
        levels = np.stack(np.meshgrid(*[np.arange(0, 256, 17, dtype=np.uint8)] * 3), -1).reshape(1, -1, 3)
    changed = np.asarray(ImageCms.applyTransform(Image.fromarray(levels), transform), np.int16)
    return int(np.abs(changed - levels.reshape(1, changed.shape[1], -1)).max()) <= SAME


def _name(profile: ImageCms.ImageCmsProfile) -> str:
    from PIL import ImageCms

    words = "".join(letter if letter.isprintable() else " " for letter in ImageCms.getProfileDescription(profile))
    return " ".join(words.split())[:LONGEST_NAME] or "a profile without a name"
