"""Small convolutional denoisers: DnCNN and FDnCNN (Zhang et al. 2017), FFDNet (Zhang et al. 2018).

State-dict compatible with the KAIR releases. All take `(B, C, H, W)` and a noise level `(B,)`, and see the level as one
more channel, constant over the picture.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DnCNN(nn.Module):
    """A plain stack of 3x3 convolutions.

    Args:
        channels: channels of the picture.
        width: channels of the hidden layers.
        depth: number of convolutions.
        bias: off gives a network that is homogeneous of degree one in (picture, level), so it works at any scale.
        noise_map: feed the level as an extra channel (FDnCNN); off is the plain DnCNN, blind to the level.
        residual: predict the noise and subtract it (DnCNN) instead of the clean picture (FDnCNN).
    """

    def __init__(
        self,
        channels: int = 1,
        width: int = 32,
        depth: int = 5,
        bias: bool = True,
        noise_map: bool = True,
        residual: bool = False,
    ) -> None:
        super().__init__()
        self.in_channels, self.noise_map, self.residual = channels, noise_map, residual
        self.model = _conv_stack(channels + noise_map, channels, width, depth, bias)

    def forward(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        """Denoise `(B, C, H, W)` with noise level `sigma` `(B,)`, in the units of `noisy`."""
        output = self.model(_with_noise_map(noisy, sigma) if self.noise_map else noisy)
        return noisy - output if self.residual else output


class FFDNet(nn.Module):
    """The same stack on four sub-sampled pictures: four times faster, with a larger receptive field."""

    def __init__(self, channels: int = 1, width: int = 64, depth: int = 15, bias: bool = True) -> None:
        super().__init__()
        self.in_channels = channels
        self.model = _conv_stack(4 * channels + 1, 4 * channels, width, depth, bias)

    def forward(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        """Denoise `(B, C, H, W)` with noise level `sigma` `(B,)`; odd sizes are extended by repeating the edge."""
        height, width = noisy.shape[-2:]
        even = F.pad(noisy, (0, width % 2, 0, height % 2), mode="replicate")
        output = self.model(_with_noise_map(F.pixel_unshuffle(even, 2), sigma))
        return F.pixel_shuffle(output, 2)[..., :height, :width]


def _conv_stack(channels_in: int, channels_out: int, width: int, depth: int, bias: bool) -> nn.Sequential:
    widths = [channels_in, *[width] * (depth - 1), channels_out]
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Conv2d(before, after, 3, padding=1, bias=bias), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1])


def _with_noise_map(picture: Tensor, sigma: Tensor) -> Tensor:
    level = sigma.to(picture).reshape(-1, 1, 1, 1).expand(len(picture), 1, *picture.shape[-2:])
    return torch.cat([picture, level], 1)
