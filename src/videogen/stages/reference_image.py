"""The reference image (section 3.1): a prompt through a frozen, off-the-shelf text-to-image network, or any picture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from videogen import diffusion
from videogen.config import Guidance
from videogen.stages.conditions import resize_frames
from videogen.video import to_rgb


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
    guidance: Guidance,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1] from token states (2B, L, D): B of the negative prompts, then B of the prompts."""
    factor = 2 ** (len(autoencoder.config.block_out_channels) - 1)
    shape = (len(generators), autoencoder.config.latent_channels, size[0] // factor, size[1] // factor)

    def predict(noisy: Tensor, timestep: Tensor, rows: slice) -> Tensor:
        return unet(noisy, timestep, text[rows]).sample

    latents = diffusion.sample(
        diffusion.guided(predict, guidance, scheduler.config.num_train_timesteps),
        diffusion.randn(shape, generators, like=text),
        scheduler,
        num_steps,
        generators=generators,
        on_step=on_step,
    )
    return torch.cat([autoencoder.decode(part).sample for part in latents.div(autoencoder.config.scaling_factor).split(4)])


def image_to_tensor(image: Image.Image, size: tuple[int, int]) -> Tensor:
    """A picture of any size and mode -> (3, H, W) in [-1, 1]: its centre of the shape of `size` = (H, W), resized."""
    pixels = torch.from_numpy(np.array(to_rgb(image), dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1
    scale = max(size[0] / image.height, size[1] / image.width)
    height, width = (min(old, max(1, round(side / scale))) for side, old in zip(size, (image.height, image.width), strict=True))
    top, left = (image.height - height) // 2, (image.width - width) // 2
    return resize_frames(pixels[None, :, top : top + height, left : left + width], size)[0].clamp(-1, 1)
