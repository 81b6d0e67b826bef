"""VideoClassifier (ours): a small pseudo-3-D network that says what a clip shows, and whose features in-domain FVD is made of.

Section 4.1 takes C3D and I3D for this, which know real video; on Diorama, mini's world, they see little.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from videogen.models.pseudo3d import PseudoConv3d, ResnetBlock


class VideoClassifier(ModelMixin, ConfigMixin):
    """Clips to features, features to classes and quantities by linear maps.

    classes: name of each attribute -> how many classes it has; quantities: what is measured, 0 .. 1; sample_size and
    num_frames: of the clips that it was trained on (it takes any); block_out_channels: at 1/2, 1/4, 1/8 and 1/16 of the size;
    time is halved at 1/4 and at 1/16. features: length of the layer before the last.
    """

    @register_to_config
    def __init__(
        self,
        classes: Mapping[str, int],
        quantities: tuple[str, ...] = (),
        sample_size: int = 64,
        num_frames: int = 16,
        block_out_channels: tuple[int, int, int, int] = (16, 32, 64, 128),
        features: int = 64,
        norm_num_groups: int = 8,
    ) -> None:
        super().__init__()
        first, *_ = channels = tuple(block_out_channels)
        self.conv_in = PseudoConv3d(3, first, 5, stride=2, padding=2)
        self.downsamplers = nn.ModuleList(
            PseudoConv3d(here, there, 3, stride=2, padding=1) for here, there in itertools.pairwise(channels)
        )
        self.resnets = nn.ModuleList(ResnetBlock(width, width, None, norm_num_groups, 1e-6) for width in channels[1:])
        self.norm = nn.GroupNorm(norm_num_groups, channels[-1], eps=1e-6)
        self.project = nn.Linear(2 * channels[-1], features)
        self.heads = nn.ModuleDict({name: nn.Linear(features, count) for name, count in classes.items()})
        self.gauge = nn.Linear(features, len(quantities)) if quantities else None

    def forward(self, frames: Tensor) -> Tensor:
        """Clips (B, F, 3, H, W) in [-1, 1] -> features (B, D). Of fewer than 4 frames time is halved less."""
        batch, num_frames = frames.shape[:2]
        x = frames.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        x = F.silu(self.conv_in(x, num_frames))  # (B*F, C1, H/2, W/2)
        for level, (downsample, resnet) in enumerate(zip(self.downsamplers, self.resnets, strict=True)):
            if level != 1 and num_frames > 1:
                num_frames, x = num_frames // 2, _halve_time(x, num_frames)
            x = resnet(downsample(x, num_frames), num_frames)
        x = F.silu(self.norm(x)).unflatten(0, (batch, num_frames)).transpose(1, 2).flatten(2)  # (B, C4, F/4 * H/16 * W/16)
        return self.project(torch.cat([x.mean(2), x.amax(2)], dim=1))

    def classify(self, features: Tensor) -> dict[str, Tensor]:
        """Features (B, D) -> logits (B, classes) by attribute."""
        return {name: head(features) for name, head in self.heads.items()}


def _halve_time(x: Tensor, num_frames: int) -> Tensor:
    """Means of neighbouring frames: (B*F, C, H, W) -> (B*(F//2), C, H, W)."""
    video = x.unflatten(0, (-1, num_frames))[:, : num_frames // 2 * 2]
    return video.unflatten(1, (-1, 2)).mean(2).flatten(0, 1)
