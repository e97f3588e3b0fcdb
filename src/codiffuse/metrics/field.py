"""Score of an estimated tilt field: one float64 number a field, blind to a common shift."""

import torch.nn.functional as F
from torch import Tensor

from codiffuse.errors import InputError


def endpoint_error(estimate: Tensor, truth: Tensor, border: int) -> Tensor:
    """Mean Euclidean distance between two tilt fields without their common shift, `(B,)` in px; 0 is best.

    A shift of the image and the opposite constant in the tilt leave the measurement as it is, so the mean difference
    over the scored pixels is taken off first. The mean and not the median, as it is the constant of least squares in
    whatever direction the axes lie, and as fields score against zero with their own spread about it.

    A kernel that is off by a shift moves a field that is applied before the blur bodily, too; that is not undone.

    Args:
        estimate: `(B, 2, H, W)` in pixels.
        truth: likewise; zeros for the size of a field.
        border: margin in px that is not scored: what is read from beyond the frame is not in the measurement.

    Raises:
        InputError: shapes that differ, or a border that leaves no pixels.
    """
    if estimate.shape != truth.shape or truth.ndim != 4 or truth.shape[1] != 2:
        raise InputError(
            f"expected two tilt fields of one shape (B, 2, H, W), got {tuple(estimate.shape)} and {tuple(truth.shape)}"
        )
    if not 0 <= 2 * border < min(truth.shape[-2:]):
        raise InputError(
            f"expected 0 <= border < half a side of the field of {truth.shape[-2]} x {truth.shape[-1]} px, got {border}"
        )
    difference = F.pad(estimate.double() - truth.double(), (-border,) * 4)
    return (difference - difference.mean(dim=(2, 3), keepdim=True)).norm(dim=1).mean(dim=(1, 2))
