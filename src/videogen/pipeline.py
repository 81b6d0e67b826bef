"""VideoGenPipeline: Figure 2 of the paper as a diffusers pipeline. A prompt becomes a video in five stages."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, UNet2DConditionModel
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from videogen import diffusion
from videogen.config import MAX_ETA, MAX_STEPS, Guidance, UserError, checked_eta
from videogen.models.adapters import PipelineAdapters
from videogen.models.ifrnet import IFRNet
from videogen.models.pretrained import load_components, pipeline_folder, quiet
from videogen.models.unet import VideoUNet
from videogen.models.video_decoder import VideoDecoder
from videogen.stages import temporal_super_resolution as tsr
from videogen.stages.cascade import Details, generate_base, reference_latents, super_resolve
from videogen.stages.conditions import encode_text, resize_frames
from videogen.stages.decoding import decode_video, num_windows
from videogen.stages.reference_image import generate_reference, image_to_tensor, images_of_model, native_size

_OPTIONS = {
    "base_fps": (0.001, 1000),
    "guidance_scale": (0, 1000),
    "guidance_rescale": (0, 1),
    "base_guidance_from": (0, 1),
    "details_from": (0.001, 1),
    "details_guidance_scale": (0, 1000),
    "eta": (0, MAX_ETA),
}
"""Numbers that model_index.json may say beside the components, and from where to where."""
DEFAULT_STEPS = {"reference": 30, "base": 30, "super_resolution_1": 8, "super_resolution_2": 8, "refiner": 2}


@dataclass
class VideoGenOutput(BaseOutput):
    """frames: by `output_type`, N lists of PIL images, (N, F, H, W, 3) array in [0, 1], (N, F, 3, H, W) tensor in [0, 1], or
    latents (N, F, C, h, w). fps: frames a second of these frames. reference: N PIL images, or None without a reference."""

    frames: Any
    fps: float
    reference: list[Image.Image] | None


class VideoGenPipeline(DiffusionPipeline, PipelineAdapters):
    """The whole of VideoGen. Components may be None where a call does not need them (`unet` with an image given, say)."""

    model_cpu_offload_seq = (
        "text_encoder->unet->vae->base->super_resolution_1->super_resolution_2->latent_flow->refiner->video_decoder"
    )
    _optional_components = ["unet", "latent_flow", "refiner"]  # noqa: RUF012
    _callback_tensor_inputs: list[str] = []  # noqa: RUF012

    def __init__(
        self,
        tokenizer: CLIPTokenizer,
        text_encoder: CLIPTextModel,
        vae: AutoencoderKL,
        unet: UNet2DConditionModel | None,
        scheduler: Any,
        base: VideoUNet,
        super_resolution_1: VideoUNet,
        super_resolution_2: VideoUNet,
        latent_flow: IFRNet | None,
        refiner: VideoUNet | None,
        video_decoder: VideoDecoder,
        base_fps: float = 4.0,
        guidance_scale: float = 4.0,
        guidance_rescale: float = 0.0,
        base_guidance_from: float = 0.0,
        details_from: float = 1.0,
        details_guidance_scale: float = 1.0,
        eta: float = 0.0,
        num_inference_steps: Mapping[str, int] | None = None,
    ) -> None:
        """num_inference_steps: of some stages, in place of DEFAULT_STEPS. base_guidance_from: the fraction of the schedule, 0
        clean to 1 noise, from which on the base network is guided, where a call does not say. details_from,
        details_guidance_scale: how super-resolution takes its steps after the first, see `Details`; from 1: evenly from noise.
        A call whose guidance_scale is 1 is guided nowhere."""
        super().__init__()
        self.register_modules(
            tokenizer=tokenizer,
            text_encoder=text_encoder,
            vae=vae,
            unet=unet,
            scheduler=scheduler,
            base=base,
            super_resolution_1=super_resolution_1,
            super_resolution_2=super_resolution_2,
            latent_flow=latent_flow,
            refiner=refiner,
            video_decoder=video_decoder,
        )
        self.register_to_config(
            base_fps=base_fps,
            guidance_scale=guidance_scale,
            guidance_rescale=guidance_rescale,
            base_guidance_from=base_guidance_from,
            details_from=details_from,
            details_guidance_scale=details_guidance_scale,
            eta=eta,
            num_inference_steps=dict(num_inference_steps or {}),
        )
        self.stage = ""

    @classmethod
    def from_pretrained(cls, name: str | Path, dtype: torch.dtype = torch.float32, **components: Any) -> VideoGenPipeline:
        """Load "mini" (shipped inside the package), a folder, or a hub id, with weights in `dtype`.

        components: parts to use in place of the folder's, by name (`unet=None` leaves one out). Every part is checked: all
        tensors there, their shapes, finite values, a whole tokenizer; safetensors only. Raises UserError in one line.
        """
        folder = pipeline_folder(str(name))
        config = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        parts = load_components(folder, config, dtype, given=components)
        options = {key: config[key] for key in _OPTIONS if key in config}
        for key, value in options.items():
            low, high = _OPTIONS[key]
            if not isinstance(value, int | float) or not low <= value <= high:
                raise UserError(f"{folder}/model_index.json: {key} must be a number from {low} to {high}, not {value!r}")
        steps = config.get("num_inference_steps", {})
        if not isinstance(steps, dict):
            raise UserError(f"{folder}/model_index.json: num_inference_steps must name stages and their steps, not {steps!r}")
        try:
            _steps(steps)
        except UserError as error:
            raise UserError(f"{folder}/model_index.json: {error}") from None
        return cls(**parts, **options, num_inference_steps=steps)

    @property
    def num_timesteps(self) -> int:
        """Steps of all stages together in the current call."""
        return self._num_timesteps

    @property
    def guidance_scale(self) -> float:
        """Guidance of the current call."""
        return self._guidance.scale

    @property
    def _own_eta(self) -> float:
        return self.config.eta if diffusion.has_eta(self.scheduler) else 0.0

    @property
    def own_steps(self) -> dict[str, int]:
        """Denoising steps of each stage where a call does not say."""
        return {**DEFAULT_STEPS, **self.config.num_inference_steps}

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) that the last network was made for, pixels."""
        side = self.super_resolution_2.config.sample_size * self.vae_factor
        return side, side

    @property
    def vae_factor(self) -> int:
        """Pixels a latent, along each side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def encode_prompt(self, prompt: list[str], negative_prompt: list[str]) -> tuple[Tensor, Tensor]:
        """(prompt_embeds, negative_prompt_embeds), each (B, L, D)."""
        length = self.tokenizer.model_max_length
        texts = [text.encode("utf-8", "replace").decode() for text in (*prompt, *negative_prompt)]
        with quiet():
            lengths = [len(tokens) for tokens in self.tokenizer(texts).input_ids]
        if max(lengths) > length:
            warnings.warn(
                f"a prompt is longer than the {length} tokens the text encoder reads; the rest is left out", stacklevel=2
            )
        states = encode_text(self.tokenizer, self.text_encoder, texts, self._execution_device)
        prompt_embeds, negative_prompt_embeds = states.chunk(2)
        return prompt_embeds, negative_prompt_embeds

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        image: Image.Image | list[Image.Image] | Tensor | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int = 16,
        temporal_factor: int = 8,
        fps: float | None = None,
        num_inference_steps: int | Mapping[str, int] | None = None,
        guidance_scale: float | None = None,
        guidance_rescale: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        eta: float | None = None,
        num_videos_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        use_reference: bool = True,
        reference_model: Any = None,
        callback_on_step_end: Callable[[Any, int, Tensor, dict[str, Any]], dict[str, Any]] | None = None,
    ) -> VideoGenOutput | tuple[Any, float, list[Image.Image] | None]:
        """Generate videos.

        prompt, negative_prompt: one or B texts, or `prompt_embeds` and `negative_prompt_embeds` (B, L, D) instead. image: the
        reference, one or B pictures of any size or (B, 3, H, W) in [-1, 1], instead of a generated one; `use_reference=False`:
        none at all. reference_model: a text-to-image pipeline of diffusers, or its folder or hub id (freed before the cascade
        runs), that makes it in place of `unet`. height, width: pixels; default: what the networks were made for. num_frames:
        of the cascade; temporal_factor 1, 2, 4 or 8: the video has factor * (num_frames - 1) + 1 frames. fps: frames a second
        of the *result*, > 0; default: base_fps * temporal_factor. num_inference_steps: one number for all stages or a mapping
        with keys of DEFAULT_STEPS, the others being the model's. guidance_scale, guidance_rescale (default: the model's),
        guidance_interval (default: the whole schedule, for the base network what the model says): see `config.Guidance`; eta
        (default: the model's): share of noise drawn anew in each step, 0 <= eta < 1. These act on the reference image and the
        base network. generator: one, or one a video. latents: finished
        latents (N, F, C, h, w) to decode, skipping all else (no prompt needed). output_type: "pil", "np", "pt" or "latent".
        callback_on_step_end(pipeline, step, timestep, {}) after each step, counted over all stages. Returns VideoGenOutput, or
        with return_dict=False a tuple of its fields. Raises UserError.
        """
        run = _Run(
            self, height, width, num_frames, temporal_factor, fps, num_inference_steps, callback_on_step_end, output_type
        )
        if not use_reference and (image is not None or reference_model is not None):
            raise UserError("use_reference=False takes no image and no reference_model: leave one of them out")
        if reference_model is not None and (image is not None or prompt is None):
            raise UserError("reference_model makes the image from a prompt: leave the image out, and give the prompt as text")
        self._guidance = Guidance(
            self.config.guidance_scale if guidance_scale is None else guidance_scale,
            self.config.guidance_rescale if guidance_rescale is None else guidance_rescale,
            guidance_interval or (0.0, 1.0),
        )
        self._base_guidance = self._guidance
        if guidance_interval is None:
            self._base_guidance = dataclasses.replace(self._guidance, interval=(self.config.base_guidance_from, 1.0))
        self._eta = checked_eta(self._own_eta if eta is None else eta)
        reference = None
        if latents is None:
            text = self._text(prompt, negative_prompt, prompt_embeds, negative_prompt_embeds, num_videos_per_prompt)
            generators = _generators(generator, len(text) // 2)
            if reference_model is not None:
                image = self._images_of(reference_model, prompt, negative_prompt, generators)
            run.plan(generate=use_reference and image is None)
            reference = run.reference_image(text, image, generators) if use_reference else None  # 3.1
            latents = run.cascade(text, reference, generators)  # 3.2
            latents = run.temporal_super_resolution(latents, generators)  # 3.3
        else:
            latents = run.finished(latents)
        frames = latents if output_type == "latent" else run.decode(latents)  # 3.4
        shown = None if reference is None else [Image.fromarray(picture) for picture in to_uint8(reference)]
        output = VideoGenOutput(frames=as_type(frames, output_type), fps=run.fps, reference=shown)
        self.maybe_free_model_hooks()
        return output if return_dict else (output.frames, output.fps, output.reference)

    def _text(
        self,
        prompt: str | list[str] | None,
        negative_prompt: str | list[str] | None,
        prompt_embeds: Tensor | None,
        negative_prompt_embeds: Tensor | None,
        videos: int,
    ) -> Tensor:
        """Token states (2N, L, D): N of the negative prompts, then N of the prompts."""
        if (prompt is None) == (prompt_embeds is None):
            raise UserError("give either prompt or prompt_embeds")
        if videos < 1:
            raise UserError(f"num_videos_per_prompt must be at least 1, not {videos}")
        if prompt_embeds is None:
            prompts = [prompt] if isinstance(prompt, str) else list(prompt or [])
            negatives = negative_prompt or ""
            negatives = [negatives] * len(prompts) if isinstance(negatives, str) else list(negatives)
            if not all(isinstance(text, str) for text in (*prompts, *negatives)):
                raise UserError("a prompt must be a text or a list of texts")
            if not prompts or not all(text.strip() for text in prompts):
                raise UserError("the prompt is empty: say what the video shows")
            if len(negatives) != len(prompts):
                raise UserError(f"{len(prompts)} prompts but {len(negatives)} negative prompts: give one, or one each")
            prompt_embeds, negative_prompt_embeds = self.encode_prompt(prompts, negatives)
        elif negative_prompt_embeds is None:
            raise UserError("prompt_embeds also needs negative_prompt_embeds, for guidance")
        assert negative_prompt_embeds is not None
        if prompt_embeds.ndim != 3 or prompt_embeds.shape != negative_prompt_embeds.shape:
            shapes = tuple(prompt_embeds.shape), tuple(negative_prompt_embeds.shape)
            raise UserError(f"prompt_embeds and negative_prompt_embeds must both be (B, L, D), not {shapes[0]} and {shapes[1]}")
        embeds = [negative_prompt_embeds, prompt_embeds]
        return torch.cat([part.repeat_interleave(videos, dim=0) for part in embeds]).to(self._execution_device)

    def _images_of(self, model: Any, prompt: Any, negative: Any, generators: list[torch.Generator]) -> list[Image.Image]:
        """A picture for each video, by another text-to-image pipeline."""
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        negatives = negative if isinstance(negative, list) else [negative or ""] * len(prompts)
        videos = len(generators) // len(prompts)
        prompts, negatives = ([text for text in texts for _ in range(videos)] for texts in (prompts, negatives))
        self.stage = "reference image"
        return images_of_model(model, prompts, negatives, generators, dtype=self.vae.dtype, device=self._execution_device)


class _Run:
    """One call of the pipeline: its checked options, its count of steps, and its five stages."""

    def __init__(
        self,
        pipeline: VideoGenPipeline,
        height: int | None,
        width: int | None,
        num_frames: int,
        temporal_factor: int,
        fps: float | None,
        steps: int | Mapping[str, int] | None,
        callback: Callable[[Any, int, Tensor, dict[str, Any]], dict[str, Any]] | None,
        output_type: str,
    ) -> None:
        self.pipeline, self.callback, self.factor, self.num_frames = pipeline, callback, temporal_factor, num_frames
        self.passes = tsr.num_passes(temporal_factor)
        self.fps = pipeline.config.base_fps * temporal_factor if fps is None else float(fps)
        self.size = (pipeline.size[0] if height is None else height, pipeline.size[1] if width is None else width)
        self.steps = {**pipeline.own_steps, **_steps(steps)}
        unit = 4 * pipeline.vae_factor
        if any(side < unit or side % unit for side in self.size):
            raise UserError(f"height and width must be multiples of {unit}, not {self.size[0]} and {self.size[1]}")
        if num_frames < 1 or not 0 < self.fps < 1000:
            raise UserError(f"num_frames must be at least 1 and fps between 0 and 1000, not {num_frames} and {self.fps}")
        if output_type not in ("pil", "np", "pt", "latent"):
            raise UserError(f"output_type must be pil, np, pt or latent, not {output_type!r}")
        if self.passes and (pipeline.latent_flow is None or pipeline.refiner is None):
            raise UserError("this pipeline has no latent_flow or no refiner: use temporal_factor=1, or train them")
        self.decodes = output_type != "latent"

    def plan(self, *, generate: bool) -> None:
        """Count the steps of all stages, for progress."""
        steps = sum(self.steps[each] for each in ("base", "super_resolution_1", "super_resolution_2"))
        steps += self.steps["reference"] if generate else 0
        steps += self.passes * self.steps["refiner"] if self.num_frames > 1 else 0
        self._count(steps, self.factor * (self.num_frames - 1) + 1)

    def _count(self, steps: int, frames: int) -> None:
        """So many denoising steps, and the decoding of so many frames."""
        self.pipeline._num_timesteps, self.done = steps + (num_windows(frames) if self.decodes else 0), 0

    def finished(self, latents: Tensor) -> Tensor:
        """Latents (N, F, C, h, w) that need no more than decoding, checked and counted."""
        channels = self.pipeline.vae.config.latent_channels
        if latents.ndim != 5 or latents.shape[2] != channels or 0 in latents.shape or not latents.isfinite().all():
            raise UserError(f"latents must be finite and (N, F, {channels}, h, w), not {tuple(latents.shape)}")
        self._count(0, latents.shape[1])
        return latents.to(self.pipeline._execution_device, self.pipeline.video_decoder.dtype)

    def stage(self, name: str) -> Callable[[int, Tensor], None]:
        """Name the stage that begins; returns its `on_step`. Under model offload, what the stages before held is put away."""
        self.pipeline.stage = name
        for hook in getattr(self.pipeline, "_all_hooks", ()):
            hook.offload()

        def on_step(index: int, timestep: Tensor) -> None:
            self.done += 1
            if self.callback is not None:
                self.callback(self.pipeline, self.done - 1, timestep, {})

        return on_step

    def reference_image(self, text: Tensor, image: Any, generators: list[torch.Generator]) -> Tensor:
        pipeline = self.pipeline
        if image is None:
            if pipeline.unet is None:
                raise UserError("this pipeline has no text-to-image network: give an image, or use_reference=False")
            images = generate_reference(
                pipeline.unet,
                pipeline.vae,
                pipeline.scheduler,
                text,
                native_size(pipeline.unet, self.size, pipeline.vae_factor),
                generators,
                num_steps=self.steps["reference"],
                guidance=pipeline._guidance,
                eta=pipeline._eta,
                on_step=self.stage("reference image"),
            )
            return resize_frames(images, self.size).clamp(-1, 1)
        pictures = _pictures(image, self.size).to(text)
        if len(generators) % len(pictures):
            raise UserError(f"{len(pictures)} reference images for {len(generators)} videos: give one, or one a prompt")
        return pictures.repeat_interleave(len(generators) // len(pictures), dim=0)

    def cascade(self, text: Tensor, reference: Tensor | None, generators: list[torch.Generator]) -> Tensor:
        pipeline, scheduler = self.pipeline, self.pipeline.scheduler
        references = [None] * 3 if reference is None else reference_latents(pipeline.vae, reference, levels=3)
        height, width = (side // pipeline.vae_factor // 4 for side in self.size)
        shape = (len(generators), self.num_frames, pipeline.vae.config.latent_channels, height, width)
        fps = torch.full((len(generators),), self.fps / self.factor, device=text.device)
        base = generate_base(
            pipeline.base,
            scheduler,
            text,
            references[0],
            shape,
            fps,
            generators,
            num_steps=self.steps["base"],
            guidance=pipeline._base_guidance,
            eta=pipeline._eta,
            on_step=self.stage("base"),
        )
        config, latents = pipeline.config, base
        scale = 1.0 if pipeline._guidance.scale == 1 else config.details_guidance_scale
        details = None if config.details_from == 1 else Details(config.details_from, scale)
        told = text.chunk(2)[1] if details is None else text
        for level, network in enumerate((pipeline.super_resolution_1, pipeline.super_resolution_2), start=1):
            latents = super_resolve(
                network,
                scheduler,
                told,
                references[level],
                latents,
                fps,
                generators,
                num_steps=self.steps[f"super_resolution_{level}"],
                details=details,
                on_step=self.stage(f"super-resolution {level}"),
            )
        return latents

    def temporal_super_resolution(self, latents: Tensor, generators: list[torch.Generator]) -> Tensor:
        pipeline = self.pipeline
        return tsr.temporal_super_resolution(
            latents,
            self.factor,
            fps=torch.full((len(latents),), self.fps / self.factor, device=latents.device),
            middle=partial(tsr.middle_frames, pipeline.latent_flow),
            refiner=pipeline.refiner,
            scheduler=pipeline.scheduler,
            generators=generators,
            num_steps=self.steps["refiner"],
            on_step=self.stage("temporal super-resolution"),
        )

    def decode(self, latents: Tensor) -> Tensor:
        return decode_video(self.pipeline.video_decoder, latents, on_step=self.stage("decoding"))


def _steps(asked: int | Mapping[str, int] | None) -> dict[str, int]:
    """Of the stages that are asked for, checked. Raises UserError."""
    given = dict.fromkeys(DEFAULT_STEPS, asked) if isinstance(asked, int) else dict(asked or {})
    for name, value in given.items():
        if not isinstance(value, int) or not 1 <= value <= MAX_STEPS.get(name, 0):
            limits = ", ".join(f"{stage} 1..{limit}" for stage, limit in MAX_STEPS.items())
            raise UserError(f"num_inference_steps: {name}={value}; the stages and their steps are {limits}")
    return given


def _generators(given: torch.Generator | list[torch.Generator] | None, count: int) -> list[torch.Generator]:
    """One generator a video. From a single one (None: torch's global one), each video gets its own, seeded from it in order."""
    if isinstance(given, list):
        if len(given) != count:
            raise UserError(f"{len(given)} generators for {count} videos: give one, or one each")
        return given
    if count == 1 and given is not None:
        return [given]
    device = "cpu" if given is None else given.device
    seeds = torch.randint(0, 2**62, (count,), generator=given, device=device).tolist()
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def _pictures(image: Any, size: tuple[int, int]) -> Tensor:
    """Reference images (B, 3, *size) in [-1, 1] from what a user gives."""
    if isinstance(image, Tensor):
        if image.ndim != 4 or not len(image) or image.shape[1:] != (3, *size) or not image.isfinite().all():
            raise UserError(f"reference images must be finite and (B, 3, {size[0]}, {size[1]}), not {tuple(image.shape)}")
        return image
    listed = image if isinstance(image, list) else [image]
    if not listed or not all(isinstance(item, Image.Image) for item in listed):
        raise UserError("image must be a PIL image, a list of PIL images, or a tensor (B, 3, H, W) in [-1, 1]")
    return torch.stack([image_to_tensor(item, size) for item in listed])


def to_uint8(frames: Tensor) -> np.ndarray:
    """(..., 3, H, W) in [-1, 1] -> uint8 (..., H, W, 3)."""
    pixels = frames.float().add(1).mul(127.5).round().clamp(0, 255).byte()
    return np.asarray(pixels.movedim(-3, -1).cpu().numpy())


def as_type(frames: Tensor, output_type: str) -> Any:
    """Frames (N, F, 3, H, W) in [-1, 1] as diffusers' output types have them; latents pass unchanged."""
    if output_type == "latent":
        return frames
    if output_type == "pil":
        return [[Image.fromarray(frame) for frame in video] for video in to_uint8(frames)]
    unit = frames.float().add(1).div(2).clamp(0, 1)
    return unit if output_type == "pt" else unit.movedim(2, -1).cpu().numpy()
