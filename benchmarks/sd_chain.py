"""The chain at Stable Diffusion 1.5's size, 512x512 pixels: peak memory of each stage, and its time where it is computed.

Each stage has its networks alone in memory, as `enable_model_cpu_offload` has it on a GPU. By default everything is a fake
tensor with a shape and no contents, and the bytes of all storages that are alive are added up while the stages' own code runs:
an account, in seconds, on any machine. With `--model FOLDER` (of `videogen init`, or `sd_init.py --keep`) the same stages are
computed for real, one into the next, and `--output` is the video. `--what training`: the account of forward, squared error,
backward and AdamW of VideoUNet beside UNet2DConditionModel on the same frames.

Not counted: the CUDA context, workspaces of kernels, fragmentation of the allocator.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import sys
import time
import types
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from measuring import Row, parser, report, resident_gigabytes
from sd_parity import SD_UNET, SD_VAE
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import CLIPTextConfig, CLIPTextModel

from videogen.config import Guidance, read_recipe
from videogen.models.ifrnet import IFRNet
from videogen.models.pretrained import load_network, load_scheduler, load_text
from videogen.models.stable_diffusion import decoder_arguments, refiner_arguments, unet_arguments
from videogen.models.unet import VideoUNet
from videogen.models.video_decoder import VideoDecoder
from videogen.pipeline import to_uint8
from videogen.stages import temporal_super_resolution as tsr
from videogen.stages.cascade import generate_base, reference_latents, super_resolve
from videogen.stages.conditions import encode_text
from videogen.stages.decoding import decode_video
from videogen.stages.reference_image import generate_reference
from videogen.video import Video, write_video

SIDE = 512
PROMPT = "a sailing boat at dusk"
TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
with torch.device("meta"):
    UNET_SHAPE = unet_arguments(UNet2DConditionModel(**SD_UNET).config)
    DECODER_SHAPE = decoder_arguments(AutoencoderKL(**SD_VAE).config)


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


class Chain:
    """A prompt becomes a 512x512 video, stage after stage, each with its networks alone in memory.

    With a folder the networks are read from it and everything is computed; without one all tensors are fake.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.folder: Path | None = options.model
        self.device, self.loading = torch.device(options.device), 0.0
        self.dtype, self.frames, self.factor = getattr(torch, options.dtype), options.num_frames, options.temporal_factor
        self.steps, self.generators = {"num_steps": options.steps}, [torch.Generator().manual_seed(0)]
        self.guidance = Guidance(4.0)
        self.scheduler: Any = Schedule() if self.folder is None else load_scheduler(self.folder)

    def network(self, name: str, cls: Any, **config: Any) -> Any:
        if self.folder is None:
            return cls(**config)
        start = time.perf_counter()
        network = load_network(cls, self.folder / name, dtype=self.dtype).to(self.device)
        self.loading += time.perf_counter() - start
        return network

    def video_unet(self, name: str, side: int, condition: int = 0) -> Any:
        return self.network(name, VideoUNet, sample_size=side, condition_channels=condition, **UNET_SHAPE)

    def text(self) -> None:
        if self.folder is None:
            encoder = CLIPTextModel(CLIPTextConfig(**TEXT))
            self.states = encoder(torch.zeros(2, 77, dtype=torch.int64)).last_hidden_state
        else:
            tokenizer, encoder = load_text(self.folder)
            self.states = encode_text(tokenizer, encoder.to(self.device, self.dtype), ["", PROMPT])

    def reference_image(self) -> None:
        unet = self.network("unet", UNet2DConditionModel, **SD_UNET)
        autoencoder = self.network("vae", AutoencoderKL, **SD_VAE)
        arguments = (unet, autoencoder, self.scheduler, self.states, (SIDE, SIDE), self.generators)
        self.image = generate_reference(*arguments, guidance=self.guidance, **self.steps)

    def reference_latents(self) -> None:
        self.references = reference_latents(self.network("vae", AutoencoderKL, **SD_VAE), self.image, levels=3)

    def base(self) -> None:
        network, shape = self.video_unet("base", SIDE // 32), (1, self.frames, 4, SIDE // 32, SIDE // 32)
        arguments = (network, self.scheduler, self.states, self.references[0], shape, self.fps, self.generators)
        self.latents = generate_base(*arguments, guidance=self.guidance, **self.steps)

    def super_resolution_1(self) -> None:
        self._super_resolution(1)

    def super_resolution_2(self) -> None:
        self._super_resolution(2)

    def _super_resolution(self, level: int) -> None:
        network = self.video_unet(f"super_resolution_{level}", SIDE // 32 << level, 4)
        arguments = (self.references[level], self.latents, self.fps, self.generators)
        self.latents = super_resolve(network, self.scheduler, self.states[1:], *arguments, **self.steps)

    def temporal_super_resolution(self) -> None:
        flow = self.network("latent_flow", IFRNet, **read_recipe("sd/latent_flow").network)
        refiner = self.network("refiner", VideoUNet, **refiner_arguments(UNET_SHAPE, SIDE // 8, 4))
        networks = {"middle": partial(tsr.middle_frames, flow), "refiner": refiner, "scheduler": self.scheduler}
        rest = {"fps": self.fps, "generators": self.generators, **self.steps}
        self.latents = tsr.temporal_super_resolution(self.latents, self.factor, **networks, **rest)

    def decoding(self) -> None:
        self.video = decode_video(self.network("video_decoder", VideoDecoder, **DECODER_SHAPE), self.latents)


@torch.no_grad()
def inference(options: argparse.Namespace) -> list[Row]:
    """A row a stage: peak memory; of the real chain also seconds, and the resident memory of the process so far."""
    chain = Chain(options)
    stages = [
        chain.text, chain.reference_image, chain.reference_latents, chain.base, chain.super_resolution_1,
        chain.super_resolution_2, chain.temporal_super_resolution, chain.decoding,
    ]  # fmt: skip
    cuda, real = chain.device.type == "cuda", chain.folder is not None
    rows: list[Row] = []
    torch.set_default_dtype(chain.dtype)
    with contextlib.nullcontext() if real else FakeTensorMode():
        chain.fps = torch.tensor([8.0], device=chain.device)
        for stage in stages:
            chain.loading, start = 0.0, time.perf_counter()
            if cuda:
                torch.cuda.reset_peak_memory_stats()
            with contextlib.nullcontext() if cuda else Memory() as memory:
                stage()
            if cuda:
                torch.cuda.synchronize()
            peak = memory.peak if memory else torch.cuda.max_memory_allocated()
            row: Row = {"stage": stage.__name__.replace("_", " "), "peak GB": peak / 1e9}
            if real:
                took = time.perf_counter() - start
                row |= {"loading s": chain.loading, "seconds": took - chain.loading}
                row |= {"resident GB": resident_gigabytes(resource.getrusage(resource.RUSAGE_SELF))}
                print(row, file=sys.stderr, flush=True)
            rows.append(row)
    torch.set_default_dtype(torch.float32)
    if real:
        write_video(Video(to_uint8(chain.video[0]), fps=8.0 * chain.factor), options.output, overwrite=True)
    return rows


def accounted(name: str, make: Callable[[], Callable[[], object]]) -> Row:
    """`make` builds a network and returns a step of it."""
    with FakeTensorMode(), Memory() as memory:
        step = make()
        held = memory.live
        step()
    return {"network": name, "weights GB": held / 1e9, "peak GB": memory.peak / 1e9}


def training(options: argparse.Namespace) -> list[Row]:
    """A step of each network in float32, for latents of the three sizes; the ratio is to the image network."""
    rows = []
    for side in (16, 32, 64):
        image = accounted(f"UNet2DConditionModel {side}", partial(_step, options.num_frames, side, False))
        video = accounted(f"VideoUNet {side}", partial(_step, options.num_frames, side, True))
        rows += [row | {"ratio": row["peak GB"] / image["peak GB"]} for row in (image, video)]
    return rows


def _step(frames: int, side: int, is_video: bool) -> Callable[[], object]:
    flat = UNet2DConditionModel(**SD_UNET)
    network: Any = VideoUNet(sample_size=side, **UNET_SHAPE) if is_video else flat
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
    add = arguments.add_argument
    add("--what", choices=("inference", "training"), default="inference")
    add("--model", type=Path, metavar="FOLDER", help="compute the chain with these networks")
    add("--output", type=Path, default=Path("sd_chain.mp4"), help="the video of --model (default sd_chain.mp4)")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="of --model; on CUDA the peaks are the allocator's")
    add("--num-frames", type=int, default=16)
    add("--temporal-factor", type=int, default=8)
    add("--steps", type=int, default=2, help="of every stage; memory does not depend on it (default 2)")
    add("--dtype", choices=("float32", "bfloat16", "float16"), default="float16", help="of inference")
    options = arguments.parse_args()
    report({"inference": inference, "training": training}[options.what](options), options)


if __name__ == "__main__":
    main()
