"""The ADM UNet (Dhariwal & Nichol 2021), state-dict compatible with guided-diffusion checkpoints.

Shapes: images `(B, C, H, W)`, any H x W; time `(B,)`; `F` below is the width of the time embedding, 4 x base channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from codiffuse.errors import InputError


class UNet(nn.Module):
    """Residual UNet with time conditioning.

    Args:
        in_channels: channels of the input picture.
        out_channels: channels of the output; twice the input's when a variance is learned.
        channels: base width; each level has `channels * channel_mult[level]`.
        channel_mult: one factor a level; H and W are halved between levels.
        num_res_blocks: residual blocks a level on the way down (one more on the way up).
        attention_levels: levels (0 = full resolution) with self-attention.
        middle_attention: self-attention at the bottom.
        head_channels: width of an attention head; must divide the width at every level with attention.
        norm_groups: groups of each GroupNorm; must divide every width.
        patch_size: the picture enters as `patch_size`^2 sub-sampled pictures (pixel unshuffle): at equal width the
            network is `patch_size`^2 times faster. 1 is the published form.
        dropout: probability inside the residual blocks.
        use_checkpoint: recompute activations in the backward pass to save memory; works with frozen weights too.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        channels: int = 128,
        channel_mult: Sequence[int] = (1, 1, 2, 2, 4, 4),
        num_res_blocks: int = 1,
        attention_levels: Sequence[int] = (4,),
        middle_attention: bool = True,
        head_channels: int = 64,
        norm_groups: int = 32,
        patch_size: int = 1,
        dropout: float = 0.0,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.channels, self.patch_size = channels, patch_size
        self.use_checkpoint = use_checkpoint
        self.stride = patch_size * 2 ** (len(channel_mult) - 1)
        embed = 4 * channels
        block = {"embed": embed, "groups": norm_groups, "dropout": dropout}

        def attention(width: int) -> nn.Module:
            return SelfAttention(width, head_channels, norm_groups)

        self.time_embed = nn.Sequential(nn.Linear(channels, embed), nn.SiLU(), nn.Linear(embed, embed))
        width = channels * channel_mult[0]
        self.input_blocks = nn.ModuleList([Stage(nn.Conv2d(in_channels * patch_size**2, width, 3, padding=1))])
        skips = [width]
        for level, mult in enumerate(channel_mult):
            for _ in range(num_res_blocks):
                layers = [ResBlock(width, channels * mult, **block)]
                width = channels * mult
                if level in attention_levels:
                    layers.append(attention(width))
                self.input_blocks.append(Stage(*layers))
                skips.append(width)
            if level < len(channel_mult) - 1:
                self.input_blocks.append(Stage(ResBlock(width, width, resample="down", **block)))
                skips.append(width)

        middle = [ResBlock(width, width, **block), ResBlock(width, width, **block)]
        if middle_attention:
            middle.insert(1, attention(width))
        self.middle_block = Stage(*middle)

        self.output_blocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(channel_mult))):
            for i in range(num_res_blocks + 1):
                layers = [ResBlock(width + skips.pop(), channels * mult, **block)]
                width = channels * mult
                if level in attention_levels:
                    layers.append(attention(width))
                if level > 0 and i == num_res_blocks:
                    layers.append(ResBlock(width, width, resample="up", **block))
                self.output_blocks.append(Stage(*layers))
        self.out = nn.Sequential(
            _norm(width, norm_groups),
            nn.SiLU(),
            _zeroed(nn.Conv2d(width, out_channels * patch_size**2, 3, padding=1)),
        )

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Apply the network.

        Args:
            x: `(B, in_channels, H, W)`; H and W that the levels do not divide are extended by repeating the edge.
            time: `(B,)` whatever the network was trained with (step index, scaled log sigma); may be fractional.

        Returns:
            `(B, out_channels, H, W)`.
        """
        height, width = x.shape[-2:]
        x = F.pad(x, (0, -width % self.stride, 0, -height % self.stride), mode="replicate")
        if self.patch_size > 1:
            x = F.pixel_unshuffle(x, self.patch_size)
        embedding = self.time_embed(sinusoidal_embedding(time, self.channels).to(x.dtype))  # (B, F)
        skips: list[Tensor] = []
        for stage in self.input_blocks:
            x = self._run(stage, x, embedding)
            skips.append(x)
        x = self._run(self.middle_block, x, embedding)
        for stage in self.output_blocks:
            x = self._run(stage, torch.cat([x, skips.pop()], 1), embedding)
        x = self.out(x)
        if self.patch_size > 1:
            x = F.pixel_shuffle(x, self.patch_size)
        return x[..., :height, :width]

    def _run(self, stage: nn.Module, x: Tensor, embedding: Tensor) -> Tensor:
        if self.use_checkpoint and torch.is_grad_enabled():
            return checkpoint(stage, x, embedding, use_reentrant=False)
        return stage(x, embedding)


class Stage(nn.Sequential):
    """Layers in a row; those that want the time embedding get it."""

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        for layer in self:
            x = layer(x, embedding) if isinstance(layer, ResBlock) else layer(x)
        return x


class ResBlock(nn.Module):
    """GroupNorm - SiLU - conv, twice, scaled and shifted by the time embedding; optionally halves or doubles H, W."""

    def __init__(
        self, width_in: int, width_out: int, embed: int, groups: int, dropout: float, resample: str | None = None
    ) -> None:
        super().__init__()
        self.resample = resample
        self.in_layers = nn.Sequential(_norm(width_in, groups), nn.SiLU(), nn.Conv2d(width_in, width_out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embed, 2 * width_out))
        self.out_layers = nn.Sequential(
            _norm(width_out, groups),
            nn.SiLU(),
            nn.Dropout(dropout),
            _zeroed(nn.Conv2d(width_out, width_out, 3, padding=1)),
        )
        self.skip_connection = nn.Identity() if width_in == width_out else nn.Conv2d(width_in, width_out, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        norm, activation, conv = self.in_layers
        h = conv(self._resize(activation(norm(x))))
        scale, shift = self.emb_layers(embedding)[..., None, None].chunk(2, 1)
        norm, *rest = self.out_layers
        h = norm(h) * (1 + scale) + shift
        for layer in rest:
            h = layer(h)
        return self.skip_connection(self._resize(x)) + h

    def _resize(self, x: Tensor) -> Tensor:
        if self.resample == "down":
            return F.avg_pool2d(x, 2)
        return F.interpolate(x, scale_factor=2, mode="nearest") if self.resample == "up" else x


class SelfAttention(nn.Module):
    """Multi-head self-attention over all positions (each head's q, k, v lie together in `qkv`)."""

    def __init__(self, width: int, head_channels: int, groups: int) -> None:
        super().__init__()
        if width % head_channels:
            raise InputError(f"Expected head_channels to divide the width {width}, got {head_channels}.")
        self.num_heads = width // head_channels
        self.norm = _norm(width, groups)
        self.qkv = nn.Conv1d(width, 3 * width, 1)
        self.proj_out = _zeroed(nn.Conv1d(width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        batch, width, *size = x.shape
        qkv = self.qkv(self.norm(x).flatten(2))  # (B, 3 C, L)
        heads = qkv.reshape(batch, self.num_heads, -1, qkv.shape[-1])
        q, k, v = heads.transpose(-1, -2).chunk(3, -1)  # (B, heads, L, c)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2).reshape(batch, width, -1)
        return x + self.proj_out(attended).reshape(batch, width, *size)


def sinusoidal_embedding(time: Tensor, width: int, max_period: float = 10_000.0) -> Tensor:
    """`(B,)` -> `(B, width)`: cosines then sines at `width // 2` geometric frequencies from 1 to 1 / max_period."""
    half = width // 2
    frequencies = torch.exp(-math.log(max_period) * torch.arange(half, device=time.device, dtype=torch.float32) / half)
    angles = time.float()[:, None] * frequencies
    embedding = torch.cat([angles.cos(), angles.sin()], 1)
    return F.pad(embedding, (0, width % 2))


class _Norm(nn.GroupNorm):
    """GroupNorm whose statistics are taken in float32 at least, whatever precision the rest runs in."""

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        weight, bias = self.weight.to(wide), self.bias.to(wide)
        return F.group_norm(x.to(wide), self.num_groups, weight, bias, self.eps).to(x.dtype)


def _norm(width: int, groups: int) -> nn.GroupNorm:
    if width % groups:
        raise InputError(f"Expected norm_groups to divide the width {width}, got {groups}; change channels or groups.")
    return _Norm(groups, width)


def _zeroed(layer: nn.Module) -> nn.Module:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
