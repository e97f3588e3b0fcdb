"""How wide the blur of a picture is, told by its spectrum before anything is restored.

The power spectra of sharp pictures resemble each other: they fall as a power of the frequency (Field, J. Opt. Soc. Am.
A, 1987). A blur takes from the high frequencies, and motion does so along its direction only. So the energies of a few
bands, in their weakest and strongest orientations, tell roughly how wide the blur is: enough to see that there is none.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 64  # px: side of the blocks whose spectra are averaged
MIN_BLOCK = 32  # px: a smaller picture tells nothing
EDGES = (0.02, 0.045, 0.0625, 0.09, 0.125, 0.18, 0.25, 0.35, 0.5)  # of the bands, cycles per px
SECTORS = 4  # of orientation, centred at 0, 45, 90 and 135 degrees
STRUCTURED = slice(1, 4)  # bands that tell which blocks show something
FILLING = 17  # px: side of the window whose mean takes the place of pixels that do not count
KEPT = 0.5  # share of the blocks that show most
FLOOR = 0.05  # of the noise: what a band holds at least above the noise


class Band(NamedTuple):
    """One predictor of the regression: the logarithm of the energy of a band above the noise.

    Attributes:
        orientation: `weakest`, `mean` or `strongest` of the sectors.
        index: of the band, from 0, between `EDGES`.
        weight: what it adds to `log(spread + OFFSET)`.
    """

    orientation: str
    index: int
    weight: float


# From pictures of BSDS400, blurred and not: python -m benchmarks.blurriness bsds400 --fit 6
OFFSET = 0.5  # px
BIAS = -2.255
BANDS: tuple[Band, ...] = (
    Band("weakest", 5, -0.116),
    Band("strongest", 7, -0.168),
    Band("weakest", 0, 0.152),
    Band("weakest", 3, -0.130),
    Band("strongest", 3, 0.104),
    Band("weakest", 2, -0.091),
)


@torch.no_grad()
def expected_spread(y: Tensor, sigma: float, mask: Tensor | None = None) -> float:
    """Root mean square radius of the blur, px, that the spectrum of a picture suggests; near 0 for a sharp one.

    It is for motion; a blur without sharp edges, which takes more from the high frequencies, seems twice as wide.

    Args:
        y: `(C, H, W)` in [0, 1] units.
        sigma: noise level in [0, 1] units, positive.
        mask: `(1, H, W)`, 1 for the pixels that count: the edges of clipped lights are sharp however blurred they are,
            so that the larger of two estimates is taken, with these pixels and with their surroundings in their place.

    Returns:
        NaN for a picture of less than `MIN_BLOCK` pixels a side.
    """
    if mask is not None:
        return max(expected_spread(y, sigma), expected_spread(_filled(y, mask), sigma))
    energies = band_energies(y, sigma)
    if energies is None:
        return math.nan
    logarithm = BIAS + sum(weight * energies[name][index] for name, index, weight in BANDS)
    return max(math.exp(logarithm) - OFFSET, 0.0)


def band_energies(y: Tensor, sigma: float) -> dict[str, list[float]] | None:
    """Logarithms of the energy per frequency above the noise, for each of the bands.

    Arguments as for `expected_spread`; the key of the result is the orientation (`Band`), and `None` says that there
    is nothing to measure.
    """
    height, width = (min(BLOCK, side) for side in y.shape[-2:])
    if min(height, width) < MIN_BLOCK:
        return None
    if bool((y == y[:1]).all()):
        y = y[:1]  # a gray picture stored in colour has the noise of one channel
    blocks = _block_energies(y.mean(0), (height, width))  # (blocks, bands, sectors)
    structured = blocks[:, STRUCTURED].nansum((1, 2))
    chosen = structured.argsort(descending=True)[: max(1, math.ceil(KEPT * len(blocks)))]
    noise = sigma**2 / len(y)
    energy = (blocks[chosen].mean(0) - noise).clamp_min(FLOOR * noise).log()
    found = {
        "weakest": energy.nan_to_num(math.inf).amin(1),
        "mean": energy.exp().nanmean(1).log(),
        "strongest": energy.nan_to_num(-math.inf).amax(1),
    }
    return {name: values.tolist() for name, values in found.items()}


def _filled(y: Tensor, mask: Tensor) -> Tensor:
    """The picture with the mean of what counts around them, or else of all that counts, where pixels do not count."""
    kept = mask.to(y)
    near, share = (F.avg_pool2d(map_, FILLING, stride=1, padding=FILLING // 2) for map_ in (kept * y, kept))
    overall = (kept * y).sum((1, 2), keepdim=True) / kept.sum().clamp_min(1)
    return torch.where(kept > 0, y, torch.where(share > 0, near / share.clamp_min(1e-6), overall))


def _block_energies(gray: Tensor, size: tuple[int, int]) -> Tensor:
    """`(N, bands, sectors)` energy per frequency of the blocks; NaN in a sector of small blocks without frequencies."""
    height, width = size
    taper = torch.hann_window(height, periodic=False)[:, None] * torch.hann_window(width, periodic=False)
    taper = (taper / taper.square().sum().sqrt()).to(gray)
    weights = _band_weights(size).to(gray)
    energies = []
    for top in _starts(gray.shape[0], height):  # row by row: a large picture is large
        row = gray[top : top + height].unfold(1, width, width // 2).transpose(0, 1)
        row = row - (row * taper).sum((1, 2), keepdim=True) / taper.sum()
        power = torch.fft.fft2(row * taper).abs().square()
        energies.append(power.flatten(1) @ weights)
    found = torch.cat(energies)
    return found.reshape(len(found), len(EDGES) - 1, SECTORS)


def _starts(length: int, side: int) -> range:
    return range(0, length - side + 1, side // 2)


def _band_weights(size: tuple[int, int]) -> Tensor:
    """`(h w, bands * sectors)`: what each frequency adds to the mean over each sector of each band."""
    fy, fx = (torch.fft.fftfreq(side) for side in size)
    radius = torch.hypot(fy[:, None], fx)
    sector = ((torch.atan2(fy[:, None], fx) / math.pi * SECTORS).round().long() % SECTORS).flatten()
    band = torch.bucketize(radius.flatten(), torch.tensor(EDGES), right=True) - 1
    inside = (band >= 0) & (band < len(EDGES) - 1)
    cell = torch.where(inside, band * SECTORS + sector, (len(EDGES) - 1) * SECTORS)
    cells = F.one_hot(cell, (len(EDGES) - 1) * SECTORS + 1)[:, :-1].float()
    return cells / cells.sum(0)
