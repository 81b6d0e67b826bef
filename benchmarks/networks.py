"""A step of our networks against diffusers' of the same widths, interleaved in one process; ratios are medians over rounds.

unet: VideoUNet against UNet2DConditionModel run on each frame (the floor: what the temporal layers are added to) and the
`--peers`: UNet3DConditionModel (ModelScope's), UNetMotionModel (AnimateDiff's), UNetSpatioTemporalConditionModel (Stable Video
Diffusion's). decoder: VideoDecoder against AutoencoderKL.decode on each frame and AutoencoderKLTemporalDecoder (Stable Video
Diffusion's). layers: at each width, the temporal convolution against the 3x3 one before it, and temporal attention against its
four projections. A training step is forward, squared error, backward and AdamW. Text keys and values are computed in every
call. All weights are random and in channels_last; `--dtype` is that of the weights.

rate: share of the device's own rate of multiplying two large matrices in this dtype, measured in the same rounds.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import gcd
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLTemporalDecoder,
    UNet2DConditionModel,
    UNet3DConditionModel,
    UNetMotionModel,
    UNetSpatioTemporalConditionModel,
)
from measuring import Row, interleaved, parser, ratio, report
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from videogen.config import read_recipe
from videogen.models.pseudo3d import PseudoConv3d, TemporalAttention
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
PEERS = {"3d": "UNet3DConditionModel", "motion": "UNetMotionModel", "svd": "UNetSpatioTemporalConditionModel"}


CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v)
    ),
}
"""What torch's counter leaves out, as it counts CUDA's."""


@dataclass
class Contender:
    """One forward pass of a network, the part of the network that it uses, and the contender that its ratio is to."""

    forward: Callable[[], Tensor]
    part: nn.Module
    against: str | None = None  # None: the first one

    def flops(self, training: bool) -> int:
        """Multiplications and additions of a forward pass, or of forward and backward."""
        with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
            if training:
                self.forward().float().square().mean().backward()
                self.part.zero_grad(set_to_none=True)
            else:
                self.measured_forward()
        return counter.get_total_flops()

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
    images, each_time, each_text = sample.flatten(0, 1), times.repeat_interleave(frames), text.repeat_interleave(frames, dim=0)
    cube = sample.transpose(1, 2).contiguous()
    found = {
        "UNet2DConditionModel": Contender(lambda: flat(images, each_time, each_text).sample, flat),
        "VideoUNet": Contender(lambda: ours(sample, times, fps=fps, text=text, reference=reference), ours),
    }

    def renamed(ending: str) -> dict[str, tuple[str, ...]]:
        return {key: tuple(kind.replace("2D", ending) for kind in kinds) for key, kinds in blocks.items()}

    heads = config.pop("attention_head_dim")
    if "3d" in options.peers:
        head = gcd(64, *config["block_out_channels"])  # here attention_head_dim is the size of a head
        deep = placed(UNet3DConditionModel(**config, **renamed("3D"), attention_head_dim=head), options)
        found[PEERS["3d"]] = Contender(lambda: deep(cube, times, text).sample, deep)
    if "motion" in options.peers:
        moving = placed(UNetMotionModel(**config, **renamed("Motion"), num_attention_heads=heads), options)
        found[PEERS["motion"]] = Contender(lambda: moving(cube, times, each_text).sample, moving)
    if "svd" in options.peers:
        config.pop("norm_num_groups", None)
        found[PEERS["svd"]] = svd(config, renamed("SpatioTemporal"), heads, sample, times, text, options)
    return found


def svd(
    config: dict[str, Any], blocks: dict[str, Any], heads: Any, sample: Tensor, times: Tensor, text: Tensor, options: Any
) -> Contender:
    """Stable Video Diffusion's UNet, whose image condition is channels of its input; it has norms of 32 groups."""
    rest = {"in_channels": 4, "num_frames": options.num_frames, "num_attention_heads": heads}
    network = placed(UNetSpatioTemporalConditionModel(**config, **blocks, **rest), options)
    ids = torch.zeros(len(sample), 3, device=options.device)  # fps, motion and noise
    return Contender(lambda: network(sample, times, text, ids).sample, network)


def layers(options: argparse.Namespace) -> dict[str, Contender]:
    """Pairs of a part and what it is measured against, the reference first, at the widths of the three largest levels."""
    found: dict[str, Contender] = {}
    frames, batch = options.num_frames, options.batch_size
    for level, width in enumerate(architecture("unet", options.widths)["block_out_channels"][:3]):
        side = options.latent_size >> level
        x = torch.randn(batch * frames, width, side, side, device=options.device).contiguous(memory_format=torch.channels_last)
        convolution = placed(PseudoConv3d(width, width, 3, padding=1), options)
        attention = placed(TemporalAttention(width), options)
        tokens = torch.randn(batch * frames, side * side, width, device=options.device)
        projections = nn.ModuleList([attention.to_q, attention.to_k, attention.to_v, attention.to_out[0]])
        found |= {
            f"3x3 convolution {width}": Contender(partial(convolution, x, None), convolution, f"3x3 convolution {width}"),
            f"temporal convolution {width}": Contender(
                partial(convolution.over_time, x, frames), convolution.temporal, f"3x3 convolution {width}"
            ),
            f"four projections {width}": Contender(
                partial(_each, projections, tokens), projections, f"four projections {width}"
            ),
            f"temporal attention {width}": Contender(
                partial(attention, tokens, frames, side), attention, f"four projections {width}"
            ),
        }
    return found


def _each(projections: nn.ModuleList, tokens: Tensor) -> Tensor:
    made = tokens
    for projection in projections:
        made = projection(tokens)
    return made


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
    """On the device, every 2-D convolution in channels_last; ours compiled where asked for."""
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    if options.compile and isinstance(network, VideoUNet | VideoDecoder):
        network.compile(mode="reduce-overhead" if options.device == "cuda" else "default")
    return network.to(options.device)


def compare(step: str, contenders: Mapping[str, Contender], options: argparse.Namespace) -> list[Row]:
    """One row a contender. working GB (CUDA): the peak of a call beyond what it found."""
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

    calls = {name: watched(name, call_of(one)) for name, one in contenders.items()}
    side = 8192 if cuda else 1024
    matrix = torch.randn(side, side, device=options.device, dtype=getattr(torch, options.dtype))
    seconds = interleaved(calls | {"": watched("", partial(torch.mm, matrix, matrix))}, options.repeats)
    fastest = 2 * side**3 / statistics.median(seconds[""])
    rows = []
    for name, one in contenders.items():
        row: Row = {"network": name, "step": step, "latents": options.latent_size}
        row["million parameters"] = sum(parameter.numel() for parameter in one.part.parameters()) / 1e6
        took, flops = statistics.median(seconds[name]), one.flops(step == "training")
        row |= {"TFLOP": flops / 1e12, "seconds": took, "rate": flops / took / fastest}
        row["ratio"] = ratio(seconds[name], seconds[one.against or next(iter(contenders))])
        rows.append(row | ({"working GB": working[name]} if cuda else {}))
    return rows


def main() -> None:
    arguments = parser(__doc__, repeats=7)
    add = arguments.add_argument
    add("--networks", nargs="+", choices=("unet", "decoder", "layers"), default=["unet", "decoder"])
    add("--peers", nargs="*", choices=tuple(PEERS), default=["3d"], help="beside VideoUNet (default 3d)")
    add("--compile", action="store_true", help="compile our networks (on CUDA with graphs); the peers run as they are")
    add("--steps", nargs="+", choices=("forward", "training"), default=["forward", "training"])
    add("--widths", choices=("mini", "sd"), default="mini", help="mini's, by its recipes, or Stable Diffusion 1.5's")
    add("--latent-sizes", type=int, nargs="+", default=[16], help="heights and widths of the latents (default 16)")
    add("--num-frames", type=int, default=16)
    add("--batch-size", type=int, default=1, help="videos (default 1)")
    add("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--threads", type=int, default=1, help="CPU threads; one is steadiest (default 1)")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    rows: list[Row] = []
    makers = {"unet": unets, "decoder": decoders, "layers": layers}
    for kind, size in itertools.product(options.networks, options.latent_sizes):
        given = argparse.Namespace(**vars(options), latent_size=size)
        torch.set_default_dtype(getattr(torch, options.dtype))
        contenders = makers[kind](given)
        torch.set_default_dtype(torch.float32)
        for step in options.steps:
            rows += compare(step, contenders, given)
    report(rows, options)


if __name__ == "__main__":
    main()
