"""Everything that names external weights: frozen parts for training, and the pipeline folder put together from runs.

Weights are safetensors only. A folder that lacks a file, a tensor or a finite value is refused in one line.
"""

from __future__ import annotations

import contextlib
import json
import shutil
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

from videogen.config import UserError
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
        raise UserError(f"cannot load {cls.__name__} from {folder}: {_first_line(error)}") from None
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
            raise UserError(f"{folder} has no readable config.json ({_first_line(error)})") from None
        if not isinstance(table, dict):
            raise UserError(f"{folder}: config.json holds no table")


def _first_line(error: BaseException) -> str:
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
        raise UserError(f"{folder} does not hold a network: {_first_line(error)}; train it first") from None
    known: dict[str, type[nn.Module]] = {cls.__name__: cls for cls in (VideoUNet, UNet2DConditionModel)}
    if name not in known:
        raise UserError(f"{folder} holds {name}; a video network starts from {' or '.join(known)}")
    return known[name]


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


IMAGE_MODEL = ("tokenizer", "text_encoder", "vae", "unet", "scheduler")
"""Components that the paper takes ready-made: Stable Diffusion's own, by the same names."""


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
    stage, old = (output.with_name(f".{output.name}.{what}") for what in ("partial", "old"))
    try:
        for folder in (stage, old):
            shutil.rmtree(folder, ignore_errors=True)
        _write_components(runs, stage, dtype, image_model, [name for name in COMPONENTS if name not in missing])
        if output.exists():
            output.rename(old)
        stage.rename(output)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise UserError(f"cannot write {output}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return missing


def _write_components(runs: Path, stage: Path, dtype: str, image_model: str | None, names: list[str]) -> None:
    index: dict[str, Any] = {"_class_name": "VideoGenPipeline", "_diffusers_version": diffusers.__version__}
    for name in names:
        place, cls = COMPONENTS[name]
        if image_model is not None and name in IMAGE_MODEL:
            part = _part_of_image_model(image_model, name, cls)
        elif name == "scheduler":
            part = mini_scheduler()
        else:
            part = load_tokenizer(runs) if name == "tokenizer" else load_network(cls, runs / place)
        with quiet():
            if isinstance(part, nn.Module):
                part = part.to(getattr(torch, dtype))
            part.save_pretrained(stage / name)
        library = cls.__module__.split(".")[0]
        index[name] = [cls.__module__ if library == "videogen" else library, cls.__name__]
    if image_model is None:
        index |= MINI_GUIDANCE
    (stage / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _part_of_image_model(model: str, name: str, cls: type) -> Any:
    if name == "tokenizer":
        return load_tokenizer(model)
    return load_scheduler(model) if name == "scheduler" else load_component(cls, model, name)


MINI_GUIDANCE = {"guidance_scale": 2.0, "guidance_rescale": 0.7}
"""Of mini's pipeline: plain guidance oversaturates at zero terminal SNR (docs/log.md)."""


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
        raise UserError(f"cannot load the scheduler of {folder}: {_first_line(error)}") from None
