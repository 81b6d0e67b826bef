"""The conditions of section 3.2: a prompt becomes CLIP token states, an image becomes latents at each network's size."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def encode_text(tokenizer: Any, text_encoder: Any, prompts: list[str], device: torch.device | None = None) -> Tensor:
    """Token states (B, L, D) of the frozen CLIP text encoder, padded and truncated to the tokenizer's length L.

    device: where the encoder computes; default: where its weights are (they are elsewhere while it is offloaded).
    """
    tokens = tokenizer(
        prompts, padding="max_length", truncation=True, max_length=tokenizer.model_max_length, return_tensors="pt"
    )
    states: Tensor = text_encoder(tokens.input_ids.to(device or text_encoder.device)).last_hidden_state
    return states


@torch.no_grad()
def encode_frames(autoencoder: Any, frames: Tensor, chunk: int = 32) -> Tensor:
    """Frames (..., 3, H, W) in [-1, 1] -> latents (..., C, H/f, W/f), scaled to unit variance.

    The mean of the encoder's distribution is taken, not a sample (ours): its spread is far below a grey level. At most
    `chunk` frames are encoded at once.
    """
    flat = frames.flatten(0, -4).to(autoencoder.dtype)
    parts = [autoencoder.encode(part).latent_dist.mode() for part in flat.split(chunk)]
    latents = torch.cat(parts) * autoencoder.config.scaling_factor
    return latents.unflatten(0, frames.shape[:-3]).to(frames.dtype)


@torch.no_grad()
def decode_frames(autoencoder: Any, latents: Tensor, chunk: int = 4) -> Tensor:
    """Scaled latents (..., C, h, w) -> frames (..., 3, h*f, w*f), about [-1, 1], by the image decoder; the way back from
    `encode_frames`. At most `chunk` frames are decoded at once."""
    flat = latents.flatten(0, -4) / autoencoder.config.scaling_factor
    frames = torch.cat([autoencoder.decode(part).sample for part in flat.split(chunk)])
    return frames.unflatten(0, latents.shape[:-3])


def resize_frames(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Anti-aliased bilinear resize of frames (..., 3, H, W) to (..., 3, *size), computed in float32 or better.

    torch has no kernel for half precision on the CPU.
    """
    if frames.shape[-2:] == size:
        return frames
    flat = frames.flatten(0, -4).to(torch.promote_types(frames.dtype, torch.float32))
    flat = F.interpolate(flat, size=size, mode="bilinear", antialias=True)
    return flat.to(frames.dtype).unflatten(0, frames.shape[:-3])
