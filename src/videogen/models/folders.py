"""The one way to write a pipeline folder (no section of the paper), and the folder put together from a chain of runs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DDIMScheduler
from safetensors import SafetensorError
from torch import nn

from videogen.config import UserError
from videogen.files import staging
from videogen.models.pretrained import (
    COMPONENTS,
    IMAGE_MODEL,
    first_line,
    load_component,
    load_network,
    load_scheduler,
    load_tokenizer,
    quiet,
)


def write_folder(
    output: Path,
    parts: Iterable[tuple[str, Any]],
    dtype: torch.dtype,
    *,
    options: Mapping[str, Any] | None = None,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Write components (name, part) as the pipeline folder `output`, whole or not at all; a folder that is there is replaced.

    parts: taken one at a time and let go, so that a generator needs memory for one network only; networks are converted to
    `dtype` in place. options: what model_index.json says beside the components. notes: further JSON files by name, read after
    the last part. Raises UserError.
    """
    index: dict[str, Any] = {"_class_name": "VideoGenPipeline", "_diffusers_version": diffusers.__version__}
    with staging(output) as stage:
        new = stage / "new"
        try:
            for name, part in parts:
                with quiet():
                    if isinstance(part, nn.Module):
                        part.to(dtype)
                    part.save_pretrained(new / name)
                home = type(part).__module__
                library = home.split(".")[0]
                index[name] = [home if library == "videogen" else library, type(part).__name__]
                del part
        except SafetensorError as error:  # a full disk
            raise UserError(f"cannot write {output}: {first_line(error)}") from None
        _write_json(new / "model_index.json", index | dict(options or {}))
        for name, note in (notes or {}).items():
            _write_json(new / name, note)
        if output.exists():
            output.rename(stage / "old")
        new.rename(output)


def _write_json(file: Path, table: Any) -> None:
    file.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


def assemble(runs: Path, output: Path, dtype: str = "float16", image_model: str | None = None) -> list[str]:
    """Put what has been trained under `runs` so far into one pipeline folder `output`, weights in `dtype`; replaces it whole.

    image_model: Stable Diffusion folder or hub id that gives the components of IMAGE_MODEL; None: they were trained under
    `runs` too, as mini's are. Returns the names of components that are still missing: later runs read the earlier ones from
    the folder. Raises UserError.
    """
    made_here = [name for name in COMPONENTS if name != "scheduler" and (image_model is None or name not in IMAGE_MODEL)]
    missing = [name for name in made_here if not (runs / COMPONENTS[name][0]).is_dir()]
    if len(missing) > len(COMPONENTS) - 3:
        raise UserError(f"nothing to assemble in {runs}: train at least the text encoder and the autoencoder first")
    if output.exists() and not (output / "model_index.json").is_file():
        raise UserError(f"{output} exists and is not a pipeline folder; choose another output")
    parts = _trained_parts(runs, image_model, [name for name in COMPONENTS if name not in missing])
    write_folder(output, parts, getattr(torch, dtype), options=MINI_SAMPLING if image_model is None else None)
    return missing


def _trained_parts(runs: Path, image_model: str | None, names: list[str]) -> Iterator[tuple[str, Any]]:
    for name in names:
        place, cls = COMPONENTS[name]
        if image_model is not None and name in IMAGE_MODEL:
            yield name, _part_of_image_model(image_model, name, cls)
        elif name == "scheduler":
            yield name, mini_scheduler()
        else:
            yield name, load_tokenizer(runs) if name == "tokenizer" else load_network(cls, runs / place)


def _part_of_image_model(model: str, name: str, cls: type) -> Any:
    if name == "tokenizer":
        return load_tokenizer(model)
    return load_scheduler(model) if name == "scheduler" else load_component(cls, model, name)


MINI_SAMPLING = {
    "guidance_scale": 2.0,
    "guidance_rescale": 0.7,
    "base_guidance_from": 0.7,
    "details_from": 0.22,
    "details_guidance_scale": 8.0,
    "eta": 0.9,
    "num_inference_steps": {"reference": 20, "base": 3, "super_resolution_1": 1, "super_resolution_2": 3},
}
"""Of mini's pipeline: plain guidance oversaturates at zero terminal SNR; of the base, only the first step is guided, where
motion is decided: in the others guidance disturbs what rests; more steps of the base bring nothing; rain and snow are drawn by
the last two steps of super-resolution; what eta gives is within the spread (docs/log.md)."""


def mini_scheduler() -> DDIMScheduler:
    """Mini's noise schedule (ours): Stable Diffusion's betas at zero terminal SNR, velocity prediction (Lin et al. 2024)."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )
