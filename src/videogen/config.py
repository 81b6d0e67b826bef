"""Every option of a training run as frozen dataclasses, read strictly from TOML recipes (section 3.5; no torch here).

A recipe has the tables of `TrainConfig`. An unknown key is an error that names the nearest valid one, and so is a value of
the wrong type. Folder names that begin with "." are relative to the run's output folder, so that a chain of runs side by
side (`runs/mini/*`) can be moved as a whole; anything else is a path or a hub id.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any


class UserError(ValueError):
    """Bad input, told in one line: what is wrong and what to do. The command line prints it and exits with 2."""


MAX_STEPS: Mapping[str, int] = {
    "reference": 1000,
    "base": 1000,
    "super_resolution_1": 1000,
    "super_resolution_2": 1000,
    "refiner": 500,
}
"""Denoising steps that a stage can take of a schedule of 1000: the refiner starts part-way."""

SCHEDULERS: Mapping[str, str] = {
    "ddim": "DDIMScheduler",
    "dpm-solver++": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "lcm": "LCMScheduler",
}
"""Names of the command line -> classes of diffusers, each tried (tests/test_diffusion.py)."""


MAX_ETA = 0.99
"""Of DDIM's eta: at 1, rounding makes diffusers take the root of a negative number."""


def checked_eta(eta: float) -> float:
    """`eta`, if it is a share of noise to draw anew in each step (see `diffusion.sample`). Raises UserError otherwise."""
    if not 0 <= eta <= MAX_ETA:
        raise UserError(f"eta must lie in 0..{MAX_ETA}, not {eta}")
    return eta


@dataclass(frozen=True)
class Guidance:
    """How hard, and when, to follow the prompt.

    scale: finite, >= 0; 1 is no guidance, 0 ignores the prompt (Ho and Salimans 2022). rescale: 0..1, how far the standard
    deviation is brought back to that without guidance (Lin et al. 2024, section 3.4): without it, a schedule of zero terminal
    SNR oversaturates. interval: the part of the schedule that is guided, as fractions from clean (0) to noise (1); outside of
    it only the prompt is followed, at half the cost (Kynkaanniemi et al. 2024). limit: > 0, the most that the prompt's part
    counts in one place, as its norm over the channels (ours). Raises UserError on other values.
    """

    scale: float = 1.0
    rescale: float = 0.0
    interval: tuple[float, float] = (0.0, 1.0)
    limit: float = math.inf

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale >= 0):
            raise UserError(f"the guidance scale must be a finite number of at least 0, not {self.scale}")
        if not 0 <= self.rescale <= 1:
            raise UserError(f"guidance_rescale must lie in 0..1, not {self.rescale}")
        low, high = self.interval
        if not 0 <= low <= high <= 1:
            raise UserError(f"guidance_interval must be two fractions of the schedule, low and high in 0..1, not {low}, {high}")
        if not self.limit > 0:
            raise UserError(f"the limit of guidance must be more than 0, not {self.limit}")


Difference = typing.Literal["motion", "shape", "speed", "weather", "fps"]
"""What the two clips of a pair may differ in."""


@dataclass(frozen=True)
class DataConfig:
    """Which clips a network sees (section 4.1)."""

    source: str = "diorama"  # "diorama", or a folder of videos, or a captions CSV (columns: file, caption)
    size: int = 64  # height and width of a frame, pixels
    num_frames: int = 16
    fps: tuple[float, ...] = (4.0, 8.0, 16.0)  # one is drawn for each clip
    crop: int | None = None  # side of a random square crop of the frames, pixels; None keeps them whole
    offset: int | None = None  # pixels that the object may be off a crop's middle, each way; None: anywhere (Diorama only)
    flow: bool = False  # also deliver exact optical flow (Diorama only)
    dry: bool = False  # rain and snow begin to fall after the first frame (Diorama only)
    pairs: tuple[Difference, ...] = ()  # clips 2k, 2k+1 differ in one of these (Diorama only)
    only: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # attribute -> classes shown (Diorama only)
    kept: int | None = None  # learn from so many clips, kept in the run folder with what frozen networks make of them
    workers: int = 1  # loader processes

    def __post_init__(self) -> None:
        if self.kept is not None and (self.kept < 1 or (self.pairs and self.kept % 2)):
            raise UserError(f"data.kept is {self.kept}: a number of clips, at least 1, and even where clips come in pairs")
        if self.offset is not None and (self.crop is None or self.offset < 0):
            raise UserError("data.offset says where crops are: set data.crop, and an offset of at least 0 pixels")


@dataclass(frozen=True)
class OptimizerConfig:
    """Linear warm-up and a cosine decay to `final_learning_rate`. `name`: see `training/optimizers.py`."""

    name: typing.Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 1e-4
    final_learning_rate: float = 0.0
    warmup_steps: int = 100
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0


@dataclass(frozen=True)
class LoopConfig:
    """The loop that all networks share. Everything is counted in optimiser steps."""

    steps: int = 1000
    batch_size: int = 8  # clips a step, over all ranks
    micro_batch: int | None = None  # clips in one forward of one rank; None: all of the rank's share at once
    ema_decay: float = 0.999
    seed: int = 0
    save_every: int = 500
    keep_checkpoints: int = 2
    log_every: int = 10
    preview_every: int = 0  # 0: no previews
    precision: typing.Literal["float32", "bfloat16"] = "float32"  # bfloat16: autocast, weights stay float32
    threads: int | None = None  # CPU threads; fixed so that a resumed run equals an uninterrupted one
    device: str = "auto"  # "auto" | "cpu" | "cuda"


@dataclass(frozen=True)
class TextEncoderOptions:
    """Mini's own CLIP, trained by contrasting captions with clips. The paper takes CLIP as it is."""

    tokenizer: str
    storyboard_frame: int = 32  # a clip is shown to the image tower as 2x2 frames of this side, pixels
    initial: str | None = None  # a CLIP to go on from, in transformers' layout
    words_weight: float = 0.0  # that a state's direction tells its word, the closing ones the labels (docs/log.md)


@dataclass(frozen=True)
class ReconstructionOptions:
    """The losses of Stable Diffusion's autoencoder (section 3.4): L1 + LPIPS + patch GAN."""

    lpips: str | None = None  # folder with VGG-16 and LPIPS weights; None: no perceptual network
    lpips_weight: float = 1.0
    edge_weight: float = 1.0  # L1 on image gradients, ours: stands in for LPIPS where no VGG is at hand
    adversarial_weight: float = 0.0
    adversarial_start: int = 0  # step from which the discriminator counts


@dataclass(frozen=True)
class AutoencoderOptions(ReconstructionOptions):
    """Mini's own image autoencoder. The paper takes Stable Diffusion's as it is."""

    kl_weight: float = 1e-6
    equivariance: float = 0.0  # weight of the images decoded from shifted or shrunk latents


@dataclass(frozen=True)
class TextToImageOptions:
    """Mini's own text-to-image network (section 3.1). The paper takes Stable Diffusion's as it is."""

    image_model: str  # Stable Diffusion folder or hub id; here: its vae, text_encoder, tokenizer and scheduler
    initial: str | None = None  # an earlier text-to-image network to start from
    text_dropout: float = 0.1
    high_noise: float = 1.0  # timesteps are 1 - u ** high_noise of the schedule: 1 is uniform, more is noisier


@dataclass(frozen=True)
class VideoDiffusionOptions:
    """One network of the cascade (section 3.2), started as section 3.5 says."""

    image_model: str
    initial: str | None = None  # image UNet (first network) or the network one level below; None: the image model's UNet
    below: str | None = None  # network one level below: its results are the low resolution to learn from; None: true clips
    downscale: int = 1  # the data's frames are this many times larger than the network's
    text_dropout: float = 0.1
    reference_dropout: float = 0.1
    temporal_factor: float = 1.0  # learning rate of temporal and other new layers and the fps embedding, relative to the rest
    high_noise: float = 1.0  # timesteps are 1 - u ** high_noise of the schedule: 1 is uniform, more is noisier
    relative_error: bool = False  # errors count as shares of what network.condition_error expects: all levels of noise alike
    crop: int | None = None  # side of a square of latents to learn from, where a clip changes; conditions see whole frames
    crop_anywhere: bool = False  # the square lies anywhere: what falls or flows is little beside an outline that moves
    condition_noise: float = 0.0  # upper bound of the noise mixed into the low-resolution condition (standard deviations)

    def __post_init__(self) -> None:
        if self.crop_anywhere and self.crop is None:
            raise UserError("options.crop_anywhere says where squares are: set options.crop")


@dataclass(frozen=True)
class LatentFlowOptions:
    """The latent flow network (section 3.3)."""

    image_model: str
    initial: str | None = None  # an earlier latent flow network to start from
    teacher: str | None = None  # a pixel IFRNet; None: the exact flow of the data


@dataclass(frozen=True)
class RefinerOptions:
    """The diffusion network that refines warped latents (section 3.3)."""

    image_model: str
    latent_flow: str


@dataclass(frozen=True, kw_only=True)
class VideoDecoderOptions(ReconstructionOptions):
    """The video decoder (section 3.4)."""

    image_model: str
    degradation: float = 0.5  # strength of BSRGAN's degradations, 0 (none) .. 1 (as published)
    clean: float = 0.25  # share of clips that are not degraded
    flicker_weight: float = 1.0  # of what changes from frame to frame and should not, or should and does not (ours)


@dataclass(frozen=True)
class VideoClassifierOptions:
    """The network that judges Diorama's clips (ours): features for in-domain FVD, classes for the in-domain Inception Score."""

    clean: float = 0.3  # share of clips that are shown as they are; the others are spoiled


@dataclass(frozen=True)
class LoraOptions:
    """Train low-rank adapters of some layers (Hu et al. 2022) and leave the network as it is; needs peft."""

    rank: int = 16
    alpha: float = 16.0  # the adapters' output counts alpha / rank
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")  # layers whose names end so; temporal attention's too


Options = (
    TextEncoderOptions
    | AutoencoderOptions
    | TextToImageOptions
    | VideoDiffusionOptions
    | LatentFlowOptions
    | RefinerOptions
    | VideoDecoderOptions
    | VideoClassifierOptions
)
OPTIONS: Mapping[str, type] = {
    "text_encoder": TextEncoderOptions,
    "autoencoder": AutoencoderOptions,
    "text_to_image": TextToImageOptions,
    "video_diffusion": VideoDiffusionOptions,
    "latent_flow": LatentFlowOptions,
    "refiner": RefinerOptions,
    "video_decoder": VideoDecoderOptions,
    "video_classifier": VideoClassifierOptions,
}


@dataclass(frozen=True)
class TrainConfig:
    """A whole run: what is learnt (`objective` + `options`), by which network, from which data, how."""

    objective: str  # a key of OPTIONS
    options: Options
    network: Mapping[str, Any]  # keyword arguments of the network class, checked by it
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    lora: LoraOptions | None = None  # None: the whole network is trained

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, in the layout of a recipe."""
        plain = dataclasses.asdict(self)
        plain["network"] = dict(self.network)
        return typing.cast(dict[str, Any], _jsonable(plain))


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_jsonable(item) for item in value]
    return value


def read_recipe(name: str | Path, overrides: Mapping[str, Any] | None = None) -> TrainConfig:
    """Read a TOML recipe.

    `name` is a file or a recipe of the package such as "mini/base". A recipe that begins with `like = NAME` is that other one
    (of the package, or a file beside it) with its own values in place of the other's. `overrides` maps dotted keys
    ("loop.steps") to values that replace the file's. Raises UserError on a missing file, bad TOML, an unknown key, a value of
    the wrong type, or recipes that are like each other.
    """
    table, where = _recipe_table(str(name), ())
    for key, value in (overrides or {}).items():
        _put(table, key, value)
    return parse_train_config(table, where)


def _recipe_table(name: str, before: tuple[str, ...]) -> tuple[dict[str, Any], str]:
    """The values of a recipe and of what it is like, and where it was found; `before` are those that are like this one."""
    text, where = _recipe_text(name)
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{where} is not valid TOML: {error}") from None
    if "like" not in table:
        return table, where
    if where in before:
        raise UserError(f"{where} is like itself, by way of {' and '.join(before)}: one of them must stand alone")
    other = str(table.pop("like"))
    beside = Path(os.path.normpath(Path(name).parent / other))  # one name a file, or a ring of recipes would have no end
    whole, _ = _recipe_table(str(beside if Path(name).is_file() and beside.is_file() else other), (*before, where))
    for key, value in table.items():
        if isinstance(value, dict) and isinstance(whole.get(key), dict):
            whole[key] |= value
        else:
            whole[key] = value
    return whole, where


def _recipe_text(name: str) -> tuple[str, str]:
    path = Path(name)
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8"), str(path)
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read the recipe {path}: {error}") from None
    root = resources.files("videogen") / "recipes"
    names = sorted(_recipe_names(root))
    if name in names:
        return (root / f"{name}.toml").read_text(encoding="utf-8"), f"recipe {name}"
    raise UserError(f"no recipe {name!r}: give a .toml file or one of {', '.join(names)}")


def _recipe_names(folder: Any, prefix: str = "") -> list[str]:
    names = []
    for entry in folder.iterdir():
        if entry.is_dir():
            names += _recipe_names(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith(".toml"):
            names.append(prefix + entry.name.removesuffix(".toml"))
    return names


def _put(table: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise UserError(f"cannot set {dotted}: {parent} is not a table of the recipe")
    table[last] = value


def parse_train_config(table: Mapping[str, Any], where: str) -> TrainConfig:
    """`TrainConfig` from the plain table of a recipe or of a saved run. Raises UserError, naming the key."""
    name = table.get("objective")
    if name not in OPTIONS:
        raise UserError(f"{where}: objective must be one of {', '.join(OPTIONS)}, not {name!r}")
    return typing.cast(TrainConfig, _parse(TrainConfig, table, where, options=OPTIONS[typing.cast(str, name)]))


def _parse(cls: type, table: Mapping[str, Any], where: str, **types_: type) -> Any:
    hints = {**typing.get_type_hints(cls), **types_}
    fields = {item.name: item for item in dataclasses.fields(cls)}
    for key in table:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"valid keys: {', '.join(fields)}"
            raise UserError(f"{where}: unknown key {key!r}; {hint}")
    for name, item in fields.items():
        required = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        if required and name not in table and not dataclasses.is_dataclass(hints[name]):
            raise UserError(f"{where}: {name} is missing")
    values = {}
    for key, hint in hints.items():
        if key in table:
            values[key] = _value(hint, table[key], f"{where}: {key}")
        elif key in types_:
            values[key] = _parse(hint, {}, f"{where}: {key}")
    return cls(**values)


def _value(hint: Any, value: Any, where: str) -> Any:
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise UserError(f"{where} must be a table, not {value!r}")
        return _parse(typing.cast(type, hint), value, where)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        (hint,) = [item for item in arguments if item is not type(None)]
        return _value(hint, value, where)
    if origin is typing.Literal:
        if value not in arguments:
            choices = ", ".join(str(each) or repr(each) for each in arguments)
            raise UserError(f"{where} must be one of {choices}, not {value!r}")
        return value
    if origin is tuple:
        wanted = "" if arguments[-1] is Ellipsis else f" of {len(arguments)} values"
        if not isinstance(value, list | tuple) or (wanted and len(value) != len(arguments)):
            raise UserError(f"{where} must be a list{wanted}, not {value!r}")
        return tuple(_value(arguments[0], item, where) for item in value)
    if origin is Mapping:
        if not isinstance(value, Mapping):
            raise UserError(f"{where} must be a table, not {value!r}")
        return {key: _value(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise UserError(f"{where} must be {hint.__name__}, not {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{where} must be finite, not {value!r}")
    return value
