"""Which pixels of a photograph are clipped at full scale, and so do not follow the model of the blur."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from codiffuse.errors import InputError

THRESHOLD = 0.98  # of full scale: highlights of JPEG files and of other tone curves end a few levels below it
WINDOW = 3  # px, in which
ENOUGH = 3  # clipped pixels are a highlight: a light streak is one pixel wide, noise on a bright wall is scattered
MARGIN = 2  # px around a highlight, where interpolation and compression of the file spread it
DEPTH = 3  # px from its rim, from which on a highlight is taken for what it seems to be, as white as can be
LEAST_KEPT = 0.1  # of the pixels, to restore a picture from


def unsaturated(pixels: Tensor, threshold: float = THRESHOLD) -> Tensor | None:
    """Mask of the pixels that are not clipped at full scale; `None` when none is.

    A clipped pixel hides how bright it was, by any amount. Deep inside a highlight that does no harm: what is blurred
    into such a pixel is clipped as well, and restored as full scale; so paper and overcast skies stay white. Pixels
    clipped at black stay: no light is negative, so all that is cut off there is noise, which moves their mean by 0.4
    sigma at most.

    Args:
        pixels: `(C, H, W)` of a photograph, in [0, 1]; values above 1 tell that nothing was clipped.
        threshold: value from which a channel is clipped.

    Returns:
        `(1, H, W)`, 1 for the pixels that count, 0 for the rims of highlights, all of small ones, and 2 px around them;
        or `None`.

    Raises:
        InputError: a threshold outside (0, 1], or fewer than a tenth of the pixels count.
    """
    if not 0 < threshold <= 1:
        raise InputError(f"Expected a saturation level in (0, 1], got {threshold}; set saturation=0.98 or null.")
    clipped = (pixels >= threshold).any(0).float()[None, None]
    if not clipped.any() or pixels.max() > 1:
        return None
    crowd = WINDOW**2 * F.avg_pool2d(clipped, WINDOW, 1, WINDOW // 2)
    highlights = clipped * (crowd.round() >= ENOUGH)
    around = F.max_pool2d(highlights, 2 * MARGIN + 1, 1, MARGIN)
    kept = float(1 - around.mean())
    if kept < LEAST_KEPT:
        raise InputError(
            f"Expected at least {LEAST_KEPT:.0%} of the pixels below full scale, got {kept:.0%}; "
            "use a darker exposure, or saturation=null to restore it all the same."
        )
    # Beyond the frame a highlight goes on: max_pool2d pads with what no maximum takes.
    inside = 1 - F.max_pool2d(1 - around, 2 * (DEPTH + MARGIN) + 1, 1, DEPTH + MARGIN)
    mask = (1 - around + inside)[0]
    return None if bool(torch.all(mask == 1)) else mask
