"""The cascade of latent video diffusion (section 3.2): a base network, then super-resolution networks, each twice as large."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
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


@dataclass(frozen=True)
class Search:
    """How places of other frames are looked for in the first: by side x side latents around each, `gap` apart, in the first
    frame as it is and at other `sizes`. alike: squared difference, as for SEARCH, at which what is found counts as something
    else by 1 - 1/e."""

    side: int = 3
    gap: int = 1
    sizes: tuple[float, ...] = (1.0,)
    alike: float = 0.1

    def surroundings(self, latents: Tensor) -> Tensor:
        """Latents (N, C, h, w) around every place, as (N, h * w, side * side * C) in float32."""
        padded = F.pad(latents.float(), [self.gap * (self.side // 2)] * 4, mode="replicate")
        return F.unfold(padded, self.side, dilation=self.gap).transpose(1, 2)


SHARP = Search()
BLURRED = Search(side=5, gap=2, sizes=(0.71, 1.0, 1.41), alike=0.3)
"""What is blurred is alike in more places: the surroundings reach further, over a whole small thing. What has grown or shrunk
is found as well, which takes memory and time that only the smaller networks of the cascade have (docs/log.md)."""


def expected_latents(low: Tensor, reference: Tensor | None, size: tuple[int, ...], blur: int = 0) -> Tensor:
    """What low resolution and reference together say of the latents of every frame (ours): (B, F, C, *size).

    low: (B, F, C, h, w), `blurred` so many times, then enlarged. For every place of every frame, the places of the first frame
    that look like it there are found (as in non-local means, Buades et al. 2005; see `Search`), and what is found adds the
    detail that the reference (B, C, *size) has beyond that. So what rests and what moves without turning are as sharp as the
    reference from the start, which else layers that see one place or one frame at a time would have to carry there. A reference
    of zeros is none, and adds nothing.
    """
    enlarged = resize_condition(blurred(low, blur), size)
    if reference is None:
        return enlarged
    search = BLURRED if blur else SHARP
    batch, frames, channels = low.shape[:3]
    around = search.surroundings(enlarged.flatten(0, 1)).unflatten(0, (batch, frames))  # (B, F, h * w, D)
    known, values = [], []
    for scale in search.sizes:
        shown, first = _scaled(reference, low[:, :1], scale, blur)
        known.append(search.surroundings(first))
        values.append(torch.cat([(shown - first).flatten(2).transpose(1, 2).float(), known[-1]], dim=2))
    found = _found_alike(around.flatten(1, 2), torch.cat(known, dim=1), torch.cat(values, dim=1))
    added, looks = found.unflatten(1, (frames, -1)).split([channels, around.shape[3]], dim=3)
    weight = torch.exp(-(around - looks).square().mean(dim=3, keepdim=True) / search.alike)
    weight = weight * reference.flatten(1).any(dim=1)[:, None, None, None]
    return enlarged + (weight * added).transpose(2, 3).unflatten(3, size).to(enlarged)


def _scaled(reference: Tensor, first: Tensor, scale: float, blur: int) -> tuple[Tensor, Tensor]:
    """Reference and low resolution of the first frame (B, 1, C, h, w), both as if everything in it were `scale` times as large:
    two (B, C, h', w') of the reference's size times `scale`, the second blurred and enlarged as that of any frame."""
    if scale != 1:
        sizes = [[max(1, round(scale * side)) for side in each.shape[-2:]] for each in (first, reference)]
        first, reference = (
            F.interpolate(each, side, mode="bilinear", antialias=scale < 1)
            for each, side in zip((first[:, 0], reference), sizes, strict=True)
        )
        first = first[:, None]
    return reference, resize_condition(blurred(first, blur), tuple(reference.shape[-2:]))[:, 0]


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


def blurred(latents: Tensor, times: int) -> Tensor:
    """Latents (..., h, w) after `times` means over 3x3 places, which is about a Gaussian of variance 2/3 times `times`."""
    for _ in range(times):
        padded = F.pad(latents.flatten(0, -3), [1, 1, 1, 1], mode="replicate")
        latents = F.avg_pool2d(padded, 3, stride=1).unflatten(0, latents.shape[:-2])
    return latents


def super_resolution_condition(
    network: Mapping[str, Any], low: Tensor, reference: Tensor | None, size: tuple[int, ...]
) -> Tensor:
    """What a super-resolution network sees with every frame, in training and sampling: (B, F, condition_channels, *size).

    network: its configuration. Of its `condition_channels`, the first C are the enlarged low resolution (paper), C more, if it
    has them, `expected_latents` (ours); the output of a network with `condition_error` counts from the last C.
    With `condition_blur` (ours) it sees the low resolution blurred. What the level below makes has the right things in the
    right places and the wrong outlines; blurred, it differs little from what is true, which the network has learnt from, and
    the outlines have to come from reference and text.
    """
    blur = network["condition_blur"]
    enlarged = resize_condition(blurred(low, blur), size)
    if network["condition_channels"] == low.shape[2]:
        return enlarged
    return torch.cat([enlarged, expected_latents(low, reference, size, blur)], dim=2)


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


@dataclass(frozen=True)
class Details:
    """How super-resolution goes on after its first step (ours): from its result, noised to a fraction `begin` of the schedule.

    What low resolution and reference settle is known after one step. What they leave open, rain and snow, the step has painted
    as the mean of all that is possible: it is decided where the noise is about as strong as it. Only the words say that it
    falls, so these steps are guided, by `guidance_scale`; not more in one place than rain and snow need, or colours and edges
    of what moves, where the words say more, are pushed out of shape (docs/log.md).
    """

    begin: float
    guidance_scale: float

    @property
    def guidance(self) -> Guidance:
        return Guidance(self.guidance_scale, limit=_TOLD_OF_DETAILS)


_TOLD_OF_DETAILS = 0.05
"""What the words say of rain in a place of the sky, with mini: half of it lies below 0.04, one in a hundred above 0.1; of
what moves, 0.3."""


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
    details: Details | None = None,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Latents (B, F, C, h, w) of the level below -> (B, F, C, 2h, 2w), from noise.

    text: token states (B, L, D) of the prompts; with `details`, (2B, L, D), B of the negative prompts before them. Ours: no
    guidance here, and few steps, since reference and low resolution already fix the content, but for `details`. Not from the
    enlarged latents, noised in part: those are so far from any true latents that a network, which has seen true ones under so
    little noise, takes their faults for truth (docs/log.md).
    """
    read = network.read_text(text)
    batch, frames, channels, height, width = low.shape
    condition = super_resolution_condition(network.config, low, reference, (2 * height, 2 * width))

    def predict(noisy: Tensor, timestep: Tensor, rows: slice) -> Tensor:
        known = [
            each if each is None or len(noisy) == batch else torch.cat([each, each]) for each in (reference, condition, fps)
        ]
        return network(noisy, timestep, fps=known[2], text=read.rows(rows), reference=known[0], condition=known[1])

    def counted(predict: diffusion.Predict) -> diffusion.Predict:
        return diffusion.counted_from(predict, scheduler, condition[:, :, -channels:], network.config.condition_error)

    shape = (batch, frames, channels, 2 * height, 2 * width)
    noise = partial(diffusion.video_noise, shape, generators, network.config.shared_noise, like=low)
    told = counted(partial(predict, rows=slice(-batch, None)))
    first = num_steps if details is None else 1
    latents = diffusion.sample(told, noise(), scheduler, first, generators=generators, on_step=on_step)
    if num_steps == first or details is None:
        return latents
    guided = diffusion.guided(predict, details.guidance, scheduler.config.num_train_timesteps)
    return diffusion.sample(
        counted(guided),
        noise(),
        scheduler,
        num_steps - 1,
        generators=generators,
        start=latents,
        strength=details.begin,
        on_step=None if on_step is None else lambda step, timestep: on_step(1 + step, timestep),
    )
