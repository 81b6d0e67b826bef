"""`videogen init` at Stable Diffusion 1.5's true size: wall time, peak resident memory, bytes written.

The Stable Diffusion folder is made here, with random weights in float16 (2.1 GB), so nothing is downloaded. `--keep FOLDER`
leaves it and the VideoGen folder there, for instance for

    .venv/bin/python benchmarks/generate.py --model FOLDER/videogen --dtype bfloat16 --steps 2 --factors 1 --repeats 1
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from measuring import Row, measured_process, parser, report
from sd_parity import SD_UNET, SD_VAE
from transformers import CLIPTextConfig, CLIPTextModel

from videogen.data.prepare import write_tokenizer
from videogen.models.pretrained import load_tokenizer


def write_stable_diffusion(folder: Path) -> None:
    """Random weights under Stable Diffusion 1.5's configuration; the tokenizer is mini's, whose tokens the embedding covers."""
    write_tokenizer(folder / "tokenizer")
    tokenizer = load_tokenizer(folder)
    marks = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    torch.set_default_dtype(torch.float16)
    StableDiffusionPipeline(
        vae=AutoencoderKL(**SD_VAE),
        text_encoder=CLIPTextModel(CLIPTextConfig(**text, **marks)),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(**SD_UNET),
        scheduler=DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    torch.set_default_dtype(torch.float32)


def measure(folder: Path, options: argparse.Namespace) -> Row:
    """One `videogen init` in a process of its own."""
    source, output = folder / "stable_diffusion", folder / "videogen"
    if not source.exists():
        write_stable_diffusion(source)
    shutil.rmtree(output, ignore_errors=True)  # of the round before
    command = [sys.executable, "-m", "videogen", "init", "--from", str(source), "-o", str(output), "--dtype", options.dtype]
    seconds, memory = measured_process(command)
    written = sum(file.stat().st_size for file in output.rglob("*.safetensors"))
    return {"dtype": options.dtype, "seconds": seconds, "peak GB": memory, "written GB": written / 1e9}


def main() -> None:
    arguments = parser(__doc__, repeats=1)
    arguments.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float16", help="on disk")
    arguments.add_argument("--keep", type=Path, metavar="FOLDER", help="make the folders here and leave them")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        report([measure(folder, options) for _ in range(options.repeats)], options)


if __name__ == "__main__":
    main()
