"""IFRNet, the flow network of section 3.3, for pixels (as published) and for latents (its first layer takes latents).

Architecture: Kong et al., "IFRNet: Intermediate Feature Refine Network for Efficient Frame Interpolation", CVPR 2022, arXiv
2205.14620. Sub-modules carry the published names, so that the published weights load by their own names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from videogen.models.adapters import NetworkAdapters

STRIDE = 16  # of the coarsest of the four pyramid levels


@dataclass(frozen=True)
class Interpolation:
    """A frame between two, and how it came about. Flows are (x, y) in pixels of the input: frame(p) = first(p + flow(p)).

    flow_to_first, flow_to_second: (B, 2, H, W), from the new frame to the given ones. mask: (B, 1, H, W) in [0, 1], the share
    of the first. warped: (B, C, H, W), the masked sum of both warped frames. frame: warped + the network's residual.
    flows: the three coarser estimates, coarsest first: (B, 4, h, w), both flows in pixels of that level (1/8, 1/4, 1/2 of
    the input padded to a multiple of 16).
    """

    flow_to_first: Tensor
    flow_to_second: Tensor
    mask: Tensor
    warped: Tensor
    frame: Tensor
    flows: tuple[Tensor, ...]


class IFRNet(ModelMixin, ConfigMixin, NetworkAdapters):
    """Both flows from a frame between two given ones, coarse to fine, together with a merging mask and a residual.

    in_channels: of a frame (3 for pixels, 4 for latents). channels: of the four pyramid levels at 1/2 .. 1/16; the default is
    IFRNet's, (24, 36, 54, 72) its small version. A new network starts as the plain average of the two frames.
    """

    @register_to_config
    def __init__(self, in_channels: int = 3, channels: tuple[int, int, int, int] = (32, 48, 72, 96)) -> None:
        super().__init__()
        level_1, level_2, level_3, level_4 = channels
        self.encoder = Encoder(in_channels, channels)
        self.decoder4 = Decoder(2 * level_4 + 1, 2 * level_4, 4 + level_3, side=level_1)
        self.decoder3 = Decoder(3 * level_3 + 4, 3 * level_3, 4 + level_2, side=level_1)
        self.decoder2 = Decoder(3 * level_2 + 4, 3 * level_2, 4 + level_1, side=level_1)
        self.decoder1 = Decoder(3 * level_1 + 4, 3 * level_1, 4 + 1 + in_channels, side=level_1)
        for decoder, outputs in ((self.decoder4, 4), (self.decoder3, 4), (self.decoder2, 4), (self.decoder1, 5 + in_channels)):
            decoder.zero_outputs(outputs)

    def forward(self, first: Tensor, second: Tensor, time: float | Tensor = 0.5) -> Interpolation:
        """The frame at `time` (0: first, 1: second; a number or (B,)) between two frames (B, C, H, W) of any one size.

        Pixels are in [0, 1] for the published weights, whose authors clamp `frame` to that range; here the caller does.
        """
        height, width = first.shape[-2:]
        mean = (first.mean((1, 2, 3), keepdim=True) + second.mean((1, 2, 3), keepdim=True)) / 2
        padding = (0, -width % STRIDE, 0, -height % STRIDE)
        both = F.pad(torch.cat([first, second]) - mean.repeat(2, 1, 1, 1), padding, mode="replicate")
        *finer, coarsest = [level.chunk(2) for level in self.encoder(both)]

        times = torch.as_tensor(time, dtype=first.dtype, device=first.device).reshape(-1, 1, 1, 1)
        times = times.expand(len(first), 1, *coarsest[0].shape[-2:])
        out = self.decoder4(torch.cat([*coarsest, times], dim=1))
        flow, features = out[:, :4], out[:, 4:]
        flows = [flow]
        for decoder, (left, right) in zip((self.decoder3, self.decoder2, self.decoder1), reversed(finer), strict=True):
            warped = backward_warp(left, flow[:, :2]), backward_warp(right, flow[:, 2:])
            out = decoder(torch.cat([features, *warped, flow], dim=1))
            flow, features = out[:, :4] + enlarge_flow(flow, 2), out[:, 4:]
            flows.append(flow)

        flow, features = flow[..., :height, :width], features[..., :height, :width]
        mask, residual = features[:, :1].sigmoid(), features[:, 1:]
        merged = mask * backward_warp(first, flow[:, :2]) + (1 - mask) * backward_warp(second, flow[:, 2:])
        return Interpolation(flow[:, :2], flow[:, 2:], mask, merged, merged + residual, tuple(flows[:-1]))


def backward_warp(x: Tensor, flow: Tensor) -> Tensor:
    """Move an image along a flow: out(p) = x(p + flow(p)), bilinear, positions beyond the border taken from the border.

    x: (B, C, H, W); flow: (B, 2, H, W) as (x, y) in pixels. Positions are computed in float32 or better, because bfloat16
    cannot tell neighbouring pixels apart beyond 256. Zero flow is the identity: exactly if both sides are powers of two (that
    is why positions are normalised by pixel areas, `align_corners=False`), otherwise to float32's rounding.
    """
    height, width = x.shape[-2:]
    dtype = torch.promote_types(torch.promote_types(x.dtype, flow.dtype), torch.float32)
    columns = torch.arange(width, dtype=dtype, device=x.device)
    rows = torch.arange(height, dtype=dtype, device=x.device)[:, None]
    grid = torch.stack(
        [(2 * (columns + flow[:, 0]) + 1) / width - 1, (2 * (rows + flow[:, 1]) + 1) / height - 1], dim=-1
    )  # (B, H, W, 2)
    return F.grid_sample(x.to(dtype), grid, mode="bilinear", padding_mode="border", align_corners=False).to(x.dtype)


def enlarge_flow(flow: Tensor, factor: int) -> Tensor:
    """Flow (B, C, h, w) in pixels -> the same motion on a grid `factor` times finer, in that grid's pixels."""
    return factor * F.interpolate(flow, scale_factor=factor, mode="bilinear", align_corners=False)


def shrink_flow(flow: Tensor, size: tuple[int, int]) -> Tensor:
    """Flow (B, 2, H, W) in pixels -> (B, 2, *size) in latent pixels, averaged over each: the flow target of section 3.3."""
    height, width = size
    scale = torch.tensor([width / flow.shape[-1], height / flow.shape[-2]], dtype=flow.dtype, device=flow.device)
    return F.interpolate(flow, size=size, mode="area") * scale[:, None, None]


def latent_flow_loss(
    result: Interpolation, target: Tensor, flow_to_first: Tensor, flow_to_second: Tensor, *, flow_weight: float = 1.0
) -> Tensor:
    """What the flow network is trained for: a scalar, the mean over samples.

    target: the true middle frame (B, C, H, W); the flows (B, 2, H, W) lead from it to its neighbours: a pixel IFRNet's or
    exact ones, shrunk to this size (`shrink_flow`). Charbonnier distance of the frame as in IFRNet, and of the warped frame,
    which is what temporal super-resolution uses; end-point error of all four flow estimates, each enlarged to full size as in
    IFRNet's flow distillation. Ours: no robust weights, no census and no feature-geometry terms, which were made for pixels,
    and a flow weight of 1 in place of 0.01 (latent flows are short).
    """
    flow = torch.cat([flow_to_first, flow_to_second], dim=1)
    height, width = flow.shape[-2:]
    estimates = [torch.cat([result.flow_to_first, result.flow_to_second], dim=1)]
    for level, factor in zip(result.flows, (8, 4, 2), strict=True):
        estimates.append(enlarge_flow(level, factor)[..., :height, :width])
    error = torch.stack([end_point_error(estimate, flow) for estimate in estimates]).mean()
    return charbonnier(result.frame - target) + charbonnier(result.warped - target) + flow_weight * error


def charbonnier(difference: Tensor) -> Tensor:
    """Mean of sqrt(d^2 + 1e-6): an L1 that is smooth at zero."""
    return (difference.square() + 1e-6).sqrt().mean()


def end_point_error(flow: Tensor, target: Tensor) -> Tensor:
    """Mean length of the difference of flows (B, 2n, H, W), in pixels; smooth at zero."""
    difference = (flow - target).unflatten(1, (-1, 2))  # (B, n, 2, H, W)
    return (difference.square().sum(2) + 1e-6).sqrt().mean()


class Encoder(nn.Module):
    """Features at 1/2, 1/4, 1/8 and 1/16."""

    def __init__(self, in_channels: int, channels: tuple[int, int, int, int]) -> None:
        super().__init__()
        for level, (before, after) in enumerate(zip((in_channels, *channels), channels, strict=False), start=1):
            setattr(self, f"pyramid{level}", nn.Sequential(conv_prelu(before, after, stride=2), conv_prelu(after, after)))

    def forward(self, x: Tensor) -> list[Tensor]:
        levels = []
        for level in self.children():
            x = level(x)
            levels.append(x)
        return levels


class Decoder(nn.Module):
    """One level of coarse to fine: everything known at this level -> flow residuals and features at twice the size."""

    def __init__(self, in_channels: int, hidden: int, out_channels: int, *, side: int) -> None:
        super().__init__()
        self.convblock = nn.Sequential(
            conv_prelu(in_channels, hidden),
            ResidualBlock(hidden, side),
            nn.ConvTranspose2d(hidden, out_channels, 4, stride=2, padding=1),
        )

    def zero_outputs(self, count: int) -> None:
        """Let the first `count` output channels start at zero."""
        last = cast(nn.ConvTranspose2d, self.convblock[-1])
        assert last.bias is not None
        with torch.no_grad():
            last.weight[:, :count] = 0
            last.bias[:count] = 0

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.convblock(x))


class ResidualBlock(nn.Module):
    """Residual block whose even convolutions refine the last `side` channels only (IFRNet, section 3.2)."""

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.conv1 = conv_prelu(channels, channels)
        self.conv2 = conv_prelu(side, side)
        self.conv3 = conv_prelu(channels, channels)
        self.conv4 = conv_prelu(side, side)
        self.conv5 = nn.Conv2d(channels, channels, 3, padding=1)
        self.prelu = nn.PReLU(channels)

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for whole, part in ((self.conv1, self.conv2), (self.conv3, self.conv4)):
            out = whole(out)
            out = torch.cat([out[:, : -self.side], part(out[:, -self.side :])], dim=1)
        return cast(Tensor, self.prelu(x + self.conv5(out)))


def conv_prelu(in_channels: int, out_channels: int, *, stride: int = 1) -> nn.Sequential:
    """3x3 convolution and a PReLU with one slope a channel."""
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 3, stride, padding=1), nn.PReLU(out_channels))
