"""Tiny networks of every kind, with weights that make every layer count, and a whole pipeline folder of them.

32x32 pixels, a 4x autoencoder, latents of 2, 4 and 8.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel
from transformers.utils import logging as transformers_logging

from videogen.data.clips import ClipBatch
from videogen.data.diorama import ATTRIBUTES, Diorama
from videogen.data.prepare import write_tokenizer
from videogen.models.folders import assemble
from videogen.models.ifrnet import IFRNet
from videogen.models.pretrained import load_tokenizer
from videogen.models.unet import VideoUNet
from videogen.models.video_classifier import VideoClassifier
from videogen.models.video_decoder import VideoDecoder

for _logging in (diffusers_logging, transformers_logging):
    _logging.disable_progress_bar()

Network = TypeVar("Network", bound=nn.Module)

TEXT = 32  # channels of token states
LIKE_SD: dict[str, Any] = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "attention_head_dim": 2,
    "cross_attention_dim": TEXT,
    "norm_num_groups": 4,
}
NO_TEXT: dict[str, Any] = {**LIKE_SD, "cross_attention_dim": None}
UNET: dict[str, Any] = {**LIKE_SD, "addition_embed_type": "text", "addition_embed_type_num_heads": 2}
CODER: dict[str, Any] = {
    "block_out_channels": (8, 8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "mid_block_add_attention": False,
}
IMAGE_CODER: dict[str, Any] = {
    **CODER,
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
}
REFINER: dict[str, Any] = {**NO_TEXT, "reference": False, "condition_channels": 12}
FLOW: dict[str, Any] = {"in_channels": 4, "channels": (8, 8, 8, 8)}
CLASSIFIER: dict[str, Any] = {
    "sample_size": 16, "num_frames": 4, "block_out_channels": (4, 8, 8, 8), "features": 6, "norm_num_groups": 4,
}  # fmt: skip
CLIP_TOWER = {
    "hidden_size": TEXT, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "projection_dim": 16,
}  # fmt: skip


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def alive(network: Network, seed: int = 0, scale: float = 0.05) -> Network:
    """The same network with noise added to every weight: what starts at zero or at the identity counts then."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
    return network.eval()


def clips(
    count: int = 2, frames: int = 4, size: int = 32, *, flow: bool = False, labels: bool = False, seed: int = 0
) -> ClipBatch:
    """Smooth random clips in [-1, 1]. labels: those of Diorama's first clips."""
    coarse = randn(count * frames, 3, 4, 4, seed=seed)
    pixels = nn.functional.interpolate(coarse, size=(size, size), mode="bilinear").tanh().unflatten(0, (count, frames))
    flows = 2 * randn(count, frames, 2, 2, size, size, seed=seed + 1) if flow else None
    known = [Diorama(32, frames, seed=seed).labels(index).indices() for index in range(count if labels else 0)]
    said = torch.from_numpy(np.stack(known)) if known else None
    return ClipBatch(pixels, [f"a red ball {index}" for index in range(count)], torch.linspace(4, 16, count), flows, said)


def write_runs(runs: Path) -> None:
    """What a chain of runs leaves behind: runs/tokenizer and runs/NAME/network. The classifier takes clips of 4 frames."""
    write_tokenizer(runs / "tokenizer")
    tokenizer = load_tokenizer(runs)
    marks = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = {**CLIP_TOWER, **marks, "vocab_size": len(tokenizer), "max_position_embeddings": tokenizer.model_max_length}
    vision = {**CLIP_TOWER, "image_size": 32, "patch_size": 16}
    torch.manual_seed(0)
    networks: dict[str, Any] = {
        "text_encoder": CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)),
        "autoencoder": AutoencoderKL(**IMAGE_CODER),
        "text_to_image": UNet2DConditionModel(sample_size=8, **UNET),
        "base": VideoUNet(sample_size=2, **UNET),
        "super_resolution_1": VideoUNet(sample_size=4, condition_channels=4, **UNET),
        "super_resolution_2": VideoUNet(sample_size=8, condition_channels=4, **UNET),
        "refiner": VideoUNet(sample_size=8, **REFINER),
        "latent_flow": IFRNet(**FLOW),
        "video_decoder": VideoDecoder(**CODER),
        "video_classifier": VideoClassifier({name: len(known) for name, known in ATTRIBUTES.items()}, **CLASSIFIER),
    }
    for name, network in networks.items():
        alive(network).save_pretrained(runs / name / "network")


def write_stable_diffusion(folder: Path, *, version: int = 1, **changes: Any) -> Path:
    """A small Stable Diffusion 1.x or 2.x folder as diffusers writes it; changes: of the unet's arguments."""
    write_tokenizer(folder / "text" / "tokenizer")
    tokenizer = load_tokenizer(folder / "text")
    marks = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = {**CLIP_TOWER, **marks, "vocab_size": len(tokenizer), "max_position_embeddings": tokenizer.model_max_length}
    second = {"use_linear_projection": True, "attention_head_dim": [1, 2], "upcast_attention": True} if version == 2 else {}
    torch.manual_seed(version)
    pipeline = StableDiffusionPipeline(
        vae=alive(AutoencoderKL(**{**IMAGE_CODER, "mid_block_add_attention": True})),
        text_encoder=alive(CLIPTextModel(CLIPTextConfig(**text))),
        tokenizer=tokenizer,
        unet=alive(UNet2DConditionModel(**{"sample_size": 8, **LIKE_SD, **second, **changes})),
        scheduler=PNDMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            skip_prk_steps=True,
            steps_offset=1,
            prediction_type="v_prediction" if version == 2 else "epsilon",
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder / "sd")
    return folder / "sd"


def write_pipeline(folder: Path) -> Path:
    """`folder`/pipeline, whole; the runs it was made of stay beside it."""
    write_runs(folder / "runs")
    assert assemble(folder / "runs", folder / "pipeline", "float32") == []
    return folder / "pipeline"
