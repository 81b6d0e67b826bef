"""Peak memory by accounting, without a GPU: every tensor that a stage holds at once, at Stable Diffusion 1.5's size.

Networks, inputs and everything between are fake tensors, which have shapes and no contents; the bytes of all storages that are
alive are added up as the stages' own code runs. `inference`: each stage of a 512x512 video, its networks alone on the device as
`enable_model_cpu_offload` has it. `training`: forward, squared error, backward and AdamW of VideoUNet against
UNet2DConditionModel on the same frames. Not counted: the CUDA context, workspaces of kernels, fragmentation of the allocator.
"""

from __future__ import annotations

import argparse
import types
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from measuring import Row, parser, report
from sd_parity import SD_UNET, SD_VAE
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import CLIPTextConfig, CLIPTextModel

from videogen.config import Guidance, read_recipe
from videogen.models.ifrnet import IFRNet
from videogen.models.stable_diffusion import decoder_arguments, refiner_arguments, unet_arguments
from videogen.models.unet import VideoUNet
from videogen.models.video_decoder import VideoDecoder
from videogen.stages import temporal_super_resolution as tsr
from videogen.stages.cascade import generate_base, reference_latents, super_resolve
from videogen.stages.decoding import decode_video
from videogen.stages.reference_image import generate_reference

SIDE = 512
TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}


class Memory(TorchDispatchMode):
    """Bytes of the storages that came out of any operation and are still alive, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, operation: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and tensor.untyped_storage() not in self.known:
                storage = tensor.untyped_storage()
                self.known.add(storage)
                self._count(storage.nbytes())
                weakref.finalize(storage, self._count, -storage.nbytes())
        return made

    def _count(self, size: int) -> None:
        self.live += size
        self.peak = max(self.peak, self.live)


class Schedule:
    """The least that `diffusion.sample` asks of a scheduler; those of diffusers read values, which fake tensors have not."""

    config = types.SimpleNamespace(num_train_timesteps=1000)
    init_noise_sigma = 1.0

    def set_timesteps(self, steps: int, device: torch.device) -> None:
        self.timesteps = torch.ones(steps, device=device)

    def scale_model_input(self, latents: Tensor, timestep: Tensor) -> Tensor:
        return latents

    def add_noise(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return clean + noise

    def step(self, output: Tensor, timestep: Tensor, latents: Tensor) -> types.SimpleNamespace:
        return types.SimpleNamespace(prev_sample=latents - output)


def accounted(name: str, make: Callable[[], Callable[[], object]], dtype: torch.dtype) -> Row:
    """The row of a stage: `make` builds what it needs and returns the stage as a function."""
    torch.set_default_dtype(dtype)
    with FakeTensorMode(), Memory() as memory:
        stage = make()
        held = memory.live
        stage()
    torch.set_default_dtype(torch.float32)
    return {"stage": name, "held before GB": held / 1e9, "peak GB": memory.peak / 1e9}


def inference(options: argparse.Namespace) -> list[Row]:
    """Each stage with the networks it calls, two steps each: further steps hold no more."""
    scheduler, generators = Schedule(), [torch.Generator()]
    with torch.device("meta"):
        shape = unet_arguments(UNet2DConditionModel(**SD_UNET).config)
        decoder = decoder_arguments(AutoencoderKL(**SD_VAE).config)
    guidance, steps = Guidance(4.0), {"num_steps": 2}
    frames, latent = options.num_frames, SIDE // 8

    def text(rows: int) -> Tensor:
        return torch.randn(rows, 77, 768)

    def text_encoder() -> Callable[[], object]:
        encoder = CLIPTextModel(CLIPTextConfig(**TEXT))
        return partial(encoder, torch.zeros(2, 77, dtype=torch.int64))

    def reference_image() -> Callable[[], object]:
        unet, autoencoder = UNet2DConditionModel(**SD_UNET), AutoencoderKL(**SD_VAE)
        size = (SIDE, SIDE)
        return lambda: generate_reference(unet, autoencoder, scheduler, text(2), size, generators, guidance=guidance, **steps)

    def encoding() -> Callable[[], object]:
        autoencoder = AutoencoderKL(**SD_VAE)
        return lambda: reference_latents(autoencoder, torch.randn(1, 3, SIDE, SIDE), levels=3)

    def base() -> Callable[[], object]:
        network, side = VideoUNet(sample_size=latent // 4, **shape), latent // 4
        known, rate = torch.randn(1, 4, side, side), torch.ones(1)
        size = (1, frames, 4, side, side)
        return lambda: generate_base(network, scheduler, text(2), known, size, rate, generators, guidance=guidance, **steps)

    def super_resolution(side: int) -> Callable[[], object]:
        network = VideoUNet(sample_size=side, condition_channels=4, **shape)
        known, low, rate = torch.randn(1, 4, side, side), torch.randn(1, frames, 4, side // 2, side // 2), torch.ones(1)
        return lambda: super_resolve(network, scheduler, text(1), known, low, rate, generators, **steps)

    def temporal_super_resolution() -> Callable[[], object]:
        flow = IFRNet(**read_recipe("sd/latent_flow").network)
        refiner = VideoUNet(**refiner_arguments(shape, latent, 4))
        given, rate, middle = torch.randn(1, frames, 4, latent, latent), torch.ones(1), partial(tsr.middle_frames, flow)
        return lambda: tsr.temporal_super_resolution(
            given, options.temporal_factor, fps=rate, middle=middle, refiner=refiner, scheduler=scheduler,
            generators=generators, **steps,
        )  # fmt: skip

    def decoding() -> Callable[[], object]:
        network = VideoDecoder(**decoder)
        made = options.temporal_factor * (frames - 1) + 1
        return lambda: decode_video(network, torch.randn(1, made, 4, latent, latent))

    stages: dict[str, Callable[[], Callable[[], object]]] = {
        "text encoder": text_encoder,
        "reference image": reference_image,
        "reference latents": encoding,
        "base": base,
        "super-resolution 1": partial(super_resolution, latent // 2),
        "super-resolution 2": partial(super_resolution, latent),
        "temporal super-resolution": temporal_super_resolution,
        "decoding": decoding,
    }
    return [accounted(name, make, getattr(torch, options.dtype)) for name, make in stages.items()]


def training(options: argparse.Namespace) -> list[Row]:
    """A step of each network in float32, for latents of the three sizes; the ratio is to the image network."""
    rows = []
    for side in (16, 32, 64):
        image = accounted(f"UNet2DConditionModel {side}", partial(_step, options.num_frames, side, False), torch.float32)
        video = accounted(f"VideoUNet {side}", partial(_step, options.num_frames, side, True), torch.float32)
        rows += [row | {"ratio": row["peak GB"] / image["peak GB"]} for row in (image, video)]
    return rows


def _step(frames: int, side: int, is_video: bool) -> Callable[[], object]:
    flat = UNet2DConditionModel(**SD_UNET)
    network: Any = VideoUNet(sample_size=side, **unet_arguments(flat.config)) if is_video else flat
    optimizer = torch.optim.AdamW(network.parameters())
    latents, text = torch.randn(1, frames, 4, side, side), torch.randn(1, 77, 768)

    def forward() -> Tensor:
        if is_video:
            return network(latents, torch.ones(1), fps=torch.ones(1), text=text, reference=latents[:, 0])
        each = text.expand(frames, -1, -1)
        return network(latents[0], torch.ones(frames), each).sample

    def step() -> None:
        forward().square().mean().backward()
        optimizer.step()

    return step


def main() -> None:
    arguments = parser(__doc__, repeats=1)
    arguments.add_argument("--what", choices=("inference", "training"), default="inference")
    arguments.add_argument("--num-frames", type=int, default=16)
    arguments.add_argument("--temporal-factor", type=int, default=8)
    arguments.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float16", help="of inference")
    options = arguments.parse_args()
    report({"inference": inference, "training": training}[options.what](options), options)


if __name__ == "__main__":
    main()
