"""What cannot be seen as it is, made visible: kernels, spread, residual, windows, and pixels that were left out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from codiffuse.data.sources import downscale

if TYPE_CHECKING:
    from PIL import Image

KERNEL_SIDE = 264  # about what a kernel is enlarged to: 8 times a support of 33 pixels
WHITE_SPREAD = 0.2  # standard deviation that is drawn white
RESIDUAL_SIGMAS = 3  # noise levels from gray to black and to white
THUMBNAIL_SIDE = 640  # longer side of the pictures on which something is drawn
STRIP_COLUMNS, STRIP_SIDE, STRIP_GAP, STRIP_FONT = 4, 112, 8, 18
STRIP_OUTLINE = (90, 90, 90)
FRAME_COLOUR = (64, 224, 208)
LEFT_OUT_COLOUR = (1.0, 0.45, 0.1)

Box = tuple[int, int, int, int]  # top, left, height, width in pixels of the measurement


def kernel_picture(kernel: Tensor, side: int) -> Tensor:
    """(1, h, w) kernel with its largest value white, enlarged by the whole number that comes nearest to `side` px."""
    factor = max(1, round(side / max(kernel.shape[-2:])))
    unit = kernel / kernel.max().clamp_min(torch.finfo(kernel.dtype).tiny)
    return enlarged(unit, factor)


def spread_picture(std: Tensor) -> Tensor:
    """(1, H, W) mean over the channels of a standard deviation (C, H, W), over `WHITE_SPREAD`."""
    return std.mean(0, keepdim=True) / WHITE_SPREAD


def residual_picture(residual: Tensor, sigma: float) -> Tensor:
    """(C, H, W) in [0, 1] of a signed residual y - A x: zero is gray, `RESIDUAL_SIGMAS` noise levels black or white."""
    return (0.5 + residual / (2 * RESIDUAL_SIGMAS * sigma)).clamp(0, 1)


def restart_strip(kernels: Tensor, residuals: Sequence[float]) -> Tensor:
    """(3, H', W'): the kernels of all runs, `STRIP_COLUMNS` a row, each above room for words.

    Residuals are not shown: they tell little of a kernel, and at a lower resolution 1 is not the noise level.

    Args:
        kernels: (R, h, w); of a run that failed they may be NaN.
        residuals: not finite for a run that failed, which is said below its kernel.
    """
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size=STRIP_FONT)
    tiles = [to_image(kernel_picture(kernel.nan_to_num(0)[None], STRIP_SIDE)) for kernel in kernels]
    width, height = tiles[0].width + STRIP_GAP, tiles[0].height + STRIP_FONT + 2 * STRIP_GAP
    columns = min(STRIP_COLUMNS, len(tiles))
    # Black, so that the strip is one with the kernels on a light page and on a dark one.
    sheet = Image.new("RGB", (columns * width + STRIP_GAP, math.ceil(len(tiles) / columns) * height + STRIP_GAP))
    draw = ImageDraw.Draw(sheet)
    for number, (tile, value) in enumerate(zip(tiles, residuals, strict=True)):
        left, top = STRIP_GAP + number % columns * width, STRIP_GAP + number // columns * height
        sheet.paste(tile, (left, top))
        box = (left - 2, top - 2, left + tile.width + 1, top + tile.height + 1)
        draw.rectangle(box, outline=STRIP_OUTLINE, width=2)
        if not math.isfinite(value):
            middle = left + tile.width // 2, top + tile.height + STRIP_GAP // 2
            draw.text(middle, "failed", anchor="ma", font=font)
    return to_tensor(sheet)


def windows_picture(y: Tensor, windows: Sequence[Box]) -> Tensor:
    """(3, H', W'): a small copy of the measurement (C, H, W) with the windows as thin frames."""
    from PIL import ImageDraw

    image = to_image(_thumbnail(y))
    draw = ImageDraw.Draw(image)
    scale = image.width / y.shape[-1]
    for top, left, height, width in windows:
        box = [round(scale * edge) for edge in (left, top, left + width, top + height)]
        x0, y0, x1, y1 = box[0], box[1], box[2] - 1, box[3] - 1
        draw.rectangle((x0, y0, x1, y1), outline="black", width=5)
        draw.rectangle((x0 + 1, y0 + 1, x1 - 1, y1 - 1), outline=FRAME_COLOUR, width=3)
    return to_tensor(image)


def left_out_picture(y: Tensor, mask: Tensor) -> Tensor:
    """(3, H', W'): a small, dark copy of the measurement (C, H, W) on which the pixels with `mask` 0 glow."""
    dark = 0.5 * _thumbnail(y).clamp(0, 1).mean(0, keepdim=True).expand(3, -1, -1)
    left_out = F.adaptive_max_pool2d(1 - mask, dark.shape[-2:])  # a single pixel survives the reduction
    return torch.where(left_out > 0.5, dark.new_tensor(LEFT_OUT_COLOUR)[:, None, None], dark)


def enlarged(pixels: Tensor, factor: int) -> Tensor:
    """(C, H, W) with every pixel repeated along both axes."""
    return pixels.repeat_interleave(factor, -2).repeat_interleave(factor, -1)


def to_image(pixels: Tensor) -> Image.Image:
    """(1 | 3, H, W) in [0, 1] as an RGB image."""
    from PIL import Image

    levels = (pixels.clamp(0, 1) * 255).round().byte()
    return Image.fromarray(levels.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB image as (3, H, W) in [0, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def _thumbnail(pixels: Tensor) -> Tensor:
    """(C, H, W) at about `THUMBNAIL_SIDE`: reduced, or enlarged by a whole number so that thin frames stay thin."""
    factor = THUMBNAIL_SIDE // max(pixels.shape[-2:])
    return enlarged(pixels, factor) if factor > 1 else downscale(pixels, THUMBNAIL_SIDE)
