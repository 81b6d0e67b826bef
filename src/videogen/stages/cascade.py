"""The cascade of latent video diffusion (section 3.2): a base network, then super-resolution networks, each twice as large."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from videogen import diffusion
from videogen.config import Guidance
from videogen.models.unet import VideoUNet, resize_condition
from videogen.stages.conditions import encode_frames, resize_frames


@torch.no_grad()
def reference_latents(autoencoder: Any, images: Tensor, levels: int) -> list[Tensor]:
    """The reference (B, 3, H, W) resized to the size of each network and encoded: latents (B, C, h, w), smallest first."""
    height, width = images.shape[-2:]
    sizes = [(height >> shift, width >> shift) for shift in reversed(range(levels))]
    return [encode_frames(autoencoder, resize_frames(images, size)) for size in sizes]


ALIKE = 0.03
"""Squared difference of low-resolution latents, mean of the channels, at which a place counts as changed by 1 - 1/e."""


def expected_latents(low: Tensor, reference: Tensor | None, size: tuple[int, ...]) -> Tensor:
    """What low resolution and reference together say of the latents of every frame (ours): (B, F, C, *size).

    low: (B, F, C, h, w), enlarged. Where a frame's low resolution is that of the first frame, it has the detail that the
    reference (B, C, *size) adds to the first frame's: what does not move is as sharp as the reference from the start, which
    else would have to be carried to all frames by temporal layers. A reference of zeros is none, and adds nothing.
    """
    enlarged = resize_condition(low, size)
    if reference is None:
        return enlarged
    changed = (low - low[:, :1]).square().mean(dim=2, keepdim=True)
    weight = resize_condition(torch.exp(-changed / ALIKE), size) * reference.flatten(1).any(dim=1)[:, None, None, None, None]
    return enlarged + weight * (reference[:, None] - enlarged[:, :1])


def super_resolution_condition(low: Tensor, reference: Tensor | None, size: tuple[int, ...], channels: int) -> Tensor:
    """What a super-resolution network sees with every frame, in training and sampling: (B, F, channels, *size).

    channels: the network's `condition_channels`, C for the enlarged low resolution (paper), 2C for `expected_latents` (ours)
    behind it. The output of a network with `condition_error` counts from the last C.
    """
    enlarged = resize_condition(low, size)
    if channels == low.shape[2]:
        return enlarged
    return torch.cat([enlarged, expected_latents(low, reference, size)], dim=2)


@torch.no_grad()
def generate_base(
    network: VideoUNet,
    scheduler: Any,
    text: Tensor,
    reference: Tensor | None,
    shape: tuple[int, ...],
    fps: Tensor,
    generators: list[torch.Generator],
    *,
    num_steps: int,
    guidance: Guidance,
    eta: float = 0.0,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Latents of `shape` = (B, F, C, h, w) from noise, with guidance towards the text; eta: see `diffusion.sample`.

    text: token states (2B, L, D), B of the negative prompts, then B of the prompts. reference: (B, C, h, w), or None; both
    halves of the guided batch see it. fps: (B,).
    """
    read = network.read_text(text)

    def predict(noisy: Tensor, timestep: Tensor, rows: slice) -> Tensor:
        copies = len(noisy) // len(fps)
        known = None if reference is None else torch.cat([reference] * copies)
        return network(noisy, timestep, fps=torch.cat([fps] * copies), text=read.rows(rows), reference=known)

    shared = network.config.shared_noise
    return diffusion.sample(
        diffusion.guided(predict, guidance, scheduler.config.num_train_timesteps),
        diffusion.video_noise(shape, generators, shared, like=text),
        scheduler,
        num_steps,
        generators=generators,
        eta=eta,
        shared_noise=shared,
        on_step=on_step,
    )


@torch.no_grad()
def super_resolve(
    network: VideoUNet,
    scheduler: Any,
    text: Tensor,
    reference: Tensor | None,
    low: Tensor,
    fps: Tensor,
    generators: list[torch.Generator],
    *,
    num_steps: int,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Latents (B, F, C, h, w) of the level below -> (B, F, C, 2h, 2w), from noise.

    text: token states of the prompts alone (B, L, D). Ours: no guidance here, and few steps, since reference and low resolution
    already fix the content. Not from the enlarged latents, noised in part: those are so far from any true latents that a
    network, which has seen true ones under so little noise, takes their faults for truth (docs/log.md).
    """
    read = network.read_text(text)
    batch, frames, channels, height, width = low.shape
    condition = super_resolution_condition(low, reference, (2 * height, 2 * width), network.config.condition_channels)

    def predict(noisy: Tensor, timestep: Tensor) -> Tensor:
        return network(noisy, timestep, fps=fps, text=read, reference=reference, condition=condition)

    shape = (batch, frames, channels, 2 * height, 2 * width)
    noise = diffusion.video_noise(shape, generators, network.config.shared_noise, like=low)
    counted = diffusion.counted_from(predict, scheduler, condition[:, :, -channels:], network.config.condition_error)
    return diffusion.sample(counted, noise, scheduler, num_steps, generators=generators, on_step=on_step)
