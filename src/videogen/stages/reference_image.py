"""The reference image (section 3.1): a prompt through a frozen, off-the-shelf text-to-image network, or any picture."""

from __future__ import annotations

import gc
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from videogen import diffusion
from videogen.config import Guidance, UserError
from videogen.models.pretrained import load_image_pipeline
from videogen.stages.conditions import decode_frames, resize_frames
from videogen.video import to_rgb


def native_size(unet: Any, size: tuple[int, int], vae_factor: int) -> tuple[int, int]:
    """(height, width) in pixels, shaped like `size`, at which the text-to-image network draws: its shorter side is the one it
    was trained at, since smaller or larger pictures come out cut off or with everything twice."""
    unit = vae_factor * 2 ** (len(unet.config.block_out_channels) - 1)
    scale = unet.config.sample_size * vae_factor / min(size) / unit
    return max(1, round(size[0] * scale)) * unit, max(1, round(size[1] * scale)) * unit


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
    eta: float = 0.0,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1] from token states (2B, L, D): B of the negative prompts, then B of the prompts.

    eta: see `diffusion.sample`.
    """
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
        eta=eta,
        on_step=on_step,
    )
    return decode_frames(autoencoder, latents)


def images_of_model(
    model: Any,
    prompts: Sequence[str],
    negative_prompts: Sequence[str],
    generators: Sequence[torch.Generator],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> list[Image.Image]:
    """One picture a prompt by any text-to-image pipeline of diffusers, with its own size, steps and guidance.

    model: a folder or hub id, loaded in `dtype` onto `device` and let go again before this returns; or a pipeline of the
    caller's, with LoRAs and memory settings as they are. Pictures are made one at a time, each from its own generator. Raises
    UserError where it makes none.
    """
    own = isinstance(model, str | Path)
    pipeline = load_image_pipeline(model, dtype).to(device) if own else model
    try:
        takes = inspect.signature(pipeline.__call__).parameters
        if "prompt" not in takes or "generator" not in takes:
            raise UserError(f"{type(pipeline).__name__} makes no image of a prompt: give a text-to-image pipeline")
        pictures = []
        for prompt, negative, generator in zip(prompts, negative_prompts, generators, strict=True):
            without = {"negative_prompt": negative} if negative and "negative_prompt" in takes else {}
            images = getattr(pipeline(prompt=prompt, generator=generator, **without), "images", None)
            if not (isinstance(images, list) and images and isinstance(images[0], Image.Image)):
                raise UserError(f"{type(pipeline).__name__} makes no image of a prompt: give a text-to-image pipeline")
            pictures.append(images[0])
        return pictures
    finally:
        del pipeline
        if own:
            gc.collect()
            torch.cuda.empty_cache()


def image_to_tensor(image: Image.Image, size: tuple[int, int]) -> Tensor:
    """A picture of any size and mode -> (3, H, W) in [-1, 1]: its centre of the shape of `size` = (H, W), resized."""
    pixels = torch.from_numpy(np.array(to_rgb(image), dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1
    scale = max(size[0] / image.height, size[1] / image.width)
    height, width = (min(old, max(1, round(side / scale))) for side, old in zip(size, (image.height, image.width), strict=True))
    top, left = (image.height - height) // 2, (image.width - width) // 2
    return resize_frames(pixels[None, :, top : top + height, left : left + width], size)[0].clamp(-1, 1)
