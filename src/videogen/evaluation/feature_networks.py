"""I3D and C3D, the networks whose features section 4.1 measures FVD and the Inception Score with: ours, by their papers.

Tensors carry the names of the public weight files, so each loads under its own name; see `features.py`.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videogen.config import UserError

MIXED = {  # input channels; then 1x1 | 1x1, 3x3 | 1x1, 3x3 | pool, 1x1
    "Mixed_3b": (192, (64, 96, 128, 16, 32, 32)),
    "Mixed_3c": (256, (128, 128, 192, 32, 96, 64)),
    "Mixed_4b": (480, (192, 96, 208, 16, 48, 64)),
    "Mixed_4c": (512, (160, 112, 224, 24, 64, 64)),
    "Mixed_4d": (512, (128, 128, 256, 24, 64, 64)),
    "Mixed_4e": (512, (112, 144, 288, 32, 64, 64)),
    "Mixed_4f": (528, (256, 160, 320, 32, 128, 128)),
    "Mixed_5b": (832, (256, 160, 320, 32, 128, 128)),
    "Mixed_5c": (832, (384, 192, 384, 48, 128, 128)),
}


class I3D(nn.Module):
    """Inception-v1 inflated to 3-D (Carreira and Zisserman 2017, arXiv 1705.07750), 400 classes of Kinetics.

    FVD's feature is the logits, averaged over time, before softmax: 400 numbers a video. Names are those of
    piergiaj/pytorch-i3d, which VideoGPT's `i3d_pretrained_400.pt` shares; those of hassony2/kinetics_i3d_pytorch, from which
    StyleGAN-V's `i3d_torchscript.pt` is made, are translated. Batch norms have epsilon 1e-3, as the original and both
    repositories; VideoGPT's code runs the same weights with 1e-5.
    """

    SIDE = 224
    MIN_FRAMES = 9  # a time axis of 2 must be left to pool
    dimensions = 400
    resize = "I3D: bilinear to 224x224, half-pixel centres, no anti-aliasing"

    def __init__(self) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = Unit(3, 64, 7, stride=2)
        self.Conv3d_2b_1x1 = Unit(64, 64, 1)
        self.Conv3d_2c_3x3 = Unit(64, 192, 3)
        for name, (channels, widths) in MIXED.items():
            self.add_module(name, Mixed(channels, widths))
        self.logits = Unit(1024, self.dimensions, 1, plain=True)

    @classmethod
    def prepare(cls, frames: Tensor) -> Tensor:
        """Frames uint8 (F, H, W, 3) of any size -> (3, F, 224, 224) in [-1, 1]."""
        pixels = F.interpolate(frames.permute(0, 3, 1, 2).float(), size=(cls.SIDE, cls.SIDE), mode="bilinear")
        return pixels.transpose(0, 1) / 127.5 - 1

    def forward(self, videos: Tensor) -> Tensor:
        """Videos (N, 3, F, 224, 224) in [-1, 1], F >= 9 -> logits (N, 400). Raises UserError on fewer frames."""
        if videos.shape[2] < self.MIN_FRAMES:
            raise UserError(f"I3D needs at least {self.MIN_FRAMES} frames, not {videos.shape[2]}")
        x = self.Conv3d_1a_7x7(videos)  # (N, 64, F/2, 112, 112)
        x = self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(same_pool(x, (1, 3, 3), (1, 2, 2))))  # (N, 192, F/2, 56, 56)
        x = same_pool(x, (1, 3, 3), (1, 2, 2))
        for name in MIXED:
            if name == "Mixed_4b":
                x = same_pool(x, (3, 3, 3), (2, 2, 2))  # (N, 480, F/4, 14, 14)
            elif name == "Mixed_5b":
                x = same_pool(x, (2, 2, 2), (2, 2, 2))  # (N, 832, F/8, 7, 7)
            x = self.get_submodule(name)(x)
        x = self.logits(F.avg_pool3d(x, (2, 7, 7), stride=1))  # (N, 400, F/8 - 1, 1, 1)
        return cast(Tensor, x).mean((2, 3, 4))


class Unit(nn.Module):
    """Convolution, batch norm, ReLU; the convolution alone, with a bias, where `plain`."""

    def __init__(self, channels: int, width: int, kernel: int, stride: int = 1, *, plain: bool = False) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(channels, width, kernel, stride, bias=plain)
        self.bn = None if plain else nn.BatchNorm3d(width, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv3d(same_padding(x, self.conv3d.kernel_size, self.conv3d.stride))
        return x if self.bn is None else F.relu(self.bn(x))


class Mixed(nn.Module):
    """Inception's module: four branches side by side."""

    def __init__(self, channels: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.b0 = Unit(channels, widths[0], 1)
        self.b1a, self.b1b = Unit(channels, widths[1], 1), Unit(widths[1], widths[2], 3)
        self.b2a, self.b2b = Unit(channels, widths[3], 1), Unit(widths[3], widths[4], 3)
        self.b3b = Unit(channels, widths[5], 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.b3b(same_pool(x, (3, 3, 3), (1, 1, 1)))
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), pooled], dim=1)


def same_padding(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """TensorFlow's SAME: zeros so that ceil(size / stride) steps fit, the odd one at the end. x (N, C, F, H, W)."""
    pads: list[int] = []
    for size, k, s in reversed(list(zip(x.shape[2:], kernel, stride, strict=True))):
        total = max((-(-size // s) - 1) * s + k - size, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads) if any(pads) else x


def same_pool(x: Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> Tensor:
    """Largest value of each window; x is not negative (a ReLU came before), so zeros at the borders never win."""
    return F.max_pool3d(same_padding(x, kernel, stride), kernel, stride)


class C3D(nn.Module):
    """C3D (Tran et al. 2015, arXiv 1412.0767) trained on Sports-1M and fine-tuned on UCF-101: TGAN v2's classifier.

    What TGAN v2 does, and every Inception Score on UCF-101 follows: frames are resized to 112x112 (bilinear, corners
    aligned), go in as BGR 0..255 less Sports-1M's mean clip, cut to rows and columns 8..119 of 128x171; pooling keeps the
    odd last row and column (Caffe's ceil), so fc6 sees 512 x 4 x 4.
    """

    SIDE, FRAMES = 112, 16
    dimensions = 101
    resize = "C3D: bilinear to 112x112, corners aligned, no anti-aliasing"
    CONVOLUTIONS = (
        ("conv1a", 3, 64), ("conv2a", 64, 128), ("conv3a", 128, 256), ("conv3b", 256, 256),
        ("conv4a", 256, 512), ("conv4b", 512, 512), ("conv5a", 512, 512), ("conv5b", 512, 512),
    )  # fmt: skip
    POOLED = ("conv1a", "conv2a", "conv3b", "conv4b", "conv5b")  # layers that a pooling follows
    HIDDEN = 4096

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name, channels, width in self.CONVOLUTIONS:
            self.add_module(name, nn.Conv3d(channels, width, 3, padding=1))
        self.fc6 = nn.Linear(self.CONVOLUTIONS[-1][2] * 4 * 4, self.HIDDEN)
        self.fc7 = nn.Linear(self.HIDDEN, self.HIDDEN)
        self.fc8 = nn.Linear(self.HIDDEN, self.dimensions)
        self.register_buffer("mean", torch.zeros(3, self.FRAMES, self.SIDE, self.SIDE))  # BGR, 0..255

    @classmethod
    def prepare(cls, frames: Tensor) -> Tensor:
        """Frames uint8 (16, H, W, 3) of any size -> (3, 16, 112, 112) in [-1, 1]."""
        size = (cls.SIDE, cls.SIDE)
        pixels = F.interpolate(frames.permute(0, 3, 1, 2).float(), size=size, mode="bilinear", align_corners=True)
        return pixels.transpose(0, 1) / 127.5 - 1

    def forward(self, videos: Tensor) -> Tensor:
        """Videos (N, 3, 16, 112, 112), RGB in [-1, 1] -> logits of UCF-101's classes (N, 101). Raises UserError else."""
        if videos.shape[2] != self.FRAMES:
            raise UserError(f"C3D takes exactly {self.FRAMES} frames, not {videos.shape[2]}")
        x = (videos.flip(1) + 1) * 127.5 - self.mean
        for name, _, _ in self.CONVOLUTIONS:
            x = F.relu(self.get_submodule(name)(x))
            if name in self.POOLED:
                x = F.max_pool3d(x, (1 if name == "conv1a" else 2, 2, 2), ceil_mode=True)
        x = F.relu(self.fc7(F.relu(self.fc6(x.flatten(1)))))  # (N, 4096)
        return cast(Tensor, self.fc8(x))
