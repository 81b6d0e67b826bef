"""Pseudo-3-D layers (section 3.2): Stable Diffusion's 2-D layers, each owning a temporal child that starts as the identity.

Layout: a video is (B*F, C, H, W) in channels_last. The same memory is a channels_last image (B, C, F, H*W), so the temporal
convolution is a (3, 1) `conv2d` on a view, without a copy. Sub-modules carry diffusers' names, so every tensor of an image
network loads by its own name and only `temporal*` keys are new.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KeysValues = tuple[Tensor, Tensor]
"""Keys and values of a text, each (B, heads, L, head size)."""

PART = 2**28
"""Bytes that a layer works on at once in inference."""


def in_parts(layers: Callable[[Tensor], Tensor], x: Tensor, growth: int = 1) -> Tensor:
    """`layers` of frames (N, C, H, W), each of which they see by itself; they make tensors up to `growth` times as large as x.

    In inference a few frames at a time, where all are large: what lies between the layers is then never whole in memory.
    """
    count = min(len(x), -(-growth * x.nbytes // PART))
    if torch.is_grad_enabled() or count < 2:
        return layers(x)
    whole, done = None, 0
    for part in x.tensor_split(count):
        made = layers(part)
        if whole is None:
            whole = torch.empty(
                (len(x), *made.shape[1:]), dtype=made.dtype, device=made.device, memory_format=torch.channels_last
            )
        whole[done : done + len(made)] = made
        done += len(made)
        del made  # before the next is made
    assert whole is not None
    return whole


class PseudoConv3d(nn.Conv2d):
    """A 2-D convolution followed by a 1-D convolution over time, kernel 3, zero padding (section 3.2).

    The temporal kernel starts as a Dirac: the residual is folded into its middle tap.
    forward: x (B*F, C, H, W) -> (B*F, C', H', W'); num_frames None leaves the temporal half out.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, padding: int = 0) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding)
        self.temporal = nn.Conv2d(out_channels, out_channels, (3, 1), padding=(1, 0))
        nn.init.zeros_(self.temporal.weight)
        self.temporal.weight.data[:, :, 1, 0].fill_diagonal_(1.0)  # a Dirac; nn.init.dirac_ loops over channels
        nn.init.zeros_(self.temporal.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, num_frames: int | None = 1) -> Tensor:
        x = super().forward(x)
        return x if num_frames is None else self.over_time(x, num_frames)

    def over_time(self, x: Tensor, num_frames: int) -> Tensor:
        """The temporal half alone: (B*F, C', H', W') -> the same; in inference a large x changes in place, part by part."""
        _, channels, height, width = x.shape
        video = x.permute(0, 2, 3, 1).reshape(-1, num_frames, height * width, channels)  # a view in channels_last
        video = video.permute(0, 3, 1, 2)  # (B, C, F, H*W)
        if torch.is_grad_enabled() or x.nbytes <= PART:
            video = self.temporal(video)
        else:
            for part in video.tensor_split(min(height * width, -(-x.nbytes // PART)), dim=3):
                part.copy_(self.temporal(part))
        return video.permute(0, 2, 3, 1).reshape(-1, height, width, channels).permute(0, 3, 1, 2)


class Attention(nn.Module):
    """Multi-head attention with diffusers' parameter names.

    forward: x (B, N, C); `keys_values` replaces the keys and values computed from x (cross-attention).
    """

    def __init__(self, channels: int, num_heads: int, context_channels: int | None = None, bias: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_q = nn.Linear(channels, channels, bias=bias)
        self.to_k = nn.Linear(context_channels or channels, channels, bias=bias)
        self.to_v = nn.Linear(context_channels or channels, channels, bias=bias)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, N, head size)

    def keys_values(self, context: Tensor) -> KeysValues:
        """context (B, L, D) -> keys and values, computed once a prompt."""
        return self.split_heads(self.to_k(context)), self.split_heads(self.to_v(context))

    def forward(self, x: Tensor, keys_values: KeysValues | None = None) -> Tensor:
        keys, values = keys_values or self.keys_values(x)
        x = F.scaled_dot_product_attention(self.split_heads(self.to_q(x)), keys, values)
        return self.to_out[0](x.transpose(1, 2).flatten(2))


class TemporalAttention(Attention):
    """Attention between the frames at each position (section 3.2), with its own norm and residual; zero at the start.

    Frames are told apart by sinusoidal positions (ours). Heads of `head_size` channels where the width allows. Projections run
    on (B, F, H*W, C); only q, k, v are permuted, positions folded evenly into batch and heads, below CUDA's limit of 65,535.
    forward: x (B*F, H*W, C) -> the same shape.
    """

    def __init__(self, channels: int, head_size: int = 64) -> None:
        super().__init__(channels, max(1, channels // head_size))
        self.norm = nn.LayerNorm(channels)
        nn.init.zeros_(self.to_out[0].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.to_out[0].bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, num_frames: int = 1, height: int = 1) -> Tensor:  # type: ignore[override]
        video = x.unflatten(0, (-1, num_frames))  # (B, F, H*W, C)
        batch, _, positions, channels = video.shape
        normed = self.norm(video) + frame_positions(num_frames, channels, video)[:, None]
        width = positions // height

        def fold(projected: Tensor) -> Tensor:
            projected = projected.view(batch, num_frames, height, width * self.num_heads, -1)
            return projected.permute(0, 2, 3, 1, 4).flatten(0, 1)  # (B*H, W*heads, F, head size)

        mixed = F.scaled_dot_product_attention(fold(self.to_q(normed)), fold(self.to_k(normed)), fold(self.to_v(normed)))
        mixed = mixed.unflatten(0, (batch, height)).permute(0, 3, 1, 2, 4).reshape(video.shape)
        return x + self.to_out[0](mixed).flatten(0, 1)


def frame_positions(num_frames: int, channels: int, like: Tensor) -> Tensor:
    """Sinusoidal frame positions (F, C) (Vaswani et al. 2017)."""
    half = (channels + 1) // 2
    rates = torch.exp(torch.arange(half, device=like.device, dtype=torch.float32) * (-math.log(1e4) / half))
    angles = torch.arange(num_frames, device=like.device, dtype=torch.float32)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)[:, :channels].to(like.dtype)


class ResnetBlock(nn.Module):
    """Stable Diffusion's residual block with pseudo-3-D convolutions. x (B*F, C, H, W), embedding (B*F, D) or None."""

    def __init__(self, in_channels: int, out_channels: int, embedding: int | None, groups: int, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=eps)
        self.conv1 = PseudoConv3d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(embedding, out_channels) if embedding else None
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=eps)
        self.conv2 = PseudoConv3d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor, num_frames: int, embedding: Tensor | None = None) -> Tensor:
        y = in_parts(lambda part: self.conv1(F.silu(self.norm1(part)), None), x)
        y = self.conv1.over_time(y, num_frames)
        if self.time_emb_proj is not None and embedding is not None:
            y = y + self.time_emb_proj(F.silu(embedding))[:, :, None, None]
        y = in_parts(lambda part: self.conv2(F.silu(self.norm2(part)), None), y)
        y = self.conv2.over_time(y, num_frames)
        return y + (x if self.conv_shortcut is None else self.conv_shortcut(x))  # last, for less memory at once


class GEGLU(nn.Module):
    """Gated linear unit with GELU (Shazeer 2020); `proj` as in diffusers."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, 2 * hidden)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate)


class FeedForward(nn.Module):
    """diffusers' feed-forward layer: `net.0` GEGLU, `net.1` (dropout there, nothing here), `net.2` linear."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = nn.ModuleList([GEGLU(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.net:
            x = layer(x)
        return x


class TransformerBlock(nn.Module):
    """Spatial attention, temporal attention, cross-attention to the text, feed-forward; tokens (B*F, H*W, C).

    Text keys and values are (B, heads, L, head size): one copy for all frames of a video. No text, no cross-attention.
    """

    def __init__(self, channels: int, num_heads: int, text_channels: int | None, temporal_head_size: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(channels, num_heads)
        self.temporal_attention = TemporalAttention(channels, temporal_head_size)
        self.norm2 = nn.LayerNorm(channels) if text_channels else None
        self.attn2 = Attention(channels, num_heads, text_channels) if text_channels else None
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)

    def forward(self, x: Tensor, num_frames: int, height: int, text: KeysValues | None) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        x = self.temporal_attention(x, num_frames, height)
        if self.attn2 is not None and self.norm2 is not None:
            query = self.norm2(x).unflatten(0, (-1, num_frames)).flatten(1, 2)  # (B, F*H*W, C)
            x = x + self.attn2(query, text).view_as(x)
        return x + self.ff(self.norm3(x))


class Transformer(nn.Module):
    """diffusers' Transformer2DModel around one pseudo-3-D block. x (B*F, C, H, W)."""

    def __init__(
        self, channels: int, num_heads: int, text_channels: int | None, groups: int, linear: bool, temporal_head_size: int
    ) -> None:
        super().__init__()
        self.text_index = -1  # place of this layer's keys and values in the list of a text; set by the network
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(channels, num_heads, text_channels, temporal_head_size)])
        self.proj_out = nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)

    def keys_values(self, text: Tensor) -> KeysValues:
        return self.transformer_blocks[0].attn2.keys_values(text)  # type: ignore[union-attr,operator]

    def forward(self, x: Tensor, num_frames: int, text: list[KeysValues]) -> Tensor:
        _, channels, height, width = x.shape
        tokens = project(self.proj_in, self.norm(x)).permute(0, 2, 3, 1).reshape(-1, height * width, channels)
        tokens = self.transformer_blocks[0](tokens, num_frames, height, text[self.text_index] if text else None)
        y = tokens.view(-1, height, width, channels).permute(0, 3, 1, 2)
        return x + project(self.proj_out, y)


def project(layer: nn.Module, x: Tensor) -> Tensor:
    """A pointwise map of (N, C, H, W), be it a 1x1 convolution (SD 1.x) or a linear layer (SD 2.x)."""
    if layer.weight.ndim == 4:  # not isinstance: a LoRA may be wrapped around it
        return layer(x)
    return layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Downsample(nn.Module):
    """Halve height and width by a strided convolution. x (B*F, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = PseudoConv3d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, num_frames: int) -> Tensor:
        return self.conv(x, num_frames)


class Upsample(nn.Module):
    """Bring height and width to `size` (default: twice) by nearest neighbours and a convolution. x (B*F, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = PseudoConv3d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, num_frames: int, size: tuple[int, int] | None = None) -> Tensor:
        size = size or (2 * x.shape[-2], 2 * x.shape[-1])
        x = in_parts(lambda part: self.conv(F.interpolate(part, size=size, mode="nearest"), None), x, growth=4)
        return self.conv.over_time(x, num_frames)
