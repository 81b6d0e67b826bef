"""A step of our networks against diffusers' of the same widths, interleaved in one process; ratios are medians over rounds.

unet: VideoUNet against UNet2DConditionModel run on each frame (the floor: what the temporal layers are added to) and
against UNet3DConditionModel (ModelScope's). decoder: VideoDecoder against AutoencoderKL.decode on each frame and against
AutoencoderKLTemporalDecoder (Stable Video Diffusion's). A training step is forward, squared error, backward and AdamW. Text
keys and values are computed in every call. All weights are random and in channels_last; `--dtype` is that of the weights.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import gcd
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder, UNet2DConditionModel, UNet3DConditionModel
from measuring import Row, interleaved, parser, ratio, report
from torch import Tensor, nn

from videogen.config import read_recipe
from videogen.models.unet import VideoUNet
from videogen.models.video_decoder import VideoDecoder

SD = {  # Stable Diffusion 1.5
    "unet": {
        "down_block_types": (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
        "block_out_channels": (320, 640, 1280, 1280),
        "attention_head_dim": 8,
        "cross_attention_dim": 768,
    },
    "decoder": {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4},
}
MINI = {"unet": "mini/base", "decoder": "mini/autoencoder"}
UNET = {"block_out_channels", "layers_per_block", "attention_head_dim", "cross_attention_dim", "norm_num_groups"}
DECODER = {"block_out_channels", "layers_per_block", "latent_channels", "norm_num_groups", "mid_block_add_attention"}
TEXT_LENGTH = {"mini": 40, "sd": 77}


@dataclass
class Contender:
    """One forward pass of a network, and the part of the network that it uses."""

    forward: Callable[[], Tensor]
    part: nn.Module

    def measured_forward(self) -> None:
        with torch.no_grad():
            self.forward()

    def training_step(self) -> Callable[[], None]:
        optimizer = torch.optim.AdamW(self.part.parameters(), lr=1e-6, fused=True)

        def step() -> None:
            self.forward().float().square().mean().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step


def architecture(kind: str, widths: str) -> dict[str, Any]:
    """Keyword arguments of a network: mini's by its recipe."""
    return dict(SD[kind] if widths == "sd" else read_recipe(MINI[kind]).network)


def unets(options: argparse.Namespace) -> dict[str, Contender]:
    config = architecture("unet", options.widths)
    blocks = {key: tuple(config[key]) for key in ("down_block_types", "up_block_types")}
    config = {key: value for key, value in config.items() if key in UNET}
    batch, frames, side = options.batch_size, options.num_frames, options.latent_size
    make = partial(torch.randn, device=options.device)
    sample, reference = make(batch, frames, 4, side, side), make(batch, 4, side, side)
    text = make(batch, TEXT_LENGTH[options.widths], config["cross_attention_dim"])
    times, fps = (torch.full((batch,), value, device=options.device) for value in (500, 8.0))

    ours = placed(VideoUNet(**config, **blocks), options)
    flat = placed(UNet2DConditionModel(**config, **blocks), options)
    cubic = {key: tuple(kind.replace("2D", "3D") for kind in kinds) for key, kinds in blocks.items()}
    head = gcd(64, *config["block_out_channels"])  # here attention_head_dim is the size of a head
    deep = placed(UNet3DConditionModel(**{**config, **cubic, "attention_head_dim": head}), options)
    images, each_time, each_text = sample.flatten(0, 1), times.repeat_interleave(frames), text.repeat_interleave(frames, dim=0)
    cube = sample.transpose(1, 2).contiguous()
    return {
        "UNet2DConditionModel": Contender(lambda: flat(images, each_time, each_text).sample, flat),
        "VideoUNet": Contender(lambda: ours(sample, times, fps=fps, text=text, reference=reference), ours),
        "UNet3DConditionModel": Contender(lambda: deep(cube, times, text).sample, deep),
    }


def decoders(options: argparse.Namespace) -> dict[str, Contender]:
    config = {key: value for key, value in architecture("decoder", options.widths).items() if key in DECODER}
    levels = len(config["block_out_channels"])
    down, up = {"down_block_types": ("DownEncoderBlock2D",) * levels}, {"up_block_types": ("UpDecoderBlock2D",) * levels}
    batch, frames, side = options.batch_size, options.num_frames, options.latent_size
    latents = torch.randn(batch, frames, config["latent_channels"], side, side, device=options.device)
    images = latents.flatten(0, 1)

    ours = placed(VideoDecoder(**config), options)
    image = placed(AutoencoderKL(**config, **down, **up), options)
    found = {
        "AutoencoderKL": Contender(lambda: image.decode(images).sample, image.decoder),
        "VideoDecoder": Contender(lambda: ours(latents), ours),
    }
    if all(width % 32 == 0 for width in config["block_out_channels"]):  # its norms have 32 groups, whatever is asked for
        shared = {key: config[key] for key in ("block_out_channels", "layers_per_block", "latent_channels")}
        steady = placed(AutoencoderKLTemporalDecoder(**shared, **down), options)
        contender = Contender(lambda: steady.decode(images, num_frames=frames).sample, steady.decoder)
        found["AutoencoderKLTemporalDecoder"] = contender
    return found


def placed(network: nn.Module, options: argparse.Namespace) -> Any:
    """On the device, every 2-D convolution in channels_last."""
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return network.to(options.device)


def compare(step: str, contenders: Mapping[str, Contender], options: argparse.Namespace) -> list[Row]:
    """One row a contender; ratios are to the first of them. working GB (CUDA): the peak of a call beyond what it found."""
    cuda = options.device == "cuda"
    working: dict[str, float] = {}

    def watched(name: str, call: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            before = torch.cuda.memory_allocated() if cuda else 0
            if cuda:
                torch.cuda.reset_peak_memory_stats()
            call()
            if cuda:
                torch.cuda.synchronize()
                working[name] = (torch.cuda.max_memory_allocated() - before) / 1e9

        return run

    def call_of(contender: Contender) -> Callable[[], None]:
        return contender.training_step() if step == "training" else contender.measured_forward

    seconds = interleaved({name: watched(name, call_of(one)) for name, one in contenders.items()}, options.repeats)
    first = next(iter(seconds.values()))
    rows = []
    for name, one in contenders.items():
        row: Row = {"network": name, "step": step}
        row["million parameters"] = sum(parameter.numel() for parameter in one.part.parameters()) / 1e6
        row |= {"seconds": statistics.median(seconds[name]), "ratio": ratio(seconds[name], first)}
        rows.append(row | ({"working GB": working[name]} if cuda else {}))
    return rows


def main() -> None:
    arguments = parser(__doc__, repeats=7)
    add = arguments.add_argument
    add("--networks", nargs="+", choices=("unet", "decoder"), default=["unet", "decoder"])
    add("--steps", nargs="+", choices=("forward", "training"), default=["forward", "training"])
    add("--widths", choices=("mini", "sd"), default="mini", help="mini's, by its recipes, or Stable Diffusion 1.5's")
    add("--latent-size", type=int, default=16, help="height and width of the latents (default 16)")
    add("--num-frames", type=int, default=16)
    add("--batch-size", type=int, default=1, help="videos (default 1)")
    add("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--threads", type=int, default=1, help="CPU threads; one is steadiest (default 1)")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    rows: list[Row] = []
    for kind in options.networks:
        torch.set_default_dtype(getattr(torch, options.dtype))
        contenders = {"unet": unets, "decoder": decoders}[kind](options)
        torch.set_default_dtype(torch.float32)
        for step in options.steps:
            rows += compare(step, contenders, options)
    report(rows, options)


if __name__ == "__main__":
    main()
