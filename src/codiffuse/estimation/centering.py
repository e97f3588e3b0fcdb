"""Recentring of kernels: image and kernel are only defined up to opposite shifts, and the kernel drifts without it."""

from __future__ import annotations

import torch
from torch import Tensor

from codiffuse.spaces import shift_and_divide


def centre_of_mass(kernel: Tensor) -> Tensor:
    """`(B, 1, h, w)` of sum one -> `(B, 2)`: row and column."""
    h, w = kernel.shape[-2:]
    rows = torch.arange(h, device=kernel.device, dtype=kernel.dtype)
    columns = torch.arange(w, device=kernel.device, dtype=kernel.dtype)
    mass = kernel.sum((1, 2, 3)).clamp(min=1e-12)
    row = (kernel.sum((1, 3)) * rows).sum(1) / mass
    return torch.stack([row, (kernel.sum((1, 2)) * columns).sum(1) / mass], 1)


def recentre_integer(kernel: Tensor) -> Tensor:
    """Shift each kernel by whole pixels so that its centre of mass lies within half a pixel of (h // 2, w // 2).

    What leaves the support is lost, and the rest is divided by its sum; no value is interpolated and nothing is copied
    to the host.
    """
    h, w = kernel.shape[-2:]
    row, column = centre_of_mass(kernel).unbind(1)
    rows, columns = (row - h // 2).round().long(), (column - w // 2).round().long()  # (B,)
    return shift_and_divide(moved(kernel, -rows, -columns))


def moved(kernel: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Each kernel of `(B, 1, h, w)`, by whole pixels `(B,)` down and to the right; what leaves the support is lost."""
    return _shift_axis(_shift_axis(kernel, -rows, -2), -columns, -1)


def recentre_spline(kernel: Tensor) -> Tensor:
    """The released Fast EM's recentring: cubic-spline shift by the exact offset, on the CPU, not renormalised.

    NOTE(paper vs code): not in the paper. It can leave negative values and a sum other than one.
    """
    import numpy as np
    from scipy import ndimage

    shifted = []
    for k in kernel.detach().double().cpu().numpy():
        # An even support has its middle between two pixels; the program aims one half beyond n // 2 there.
        target = np.array([n // 2 + (0.5 if n % 2 == 0 else 0.0) for n in k.shape[-2:]])
        shifted.append(ndimage.shift(k[0], target - ndimage.center_of_mass(k[0]), order=3)[None])
    return torch.from_numpy(np.stack(shifted)).to(kernel)


def _shift_axis(kernel: Tensor, shift: Tensor, axis: int) -> Tensor:
    """out[i] = kernel[i + shift] along an axis, zero beyond the edge; `shift` is `(B,)`."""
    size = kernel.shape[axis]
    shape = [1, 1, 1, 1]
    shape[axis] = size
    source = torch.arange(size, device=kernel.device).reshape(shape) + shift.reshape(-1, 1, 1, 1)
    inside = (source >= 0) & (source < size)
    return kernel.gather(axis, source.clamp(0, size - 1).expand_as(kernel)) * inside
