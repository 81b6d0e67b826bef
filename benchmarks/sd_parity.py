"""Rightness at Stable Diffusion 1.5's true configuration, with random weights: no download, about 12 GB of memory in float32.

Per network: the largest difference between each frame of the inflated network and the image network, with the largest output
beside it, seconds of both, and the peak of resident memory so far. Then the two super-resolution networks: how many tensors of
the network below they keep, and the largest difference of their outputs at the start.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from typing import Any

import measuring
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn

from videogen.models.initialization import decoder_tensors, initialize_from
from videogen.models.stable_diffusion import decoder_arguments, unet_arguments
from videogen.models.unet import VideoUNet
from videogen.models.video_decoder import VideoDecoder

SD_UNET: dict[str, Any] = {"sample_size": 64, "cross_attention_dim": 768}  # all else: diffusers' defaults are SD 1.5's
SD_VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "sample_size": 512,
}


def main() -> None:
    parser = measuring.parser(__doc__, repeats=1)
    parser.add_argument("--num-frames", type=int, default=16, help="of the base network; the decoder gets a quarter")
    parser.add_argument("--latent-size", type=int, default=32, help="of what is decoded; 64 is 512x512 pixels (default 32)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, options.dtype))
    with torch.no_grad():
        rows = [*unet_rows(options), decoder_row(options)]
    measuring.report(rows, options)


def unet_rows(options: argparse.Namespace) -> list[measuring.Row]:
    """The base network at 16x16 beside the image network, then each level beside the one below."""
    image = UNet2DConditionModel(**SD_UNET).eval()
    shape = unet_arguments(image.config)
    base = made(VideoUNet(sample_size=16, **shape))
    initialize_from(base, image.state_dict())
    frames = options.num_frames
    latents, text, timestep = torch.randn(1, frames, 4, 16, 16), torch.randn(1, 77, 768), torch.tensor([500])
    given: dict[str, Any] = {"fps": torch.tensor([8.0]), "text": text, "reference": torch.randn(1, 4, 16, 16)}
    rows = [
        compared(
            "base, 16x16: UNet2DConditionModel frame by frame",
            lambda: per_frame(lambda frame: image(frame, timestep, text).sample, latents),
            lambda: base(latents, timestep, **given),
            kept(base, image.state_dict()),
        )
    ]
    image = None
    below, base = base, None
    for level, side in ((1, 32), (2, 64)):
        network = made(VideoUNet(sample_size=side, condition_channels=4, **shape))
        initialize_from(network, below.state_dict())
        low = torch.randn(1, 2, 4, side // 2, side // 2)
        small = torch.randn(1, 2, 4, 16, 16)
        rows.append(
            compared(
                f"super_resolution_{level}: the network below, at 16x16",
                lambda below=below, small=small: below(small, timestep, **given, **condition(below, small)),
                lambda network=network, small=small, low=low: network(small, timestep, **given, condition=low),
                kept(network, below.state_dict()),
            )
        )
        below = network
    return rows


def per_frame(network: Callable[[Tensor], Tensor], video: Tensor) -> Tensor:
    return torch.stack([network(frame) for frame in video.unbind(1)], 1)


def condition(network: VideoUNet, like: Tensor) -> dict[str, Tensor]:
    return {"condition": torch.randn_like(like)} if network.config.condition_channels else {}


def decoder_row(options: argparse.Namespace) -> measuring.Row:
    """The video decoder beside the autoencoder's."""
    autoencoder = AutoencoderKL(**SD_VAE).eval()
    decoder = made(VideoDecoder(**decoder_arguments(autoencoder.config)))
    tensors = decoder_tensors(autoencoder.state_dict())
    initialize_from(decoder, tensors)
    latents = torch.randn(1, max(1, options.num_frames // 4), 4, options.latent_size, options.latent_size)
    factor = autoencoder.config.scaling_factor
    return compared(
        f"video decoder, {options.latent_size}x{options.latent_size} latents: AutoencoderKL frame by frame",
        lambda: per_frame(lambda frame: autoencoder.decode(frame / factor).sample, latents),
        lambda: decoder(latents),
        kept(decoder, tensors),
    )


def made(network: nn.Module) -> Any:
    return network.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def kept(network: nn.Module, source: dict[str, Tensor]) -> str:
    """How many of the source's tensors the network holds, value for value (the first channels of a widened one)."""
    own = network.state_dict()
    first = {name: own[name][:, : item.shape[1]] if item.ndim > 1 else own[name] for name, item in source.items()}
    equal = sum(torch.equal(first[name], item) for name, item in source.items())
    return f"{equal}/{len(source)} ({len(own) - len(source)} new)"


def compared(name: str, reference: Callable[[], Tensor], video: Callable[[], Tensor], tensors: str) -> measuring.Row:
    begin = time.perf_counter()
    expected = reference()
    middle = time.perf_counter()
    found = video()
    end = time.perf_counter()
    return {
        "what": name,
        "tensors kept": tensors,
        "largest difference": (found - expected).abs().max().item(),
        "largest output": expected.abs().max().item(),
        "image network, s": middle - begin,
        "video network, s": end - middle,
        "peak memory, GB": measuring.resident_gigabytes(resource.getrusage(resource.RUSAGE_SELF)),
    }


if __name__ == "__main__":
    main()
