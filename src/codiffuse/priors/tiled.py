"""A prior for pictures of any size: its network sees them by tiles that overlap, as one denoiser.

The backward pass of a network keeps all its activations, which for a large picture no memory holds. With tiles, whose
results are blended by smooth weights that sum to 1,

    D(x_t) = sum_i w_i D_i(x_t),

only those of a tile are needed at a time. As the tiles are blended at every step of a sampler, they cannot drift apart,
and whatever couples the whole picture, the kernel above all, does so undisturbed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise, product

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from codiffuse.priors.prior import Denoised, Prior
from codiffuse.spaces import Space

Box = tuple[slice, slice]


@dataclass(frozen=True)
class Axis:
    """Tiles along one axis.

    Attributes:
        side: of every tile, px.
        starts: their first pixels, in order.
    """

    side: int
    starts: tuple[int, ...]

    def shares(self, ramp: int) -> list[Tensor]:
        """What each tile contributes to each of its pixels: raised cosines that sum to 1 over the tiles.

        Args:
            ramp: px over which one tile gives way to the next, in the middle of what they have in common.

        Returns:
            For each tile `(side,)`, float32.
        """
        position = torch.arange(self.starts[-1] + self.side, dtype=torch.float64) + 0.5
        risen = [torch.ones_like(position)]
        for before, start in pairwise(self.starts):
            phase = ((position - (start + before + self.side) / 2) / ramp + 0.5).clamp(0, 1)
            risen.append((1 - (math.pi * phase).cos()) / 2)
        risen.append(torch.zeros_like(position))
        shares = [here - after for here, after in pairwise(risen)]
        return [share[start : start + self.side].float() for share, start in zip(shares, self.starts, strict=True)]


def tile_axis(length: int, tile: int, overlap: int, multiple: int) -> Axis:
    """As few tiles as cover an axis, all of one side, as small as that number allows, and evenly spread.

    Args:
        length: of the axis, px.
        tile: largest side of a tile, px, at least `overlap + 2 * multiple`.
        overlap: px that neighbours share at least.
        multiple: all tiles start at multiples of it, so that a network of that stride sees every pixel on one grid.
    """
    if length <= tile:
        return Axis(length, (0,))

    def count(side: int) -> int:
        return math.ceil((length - side) / ((side - overlap) // multiple * multiple)) + 1

    side = length - math.ceil((length - tile) / multiple) * multiple
    while side - multiple >= overlap + multiple and count(side - multiple) == count(side):
        side -= multiple
    gaps, units = count(side) - 1, (length - side) // multiple
    return Axis(side, tuple(multiple * (i * units // gaps) for i in range(gaps + 1)))


def boxes(rows: Axis, columns: Axis, ramp: int) -> Iterator[tuple[Box, Tensor]]:
    """Where each tile lies, and its share of the result there, `(height, width)`; see `Axis.shares`."""
    along = [list(zip(axis.starts, axis.shares(ramp), strict=True)) for axis in (rows, columns)]
    for (top, of_rows), (left, of_columns) in product(*along):
        yield (slice(top, top + rows.side), slice(left, left + columns.side)), of_rows[:, None] * of_columns


@dataclass(frozen=True)
class TiledPrior:
    """A `Prior` that denoises by tiles.

    Attributes:
        prior: whose network sees the tiles.
        tile: largest side of a tile, px.
        overlap: px that neighbours share at least; they give way to each other over half of it.
        kept: tiles whose activations are kept from the forward to the backward pass; those of the others are computed
            again, which takes half as much time more.
    """

    prior: Prior
    tile: int
    overlap: int
    kept: int = 0

    @property
    def channels(self) -> int:
        """Channels of the variable that the prior describes."""
        return self.prior.channels

    @property
    def space(self) -> Space:
        """Where its coordinates lie."""
        return self.prior.space

    @property
    def stride(self) -> int:
        """The grid on which the network sees its input, px."""
        return getattr(self.prior.network, "stride", 1)

    def axes(self, shape: tuple[int, int]) -> tuple[Axis, Axis]:
        """The tiles of a picture of this height and width."""
        rows, columns = (tile_axis(length, self.tile, self.overlap, self.stride) for length in shape)
        return rows, columns

    def denoise(self, x_t: Tensor, alpha_bar: Tensor) -> Denoised:
        """E[x0 | x_t], differentiable once in `x_t`; arguments as for `Prior.denoise`."""
        return Denoised(*_Blend.apply(x_t, alpha_bar, self))


class _Blend(torch.autograd.Function):
    """The sum of w_i D_i, with a backward pass that holds one tile's activations at a time, beside those kept."""

    @staticmethod
    def forward(ctx, x_t: Tensor, alpha_bar: Tensor, tiled: TiledPrior) -> tuple[Tensor, Tensor | None]:
        ctx.save_for_backward(x_t, alpha_bar)
        ctx.tiled, ctx.graphs = tiled, []
        x0, fraction = torch.zeros_like(x_t), None
        for index, (box, share) in enumerate(_boxes(tiled, x_t)):
            keep = ctx.needs_input_grad[0] and index < tiled.kept
            leaf, denoised = _denoise(tiled.prior, x_t[..., *box], alpha_bar, keep)
            x0[..., *box].addcmul_(denoised.x0.detach(), share)
            if denoised.variance_fraction is not None:
                fraction = torch.zeros_like(x_t) if fraction is None else fraction
                fraction[..., *box].addcmul_(denoised.variance_fraction.detach(), share)
            ctx.graphs.append((leaf, denoised.x0) if keep else None)
        if fraction is not None:
            ctx.mark_non_differentiable(fraction)
        return x0, fraction

    @staticmethod
    @once_differentiable
    def backward(ctx, cotangent: Tensor, _: Tensor | None) -> tuple[Tensor, None, None]:
        x_t, alpha_bar = ctx.saved_tensors
        gradient, graphs = torch.zeros_like(x_t), iter(ctx.graphs)
        for (box, share), graph in zip(_boxes(ctx.tiled, x_t), graphs, strict=True):
            if graph is None:
                leaf, denoised = _denoise(ctx.tiled.prior, x_t[..., *box], alpha_bar, True)
                graph = leaf, denoised.x0
            leaf, x0 = graph
            gradient[..., *box] += torch.autograd.grad(x0, leaf, share * cotangent[..., *box])[0]
        return gradient, None, None


def _boxes(tiled: TiledPrior, x_t: Tensor) -> Iterator[tuple[Box, Tensor]]:
    shape = (x_t.shape[-2], x_t.shape[-1])
    for box, share in boxes(*tiled.axes(shape), tiled.overlap // 2):
        yield box, share.to(x_t)


def _denoise(prior: Prior, x_t: Tensor, alpha_bar: Tensor, keep: bool) -> tuple[Tensor, Denoised]:
    """What the prior makes of a leaf that is a copy of x_t, and that leaf; with a graph if it is to be kept."""
    leaf = x_t.detach().clone().requires_grad_(keep)
    with torch.set_grad_enabled(keep):
        return leaf, prior.denoise(leaf, alpha_bar)
