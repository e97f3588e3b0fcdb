"""Convolution of images with kernels by FFT, at a named boundary, and its exact adjoints.

Shapes: an image is `(B, *, H, W)`, where `*` is any number of axes (channels, particles); a kernel is `(B, 1, h, w)`,
one for each entry of the batch, odd or even, with its centre at index `(h // 2, w // 2)`. In one dimension, with
`c = h // 2`,

    y[i] = sum_j k[j] x[i + c - j],

so a delta at the centre is the identity. What `x` is outside its frame is the boundary:

- `circular`: periodic.
- `reflect`: mirrored about the edge pixel, which is not repeated; `symmetric`: mirrored with the edge pixel repeated.
- `replicate`: the edge pixel goes on for ever.
- `zero`: the constant `pad_value`. When that is not 0 the convolution is affine in the image (and still linear in the
  kernel); `correlate` is the adjoint of its linear part.
- `valid`: nothing; `y` has `(H - h + 1, W - w + 1)` pixels.
- `unknown`: as `valid`, for a photograph whose scene continues beyond the frame. `y` fills the whole frame and the
  image lives on a canvas larger by `(h - 1, w - 1)`, which whoever restores it crops with `crop_to_frame`.

Everything is a pure function, float32 or float64 on any device, differentiable in the image and in the kernel.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fft import irfft2, rfft2

from codiffuse.errors import InputError

BOUNDARIES = ("circular", "reflect", "symmetric", "replicate", "zero", "valid", "unknown")

Size = tuple[int, int]
Margins = tuple[int, int, int, int]  # top, bottom, left, right


def kernel_otf(kernel: Tensor, shape: Size) -> Tensor:
    """The kernel's transfer function on a periodic grid: its real FFT with the centre at the origin.

    Args:
        kernel: `(B, 1, h, w)`.
        shape: the grid `(H, W)`, no smaller than the kernel.

    Returns:
        Complex `(B, 1, H, W // 2 + 1)`.

    Raises:
        InputError: the kernel is larger than the grid.
    """
    (h, w), (height, width) = kernel.shape[-2:], shape
    if h > height or w > width:
        raise InputError(
            f"expected a kernel that fits the periodic grid of {height} x {width} pixels, got {h} x {w}; "
            "use a smaller kernel, a larger image, or a boundary other than 'circular'"
        )
    grid = F.pad(kernel, (0, width - w, 0, height - h))
    return rfft2(grid.roll((-(h // 2), -(w // 2)), dims=(-2, -1)))


def otf_to_kernel(otf: Tensor, shape: Size, kernel_size: Size) -> Tensor:
    """The `(h, w)` pixels around the origin of a transfer function `(..., H, W // 2 + 1)`: undoes `kernel_otf`."""
    h, w = kernel_size
    return irfft2(otf, s=shape).roll((h // 2, w // 2), dims=(-2, -1))[..., :h, :w]


def over_image(per_kernel: Tensor, image: Tensor) -> Tensor:
    """Views a kernel or transfer function `(B, 1, a, b)` as `(B, 1, ..., 1, a, b)`, with as many axes as the image."""
    return per_kernel.reshape(len(per_kernel), *[1] * (image.ndim - 3), *per_kernel.shape[-2:])


def over_batch(per_image: Tensor, image: Tensor) -> Tensor:
    """Views `(B,)` as `(B, 1, ..., 1)`, with as many axes as the image."""
    return per_image.reshape(-1, *[1] * (image.ndim - 1))


def abs2(spectrum: Tensor) -> Tensor:
    """`|z|^2` of a complex tensor."""
    return spectrum.real.square() + spectrum.imag.square()


def sum_middle(planes: Tensor) -> Tensor:
    """Sums `(B, *, a, b)` over the axes `*`, to `(B, 1, a, b)`."""
    return planes.reshape(len(planes), -1, *planes.shape[-2:]).sum(dim=1, keepdim=True)


def reach(kernel_size: Size) -> Margins:
    """How many pixels a kernel of this size reads beyond the top, bottom, left and right of the frame."""
    h, w = kernel_size
    return h - 1 - h // 2, h // 2, w - 1 - w // 2, w // 2


def crop_to_frame(canvas: Tensor, kernel_size: Size) -> Tensor:
    """Crops an `unknown` canvas `(..., H + h - 1, W + w - 1)` to what the photograph shows, `(..., H, W)`."""
    top, bottom, left, right = reach(kernel_size)
    return canvas[..., top : canvas.shape[-2] - bottom, left : canvas.shape[-1] - right]


def pad(image: Tensor, margins: Margins, boundary: str, pad_value: float = 0.0) -> Tensor:
    """Continues an image beyond its frame; the margins may exceed the image.

    Args:
        image: `(..., H, W)`.
        margins: pixels to add at the top, bottom, left, right.
        boundary: `circular`, `reflect`, `symmetric`, `replicate` or `zero`.
        pad_value: the constant outside the frame for `zero`.

    Returns:
        `(..., H + top + bottom, W + left + right)`.
    """
    top, bottom, left, right = margins
    if boundary == "zero":
        return F.pad(image, (left, right, top, bottom), value=pad_value)
    rows = _source_index(image.shape[-2], top, bottom, boundary, image.device)
    columns = _source_index(image.shape[-1], left, right, boundary, image.device)
    return image.index_select(-2, rows).index_select(-1, columns)


def unpad_adjoint(padded: Tensor, margins: Margins, boundary: str) -> Tensor:
    """The adjoint of `pad` (of its linear part for `zero`): every pixel is added to the one it was copied from.

    Args:
        padded: `(..., H + top + bottom, W + left + right)`.
        margins: the margins given to `pad`.
        boundary: the boundary given to `pad`.

    Returns:
        `(..., H, W)`.
    """
    top, bottom, left, right = margins
    height, width = padded.shape[-2] - top - bottom, padded.shape[-1] - left - right
    if boundary == "zero":
        return padded[..., top : top + height, left : left + width]
    rows = _source_index(height, top, bottom, boundary, padded.device)
    columns = _source_index(width, left, right, boundary, padded.device)
    folded = padded.new_zeros(*padded.shape[:-2], height, padded.shape[-1]).index_add(-2, rows, padded)
    return padded.new_zeros(*padded.shape[:-2], height, width).index_add(-1, columns, folded)


def extend(image: Tensor, kernel_size: Size, boundary: str, pad_value: float = 0.0) -> Tensor:
    """All the pixels that a convolution with a kernel of this size reads, in and out of the frame."""
    if boundary in ("valid", "unknown"):
        return image
    return pad(image, reach(kernel_size), boundary, pad_value)


def fast_shape(shape: Size) -> Size:
    """The smallest grid of at least this shape whose real FFT is fast."""
    from scipy.fft import next_fast_len

    return next_fast_len(shape[0], real=True), next_fast_len(shape[1], real=True)


def convolve(image: Tensor, kernel: Tensor, boundary: str, pad_value: float = 0.0) -> Tensor:
    """The true convolution `k * x`.

    Args:
        image: `(B, *, H, W)`.
        kernel: `(B, 1, h, w)`.
        boundary: one of `BOUNDARIES`.
        pad_value: the constant outside the frame for `zero`.

    Returns:
        `(B, *, H, W)`; `(B, *, H - h + 1, W - w + 1)` for `valid` and `unknown`.

    Raises:
        InputError: an unknown boundary, batches that differ, or a kernel too large for `circular`, `valid`, `unknown`.
    """
    _check(image, kernel, boundary)
    shape, (h, w) = image.shape[-2:], kernel.shape[-2:]
    if boundary == "circular":
        return irfft2(rfft2(image) * over_image(kernel_otf(kernel, shape), image), s=shape)
    padded = extend(image, (h, w), boundary, pad_value)
    height, width = padded.shape[-2:]
    if h > height or w > width:
        raise InputError(f"expected an image of at least {h} x {w} pixels for {boundary!r}, got {height} x {width}")
    # A grid of the padded image is enough: the periodic wrap falls on the first h - 1 rows and w - 1 columns only.
    grid = fast_shape((height, width))
    product = rfft2(padded, s=grid) * over_image(rfft2(kernel, s=grid), image)
    return irfft2(product, s=grid)[..., h - 1 : height, w - 1 : width]


def correlate(residual: Tensor, kernel: Tensor, boundary: str) -> Tensor:
    """The adjoint of `convolve` in the image: `<k * x, r> = <x, correlate(r, k)>`, for its linear part.

    Args:
        residual: `(B, *, H', W')`, shaped like the result of `convolve`.
        kernel: `(B, 1, h, w)`.
        boundary: one of `BOUNDARIES`.

    Returns:
        `(B, *, H, W)`, shaped like the image: `(H' + h - 1, W' + w - 1)` for `valid` and `unknown`, else `(H', W')`.

    Raises:
        InputError: an unknown boundary, batches that differ, or a kernel too large for `circular`.
    """
    _check(residual, kernel, boundary)
    shape, (h, w) = residual.shape[-2:], kernel.shape[-2:]
    if boundary == "circular":
        return irfft2(rfft2(residual) * over_image(kernel_otf(kernel, shape), residual).conj(), s=shape)
    height, width = shape[0] + h - 1, shape[1] + w - 1
    grid = fast_shape((height, width))
    embedded = F.pad(residual, (w - 1, 0, h - 1, 0))
    product = rfft2(embedded, s=grid) * over_image(rfft2(kernel, s=grid), residual).conj()
    extended = irfft2(product, s=grid)[..., :height, :width]
    return extended if boundary in ("valid", "unknown") else unpad_adjoint(extended, reach((h, w)), boundary)


def kernel_adjoint(image: Tensor, residual: Tensor, boundary: str, kernel_size: Size, pad_value: float = 0.0) -> Tensor:
    """The adjoint of `convolve` in the kernel: `<k * x, r> = <k, kernel_adjoint(x, r)>`, summed over the axes `*`.

    Args:
        image: `(B, *, H, W)`.
        residual: `(B, *, H', W')`, shaped like the result of `convolve`, or broadcast over its axes `*`.
        boundary: one of `BOUNDARIES`.
        kernel_size: `(h, w)`.
        pad_value: the constant outside the frame for `zero`; it counts, as the convolution is linear in the kernel.

    Returns:
        `(B, 1, h, w)`.
    """
    h, w = kernel_size
    if boundary == "circular":
        cross = rfft2(image).conj() * rfft2(residual)
        return otf_to_kernel(sum_middle(cross), image.shape[-2:], kernel_size)
    padded = extend(image, kernel_size, boundary, pad_value)
    grid = fast_shape(padded.shape[-2:])
    cross = rfft2(padded, s=grid).conj() * rfft2(F.pad(residual, (w - 1, 0, h - 1, 0)), s=grid)
    return irfft2(sum_middle(cross), s=grid)[..., :h, :w]


def cross_correlate(kernel: Tensor, other: Tensor) -> Tensor:
    """`c(s) = sum_r kernel(r - s) other(r)` at all shifts s, both zero outside their support.

    Args:
        kernel: `(..., h, w)`.
        other: `(..., h', w')`.

    Returns:
        `(..., h + h' - 1, w + w' - 1)`; index (i, j) is the shift `(i - h + 1, j - w + 1)` between the first pixels.
    """
    size = [a + b - 1 for a, b in zip(kernel.shape[-2:], other.shape[-2:], strict=True)]
    # Correlating with a kernel is convolving with its mirror image.
    return irfft2(rfft2(kernel.flip(-2, -1), s=size) * rfft2(other, s=size), s=size)


def _source_index(size: int, before: int, after: int, boundary: str, device: torch.device) -> Tensor:
    """For each pixel of a padded axis, the pixel of the axis it is copied from."""
    index = torch.arange(-before, size + after, device=device)
    match boundary:
        case "circular":
            return index % size
        case "replicate":
            return index.clamp(0, size - 1)
        case "symmetric":
            index = index % (2 * size)
            return torch.minimum(index, 2 * size - 1 - index)
        case "reflect":
            period = max(2 * (size - 1), 1)
            index = index % period
            return torch.minimum(index, period - index)
    raise InputError(f"expected circular, reflect, symmetric, replicate or zero to pad with, got {boundary!r}")


def _check(image: Tensor, kernel: Tensor, boundary: str) -> None:
    if boundary not in BOUNDARIES:
        raise InputError(f"expected a boundary among {', '.join(BOUNDARIES)}, got {boundary!r}")
    if kernel.ndim != 4 or kernel.shape[1] != 1 or len(kernel) != len(image):
        raise InputError(
            f"expected one kernel for each of the {len(image)} images, ({len(image)}, 1, h, w), "
            f"got {tuple(kernel.shape)}; expand the kernel explicitly to share it"
        )
