"""The cascade of latent video diffusion (section 3.2): a base network, then super-resolution networks, each twice as large."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
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


SEARCH = 0.002
"""Squared difference of surroundings, mean of their values, that makes a place of the first frame e times as likely a find."""
ALIKE = 0.1
"""Squared difference, likewise, at which what is found counts as something else by 1 - 1/e."""


def expected_latents(low: Tensor, reference: Tensor | None, size: tuple[int, ...]) -> Tensor:
    """What low resolution and reference together say of the latents of every frame (ours): (B, F, C, *size).

    low: (B, F, C, h, w), enlarged. For every place of every frame, the places of the first frame that look like it at low
    resolution are found (as in non-local means, Buades et al. 2005), by 3x3 latents around each; what is found adds the detail
    that the reference (B, C, *size) has there. So what rests and what moves without turning are as sharp as the reference from
    the start, which else layers that see one place or one frame at a time would have to carry there. A reference of zeros is
    none, and adds nothing.
    """
    enlarged = resize_condition(low, size)
    if reference is None:
        return enlarged
    batch, frames, channels = low.shape[:3]
    around = F.unfold(F.pad(enlarged.flatten(0, 1).float(), [1, 1, 1, 1], mode="replicate"), 3).transpose(1, 2)
    around = around.unflatten(0, (batch, frames))  # (B, F, h * w, 9 C)
    detail = (reference - enlarged[:, 0]).flatten(2).transpose(1, 2).float()
    found = _found_alike(around.flatten(1, 2), around[:, 0], torch.cat([detail, around[:, 0]], dim=2))
    added, looks = found.unflatten(1, (frames, -1)).split([channels, 9 * channels], dim=3)
    weight = torch.exp(-(around - looks).square().mean(dim=3, keepdim=True) / ALIKE)
    weight = weight * reference.flatten(1).any(dim=1)[:, None, None, None]
    return enlarged + (weight * added).transpose(2, 3).unflatten(3, size).to(enlarged)


def _found_alike(wanted: Tensor, known: Tensor, values: Tensor) -> Tensor:
    """Mean of `values` (B, N, E), weighted by how alike `known` (B, N, D) and `wanted` (B, M, D) are: (B, M, E), D < E.

    Attention whose logits are squared distances, -|a - b|^2 = 2 a.b - |b|^2 - |a|^2, in float32 under any autocast.
    """
    width = wanted.shape[2]
    query = torch.cat([2 * wanted, torch.ones_like(wanted[..., :1])], dim=2)
    key = torch.cat([known, -known.square().sum(dim=2, keepdim=True)], dim=2)
    padding = (0, values.shape[2] - width - 1)  # of one width, and with one head: so torch is fast, and makes no matrix (M, N)
    with torch.autocast(wanted.device.type, enabled=False):
        query, key, values = F.pad(query, padding)[:, None], F.pad(key, padding)[:, None], values[:, None]
        return F.scaled_dot_product_attention(query, key, values, scale=1 / (width * SEARCH))[:, 0]


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
