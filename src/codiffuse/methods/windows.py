"""Windows of a large picture that say most about its blur.

A kernel shows in the gradients of a picture, each of its directions in those along it: a straight edge tells nothing of
the blur along the edge. So a window is worth what its weakest direction is worth: the smaller eigenvalue of the
structure tensor, the mean of `g g^T` over the window (points to track are chosen alike: Shi & Tomasi, CVPR 1994). White
noise of level sigma adds sigma^2 to both eigenvalues, which is taken off.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from codiffuse.errors import InputError

PLACES_A_SIDE = 8  # tried along an axis while a window moves by its side
MASKED_DECAY = 0.1  # share of masked pixels that costs a factor e: what surrounds them cannot be trusted either
MAX_SHARED = 0.25  # of a window's area that another one may cover
REACH = 0.25  # of the picture's diagonal: windows that are closer to each other are worth less in proportion


@dataclass(frozen=True)
class Window:
    """A rectangle of pixels."""

    top: int
    left: int
    height: int
    width: int

    def crop(self, image: Tensor) -> Tensor:
        """The window of an image `(..., H, W)`: a view `(..., height, width)`."""
        return image[..., self.top : self.top + self.height, self.left : self.left + self.width]


def choose_windows(y: Tensor, size: int, count: int, sigma: float, mask: Tensor | None = None) -> list[Window]:
    """The windows from which to estimate a kernel, best first.

    They have texture in all directions, few masked pixels, at most `MAX_SHARED` of their area in common, and come from
    different parts of the picture where those are about as good.

    Args:
        y: `(C, H, W)` in [0, 1] units.
        size: side of the windows, px; an axis of the picture that is shorter is taken whole.
        count: of windows; there are fewer where no others have room or texture.
        sigma: noise level in [0, 1] units.
        mask: `(1, H, W)`, 1 for the pixels that count; `None` counts all.

    Raises:
        InputError: no windows, or such without a gradient.
    """
    height, width = (min(size, side) for side in y.shape[-2:])
    if count < 1 or min(height, width) < 2:
        raise InputError(f"Expected 1 window or more of 2 x 2 px or more, got {count} of {height} x {width} px.")
    tops, lefts = _places(y.shape[-2], height), _places(y.shape[-1], width)
    products = _gradient_products(y, mask)
    # The gradients lie between the pixels: there is one less along an axis.
    xx, xy, yy, kept = (_box_means(map_, tops, lefts, (height - 1, width - 1)) for map_ in products)
    worth = (_smaller_eigenvalue(xx, xy, yy) - kept * sigma**2) * ((kept - 1) / MASKED_DECAY).exp()
    return [Window(top, left, height, width) for top, left in _spread(worth, tops, lefts, (height, width), count)]


def texture(y: Tensor, sigma: float, mask: Tensor | None = None) -> float:
    """How clearly a picture shows structure in all directions.

    The root mean square of the slope, per pixel, along the direction where it is least, over sigma. It is about 0 for a
    flat picture and for parallel stripes, however noisy; it grows in proportion to the contrast, and falls with sigma.

    Args:
        y: `(C, H, W)` in [0, 1] units.
        sigma: noise level in [0, 1] units, positive.
        mask: `(1, H, W)`, 1 for the pixels that count; `None` counts all.
    """
    xx, xy, yy, kept = (map_.mean(dtype=torch.float64) for map_ in _gradient_products(y, mask))
    if kept == 0:
        return 0.0
    return math.sqrt(max(float(_smaller_eigenvalue(xx, xy, yy) / kept) - sigma**2, 0)) / sigma


def _gradient_products(y: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The entries xx, xy, yy of g g^T, mean of the channels, and where g counts: maps `(H - 1, W - 1)`.

    g is made of differences over 2 x 2 pixels, scaled so that white noise gives both its entries the variance sigma^2,
    independently. Where it reads a masked pixel all maps are 0.
    """
    maps = torch.zeros(3, y.shape[-2] - 1, y.shape[-1] - 1, dtype=y.dtype, device=y.device)
    for channel in y:  # one by one: a large picture is large
        falling, rising = channel[1:, 1:] - channel[:-1, :-1], channel[:-1, 1:] - channel[1:, :-1]
        g_x, g_y = (falling + rising) / 2, (falling - rising) / 2
        for entry, (a, b) in zip(maps, ((g_x, g_x), (g_x, g_y), (g_y, g_y)), strict=True):
            entry.addcmul_(a, b, value=1 / len(y))
    kept = torch.ones_like(maps[0]) if mask is None else -F.max_pool2d(-mask.to(y), 2, stride=1)[0]
    maps *= kept
    return *maps, kept


def _smaller_eigenvalue(xx: Tensor, xy: Tensor, yy: Tensor) -> Tensor:
    """Of symmetric 2 x 2 matrices with these entries."""
    return (xx + yy - torch.hypot(xx - yy, 2 * xy)) / 2


def _places(length: int, side: int) -> list[int]:
    """Where windows of a side may begin along an axis; the last one ends with it."""
    return [*range(0, length - side, max(side // PLACES_A_SIDE, 1)), length - side]


def _box_means(map_: Tensor, tops: Sequence[int], lefts: Sequence[int], size: tuple[int, int]) -> Tensor:
    """`(T, L)` means of a map `(H, W)` over the boxes that begin at these rows and columns; by running sums."""
    height, width = size
    for starts, side in ((lefts, width), (tops, height)):
        sums = F.pad(map_.cumsum(-1, dtype=torch.float64), (1, 0))
        first = torch.tensor(starts, device=map_.device)
        # The other axis becomes the last one: rows in the second pass, and in the end all is as it was.
        map_ = ((sums[:, first + side] - sums[:, first]) / side).T
    return map_


def _spread(
    worth: Tensor, tops: Sequence[int], lefts: Sequence[int], size: tuple[int, int], count: int
) -> list[tuple[int, int]]:
    """The best places by worth `(T, L)`, one after the other, each far from those before it."""
    (height, width), (y, x) = size, (worth.new_tensor(starts) for starts in (tops, lefts))
    reach = REACH * math.hypot(tops[-1] + height, lefts[-1] + width)
    chosen: list[tuple[int, int]] = []
    score, distance_share = worth, torch.ones_like(worth)
    while len(chosen) < count:
        best = int(score.argmax())
        row, column = divmod(best, len(lefts))
        if chosen and score[row, column] <= 0:
            break
        chosen.append((tops[row], lefts[column]))
        dy, dx = (y - y[row]).abs()[:, None], (x - x[column]).abs()
        shared = (height - dy).clamp_min(0) * (width - dx).clamp_min(0) / (height * width)
        distance_share = torch.minimum(distance_share, torch.hypot(dy, dx) / reach) * (shared <= MAX_SHARED)
        score = worth * distance_share
    return chosen
