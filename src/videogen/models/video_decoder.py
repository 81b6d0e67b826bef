"""VideoDecoder (section 3.4): Stable Diffusion's image decoder made pseudo-3-D, from latents straight to a steady video."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from videogen.models.adapters import NetworkAdapters
from videogen.models.pseudo3d import Attention, PseudoConv3d, ResnetBlock, TemporalAttention, Upsample, in_parts


class DecoderAttention(Attention):
    """The autoencoder's single-head attention with its own norm, then a temporal attention. x (B*F, C, H, W)."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__(channels, 1, bias=True)
        self.group_norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.temporal_attention = TemporalAttention(channels)

    def forward(self, x: Tensor, num_frames: int) -> Tensor:  # type: ignore[override]
        _, channels, height, width = x.shape
        tokens = self.group_norm(x).permute(0, 2, 3, 1).reshape(-1, height * width, channels)
        tokens = super().forward(tokens).view(-1, height, width, channels).permute(0, 3, 1, 2) + x
        tokens = tokens.permute(0, 2, 3, 1).reshape(-1, height * width, channels)
        tokens = self.temporal_attention(tokens, num_frames, height)
        return tokens.view(-1, height, width, channels).permute(0, 3, 1, 2)


class DecoderMidBlock(nn.Module):
    """Residual block, attention where asked for, residual block."""

    def __init__(self, channels: int, groups: int, attention: bool) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([DecoderAttention(channels, groups)] if attention else [])
        self.resnets = nn.ModuleList(ResnetBlock(channels, channels, None, groups, 1e-6) for _ in range(2))

    def forward(self, x: Tensor, num_frames: int) -> Tensor:
        x = self.resnets[0](x, num_frames)
        for attention in self.attentions:
            x = attention(x, num_frames)
        return self.resnets[1](x, num_frames)


class DecoderUpBlock(nn.Module):
    """Residual blocks, then an upsampling."""

    def __init__(self, in_channels: int, channels: int, layers: int, groups: int, up: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock(in_channels if index == 0 else channels, channels, None, groups, 1e-6) for index in range(layers)
        )
        self.upsamplers = nn.ModuleList([Upsample(channels)] if up else [])

    def forward(self, x: Tensor, num_frames: int) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x, num_frames)
        for upsample in self.upsamplers:
            x = upsample(x, num_frames)
        return x


class Decoder(nn.Module):
    """The tensors that diffusers calls `decoder.*`. x (B*F, C, h, w) -> (B*F, 3, H, W)."""

    def __init__(self, latent: int, out: int, widths: tuple[int, ...], layers: int, groups: int, attention: bool) -> None:
        super().__init__()
        self.conv_in = PseudoConv3d(latent, widths[-1], 3, padding=1)
        self.mid_block = DecoderMidBlock(widths[-1], groups, attention)
        pairs = list(zip((widths[-1], *reversed(widths)), reversed(widths), strict=False))
        self.up_blocks = nn.ModuleList(
            DecoderUpBlock(a, b, layers + 1, groups, up=index < len(pairs) - 1) for index, (a, b) in enumerate(pairs)
        )
        self.conv_norm_out = nn.GroupNorm(groups, widths[0], eps=1e-6)
        self.conv_out = PseudoConv3d(widths[0], out, 3, padding=1)

    def forward(self, x: Tensor, num_frames: int) -> Tensor:
        x = self.mid_block(self.conv_in(x, num_frames), num_frames)
        for block in self.up_blocks:
            x = block(x, num_frames)
        x = in_parts(lambda part: self.conv_out(F.silu(self.conv_norm_out(part)), None), x)
        return self.conv_out.over_time(x, num_frames)


class VideoDecoder(ModelMixin, ConfigMixin, NetworkAdapters):
    """Latents to frames (section 3.4). The configuration uses the names of `diffusers.AutoencoderKL`."""

    @register_to_config
    def __init__(
        self,
        out_channels: int = 3,
        latent_channels: int = 4,
        block_out_channels: tuple[int, ...] = (128, 256, 512, 512),
        layers_per_block: int = 2,
        norm_num_groups: int = 32,
        mid_block_add_attention: bool = True,
        scaling_factor: float = 0.18215,
    ) -> None:
        super().__init__()
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, 1)
        self.decoder = Decoder(
            latent_channels,
            out_channels,
            tuple(block_out_channels),
            layers_per_block,
            norm_num_groups,
            mid_block_add_attention,
        )

    def forward(self, latents: Tensor) -> Tensor:
        """latents (B, F, C, h, w), scaled as the diffusion networks use them -> frames (B, F, 3, H, W), about [-1, 1]."""
        num_frames = latents.shape[1]
        x = latents.flatten(0, 1).contiguous(memory_format=torch.channels_last) / self.config.scaling_factor
        return self.decoder(self.post_quant_conv(x), num_frames).unflatten(0, (-1, num_frames))
