"""Everything that names external weights: frozen parts for training, and the pipeline folder put together from runs.

Weights are safetensors only. A folder that lacks a file, a tensor or a finite value is refused in one line.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import diffusers
import huggingface_hub
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors import SafetensorError
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from videogen.config import UserError
from videogen.models.ifrnet import IFRNet
from videogen.models.unet import VideoUNet
from videogen.models.video_decoder import VideoDecoder

Network = TypeVar("Network", bound=nn.Module)


def load_network(cls: type[Network], folder: str | Path, **options: Any) -> Network:
    """A network in diffusers' or transformers' layout from a folder or hub id, in evaluation mode, checked.

    Checked: every tensor of the class is in the file and has its shape, none is left over, all values are finite. Parameters
    are copied out of the file's memory map, whose alignment would change the last bits of results. Raises UserError.
    """
    try:
        network, info = cls.from_pretrained(  # type: ignore[attr-defined]
            folder, use_safetensors=True, output_loading_info=True, **options
        )
    except (OSError, ValueError, RuntimeError, SafetensorError, KeyError, TypeError) as error:
        raise UserError(f"cannot load {cls.__name__} from {folder}: {_first_line(error)}") from None
    wrong = {kind: sorted(map(str, info.get(kind) or [])) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    for kind, names in wrong.items():
        if names and not (kind == "unexpected_keys" and cls is CLIPTextModel):
            raise UserError(f"{folder} does not hold a whole {cls.__name__}: {kind.replace('_', ' ')} {names[:3]}")
    for name, parameter in [*network.named_parameters(), *network.named_buffers()]:
        if parameter.is_meta or not torch.isfinite(parameter).all():
            raise UserError(f"{folder}: {name} holds values that are not finite numbers")
        parameter.data = parameter.data.clone()
    return network.eval()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def frozen(network: Network) -> Network:
    """The same network, without gradients and in evaluation mode."""
    return network.requires_grad_(False).eval()


def load_component(cls: type[Network], model: str | Path, name: str) -> Network:
    """Component `name` of a pipeline folder or hub id, frozen."""
    if Path(model).is_dir():
        return frozen(load_network(cls, Path(model) / name))
    return frozen(load_network(cls, model, subfolder=name))


def load_text(model: str | Path) -> tuple[Any, CLIPTextModel]:
    """(tokenizer, frozen text encoder) of a pipeline folder or hub id."""
    return load_tokenizer(model), load_component(CLIPTextModel, model, "text_encoder")


def load_tokenizer(model: str | Path) -> Any:
    """A pipeline's CLIP tokenizer; refuses the near-empty vocabulary that transformers makes up when files are missing."""
    where = {"subfolder": "tokenizer"} if not Path(model).is_dir() else {}
    folder = Path(model) / "tokenizer" if Path(model).is_dir() else model
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder, **where)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"cannot load the tokenizer of {model}: {_first_line(error)}") from None
    if len(tokenizer) < 100:
        raise UserError(f"the tokenizer of {model} knows only {len(tokenizer)} tokens: its vocabulary file is missing")
    return tokenizer


def load_scheduler(model: str | Path) -> DDIMScheduler:
    """The noise schedule of a pipeline folder or hub id, as DDIM."""
    try:
        return DDIMScheduler.from_pretrained(model, subfolder="scheduler")
    except (OSError, ValueError) as error:
        raise UserError(f"cannot load the scheduler of {model}: {_first_line(error)}") from None


COMPONENTS: Mapping[str, tuple[str, type]] = {
    "tokenizer": ("tokenizer", CLIPTokenizer),
    "text_encoder": ("text_encoder/network", CLIPTextModel),
    "vae": ("autoencoder/network", AutoencoderKL),
    "unet": ("text_to_image/network", UNet2DConditionModel),
    "scheduler": ("", DDIMScheduler),
    "base": ("base/network", VideoUNet),
    "super_resolution_1": ("super_resolution_1/network", VideoUNet),
    "super_resolution_2": ("super_resolution_2/network", VideoUNet),
    "latent_flow": ("latent_flow/network", IFRNet),
    "refiner": ("refiner/network", VideoUNet),
    "video_decoder": ("video_decoder/network", VideoDecoder),
}
"""Component of the pipeline -> (folder below the runs, class)."""


def assemble(runs: Path, output: Path, dtype: str = "float16") -> list[str]:
    """Put what has been trained under `runs` so far into one pipeline folder `output`, weights in `dtype`; replaces it whole.

    Returns the names of components that are still missing: later runs read the earlier components from the folder.
    """
    stage = output.with_name(f".{output.name}.partial")
    shutil.rmtree(stage, ignore_errors=True)
    index: dict[str, Any] = {"_class_name": "VideoGenPipeline", "_diffusers_version": diffusers.__version__}
    missing = []
    for name, (place, cls) in COMPONENTS.items():
        if cls is DDIMScheduler:
            mini_scheduler().save_pretrained(stage / name)
        elif not (runs / place).is_dir():
            missing.append(name)
            continue
        elif cls is CLIPTokenizer:
            load_tokenizer(runs).save_pretrained(stage / name)
        else:
            load_network(cls, runs / place).to(getattr(torch, dtype)).save_pretrained(stage / name)
        library = cls.__module__.split(".")[0]
        index[name] = [cls.__module__ if library == "videogen" else library, cls.__name__]
    if len(missing) > len(COMPONENTS) - 3:
        raise UserError(f"nothing to assemble in {runs}: train at least the text encoder and the autoencoder first")
    (stage / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    old = output.with_name(f".{output.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if output.exists():
        output.rename(old)
    stage.rename(output)
    shutil.rmtree(old, ignore_errors=True)
    return missing


def mini_scheduler() -> DDIMScheduler:
    """Mini's noise schedule: Stable Diffusion's betas, brought to zero terminal SNR, velocity prediction (Lin et al. 2024; ours)."""
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


def pipeline_folder(name: str) -> Path:
    """Where a VideoGen pipeline lies: "mini" (inside the package), a folder, or a hub id (downloaded).

    The result has a readable model_index.json that names VideoGenPipeline. Raises UserError.
    """
    folder = Path(str(resources.files("videogen") / "pretrained" / "mini")) if name == "mini" else Path(name)
    if not folder.exists():
        try:
            patterns = ["*.json", "*.safetensors", "*.txt"]
            folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns))
        except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
            raise UserError(f"{name} is neither a folder nor a hub id that can be reached: {_first_line(error)}") from None
    try:
        table = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} is not a VideoGen folder: no readable model_index.json ({_first_line(error)})") from None
    if not isinstance(table, dict) or table.get("_class_name") != "VideoGenPipeline":
        raise UserError(f"{folder} is not a VideoGen folder: its model_index.json names another pipeline")
    return folder


def load_components(
    folder: Path, index: Mapping[str, Any], dtype: torch.dtype, given: Mapping[str, Any]
) -> dict[str, Any]:
    """All components of a pipeline folder by name, `given` ones taken instead of loaded. Raises UserError, naming the part."""
    unknown = sorted(given.keys() - COMPONENTS.keys())
    if unknown:
        raise UserError(f"a VideoGen pipeline has no component {unknown[0]!r}; it has {', '.join(COMPONENTS)}")
    parts: dict[str, Any] = dict(given)
    for name, (_, cls) in COMPONENTS.items():
        if name in given:
            continue
        if name not in index:
            raise UserError(f"{folder} lacks the component {name!r}: train it and assemble again")
        if index[name][0] is None:
            parts[name] = None
        elif not (folder / name).is_dir():
            raise UserError(f"{folder} lacks the folder of its component {name!r}")
        elif name == "tokenizer":
            parts[name] = load_tokenizer(folder)
        elif name == "scheduler":
            parts[name] = load_any_scheduler(folder, index[name][1])
        else:
            parts[name] = frozen(load_network(cls, folder / name, dtype=dtype))
    return parts


def load_any_scheduler(folder: Path, class_name: str) -> Any:
    """The scheduler of a pipeline folder, of whichever diffusers class its index names."""
    cls = getattr(diffusers, class_name, None)
    if not (isinstance(cls, type) and issubclass(cls, diffusers.SchedulerMixin)):
        raise UserError(f"{folder}: {class_name!r} is not a scheduler of diffusers")
    try:
        return cls.from_pretrained(folder, subfolder="scheduler")
    except (OSError, ValueError) as error:
        raise UserError(f"cannot load the scheduler of {folder}: {_first_line(error)}") from None
