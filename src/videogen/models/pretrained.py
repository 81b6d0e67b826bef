"""Everything that names external weights: frozen parts for training, and the components of a pipeline folder.

Weights are safetensors only. A folder that lacks a file, a tensor or a finite value is refused in one line.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import diffusers
import huggingface_hub
import torch
import transformers
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors import SafetensorError
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from videogen.config import SCHEDULERS, UserError
from videogen.models.ifrnet import IFRNet
from videogen.models.unet import VideoUNet
from videogen.models.video_decoder import VideoDecoder

Network = TypeVar("Network", bound=nn.Module)
LOADING_ERRORS = (
    OSError, ValueError, RuntimeError, TypeError, LookupError, ArithmeticError, AttributeError, SafetensorError,
    huggingface_hub.errors.StrictDataclassError,
)  # fmt: skip
CLIP_BESIDE_TEXT = ("vision_model.", "visual_projection.", "text_projection.", "logit_scale")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars, warnings and reports of diffusers and transformers: what is wrong with a file, we say ourselves."""
    libraries = (diffusers.utils.logging, transformers.utils.logging)
    levels = [library.get_verbosity() for library in libraries]
    for library in libraries:
        library.set_verbosity(library.CRITICAL)
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, level in zip(libraries, levels, strict=True):
            library.set_verbosity(level)
            library.enable_progress_bar()


def load_network(
    cls: type[Network], folder: str | Path, *, subfolder: str | None = None, dtype: torch.dtype = torch.float32
) -> Network:
    """A network in diffusers' or transformers' layout from a folder or hub id, in evaluation mode and `dtype`, checked.

    Checked: every tensor of the class is in the file and has its shape, none is left over, all values are finite. Parameters
    are copied out of the file's memory map, whose alignment would change the last bits of results. Raises UserError.
    """
    _check_config(Path(folder))
    options: dict[str, Any] = {"use_safetensors": True, "output_loading_info": True, "dtype": dtype}
    if issubclass(cls, transformers.PreTrainedModel):
        options["ignore_mismatched_sizes"] = True  # to be told of them: refused below
    try:
        with quiet():
            network, info = cls.from_pretrained(folder, subfolder=subfolder or "", **options)  # type: ignore[attr-defined]
    except LOADING_ERRORS as error:
        raise UserError(f"cannot load {cls.__name__} from {folder}: {first_line(error)}") from None
    wrong = {kind: sorted(map(str, info.get(kind) or [])) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    if cls is CLIPTextModel:  # a whole CLIP's weights will do
        wrong["unexpected_keys"] = [name for name in wrong["unexpected_keys"] if not name.startswith(CLIP_BESIDE_TEXT)]
    for kind, names in wrong.items():
        if names:
            raise UserError(f"{folder} does not hold a whole {cls.__name__}: {kind.replace('_', ' ')} {names[:3]}")
    for name, parameter in [*network.named_parameters(), *network.named_buffers()]:
        if parameter.is_meta or not torch.isfinite(parameter).all():
            raise UserError(f"{folder}: {name} holds values that are not finite numbers")
        parameter.data = parameter.data.clone()
    return network.to(memory_format=torch.channels_last).eval()


def _check_config(folder: Path) -> None:
    """Without a table in config.json diffusers would ask the hub, and transformers take its own defaults."""
    if folder.is_dir():
        try:
            table = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{folder} has no readable config.json ({first_line(error)})") from None
        if not isinstance(table, dict):
            raise UserError(f"{folder}: config.json holds no table")


def first_line(error: BaseException) -> str:
    """The first sentence of an error's text."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line.split(". ")[0].removesuffix(".")


def frozen(network: Network) -> Network:
    """The same network, without gradients and in evaluation mode."""
    return network.requires_grad_(False).eval()


def network_class(folder: str | Path) -> type[nn.Module]:
    """VideoUNet or UNet2DConditionModel: what the config.json of a trained network's folder names. Raises UserError."""
    try:
        name = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} does not hold a network: {first_line(error)}; train it first") from None
    known: dict[str, type[nn.Module]] = {cls.__name__: cls for cls in (VideoUNet, UNet2DConditionModel)}
    if name not in known:
        raise UserError(f"{folder} holds {name}; a video network starts from {' or '.join(known)}")
    return known[name]


def load_image_pipeline(model: str | Path, dtype: torch.dtype = torch.float32) -> Any:
    """A text-to-image pipeline of diffusers, of whichever class, from a folder or hub id. Raises UserError."""
    try:
        with quiet():
            pipeline = diffusers.DiffusionPipeline.from_pretrained(model, use_safetensors=True, dtype=dtype)
    except LOADING_ERRORS as error:
        raise UserError(f"{model} is no text-to-image pipeline of diffusers: {first_line(error)}") from None
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


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
        raise UserError(f"cannot load the tokenizer of {model}: {first_line(error)}") from None
    if len(tokenizer) < 100:
        raise UserError(f"the tokenizer of {model} knows only {len(tokenizer)} tokens: its vocabulary file is missing")
    return tokenizer


def load_scheduler(model: str | Path) -> DDIMScheduler:
    """The noise schedule of a pipeline folder or hub id, as DDIM.

    Latents are never clipped: DDIM's default, which a file of another scheduler leaves in place, is meant for pixels.
    """
    try:
        return DDIMScheduler.from_pretrained(model, subfolder="scheduler", clip_sample=False)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot load the scheduler of {model}: {first_line(error)}") from None


def other_scheduler(scheduler: Any, name: str) -> Any:
    """Scheduler `name` of `config.SCHEDULERS` with the noise schedule of `scheduler`, by diffusers' own convention."""
    with quiet():
        made = getattr(diffusers, SCHEDULERS[name]).from_config(scheduler.config)
    if made.config.get("clip_sample"):  # see `load_scheduler`
        made.register_to_config(clip_sample=False)
    return made


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


IMAGE_MODEL = ("tokenizer", "text_encoder", "vae", "unet", "scheduler")
"""Components that the paper takes ready-made: Stable Diffusion's own, by the same names."""


def pipeline_folder(name: str) -> Path:
    """Where a VideoGen pipeline lies: "mini" (inside the package), a folder, or a hub id (downloaded).

    The result has a readable model_index.json that names VideoGenPipeline. Raises UserError.
    """
    folder = Path(str(resources.files("videogen") / "pretrained" / "mini")) if name == "mini" else Path(name)
    if not folder.exists():
        folder = download(name, ["*.json", "*.safetensors", "*.txt"])
    if read_index(folder, "a VideoGen folder").get("_class_name") != "VideoGenPipeline":
        raise UserError(f"{folder} is not a VideoGen folder: its model_index.json names another pipeline")
    return folder


def download(name: str, patterns: list[str]) -> Path:
    """The files of a hub id that match `patterns`, in the hub's own cache. Raises UserError."""
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns))
    except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
        raise UserError(f"{name} is neither a folder nor a hub id that can be reached: {first_line(error)}") from None


def read_index(folder: Path, what: str) -> dict[str, Any]:
    """The table of a folder's model_index.json. Raises UserError: the folder is not `what`."""
    try:
        table = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} is not {what}: no readable model_index.json ({first_line(error)})") from None
    return table if isinstance(table, dict) else {}


def load_components(folder: Path, index: Mapping[str, Any], dtype: torch.dtype, given: Mapping[str, Any]) -> dict[str, Any]:
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
        kind = _class_named(folder, name, index[name])
        if kind is None:
            parts[name] = None
        elif not (folder / name).is_dir():
            raise UserError(f"{folder} lacks the folder of its component {name!r}")
        elif name == "tokenizer":
            parts[name] = load_tokenizer(folder)
        elif name == "scheduler":
            parts[name] = load_any_scheduler(folder, kind)
        elif kind != cls.__name__:
            raise UserError(f"{folder}: component {name!r} must be a {cls.__name__}, not a {kind}")
        else:
            parts[name] = frozen(load_network(cls, folder / name, dtype=dtype))
    return parts


def _class_named(folder: Path, name: str, entry: Any) -> str | None:
    """The class that an entry [library, class] of model_index.json names; None where the component was left out."""
    if entry == [None, None]:
        return None
    if not (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str)):
        raise UserError(f"{folder}/model_index.json: {name} must be [library, class], not {entry!r}")
    return entry[1]


def load_any_scheduler(folder: Path, class_name: str) -> Any:
    """The scheduler of a pipeline folder, of whichever diffusers class its index names."""
    found: Any = getattr(diffusers, class_name, None)
    if not (isinstance(found, type) and issubclass(found, diffusers.SchedulerMixin)):
        raise UserError(f"{folder}: component 'scheduler': {class_name!r} is not a scheduler of diffusers")
    scheduler: Any = found
    try:
        return scheduler.from_pretrained(folder, subfolder="scheduler")
    except (OSError, ValueError) as error:
        raise UserError(f"cannot load the scheduler of {folder}: {first_line(error)}") from None
