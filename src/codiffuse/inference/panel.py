"""One picture that tells an image's story, and the animation of its run."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from codiffuse.inference.fields import tilt_pictures
from codiffuse.inference.pictures import (
    FRAME_COLOUR,
    KERNEL_SIDE,
    WHITE_SPREAD,
    kernel_picture,
    spread_picture,
    to_image,
    to_tensor,
)

if TYPE_CHECKING:
    from PIL import Image

    from codiffuse.inference.writers import Outcome

MIN_SIDE, MAX_SIDE = 256, 2000  # of the pictures and of the whole panel
GAP, CAPTION_HEIGHT, FONT_SIZE = 12, 20, 14
FRAME_SIDE, FRAME_COLOURS, MAX_FRAMES, FRAME_MS, LAST_FRAME_MS = 192, 64, 40, 100, 1500
BAR_HEIGHT = 4  # how far the run is, below the frames


def panel(outcome: Outcome) -> Tensor:
    """(3, H', W') in [0, 1]: measurement, restoration, truth and spread in a row, then kernels and tilts.

    What is unknown is left out. Small pictures are enlarged by a whole number, large ones reduced so that the panel
    stays within about `MAX_SIDE` pixels.
    """
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size=FONT_SIZE)
    columns = [[tile] for tile in _picture_tiles(outcome)]
    kernels = _kernel_tiles(outcome, height=columns[0][0][0].height)
    if kernels:
        columns.append(kernels)
    columns += [[tile] for tile in _tilt_tiles(outcome, side=max(columns[0][0][0].size))]

    widths = [max(max(tile.width, math.ceil(font.getlength(text))) for tile, text in column) for column in columns]
    heights = [sum(tile.height + CAPTION_HEIGHT + GAP for tile, _ in column) for column in columns]
    canvas = Image.new("RGB", (sum(widths) + GAP * (len(widths) + 1), max(heights) + GAP), "white")
    draw = ImageDraw.Draw(canvas)
    left = GAP
    for column, width in zip(columns, widths, strict=True):
        top = GAP
        for tile, text in column:
            canvas.paste(tile, (left, top))
            draw.text((left, top + tile.height + 3), text, fill="black", font=font)
            top += tile.height + CAPTION_HEIGHT + GAP
        left += width + GAP
    return to_tensor(canvas)


def animation(frames: Sequence[tuple[Tensor, Tensor]]) -> bytes:
    """An endless GIF of (x0 (C, H, W), kernel (1, h, w)) side by side; of more than `MAX_FRAMES` an even selection.

    Frames may differ in size.
    """
    from PIL import Image, ImageDraw

    count = min(len(frames), MAX_FRAMES)
    chosen = [frames[round(i)] for i in np.linspace(0, len(frames) - 1, count)]
    pictures = [_scaled(to_image(x0), _small_scale(x0)) for x0, _ in chosen]
    width, height = (max(sides) for sides in zip(*(picture.size for picture in pictures), strict=True))
    tiles = [to_image(kernel_picture(kernel, min(width, height))) for _, kernel in chosen]
    height, kernel_width = max(height, *(tile.height for tile in tiles)), max(tile.width for tile in tiles)
    sheets = []
    for number, (picture, tile) in enumerate(zip(pictures, tiles, strict=True), 1):
        sheet = Image.new("RGB", (width + kernel_width, height + BAR_HEIGHT))
        sheet.paste(picture, ((width - picture.width) // 2, (height - picture.height) // 2))
        sheet.paste(tile, (width + (kernel_width - tile.width) // 2, (height - tile.height) // 2))
        ImageDraw.Draw(sheet).rectangle((0, height, sheet.width * number // count, sheet.height), fill=FRAME_COLOUR)
        sheets.append(sheet.quantize(FRAME_COLOURS))
    file = io.BytesIO()
    durations = [FRAME_MS] * (count - 1) + [LAST_FRAME_MS]
    sheets[0].save(file, "GIF", save_all=True, append_images=sheets[1:], duration=durations, loop=0)
    return file.getvalue()


def _picture_tiles(outcome: Outcome) -> list[tuple[Image.Image, str]]:
    """Scaled pictures with their captions."""
    row = outcome.row
    before, after = (row.get(name) for name in ("psnr_measurement_aligned", "psnr_aligned"))
    gained = f" ({after - before:+.2f})" if before is not None and after is not None else ""
    pictures = [
        (outcome.y, f"measurement{_decibels(before)}"),
        (outcome.image, f"restored{_decibels(after)}{gained}"),
        (outcome.truth, "truth"),
    ]
    if outcome.spread is not None:
        pictures.append((spread_picture(outcome.spread), f"spread (white = {WHITE_SPREAD})"))
    present = [(pixels, text) for pixels, text in pictures if pixels is not None]

    num_tilts = sum(tilt is not None for tilt in (outcome.tilt, outcome.true_tilt))
    room = (MAX_SIDE - KERNEL_SIDE) / (len(present) + num_tilts) - GAP
    scale = _panel_scale([pixels for pixels, _ in present], room)
    return [(_scaled(to_image(pixels), scale), text) for pixels, text in present]


def _kernel_tiles(outcome: Outcome, height: int) -> list[tuple[Image.Image, str]]:
    """Enlarged kernels with their captions, stacked in about `height` pixels."""
    match = outcome.row.get("kernel_mnc")
    kernels = [
        (outcome.kernel, "kernel" + (f"  MNC {match:.3f}" if match is not None else "")),
        (outcome.true_kernel, "true kernel"),
    ]
    present = [(kernel, text) for kernel, text in kernels if kernel is not None]
    side = min(KERNEL_SIDE, (height + CAPTION_HEIGHT + GAP) // max(1, len(present)) - CAPTION_HEIGHT - GAP)
    return [(to_image(kernel_picture(kernel, side)), text) for kernel, text in present]


def _tilt_tiles(outcome: Outcome, side: int) -> list[tuple[Image.Image, str]]:
    """Tilt fields, their longer side about `side` pixels, with their captions."""
    error, of_none = (outcome.row.get(name) for name in ("tilt_epe", "tilt_epe_zero"))
    known = f"  EPE {error:.3f} px" if error is not None else ""
    known += f" (no tilt: {of_none:.3f})" if known and of_none is not None else ""
    captions = {"tilt": f"tilt{known}", "true_tilt": "true tilt"}
    pictures = tilt_pictures({"tilt": outcome.tilt, "true_tilt": outcome.true_tilt}, side)
    return [(to_image(picture), captions[name]) for name, picture in pictures.items()]


def _decibels(psnr: float | None) -> str:
    return f"  {psnr:.2f} dB" if psnr is not None else ""


def _panel_scale(pictures: list[Tensor], room: float) -> float:
    """One factor for all pictures: a whole number, unless they must shrink to fit `room` pixels each."""
    heights, widths = zip(*(pixels.shape[-2:] for pixels in pictures), strict=True)
    limit = min(room / max(widths), MAX_SIDE / max(heights))
    wanted = math.ceil(MIN_SIDE / min(heights + widths))
    return min(wanted, math.floor(limit)) if limit >= 1 else limit


def _small_scale(pixels: Tensor) -> float:
    """The factor that brings the longer side to about `FRAME_SIDE`: a whole number or a reduction."""
    limit = FRAME_SIDE / max(pixels.shape[-2:])
    return math.floor(limit) if limit >= 1 else limit


def _scaled(image: Image.Image, scale: float) -> Image.Image:
    from PIL import Image

    size = tuple(max(1, round(side * scale)) for side in image.size)
    return image.resize(size, Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS)
