"""How large a kernel is, and how large its support has to be, judged from the kernel itself."""

from __future__ import annotations

from torch import Tensor

RING_SHARE = 1 / 16  # width of the border ring over the side of the support


def border_mass(kernel: Tensor) -> Tensor:
    """`(B,)` share of a kernel `(B, 1, h, w)` of sum one that lies in the outermost pixels of its support.

    A blur longer than the support piles up there, so a large share asks for a larger kernel.
    """
    h, w = kernel.shape[-2:]
    top, left = max(1, round(RING_SHARE * h)), max(1, round(RING_SHARE * w))
    return 1 - kernel[..., top : h - top, left : w - left].sum((1, 2, 3))


def kernel_pixels(kernel: Tensor) -> Tensor:
    """`(B,)` pixels that the kernel's mass is spread over, `1 / sum k^2`: 1 for a delta, `h w` for a constant.

    A faint tail beside a peak, which is what a blind method finds where there is no blur, hardly counts.
    """
    mass = kernel.double().flatten(1)
    return mass.sum(1).square() / mass.square().sum(1)


def grown(size: int) -> int:
    """The next odd size to try: half as large again."""
    return int(1.5 * size) | 1
