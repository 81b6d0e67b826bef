"""The reference image (section 3.1): a prompt through a frozen, off-the-shelf text-to-image network, or any picture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from videogen import diffusion
from videogen.stages.conditions import resize_frames


@torch.no_grad()
def generate_reference(
    unet: Any,
    autoencoder: Any,
    scheduler: Any,
    text: Tensor,
    size: tuple[int, int],
    generators: list[torch.Generator],
    *,
    num_steps: int,
    guidance_scale: float,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1] from token states (2B, L, D): B of the negative prompts, then B of the prompts."""
    factor = 2 ** (len(autoencoder.config.block_out_channels) - 1)
    shape = (len(generators), autoencoder.config.latent_channels, size[0] // factor, size[1] // factor)
    latents = diffusion.sample(
        diffusion.guided(lambda x, t: unet(x, t, text).sample, guidance_scale),
        diffusion.randn(shape, generators, like=text),
        scheduler,
        num_steps,
        generators=generators,
        on_step=on_step,
    )
    return torch.cat([autoencoder.decode(part).sample for part in latents.div(autoencoder.config.scaling_factor).split(4)])


def image_to_tensor(image: Image.Image, size: tuple[int, int]) -> Tensor:
    """A picture of any size and mode -> (3, H, W) in [-1, 1], scaled to cover `size` = (H, W) and cut at the centre."""
    pixels = torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1
    scale = max(size[0] / pixels.shape[1], size[1] / pixels.shape[2])
    covering = [max(side, round(old * scale)) for side, old in zip(size, pixels.shape[1:], strict=True)]
    pixels = resize_frames(pixels[None], (covering[0], covering[1]))[0]
    top, left = (covering[0] - size[0]) // 2, (covering[1] - size[1]) // 2
    return pixels[:, top : top + size[0], left : left + size[1]]
