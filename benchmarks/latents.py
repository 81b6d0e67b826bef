"""What does an autoencoder make of images, and how smooth are its latents? A minute on a CPU.

Diffusion learns latents, not images: where a thing that moves by a pixel or two becomes other latents altogether, the networks
have to learn every place of it by heart. So beside the PSNR of reconstruction: the squared error, as a share of the latents'
variance, of (1) what lies half a latent to the side, taken from both neighbours by linear interpolation; (2) an image of half
the size, taken from the latents of the whole by means of 2x2, as the cascade's upsampling supposes; (3) the next latent, taken
for this.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from measuring import Row, parser, report
from torch import Tensor

from videogen.data.clips import collate
from videogen.data.diorama import Diorama
from videogen.models.pretrained import load_component, pipeline_folder
from videogen.stages.conditions import decode_frames, encode_frames, resize_frames

EDGE = 4
"""Latents at each side that are left out, where padding shows."""


def inner(latents: Tensor, edge: int = EDGE) -> Tensor:
    return latents[..., edge:-edge, edge:-edge]


@torch.no_grad()
def smoothness(autoencoder: AutoencoderKL, images: Tensor) -> Row:
    """images: (N, 3, S, S) in [-1, 1]."""
    latents = encode_frames(autoencoder, images)
    made = decode_frames(autoencoder, latents).clamp(-1, 1)
    errors = (made - images).square().mean((1, 2, 3))
    factor = images.shape[-1] // latents.shape[-1]
    width = images.shape[-1] - factor
    here, between, there = (
        inner(encode_frames(autoencoder, images[..., first : first + width])) for first in (0, factor // 2, factor)
    )
    small = encode_frames(autoencoder, F.avg_pool2d(images, 2))
    variance = inner(latents).var((0, 2, 3)).mean()

    def share(error: Tensor) -> float:
        return float(error.square().mean() / variance)

    return {
        "size": images.shape[-1],
        "reconstruction, dB": float((10 * torch.log10(4 / errors)).mean()),
        "half a latent aside": share(between - (here + there) / 2),
        "half the size": share(inner(small - F.avg_pool2d(latents, 2), EDGE // 2)),
        "next latent": share(here - there),
    }


def main() -> None:
    arguments = parser(__doc__, repeats=1)
    arguments.add_argument("--model", default="mini", help="a pipeline folder, a hub id or mini (default)")
    arguments.add_argument("--count", type=int, default=32, help="first frames of held-out scenes (default 32)")
    options = arguments.parse_args()
    autoencoder = load_component(AutoencoderKL, pipeline_folder(options.model), "vae")
    world = Diorama(256, 1, (4.0,), seed=5, split="held_out")
    scenes = [dataclasses.replace(world.labels(at), weather=None, camera=None) for at in range(options.count)]
    images = collate([world.render(labels, at) for at, labels in enumerate(scenes)]).frames[:, 0]
    report([smoothness(autoencoder, resize_frames(images, (side, side))) for side in (64, 128, 256)], options)


if __name__ == "__main__":
    main()
