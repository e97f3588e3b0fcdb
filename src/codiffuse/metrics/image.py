"""Scores of a restored image against the truth, and against the measurement: one float64 number an image.

Images are `(B, C, H, W)` in [0, 1]. Scores against the truth clip both images to [0, 1] first and never round them to
8 bits.

Blind restoration fixes the image only up to a shift, so the headline is `psnr_aligned`, and the gain of a restoration
is `psnr_aligned(restored, ...) - psnr_aligned(measurement, ...)` with the same `max_shift` and `border`.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fft import fftfreq, irfft2, rfft2, rfftfreq

from codiffuse.errors import InputError

NEWTON_STEPS = 3  # a fourth changes the PSNR of natural images by less than 1e-5 dB


def psnr(estimate: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio `-10 log10(mean((estimate - truth)^2))` in dB, `(B,)`; infinite for equal images."""
    estimate, truth = _scored_pair(estimate, truth)
    return -10 * _mse(estimate, truth).log10()


def ssim(estimate: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004), mean over channels, `(B,)`.

    Gaussian window of 1.5 px cut to 11 x 11, population covariances. The outer 5 px, where the window leaves the image,
    are not counted.

    Raises:
        InputError: a side is below 11 px.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    estimate, truth = _scored_pair(estimate, truth)
    if min(truth.shape[-2:]) < 11:
        raise InputError(f"SSIM needs images of at least 11 px a side, got {truth.shape[-2]} x {truth.shape[-1]}")
    # The first of the two results would count the outer pixels too.
    _, similarity = structural_similarity_index_measure(
        estimate, truth, sigma=1.5, data_range=1.0, reduction="none", return_full_image=True
    )
    return _crop(similarity, 5).mean(dim=(1, 2, 3))


def psnr_aligned(estimate: Tensor, truth: Tensor, max_shift: int, border: int) -> Tensor:
    """PSNR in dB, `(B,)`, of the estimate moved by `align`, over the truth's pixels at least `border` from its edge.

    The scored pixels are the same for every estimate, so numbers with equal `max_shift` and `border` compare. Never
    below the plain PSNR of these pixels.
    """
    aligned, _ = align(estimate, truth, max_shift, border)
    return psnr(_crop(aligned, border), _crop(truth, border))


def align(estimate: Tensor, truth: Tensor, max_shift: int, border: int) -> tuple[Tensor, Tensor]:
    """Moves the estimate to where it matches the truth best.

    The error is the mean squared difference over the interior: the truth's pixels at least `border` from its edge.
    1. Among all integer shifts of up to `max_shift` rows and columns the one of least error wins (exhaustive).
    2. From there Newton's method seeks the sub-pixel shift of least error, at most 1 px away in rows and columns. It is
       kept if the error falls. Pixels between the grid come from the Fourier series of the symmetric extension; it
       passes every frequency alike, so a noisy image cannot gain by being smoothed.

    Args:
        estimate: image `(B, C, H, W)`, clipped to [0, 1] before and after the move.
        truth: image of the same shape.
        max_shift: largest integer shift in px.
        border: margin in px that is not scored, at least `max_shift`: no wrapped pixel is scored in step 1.

    Returns:
        The moved estimate `(B, C, H, W)`, float64, and the shift `(B, 2)` (rows, columns) in px:
        `aligned(r, c) = estimate(r - shift[0], c - shift[1])`.

    Raises:
        InputError: the border is smaller than the shift or leaves no pixels.
    """
    estimate, truth = _scored_pair(estimate, truth)
    if not 0 <= max_shift <= border or 2 * border >= min(truth.shape[-2:]):
        raise InputError(
            f"align needs 0 <= max_shift <= border < half the image's side, got max_shift {max_shift}, border {border} "
            f"and an image of {truth.shape[-2]} x {truth.shape[-1]} px: lower them or use larger images"
        )
    shift = _integer_shift(estimate, truth, max_shift, border)
    periodic = _symmetric_extension(estimate)
    rolled = torch.stack([image.roll(tuple(s), (-2, -1)) for image, s in zip(periodic, shift.tolist(), strict=True)])
    fraction, moved = _subpixel_shift(rolled, truth, border)

    height, width = truth.shape[-2:]
    rolled = rolled[..., :height, :width]
    interior = _crop(truth, border)
    better = _mse(_crop(moved, border), interior) < _mse(_crop(rolled, border), interior)
    aligned = torch.where(better[:, None, None, None], moved, rolled)
    return aligned, shift + torch.where(better[:, None], fraction, 0.0)


def reblur(y: Tensor, estimate: Tensor, kernel: Tensor, sigma: Tensor, operator: Callable[..., Tensor]) -> Tensor:
    """Excess of the residual over the noise, `mean((A x - y)^2) - sigma^2`, `(B,)`: needs no truth, nothing is clipped.

    Fast Diffusion EM, Eq. (34), divided by the number of pixels. About 0 when image and kernel explain the measurement;
    positive when they do not, negative when they fit its noise.

    Args:
        y: measurement `(B, C, H, W)`.
        estimate: image `(B, C, H', W')` of the shape the operator takes.
        kernel: `(B, 1, h, w)`.
        sigma: noise level `(B,)`.
        operator: forward model, called as `operator(estimate, kernel=kernel)`.
    """
    residual = operator(estimate, kernel=kernel).double() - y.double()
    return residual.square().mean(dim=(1, 2, 3)) - sigma.double().square()


def _scored_pair(estimate: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    if estimate.shape != truth.shape:
        raise InputError(f"expected two images of one shape, got {tuple(estimate.shape)} and {tuple(truth.shape)}")
    return estimate.double().clamp(0, 1), truth.double().clamp(0, 1)


def _mse(estimate: Tensor, truth: Tensor) -> Tensor:
    return (estimate - truth).square().mean(dim=(1, 2, 3))


def _crop(image: Tensor, border: int) -> Tensor:
    return F.pad(image, (-border,) * 4)


def _symmetric_extension(image: Tensor) -> Tensor:
    """One period `(B, C, 2H, 2W)` of the image mirrored at its edges: it has no jump at the wrap-around."""
    image = torch.cat([image, image.flip(-1)], dim=-1)
    return torch.cat([image, image.flip(-2)], dim=-2)


def _integer_shift(estimate: Tensor, truth: Tensor, max_shift: int, border: int) -> Tensor:
    """Integer shift `(B, 2)` of least squared error on the interior."""
    window = _crop(estimate, border - max_shift)  # all that the interior can see
    interior = _crop(truth, border)
    # sum (E - T)^2 = sum E^2 - 2 sum E T + const, for every position of the interior in the window.
    energy = _valid_correlation(window.square(), torch.ones_like(interior))
    error = energy - 2 * _valid_correlation(window, interior)  # (B, 2m + 1, 2m + 1)
    best = error.flatten(1).argmin(1)
    num_columns = error.shape[-1]
    return max_shift - torch.stack([best // num_columns, best % num_columns], dim=-1)


def _valid_correlation(image: Tensor, template: Tensor) -> Tensor:
    """Sum over channels and pixels of image times template, for each place where the template lies inside the image."""
    size = image.shape[-2:]
    correlation = irfft2(rfft2(image) * rfft2(template, s=size).conj(), s=size).sum(1)
    return correlation[:, : size[0] - template.shape[-2] + 1, : size[1] - template.shape[-1] + 1]


def _subpixel_shift(periodic: Tensor, truth: Tensor, border: int) -> tuple[Tensor, Tensor]:
    """Newton's method on the squared error over the interior, started at zero shift.

    Args:
        periodic: symmetric extension of the estimate, rolled to the best integer shift, `(B, C, 2H, 2W)`.
        truth: `(B, C, H, W)`.
        border: margin that is not scored.

    Returns:
        The shift `(B, 2)` and the image moved by it, `(B, C, H, W)`.
    """
    (height, width), size = truth.shape[-2:], periodic.shape[-2:]
    omega_y = 2 * torch.pi * fftfreq(size[0], dtype=truth.dtype, device=truth.device)[:, None]
    omega_x = 2 * torch.pi * rfftfreq(size[1], dtype=truth.dtype, device=truth.device)

    def image_of(spectrum: Tensor) -> Tensor:
        return irfft2(spectrum, s=size)[..., :height, :width]

    def moved_by(shift: Tensor) -> Tensor:
        s_y, s_x = shift[:, :, None, None, None].unbind(1)
        return spectrum * torch.exp(-1j * (omega_y * s_y + omega_x * s_x))

    def gradient(spectrum: Tensor) -> Tensor:
        parts = [_crop(image_of(1j * omega * spectrum), border).flatten(1) for omega in (omega_y, omega_x)]
        return torch.stack(parts, dim=1)  # (B, 2, C h w)

    spectrum = rfft2(periodic)
    truth_gradient = gradient(rfft2(_symmetric_extension(truth)))
    ridge = 1e-9 * torch.eye(2, dtype=truth.dtype, device=truth.device)  # keeps the system of a flat image solvable
    shift = truth.new_zeros(len(truth), 2)
    for _ in range(NEWTON_STEPS):
        moved = moved_by(shift)
        residual = _crop(image_of(moved) - truth, border).flatten(1)
        moved_gradient = gradient(moved)
        # The energy of the moved image hardly changes, so the Hessian is that of -<moved, truth>. Gauss-Newton's
        # <grad moved, grad moved> is too small for a blurred image, and its steps overshoot.
        hessian = torch.einsum("bin,bjn->bij", moved_gradient, truth_gradient)
        hessian = (hessian + hessian.mT) / 2 + ridge
        step = torch.linalg.solve(hessian, torch.einsum("bin,bn->bi", moved_gradient, residual))
        shift = (shift + step).clamp(-1, 1)
    return shift, image_of(moved_by(shift)).clamp(0, 1)
