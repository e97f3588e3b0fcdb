"""A tilt field made visible: colour for direction and length, arrows, and a wheel that says what the colours mean."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from codiffuse.inference.pictures import enlarged, to_image, to_tensor

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

ARROWS = 12  # along the longer side
SCALES = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)  # lengths that the wheel may stand for, times a power of ten
SHARE_WITHIN = 0.99  # of the pixels whose tilt is no longer than that
SMOOTH = 3  # drawn so many times larger, then reduced, so that slanting lines are smooth
INK, PAPER = (20, 20, 20), (255, 255, 255)
MIN_FONT_SIZE = 9

Point = tuple[float, float]  # x, y


def tilt_pictures(tilts: Mapping[str, Tensor | None], side: int) -> dict[str, Tensor]:
    """Pictures of the tilt fields of one image, to be compared: on one scale, and each without its mean.

    The mean is a shift of the whole picture, which the measurement does not tell from a shift of the scene.

    Args:
        tilts: by name, (2, H, W) in px; of those that are `None` there is no picture.
        side: see `tilt_picture`.
    """
    fields = {name: tilt - tilt.mean((-2, -1), keepdim=True) for name, tilt in tilts.items() if tilt is not None}
    scale = max((_full_scale(field) for field in fields.values()), default=1.0)
    return {name: tilt_picture(field, side, scale) for name, field in fields.items()}


def tilt_picture(tilt: Tensor, side: int, scale: float | None = None) -> Tensor:
    """(3, H', W') in [0, 1] of a tilt field (2, H, W) in px, its longer side about `side` px.

    The hue is the direction, white is no tilt, and full colour the length in px that stands at the wheel, which nearly
    all tilts stay below. Arrows show the mean tilt around their tails and point to where a pixel is read; one as long
    as the distance between two arrows has that length, too. The wheel stands in the lower right corner.

    Args:
        tilt: channel 0 to the right, channel 1 downwards; not finite values are drawn as no tilt.
        side: enlarged by the whole number that comes nearest, larger fields are reduced to fit.
        scale: the length of full colour, px; `None` finds one.
    """
    from PIL import Image

    tilt = tilt.float().cpu().nan_to_num(0, 0, 0)
    zoom, scale = side / max(tilt.shape[-2:]), scale or _full_scale(tilt)
    shown = tilt / scale
    if zoom < 1:
        shown = F.adaptive_avg_pool2d(shown, tuple(max(1, round(zoom * length)) for length in tilt.shape[-2:]))
    canvas = to_image(enlarged(_colours(shown), max(1, round(zoom)) * SMOOTH))
    _draw_arrows(canvas, tilt / scale)
    _draw_wheel(canvas, scale)
    width, height = canvas.width // SMOOTH, canvas.height // SMOOTH
    return to_tensor(canvas.resize((width, height), Image.Resampling.BOX))


def _full_scale(tilt: Tensor) -> float:
    """The round length that is nearest to, and not below, the length that `SHARE_WITHIN` of all tilts stay within."""
    lengths = tilt.norm(dim=0).flatten().sort().values
    length = float(lengths[math.ceil(SHARE_WITHIN * len(lengths)) - 1])
    if length == 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(length))
    return next(scale * power for scale in (*SCALES, 10.0) if scale * power >= length * (1 - 1e-6))


def _colours(vectors: Tensor) -> Tensor:
    """(2, H, W) in units of full colour to (3, H, W): white for none, pure hues from length 1 on."""
    length = vectors.norm(dim=0).clamp(max=1)
    hue = torch.atan2(vectors[1], vectors[0]) / (2 * math.pi)
    offsets = vectors.new_tensor([0.0, 4.0, 2.0])[:, None, None]
    pure = (((6 * hue + offsets) % 6 - 3).abs() - 1).clamp(0, 1)
    return 1 - length * (1 - pure)


def _draw_arrows(canvas: Image.Image, vectors: Tensor) -> None:
    """Mean vectors of square cells, from their middles; a vector of length 1 spans a cell."""
    from PIL import ImageDraw

    draw = ImageDraw.Draw(canvas)
    cell = max(canvas.size) / min(ARROWS, max(vectors.shape[-2:]))
    rows, columns = max(1, round(canvas.height / cell)), max(1, round(canvas.width / cell))
    means = F.adaptive_avg_pool2d(vectors, (rows, columns))
    for row in range(rows):
        for column in range(columns):
            x, y = (column + 0.5) * canvas.width / columns, (row + 0.5) * canvas.height / rows
            right, down = (cell * means[:, row, column]).tolist()
            _draw_arrow(draw, (x, y), (x + right, y + down), head=0.22 * cell)


def _draw_arrow(draw: ImageDraw.ImageDraw, tail: Point, tip: Point, head: float) -> None:
    right, down = tip[0] - tail[0], tip[1] - tail[1]
    length = math.hypot(right, down)
    if length < SMOOTH:  # less than a pixel
        return
    head = min(head, 0.5 * length)
    right, down = right / length, down / length
    neck = tip[0] - head * right, tip[1] - head * down
    draw.line((*tail, *neck), fill=INK, width=SMOOTH)
    half = 0.4 * head
    left_barb = neck[0] - half * down, neck[1] + half * right
    right_barb = neck[0] + half * down, neck[1] - half * right
    draw.polygon([tip, left_barb, right_barb], fill=INK)


def _draw_wheel(canvas: Image.Image, scale: float) -> None:
    """The colours of all vectors up to full colour, as a disc above their length in px, on paper."""
    from PIL import Image, ImageDraw, ImageFont

    diameter = max(canvas.size) // 8
    font = ImageFont.load_default(size=max(MIN_FONT_SIZE * SMOOTH, diameter // 4))
    text, gap = f"{scale:g} px", diameter // 8
    _, _, right, bottom = font.getbbox(text)
    width, height = max(diameter, math.ceil(right)) + 2 * gap, diameter + bottom + 3 * gap
    legend = Image.new("RGB", (width, height), PAPER)
    axis = torch.linspace(-1, 1, diameter)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    vectors = torch.stack([x, y])
    disc = to_image((vectors.norm(dim=0) <= 1).float())
    legend.paste(to_image(_colours(vectors)), ((width - diameter) // 2, gap), disc.convert("L"))
    draw = ImageDraw.Draw(legend)
    draw.text((width // 2, diameter + 2 * gap), text, anchor="ma", fill=INK, font=font)
    draw.rectangle((0, 0, width - 1, height - 1), outline=INK, width=SMOOTH)
    canvas.paste(legend, (canvas.width - width, canvas.height - height))
