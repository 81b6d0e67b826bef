"""Flow-based temporal super-resolution of latents (section 3.3): N frames become 2N - 1, again and again.

One pass: a coarse new frame between every two neighbours, by warping both along the latent flow; a diffusion network
conditioned on it refines it; of the result, the low frequencies are those of the warped latents and the high ones those
of the refined.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from videogen import diffusion
from videogen.config import UserError
from videogen.models.ifrnet import IFRNet
from videogen.models.unet import VideoUNet

Middle = Callable[[Tensor], Tensor]
"""Latents (B, N, C, h, w) -> coarse new frames (B, N-1, C, h, w) half-way between neighbours: what Fig. 6 varies."""

STRENGTH = 0.5
"""The refiner starts from coarse frames noised to this fraction of the schedule (ours), and learns what lies below it."""


def middle_frames(flow_network: IFRNet, latents: Tensor) -> Tensor:
    """The paper's `Middle`: both neighbours warped to the middle and merged by the mask of the latent flow network.

    IFRNet's residual is left out: the paper takes the *warped* latents; what warping cannot explain is the refiner's part.
    """
    pairs = latents[:, :-1].flatten(0, 1), latents[:, 1:].flatten(0, 1)
    warped: Tensor = flow_network(*pairs).warped
    return warped.unflatten(0, (len(latents), -1))


def slerp_middle(latents: Tensor) -> Tensor:
    """Spherical interpolation of whole frames as vectors, the baseline of Fig. 6.

    At the middle, with w the angle between a and b, it is (a + b) / (2 cos(w / 2)) and 2 cos(w / 2) = sqrt(2 (1 + cos w)).
    """
    first, second = latents[:, :-1], latents[:, 1:]
    cosine = F.cosine_similarity(first.flatten(2), second.flatten(2), dim=2)  # (B, N-1)
    scale = (2 * (1 + cosine)).clamp(min=1e-4).sqrt()  # opposite frames have no middle: stay finite
    return (first + second) / scale[..., None, None, None]


def blend_middle(latents: Tensor) -> Tensor:
    """The plain average of both neighbours."""
    return (latents[:, :-1] + latents[:, 1:]) / 2


def low_pass(latents: Tensor, factor: int = 2) -> Tensor:
    """ILVR's linear low-pass filter phi (Choi et al. 2021, section 3.2): shrink by `factor` and enlarge again, bicubic.

    latents: (..., C, h, w), of any size >= 1. Shrinking is antialiased, as in ILVR's code. factor 1 is the identity.
    """
    if factor == 1:
        return latents
    height, width = latents.shape[-2:]
    shrunk = max(1, round(height / factor)), max(1, round(width / factor))
    frames = latents.flatten(0, -4).to(torch.promote_types(latents.dtype, torch.float32))
    frames = F.interpolate(frames, size=shrunk, mode="bicubic", antialias=True)
    frames = F.interpolate(frames, size=(height, width), mode="bicubic")
    return frames.to(latents.dtype).reshape(latents.shape)


def merge_frequencies(coarse: Tensor, refined: Tensor, factor: int = 2) -> Tensor:
    """Low frequencies of `coarse` + high frequencies of `refined`: phi(coarse) + refined - phi(refined).

    phi is linear, so this is refined + phi(coarse - refined): one filtering, and merging a frame with itself changes no bit.
    """
    return refined + low_pass(coarse - refined, factor)


def refiner_condition(coarse: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """What the refiner sees of every new frame, in training and sampling: coarse and both neighbours on channels.

    Each (B, M, C, h, w); the result is (B, M, 3C, h, w), so the refiner's `condition_channels` is 3C.
    """
    return torch.cat([coarse, first, second], dim=2)


@torch.no_grad()
def upsample_time(
    latents: Tensor,
    *,
    middle: Middle,
    refiner: VideoUNet | None,
    scheduler: Any,
    fps: Tensor,
    generators: list[torch.Generator],
    num_steps: int = 4,
    strength: float = STRENGTH,
    window: int = 16,
    noise: Tensor | None = None,
    call: Callable[..., Tensor] | None = None,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """One pass: scaled latents (B, N, C, h, w) -> (B, 2N-1, C, h, w), the given frames unchanged at the even positions.

    middle: makes the coarse frames, e.g. `partial(middle_frames, flow_network)`. refiner: None leaves them as they are;
    `call` is called in its place, with the same arguments (in tiles, say). fps: (B,) of the *result*. num_steps, strength: the
    refiner starts from the coarse latents noised to this fraction of the schedule, of which it was trained on the last
    `STRENGTH`, and takes exactly `num_steps` steps (ours: the content is known, so few are enough). on_step: as in
    `diffusion.sample`, called `num_steps` times.

    window: the refiner denoises at most so many new frames at once, which bounds memory; windows are as equal as can be. Noise
    is drawn for the whole pass at once, sample i from `generators[i]`, so the window does not alter randomness; or it is given,
    as `noise` (B, N-1, C, h, w). Temporal layers do not reach across windows: only the given frame at a seam is seen from both
    sides.
    """
    if latents.shape[1] < 2:
        return latents
    new = middle(latents)
    if refiner is not None:
        condition = refiner_condition(new, latents[:, :-1], latents[:, 1:])
        refined = diffusion.sample(
            diffusion.counted_from(
                _in_windows(call or refiner, condition, fps, window), scheduler, new, refiner.config.condition_error
            ),
            diffusion.randn(tuple(new.shape), generators, like=new) if noise is None else noise,
            scheduler,
            num_steps,
            generators=generators,
            start=new,
            strength=strength,
            on_step=on_step,
        )
        new = merge_frequencies(new, refined)
    return interleave(latents, new)


def _in_windows(refiner: Callable[..., Tensor], condition: Tensor, fps: Tensor, window: int) -> diffusion.Predict:
    """The refiner as a function of noise and timestep, applied to as few and as equal windows of time as fit."""
    if window < 1:
        raise ValueError(f"window must be at least 1 frame, not {window}")
    windows = math.ceil(condition.shape[1] / window)
    conditions = condition.tensor_split(windows, dim=1)

    def predict(noisy: Tensor, timestep: Tensor) -> Tensor:
        parts = zip(noisy.tensor_split(windows, dim=1), conditions, strict=True)
        return torch.cat([refiner(part, timestep, fps=fps, condition=seen) for part, seen in parts], dim=1)

    return predict


def interleave(given: Tensor, new: Tensor) -> Tensor:
    """(B, N, ...) and (B, N-1, ...) -> (B, 2N-1, ...): given, new, given, ..., given."""
    both = given.new_empty(given.shape[0], given.shape[1] + new.shape[1], *given.shape[2:])
    both[:, 0::2], both[:, 1::2] = given, new
    return both


def num_passes(factor: int) -> int:
    """Passes for a temporal factor of 1, 2, 4, 8, ...; N frames become factor * (N - 1) + 1. Raises UserError on any other."""
    if factor < 1 or factor & (factor - 1):
        raise UserError(f"the temporal factor must be 1, 2, 4 or 8 (a power of two), not {factor}")
    return factor.bit_length() - 1


def temporal_super_resolution(latents: Tensor, factor: int, *, fps: Tensor, **options: Any) -> Tensor:
    """`num_passes(factor)` passes of `upsample_time`: (B, N, C, h, w) -> (B, factor * (N - 1) + 1, C, h, w).

    fps: (B,) of the *given* latents; it doubles with every pass. options: all others of `upsample_time`.
    """
    for _ in range(num_passes(factor)):
        fps = 2 * fps
        latents = upsample_time(latents, fps=fps, **options)
    return latents
