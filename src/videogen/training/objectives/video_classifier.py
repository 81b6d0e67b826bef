"""The judge of in-domain IS and FVD (ours): what does a Diorama clip show, and how badly was it spoiled?

FVD is to notice what is wrong with a generated clip, so the network is shown clips that are blurred, noisy, flickering or
shaking, too, and measures by how much: what it must measure, its features must carry. It learns from training triples only,
like every other network; those held out are for the clips that it judges.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videogen.config import UserError, VideoClassifierOptions
from videogen.data.clips import ClipBatch
from videogen.data.diorama import ATTRIBUTES
from videogen.models.video_classifier import VideoClassifier
from videogen.training.objectives.base import Objective, make

BLUR = 2.5  # pixels, standard deviation of a Gaussian
NOISE = 0.3  # standard deviation, of frames in [-1, 1]
FLICKER = 0.25  # standard deviation over frames of a factor to the brightness
SHAKE = 3  # pixels, the farthest that a frame is displaced
GAIN = 0.15  # of contrast, 1 - GAIN .. 1 + GAIN, the same for all frames: not measured
QUANTITIES = ("blur", "noise", "flicker", "shake")


class VideoClassifierObjective(Objective):
    """Cross-entropy of each attribute, mean over attributes, and squared error of each quantity in 0 .. 1."""

    def __init__(self, options: VideoClassifierOptions) -> None:
        self.clean = options.clean

    def build(self, network: Mapping[str, Any]) -> nn.Module:
        classes = {name: len(values) for name, values in ATTRIBUTES.items()}
        return make(VideoClassifier, {**network, "classes": classes, "quantities": QUANTITIES})

    def loss(
        self, network: nn.Module, clips: ClipBatch, generators: list[torch.Generator], step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if clips.labels is None:
            raise UserError('these clips carry no labels: a video classifier learns from data.source = "diorama"')
        frames, amounts = self.spoiled(clips, generators)
        features = network(frames)
        scores = network.classify(features)  # type: ignore[operator]
        wrong = {name: F.cross_entropy(scores[name], clips.labels[:, place]) for place, name in enumerate(ATTRIBUTES)}
        error = F.mse_loss(network.gauge(features), amounts)  # type: ignore[operator]
        right = {name: (scores[name].argmax(1) == clips.labels[:, i]).float().mean() for i, name in enumerate(ATTRIBUTES)}
        return torch.stack([*wrong.values()]).mean() + error, {**right, "quantities": error.detach()}

    def spoiled(self, clips: ClipBatch, generators: list[torch.Generator]) -> tuple[Tensor, Tensor]:
        """Frames as the network sees them (B, F, 3, H, W) and how far each was spoiled in the order of QUANTITIES, (B, 4)."""
        made = [spoil(frames, each, self.clean) for frames, each in zip(clips.frames, generators, strict=True)]
        return torch.stack([frames for frames, _ in made]), torch.stack([amounts for _, amounts in made])

    @torch.no_grad()
    def preview(self, network: nn.Module, clips: ClipBatch, generators: list[torch.Generator]) -> Tensor:
        return self.spoiled(clips, generators)[0]


@torch.no_grad()
def spoil(frames: Tensor, generator: torch.Generator, clean: float) -> tuple[Tensor, Tensor]:
    """A clip (F, 3, H, W) in [-1, 1] and by how much it was spoiled (4,), 0 .. 1; with probability `clean`, not at all.

    Of the four kinds each takes part with probability 1/2. generator: on the CPU; the only source of randomness.
    """
    amounts = torch.rand(4, generator=generator) * (torch.rand(4, generator=generator) < 0.5)
    amounts *= torch.rand((), generator=generator) >= clean
    blur, noise, flicker, shake = amounts.tolist()
    gain = 1 + GAIN * (2 * torch.rand((), generator=generator) - 1)
    rates = gain * (1 + FLICKER * flicker * torch.randn(len(frames), generator=generator))
    moves = (SHAKE * shake * (2 * torch.rand(len(frames), 2, generator=generator) - 1)).round().int().tolist()
    grain = NOISE * noise * torch.randn(frames.shape, generator=generator)
    frames = _blurred(frames, BLUR * blur)
    if shake:
        frames = torch.stack([frame.roll(move, (1, 2)) for frame, move in zip(frames, moves, strict=True)])
    frames = (frames + 1) * rates.to(frames.device)[:, None, None, None] - 1 + grain.to(frames.device)
    return frames.clamp(-1, 1), amounts.to(frames.device)


def _blurred(frames: Tensor, sigma: float) -> Tensor:
    """By a Gaussian of `sigma` pixels."""
    if not sigma:
        return frames
    reach = int(3 * sigma) + 1
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=frames.device) / sigma).square())
    taps = (taps / taps.sum()).expand(3, 1, 1, -1)
    x = F.pad(frames, [reach] * 4, mode="replicate")
    return F.conv2d(F.conv2d(x, taps, groups=3), taps.transpose(2, 3), groups=3)
