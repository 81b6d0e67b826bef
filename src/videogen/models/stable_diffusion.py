"""A Stable Diffusion folder becomes a whole VideoGen folder (section 3.5): `videogen init`.

Every tensor is accounted for by name: copied, widened (new input channels start at zero) or new, with the reason.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import CLIPTextModel

from videogen.config import UserError, read_recipe
from videogen.models.folders import write_folder
from videogen.models.ifrnet import IFRNet
from videogen.models.initialization import InitReport, decoder_tensors, initialize_from, why_new
from videogen.models.pretrained import download, load_network, load_scheduler, load_tokenizer, read_index
from videogen.models.unet import VideoUNet
from videogen.models.video_decoder import VideoDecoder

REPORT = "initialization.json"
HUB_FILES = [
    "model_index.json", "tokenizer/*", "scheduler/*.json", "text_encoder/config.json", "text_encoder/model.safetensors",
    *(f"{part}/{file}" for part in ("unet", "vae") for file in ("config.json", "diffusion_pytorch_model.safetensors")),
]  # fmt: skip
"""Of a hub id: not the single-file, half-precision and pickled twins that lie beside them."""
COMPONENT_CLASSES: Mapping[str, type] = {"text_encoder": CLIPTextModel, "vae": AutoencoderKL, "unet": UNet2DConditionModel}
UNET_SHAPE = (
    "down_block_types", "up_block_types", "block_out_channels", "layers_per_block", "attention_head_dim",
    "cross_attention_dim", "use_linear_projection", "norm_num_groups",
)  # fmt: skip
"""What VideoUNet takes from an image UNet's configuration."""
UNET_FREE = {"sample_size", "in_channels", "out_channels", "upcast_attention", "dropout"}
"""What does not alter what a network with the same weights computes, or is checked by itself."""
DECODER_SHAPE = (
    "latent_channels", "block_out_channels", "layers_per_block", "norm_num_groups", "mid_block_add_attention",
    "scaling_factor", "out_channels",
)  # fmt: skip
DECODER_FREE = {"in_channels", "sample_size", "down_block_types", "up_block_types", "force_upcast", "use_quant_conv"}
OWN_REASONS = {
    "latent_flow": "latent flow network (3.3), widths of recipes/sd/latent_flow: starts as the average of both frames",
    "refiner": "refiner (3.3), half the image network's widths as in recipes/sd/refiner: random, to be trained",
}


def initialize_folder(source: str, output: Path, dtype: str = "float16") -> dict[str, Any]:
    """Write the VideoGen folder `output` from a Stable Diffusion 1.x or 2.x folder or hub id, whole or not at all.

    The networks have the image model's size: at sample_size 64 the cascade has latents of 16, 32 and 64. Weights are stored in
    `dtype` (float32, float16, bfloat16); two networks are in memory at most. Returns the report, which also lies in the folder
    (REPORT): {"source", "dtype", "components": {name: {"from", "parameters", "copied", "widened", "new"}}}. Raises UserError.
    """
    if output.exists():
        raise UserError(f"{output} exists; choose another output")
    folder = stable_diffusion_folder(source)
    report: dict[str, Any] = {"source": source, "dtype": dtype, "components": {}}
    kind = getattr(torch, dtype)
    with torch.random.fork_rng(devices=[]), _default_dtype(kind):
        torch.manual_seed(0)
        write_folder(output, _parts(folder, kind, report["components"]), kind, notes={REPORT: report})
    return report


def describe(report: Mapping[str, Any]) -> list[str]:
    """The report in a line for each component."""
    lines = []
    for name, part in report["components"].items():
        counts = [f"{len(part['copied'])} tensors copied from {part['from']}"] if part["copied"] else []
        counts += [f"{len(part['widened'])} widened ({reason})" for reason in sorted(set(part["widened"].values()))]
        reasons = list(part["new"].values())
        counts += [f"{reasons.count(reason)} new: {reason}" for reason in sorted(set(reasons))]
        lines.append(f"{name} ({part['parameters'] / 1e6:.1f} M): {'; '.join(counts)}")
    return lines


def _parts(folder: Path, dtype: torch.dtype, report: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The components one after the other, each noted in `report`; a network starts from the one before and then lets it go."""
    scheduler = load_scheduler(folder)
    yield "tokenizer", load_tokenizer(folder)
    yield "scheduler", scheduler
    text_encoder = load_network(CLIPTextModel, folder / "text_encoder", dtype=dtype)
    states = text_encoder.config.hidden_size
    report["text_encoder"] = _as_it_is("text_encoder", text_encoder)
    yield "text_encoder", text_encoder
    del text_encoder
    vae = load_network(AutoencoderKL, folder / "vae", dtype=dtype)
    report["vae"] = _as_it_is("vae", vae)
    latents = vae.config.latent_channels
    decoder = VideoDecoder(**decoder_arguments(vae.config))
    report["video_decoder"] = _started(decoder, "vae", initialize_from(decoder, decoder_tensors(vae.state_dict())))
    yield "vae", vae
    yield "video_decoder", decoder
    del vae, decoder
    yield from _cascade(folder, dtype, latents, states, report)


def _cascade(folder: Path, dtype: torch.dtype, latents: int, states: int, report: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    below: Any = load_network(UNet2DConditionModel, folder / "unet", dtype=dtype)
    shape, side = unet_arguments(below.config, latents), below.config.sample_size
    if shape["cross_attention_dim"] != states:
        raise UserError(
            f"{folder}: the unet reads text states of {shape['cross_attention_dim']} channels, the text_encoder makes {states}"
        )
    if not isinstance(side, int) or side % 4:
        raise UserError(f"{folder}/unet: sample_size must be a multiple of 4 for a cascade of three sizes, not {side}")
    report["unet"] = _as_it_is("unet", below)
    yield "unet", below
    name = "unet"
    for level, (above, condition) in enumerate((("base", 0), ("super_resolution_1", latents), ("super_resolution_2", latents))):
        network = VideoUNet(sample_size=side * 2**level // 4, condition_channels=condition, **shape)
        report[above] = _started(network, name, initialize_from(network, below.state_dict()))
        yield above, network
        below, name = network, above
    del below, network
    flow = IFRNet(**_tuples({**read_recipe("sd/latent_flow").network, "in_channels": latents}))
    report["latent_flow"] = _new("latent_flow", flow)
    yield "latent_flow", flow
    refiner = VideoUNet(**refiner_arguments(shape, side, latents))
    report["refiner"] = _new("refiner", refiner)
    yield "refiner", refiner


def unet_arguments(config: Mapping[str, Any], latents: int = 4) -> dict[str, Any]:
    """The keyword arguments with which a VideoUNet has the shape of a UNet2DConditionModel of this configuration.

    Raises UserError where the network does something that VideoUNet does not: it is not Stable Diffusion 1.x or 2.x then.
    """
    for name in ("in_channels", "out_channels"):
        if config[name] != latents:
            raise UserError(
                f"the unet's {name} must be {latents} as the vae's latents, not {config[name]} (inpainting, depth?)"
            )
    _refuse_others("unet", config, UNet2DConditionModel, {*UNET_SHAPE, *UNET_FREE})
    return _tuples({"in_channels": latents, "out_channels": latents, **{name: config[name] for name in UNET_SHAPE}})


def decoder_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments with which a VideoDecoder has the shape of an AutoencoderKL's decoder. Raises UserError."""
    _refuse_others("vae", config, AutoencoderKL, {*DECODER_SHAPE, *DECODER_FREE})
    return _tuples({name: config[name] for name in DECODER_SHAPE})


def refiner_arguments(shape: Mapping[str, Any], side: int, latents: int) -> dict[str, Any]:
    """The refiner of recipes/sd: half the widths of the image network, no text and no reference."""
    widths = tuple(width // 2 for width in shape["block_out_channels"])
    own = {"sample_size": side, "block_out_channels": widths, "condition_channels": 3 * latents}
    return _tuples({**shape, **read_recipe("sd/refiner").network, **own, "cross_attention_dim": None})


def _refuse_others(name: str, config: Mapping[str, Any], cls: type, known: set[str]) -> None:
    for key, item in inspect.signature(cls).parameters.items():
        if key not in known and key in config and config[key] != item.default:
            raise UserError(
                f"this {name} is not Stable Diffusion 1.x or 2.x: its {key} is {config[key]!r}, and VideoGen's networks have "
                f"{item.default!r}"
            )


def _tuples(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()}


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """New networks are made in `dtype`, not in float32 and then converted: half the memory."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


# The report


def _entry(network: nn.Module, origin: str | None, copied: Any, widened: dict[str, str], new: dict[str, str]) -> dict[str, Any]:
    count = sum(item.numel() for item in network.parameters())
    return {"from": origin, "parameters": count, "copied": list(copied), "widened": widened, "new": new}


def _as_it_is(name: str, network: nn.Module) -> dict[str, Any]:
    return _entry(network, name, sorted(network.state_dict()), {}, {})


def _started(network: nn.Module, origin: str, report: InitReport) -> dict[str, Any]:
    widened = dict.fromkeys(report.widened, "channels of the reference or the low resolution; zero at the start")
    return _entry(network, origin, report.copied, widened, {name: why_new(name) for name in report.new})


def _new(name: str, network: nn.Module) -> dict[str, Any]:
    return _entry(network, None, (), {}, dict.fromkeys(sorted(network.state_dict()), OWN_REASONS[name]))


# What is not a Stable Diffusion folder


def stable_diffusion_folder(source: str) -> Path:
    """The folder of a Stable Diffusion 1.x or 2.x model, from a folder or hub id. Raises UserError, saying what it is."""
    path = Path(source)
    if path.exists() and not path.is_dir():
        raise UserError(_about_file(path))
    folder = path if path.is_dir() else download(source, HUB_FILES)
    if not (folder / "model_index.json").is_file():
        singles = sorted(file for file in folder.glob("*") if file.suffix in (".safetensors", ".ckpt") and file.is_file())
        if singles:
            raise UserError(_about_file(singles[0]))
    index = read_index(folder, "a Stable Diffusion folder")
    if index.get("_class_name") != "StableDiffusionPipeline":
        raise UserError(
            f"{folder} holds a {index.get('_class_name')}, and VideoGen starts from a StableDiffusionPipeline (1.x or 2.x)"
        )
    for name, cls in COMPONENT_CLASSES.items():
        entry = index.get(name)
        found = entry[1] if isinstance(entry, list) and len(entry) == 2 else entry
        if found != cls.__name__:
            raise UserError(f"{folder}: its {name} is a {found}, and VideoGen starts from a {cls.__name__}")
        if not (folder / name).is_dir():
            raise UserError(f"{folder} lacks the folder of its {name}")
        _refuse_pickles(folder, name)
    return folder


def _about_file(file: Path) -> str:
    if file.suffix == ".safetensors" and _is_lora(file):
        return (
            f"{file} is a LoRA, which changes a model and is none: init from the Stable Diffusion it was made for, then "
            "load it with pipeline.load_lora_weights"
        )
    if file.suffix in (".safetensors", ".ckpt"):
        return (
            f"{file} is a single file, and VideoGen starts from a folder: make one with diffusers' "
            f'StableDiffusionPipeline.from_single_file("{file.name}").save_pretrained("folder")'
            + (" where you trust the file: a .ckpt can run code" if file.suffix == ".ckpt" else "")
        )
    return f"{file} is not a Stable Diffusion folder"


def _is_lora(file: Path) -> bool:
    try:
        with safe_open(file, "pt") as tensors:
            return any("lora" in name for name in tensors.keys())  # noqa: SIM118, not a mapping
    except (OSError, SafetensorError):
        return False


def _refuse_pickles(folder: Path, name: str) -> None:
    place = folder / name
    pickles = sorted(file.name for ending in ("bin", "ckpt", "pt") for file in place.glob(f"*.{ending}"))
    if pickles and not list(place.glob("*.safetensors")):
        raise UserError(
            f"{place} holds its weights as a pickle ({pickles[0]}), which is never opened here because it can run code: where "
            f'you trust it, convert it with diffusers\' StableDiffusionPipeline.from_pretrained("{folder}", '
            'use_safetensors=False).save_pretrained("folder")'
        )
