"""Warping an image by a tilt field, and the exact adjoint in the image.

    (T_phi x)(r, c) = x(r + phi[1](r, c), c + phi[0](r, c)),

bilinear between pixels. Shapes: image `(B, *, H, W)` with any axes `*` (channels, particles), tilt `(B, 2, H, W)` in
pixels, one field for each entry of the batch, channel 0 along x (columns) and channel 1 along y (rows, downwards).

What lies beyond the frame is named as in `codiffuse.fourier`: `circular`, `reflect`, `symmetric`, `replicate`, or
`zero` with its `pad_value`; the scene is continued first and interpolated then, so `T_phi` with a constant integer
tilt is a shift of the continued image, however far it goes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from codiffuse import fourier
from codiffuse.errors import InputError


def warp(image: Tensor, tilt: Tensor, boundary: str, pad_value: float = 0.0) -> Tensor:
    """`T_phi x`: reads the image where the tilt points (BlindDPS, Eq. 13).

    Linear in the image, affine where `pad_value` is not 0. Differentiable in both; where a position falls on a pixel,
    the interpolant has a kink and the derivative in the tilt is one-sided.

    Args:
        image: `(B, *, H, W)`, of any size.
        tilt: `(B, 2, H, W)` in pixels.
        boundary: `circular`, `reflect`, `symmetric`, `replicate` or `zero`.
        pad_value: the constant outside the frame for `zero`.

    Returns:
        Shaped like the image.

    Raises:
        InputError: another boundary, or not one tilt field of the image's size for each image.
    """
    height, width = image.shape[-2:]
    if tilt.shape != (len(image), 2, height, width):
        raise InputError(
            f"expected one tilt field for each of the {len(image)} images, ({len(image)}, 2, {height}, {width}), "
            f"got {tuple(tilt.shape)}; expand the tilt explicitly to share it"
        )
    # With one pixel of the scene around it, the image holds all neighbours of every folded position.
    padded = fourier.pad(image, (1, 1, 1, 1), boundary, pad_value)
    pixels = {"dtype": tilt.dtype, "device": tilt.device}
    x = _folded(torch.arange(width, **pixels) + tilt[:, 0], width, boundary)
    y = _folded(torch.arange(height, **pixels)[:, None] + tilt[:, 1], height, boundary)
    # -1 and 1 are the centres of the first and the last pixel of the padded image, which are -1 and `width`.
    grid = torch.stack([2 * (x + 1) / (width + 1) - 1, 2 * (y + 1) / (height + 1) - 1], dim=-1)  # (B, H, W, 2)
    planes = padded.reshape(len(image), -1, height + 2, width + 2)
    sampled = F.grid_sample(planes, grid, mode="bilinear", padding_mode="border", align_corners=True)
    return sampled.reshape(image.shape)


def warp_adjoint(residual: Tensor, tilt: Tensor, boundary: str) -> Tensor:
    """`T_phi^T r`, of the linear part for `zero`: every value goes back to the pixels it was interpolated from.

    Not differentiable itself.

    Args:
        residual: `(B, *, H, W)`.
        tilt: `(B, 2, H, W)` in pixels.
        boundary: as for `warp`.

    Returns:
        Shaped like the residual.

    Raises:
        InputError: as for `warp`.
    """
    with torch.enable_grad():
        image = torch.zeros_like(residual, requires_grad=True)
        return torch.autograd.grad(warp(image, tilt.detach(), boundary), image, residual)[0]


def _folded(position: Tensor, size: int, boundary: str) -> Tensor:
    """Positions on an axis moved into [-1, size] where the continued image has the same value.

    For `replicate` and `zero` the image is constant from there on, and the sampler clips.
    """
    match boundary:
        case "circular":
            return position % size
        case "symmetric":
            offset = (position + 0.5) % (2 * size)
            return torch.minimum(offset, 2 * size - offset) - 0.5
        case "reflect":
            period = max(2 * (size - 1), 1)
            offset = position % period
            return torch.minimum(offset, period - offset)
    return position
